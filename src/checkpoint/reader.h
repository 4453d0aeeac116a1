/*
 * A checkpoint file opened for reading, and reading pages of it.
 *
 * Header, directory, digests, sections and blobs are in memory and were found right when it was opened; the
 * index is read and checked 4 KiB at a time, with the pages it belongs to.
 */
#ifndef FERRY_CHECKPOINT_READER_H
#define FERRY_CHECKPOINT_READER_H

#include "checkpoint/format.h"
#include "engine/pages.h"

#include <zstd.h>

struct ferry_checkpoint {
    char *name; /* for messages */
    int fd;
    int direct_fd; /* past the page cache; -1: the file system cannot */
    bool refused;  /* atomic: it turned out that it cannot */
    struct checkpoint_header header;
    struct checkpoint_directory directory;
    struct ferry_checkpoint_info info;
    struct ferry_section sections[FERRY_SECTIONS_MAX]; /* data owned */
    size_t section_count;
    struct ferry_checkpoint_blob blobs[FERRY_CHECKPOINT_BLOBS_MAX]; /* data owned */
    size_t blob_count;
    uint64_t *digests;
    size_t digest_first[FERRY_REGIONS_MAX]; /* of a region's */
};

/* What the index says of 512 pages. */
struct checkpoint_span {
    size_t region;
    uint64_t first;
    size_t count;
    uint64_t hashes[CHECKPOINT_SPAN_PAGES];                           /* 0: a page of zeros */
    uint32_t lengths[CHECKPOINT_SPAN_PAGES / CHECKPOINT_BLOCK_PAGES]; /* only with zstd */
};

/* One thread's. */
struct checkpoint_pages {
    const struct ferry_checkpoint *checkpoint;
    bool direct;                 /* read past the page cache */
    uint64_t bytes;              /* read */
    struct checkpoint_span span; /* the last one */
    bool has_span;
    uint8_t *index; /* one page */
    /* Only for compressed ones. */
    ZSTD_DCtx *context;
    uint8_t *packed;
    uint8_t *plain;
};

static inline uint64_t checkpoint_region_pages(const struct ferry_checkpoint *checkpoint, size_t region)
{
    return checkpoint->directory.regions[region].size / FERRY_PAGE_SIZE;
}

int checkpoint_pages_init(struct checkpoint_pages *pages, const struct ferry_checkpoint *checkpoint,
                          bool direct, struct ferry_error *err);
void checkpoint_pages_free(struct checkpoint_pages *pages);
/* pages->span becomes that in which PAGE is. */
int checkpoint_pages_seek(struct checkpoint_pages *pages, size_t region, uint64_t page,
                          struct ferry_error *err);
/*
 * Reads pages [first, first + count), all of one span, into OUT, which is aligned to pages; those of zeros
 * are left as they are. On success all that was read was found right; on failure OUT may hold wrong bytes.
 */
int checkpoint_pages_read(struct checkpoint_pages *pages, size_t region, uint64_t first, size_t count,
                          uint8_t *out, struct ferry_error *err);

/* The guest's regions by the file's numbers; -EINVAL naming what differs. */
int checkpoint_match(const struct ferry_checkpoint *checkpoint, const struct page_map *map,
                     size_t region_of[static FERRY_REGIONS_MAX], struct ferry_error *err);
/* load_section for each, then load_finish. */
int checkpoint_load_state(const struct ferry_checkpoint *checkpoint, const struct ferry_guest_ops *ops,
                          void *guest, struct ferry_error *err);
void checkpoint_log(const struct ferry_observer *observer, enum ferry_log_level level, const char *format,
                    ...) __attribute__((format(printf, 3, 4)));

#endif
