#include "base/jsonrpc.h"

#include "base/buffer.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/sock.h"
#include "base/thread.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHUNK_SIZE (64 * 1024)

/* A call that waits for its answer; lives on the caller's stack. */
struct pending_call {
    struct pending_call *next;
    json_int_t id;
    json_t *answer; /* the whole response, owned; NULL: not yet */
};

struct jsonrpc_client {
    int fd;
    int cancel_fd; /* eventfd: readable when the client is being freed */
    struct thread reader;
    jsonrpc_listener *listener;
    void *opaque;

    pthread_mutex_t lock;   /* guards the rest */
    pthread_cond_t changed; /* an answer came, the connection ended, or `writing` became false */
    struct pending_call *calls;
    json_int_t last_id;
    bool writing; /* one thread is sending its line; the others wait their turn */
    bool ended;
};

/* The connection is of no more use: every caller is told. */
static void client_end(struct jsonrpc_client *client)
{
    pthread_mutex_lock(&client->lock);
    client->ended = true;
    pthread_cond_broadcast(&client->changed);
    pthread_mutex_unlock(&client->lock);
}

/* Steals the response. Nobody may be waiting for it any more; then it is dropped. */
static void deliver_answer(struct jsonrpc_client *client, json_t *response)
{
    const json_t *id = json_object_get(response, "id");

    pthread_mutex_lock(&client->lock);
    for (struct pending_call *call = client->calls; call && json_is_integer(id); call = call->next) {
        if (call->id == json_integer_value(id) && !call->answer) {
            call->answer = response;
            response = NULL;
            pthread_cond_broadcast(&client->changed);
            break;
        }
    }
    pthread_mutex_unlock(&client->lock);
    json_decref(response);
}

/* False when the server does not speak JSON-RPC. */
static bool client_line(struct jsonrpc_client *client, const char *line, size_t size)
{
    json_t *message = json_loadb(line, size, 0, NULL);
    const char *method = json_string_value(json_object_get(message, "method"));

    if (!json_is_object(message)) {
        json_decref(message);
        return false;
    }
    if (!method) {
        deliver_answer(client, message);
        return true;
    }
    if (client->listener) {
        json_t *params = json_object_get(message, "params");
        json_t *empty = params ? NULL : json_object();

        client->listener(client->opaque, method, params ? params : empty);
        json_decref(empty);
    }
    json_decref(message);
    return true;
}

/* Handles the whole lines in IN, of which everything before SEARCHED holds no newline. */
static bool client_lines(struct jsonrpc_client *client, struct buffer *in, size_t searched)
{
    size_t start = 0;

    for (;;) {
        const char *data = (const char *)in->data;
        const char *newline = memchr(data + searched, '\n', in->size - searched);
        size_t size;

        if (!newline)
            break;
        size = (size_t)(newline - data) - start;
        if (size > 0 && !client_line(client, data + start, size))
            return false;
        start += size + 1;
        searched = start;
    }
    in->size -= start;
    memmove(in->data, in->data + start, in->size);
    return in->size <= JSONRPC_BACKLOG_MAX;
}

