#include "host/upgrade.h"

#include "base/error.h"
#include "base/thread.h"
#include "host/definition.h"
#include "host/events.h"
#include "host/fields.h"
#include "host/upgrade_directory.h"
#include "host/vm_directory.h"
#include "host/vm_owner.h"
#include "host/vms.h"

#include <string.h>
#include <unistd.h>

#define ASK_INTERVAL_MS 1000

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

/* A reference; NULL: there is none. */
static struct vm_process *newcomer_get(struct host *host, struct vm *vm)
{
    struct vm_process *process;

    host_lock(host);
    process = vm->newcomer;
    if (process)
        process->refs++;
    host_unlock(host);
    return process;
}

void upgrade_newcomer_ended(struct vm *vm, const json_t *word, const char *last_words)
{
    struct migration *migration = vm->migration;

    if (!migration || !migration->stays)
        return;
    migration->arrival_exit = json_incref((json_t *)word);
    snprintf(migration->arrival_why, sizeof(migration->arrival_why), "%s", last_words);
    migration_touch(migration);
}

/* --- the new process --- */

/* Killed, if it is still there, and waited for. */
static void kill_newcomer(struct host *host, struct vm *vm)
{
    struct vm_process *process = newcomer_get(host, vm);
    uint64_t deadline = clock_deadline(host_start_ms(host));

    if (!process)
        return;
    vm_process_kill(process);
    host_lock(host);
    while (vm->newcomer == process && !host->stopping)
        if (!thread_cond_wait_until(&host->changed, &host->lock, deadline))
            break;
    host_unlock(host);
    vm_process_unref(process);
}

/* It is not to have the VM: told so, and killed when that does not help. */
static void dismiss_newcomer(struct migration *migration)
{
    struct host *host = migration->host;
    struct vm_process *process = newcomer_get(host, migration->vm);
    uint64_t deadline = clock_deadline(host_vm_ms(host));
    bool waits;

    if (!process)
        return;
    host_lock(host);
    waits = !migration->arrival; /* else it is on its way out */
    host_unlock(host);
    if (waits)
        vm_process_call(process, "migrate.cancel", json_pack("{s:s}", "id", migration->id), host_vm_ms(host),
                        NULL, NULL);
    if (waits && !migration->send)
        vm_process_kill(process); /* nobody has connected to it, and it would wait for that */
    host_lock(host);
    while (migration->vm->newcomer == process && !host->stopping)
        if (!thread_cond_wait_until(&host->changed, &host->lock, deadline))
            break;
    host_unlock(host);
    vm_process_unref(process);
    kill_newcomer(host, migration->vm);
}

/* What its migrate.status says, as if it had been told. */
static void ask_newcomer(struct migration *migration)
{
    struct vm_process *process = newcomer_get(migration->host, migration->vm);
    json_t *object = NULL;

    if (process &&
        vm_process_call(process, "migrate.status", NULL, host_vm_ms(migration->host), &object, NULL) == 0 &&
        text_of(object, "outcome")[0] && strcmp(text_of(object, "outcome"), "none") != 0)
        migration_told(process, "migration.finished", object);
    json_decref(object);
    vm_process_unref(process);
}

/* Waits until it has said its last word, or is gone. False when the host stops. */
static bool await_newcomer(struct migration *migration, int64_t timeout_ms)
{
    struct host *host = migration->host;
    uint64_t deadline = clock_deadline(timeout_ms);
    bool waiting;

    host_lock(host);
    while ((waiting = !migration->arrival && migration->vm->newcomer) && !host->stopping &&
           clock_left_ms(deadline) != 0) {
        uint64_t look = clock_deadline(ASK_INTERVAL_MS);

        if (!thread_cond_wait_until(&host->changed, &host->lock, look < deadline ? look : deadline)) {
            host_unlock(host);
            ask_newcomer(migration);
            host_lock(host);
        }
    }
    waiting = waiting && host->stopping;
    host_unlock(host);
    return !waiting;
}

/* Whether it says that it has the VM. Under the lock. */
static bool has_it_locked(const struct migration *migration)
{
    return strcmp(text_of(migration->arrival, "outcome"), "completed") == 0 ||
           (strcmp(text_of(migration->arrival_exit, "migration"), migration->id) == 0 &&
            strcmp(text_of(json_object_get(migration->arrival_exit, "report"), "outcome"), "completed") == 0);
}

static bool newcomer_has_it(struct migration *migration)
{
    bool has;

    host_lock(migration->host);
    has = has_it_locked(migration);
    host_unlock(migration->host);
    return has;
}

