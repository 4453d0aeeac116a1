/*
 * Guest memory as the engine sees it: regions of pages, sets of pages, looking for what must be sent (source)
 * and putting what arrives in its place (destination).
 *
 * Pages that were never touched are holes in a region's memfd; they read as zeros. Neither side ever touches
 * one that it need not: reading a hole through the mapping would allocate it.
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

/* One PAGES frame being put together. */
struct page_batch {
    struct wire_run runs[WIRE_RUNS_MAX];
    size_t count;
    struct iovec iov[2 + WIRE_RUNS_MAX]; /* the first two are for the frame */
    int iov_count;
    uint32_t raw; /* pages */
    uint32_t zero;
};

void page_batch_clear(struct page_batch *batch);
/* Adds those of pages [first, end) that are in SET until the batch is full. Returns the page to go on with;
 * END when all are in. */
size_t page_batch_add(struct page_batch *batch, const struct page_map *map, const struct page_set *set,
                      size_t region, size_t first, size_t end);

/* Where arriving pages go. Several threads may place at once. */
struct page_place {
    const struct page_map *map;
    struct page_set written;             /* pages that may hold something else than zeros; atomic */
    size_t region_of[FERRY_REGIONS_MAX]; /* the sender's region numbers to ours */
    size_t region_count;
};

/* REGIONS are the sender's, checked against ours. -EINVAL says what differs. */
int page_place_init(struct page_place *place, const struct page_map *map, const struct wire_region *regions,
                    size_t count, struct ferry_error *err);
/* Before the first page: zeroes what is there already. Takes a while with much memory. */
int page_place_prepare(struct page_place *place, struct ferry_error *err);
void page_place_free(struct page_place *place);
/* Checks the runs, makes zero pages zero, and gives in IOV (room for COUNT) where raw pages must be read to.
 */
int page_place_runs(struct page_place *place, const struct wire_run *runs, size_t count, struct iovec *iov,
                    int *iov_count, struct ferry_error *err);

/* A checksum of all memory that does not depend on which zero pages are holes. For a stopped guest. TICK is
 * called every few milliseconds; it returns 0, or an error that ends the work. */
typedef int page_map_tick(void *opaque, struct ferry_error *err);
int page_map_checksum(const struct page_map *map, page_map_tick *tick, void *opaque, uint64_t *checksum,
                      struct ferry_error *err);

#endif
