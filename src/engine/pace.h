/*
 * Holds the bytes sent by all page connections of a session below a rate: a token bucket that holds a
 * hundredth of a second's worth and is emptied in slices of a quarter of that. So the rate is kept within 3 %
 * over any second, whatever the number of connections, also when some of them are let run late. Any thread
 * may take; waiting ends at once when the cancel descriptor becomes readable.
 */
#ifndef FERRY_ENGINE_PACE_H
#define FERRY_ENGINE_PACE_H

#include <ferry/error.h>

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pace {
    const uint64_t *limit; /* bytes/s; 0: none; atomic: it may change at any time */
    bool lifted;           /* atomic: the limit does not count */
    int cancel_fd;
    pthread_mutex_t lock; /* guards free_at_ns */
    uint64_t free_at_ns;  /* when everything taken so far has been paid for */
};

void pace_init(struct pace *pace, const uint64_t *limit, int cancel_fd);
void pace_destroy(struct pace *pace);
/* While the guest stands still the limit must not prolong that. */
void pace_lift(struct pace *pace, bool lifted);
bool pace_lifted(const struct pace *pace);
/* The limit that counts now; 0: none. */
uint64_t pace_limit(const struct pace *pace);
/* Waits until some of BYTES (not 0) may be sent; *taken is how many. -ECANCELED. */
int pace_take(struct pace *pace, size_t bytes, size_t *taken, struct ferry_error *err);
/* When everything taken so far will have been paid for; 0: no limit. */
uint64_t pace_free_at(struct pace *pace);
/* BYTES that could not wait: what is less urgent makes up for them. */
void pace_charge(struct pace *pace, size_t bytes);

#endif
