#include "checkpoint/output.h"

#include "base/error.h"

#include <ferry/ferry.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* A guest's memory is nobody else's business. */
#define OUTPUT_MODE  0600
#define FD_PATH_SIZE 32

static int open_directory(struct output *output, struct ferry_error *err)
{
    char directory[PATH_MAX];
    const char *slash = strrchr(output->path, '/');
    const char *name = slash ? slash + 1 : output->path;
    size_t length = slash ? (size_t)(slash - output->path) : 0;

    /* Its own and the partial file's, which is longer. */
    if (!name[0] || strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || strlen(name) > NAME_MAX - 24)
        return error_set(err, -EINVAL, "%s is not a name for a checkpoint file", output->path);
    snprintf(output->name, sizeof(output->name), "%s", name);
    memcpy(directory, output->path, length);
    directory[length] = '\0';
    output->directory_fd = open(length ? directory : slash ? "/" : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (output->directory_fd < 0)
        return error_set_errno(err, -errno, "cannot write checkpoint %s: directory %s", output->path,
                               length  ? directory
                               : slash ? "/"
                                       : ".");
    return 0;
}

static int check_place(const struct output *output, struct ferry_error *err)
{
    struct stat status;

    if (fstatat(output->directory_fd, output->name, &status, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : error_set_errno(err, -errno, "cannot look at %s", output->path);
    if (!S_ISREG(status.st_mode))
        return error_set(err, -EINVAL, "%s exists and is not a file", output->path);
    if (!output->overwrite)
        return error_set(err, -EEXIST,
                         "%s exists already; it is replaced only when that is asked for (--overwrite)",
                         output->path);
    return 0;
}

/* By way of /proc, so that it also has no name. */
static char *fd_path(const struct output *output, char text[static FD_PATH_SIZE])
{
    snprintf(text, FD_PATH_SIZE, "/proc/self/fd/%d", output->fd);
    return text;
}

int output_open(struct output *output, const char *path, const char *id, bool overwrite,
                struct ferry_error *err)
{
    char text[FD_PATH_SIZE];
    int result;

    *output = (struct output){.directory_fd = -1, .fd = -1, .direct_fd = -1, .overwrite = overwrite};
    if (strlen(path) >= sizeof(output->path))
        return error_set(err, -ENAMETOOLONG, "the name of the checkpoint file is too long");
    snprintf(output->path, sizeof(output->path), "%s", path);
    snprintf(output->id, sizeof(output->id), "%.8s", id);
    result = open_directory(output, err);
    if (result == 0)
        result = check_place(output, err);
    if (result < 0)
        return result;
    output->fd = openat(output->directory_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, OUTPUT_MODE);
    if (output->fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOENT || errno == EINVAL)) {
        snprintf(output->partial, sizeof(output->partial), "%.230s.partial-%s", output->name, output->id);
        output->fd =
            openat(output->directory_fd, output->partial, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, OUTPUT_MODE);
        if (output->fd < 0)
            output->partial[0] = '\0';
    }
    if (output->fd < 0)
        return error_set_errno(err, -errno, "cannot write checkpoint %s", output->path);
    output->direct_fd = open(fd_path(output, text), O_RDWR | O_DIRECT | O_CLOEXEC);
    output->direct = output->direct_fd >= 0;
    return 0;
}

static int write_failed(const struct output *output, int code, struct ferry_error *err)
{
    uint64_t written = __atomic_load_n(&output->bytes, __ATOMIC_RELAXED);
    struct statvfs space;

    if (code == -EFBIG)
        return error_set(err, code, "checkpoint %s would be larger than a file may be here", output->path);
    if (code != -ENOSPC && code != -EDQUOT)
        return error_set_errno(err, code, "cannot write checkpoint %s", output->path);
    if (code == -EDQUOT || fstatvfs(output->fd, &space) < 0)
        space = (struct statvfs){0};
    return error_set(
        err, code,
        "there is no space left for checkpoint %s: %llu MiB of about %llu MiB were written, %llu "
        "MiB are free",
        output->path, (unsigned long long)written >> 20,
        (unsigned long long)(output->expected > written ? output->expected : written) >> 20,
        (unsigned long long)space.f_bavail * space.f_frsize >> 20);
}

static bool is_direct(const struct output *output, const void *data, size_t size, uint64_t offset)
{
    return __atomic_load_n(&output->direct, __ATOMIC_RELAXED) &&
           (((uintptr_t)data | size | offset) & (FERRY_PAGE_SIZE - 1)) == 0;
}

int output_write(struct output *output, const void *data, size_t size, uint64_t offset,
                 struct ferry_error *err)
{
    const uint8_t *at = data;

    while (size > 0) {
        bool direct = is_direct(output, at, size, offset);
        ssize_t n = pwrite(direct ? output->direct_fd : output->fd, at, size, (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EINVAL && direct) {
            __atomic_store_n(&output->direct, false, __ATOMIC_RELAXED);
            continue;
        }
        if (n <= 0)
            return write_failed(output, n < 0 ? -errno : -ENOSPC, err);
        at += n;
        offset += (uint64_t)n;
        size -= (size_t)n;
        __atomic_fetch_add(&output->bytes, (uint64_t)n, __ATOMIC_RELAXED);
    }
    return 0;
}

int output_allocate(struct output *output, uint64_t offset, uint64_t size, struct ferry_error *err)
{
    if (fallocate(output->fd, 0, (off_t)offset, (off_t)size) == 0 || errno == EOPNOTSUPP || errno == ENOSYS ||
        errno == EINTR)
        return 0;
    return write_failed(output, -errno, err);
}

void output_punch(struct output *output, uint64_t offset, uint64_t size)
{
    (void)fallocate(output->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size);
}

int output_resize(struct output *output, uint64_t size, struct ferry_error *err)
{
    return ftruncate(output->fd, (off_t)size) < 0 ? write_failed(output, -errno, err) : 0;
}

int output_sync(struct output *output, struct ferry_error *err)
{
    return fsync(output->fd) < 0 ? write_failed(output, -errno, err) : 0;
}

uint64_t output_allocated(const struct output *output)
{
    struct stat status;

    return fstat(output->fd, &status) < 0 ? 0 : (uint64_t)status.st_blocks * 512;
}

/* Gives the file NAME, where none of that name is. */
static int give_name(const struct output *output, const char *name)
{
    char text[FD_PATH_SIZE];

    if (output->partial[0])
        return linkat(output->directory_fd, output->partial, output->directory_fd, name, 0);
    return linkat(AT_FDCWD, fd_path(output, text), output->directory_fd, name, AT_SYMLINK_FOLLOW);
}

static int drop_partial(struct output *output)
{
    int result = output->partial[0] ? unlinkat(output->directory_fd, output->partial, 0) : 0;

    output->partial[0] = '\0';
    return result;
}

static int publish(struct output *output)
{
    if (!output->overwrite) {
        if (give_name(output, output->name) == 0) {
            drop_partial(output);
            return 0;
        }
        /* File systems without links. */
        if (errno == EEXIST || !output->partial[0])
            return -1;
        if (renameat2(output->directory_fd, output->partial, output->directory_fd, output->name,
                      RENAME_NOREPLACE) < 0)
            return -1;
        output->partial[0] = '\0';
        return 0;
    }
    if (!output->partial[0]) {
        char partial[sizeof(output->partial)];

        snprintf(partial, sizeof(partial), "%.230s.partial-%s", output->name, output->id);
        if (give_name(output, partial) < 0)
            return -1;
        memcpy(output->partial, partial, sizeof(partial));
    }
    if (renameat(output->directory_fd, output->partial, output->directory_fd, output->name) < 0)
        return -1;
    output->partial[0] = '\0';
    return 0;
}

int output_publish(struct output *output, struct ferry_error *err)
{
    if (publish(output) < 0)
        return errno == EEXIST
                   ? error_set(err, -EEXIST, "%s exists: somebody has made it meanwhile", output->path)
                   : error_set_errno(err, -errno, "cannot give checkpoint %s its name", output->path);
    if (fsync(output->directory_fd) < 0) {
        static const char nothing[512];
        int code = -errno;

        /* Nobody knows whether it would be there after a power failure: then it must not be a checkpoint. If
         * that cannot be had either, it is one. */
        if (pwrite(output->fd, nothing, sizeof(nothing), 0) != sizeof(nothing) || fsync(output->fd) < 0)
            return 0;
        unlinkat(output->directory_fd, output->name, 0);
        return error_set_errno(err, code, "cannot synchronise the directory of checkpoint %s", output->path);
    }
    return 0;
}

void output_close(struct output *output)
{
    drop_partial(output);
    if (output->direct_fd >= 0)
        close(output->direct_fd);
    if (output->fd >= 0)
        close(output->fd);
    if (output->directory_fd >= 0)
        close(output->directory_fd);
    output->directory_fd = output->fd = output->direct_fd = -1;
}
