#include "vm/migrate_internal.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "engine/fault.h"
#include "vm/checkpoint.h"
#include "vm/files.h"
#include "vm/guest.h"
#include "vm/params.h"
#include "vm/sample.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TICK_NS (100 * NS_PER_MS)
/* How long a source waits, after MIGRATE_TO, for the word to start, unless it is told. */
#define PREPARED_NS (60 * NS_PER_S)

static void migration_notify(struct migration *migration, const char *method, bool with_log)
{
    jsonrpc_notify(migration->vm->control, method, migration_json(migration, with_log));
}

/* ---- news from the session's thread ---- */

struct migration_line {
    struct migration *migration;
    enum ferry_log_level level;
    char time[CLOCK_TEXT_SIZE];
    char text[];
};

static const char *level_name(enum ferry_log_level level)
{
    static const char *const names[] = {[FERRY_LOG_DEBUG] = "debug",
                                        [FERRY_LOG_INFO] = "info",
                                        [FERRY_LOG_WARN] = "warn",
                                        [FERRY_LOG_ERROR] = "error"};

    return names[level];
}

static void migration_add_line(void *opaque)
{
    CLEANUP_FREE struct migration_line *line = opaque;
    struct migration *migration = line->migration;
    json_t *json = json_pack("{s:s, s:s, s:s}", "time", line->time, "level", level_name(line->level), "text",
                             line->text);

    if (!json)
        return;
    if (json_array_size(migration->lines) >= MIGRATION_LOG_MAX)
        json_array_remove(migration->lines, 0);
    json_array_append(migration->lines, json);
    json_object_set_new(json, "id", json_string(migration->id));
    jsonrpc_notify(migration->vm->control, "migration.log", json);
}

static void migration_on_log(void *opaque, enum ferry_log_level level, const char *text)
{
    struct migration *migration = opaque;
    size_t size = strlen(text) + 1;
    struct migration_line *line;

    log_write(migration->log, (enum log_level)level, "%s", text);
    if (level < FERRY_LOG_INFO)
        return;
    line = malloc(sizeof(*line) + size);
    if (!line)
        return;
    line->migration = migration;
    line->level = level;
    clock_format(clock_realtime_ns(), line->time);
    memcpy(line->text, text, size);
    if (loop_post(migration->vm->loop, migration_add_line, line))
        free(line);
}

