#include "host/probe.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/sock.h"
#include "base/thread.h"
#include "bus/memory_file.h"
#include "host/certificate.h"
#include "host/fields.h"
#include "host/migration.h"
#include "host/peers.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

struct probe_door {
    struct thread thread; /* joined by the next probe, or at the end */
    bool busy;            /* under the host's lock */
};

struct visitor {
    struct host *host;
    struct ferry_destination_options options;
};

static void visitor_free(struct visitor *visitor)
{
    close(visitor->options.listen_fd);
    credentials_unref(visitor->options.credentials);
    free(visitor);
}

/* Memory as guests' is: having it ready is a part of what is measured. */
static int receive_by_memory(const struct ferry_destination_options *options, struct ferry_error *err)
{
    int memory = memory_file_new("ferry-probe", PROBE_SIZE, 0, err);
    int result = memory < 0 ? memory : ferry_probe_receive(options, memory, PROBE_SIZE, err);

    if (memory >= 0)
        close(memory);
    return result;
}

static int send_by_memory(const struct ferry_source_options *options, struct ferry_progress *report,
                          struct ferry_error *err)
{
    int memory = memory_file_new("ferry-probe", PROBE_SIZE, 0, err);
    int result = memory < 0 ? memory : ferry_probe_send(options, memory, PROBE_SIZE, report, err);

    if (memory >= 0)
        close(memory);
    return result;
}

static void *receive(void *argument)
{
    struct visitor *visitor = argument;
    struct host *host = visitor->host;
    struct ferry_error err;

    if (receive_by_memory(&visitor->options, &err) < 0)
        log_info(host->log, "a measurement by host %s was not completed: %s", visitor->options.source,
                 err.text);
    visitor_free(visitor);
    host_lock(host);
    host->probe->busy = false;
    host_unlock(host);
    return NULL;
}

/* Where this host receives, and who may come; FERRY_TOKEN_SIZE bytes in hexadecimal. */
static json_t *invitation(const struct visitor *visitor, struct ferry_error *err)
{
    char address[SOCK_ADDRESS_SIZE];
    char token[2 * FERRY_TOKEN_SIZE + 1];

    if (sock_local_address(visitor->options.listen_fd, address, err) < 0)
        return NULL;
    for (size_t i = 0; i < FERRY_TOKEN_SIZE; i++)
        snprintf(token + 2 * i, 3, "%02x", visitor->options.token[i]);
    return json_pack("{s:s, s:s, s:b}", "address", address, "token", token, "tls",
                     visitor->options.credentials != NULL);
}

static int visitor_new(struct visitor **out, struct host *host, const char *id, const char *source, bool tls,
                       struct ferry_error *err)
{
    const char *at = host->config->migrate_address;
    char listen[SOCK_ADDRESS_SIZE + 8];
    struct visitor *visitor = calloc(1, sizeof(*visitor));
    struct ferry_destination_options *options;
    int result;

    if (!visitor)
        return error_set(err, -ENOMEM, "out of memory");
    visitor->host = host;
    options = &visitor->options;
    options->connect_timeout_ns = host->config->peer_timeout_ns;
    options->peer_timeout_ns = host->config->peer_timeout_ns;
    snprintf(options->migration_id, sizeof(options->migration_id), "%s", id);
    snprintf(options->source, sizeof(options->source), "%s", source);
    snprintf(options->destination, sizeof(options->destination), "%s", host->config->name);
    snprintf(listen, sizeof(listen), strchr(at, ':') ? "[%s]:0" : "%s:0", at);
    if (getrandom(options->token, FERRY_TOKEN_SIZE, 0) != FERRY_TOKEN_SIZE) {
        free(visitor);
        return error_set(err, -EIO, "cannot make a token: the kernel gives no random bytes");
    }
    options->listen_fd = sock_listen(listen, err);
    if (options->listen_fd < 0) {
        result = options->listen_fd;
        free(visitor);
        return result;
    }
    options->credentials = tls ? certificate_get(host) : NULL;
    *out = visitor;
    return 0;
}

