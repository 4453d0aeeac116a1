/*
 * The format of a checkpoint file: its header and its directory, as bytes and as structs. docs/CHECKPOINT.md
 * is the specification.
 *
 *     0        header                    one page; knows where digests and directory are, and their checksums
 *     2 MiB    RAM, region by region     page P of a region at offset + P * 4096; zero pages are holes
 *     ...      index of each region      a checksum for each page, 0 for a page of zeros; with zstd then the
 *                                        length of each block
 *     ...      digests                   a checksum for each 4 KiB of index, in the order of the regions
 *     ...      sections and blobs
 *     ...      directory                 regions, sections and blobs with their checksums
 *
 * So everything is found right by way of the header, and pages can be read one by one without the rest.
 *
 * Version rule: a file says one version, which changes when what an older reader would do with it is wrong.
 * Features that an older reader of the same version does not know are refused by name. All versions ever
 * released are read.
 *
 * Decoding checks everything that the bytes alone tell: every offset, length and number is within bounds and
 * nothing overlaps. Pure.
 */
#ifndef FERRY_CHECKPOINT_FORMAT_H
#define FERRY_CHECKPOINT_FORMAT_H

#include "base/buffer.h"

#include <ferry/checkpoint.h>

#include <xxhash.h>

#define CHECKPOINT_HEADER_SIZE   4096
#define CHECKPOINT_RAM_ALIGN     (UINT64_C(2) << 20)
#define CHECKPOINT_DIRECTORY_MAX (1u << 20)
#define CHECKPOINT_FILE_MAX      (UINT64_C(1) << 60)
#define CHECKPOINT_HASH_SIZE     16

/* What one digest covers: 4 KiB of index, that is 512 pages. Work is given out in these. */
#define CHECKPOINT_SPAN_PAGES 512
#define CHECKPOINT_SPAN_SIZE  (CHECKPOINT_SPAN_PAGES * FERRY_PAGE_SIZE)
/* What is compressed at a time. */
#define CHECKPOINT_BLOCK_PAGES 16
#define CHECKPOINT_BLOCK_SIZE  (CHECKPOINT_BLOCK_PAGES * FERRY_PAGE_SIZE)

enum checkpoint_feature {
    CHECKPOINT_FEATURE_ZSTD = 1 << 0, /* RAM is in compressed blocks */
};

struct checkpoint_hash {
    uint8_t bytes[CHECKPOINT_HASH_SIZE]; /* XXH3-128, canonical */
};

struct checkpoint_extent {
    uint64_t offset; /* in the file */
    uint64_t size;
    struct checkpoint_hash hash;
};

struct checkpoint_header {
    uint32_t version;
    uint32_t kind; /* enum ferry_checkpoint_kind */
    uint64_t features;
    uint8_t uuid[16];
    char id[FERRY_ID_SIZE];
    char vm[FERRY_NAME_SIZE];
    uint64_t stopped_realtime_ns;
    bool was_running;
    uint64_t pages; /* not zero */
    uint64_t file_size;
    struct checkpoint_extent directory;
    struct checkpoint_extent digests;
};

enum checkpoint_part_type {
    CHECKPOINT_PART_SECTION = 1, /* of the guest's state */
    CHECKPOINT_PART_BLOB,
};

struct checkpoint_part {
    enum checkpoint_part_type type;
    char name[FERRY_NAME_SIZE];
    uint32_t version; /* of a section; 0 for a blob */
    struct checkpoint_extent extent;
};

#define CHECKPOINT_PARTS_MAX (FERRY_SECTIONS_MAX + FERRY_CHECKPOINT_BLOBS_MAX)

struct checkpoint_directory {
    struct ferry_checkpoint_region regions[FERRY_REGIONS_MAX];
    uint64_t index_offset[FERRY_REGIONS_MAX];
    size_t region_count;
    struct checkpoint_part *parts; /* owned */
    size_t part_count;
};

/* The next multiple; ALIGN is a power of two. */
static inline uint64_t checkpoint_align(uint64_t value, uint64_t align)
{
    return (value + align - 1) & ~(align - 1);
}

void checkpoint_hash(struct checkpoint_hash *hash, const void *data, size_t size);
bool checkpoint_hash_is(const struct checkpoint_hash *hash, const void *data, size_t size);
/* A page's entry in the index; never 0. */
uint64_t checkpoint_page_hash(const uint8_t *page);

/* Bytes of the index of a region of PAGES pages: the part with the checksums, and all of it. Whole 4 KiB. */
uint64_t checkpoint_index_hashes_size(uint64_t pages);
uint64_t checkpoint_index_size(uint64_t pages, bool zstd);
/* Digests of all regions, 8 bytes each. */
uint64_t checkpoint_digests_size(const struct checkpoint_directory *directory, bool zstd);

void checkpoint_header_encode(uint8_t out[static CHECKPOINT_HEADER_SIZE],
                              const struct checkpoint_header *header);
/* FILE names the file in words. -EBADMSG, -EPROTONOSUPPORT. */
int checkpoint_header_decode(const uint8_t in[static CHECKPOINT_HEADER_SIZE],
                             struct checkpoint_header *header, const char *file, struct ferry_error *err);

void checkpoint_directory_encode(struct buffer *out, const struct checkpoint_directory *directory);
/* Afterwards checkpoint_directory_free, also on failure. */
int checkpoint_directory_decode(const void *data, size_t size, const struct checkpoint_header *header,
                                struct checkpoint_directory *directory, const char *file,
                                struct ferry_error *err);
void checkpoint_directory_free(struct checkpoint_directory *directory);

#endif
