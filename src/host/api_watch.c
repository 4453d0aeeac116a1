/* Answers that go on: an object, line by line as it changes. */
#include "host/api.h"

#include "base/error.h"

#include <stdlib.h>
#include <string.h>

#define SLICE_MS      1000 /* how often a quiet stream looks whether its client is still there */
#define LINE_MAX_SIZE (256u << 10)

struct watch_stream {
    struct host *host;
    int client_fd;
    api_watch *watch;
    char id[API_SEGMENT_SIZE];
    unsigned seen;
    bool ended;
    char *line; /* being sent, with its newline */
    size_t size;
    size_t sent;
};

/* The next object as a line; false at the end. */
static bool fetch(struct watch_stream *stream)
{
    json_t *object = NULL;

    free(stream->line);
    stream->line = NULL;
    while (!object) {
        if (stream->ended || host_stopping(stream->host) || api_client_gone(stream->client_fd) ||
            stream->watch(stream->host, stream->id, &stream->seen, clock_deadline(SLICE_MS), &object,
                          &stream->ended, NULL) < 0)
            return false;
    }
    stream->line = malloc(LINE_MAX_SIZE);
    stream->size = stream->line ? json_dumpb(object, stream->line, LINE_MAX_SIZE - 1, JSON_COMPACT) : 0;
    stream->sent = 0;
    json_decref(object);
    if (stream->size == 0 || stream->size >= LINE_MAX_SIZE)
        return false;
    stream->line[stream->size++] = '\n';
    return true;
}

static size_t fill_watch(void *opaque, char *buffer, size_t size)
{
    struct watch_stream *stream = opaque;
    size_t count;

    if (stream->sent == stream->size && !fetch(stream)) {
        stream->size = stream->sent = 0;
        return 0;
    }
    count = stream->size - stream->sent;
    if (count > size)
        count = size;
    memcpy(buffer, stream->line + stream->sent, count);
    stream->sent += count;
    return count;
}

static void free_watch(void *opaque)
{
    struct watch_stream *stream = opaque;

    free(stream->line);
    free(stream);
}

int api_answer_watch(struct api_request *request, const char *id, api_watch *watch)
{
    struct watch_stream *stream = calloc(1, sizeof(*stream));

    if (!stream)
        return error_set(&request->err, -ENOMEM, "out of memory");
    stream->host = request->host;
    stream->client_fd = api_client_fd(request);
    stream->watch = watch;
    snprintf(stream->id, sizeof(stream->id), "%s", id);
    return api_answer_stream(request, "application/x-ndjson", fill_watch, stream, free_watch);
}
