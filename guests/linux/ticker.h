/* A thread that wakes at a fixed period and notes the largest time between two of its wakings. */
#ifndef FERRY_GUEST_TICKER_H
#define FERRY_GUEST_TICKER_H

#include "work.h"

struct ticker {
    uint64_t period_ns;
    struct work_counters *counters;
};

/* Thread body; never returns. The argument is a struct ticker. */
void *ticker_main(void *argument);

#endif
