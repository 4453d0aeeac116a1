#include "host/checks.h"

#include "base/error.h"
#include "base/hugepages.h"
#include "host/certificate.h"
#include "host/cpu_baseline.h"
#include "host/definition.h"
#include "host/fields.h"
#include "host/machines.h"
#include "host/storage.h"
#include "host/storage_file.h"
#include "host/vm_owner.h"
#include "host/vms.h"

#include <ferry/ferry.h>

#include <string.h>
#include <sys/stat.h>
#include <sys/ioctl.h>
#include <linux/fs.h>
#include <fcntl.h>
#include <unistd.h>

typedef int check_function(const struct check_context *context, struct ferry_error *err);

static unsigned long long mib(uint64_t bytes)
{
    return (unsigned long long)(bytes >> 20);
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

/* --- source --- */

static int check_state(const struct check_context *context, struct ferry_error *err)
{
    struct host *host = context->host;
    struct vm *vm;
    int result = 0;

    host_lock(host);
    vm = vms_find(host, context->vm);
    if (!vm || !vm->process || !vm_runs(vm))
        result = error_set(
            err, HOST_CONFLICT,
            "VM %s on host %s is %s; only a running or paused VM can be moved while it runs, others "
            "with --cold",
            context->vm, context->source, vm ? vm_state_text(vm) : "gone");
    host_unlock(host);
    return result;
}

/* One that is suspended for the move goes on only when its lock tells that its disks are as it knows them. */
static int check_lock(const struct check_context *context, struct ferry_error *err)
{
    struct vm_owner owner;
    json_t *disk;
    size_t i;
    bool writes = false;
    int result;

    if (strcmp(text_of(context->cold, "state"), "running") != 0)
        return 0;
    json_array_foreach(definition_disks(context->definition), i, disk) writes |=
        !json_is_true(json_object_get(disk, "readonly"));
    result = vm_owner_read_of(context->host, context->definition, &owner, err);
    if (result < 0 || !writes || owner.path[0])
        return result;
    return error_set(
        err, HOST_REFUSED,
        "VM %s on host %s cannot move cold while it runs: it has no lock that could tell later that "
        "its disks are as its guest knows them; stop it first, or give ferryd a --lock-dir",
        context->vm, context->source);
}

static int check_elsewhere(const struct check_context *context, struct ferry_error *err)
{
    if (strcmp(context->source, context->destination) == 0)
        return error_set(err, HOST_CONFLICT, "VM %s is on host %s already", context->vm, context->source);
    return 0;
}

static int check_enabled_here(const struct check_context *context, struct ferry_error *err)
{
    struct host *host = context->host;
    bool enabled;

    host_lock(host);
    enabled = host->migration_enabled;
    host_unlock(host);
    if (!enabled)
        return error_set(err, HOST_REFUSED,
                         "VM %s cannot move: migration is disabled on host %s; enable it there with: ferry "
                         "host enable",
                         context->vm, host->config->name);
    return 0;
}

static int check_who_answers(const struct check_context *context, struct ferry_error *err)
{
    if (strcmp(text_of(context->there, "name"), context->destination) != 0)
        return error_set(err, HOST_REFUSED,
                         "VM %s cannot move to host %s: the host at its address is called \"%.64s\"; remove "
                         "and add it again",
                         context->vm, context->destination, text_of(context->there, "name"));
    return 0;
}

static int check_protocol_there(const struct check_context *context, struct ferry_error *err)
{
    json_t *protocol = json_object_get(context->there, "protocol");

    if (!json_is_integer(protocol) || json_integer_value(protocol) != HOST_PROTOCOL)
        return error_set(err, HOST_REFUSED,
                         "VM %s cannot move to host %s: it has Ferry %.32s, which speaks version %lld of the "
                         "protocol, host %s version %d; bring both to the same version",
                         context->vm, context->destination, text_of(context->there, "version"),
                         (long long)json_integer_value(protocol), context->source, HOST_PROTOCOL);
    return 0;
}

static int check_enabled_there(const struct check_context *context, struct ferry_error *err)
{
    if (strcmp(text_of(context->there, "migration"), "enabled") != 0)
        return error_set(err, HOST_REFUSED,
                         "VM %s cannot move: migration is disabled on host %s; enable it there with: ferry "
                         "host enable",
                         context->vm, context->destination);
    return 0;
}

/* A guest that this host's KVM runs may be more than the other's can. */
static int check_kvm_there(const struct check_context *context, const char *machine, struct ferry_error *err)
{
    const char *there = text_of(json_object_get(context->there, "kvm"), "kind");

    if (strcmp(machine, "x86_64") != 0 || context->host->kvm != KVM_HARDWARE ||
        strcmp(there, kvm_kind_name(KVM_PARAVIRTUALISED)) != 0)
        return 0;
    return error_set(
        err, HOST_REFUSED,
        "VM %s cannot move: the KVM of host %s is para-virtualised and runs bare-metal guests only, "
        "that of host %s is hardware-assisted; choose a host like this one",
        context->vm, context->destination, context->source);
}

static int check_machine_there(const struct check_context *context, struct ferry_error *err)
{
    const char *machine = definition_machine(context->definition);
    json_t *row;
    size_t i;

    json_array_foreach(json_object_get(context->there, "machines"), i, row)
    {
        if (strcmp(text_of(row, "machine"), machine) != 0)
            continue;
        if (json_is_true(json_object_get(row, "available")))
            return check_kvm_there(context, machine, err);
        return error_set(err, HOST_REFUSED, "VM %s cannot move: host %s cannot run %s machines: %.128s",
                         context->vm, context->destination, machine, text_of(row, "why"));
    }
    return error_set(err, HOST_REFUSED, "VM %s cannot move: host %s does not know %s machines", context->vm,
                     context->destination, machine);
}

/* The highest generation that the VM has all of and the other host, too. */
static const char *common_generation(const struct check_context *context, const struct cpu *given,
                                     const struct cpu *there)
{
    struct cpu_features both = cpu_features_and(&given->features, &there->features);
    const struct cpu_generation *best = cpu_generation_best(context->host->generations, there->vendor, &both);

    return best ? best->name : NULL;
}

/* A VM never runs where a CPU feature that it was given is missing. */
static int check_cpu(const struct check_context *context, struct ferry_error *err)
{
    const json_t *json = json_object_get(context->there, "cpu");
    struct cpu given = {0}, there;
    struct cpu_features lacking;
    const char *generation;
    char names[240];

    if (!cpu_baseline_given(context->host, context->vm, given.vendor, &given.features))
        return 0;
    if (!json_is_object(json) || cpu_baseline_read_cpu(&there, json, NULL) < 0)
        return error_set(err, HOST_REFUSED, "VM %s cannot move: host %s does not say what its CPU has",
                         context->vm, context->destination);
    if (strcmp(given.vendor, there.vendor) != 0)
        return error_set(
            err, HOST_REFUSED,
            "VM %s cannot move: it was given a CPU by %s, and that of host %s is by %s; choose a "
            "host with the same vendor's",
            context->vm, given.vendor, context->destination, there.vendor);
    lacking = cpu_features_without(&given.features, &there.features);
    if (cpu_features_empty(&lacking))
        return 0;
    cpu_features_text(&lacking, names, sizeof(names));
    generation = common_generation(context, &given, &there);
    return error_set(err, HOST_REFUSED,
                     "VM %s cannot move: host %s lacks CPU features %s that %s was given; %s%s%s%s%schoose "
                     "another host",
                     context->vm, context->destination, names, context->vm, generation ? "set baseline " : "",
                     generation ? generation : "", generation ? " and power-cycle " : "",
                     generation ? context->vm : "", generation ? ", or " : "");
}

/* What a person has a VM leave out is left out by the baseline anyway. */
static int check_cpu_mask(const struct check_context *context, struct ferry_error *err)
{
    const char *text = definition_cpu(context->definition);
    json_t *baseline = cpu_baseline_get(context->host);
    struct cpu_features redundant = {0};
    struct cpu_request request;
    struct cpu cpu;
    char names[240];

    if (text && cpu_request_parse(&request, text, NULL) == 0 && json_is_object(baseline) &&
        cpu_baseline_read_cpu(&cpu, baseline, NULL) == 0)
        redundant = cpu_features_without(&request.without, &cpu.features);
    cpu_features_text(&redundant, names, sizeof(names));
    if (names[0])
        error_set(err, HOST_REFUSED,
                  "the mask of VM %s is redundant: the baseline %s takes %s away from every VM", context->vm,
                  text_of(baseline, "name"), names);
    json_decref(baseline);
    return names[0] ? HOST_REFUSED : 0;
}

static int refuse_unlicensed(const struct check_context *context, const char *host, struct ferry_error *err)
{
    return error_set(err, HOST_REFUSED,
                     "VM %s cannot move encrypted to host %s: Host not licensed: host %s has no certificate; "
                     "issue one and install it there: ferry host certs issue %s",
                     context->vm, context->destination, host, host);
}

static int check_licensed(const struct check_context *context, struct ferry_error *err)
{
    struct ferry_credentials *ours = certificate_get(context->host);
    bool here = ours != NULL;
    bool there = json_is_object(json_object_get(context->there, "certificate"));

    credentials_unref(ours);
    if ((here && there) || !context->must_encrypt)
        return 0;
    return refuse_unlicensed(context, here ? context->destination : context->source, err);
}

/*
 * On one machine (same boot) a file is known by device and inode. Elsewhere device numbers mean nothing; a
 * shared file system shows the same inode number and size on both sides.
 */
static bool same_file(const json_t *here, const json_t *there, bool same_machine)
{
    return json_equal(json_object_get(here, "size"), json_object_get(there, "size")) &&
           json_equal(json_object_get(here, "inode"), json_object_get(there, "inode")) &&
           (!same_machine || json_equal(json_object_get(here, "device"), json_object_get(there, "device")));
}

/* What else can be done about a disk that is not shared. */
static const char *or_copy(const struct check_context *context)
{
    return context->cold ? ", or move it along: --storage" : "";
}

static int check_same_disks(const struct check_context *context, struct ferry_error *err)
{
    bool same_machine = strcmp(text_of(context->there_answer, "boot_id"), context->host->boot_id) == 0;
    json_t *theirs = json_object_get(context->there_answer, "disks");
    json_t *ours = checks_describe_disks(context->definition);
    json_t *disk;
    size_t i;
    int result = 0;

    json_array_foreach(ours, i, disk)
    {
        if (result == 0 && !storage_moves(context->cold) &&
            !same_file(disk, json_array_get(theirs, i), same_machine))
            result = error_set(
                err, HOST_REFUSED,
                "VM %s cannot move: disk %.200s on host %s is not the same file as on host %s; "
                "share the storage between them%s",
                context->vm, text_of(disk, "path"), context->destination, context->source, or_copy(context));
    }
    json_decref(ours);
    return result;
}

/* A destination that looks elsewhere for the lock would run the VM without having taken it. */
static int check_same_lock(const struct check_context *context, struct ferry_error *err)
{
    bool same_machine = strcmp(text_of(context->there_answer, "boot_id"), context->host->boot_id) == 0;
    json_t *theirs = json_deep_copy(json_object_get(context->there_answer, "lock"));
    json_t *ours = checks_describe_lock(context->host, context->definition);
    bool same;

    if (!same_machine) { /* as in same_file */
        json_object_del(ours, "device");
        json_object_del(theirs, "device");
    }
    same = json_equal(ours, theirs);
    json_decref(theirs);
    json_decref(ours);
    if (same || storage_moves_lock(context->cold, context->definition))
        return 0;
    return error_set(
        err, HOST_REFUSED,
        "VM %s cannot move: hosts %s and %s do not have its lock in the same place; give both ferryd the "
        "same shared --lock-dir, or neither one",
        context->vm, context->source, context->destination);
}

/* --- destination --- */

static int check_encrypted(const struct check_context *context, struct ferry_error *err)
{
    struct ferry_credentials *ours = certificate_get(context->host);
    bool here = ours != NULL;

    credentials_unref(ours);
    if (context->encrypted && !here)
        return refuse_unlicensed(context, context->destination, err);
    if (!context->encrypted && context->must_encrypt && !here)
        return refuse_unlicensed(context, context->destination, err);
    if (!context->encrypted && context->must_encrypt)
        return error_set(
            err, HOST_REFUSED,
            "VM %s cannot move: host %s takes encrypted migrations only (--require-tls), and host "
            "%s would not encrypt this one; has it a certificate?",
            context->vm, context->destination, context->source);
    return 0;
}

static int check_protocol(const struct check_context *context, struct ferry_error *err)
{
    if (context->protocol != HOST_PROTOCOL)
        return error_set(err, HOST_REFUSED,
                         "VM %s cannot move to host %s: host %s speaks version %llu of the protocol, this "
                         "one %d; bring both to the same version",
                         context->vm, context->destination, context->source,
                         (unsigned long long)context->protocol, HOST_PROTOCOL);
    return 0;
}

static int check_not_ourselves(const struct check_context *context, struct ferry_error *err)
{
    if (strcmp(context->source, context->destination) == 0)
        return error_set(err, HOST_REFUSED, "VM %s cannot move: both hosts are called %s; rename one",
                         context->vm, context->source);
    return 0;
}

static int check_name_free(const struct check_context *context, struct ferry_error *err)
{
    struct host *host = context->host;
    bool taken;

    struct vm *vm;
    bool by_admin;

    host_lock(host);
    vm = vms_find(host, context->vm);
    taken = vm && !vm_may_be_replaced(vm);
    by_admin = taken && !vm->process && strcmp(vm->ban.by, "Admin") == 0;
    host_unlock(host);
    if (by_admin)
        return error_set(
            err, HOST_REFUSED,
            "VM %s cannot move to host %s: an administrator has made it not runnable there; ferry "
            "runnable %s on lifts that",
            context->vm, context->destination, context->vm);
    if (taken)
        return error_set(err, HOST_REFUSED,
                         "VM %s cannot move to host %s: there is a VM of that name already; remove one",
                         context->vm, context->destination);
    return 0;
}

static const char *cannot(const struct check_context *context)
{
    return context->resumes ? "cannot be resumed" : "cannot move";
}

static int check_machine(const struct check_context *context, struct ferry_error *err)
{
    const char *machine = definition_machine(context->definition);
    const char *missing = machines_missing(machine);

    if (missing)
        return error_set(err, HOST_REFUSED, "VM %s %s: host %s cannot run %s machines: %s", context->vm,
                         cannot(context), context->destination, machine, missing);
    return 0;
}

static int check_memory(const struct check_context *context, struct ferry_error *err)
{
    uint64_t wanted = definition_memory(context->definition);
    uint64_t available = definition_hugepages(context->definition) ? host_memory_allowed(context->host)
                                                                   : host_memory_available(context->host);

    if (wanted > available)
        return error_set(err, HOST_REFUSED,
                         "VM %s %s: it needs %llu MiB of memory, host %s has %llu MiB to give; free "
                         "memory there or choose another host",
                         context->vm, cannot(context), mib(wanted), context->destination, mib(available));
    return 0;
}

static int check_hugepages(const struct check_context *context, struct ferry_error *err)
{
    if (host_check_hugepages(context->host, context->definition, err) == 0)
        return 0;
    return error_prefix(err, HOST_REFUSED, "VM %s %s", context->vm, cannot(context));
}

static int check_disk(const struct check_context *context, const json_t *disk, struct ferry_error *err)
{
    const char *path = text_of(disk, "path");
    bool readonly = json_is_true(json_object_get(disk, "readonly"));
    struct stat status;

    if (stat(path, &status) < 0)
        return error_set(err, HOST_REFUSED,
                         "VM %s %s: its disk %.200s cannot be reached on host %s (%s); share it under "
                         "the same path%s",
                         context->vm, cannot(context), path, context->destination, strerror(errno),
                         or_copy(context));
    if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode))
        return error_set(err, HOST_REFUSED,
                         "VM %s %s: its disk %.200s is neither a file nor a block device on host %s",
                         context->vm, cannot(context), path, context->destination);
    if (access(path, readonly ? R_OK : R_OK | W_OK) < 0)
        return error_set(err, HOST_REFUSED,
                         "VM %s %s: its disk %.200s cannot be %s on host %s (%s); check permissions",
                         context->vm, cannot(context), path, readonly ? "read" : "written",
                         context->destination, strerror(errno));
    return 0;
}

