/*
 * The door of the API on TCP: accepts connections, waits for the first byte of each, which tells whether the
 * client speaks TLS, and hands them on. Somebody who says nothing is dropped, the oldest first when there are
 * too many.
 *
 * Runs on the loop; all functions are for its thread, or for before and after it runs.
 */
#ifndef FERRY_HOST_DOOR_H
#define FERRY_HOST_DOOR_H

#include "base/loop.h"

#include <ferry/error.h>

#include <stdbool.h>

struct door;

/* A connection, FD being the function's now; its first byte has come and was not taken. */
typedef void door_function(void *opaque, int fd, bool tls);

/* LISTEN_FD is taken over, also on failure. Who says nothing for PATIENCE_NS is dropped. */
int door_open(struct door **out, struct loop *loop, int listen_fd, uint64_t patience_ns,
              door_function *function, void *opaque, struct ferry_error *err);
void door_close(struct door *door); /* NULL allowed */

#endif
