#include "cli/client.h"

#include "base/clock.h"
#include "base/error.h"
#include "cli/client_internal.h"
#include "cli/memory.h"
#include "cli/object.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define LINE_MAX_SIZE  (4u << 20)
#define ERROR_MAX_SIZE (64u << 10)
#define HEAD_MAX_SIZE  (16u << 10)

/* One answer being followed. */
struct follow {
    struct client *client;
    const struct client_stream *stream;
    CURL *curl;
    struct ferry_error *err;
    int result;    /* what a callback said; 0: go on */
    bool accepted; /* the answer's head came and is no error */
    char *pending; /* an unfinished line, or an error's text */
    size_t pending_size;
};

static int keep(struct follow *follow, const char *data, size_t size, size_t limit)
{
    if (size > limit - follow->pending_size)
        return error_set(follow->err, -EPROTO, "%s sent a line that is too long; is it a ferryd?",
                         follow->client->target);
    follow->pending = memory_resize(follow->pending, follow->pending_size + size + 1);
    memcpy(follow->pending + follow->pending_size, data, size);
    follow->pending_size += size;
    return 0;
}

static int give_line(struct follow *follow, const char *line, size_t size)
{
    json_t *value, *clean;
    int result;

    if (size == 0 || (size == 1 && *line == '\r'))
        return 0;
    value = json_loadb(line, size, 0, NULL);
    if (!value)
        return error_set(follow->err, -EPROTO, "%s did not answer in JSON; is it a ferryd?",
                         follow->client->target);
    clean = follow->client->raw ? json_incref(value) : object_clean(value);
    result = follow->stream->object(follow->stream->opaque, clean, follow->err);
    json_decref(clean);
    json_decref(value);
    return result;
}

static int give_lines(struct follow *follow, const char *data, size_t size)
{
    const char *end;
    int result = 0;

    while (result == 0 && (end = memchr(data, '\n', size))) {
        size_t length = (size_t)(end - data);

        if (follow->pending_size > 0) {
            result = keep(follow, data, length, LINE_MAX_SIZE);
            if (result == 0)
                result = give_line(follow, follow->pending, follow->pending_size);
            follow->pending_size = 0;
        } else {
            result = give_line(follow, data, length);
        }
        size -= length + 1;
        data = end + 1;
    }
    if (result == 0 && size > 0)
        result = keep(follow, data, size, LINE_MAX_SIZE);
    return result;
}

static size_t receive(char *data, size_t unit, size_t count, void *opaque)
{
    struct follow *follow = opaque;
    size_t size = unit * count;
    long status = 0;

    curl_easy_getinfo(follow->curl, CURLINFO_RESPONSE_CODE, &status);
    if (status < 200 || status >= 300)
        follow->result = keep(follow, data, size, ERROR_MAX_SIZE);
    else if (follow->stream->data)
        follow->result = follow->stream->data(follow->stream->opaque, data, size, follow->err);
    else
        follow->result = give_lines(follow, data, size);
    return follow->result == 0 ? size : 0;
}

/* The head of an accepted answer is complete when its empty line comes. */
static size_t receive_head(char *data, size_t unit, size_t count, void *opaque)
{
    struct follow *follow = opaque;
    size_t size = unit * count;
    long status = 0;

    curl_easy_getinfo(follow->curl, CURLINFO_RESPONSE_CODE, &status);
    if (size <= 2 && (*data == '\r' || *data == '\n') && status >= 200 && status < 300)
        follow->accepted = true;
    return size;
}

/* Drives the transfer; returns when it ended (1), a callback ended it (0; follow->result), or as http_turn.
 */
static int drive(struct follow *follow, struct http_talk *talk)
{
    const struct client_stream *stream = follow->stream;
    int max_ms = stream->interval_ms > 0 ? stream->interval_ms : -1;
    int result = 0;

    while (result == 0 && follow->result == 0) {
        if (follow->accepted && stream->step)
            follow->result = stream->step(stream->opaque, follow->err);
        if (follow->result == 0)
            result = http_turn(talk, stream->wake_fd, max_ms);
    }
    return follow->result == 0 ? result : 0;
}

