#include "host/vm_runnable.h"

#include "base/error.h"
#include "host/definition.h"
#include "host/events.h"
#include "host/migration.h"
#include "host/migration_fetch.h"
#include "host/peers.h"
#include "host/vm_directory.h"
#include "host/vm_owner.h"
#include "host/vm_suspended.h"

#include <string.h>

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

/* --- bans --- */

int vm_check_runnable(struct host *host, struct vm *vm, struct ferry_error *err)
{
    struct vm_ban ban;

    host_lock(host);
    ban = vm->ban;
    host_unlock(host);
    if (!ban.by[0])
        return 0;
    if (strcmp(ban.by, "Admin") == 0)
        return error_set(
            err, HOST_CONFLICT,
            "VM %s is not runnable on host %s (set by Admin): %.300s; ferry runnable %s on lifts that",
            vm->name, host->config->name, ban.reason, vm->name);
    return error_set(
        err, HOST_CONFLICT,
        "VM %s is not runnable on host %s (set by Migrate): %.300s; should host %s have lost it: ferry "
        "recover %s",
        vm->name, host->config->name, ban.reason, ban.host, vm->name);
}

void vm_set_ban(struct host *host, struct vm *vm, const struct vm_ban *ban)
{
    host_lock(host);
    vm->ban = *ban;
    host_changed(host);
    host_unlock(host);
    vm_directory_write_ban(host, vm);
}

void vm_lift_ban(struct host *host, struct vm *vm)
{
    host_lock(host);
    memset(&vm->ban, 0, sizeof(vm->ban));
    host_changed(host);
    host_unlock(host);
    vm_directory_lift_ban(vm);
}

void vm_retire(struct host *host, struct vm *vm, const struct vm_ban *ban)
{
    /* First: a ferryd that dies in between must find it. */
    if (ban)
        vm_set_ban(host, vm, ban);
    vm_directory_retire(vm);
    vm_clear_suspended(host, vm);
    host_lock(host);
    vm->state = VM_STATE_STOPPED;
    vm->why[0] = '\0';
    vm->memory_promised = 0;
    vm->listed = true;
    json_decref(vm->exit);
    vm->exit = NULL;
    host_changed(host);
    host_unlock(host);
}

void vm_ban_by_migration(struct vm_ban *ban, const char *other, const char *migration, const char *outcome,
                         const char *why)
{
    memset(ban, 0, sizeof(*ban));
    strcpy(ban->by, "Migrate");
    snprintf(ban->host, sizeof(ban->host), "%s", other);
    snprintf(ban->migration, sizeof(ban->migration), "%s", migration);
    snprintf(ban->outcome, sizeof(ban->outcome), "%s", outcome);
    if (why[0])
        snprintf(ban->reason, sizeof(ban->reason), "%s", why);
    else
        snprintf(ban->reason, sizeof(ban->reason), "the guest has migrated to %s", ban->host);
}

static int set_runnable(struct host *host, struct vm *vm, bool runnable, const char *reason,
                        struct ferry_error *err)
{
    struct vm_ban ban = {.by = "Admin"};
    bool has_process;
    bool migrated;

    host_lock(host);
    has_process = vm->process != NULL;
    migrated = strcmp(vm->ban.by, "Migrate") == 0;
    host_unlock(host);
    if (has_process)
        return error_set(err, HOST_CONFLICT, "VM %s has a process on host %s; stop or kill it first",
                         vm->name, host->config->name);
    if (migrated)
        return error_set(
            err, HOST_CONFLICT,
            "VM %s is not runnable on host %s because of a migration: ferry recover %s asks the other "
            "host, ferry rm %s removes what is left here",
            vm->name, host->config->name, vm->name, vm->name);
    if (runnable) {
        vm_lift_ban(host, vm);
        return 0;
    }
    snprintf(ban.reason, sizeof(ban.reason), "%s", reason && reason[0] ? reason : "set by an administrator");
    vm_set_ban(host, vm, &ban);
    return 0;
}

int vms_set_runnable(struct host *host, const char *name, bool runnable, const char *reason, json_t **answer,
                     struct ferry_error *err)
{
    struct vm *vm;
    int result = vm_claim(host, name, "being changed", &vm, err);

    if (result < 0)
        return result;
    result = set_runnable(host, vm, runnable, reason, err);
    if (result == 0)
        *answer = vm_object_locked(host, vm);
    vm_release(host, vm);
    return result;
}

/* --- recover --- */

