#include "host/migration.h"

#include "base/error.h"
#include "host/definition.h"
#include "host/events.h"
#include "host/fields.h"
#include "host/peers.h"
#include "host/vm_directory.h"
#include "host/vm_runnable.h"

#include <string.h>
#include <sys/random.h>

#define PREPARE_TIMEOUT_MS  5000
#define RESERVE_TIMEOUT_MS  55000 /* ferry-vm waits a minute for MIGRATE_START */
#define SEND_TIMEOUT_MS     10000
#define END_TIMEOUT_MS      30000
#define WITHDRAW_TIMEOUT_MS 20000
#define FINAL_TIMEOUT_MS    10000

/* A version 4 UUID. */
static int make_id(char id[static MIGRATION_ID_SIZE], struct ferry_error *err)
{
    uint8_t b[16];

    if (getrandom(b, sizeof(b), 0) != sizeof(b))
        return error_set_errno(err, -errno, "cannot make a migration id");
    b[6] = (uint8_t)((b[6] & 0x0f) | 0x40);
    b[8] = (uint8_t)((b[8] & 0x3f) | 0x80);
    snprintf(id, MIGRATION_ID_SIZE, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
             b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14],
             b[15]);
    return 0;
}

static void set_number(json_t *object, const char *key, uint64_t value, uint64_t otherwise)
{
    if (value != otherwise)
        json_object_set_new(object, key, json_integer((json_int_t)value));
}

