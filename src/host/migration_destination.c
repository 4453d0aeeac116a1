#include "host/migration.h"

#include "base/error.h"
#include "host/agreement.h"
#include "host/certificate.h"
#include "host/checks.h"
#include "host/definition.h"
#include "host/events.h"
#include "host/fields.h"
#include "host/migration_cold.h"
#include "host/migration_fetch.h"
#include "host/peers.h"
#include "host/storage.h"
#include "host/storage_copy.h"
#include "host/storage_file.h"
#include "host/vm_directory.h"
#include "host/vm_owner.h"
#include "host/vm_runnable.h"

#include <string.h>
#include <sys/random.h>

#define REMAINS_LOOK_MS 100 /* how often it is looked whether a VM has become free, when nothing tells */

int migration_make_token(char text[static MIGRATION_TOKEN_SIZE], struct ferry_error *err)
{
    uint8_t token[MIGRATION_TOKEN_SIZE / 2];

    if (getrandom(token, sizeof(token), 0) != sizeof(token))
        return error_set_errno(err, -errno, "cannot make a token");
    for (size_t i = 0; i < sizeof(token); i++)
        snprintf(text + 2 * i, 3, "%02x", token[i]);
    return 0;
}

bool migration_id_valid(const char *id)
{
    if (strlen(id) != MIGRATION_ID_SIZE - 1)
        return false;
    for (size_t i = 0; i < MIGRATION_ID_SIZE - 1; i++) {
        bool dash = i == 8 || i == 13 || i == 18 || i == 23;

        if (dash ? id[i] != '-' : !strchr("0123456789abcdef", id[i]))
            return false;
    }
    return true;
}

static int check_offer(struct host *host, const struct migration_offer *offer, struct ferry_error *err)
{
    struct ferry_error ignored;
    char id[MIGRATION_ID_SIZE];

    if (!migration_id_valid(offer->id))
        return error_set(err, HOST_USAGE, "\"id\" must be a UUID in lower case");
    if (!config_name_valid(offer->source))
        return error_set(err, HOST_USAGE, "\"source\" must be a host's name");
    if (migration_resolve(host, offer->id, id, &ignored) == 0)
        return error_set(err, HOST_CONFLICT, "there is a migration %s on host %s already", offer->id,
                         host->config->name);
    return 0;
}

/* The answer, but for address, token and pid. */
static json_t *make_answer(struct host *host, const json_t *definition, json_t *results)
{
    return json_pack("{s:O, s:o, s:o, s:s}", "checks", results, "disks", checks_describe_disks(definition),
                     "lock", checks_describe_lock(host, definition), "boot_id", host->boot_id);
}

/* Where the VM process is told to listen: port chosen by the kernel. */
static void listen_address(const struct host *host, char out[static SOCK_ADDRESS_SIZE + 8])
{
    const char *address = host->config->migrate_address;

    snprintf(out, SOCK_ADDRESS_SIZE + 8, strchr(address, ':') ? "[%s]:0" : "%s:0", address);
}

/* The process waits for the source; *answer gets address, token and pid. */
static int open_door(struct migration *migration, struct vm_process *process, json_t *answer,
                     struct ferry_error *err)
{
    char token[MIGRATION_TOKEN_SIZE];
    char certificate[PATH_MAX];
    char listen[SOCK_ADDRESS_SIZE + 8];
    json_t *told = NULL;
    json_t *params;
    const char *address = NULL;
    const struct field fields[] = {{"address", FIELD_STRING, true, &address}};
    int result = migration_make_token(token, err);

    if (result < 0)
        return result;
    listen_address(migration->host, listen);
    params = json_pack("{s:s, s:s, s:s, s:s, s:s, s:I}", "id", migration->id, "token", token, "source",
                       migration->source, "destination", migration->destination, "listen", listen,
                       "peer_timeout", (json_int_t)migration->host->config->peer_timeout_ns);
    if (migration->encrypted) {
        certificate_path(migration->host->config, certificate);
        json_object_set_new(params, "certificate", json_string(certificate));
    }
    result = vm_process_call(process, "migrate.receive", params, host_vm_ms(migration->host), &told, err);
    if (result == 0)
        result = fields_read(told, fields, 1, FIELDS_LOOSE, "the answer of ferry-vm", err);
    if (result == 0) {
        json_object_set_new(answer, "address", json_string(address));
        json_object_set_new(answer, "token", json_string(token));
        json_object_set_new(answer, "pid", json_integer(process->pid));
        json_object_set_new(answer, "tls", json_boolean(migration->encrypted));
    }
    json_decref(told);
    return result;
}

