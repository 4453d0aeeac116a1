/*
 * A TCP echo service: sends back what it receives, on many connections at once. A connection that cannot take
 * its own data back is not read from meanwhile, so nothing is buffered without bound.
 */
#ifndef FERRY_GUEST_ECHO_H
#define FERRY_GUEST_ECHO_H

/* Listens on TCP port TEXT (decimal) of every address. Returns a process exit status, and only on failure. */
int echo_run(const char *text);

#endif
