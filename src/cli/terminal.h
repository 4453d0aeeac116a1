/*
 * Standard input as a raw terminal: what is typed goes to the guest untouched.
 *
 * Between terminal_begin and terminal_end nothing may end the program without terminal_end having run;
 * signals that would are taken as events meanwhile (signals.h) by the caller. Not a terminal: both do
 * nothing.
 */
#ifndef FERRY_CLI_TERMINAL_H
#define FERRY_CLI_TERMINAL_H

#include <stdbool.h>
#include <termios.h>

struct terminal {
    int fd;
    bool is_raw;
    struct termios before;
};

void terminal_begin(struct terminal *terminal, int fd);
void terminal_end(struct terminal *terminal);

#endif
