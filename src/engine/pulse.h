/*
 * Signs of life of a side whose session thread is in a step that it cannot interrupt, such as waiting for the
 * guest's outstanding I/O: a thread of its own says KEEPALIVE on the control connection, until the step ends
 * or has taken longer than it may. A step that hangs is noticed by the peer then, as a process that is
 * stopped is at once.
 *
 * Between pulse_begin and pulse_end nobody else sends on the control connection. The thread looks at the
 * clock by itself: beginning and ending cost a step nothing but a lock.
 */
#ifndef FERRY_ENGINE_PULSE_H
#define FERRY_ENGINE_PULSE_H

#include "base/thread.h"
#include "engine/control.h"

struct pulse {
    struct control *control;
    struct thread thread;

    pthread_mutex_t lock; /* guards the rest, and the control connection while a step is under way */
    pthread_cond_t changed;
    uint64_t until_ns; /* 0: no step is under way */
    bool quit;
};

/* CONTROL is open and outlives the pulse. */
int pulse_open(struct pulse *pulse, struct control *control, struct ferry_error *err);
/* A zeroed pulse is fine. */
void pulse_close(struct pulse *pulse);

void pulse_begin(struct pulse *pulse, uint64_t limit_ns);
void pulse_end(struct pulse *pulse);

#endif
