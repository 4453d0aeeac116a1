#include "host/api.h"
#include "host/api_server.h"

#include "base/buffer.h"
#include "base/error.h"
#include "base/sock.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define STREAM_BLOCK_SIZE   (16u << 10)
#define REQUEST_SWALLOW_MAX (8u << 20) /* of a body that is too large before the connection is cut */

/* A request while it arrives. */
struct arrival {
    struct buffer body;
    size_t swallowed;
    bool too_large;
};

static const struct api_route routes[] = {
    {"GET", "/v1/host", api_host_show},
    {"POST", "/v1/host/migration", api_host_migration},
    {"POST", "/v1/host/certificate", api_host_certificate},
    {"POST", "/v1/host/baseline", api_host_baseline},
    {"GET", "/v1/cluster/baseline", api_cluster_baseline},
    {"POST", "/v1/cluster/baseline", api_cluster_baseline_set},
    {"GET", "/v1/cluster/baseline/compute", api_cluster_baseline_compute},
    {"GET", "/v1/hosts", api_hosts_list},
    {"POST", "/v1/hosts", api_hosts_add},
    {"DELETE", "/v1/hosts/*", api_hosts_remove},
    {"GET", "/v1/vms", api_vms_list},
    {"POST", "/v1/vms", api_vms_create},
    {"GET", "/v1/vms/*", api_vm_show},
    {"DELETE", "/v1/vms/*", api_vm_remove},
    {"POST", "/v1/vms/*/start", api_vm_start},
    {"POST", "/v1/vms/*/pause", api_vm_pause},
    {"POST", "/v1/vms/*/unpause", api_vm_unpause},
    {"POST", "/v1/vms/*/stop", api_vm_stop},
    {"POST", "/v1/vms/*/kill", api_vm_kill},
    {"POST", "/v1/vms/*/runnable", api_vm_runnable},
    {"POST", "/v1/vms/*/recover", api_vm_recover},
    {"POST", "/v1/vms/*/migrate", api_vm_migrate},
    {"POST", "/v1/vms/*/upgrade", api_vm_upgrade},
    {"POST", "/v1/vms/*/check", api_vm_check},
    {"POST", "/v1/probe", api_probe},
    {"GET", "/v1/vms/*/console", api_console},
    {"GET", "/v1/vms/*/console/log", api_console_log},
    {"GET", "/v1/vms/*/log", api_vm_log},
    {"POST", "/v1/vms/*/checkpoint", api_vm_checkpoint},
    {"POST", "/v1/vms/*/resumed", api_vm_resumed},
    {"POST", "/v1/resume", api_resume},
    {"GET", "/v1/checkpoints", api_checkpoints_list},
    {"GET", "/v1/checkpoints/*", api_checkpoint_show},
    {"GET", "/v1/checkpoints/*/watch", api_checkpoint_watch},
    {"POST", "/v1/checkpoints/*/cancel", api_checkpoint_cancel},
    {"GET", "/v1/migrations", api_migrations_list},
    {"GET", "/v1/migrations/statistics", api_migrations_statistics},
    {"GET", "/v1/migrations/*", api_migration_show},
    {"GET", "/v1/migrations/*/watch", api_migration_watch},
    {"POST", "/v1/migrations/*/cancel", api_migration_cancel},
    {"POST", "/v1/migrations/*/end", api_migration_end},
    {"POST", "/v1/migrations/*/reconnect", api_migration_reconnect},
    {"GET", "/v1/migrations/*/disks/*", api_migration_disk},
    {"GET", "/v1/migrations/*/file", api_migration_file},
    {"POST", "/v1/migrations/*/copied", api_migration_copied},
    {"GET", "/v1/events", api_events},
    {"POST", "/v1/events", api_events_take},
    {"POST", "/v1/incoming", api_incoming},
    {"DELETE", "/v1/incoming/*", api_incoming_withdraw},
    {"POST", "/v1/incoming/*/take", api_incoming_take},
};

/* --- error classes --- */

