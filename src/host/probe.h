/*
 * Measuring the way to another host before anything moves: libferry's probe, one end in each ferryd. The end
 * that receives waits on a thread of its own; one at a time, so that nobody can have a host's memory by
 * asking often.
 */
#ifndef FERRY_HOST_PROBE_H
#define FERRY_HOST_PROBE_H

#include "host/host.h"

#include <ferry/ferry.h>

#define PROBE_SIZE (64u << 20)

/* The receiving end of this host. probe_free waits for the one in progress: seconds at most. NULL allowed. */
struct probe_door *probe_new(void);
void probe_free(struct probe_door *door);

/* POST /v1/probe: {address, token, tls} once somebody waits there for SOURCE; encrypted if TLS is set and
 * this host has a certificate. */
int probe_receive(struct host *host, const char *id, const char *source, bool tls, json_t **answer,
                  struct ferry_error *err);
/* Measures the way to the host NAME at ADDRESS, over STREAMS connections (0: default). Blocks. */
int probe_send(struct host *host, const char *name, const char *address, unsigned streams,
               struct ferry_progress *report, struct ferry_error *err);

#endif
