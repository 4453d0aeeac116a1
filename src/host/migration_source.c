#include "host/migration.h"

#include "base/error.h"
#include "base/uuid.h"
#include "host/agreement.h"
#include "host/certificate.h"
#include "host/definition.h"
#include "host/events.h"
#include "host/fields.h"
#include "host/migration_cold.h"
#include "host/migration_fetch.h"
#include "host/migration_queue.h"
#include "host/peers.h"
#include "host/vm_directory.h"
#include "host/vm_owner.h"
#include "host/vm_runnable.h"

#include <string.h>

/* A version 4 UUID. */
int migration_make_id(char id[static MIGRATION_ID_SIZE], struct ferry_error *err)
{
    uint8_t uuid[UUID_SIZE];
    int result = uuid_make(uuid, err);

    if (result)
        return error_prefix(err, result, "cannot make a migration id");
    uuid_format(uuid, id);
    return 0;
}

static void set_number(json_t *object, const char *key, uint64_t value, uint64_t otherwise)
{
    if (value != otherwise)
        json_object_set_new(object, key, json_integer((json_int_t)value));
}

json_t *migration_make_options(const struct migration_options *options)
{
    json_t *object = json_object();

    set_number(object, "downtime_limit", options->downtime_limit, 0);
    set_number(object, "bandwidth_limit", options->bandwidth_limit, 0);
    set_number(object, "copy_time_limit", options->copy_time_limit, 0);
    set_number(object, "throttle_max", options->throttle_max, MIGRATION_DEFAULT);
    set_number(object, "streams", options->streams, 0);
    if (options->quick_resume)
        json_object_set_new(object, "quick_resume", json_string(options->quick_resume));
    if (options->compress)
        json_object_set_new(object, "compress", json_string(options->compress));
    if (options->storage)
        json_object_set_new(object, "storage", json_string(options->storage));
    return object;
}

/* The destination's answer becomes the parameters of migrate.send. */
static int take_offer(struct migration *migration, const json_t *answer, struct ferry_error *err)
{
    struct host *host = migration->host;
    const char *address = NULL;
    const char *token = NULL;
    uint64_t pid = 0;
    bool tls = false;
    char certificate[PATH_MAX];
    struct migration_known known;
    const struct field fields[] = {
        {"address", FIELD_STRING, true, &address},
        {"token", FIELD_STRING, true, &token},
        {"pid", FIELD_UINT, true, &pid},
        {"tls", FIELD_BOOL, false, &tls},
    };
    int result = fields_read(answer, fields, 4, FIELDS_LOOSE, "the answer of the destination", err);

    if (result < 0)
        return error_prefix(err, HOST_UNREACHABLE, "host %s makes no sense", migration->destination);
    if (strlen(token) != 64 || strspn(token, "0123456789abcdef") != 64 || strlen(address) > 100)
        return error_set(err, HOST_UNREACHABLE, "host %s makes no sense: malformed address or token",
                         migration->destination);
    if (tls && !migration->encrypted)
        return error_set(err, HOST_UNREACHABLE, "host %s makes no sense: it encrypts what is not",
                         migration->destination);
    if (!tls && migration->encrypted)
        return error_set(err, HOST_REFUSED,
                         "host %s would take VM %s in the clear, although both hosts have certificates",
                         migration->destination, migration->vm_name);
    migration->send = json_pack("{s:s, s:s, s:s, s:I}", "id", migration->id, "token", token, "address",
                                address, "destination_pid", (json_int_t)pid);
    if (tls) {
        certificate_path(host->config, certificate);
        json_object_set_new(migration->send, "certificate", json_string(certificate));
    }
    json_object_update(migration->send, migration->options);
    set_number(migration->send, "peer_timeout", host->config->peer_timeout_ns, 0);
    if (json_object_get(migration->options, "quick_resume"))
        set_number(migration->send, "reconnect", host->config->reconnect_ns, 0);
    set_number(migration->send, "delta_cache", host->config->delta_cache, CONFIG_DELTA_CACHE);
    migration_known_costs(host, migration->vm_name, migration->destination, 0, &known);
    if (known.costs)
        json_object_set_new(migration->send, "known", known.costs);
    return 0;
}

