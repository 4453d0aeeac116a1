#include "host/resume.h"

#include "base/error.h"
#include "host/checks.h"
#include "host/definition.h"
#include "host/events.h"
#include "host/fields.h"
#include "host/peers.h"
#include "host/vm_directory.h"
#include "host/vm_owner.h"
#include "host/vm_runnable.h"
#include "host/vm_suspended.h"

#include <ferry/checkpoint.h>

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* A disk was still being flushed when the guest had stopped already; and clocks of hosts differ a little. */
#define DISK_SLACK_NS (15 * NS_PER_S)

struct resume {
    struct host *host;
    const struct resume_options *options;
    struct ferry_checkpoint *checkpoint;
    const struct ferry_checkpoint_info *info;
    json_t *description;       /* what checkpoint.c put into it */
    const char *origin;        /* host where it was saved; borrowed from description */
    uint64_t saved_generation; /* of its lock then; 0: it had none */
    json_t *definition;        /* of the VM to be */
    bool renamed;
    bool awaited;          /* a host has the guest as suspended in that very file */
    struct vm_owner owner; /* what its lock says now */
    uint64_t generation;   /* what its lock must say; 0: anything */
};

static const char *name_of(const struct resume *resume)
{
    return definition_name(resume->definition);
}

/* --- the file --- */

static int read_description(struct resume *resume, struct ferry_error *err)
{
    const struct ferry_checkpoint_blob *blob = ferry_checkpoint_blob(resume->checkpoint, "definition");
    json_t *lock = NULL;
    json_t *definition = NULL;
    const struct field fields[] = {
        {"host", FIELD_STRING, true, &resume->origin},
        {"definition", FIELD_OBJECT, true, &definition},
        {"lock", FIELD_OBJECT, false, &lock},
    };
    const struct field lock_fields[] = {{"generation", FIELD_UINT, true, &resume->saved_generation}};
    int result = 0;

    if (blob)
        resume->description = fields_parse(blob->data, blob->size, "what the file says of its VM", err);
    if (!blob || !resume->description)
        return error_set(err, -EINVAL, "%s does not say of which VM it is; ferry-vm alone can resume it",
                         resume->options->file);
    result = fields_read(resume->description, fields, 3, FIELDS_LOOSE, "what the file says of its VM", err);
    if (result == 0 && lock)
        result = fields_read(lock, lock_fields, 1, FIELDS_LOOSE, "what the file says of its lock", err);
    if (result == 0)
        resume->definition = json_deep_copy(definition);
    return result < 0 ? error_prefix(err, -EIO, "%s", resume->options->file) : 0;
}

/* A file from before VMs had one: that of the VM in whose place the guest goes on. */
static void take_uuid(const struct resume *resume)
{
    struct vm *vm;

    if (definition_uuid(resume->definition))
        return;
    host_lock(resume->host);
    vm = vms_find(resume->host, name_of(resume));
    if (vm)
        json_object_set(resume->definition, "uuid", json_object_get(vm->definition, "uuid"));
    host_unlock(resume->host);
}

/* Another name is another identity: UUID and MAC addresses are made anew. */
static int make_definition(struct resume *resume, struct ferry_error *err)
{
    const char *name = resume->options->name;
    const char *own = definition_name(resume->definition);
    json_t *made = NULL;
    json_t *net;
    size_t i;
    int result;

    resume->renamed = name && own && strcmp(name, own) != 0;
    if (resume->renamed) {
        json_object_set_new(resume->definition, "name", fields_text(name));
        json_object_del(resume->definition, "uuid");
        json_array_foreach(definition_nets(resume->definition), i, net) json_object_del(net, "mac");
    } else if (own) {
        take_uuid(resume);
    }
    result = definition_normalise(resume->definition, &made, err);
    if (result < 0)
        return error_prefix(err, resume->renamed ? result : -EIO, "%s", resume->options->file);
    json_decref(resume->definition);
    resume->definition = made;
    return 0;
}

