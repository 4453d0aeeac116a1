#include "host/vm_owner.h"

#include "base/error.h"
#include "host/definition.h"

#include <string.h>
#include <unistd.h>

static const char *first_writable_disk(const json_t *definition)
{
    json_t *disk;
    size_t i;

    json_array_foreach(definition_disks(definition), i, disk)
    {
        if (!json_is_true(json_object_get(disk, "readonly")))
            return json_string_value(json_object_get(disk, "path"));
    }
    return NULL;
}

int vm_owner_read_of(const struct host *host, const json_t *definition, struct vm_owner *owner,
                     struct ferry_error *err)
{
    struct vm_lock_record record;
    struct vm_lock *lock = NULL;
    int result;

    memset(owner, 0, sizeof(*owner));
    result = vm_lock_place(owner->path, first_writable_disk(definition), host->config->lock_dir,
                           definition_name(definition), err);
    if (result <= 0 || access(owner->path, F_OK) < 0) {
        owner->path[0] = '\0';
        return result < 0 ? result : 0;
    }
    result = vm_lock_open(&lock, owner->path, err);
    if (result == 0)
        result = vm_lock_read(lock, &record, err);
    if (result == 0)
        owner->record = record;
    vm_lock_close(lock);
    return result;
}

int vm_owner_read(const struct host *host, const struct vm *vm, struct vm_owner *owner,
                  struct ferry_error *err)
{
    return vm_owner_read_of(host, vm->definition, owner, err);
}

bool vm_owner_is_moving(const struct vm_lock_record *record)
{
    return record->state == VM_LOCK_HANDOVER || record->state == VM_LOCK_ACQUIRED;
}

enum vm_owner_word vm_owner_of_migration(const struct host *host, const struct vm *vm, const char *migration)
{
    struct vm_owner owner;
    const struct vm_lock_record *record = &owner.record;
    struct ferry_error err;

    if (vm_owner_read(host, vm, &owner, &err) < 0) {
        log_warn(host->log, "VM %s: %s", vm->name, err.text);
        return VM_OWNER_SILENT;
    }
    if (!owner.path[0] || strcmp(record->migration, migration) != 0)
        return VM_OWNER_SILENT;
    if (vm_owner_is_moving(record))
        return VM_OWNER_GIVEN;
    if (strcmp(record->holder, record->source) == 0)
        return VM_OWNER_TAKEN_BACK;
    /* `held` by the destination: a person has let the VM be started there from its disks. */
    return record->state == VM_LOCK_STARTED ? VM_OWNER_STARTED : VM_OWNER_SILENT;
}

int vm_owner_settle(const struct host *host, const char *path, bool suspended, struct ferry_error *err)
{
    struct vm_lock_record record;
    struct vm_lock *lock = NULL;
    int result = vm_lock_open(&lock, path, err);

    if (result == 0)
        result = vm_lock_take(lock, err);
    if (result == 0)
        result = vm_lock_read(lock, &record, err);
    if (result == 0 && vm_owner_is_moving(&record)) {
        record.state = VM_LOCK_HELD;
        record.generation += suspended ? 0 : 2;
        record.pid = getpid();
        snprintf(record.holder, sizeof(record.holder), "%s", host->config->name);
        result = vm_lock_write(lock, &record, err);
    }
    vm_lock_close(lock);
    return result;
}

int vm_owner_carry(const struct host *host, const json_t *definition, uint64_t generation, const char *holder,
                   struct ferry_error *err)
{
    struct vm_lock_record record = {.state = VM_LOCK_HELD, .generation = generation, .pid = getpid()};
    struct vm_lock *lock = NULL;
    char path[PATH_MAX];
    int result = vm_lock_place(path, first_writable_disk(definition), host->config->lock_dir,
                               definition_name(definition), err);

    if (result <= 0)
        return result;
    snprintf(record.vm, sizeof(record.vm), "%s", definition_name(definition));
    snprintf(record.holder, sizeof(record.holder), "%s", holder);
    result = vm_lock_open(&lock, path, err);
    if (result == 0)
        result = vm_lock_take(lock, err);
    if (result == 0)
        result = vm_lock_write(lock, &record, err);
    vm_lock_close(lock);
    host_sync_directory(path);
    return result;
}