/* Until the connection ends (true) or the client is being freed (false). */
static bool read_connection(struct jsonrpc_client *client, struct buffer *in)
{
    for (;;) {
        struct pollfd polls[2] = {{.fd = client->fd, .events = POLLIN},
                                  {.fd = client->cancel_fd, .events = POLLIN}};
        size_t before = in->size;
        ssize_t got;

        if (poll(polls, 2, -1) < 0 && errno != EINTR)
            return true;
        if (polls[1].revents)
            return false;
        if (!buffer_reserve(in, CHUNK_SIZE))
            return true;
        got = recv(client->fd, in->data + before, CHUNK_SIZE, MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (got <= 0)
            return true;
        in->size += (size_t)got;
        if (!client_lines(client, in, before))
            return true;
    }
}

static void *reader_main(void *opaque)
{
    struct jsonrpc_client *client = opaque;
    struct buffer in = BUFFER_INIT;
    bool tell = read_connection(client, &in);

    client_end(client);
    buffer_free(&in);
    if (tell && client->listener)
        client->listener(client->opaque, NULL, NULL);
    return NULL;
}

int jsonrpc_client_connect(struct jsonrpc_client **out, const char *socket_path, const char *thread_name,
                           uint64_t deadline, jsonrpc_listener *listener, void *opaque,
                           struct ferry_error *err)
{
    struct jsonrpc_client *client = calloc(1, sizeof(*client));
    int result;

    *out = NULL;
    if (!client)
        return error_set(err, -ENOMEM, "out of memory while connecting to %s", socket_path);
    client->listener = listener;
    client->opaque = opaque;
    client->fd = -1;
    pthread_mutex_init(&client->lock, NULL);
    thread_cond_init(&client->changed);
    client->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (client->cancel_fd < 0) {
        result = error_set_errno(err, -errno, "cannot connect to %s", socket_path);
        goto fail;
    }
    client->fd = sock_connect(socket_path, deadline, -1, err);
    if (client->fd < 0) {
        result = client->fd;
        goto fail;
    }
    result = thread_start(&client->reader, THREAD_GENERAL, thread_name, reader_main, client, err);
    if (result)
        goto fail;
    *out = client;
    return 0;

fail:
    jsonrpc_client_free(client);
    return result;
}

void jsonrpc_client_free(struct jsonrpc_client *client)
{
    uint64_t one = 1;

    if (!client)
        return;
    if (client->reader.started) {
        (void)!write(client->cancel_fd, &one, sizeof(one));
        thread_join(&client->reader);
    }
    if (client->fd >= 0)
        close(client->fd);
    if (client->cancel_fd >= 0)
        close(client->cancel_fd);
    pthread_cond_destroy(&client->changed);
    pthread_mutex_destroy(&client->lock);
    free(client);
}

static int refuse_ended(const char *method, struct ferry_error *err)
{
    return error_set(err, -EPIPE, "%s: the connection has ended", method);
}

static int refuse_late(const char *method, struct ferry_error *err)
{
    return error_set(err, -ETIMEDOUT, "%s: no answer in time", method);
}

/* Sends a line when it is this call's turn. A line sent in part spoils the connection, which then ends. */
static int send_line(struct jsonrpc_client *client, const char *method, const struct buffer *line,
                     uint64_t deadline, struct ferry_error *err)
{
    int result = 0;

    pthread_mutex_lock(&client->lock);
    while (client->writing && !client->ended && !result) {
        if (!thread_cond_wait_until(&client->changed, &client->lock, deadline))
            result = refuse_late(method, err);
    }
    if (!result && client->ended)
        result = refuse_ended(method, err);
    if (result) {
        pthread_mutex_unlock(&client->lock);
        return result;
    }
    client->writing = true;
    pthread_mutex_unlock(&client->lock);

    result = sock_write_full(client->fd, line->data, line->size, deadline, client->cancel_fd, err);
    if (result) {
        error_prefix(err, result, "%s", method);
        shutdown(client->fd, SHUT_RDWR); /* the reader sees it, and ends */
    }

    pthread_mutex_lock(&client->lock);
    client->writing = false;
    if (result)
        client->ended = true;
    pthread_cond_broadcast(&client->changed);
    pthread_mutex_unlock(&client->lock);
    return result;
}

static int wait_answer(struct jsonrpc_client *client, const char *method, struct pending_call *call,
                       uint64_t deadline, struct ferry_error *err)
{
    int result = 0;

    pthread_mutex_lock(&client->lock);
    while (!call->answer && !result) {
        if (client->ended)
            result = refuse_ended(method, err);
        else if (!thread_cond_wait_until(&client->changed, &client->lock, deadline) && !call->answer)
            result = refuse_late(method, err);
    }
    pthread_mutex_unlock(&client->lock);
    return result;
}

static void call_register(struct jsonrpc_client *client, struct pending_call *call)
{
    pthread_mutex_lock(&client->lock);
    call->id = ++client->last_id;
    call->next = client->calls;
    client->calls = call;
    pthread_mutex_unlock(&client->lock);
}

static void call_unregister(struct jsonrpc_client *client, struct pending_call *call)
{
    struct pending_call **link;

    pthread_mutex_lock(&client->lock);
    for (link = &client->calls; *link != call; link = &(*link)->next)
        ;
    *link = call->next;
    pthread_mutex_unlock(&client->lock);
}

/* The words of the other side become ours. */
static int take_error(const json_t *error, const char *method, struct ferry_error *err)
{
    const char *text = json_string_value(json_object_get(error, "message"));
    json_int_t code = json_integer_value(json_object_get(error, "code"));
    json_int_t number = json_integer_value(json_object_get(json_object_get(error, "data"), "errno"));

    if (!text)
        text = "failed without saying why";
    if (number > 0 && number < 4096) /* the kernel's range of errno values */
        return error_set(err, -(int)number, "%s", text);
    if (code == -32601)
        return error_set(err, -ENOSYS, "%s", text);
    return error_set(err, code == -32602 ? -EINVAL : -EPROTO, "%s: %s", method, text);
}

static int make_line(struct buffer *line, const char *method, json_t *params, json_int_t id,
                     struct ferry_error *err)
{
    json_t *message =
        json_pack("{s:s, s:s, s:o*, s:I}", "jsonrpc", "2.0", "method", method, "params", params, "id", id);
    char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;

    json_decref(message);
    if (text) {
        buffer_put(line, text, strlen(text));
        buffer_put_u8(line, '\n');
    }
    free(text);
    if (!text || buffer_failed(line))
        return error_set(err, -ENOMEM, "%s: out of memory", method);
    if (line->size - 1 > JSONRPC_LINE_MAX)
        return error_set(err, -EMSGSIZE, "%s: the request has %zu bytes, at most %d are possible", method,
                         line->size - 1, JSONRPC_LINE_MAX);
    return 0;
}

int jsonrpc_client_call(struct jsonrpc_client *client, const char *method, json_t *params, uint64_t deadline,
                        json_t **result, struct ferry_error *err)
{
    struct pending_call call = {0};
    struct buffer line = BUFFER_INIT;
    const json_t *error;
    int status;

    if (result)
        *result = NULL;
    call_register(client, &call);
    status = make_line(&line, method, params, call.id, err);
    if (!status)
        status = send_line(client, method, &line, deadline, err);
    if (!status)
        status = wait_answer(client, method, &call, deadline, err);
    call_unregister(client, &call);
    buffer_free(&line);
    if (status) {
        json_decref(call.answer);
        return status;
    }
    error = json_object_get(call.answer, "error");
    if (error)
        status = take_error(error, method, err);
    else if (!json_object_get(call.answer, "result"))
        status = error_set(err, -EPROTO, "%s: the answer has neither a result nor an error", method);
    else if (result)
        *result = json_incref(json_object_get(call.answer, "result"));
    json_decref(call.answer);
    return status;
}