/* How long the process may take to get the memory: somewhat less than the source waits for our answer. */
static int64_t reserve_ms(const struct host *host, const struct migration_offer *offer)
{
    uint64_t patience_ms = offer->patience_ns / NS_PER_MS;
    int64_t ours_ms = host_start_ms(host);

    if (patience_ms == 0 || patience_ms > (uint64_t)ours_ms)
        patience_ms = (uint64_t)ours_ms;
    return (int64_t)(patience_ms * 5 / 6);
}

/* Directory, process with its memory reserved, listening. VM is claimed; on failure it is gone. */
static int set_up(struct migration *migration, struct vm *vm, int64_t timeout_ms, json_t *answer,
                  struct ferry_error *err)
{
    struct host *host = migration->host;
    struct vm_process *process = NULL;
    int result = vm_directory_mark_incoming(vm, migration->id, migration->source, err);

    if (result == 0)
        result = vm_process_start(&process, host, vm, VM_PROCESS_INCOMING, timeout_ms, err);
    if (!process) {
        vm_directory_log_tail(host, vm);
        vm_drop(host, vm);
        return result;
    }
    host_lock(host);
    vm->refs++;
    process->refs++;
    vm->memory_promised = 0; /* reserved now, so it is missing from what is available */
    host_unlock(host);
    migration_register(migration, vm);
    vm_publish(host, vm, process, VM_STATE_SETUP);
    result = open_door(migration, process, answer, err);
    if (result == 0) {
        migration_record(migration);
        result = migration_start_job(migration, err);
    }
    if (result < 0) {
        vm_process_kill(process);
        vm_wait_gone(host, vm, clock_deadline(host_start_ms(host)));
        migration_unregister(migration);
        vm_drop(host, vm);
    }
    vm_process_unref(process);
    return result;
}

static int receive(struct host *host, const struct migration_offer *offer, const json_t *definition,
                   json_t *answer, struct ferry_error *err)
{
    struct migration *migration =
        migration_new(host, offer->id, definition_name(definition), definition_machine(definition),
                      offer->source, host->config->name);
    struct vm *vm = NULL;
    int result;

    if (!migration)
        return error_set(err, -ENOMEM, "out of memory");
    migration->encrypted = offer->tls;
    peers_find(host, offer->source, migration->peer_address, NULL);
    result = vm_make(host, definition, "arriving", true, &vm, err);
    if (result == 0) {
        host_lock(host);
        vm->memory_promised = definition_memory(definition);
        host_unlock(host);
        result = set_up(migration, vm, reserve_ms(host, offer), answer, err);
        vm_release(host, vm);
    }
    if (result < 0)
        error_prefix(err, HOST_REFUSED, "VM %s cannot be set up on host %s", definition_name(definition),
                     host->config->name);
    migration_unref(migration);
    return result < 0 ? HOST_REFUSED : 0;
}

int migration_receive(struct host *host, const struct migration_offer *offer, json_t **answer,
                      struct ferry_error *err)
{
    struct check_context context = {
        .host = host,
        .source = offer->source,
        .destination = host->config->name,
        .protocol = offer->protocol,
        .encrypted = offer->tls,
        .must_encrypt = host->config->require_tls,
        .quick_resume = offer->quick_resume,
        .cold = offer->cold,
    };
    json_t *definition = NULL;
    json_t *results = json_array();
    int result = check_offer(host, offer, err);

    migrations_reap(host, false);
    if (result == 0)
        result = definition_normalise(offer->definition, &definition, err);
    if (result == 0) {
        context.definition = definition;
        context.vm = definition_name(definition);
        result = checks_run(CHECK_DESTINATION, &context, results, err);
        if (offer->check_only)
            result = 0;
    }
    if (result == 0) {
        *answer = make_answer(host, definition, results);
        if (storage_moves(offer->cold) ||
            storage_file_moves(offer->cold)) /* this ferryd knows what that is */
            json_object_set_new(*answer, "storage", json_object());
        if (!offer->check_only && offer->cold)
            result = cold_receive(host, offer, definition, *answer, err);
        else if (!offer->check_only)
            result = receive(host, offer, definition, *answer, err);
        if (result < 0) {
            json_decref(*answer);
            *answer = NULL;
        }
    }
    json_decref(definition);
    json_decref(results);
    return result;
}

/* The VM that arrived, or was to arrive, by migration ID: a reference, or NULL. */
static struct vm *find_arriving(struct host *host, const char *id, bool *moving)
{
    struct vm *found = NULL;

