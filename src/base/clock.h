/*
 * Time. Durations and instants are uint64_t nanoseconds of CLOCK_MONOTONIC unless a name says otherwise.
 */
#ifndef FERRY_BASE_CLOCK_H
#define FERRY_BASE_CLOCK_H

#include <stddef.h>
#include <stdint.h>

#define NS_PER_US UINT64_C(1000)
#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_S  UINT64_C(1000000000)

uint64_t clock_now_ns(void);      /* CLOCK_MONOTONIC */
uint64_t clock_realtime_ns(void); /* CLOCK_REALTIME, since 1970 */

#define CLOCK_TEXT_SIZE 40
/* Writes local time with its zone, "2026-11-21T03:31:36.123+01:00", into text; returns text. */
char *clock_format(uint64_t realtime_ns, char text[static CLOCK_TEXT_SIZE]);

/* An instant TIMEOUT_MS from now, to be used with clock_left_ms; a negative timeout means never. */
uint64_t clock_deadline(int64_t timeout_ms);
/* Milliseconds until the deadline for poll(2): 0 when passed, -1 when never. */
int clock_left_ms(uint64_t deadline);

#endif
