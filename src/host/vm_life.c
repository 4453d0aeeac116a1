/* The ends of a VM's process as the host sees it: it ended, or it was there before this ferryd. */
#include "host/vms.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "host/definition.h"
#include "host/events.h"
#include "host/fields.h"
#include "host/migration.h"
#include "host/upgrade.h"
#include "host/vm_directory.h"
#include "host/vm_runnable.h"
#include "host/vm_suspended.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

/* State and words for a VM whose process is gone, from its exit.json (NULL: it left none). Under the lock. */
static void set_ended(struct vm *vm, const json_t *word, const char *last_words)
{
    const char *reason = text_of(word, "reason");
    const char *why = text_of(word, "why");

    if (vm->suspended) {
        vm->state = VM_STATE_SUSPENDED;
        snprintf(vm->why, sizeof(vm->why), "in %s", text_of(vm->suspended, "file"));
        return;
    }
    if (strcmp(reason, "powered-off") == 0 || strcmp(reason, "killed") == 0 ||
        strcmp(reason, "migrated") == 0 || (!word && vm->killed)) {
        vm->state = VM_STATE_STOPPED;
    } else {
        vm->state = VM_STATE_CRASHED;
    }
    if (strcmp(reason, "migrated") == 0 && !why[0])
        snprintf(vm->why, sizeof(vm->why), "the guest has migrated to %.64s", text_of(word, "destination"));
    else if (why[0])
        snprintf(vm->why, sizeof(vm->why), "%s", why);
    else
        snprintf(vm->why, sizeof(vm->why), "%s", reason[0] ? reason : last_words);
}

void vm_note_end(struct host *host, struct vm *vm)
{
    char why[FERRY_ERROR_TEXT_SIZE];

    host_lock(host);
    if (!vm->process && vm->state == VM_STATE_SETUP) {
        snprintf(why, sizeof(why), "%s", vm->why);
        set_ended(vm, vm->exit, why);
        host_changed(host);
    }
    host_unlock(host);
}

/* The migration is over and its job gone: what it left behind goes too. True when the VM is not one of this
 * host's any more. */
static bool drop_leftover(struct host *host, struct vm *vm, const json_t *word)
{
    const char *reason = text_of(word, "reason");
    json_t *incoming = vm_directory_incoming(vm);
    bool left = strcmp(reason, "migrated") == 0;
    /* One without a process was arriving by a cold migration, and not all of it is here. */
    bool drop = incoming && (strcmp(reason, "failed") == 0 || !vm_directory_has_process(vm));
    struct vm_ban ban;

    json_decref(incoming);
    if (left) {
        vm_ban_by_migration(&ban, text_of(word, "destination"), text_of(word, "migration"),
                            text_of(word, "why")[0] ? "lost" : "completed", text_of(word, "why"));
        vm_retire(host, vm, &ban);
    } else if (drop) {
        vm_drop(host, vm);
    }
    return left || drop;
}

void vms_process_ended(struct vm_process *process)
{
    struct host *host = process->host;
    struct vm *vm = process->vm;
    json_t *word = vm_process_exit(process);
    char last_words[128];
    char why[FERRY_ERROR_TEXT_SIZE];
    bool moving;
    bool crashed;
    bool current;
    bool newcomer;

    vm_suspended_settle(host, vm, word);
    vm_process_last_words(process, last_words, sizeof(last_words));
    host_lock(host);
    current = vm->process == process;
    newcomer = vm->newcomer == process;
    if (newcomer) {
        vm->newcomer = NULL;
        upgrade_newcomer_ended(vm, word, last_words);
    }
    if (current) {
        bool arriving = vm->state == VM_STATE_SETUP;

        vm->process = NULL;
        set_ended(vm, word, last_words);
        if (arriving && vm->migration)
            vm->state = VM_STATE_SETUP; /* until its job has cleared up */
        json_decref(vm->exit);
        vm->exit = json_incref(word);
    }
    moving = vm->migration != NULL || vm->state == VM_STATE_SUSPENDED;
    crashed = vm->state == VM_STATE_CRASHED;
    snprintf(why, sizeof(why), "%s", vm->why);
    host_changed(host);
    host_unlock(host);
    if (current && !moving && !drop_leftover(host, vm, word))
        events_emit(host, crashed ? EVENT_VM_CRASHED : EVENT_VM_ENDED, vm->name,
                    definition_machine(vm->definition), NULL, "VM %s %s: %s", vm->name,
                    crashed ? "crashed" : "ended", why);
    json_decref(word);
    if (current || newcomer)
        vm_process_unref(process); /* the VM's reference */
}

struct vm_process *vm_replace_process(struct host *host, struct vm *vm, const json_t *exit, const char *why)
{
    struct vm_process *former;

    host_lock(host);
    former = vm->process;
    vm->process = vm->newcomer;
    vm->newcomer = NULL;
    json_decref(vm->exit);
    vm->exit = NULL;
    vm->why[0] = '\0';
    vm->version[0] = '\0';
    if (!vm->process) {
        vm->exit = json_incref((json_t *)exit);
        set_ended(vm, exit, why);
    } else if (!vm_runs(vm)) {
        vm->state = VM_STATE_RUNNING; /* the process before is dead; the state is asked for next */
    }
    host_changed(host);
    host_unlock(host);
    return former;
}

/* --- at start --- */

