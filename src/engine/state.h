/*
 * The transition states and phases of a session: which may follow which. Pure.
 *
 *     source        NONE(0) -> READY(1) -> PRECOPY(2) -> CHECKPT(3) -> WAIT_HANDSHAKE(4) -> FINISHED(5) ->
 * NONE destination   NONE(0) -> INIT(7) -> WAITING(8) -> PRECOPY(9) -> CHECKPT(10) -> FINISHED(11) -> NONE
 *
 * A failure goes from any of them to the side's FINISHED. Phases only go forward, percent within a phase too.
 */
#ifndef FERRY_ENGINE_STATE_H
#define FERRY_ENGINE_STATE_H

#include <ferry/ferry.h>

#include <stdbool.h>

enum session_role {
    SESSION_SOURCE = 1,
    SESSION_DESTINATION,
};

/* May a session of this role go from FROM to TO? */
bool state_may_follow(enum session_role role, enum ferry_state from, enum ferry_state to);

/* The percent to show: NOW (clamped to 100), or what was shown before in the same phase if that was more. */
unsigned state_percent(unsigned shown, uint64_t done, uint64_t total);

#endif