/* The destination's answer becomes the parameters of migrate.send. */
static int take_offer(struct migration *migration, const json_t *answer,
                      const struct migration_options *options, struct ferry_error *err)
{
    struct host *host = migration->host;
    const char *address = NULL;
    const char *token = NULL;
    uint64_t pid = 0;
    json_t *known;
    const struct field fields[] = {
        {"address", FIELD_STRING, true, &address},
        {"token", FIELD_STRING, true, &token},
        {"pid", FIELD_UINT, true, &pid},
    };
    int result = fields_read(answer, fields, 3, FIELDS_LOOSE, "the answer of the destination", err);

    if (result < 0)
        return error_prefix(err, HOST_UNREACHABLE, "host %s makes no sense", migration->destination);
    if (strlen(token) != 64 || strspn(token, "0123456789abcdef") != 64 || strlen(address) > 100)
        return error_set(err, HOST_UNREACHABLE, "host %s makes no sense: malformed address or token",
                         migration->destination);
    migration->send = json_pack("{s:s, s:s, s:s, s:I}", "id", migration->id, "token", token, "address",
                                address, "destination_pid", (json_int_t)pid);
    set_number(migration->send, "downtime_limit", options->downtime_limit, 0);
    set_number(migration->send, "bandwidth_limit", options->bandwidth_limit, 0);
    set_number(migration->send, "copy_time_limit", options->copy_time_limit, 0);
    set_number(migration->send, "throttle_max", options->throttle_max, MIGRATION_DEFAULT);
    set_number(migration->send, "streams", options->streams, 0);
    set_number(migration->send, "peer_timeout", host->config->peer_timeout_ns, 0);
    known = migration_known_costs(host, migration->vm_name, migration->destination);
    if (known)
        json_object_set_new(migration->send, "known", known);
    return 0;
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

static void cancel_vm(struct migration *migration)
{
    struct ferry_error err;

    if (call_vm(migration, "migrate.cancel", json_pack("{s:s}", "id", migration->id), PREPARE_TIMEOUT_MS,
                &err) < 0)
        migration_log(migration, LOG_LEVEL_DEBUG, "taking back MIGRATE_TO: %s", err.text);
}

/* OURS: the VM is known to be here, and what hangs at the destination is in the way. */
static void withdraw(struct migration *migration, bool ours)
{
    struct ferry_error err;
    char path[64];
    int result;

    if (!migration->peer_address[0])
        return;
    snprintf(path, sizeof(path), "/v1/incoming/%s%s", migration->id, ours ? "?force=1" : "");
    result = peer_call(migration->host, migration->peer_address, "DELETE", path, NULL, WITHDRAW_TIMEOUT_MS,
                       NULL, &err);
    if (result < 0 && result != HOST_NOT_FOUND)
        migration_log(migration, LOG_LEVEL_WARN, "the reservation on host %s could not be given back: %s",
                      migration->destination, err.text);
}

/* MIGRATE_TO to the VM here, the reservation there. On failure both are as before. */
static int prepare(struct migration *migration, const json_t *definition,
                   const struct migration_options *options, struct ferry_error *err)
{
    json_t *answer = NULL;
    json_t *body;
    int result = call_vm(migration, "migrate.prepare",
                         json_pack("{s:s, s:s, s:s}", "id", migration->id, "source", migration->source,
                                   "destination", migration->destination),
                         PREPARE_TIMEOUT_MS, err);

    if (result < 0)
        return error_prefix(err, result, "VM %s cannot move", migration->vm_name);
    body = migration_offer_body(migration, definition, false);
    result = peer_call(migration->host, migration->peer_address, "POST", "/v1/incoming", body,
                       RESERVE_TIMEOUT_MS, &answer, err);
    json_decref(body);
    if (result == 0) {
        result = take_offer(migration, answer, options, err);
        if (result < 0)
            withdraw(migration, true);
    } else if (result == HOST_UNREACHABLE) {
        withdraw(migration, true); /* the answer may have been lost, not the request */
    }
    json_decref(answer);
    if (result < 0)
        cancel_vm(migration);
    return result;
}

int migration_start(struct host *host, const char *vm_name, const struct migration_options *options,
                    char id[static MIGRATION_ID_SIZE], struct ferry_error *err)
{
    struct migration *migration;
    struct vm *vm;
    int result;

    migrations_reap(host, false);
    result = vm_claim(host, vm_name, "being checked for a migration", &vm, err);
    if (!vm)
        return result;
    result = make_id(id, err);
    migration = migration_new(host, id, vm_name, definition_machine(vm->definition), host->config->name,
                              options->destination);
    if (!migration) {
        vm_release(host, vm);
        return error_set(err, -ENOMEM, "out of memory");
    }
    migration->outgoing = true;
    if (result == 0)
        result = migration_check(migration, vm->definition, NULL, err);
    if (result == 0) {
        host_lock(host);
        vm->refs++;
        host_unlock(host);
        migration_register(migration, vm);
        result = prepare(migration, vm->definition, options, err);
        if (result == 0) {
            migration_record(migration);
            result = migration_start_job(migration, err);
            if (result < 0) {
                withdraw(migration, true);
                cancel_vm(migration);
                migration_end(migration, "failed", "internal", err->text);
            }
        } else {
            migration_unregister(migration);
        }
    }
    migration_unref(migration);
    vm_release(host, vm);
    return result;
}

/* --- the job --- */

/* What the other side's record says of its end, as a constant; NULL when it does not answer. */
static const char *outcome_there(struct migration *migration)
{
    static const char *const known[] = {"completed", "failed", "cancelled", "unknown", "none"};
    struct host *host = migration->host;
    char path[96];
    json_t *object = NULL;
    const char *outcome;
    const char *found = NULL;

    if (!migration->peer_address[0])
        return NULL;
    snprintf(path, sizeof(path), "/v1/migrations/%s?local=1", migration->id);
    if (peer_call(host, migration->peer_address, "GET", path, NULL, PEER_TIMEOUT_MS, &object, NULL) < 0)
        return NULL;
    outcome = json_string_value(json_object_get(object, "outcome"));
    for (size_t i = 0; outcome && i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(outcome, known[i]) == 0)
            found = known[i];
    }
    json_decref(object);
    return found;
}