static int check_disks(const struct check_context *context, struct ferry_error *err)
{
    struct storage_disks moving;
    json_t *disk;
    size_t i;
    int result = storage_read(&moving, context->host, context->cold, context->definition, err);

    if (result < 0 && result != -ENOENT)
        return result;
    json_array_foreach(definition_disks(context->definition), i, disk)
    {
        if (i < moving.count && !moving.disk[i].stays)
            continue;
        result = check_disk(context, disk, err);
        if (result < 0)
            return result;
    }
    return 0;
}

static int check_networks(const struct check_context *context, struct ferry_error *err)
{
    json_t *net;
    size_t i;

    json_array_foreach(definition_nets(context->definition), i, net)
    {
        const char *backend = text_of(net, "backend");

        if (strncmp(backend, "user", 4) != 0 || (backend[4] && backend[4] != ','))
            return error_set(err, HOST_REFUSED, "VM %s %s: host %s has no network \"%.64s\"", context->vm,
                             cannot(context), context->destination, backend);
    }
    return 0;
}

static int check_quick_resume(const struct check_context *context, const char *word, struct ferry_error *err)
{
    uint64_t huge = definition_hugepages(context->definition);
    struct ferry_error why;

    if (!context->quick_resume || strcmp(context->quick_resume, word) != 0)
        return 0;
    if (huge)
        error_set(
            &why, -EOPNOTSUPP,
            "its memory is of huge pages of %s, and quick resume fetches pages of 4 KiB; move it without",
            hugepages_size_name(huge));
    else if (ferry_quick_resume_check(&why) == 0)
        return 0;
    return error_set(err, HOST_REFUSED, "VM %s cannot move to host %s by quick resume: %.300s", context->vm,
                     context->destination, why.text);
}

