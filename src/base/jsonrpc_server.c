#include "base/jsonrpc.h"

#include "base/buffer.h"
#include "base/clock.h"
#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHUNK_SIZE      (64 * 1024)
#define ACCEPT_PAUSE_NS (100 * NS_PER_MS) /* when descriptors or memory have run out */

enum standard_error {
    PARSE_ERROR = -32700,
    INVALID_REQUEST = -32600,
    METHOD_NOT_FOUND = -32601,
    INVALID_PARAMS = -32602,
    INTERNAL_ERROR = -32603,
};

struct jsonrpc_request {
    struct rpc_peer *peer; /* NULL once the client, or the server, is gone */
    struct jsonrpc_request *next;
    struct jsonrpc_request *previous;
    json_t *id; /* NULL: a notification, nobody waits for an answer */
};

/* One connected client. */
struct rpc_peer {
    struct jsonrpc_server *server;
    struct rpc_peer *next;
    struct rpc_peer *previous;
    int fd;
    struct loop_watch *watch;
    unsigned events; /* that the watch has */
    struct buffer in;
    struct buffer out;
    size_t out_sent; /* bytes of `out` that are gone already */
    struct jsonrpc_request *requests;
    unsigned request_count;
    bool subscribed;
    bool skipping;   /* inside a line that is too long, up to its newline */
    bool read_ended; /* the client closed its writing half; it may still wait for answers */
    bool closed;
    bool busy; /* being served further up the stack: freed there, not here */
};

struct jsonrpc_server {
    struct loop *loop;
    int listen_fd;
    struct loop_watch *watch;
    struct loop_timer *accept_timer;
    jsonrpc_handler *handler;
    void *opaque;
    struct rpc_peer *peers;
};

static void peer_close(struct rpc_peer *peer)
{
    struct jsonrpc_request *request = peer->requests;

    if (peer->closed)
        return;
    peer->closed = true;
    while (request) {
        struct jsonrpc_request *next = request->next;

        request->peer = NULL;
        request->next = NULL;
        request->previous = NULL;
        request = next;
    }
    peer->requests = NULL;
    loop_watch_remove(peer->watch);
    close(peer->fd);
    if (peer->previous)
        peer->previous->next = peer->next;
    else
        peer->server->peers = peer->next;
    if (peer->next)
        peer->next->previous = peer->previous;
    buffer_free(&peer->in);
    buffer_free(&peer->out);
    if (!peer->busy)
        free(peer);
}

static void peer_watch(struct rpc_peer *peer)
{
    unsigned events = (peer->read_ended ? 0u : LOOP_READ) | (peer->out.size ? LOOP_WRITE : 0u);

    if (events == peer->events)
        return;
    peer->events = events;
    if (loop_watch_set(peer->watch, events, NULL) < 0)
        peer_close(peer);
}

/* Sends what waits, as far as the client takes it. May close the peer. */
static void peer_flush(struct rpc_peer *peer)
{
    while (peer->out_sent < peer->out.size) {
        ssize_t sent = send(peer->fd, peer->out.data + peer->out_sent, peer->out.size - peer->out_sent,
                            MSG_DONTWAIT | MSG_NOSIGNAL);

        if (sent >= 0) {
            peer->out_sent += (size_t)sent;
        } else if (errno == EAGAIN) {
            break;
        } else if (errno != EINTR) {
            peer_close(peer);
            return;
        }
    }
    if (peer->out_sent == peer->out.size) {
        buffer_clear(&peer->out);
        peer->out_sent = 0;
    } else if (peer->out_sent > peer->out.size / 2) {
        peer->out.size -= peer->out_sent;
        memmove(peer->out.data, peer->out.data + peer->out_sent, peer->out.size);
        peer->out_sent = 0;
    }
    if (peer->out.size - peer->out_sent > JSONRPC_BACKLOG_MAX) {
        peer_close(peer);
        return;
    }
    if (peer->read_ended && !peer->out.size && !peer->requests) {
        peer_close(peer);
        return;
    }
    peer_watch(peer);
}

