/*
 * The source's page connections: one thread each, all working on the same round.
 *
 * A round is a set of pages. Threads take chunks of it from a shared counter, encode them (encoder.h) and
 * send the frames; when the chunks are gone each sends FENCE. No lock is taken for pages.
 *
 *     session thread   sender_begin ─┐                               ┌─ sender_done_fd readable, sender_end
 *     page thread 0                  ├─ chunk 0 ─ chunk 2 ─ … FENCE ─┤
 *     page thread 1                  └─ chunk 1 ─ chunk 3 ─ … FENCE ─┘
 *
 * A page thread that fails records it in the session and ends its round. Threads end in sender_close: they
 * are told by `quit`, and their connections are shut down.
 */
#ifndef FERRY_ENGINE_SENDER_H
#define FERRY_ENGINE_SENDER_H

#include "base/thread.h"
#include "engine/encoder.h"
#include "engine/link.h"
#include "engine/pace.h"
#include "engine/pages.h"
#include "engine/policy.h"
#include "engine/session.h"

struct sender;

struct sender_stream {
    struct sender *sender;
    struct link link;
    struct thread thread;
    struct encoder encoder;
};

struct sender {
    struct ferry_session *session;
    const struct page_map *map;
    struct sent sent;              /* empty when nothing is encoded */
    struct sender_stream *streams; /* owned */
    size_t count;
    int done_fd; /* eventfd: readable when all threads have ended the round */

    pthread_mutex_t lock; /* guards the rest */
    pthread_cond_t begin;
    uint32_t round; /* the newest that was begun */
    const struct page_set *set;
    size_t busy;
    bool quit;
    uint64_t next_chunk; /* atomic */
};

/* Takes over the connected descriptors, on which HELLO was sent. On failure they are closed. All that they
 * send is held to PACE. FEATURES are those agreed on. */
int sender_open(struct sender *sender, struct ferry_session *session, const struct page_map *map,
                struct pace *pace, struct link *links, size_t count, uint64_t features,
                struct ferry_error *err);
void sender_close(struct sender *sender);

/* Begins sending SET, which stays untouched until the round's end. */
void sender_begin(struct sender *sender, uint32_t round, const struct page_set *set);
/* After done_fd became readable: clears it. */
void sender_end(struct sender *sender);

/* What the way to the destination carries, in bytes/s, as far as one can tell while the rate is limited; 0:
 * not known. */
uint64_t sender_path_rate(const struct sender *sender);

/* Between rounds: from now on pages are waited for, and encoded only as far as that makes them arrive sooner.
 * LIMITED: the rate was until now. */
void sender_freeze(struct sender *sender, bool limited);
/* Between rounds: how pages would go after sender_freeze, as far as that is known. */
void sender_foresee(const struct sender *sender, bool limited, struct policy_frozen *frozen);
/* Between rounds: sends what is in SET by LINK on the calling thread, without a fence: for the last, small
 * round. */
int sender_send_here(struct sender *sender, struct link *link, uint32_t round, const struct page_set *set,
                     struct ferry_error *err);

#endif
