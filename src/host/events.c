#include "host/events.h"

#include "base/error.h"
#include "base/thread.h"
#include "host/fields.h"

#include <stdlib.h>
#include <string.h>

#define EVENTS_RING  1024
#define EVENTS_BATCH 256

struct events {
    pthread_mutex_t lock; /* guards the rest */
    pthread_cond_t arrived;
    uint64_t last;             /* number of the newest event */
    uint64_t ring_first;       /* number of the oldest event in the ring; last + 1 when empty */
    json_t *ring[EVENTS_RING]; /* event N at N % EVENTS_RING; immutable once in here */
};

static const struct event_row {
    const char *code;
    const char *kvm_code; /* NULL: the same */
    enum log_level level;
} event_table[] = {
    [EVENT_MIGRATION_OUT_STARTED] = {"VMS2450", NULL, LOG_LEVEL_INFO},
    [EVENT_VM_STOPPED] = {"VMS2452", NULL, LOG_LEVEL_INFO},
    [EVENT_VM_DELETED] = {"VMS4024", "VMS6021", LOG_LEVEL_INFO},
    [EVENT_MIGRATION_OUT_COMPLETED] = {"VMS2451", NULL, LOG_LEVEL_INFO},
    [EVENT_MIGRATION_IN_STARTED] = {"VMS2430", NULL, LOG_LEVEL_INFO},
    [EVENT_VM_CREATED] = {"VMS3050", "VMS6020", LOG_LEVEL_INFO},
    [EVENT_VM_CONTINUED] = {"VMS2432", NULL, LOG_LEVEL_INFO},
    [EVENT_MIGRATION_IN_COMPLETED] = {"VMS2431", NULL, LOG_LEVEL_INFO},
    [EVENT_MIGRATION_FAILED] = {"migration-failed", NULL, LOG_LEVEL_ERROR},
    [EVENT_MIGRATION_WARNING] = {"migration-warning", NULL, LOG_LEVEL_WARN},
    [EVENT_VM_STARTED] = {"vm-started", NULL, LOG_LEVEL_INFO},
    [EVENT_VM_ENDED] = {"vm-ended", NULL, LOG_LEVEL_INFO},
    [EVENT_VM_CRASHED] = {"vm-crashed", NULL, LOG_LEVEL_ERROR},
    [EVENT_VM_REMOVED] = {"vm-removed", NULL, LOG_LEVEL_INFO},
    [EVENT_VM_UPGRADED] = {"vm-upgraded", NULL, LOG_LEVEL_INFO},
    [EVENT_VM_SUSPENDED] = {"vm-suspended", NULL, LOG_LEVEL_INFO},
    [EVENT_VM_RESUMED] = {"vm-resumed", NULL, LOG_LEVEL_INFO},
    [EVENT_CHECKPOINT_STARTED] = {"checkpoint-started", NULL, LOG_LEVEL_INFO},
    [EVENT_CHECKPOINT_COMPLETED] = {"checkpoint-completed", NULL, LOG_LEVEL_INFO},
    [EVENT_CHECKPOINT_CANCELLED] = {"checkpoint-cancelled", NULL, LOG_LEVEL_INFO},
    [EVENT_CHECKPOINT_FAILED] = {"checkpoint-failed", NULL, LOG_LEVEL_ERROR},
    [EVENT_HOST_STARTED] = {"host-started", NULL, LOG_LEVEL_INFO},
    [EVENT_HOST_STOPPED] = {"host-stopped", NULL, LOG_LEVEL_INFO},
    [EVENT_HOST_SETTING] = {"host-setting", NULL, LOG_LEVEL_INFO},
};

static const char *level_text(enum log_level level)
{
    switch (level) {
    case LOG_LEVEL_DEBUG:
        return "debug";
    case LOG_LEVEL_INFO:
        return "info";
    case LOG_LEVEL_WARN:
        return "warn";
    case LOG_LEVEL_ERROR:
        return "error";
    }
    return "info";
}

