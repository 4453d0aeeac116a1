/*
 * Putting what arrives in its place (destination). Several threads may place at once.
 *
 * Memory is faulted in by whole runs before it is written: taken page by page inside a read, first touch
 * costs half as much again. Each chunk is faulted in once, by whoever comes first: the threads that run ahead
 * (prefault.h) or the one whose pages have arrived.
 */
#ifndef FERRY_ENGINE_PLACE_H
#define FERRY_ENGINE_PLACE_H

#include "engine/pages.h"

struct page_place {
    const struct page_map *map;
    struct page_set written;             /* pages that may hold something else than zeros; atomic */
    size_t region_of[FERRY_REGIONS_MAX]; /* the sender's region numbers to ours */
    size_t region_count;
    uint8_t *faulted[FERRY_REGIONS_MAX]; /* of each chunk: nobody need fault it in any more; atomic */
};

/* REGIONS are the sender's, checked against ours. -EINVAL says what differs. */
int page_place_init(struct page_place *place, const struct page_map *map, const struct wire_region *regions,
                    size_t count, struct ferry_error *err);
/* Before the first page: zeroes what is there already. Takes a while with much memory. */
int page_place_prepare(struct page_place *place, struct ferry_error *err);
void page_place_free(struct page_place *place);
/* Faults in those pages [first, first + pages) of one of our regions of which that was not done yet. Any
 * thread. */
void page_place_fault_in(struct page_place *place, size_t region, size_t first, size_t pages);
/* A whole chunk of a region, as far as it is worth it, was or is being faulted in by the caller. False when
 * it was before. */
bool page_place_claim(struct page_place *place, size_t region, size_t chunk);
/* Checks the runs, makes zero pages zero, and gives in IOV (room for COUNT) where raw pages must be read to.
 * Delta pages are for the caller. */
int page_place_runs(struct page_place *place, const struct wire_run *runs, size_t count, struct iovec *iov,
                    int *iov_count, struct ferry_error *err);
/* Where the first page of a run is that page_place_runs found good. */
uint8_t *page_place_address(const struct page_place *place, const struct wire_run *run);

#endif