    *moving = false;
    host_lock(host);
    for (struct vm *vm = host->vms; vm && !found; vm = vm->next) {
        if (vm->migration && !vm->migration->outgoing && strcmp(vm->migration->id, id) == 0) {
            found = vm;
            found->refs++;
            *moving = true;
        }
    }
    host_unlock(host);
    return found;
}

/* Somebody may be dropping the same remains this moment: who asked for that waits until they are gone. */
static int claim_remains(struct host *host, const char *name, struct vm **vm)
{
    uint64_t deadline = clock_deadline(host_vm_ms(host));
    int result;

    while ((result = vm_claim(host, name, "being removed", vm, NULL)) == -EBUSY &&
           clock_left_ms(deadline) != 0 && !host_stopping(host)) {
        host_lock(host);
        thread_cond_wait_until(&host->changed, &host->lock, clock_deadline(REMAINS_LOOK_MS));
        host_unlock(host);
    }
    return result;
}

bool migration_drop_remains(struct host *host, const char *id)
{
    json_t *list = vms_list(host);
    json_t *object;
    size_t i;
    bool dropped = false;

    json_array_foreach(list, i, object)
    {
        struct vm *vm;
        json_t *mark;
        const char *marked;
        bool doubted;

        /* One that arrives by another migration may be claimed for hours. */
        const char *moving = json_string_value(json_object_get(object, "migration"));

        if (!json_is_null(json_object_get(object, "pid")) || (moving && strcmp(moving, id) != 0) ||
            claim_remains(host, json_string_value(json_object_get(object, "name")), &vm) < 0)
            continue;
        mark = vm_directory_incoming(vm);
        marked = json_string_value(json_object_get(mark, "id"));
        doubted = strcmp(vm->ban.migration, id) == 0 && strcmp(vm->ban.outcome, "unknown") == 0;
        if ((marked && strcmp(marked, id) == 0) || doubted) {
            if (doubted)
                vm_lift_ban(host, vm);
            vm_drop(host, vm);
            dropped = true;
        }
        json_decref(mark);
        vm_release(host, vm);
    }
    json_decref(list);
    return dropped;
}

/* It was told to end. HANGS: it did not even answer that; otherwise it gets its time to. */
static void end_hanging(struct host *host, struct vm *vm, struct vm_process *process, bool hangs)
{
    bool arriving;

    if (vm_wait_gone(host, vm, hangs ? 0 : clock_deadline(host_vm_ms(host))))
        return;
    host_lock(host);
    arriving = vm->process == process && vm->state == VM_STATE_SETUP;
    host_unlock(host);
    if (!arriving)
        return;
    log_warn(host->log, "VM %s: process %d, for a migration that failed, hangs; killing it", vm->name,
             (int)process->pid);
    vm_process_kill(process);
}

int migration_withdraw(struct host *host, const char *id, bool force, struct ferry_error *err)
{
    struct vm_process *process;
    struct vm *vm;
    bool moving;
    bool ended = false;
    unsigned seen = 0;
    /* What hangs is killed with FORCE only. */
    uint64_t deadline = clock_deadline(force ? host_start_ms(host) : 2 * host_vm_ms(host));
    int result = 0;

    if (!migration_id_valid(id))
        return error_set(err, HOST_NOT_FOUND, "there is no migration %.64s", id);
    vm = find_arriving(host, id, &moving);
    if (!vm) {
        char whole[MIGRATION_ID_SIZE];

        if (force && migration_drop_remains(host, id))
            return 0;
        if (migration_resolve(host, id, whole, err) < 0)
            return HOST_NOT_FOUND;
    }
    process = vm ? vm_process_get(host, vm) : NULL;
    host_lock(host);
    if (vm && vm->migration && storage_may_cancel(vm->migration)) {
        vm->migration->cancelled = true;
        migration_touch(vm->migration);
    }
    host_unlock(host);
    if (process)
        result = vm_process_call(process, "migrate.cancel", json_pack("{s:s}", "id", id), host_vm_ms(host),
                                 NULL, err);
    if (process && force)
        end_hanging(host, vm, process, result == -ETIMEDOUT);
    vm_process_unref(process);
    vm_unref(host, vm);
    /* Refused ("too late"), done, or it had ended by itself: either way the job sees how it ends. */
    while (!ended && clock_left_ms(deadline) != 0 && !host_stopping(host)) {
        json_t *object = NULL;

        if (migration_watch(host, id, &seen, deadline, &object, &ended, err) < 0)
            return 0;
        if (ended && strcmp(json_string_value(json_object_get(object, "outcome")), "completed") == 0)
            result = error_set(err, HOST_CONFLICT, "the VM of migration %s runs on host %s already", id,
                               host->config->name);
        else if (ended)
            result = 0;
        json_decref(object);
    }
    if (ended && force && result == 0)
        migration_drop_remains(host, id);
    if (!ended && result == 0)
        result = error_set(err, -ETIMEDOUT, "migration %s does not end on host %s", id, host->config->name);
    return result;
}

