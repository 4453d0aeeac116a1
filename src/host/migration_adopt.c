/* What a ferryd does with the migrations that were in progress when a former one ended. */
#include "host/migration.h"

#include "base/error.h"
#include "host/agreement.h"
#include "host/definition.h"
#include "host/fields.h"
#include "host/migration_cold.h"
#include "host/migration_fetch.h"
#include "host/peers.h"
#include "host/vms.h"

#include <string.h>

#define LIST_MAX       1000
#define STATE_TO_READY 1

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

/* What the VM's process says about its migration, or the last one: new reference or NULL. */
static json_t *ask(struct host *host, struct vm *vm)
{
    struct vm_process *process = vm_process_get(host, vm);
    json_t *object = NULL;

    if (process)
        vm_process_call(process, "migrate.status", NULL, host_vm_ms(host), &object, NULL);
    vm_process_unref(process);
    return object;
}

/* MIGRATE_TO was received, but the former ferryd did not come to MIGRATE_START: it never will now. */
static void cancel_prepared(struct migration *migration)
{
    struct vm_process *process = vm_process_get(migration->host, migration->vm);

    migration_log(migration, LOG_LEVEL_WARN,
                  "ferryd was restarted before the migration began; cancelling it");
    if (process)
        vm_process_call(process, "migrate.cancel", json_pack("{s:s}", "id", migration->id),
                        host_vm_ms(migration->host), NULL, NULL);
    vm_process_unref(process);
}

/* VM is a reference that is taken over; NULL when it is gone. WORD as ferry-vm said it, or NULL. */
static void take_up(struct migration *migration, struct vm *vm, json_t *word)
{
    bool final = word && strcmp(text_of(word, "outcome"), "none") != 0;
    bool prepared = word && json_integer_value(json_object_get(word, "state_number")) == STATE_TO_READY &&
                    !json_is_true(json_object_get(word, "begun"));
    struct ferry_error err;

    migration->fresh = false;
    migration->recorded = true;
    migration->sending = migration->outgoing;
    if (word) {
        json_decref(migration->progress);
        migration->progress = json_incref(word);
        migration->told_final = final;
        fetch_note(migration);
    }
    migration_register(migration, vm);
    host_lock(migration->host);
    /* What the former ferryd has told last is not known; without a host's limit it is what was asked for. */
    migration->share_told = migration->host->config->migrate_bandwidth ? UINT64_MAX : migration->share;
    if (vm && !migration->outgoing && !vm->process)
        vm->state = VM_STATE_SETUP; /* until the job has found out what became of it */
    host_unlock(migration->host);
    migration_log(migration, LOG_LEVEL_INFO, "ferryd was restarted; it takes the migration up again");
    if (vm && prepared && !final)
        cancel_prepared(migration);
    if (migration_start_job(migration, &err) < 0)
        migration_end(migration, "failed", "internal", err.text);
}

/* The VM has left, or may have (OUTCOME, as its ban has it): all but the record was done. */
static void close_record(struct migration *migration, const char *outcome)
{
    static const char *const known[] = {"lost", "unknown"};
    const char *ended = "completed";

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(outcome, known[i]) == 0)
            ended = known[i];
    }
    migration->fresh = false;
    migration->recorded = true;
    migration->in_doubt = strcmp(ended, "completed") != 0;
    migration_register(migration, NULL);
    migration_log(migration, LOG_LEVEL_INFO, "ferryd was restarted; the VM is not here any more");
    migration_end(migration, ended, "", "");
}

/* As it is on record, without its lines. */
static struct migration *read_record(struct host *host, const json_t *row)
{
    struct migration *migration =
        migration_new(host, text_of(row, "id"), text_of(row, "vm"), text_of(row, "machine"),
                      text_of(row, "source"), text_of(row, "destination"));

    if (!migration)
        return NULL;
    migration->started_ns = (uint64_t)json_integer_value(json_object_get(row, "started_ns"));
    migration->options = json_incref(json_object_get(row, "options"));
    migration->own_limit =
        (uint64_t)json_integer_value(json_object_get(migration->options, "bandwidth_limit"));
    migration->must_encrypt = json_is_true(json_object_get(row, "must_encrypt"));
    if (strcmp(text_of(row, "kind"), "cold") == 0)
        migration->cold = json_object();
    snprintf(migration->peer_address, sizeof(migration->peer_address), "%s", text_of(row, "peer_address"));
    if (json_is_object(json_object_get(row, "quick_resume"))) {
        migration->progress = json_incref((json_t *)row);
        fetch_note(migration);
        migration->fetch_recorded = migration->fetched;
    }
    return migration;
}

/* Disks that were being copied: how far that had come is not known any more. */
static void read_disks(struct migration *migration, const json_t *row)
{
    const json_t *disks = json_object_get(row, "disks");
    json_t *files = json_object_get(disks, "files");

    if (!json_is_array(files))
        return;
    migration->disk_files = json_incref(files);
    migration->disk_total = (uint64_t)json_integer_value(json_object_get(disks, "total_bytes"));
    migration->disk_begin_ns = migration->disk_end_ns = clock_now_ns();
}

