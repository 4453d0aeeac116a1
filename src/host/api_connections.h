/*
 * The connections to the API by TCP: how many there may be, and how long a request may take to arrive. Who
 * sends a byte now and then, or stops in the middle of the TLS handshake, has no thread for longer than that,
 * and nobody alone has all of them.
 *
 *   admit ──▶ started ──▶ arriving ◀──▶ served ──▶ closed
 *
 * All functions are for any thread, but for new and free.
 */
#ifndef FERRY_HOST_API_CONNECTIONS_H
#define FERRY_HOST_API_CONNECTIONS_H

#include "base/loop.h"

#include <ferry/error.h>

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define CONNECTIONS_MAX            256
#define CONNECTIONS_MAX_AN_ADDRESS 128

struct api_connections;
struct api_connection;

/* A connection that lets no whole request arrive for PATIENCE_NS is cut, at the latest half as long after. */
int api_connections_new(struct api_connections **out, struct loop *loop, uint64_t patience_ns,
                        struct ferry_error *err);
/* All of them are closed. The loop does not run. NULL allowed. */
void api_connections_free(struct api_connections *connections);

/* Whether FD, from ADDRESS, may have a place; on the loop's thread. It has it until closed or dropped. */
bool api_connections_admit(struct api_connections *connections, int fd,
                           const struct sockaddr_storage *address);
/* It was not started after all. */
void api_connections_drop(struct api_connections *connections, int fd);

/* From now on FD is open until api_connection_closed has returned. NULL: it was not admitted. */
struct api_connection *api_connection_started(struct api_connections *connections, int fd);
/* A request has arrived as a whole, or its answer has been sent. NULL allowed, as in the next. */
void api_connection_served(struct api_connections *connections, struct api_connection *connection,
                           bool being_served);
void api_connection_closed(struct api_connections *connections, struct api_connection *connection);

#endif