/* --- the job --- */

static void finish_completed(struct migration *migration)
{
    struct host *host = migration->host;
    struct vm *vm = migration->vm;

    if (vm) {
        vm_directory_arrived(vm);
        vm_lift_ban(host, vm);
        vm_note_end(host, vm);
        vms_refresh(host, vm);
    }
    if (!migration->fetched) /* else it has been told long ago */
        events_emit_at(host, migration_state_time(migration, "MIGRATE_FROM_VMX_FINISHED"), EVENT_VM_CONTINUED,
                       migration->vm_name, migration->machine, migration->id, "VM %s continued on host %s",
                       migration->vm_name, migration->destination);
    events_emit(host, EVENT_MIGRATION_IN_COMPLETED, migration->vm_name, migration->machine, migration->id,
                "migration of VM %s from host %s to host %s completed", migration->vm_name, migration->source,
                migration->destination);
    migration_end(migration, "completed", "", "");
}

/* Its process has said that it ends; it is killed if it does not. False: the host stops. */
static bool end_process(struct migration *migration)
{
    struct host *host = migration->host;
    struct vm *vm = migration->vm;
    struct vm_process *process;

    if (!vm || vm_wait_gone(host, vm, clock_deadline(host_vm_ms(host))))
        return true;
    process = vm_process_get(host, vm);
    if (process && !host_stopping(host))
        vm_process_kill(process);
    vm_process_unref(process);
    if (host_stopping(host))
        return false;
    vm_wait_gone(host, vm, clock_deadline(host_start_ms(host)));
    return true;
}

/* Nothing ran here: process, directory and name are given back before the record says so. */
static void finish_failed(struct migration *migration, const char *outcome, const char *cause,
                          const char *error)
{
    struct host *host = migration->host;
    struct vm *vm = migration->vm;

    if (!end_process(migration))
        return;
    migration_log(migration, LOG_LEVEL_ERROR, "migration of VM %s from host %s %s: %s", migration->vm_name,
                  migration->source, outcome, error);
    migration_release_vm(migration);
    if (vm)
        vm_drop(host, vm);
    events_emit(host, EVENT_MIGRATION_FAILED, migration->vm_name, migration->machine, migration->id,
                "migration of VM %s from host %s to host %s %s: %s", migration->vm_name, migration->source,
                migration->destination, outcome, error);
    migration_end(migration, outcome, cause, error);
}

/* The guest ran here, and its process is gone: a VM like any other that has crashed. */
static void finish_ended(struct migration *migration, const char *why)
{
    struct host *host = migration->host;
    struct vm *vm = migration->vm;
    char error[FERRY_ERROR_TEXT_SIZE];

    snprintf(error, sizeof(error), "the guest was taken over by host %s, and its process is gone: %.300s",
             migration->destination, why);
    migration_log(migration, LOG_LEVEL_ERROR, "%s", error);
    vm_directory_arrived(vm);
    vm_lift_ban(host, vm);
    vm_note_end(host, vm);
    events_emit(host, EVENT_MIGRATION_IN_COMPLETED, migration->vm_name, migration->machine, migration->id,
                "migration of VM %s from host %s to host %s completed", migration->vm_name, migration->source,
                migration->destination);
    events_emit(host, EVENT_VM_CRASHED, migration->vm_name, migration->machine, NULL, "VM %s crashed: %s",
                migration->vm_name, why);
    migration_end(migration, "completed", "internal", error);
}

/* Quick resume has broken off: the guest ran here, and can never run on. A VM like any other that has
 * crashed, but that it is the migration that has lost it. */
static void finish_lost(struct migration *migration, const char *cause, const char *error)
{
    struct host *host = migration->host;
    struct vm *vm = migration->vm;

    if (!end_process(migration))
        return;
    migration_log(migration, LOG_LEVEL_ERROR, "migration of VM %s from host %s lost: %s", migration->vm_name,
                  migration->source, error);
    if (vm) {
        vm_directory_arrived(vm);
        vm_lift_ban(host, vm);
        vm_note_end(host, vm);
    }
    events_emit(host, EVENT_MIGRATION_FAILED, migration->vm_name, migration->machine, migration->id,
                "migration of VM %s from host %s to host %s lost: %s", migration->vm_name, migration->source,
                migration->destination, error);
    events_emit(host, EVENT_VM_CRASHED, migration->vm_name, migration->machine, NULL, "VM %s crashed: %s",
                migration->vm_name, error);
    migration_end(migration, "lost", cause, error);
}

