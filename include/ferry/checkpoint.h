/*
 * Checkpoints in files: a guest's memory and state, as a migration would carry them, in one file
 * (docs/CHECKPOINT.md has it field by field).
 *
 *     ferry_checkpoint_write       guest seam ──▶ file, while the guest runs on
 *     ferry_checkpoint_open        checks all of the file but its RAM
 *     ferry_checkpoint_restore     file ──▶ guest seam, all of it before the guest runs
 *     ferry_checkpoint_fill_start  the same, but memory comes while it runs
 *     ferry_checkpoint_page, …     for those who look
 *
 * A file is written beside its place, and gets its name when all of it is on the disk: it is complete or it
 * is not there. Nothing that is read is used before its checksum was found right; errors name the file and
 * the part of it that is wrong.
 *
 * Rules of ferry.h apply: sizes in bytes, durations in nanoseconds, 0 or a negative errno with words.
 */
#ifndef FERRY_CHECKPOINT_H
#define FERRY_CHECKPOINT_H

#include <ferry/ferry.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FERRY_CHECKPOINT_VERSION       1 /* the newest that is written; all before it are read */
#define FERRY_CHECKPOINT_BLOBS_MAX     16
#define FERRY_CHECKPOINT_BLOB_SIZE_MAX (16u << 20)

enum ferry_checkpoint_kind {
    FERRY_CHECKPOINT_SNAPSHOT = 1, /* the guest ran on */
    FERRY_CHECKPOINT_SUSPEND,      /* it did not, after it was complete */
};

const char *ferry_checkpoint_kind_name(enum ferry_checkpoint_kind kind); /* "snapshot", "suspend" */

/* ---- writing ---- */

/* What belongs to the guest and is none of its state; a name of its own each. "definition" is the VM's, as
 * JSON. */
struct ferry_checkpoint_blob {
    char name[FERRY_NAME_SIZE];
    const void *data;
    size_t size;
};

struct ferry_checkpoint_options {
    char id[FERRY_ID_SIZE]; /* a UUID as text, for records */
    char vm[FERRY_NAME_SIZE];
    const char *path;
    enum ferry_checkpoint_kind kind;
    bool zstd;                   /* blocks of memory are compressed */
    bool overwrite;              /* a file of that name is replaced, when the new one is complete */
    uint64_t bandwidth_limit;    /* bytes/s while the guest runs; 0: none */
    uint64_t quiesce_timeout_ns; /* 0: default 10 s */
    const struct ferry_checkpoint_blob *blobs;
    size_t blob_count;
};

struct ferry_checkpoint_progress {
    enum ferry_outcome outcome; /* COMPLETED, FAILED, CANCELLED; NONE while it is written */
    char error[FERRY_ERROR_TEXT_SIZE];
    unsigned percent;
    bool direct;              /* written past the page cache */
    uint64_t memory_bytes;    /* guest RAM */
    uint64_t remaining_bytes; /* of this round */
    uint64_t bytes;           /* written so far, of all rounds */
    uint64_t pages;           /* not zero, in the file */
    uint64_t zero_pages;
    uint64_t file_bytes; /* what the file takes of the disk, when it is complete */
    unsigned rounds;
    uint64_t pages_written; /* of all rounds; a page that was written again counts again */
    uint64_t last_pages;    /* found changed when the guest was stopped */
    uint64_t stopped_ns;    /* a snapshot's guest stood still; of suspend, until the last was on the disk */
    uint64_t pause_ns;      /* of that */
    uint64_t quiesce_ns;
    uint64_t copy_ns;
    uint64_t state_ns;
    uint64_t resume_ns;
    uint64_t total_ns;
    uint64_t bytes_per_s;
};

struct ferry_checkpoint_writer;

/* Options are copied but for the blobs' data, which is borrowed for the writer's life; of the observer only
 * `log` is called. Looks at the place already: -EEXIST when there is a file that is not to be
 * replaced. */
int ferry_checkpoint_writer_new(struct ferry_checkpoint_writer **out,
                                const struct ferry_checkpoint_options *options,
                                const struct ferry_guest_ops *ops, void *guest,
                                const struct ferry_observer *observer, struct ferry_error *err);
/*
 * Writes it all, on the calling thread and some of its own, which the guest's vCPUs go before. 0: the file is
 * complete and on the disk. SNAPSHOT: the guest runs on as before, whatever becomes of the file. SUSPEND:
 * when it returns 0 the guest is paused and quiesced for good; on any failure it goes on as before. A failure
 * leaves nothing behind.
 */
int ferry_checkpoint_write(struct ferry_checkpoint_writer *writer, struct ferry_error *err);
/* Any thread. -EALREADY: too late, it has ended or the file has its name. */
int ferry_checkpoint_cancel(struct ferry_checkpoint_writer *writer, struct ferry_error *err);
/* Any thread: the guest powered off or crashed; fails with WHY. */
void ferry_checkpoint_abort(struct ferry_checkpoint_writer *writer, const char *why);
/* Any thread. */
void ferry_checkpoint_set_bandwidth(struct ferry_checkpoint_writer *writer, uint64_t bytes_per_s);
void ferry_checkpoint_progress(struct ferry_checkpoint_writer *writer,
                               struct ferry_checkpoint_progress *progress);
/* NULL allowed. */
void ferry_checkpoint_writer_free(struct ferry_checkpoint_writer *writer);

/* ---- reading ---- */