/* A VM in doubt, and the other host that may know. */
struct doubt {
    struct host *host;
    struct vm *vm;
    struct vm_process *process; /* it keeps the guest's memory; NULL: it is gone */
    char other[HOST_NAME_SIZE];
    char migration[40];
    char address[SOCK_ADDRESS_SIZE]; /* of the other; empty when not known */
    struct vm_owner owner;           /* what its lock says */
    bool other_was_destination;      /* it says so itself */
    bool bystander;                  /* the move is one between two other hosts */
    bool lock_decides; /* the lock was handed over for this migration, and nobody ran it since */
};

/* Where the guest runs, or ran. */
enum where {
    WHERE_HERE = 1,
    WHERE_THERE,
    WHERE_UNCLEAR, /* err says why */
};

static void set_other(struct doubt *doubt, const char *other, const char *migration)
{
    snprintf(doubt->other, sizeof(doubt->other), "%s", other);
    snprintf(doubt->migration, sizeof(doubt->migration), "%s", migration);
}

/* Which migration it is about: its process knows, else the ban, else the lock. */
static int find_doubt(struct doubt *doubt, struct ferry_error *err)
{
    struct host *host = doubt->host;
    const struct vm_lock_record *record = &doubt->owner.record;
    struct vm_ban ban;
    enum vm_state state;
    int result = 0;

    if (doubt->process)
        vms_refresh(host, doubt->vm);
    host_lock(host);
    ban = doubt->vm->ban;
    state = doubt->vm->state;
    host_unlock(host);
    if (doubt->process && state != VM_STATE_NOT_RUNNABLE)
        return error_set(err, HOST_CONFLICT, "VM %s runs on host %s: there is nothing to recover",
                         doubt->vm->name, host->config->name);
    if (strcmp(ban.by, "Admin") == 0)
        return error_set(
            err, HOST_CONFLICT,
            "VM %s is not runnable because an administrator said so (%.300s); ferry runnable %s on lifts "
            "that",
            doubt->vm->name, ban.reason, doubt->vm->name);
    result = vm_owner_read(host, doubt->vm, &doubt->owner, err);
    if (doubt->process) {
        bool moving = result == 0 && vm_owner_is_moving(record);
        json_t *status = NULL;

        result = vm_process_call(doubt->process, "migrate.status", NULL, host_vm_ms(host), &status, err);
        set_other(doubt, text_of(status, "destination"), text_of(status, "id"));
        json_decref(status);
        doubt->lock_decides = result == 0 && moving && strcmp(record->migration, doubt->migration) == 0;
    } else if (ban.by[0]) {
        set_other(doubt, ban.host, ban.migration);
    } else if (result == 0 && vm_owner_is_moving(record)) {
        bool was_source = strcmp(record->source, host->config->name) == 0;

        doubt->bystander = !was_source && strcmp(record->destination, host->config->name) != 0;
        set_other(doubt, was_source ? record->destination : record->source, record->migration);
    } else if (result == 0) {
        result =
            error_set(err, HOST_CONFLICT, "VM %s is %s: there is nothing to recover; ferry run %s starts it",
                      doubt->vm->name, state == VM_STATE_CRASHED ? "CRASHED" : "STOPPED", doubt->vm->name);
    }
    return result;
}

/* What the other host's record of the migration says. */
static enum where judge(struct doubt *doubt, const json_t *object, struct ferry_error *err)
{
    const char *outcome = text_of(object, "outcome");
    bool by_source = strcmp(text_of(object, "side"), "source") == 0;
    bool moved = strcmp(outcome, "completed") == 0 || strcmp(outcome, "lost") == 0;
    bool stayed = strcmp(outcome, "failed") == 0 || strcmp(outcome, "cancelled") == 0;

    doubt->other_was_destination = !by_source;
    if (moved)
        return by_source ? WHERE_HERE : WHERE_THERE;
    if (stayed)
        return by_source ? WHERE_THERE : WHERE_HERE;
    if (strcmp(outcome, "none") == 0)
        error_set(err, HOST_REFUSED, "on host %s migration %s is still going on; try again", doubt->other,
                  doubt->migration);
    else
        error_set(err, HOST_REFUSED, "host %s does not know either how migration %s ended: %.200s",
                  doubt->other, doubt->migration, text_of(object, "error"));
    return WHERE_UNCLEAR;
}

static enum where ask_other(struct doubt *doubt, struct ferry_error *err)
{
    char path[96];
    json_t *object = NULL;
    enum where where;
    int result;

    if (!doubt->address[0]) {
        error_set(err, HOST_REFUSED, "the address of host %s is not known here (ferry host add %s ADDR:PORT)",
                  doubt->other, doubt->other);
        return WHERE_UNCLEAR;
    }
    snprintf(path, sizeof(path), "/v1/migrations/%s?local=1", doubt->migration);
    result = peer_call(doubt->host, doubt->address, "GET", path, NULL, PEER_PROMPT, &object, err);
    where = result < 0 ? WHERE_UNCLEAR : judge(doubt, object, err);
    json_decref(object);
    return where;
}

