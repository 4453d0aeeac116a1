/*
 * What unit tests share: cmocka with what it needs before it, repeatable random numbers, a scratch directory.
 *
 * cmocka's assertions leave by longjmp: use them on the test's own thread only.
 */
#ifndef FERRY_TESTS_UNIT_UNIT_H
#define FERRY_TESTS_UNIT_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <ferry/error.h>

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Long enough never to pass on a loaded machine, short enough to end a test that hangs. */
#define UNIT_DEADLINE_MS 60000

/* Fails with the error's words when CALL (which has `&err` among its arguments) does not return 0. */
#define assert_ok(call, err)                                                                                 \
    do {                                                                                                     \
        int unit_result_ = (call);                                                                           \
        if (unit_result_)                                                                                    \
            fail_msg("%s returned %d: %s", #call, unit_result_, (err).text);                                 \
    } while (0)

#define assert_contains(text, part)                                                                          \
    do {                                                                                                     \
        if (!strstr((text), (part)))                                                                         \
            fail_msg("\"%s\" does not contain \"%s\"", (text), (part));                                      \
    } while (0)

/* xorshift64*; start with any fixed seed but 0. */
static inline uint64_t unit_random(uint64_t *seed)
{
    *seed ^= *seed >> 12;
    *seed ^= *seed << 25;
    *seed ^= *seed >> 27;
    return *seed * UINT64_C(0x2545f4914f6cdd1d);
}

struct unit_dir {
    char path[64];
};

static inline void unit_dir_make(struct unit_dir *dir)
{
    snprintf(dir->path, sizeof(dir->path), "/tmp/ferry-unit-XXXXXX");
    assert_non_null(mkdtemp(dir->path));
}

static inline int unit_remove_entry(const char *path, const struct stat *status, int type, struct FTW *walk)
{
    return remove(path);
}

static inline void unit_dir_remove(struct unit_dir *dir)
{
    nftw(dir->path, unit_remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

/* DIR/NAME, in a buffer of the caller's. */
static inline char *unit_path(const struct unit_dir *dir, const char *name, char out[static 128])
{
    snprintf(out, 128, "%s/%s", dir->path, name);
    return out;
}

#endif
