/*
 * The destination's page connections: one thread each, reading pages straight into guest memory.
 *
 * The fence: a thread that reads FENCE of a round waits there until all threads have, so that nothing of the
 * next round is placed while something of this one is still on its way.
 *
 * A thread that fails records it in the session. Threads end in receiver_close, or when the source closes its
 * end after receiver_finish.
 */
#ifndef FERRY_ENGINE_RECEIVER_H
#define FERRY_ENGINE_RECEIVER_H

#include "base/thread.h"
#include "engine/decoder.h"
#include "engine/link.h"
#include "engine/place.h"
#include "engine/session.h"

struct receiver;

struct receiver_stream {
    struct receiver *receiver;
    struct link link;
    struct thread thread;
    uint32_t fence; /* the last it has read; under the receiver's lock */
    struct decoder decoder;
};

struct receiver {
    struct ferry_session *session;
    struct page_place *place;
    struct receiver_stream *streams; /* owned */
    size_t count;

    pthread_mutex_t lock; /* guards the rest and the streams' fence */
    pthread_cond_t changed;
    bool finished; /* what happens to the connections does not matter any more */
    bool failed;
};

/* Takes the links over (HELLO was received on them); on failure they are closed. FEATURES are those agreed
 * on.
 */
int receiver_open(struct receiver *receiver, struct ferry_session *session, struct page_place *place,
                  struct link *links, size_t count, uint64_t features, struct ferry_error *err);
void receiver_close(struct receiver *receiver);

/* Waits until all pages of rounds up to ROUND are in memory; 0, -ETIMEDOUT after timeout_ns, or the session's
 * failure. */
int receiver_wait(struct receiver *receiver, uint32_t round, uint64_t timeout_ns, struct ferry_error *err);
/* All pages are there: from now on a page connection may end at any time. */
void receiver_finish(struct receiver *receiver);

/* Places the pages of FRAME (PAGES or ENCODED) that came by LINK. */
int receiver_place(struct ferry_session *session, struct page_place *place, struct link *link,
                   struct frame *frame, struct decoder *decoder, uint32_t *round, struct ferry_error *err);

#endif
