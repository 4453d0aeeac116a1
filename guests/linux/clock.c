#include "clock.h"

#include <errno.h>
#include <time.h>

/* Sleeping less than this costs more than it is worth. */
#define PACE_GRAIN    (5 * NS_PER_MS)
#define PACE_DEBT_MAX (100 * NS_PER_MS)

uint64_t clock_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

void clock_sleep_until(uint64_t at)
{
    struct timespec until = {.tv_sec = (time_t)(at / NS_PER_S), .tv_nsec = (long)(at % NS_PER_S)};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        ;
}

void pace_take(struct pace *pace, uint64_t bytes)
{
    uint64_t now;

    if (pace->rate == 0)
        return;
    now = clock_now();
    if (pace->due + PACE_DEBT_MAX < now)
        pace->due = now;
    pace->due += bytes * NS_PER_S / pace->rate;
    if (pace->due > now + PACE_GRAIN)
        clock_sleep_until(pace->due);
}
