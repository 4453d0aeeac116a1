#include "host/migration_cold.h"

#include "base/error.h"
#include "host/agreement.h"
#include "host/checkpoint.h"
#include "host/definition.h"
#include "host/events.h"
#include "host/fields.h"
#include "host/resume.h"
#include "host/storage.h"
#include "host/storage_copy.h"
#include "host/storage_file.h"
#include "host/vm_directory.h"
#include "host/vm_owner.h"
#include "host/vm_runnable.h"
#include "host/vm_suspended.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SAVED_LOOK_MS 200 /* how often it is looked whether a save has ended, when nothing tells */

const char *cold_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

static bool is_state(const json_t *cold, const char *state)
{
    return strcmp(cold_text(cold, "state"), state) == 0;
}

/* --- source: before it begins --- */

int cold_prepare(struct migration *migration, struct vm *vm, struct ferry_error *err)
{
    struct host *host = migration->host;
    json_t *cold = NULL;
    json_t *storage = NULL;
    char file[PATH_MAX];
    int result = vm_check_runnable(host, vm, err);

    if (result < 0)
        return result;
    if (migration->storage)
        storage = storage_plan(host, vm->definition);
    host_lock(host);
    snprintf(file, sizeof(file), "%s", cold_text(vm->suspended, "file"));
    if (vm->process && vm_runs(vm))
        cold = json_pack("{s:s, s:b}", "state", "running", "paused", vm->state == VM_STATE_PAUSED);
    else if (!vm->process && vm->state == VM_STATE_SUSPENDED)
        cold =
            json_pack("{s:s, s:O, s:O}", "state", "suspended", "file", json_object_get(vm->suspended, "file"),
                      "checkpoint", json_object_get(vm->suspended, "checkpoint"));
    else if (!vm->process && (vm->state == VM_STATE_STOPPED || vm->state == VM_STATE_CRASHED))
        cold = json_pack("{s:s}", "state", "stopped");
    else
        result =
            error_set(err, HOST_CONFLICT, "VM %s is %s: it cannot be moved now", vm->name, vm_state_text(vm));
    if (cold && storage)
        json_object_set(cold, "storage", storage);
    host_unlock(host);
    if (storage_file_moves(cold))
        json_object_set_new(cold, "shape", storage_file_shape(file));
    json_decref(storage);
    if (cold) {
        host_lock(host);
        json_decref(migration->cold);
        migration->cold = cold;
        host_unlock(host);
    }
    return result == 0 && !cold ? error_set(err, -ENOMEM, "out of memory") : result;
}

/* --- source: the job --- */

int cold_begin(struct migration *migration, struct vm *vm, struct ferry_error *err)
{
    struct host *host = migration->host;
    bool runs = is_state(migration->cold, "running");
    int result;

    if (!runs) {
        host_lock(host);
        vm->refs++;
        host_unlock(host);
    }
    /* One that runs is not yet moving: first it is saved. */
    migration_register(migration, runs ? NULL : vm);
    migration_record(migration);
    result = migration_start_job(migration, err);
    if (result < 0)
        migration_end(migration, "failed", "internal", err->text);
    return result;
}

/* Where the guest of a VM that runs waits meanwhile: beside its disk, which both hosts reach. */
static void choose_file(const struct migration *migration, const struct vm *vm, char file[static PATH_MAX])
{
    const char *beside = NULL;
    const char *slash;
    json_t *disk;
    size_t i;

    json_array_foreach(definition_disks(vm->definition), i, disk)
    {
        if (!beside && !json_is_true(json_object_get(disk, "readonly")))
            beside = cold_text(disk, "path");
    }
    slash = beside ? strrchr(beside, '/') : NULL;
    if (!slash || strncmp(beside, "/dev/", 5) == 0) {
        beside = migration->host->config->state_dir;
        slash = beside + strlen(beside);
    }
    snprintf(file, PATH_MAX, "%.*s/%.63s-%.8s.ckpt", (int)(slash - beside), beside, migration->vm_name,
             migration->id);
}

