#include "host/migration.h"

#include "base/error.h"
#include "host/agreement.h"
#include "host/checkpoint.h"
#include "host/events.h"
#include "host/fields.h"
#include "host/migration_fetch.h"
#include "host/migration_queue.h"
#include "host/peers.h"
#include "host/storage_copy.h"
#include "host/vms.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

const char *migration_id(const struct migration *migration)
{
    return migration->id;
}

const char *migration_peer_name(const struct migration *migration)
{
    return migration->outgoing ? migration->destination : migration->source;
}

struct migration *migration_new(struct host *host, const char *id, const char *vm, const char *machine,
                                const char *source, const char *destination)
{
    struct migration *migration = calloc(1, sizeof(*migration));

    if (!migration)
        return NULL;
    migration->host = host;
    migration->refs = 1;
    migration->outcome = "none";
    migration->cause = "";
    migration->fresh = true;
    migration->started_ns = clock_realtime_ns();
    migration->lines = json_array();
    migration->outgoing = strcmp(source, host->config->name) == 0;
    migration->stays = migration->agreed = strcmp(source, destination) == 0;
    migration->events_ours = events_last(host);
    snprintf(migration->id, sizeof(migration->id), "%s", id);
    snprintf(migration->vm_name, sizeof(migration->vm_name), "%s", vm);
    snprintf(migration->machine, sizeof(migration->machine), "%s", machine);
    snprintf(migration->source, sizeof(migration->source), "%s", source);
    snprintf(migration->destination, sizeof(migration->destination), "%s", destination);
    return migration;
}

void migration_unref(struct migration *migration)
{
    struct host *host;
    bool last;

    if (!migration)
        return;
    host = migration->host;
    host_lock(host);
    last = --migration->refs == 0;
    host_unlock(host);
    if (!last)
        return;
    vm_unref(host, migration->vm);
    free(migration->storage);
    json_decref(migration->disk_files);
    json_decref(migration->send);
    json_decref(migration->cold);
    json_decref(migration->options);
    json_decref(migration->progress);
    json_decref(migration->forecast);
    json_decref(migration->lines);
    json_decref(migration->upgrade);
    json_decref(migration->arrival);
    json_decref(migration->arrival_exit);
    free(migration);
}

struct migration *migration_find(struct host *host, const char *id)
{
    for (struct migration *migration = host->migrations; migration; migration = migration->next) {
        if (strcmp(migration->id, id) == 0)
            return migration;
    }
    return NULL;
}

void migration_touch(struct migration *migration)
{
    migration->version++;
    host_changed(migration->host);
}

void migration_register(struct migration *migration, struct vm *vm)
{
    struct host *host = migration->host;

    host_lock(host);
    migration->vm = vm;
    if (vm) {
        vm->migration = migration;
        migration->refs++;
    }
    migration->next = host->migrations;
    host->migrations = migration;
    migration->refs++;
    shares_update(host);
    migration_touch(migration);
    host_unlock(host);
}

void migration_release_vm(struct migration *migration)
{
    struct host *host = migration->host;
    bool held;

    host_lock(host);
    held = migration->vm && migration->vm->migration == migration;
    if (held)
        migration->vm->migration = NULL;
    migration_touch(migration);
    host_unlock(host);
    if (held)
        migration_unref(migration);
}

void migration_unregister(struct migration *migration)
{
    struct host *host = migration->host;
    bool found = false;

    migration_release_vm(migration);
    host_lock(host);
    for (struct migration **link = &host->migrations; *link; link = &(*link)->next) {
        if (*link == migration) {
            *link = migration->next;
            found = true;
            break;
        }
    }
    host_unlock(host);
    if (found)
        migration_unref(migration);
}

/* --- log lines --- */

static const char *level_text(enum log_level level)
{
    static const char *const names[] = {"", "debug", "info", "warn", "error"};

    return names[level];
}

static enum log_level level_of(const char *text)
{
    for (enum log_level level = LOG_LEVEL_DEBUG; level <= LOG_LEVEL_ERROR; level++) {
        if (strcmp(text, level_text(level)) == 0)
            return level;
    }
    return LOG_LEVEL_INFO;
}

