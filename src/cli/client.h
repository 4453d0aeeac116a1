/*
 * A client of ferryd's REST API (docs/API.md), over its Unix socket or over TCP.
 *
 * Failing calls return a negative errno that keeps the API's error class, so that the exit status can follow
 * it (docs/API.md has the table):
 *
 *     usage -EINVAL   not_found -ENOENT   conflict -EBUSY   refused -EPERM   failed -EIO
 *     unreachable -EHOSTUNREACH   and ferryd itself does not answer: -ECONNREFUSED
 *
 * An answer may take as long as it takes while ferryd lives; one that says nothing for the timeout is given
 * up (base/http.h).
 *
 * An answer is owned by the caller (json_decref). Unless `raw` is set, every string in it was cleaned
 * (text.h) so that it may go to a terminal. Paths are built with client_path, which escapes names. One
 * thread.
 */
#ifndef FERRY_CLI_CLIENT_H
#define FERRY_CLI_CLIENT_H

#include <ferry/error.h>

#include <curl/curl.h>
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#define CLIENT_ANSWER_MAX (64u << 20)

struct https;

struct client {
    char *target;      /* as the user named it */
    char *socket_path; /* NULL: over TCP */
    char *base_url;
    bool raw;
    unsigned timeout_ms; /* how long ferryd may say nothing */
    char *peer;          /* over TLS: the host it must be; NULL: the one that the URL names */
    struct https *https; /* NULL: in the clear */
    CURL *curl;
};

/* TARGET is a ferryd's state directory, its socket, a URL or ADDR:PORT. Contacts nobody yet. A URL that
 * begins with https:// is spoken to with TLS; so is ADDR:PORT if there is a certificate to show: that in
 * $FERRY_CERTIFICATE, or the user's (ferry host certs install --user). */
int client_open(struct client *client, const char *target, bool raw, unsigned timeout_ms,
                struct ferry_error *err);
/* As client_open for the host HOST at ADDRESS, which CLIENT's host knows: with TLS also by the certificate of
 * CLIENT's host, if that is local and can be read. */
int client_open_host(struct client *client, const struct client *by, const char *host, const char *address,
                     struct ferry_error *err);
void client_close(struct client *client); /* a zeroed client is fine */
/* This machine's files are the host's files. */
bool client_is_local(const struct client *client);

/* "/v1/vms/%s/pause": each %s is one path segment, escaped. Freed with free(3). */
char *client_path(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* METHOD with BODY (borrowed; NULL: none). *answer (when wanted) is NULL when there is none. */
int client_request(struct client *client, const char *method, const char *path, json_t *body, json_t **answer,
                   struct ferry_error *err);
int client_get(struct client *client, const char *path, json_t **answer, struct ferry_error *err);

/* An answer that goes on. Callbacks return 0 to go on, 1 to end it, or a negative errno with err filled in.
 */
struct client_stream {
    void *opaque;
    int (*data)(void *opaque, const char *data, size_t size, struct ferry_error *err);
    /* Or, instead of data: each line is a JSON object, borrowed. */
    int (*object)(void *opaque, json_t *object, struct ferry_error *err);
    /* May be NULL. Called once the host has accepted the request, then whenever something came or wake_fd is
     * readable or interval_ms passed. Other requests may be made from here (not from data and object). */
    int (*step)(void *opaque, struct ferry_error *err);
    int wake_fd;     /* -1: none */
    int interval_ms; /* 0: no calls by time */
};

/* Returns 0 when the host ended the answer, 1 when a callback did. */
int client_follow(struct client *client, const char *path, const struct client_stream *stream,
                  struct ferry_error *err);

/* A connection that stopped speaking HTTP (101 Switching Protocols). */
struct client_pipe {
    CURL *curl;
    int fd;      /* for poll(2) only; a readable descriptor may still give -EAGAIN */
    char *early; /* bytes that came with the answer's head; owned */
    size_t early_size;
};

int client_upgrade(struct client *client, const char *path, const char *protocol, struct client_pipe *pipe,
                   struct ferry_error *err);
/* Bytes moved, 0 at the end (read), -EAGAIN, or a negative errno. */
ssize_t client_pipe_read(struct client_pipe *pipe, char *data, size_t size);
ssize_t client_pipe_write(struct client_pipe *pipe, const char *data, size_t size);
void client_pipe_close(struct client_pipe *pipe); /* a zeroed pipe is fine */

#endif
