#include "host/vms.h"

#include "base/error.h"
#include "base/thread.h"
#include "host/checkpoint.h"
#include "host/definition.h"
#include "host/machines.h"
#include "host/events.h"
#include "host/fields.h"
#include "host/migration.h"
#include "host/upgrade.h"
#include "host/migration_fetch.h"
#include "host/vm_directory.h"
#include "host/vm_runnable.h"
#include "host/vm_suspended.h"

#include <stdlib.h>
#include <string.h>

#define STATUS_TIMEOUT_MS 500 /* for what is nice to know in a listing */

static const char *base_state(enum vm_state state)
{
    switch (state) {
    case VM_STATE_SETUP:
        return "SETUP";
    case VM_STATE_RUNNING:
        return "RUNNING";
    case VM_STATE_PAUSED:
        return "PAUSED";
    case VM_STATE_STOPPED:
        return "STOPPED";
    case VM_STATE_CRASHED:
        return "CRASHED";
    case VM_STATE_SUSPENDED:
        return "SUSPENDED";
    case VM_STATE_NOT_RUNNABLE:
        return "NOT_RUNNABLE";
    }
    return "?";
}

const char *vm_state_text(const struct vm *vm)
{
    if (vm->state == VM_STATE_SETUP ||
        (vm->migration && !vm->migration->outgoing && !vm->migration->fetched && vm->process))
        return "SETUP(MIGR)";
    if (vm->migration && vm->migration->queued)
        return base_state(vm->state);
    if (vm->migration && vm->state == VM_STATE_RUNNING)
        return "RUNNING(MIGR)";
    if (vm->migration && vm->state == VM_STATE_PAUSED)
        return "PAUSED(MIGR)";
    if (vm->ban.by[0] && !vm->process)
        return "NOT_RUNNABLE";
    return base_state(vm->state);
}

bool vm_runs(const struct vm *vm)
{
    return vm->state == VM_STATE_RUNNING || vm->state == VM_STATE_PAUSED;
}

struct vm *vms_find(struct host *host, const char *name)
{
    for (struct vm *vm = host->vms; vm; vm = vm->next) {
        if (strcmp(vm->name, name) == 0)
            return vm;
    }
    return NULL;
}

static int no_such_vm(struct host *host, const char *name, struct ferry_error *err)
{
    return error_set(err, HOST_NOT_FOUND, "there is no VM %s on host %s", name, host->config->name);
}

struct vm *vm_get(struct host *host, const char *name, struct ferry_error *err)
{
    struct vm *vm;

    host_lock(host);
    vm = vms_find(host, name);
    if (vm && vm->listed)
        vm->refs++;
    else
        vm = NULL;
    host_unlock(host);
    if (!vm)
        no_such_vm(host, name, err);
    return vm;
}

void vm_unref(struct host *host, struct vm *vm)
{
    bool last;

    if (!vm)
        return;
    host_lock(host);
    last = --vm->refs == 0;
    host_unlock(host);
    if (!last)
        return;
    json_decref(vm->definition);
    json_decref(vm->exit);
    json_decref(vm->suspended);
    json_decref(vm->forecast);
    json_decref(vm->cpu);
    free(vm);
}

static int claim(struct host *host, const char *name, const char *what, bool moving, struct vm **out,
                 struct ferry_error *err)
{
    struct vm *vm;
    int result = 0;

    *out = NULL;
    host_lock(host);
    vm = vms_find(host, name);
    if (!vm || !vm->listed) {
        result = no_such_vm(host, name, err);
    } else if (vm->busy) {
        result = error_set(err, -EBUSY, "VM %s is %s; try again afterwards", name, vm->busy);
    } else if (vm->migration && !moving && fetch_is_under_way(vm->migration)) {
        result =
            error_set(err, -EBUSY,
                      "memory of VM %s is still on its way from host %s to host %s (migration %s); try again "
                      "when all is there",
                      name, vm->migration->source, vm->migration->destination, migration_id(vm->migration));
    } else if (vm->migration && !moving) {
        result =
            error_set(err, -EBUSY, "VM %s has a migration in progress (%s); wait for it, or cancel it first",
                      name, migration_id(vm->migration));
    } else if (!moving && checkpoint_check_idle(vm, err) < 0) {
        result = -EBUSY;
    } else {
        vm->busy = what;
        vm->refs++;
        *out = vm;
    }
    host_unlock(host);
    return result;
}