static void store_line(struct host *host, const char *id, const json_t *line)
{
    struct ferry_error err;
    const struct store_line row = {
        .migration = id,
        .time_ns = (uint64_t)json_integer_value(json_object_get(line, "time_ns")),
        .level = json_string_value(json_object_get(line, "level")),
        .host = json_string_value(json_object_get(line, "host")),
        .text = json_string_value(json_object_get(line, "text")),
    };

    if (host->store->ops->line_put(host->store, &row, &err) < 0)
        host_record_failed(host, &err);
}

static void add_line(struct migration *migration, uint64_t time_ns, enum log_level level, const char *text)
{
    struct host *host = migration->host;
    struct log_labels labels = {0};
    char tag[LOG_TAG_SIZE];
    struct log *view;
    bool recorded;
    json_t *line = json_pack("{s:I, s:s, s:s, s:o}", "time_ns", (json_int_t)time_ns, "level",
                             level_text(level), "host", host->config->name, "text", fields_text(text));

    snprintf(tag, sizeof(tag), "migration %s", migration->id);
    snprintf(labels.migration, sizeof(labels.migration), "%s", migration->id);
    snprintf(labels.vm, sizeof(labels.vm), "%s", migration->vm_name);
    view = log_scope_labelled(host->log, tag, &labels);
    log_write(view, level, "%s", text);
    log_close(view);
    host_lock(host);
    if (json_array_size(migration->lines) < MIGRATION_LINES_MAX)
        json_array_append(migration->lines, line);
    recorded = migration->recorded;
    host_unlock(host);
    if (recorded)
        store_line(host, migration->id, line);
    json_decref(line);
}

void migration_log(struct migration *migration, enum log_level level, const char *format, ...)
{
    char text[1024];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    add_line(migration, clock_realtime_ns(), level, text);
}

uint64_t migration_state_time(struct migration *migration, const char *state)
{
    uint64_t time_ns = 0;
    json_t *line;
    size_t i;

    host_lock(migration->host);
    json_array_foreach(migration->lines, i, line)
    {
        const char *text = json_string_value(json_object_get(line, "text"));

        if (strncmp(text, state, strlen(state)) == 0 && text[strlen(state)] == ' ')
            time_ns = (uint64_t)json_integer_value(json_object_get(line, "time_ns"));
    }
    host_unlock(migration->host);
    return time_ns;
}

uint64_t migration_parse_time(const char *text)
{
    struct tm fields = {0};
    const char *rest = strptime(text, "%Y-%m-%dT%H:%M:%S", &fields);
    uint64_t fraction = 0;
    uint64_t unit = NS_PER_S / 10;
    time_t seconds;
    long zone;

    if (!rest)
        return 0;
    if (*rest == '.') {
        for (rest++; *rest >= '0' && *rest <= '9'; rest++, unit /= 10)
            fraction += (uint64_t)(*rest - '0') * unit;
    }
    seconds = timegm(&fields);
    if (*rest == '+' || *rest == '-') {
        zone = strtol(rest + 1, NULL, 10) * 3600;
        if (strlen(rest) == 6 && rest[3] == ':')
            zone += strtol(rest + 4, NULL, 10) * 60;
        seconds -= *rest == '+' ? zone : -zone;
    }
    return seconds < 0 ? 0 : (uint64_t)seconds * NS_PER_S + fraction;
}

/* --- what ferry-vm tells --- */

/* Under the lock. NEWCOMER: it is what an upgrade's new process tells, whose last word alone is kept. */
static void take_progress(struct migration *migration, const json_t *params, bool final, bool newcomer)
{
    json_t **kept = newcomer ? &migration->arrival : &migration->progress;
    bool told = newcomer ? migration->arrival != NULL : migration->told_final;

    if (told || (newcomer && !final))
        return;
    json_decref(*kept);
    *kept = json_incref((json_t *)params);
    if (!newcomer) {
        migration->told_final = final;
        fetch_note(migration);
    }
    migration_touch(migration);
}