static int check_quick_resume_now(const struct check_context *context, struct ferry_error *err)
{
    return check_quick_resume(context, "now", err);
}

/* It may never come to it. */
static int check_quick_resume_allowed(const struct check_context *context, struct ferry_error *err)
{
    return check_quick_resume(context, "allowed", err);
}

/* User-mode networking keeps no connection from outside: they end with the move. */
static int check_network_connections(const struct check_context *context, struct ferry_error *err)
{
    if (json_array_size(definition_nets(context->definition)) > 0)
        return error_set(
            err, HOST_REFUSED,
            "connections to VM %s through user networking end when it moves to host %s; new ones "
            "work there",
            context->vm, context->destination);
    return 0;
}

enum check_severity {
    CHECK_ERROR = 1,
    CHECK_WARNING,
};

static const struct check {
    const char *name;
    enum check_stage stage;
    enum check_severity severity;
    check_function *run;
} checks[] = {
    {"elsewhere", CHECK_SOURCE_LOCAL, CHECK_ERROR, check_elsewhere},
    {"state", CHECK_SOURCE_LOCAL, CHECK_ERROR, check_state},
    {"enabled-source", CHECK_SOURCE_LOCAL, CHECK_ERROR, check_enabled_here},
    {"cpu-mask", CHECK_SOURCE_LOCAL, CHECK_WARNING, check_cpu_mask},
    {"lock", CHECK_SOURCE_LOCAL, CHECK_ERROR, check_lock},
    {"storage", CHECK_SOURCE_LOCAL, CHECK_ERROR, storage_check_source},

    {"host-name", CHECK_SOURCE_PEER, CHECK_ERROR, check_who_answers},
    {"protocol", CHECK_SOURCE_PEER, CHECK_ERROR, check_protocol_there},
    {"enabled-destination", CHECK_SOURCE_PEER, CHECK_ERROR, check_enabled_there},
    {"machine", CHECK_SOURCE_PEER, CHECK_ERROR, check_machine_there},
    {"cpu", CHECK_SOURCE_PEER, CHECK_ERROR, check_cpu},
    {"encryption", CHECK_SOURCE_PEER, CHECK_ERROR, check_licensed},

    {"same-disks", CHECK_SOURCE_ANSWER, CHECK_ERROR, check_same_disks},
    {"same-lock", CHECK_SOURCE_ANSWER, CHECK_ERROR, check_same_lock},
    {"storage", CHECK_SOURCE_ANSWER, CHECK_ERROR, storage_check_known},

    {"protocol", CHECK_DESTINATION, CHECK_ERROR, check_protocol},
    {"host-name", CHECK_DESTINATION, CHECK_ERROR, check_not_ourselves},
    {"enabled-destination", CHECK_DESTINATION, CHECK_ERROR, check_enabled_here},
    {"machine", CHECK_DESTINATION, CHECK_ERROR, check_machine},
    {"encryption", CHECK_DESTINATION, CHECK_ERROR, check_encrypted},
    {"name", CHECK_DESTINATION, CHECK_ERROR, check_name_free},
    {"memory", CHECK_DESTINATION, CHECK_ERROR, check_memory},
    {"hugepages", CHECK_DESTINATION, CHECK_ERROR, check_hugepages},
    {"disks", CHECK_DESTINATION, CHECK_ERROR, check_disks},
    {"storage", CHECK_DESTINATION, CHECK_ERROR, storage_check_place},
    {"storage", CHECK_DESTINATION, CHECK_ERROR, storage_check_room},
    {"storage", CHECK_DESTINATION, CHECK_WARNING, storage_check_shared},
    {"networks", CHECK_DESTINATION, CHECK_ERROR, check_networks},
    {"checkpoint", CHECK_DESTINATION, CHECK_ERROR, storage_file_check},
    {"checkpoint", CHECK_DESTINATION, CHECK_WARNING, storage_file_check_copied},
    {"quick-resume", CHECK_DESTINATION, CHECK_ERROR, check_quick_resume_now},
    {"quick-resume", CHECK_DESTINATION, CHECK_WARNING, check_quick_resume_allowed},
    {"connections", CHECK_DESTINATION, CHECK_WARNING, check_network_connections},

    {"machine", CHECK_RESUME, CHECK_ERROR, check_machine},
    {"memory", CHECK_RESUME, CHECK_ERROR, check_memory},
    {"hugepages", CHECK_RESUME, CHECK_ERROR, check_hugepages},
    {"disks", CHECK_RESUME, CHECK_ERROR, check_disks},
    {"networks", CHECK_RESUME, CHECK_ERROR, check_networks},
};

