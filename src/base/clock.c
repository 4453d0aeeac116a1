#include "base/clock.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static uint64_t read_clock(clockid_t id)
{
    struct timespec now;

    clock_gettime(id, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

uint64_t clock_now_ns(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

uint64_t clock_realtime_ns(void)
{
    return read_clock(CLOCK_REALTIME);
}

char *clock_format(uint64_t realtime_ns, char text[static CLOCK_TEXT_SIZE])
{
    time_t seconds = (time_t)(realtime_ns / NS_PER_S);
    unsigned milliseconds = (unsigned)(realtime_ns % NS_PER_S / NS_PER_MS);
    struct tm local;
    size_t used;
    long zone;

    if (!localtime_r(&seconds, &local)) {
        snprintf(text, CLOCK_TEXT_SIZE, "?");
        return text;
    }
    used = strftime(text, CLOCK_TEXT_SIZE, "%Y-%m-%dT%H:%M:%S", &local);
    zone = labs(local.tm_gmtoff) / 60;
    snprintf(text + used, CLOCK_TEXT_SIZE - used, ".%03u%c%02ld:%02ld", milliseconds,
             local.tm_gmtoff < 0 ? '-' : '+', zone / 60, zone % 60);
    return text;
}

uint64_t clock_deadline(int64_t timeout_ms)
{
    uint64_t now = clock_now_ns();

    if (timeout_ms < 0 || (uint64_t)timeout_ms > (UINT64_MAX - now) / NS_PER_MS)
        return UINT64_MAX;
    return now + (uint64_t)timeout_ms * NS_PER_MS;
}

int clock_left_ms(uint64_t deadline)
{
    uint64_t now;
    uint64_t left;

    if (deadline == UINT64_MAX)
        return -1;
    now = clock_now_ns();
    if (now >= deadline)
        return 0;
    /* Rounded up: a poll that returned a fraction early would otherwise be repeated with a timeout of 0. */
    left = (deadline - now - 1) / NS_PER_MS + 1;
    return left > INT_MAX ? INT_MAX : (int)left;
}