static int take_door(struct host *host, struct ferry_error *err)
{
    int result = 0;

    host_lock(host);
    if (host->stopping || host->probe->busy)
        result = error_set(err, HOST_CONFLICT, "host %s %s", host->config->name,
                           host->stopping ? "is stopping" : "is being measured by another host; try again");
    else
        host->probe->busy = true;
    host_unlock(host);
    if (result == 0)
        thread_join(&host->probe->thread); /* it has let go of the door: this is short */
    return result;
}

int probe_receive(struct host *host, const char *id, const char *source, bool tls, json_t **answer,
                  struct ferry_error *err)
{
    struct visitor *visitor = NULL;
    int result = take_door(host, err);

    if (result < 0)
        return result;
    result = visitor_new(&visitor, host, id, source, tls, err);
    if (result == 0) {
        *answer = invitation(visitor, err);
        result = *answer ? thread_start(&host->probe->thread, THREAD_GENERAL, "probe", receive, visitor, err)
                         : err->code;
        if (result == 0)
            return 0;
        visitor_free(visitor);
        json_decref(*answer);
        *answer = NULL;
    }
    host_lock(host);
    host->probe->busy = false;
    host_unlock(host);
    return result;
}

struct probe_door *probe_new(void)
{
    return calloc(1, sizeof(struct probe_door));
}

void probe_free(struct probe_door *door)
{
    if (door)
        thread_join(&door->thread);
    free(door);
}

static int take_invitation(const json_t *answer, struct ferry_source_options *options, bool *tls,
                           struct ferry_error *err)
{
    const char *address = NULL;
    const char *token = NULL;
    const struct field fields[] = {
        {"address", FIELD_STRING, true, &address},
        {"token", FIELD_STRING, true, &token},
        {"tls", FIELD_BOOL, false, tls},
    };
    int result = fields_read(answer, fields, 3, FIELDS_LOOSE, "the answer of the destination", err);

    if (result == 0 &&
        (strlen(token) != 2 * FERRY_TOKEN_SIZE || strspn(token, "0123456789abcdef") != 2 * FERRY_TOKEN_SIZE ||
         strlen(address) >= sizeof(options->address)))
        result = error_set(err, -EBADMSG, "malformed address or token");
    if (result < 0)
        return error_prefix(err, HOST_UNREACHABLE, "host %s makes no sense", options->destination);
    memcpy(options->address, address, strlen(address) + 1);
    for (size_t i = 0; i < FERRY_TOKEN_SIZE; i++) {
        char digits[3] = {token[2 * i], token[2 * i + 1], 0};

        options->token[i] = (uint8_t)strtoul(digits, NULL, 16);
    }
    return 0;
}

int probe_send(struct host *host, const char *name, const char *address, unsigned streams,
               struct ferry_progress *report, struct ferry_error *err)
{
    struct ferry_source_options options = {.streams = streams,
                                           .peer_timeout_ns = host->config->peer_timeout_ns};
    struct ferry_credentials *credentials = certificate_get(host);
    json_t *answer = NULL;
    json_t *body;
    bool tls = false;
    int result = migration_make_id(options.migration_id, err);

    if (result < 0) {
        credentials_unref(credentials);
        return result;
    }
    snprintf(options.source, sizeof(options.source), "%s", host->config->name);
    snprintf(options.destination, sizeof(options.destination), "%s", name);
    body = json_pack("{s:s, s:s, s:b}", "id", options.migration_id, "source", options.source, "tls",
                     credentials != NULL);
    result = peer_call(host, address, "POST", "/v1/probe", body, PEER_PROMPT, &answer, err);
    json_decref(body);
    if (result == 0)
        result = take_invitation(answer, &options, &tls, err);
    json_decref(answer);
    /* Made up, and so no secret; but encrypting takes time, as it will when a guest moves. */
    options.credentials = tls ? credentials : NULL;
    if (result == 0)
        result = send_by_memory(&options, report, err);
    credentials_unref(credentials);
    return result < 0 ? error_prefix(err, result, "the way to host %s cannot be measured", name) : 0;
}