/* --- what the lock says --- */

/* The record of the lock that decided; false when there is none. */
static bool read_lock(struct migration *migration, struct vm_lock_record *record)
{
    struct vm *vm = migration->vm;
    struct vm_owner owner;
    struct vm_lock *lock = NULL;
    char path[PATH_MAX];
    bool found;

    if (vm_owner_read(migration->host, vm, &owner, NULL) == 0 && owner.path[0]) {
        *record = owner.record;
        return true;
    }
    /* Nothing that other hosts see: then the two had one for themselves, in the old process's directory. */
    if (vm_lock_place(path, NULL, vm->directory, vm->name, NULL) <= 0 || access(path, F_OK) < 0 ||
        vm_lock_open_local(&lock, path, NULL) < 0)
        return false;
    found = vm_lock_read(lock, record, NULL) == 0;
    vm_lock_close(lock);
    return found;
}

/* The guest has run in the new process, if only for a moment. */
static bool has_run_there(struct migration *migration)
{
    struct vm_lock_record record;

    return read_lock(migration, &record) && record.state == VM_LOCK_STARTED &&
           strcmp(record.migration, migration->id) == 0 &&
           record.pid == json_integer_value(json_object_get(migration->upgrade, "new_pid"));
}

int upgrade_settle_lock(struct host *host, struct vm *vm, struct ferry_error *err)
{
    struct vm_owner owner;
    int result = vm_owner_read(host, vm, &owner, err);

    if (result < 0 || !owner.path[0] || !vm_owner_is_moving(&owner.record) ||
        strcmp(owner.record.source, host->config->name) != 0 ||
        strcmp(owner.record.destination, host->config->name) != 0)
        return 0; /* ferry-vm has the words for what is wrong */
    return vm_owner_settle(host, owner.path, false, err);
}

/* --- how it ends --- */

static void emit_end(struct migration *migration)
{
    struct host *host = migration->host;
    struct vm *vm = migration->vm;
    char why[FERRY_ERROR_TEXT_SIZE];
    bool gone, crashed;

    host_lock(host);
    gone = !vm->process;
    crashed = vm->state == VM_STATE_CRASHED;
    snprintf(why, sizeof(why), "%s", vm->why);
    host_unlock(host);
    if (gone)
        events_emit(host, crashed ? EVENT_VM_CRASHED : EVENT_VM_ENDED, vm->name, migration->machine, NULL,
                    "VM %s %s: %s", vm->name, crashed ? "crashed" : "ended", why);
}

/* The former process keeps its directory until it is gone. */
static void put_off_former(struct migration *migration, struct vm_process *former)
{
    struct host *host = migration->host;
    char remains[PATH_MAX];
    struct ferry_error err;

    if (upgrade_directory_put_off(host, migration->vm, migration->id, remains, &err) < 0) {
        log_warn(host->log, "VM %s: %s", migration->vm_name, err.text);
        vm_process_unref(former);
    } else if (former) {
        vm_process_leave(former, remains);
    } else {
        vm_directory_remove_path(remains, NULL);
    }
}

static void finish_moved(struct migration *migration)
{
    struct host *host = migration->host;
    struct vm *vm = migration->vm;
    struct ferry_error err = {0};
    struct vm_process *former;
    char why[FERRY_ERROR_TEXT_SIZE];
    bool gone;
    int result;

    host_lock(host);
    snprintf(why, sizeof(why), "%s", migration->arrival_why);
    if (!migration->told_final && migration->arrival) { /* the old process died: the new one's report */
        json_decref(migration->progress);
        migration->progress = json_incref(migration->arrival);
    }
    host_unlock(host);
    result = upgrade_directory_exchange(host, vm, &err);
    if (result < 0) /* the next ferryd tries again */
        migration_log(migration, LOG_LEVEL_ERROR, "the VM has moved, but not its directory: %s", err.text);
    former = vm_replace_process(host, vm, migration->arrival_exit, why);
    vms_refresh(host, vm);
    if (result == 0)
        put_off_former(migration, former);
    else
        vm_process_unref(former);
    host_lock(host);
    gone = !vm->process;
    host_unlock(host);
    migration_log(migration, LOG_LEVEL_INFO,
                  "VM %s goes on in process %lld, ferry-vm %s; before: process %lld, %s", vm->name,
                  (long long)json_integer_value(json_object_get(migration->upgrade, "new_pid")),
                  text_of(migration->upgrade, "new_version"),
                  (long long)json_integer_value(json_object_get(migration->upgrade, "old_pid")),
                  text_of(migration->upgrade, "old_version"));
    events_emit(host, EVENT_VM_UPGRADED, vm->name, migration->machine, migration->id,
                "VM %s goes on in a new process (%lld), ferry-vm %s", vm->name,
                (long long)json_integer_value(json_object_get(migration->upgrade, "new_pid")),
                text_of(migration->upgrade, "new_version"));
    if (gone)
        emit_end(migration);
    migration_end(migration, "completed", gone ? "internal" : "", gone ? why : "");
}