int vm_claim(struct host *host, const char *name, const char *what, struct vm **out, struct ferry_error *err)
{
    return claim(host, name, what, false, out, err);
}

void vm_release(struct host *host, struct vm *vm)
{
    host_lock(host);
    vm->busy = NULL;
    host_changed(host);
    host_unlock(host);
    vm_unref(host, vm);
}

struct vm_process *vm_process_get(struct host *host, struct vm *vm)
{
    struct vm_process *process;

    host_lock(host);
    process = vm->process;
    if (process)
        process->refs++;
    host_unlock(host);
    return process;
}

/* The guest runs elsewhere and still needs memory that is here. Under the lock. */
static bool vm_serves(const struct vm *vm)
{
    return vm->process && vm->migration && vm->migration->outgoing && fetch_is_under_way(vm->migration);
}

/* "not_runnable" of its object; null: it may run here. Under the lock. New reference. */
static json_t *describe_ban(const struct vm *vm, bool banned)
{
    if (banned)
        return json_pack("{s:s, s:o}", "set_by", vm->ban.by, "reason", fields_text(vm->ban.reason));
    if (vm_serves(vm))
        return json_pack("{s:s, s:o}", "set_by", "Migrate", "reason", fields_text(vm->why));
    return json_null();
}

/* "outdated" of its object: true, false, or null when nobody can say. Under the lock. New reference. */
static json_t *describe_program(const struct vm *vm)
{
    int outdated = vm->process ? vm_process_is_outdated(vm->process) : -ESRCH;

    return outdated < 0 ? json_null() : json_boolean(outdated);
}

/* Under the lock. New reference. */
static json_t *vm_object(struct host *host, const struct vm *vm)
{
    bool banned = vm->ban.by[0] && (!vm->process || vm->state == VM_STATE_NOT_RUNNABLE);
    json_t *object =
        json_pack("{s:s, s:s, s:o, s:s, s:O, s:I}", "name", vm->name, "state", vm_state_text(vm), "why",
                  fields_text(banned ? vm->ban.reason : vm->why), "host", host->config->name, "definition",
                  vm->definition, "memory_resident", (json_int_t)(vm->process ? vm->memory_resident : 0));

    json_object_set_new(object, "not_runnable", describe_ban(vm, banned));
    json_object_set_new(object, "cpu", vm->process && vm->cpu ? json_incref(vm->cpu) : json_null());
    json_object_set_new(object, "pid", vm->process ? json_integer(vm->process->pid) : json_null());
    json_object_set_new(object, "version",
                        vm->process && vm->version[0] ? json_string(vm->version) : json_null());
    json_object_set_new(object, "seccomp",
                        vm->process && vm->seccomp[0] ? json_string(vm->seccomp) : json_null());
    json_object_set_new(object, "outdated", describe_program(vm));
    json_object_set_new(object, "started", vm->started[0] ? json_string(vm->started) : json_null());
    json_object_set_new(object, "migration",
                        vm->migration ? json_string(migration_id(vm->migration)) : json_null());
    json_object_set_new(object, "saving", vm->saving ? json_string(vm->saving->id) : json_null());
    json_object_set_new(object, "suspended",
                        vm->state == VM_STATE_SUSPENDED && !banned && vm->suspended
                            ? json_incref(vm->suspended)
                            : json_null());
    return object;
}

json_t *vm_object_locked(struct host *host, const struct vm *vm)
{
    json_t *object;

    host_lock(host);
    object = vm_object(host, vm);
    host_unlock(host);
    return object;
}

