/*
 * Scope-bound cleanup: a variable declared with one of these is released when its scope ends, on every path.
 * A function uses either these or one goto label, never both.
 *
 *     CLEANUP_FREE char *text = NULL;
 *     CLEANUP_CLOSE int fd = -1;
 */
#ifndef FERRY_BASE_CLEANUP_H
#define FERRY_BASE_CLEANUP_H

#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_free(void *pointer)
{
    free(*(void **)pointer);
}

static inline void cleanup_close(const int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

#define CLEANUP(function) __attribute__((cleanup(function)))
#define CLEANUP_FREE      CLEANUP(cleanup_free)
#define CLEANUP_CLOSE     CLEANUP(cleanup_close)

/* Takes a value out of a cleanup variable, which then releases nothing. */
#define TAKE_POINTER(variable)                                                                               \
    ({                                                                                                       \
        __typeof__(variable) taken_ = (variable);                                                            \
        (variable) = NULL;                                                                                   \
        taken_;                                                                                              \
    })
#define TAKE_FD(variable)                                                                                    \
    ({                                                                                                       \
        int taken_ = (variable);                                                                             \
        (variable) = -1;                                                                                     \
        taken_;                                                                                              \
    })

#endif
