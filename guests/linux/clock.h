/* The guest's monotonic clock in nanoseconds, sleeping until a time of it, and keeping to a rate. */
#ifndef FERRY_GUEST_CLOCK_H
#define FERRY_GUEST_CLOCK_H

#include <stdint.h>

#define NS_PER_S  UINT64_C(1000000000)
#define NS_PER_MS UINT64_C(1000000)

uint64_t clock_now(void);

/* Sleeps until clock_now() would be AT. */
void clock_sleep_until(uint64_t at);

/* A rate in bytes a second. All zero but RATE to begin with; RATE 0 means as fast as possible. */
struct pace {
    uint64_t rate;
    uint64_t due; /* When what was done so far should have been done. */
};

/*
 * Accounts for BYTES just done and sleeps when that is more than is due. Time lost (the machine stood still,
 * or was too slow) is made up for at most 100 ms; older debt is forgotten, so that no burst follows a stop.
 */
void pace_take(struct pace *pace, uint64_t bytes);

#endif