/* A VM that is suspended here by this file has its disks where its entry says: they may have moved since. */
static void find_disks(struct resume *resume)
{
    struct host *host = resume->host;
    json_t *disks = NULL;
    struct vm *vm;

    if (resume->renamed)
        return;
    host_lock(host);
    vm = vms_find(host, name_of(resume));
    if (vm && vm->suspended &&
        strcmp(json_string_value(json_object_get(vm->suspended, "checkpoint")), resume->info->id) == 0 &&
        json_array_size(definition_disks(vm->definition)) ==
            json_array_size(definition_disks(resume->definition)))
        disks = json_incref(definition_disks(vm->definition));
    host_unlock(host);
    if (disks)
        json_object_set_new(resume->definition, "disks", disks);
}

static int read_file(struct resume *resume, struct ferry_error *err)
{
    const char *file = resume->options->file;
    int result;

    if (file[0] != '/')
        return error_set(err, HOST_USAGE, "\"file\" must be an absolute path, not \"%.200s\"", file);
    result = ferry_checkpoint_open(&resume->checkpoint, file, err);
    if (result < 0)
        return result == HOST_USAGE ? -EIO : result;
    resume->info = ferry_checkpoint_info(resume->checkpoint);
    result = read_description(resume, err);
    if (result == 0)
        result = make_definition(resume, err);
    if (result == 0)
        find_disks(resume);
    return result;
}

/* --- are the disks of that moment? --- */

static const char *writable_disk(const json_t *definition)
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

static uint64_t changed_ns(const struct stat *status)
{
    return (uint64_t)status->st_mtim.tv_sec * NS_PER_S + (uint64_t)status->st_mtim.tv_nsec;
}

/* Who writes to a disk file without its lock is not seen by the lock. */
static int check_disk_times(const struct resume *resume, struct ferry_error *err)
{
    uint64_t stopped = resume->info->stopped_realtime_ns;
    uint64_t limit = stopped + DISK_SLACK_NS;
    struct stat status;
    json_t *disk;
    size_t i;

    /* The file was finished after the last write to a disk, unless this is a copy of it. */
    if (stat(resume->options->file, &status) == 0 && changed_ns(&status) < limit)
        limit = changed_ns(&status) > stopped ? changed_ns(&status) : stopped;
    json_array_foreach(definition_disks(resume->definition), i, disk)
    {
        const char *path = json_string_value(json_object_get(disk, "path"));

        if (json_is_true(json_object_get(disk, "readonly")) || stat(path, &status) < 0 ||
            !S_ISREG(status.st_mode) || changed_ns(&status) <= limit)
            continue;
        return error_set(
            err, HOST_REFUSED,
            "VM %s cannot be resumed: its disk %.200s was written to after the VM was "
            "suspended, and memory older than its disk would corrupt file systems; if you have put "
            "back the disk of that moment, say so with --disks-restored",
            name_of(resume), path);
    }
    return 0;
}

static int check_lock(const struct resume *resume, struct ferry_error *err)
{
    const struct vm_lock_record *record = &resume->owner.record;
    const char *name = name_of(resume);

    if (resume->saved_generation == 0 || !resume->owner.path[0])
        return error_set(
            err, HOST_REFUSED,
            "VM %s cannot be resumed: it has no lock on host %s that could tell whether somebody "
            "has written to its disk %.200s since it was suspended; if nobody has, say so with "
            "--disks-restored",
            name, resume->host->config->name, writable_disk(resume->definition));
    if (record->generation != resume->saved_generation)
        return error_set(
            err, HOST_REFUSED,
            "VM %s cannot be resumed from %.200s: it has run since, on host %s (generation %llu of "
            "its lock, then %llu), and memory older than its disks would corrupt file systems; "
            "if you have put back the disks of that moment, say so with --disks-restored",
            name, resume->options->file, record->holder, (unsigned long long)record->generation,
            (unsigned long long)resume->saved_generation);
    return 0;
}