/* Returns once the other side's record is final, so that who asks there next sees how it is. */
static void wait_there(struct migration *migration)
{
    char path[96];
    json_t *lines = NULL;

    if (!migration->peer_address[0])
        return;
    snprintf(path, sizeof(path), "/v1/migrations/%s/watch", migration->id);
    peer_lines(migration->host, migration->peer_address, path, FINAL_TIMEOUT_MS, &lines, NULL);
    json_decref(lines);
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

/* What migration.finished or exit.json said of the end, for "Not Runnable Reason"; empty: nothing. */
static void ban_reason(struct migration *migration, const char *outcome,
                       char reason[static FERRY_ERROR_TEXT_SIZE])
{
    reason[0] = '\0';
    if (strcmp(outcome, "completed") == 0)
        return;
    host_lock(migration->host);
    if (migration->vm && strcmp(outcome, "lost") == 0)
        snprintf(reason, FERRY_ERROR_TEXT_SIZE, "%s", text_of(migration->vm->exit, "why"));
    host_unlock(migration->host);
    if (strcmp(outcome, "lost") == 0 && !reason[0])
        snprintf(reason, FERRY_ERROR_TEXT_SIZE, "host %s owns the guest but did not confirm it",
                 migration->destination);
    if (strcmp(outcome, "unknown") == 0)
        snprintf(reason, FERRY_ERROR_TEXT_SIZE,
                 "nobody can say whether the guest runs on %s; decide with: ferry recover %s",
                 migration->destination, migration->vm_name);
}

static void make_ban(struct migration *migration, const char *outcome, struct vm_ban *ban)
{
    char reason[FERRY_ERROR_TEXT_SIZE];

    ban_reason(migration, outcome, reason);
    vm_ban_by_migration(ban, migration->destination, migration->id, outcome, reason);
}

/* The VM runs at the destination: here it is only known as not runnable. */
static void finish_completed(struct migration *migration)
{
    struct host *host = migration->host;
    struct vm *vm = migration->vm;
    struct vm_ban ban;

    if (vm) {
        if (!vm_wait_gone(host, vm, clock_deadline(END_TIMEOUT_MS))) {
            struct vm_process *process = vm_process_get(host, vm);

            if (host_stopping(host) || !process) {
                vm_process_unref(process);
                return; /* the next ferryd completes it */
            }
            migration_log(migration, LOG_LEVEL_WARN,
                          "ferry-vm has moved the VM and does not end; killing it");
            vm_process_kill(process);
            vm_process_unref(process);
            vm_wait_gone(host, vm, clock_deadline(END_TIMEOUT_MS));
        }
        events_emit(host, EVENT_VM_STOPPED, vm->name, migration->machine, migration->id,
                    "VM %s stopped on host %s", vm->name, migration->source);
        make_ban(migration, "completed", &ban);
        vm_retire(host, vm, &ban);
        migration_release_vm(migration);
        events_emit(host, EVENT_VM_DELETED, vm->name, migration->machine, migration->id,
                    "VM %s was deleted from host %s: it has moved to host %s", vm->name, migration->source,
                    migration->destination);
    }
    events_emit(host, EVENT_MIGRATION_OUT_COMPLETED, migration->vm_name, migration->machine, migration->id,
                "migration of VM %s from host %s to host %s completed", migration->vm_name, migration->source,
                migration->destination);
    wait_there(migration);
    migration_exchange_events(migration);
    migration_end(migration, "completed", "", "");
}

/* OURS: the VM is known to be here, or to be nowhere. */
static void finish_failed(struct migration *migration, const char *outcome, const char *cause,
                          const char *error, bool ours)
{
    struct host *host = migration->host;
    struct vm_ban ban;

    migration_log(migration, LOG_LEVEL_ERROR, "migration of VM %s to host %s %s: %s", migration->vm_name,
                  migration->destination, outcome, error);
    if (ours && strcmp(outcome, "lost") != 0 && strcmp(outcome, "unknown") != 0)
        withdraw(migration, true);
    if (strcmp(outcome, "lost") == 0 && migration->vm &&
        vm_wait_gone(host, migration->vm, clock_deadline(END_TIMEOUT_MS))) {
        make_ban(migration, "lost", &ban); /* the destination owns it: it must not be startable here */
        vm_retire(host, migration->vm, &ban);
    } else if (strcmp(outcome, "unknown") == 0 && migration->vm) {
        make_ban(migration, "unknown", &ban);
        vm_set_ban(host, migration->vm, &ban);
    }
    events_emit(host, EVENT_MIGRATION_FAILED, migration->vm_name, migration->machine, migration->id,
                "migration of VM %s from host %s to host %s %s: %s", migration->vm_name, migration->source,
                migration->destination, outcome, error);
    migration_exchange_events(migration);
    migration_end(migration, outcome, cause, error);
}

/*
 * ferry-vm ended without a last word about the migration: once it has handed the VM over, only the other side
 * can know how it ended.
 */
static void finish_silent(struct migration *migration)
{
    char why[FERRY_ERROR_TEXT_SIZE];
    char error[FERRY_ERROR_TEXT_SIZE + 128];
    const char *there;
    bool known;

    there = outcome_there(migration);
    /* Either it had not said GO, and this ends what waits there; or this is too late, and it runs there. */
    if (!there || strcmp(there, "completed") != 0) {
        withdraw(migration, false);
        there = outcome_there(migration);
    }
    known = (there && (strcmp(there, "failed") == 0 || strcmp(there, "cancelled") == 0)) ||
            (migration->vm && !vm_directory_handed_over(migration->host, migration->vm));
    if (there && strcmp(there, "completed") == 0) {
        migration_log(migration, LOG_LEVEL_WARN, "ferry-vm ended without a word, but host %s runs the VM",
                      migration->destination);
        finish_completed(migration);
        return;
    }
    host_lock(migration->host);
    snprintf(why, sizeof(why), "%s", migration->vm ? migration->vm->why : "the VM is gone");
    host_unlock(migration->host);
    snprintf(error, sizeof(error), "the VM ended on host %s meanwhile: %s", migration->source, why);
    finish_failed(migration, known ? "failed" : "unknown", "guest", error, false);
}

/* The outcomes of libferry that are not success, as constants. */
static const char *failed_outcome(const char *outcome)
{
    static const char *const known[] = {"cancelled", "unknown", "lost"};

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(outcome, known[i]) == 0)
            return known[i];
    }
    return "failed";
}