/* What the other host has of the VM at this moment, however the migration ended. */
enum there {
    THERE_SILENT = 1, /* it does not answer */
    THERE_GONE,       /* no process of it */
    THERE_PROCESS,    /* one that does not run it, so far */
    THERE_RUNS,
};

static enum there look_there(const struct doubt *doubt)
{
    char path[HOST_NAME_SIZE + 16];
    enum there there = THERE_SILENT;
    json_t *object = NULL;
    const char *state;
    int result;

    if (!doubt->address[0])
        return THERE_SILENT;
    snprintf(path, sizeof(path), "/v1/vms/%s", doubt->vm->name);
    result = peer_call(doubt->host, doubt->address, "GET", path, NULL, PEER_PROMPT, &object, NULL);
    state = text_of(object, "state");
    if (result == HOST_NOT_FOUND || (result == 0 && json_is_null(json_object_get(object, "pid"))))
        there = THERE_GONE;
    else if (result == 0 && (strncmp(state, "RUNNING", 7) == 0 || strncmp(state, "PAUSED", 6) == 0))
        there = THERE_RUNS;
    else if (result == 0)
        there = THERE_PROCESS;
    json_decref(object);
    return there;
}

/* What is left over there of a VM that goes on here. */
static void clear_other(const struct doubt *doubt)
{
    struct ferry_error err;
    char path[80];
    int result;

    if (!doubt->other_was_destination)
        return;
    snprintf(path, sizeof(path), "/v1/incoming/%s?force=1", doubt->migration);
    result = peer_call(doubt->host, doubt->address, "DELETE", path, NULL, PEER_LONG, NULL, &err);
    if (result < 0 && result != HOST_NOT_FOUND)
        log_warn(doubt->host->log, "VM %s: what is left of it on host %s could not be cleared: %s",
                 doubt->vm->name, doubt->other, err.text);
}

/* There is no process, and nothing that one left: what the next ferryd finds must look like a VM that has
 * ended, not like one that was never started. */
static int leave_startable(struct doubt *doubt, struct ferry_error *err)
{
    static const char why[] = "recovered without its memory: it starts anew from its disks";
    struct vm *vm = doubt->vm;
    int result = vm_directory_leave_exit(vm, why, err);

    if (result < 0)
        return result;
    host_lock(doubt->host);
    vm->state = VM_STATE_STOPPED;
    snprintf(vm->why, sizeof(vm->why), "%s", why);
    host_unlock(doubt->host);
    return 0;
}

static int recover_here(struct doubt *doubt, struct ferry_error *err)
{
    struct host *host = doubt->host;
    int result = 0;

    if (doubt->process)
        result = vm_process_call(doubt->process, "recover", json_pack("{s:b}", "here", 1),
                                 host_start_ms(host), NULL, err);
    else if (doubt->owner.path[0])
        result = vm_owner_settle(host, doubt->owner.path, doubt->vm->state == VM_STATE_SUSPENDED, err);
    if (result == 0 && !doubt->process && doubt->vm->state != VM_STATE_SUSPENDED)
        result = leave_startable(doubt, err);
    if (result < 0)
        return error_prefix(err, result == -EBUSY ? HOST_CONFLICT : result, "VM %s cannot be recovered here",
                            doubt->vm->name);
    vm_lift_ban(host, doubt->vm);
    clear_other(doubt);
    events_emit(host, EVENT_MIGRATION_WARNING, doubt->vm->name, definition_machine(doubt->vm->definition),
                doubt->migration, "VM %s was recovered on host %s: %s", doubt->vm->name, host->config->name,
                doubt->process ? "it goes on here" : "it can be started here from its disks");
    return 0;
}

static int recover_there(struct doubt *doubt, struct ferry_error *err)
{
    struct host *host = doubt->host;
    struct vm_ban ban;
    int result = 0;

    vm_ban_by_migration(&ban, doubt->other, doubt->migration, "completed", "");
    vm_set_ban(host, doubt->vm, &ban);
    if (doubt->process)
        result = vm_process_call(doubt->process, "recover", json_pack("{s:b}", "here", 0),
                                 host_start_ms(host), NULL, err);
    if (result == 0 && !vm_wait_gone(host, doubt->vm, clock_deadline(host_start_ms(host))))
        result = error_set(err, -ETIMEDOUT, "the process of VM %s does not end; ferry kill %s ends it",
                           doubt->vm->name, doubt->vm->name);
    if (result < 0)
        return result;
    vm_retire(host, doubt->vm, &ban);
    events_emit(host, EVENT_MIGRATION_WARNING, doubt->vm->name, definition_machine(doubt->vm->definition),
                doubt->migration, "VM %s was given up on host %s: it is on host %s", doubt->vm->name,
                host->config->name, doubt->other);
    return 0;
}