static void tell_if_clear(struct migration *migration)
{
    struct ferry_credentials *ours = certificate_get(migration->host);

    if (!migration->encrypted)
        migration_log(migration, ours ? LOG_LEVEL_WARN : LOG_LEVEL_INFO,
                      "in the clear: host %s has no certificate (Host not licensed)",
                      ours ? migration->destination : migration->source);
    credentials_unref(ours);
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

    if (call_vm(migration, "migrate.cancel", json_pack("{s:s}", "id", migration->id),
                host_vm_ms(migration->host), &err) < 0)
        migration_log(migration, LOG_LEVEL_DEBUG, "taking back MIGRATE_TO: %s", err.text);
}

/* OURS: the VM is known to be here, and what hangs at the destination is in the way. */
static void withdraw(struct migration *migration, bool ours, enum peer_patience patience)
{
    struct ferry_error err;
    char path[64];
    int result;

    if (!migration->peer_address[0])
        return;
    snprintf(path, sizeof(path), "/v1/incoming/%s%s", migration->id, ours ? "?force=1" : "");
    result = migration_call_peer(migration, "DELETE", path, NULL, patience, NULL, &err);
    if (result < 0 && result != HOST_NOT_FOUND)
        migration_log(migration, LOG_LEVEL_WARN, "the reservation on host %s could not be given back: %s",
                      migration->destination, err.text);
}

/* MIGRATE_TO to the VM here, the reservation there. On failure both are as before. */
static int prepare(struct migration *migration, const json_t *definition, struct ferry_error *err)
{
    json_t *answer = NULL;
    json_t *body;
    int result = call_vm(migration, "migrate.prepare",
                         json_pack("{s:s, s:s, s:s, s:I}", "id", migration->id, "source", migration->source,
                                   "destination", migration->destination, "patience",
                                   (json_int_t)migration->host->config->start_timeout_ns * 2),
                         host_vm_ms(migration->host), err);

    if (result < 0)
        return error_prefix(err, result, "VM %s cannot move", migration->vm_name);
    body = migration_offer_body(migration, definition, false);
    result = peer_call(migration->host, migration->peer_address, "POST", "/v1/incoming", body, PEER_LONG,
                       &answer, err);
    json_decref(body);
    if (result == 0) {
        result = take_offer(migration, answer, err);
        if (result < 0)
            withdraw(migration, true, PEER_LONG);
        else
            tell_if_clear(migration);
    } else if (result == HOST_UNREACHABLE || result == -ETIMEDOUT) {
        error_prefix(err, result, "VM %s cannot move", migration->vm_name);
        /* The answer may have been lost, not the request. Who has been silent will hardly answer now, and
         * gives a reservation back by itself when nobody comes. */
        withdraw(migration, true, PEER_BRIEF);
    }
    json_decref(answer);
    if (result < 0)
        cancel_vm(migration);
    return result;
}

/* The migration passed its checks. */
static int begin(struct migration *migration, const json_t *definition, struct ferry_error *err)
{
    bool placed = queue_enter(migration);
    int result = placed ? prepare(migration, definition, err) : 0;

    if (result < 0) {
        migration_unregister(migration);
        return result;
    }
    if (!placed) {
        host_lock(migration->host);
        migration->unsent = true;
        host_unlock(migration->host);
        migration_log(migration, LOG_LEVEL_INFO,
                      "queued: %u VMs leave host %s already, which is the most (--migrate-max)",
                      migration->host->config->migrate_max, migration->source);
    }
    migration_record(migration);
    result = migration_start_job(migration, err);
    if (result < 0) {
        if (placed) {
            withdraw(migration, true, PEER_LONG);
            cancel_vm(migration);
        }
        migration_end(migration, "failed", "internal", err->text);
    }
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
    result = migration_make_id(id, err);
    migration = migration_new(host, id, vm_name, definition_machine(vm->definition), host->config->name,
                              options->destination);
    if (!migration) {
        vm_release(host, vm);
        return error_set(err, -ENOMEM, "out of memory");
    }
    migration->outgoing = true;
    migration->options = migration_make_options(options);
    migration->own_limit = options->bandwidth_limit;
    migration->must_encrypt = options->tls;
    migration->storage = options->storage ? strdup(options->storage) : NULL;
    if (result == 0 && options->cold)
        result = cold_prepare(migration, vm, err);
    if (result == 0)
        result = migration_check(migration, vm->definition, NULL, err);
    if (result == 0 && options->cold) {
        result = cold_begin(migration, vm, err);
    } else if (result == 0) {
        host_lock(host);
        vm->refs++;
        if (strcmp(vm->forecast_for, migration->destination) == 0)
            migration->forecast = json_incref(vm->forecast);
        host_unlock(host);
        migration_register(migration, vm);
        result = begin(migration, vm->definition, err);
    }
    migration_unref(migration);
    vm_release(host, vm);
    return result;
}

