/*
 * What the threads of quick resume at the source share: the session's (postcopy_source.c), the one that
 * answers requests and those that push (postcopy_serve.c).
 */
#ifndef FERRY_ENGINE_POSTCOPY_SERVE_H
#define FERRY_ENGINE_POSTCOPY_SERVE_H

#include "base/thread.h"
#include "engine/postcopy_source.h"

/* So many sequences, of vCPUs and devices, are followed at once. */
#define SERVE_SEQUENCES 8
/* How often whoever waits looks up: for the progress, and because the bandwidth limit may change. */
#define POSTCOPY_PROGRESS_NS (100 * NS_PER_MS)

/* Pages that were asked for in their order. */
struct sequence {
    uint8_t region;
    uint32_t next; /* page */
    uint32_t neighbours;
};

struct serve_stream {
    struct postcopy_source *postcopy;
    struct link link;
    struct thread thread;
    struct page_batch batch;
    struct sequence sequences[SERVE_SEQUENCES]; /* of the first stream; the newest one first */
};

struct postcopy_source {
    struct source *source;
    struct ferry_session *session;
    const struct page_map *map;
    struct page_set *set; /* atomic: pages that are missing there and not on their way */
    uint64_t cursor;      /* atomic: where pushing goes on; region << 32 | word */
    struct serve_stream *streams;
    size_t stream_count;

    pthread_mutex_t lock; /* guards the rest; a leaf */
    pthread_cond_t changed;
    bool push;
    bool attached;
    bool lost; /* a connection failed */
    bool done; /* FETCHED has come */
    struct ferry_error why;
    struct wire_fetched fetched;
};

/* Thread functions of a stream (ferry-serve, ferry-push1, …): they end when the connection does, with
 * FETCHED, or when everything was sent. */
void *postcopy_serve_main(void *stream);
void *postcopy_push_main(void *stream);

#endif