/* Steals the message. May close the peer. */
static void peer_send(struct rpc_peer *peer, json_t *message)
{
    char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;

    json_decref(message);
    if (text) {
        buffer_put(&peer->out, text, strlen(text));
        buffer_put_u8(&peer->out, '\n');
    }
    /* Out of memory: a client that misses an answer must not go on as if it were still to come. */
    if (!text || buffer_failed(&peer->out))
        peer_close(peer);
    else
        peer_flush(peer);
    free(text);
}

/* Text as JSON even when it is not UTF-8 (a file's name in a message). */
static json_t *json_words(const char *text)
{
    json_t *words = json_string(text);
    char copy[FERRY_ERROR_TEXT_SIZE];

    if (words)
        return words;
    snprintf(copy, sizeof(copy), "%s", text);
    for (char *at = copy; *at; at++) {
        if ((unsigned char)*at >= 0x80)
            *at = '?';
    }
    return json_string(copy);
}

/* Steals data; borrows id, NULL is sent as null. */
static void peer_send_error(struct rpc_peer *peer, json_t *id, int code, const char *text, json_t *data)
{
    json_t *error = json_pack("{s:i, s:o, s:o*}", "code", code, "message", json_words(text), "data", data);

    peer_send(peer, json_pack("{s:s, s:o, s:o}", "jsonrpc", "2.0", "error", error, "id",
                              id ? json_incref(id) : json_null()));
}

static void request_free(struct jsonrpc_request *request)
{
    struct rpc_peer *peer = request->peer;

    if (peer) {
        if (request->previous)
            request->previous->next = request->next;
        else
            peer->requests = request->next;
        if (request->next)
            request->next->previous = request->previous;
        peer->request_count--;
    }
    json_decref(request->id);
    free(request);
}

/* Takes the id out and frees the request. Returns the peer to answer, or NULL when nobody waits. */
static struct rpc_peer *request_finish(struct jsonrpc_request *request, json_t **id)
{
    struct rpc_peer *peer = request->peer;

    *id = request->id;
    request->id = NULL;
    request_free(request);
    if (!peer || *id)
        return peer;
    /* A notification: nothing to send, but it may have been the last thing this client was kept for. */
    peer_flush(peer);
    return NULL;
}

void jsonrpc_answer(struct jsonrpc_request *request, json_t *result)
{
    json_t *id;
    struct rpc_peer *peer = request_finish(request, &id);

    if (!peer) {
        json_decref(result);
        json_decref(id);
        return;
    }
    peer_send(peer, json_pack("{s:s, s:o, s:o}", "jsonrpc", "2.0", "result", result ? result : json_null(),
                              "id", id));
}

void jsonrpc_fail(struct jsonrpc_request *request, const struct ferry_error *err)
{
    json_t *id;
    struct rpc_peer *peer = request_finish(request, &id);

    if (peer && err->code == -ENOSYS)
        peer_send_error(peer, id, METHOD_NOT_FOUND, err->text, NULL);
    else if (peer)
        peer_send_error(peer, id, JSONRPC_FAILED, err->text, json_pack("{s:i}", "errno", -err->code));
    json_decref(id);
}

void jsonrpc_notify(struct jsonrpc_server *server, const char *method, json_t *params)
{
    struct rpc_peer *next;

    for (struct rpc_peer *peer = server->peers; peer; peer = next) {
        next = peer->next;
        if (peer->subscribed)
            peer_send(peer,
                      json_pack("{s:s, s:s, s:O}", "jsonrpc", "2.0", "method", method, "params", params));
    }
    json_decref(params);
}

