/*
 * Faults in the destination's memory ahead of what will arrive: several threads, in the order in which the
 * source sends, and only where it said that it has something (PRESENT). First touch may cost several times
 * what copying does; here it is done before the guest's writes are tracked, and by all cores. (Not within one
 * host: destination.c.)
 *
 * Only memory that was reserved before (its memfd is allocated as a whole) is touched: elsewhere that would
 * allocate what may turn out to be zeros.
 *
 * Session thread only. The threads end when they are through, when the session fails, or in prefault_close.
 */
#ifndef FERRY_ENGINE_PREFAULT_H
#define FERRY_ENGINE_PREFAULT_H

#include "base/thread.h"
#include "engine/place.h"
#include "engine/session.h"

#define PREFAULT_THREADS_MAX 8

struct prefault {
    struct ferry_session *session;
    struct page_place *place;
    uint64_t *present[FERRY_REGIONS_MAX]; /* our regions: one bit a granule; NULL: nothing to do */
    size_t granules;                      /* in all of them */
    struct thread threads[PREFAULT_THREADS_MAX];
    uint64_t next; /* atomic: the chunk to take */
    bool stop;     /* atomic */

    pthread_mutex_t lock; /* guards busy */
    pthread_cond_t changed;
    size_t busy; /* threads */
};

/* PLACE must be prepared and outlive it. */
void prefault_init(struct prefault *prefault, struct ferry_session *session, struct page_place *place);
/* What the source says of one region. -EBADMSG, -ENOMEM. */
int prefault_add(struct prefault *prefault, const struct wire_present *present, struct ferry_error *err);
/* After the last region. Too few threads are no failure: pages are then faulted in as they come. */
void prefault_start(struct prefault *prefault);
/* Until all is there, or the deadline. Returns whether it is. */
bool prefault_wait(struct prefault *prefault, uint64_t deadline_ns);
/* Zeroed is allowed. */
void prefault_close(struct prefault *prefault);

#endif
