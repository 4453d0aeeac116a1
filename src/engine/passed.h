/*
 * Passing guest memory to the other side instead of copying it: both are processes of one machine, and the
 * control connection is a Unix socket by which the memory's descriptors go. Takes the place of the page
 * connections and of pre-copy; the switchover is the same.
 *
 * Session thread only. All failures are recorded in the session.
 */
#ifndef FERRY_ENGINE_PASSED_H
#define FERRY_ENGINE_PASSED_H

#include "engine/destination.h"
#include "engine/source.h"

/* Either side, once connected: the other one must be a process of the same user, on this machine. */
int passed_check_peer(struct ferry_session *session, int fd, struct ferry_error *err);

/* Source, after START: returns when the destination has mapped the memory. */
int passed_send(struct source *source, struct ferry_error *err);
/* Source, in the place of precopy_run: there is nothing to do. */
int passed_run(struct source *source, struct ferry_error *err);

/* Destination, after START: the guest has adopted the memory when it returns. */
int passed_take(struct destination *destination, struct ferry_error *err);

#endif