/* What became of it, when no callback ended it. */
static int conclude(struct follow *follow, const struct http_talk *talk, int result, long status)
{
    const struct client *client = follow->client;

    if (result == HTTP_SILENT)
        return client_explain_silence(client, follow->accepted ? -EPIPE : -ECONNREFUSED, follow->err);
    if (result < 0)
        return error_set_errno(follow->err, result, "cannot talk to ferryd at %s", client->target);
    if (talk->code != CURLE_OK)
        return client_explain(client, follow->curl, talk->code, follow->err);
    if (!follow->accepted)
        return client_explain_answer(client, status, follow->pending ? follow->pending : "",
                                     follow->pending_size, follow->err);
    return 0;
}

int client_follow(struct client *client, const char *path, const struct client_stream *stream,
                  struct ferry_error *err)
{
    struct follow follow = {.client = client, .stream = stream, .curl = curl_easy_init(), .err = err};
    struct http_patience patience = client_patience(client);
    struct http_talk talk = {0};
    long status = 0;
    int result;

    if (!follow.curl)
        return error_set(err, -ENOMEM, "cannot prepare a connection to %s", client->target);
    client_set_up(client, follow.curl, path);
    curl_easy_setopt(follow.curl, CURLOPT_WRITEFUNCTION, receive);
    curl_easy_setopt(follow.curl, CURLOPT_WRITEDATA, &follow);
    curl_easy_setopt(follow.curl, CURLOPT_HEADERFUNCTION, receive_head);
    curl_easy_setopt(follow.curl, CURLOPT_HEADERDATA, &follow);
    result = http_begin(&talk, follow.curl, &patience, err);
    if (result == 0)
        result = drive(&follow, &talk);
    curl_easy_getinfo(follow.curl, CURLINFO_RESPONSE_CODE, &status);
    if (follow.result == 0 && result == 1 && talk.code == CURLE_OK && follow.accepted &&
        follow.pending_size > 0)
        follow.result = give_line(&follow, follow.pending, follow.pending_size);
    result = follow.result != 0 ? follow.result : conclude(&follow, &talk, result, status);
    http_end(&talk);
    curl_easy_cleanup(follow.curl);
    free(follow.pending);
    return result;
}

/* Waits for EVENTS on the pipe's socket; -ETIMEDOUT when the deadline has passed. */
static int pipe_wait(struct client_pipe *pipe, short events, uint64_t deadline)
{
    struct pollfd wait = {.fd = pipe->fd, .events = events};

    poll(&wait, 1, clock_left_ms(deadline));
    return clock_left_ms(deadline) == 0 ? -ETIMEDOUT : 0;
}

static int send_all(struct client_pipe *pipe, const char *text, uint64_t deadline)
{
    size_t left = strlen(text);

    while (left > 0) {
        ssize_t sent = client_pipe_write(pipe, text, left);

        if (sent == -EAGAIN)
            sent = pipe_wait(pipe, POLLOUT, deadline);
        if (sent < 0)
            return (int)sent;
        text += sent;
        left -= (size_t)sent;
    }
    return 0;
}

/* Reads until head holds WANTED bytes or, with WANTED 0, a whole head. Returns the bytes up to there. */
static ssize_t read_until(struct client_pipe *pipe, char *head, size_t *size, size_t wanted,
                          uint64_t deadline)
{
    for (;;) {
        char *end = memmem(head, *size, "\r\n\r\n", 4);
        ssize_t got;

        if (wanted == 0 && end)
            return end + 4 - head;
        if (wanted > 0 && *size >= wanted)
            return (ssize_t)wanted;
        if (*size == HEAD_MAX_SIZE)
            return -EPROTO;
        got = client_pipe_read(pipe, head + *size, HEAD_MAX_SIZE - *size);
        if (got == -EAGAIN) {
            got = pipe_wait(pipe, POLLIN, deadline);
            if (got == 0)
                continue;
        }
        if (got <= 0)
            return got < 0 ? got : -EPIPE;
        *size += (size_t)got;
    }
}