static void peer_request(struct rpc_peer *peer, const char *method, json_t *params, json_t *id)
{
    struct jsonrpc_request *request;
    json_t *empty = NULL;

    if (strcmp(method, "subscribe") == 0) {
        peer->subscribed = true;
        if (id)
            peer_send(peer, json_pack("{s:s, s:b, s:O}", "jsonrpc", "2.0", "result", 1, "id", id));
        return;
    }
    if (peer->request_count >= JSONRPC_REQUESTS_MAX) {
        peer_send_error(peer, id, INTERNAL_ERROR, "too many requests of this connection are waiting", NULL);
        return;
    }
    request = calloc(1, sizeof(*request));
    if (!params)
        params = empty = json_object();
    if (!request || !params) {
        free(request);
        json_decref(empty);
        peer_send_error(peer, id, INTERNAL_ERROR, "out of memory", NULL);
        return;
    }
    request->peer = peer;
    request->id = json_incref(id);
    request->next = peer->requests;
    if (request->next)
        request->next->previous = request;
    peer->requests = request;
    peer->request_count++;
    peer->server->handler(peer->server->opaque, request, method, params);
    json_decref(empty);
}

/* Why this is not a request, or NULL. */
static const char *find_fault(const json_t *message)
{
    const char *version = json_string_value(json_object_get(message, "jsonrpc"));
    const json_t *id = json_object_get(message, "id");

    if (json_is_array(message))
        return "batches are not supported: send one request a line";
    if (!json_is_object(message))
        return "a request must be an object";
    if (!version || strcmp(version, "2.0") != 0)
        return "\"jsonrpc\" must be \"2.0\"";
    if (!json_is_string(json_object_get(message, "method")))
        return "\"method\" must be a string";
    if (id && !json_is_string(id) && !json_is_number(id) && !json_is_null(id))
        return "\"id\" must be a string, a number or null";
    return NULL;
}

static void peer_line(struct rpc_peer *peer, const char *line, size_t size)
{
    char text[FERRY_ERROR_TEXT_SIZE];
    json_error_t failure;
    json_t *message;
    json_t *id;
    json_t *params;
    const char *fault;

    while (size > 0 && (line[size - 1] == '\r' || line[size - 1] == ' ' || line[size - 1] == '\t'))
        size--;
    if (size == 0)
        return;
    message = json_loadb(line, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &failure);
    if (!message) {
        snprintf(text, sizeof(text), "not JSON: %s", failure.text);
        peer_send_error(peer, NULL, PARSE_ERROR, text, NULL);
        return;
    }
    id = json_object_get(message, "id");
    params = json_object_get(message, "params");
    fault = find_fault(message);
    if (fault)
        peer_send_error(peer, NULL, INVALID_REQUEST, fault, NULL);
    else if (params && !json_is_object(params))
        peer_send_error(peer, id, INVALID_PARAMS, "\"params\" must be an object", NULL);
    else
        peer_request(peer, json_string_value(json_object_get(message, "method")), params, id);
    json_decref(message);
}

static void refuse_long_line(struct rpc_peer *peer)
{
    char text[80];

    snprintf(text, sizeof(text), "the request is longer than %d bytes", JSONRPC_LINE_MAX);
    peer_send_error(peer, NULL, INVALID_REQUEST, text, NULL);
}

/* Serves the whole lines in `in`, of which everything before SEARCHED holds no newline. May close the peer.
 */
static void peer_lines(struct rpc_peer *peer, size_t searched)
{
    size_t start = 0;

    while (!peer->closed) {
        const char *data = (const char *)peer->in.data;
        const char *newline = memchr(data + searched, '\n', peer->in.size - searched);
        size_t size;

        if (!newline)
            break;
        size = (size_t)(newline - data) - start;
        if (peer->skipping)
            peer->skipping = false;
        else if (size > JSONRPC_LINE_MAX)
            refuse_long_line(peer);
        else
            peer_line(peer, data + start, size);
        start += size + 1;
        searched = start;
    }
    if (peer->closed)
        return;
    peer->in.size -= start;
    memmove(peer->in.data, peer->in.data + start, peer->in.size);
    if (peer->skipping) {
        peer->in.size = 0;
    } else if (peer->in.size > JSONRPC_LINE_MAX) {
        peer->skipping = true;
        buffer_free(&peer->in);
        refuse_long_line(peer);
    }
}