void vms_state_told(struct vm_process *process, const json_t *params)
{
    struct host *host = process->host;
    struct vm *vm = process->vm;
    const char *state = json_string_value(json_object_get(params, "state"));
    const char *why = json_string_value(json_object_get(params, "why"));
    const char *started = json_string_value(json_object_get(params, "started"));
    const char *version = json_string_value(json_object_get(params, "version"));
    const char *seccomp = json_string_value(json_object_get(params, "seccomp"));
    json_t *resident = json_object_get(params, "memory_resident");
    json_t *cpu = json_object_get(params, "cpu");

    if (!state)
        return;
    host_lock(host);
    if (vm->process != process) { /* it has ended, or is only being made: others know better */
        host_unlock(host);
        return;
    }
    for (enum vm_state known = VM_STATE_SETUP; known <= VM_STATE_NOT_RUNNABLE; known++) {
        size_t length = strlen(base_state(known));

        if (strncmp(state, base_state(known), length) == 0 && (!state[length] || state[length] == '('))
            vm->state = known;
    }
    snprintf(vm->why, sizeof(vm->why), "%s", why ? why : "");
    if (started)
        snprintf(vm->started, sizeof(vm->started), "%s", started);
    if (version)
        snprintf(vm->version, sizeof(vm->version), "%s", version);
    if (seccomp)
        snprintf(vm->seccomp, sizeof(vm->seccomp), "%s", seccomp);
    if (json_is_object(cpu)) {
        json_decref(vm->cpu);
        vm->cpu = json_incref(cpu);
    }
    if (json_is_integer(resident) && json_integer_value(resident) >= 0)
        vm->memory_resident = (uint64_t)json_integer_value(resident);
    host_changed(host);
    host_unlock(host);
}

void vms_refresh(struct host *host, struct vm *vm)
{
    struct vm_process *process = vm_process_get(host, vm);
    json_t *status = NULL;

    if (process && vm_process_call(process, "status", NULL, STATUS_TIMEOUT_MS, &status, NULL) == 0 &&
        !vm_process_gone(process))
        vms_state_told(process, status);
    json_decref(status);
    vm_process_unref(process);
}

int vms_show(struct host *host, const char *name, json_t **answer, struct ferry_error *err)
{
    struct vm *vm = vm_get(host, name, err);

    if (!vm)
        return HOST_NOT_FOUND;
    vms_refresh(host, vm);
    *answer = vm_object_locked(host, vm);
    vm_unref(host, vm);
    return 0;
}

unsigned vms_count(struct host *host)
{
    unsigned count = 0;

    host_lock(host);
    for (struct vm *vm = host->vms; vm; vm = vm->next)
        count += vm->listed && (vm->process || !vm->ban.by[0]);
    host_unlock(host);
    return count;
}

json_t *vms_list(struct host *host)
{
    json_t *list = json_array();
    struct entry {
        struct vm *vm;
    } * all;
    size_t count = 0;

    host_lock(host);
    for (struct vm *vm = host->vms; vm; vm = vm->next)
        count++;
    all = calloc(count + 1, sizeof(*all));
    count = 0;
    for (struct vm *vm = host->vms; vm && all; vm = vm->next) {
        if (vm->listed) {
            vm->refs++;
            all[count++].vm = vm;
        }
    }
    host_unlock(host);

    for (size_t i = 0; i < count; i++) {
        vms_refresh(host, all[i].vm);
        host_lock(host);
        if (vms_find(host, all[i].vm->name) == all[i].vm)
            json_array_append_new(list, vm_object(host, all[i].vm));
        host_unlock(host);
        vm_unref(host, all[i].vm);
    }
    free(all);
    return list;
}

bool vm_may_be_replaced(const struct vm *vm)
{
    return vm->listed && !vm->process && !vm->migration && !vm->saving && !vm->busy &&
           strcmp(vm->ban.by, "Migrate") == 0;
}

static int name_taken(struct host *host, const struct vm *vm, struct ferry_error *err)
{
    if (vm->listed && !vm->process && vm->ban.by[0])
        return error_set(
            err, HOST_CONFLICT,
            "there is a VM %s on host %s already, which is not runnable: %.300s; ferry rm %s removes it",
            vm->name, host->config->name, vm->ban.reason, vm->name);
    return error_set(err, HOST_CONFLICT, "there is a VM %s on host %s already", vm->name, host->config->name);
}