static size_t content_length(const char *head)
{
    const char *line = strcasestr(head, "\r\nContent-Length:");

    return line ? strtoul(line + strlen("\r\nContent-Length:"), NULL, 10) : 0;
}

static int read_upgrade(struct client *client, struct client_pipe *pipe, uint64_t deadline,
                        struct ferry_error *err)
{
    char head[HEAD_MAX_SIZE + 1] = "";
    size_t size = 0, wanted;
    ssize_t end = read_until(pipe, head, &size, 0, deadline);
    long status;

    if (end == -ETIMEDOUT)
        return client_explain_silence(client, -ECONNREFUSED, err);
    if (end < 0)
        return error_set(err, -EPIPE, "ferryd at %s closed the connection before it had answered",
                         client->target);
    status = strncmp(head, "HTTP/1.", 7) == 0 ? strtol(head + strlen("HTTP/1.1"), NULL, 10) : 0;
    if (status < 100)
        return error_set(err, -EPROTO, "%s does not speak HTTP; is it a ferryd?", client->target);
    if (status == 101) {
        pipe->early_size = size - (size_t)end;
        pipe->early = memory_resize(NULL, pipe->early_size + 1);
        memcpy(pipe->early, head + end, pipe->early_size);
        return 0;
    }
    wanted = content_length(head);
    if (wanted > 0 && wanted < HEAD_MAX_SIZE)
        read_until(pipe, head, &size, (size_t)end + wanted, deadline);
    return client_explain_answer(client, status, head + end, size - (size_t)end, err);
}

int client_upgrade(struct client *client, const char *path, const char *protocol, struct client_pipe *pipe,
                   struct ferry_error *err)
{
    uint64_t deadline = clock_deadline(client->timeout_ms);
    curl_socket_t fd = CURL_SOCKET_BAD;
    CURLcode code;
    char *request;
    int result;

    *pipe = (struct client_pipe){.curl = curl_easy_init(), .fd = -1};
    if (!pipe->curl)
        return error_set(err, -ENOMEM, "cannot prepare a connection to %s", client->target);
    client_set_up(client, pipe->curl, path);
    curl_easy_setopt(pipe->curl, CURLOPT_CONNECT_ONLY, 1L);
    code = curl_easy_perform(pipe->curl);
    if (code == CURLE_OK)
        code = curl_easy_getinfo(pipe->curl, CURLINFO_ACTIVESOCKET, &fd);
    if (code != CURLE_OK) {
        result = client_explain(client, pipe->curl, code, err);
        client_pipe_close(pipe);
        return result;
    }
    pipe->fd = fd;
    request = memory_format("GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: %s\r\n"
                            "User-Agent: ferry/" FERRY_VERSION "\r\n\r\n",
                            path, protocol);
    result = send_all(pipe, request, deadline);
    free(request);
    if (result == -ETIMEDOUT)
        client_explain_silence(client, -ECONNREFUSED, err);
    else if (result < 0)
        error_set_errno(err, result, "cannot send to ferryd at %s", client->target);
    else
        result = read_upgrade(client, pipe, deadline, err);
    if (result < 0)
        client_pipe_close(pipe);
    return result;
}

ssize_t client_pipe_read(struct client_pipe *pipe, char *data, size_t size)
{
    size_t got = 0;
    CURLcode code = curl_easy_recv(pipe->curl, data, size, &got);

    if (code == CURLE_AGAIN)
        return -EAGAIN;
    return code == CURLE_OK ? (ssize_t)got : -EPIPE;
}

ssize_t client_pipe_write(struct client_pipe *pipe, const char *data, size_t size)
{
    size_t sent = 0;
    CURLcode code = curl_easy_send(pipe->curl, data, size, &sent);

    if (code == CURLE_AGAIN)
        return -EAGAIN;
    return code == CURLE_OK ? (ssize_t)sent : -EPIPE;
}

void client_pipe_close(struct client_pipe *pipe)
{
    if (pipe->curl)
        curl_easy_cleanup(pipe->curl);
    free(pipe->early);
    *pipe = (struct client_pipe){.fd = -1};
}