/* It waited for a place, and goes on doing so. */
static void queue_again(struct migration *migration, struct vm *vm, json_t *row)
{
    struct ferry_error err;

    migration->recorded = true;
    migration->queued = true;
    migration->unsent = true;
    migration_register(migration, vm);
    migration_log(migration, LOG_LEVEL_INFO, "ferryd was restarted; the migration is still queued");
    if (migration_start_job(migration, &err) < 0)
        migration_end(migration, "failed", "internal", err.text);
}

static void adopt_record(struct host *host, json_t *row)
{
    struct migration *migration = read_record(host, row);
    struct vm *vm = vm_get(host, text_of(row, "vm"), NULL);
    json_t *word = vm ? ask(host, vm) : NULL;

    if (!migration) {
        vm_unref(host, vm);
        json_decref(word);
        return;
    }
    if (migration->cold) {
        read_disks(migration, row);
        cold_take_up(migration, vm);
        json_decref(word);
        migration_unref(migration);
        return;
    }
    if (json_integer_value(json_object_get(row, "queue")) > 0 &&
        (!word || strcmp(text_of(word, "id"), migration->id) != 0)) {
        queue_again(migration, vm, row);
        json_decref(word);
        migration_unref(migration);
        return;
    }
    if (migration->stays) {
        migration->upgrade = json_incref(json_object_get(row, "upgrade"));
        if (strcmp(text_of(word, "id"), migration->id) != 0) {
            json_decref(word);
            word = NULL;
        }
    } else if (word && strcmp(text_of(word, "id"), migration->id) != 0) {
        /* A later life of the VM's: the process that made this migration is gone. */
        vm_unref(host, vm);
        vm = NULL;
        json_decref(word);
        word = NULL;
    }
    if (vm && !vm->process && migration->outgoing && strcmp(vm->ban.migration, migration->id) == 0) {
        close_record(migration, vm->ban.outcome);
        vm_unref(host, vm);
    } else {
        take_up(migration, vm, word);
    }
    json_decref(word);
    migration_unref(migration);
}

/* One that has ended, and the other host may tell otherwise (agreement.h). */
static void adopt_open(struct host *host, json_t *row)
{
    struct migration *migration = read_record(host, row);
    struct ferry_error err;
    json_t *lines = NULL;

    if (!migration)
        return;
    if (host->store->ops->line_list(host->store, migration->id, &lines, &err) < 0)
        host_record_failed(host, &err);
    if (lines) {
        json_decref(migration->lines);
        migration->lines = lines;
    }
    json_decref(migration->progress);
    migration->progress = json_incref(row);
    migration->fresh = false;
    migration->recorded = true;
    migration->final_recorded = true;
    migration->ended = true;
    migration->in_doubt = true;
    migration->ended_ns = migration_parse_time(text_of(row, "ended"));
    migration->outcome = agreement_outcome(text_of(row, "outcome"));
    migration->cause = migration_known_cause(text_of(row, "cause"));
    snprintf(migration->error, sizeof(migration->error), "%s", text_of(row, "error"));
    migration_register(migration, NULL);
    migration_unref(migration);
}

/* A migration the records know nothing of: the former ferryd could not write, or was not that far yet. */
static void adopt_unrecorded(struct host *host, struct vm *vm, json_t *word)
{
    struct migration *migration =
        migration_new(host, text_of(word, "id"), vm->name, definition_machine(vm->definition),
                      text_of(word, "source"), text_of(word, "destination"));

    if (!migration) {
        vm_unref(host, vm);
        return;
    }
    migration_record(migration);
    peers_find(host, migration_peer_name(migration), migration->peer_address, NULL);
    take_up(migration, vm, word);
    migration_unref(migration);
}

static void adopt_unrecorded_all(struct host *host)
{
    json_t *list = vms_list(host);
    json_t *object;
    size_t i;

    json_array_foreach(list, i, object)
    {
        struct vm *vm;
        json_t *word;

        if (!json_is_null(json_object_get(object, "migration")))
            continue;
        vm = vm_get(host, text_of(object, "name"), NULL);
        if (!vm)
            continue;
        word = ask(host, vm);
        if (strlen(text_of(word, "id")) == MIGRATION_ID_SIZE - 1 &&
            strcmp(text_of(word, "outcome"), "none") == 0)
            adopt_unrecorded(host, vm, word);
        else
            vm_unref(host, vm);
        json_decref(word);
    }
    json_decref(list);
}

static void adopt_view(struct host *host, enum store_view view, void (*adopt)(struct host *host, json_t *row))
{
    struct ferry_error err;
    json_t *rows = NULL;
    json_t *row;
    size_t i;

    if (host->store->ops->migration_list(host->store, view, LIST_MAX, &rows, &err) < 0)
        host_record_failed(host, &err);
    json_array_foreach(rows, i, row) adopt(host, row);
    json_decref(rows);
}

void migrations_adopt(struct host *host)
{
    adopt_view(host, STORE_VIEW_OPEN, adopt_open); /* first: what is adopted now may end at once */
    adopt_view(host, STORE_VIEW_ACTIVE, adopt_record);
    adopt_unrecorded_all(host);
}
