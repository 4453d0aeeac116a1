#include "engine/pace.h"

#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <poll.h>
#include <time.h>

#define BURST_NS     (NS_PER_S / 100)
#define SLICES_PER_S 400
#define SLICE_MIN    512 /* bytes */

void pace_init(struct pace *pace, const uint64_t *limit, int cancel_fd)
{
    *pace = (struct pace){.limit = limit, .cancel_fd = cancel_fd};
    pthread_mutex_init(&pace->lock, NULL);
}

void pace_destroy(struct pace *pace)
{
    pthread_mutex_destroy(&pace->lock);
}

void pace_lift(struct pace *pace, bool lifted)
{
    __atomic_store_n(&pace->lifted, lifted, __ATOMIC_RELAXED);
}

bool pace_lifted(const struct pace *pace)
{
    return __atomic_load_n(&pace->lifted, __ATOMIC_RELAXED);
}

uint64_t pace_limit(const struct pace *pace)
{
    return pace_lifted(pace) ? 0 : __atomic_load_n(pace->limit, __ATOMIC_RELAXED);
}

/* Pays for the bytes; returns when they may go. */
static uint64_t pace_pay(struct pace *pace, uint64_t cost_ns, uint64_t now_ns)
{
    uint64_t go_at_ns;

    pthread_mutex_lock(&pace->lock);
    if (pace->free_at_ns + BURST_NS < now_ns)
        pace->free_at_ns = now_ns - BURST_NS;
    go_at_ns = pace->free_at_ns;
    pace->free_at_ns += cost_ns;
    pthread_mutex_unlock(&pace->lock);
    return go_at_ns;
}

int pace_take(struct pace *pace, size_t bytes, size_t *taken, struct ferry_error *err)
{
    uint64_t limit = pace_limit(pace);
    uint64_t slice = limit / SLICES_PER_S < SLICE_MIN ? SLICE_MIN : limit / SLICES_PER_S;
    uint64_t now, go_at;

    *taken = limit && slice < bytes ? (size_t)slice : bytes;
    if (limit == 0)
        return 0;
    now = clock_now_ns();
    go_at = pace_pay(pace, (uint64_t)((double)*taken * 1e9 / (double)limit), now);
    while (now < go_at) {
        struct pollfd polled = {.fd = pace->cancel_fd, .events = POLLIN};
        struct timespec wait = {.tv_sec = (time_t)((go_at - now) / NS_PER_S),
                                .tv_nsec = (long)((go_at - now) % NS_PER_S)};

        if (ppoll(&polled, 1, &wait, NULL) > 0)
            return error_set(err, -ECANCELED, "cancelled");
        now = clock_now_ns();
    }
    return 0;
}

uint64_t pace_free_at(struct pace *pace)
{
    uint64_t at;

    if (pace_limit(pace) == 0)
        return 0;
    pthread_mutex_lock(&pace->lock);
    at = pace->free_at_ns;
    pthread_mutex_unlock(&pace->lock);
    return at;
}

void pace_charge(struct pace *pace, size_t bytes)
{
    uint64_t limit = pace_limit(pace);

    if (limit)
        pace_pay(pace, (uint64_t)((double)bytes * 1e9 / (double)limit), clock_now_ns());
}