static void finish_stayed(struct migration *migration, const char *outcome, const char *cause,
                          const char *error)
{
    struct host *host = migration->host;
    struct vm *vm = migration->vm;
    struct ferry_error err = {0};
    bool gone;

    dismiss_newcomer(migration);
    if (host_stopping(host))
        return;
    upgrade_directory_remove(host, vm);
    host_lock(host);
    gone = !vm->process;
    host_unlock(host);
    if (gone && upgrade_settle_lock(host, vm, &err) < 0)
        migration_log(migration, LOG_LEVEL_WARN, "the VM's lock cannot be settled: %s", err.text);
    migration_log(migration, LOG_LEVEL_ERROR, "upgrade of VM %s %s: %s", vm->name, outcome, error);
    events_emit(host, EVENT_MIGRATION_FAILED, vm->name, migration->machine, migration->id,
                "upgrade of VM %s %s: %s", vm->name, outcome, error);
    emit_end(migration);
    migration_end(migration, outcome, cause, error);
}

static int call_vm(struct migration *migration, const char *method, json_t *params, int64_t timeout_ms,
                   struct ferry_error *err)
{
    struct vm_process *process = vm_process_get(migration->host, migration->vm);
    int result;

    if (!process) {
        json_decref(params);
        return error_set(err, -ESTALE, "VM %s does not run any more", migration->vm_name);
    }
    result = vm_process_call(process, method, params, timeout_ms, NULL, err);
    vm_process_unref(process);
    return result;
}

/*
 * The old process cannot say who has the VM, because the new one hangs with the lock. That one is killed:
 * then the lock says whether it had come to run the guest.
 */
static void finish_unsure(struct migration *migration, const char *cause, const char *error)
{
    struct ferry_error err;

    migration_log(migration, LOG_LEVEL_WARN,
                  "the new process neither runs the VM nor gives it up; killing it");
    kill_newcomer(migration->host, migration->vm);
    if (host_stopping(migration->host))
        return;
    if (call_vm(migration, "recover", json_pack("{s:b}", "here", 1), host_start_ms(migration->host), &err) ==
        0) {
        finish_stayed(migration, "failed", cause, error);
        return;
    }
    migration_log(migration, LOG_LEVEL_ERROR, "the VM cannot go on in the old process: %s", err.text);
    if (!has_run_there(migration)) { /* storage that is gone: a person decides (ferry recover) */
        finish_stayed(migration, "unknown", cause, error);
        return;
    }
    call_vm(migration, "recover", json_pack("{s:b}", "here", 0), host_start_ms(migration->host), NULL);
    finish_moved(migration);
}

/* The old process ended without a word about it. */
static void finish_silent(struct migration *migration)
{
    struct host *host = migration->host;
    char error[FERRY_ERROR_TEXT_SIZE];

    /* Its connection is closed: the new process goes on if it was told GO, and ends if not. */
    if (!await_newcomer(migration, host_peer_ms(host) + host_vm_ms(host)))
        return;
    if (newcomer_has_it(migration)) {
        finish_moved(migration);
        return;
    }
    kill_newcomer(host, migration->vm);
    if (host_stopping(host))
        return;
    if (has_run_there(migration)) {
        finish_moved(migration);
        return;
    }
    host_lock(host);
    snprintf(error, sizeof(error), "the VM ended meanwhile: %.400s", migration->vm->why);
    host_unlock(host);
    finish_stayed(migration, "failed", "guest", error);
}

static void finish_as_told(struct migration *migration, const json_t *word)
{
    const char *outcome = text_of(word, "outcome");
    const char *cause = migration_known_cause(text_of(word, "cause"));
    const char *error = text_of(word, "error");

    if (strcmp(outcome, "completed") == 0 || strcmp(outcome, "lost") == 0) {
        if (await_newcomer(migration, host_vm_ms(migration->host)))
            finish_moved(migration);
    } else if (strcmp(outcome, "unknown") == 0) {
        finish_unsure(migration, cause, error);
    } else {
        finish_stayed(migration, strcmp(outcome, "cancelled") == 0 ? "cancelled" : "failed", cause, error);
    }
}