void migration_told(struct vm_process *process, const char *method, const json_t *params)
{
    struct host *host = process->host;
    struct vm *vm = process->vm;
    const char *id = json_string_value(json_object_get(params, "id"));
    struct migration *migration = NULL;

    host_lock(host);
    if (id && vm->migration && strcmp(vm->migration->id, id) == 0) {
        migration = vm->migration;
        migration->refs++;
    }
    if (migration && strcmp(method, "migration.log") != 0)
        take_progress(migration, params, strcmp(method, "migration.finished") == 0, process == vm->newcomer);
    host_unlock(host);
    if (migration && strcmp(method, "migration.log") == 0) {
        const char *time = json_string_value(json_object_get(params, "time"));
        const char *level = json_string_value(json_object_get(params, "level"));
        const char *text = json_string_value(json_object_get(params, "text"));
        uint64_t time_ns = time ? migration_parse_time(time) : 0;

        if (text)
            add_line(migration, time_ns ? time_ns : clock_realtime_ns(), level_of(level ? level : ""), text);
    }
    migration_unref(migration);
}

/* What migrate.status says, taken as if it had been told. For when notifications were lost. */
void migration_ask(struct migration *migration)
{
    struct host *host = migration->host;
    struct vm_process *process = vm_process_get(host, migration->vm);
    json_t *object = NULL;
    const char *outcome;

    if (process && vm_process_call(process, "migrate.status", NULL, host_vm_ms(host), &object, NULL) == 0) {
        outcome = json_string_value(json_object_get(object, "outcome"));
        if (outcome)
            migration_told(
                process, strcmp(outcome, "none") == 0 ? "migration.progress" : "migration.finished", object);
    }
    json_decref(object);
    vm_process_unref(process);
}

bool migration_wait(struct migration *migration)
{
    struct host *host = migration->host;
    bool stopping;

    host_lock(host);
    while (!migration->told_final && migration->vm && migration->vm->process && !host->stopping) {
        unsigned version = migration->version;

        if (migration->sending && migration->share != migration->share_told) {
            host_unlock(host);
            share_tell(migration);
            host_lock(host);
            continue;
        }
        if (fetch_has_news(migration)) {
            host_unlock(host);
            fetch_follow(migration);
            host_lock(host);
            continue;
        }
        /* One that tells nothing for so long is asked. */
        if (!thread_cond_wait_until(&host->changed, &host->lock, clock_deadline(host_vm_ms(host))) &&
            migration->version == version) {
            host_unlock(host);
            migration_ask(migration);
            host_lock(host);
        }
    }
    stopping = !migration->told_final && migration->vm && migration->vm->process;
    host_unlock(host);
    return !stopping;
}

json_t *migration_final_word(struct migration *migration)
{
    struct host *host = migration->host;
    json_t *word = NULL;
    json_t *left;

    host_lock(host);
    left = migration->vm ? migration->vm->exit : NULL;
    if (migration->told_final) {
        word = json_incref(migration->progress);
    } else if (left) {
        const char *id = json_string_value(json_object_get(left, "migration"));
        json_t *report = json_object_get(left, "report");

        const char *outcome = json_string_value(json_object_get(report, "outcome"));

        if (id && strcmp(id, migration->id) == 0 && outcome && strcmp(outcome, "none") != 0)
            word = json_incref(report);
    }
    if (word && word != migration->progress) {
        json_decref(migration->progress);
        migration->progress = json_incref(word);
    }
    host_unlock(host);
    return word;
}

/* --- objects --- */

/* What a migration looks like before ferry-vm has said anything. */
static json_t *blank_object(const struct migration *migration)
{
    json_t *object = json_pack(
        "{s:s, s:i, s:s, s:i, s:s, s:s, s:[], s:i, s:{s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i}}", "state",
        migration->outgoing ? "MIGRATE_TO_VMX_READY" : "MIGRATE_FROM_VMX_INIT", "state_number",
        migration->outgoing ? 1 : 7, "phase", "Init", "percent", 0, "cause", "", "error", "", "rounds",
        "round", 0, "downtime_parts", "pause", 0, "quiesce", 0, "last pages", 0, "state save", 0, "wire", 0,
        "state load", 0, "lock", 0, "resume", 0, "announce", 0);
    static const char *const numbers[] = {"memory_bytes",  "remaining_bytes", "wire_bytes",      "pages_raw",
                                          "pages_zero",    "pages_skipped",   "bandwidth",       "dirty_rate",
                                          "total_ns",      "setup_ns",        "downtime_ns",     "throttle",
                                          "throttle_most", "state_bytes",     "pages_postponed", "copy_rate"};
    static const char *const encodings[] = {"zero", "unchanged", "delta", "lz4", "zstd"};
    json_t *encoded = json_object();

    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        json_object_set_new(object, numbers[i], json_integer(0));
    json_object_set_new(object, "dirty_tracking", json_string(""));
    json_object_set_new(object, "quick_resume", json_null());
    for (size_t i = 0; i < sizeof(encodings) / sizeof(encodings[0]); i++)
        json_object_set_new(encoded, encodings[i], json_pack("{s:i, s:i}", "pages", 0, "saved_bytes", 0));
    json_object_set_new(object, "encodings", encoded);
    return object;
}

