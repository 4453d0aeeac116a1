/*
 * Durations counted by size, for medians and the like: exact to a sixteenth of the value, in constant memory.
 * One owner at a time.
 */
#ifndef FERRY_ENGINE_LATENCY_H
#define FERRY_ENGINE_LATENCY_H

#include <stdint.h>

#define LATENCY_STEPS   16 /* within each power of two */
#define LATENCY_BUCKETS (61 * LATENCY_STEPS)

struct latency {
    uint64_t count;
    uint64_t max_ns;
    uint64_t buckets[LATENCY_BUCKETS];
};

void latency_add(struct latency *latency, uint64_t ns);
/* The duration that PER_MILLE of all are not above; 0 when there are none. At most max_ns. */
uint64_t latency_quantile(const struct latency *latency, unsigned per_mille);

#endif
