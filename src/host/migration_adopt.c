/* What a ferryd does with the migrations that were in progress when a former one ended. */
#include "host/migration.h"

#include "base/error.h"
#include "host/definition.h"
#include "host/fields.h"
#include "host/peers.h"
#include "host/vms.h"

#include <string.h>

#define LIST_MAX          1000
#define STATUS_TIMEOUT_MS 2000
#define STATE_TO_READY    1

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
        vm_process_call(process, "migrate.status", NULL, STATUS_TIMEOUT_MS, &object, NULL);
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
        vm_process_call(process, "migrate.cancel", json_pack("{s:s}", "id", migration->id), STATUS_TIMEOUT_MS,
                        NULL, NULL);
    vm_process_unref(process);
}

/* VM is a reference that is taken over; NULL when it is gone. WORD as ferry-vm said it, or NULL. */
static void take_up(struct migration *migration, struct vm *vm, json_t *word)
{
    bool final = word && strcmp(text_of(word, "outcome"), "none") != 0;
    bool prepared = word && json_integer_value(json_object_get(word, "state_number")) == STATE_TO_READY;
    struct ferry_error err;

    migration->fresh = false;
    migration->recorded = true;
    if (word) {
        migration->progress = json_incref(word);
        migration->told_final = final;
    }
    migration_register(migration, vm);
    migration_log(migration, LOG_LEVEL_INFO, "ferryd was restarted; it takes the migration up again");
    if (vm && prepared && !final)
        cancel_prepared(migration);
    if (migration_start_job(migration, &err) < 0)
        migration_end(migration, "failed", "internal", err.text);
}

/* A VM that is gone from here: it had moved away (OUTCOME, as its ban has it), or it had not arrived. */
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
    migration_register(migration, NULL);
    migration_log(migration, LOG_LEVEL_INFO, "ferryd was restarted; the VM is not here any more");
    if (migration->outgoing)
        migration_end(migration, ended, "", "");
    else
        migration_end(migration, strcmp(outcome, "unknown") == 0 ? "unknown" : "failed", "internal",
                      "the VM did not arrive; its process is gone");
}

static void adopt_record(struct host *host, const json_t *row)
{
    struct migration *migration =
        migration_new(host, text_of(row, "id"), text_of(row, "vm"), text_of(row, "machine"),
                      text_of(row, "source"), text_of(row, "destination"));
    struct vm *vm = vm_get(host, text_of(row, "vm"), NULL);
    json_t *word = vm ? ask(host, vm) : NULL;

    if (!migration) {
        vm_unref(host, vm);
        json_decref(word);
        return;
    }
    migration->started_ns = (uint64_t)json_integer_value(json_object_get(row, "started_ns"));
    snprintf(migration->peer_address, sizeof(migration->peer_address), "%s", text_of(row, "peer_address"));
    if (word && strcmp(text_of(word, "id"), migration->id) != 0) {
        json_decref(word);
        word = NULL;
    }
    if (vm && !vm->process && strcmp(vm->ban.migration, migration->id) == 0) {
        close_record(migration, vm->ban.outcome); /* all but the record was done */
        vm_unref(host, vm);
    } else if (vm) {
        take_up(migration, vm, word);
    } else {
        close_record(migration, "");
    }
    json_decref(word);
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

void migrations_adopt(struct host *host)
{
    struct ferry_error err;
    json_t *rows = NULL;
    json_t *row;
    size_t i;

    if (host->store->ops->migration_list(host->store, STORE_VIEW_ACTIVE, LIST_MAX, &rows, &err) < 0)
        host_record_failed(host, &err);
    json_array_foreach(rows, i, row) adopt_record(host, row);
    json_decref(rows);
    adopt_unrecorded_all(host);
}
