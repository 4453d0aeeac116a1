#include "tls/private_file.h"

#include "base/cleanup.h"
#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static int write_all(int fd, const char *text)
{
    size_t left = strlen(text);

    while (left > 0) {
        ssize_t n = write(fd, text, left);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        text += n;
        left -= (size_t)n;
    }
    return fsync(fd) < 0 ? -errno : 0;
}

/* A name that appeared, or one that changed its file, lasts when its directory does. */
static int sync_directory(const char *path)
{
    char directory[PATH_MAX];
    char *slash;
    CLEANUP_CLOSE int fd = -1;

    snprintf(directory, sizeof(directory), "%s", path);
    slash = strrchr(directory, '/');
    if (slash)
        slash[slash == directory] = '\0';
    fd = open(slash ? directory : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

int private_file_write(const char *path, const char *text, bool shown, bool replace, struct ferry_error *err)
{
    char temporary[PATH_MAX];
    CLEANUP_CLOSE int fd = -1;
    int result;

    if (snprintf(temporary, sizeof(temporary), "%s.XXXXXX", path) >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "the path %s is too long", path);
    fd = mkostemp(temporary, O_CLOEXEC);
    if (fd < 0)
        return error_set_errno(err, -errno, "cannot write %s", path);
    result = write_all(fd, text);
    if (result == 0 && fchmod(fd, shown ? 0644 : 0600) < 0)
        result = -errno;
    if (result == 0 && replace)
        result = rename(temporary, path) < 0 ? -errno : 0;
    else if (result == 0) /* a link, unlike a renaming, replaces nothing */
        result = link(temporary, path) < 0 ? -errno : 0;
    if (result < 0 || !replace)
        unlink(temporary);
    if (result == 0)
        result = sync_directory(path);
    return result < 0 ? error_set_errno(err, result, "cannot write %s", path) : 0;
}

int private_file_read(const char *path, bool shown, char **text, struct ferry_error *err)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    char *bytes;
    struct stat status;
    size_t size = 0;
    ssize_t n = 1;

    *text = NULL;
    if (fd < 0 || fstat(fd, &status) < 0)
        return error_set_errno(err, -errno, "cannot read %s", path);
    if (!shown && status.st_mode & S_IRWXO)
        return error_set(err, -EACCES,
                         "%s holds a key and everybody may read it; if it is still a secret: chmod 600 %s",
                         path, path);
    bytes = calloc(1, PRIVATE_FILE_MAX + 1);
    if (!bytes)
        return error_set(err, -ENOMEM, "out of memory for %s", path);
    while (size < PRIVATE_FILE_MAX && (n > 0 || errno == EINTR)) {
        n = read(fd, bytes + size, PRIVATE_FILE_MAX - size);
        if (n == 0)
            break;
        size += n > 0 ? (size_t)n : 0;
    }
    if (n != 0) {
        int code = n < 0 ? -errno : -EFBIG;

        private_file_free(bytes);
        return error_set_errno(err, code, "cannot read %s", path);
    }
    *text = bytes;
    return 0;
}

void private_file_free(char *text)
{
    if (text)
        explicit_bzero(text, strlen(text));
    free(text);
}

int private_directory_make(const char *directory, struct ferry_error *err)
{
    char path[PATH_MAX];

    if (snprintf(path, sizeof(path), "%s", directory) >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "the path %s is too long", directory);
    for (char *slash = path + 1; *slash; slash++) {
        if (*slash != '/')
            continue;
        *slash = '\0';
        if (mkdir(path, 0700) < 0 && errno != EEXIST)
            return error_set_errno(err, -errno, "cannot make the directory %s", path);
        *slash = '/';
    }
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return error_set_errno(err, -errno, "cannot make the directory %s", path);
    return 0;
}
