#include "engine/pace.h"

#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <poll.h>
#include <time.h>

#define BURST_NS (NS_PER_S / 50)

void pace_init(struct pace *pace, uint64_t rate, int cancel_fd)
{
    *pace = (struct pace){.rate = rate, .cancel_fd = cancel_fd};
    pthread_mutex_init(&pace->lock, NULL);
}

void pace_destroy(struct pace *pace)
{
    pthread_mutex_destroy(&pace->lock);
}

void pace_set_rate(struct pace *pace, uint64_t rate)
{
    __atomic_store_n(&pace->rate, rate, __ATOMIC_RELAXED);
}

int pace_take(struct pace *pace, uint64_t bytes, struct ferry_error *err)
{
    uint64_t rate = __atomic_load_n(&pace->rate, __ATOMIC_RELAXED);

    if (rate == 0)
        return 0;

    uint64_t now = clock_now_ns();
    uint64_t cost = (uint64_t)((double)bytes * 1e9 / (double)rate);

    pthread_mutex_lock(&pace->lock);
    if (pace->free_at_ns + BURST_NS < now)
        pace->free_at_ns = now - BURST_NS;

    uint64_t go_at = pace->free_at_ns;

    pace->free_at_ns += cost;
    pthread_mutex_unlock(&pace->lock);

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