static const struct error_class {
    const char *name;
    unsigned status;
    int code; /* what comes back from another host as this class */
} error_classes[] = {
    {"usage", MHD_HTTP_BAD_REQUEST, HOST_USAGE},
    {"not_found", MHD_HTTP_NOT_FOUND, HOST_NOT_FOUND},
    {"conflict", MHD_HTTP_CONFLICT, HOST_CONFLICT},
    {"refused", MHD_HTTP_UNPROCESSABLE_CONTENT, HOST_REFUSED},
    {"unreachable", MHD_HTTP_BAD_GATEWAY, HOST_UNREACHABLE},
    {"failed", MHD_HTTP_INTERNAL_SERVER_ERROR, -EIO},
};

#define ERROR_CLASSES (sizeof(error_classes) / sizeof(error_classes[0]))

static const struct error_class *class_of(int code)
{
    if (code == -EBUSY || code == -EADDRINUSE || code == -EALREADY)
        code = HOST_CONFLICT;
    for (size_t i = 0; i < ERROR_CLASSES; i++) {
        if (error_classes[i].code == code)
            return &error_classes[i];
    }
    return &error_classes[ERROR_CLASSES - 1];
}

int api_class_code(const char *class_name)
{
    for (size_t i = 0; i < ERROR_CLASSES; i++) {
        if (strcmp(error_classes[i].name, class_name) == 0)
            return error_classes[i].code;
    }
    return -EIO;
}

/* --- answers --- */

int api_answer(struct api_request *request, unsigned status, json_t *object)
{
    char *text = object ? json_dumps(object, JSON_COMPACT) : NULL;

    json_decref(object);
    if (!text)
        return error_set(&request->err, -ENOMEM, "out of memory");
    request->response = MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_MUST_FREE);
    if (!request->response) {
        free(text);
        return error_set(&request->err, -ENOMEM, "out of memory");
    }
    MHD_add_response_header(request->response, "Content-Type", "application/json");
    request->status = status;
    return 0;
}

int api_answer_empty(struct api_request *request)
{
    request->response = MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    request->status = MHD_HTTP_NO_CONTENT;
    return request->response ? 0 : error_set(&request->err, -ENOMEM, "out of memory");
}

static void answer_error(struct api_request *request, int code)
{
    const struct error_class *class = class_of(code);
    json_t *object =
        json_pack("{s:{s:s, s:o}}", "error", "class", class->name, "message", fields_text(request->err.text));

    api_answer(request, class->status, object);
}

struct stream {
    api_fill *fill;
    void *opaque;
    void (*free_opaque)(void *opaque);
};

static ssize_t stream_read(void *opaque, uint64_t position, char *buffer, size_t size)
{
    struct stream *stream = opaque;
    size_t filled = stream->fill(stream->opaque, buffer, size);

    (void)position;
    return filled ? (ssize_t)filled : MHD_CONTENT_READER_END_OF_STREAM;
}

static void stream_free(void *opaque)
{
    struct stream *stream = opaque;

    if (stream->free_opaque)
        stream->free_opaque(stream->opaque);
    free(stream);
}

int api_answer_stream(struct api_request *request, const char *content_type, api_fill *fill, void *opaque,
                      void (*free_opaque)(void *opaque))
{
    struct stream *stream = calloc(1, sizeof(*stream));

    if (!stream) {
        if (free_opaque)
            free_opaque(opaque);
        return error_set(&request->err, -ENOMEM, "out of memory");
    }
    *stream = (struct stream){fill, opaque, free_opaque};
    request->response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK_SIZE, stream_read,
                                                          stream, stream_free);
    if (!request->response) {
        stream_free(stream);
        return error_set(&request->err, -ENOMEM, "out of memory");
    }
    MHD_add_response_header(request->response, "Content-Type", content_type);
    MHD_set_connection_option(request->connection, MHD_CONNECTION_OPTION_TIMEOUT, 0u);
    request->status = MHD_HTTP_OK;
    return 0;
}

/* --- what handlers ask of a request --- */

const char *api_query(struct api_request *request, const char *key)
{
    return MHD_lookup_connection_value(request->connection, MHD_GET_ARGUMENT_KIND, key);
}

