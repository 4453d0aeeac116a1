/*
 * What the parts of a checkpoint's writer share; for writer.c and rounds.c only.
 *
 *     writer.c    the course: rounds, the stop, state, what is around the RAM, the end
 *     rounds.c    pages: from the guest's memory into the file, and into the index
 */
#ifndef FERRY_CHECKPOINT_WRITER_PARTS_H
#define FERRY_CHECKPOINT_WRITER_PARTS_H

#include "base/thread.h"
#include "checkpoint/format.h"
#include "checkpoint/output.h"
#include "engine/checkpoint.h"
#include "engine/pace.h"
#include "engine/pages.h"

enum writer_step {
    WRITER_NEW = 0,
    WRITER_COPY,  /* the guest runs, rounds are written */
    WRITER_TAKEN, /* all of the guest that goes into the file is here: what it does now does not matter */
    WRITER_NAMED, /* the file has its name */
};

/* Where a region's parts are, and its index as it is in the file. */
struct writer_region {
    uint64_t file_offset;
    uint64_t index_offset;
    uint8_t *index; /* mapped; checkpoint_index_size */
    size_t index_size;
};

/* Pages that were copied while the guest stood still, in the order of the set. */
struct writer_copy {
    uint8_t *data; /* mapped */
    uint64_t pages;
};

struct ferry_checkpoint_writer {
    struct ferry_checkpoint_options options; /* defaults filled in */
    struct ferry_checkpoint_blob blobs[FERRY_CHECKPOINT_BLOBS_MAX];
    char path[PATH_MAX];
    const struct ferry_guest_ops *ops;
    void *guest;
    struct ferry_observer observer;

    struct output output;
    struct page_map map;
    struct page_set set; /* to be written in this round */
    struct writer_region regions[FERRY_REGIONS_MAX];
    uint64_t memory_end; /* in the file */
    struct checkpoint sections;
    struct pace pace;
    uint64_t bandwidth; /* atomic */
    int cancel_fd;
    bool scanning;   /* the workers look for zeros, and write nothing */
    bool background; /* the guest's vCPUs run, and go before */

    uint64_t span_next;     /* atomic: of the round */
    uint64_t round_left;    /* atomic: pages of the round still to be written */
    uint64_t pages_written; /* atomic: of all rounds */

    pthread_mutex_t lock; /* guards the rest */
    enum writer_step step;
    bool cancelled;
    int failure; /* the first that any thread met; 0: none */
    struct ferry_error why;
    struct ferry_checkpoint_progress progress;
    uint64_t start_ns;
};

void writer_log(const struct ferry_checkpoint_writer *writer, enum ferry_log_level level, const char *format,
                ...) __attribute__((format(printf, 3, 4)));
/* Cancelled, aborted, or failed on another thread. */
int writer_check(struct ferry_checkpoint_writer *writer, struct ferry_error *err);
int writer_fail(struct ferry_checkpoint_writer *writer, int code, const struct ferry_error *why);

/* Maps the index and lays the file out. */
int rounds_prepare(struct ferry_checkpoint_writer *writer, struct ferry_error *err);
/* Takes pages of zeros out of the set. Before the first round: what is not zero any more is in the next. */
int rounds_scan(struct ferry_checkpoint_writer *writer, struct ferry_error *err);
/* Has the file system give the set's pages their places: writers do not wait for each other then. */
int rounds_allocate(struct ferry_checkpoint_writer *writer, struct ferry_error *err);
/* Writes all pages of the set, as they are now in the guest's memory. */
int rounds_write(struct ferry_checkpoint_writer *writer, struct ferry_error *err);
/* Takes what was written since last time into the set; returns how many pages it has then. */
int rounds_fetch(struct ferry_checkpoint_writer *writer, uint64_t *pages, struct ferry_error *err);
/* Copies the set's pages into COPY, which has room for them; and writes them from there. */
void rounds_copy(const struct ferry_checkpoint_writer *writer, struct writer_copy *copy);
int rounds_write_copy(struct ferry_checkpoint_writer *writer, const struct writer_copy *copy,
                      struct ferry_error *err);
/* Pages by what the index says of them now. */
void rounds_count(const struct ferry_checkpoint_writer *writer, uint64_t *pages, uint64_t *zero);
void rounds_free(struct ferry_checkpoint_writer *writer);

#endif
