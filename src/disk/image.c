#include "disk/image.h"

#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define DIRECT_BLOCK_MAX 4096

static int open_error(const char *path, bool readonly, bool direct, int code, struct ferry_error *err)
{
    switch (code) {
    case -ENOENT:
    case -ENOTDIR:
        return error_set(err, code, "disk %s does not exist", path);
    case -EISDIR:
        return error_set(err, code, "disk %s is a directory, not an image", path);
    case -EACCES:
    case -EPERM:
    case -EROFS:
        return error_set(err, code,
                         readonly ? "disk %s cannot be read: %s"
                                  : "disk %s cannot be written: %s; attach it readonly or change its mode",
                         path, strerror(-code));
    case -EINVAL:
        if (direct)
            return error_set(err, code, "disk %s: its file system has no direct I/O; leave out direct", path);
        break;
    default:
        break;
    }
    return error_set_errno(err, code, "cannot open disk %s", path);
}

/* Size in bytes and kind. */
static int find_size(const char *path, int fd, uint64_t *size, struct ferry_error *err)
{
    struct stat status;

    if (fstat(fd, &status) < 0)
        return error_set_errno(err, -errno, "cannot look at disk %s", path);
    if (S_ISDIR(status.st_mode))
        return error_set(err, -EISDIR, "disk %s is a directory, not an image", path);
    if (S_ISREG(status.st_mode)) {
        *size = (uint64_t)status.st_size;
        return 0;
    }
    if (!S_ISBLK(status.st_mode))
        return error_set(err, -EINVAL, "disk %s is neither a file nor a block device", path);
    if (ioctl(fd, BLKGETSIZE64, size) < 0)
        return error_set_errno(err, -errno, "cannot find the size of disk %s", path);
    return 0;
}

/* The smallest block direct I/O takes on this file, found by trying. 0 when none works. */
static uint32_t probe_direct_block(int fd, uint64_t size)
{
    void *block = aligned_alloc(DIRECT_BLOCK_MAX, DIRECT_BLOCK_MAX);
    uint32_t found = 0;

    if (!block)
        return DIRECT_BLOCK_MAX;
    for (uint32_t try = IMAGE_SECTOR_SIZE; try <= DIRECT_BLOCK_MAX && !found; try *= 2) {
        /* An offset that is a multiple of nothing larger, where the image is long enough for one. */
        off_t offset = size >= 2 * (uint64_t)try ? (off_t)
        try:
            0;

        if (pread(fd, block, try, offset) >= 0)
            found = try;
    }
    free(block);
    return found;
}

static int check_size(struct image *image, struct ferry_error *err)
{
    if (!image->size)
        return error_set(err, -EINVAL, "disk %s is empty; give it a size first (truncate -s 1G)",
                         image->path);
    if (image->size % IMAGE_SECTOR_SIZE)
        return error_set(err, -EINVAL, "disk %s: its size, %" PRIu64 " bytes, is not a multiple of 512",
                         image->path, image->size);
    if (!image->direct)
        return 0;
    image->block_size = probe_direct_block(image->fd, image->size);
    if (!image->block_size)
        return error_set(err, -EINVAL, "disk %s: its file system has no direct I/O; leave out direct",
                         image->path);
    if (image->size % image->block_size)
        return error_set(err, -EINVAL,
                         "disk %s: its size, %" PRIu64
                         " bytes, is not a multiple of %u, as direct I/O needs here",
                         image->path, image->size, image->block_size);
    return 0;
}

int image_open(struct image **out, const char *path, bool readonly, bool direct, struct ferry_error *err)
{
    /* O_NONBLOCK so that opening a pipe does not hang; taken off again, io_uring would obey it. */
    int flags = (readonly ? O_RDONLY : O_RDWR) | (direct ? O_DIRECT : 0) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    struct image *image = calloc(1, sizeof(*image));
    int result = -ENOMEM;

    if (image)
        image->path = strdup(path);
    if (!image || !image->path) {
        free(image);
        return error_set(err, -ENOMEM, "out of memory while opening disk %s", path);
    }
    image->readonly = readonly;
    image->direct = direct;
    image->block_size = IMAGE_SECTOR_SIZE;
    image->fd = open(path, flags);
    if (image->fd < 0)
        result = open_error(path, readonly, direct, -errno, err);
    else
        result = find_size(path, image->fd, &image->size, err);
    if (result == 0 && fcntl(image->fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
        result = error_set_errno(err, -errno, "cannot set up disk %s", path);
    if (result == 0)
        result = check_size(image, err);
    if (result < 0) {
        image_close(image);
        return result;
    }
    *out = image;
    return 0;
}

void image_close(struct image *image)
{
    if (!image)
        return;
    if (image->fd >= 0) {
        image_release(image);
        close(image->fd);
    }
    free(image->path);
    free(image);
}

static int set_lock(const struct image *image, short type)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET}; /* start 0, length 0: all of it */
    int result;

    do
        result = fcntl(image->fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
    while (result == -EINTR);
    return result;
}

int image_acquire(struct image *image, struct ferry_error *err)
{
    uint64_t size = 0;
    int result;

    if (image->locked)
        return 0;
    result = set_lock(image, image->readonly ? F_RDLCK : F_WRLCK);
    if (result == -EAGAIN || result == -EACCES)
        return error_set(err, -EBUSY, "disk %s is in use by another VM; stop that one first", image->path);
    if (result < 0)
        return error_set_errno(err, result, "cannot lock disk %s", image->path);
    image->locked = true;
    /* Its last owner may have been another host: what was true when it was opened may be so no more. */
    result = find_size(image->path, image->fd, &size, err);
    if (result == 0 && size != image->size)
        result = error_set(err, -ESTALE, "disk %s changed its size from %" PRIu64 " to %" PRIu64 " bytes",
                           image->path, image->size, size);
    if (result < 0)
        image_release(image);
    return result;
}

void image_release(struct image *image)
{
    if (!image->locked)
        return;
    (void)set_lock(image, F_UNLCK); /* unlocking what we hold does not fail */
    image->locked = false;
}
