/*
 * Slowing the vCPUs of a guest that outruns the link: all of them, or, when the guest can tell who writes,
 * only those that do. Session thread only.
 *
 *     throttle_begin     with dirty tracking
 *     throttle_set       after every round, with what the policy says: who writes may have changed
 *     throttle_end       whatever became of the migration: full speed
 */
#ifndef FERRY_ENGINE_THROTTLE_H
#define FERRY_ENGINE_THROTTLE_H

#include "engine/session.h"

struct throttle {
    struct ferry_session *session;
    unsigned percent;                  /* as set last */
    uint64_t writes[FERRY_VCPUS_MAX];  /* as the guest counts them */
    uint64_t written[FERRY_VCPUS_MAX]; /* between the last two times that there were any */
    size_t count;                      /* vCPUs that can be told apart; 0: they cannot */
    size_t slowed;
};

void throttle_begin(struct throttle *throttle, struct ferry_session *session);
/* Only when the guest has the function (ferry_guest_ops.throttle), or with 0. */
void throttle_set(struct throttle *throttle, unsigned percent);
/* Also when it was never begun. */
void throttle_end(struct throttle *throttle);

#endif