/* Two references: the list's, and the caller's. */
int vm_add(struct host *host, const json_t *definition, const char *what, bool over, struct vm **out,
           struct ferry_error *err)
{
    struct vm *vm = calloc(1, sizeof(*vm));
    struct vm *former = NULL;
    struct vm **link;
    int result = 0;

    if (!vm)
        return error_set(err, -ENOMEM, "out of memory");
    snprintf(vm->name, sizeof(vm->name), "%s", definition_name(definition));
    vm->definition = json_incref((json_t *)definition);
    vm->state = VM_STATE_SETUP;
    vm->busy = what;
    vm->refs = 2;
    result = vm_directory_path(host, vm->name, vm->directory, err);

    host_lock(host);
    for (link = &host->vms; *link && strcmp((*link)->name, vm->name) < 0; link = &(*link)->next)
        ;
    if (result == 0 && *link && strcmp((*link)->name, vm->name) == 0) {
        former = *link;
        if (!over || !vm_may_be_replaced(former))
            result = name_taken(host, former, err);
    }
    if (result == 0) {
        vm->next = former ? former->next : *link;
        *link = vm;
        if (former)
            vm->ban = former->ban;
    }
    host_unlock(host);
    if (result < 0) {
        json_decref(vm->definition);
        free(vm);
        return result;
    }
    vm_unref(host, former); /* the list's reference */
    *out = vm;
    return 0;
}

/* Off the list; the list's reference goes. */
static void remove_entry(struct host *host, struct vm *vm)
{
    bool found = false;

    host_lock(host);
    for (struct vm **link = &host->vms; *link; link = &(*link)->next) {
        if (*link == vm) {
            *link = vm->next;
            found = true;
            break;
        }
    }
    host_changed(host);
    host_unlock(host);
    if (found)
        vm_unref(host, vm);
}

int vm_make(struct host *host, const json_t *definition, const char *what, bool over, struct vm **out,
            struct ferry_error *err)
{
    struct vm *vm = NULL;
    int result = vm_add(host, definition, what, over, &vm, err);

    if (!vm)
        return result;
    if (vm->ban.by[0])
        result = vm_directory_remove(vm, err);
    if (result == 0)
        result = vm_directory_make(vm, err);
    if (result == 0 && vm->ban.by[0])
        vm_directory_write_ban(host, vm);
    if (result < 0) {
        remove_entry(host, vm);
        vm_unref(host, vm);
        return result;
    }
    *out = vm;
    return 0;
}

void vm_drop(struct host *host, struct vm *vm)
{
    struct ferry_error err;

    if (vm->ban.by[0]) {
        vm_retire(host, vm, NULL);
        return;
    }
    if (vm_directory_remove(vm, &err) < 0)
        log_error(host->log, "%s", err.text);
    remove_entry(host, vm);
}

void vm_publish(struct host *host, struct vm *vm, struct vm_process *process, enum vm_state state)
{
    host_lock(host);
    vm->process = process;
    vm->killed = false;
    vm->state = state;
    vm->why[0] = '\0';
    vm->listed = true;
    json_decref(vm->exit);
    vm->exit = NULL;
    if (!vm->started[0] && state != VM_STATE_SETUP)
        clock_format(clock_realtime_ns(), vm->started);
    host_changed(host);
    host_unlock(host);
    if (vm_process_watch(process) < 0)
        log_error(host->log, "VM %s: out of memory: its end will not be noticed", vm->name);
}

/* What a definition asks for must be possible at all on this host. */
static int check_possible(struct host *host, const json_t *definition, struct ferry_error *err)
{
    uint64_t memory = definition_memory(definition);
    uint64_t total = host_memory_total(host);
    uint64_t available = definition_hugepages(definition) || !host->config->memory_limit
                             ? host_memory_allowed(host)
                             : host_memory_available(host);
    int result = machines_check(host, definition, err);

    if (result < 0)
        return result;
    if (memory > total || memory > available)
        return error_set(err, -EBUSY,
                         "VM %s wants %llu MiB of memory, host %s has %llu MiB for it; give it less",
                         definition_name(definition), (unsigned long long)(memory >> 20), host->config->name,
                         (unsigned long long)((memory > total ? total : available) >> 20));
    result = host_check_hugepages(host, definition, err);
    return result < 0 ? error_prefix(err, result, "VM %s cannot have its memory", definition_name(definition))
                      : 0;
}