int api_query_bool(struct api_request *request, const char *key, bool *value)
{
    const char *text = api_query(request, key);

    if (text && strcmp(text, "0") != 0 && strcmp(text, "1") != 0)
        return error_set(&request->err, HOST_USAGE, "?%s= is 0 or 1, not \"%.32s\"", key, text);
    *value = text && text[0] == '1';
    return 0;
}

int api_query_uint(struct api_request *request, const char *key, uint64_t *value)
{
    const char *text = api_query(request, key);

    *value = 0;
    if (!text)
        return 0;
    if (!text[0] || strlen(text) > 18 || strspn(text, "0123456789") != strlen(text))
        return error_set(&request->err, HOST_USAGE, "?%s= is a number, not \"%.32s\"", key, text);
    *value = strtoull(text, NULL, 10);
    return 0;
}

int api_client_fd(struct api_request *request)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(request->connection, MHD_CONNECTION_INFO_CONNECTION_FD);

    return info ? info->connect_fd : -1;
}

void api_bear_with_reader(struct api_request *request)
{
    int fd = api_client_fd(request);
    unsigned none = 0;

    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &none, sizeof(none)); /* fails on a Unix socket */
}

bool api_client_gone(int client_fd)
{
    struct pollfd client = {.fd = client_fd, .events = POLLRDHUP};

    return poll(&client, 1, 0) == 1;
}

int api_read_body(struct api_request *request, const struct field *fields, size_t count)
{
    return fields_read(request->body, fields, count, FIELDS_STRICT, "the request", &request->err);
}

/* --- routing --- */

/* Whether PATH has the segments of PATTERN. */
static bool match(const char *pattern, const char *path, char arguments[API_ARGUMENTS_MAX][API_SEGMENT_SIZE])
{
    size_t used = 0;

    while (*pattern == '/' && *path == '/') {
        size_t wanted = strcspn(++pattern, "/");
        size_t length = strcspn(++path, "/");

        if (wanted == 1 && *pattern == '*') {
            if (length == 0 || length >= API_SEGMENT_SIZE || used == API_ARGUMENTS_MAX)
                return false;
            memcpy(arguments[used], path, length);
            arguments[used++][length] = '\0';
        } else if (length != wanted || strncmp(pattern, path, length) != 0) {
            return false;
        }
        pattern += wanted;
        path += length;
    }
    return !*pattern && !*path;
}

enum api_match api_match_route(const struct api_route *table, size_t count, const char *method,
                               const char *path, const struct api_route **route,
                               char arguments[API_ARGUMENTS_MAX][API_SEGMENT_SIZE])
{
    enum api_match result = API_MATCH_NO_PATH;

    for (size_t i = 0; i < count; i++) {
        if (!match(table[i].pattern, path, arguments))
            continue;
        *route = &table[i];
        if (strcmp(table[i].method, method) == 0)
            return API_MATCH_FOUND;
        result = API_MATCH_NO_METHOD;
    }
    return result;
}

/* --- the door --- */

/* Host: an address or localhost. A name would mean that a web page's own name was bent to our address. */
static bool host_header_allowed(const char *value)
{
    char name[256];
    unsigned char binary[16];
    size_t length = strlen(value);
    char *colon;

    if (length == 0 || length >= sizeof(name))
        return false;
    memcpy(name, value, length + 1);
    if (name[0] == '[') {
        char *end = strchr(name, ']');

        if (!end)
            return false;
        *end = '\0';
        return inet_pton(AF_INET6, name + 1, binary) == 1;
    }
    colon = strchr(name, ':');
    if (colon)
        *colon = '\0';
    return strcmp(name, "localhost") == 0 || inet_pton(AF_INET, name, binary) == 1;
}

static const char *header(struct api_request *request, const char *name)
{
    return MHD_lookup_connection_value(request->connection, MHD_HEADER_KIND, name);
}

static int check_door(struct api_request *request, const struct api_listener *listener)
{
    const char *host_name = header(request, "Host");
    int result = api_check_client(request);

    if (result < 0)
        return result;
    if (header(request, "Origin"))
        return error_set(&request->err, HOST_USAGE,
                         "requests with an Origin header are refused: a web page must not command a host");
    if (listener->tcp && host_name && !host_header_allowed(host_name))
        return error_set(&request->err, HOST_USAGE,
                         "the Host header must hold an address, not a name (\"%.64s\")", host_name);
    return 0;
}