/* The process lives: it becomes the VM's again. */
static void adopt_running(struct host *host, struct vm *vm, struct vm_process *process)
{
    struct ferry_error err;
    json_t *incoming = vm_directory_incoming(vm);
    json_t *status = NULL;

    vm_suspended_read(host, vm);
    vm_publish(host, vm, process, incoming ? VM_STATE_SETUP : VM_STATE_RUNNING);
    json_decref(incoming);
    if (vm_process_call(process, "status", NULL, host_vm_ms(host), &status, &err) == 0) {
        vms_state_told(process, status);
        log_info(host->log, "VM %s: adopted process %d, %s", vm->name, (int)process->pid,
                 text_of(status, "state"));
    } else {
        log_warn(host->log, "VM %s: process %d runs, but does not answer: %s", vm->name, (int)process->pid,
                 err.text);
        host_lock(host);
        snprintf(vm->why, sizeof(vm->why), "its ferry-vm (process %d) does not answer", (int)process->pid);
        host_unlock(host);
    }
    json_decref(status);
}

static void adopt_ended(struct host *host, struct vm *vm)
{
    json_t *word = vm_directory_exit(vm);

    vm_suspended_read(host, vm);
    vm_suspended_settle(host, vm, word);
    host_lock(host);
    set_ended(vm, word, "ferry-vm is gone without a word");
    vm->exit = word;
    vm->listed = true;
    host_unlock(host);
    log_info(host->log, "VM %s does not run: %s", vm->name, vm->why);
}

/* A VM from before VMs had one; what it was given now it keeps. */
static void keep_uuid(struct host *host, const struct vm *vm)
{
    struct ferry_error err;

    if (vm_directory_write_definition(vm->directory, vm->definition, &err) < 0)
        log_error(host->log, "VM %s: its UUID could not be recorded, and will be another one: %s", vm->name,
                  err.text);
}

/* Its definition is what makes a directory a VM. */
static int adopt_directory(struct host *host, const char *name, struct ferry_error *err)
{
    char path[PATH_MAX + HOST_NAME_SIZE + 32];
    json_t *read = NULL;
    json_t *definition = NULL;
    struct vm_process *process = NULL;
    struct vm *vm = NULL;
    int result;

    snprintf(path, sizeof(path), "%s/vms/%s/definition.json", host->config->state_dir, name);
    result = host_read_json(path, &read, err);
    if (result == 0)
        result = definition_normalise(read, &definition, err);
    if (result == 0 && strcmp(definition_name(definition), name) != 0)
        result = error_set(err, -EINVAL, "it says it is VM %s", definition_name(definition));
    if (result == 0)
        result = vm_add(host, definition, "being adopted", false, &vm, err);
    if (result == 0 && !definition_uuid(read))
        keep_uuid(host, vm);
    json_decref(read);
    json_decref(definition);
    if (result < 0)
        return error_prefix(err, result, "%s/vms/%s is left alone", host->config->state_dir, name);
    vm_directory_read_ban(vm, &vm->ban);
    result = vm_process_adopt(&process, host, vm, vm->directory, err);
    if (result == 0) {
        adopt_running(host, vm, process);
    } else if (result == -ENOENT && vm->ban.by[0]) {
        vm_retire(host, vm, NULL);
    } else if (result == -ENOENT && !vm_directory_has_ended(vm)) {
        log_warn(host->log, "VM %s was never started: removing its directory", name);
        vm_drop(host, vm);
    } else {
        adopt_ended(host, vm);
    }
    vm_release(host, vm);
    return 0;
}

int vms_adopt(struct host *host, struct ferry_error *err)
{
    char path[PATH_MAX];
    struct dirent *entry;
    struct ferry_error why;
    DIR *directory;

    if (snprintf(path, sizeof(path), "%s/vms", host->config->state_dir) >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "the path of the state directory is too long");
    if (mkdir(path, 0750) < 0 && errno != EEXIST)
        return error_set_errno(err, -errno, "cannot make %s", path);
    directory = opendir(path);
    if (!directory)
        return error_set_errno(err, -errno, "cannot read %s", path);
    while ((entry = readdir(directory))) {
        if (config_name_valid(entry->d_name) && strlen(entry->d_name) < HOST_NAME_SIZE &&
            adopt_directory(host, entry->d_name, &why) < 0)
            log_warn(host->log, "%s", why.text);
    }
    closedir(directory);
    return 0;
}

void vms_drop_leftovers(struct host *host)
{
    json_t *list = vms_list(host);
    json_t *object;
    size_t i;

    json_array_foreach(list, i, object)
    {
        struct vm *vm;

        if (vm_claim(host, text_of(object, "name"), "being adopted", &vm, NULL) < 0)
            continue;
        if (!vm->process && vm->exit)
            drop_leftover(host, vm, vm->exit);
        vm_release(host, vm);
    }
    json_decref(list);
}

void vms_free(struct host *host)
{
    while (host->vms) {
        struct vm *vm = host->vms;
        struct vm_process *both[2] = {vm->process, vm->newcomer};

        host->vms = vm->next;
        vm->process = vm->newcomer = NULL;
        for (size_t i = 0; i < 2; i++) {
            if (both[i] && both[i]->watch) {
                loop_watch_remove(both[i]->watch);
                vm_process_unref(both[i]);
            }
            vm_process_unref(both[i]);
        }
        vm_unref(host, vm);
    }
    vm_processes_forget_leaving(host);
}