/* As definition_normalise; when nothing is said of the machine, the kernel tells which one it is for. */
static int definition_normalise_new(const json_t *input, json_t **definition, struct ferry_error *err)
{
    const char *kernel = json_string_value(json_object_get(input, "kernel"));
    json_t *said = json_copy((json_t *)input);
    int result;

    if (kernel && json_is_object(said) && !json_object_get(said, "machine"))
        json_object_set_new(said, "machine", json_string(machines_for_kernel(kernel)));
    result = definition_normalise(said, definition, err);
    json_decref(said);
    return result;
}

int vms_create(struct host *host, const json_t *input, bool paused, json_t **answer, struct ferry_error *err)
{
    json_t *definition = NULL;
    struct vm_process *process = NULL;
    struct vm *vm = NULL;
    int result = definition_normalise_new(input, &definition, err);

    if (result == 0)
        result = check_possible(host, definition, err);
    if (result == 0)
        result = vm_make(host, definition, "being started", false, &vm, err);
    json_decref(definition);
    if (!vm)
        return result;
    result = vm_process_start(&process, host, vm, paused ? VM_PROCESS_PAUSED : 0, host_start_ms(host), err);
    if (!process) {
        error_prefix(err, result, "VM %s cannot start", vm->name);
        vm_directory_log_tail(host, vm);
        vm_drop(host, vm);
        vm_unref(host, vm);
        return result;
    }
    vm_publish(host, vm, process, paused ? VM_STATE_PAUSED : VM_STATE_RUNNING);
    events_emit(host, EVENT_VM_STARTED, vm->name, definition_machine(vm->definition), NULL,
                "VM %s started (process %d)", vm->name, (int)process->pid);
    *answer = vm_object_locked(host, vm);
    vm_release(host, vm);
    return 0;
}

bool vm_wait_gone(struct host *host, struct vm *vm, uint64_t deadline)
{
    bool gone;

    host_lock(host);
    while (vm->process && !host->stopping) {
        if (!thread_cond_wait_until(&host->changed, &host->lock, deadline))
            break;
    }
    gone = !vm->process;
    host_unlock(host);
    return gone;
}

/* A VM that has stopped may have a process that is just ending: waits for that. True when none is left. */
static bool vm_settle(struct host *host, struct vm *vm)
{
    bool ending;

    host_lock(host);
    ending = vm->process && !vm_runs(vm);
    host_unlock(host);
    return vm_wait_gone(host, vm, ending ? clock_deadline(host_vm_ms(host)) : 0);
}

/* Claimed by the caller. */
static int start_again(struct host *host, struct vm *vm, bool paused, struct ferry_error *err)
{
    struct vm_process *process = NULL;
    int result;

    if (!vm_settle(host, vm))
        return error_set(err, HOST_CONFLICT, "VM %s runs already", vm->name);
    result = vm_check_runnable(host, vm, err);
    if (result == 0)
        result = vm_check_not_suspended(host, vm, err);
    if (result == 0)
        result = check_possible(host, vm->definition, err);
    if (result == 0)
        result = vm_directory_clean(vm, err);
    if (result == 0)
        result = upgrade_settle_lock(host, vm, err);
    if (result == 0)
        result =
            vm_process_start(&process, host, vm, paused ? VM_PROCESS_PAUSED : 0, host_start_ms(host), err);
    if (!process)
        return error_prefix(err, result, "VM %s cannot start", vm->name);
    host_lock(host);
    vm->started[0] = '\0';
    host_unlock(host);
    vm_publish(host, vm, process, paused ? VM_STATE_PAUSED : VM_STATE_RUNNING);
    events_emit(host, EVENT_VM_STARTED, vm->name, definition_machine(vm->definition), NULL,
                "VM %s started (process %d)", vm->name, (int)process->pid);
    return 0;
}

