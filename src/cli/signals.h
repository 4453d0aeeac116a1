/*
 * Signals as events: while taken, they do not end the program but make a descriptor readable.
 *
 *     struct signals signals;
 *     signals_begin(&signals, (const int[]){SIGINT, 0});
 *     ... poll signals.fd ...; signals_next(&signals) == SIGINT
 *     signals_end(&signals);
 */
#ifndef FERRY_CLI_SIGNALS_H
#define FERRY_CLI_SIGNALS_H

#include <signal.h>

struct signals {
    int fd; /* -1: they could not be taken and act as ever */
    sigset_t before;
};

/* NUMBERS ends with 0. */
void signals_begin(struct signals *signals, const int *numbers);
/* The number of a signal that came, 0 when none did. Does not wait. */
int signals_next(struct signals *signals);
/* They act as before; one that is pending acts now. */
void signals_end(struct signals *signals);

#endif