void migration_set_time(json_t *object, const char *key, uint64_t realtime_ns)
{
    char text[CLOCK_TEXT_SIZE];

    json_object_set_new(object, key,
                        realtime_ns ? json_string(clock_format(realtime_ns, text)) : json_null());
}

/* While it waits nothing has begun: there is no state, and none of the phases. */
static void set_queue(json_t *object, const struct migration *migration)
{
    unsigned position = queue_position(migration);

    json_object_set_new(object, "queue", json_integer((json_int_t)position));
    if (position == 0)
        return;
    json_object_set_new(object, "state", json_string("MIGRATE_VMX_NONE"));
    json_object_set_new(object, "state_number", json_integer(0));
    json_object_set_new(object, "phase", json_string("Queued"));
}

static const char *kind_of(const struct migration *migration)
{
    if (migration->stays)
        return "upgrade";
    return migration->cold ? "cold" : "hot";
}

json_t *migration_object(const struct migration *migration)
{
    json_t *object = blank_object(migration);

    if (migration->progress)
        json_object_update(object, migration->progress);
    json_object_del(object, "log");
    set_queue(object, migration);
    json_object_set_new(object, "id", json_string(migration->id));
    json_object_set_new(object, "vm", json_string(migration->vm_name));
    json_object_set_new(object, "source", json_string(migration->source));
    json_object_set_new(object, "destination", json_string(migration->destination));
    json_object_set_new(object, "side", json_string(migration->outgoing ? "source" : "destination"));
    json_object_set_new(object, "kind", json_string(kind_of(migration)));
    if (migration->upgrade)
        json_object_set(object, "upgrade", migration->upgrade);
    if (migration->disk_files)
        json_object_set_new(object, "disks", storage_object(migration));
    json_object_set_new(object, "outcome", json_string(migration->outcome));
    json_object_set_new(object, "machine", json_string(migration->machine));
    if (migration->outgoing && !migration->stays)
        json_object_set_new(
            object, "bandwidth_limit",
            json_integer((json_int_t)(migration->share_told ? migration->share_told : migration->own_limit)));
    if (migration->forecast)
        json_object_set(object, "forecast", migration->forecast);
    migration_set_time(object, "started", migration->started_ns);
    migration_set_time(object, "ended", migration->ended_ns);
    json_object_set_new(object, "agreed", json_boolean(migration->agreed));
    if (migration->ended_ns) {
        json_object_set_new(object, "cause", json_string(migration->cause));
        json_object_set_new(object, "error", fields_text(migration->error));
    }
    return object;
}

void migration_record(struct migration *migration)
{
    struct host *host = migration->host;
    struct ferry_error err;
    struct store_migration row = {
        .id = migration->id,
        .vm = migration->vm_name,
        .started_ns = migration->started_ns,
    };
    json_t *lines = NULL;
    json_t *line;
    size_t i;
    int result;

    host_lock(host);
    row.outcome = migration->outcome;
    row.ended_ns = migration->ended_ns;
    row.object = migration_object(migration);
    if (!migration->recorded)
        lines = json_copy(migration->lines);
    migration->recorded = true;
    host_unlock(host);
    json_object_set_new(row.object, "peer_address", json_string(migration->peer_address));
    if (migration->options)
        json_object_set(row.object, "options", migration->options);
    if (migration->must_encrypt)
        json_object_set_new(row.object, "must_encrypt", json_true());
    json_object_set_new(row.object, "started_ns", json_integer((json_int_t)migration->started_ns));
    result = host->store->ops->migration_put(host->store, &row, &err);
    if (result < 0)
        host_record_failed(host, &err);
    json_array_foreach(lines, i, line) store_line(host, migration->id, line);
    host_lock(host);
    if (result == 0 && row.ended_ns)
        migration->final_recorded = true;
    host->records_version++;
    host_changed(host);
    host_unlock(host);
    json_decref(lines);
    json_decref(row.object);
}