void migration_run_source(struct migration *migration)
{
    struct host *host = migration->host;
    struct ferry_error err = {0};
    json_t *word;
    int result = 0;

    if (migration->send) {
        events_emit(host, EVENT_MIGRATION_OUT_STARTED, migration->vm_name, migration->machine, migration->id,
                    "migration of VM %s from host %s to host %s started", migration->vm_name,
                    migration->source, migration->destination);
        result = call_vm(migration, "migrate.send", json_incref(migration->send), SEND_TIMEOUT_MS, &err);
        migration_exchange_events(migration);
    }
    if (result < 0 && result != -ESTALE && result != -EPIPE && result != -ETIMEDOUT) {
        cancel_vm(migration);
        finish_failed(migration, "failed", "internal", err.text, true);
        return;
    }
    if (!migration_wait(migration))
        return; /* ferryd is stopping; the VM processes go on, the next ferryd takes it up */
    word = migration_final_word(migration);
    if (!word)
        finish_silent(migration);
    else if (strcmp(text_of(word, "outcome"), "completed") == 0)
        finish_completed(migration);
    else
        finish_failed(migration, failed_outcome(text_of(word, "outcome")),
                      migration_known_cause(text_of(word, "cause")), text_of(word, "error"), true);
    json_decref(word);
}
