/*
 * At most one line every LOG_LIMIT_NS from one source: what a guest can provoke at will must not fill the
 * host's log. Guarded by the owner's lock.
 */
#ifndef FERRY_DEVICE_LOG_LIMIT_H
#define FERRY_DEVICE_LOG_LIMIT_H

#include "base/clock.h"

#include <stdbool.h>

#define LOG_LIMIT_NS (5 * NS_PER_S)

struct log_limit {
    uint64_t next_ns;    /* earliest time of the next line; 0 before the first */
    unsigned suppressed; /* since the last line */
};

/* True when a line may be written now; *SUPPRESSED is then how many were not since the last one. */
static inline bool log_limit_pass(struct log_limit *limit, unsigned *suppressed)
{
    uint64_t now = clock_now_ns();

    if (limit->next_ns && now < limit->next_ns) {
        limit->suppressed++;
        return false;
    }
    *suppressed = limit->suppressed;
    limit->suppressed = 0;
    limit->next_ns = now + LOG_LIMIT_NS;
    return true;
}

#endif
