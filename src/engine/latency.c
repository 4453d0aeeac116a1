#include "engine/latency.h"

#define STEP_BITS 4 /* log2 of LATENCY_STEPS */

static unsigned bucket_of(uint64_t ns)
{
    if (ns < LATENCY_STEPS)
        return (unsigned)ns;

    unsigned shift = 63 - (unsigned)__builtin_clzll(ns) - STEP_BITS;

    return (shift + 1) * LATENCY_STEPS + (unsigned)(ns >> shift & (LATENCY_STEPS - 1));
}

/* The middle of a bucket. */
static uint64_t value_of(unsigned bucket)
{
    if (bucket < LATENCY_STEPS)
        return bucket;

    unsigned shift = bucket / LATENCY_STEPS - 1;
    uint64_t low = (uint64_t)(LATENCY_STEPS + bucket % LATENCY_STEPS) << shift;

    return low + ((UINT64_C(1) << shift) >> 1);
}

void latency_add(struct latency *latency, uint64_t ns)
{
    latency->count++;
    latency->buckets[bucket_of(ns)]++;
    if (ns > latency->max_ns)
        latency->max_ns = ns;
}

uint64_t latency_quantile(const struct latency *latency, unsigned per_mille)
{
    uint64_t wanted = (latency->count * per_mille + 999) / 1000;
    uint64_t seen = 0;

    for (unsigned bucket = 0; bucket < LATENCY_BUCKETS && latency->count > 0; bucket++) {
        seen += latency->buckets[bucket];
        if (seen >= wanted && seen > 0)
            return value_of(bucket) < latency->max_ns ? value_of(bucket) : latency->max_ns;
    }
    return latency->max_ns;
}