static int check_moment(struct resume *resume, struct ferry_error *err)
{
    const char *disk = writable_disk(resume->definition);
    bool suspended = resume->info->kind == FERRY_CHECKPOINT_SUSPEND;
    int result;

    if (resume->renamed && disk)
        return error_set(
            err, HOST_REFUSED,
            "VM %s cannot be resumed: it would write to disk %.200s, which is VM %.64s's; a guest "
            "goes on under another name only without disks that it writes to",
            name_of(resume), disk, resume->info->vm);
    result = vm_owner_read_of(resume->host, resume->definition, &resume->owner, err);
    if (result < 0 || resume->renamed || resume->options->disks_restored)
        return result;
    if (!disk) {
        /* With a lock directory: a suspended guest goes on once. */
        resume->generation = suspended && resume->owner.path[0] ? resume->saved_generation : 0;
        return 0;
    }
    if (!suspended)
        return error_set(
            err, HOST_REFUSED,
            "VM %s cannot be resumed from %.200s: that is a snapshot, after which the VM ran on and "
            "wrote to its disk %.200s, and memory older than its disk would corrupt file systems; "
            "put back copies of all its disks from the moment of the snapshot, and say so with "
            "--disks-restored",
            name_of(resume), resume->options->file, disk);
    result = check_lock(resume, err);
    if (result == 0)
        result = check_disk_times(resume, err);
    resume->generation = resume->saved_generation;
    return result;
}

/* --- does the original run? --- */

static int runs_on(const struct resume *resume, const char *host, struct ferry_error *err)
{
    return error_set(
        err, HOST_CONFLICT,
        "VM %s still runs on host %s; a guest is resumed in its place only when that has ended, or "
        "beside it under another name: ferry resume %.200s NEW_NAME",
        name_of(resume), host, resume->options->file);
}

/* Nobody could run it meanwhile: the lock is taken before the first instruction. */
static bool lock_guards(const struct resume *resume)
{
    return resume->owner.path[0] != '\0';
}

/* SUSPENDED: of a VM's object; may be null. */
static bool awaits_this(const struct resume *resume, const json_t *suspended)
{
    const char *id = json_string_value(json_object_get(suspended, "checkpoint"));

    return id && strcmp(id, resume->info->id) == 0;
}

/* HOST had it last, or may have. */
static int ask_host(struct resume *resume, const char *host, struct ferry_error *err)
{
    char address[SOCK_ADDRESS_SIZE];
    char path[HOST_NAME_SIZE + 16];
    struct ferry_error why = {0};
    json_t *object = NULL;
    int result;

    if (!host[0] || strcmp(host, resume->host->config->name) == 0)
        return 0;
    snprintf(path, sizeof(path), "/v1/vms/%s", name_of(resume));
    result = peers_find(resume->host, host, address, &why);
    if (result == 0)
        result = peer_call(resume->host, address, "GET", path, NULL, PEER_PROMPT, &object, &why);
    if (result == 0 && awaits_this(resume, json_object_get(object, "suspended")))
        resume->awaited = true;
    if (result == 0 && json_is_integer(json_object_get(object, "pid")))
        result = runs_on(resume, host, err);
    else if (result == 0 || (result == HOST_NOT_FOUND && address[0]) || lock_guards(resume))
        result = 0;
    else
        result =
            error_set(err, HOST_REFUSED,
                      "VM %s cannot be resumed: whether it runs on host %s nobody can tell: it has no lock, "
                      "and that host cannot be asked (%.200s); make it known here (ferry host add), or "
                      "resume it under another name: ferry resume %.200s NEW_NAME",
                      name_of(resume), host, why.text, resume->options->file);
    json_decref(object);
    return result;
}

static int check_original(struct resume *resume, struct ferry_error *err)
{
    struct host *host = resume->host;
    char last[HOST_NAME_SIZE] = "";
    struct vm *vm;
    bool here;
    int result;

    host_lock(host);
    vm = vms_find(host, name_of(resume));
    here = vm && vm->listed && vm->process && (vm_runs(vm) || vm->state == VM_STATE_SETUP);
    resume->awaited = vm && awaits_this(resume, vm->suspended);
    if (vm && strcmp(vm->ban.by, "Migrate") == 0)
        snprintf(last, sizeof(last), "%s", vm->ban.host);
    host_unlock(host);
    if (here && resume->renamed)
        return error_set(err, HOST_CONFLICT, "there is a VM %s on host %s already", name_of(resume),
                         host->config->name);
    if (here)
        return runs_on(resume, host->config->name, err);
    if (resume->renamed)
        return 0;
    result = ask_host(resume, resume->origin, err);
    return result < 0 || strcmp(last, resume->origin) == 0 ? result : ask_host(resume, last, err);
}

