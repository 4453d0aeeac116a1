#include "host/vm_suspended.h"

#include "base/error.h"
#include "host/fields.h"
#include "host/vm_directory.h"
#include "host/vm_owner.h"

#include <string.h>

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

/* Of its lock; 0: it has none, or it cannot be read. */
static json_int_t generation_of(struct host *host, const struct vm *vm)
{
    struct vm_owner owner;
    struct ferry_error err;

    if (vm_owner_read(host, vm, &owner, &err) < 0) {
        log_warn(host->log, "VM %s: %s", vm->name, err.text);
        return 0;
    }
    return owner.path[0] ? (json_int_t)owner.record.generation : 0;
}

/* Steals suspended. */
static void take(struct host *host, struct vm *vm, json_t *suspended)
{
    host_lock(host);
    json_decref(vm->suspended);
    vm->suspended = suspended;
    host_changed(host);
    host_unlock(host);
}

static void record(struct host *host, struct vm *vm, const char *file, const char *id)
{
    char since[CLOCK_TEXT_SIZE];
    json_t *suspended =
        json_pack("{s:o, s:o, s:s, s:I}", "file", fields_text(file), "checkpoint", fields_text(id), "since",
                  clock_format(clock_realtime_ns(), since), "generation", generation_of(host, vm));

    vm_directory_write_suspended(host, vm, suspended);
    take(host, vm, suspended);
}

void vm_set_suspended(struct host *host, struct vm *vm, const char *file, const char *id)
{
    bool known;

    host_lock(host);
    known = vm->suspended && strcmp(text_of(vm->suspended, "checkpoint"), id) == 0;
    host_unlock(host);
    if (!known)
        record(host, vm, file, id);
    host_lock(host);
    vm->state = VM_STATE_SUSPENDED;
    snprintf(vm->why, sizeof(vm->why), "in %s", file);
    host_changed(host);
    host_unlock(host);
}

void vm_clear_suspended(struct host *host, struct vm *vm)
{
    vm_directory_write_suspended(host, vm, NULL);
    take(host, vm, NULL);
}

int vm_check_not_suspended(struct host *host, struct vm *vm, struct ferry_error *err)
{
    int result = 0;

    host_lock(host);
    if (vm->state == VM_STATE_SUSPENDED)
        result = error_set(err, HOST_CONFLICT,
                           "VM %s is suspended; ferry resume %.300s lets it go on where it was (to start it "
                           "anew from its disks instead, remove it with ferry rm %s and define it again)",
                           vm->name, text_of(vm->suspended, "file"), vm->name);
    host_unlock(host);
    return result;
}

void vm_suspended_read(struct host *host, struct vm *vm)
{
    json_t *suspended = vm_directory_suspended(vm);

    if (suspended)
        take(host, vm, suspended);
}

void vm_suspended_settle(struct host *host, struct vm *vm, const json_t *word)
{
    json_int_t generation = 0;
    bool suspended, ran;

    if (strcmp(text_of(word, "reason"), "suspended") == 0) {
        record(host, vm, text_of(word, "file"), text_of(word, "checkpoint"));
        return;
    }
    host_lock(host);
    suspended = vm->suspended != NULL;
    if (suspended)
        generation = json_integer_value(json_object_get(vm->suspended, "generation"));
    host_unlock(host);
    ran = word && strcmp(text_of(word, "reason"), "failed") != 0;
    /* Had a process come further in resuming it than to fail: every owner makes the generation grow. */
    if (suspended && (ran || generation_of(host, vm) != generation))
        vm_clear_suspended(host, vm);
}
