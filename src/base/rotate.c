#include "base/rotate.h"

#include "base/cleanup.h"
#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

int rotate_files(const char *path, unsigned kept, struct ferry_error *err)
{
    char from[PATH_MAX], to[PATH_MAX];
    struct stat status;

    if (stat(path, &status) == 0 && status.st_size == 0)
        return 0;
    if (kept == 0)
        return unlink(path) < 0 && errno != ENOENT ? error_set_errno(err, -errno, "cannot delete %s", path)
                                                   : 0;
    for (unsigned number = kept; number >= 1; number--) {
        int length = number > 1 ? snprintf(from, sizeof(from), "%s.%u", path, number - 1)
                                : snprintf(from, sizeof(from), "%s", path);

        if (length >= PATH_MAX || snprintf(to, sizeof(to), "%s.%u", path, number) >= PATH_MAX)
            return error_set(err, -ENAMETOOLONG, "the path of a log file is too long");
        if (rename(from, to) < 0 && errno != ENOENT)
            return error_set_errno(err, -errno, "cannot put %s aside", from);
    }
    return 0;
}

int rotate_descriptor(const char *path, unsigned kept, int fd, struct ferry_error *err)
{
    CLEANUP_CLOSE int fresh = -1;
    int result = rotate_files(path, kept, err);

    if (result < 0)
        return result;
    fresh = open(path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0640);
    if (fresh < 0 || dup3(fresh, fd, O_CLOEXEC) < 0)
        return error_set_errno(err, -errno, "cannot go on in a new %s", path);
    return 0;
}