static int await_save(struct migration *migration, const char *id, struct ferry_error *err)
{
    struct host *host = migration->host;
    json_t *object = NULL;
    unsigned seen = 0;
    bool ended = false;
    int result = 0;

    while (!ended && result == 0 && !host_stopping(host)) {
        json_decref(object);
        object = NULL;
        result = checkpoint_watch(host, id, &seen, clock_deadline(host_vm_ms(host)), &object, &ended, err);
        if (object) /* what is to be copied to the other host comes then */
            storage_set_progress(migration, "MIGRATE_TO_VMX_PRECOPY", 2, "Init",
                                 (int)json_integer_value(json_object_get(object, "percent")));
    }
    if (result == 0 && !ended)
        result = error_set(err, -ECANCELED, "ferryd is stopping");
    else if (result == 0 && strcmp(cold_text(object, "outcome"), "completed") != 0)
        result = error_set(err, strcmp(cold_text(object, "outcome"), "cancelled") == 0 ? -ECANCELED : -EIO,
                           "it could not be suspended: %.400s", cold_text(object, "error"));
    json_decref(object);
    return result;
}

/* The VM, which has no process any more, is moving from now on. */
static int attach(struct migration *migration, struct ferry_error *err)
{
    struct host *host = migration->host;
    struct vm *vm;
    int result = vm_claim(host, migration->vm_name, "being moved", &vm, err);

    if (result < 0)
        return result;
    result = cold_prepare(migration, vm, err);
    if (result == 0) {
        host_lock(host);
        vm->refs++;
        migration->vm = vm;
        vm->migration = migration;
        migration->refs++;
        host_unlock(host);
    }
    vm_release(host, vm);
    return result;
}

/* Who asked for the move has claimed the VM, and may not be back from that yet. */
static void await_begun(struct host *host, const struct vm *vm)
{
    uint64_t deadline = clock_deadline(host_vm_ms(host));

    host_lock(host);
    while (vm->busy && !host->stopping) {
        if (!thread_cond_wait_until(&host->changed, &host->lock, deadline))
            break;
    }
    host_unlock(host);
}

static int suspend_first(struct migration *migration, char file[static PATH_MAX], struct ferry_error *err)
{
    struct host *host = migration->host;
    struct checkpoint_options options = {.file = file, .kind = "suspend", .bandwidth = migration->own_limit};
    struct vm *vm = vm_get(host, migration->vm_name, err);
    int result;

    if (!vm)
        return HOST_NOT_FOUND;
    choose_file(migration, vm, file);
    await_begun(host, vm);
    vm_unref(host, vm);
    migration_log(migration, LOG_LEVEL_INFO, "suspending VM %s to %s", migration->vm_name, file);
    result = checkpoint_save(host, migration->vm_name, &options, migration->saving, err);
    if (result == 0)
        result = await_save(migration, migration->saving, err);
    return result < 0 ? result : attach(migration, err);
}

/* Nobody runs it, or will while this is held. *lock NULL: it has none. */
static int take_lock(const struct migration *migration, struct vm_lock **lock, struct ferry_error *err)
{
    struct vm_owner owner;
    int result = vm_owner_read(migration->host, migration->vm, &owner, err);

    *lock = NULL;
    if (result < 0 || !owner.path[0])
        return result;
    if (vm_owner_is_moving(&owner.record))
        return vm_lock_refuse_moving(&owner.record, owner.path, err);
    result = vm_lock_open(lock, owner.path, err);
    if (result == 0)
        result = vm_lock_take(*lock, err);
    if (result < 0) {
        vm_lock_close(*lock);
        *lock = NULL;
    }
    return result;
}

/* What may have been done at the other host, or not. */
static bool is_unknown(const struct migration *migration, int result)
{
    return result == HOST_UNREACHABLE || result == -ETIMEDOUT ||
           (result == -ECANCELED && host_stopping(migration->host));
}

/* Nothing but the VM itself moves, which is powered off. Takes LOCK over. */
static int give(struct migration *migration, struct vm_lock *lock, struct ferry_error *err)
{
    struct host *host = migration->host;
    struct vm_ban ban;
    json_t *body;
    int result;

    vm_ban_by_migration(&ban, migration->destination, migration->id, "unknown",
                        "it is being moved, and does not run meanwhile");
    vm_set_ban(host, migration->vm, &ban);
    storage_set_progress(migration, "MIGRATE_TO_VMX_WAIT_HANDSHAKE", 4, "Frozen", 90);
    body = migration_offer_body(migration, migration->vm->definition, false);
    result = migration_call_peer(migration, "POST", "/v1/incoming", body, PEER_LONG, NULL, err);
    json_decref(body);
    if (result < 0 && !is_unknown(migration, result))
        vm_lift_ban(host, migration->vm);
    vm_lock_close(lock);
    return result;
}