/* --- the job --- */

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
void migration_finish_completed(struct migration *migration)
{
    struct host *host = migration->host;
    struct vm *vm = migration->vm;
    struct vm_ban ban;

    agreement_tell(migration, "completed", "", "");
    if (vm) {
        if (!vm_wait_gone(host, vm, clock_deadline(host_start_ms(host)))) {
            struct vm_process *process = vm_process_get(host, vm);

            if (host_stopping(host) || !process) {
                vm_process_unref(process);
                return; /* the next ferryd completes it */
            }
            migration_log(migration, LOG_LEVEL_WARN,
                          "ferry-vm has moved the VM and does not end; killing it");
            vm_process_kill(process);
            vm_process_unref(process);
            vm_wait_gone(host, vm, clock_deadline(host_start_ms(host)));
        }
        if (!migration->fetched && !migration->cold) /* else it has been told long ago */
            events_emit_at(host, migration_state_time(migration, "MIGRATE_TO_VMX_CHECKPT"), EVENT_VM_STOPPED,
                           vm->name, migration->machine, migration->id, "VM %s stopped on host %s", vm->name,
                           migration->source);
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
    agreement_await(migration);
    migration_exchange_events(migration);
    migration_end(migration, "completed", "", "");
}

static void tell_failed(struct migration *migration, const char *outcome, const char *error)
{
    migration_log(migration, LOG_LEVEL_ERROR, "migration of VM %s to host %s %s: %s", migration->vm_name,
                  migration->destination, outcome, error);
    events_emit(migration->host, EVENT_MIGRATION_FAILED, migration->vm_name, migration->machine,
                migration->id, "migration of VM %s from host %s to host %s %s: %s", migration->vm_name,
                migration->source, migration->destination, outcome, error);
}

void migration_finish_failed(struct migration *migration, const char *outcome, const char *cause,
                             const char *error)
{
    agreement_tell(migration, outcome, cause, error);
    withdraw(migration, true, PEER_LONG);
    tell_failed(migration, outcome, error);
    migration_exchange_events(migration);
    migration_end(migration, outcome, cause, error);
}

void migration_finish_doubted(struct migration *migration, const char *outcome, const char *cause,
                              const char *error)
{
    struct host *host = migration->host;
    struct vm *vm = migration->vm;
    struct vm_ban ban;

    make_ban(migration, outcome, &ban);
    if (vm && strcmp(outcome, "unknown") == 0)
        vm_set_ban(host, vm, &ban);
    else if (vm && vm_wait_gone(host, vm, clock_deadline(host_start_ms(host))))
        vm_retire(host, vm, &ban);
    migration->in_doubt = true;
    tell_failed(migration, outcome, error);
    migration_exchange_events(migration);
    migration_end(migration, outcome, cause, error);
}

/* Quick resume has broken off: the guest ran at the destination, and never will again. */
static void finish_lost(struct migration *migration, const char *cause, const char *error)
{
    struct host *host = migration->host;
    struct vm *vm = migration->vm;
    struct vm_ban ban;
    char reason[FERRY_ERROR_TEXT_SIZE];

    snprintf(reason, sizeof(reason), "the guest has migrated to %s, and was lost there: %.300s",
             migration->destination, error);
    vm_ban_by_migration(&ban, migration->destination, migration->id, "completed", reason);
    if (vm && vm_wait_gone(host, vm, clock_deadline(host_start_ms(host))))
        vm_retire(host, vm, &ban);
    tell_failed(migration, "lost", error);
    migration_exchange_events(migration);
    migration_end(migration, "lost", cause, error);
}

/* What was still needed is gone with the process here. The destination is told, and ends what it has of the
 * guest, unless it had all. */
static void finish_gone(struct migration *migration, const char *why)
{
    char error[FERRY_ERROR_TEXT_SIZE];
    const char *there;

    snprintf(error, sizeof(error),
             "the guest is lost: memory that it still needed on host %s is gone with its process on host %s "
             "(%.200s); start it anew from its disks",
             migration->destination, migration->source, why);
    agreement_tell(migration, "lost", "internal", error);
    agreement_await(migration);
    there = agreement_ask(migration, 0);
    if (there && strcmp(there, "completed") == 0)
        migration_finish_completed(migration);
    else if (there && strcmp(there, "lost") == 0)
        finish_lost(migration, "internal", error);
    else
        migration_finish_doubted(migration, "lost", "internal", error);
}

/* ferry-vm has said "lost" or "unknown". The other host may know more. */
static void finish_unsure(struct migration *migration, const char *outcome, const char *cause,
                          const char *error)
{
    struct ferry_error err;
    const char *there = agreement_ask(migration, host_vm_ms(migration->host));

    if (there && strcmp(there, "lost") == 0 && migration->fetched) {
        finish_lost(migration, cause, error);
        return;
    }
    if (!there || strcmp(there, "completed") != 0) {
        migration_finish_doubted(migration, outcome, cause, error);
        return;
    }
    migration_log(migration, LOG_LEVEL_WARN, "%s, but host %s has taken the VM over", error,
                  migration->destination);
    /* It keeps the guest's memory: for nothing, now. */
    if (strcmp(outcome, "unknown") == 0 && call_vm(migration, "recover", json_pack("{s:b}", "here", 0),
                                                   host_start_ms(migration->host), &err) < 0)
        migration_log(migration, LOG_LEVEL_DEBUG, "giving the VM up: %s", err.text);
    migration_finish_completed(migration);
}

static bool has_started_there(struct migration *migration, const char *there)
{
    return (there && strcmp(there, "completed") == 0) ||
           (migration->vm &&
            vm_owner_of_migration(migration->host, migration->vm, migration->id) == VM_OWNER_STARTED);
}

/* Without a word of ours the destination could not, or cannot, take the VM over. */
static bool has_not_left(struct migration *migration, const char *there)
{
    return (there && agreement_stayed(there)) ||
           (migration->vm &&
            (!vm_directory_handed_over(migration->host, migration->vm) ||
             vm_owner_of_migration(migration->host, migration->vm, migration->id) == VM_OWNER_TAKEN_BACK));
}

/*
 * ferry-vm ended without a last word about the migration: once it has handed the VM over, only the lock and
 * the other side can know how it ended.
 */
static void finish_silent(struct migration *migration)
{
    char why[FERRY_ERROR_TEXT_SIZE];
    char error[FERRY_ERROR_TEXT_SIZE + 128];
    const char *there = NULL;

    host_lock(migration->host);
    snprintf(why, sizeof(why), "%s", migration->vm ? migration->vm->why : "the VM is gone");
    host_unlock(migration->host);
    snprintf(error, sizeof(error), "the VM ended on host %s meanwhile: %s", migration->source, why);
    if (migration->fetched) {
        finish_gone(migration, why);
        return;
    }
    if (!has_started_there(migration, NULL) && !has_not_left(migration, NULL)) {
        /* Its connections are closed: the destination goes on if it was told GO, and ends if not. */
        there = agreement_ask(migration, host_vm_ms(migration->host));
        if (!there) {
            withdraw(migration, false, PEER_LONG);
            there = agreement_ask(migration, host_vm_ms(migration->host));
        }
    }
    if (has_started_there(migration, there)) {
        migration_log(migration, LOG_LEVEL_WARN,
                      "ferry-vm ended without a word, but host %s has taken the VM over",
                      migration->destination);
        migration_finish_completed(migration);
    } else if (has_not_left(migration, there)) {
        migration_finish_failed(migration, "failed", "guest", error);
    } else {
        migration_finish_doubted(migration, "unknown", "guest", error);
    }
}

static void finish_as_told(struct migration *migration, const json_t *word)
{
    static const char *const unsure[] = {"lost", "unknown"};
    const char *outcome = text_of(word, "outcome");
    const char *cause = migration_known_cause(text_of(word, "cause"));
    const char *error = text_of(word, "error");

    if (strcmp(outcome, "completed") == 0) {
        migration_finish_completed(migration);
        return;
    }
    for (size_t i = 0; i < sizeof(unsure) / sizeof(unsure[0]); i++) {
        if (strcmp(outcome, unsure[i]) == 0) {
            finish_unsure(migration, unsure[i], cause, error);
            return;
        }
    }
    migration_finish_failed(migration, strcmp(outcome, "cancelled") == 0 ? "cancelled" : "failed", cause,
                            error);
}

/* It ended before the other host or the VM's process heard of it. */
static void finish_unsent(struct migration *migration, const char *outcome, const char *cause,
                          const char *error)
{
    tell_failed(migration, outcome, error);
    host_lock(migration->host);
    migration->agreed = true;
    host_unlock(migration->host);
    migration_end(migration, outcome, cause, error);
}

/* Waits for a place, and then does what a migration does that finds one at once. False: it has ended, or the
 * host stops. */
static bool leave_queue(struct migration *migration)
{
    struct ferry_error err = {0};
    int result;

    switch (queue_wait(migration)) {
    case QUEUE_STOPPING:
        return false;
    case QUEUE_CANCELLED:
        finish_unsent(migration, "cancelled", "cancelled", "cancelled while it was queued");
        return false;
    case QUEUE_VM_GONE:
        finish_unsent(migration, "failed", "guest", "the VM ended while the migration was queued");
        return false;
    case QUEUE_GO:
        break;
    }
    migration_log(migration, LOG_LEVEL_INFO, "a place is free: the migration begins");
    /* Much may have changed since it was asked for. */
    result = migration_check(migration, migration->vm->definition, NULL, &err);
    if (result == 0)
        result = prepare(migration, migration->vm->definition, &err);
    if (result < 0)
        finish_unsent(migration, "failed", result == HOST_UNREACHABLE ? "network" : "internal", err.text);
    return result == 0;
}

/* From here on the VM's process has it, and who wants to cancel it asks there. False: somebody had. */
static bool may_send(struct migration *migration)
{
    struct host *host = migration->host;
    bool cancelled;

    shares_settle(migration);
    host_lock(host);
    cancelled = migration->cancelled;
    migration->unsent = false;
    migration->sending = !cancelled;
    migration->share_told = migration->share;
    if (migration->share)
        json_object_set_new(migration->send, "bandwidth_limit", json_integer((json_int_t)migration->share));
    host_unlock(host);
    return !cancelled;
}

/* By somebody whose word reached the VM's process before ours: it told so before it refused to send. */
static bool was_cancelled(struct migration *migration)
{
    json_t *word = migration_final_word(migration);
    const char *outcome = json_string_value(json_object_get(word, "outcome"));
    bool cancelled = outcome && strcmp(outcome, "cancelled") == 0;

    json_decref(word);
    return cancelled;
}

static int start_sending(struct migration *migration, struct ferry_error *err)
{
    int result;

    events_emit(migration->host, EVENT_MIGRATION_OUT_STARTED, migration->vm_name, migration->machine,
                migration->id, "migration of VM %s from host %s to host %s started", migration->vm_name,
                migration->source, migration->destination);
    result =
        call_vm(migration, "migrate.send", json_incref(migration->send), host_vm_ms(migration->host), err);
    migration_exchange_events(migration);
    return result;
}

void migration_run_source(struct migration *migration)
{
    struct ferry_error err = {0};
    json_t *word;
    int result = 0;

    if (migration->cold) {
        cold_run(migration);
        return;
    }
    if (migration->queued && !leave_queue(migration))
        return;
    if (migration->send && !may_send(migration)) {
        cancel_vm(migration);
        migration_finish_failed(migration, "cancelled", "cancelled", "cancelled before it began");
        return;
    }
    if (migration->send)
        result = start_sending(migration, &err);
    if (result < 0 && result != -ESTALE && result != -EPIPE && result != -ETIMEDOUT &&
        !was_cancelled(migration)) {
        cancel_vm(migration);
        migration_finish_failed(migration, "failed", "internal", err.text);
        return;
    }
    if (!migration_wait(migration))
        return; /* ferryd is stopping; the VM processes go on, the next ferryd takes it up */
    word = migration_final_word(migration);
    if (word)
        finish_as_told(migration, word);
    else
        finish_silent(migration);
    json_decref(word);
}