struct ferry_checkpoint_info {
    uint32_t version;
    enum ferry_checkpoint_kind kind;
    bool zstd;
    bool was_running; /* when the guest was stopped for it */
    char uuid[FERRY_ID_SIZE];
    char id[FERRY_ID_SIZE];
    char vm[FERRY_NAME_SIZE];
    uint64_t stopped_realtime_ns; /* since 1970: when the guest was stopped */
    uint64_t file_size;
    uint64_t memory_bytes;
    uint64_t pages; /* that are not zero */
};

struct ferry_checkpoint_region {
    char name[FERRY_NAME_SIZE];
    uint64_t guest_addr;
    uint64_t size;
    uint64_t file_offset; /* page P of it is at file_offset + P * FERRY_PAGE_SIZE */
};

struct ferry_checkpoint;

/* Any number of threads may use one opened file; nothing of it changes. -ENOENT, -EBADMSG (damaged, cut off,
 * none of ours), -EPROTONOSUPPORT (newer than this). */
int ferry_checkpoint_open(struct ferry_checkpoint **out, const char *path, struct ferry_error *err);
/* FD is the caller's; NAME is for messages. */
int ferry_checkpoint_open_fd(struct ferry_checkpoint **out, int fd, const char *name,
                             struct ferry_error *err);
/* NULL allowed. */
void ferry_checkpoint_close(struct ferry_checkpoint *checkpoint);

const struct ferry_checkpoint_info *ferry_checkpoint_info(const struct ferry_checkpoint *checkpoint);
size_t ferry_checkpoint_region_count(const struct ferry_checkpoint *checkpoint);
const struct ferry_checkpoint_region *ferry_checkpoint_region(const struct ferry_checkpoint *checkpoint,
                                                              size_t index);
size_t ferry_checkpoint_section_count(const struct ferry_checkpoint *checkpoint);
const struct ferry_section *ferry_checkpoint_section(const struct ferry_checkpoint *checkpoint, size_t index);
/* NULL: there is none of that name. */
const struct ferry_checkpoint_blob *ferry_checkpoint_blob(const struct ferry_checkpoint *checkpoint,
                                                          const char *name);

/* What the index says of pages [first, first + count) of a region: 0 for a page of zeros, else a checksum of
 * its bytes. -EBADMSG. */
int ferry_checkpoint_index(const struct ferry_checkpoint *checkpoint, size_t region, uint64_t first,
                           size_t count, uint64_t *index, struct ferry_error *err);
/* One page, found right; of FERRY_PAGE_SIZE bytes. */
int ferry_checkpoint_page(const struct ferry_checkpoint *checkpoint, size_t region, uint64_t page,
                          uint8_t *out, struct ferry_error *err);
/* Reads all there is and compares it with the checksums; reports the first thing that is wrong. */
int ferry_checkpoint_verify(const struct ferry_checkpoint *checkpoint, struct ferry_error *err);

struct ferry_checkpoint_restored {
    uint64_t bytes; /* read */
    uint64_t pages;
    uint64_t total_ns;
};

/*
 * Puts memory and state into a guest that was built the same way and has not run ([destination] of the seam):
 * list_regions, load_section, load_finish. The guest is not started, its clock not advanced. On failure it
 * must not be. REPORT may be NULL.
 */
int ferry_checkpoint_restore(const struct ferry_checkpoint *checkpoint, const struct ferry_guest_ops *ops,
                             void *guest, const struct ferry_observer *observer,
                             struct ferry_checkpoint_restored *report, struct ferry_error *err);

/* ---- restoring without waiting for the memory ---- */

struct ferry_checkpoint_fill_progress {
    bool complete;                     /* all is there */
    bool failed;                       /* some of it is not to be had; the guest stands still */
    char error[FERRY_ERROR_TEXT_SIZE]; /* of a failure: which page, and why */
    uint64_t memory_bytes;             /* of pages that are not zero, about */
    uint64_t missing_bytes;
    uint64_t faults; /* pages that somebody had to wait for, and how long */
    uint64_t fault_median_ns;
    uint64_t fault_p99_ns;
    uint64_t fault_max_ns;
    uint64_t total_ns;
};

/* One of the fill's threads: it is complete, or has failed. Must not free it. */
typedef void ferry_checkpoint_filled(void *opaque);

struct ferry_checkpoint_fill;

/*
 * As ferry_checkpoint_restore, but when it returns 0 the memory is still to come: whoever touches a page
 * waits until it was read and found right, with those beside it; all others are read in the background. When
 * a page is damaged, or the file cannot be read, nothing more is: the guest is held (`hold` of the seam),
 * whoever waits waits until the process ends, and no wrong byte was seen by anybody.
 *
 * CHECKPOINT is the fill's from then on. -EOPNOTSUPP, -EPERM or -ENOSYS: not with this guest's memory or on
 * this host; nothing has changed, and ferry_checkpoint_restore can do it. The guest's memory must be
 * untouched before.
 */
int ferry_checkpoint_fill_start(struct ferry_checkpoint_fill **out, struct ferry_checkpoint *checkpoint,
                                const struct ferry_guest_ops *ops, void *guest,
                                const struct ferry_observer *observer, ferry_checkpoint_filled *filled,
                                void *opaque, struct ferry_error *err);
/* Any thread. */
void ferry_checkpoint_fill_progress(struct ferry_checkpoint_fill *fill,
                                    struct ferry_checkpoint_fill_progress *progress);
/* Ends its threads. Before it is complete only when the guest never ran, or never will again: what is missing
 * stays missing, and who waits for it waits until the process ends. NULL allowed. */
void ferry_checkpoint_fill_free(struct ferry_checkpoint_fill *fill);

#ifdef __cplusplus
}
#endif

#endif
