/* What callers see of migrations: lists, one with the log lines of both hosts, one being watched. */
#include "host/migration.h"

#include "base/error.h"
#include "host/fields.h"
#include "host/peers.h"

#include <string.h>

#define LIST_MAX   1000
#define EVENTS_MAX 256

static bool in_view(enum store_view view, const json_t *object)
{
    bool ended = !json_is_null(json_object_get(object, "ended"));
    const char *outcome = json_string_value(json_object_get(object, "outcome"));

    switch (view) {
    case STORE_VIEW_ALL:
        return true;
    case STORE_VIEW_ACTIVE:
        return !ended;
    case STORE_VIEW_HISTORY:
        return ended;
    case STORE_VIEW_FAILED:
        return ended && outcome && strcmp(outcome, "completed") != 0;
    case STORE_VIEW_OPEN:
        return ended && json_is_false(json_object_get(object, "agreed"));
    }
    return false;
}

static void strip(json_t *object)
{
    json_object_del(object, "peer_address");
    json_object_del(object, "started_ns");
    json_object_del(object, "machine");
    json_object_del(object, "options");
    json_object_del(object, "must_encrypt");
}

json_t *migrations_list(struct host *host, enum store_view view)
{
    json_t *list = json_array();
    json_t *known = json_object();
    json_t *rows = NULL;
    struct ferry_error err;
    json_t *row;
    size_t i;

    host_lock(host);
    for (struct migration *migration = host->migrations; migration; migration = migration->next) {
        json_t *object = migration_object(migration);

        json_object_set_new(known, migration->id, json_true());
        strip(object);
        if (in_view(view, object))
            json_array_append(list, object);
        json_decref(object);
    }
    host_unlock(host);
    if (host->store->ops->migration_list(host->store, view, LIST_MAX, &rows, &err) < 0)
        host_record_failed(host, &err);
    json_array_foreach(rows, i, row)
    {
        const char *id = json_string_value(json_object_get(row, "id"));

        strip(row);
        if (id && !json_object_get(known, id) && in_view(view, row))
            json_array_append(list, row);
    }
    json_decref(rows);
    json_decref(known);
    return list;
}

static int no_such_migration(struct host *host, const char *prefix, struct ferry_error *err)
{
    return error_set(err, HOST_NOT_FOUND, "there is no migration %.64s on host %s", prefix,
                     host->config->name);
}

int migration_resolve(struct host *host, const char *prefix, char id[static MIGRATION_ID_SIZE],
                      struct ferry_error *err)
{
    json_t *ids = json_object();
    json_t *rows = NULL;
    json_t *row;
    size_t i;
    int result = 0;

    if (prefix[0] && strspn(prefix, "0123456789abcdef-") == strlen(prefix)) {
        if (host->store->ops->migration_find(host->store, prefix, &rows, err) < 0)
            host_record_failed(host, err);
        json_array_foreach(rows, i, row)
            json_object_set_new(ids, json_string_value(json_object_get(row, "id")), json_true());
        host_lock(host);
        for (struct migration *migration = host->migrations; migration; migration = migration->next) {
            if (strncmp(migration->id, prefix, strlen(prefix)) == 0)
                json_object_set_new(ids, migration->id, json_true());
        }
        host_unlock(host);
    }
    if (json_object_size(ids) == 0)
        result = no_such_migration(host, prefix, err);
    else if (json_object_size(ids) > 1)
        result = error_set(err, HOST_CONFLICT,
                           "more than one migration begins with %.36s; give more of its id", prefix);
    else
        snprintf(id, MIGRATION_ID_SIZE, "%s", json_object_iter_key(json_object_iter(ids)));
    json_decref(rows);
    json_decref(ids);
    return result;
}

/* *object with recorded extras (peer_address), *lines as stored. Both new. */
static int load(struct host *host, const char *id, json_t **object, json_t **lines, struct ferry_error *err)
{
    struct migration *migration;
    json_t *rows = NULL;
    int result;

    *object = NULL;
    *lines = NULL;
    host_lock(host);
    migration = migration_find(host, id);
    if (migration) {
        *object = migration_object(migration);
        json_object_set_new(*object, "peer_address", json_string(migration->peer_address));
        *lines = json_copy(migration->lines);
    }
    host_unlock(host);
    if (*object)
        return 0;
    result = host->store->ops->migration_find(host->store, id, &rows, err);
    if (result == 0 && json_array_size(rows) != 1)
        result = no_such_migration(host, id, err);
    if (result == 0)
        result = host->store->ops->line_list(host->store, id, lines, err);
    if (result == 0)
        *object = json_incref(json_array_get(rows, 0));
    json_decref(rows);
    return result;
}

static uint64_t line_time(const json_t *line)
{
    return (uint64_t)json_integer_value(json_object_get(line, "time_ns"));
}

/* Both in order; the result too. Steals both. */
static json_t *merge_lines(json_t *ours, json_t *theirs)
{
    json_t *merged = json_array();
    size_t i = 0;
    size_t j = 0;

    while (i < json_array_size(ours) || j < json_array_size(theirs)) {
        bool take_ours = j >= json_array_size(theirs) ||
                         (i < json_array_size(ours) &&
                          line_time(json_array_get(ours, i)) <= line_time(json_array_get(theirs, j)));

        json_array_append(merged, take_ours ? json_array_get(ours, i++) : json_array_get(theirs, j++));
    }
    json_decref(ours);
    json_decref(theirs);
    return merged;
}