/*
 * Waits until the old process has said how it ended, or is gone. One that says nothing for a while after the
 * new one has said that it has the VM hangs, and is in nobody's way; it is killed. False when the host stops.
 */
static bool await_former(struct migration *migration)
{
    struct host *host = migration->host;
    uint64_t moved_at = UINT64_MAX;
    bool waiting;

    host_lock(host);
    while ((waiting = !migration->told_final && migration->vm->process) && !host->stopping &&
           clock_left_ms(moved_at) != 0) {
        unsigned version = migration->version;

        if (moved_at == UINT64_MAX && has_it_locked(migration))
            moved_at = clock_deadline(host_vm_ms(host));
        if (!thread_cond_wait_until(&host->changed, &host->lock, clock_deadline(ASK_INTERVAL_MS)) &&
            migration->version == version) {
            host_unlock(host);
            ask_newcomer(migration);
            migration_ask(migration);
            host_lock(host);
        }
    }
    waiting = waiting && host->stopping;
    host_unlock(host);
    return !waiting;
}

static void end_hanging_former(struct migration *migration)
{
    struct host *host = migration->host;
    struct vm_process *process;

    host_lock(host);
    process = migration->told_final ? NULL : migration->vm->process;
    if (process)
        process->refs++;
    host_unlock(host);
    if (!process)
        return;
    migration_log(migration, LOG_LEVEL_WARN, "the VM has moved, and its former process %d hangs; killing it",
                  (int)process->pid);
    vm_process_kill(process);
    vm_process_unref(process);
    vm_wait_gone(host, migration->vm, clock_deadline(host_start_ms(host)));
}

void migration_run_upgrade(struct migration *migration)
{
    struct ferry_error err = {0};
    json_t *word;
    int result = 0;

    if (!migration->fresh && !upgrade_take_up(migration))
        return;
    if (migration->send)
        result = call_vm(migration, "migrate.send", json_incref(migration->send), host_vm_ms(migration->host),
                         &err);
    if (result < 0 && result != -ESTALE && result != -EPIPE && result != -ETIMEDOUT) {
        call_vm(migration, "migrate.cancel", json_pack("{s:s}", "id", migration->id),
                host_vm_ms(migration->host), NULL);
        finish_stayed(migration, "failed", "internal", err.text);
        return;
    }
    if (!await_former(migration))
        return; /* ferryd is stopping; the two go on, and the next ferryd takes it up */
    end_hanging_former(migration);
    word = migration_final_word(migration);
    if (word)
        finish_as_told(migration, word);
    else
        finish_silent(migration);
    json_decref(word);
}

/* --- the beginning --- */

/* Version and number of the process that has the VM. */
static int look_at_old(struct migration *migration, char version[static 32], struct ferry_error *err)
{
    struct host *host = migration->host;
    struct vm *vm = migration->vm;
    struct vm_process *process = vm_process_get(host, vm);
    json_t *status = NULL;
    int result;

    host_lock(host);
    result = !process || !vm_runs(vm) ? error_set(err, HOST_CONFLICT, "VM %s cannot be upgraded: it is %s",
                                                  vm->name, vm_state_text(vm))
                                      : 0;
    host_unlock(host);
    if (result == 0)
        result = vm_process_call(process, "status", NULL, host_vm_ms(host), &status, err);
    if (result == 0 && !text_of(status, "version")[0])
        result =
            error_set(err, HOST_REFUSED,
                      "VM %s cannot be upgraded: its ferry-vm (process %d) is too old to pass it on; stop it "
                      "and start it again",
                      vm->name, (int)process->pid);
    if (result == 0) {
        snprintf(version, 32, "%s", text_of(status, "version"));
        migration->upgrade = json_pack("{s:i, s:s}", "old_pid", (int)process->pid, "old_version", version);
    }
    json_decref(status);
    vm_process_unref(process);
    return result;
}