static int refuse(const struct doubt *doubt, const struct ferry_error *why, struct ferry_error *err)
{
    const char *vm = doubt->vm->name;
    const struct vm_lock_record *record = &doubt->owner.record;

    if (doubt->bystander && record->copied)
        return error_set(err, HOST_REFUSED,
                         "host %s gave %s to host %s with copies of these disks, and ferry recover %s on "
                         "either of them decides; --force-here lets it be started here from what was left "
                         "behind: should host %s have it, there are two of it from then on",
                         record->source, vm, record->destination, vm, record->destination);
    if (doubt->bystander)
        return error_set(
            err, HOST_REFUSED,
            "%s is being moved from %s to %s, and ferry recover %s on either of them decides; --force-here "
            "lets it be started here from its disks: should one of them still keep its memory, that is lost",
            vm, record->source, record->destination, vm);
    if (doubt->process)
        return error_set(
            err, HOST_REFUSED,
            "host %s cannot tell where %s runs (%.150s); --force-here lets it go on here: should it run "
            "on %s, both write to its disks; --force-there gives it up here: should it not run on %s, "
            "its memory is lost",
            doubt->other, vm, why->text, doubt->other, doubt->other);
    return error_set(
        err, HOST_REFUSED,
        "host %s cannot tell where %s runs (%.150s); --force-here lets it be started here from its "
        "disks: should it run on %s, both write to them; --force-there leaves it to %s",
        doubt->other, vm, why->text, doubt->other, doubt->other);
}

static int recover(struct doubt *doubt, enum recover_force force, struct ferry_error *err)
{
    struct ferry_error why = {0};
    enum where where;
    enum there there;
    int result = find_doubt(doubt, err);

    if (result < 0)
        return result;
    if (doubt->bystander && force != RECOVER_HERE)
        return refuse(doubt, &why, err);
    if (peers_find(doubt->host, doubt->other, doubt->address, NULL) < 0)
        doubt->address[0] = '\0';
    if (force == RECOVER_ASK && doubt->lock_decides) {
        /* As the source would have, had it been able to take the lock in time. */
        doubt->other_was_destination = true;
        if (recover_here(doubt, &why) == 0)
            return 0;
    }
    if (force == RECOVER_THERE)
        return recover_there(doubt, err);
    where = ask_other(doubt, &why);
    there = look_there(doubt);
    if (there == THERE_RUNS)
        where = WHERE_THERE; /* somebody may have decided so there */
    if (force == RECOVER_HERE) {
        /* A word against what the other host knows is a mistake. */
        if (there == THERE_RUNS)
            return error_set(
                err, HOST_CONFLICT,
                "VM %s cannot be recovered here: host %s says that it runs there; look there with ferry "
                "show %s",
                doubt->vm->name, doubt->other, doubt->vm->name);
        where = WHERE_HERE;
    }
    /* Neither host has a process of it: the lock, when it can be taken, keeps out whoever comes late. */
    if (where == WHERE_UNCLEAR && !doubt->process && doubt->owner.path[0] && there == THERE_GONE)
        where = WHERE_HERE;
    if (where == WHERE_UNCLEAR)
        return refuse(doubt, &why, err);
    /* It may run the guest in the next moment, and without a lock nothing would stop it. */
    if (where == WHERE_HERE && there == THERE_PROCESS && !doubt->owner.path[0])
        return error_set(err, force == RECOVER_HERE ? HOST_CONFLICT : HOST_REFUSED,
                         "VM %s cannot be recovered here: host %s has a process of it, which may run it yet; "
                         "try again, or end that first, there, with: ferry kill %s",
                         doubt->vm->name, doubt->other, doubt->vm->name);
    return where == WHERE_THERE ? recover_there(doubt, err) : recover_here(doubt, err);
}

int vms_recover(struct host *host, const char *name, enum recover_force force, json_t **answer,
                struct ferry_error *err)
{
    struct doubt doubt = {.host = host};
    bool handled = false;
    int result = fetch_recover(host, name, force, &handled, err);

    if (handled)
        return result < 0 ? result : vms_show(host, name, answer, err);
    result = vm_claim(host, name, "being recovered", &doubt.vm, err);
    if (result < 0)
        return result;
    doubt.process = vm_process_get(host, doubt.vm);
    result = recover(&doubt, force, err);
    if (result == 0) {
        vms_refresh(host, doubt.vm);
        *answer = vm_object_locked(host, doubt.vm);
    }
    vm_process_unref(doubt.process);
    vm_release(host, doubt.vm);
    return result;
}
