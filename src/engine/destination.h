/*
 * What the destination's steps share: set up by destination.c, used by switchover.c. Session thread only.
 */
#ifndef FERRY_ENGINE_DESTINATION_H
#define FERRY_ENGINE_DESTINATION_H

#include "engine/checkpoint.h"
#include "engine/control.h"
#include "engine/gate.h"
#include "engine/place.h"
#include "engine/prefault.h"
#include "engine/receiver.h"
#include "engine/session.h"

struct destination {
    struct ferry_session *session;
    struct page_map map;
    struct page_place place;
    struct prefault prefault;
    struct gate gate;
    struct control control;
    struct receiver receiver;
    struct checkpoint checkpoint;
    unsigned streams;
    uint64_t features; /* agreed on */
    uint64_t rtt_ns;
    uint64_t quiesce_timeout_ns; /* the source's */

    uint32_t round;       /* the last that ended */
    uint64_t round_ns;    /* when it began */
    uint64_t round_pages; /* counters when it began */
    uint64_t round_bytes;
    bool paused;               /* PAUSED has come */
    bool was_running;          /* and said that the guest ran */
    uint64_t paused_at_ns;     /* by our clock */
    uint64_t go_ns;            /* GO has come */
    bool acquired;             /* the guest is ours */
    bool ran;                  /* and was resumed */
    struct postcopy *postcopy; /* quick resume was begun; else NULL */

    struct decoder decoder; /* of pages on the control connection */
};

#endif
