/*
 * A fake guest that is saved into a file, and one that is restored from it. What the guest's memory was when
 * it was stopped is kept, for comparing.
 *
 *     struct saving saving;
 *     saving_init(&saving, sizes, count, true);
 *     saving_save(&saving, &err)            as saving.options say
 *     saving_expect_restored(&saving);      the file has what the guest had
 *     saving_free(&saving);
 */
#ifndef TESTS_UNIT_CHECKPOINT_SAVING_H
#define TESTS_UNIT_CHECKPOINT_SAVING_H

#include "engine/testing/fake_guest.h"
#include "unit.h"

#include <ferry/checkpoint.h>

#define MIB (UINT64_C(1) << 20)

struct saving {
    struct unit_dir dir;
    char path[128];
    struct fake_guest guest;
    uint64_t sizes[FERRY_REGIONS_MAX];
    size_t region_count;
    struct ferry_checkpoint_options options;
    struct ferry_checkpoint_blob blob;
    struct ferry_checkpoint_writer *writer; /* while it writes */
    struct ferry_checkpoint_progress progress;
    uint8_t *stopped[FERRY_REGIONS_MAX]; /* memory when the guest's state was saved */
    uint64_t count;                      /* and its count */
    const char *step;                    /* call on_step before this one */
    void (*on_step)(struct saving *saving);
    struct thread helper; /* started by on_step; ends before the writer does */
    char log[4096];
};

void saving_init(struct saving *saving, const uint64_t *sizes, size_t region_count, bool memfd);
void saving_free(struct saving *saving);
int saving_save(struct saving *saving, struct ferry_error *err);
/* Into a guest of the same size; 0 when it was restored, and then it is what was saved. */
int saving_restore(struct saving *saving, const char *path, struct ferry_error *err);
void saving_expect_restored(struct saving *saving);
/* Files in the directory. */
unsigned saving_files(const struct saving *saving);

#endif