/* The other host gets it, or is_unknown. */
static int hand_over(struct migration *migration, struct ferry_error *err)
{
    struct vm_lock *lock;
    int result = take_lock(migration, &lock, err);

    if (result < 0)
        return result;
    if (!storage_moves(migration->cold) && !storage_file_moves(migration->cold))
        return give(migration, lock, err);
    result = storage_send(migration, err);
    if (migration->saving[0] && !storage_moves(migration->cold)) {
        vm_lock_close(lock); /* it is resumed there, by the same lock, on the generation that the file has */
        lock = NULL;
    }
    if (result == 0)
        result = storage_give(migration, lock, err);
    vm_lock_close(lock);
    return result;
}

/* --- source: one that ran, goes on --- */

/* The move has failed: as if it had never been. WHY (not empty) gets what failed, too. */
static void resume_here(struct migration *migration, const char *file, bool paused, struct ferry_error *why)
{
    struct host *host = migration->host;
    const struct resume_options options = {.file = file, .eager = true, .paused = paused};
    struct ferry_error err;
    json_t *answer = NULL;

    migration_release_vm(migration);
    if (vms_resume(host, &options, &answer, &err) < 0) {
        struct ferry_error both;

        error_set(&both, -EIO, "%.200s; it is suspended on host %s: %.200s", why->text, host->config->name,
                  err.text);
        *why = both;
        return;
    }
    json_decref(answer);
    unlink(file);
}

/* --- source --- */

static const char *cause_of(struct migration *migration, int result)
{
    const char *theirs;

    if (result == HOST_UNREACHABLE || result == -ETIMEDOUT || result == -ECONNRESET)
        return "network";
    if (result == -EBUSY || result == -ECANCELED)
        return result == -EBUSY ? "lock" : "cancelled";
    host_lock(migration->host);
    theirs = migration->their_outcome ? migration->their_cause : "";
    if (migration->disk_error[0])
        theirs = "storage";
    host_unlock(migration->host);
    return theirs[0] ? theirs : "internal";
}

/* It is here, for certain. */
static void finish_failed(struct migration *migration, int result, const struct ferry_error *err)
{
    migration_finish_failed(migration, result == -ECANCELED ? "cancelled" : "failed",
                            cause_of(migration, result), err->text);
}

static void finish_done(struct migration *migration)
{
    storage_set_progress(migration, "MIGRATE_TO_VMX_FINISHED", 5, "Frozen", 100);
    migration_finish_completed(migration);
}

static void run_running(struct migration *migration)
{
    char file[PATH_MAX] = "";
    bool paused = json_is_true(json_object_get(migration->cold, "paused"));
    struct ferry_error err = {0};
    int result = suspend_first(migration, file, &err);

    if (host_stopping(migration->host))
        return; /* the save is taken up by the next ferryd; the VM is suspended then, or runs on */
    if (result < 0) {
        finish_failed(migration, result, &err);
        return;
    }
    /* It may see now whether it reaches the file. */
    result = migration_check(migration, migration->vm->definition, NULL, &err);
    if (result == 0) {
        host_lock(migration->host);
        json_object_set_new(migration->cold, "resume", json_true());
        json_object_set_new(migration->cold, "paused", json_boolean(paused));
        host_unlock(migration->host);
        result = hand_over(migration, &err);
    }
    if (result < 0 && host_stopping(migration->host))
        return; /* likewise */
    if (result == 0) {
        unlink(file);
        finish_done(migration);
    } else if (is_unknown(migration, result)) {
        migration_finish_doubted(migration, "unknown", "network", err.text);
    } else {
        resume_here(migration, file, paused, &err);
        finish_failed(migration, result, &err);
    }
}

