/*
 * JSON-RPC 2.0 over a stream socket, one message a line (newline-delimited JSON), both sides of it.
 *
 * Server: runs on a `struct loop`; any number of clients; a request is handed to the handler, which answers
 * at once or keeps the request and answers later from the loop's thread. Notifications go to every client
 * that subscribed (method "subscribe"). A line longer than JSONRPC_LINE_MAX, bad JSON or a bad request gets a
 * JSON-RPC error; a client that does not read loses its connection once JSONRPC_BACKLOG_MAX bytes wait for
 * it. Nothing a client sends can end the process.
 *
 * Client: blocking call with a deadline, notifications delivered to a callback; see jsonrpc_client_*.
 */
#ifndef FERRY_BASE_JSONRPC_H
#define FERRY_BASE_JSONRPC_H

#include "base/loop.h"

#include <jansson.h>

#define JSONRPC_LINE_MAX    (1024 * 1024)
#define JSONRPC_BACKLOG_MAX (8 * 1024 * 1024)
/* Requests of one client that wait for their answers; more are refused. */
#define JSONRPC_REQUESTS_MAX 256

/* Error codes: the standard's (-32700 parse error, -32600, -32601, -32602, -32603) and: */
#define JSONRPC_FAILED 1 /* the method failed; message says why; data.errno is the positive errno */

struct jsonrpc_server;
struct jsonrpc_request; /* one request awaiting its answer; consumed by jsonrpc_answer or jsonrpc_fail */

/* Called on the loop's thread. PARAMS is borrowed and is always an object (empty when absent). */
typedef void jsonrpc_handler(void *opaque, struct jsonrpc_request *request, const char *method,
                             json_t *params);

int jsonrpc_server_new(struct jsonrpc_server **out, struct loop *loop, int listen_fd,
                       jsonrpc_handler *handler, void *opaque,
                       struct ferry_error *err); /* takes listen_fd over, on failure too */
/* Not from a handler. Requests still unanswered stay the handler's to answer or fail, which then only frees
 * them. NULL allowed. */
void jsonrpc_server_free(struct jsonrpc_server *server);
void jsonrpc_answer(struct jsonrpc_request *request, json_t *result); /* steals result; loop thread */
/* JSONRPC_FAILED with err's words and errno; -ENOSYS becomes -32601, "method not found". Loop thread. */
void jsonrpc_fail(struct jsonrpc_request *request, const struct ferry_error *err);
/* Sends {"method": METHOD, "params": PARAMS} to subscribers. Steals params. Loop thread (use loop_post
 * elsewhere). */
void jsonrpc_notify(struct jsonrpc_server *server, const char *method, json_t *params);

struct jsonrpc_client;
typedef void jsonrpc_listener(void *opaque, const char *method,
                              json_t *params); /* params borrowed; NULL method: the
                                                  connection ended, last call */

/* Connects and starts a reader thread (name THREAD_NAME) that delivers notifications and answers. */
int jsonrpc_client_connect(struct jsonrpc_client **out, const char *socket_path, const char *thread_name,
                           uint64_t deadline, jsonrpc_listener *listener, void *opaque,
                           struct ferry_error *err);
/* Any thread but the listener's. Steals params (NULL for none). The other side's words and errno come back in
 * err. *result is the caller's to json_decref; may be NULL if not wanted. */
int jsonrpc_client_call(struct jsonrpc_client *client, const char *method, json_t *params, uint64_t deadline,
                        json_t **result, struct ferry_error *err);
/* Ends the reader thread and frees, once no call is in progress. Not from the listener, which is not told.
 * NULL allowed. */
void jsonrpc_client_free(struct jsonrpc_client *client);

#endif
