/*
 * The guest's clocks against another machine's, over UDP: CLOCK_REALTIME and CLOCK_MONOTONIC, as they are and
 * not as they run, so that a jump or a lag shows. Both ends are this program.
 */
#ifndef FERRY_GUEST_TIMESERVER_H
#define FERRY_GUEST_TIMESERVER_H

/* Answers on UDP port TEXT (decimal) what the time is. Returns a process exit status, and only on failure. */
int timeserver_run(const char *text);

/*
 * Asks the server TEXT ("ADDRESS:PORT") and prints, for ever:
 *
 *     clock N wall=+12us monotonic=-345us rtt=678us
 *
 * the guest's clocks less the server's at the middle of the quickest of several answers; off by half of rtt
 * at most. Returns a process exit status, and only on failure.
 */
int timeserver_ask(const char *text);

#endif