/* An upgrade has both its ends here. */
static bool one_host(const json_t *object)
{
    return json_equal(json_object_get(object, "source"), json_object_get(object, "destination"));
}

/* The other host's lines of a migration; never fails, but says in a line of its own when they are missing. */
static json_t *their_lines(struct host *host, const json_t *object)
{
    const char *id = json_string_value(json_object_get(object, "id"));
    const char *side = json_string_value(json_object_get(object, "side"));
    bool outgoing = side && strcmp(side, "source") == 0;
    const char *peer = json_string_value(json_object_get(object, outgoing ? "destination" : "source"));
    const char *recorded = json_string_value(json_object_get(object, "peer_address"));
    char address[SOCK_ADDRESS_SIZE] = "";
    char path[128];
    struct ferry_error err = {0};
    json_t *answer = NULL;
    json_t *lines = json_array();
    json_t *line;
    size_t i;
    int result = peers_find(host, peer ? peer : "", address, &err);

    if (result < 0 && recorded && recorded[0]) {
        snprintf(address, sizeof(address), "%s", recorded);
        result = 0;
    }
    snprintf(path, sizeof(path), "/v1/migrations/%s?local=1", id);
    if (result == 0)
        result = peer_call(host, address, "GET", path, NULL, PEER_BRIEF, &answer, &err);
    json_array_foreach(json_object_get(answer, "log"), i, line)
    {
        const char *time = json_string_value(json_object_get(line, "time"));
        const char *level = json_string_value(json_object_get(line, "level"));
        const char *from = json_string_value(json_object_get(line, "host"));
        const char *text = json_string_value(json_object_get(line, "text"));

        if (time && level && from && text)
            json_array_append_new(lines, json_pack("{s:I, s:s, s:s, s:s}", "time_ns",
                                                   (json_int_t)migration_parse_time(time), "level", level,
                                                   "host", from, "text", text));
    }
    json_decref(answer);
    if (result < 0) {
        char text[FERRY_ERROR_TEXT_SIZE + 64];

        snprintf(text, sizeof(text), "the lines of host %s are missing: %s", peer ? peer : "?", err.text);
        json_array_append_new(lines, json_pack("{s:I, s:s, s:s, s:o}", "time_ns",
                                               (json_int_t)clock_realtime_ns(), "level", "warn", "host",
                                               host->config->name, "text", fields_text(text)));
    }
    return lines;
}

static uint64_t event_time(const json_t *event)
{
    const char *time = json_string_value(json_object_get(event, "time"));

    return time ? migration_parse_time(time) : 0;
}

/* Both hosts' events of it in order of time, as far as they are here: a migration's hosts tell each other
 * theirs. */
static json_t *events_of(struct host *host, const char *id)
{
    struct ferry_error err;
    json_t *rows = NULL;
    json_t *events = json_array();
    json_t *event;
    size_t i;

    if (host->store->ops->event_list_of(host->store, id, EVENTS_MAX, &rows, &err) < 0)
        host_record_failed(host, &err);
    json_array_foreach(rows, i, event)
    {
        size_t place = json_array_size(events);

        while (place > 0 && event_time(json_array_get(events, place - 1)) > event_time(event))
            place--;
        json_array_insert(events, place, event);
    }
    json_decref(rows);
    return events;
}

int migration_show(struct host *host, const char *prefix, bool local_only, json_t **answer,
                   struct ferry_error *err)
{
    char id[MIGRATION_ID_SIZE];
    json_t *object = NULL;
    json_t *lines = NULL;
    json_t *log;
    json_t *line;
    size_t i;
    int result = migration_resolve(host, prefix, id, err);

    if (result == 0)
        result = load(host, id, &object, &lines, err);
    if (result < 0) {
        json_decref(lines);
        return result;
    }
    if (!local_only && !one_host(object))
        lines = merge_lines(lines, their_lines(host, object));
    log = json_array();
    json_array_foreach(lines, i, line)
    {
        json_t *shown = json_object();

        migration_set_time(shown, "time", line_time(line));
        json_object_set(shown, "level", json_object_get(line, "level"));
        json_object_set(shown, "host", json_object_get(line, "host"));
        json_object_set(shown, "text", json_object_get(line, "text"));
        json_array_append_new(log, shown);
    }
    json_decref(lines);
    strip(object);
    json_object_set_new(object, "events", events_of(host, id));
    json_object_set_new(object, "log", log);
    *answer = object;
    return 0;
}

int migration_watch(struct host *host, const char *id, unsigned *seen, uint64_t deadline, json_t **answer,
                    bool *ended, struct ferry_error *err)
{
    struct migration *migration;
    json_t *lines = NULL;
    int result = 0;

    *answer = NULL;
    *ended = false;
    host_lock(host);
    migration = migration_find(host, id);
    if (migration) {
        migration->refs++;
        while (migration->version == *seen && !migration->ended && !host->stopping) {
            if (!thread_cond_wait_until(&host->changed, &host->lock, deadline))
                break;
        }
        if (migration->version != *seen || migration->ended) {
            *seen = migration->version;
            *answer = migration_object(migration);
            *ended = migration->ended;
            strip(*answer);
        }
    }
    host_unlock(host);
    if (migration) {
        migration_unref(migration);
        return 0;
    }
    result = load(host, id, answer, &lines, err);
    json_decref(lines);
    if (result == 0) {
        strip(*answer);
        *ended = true;
    }
    return result;
}
