/*
 * What the destination has: of each page a hash of what was sent of it last, and of some, in a bounded cache,
 * the very bytes. With these a page that changed back need not be sent, and of one that changed a little only
 * what changed.
 *
 * Only pages that were sent from a copy of our own are known here: what was sent straight from guest memory
 * may have changed on its way. Two different pages with one hash would be a page that stays wrong: the chance
 * is 1 in 2^64 for each page that is sent again, with a seed that is new for every session.
 *
 * Threads: a page is one thread's for the length of a round. Cache slots, which pages share, are taken and
 * put back; a slot that another thread has is no use just then, nobody waits for it.
 */
#ifndef FERRY_ENGINE_SENT_H
#define FERRY_ENGINE_SENT_H

#include "engine/pages.h"

struct sent {
    const struct page_map *map;
    uint64_t seed;
    size_t first[FERRY_REGIONS_MAX];   /* of a region's pages, counted through all regions */
    uint64_t *hash[FERRY_REGIONS_MAX]; /* 0: unknown */
    size_t slots;                      /* a power of two; 0: no cache */
    uint64_t *tags;                    /* of each slot: whose copy it has, and of which round; atomic */
    uint8_t *copies;                   /* mapped; touched when used */
};

/* CACHE_BYTES is the most that copies of pages may take. */
int sent_init(struct sent *sent, const struct page_map *map, uint64_t cache_bytes, struct ferry_error *err);
void sent_free(struct sent *sent); /* zeroed allowed */

/* Never 0. DATA must not change meanwhile. */
uint64_t sent_hash(const struct sent *sent, const uint8_t data[static FERRY_PAGE_SIZE]);
/* The page was sent with this content last. */
bool sent_same(const struct sent *sent, size_t region, size_t page, uint64_t hash);
void sent_record(struct sent *sent, size_t region, size_t page, uint64_t hash);
/* It was sent in a way that leaves unknown what arrived. */
void sent_forget(struct sent *sent, size_t region, size_t page);

/*
 * Takes the slot for a page, for this thread alone until sent_put. *HIT: it holds what the destination has;
 * otherwise it holds something else, and is to be overwritten. NULL: there is no slot to be had, because
 * another thread has it or another page that was sent lately has a better claim.
 */
uint8_t *sent_take(struct sent *sent, size_t region, size_t page, uint32_t round, bool *hit);
/* The slot holds what is sent of the page in ROUND. */
void sent_put(struct sent *sent, size_t region, size_t page, uint32_t round);

#endif