/* The new process, ready in its directory. On failure neither is left. */
static int start_newcomer(struct migration *migration, const char *old_version, struct ferry_error *err)
{
    struct host *host = migration->host;
    struct vm *vm = migration->vm;
    struct vm_process *process = NULL;
    json_t *status = NULL;
    char path[PATH_MAX];
    int result = upgrade_directory_path(host, vm->name, path, err);

    if (result == 0)
        result = upgrade_directory_make(
            host, vm, migration->id, old_version,
            (pid_t)json_integer_value(json_object_get(migration->upgrade, "old_pid")), err);
    if (result < 0)
        return error_prefix(err, HOST_REFUSED, "VM %s cannot be upgraded", vm->name);
    vm_process_start_next(&process, host, vm, path, host_start_ms(host), err);
    if (!process) {
        upgrade_directory_remove(host, vm);
        return error_prefix(err, HOST_REFUSED, "VM %s cannot be upgraded, its new process does not start",
                            vm->name);
    }
    host_lock(host);
    vm->newcomer = process;
    process->refs++;
    host_unlock(host);
    result = vm_process_watch(process);
    if (result == 0)
        result = vm_process_call(process, "status", NULL, host_vm_ms(host), &status, err);
    if (result == 0) {
        json_object_set_new(migration->upgrade, "new_pid", json_integer(process->pid));
        json_object_set_new(migration->upgrade, "new_version", json_string(text_of(status, "version")));
    }
    json_decref(status);
    vm_process_unref(process);
    return result;
}

/* The new process listens, and the old one is told where. */
static int introduce(struct migration *migration, struct ferry_error *err)
{
    struct host *host = migration->host;
    struct vm_process *process = newcomer_get(host, migration->vm);
    char token[MIGRATION_TOKEN_SIZE];
    char address[HOST_NAME_SIZE + 32];
    json_t *receive;
    int result = migration_make_token(token, err);

    if (!process)
        result = error_set(err, -ESTALE, "its new process ended");
    if (result < 0) {
        vm_process_unref(process);
        return result;
    }
    receive = json_pack("{s:s, s:s, s:s, s:s, s:s, s:I}", "id", migration->id, "token", token, "source",
                        migration->source, "destination", migration->destination, "listen", UPGRADE_SOCKET,
                        "peer_timeout", (json_int_t)host->config->peer_timeout_ns);
    /* As the old process sees it from its directory: short, whatever the state directory's name. */
    snprintf(address, sizeof(address), "../../new/%s/migrate.sock", migration->vm_name);
    migration->send = json_pack("{s:s, s:s, s:s, s:I, s:b, s:I}", "id", migration->id, "token", token,
                                "address", address, "destination_pid", (json_int_t)process->pid,
                                "pass_memory", 1, "peer_timeout", (json_int_t)host->config->peer_timeout_ns);
    result = call_vm(migration, "migrate.prepare",
                     json_pack("{s:s, s:s, s:s}", "id", migration->id, "source", migration->source,
                               "destination", migration->destination),
                     host_vm_ms(host), err);
    if (result == 0)
        result = vm_process_call(process, "migrate.receive", receive, host_vm_ms(host), NULL, err);
    else
        json_decref(receive);
    vm_process_unref(process);
    return result < 0 ? error_prefix(err, result, "VM %s cannot be upgraded", migration->vm_name) : 0;
}

/* As if nothing had been asked. */
static void take_back(struct migration *migration)
{
    bool prepared = migration->send != NULL; /* or nearly so */

    json_decref(migration->send);
    migration->send = NULL;
    if (prepared)
        call_vm(migration, "migrate.cancel", json_pack("{s:s}", "id", migration->id),
                host_vm_ms(migration->host), NULL);
    kill_newcomer(migration->host, migration->vm);
    if (migration->upgrade) /* else it was not made */
        upgrade_directory_remove(migration->host, migration->vm);
    migration_unregister(migration);
}

static int begin(struct migration *migration, struct ferry_error *err)
{
    char version[32] = "";
    int result = look_at_old(migration, version, err);

    if (result == 0)
        result = start_newcomer(migration, version, err);
    if (result == 0)
        result = introduce(migration, err);
    if (result == 0) {
        migration_record(migration);
        result = migration_start_job(migration, err);
    }
    if (result < 0)
        take_back(migration);
    return result;
}

int upgrade_start(struct host *host, const char *vm_name, char id[static MIGRATION_ID_SIZE],
                  struct ferry_error *err)
{
    struct migration *migration;
    struct vm *vm;
    int result;

    migrations_reap(host, false);
    result = vm_claim(host, vm_name, "being upgraded", &vm, err);
    if (!vm)
        return result;
    result = migration_make_id(id, err);
    migration = result < 0 ? NULL
                           : migration_new(host, id, vm_name, definition_machine(vm->definition),
                                           host->config->name, host->config->name);
    if (!migration) {
        vm_release(host, vm);
        return result < 0 ? result : error_set(err, -ENOMEM, "out of memory");
    }
    host_lock(host);
    vm->refs++;
    host_unlock(host);
    migration_register(migration, vm);
    result = begin(migration, err);
    migration_unref(migration);
    vm_release(host, vm);
    return result;
}
