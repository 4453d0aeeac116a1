/*
 * Log files that are bounded: PATH goes on empty, what it was is PATH.1, what that was PATH.2, and so on; of
 * these KEPT are kept, and the oldest goes.
 */
#ifndef FERRY_BASE_ROTATE_H
#define FERRY_BASE_ROTATE_H

#include <ferry/error.h>

#define ROTATE_KEPT_MAX 99

/* PATH is gone afterwards, or never was, or is left alone because it is empty. With KEPT 0 it is deleted. 0
 * or a negative errno. */
int rotate_files(const char *path, unsigned kept, struct ferry_error *err);

/*
 * The same, and FD, through which PATH is being appended to, goes on in the new one: whoever writes to it
 * meanwhile, in any thread, writes to the one or to the other. On an error it goes on where it was.
 */
int rotate_descriptor(const char *path, unsigned kept, int fd, struct ferry_error *err);

#endif