void migration_end(struct migration *migration, const char *outcome, const char *cause, const char *error)
{
    struct host *host = migration->host;

    host_lock(host);
    migration->outcome = outcome;
    migration->cause = cause;
    snprintf(migration->error, sizeof(migration->error), "%s", error);
    agreement_join(migration);
    migration->ended_ns = clock_realtime_ns();
    host_unlock(host);
    /* Before the VM is free: what a next ferryd finds must not be a VM that has gone on and a record that has
     * not. */
    migration_record(migration);
    migration_release_vm(migration);
    host_lock(host);
    migration->ended = true;
    shares_update(host);
    migration_touch(migration);
    host_unlock(host);
}

const char *migration_known_cause(const char *cause)
{
    static const char *const known[] = {"network", "storage",     "version",   "cpu",   "memory",
                                        "lock",    "convergence", "cancelled", "guest", "internal"};

    for (size_t i = 0; cause && i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(cause, known[i]) == 0)
            return known[i];
    }
    return "";
}

/* --- cancelling --- */

int migration_cancel(struct host *host, const char *prefix, json_t **answer, struct ferry_error *err)
{
    char id[MIGRATION_ID_SIZE];
    char saving[MIGRATION_ID_SIZE] = "";
    struct vm_process *process = NULL;
    struct migration *migration;
    bool unsent;
    int result = migration_resolve(host, prefix, id, err);

    if (result < 0)
        return result;
    host_lock(host);
    migration = migration_find(host, id);
    if (migration && !migration->ended)
        snprintf(saving, sizeof(saving), "%s", migration->saving);
    unsent = migration && ((!migration->ended && migration->unsent) || storage_may_cancel(migration));
    if (unsent) {
        migration->cancelled = true;
        migration_touch(migration);
    } else if (migration && !migration->ended && migration->vm) {
        process = migration->vm->process;
    }
    if (process)
        process->refs++;
    host_unlock(host);
    if (unsent)
        return migration_show(host, id, true, answer, err);
    if (saving[0] && !process) { /* it is still being suspended, or it is too late */
        json_t *object = NULL;

        result = checkpoint_cancel(host, saving, &object, err);
        json_decref(object);
        return result < 0 ? result : migration_show(host, id, true, answer, err);
    }
    if (!process)
        return error_set(err, HOST_CONFLICT, "migration %s cannot be cancelled: too late, it has ended", id);
    result =
        vm_process_call(process, "migrate.cancel", json_pack("{s:s}", "id", id), host_vm_ms(host), NULL, err);
    vm_process_unref(process);
    if (result < 0)
        return error_prefix(err,
                            result == -EALREADY || vm_process_call_came_late(result) ? HOST_CONFLICT : result,
                            "migration %s cannot be cancelled", id);
    return migration_show(host, id, true, answer, err);
}

/* --- jobs --- */

static void *job_main(void *opaque)
{
    struct migration *migration = opaque;

    if (migration->stays)
        migration_run_upgrade(migration);
    else if (migration->outgoing)
        migration_run_source(migration);
    else
        migration_run_destination(migration);
    migration_unref(migration);
    return NULL;
}

int migration_start_job(struct migration *migration, struct ferry_error *err)
{
    char name[16];
    int result;

    snprintf(name, sizeof(name), "move-%.8s", migration->id);
    host_lock(migration->host);
    migration->refs++;
    result = thread_start(&migration->thread, THREAD_GENERAL, name, job_main, migration,
                          err); /* before it can be joined */
    host_unlock(migration->host);
    if (result < 0)
        migration_unref(migration);
    return result;
}

void migrations_reap(struct host *host, bool all)
{
    struct migration **link;
    struct migration *done = NULL;

    host_lock(host);
    for (link = &host->migrations; *link;) {
        struct migration *migration = *link;

        if (!all && !(migration->ended && migration->final_recorded && migration->agreed)) {
            link = &migration->next;
            continue;
        }
        *link = migration->next;
        migration->next = done;
        done = migration;
    }
    host_unlock(host);
    while (done) {
        struct migration *next = done->next;

        thread_join(&done->thread);
        migration_release_vm(done);
        migration_unref(done);
        done = next;
    }
}