static int check_host(const struct resume *resume, struct ferry_error *err)
{
    const struct check_context context = {
        .host = resume->host,
        .vm = name_of(resume),
        .definition = resume->definition,
        .source = resume->origin,
        .destination = resume->host->config->name,
        .resumes = true,
    };

    return checks_run(CHECK_RESUME, &context, NULL, err);
}

/* --- its place in the inventory --- */

/* There is an entry of that name, claimed: may the guest go on in it? */
static int check_entry(const struct resume *resume, struct vm *vm, struct ferry_error *err)
{
    struct host *host = resume->host;
    bool banned, migrated;

    host_lock(host);
    banned = vm->ban.by[0] != '\0';
    migrated = strcmp(vm->ban.by, "Migrate") == 0;
    host_unlock(host);
    if (resume->renamed)
        return error_set(err, HOST_CONFLICT, "there is a VM %s on host %s already", vm->name,
                         host->config->name);
    if (!vm_wait_gone(host, vm, clock_deadline(host_vm_ms(host))))
        return runs_on(resume, host->config->name, err);
    if (!json_equal(vm->definition, resume->definition))
        return error_set(
            err, HOST_CONFLICT,
            "VM %s is defined otherwise on host %s than it was when %.200s was written; ferry rm %s "
            "removes that definition",
            vm->name, host->config->name, resume->options->file, vm->name);
    return banned && !migrated ? vm_check_runnable(host, vm, err) : 0;
}

/* *vm is claimed; *is_new: it was made for this. */
static int find_place(const struct resume *resume, struct vm **vm, bool *is_new, struct ferry_error *err)
{
    struct host *host = resume->host;
    int result = vm_claim(host, name_of(resume), "being resumed", vm, err);

    *is_new = result == HOST_NOT_FOUND;
    if (*is_new)
        return vm_make(host, resume->definition, "being resumed", false, vm, err);
    if (result == 0) {
        result = check_entry(resume, *vm, err);
        if (result == 0)
            result = vm_directory_clean(*vm, err);
        if (result < 0)
            vm_release(host, *vm);
    }
    return result;
}

/* It did not come to the first instruction. */
static void leave_place(const struct resume *resume, struct vm *vm, bool is_new)
{
    struct host *host = resume->host;
    bool suspended;

    vm_directory_log_tail(host, vm);
    if (is_new) {
        vm_drop(host, vm);
        vm_unref(host, vm);
        return;
    }
    host_lock(host);
    suspended = vm->suspended != NULL;
    host_unlock(host);
    vm_directory_clean(vm, NULL);
    if (!suspended && !vm->ban.by[0])
        vm_directory_leave_exit(vm, "it could not be resumed", NULL);
    vm_release(host, vm);
}

static void tell_origin(const struct resume *resume)
{
    char address[SOCK_ADDRESS_SIZE];
    char path[HOST_NAME_SIZE + 24];
    struct ferry_error err;
    json_t *body;

    if (resume->renamed || strcmp(resume->origin, resume->host->config->name) == 0 ||
        peers_find(resume->host, resume->origin, address, NULL) < 0)
        return;
    snprintf(path, sizeof(path), "/v1/vms/%s/resumed", name_of(resume));
    body = json_pack("{s:s, s:s}", "host", resume->host->config->name, "checkpoint", resume->info->id);
    if (peer_call(resume->host, address, "POST", path, body, PEER_PROMPT, NULL, &err) < 0)
        log_info(resume->host->log, "VM %s: host %s, where it was saved, does not list it as suspended: %s",
                 name_of(resume), resume->origin, err.text);
    json_decref(body);
}

