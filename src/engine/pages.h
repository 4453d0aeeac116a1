/*
 * Guest memory as the engine sees it: regions of pages, sets of pages, looking for what must be sent (source)
 * and putting what arrives in its place (destination).
 *
 * Pages that were never touched are holes in a region's memfd; they read as zeros (base/sparse.h). Neither
 * side ever touches one that it need not: reading a hole through the mapping would allocate it.
 *
 * Guest memory is written by the guest while it is scanned and sent. A page that changes meanwhile has its
 * dirty bit set again and is sent again; what was sent of it before does not matter.
 */
#ifndef FERRY_ENGINE_PAGES_H
#define FERRY_ENGINE_PAGES_H

#include "engine/wire.h"

#include <ferry/ferry.h>

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

/* Pages a page thread takes at a time: whole words of bitmaps, about what stays in the cache. */
#define PAGES_CHUNK 256

struct page_map {
    struct ferry_ram_region regions[FERRY_REGIONS_MAX];
    size_t pages[FERRY_REGIONS_MAX];
    size_t count;
    uint64_t total; /* pages in all */
    uint64_t chunks;
};

/* Asks the guest for its regions and checks what it says. */
int page_map_init(struct page_map *map, const struct ferry_guest_ops *ops, void *guest,
                  struct ferry_error *err);
/* The region and pages [*first, *end) of a chunk; chunks are numbered through all regions. */
size_t page_map_chunk(const struct page_map *map, uint64_t chunk, size_t *first, size_t *end);

/* Calls FUNCTION for each range of pages of a region that is no hole. Without a memfd, or when the file
 * system cannot tell, that is the whole region. */
void page_for_present(const struct ferry_ram_region *region,
                      void (*function)(void *opaque, size_t first, size_t pages), void *opaque);
bool page_is_zero(const uint8_t *page);

/* One bit a granule (WIRE_GRANULE_PAGES) of a region: set unless all of it is a hole; granule i is bit i % 8
 * of byte i / 8. NULL when out of memory; free() it. */
uint8_t *page_map_granules(const struct page_map *map, size_t region, size_t *size);

/* One bit a page, a bitmap a region. */
struct page_set {
    uint64_t *bits[FERRY_REGIONS_MAX];
};

int page_set_init(struct page_set *set, const struct page_map *map, struct ferry_error *err);
void page_set_free(struct page_set *set);
void page_set_clear(struct page_set *set, const struct page_map *map);
uint64_t page_set_count(const struct page_set *set, const struct page_map *map);
/* Sets all pages that are not holes; returns their number. */
uint64_t page_set_fill_present(struct page_set *set, const struct page_map *map);

/* How far ahead of the page that is looked at memory is fetched into the cache. */
#define PAGES_LOOK_AHEAD 8

/* What became of pages. */
struct page_counts {
    uint64_t raw;
    uint64_t zero;
    struct ferry_encoded encoded[FERRY_ENCODINGS];
};

uint64_t page_counts_sum(const struct page_counts *counts);

/* One frame of pages being put together. */
struct page_batch {
    struct wire_run runs[WIRE_RUNS_MAX];
    size_t count;
    struct iovec iov[2 + WIRE_RUNS_MAX]; /* the first two are for the frame */
    int iov_count;
    uint32_t raw; /* pages that have data */
    uint32_t zero;
};

void page_batch_clear(struct page_batch *batch);
bool page_batch_has_room(const struct page_batch *batch);
/* Adds a page, there being room, without its data. Returns whether it went on with the last run. */
bool page_batch_join(struct page_batch *batch, size_t region, size_t page, enum wire_page_kind kind);
/* Adds a page as it is in guest memory. False when there is no room. */
bool page_batch_add_page(struct page_batch *batch, const struct page_map *map, size_t region, size_t page);

/* A checksum of all memory that does not depend on which zero pages are holes. For a stopped guest. TICK is
 * called every few milliseconds; it returns 0, or an error that ends the work. */
typedef int page_map_tick(void *opaque, struct ferry_error *err);
int page_map_checksum(const struct page_map *map, page_map_tick *tick, void *opaque, uint64_t *checksum,
                      struct ferry_error *err);

#endif