/* The VM was given to the other host, which knows what came of it. */
static void end_given(struct migration *migration)
{
    migration->in_doubt = true;
    migration_register(migration, NULL);
    migration_end(migration, "unknown", "internal", "ferryd ended while the VM was given to the other host");
}

/* At the destination it has arrived when incoming.json is gone; else what there is is dropped. */
static void end_arriving(struct migration *migration, struct vm *vm)
{
    json_t *mark = vm ? vm_directory_incoming(vm) : NULL;
    bool arrived;

    host_lock(migration->host);
    arrived = vm && !mark && !vm->ban.by[0];
    host_unlock(migration->host);
    json_decref(mark);
    vm_unref(migration->host, vm);
    migration_register(migration, NULL);
    if (arrived)
        migration_end(migration, "completed", "", "");
    else
        migration_end(migration, "failed", "internal", "ferryd ended before the VM had arrived");
}

void cold_take_up(struct migration *migration, struct vm *vm)
{
    struct host *host = migration->host;
    struct ferry_error err;
    bool given;

    migration->fresh = false;
    migration->recorded = true;
    if (!migration->outgoing) {
        end_arriving(migration, vm);
        return;
    }
    host_lock(host);
    given = vm && strcmp(vm->ban.migration, migration->id) == 0;
    host_unlock(host);
    vm_unref(host, vm);
    migration_log(migration, LOG_LEVEL_INFO, "ferryd was restarted during the migration");
    if (given) {
        end_given(migration);
        return;
    }
    migration_register(migration, NULL);
    if (migration_start_job(migration, &err) < 0)
        migration_end(migration, "failed", "internal", err.text);
}

static bool is_being_saved(struct host *host, const struct vm *vm)
{
    json_t *mark = vm_directory_saving(vm);
    bool saving = mark != NULL;

    json_decref(mark);
    host_lock(host);
    saving = saving || vm->saving;
    host_unlock(host);
    return saving;
}

/* A former ferryd began it, and did not give the VM away. One that ran may have been suspended for it. */
static void run_adopted(struct migration *migration)
{
    struct host *host = migration->host;
    struct vm *vm = vm_get(host, migration->vm_name, NULL);
    struct ferry_error err;
    char file[PATH_MAX] = "";
    bool suspended = false;

    error_set(&err, -ECANCELED, "ferryd ended before the VM was given to the other host");
    while (vm && is_being_saved(host, vm) && !host_stopping(host)) {
        host_lock(host);
        thread_cond_wait_until(&host->changed, &host->lock, clock_deadline(SAVED_LOOK_MS));
        host_unlock(host);
    }
    if (host_stopping(host)) {
        vm_unref(host, vm);
        return;
    }
    if (vm) {
        choose_file(migration, vm, file);
        host_lock(host);
        suspended = vm->suspended && strcmp(cold_text(vm->suspended, "file"), file) == 0;
        host_unlock(host);
    }
    if (suspended)
        resume_here(migration, file, false, &err);
    vm_unref(host, vm);
    migration_finish_failed(migration, "failed", "internal", err.text);
}

void cold_run(struct migration *migration)
{
    struct ferry_error err = {0};
    int result;

    if (!migration->fresh) {
        run_adopted(migration);
        return;
    }
    migration_log(migration, LOG_LEVEL_INFO, "cold migration %s set up: VM %s (%s) from host %s to host %s",
                  migration->id, migration->vm_name, cold_text(migration->cold, "state"), migration->source,
                  migration->destination);
    events_emit(migration->host, EVENT_MIGRATION_OUT_STARTED, migration->vm_name, migration->machine,
                migration->id, "cold migration of VM %s from host %s to host %s started", migration->vm_name,
                migration->source, migration->destination);
    if (is_state(migration->cold, "running")) {
        run_running(migration);
        return;
    }
    result = hand_over(migration, &err);
    if (result < 0 && host_stopping(migration->host))
        return; /* the next ferryd finds whether it was given away */
    if (result == 0)
        finish_done(migration);
    else if (is_unknown(migration, result))
        migration_finish_doubted(migration, "unknown", "network", err.text);
    else
        finish_failed(migration, result, &err);
}

/* --- destination --- */