/* --- the other host --- */

static uint64_t peer_timeout_ns(const struct migration *migration)
{
    return migration->host->config->peer_timeout_ns;
}

static int find_peer(const struct migration *migration, char address[static SOCK_ADDRESS_SIZE],
                     struct ferry_error *err)
{
    if (peers_find(migration->host, migration_peer_name(migration), address, NULL) < 0)
        snprintf(address, SOCK_ADDRESS_SIZE, "%s", migration->peer_address);
    if (!address[0])
        return error_set(err, HOST_UNREACHABLE, "the address of host %s is not known",
                         migration_peer_name(migration));
    if (migration->silent_ns && clock_now_ns() - migration->silent_ns < peer_timeout_ns(migration))
        return error_set(err, HOST_UNREACHABLE, "host %s has just been silent",
                         migration_peer_name(migration));
    return 0;
}

/* A refusal costs nothing, and may be another one next time. */
static void note_silence(struct migration *migration, int result, uint64_t begin_ns)
{
    uint64_t now = clock_now_ns();

    if (result == HOST_UNREACHABLE && now - begin_ns >= peer_timeout_ns(migration) / 2)
        migration->silent_ns = now;
}

int migration_call_peer(struct migration *migration, const char *method, const char *path, json_t *body,
                        enum peer_patience patience, json_t **answer, struct ferry_error *err)
{
    char address[SOCK_ADDRESS_SIZE];
    uint64_t begin = clock_now_ns();
    int result = find_peer(migration, address, err);

    if (answer)
        *answer = NULL;
    if (result < 0)
        return result;
    result = peer_call(migration->host, address, method, path, body, patience, answer, err);
    note_silence(migration, result, begin);
    return result;
}

int migration_lines_of_peer(struct migration *migration, const char *path, enum peer_patience patience,
                            json_t **answer)
{
    char address[SOCK_ADDRESS_SIZE];
    uint64_t begin = clock_now_ns();
    int result = find_peer(migration, address, NULL);

    *answer = NULL;
    if (result < 0)
        return result;
    result = peer_lines(migration->host, address, path, patience, answer, NULL);
    note_silence(migration, result, begin);
    return result;
}

/* --- events of both sides --- */

static bool event_is(const json_t *event, const char *key, const char *value)
{
    const char *text = json_string_value(json_object_get(event, key));

    return text && strcmp(text, value) == 0;
}

static void send_events(struct migration *migration)
{
    struct host *host = migration->host;
    json_t *batch = events_read(host, migration->events_ours);
    json_t *chosen = json_array();
    json_t *event;
    size_t i;

    json_array_foreach(batch, i, event)
    {
        migration->events_ours = (uint64_t)json_integer_value(json_object_get(event, "number"));
        if (event_is(event, "migration", migration->id) && event_is(event, "host", host->config->name))
            json_array_append(chosen, event);
    }
    if (json_array_size(chosen) > 0) {
        json_t *body = json_pack("{s:O}", "events", chosen);

        migration_call_peer(migration, "POST", "/v1/events", body, PEER_PROMPT, NULL, NULL);
        json_decref(body);
    }
    json_decref(chosen);
    json_decref(batch);
}

void migration_exchange_events(struct migration *migration)
{
    struct host *host = migration->host;
    char path[160];
    json_t *theirs = NULL;
    json_t *event;
    size_t i;

    if (!migration->peer_address[0])
        return;
    send_events(migration);
    snprintf(path, sizeof(path), "/v1/events?since=%llu&migration=%s",
             (unsigned long long)migration->events_theirs, migration->id);
    if (migration_lines_of_peer(migration, path, PEER_PROMPT, &theirs) < 0)
        return;
    json_array_foreach(theirs, i, event)
    {
        json_int_t number = json_integer_value(json_object_get(event, "number"));

        if (number > 0 && (uint64_t)number > migration->events_theirs)
            migration->events_theirs = (uint64_t)number;
        if (event_is(event, "migration", migration->id) &&
            event_is(event, "host", migration_peer_name(migration)))
            events_import(host, event, NULL);
    }
    json_decref(theirs);
}
