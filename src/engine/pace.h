/*
 * Holds the bytes sent by all connections of a session below a rate: a token bucket that holds a fiftieth of
 * a second's worth. Any thread may take; waiting ends at once when the cancel descriptor becomes readable.
 */
#ifndef FERRY_ENGINE_PACE_H
#define FERRY_ENGINE_PACE_H

#include <ferry/error.h>

#include <pthread.h>
#include <stdint.h>

struct pace {
    uint64_t rate; /* bytes/s; 0: no limit; atomic */
    int cancel_fd;
    pthread_mutex_t lock; /* guards free_at_ns */
    uint64_t free_at_ns;  /* when everything taken so far has been paid for */
};

void pace_init(struct pace *pace, uint64_t rate, int cancel_fd);
void pace_destroy(struct pace *pace);
void pace_set_rate(struct pace *pace, uint64_t rate);
/* Waits until BYTES may be sent. -ECANCELED. */
int pace_take(struct pace *pace, uint64_t bytes, struct ferry_error *err);

#endif