int vms_start(struct host *host, const char *name, bool paused, json_t **answer, struct ferry_error *err)
{
    struct vm *vm;
    int result = vm_claim(host, name, "being started", &vm, err);

    if (!vm)
        return result;
    result = start_again(host, vm, paused, err);
    if (result == 0)
        *answer = vm_object_locked(host, vm);
    vm_release(host, vm);
    return result;
}

int vms_command(struct host *host, const char *name, const char *method, json_t **answer,
                struct ferry_error *err)
{
    struct vm *vm = vm_get(host, name, err);
    struct vm_process *process;
    int result = HOST_NOT_FOUND;

    if (!vm)
        return result;
    process = vm_process_get(host, vm);
    if (!process) {
        host_lock(host);
        result = error_set(err, HOST_CONFLICT, "VM %s does not run: it is %s", name, vm_state_text(vm));
        host_unlock(host);
    } else {
        result = vm_process_call(process, method, NULL, host_vm_ms(host), NULL, err);
    }
    if (result == 0) {
        vms_refresh(host, vm);
        *answer = vm_object_locked(host, vm);
    }
    vm_process_unref(process);
    vm_unref(host, vm);
    return result;
}

/* A guest that runs elsewhere must not be lost by mistake. */
static int check_not_serving(struct host *host, const struct vm *vm, struct ferry_error *err)
{
    int result = 0;

    host_lock(host);
    if (vm_serves(vm))
        result = error_set(
            err, HOST_CONFLICT,
            "VM %s runs on host %s, which still needs %llu MiB of its memory from this process: without it "
            "the guest is lost, with all that it has not written to its disks. The process ends by itself "
            "once all is there; ferry kill %s --force ends it now",
            vm->name, vm->migration->destination,
            (unsigned long long)(fetch_missing_bytes(vm->migration) + (1u << 20) - 1) >> 20, vm->name);
    host_unlock(host);
    return result;
}

int vms_kill(struct host *host, const char *name, bool force, json_t **answer, struct ferry_error *err)
{
    struct vm_process *process;
    struct vm *vm;
    /* A migration is no reason to wait: it may be what hangs. */
    int result = claim(host, name, "being killed", true, &vm, err);

    if (!vm)
        return result;
    if (!force)
        result = check_not_serving(host, vm, err);
    if (result < 0) {
        vm_release(host, vm);
        return result;
    }
    /* With a new process on its way: first, or the VM would go on there. */
    host_lock(host);
    if (vm->newcomer)
        vm_process_kill(vm->newcomer);
    host_unlock(host);
    process = vm_process_get(host, vm);
    if (!process) {
        host_lock(host);
        result = error_set(err, HOST_CONFLICT, "VM %s does not run: it is %s", name, vm_state_text(vm));
        host_unlock(host);
    } else if (vm_process_call(process, "quit", NULL, host_vm_ms(host), NULL, NULL) < 0 ||
               !vm_wait_gone(host, vm, clock_deadline(host_vm_ms(host)))) {
        host_lock(host);
        vm->killed = true;
        host_unlock(host);
        vm_process_kill(process);
        if (!vm_wait_gone(host, vm, clock_deadline(host_start_ms(host))))
            result = error_set(err, -ETIMEDOUT, "process %d of VM %s does not end even when killed",
                               (int)process->pid, name);
    }
    if (result == 0)
        *answer = vm_object_locked(host, vm);
    vm_process_unref(process);
    vm_release(host, vm);
    return result;
}

int vms_remove(struct host *host, const char *name, struct ferry_error *err)
{
    struct vm *vm = NULL;
    int result = vm_claim(host, name, "being removed", &vm, err);

    if (!vm)
        return result;
    if (!vm_settle(host, vm)) {
        host_lock(host);
        result = error_set(err, HOST_CONFLICT, "VM %s is %s; stop or kill it first", name, vm_state_text(vm));
        host_unlock(host);
    }
    if (result == 0)
        result = vm_directory_remove(vm, err);
    if (result == 0) {
        remove_entry(host, vm);
        events_emit(host, EVENT_VM_REMOVED, name, NULL, NULL, "VM %s was removed", name);
    }
    vm_release(host, vm);
    return result;
}
