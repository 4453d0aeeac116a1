/*
 * What the threads of quick resume at the destination share: the session's (postcopy_destination.c), and
 * those that take faults and arriving pages (postcopy_arrival.c).
 */
#ifndef FERRY_ENGINE_POSTCOPY_PARTS_H
#define FERRY_ENGINE_POSTCOPY_PARTS_H

#include "base/thread.h"
#include "engine/latency.h"
#include "engine/postcopy_destination.h"

/* Faults whose time is taken; more at once are served all the same. */
#define POSTCOPY_PENDING_MAX 256

struct postcopy_stream {
    struct postcopy *postcopy;
    struct link link;
    struct thread thread;
    struct wire_run runs[WIRE_RUNS_MAX];
    struct iovec iov[WIRE_RUNS_MAX];
};

struct postcopy_pending {
    size_t region;
    size_t page;
    uint64_t since_ns;
};

struct postcopy {
    struct destination *destination;
    struct ferry_session *session;
    const struct page_map *map;
    int uffd;
    bool watched;                      /* atomic */
    uint8_t *alias[FERRY_REGIONS_MAX]; /* a second mapping, to fill pages in */
    struct page_set missing;           /* atomic; bits are only cleared once the guest may run */
    struct page_set requested;         /* atomic: somebody waits */
    uint64_t left;                     /* atomic: missing pages */

    struct thread fault_thread;
    int quit_fd; /* readable: ends it */

    struct postcopy_stream *streams; /* the first one carries requests */
    size_t stream_count;
    uint8_t number_of[FERRY_REGIONS_MAX]; /* our regions by the source's numbers */

    pthread_mutex_t send_lock; /* sending on the first stream; guards the next two */
    bool attached;
    uint64_t sent_ns; /* the last frame */

    pthread_mutex_t lock; /* guards the rest; a leaf */
    pthread_cond_t changed;
    bool lost; /* a connection failed, or the source closed one */
    struct ferry_error why;
    struct postcopy_pending pending[POSTCOPY_PENDING_MAX];
    size_t pending_count;
    struct latency latency;
};

/* A connection of ours failed: all of them end, and before GO the session does. */
void postcopy_lose(struct postcopy *postcopy, int code, struct ferry_error *why);
/* Whoever waits for a page goes on with what there is; only when that is all, or nothing of the guest will
 * ever run. */
void postcopy_release(struct postcopy *postcopy);
/* Asks for pages, if there is a connection. */
void postcopy_request(struct postcopy *postcopy, const struct wire_page *pages, size_t count);

/* Threads' functions. Of the fault thread, with the postcopy as its argument: ends when quit_fd is readable.
 * Of a stream, with that: ends when the connection does. */
void *postcopy_fault_main(void *opaque);
void *postcopy_stream_main(void *opaque);

#endif