/* One that is powered off. */
static int make_vm(struct migration *migration, const json_t *definition, struct ferry_error *err)
{
    struct host *host = migration->host;
    char why[128];
    struct vm *vm = NULL;
    int result = vm_make(host, definition, "arriving", true, &vm, err);

    if (result < 0)
        return result;
    snprintf(why, sizeof(why), "it did not run when it moved here from host %s", migration->source);
    result = vm_directory_mark_incoming(vm, migration->id, migration->source, err);
    if (result == 0)
        result = vm_directory_leave_exit(vm, why, err);
    if (result < 0) {
        vm_drop(host, vm);
        vm_release(host, vm);
        return result;
    }
    vm_lift_ban(host, vm);
    vm_directory_arrived(vm); /* from here on it is this host's, also for the next ferryd */
    host_lock(host);
    vm->state = VM_STATE_STOPPED;
    snprintf(vm->why, sizeof(vm->why), "%s", why);
    vm->listed = true;
    host_unlock(host);
    vm_release(host, vm);
    return 0;
}

/* All of it is read before it runs: then the file is not needed any more. */
int cold_resume_arrived(struct host *host, const json_t *cold, const char *name, bool *dropped,
                        struct ferry_error *err)
{
    struct resume_options options = {.eager = true, .paused = json_is_true(json_object_get(cold, "paused"))};
    char file[PATH_MAX] = "";
    json_t *answer = NULL;
    struct vm *vm;
    int result;

    host_lock(host);
    vm = vms_find(host, name);
    if (vm && vm->suspended)
        snprintf(file, sizeof(file), "%s", cold_text(vm->suspended, "file"));
    host_unlock(host);
    options.file = file;
    result = vms_resume(host, &options, &answer, err);
    json_decref(answer);
    *dropped = result < 0 && vm_claim(host, name, "being removed", &vm, NULL) == 0;
    if (*dropped) {
        vm_drop(host, vm);
        vm_release(host, vm);
    }
    if (strcmp(file, cold_text(cold, "file")) != 0)
        unlink(file); /* a copy of ours */
    return result;
}

void cold_tell_arrived(struct migration *migration)
{
    struct host *host = migration->host;
    const char *vm = migration->vm_name;

    storage_set_progress(migration, "MIGRATE_FROM_VMX_FINISHED", 11, "Frozen", 100);
    migration_log(migration, LOG_LEVEL_INFO, "VM %s (%s) has arrived from host %s", vm,
                  cold_text(migration->cold, "state"), migration->source);
    events_emit(host, EVENT_VM_CREATED, vm, migration->machine, migration->id, "VM %s was created on host %s",
                vm, host->config->name);
    events_emit(host, EVENT_MIGRATION_IN_COMPLETED, vm, migration->machine, migration->id,
                "cold migration of VM %s from host %s to host %s completed", vm, migration->source,
                host->config->name);
    migration_end(migration, "completed", "", "");
}

int cold_receive(struct host *host, const struct migration_offer *offer, const json_t *definition,
                 json_t *answer, struct ferry_error *err)
{
    const char *vm = definition_name(definition);
    struct migration *migration;
    int result;

    if (storage_moves(offer->cold) || storage_file_moves(offer->cold))
        return storage_receive(host, offer, definition, answer, err);
    migration =
        migration_new(host, offer->id, vm, definition_machine(definition), offer->source, host->config->name);
    if (!migration)
        return error_set(err, -ENOMEM, "out of memory");
    migration->cold = json_incref((json_t *)offer->cold);
    peers_find(host, offer->source, migration->peer_address, NULL);
    /* From here on the source hears that it goes on, should it ask. */
    migration_register(migration, NULL);
    migration_record(migration);
    events_emit(host, EVENT_MIGRATION_IN_STARTED, vm, migration->machine, migration->id,
                "cold migration of VM %s from host %s to host %s started", vm, offer->source,
                host->config->name);
    result = make_vm(migration, definition, err);
    if (result < 0) {
        error_prefix(err, HOST_REFUSED, "VM %s cannot be set up on host %s", vm, host->config->name);
        migration_end(migration, "failed", "internal", err->text);
        migration_unref(migration);
        return HOST_REFUSED;
    }
    cold_tell_arrived(migration);
    migration_unref(migration);
    return 0;
}
