/*
 * A TCP connection over the loopback address that lives as long as the workload: numbered words go one way,
 * and the number of each block comes back.
 */
#ifndef FERRY_GUEST_STREAM_H
#define FERRY_GUEST_STREAM_H

#include "work.h"

/* Starts the two processes at its ends. Returns 0 or -1. */
int stream_start(struct work_counters *counters, uint64_t rate);

#endif
