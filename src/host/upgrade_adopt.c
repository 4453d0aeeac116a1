/* What a ferryd does with upgrades that were in progress when a former one ended. */
#include "host/upgrade.h"

#include "base/error.h"
#include "host/definition.h"
#include "host/upgrade_directory.h"
#include "host/vms.h"

#include <stdio.h>
#include <string.h>

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

/* The process that is to take the VM over, found again. */
static void adopt_newcomer(struct host *host, const char *name)
{
    struct vm *vm = vm_get(host, name, NULL);
    json_t *mark = upgrade_directory_mark(host, name);
    struct vm_process *process = NULL;
    char path[PATH_MAX];

    if (!vm || !mark) {
        upgrade_directory_clear(host, name);
    } else if (upgrade_directory_path(host, name, path, NULL) == 0 &&
               vm_process_adopt(&process, host, vm, path, NULL) == 0) {
        host_lock(host);
        vm->newcomer = process;
        host_unlock(host);
        if (vm_process_watch(process) < 0)
            log_error(host->log, "VM %s: out of memory: the end of its new process will not be noticed",
                      name);
        log_info(host->log, "VM %s: adopted process %d, which is to take it over", name, (int)process->pid);
    }
    json_decref(mark);
    vm_unref(host, vm);
}

void upgrades_adopt_processes(struct host *host)
{
    upgrade_directory_each(host, adopt_newcomer);
}

static void note_pids(struct migration *migration, const json_t *mark)
{
    char path[PATH_MAX];

    if (migration->upgrade || upgrade_directory_path(migration->host, migration->vm_name, path, NULL) < 0)
        return;
    migration->upgrade =
        json_pack("{s:I, s:s, s:i, s:s}", "old_pid", json_integer_value(json_object_get(mark, "old_pid")),
                  "old_version", text_of(mark, "old_version"), "new_pid", (int)upgrade_directory_pid(path),
                  "new_version", "");
}

/* A new process that has ended left its words in its directory. */
static void note_exit(struct migration *migration)
{
    struct host *host = migration->host;
    char directory[PATH_MAX], path[PATH_MAX + 16];
    json_t *word = NULL;

    host_lock(host);
    if (!migration->vm->newcomer && !migration->arrival_exit &&
        upgrade_directory_path(host, migration->vm_name, directory, NULL) == 0) {
        host_unlock(host);
        snprintf(path, sizeof(path), "%s/exit.json", directory);
        host_read_json(path, &word, NULL);
        host_lock(host);
        upgrade_newcomer_ended(migration->vm, word, "ferry-vm is gone without a word");
    }
    host_unlock(host);
    json_decref(word);
}

/* The process that has the VM, if it knows of this upgrade. */
static void ask_former(struct migration *migration)
{
    struct vm_process *process = vm_process_get(migration->host, migration->vm);
    json_t *object = NULL;

    if (process &&
        vm_process_call(process, "migrate.status", NULL, host_vm_ms(migration->host), &object, NULL) == 0 &&
        strcmp(text_of(object, "id"), migration->id) == 0)
        migration_told(process,
                       strcmp(text_of(object, "outcome"), "none") == 0 ? "migration.progress"
                                                                       : "migration.finished",
                       object);
    json_decref(object);
    vm_process_unref(process);
}

bool upgrade_take_up(struct migration *migration)
{
    struct host *host = migration->host;
    struct vm *vm = migration->vm;
    json_t *mark = upgrade_directory_mark(host, migration->vm_name);
    bool open = vm && strcmp(text_of(mark, "id"), migration->id) == 0;
    bool begun;

    if (open) {
        note_pids(migration, mark);
        note_exit(migration);
        ask_former(migration);
    }
    json_decref(mark);
    host_lock(host);
    begun = migration->progress || (vm && !vm->process);
    host_unlock(host);
    if (open && begun)
        return true;
    if (open) {
        /* The process that has the VM knows nothing of it. */
        upgrade_directory_clear(host, migration->vm_name);
        migration_end(migration, "failed", "internal", "ferryd was restarted before the upgrade began");
    } else if (vm && upgrade_directory_pid(vm->directory) ==
                         json_integer_value(json_object_get(migration->upgrade, "new_pid"))) {
        migration_end(migration, "completed", "", "");
    } else {
        migration_end(migration, "failed", "internal", "ferryd was restarted; the VM is where it was");
    }
    return false;
}

/* One that is not on record: the former ferryd could not write. */
static void adopt_unrecorded(struct host *host, const char *name)
{
    json_t *mark = upgrade_directory_mark(host, name);
    struct vm *vm = vm_get(host, name, NULL);
    struct migration *migration = NULL;
    bool moving;

    host_lock(host);
    moving = vm && vm->migration;
    host_unlock(host);
    if (vm && mark && !moving && migration_id_valid(text_of(mark, "id")))
        migration = migration_new(host, text_of(mark, "id"), name, definition_machine(vm->definition),
                                  host->config->name, host->config->name);
    if (migration) {
        struct ferry_error err;

        migration->fresh = false;
        migration_register(migration, vm);
        vm = NULL; /* its reference */
        migration_record(migration);
        migration_log(migration, LOG_LEVEL_INFO, "ferryd was restarted; it takes the upgrade up again");
        if (migration_start_job(migration, &err) < 0)
            migration_end(migration, "failed", "internal", err.text);
        migration_unref(migration);
    } else if (!moving) {
        upgrade_directory_clear(host, name);
    }
    vm_unref(host, vm);
    json_decref(mark);
}

void upgrades_adopt(struct host *host)
{
    upgrade_directory_each(host, adopt_unrecorded);
    upgrade_directory_sweep(host);
}
