#include "ticker.h"

#include "clock.h"

#include <pthread.h>
#include <sched.h>

static void raise_to(_Atomic uint64_t *largest, uint64_t value)
{
    uint64_t seen = atomic_load(largest);

    while (seen < value && !atomic_compare_exchange_weak(largest, &seen, value))
        ;
}

void *ticker_main(void *argument)
{
    struct ticker *ticker = argument;
    struct sched_param first = {.sched_priority = 50};
    uint64_t last = clock_now(), due = last;

    /* Ahead of the writers: what is to be seen is the machine standing still, not the guest's own queue. */
    pthread_setschedparam(pthread_self(), SCHED_FIFO, &first);
    for (;;) {
        uint64_t now;

        due += ticker->period_ns;
        clock_sleep_until(due);
        now = clock_now();
        raise_to(&ticker->counters->gap, now - last);
        raise_to(&ticker->counters->gap_max, now - last);
        last = now;
        if (now > due + ticker->period_ns)
            due = now;
    }
    return NULL;
}
