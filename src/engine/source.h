/*
 * What the source's steps share: set up by source.c, used by precopy.c and switchover.c. Session thread only,
 * except where the parts say otherwise.
 */
#ifndef FERRY_ENGINE_SOURCE_H
#define FERRY_ENGINE_SOURCE_H

#include "engine/control.h"
#include "engine/hot.h"
#include "engine/pace.h"
#include "engine/pages.h"
#include "engine/pulse.h"
#include "engine/sender.h"
#include "engine/session.h"
#include "engine/throttle.h"

struct source {
    struct ferry_session *session;
    struct page_map map;
    struct page_set set; /* what the current or next round must send */
    struct hot hot;
    struct control control;
    struct pulse pulse;
    struct sender sender;
    struct pace pace;
    int watch_fd; /* while page connections are opened: ready when the session ends or the control connection
                     is to be heard; else -1 */
    uint64_t features;         /* agreed on */
    uint64_t rtt_ns;           /* of the greeting */
    uint32_t round;            /* the last one sent by the page connections */
    uint64_t round_pages;      /* in it */
    uint64_t wire_bandwidth;   /* measured, bytes on the wire a second; 0 unknown */
    uint64_t frozen_bandwidth; /* bytes of memory a second once the guest is stopped; 0 unknown */
    struct throttle throttle;
    bool dirty_tracking;              /* is on */
    bool paused;                      /* the guest was stopped by us */
    bool was_running;                 /* what it was before */
    bool handed_over;                 /* ownership was released: only retake_ownership gives the guest back */
    bool destination_out;             /* the destination certainly runs nothing */
    bool fetch;                       /* quick resume was decided on */
    struct postcopy_source *postcopy; /* from then on */
};

/* Connects and sends HELLO for connection INDEX of COUNT. On failure there is nothing to close. */
int source_open_stream(struct source *source, enum wire_connection kind, unsigned index, unsigned count,
                       struct link *link, struct ferry_error *err);

/* Has the page connections send `set` as the next round and waits for them; the other side's words and
 * failures end the wait. */
int source_send_round(struct source *source, struct ferry_error *err);

/* Asks the guest which pages were written and adds them to `set`. *found is the number of pages in it then.
 */
int source_fetch_dirty(struct source *source, uint64_t *found, struct ferry_error *err);

#endif