/* Reads once. Returns false when there is no more to be had for now, or ever. May close the peer. */
static bool peer_read(struct rpc_peer *peer)
{
    size_t before = peer->in.size;
    ssize_t got;

    if (!buffer_reserve(&peer->in, CHUNK_SIZE)) {
        peer_close(peer);
        return false;
    }
    got = recv(peer->fd, peer->in.data + before, CHUNK_SIZE, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    if (got < 0) {
        peer_close(peer);
        return false;
    }
    if (got == 0) {
        peer->read_ended = true;
        peer_flush(peer);
        return false;
    }
    peer->in.size += (size_t)got;
    peer_lines(peer, before);
    /* An idle client costs no buffer. */
    if (!peer->closed && peer->in.size == 0)
        buffer_free(&peer->in);
    return !peer->closed;
}

static void peer_event(void *opaque, unsigned events)
{
    struct rpc_peer *peer = opaque;

    peer->busy = true;
    if (events & LOOP_READ && !peer->read_ended) {
        /* Once a turn, so that no client starves the others; of one that hung up, all that it left. */
        while (peer_read(peer) && events & LOOP_HANGUP)
            ;
    }
    if (!peer->closed && events & LOOP_HANGUP)
        peer_close(peer);
    if (!peer->closed && events & LOOP_WRITE)
        peer_flush(peer);
    peer->busy = false;
    if (peer->closed)
        free(peer);
}

static void peer_new(struct jsonrpc_server *server, int fd)
{
    struct rpc_peer *peer = calloc(1, sizeof(*peer));

    if (!peer) {
        close(fd);
        return;
    }
    peer->server = server;
    peer->fd = fd;
    peer->events = LOOP_READ;
    if (loop_watch_add(server->loop, fd, LOOP_READ, peer_event, peer, &peer->watch, NULL) < 0) {
        close(fd);
        free(peer);
        return;
    }
    peer->next = server->peers;
    if (peer->next)
        peer->next->previous = peer;
    server->peers = peer;
}

static void accept_ready(void *opaque, unsigned events)
{
    struct jsonrpc_server *server = opaque;
    int fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd >= 0) {
        peer_new(server, fd);
        return;
    }
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        /* The connection stays in the backlog, ready: without a pause this would be called for ever. */
        loop_watch_set(server->watch, 0, NULL);
        loop_timer_arm(server->accept_timer, ACCEPT_PAUSE_NS);
    }
}

static void accept_again(void *opaque)
{
    struct jsonrpc_server *server = opaque;

    loop_watch_set(server->watch, LOOP_READ, NULL);
}

int jsonrpc_server_new(struct jsonrpc_server **out, struct loop *loop, int listen_fd,
                       jsonrpc_handler *handler, void *opaque, struct ferry_error *err)
{
    struct jsonrpc_server *server = calloc(1, sizeof(*server));
    int result;

    *out = NULL;
    if (!server) {
        close(listen_fd);
        return error_set(err, -ENOMEM, "out of memory while setting up a control socket");
    }
    server->loop = loop;
    server->listen_fd = listen_fd;
    server->handler = handler;
    server->opaque = opaque;
    result = loop_timer_add(loop, accept_again, server, &server->accept_timer, err);
    if (!result)
        result = loop_watch_add(loop, listen_fd, LOOP_READ, accept_ready, server, &server->watch, err);
    if (result) {
        jsonrpc_server_free(server);
        return result;
    }
    *out = server;
    return 0;
}

void jsonrpc_server_free(struct jsonrpc_server *server)
{
    if (!server)
        return;
    while (server->peers) {
        assert(!server->peers->busy); /* not from a handler */
        peer_close(server->peers);
    }
    loop_timer_remove(server->accept_timer);
    loop_watch_remove(server->watch);
    close(server->listen_fd);
    free(server);
}