/* Its process died while memory was missing. */
static void finish_torn(struct migration *migration, const char *why)
{
    char error[FERRY_ERROR_TEXT_SIZE];

    snprintf(error, sizeof(error),
             "the guest is lost: its process on host %s is gone (%.200s) before all of its memory was there; "
             "start it anew from its disks",
             migration->destination, why);
    finish_lost(migration, "internal", error);
}

/* What is left is kept, and cannot be started until it is known that the source does not have it. */
static void finish_doubted(struct migration *migration, const char *outcome, const char *why)
{
    struct host *host = migration->host;
    char reason[FERRY_ERROR_TEXT_SIZE];
    struct vm_ban ban;

    snprintf(reason, sizeof(reason),
             "%.200s while it was taking over from host %s; decide with: ferry recover %s", why,
             migration->source, migration->vm_name);
    vm_ban_by_migration(&ban, migration->source, migration->id, "unknown", reason);
    vm_retire(host, migration->vm, &ban);
    migration->in_doubt = true;
    events_emit(host, EVENT_MIGRATION_FAILED, migration->vm_name, migration->machine, migration->id,
                "migration of VM %s from host %s to host %s failed: %s", migration->vm_name,
                migration->source, migration->destination, why);
    migration_end(migration, outcome, "internal", why);
}

/*
 * ferry-vm died without a last word. Before its checkpoint was restored it cannot have run. Afterwards the
 * lock tells whether it had come to run the guest, and with nothing shared the source may know.
 */
static void finish_silent(struct migration *migration)
{
    char why[FERRY_ERROR_TEXT_SIZE];
    enum vm_owner_word word;
    const char *there;
    bool torn;

    host_lock(migration->host);
    snprintf(why, sizeof(why), "%s", migration->vm ? migration->vm->why : "the VM is gone");
    torn = fetch_is_under_way(migration);
    host_unlock(migration->host);
    if (torn) {
        finish_torn(migration, why);
        return;
    }
    if (!migration->vm || !vm_directory_handed_over(migration->host, migration->vm)) {
        finish_failed(migration, "failed", "internal", why);
        return;
    }
    word = vm_owner_of_migration(migration->host, migration->vm, migration->id);
    /* Without a lock to go by the source may need a moment to know. */
    there = word == VM_OWNER_STARTED
                ? NULL
                : agreement_ask(migration, word == VM_OWNER_SILENT ? host_vm_ms(migration->host) : 0);
    if (word == VM_OWNER_STARTED || (there && strcmp(there, "completed") == 0))
        finish_ended(migration, why);
    else if (word == VM_OWNER_TAKEN_BACK || (there && agreement_stayed(there)))
        finish_failed(migration, "failed", "internal", why);
    else
        finish_doubted(migration, word == VM_OWNER_GIVEN ? "failed" : "unknown", why);
}

void migration_run_destination(struct migration *migration)
{
    struct host *host = migration->host;
    const char *outcome;
    const char *error;
    json_t *word;

    if (migration->cold) {
        storage_run(migration);
        return;
    }
    if (migration->fresh) {
        events_emit(host, EVENT_MIGRATION_IN_STARTED, migration->vm_name, migration->machine, migration->id,
                    "migration of VM %s from host %s to host %s started", migration->vm_name,
                    migration->source, migration->destination);
        events_emit(host, EVENT_VM_CREATED, migration->vm_name, migration->machine, migration->id,
                    "VM %s was created on host %s, its memory is reserved", migration->vm_name,
                    migration->destination);
    }
    if (!migration_wait(migration))
        return; /* ferryd is stopping; the next one takes it up */
    word = migration_final_word(migration);
    outcome = json_string_value(json_object_get(word, "outcome"));
    error = json_string_value(json_object_get(word, "error"));
    if (!word)
        finish_silent(migration);
    else if (outcome && strcmp(outcome, "completed") == 0)
        finish_completed(migration);
    else if (outcome && strcmp(outcome, "lost") == 0)
        finish_lost(migration, migration_known_cause(json_string_value(json_object_get(word, "cause"))),
                    error ? error : "");
    else
        finish_failed(migration, outcome && strcmp(outcome, "cancelled") == 0 ? "cancelled" : "failed",
                      migration_known_cause(json_string_value(json_object_get(word, "cause"))),
                      error ? error : "");
    json_decref(word);
}