static enum log_level level_of(const char *text)
{
    if (strcmp(text, "error") == 0)
        return LOG_LEVEL_ERROR;
    return strcmp(text, "warn") == 0 ? LOG_LEVEL_WARN : LOG_LEVEL_INFO;
}

int events_new(struct host *host, struct ferry_error *err)
{
    struct events *events = calloc(1, sizeof(*events));
    int result;

    if (!events)
        return error_set(err, -ENOMEM, "out of memory");
    result = host->store->ops->event_last(host->store, &events->last, err);
    if (result < 0) {
        free(events);
        return result;
    }
    events->ring_first = events->last + 1;
    pthread_mutex_init(&events->lock, NULL);
    thread_cond_init(&events->arrived);
    host->events = events;
    return 0;
}

void events_free(struct events *events)
{
    if (!events)
        return;
    for (size_t i = 0; i < EVENTS_RING; i++)
        json_decref(events->ring[i]);
    pthread_cond_destroy(&events->arrived);
    pthread_mutex_destroy(&events->lock);
    free(events);
}

static const char *text_of(const json_t *event, const char *key)
{
    const char *text = json_string_value(json_object_get(event, key));

    return text ? text : "";
}

static void write_log(struct host *host, const json_t *event)
{
    const char *migration = text_of(event, "migration");
    const char *vm = text_of(event, "vm");
    struct log_labels labels;
    char tag[LOG_TAG_SIZE];
    struct log *view;

    snprintf(labels.vm, sizeof(labels.vm), "%s", vm);
    snprintf(labels.migration, sizeof(labels.migration), "%s", migration);
    snprintf(labels.host, sizeof(labels.host), "%s", text_of(event, "host"));
    snprintf(labels.code, sizeof(labels.code), "%s", text_of(event, "code"));
    snprintf(tag, sizeof(tag), "%s%s",
             *migration ? "migration "
             : *vm      ? "vm "
                        : "",
             *migration ? migration
             : *vm      ? vm
                        : "host");
    view = log_scope_labelled(host->log, tag, &labels);
    log_write(view, level_of(text_of(event, "level")), "%s %s (host %s)", labels.code, text_of(event, "text"),
              labels.host);
    log_close(view);
}

/* Numbers EVENT (takes it over), wakes watchers, writes it to log and store. */
static void publish(struct host *host, json_t *event)
{
    struct events *events = host->events;
    struct ferry_error err;
    uint64_t number;

    pthread_mutex_lock(&events->lock);
    number = ++events->last;
    json_object_set_new(event, "number", json_integer((json_int_t)number));
    json_decref(events->ring[number % EVENTS_RING]);
    events->ring[number % EVENTS_RING] = json_incref(event);
    if (number - events->ring_first >= EVENTS_RING)
        events->ring_first = number - EVENTS_RING + 1;
    pthread_cond_broadcast(&events->arrived);
    pthread_mutex_unlock(&events->lock);

    write_log(host, event);
    if (host->store->ops->event_put(host->store, event, &err) < 0)
        host_record_failed(host, &err);
    json_decref(event);
}

static void emit(struct host *host, uint64_t time_ns, enum event_kind kind, const char *vm,
                 const char *machine, const char *migration, const char *format, va_list args)
{
    const struct event_row *row = &event_table[kind];
    bool kvm = machine && strcmp(machine, "x86_64") == 0;
    char time_text[CLOCK_TEXT_SIZE];
    char text[1024];
    json_t *event;

    vsnprintf(text, sizeof(text), format, args);
    event = json_pack("{s:I, s:s, s:s, s:s, s:s, s:s?, s:s?, s:o}", "number", (json_int_t)0, "time",
                      clock_format(time_ns ? time_ns : clock_realtime_ns(), time_text), "host",
                      host->config->name, "code", kvm && row->kvm_code ? row->kvm_code : row->code, "level",
                      level_text(row->level), "vm", vm, "migration", migration, "text", fields_text(text));
    if (event)
        publish(host, event);
    else
        log_error(host->log, "out of memory: an event could not be kept: %s", text);
}

