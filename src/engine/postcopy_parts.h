/*
 * What the threads of quick resume at the destination share: the session's (postcopy_destination.c), the one
 * that takes faults and has the first connection (postcopy_fault.c), and those of the other connections; both
 * kinds put pages in their places (postcopy_arrival.c).
 *
 * A page is missing, or it is here. Whoever has filled it in through the alias clears its missing bit, then
 * maps it; whoever asks for it sets its requested bit, then looks at the missing bit again.
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
    struct thread thread; /* of all but the first */
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
    bool huge[FERRY_REGIONS_MAX];      /* the memfd has huge pages: the alias costs nothing */
    struct page_set missing;           /* atomic; bits are only cleared once the guest may run */
    struct page_set requested;         /* atomic: somebody waits */
    uint64_t left;                     /* atomic: missing pages */

    struct thread fault_thread; /* serves the first connection, too */
    int wake_fd;                /* eventfd; readable: it looks at quit, served and lost */

    struct postcopy_stream *streams; /* the first one carries requests and what is sent for them */
    size_t stream_count;
    uint8_t number_of[FERRY_REGIONS_MAX]; /* our regions by the source's numbers */

    pthread_mutex_t send_lock; /* sending on the first stream; guards the next two */
    bool attached;
    uint64_t sent_ns; /* the last frame */
    bool unsent; /* atomic: the first connection's link has something queued that the socket did not take */

    pthread_mutex_t lock; /* guards the rest; a leaf */
    pthread_cond_t changed;
    bool quit;   /* the fault thread ends */
    bool served; /* it has the first connection; set by the session's thread, cleared by itself */
    bool lost;   /* a connection failed, or the source closed one */
    struct ferry_error why;
    struct postcopy_pending pending[POSTCOPY_PENDING_MAX];
    size_t pending_count;
    struct latency latency;
};

static inline bool postcopy_test(const struct page_set *set, size_t region, size_t page)
{
    return __atomic_load_n(&set->bits[region][page / 64], __ATOMIC_SEQ_CST) >> page % 64 & 1;
}

static inline uint8_t *postcopy_address(const struct postcopy *postcopy, size_t region, size_t page)
{
    return postcopy->map->regions[region].host_ptr + page * FERRY_PAGE_SIZE;
}

static inline uint8_t *postcopy_alias(const struct postcopy *postcopy, size_t region, size_t page)
{
    return postcopy->alias[region] + page * FERRY_PAGE_SIZE;
}

/* A connection of ours failed: all of them end, and before GO the session does. */
void postcopy_lose(struct postcopy *postcopy, int code, struct ferry_error *why);
/* Whoever waits for a page goes on with what there is; only when that is all, or nothing of the guest will
 * ever run. */
void postcopy_release(struct postcopy *postcopy);
/* Asks for pages, if there is a connection. What the socket does not take at once, the fault thread sends. */
void postcopy_request(struct postcopy *postcopy, const struct wire_page *pages, size_t count);

/* The fault thread's function, with the postcopy as its argument: ends after quit and wake_fd. */
void *postcopy_fault_main(void *opaque);
/* Has it look at what has changed. */
void postcopy_wake(struct postcopy *postcopy);
/* A fault's time begins; it ends, and counts. */
void postcopy_pending_add(struct postcopy *postcopy, size_t region, size_t page, uint64_t now);
void postcopy_pending_end(struct postcopy *postcopy, size_t region, size_t page);

/* Places the pages of a PAGES frame. DATA is what came after the body; NULL: it is still to be received from
 * the stream's connection. */
int postcopy_take_pages(struct postcopy_stream *stream, struct frame *frame, const uint8_t *data,
                        struct ferry_error *err);
/* The function of a stream's thread, with that as its argument: ends when the connection does. */
void *postcopy_stream_main(void *opaque);

#endif