/* A line of ours; loop thread. */
static void migration_say(struct migration *migration, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void migration_say(struct migration *migration, const char *format, ...)
{
    char text[FERRY_ERROR_TEXT_SIZE];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    migration_on_log(migration, FERRY_LOG_INFO, text);
}

/* A state, phase or round as it was: the loop may come to it only when the next has begun. */
struct migration_change {
    struct migration *migration;
    struct ferry_progress progress;
};

static void migration_take_change(void *opaque)
{
    CLEANUP_FREE struct migration_change *change = opaque;
    struct migration *migration = change->migration;

    __atomic_fetch_sub(&migration->changes, 1, __ATOMIC_ACQ_REL);
    migration->progress = change->progress;
    migration_notify(migration, "migration.progress", false);
    /* Where the guest runs may have changed. */
    if (change->progress.fetch.running)
        vm_notify_state(migration->vm);
}

static void migration_note_change(struct migration *migration)
{
    struct migration_change *change = malloc(sizeof(*change));

    if (!change)
        return;
    change->migration = migration;
    __atomic_fetch_add(&migration->changes, 1, __ATOMIC_ACQ_REL);
    ferry_session_progress(migration->session, &change->progress);
    if (loop_post(migration->vm->loop, migration_take_change, change)) {
        __atomic_fetch_sub(&migration->changes, 1, __ATOMIC_ACQ_REL);
        free(change);
    }
}

static void migration_on_state(void *opaque, enum ferry_state state)
{
    migration_note_change(opaque);
}

static void migration_on_phase(void *opaque, enum ferry_phase phase)
{
    migration_note_change(opaque);
}

static void migration_on_round(void *opaque, unsigned number, const struct ferry_round *round)
{
    migration_note_change(opaque);
}

/* ---- course ---- */

static void migration_finish(struct migration *migration)
{
    migration->step = MIGRATION_ENDED;
    clock_format(clock_realtime_ns(), migration->ended);
    loop_timer_disarm(migration->timer);
    migration_notify(migration, "migration.finished", true);
    vm_migration_ended(migration->vm);
}

static void migration_stop_listening(struct migration *migration)
{
    if (migration->listen_fd < 0)
        return;
    close(TAKE_FD(migration->listen_fd));
    if (migration->listen_path[0])
        unlink(migration->listen_path);
}

static void migration_session_ended(void *opaque)
{
    struct migration *migration = opaque;

    thread_join(&migration->thread);
    ferry_session_progress(migration->session, &migration->progress);
    ferry_session_free(migration->session);
    migration->session = NULL;
    migration_stop_listening(migration);
    migration_finish(migration);
}

static void *migration_thread(void *argument)
{
    struct migration *migration = argument;

    /* What it returns is in the progress, too. */
    ferry_session_run(migration->session, NULL);
    /* Should there be no memory to tell the loop, its next tick finds out. */
    if (loop_post(migration->vm->loop, migration_session_ended, migration))
        __atomic_store_n(&migration->untold, true, __ATOMIC_RELEASE);
    return NULL;
}

/* A prepared migration that is not to be. */
static void migration_drop(struct migration *migration, enum ferry_outcome outcome, const char *why)
{
    migration->progress.state = MIGRATE_TO_VMX_FINISHED;
    migration->progress.outcome = outcome;
    migration->progress.cause = FERRY_CAUSE_CANCELLED;
    snprintf(migration->progress.error, sizeof(migration->progress.error), "%s", why);
    migration_say(migration, "%s", why);
    migration_finish(migration);
}

static void migration_tick(void *opaque)
{
    struct migration *migration = opaque;

    if (migration->step == MIGRATION_PREPARED) {
        migration_drop(migration, FERRY_OUTCOME_FAILED, "the word to start did not come");
        return;
    }
    if (__atomic_load_n(&migration->untold, __ATOMIC_ACQUIRE)) {
        migration_session_ended(migration);
        return;
    }
    /* Older news is still to be told; a session whose thread has not come to it yet has none. */
    if (!__atomic_load_n(&migration->changes, __ATOMIC_ACQUIRE)) {
        struct ferry_progress now;

        ferry_session_progress(migration->session, &now);
        if (now.state != MIGRATE_VMX_NONE) {
            migration->progress = now;
            migration_notify(migration, "migration.progress", false);
        }
    }
    loop_timer_arm(migration->timer, TICK_NS);
}

static int migration_run(struct migration *migration, struct ferry_error *err)
{
    int result =
        thread_start(&migration->thread, THREAD_MIGRATION, "migration", migration_thread, migration, err);

    if (result)
        return result;
    migration->step = MIGRATION_RUNNING;
    loop_timer_arm(migration->timer, TICK_NS);
    return 0;
}

void migration_free(struct migration *migration)
{
    if (!migration)
        return;
    loop_timer_remove(migration->timer);
    ferry_session_free(migration->session);
    migration_stop_listening(migration);
    json_decref(migration->lines);
    log_close(migration->log);
    free(migration);
}

static bool id_is_good(const char *id)
{
    return strspn(id, "0123456789abcdefABCDEF-") == strlen(id);
}

/* The part that both sides have. */
static int migration_new(struct migration **out, struct vm *vm, json_t *params, bool is_source,
                         struct ferry_error *err)
{
    struct migration *migration = calloc(1, sizeof(*migration));
    char tag[LOG_TAG_SIZE];
    int result;

    if (!migration)
        return error_set(err, -ENOMEM, "out of memory for a migration");
    migration->vm = vm;
    migration->is_source = is_source;
    migration->listen_fd = -1;
    clock_format(clock_realtime_ns(), migration->started);
    migration->progress.state = is_source ? MIGRATE_TO_VMX_READY : MIGRATE_FROM_VMX_INIT;
    migration->progress.phase = FERRY_PHASE_INIT;
    migration->progress.memory_bytes = vm->config.memory;
    result = params_text(params, "id", migration->id, sizeof(migration->id), err);
    if (!result && !id_is_good(migration->id))
        result = error_set(err, -EINVAL, "parameter \"id\" is not a migration id");
    if (!result)
        result = params_text(params, "source", migration->source, sizeof(migration->source), err);
    if (!result)
        result =
            params_text(params, "destination", migration->destination, sizeof(migration->destination), err);
    if (!result && is_source && !migration_stays(migration))
        machine_dirty_tracking(vm->machine, migration->tracking, sizeof(migration->tracking));
    if (!result)
        result = loop_timer_add(vm->loop, migration_tick, migration, &migration->timer, err);
    snprintf(tag, sizeof(tag), "migration %s", migration->id);
    migration->log = log_scope(vm->log, tag);
    migration->lines = json_array();
    if (!result && (!migration->log || !migration->lines))
        result = error_set(err, -ENOMEM, "out of memory for a migration");
    if (result) {
        migration_free(migration);
        return result;
    }
    *out = migration;
    return 0;
}

static struct ferry_observer migration_observer(struct migration *migration)
{
    return (struct ferry_observer){.opaque = migration,
                                   .log = migration_on_log,
                                   .state_changed = migration_on_state,
                                   .phase_changed = migration_on_phase,
                                   .round_done = migration_on_round};
}

/* ---- requests ---- */

int migration_prepare(struct vm *vm, json_t *params, struct ferry_error *err)
{
    static const char *const names[] = {"id", "source", "destination", "patience", NULL};
    struct migration *migration = NULL;
    uint64_t patience_ns = PREPARED_NS;
    int result = params_only(params, names, err);

    if (!result)
        result = params_number(params, "patience", 24 * 3600 * NS_PER_S, &patience_ns, err);
    if (result)
        return result;
    if (migration_active(vm->migration))
        return error_set(err, -EBUSY, "%s is being migrated already (to %s, migration %s)", vm->config.name,
                         vm->migration->destination, vm->migration->id);
    if (vm_checkpoint_active(vm->checkpoint))
        return error_set(err, -EBUSY, "%s is being saved into %s", vm->config.name,
                         vm_checkpoint_path(vm->checkpoint));
    result = vm_checkpoint_check_filled(vm, err);
    if (result)
        return result;
    if (vm->setup || vm->away || vm->exit)
        return error_set(err, -EBUSY, "%s is not running here", vm->config.name);
    result = migration_new(&migration, vm, params, true, err);
    if (!migration)
        return result;
    result = files_mark_handover(vm->handover_fd, false, err); /* an earlier one's */
    if (result) {
        migration_free(migration);
        return result;
    }
    sample_abort(vm, "it is to be migrated");
    migration->step = MIGRATION_PREPARED;
    migration_free(vm->migration);
    vm->migration = migration;
    loop_timer_arm(migration->timer, patience_ns);
    migration_say(migration, "MIGRATE_TO received: %s is to move from %s to %s", vm->config.name,
                  migration->source, migration->destination);
    vm_notify_state(vm);
    return 0;
}

int migration_send(struct vm *vm, json_t *params, struct ferry_error *err)
{
    struct migration *migration = vm->migration;
    struct ferry_source_options options;
    struct ferry_observer observer;
    const char *id = json_string_value(json_object_get(params, "id"));
    int result;

    if (!migration_waiting(migration) || !id || strcmp(id, migration->id) != 0)
        return error_set(err, -ENOENT, "migration %.40s was not prepared here", id ? id : "(none)");
    result = migration_source_options(&options, migration, params, err);
    if (result)
        return result;
    observer = migration_observer(migration);
    result = ferry_source_new(&migration->session, &options, &vm_guest_ops, vm, &observer, err);
    ferry_credentials_free(options.credentials);
    explicit_bzero(options.token, sizeof(options.token));
    if (result)
        return result;
    result = migration_run(migration, err);
    if (result) {
        ferry_session_free(migration->session);
        migration->session = NULL;
    }
    return result;
}

static int migration_listen(struct migration *migration, json_t *params, char address[SOCK_ADDRESS_SIZE],
                            struct ferry_error *err)
{
    char listen[SOCK_ADDRESS_SIZE];
    int result = params_text(params, "listen", listen, sizeof(listen), err);

    if (result)
        return result;
    if (!json_object_get(params, "certificate") && !migration->vm->options.insecure &&
        !sock_address_is_loopback(listen))
        return error_set(err, -EPERM,
                         "without a certificate a migration listens on loopback addresses only, not on %s",
                         listen);
    if (migration->vm->options.former_fd >= 0 && !strchr(listen, '/'))
        return error_set(err, -EINVAL, "memory is passed by a Unix socket, which %s is not", listen);
    migration->listen_fd = sock_listen(listen, err);
    if (migration->listen_fd < 0)
        return migration->listen_fd;
    if (strchr(listen, '/'))
        memcpy(migration->listen_path, listen, sizeof(listen));
    return sock_local_address(migration->listen_fd, address, err);
}

static int destination_start(struct migration *migration, json_t *params, struct ferry_error *err)
{
    struct ferry_destination_options options = {.listen_fd = migration->listen_fd,
                                                .memory_passed = migration->vm->options.former_fd >= 0};
    struct ferry_observer observer = migration_observer(migration);
    int result;

    memcpy(options.migration_id, migration->id, sizeof(options.migration_id));
    memcpy(options.source, migration->source, sizeof(options.source));
    memcpy(options.destination, migration->destination, sizeof(options.destination));
    result = params_hex(params, "token", options.token, sizeof(options.token), err);
    if (!result)
        result = params_number(params, "peer_timeout", INT64_MAX, &options.peer_timeout_ns, err);
    if (!result)
        result = migration_load_credentials(&options.credentials, params, err);
    if (!result)
        result = ferry_destination_new(&migration->session, &options, &vm_guest_ops, migration->vm, &observer,
                                       err);
    ferry_credentials_free(options.credentials);
    explicit_bzero(options.token, sizeof(options.token));
    if (!result)
        result = migration_run(migration, err);
    return result;
}

int migration_receive(struct vm *vm, json_t *params, json_t **result, struct ferry_error *err)
{
    static const char *const names[] = {"id",     "token",        "source",      "destination",
                                        "listen", "peer_timeout", "certificate", NULL};
    char address[SOCK_ADDRESS_SIZE];
    struct migration *migration;
    int code = params_only(params, names, err);

    if (code)
        return code;
    if (!vm->options.incoming || vm->migration)
        return error_set(err, -EBUSY, "this process does not wait for a VM to arrive");
    code = migration_new(&migration, vm, params, false, err);
    if (code)
        return code;
    vm->migration = migration; /* the session's thread looks for it there */
    code = migration_listen(migration, params, address, err);
    if (!code)
        code = destination_start(migration, params, err);
    if (code) {
        vm->migration = NULL;
        migration_free(migration);
        return code;
    }
    loop_timer_disarm(vm->patience);
    migration_say(migration, "MIGRATE_FROM received: %s is to come from %s to %s; listening on %s",
                  vm->config.name, migration->source, migration->destination, address);
    *result = json_pack("{s:s}", "address", address);
    return 0;
}

int migration_limit(struct vm *vm, json_t *params, struct ferry_error *err)
{
    static const char *const names[] = {"id", "bandwidth_limit", NULL};
    struct migration *migration = vm->migration;
    const char *id = json_string_value(json_object_get(params, "id"));
    uint64_t limit = 0;
    int result = params_only(params, names, err);

    if (!result)
        result = params_number(params, "bandwidth_limit", INT64_MAX, &limit, err);
    if (result)
        return result;
    if (!id || !migration || strcmp(id, migration->id) != 0 || migration->step != MIGRATION_RUNNING ||
        !migration->is_source)
        return error_set(err, -ENOENT, "migration %.40s does not send from here", id ? id : "(none)");
    ferry_session_set_bandwidth(migration->session, limit);
    return 0;
}

int migration_cancel(struct vm *vm, json_t *params, struct ferry_error *err)
{
    static const char *const names[] = {"id", NULL};
    struct migration *migration = vm->migration;
    const char *id = json_string_value(json_object_get(params, "id"));
    int result = params_only(params, names, err);

    if (result)
        return result;
    if (!id || !migration || strcmp(id, migration->id) != 0)
        return error_set(err, -ENOENT, "there is no migration %.40s here", id ? id : "(none)");
    if (migration->step == MIGRATION_ENDED)
        return error_set(err, -EALREADY, "too late: migration %s has ended", migration->id);
    if (migration->step == MIGRATION_RUNNING)
        return ferry_session_cancel(migration->session, err);
    migration_drop(migration, FERRY_OUTCOME_CANCELLED, "cancelled before it began");
    return 0;
}

static const char *id_of(const json_t *params)
{
    const char *id = json_string_value(json_object_get(params, "id"));

    return id ? id : "(none)";
}

static int migration_check_id(const struct vm *vm, const json_t *params, struct ferry_error *err)
{
    const struct migration *migration = vm->migration;

    if (!migration || strcmp(id_of(params), migration->id) != 0 || migration->step != MIGRATION_RUNNING)
        return error_set(err, -ENOENT, "migration %.40s is not under way here", id_of(params));
    return 0;
}

int migration_reconnect(struct vm *vm, json_t *params, struct ferry_error *err)
{
    static const char *const names[] = {"id", NULL};
    int result = params_only(params, names, err);

    if (!result)
        result = migration_check_id(vm, params, err);
    return result ? result : ferry_session_reconnect(vm->migration->session, err);
}

int migration_end_fetch(struct vm *vm, json_t *params, struct ferry_error *err)
{
    static const char *const names[] = {"id", "how", "why", NULL};
    const char *how = json_string_value(json_object_get(params, "how"));
    const char *why = json_string_value(json_object_get(params, "why"));
    int result = params_only(params, names, err);

    if (!result)
        result = migration_check_id(vm, params, err);
    if (result)
        return result;
    if (how && strcmp(how, "completed") == 0 && vm->migration->is_source)
        return ferry_session_end_fetch(vm->migration->session, FERRY_FETCH_COMPLETED, "", err);
    if (how && strcmp(how, "lost") == 0)
        return ferry_session_end_fetch(vm->migration->session, FERRY_FETCH_LOST,
                                       why ? why : "the other host is gone", err);
    return error_set(err, -EINVAL, "parameter \"how\" must be \"lost\" or, at the source, \"completed\"");
}

int migration_end_serving(struct migration *migration, bool here, struct ferry_error *err)
{
    if (here)
        return ferry_session_end_fetch(migration->session, FERRY_FETCH_STAYED, "it was decided so", err);
    return ferry_session_end_fetch(migration->session, FERRY_FETCH_LOST,
                                   "it was decided that the memory here is not needed any more", err);
}

void migration_abort(struct migration *migration, enum ferry_cause cause, const char *why)
{
    /* The guest is over: what is missing is missed by nobody. */
    if (!migration->is_source &&
        ferry_session_end_fetch(migration->session, FERRY_FETCH_GUEST_ENDED, why, NULL) == 0)
        return;
    ferry_session_abort(migration->session, cause, why);
}

void migration_drop_connections(struct migration *migration)
{
    if (migration->session)
        fault_drop_connections(migration->session);
}

void migration_give_up(struct migration *migration)
{
    if (migration->step == MIGRATION_PREPARED)
        migration_drop(migration, FERRY_OUTCOME_CANCELLED, "the VM ends");
    else if (migration->step == MIGRATION_RUNNING &&
             (migration->is_source ||
              ferry_session_end_fetch(migration->session, FERRY_FETCH_GUEST_ENDED, "the VM ends", NULL) < 0))
        ferry_session_cancel(migration->session, NULL);
}

/* ---- what others ask ---- */

bool migration_active(const struct migration *migration)
{
    return migration && migration->step != MIGRATION_ENDED;
}

bool migration_waiting(const struct migration *migration)
{
    return migration && migration->step == MIGRATION_PREPARED;
}

bool migration_is_source(const struct migration *migration)
{
    return migration->is_source;
}

bool migration_stays(const struct migration *migration)
{
    return strcmp(migration->source, migration->destination) == 0;
}

bool migration_fetching(const struct migration *migration)
{
    struct ferry_progress progress;

    if (migration->step != MIGRATION_RUNNING)
        return false;
    ferry_session_progress(migration->session, &progress);
    return progress.fetch.running;
}

bool migration_left_torn(const struct migration *migration)
{
    return migration && !migration->is_source && migration->step == MIGRATION_ENDED &&
           migration->progress.fetch.used && migration->progress.remaining_bytes > 0 &&
           (migration->progress.outcome == FERRY_OUTCOME_COMPLETED ||
            migration->progress.outcome == FERRY_OUTCOME_LOST);
}

const char *migration_id(const struct migration *migration)
{
    return migration->id;
}

const char *migration_destination(const struct migration *migration)
{
    return migration->destination;
}

void migration_handover(const struct migration *migration, struct ferry_handover *handover)
{
    *handover = (struct ferry_handover){.destination_never_ran = false};
    memcpy(handover->migration_id, migration->id, sizeof(handover->migration_id));
    memcpy(handover->source, migration->source, sizeof(handover->source));
    memcpy(handover->destination, migration->destination, sizeof(handover->destination));
}

const struct ferry_progress *migration_progress(const struct migration *migration)
{
    return &migration->progress;
}
