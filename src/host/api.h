/*
 * The REST API (docs/API.md): HTTP served by libmicrohttpd on the Unix socket STATE_DIR/ferryd.sock and, when
 * asked for, on TCP. One thread a connection, so handlers may block.
 *
 * A request is taken in whole (at most 1 MiB of body), refused at the door when it cannot be meant for us (an
 * Origin header, a Host that is a name, another content type, JSON nested too deep), then handed to the one
 * row of the routing table (api.c) that its path and method match. Handlers live in api_*.c; each answers by
 * one of the api_answer functions, or returns a negative code with request->err filled in, which becomes
 * {"error": {"class", "message"}} with the HTTP status of the class.
 */
#ifndef FERRY_HOST_API_H
#define FERRY_HOST_API_H

#include "host/fields.h"
#include "host/host.h"

#include <microhttpd.h>

#define API_BODY_MAX      (1u << 20)
#define API_ARGUMENTS_MAX 2
#define API_SEGMENT_SIZE  128

struct api_listener;

struct api_request {
    struct host *host;
    struct MHD_Connection *connection;
    char arguments[API_ARGUMENTS_MAX][API_SEGMENT_SIZE]; /* what the pattern's '*' matched */
    json_t *body;                                        /* an object; empty when there was none */
    const struct api_listener *listener;                 /* by which it came */
    struct ferry_error err;

    /* set by api_answer_* */
    struct MHD_Response *response;
    unsigned status;
};

typedef int api_handler(struct api_request *request);

/* 0. Steals object. */
int api_answer(struct api_request *request, unsigned status, json_t *object);
int api_answer_empty(struct api_request *request); /* 204 */

/*
 * A body that is made bit by bit. FILL is called on the connection's thread until it returns 0 bytes (end);
 * it may block, but must come back with 0 when the host stops or api_client_gone. OPAQUE goes to FREE_OPAQUE
 * at the end, whatever happened.
 */
typedef size_t api_fill(void *opaque, char *buffer, size_t size);
int api_answer_stream(struct api_request *request, const char *content_type, api_fill *fill, void *opaque,
                      void (*free_opaque)(void *opaque));

/*
 * An object that changes, one JSON line a change. WATCH waits for a newer one than *seen (which begins with
 * 0) until the deadline: *answer is the object, or NULL when nothing changed; *ended: it is the last one.
 */
typedef int api_watch(struct host *host, const char *id, unsigned *seen, uint64_t deadline, json_t **answer,
                      bool *ended, struct ferry_error *err);
int api_answer_watch(struct api_request *request, const char *id, api_watch *watch);

/* The reader of a stream may be a person who has stopped the pager: what is not taken for long does not end
 * the connection. A client that is gone without a word is noticed by keep-alive, or, while something is on
 * its way, after the kernel's own time. */
void api_bear_with_reader(struct api_request *request);

/* The value of ?KEY=, NULL when there is none. */
const char *api_query(struct api_request *request, const char *key);
/* ?KEY=0|1; -EINVAL for anything else. */
int api_query_bool(struct api_request *request, const char *key, bool *value);
int api_query_uint(struct api_request *request, const char *key, uint64_t *value);
/* Whether the client has closed its side. */
bool api_client_gone(int client_fd);
int api_client_fd(struct api_request *request);
/* Whether it came by the Unix socket. */
bool api_is_local(const struct api_request *request);
/* HOST_REFUSED when the client's certificate is not that of HOST, who he says he is. Without TLS there is
 * nothing to tell by: 0. */
int api_check_is(struct api_request *request, const char *host);
int api_read_body(struct api_request *request, const struct field *fields, size_t count);

/* The code (host.h) of an error class; -EIO for one that is not known. */
int api_class_code(const char *class_name);

/* "ADDR:PORT" as bound, or "" without TCP. */
const char *api_address(const struct host *host);

/* Opens the sockets, so that a taken address is known early; then serves. free: stops and waits. */
int api_listen(struct host *host, struct ferry_error *err);
int api_serve(struct host *host, struct ferry_error *err);
void api_free(struct host *host);
/* This host has another certificate: new connections use it. */
int api_renew(struct host *host, struct ferry_error *err);

/* The routing table, for api.c and its tests. */
enum api_match {
    API_MATCH_FOUND = 1,
    API_MATCH_NO_PATH,
    API_MATCH_NO_METHOD,
};

struct api_route {
    const char *method;
    const char *pattern; /* segments; "*" is any one */
    api_handler *handler;
};

enum api_match api_match_route(const struct api_route *routes, size_t count, const char *method,
                               const char *path, const struct api_route **route,
                               char arguments[API_ARGUMENTS_MAX][API_SEGMENT_SIZE]);

/* api_hosts.c */
api_handler api_host_show;
api_handler api_host_migration;
api_handler api_host_certificate;
api_handler api_hosts_list;
api_handler api_host_baseline;
api_handler api_cluster_baseline;
api_handler api_cluster_baseline_set;
api_handler api_cluster_baseline_compute;
api_handler api_hosts_add;
api_handler api_hosts_remove;
/* api_vms.c */
api_handler api_vms_list;
api_handler api_vms_create;
api_handler api_vm_show;
api_handler api_vm_start;
api_handler api_vm_pause;
api_handler api_vm_unpause;
api_handler api_vm_stop;
api_handler api_vm_kill;
api_handler api_vm_remove;
api_handler api_vm_runnable;
api_handler api_vm_recover;
/* api_console.c */
api_handler api_console;
api_handler api_console_log;
api_handler api_vm_log;
/* api_migrations.c */
api_handler api_vm_migrate;
api_handler api_vm_upgrade;
api_handler api_vm_check;
api_handler api_probe;
api_handler api_migrations_list;
api_handler api_migrations_statistics;
api_handler api_migration_show;
api_handler api_migration_watch;
api_handler api_migration_cancel;
api_handler api_migration_end;
api_handler api_migration_reconnect;
api_handler api_migration_disk;
api_handler api_migration_file;
api_handler api_migration_copied;
api_handler api_incoming;
api_handler api_incoming_withdraw;
api_handler api_incoming_take;
/* api_checkpoints.c */
api_handler api_vm_checkpoint;
api_handler api_checkpoints_list;
api_handler api_checkpoint_show;
api_handler api_checkpoint_watch;
api_handler api_checkpoint_cancel;
api_handler api_resume;
api_handler api_vm_resumed;
/* api_events.c */
api_handler api_events;
api_handler api_events_take;

#endif