void events_emit(struct host *host, enum event_kind kind, const char *vm, const char *machine,
                 const char *migration, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    emit(host, 0, kind, vm, machine, migration, format, args);
    va_end(args);
}

void events_emit_at(struct host *host, uint64_t time_ns, enum event_kind kind, const char *vm,
                    const char *machine, const char *migration, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    emit(host, time_ns, kind, vm, machine, migration, format, args);
    va_end(args);
}

int events_import(struct host *host, const json_t *event, struct ferry_error *err)
{
    const char *time = NULL;
    const char *from = NULL;
    const char *code = NULL;
    const char *level = NULL;
    const char *text = NULL;
    const char *vm = NULL;
    const char *migration = NULL;
    const struct field fields[] = {
        {"time", FIELD_STRING, true, &time},
        {"host", FIELD_STRING, true, &from},
        {"code", FIELD_STRING, true, &code},
        {"level", FIELD_STRING, true, &level},
        {"text", FIELD_STRING, true, &text},
        {"vm", FIELD_STRING, false, &vm},
        {"migration", FIELD_STRING, false, &migration},
    };
    json_t *copy;
    int result =
        fields_read(event, fields, sizeof(fields) / sizeof(fields[0]), FIELDS_LOOSE, "an event", err);

    if (result < 0)
        return result;
    if (strlen(text) > 1024 || strlen(code) > 32 || strlen(time) >= CLOCK_TEXT_SIZE ||
        !config_name_valid(from) || (vm && !config_name_valid(vm)))
        return error_set(err, -EINVAL, "an event of another host is malformed");
    copy = json_pack("{s:I, s:s, s:s, s:s, s:s, s:s?, s:s?, s:s}", "number", (json_int_t)0, "time", time,
                     "host", from, "code", code, "level", level_text(level_of(level)), "vm", vm, "migration",
                     migration, "text", text);
    if (!copy)
        return error_set(err, -ENOMEM, "out of memory");
    publish(host, copy);
    return 0;
}

json_t *events_read(struct host *host, uint64_t since)
{
    struct events *events = host->events;
    struct ferry_error err;
    json_t *batch = NULL;
    uint64_t ring_first;

    pthread_mutex_lock(&events->lock);
    ring_first = events->ring_first;
    pthread_mutex_unlock(&events->lock);

    if (since + 1 < ring_first) {
        if (host->store->ops->event_list(host->store, since, EVENTS_BATCH, &batch, &err) < 0)
            host_record_failed(host, &err);
        else if (json_array_size(batch) > 0)
            return batch;
        json_decref(batch);
        since = ring_first - 1;
    }
    batch = json_array();
    pthread_mutex_lock(&events->lock);
    if (since + 1 < events->ring_first)
        since = events->ring_first - 1;
    for (uint64_t n = since + 1; n <= events->last && n - since <= EVENTS_BATCH; n++)
        json_array_append(batch, events->ring[n % EVENTS_RING]);
    pthread_mutex_unlock(&events->lock);
    return batch;
}

void events_wait(struct host *host, uint64_t since, uint64_t deadline)
{
    struct events *events = host->events;

    pthread_mutex_lock(&events->lock);
    while (events->last <= since && !host_stopping(host)) {
        if (!thread_cond_wait_until(&events->arrived, &events->lock, deadline))
            break;
    }
    pthread_mutex_unlock(&events->lock);
}

void events_wake(struct events *events)
{
    pthread_mutex_lock(&events->lock);
    pthread_cond_broadcast(&events->arrived);
    pthread_mutex_unlock(&events->lock);
}

uint64_t events_last(struct host *host)
{
    uint64_t last;

    pthread_mutex_lock(&host->events->lock);
    last = host->events->last;
    pthread_mutex_unlock(&host->events->lock);
    return last;
}