static int take_body(struct api_request *request, const struct arrival *arrival)
{
    const char *type = header(request, "Content-Type");

    if (arrival->too_large || buffer_failed(&arrival->body))
        return error_set(&request->err, HOST_USAGE, "the body is larger than %u bytes", API_BODY_MAX);
    if (arrival->body.size == 0) {
        request->body = json_object();
        return 0;
    }
    if (!type || strncasecmp(type, "application/json", 16) != 0 || (type[16] && !strchr("; \t", type[16])))
        return error_set(&request->err, HOST_USAGE, "a body needs Content-Type: application/json");
    request->body =
        fields_parse((const char *)arrival->body.data, arrival->body.size, "the body", &request->err);
    if (!request->body)
        return HOST_USAGE;
    if (!json_is_object(request->body))
        return error_set(&request->err, HOST_USAGE, "the body is not a JSON object");
    return 0;
}

static int dispatch(struct api_request *request, const char *method, const char *path)
{
    const struct api_route *route = NULL;

    switch (api_match_route(routes, sizeof(routes) / sizeof(routes[0]), method, path, &route,
                            request->arguments)) {
    case API_MATCH_NO_PATH:
        return error_set(&request->err, HOST_NOT_FOUND, "there is nothing at %.128s", path);
    case API_MATCH_NO_METHOD:
        return error_set(&request->err, HOST_USAGE, "%.16s is not possible on %.128s", method, path);
    case API_MATCH_FOUND:
        break;
    }
    return route->handler(request);
}

static enum MHD_Result send_answer(struct api_request *request, int result)
{
    enum MHD_Result queued = MHD_NO;

    if (result < 0)
        answer_error(request, result);
    if (request->response) {
        queued = MHD_queue_response(request->connection, request->status, request->response);
        MHD_destroy_response(request->response);
    }
    json_decref(request->body);
    return queued;
}

/*
 * First call of a request: only headers are there. What is refused now need not send its body; a client that
 * is in the midst of sending it may not see why, so bodies that are only a little too large are swallowed
 * first.
 */
static enum MHD_Result begin(struct api_request *request, const struct api_listener *listener, void **state)
{
    const char *length = header(request, "Content-Length");
    int result = check_door(request, listener);

    if (result == 0 && length && strtoull(length, NULL, 10) > REQUEST_SWALLOW_MAX)
        result = error_set(&request->err, HOST_USAGE, "the body is larger than %u bytes", API_BODY_MAX);
    if (result < 0)
        return send_answer(request, result);
    *state = calloc(1, sizeof(struct arrival));
    return *state ? MHD_YES : MHD_NO;
}

enum MHD_Result api_handle(void *opaque, struct MHD_Connection *connection, const char *url,
                           const char *method, const char *version, const char *data, size_t *size,
                           void **state)
{
    struct api_listener *listener = opaque;
    struct api_request request = {.host = listener->host, .connection = connection, .listener = listener};
    struct arrival *arrival = *state;
    int result;

    (void)version;
    if (!arrival)
        return begin(&request, listener, state);
    if (*size > 0) {
        arrival->swallowed += *size;
        if (arrival->body.size + *size > API_BODY_MAX)
            arrival->too_large = true;
        else
            buffer_put(&arrival->body, data, *size);
        *size = 0;
        return arrival->swallowed > REQUEST_SWALLOW_MAX ? MHD_NO : MHD_YES;
    }
    api_being_served(listener, connection, true);
    result = take_body(&request, arrival);
    if (result == 0)
        result = dispatch(&request, method, url);
    return send_answer(&request, result);
}

void api_completed(void *opaque, struct MHD_Connection *connection, void **state,
                   enum MHD_RequestTerminationCode code)
{
    struct arrival *arrival = *state;

    (void)code;
    if (!arrival)
        return;
    api_being_served(opaque, connection, false);
    buffer_free(&arrival->body);
    free(arrival);
    *state = NULL;
}