/* Of a VM that does not run: neither its memory nor its connections move. */
static bool is_for_hot(const struct check_context *context, const char *check)
{
    static const char *const hot[] = {"state",       "cpu",    "cpu-mask", "quick-resume",
                                      "connections", "memory", "hugepages"};
    const char *state = json_string_value(json_object_get(context->cold, "state"));
    /* One that runs is resumed there. */
    size_t count = sizeof(hot) / sizeof(hot[0]) - (state && strcmp(state, "running") == 0 ? 2 : 0);

    for (size_t i = 0; context->cold && i < count; i++) {
        if (strcmp(hot[i], check) == 0)
            return true;
    }
    return false;
}

int checks_run(enum check_stage stage, const struct check_context *context, json_t *results,
               struct ferry_error *err)
{
    int first = 0;

    for (size_t i = 0; i < sizeof(checks) / sizeof(checks[0]); i++) {
        const struct check *check = &checks[i];
        struct ferry_error found = {0};
        int result;

        if (check->stage != stage || is_for_hot(context, check->name))
            continue;
        result = check->run(context, &found);
        if (result == 0)
            continue;
        if (results)
            json_array_append_new(results, json_pack("{s:s, s:s, s:o}", "check", check->name, "severity",
                                                     check->severity == CHECK_ERROR ? "error" : "warning",
                                                     "message", fields_text(found.text)));
        if (check->severity == CHECK_ERROR && first == 0)
            first = error_set(err, result, "%s", found.text);
    }
    return first;
}

