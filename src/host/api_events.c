#include "host/api.h"

#include "base/buffer.h"
#include "base/error.h"
#include "host/events.h"

#include <stdlib.h>
#include <string.h>

#define SLICE_MS 1000 /* how often a quiet stream looks whether its client is still there */

struct event_stream {
    struct host *host;
    int client_fd;
    bool follow;
    uint64_t since;
    char migration[64]; /* only its events; empty: all */
    struct buffer pending;
    size_t sent; /* of pending */
};

static void append_events(struct event_stream *stream, json_t *batch)
{
    json_t *event;
    size_t i;

    json_array_foreach(batch, i, event)
    {
        const char *migration = json_string_value(json_object_get(event, "migration"));
        char *line;

        stream->since = (uint64_t)json_integer_value(json_object_get(event, "number"));
        if (stream->migration[0] && (!migration || strcmp(migration, stream->migration) != 0))
            continue;
        line = json_dumps(event, JSON_COMPACT);
        if (line) {
            buffer_put(&stream->pending, line, strlen(line));
            buffer_put_u8(&stream->pending, '\n');
        }
        free(line);
    }
}

/* More to send into `pending`; false at the end of the stream. */
static bool fetch(struct event_stream *stream)
{
    buffer_clear(&stream->pending);
    stream->sent = 0;
    while (stream->pending.size == 0) {
        json_t *batch = events_read(stream->host, stream->since);
        bool empty = json_array_size(batch) == 0;

        append_events(stream, batch);
        json_decref(batch);
        if (!empty)
            continue;
        if (!stream->follow || host_stopping(stream->host) || api_client_gone(stream->client_fd))
            return false;
        events_wait(stream->host, stream->since, clock_deadline(SLICE_MS));
    }
    return !buffer_failed(&stream->pending);
}

static size_t fill_events(void *opaque, char *buffer, size_t size)
{
    struct event_stream *stream = opaque;
    size_t count;

    if (stream->sent == stream->pending.size && !fetch(stream))
        return 0;
    count = stream->pending.size - stream->sent;
    if (count > size)
        count = size;
    memcpy(buffer, stream->pending.data + stream->sent, count);
    stream->sent += count;
    return count;
}

static void free_events(void *opaque)
{
    struct event_stream *stream = opaque;

    buffer_free(&stream->pending);
    free(stream);
}

int api_events(struct api_request *request)
{
    const char *migration = api_query(request, "migration");
    struct event_stream *stream = calloc(1, sizeof(*stream));
    bool fresh = false;
    int result;

    if (!stream)
        return error_set(&request->err, -ENOMEM, "out of memory");
    stream->host = request->host;
    stream->client_fd = api_client_fd(request);
    snprintf(stream->migration, sizeof(stream->migration), "%s", migration ? migration : "");
    result = api_query_bool(request, "follow", &stream->follow);
    if (result == 0)
        result = api_query_uint(request, "since", &stream->since);
    if (result == 0)
        result = api_query_bool(request, "new", &fresh);
    if (result < 0) {
        free_events(stream);
        return result;
    }
    if (fresh)
        stream->since = events_last(request->host);
    if (stream->follow)
        api_bear_with_reader(request);
    return api_answer_stream(request, "application/x-ndjson", fill_events, stream, free_events);
}

/* Another host tells what happened to a migration that concerns both. */
int api_events_take(struct api_request *request)
{
    json_t *events = NULL;
    const struct field fields[] = {{"events", FIELD_ARRAY, true, &events}};
    json_t *event;
    size_t i;
    int result = api_read_body(request, fields, 1);

    if (result == 0 && json_array_size(events) > 256)
        result = error_set(&request->err, HOST_USAGE, "at most 256 events at once");
    json_array_foreach(events, i, event)
    {
        const char *from = json_string_value(json_object_get(event, "host"));

        if (result == 0 && from && strcmp(from, request->host->config->name) == 0)
            result = error_set(&request->err, HOST_USAGE, "events of this host are its own to tell");
        if (result == 0)
            result = events_import(request->host, event, &request->err);
    }
    return result < 0 ? result : api_answer_empty(request);
}