/* Whether it is known that the guest goes on from there for the first time: its lock says so, or a host. */
static bool goes_on_once(const struct resume *resume)
{
    return resume->info->kind == FERRY_CHECKPOINT_SUSPEND && !resume->renamed &&
           !resume->options->disks_restored && (resume->generation != 0 || resume->awaited);
}

static int start(struct resume *resume, struct vm *vm, bool is_new, json_t **answer, struct ferry_error *err)
{
    struct host *host = resume->host;
    bool paused = resume->options->paused;
    const struct vm_process_resume how = {.file = resume->options->file,
                                          .eager = resume->options->eager,
                                          .new_identity = resume->renamed,
                                          .new_generation = !goes_on_once(resume),
                                          .generation = resume->generation};
    struct vm_process *process = NULL;
    int result =
        vm_process_resume(&process, host, vm, paused ? VM_PROCESS_PAUSED : 0, &how, host_start_ms(host), err);

    if (!process) {
        error_prefix(err, result, "VM %s cannot be resumed from %.200s", vm->name, resume->options->file);
        leave_place(resume, vm, is_new);
        return result;
    }
    host_lock(host);
    vm->started[0] = '\0';
    host_unlock(host);
    vm_clear_suspended(host, vm);
    vm_publish(host, vm, process, paused ? VM_STATE_PAUSED : VM_STATE_RUNNING);
    if (vm->ban.by[0])
        vm_lift_ban(host, vm);
    events_emit(host, EVENT_VM_RESUMED, vm->name, definition_machine(vm->definition), NULL,
                "VM %s goes on from %s (%s %s, process %d)", vm->name, resume->options->file,
                ferry_checkpoint_kind_name(resume->info->kind), resume->info->id, (int)process->pid);
    vms_refresh(host, vm); /* it may have been saved paused */
    *answer = vm_object_locked(host, vm);
    vm_release(host, vm);
    tell_origin(resume);
    return 0;
}

int vms_resume(struct host *host, const struct resume_options *options, json_t **answer,
               struct ferry_error *err)
{
    struct resume resume = {.host = host, .options = options};
    struct vm *vm = NULL;
    bool is_new = false;
    int result = read_file(&resume, err);

    if (result == 0)
        result = check_moment(&resume, err);
    if (result == 0 || result == HOST_REFUSED) {
        /* That it runs says more than that its disks are not of that moment. */
        struct ferry_error why = {0};
        int original = check_original(&resume, &why);

        if (original < 0)
            result = error_set(err, original, "%s", why.text);
    }
    if (result == 0)
        result = check_host(&resume, err);
    if (result == 0)
        result = find_place(&resume, &vm, &is_new, err);
    if (result == 0)
        result = start(&resume, vm, is_new, answer, err);
    ferry_checkpoint_close(resume.checkpoint);
    json_decref(resume.description);
    json_decref(resume.definition);
    return result;
}

int vms_resumed_elsewhere(struct host *host, const char *name, const char *by, const char *id,
                          struct ferry_error *err)
{
    struct vm_ban ban = {.by = "Migrate", .outcome = "completed"};
    struct vm *vm = NULL;
    int result = vm_claim(host, name, "being retired", &vm, err);
    bool suspended;

    if (!vm)
        return result;
    host_lock(host);
    suspended = vm->state == VM_STATE_SUSPENDED && vm->suspended &&
                strcmp(json_string_value(json_object_get(vm->suspended, "checkpoint")), id) == 0;
    host_unlock(host);
    if (suspended) {
        snprintf(ban.host, sizeof(ban.host), "%s", by);
        snprintf(ban.reason, sizeof(ban.reason), "the guest was resumed on host %s", by);
        vm_retire(host, vm, &ban);
        events_emit(host, EVENT_VM_REMOVED, vm->name, definition_machine(vm->definition), NULL,
                    "VM %s, suspended on host %s, was resumed on host %s", vm->name, host->config->name, by);
    } else {
        result = error_set(err, HOST_CONFLICT, "VM %s is not suspended on host %s by %.36s", name,
                           host->config->name, id);
    }
    vm_release(host, vm);
    return result;
}