static json_int_t disk_size(const char *path, const struct stat *status)
{
    uint64_t bytes = 0;
    int fd;

    if (!S_ISBLK(status->st_mode))
        return (json_int_t)status->st_size;
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd >= 0) {
        if (ioctl(fd, BLKGETSIZE64, &bytes) < 0)
            bytes = 0;
        close(fd);
    }
    return (json_int_t)bytes;
}

json_t *checks_describe_disks(const json_t *definition)
{
    json_t *list = json_array();
    json_t *disk;
    size_t i;

    json_array_foreach(definition_disks(definition), i, disk)
    {
        const char *path = text_of(disk, "path");
        struct stat status = {0};

        if (stat(path, &status) < 0)
            memset(&status, 0, sizeof(status));
        json_array_append_new(
            list, json_pack("{s:s, s:I, s:I, s:I}", "path", path, "size", disk_size(path, &status), "device",
                            (json_int_t)(S_ISBLK(status.st_mode) ? status.st_rdev : status.st_dev), "inode",
                            (json_int_t)(S_ISBLK(status.st_mode) ? 0 : status.st_ino)));
    }
    return list;
}

json_t *checks_describe_lock(const struct host *host, const json_t *definition)
{
    const char *lock_dir = host->config->lock_dir;
    json_t *disk;
    struct stat status;
    size_t i;

    json_array_foreach(definition_disks(definition), i, disk)
    {
        if (json_is_true(json_object_get(disk, "readonly")))
            continue;
        if (stat(text_of(disk, "path"), &status) == 0 && S_ISREG(status.st_mode))
            return json_pack("{s:s}", "place", "disk");
        break; /* the first writable one counts */
    }
    if (!lock_dir[0])
        return json_pack("{s:s}", "place", "none");
    if (stat(lock_dir, &status) < 0)
        memset(&status, 0, sizeof(status));
    return json_pack("{s:s, s:I, s:I}", "place", "directory", "inode", (json_int_t)status.st_ino, "device",
                     (json_int_t)status.st_dev);
}
