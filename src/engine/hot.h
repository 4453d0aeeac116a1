/*
 * Pages that the guest writes in every round (source). Sending them again and again is of no use: what counts
 * is how they are in the end. They are left out of the rounds, as many as can be sent while the guest is
 * stopped without being noticed much, and go with the last pages; one that was left alone for a round goes
 * with the next.
 *
 *     fetch     pages written since the last fetch ─▶ fresh;   set |= fresh | later
 *     a round   those fresh now and the round before, up to a bound, from set ─▶ later
 *
 * Session thread only.
 */
#ifndef FERRY_ENGINE_HOT_H
#define FERRY_ENGINE_HOT_H

#include "engine/pages.h"

struct hot {
    const struct page_map *map;
    struct page_set fresh;  /* written since the last round began */
    struct page_set before; /* and in the round before that */
    struct page_set later;  /* left out of the round */
};

int hot_init(struct hot *hot, const struct page_map *map, struct ferry_error *err);
void hot_free(struct hot *hot); /* zeroed allowed */

/* After pages were added to hot->fresh: SET gets all that must be sent. */
void hot_gather(struct hot *hot, struct page_set *set);
/* A round of SET begins: takes up to LIMIT pages out of it. Returns how many. */
uint64_t hot_leave_out(struct hot *hot, struct page_set *set, uint64_t limit);

#endif
