#include "host/storage_copy.h"

#include "base/error.h"
#include "host/agreement.h"
#include "host/definition.h"
#include "host/events.h"
#include "host/fields.h"
#include "host/migration_cold.h"
#include "host/peers.h"
#include "host/storage.h"
#include "host/storage_file.h"
#include "host/vm_directory.h"
#include "host/vm_owner.h"
#include "host/vm_runnable.h"
#include "host/vm_suspended.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TELL_NS (200 * NS_PER_MS) /* how often progress is told */

/* One that is arriving. */
struct arrival {
    struct host *host;
    struct migration *migration;
    struct vm *vm;
    struct storage_disks disks;
    struct disk_writer *writers[DEFINITION_DISKS_MAX + 1]; /* of its parts; NULL: not copied */
    struct disk_writer *writer;                            /* of them, the one that is being filled */
    uint64_t done;                                         /* bytes of those that are filled */
    uint64_t told_ns;
    json_t *marks; /* of mark(), as last recorded */
};

/* --- what it is made of --- */

static int read_disks(struct arrival *arrival, struct ferry_error *err)
{
    return storage_read_all(&arrival->disks, arrival->host, arrival->migration->cold, arrival->vm->definition,
                            err);
}

static bool is_file(const struct arrival *arrival, size_t part)
{
    return part >= arrival->disks.count;
}

static int partial_path(const struct arrival *arrival, const struct storage_disk *disk,
                        char path[static PATH_MAX], struct ferry_error *err)
{
    if (snprintf(path, PATH_MAX, "%s.%.8s.partial", disk->to, arrival->migration->id) >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "the path %.200s is too long", disk->to);
    return 0;
}

/* What is to be removed should it not arrive (vm_directory.h), recorded. With PLACING the files are about to
 * get their names, by which they are to be known again. */
static int mark(struct arrival *arrival, bool placing, struct ferry_error *err)
{
    json_t *list = json_array();
    int result = 0;

    for (size_t i = 0; result == 0 && i < arrival->disks.parts; i++) {
        const struct storage_disk *disk = &arrival->disks.disk[i];
        char partial[PATH_MAX];
        struct stat status;
        json_t *entry;

        if (disk->stays)
            continue;
        result = partial_path(arrival, disk, partial, err);
        if (result == 0 && placing && stat(partial, &status) < 0)
            result = error_set_errno(err, -errno, "%s has gone", partial);
        if (result < 0)
            break;
        entry = json_pack("{s:s, s:s}", "partial", partial, "path", disk->to);
        if (placing) {
            json_object_set_new(entry, "device", json_integer((json_int_t)status.st_dev));
            json_object_set_new(entry, "inode", json_integer((json_int_t)status.st_ino));
        }
        json_array_append_new(list, entry);
    }
    if (result == 0)
        result = vm_directory_mark_disks(arrival->vm, arrival->migration->id, arrival->migration->source,
                                         list, err);
    json_decref(arrival->marks);
    arrival->marks = list;
    return result;
}

static bool is_cancelled(void *opaque)
{
    struct arrival *arrival = opaque;
    bool cancelled;

    host_lock(arrival->host);
    cancelled = arrival->migration->cancelled || arrival->migration->their_outcome || arrival->host->stopping;
    host_unlock(arrival->host);
    return cancelled;
}

/* --- copying --- */

static int make_files(struct arrival *arrival, struct ferry_error *err)
{
    int result = 0;

    for (size_t i = 0; result == 0 && i < arrival->disks.parts; i++) {
        const struct storage_disk *disk = &arrival->disks.disk[i];
        char partial[PATH_MAX];

        if (disk->stays)
            continue;
        result = partial_path(arrival, disk, partial, err);
        if (result == 0)
            result = disk_writer_open(&arrival->writers[i], partial, disk->shape.size, err);
    }
    return result;
}

static void tell(struct arrival *arrival)
{
    struct migration *migration = arrival->migration;
    uint64_t now = clock_now_ns();
    uint64_t done = arrival->done + disk_writer_done(arrival->writer);
    uint64_t total = migration->disk_total;

    if (now - arrival->told_ns < TELL_NS)
        return;
    arrival->told_ns = now;
    host_lock(arrival->host);
    migration->disk_bytes = migration->disk_wire = done;
    host_unlock(arrival->host);
    storage_set_progress(migration, "MIGRATE_FROM_VMX_PRECOPY", 9, "Copy",
                         done >= total ? 99 : (int)((double)done / (double)total * 99));
}

static int take_bytes(void *opaque, const void *data, size_t size, struct ferry_error *err)
{
    struct arrival *arrival = opaque;

    if (is_cancelled(arrival))
        return error_set(err, -ECANCELED, "cancelled while it was copied");
    tell(arrival);
    return disk_writer_write(arrival->writer, data, size, err);
}

static int check_file(const struct arrival *arrival, const struct storage_disk *file, struct ferry_error *err)
{
    char partial[PATH_MAX];
    int result = partial_path(arrival, file, partial, err);

    if (result == 0 && !storage_file_is(partial, cold_text(arrival->migration->cold, "checkpoint")))
        result = error_set(err, -EPROTO, "what came is not what its guest was saved to");
    return result;
}

static int fetch_part(struct arrival *arrival, size_t i, struct ferry_error *err)
{
    struct migration *migration = arrival->migration;
    const struct storage_disk *part = &arrival->disks.disk[i];
    char path[HOST_NAME_SIZE + 96], what[32] = "file";
    int result;

    if (!is_file(arrival, i))
        snprintf(what, sizeof(what), "disks/%zu", i);
    snprintf(path, sizeof(path), "/v1/migrations/%s/%s?to=%s", migration->id, what,
             arrival->host->config->name);
    arrival->writer = arrival->writers[i];
    result = peer_fetch(arrival->host, migration->peer_address, path, migration->encrypted, take_bytes,
                        arrival, err);
    if (result == 0)
        result = disk_writer_finish(arrival->writer, &part->shape, is_cancelled, arrival, err);
    if (result == 0 && is_file(arrival, i))
        result = check_file(arrival, part, err);
    arrival->done += disk_writer_done(arrival->writer);
    return result < 0 ? error_prefix(err, result, "%s %.200s could not be copied",
                                     is_file(arrival, i) ? "file" : "disk", part->from)
                      : 0;
}

static int fetch_all(struct arrival *arrival, struct ferry_error *err)
{
    struct migration *migration = arrival->migration;
    int result = make_files(arrival, err);

    for (size_t i = 0; result == 0 && i < arrival->disks.parts; i++) {
        if (arrival->writers[i])
            result = fetch_part(arrival, i, err);
    }
    host_lock(arrival->host);
    migration->disk_bytes = result == 0 ? migration->disk_total : arrival->done;
    migration->disk_wire = arrival->done;
    migration->disk_end_ns = clock_now_ns();
    host_unlock(arrival->host);
    return result;
}

/* --- waiting for the source's word --- */

static int tell_copied(struct arrival *arrival, struct ferry_error *err)
{
    struct migration *migration = arrival->migration;
    json_t *body = json_pack("{s:s}", "host", arrival->host->config->name);
    char path[80];
    int result;

    host_lock(arrival->host);
    migration->stage = STORAGE_COPIED; /* first: its answer may come before ours */
    host_unlock(arrival->host);
    storage_set_progress(migration, "MIGRATE_FROM_VMX_CHECKPT", 10, "Frozen", 0);
    if (migration->disk_files)
        migration_log(migration, LOG_LEVEL_INFO, "all is on host %s, compared", migration->destination);
    snprintf(path, sizeof(path), "/v1/migrations/%s/copied", migration->id);
    result = migration_call_peer(migration, "POST", path, body, PEER_PROMPT, NULL, err);
    json_decref(body);
    return result;
}

/* It has not said anything for long. */
static int ask_for_life(struct arrival *arrival, struct ferry_error *err)
{
    struct migration *migration = arrival->migration;
    char path[80];
    json_t *object = NULL;
    const char *outcome;
    int result;

    snprintf(path, sizeof(path), "/v1/migrations/%s?local=1", migration->id);
    result = migration_call_peer(migration, "GET", path, NULL, PEER_PROMPT, &object, err);
    outcome = json_string_value(json_object_get(object, "outcome"));
    if (result == 0 && (!outcome || strcmp(outcome, "none") != 0))
        result = error_set(err, HOST_CONFLICT, "host %s has ended the migration", migration->source);
    json_decref(object);
    return result;
}

/* Under the lock: what there is to do now. 1: nothing. */
static int look(const struct arrival *arrival, struct ferry_error *err)
{
    const struct migration *migration = arrival->migration;

    if (migration->stage == STORAGE_TAKEN)
        return 0;
    if (migration->cancelled || arrival->host->stopping)
        return error_set(err, -ECANCELED, "cancelled before the VM was given");
    if (migration->their_outcome)
        return error_set(err, HOST_CONFLICT, "host %s has ended the migration: %.300s", migration->source,
                         migration->their_error);
    return 1;
}

static int await_taken(struct arrival *arrival, struct ferry_error *err)
{
    struct host *host = arrival->host;
    int result = 1;

    host_lock(host);
    while (result == 1) {
        bool woken = true;

        result = look(arrival, err);
        if (result == 1)
            woken = thread_cond_wait_until(&host->changed, &host->lock, clock_deadline(host_peer_ms(host)));
        if (result == 1 && !woken && arrival->migration->stage != STORAGE_TAKEN) {
            int alive;

            host_unlock(host);
            alive = ask_for_life(arrival, err);
            host_lock(host);
            if (alive < 0 && arrival->migration->stage != STORAGE_TAKEN)
                result = alive;
        }
    }
    if (result < 0) /* from here on it cannot be taken any more */
        arrival->migration->stage = STORAGE_NONE;
    host_unlock(host);
    return result;
}

/* --- taking it --- */

/* Its name has the save's id in it, and it is this ferryd's: what there is was left by an earlier move. */
static int name_file(const char *partial, const char *path, struct ferry_error *err)
{
    if (rename(partial, path) < 0)
        return error_set_errno(err, -errno, "cannot make %s", path);
    host_sync_directory(path);
    return 0;
}

/* All files have their names, and the VM its lock. */
static int place(struct arrival *arrival, struct ferry_error *err)
{
    const struct storage_disk *first = storage_lock_disk(&arrival->disks);
    int result = mark(arrival, true, err);

    for (size_t i = 0; result == 0 && i < arrival->disks.parts; i++) {
        char partial[PATH_MAX];

        if (!arrival->writers[i])
            continue;
        result = partial_path(arrival, &arrival->disks.disk[i], partial, err);
        if (result == 0 && is_file(arrival, i))
            result = name_file(partial, arrival->disks.disk[i].to, err);
        else if (result == 0)
            result = host_rename_new(partial, arrival->disks.disk[i].to, err);
    }
    if (result == 0 && first && arrival->migration->generation)
        result = vm_owner_carry(arrival->host, arrival->vm->definition, arrival->migration->generation,
                                arrival->migration->source, err);
    return result;
}

/* From its end on the VM is this host's, also for the next ferryd. */
static int settle(struct arrival *arrival, struct ferry_error *err)
{
    struct host *host = arrival->host;
    struct migration *migration = arrival->migration;
    struct vm *vm = arrival->vm;
    char why[128];
    int result;

    snprintf(why, sizeof(why), "it did not run when it moved here from host %s", migration->source);
    result = vm_directory_leave_exit(vm, why, err);
    if (result < 0)
        return result;
    if (arrival->disks.file[0])
        vm_set_suspended(host, vm, arrival->disks.file, cold_text(migration->cold, "checkpoint"));
    vm_lift_ban(host, vm);
    result = vm_directory_arrived_for_good(vm, err);
    if (result < 0)
        return result;
    host_lock(host);
    if (!arrival->disks.file[0]) {
        vm->state = VM_STATE_STOPPED;
        snprintf(vm->why, sizeof(vm->why), "%s", why);
    }
    host_unlock(host);
    return 0;
}

static void close_writers(struct arrival *arrival)
{
    for (size_t i = 0; i < arrival->disks.parts; i++) {
        disk_writer_close(arrival->writers[i]);
        arrival->writers[i] = NULL;
    }
}

/* It ran at the source: it goes on, or nothing of it is left here. */
static int resume(struct arrival *arrival, struct ferry_error *err)
{
    struct host *host = arrival->host;
    char name[HOST_NAME_SIZE];
    bool dropped = false;
    int result;

    snprintf(name, sizeof(name), "%s", arrival->vm->name);
    migration_release_vm(arrival->migration);
    vm_release(host, arrival->vm);
    arrival->vm = NULL;
    result = cold_resume_arrived(host, arrival->migration->cold, name, &dropped, err);
    if (dropped)
        vm_directory_drop_disks_of(arrival->marks);
    return result;
}

/* --- the job --- */

static int arrive(struct arrival *arrival, struct ferry_error *err)
{
    int result = read_disks(arrival, err);

    if (result == 0)
        result = mark(arrival, false, err); /* what is shared may have changed since */
    if (result == 0)
        result = fetch_all(arrival, err);
    if (result == 0)
        result = tell_copied(arrival, err);
    if (result == 0)
        result = await_taken(arrival, err);
    if (result == 0)
        result = place(arrival, err);
    if (result == 0)
        result = settle(arrival, err);
    close_writers(arrival);
    if (result == 0 && json_is_true(json_object_get(arrival->migration->cold, "resume")))
        result = resume(arrival, err);
    return result;
}

static const char *cause_of(int result)
{
    switch (result) {
    case -ECANCELED:
        return "cancelled";
    case HOST_UNREACHABLE:
    case -ETIMEDOUT:
    case -EPROTO:
    case -EBADMSG:
        return "network";
    case -ENOSPC:
    case -EIO:
    case -EDQUOT:
        return "storage";
    default:
        return "internal";
    }
}

static void end_failed(struct arrival *arrival, int result, const char *error)
{
    struct migration *migration = arrival->migration;
    const char *outcome = result == -ECANCELED ? "cancelled" : "failed";

    migration_log(migration, LOG_LEVEL_ERROR, "cold migration of VM %s from host %s %s: %s",
                  migration->vm_name, migration->source, outcome, error);
    migration_release_vm(migration);
    if (arrival->vm) {
        vm_drop(arrival->host, arrival->vm); /* and what was arriving with it */
        vm_release(arrival->host, arrival->vm);
    }
    agreement_tell(migration, outcome, cause_of(result), error);
    events_emit(arrival->host, EVENT_MIGRATION_FAILED, migration->vm_name, migration->machine, migration->id,
                "cold migration of VM %s from host %s to host %s %s: %s", migration->vm_name,
                migration->source, migration->destination, outcome, error);
    migration_end(migration, outcome, cause_of(result), error);
}

void storage_run(struct migration *migration)
{
    struct host *host = migration->host;
    struct arrival *arrival = calloc(1, sizeof(*arrival));
    struct ferry_error err = {0};
    int result;

    if (!arrival) {
        migration_end(migration, "failed", "internal", "out of memory");
        return;
    }
    arrival->host = host;
    arrival->migration = migration;
    arrival->vm = migration->vm;
    result = arrive(arrival, &err);
    if (result < 0 && host_stopping(host)) {
        if (arrival->vm)
            vm_release(host, arrival->vm); /* the next ferryd removes what there is */
    } else if (result < 0) {
        end_failed(arrival, result, err.text);
    } else {
        if (arrival->vm) {
            migration_release_vm(migration);
            vm_release(host, arrival->vm);
        }
        cold_tell_arrived(migration);
    }
    json_decref(arrival->marks);
    free(arrival);
}

/* --- its begin --- */

static void answer_disks(struct migration *migration, const struct storage_disks *disks, json_t *answer)
{
    bool ran = json_is_true(json_object_get(migration->cold, "resume"));
    json_t *copied = json_array();
    json_t *files = json_array();
    json_t *storage = json_pack("{s:I, s:o}", "bytes", (json_int_t)storage_bytes(disks), "disks", copied);

    for (size_t i = 0; i < disks->count; i++)
        json_array_append_new(copied, json_boolean(!disks->disk[i].stays));
    if (disks->parts > disks->count)
        json_object_set_new(storage, "file", fields_text(disks->file));
    json_object_set_new(answer, "storage", storage);
    for (size_t i = 0; i < disks->parts; i++) {
        const struct storage_disk *part = &disks->disk[i];

        /* The file of one that ran does not stay at the source. */
        if (!part->stays && (i < disks->count || !ran))
            json_array_append_new(files, json_pack("{s:o, s:o}", "source", fields_text(part->from),
                                                   "destination", fields_text(part->to)));
    }
    migration->disk_files = disks->parts > 0 ? json_incref(files) : NULL;
    json_decref(files);
    migration->disk_total = storage_bytes(disks);
    migration->disk_begin_ns = clock_now_ns();
}

/* VM is claimed, and the job's from the start on. */
static int begin(struct migration *migration, struct vm *vm, json_t *answer, struct ferry_error *err)
{
    struct host *host = migration->host;
    struct arrival arrival = {.host = host, .migration = migration, .vm = vm};
    int result = read_disks(&arrival, err);

    if (result == 0)
        result = mark(&arrival, false, err);
    json_decref(arrival.marks);
    if (result < 0)
        return result;
    answer_disks(migration, &arrival.disks, answer);
    host_lock(host);
    migration->stage = STORAGE_COPYING;
    vm->refs++;
    vm->listed = true;
    host_unlock(host);
    migration_register(migration, vm);
    migration_record(migration);
    events_emit(host, EVENT_MIGRATION_IN_STARTED, vm->name, migration->machine, migration->id,
                "cold migration of VM %s%s from host %s to host %s started", vm->name,
                storage_moves(migration->cold) ? " with its disks" : "", migration->source,
                migration->destination);
    result = migration_start_job(migration, err);
    if (result < 0) {
        migration_release_vm(migration);
        migration_end(migration, "failed", "internal", err->text);
    }
    return result;
}

int storage_receive(struct host *host, const struct migration_offer *offer, const json_t *definition,
                    json_t *answer, struct ferry_error *err)
{
    struct migration *migration =
        migration_new(host, offer->id, definition_name(definition), definition_machine(definition),
                      offer->source, host->config->name);
    struct vm *vm = NULL;
    int result;

    if (!migration)
        return error_set(err, -ENOMEM, "out of memory");
    migration->cold = json_deep_copy(offer->cold);
    migration->encrypted = offer->tls;
    peers_find(host, offer->source, migration->peer_address, NULL);
    result = vm_make(host, definition, "arriving", true, &vm, err);
    if (result == 0)
        result = begin(migration, vm, answer, err);
    if (result < 0 && vm) {
        vm_drop(host, vm);
        vm_release(host, vm);
    }
    if (result < 0)
        error_prefix(err, HOST_REFUSED, "VM %s cannot be set up on host %s", definition_name(definition),
                     host->config->name);
    migration_unref(migration);
    return result < 0 ? HOST_REFUSED : 0;
}

/* --- the source's word --- */

int storage_take(struct host *host, const char *id, const char *from, uint64_t generation,
                 struct ferry_error *err)
{
    struct migration *migration;
    int result = 0;

    host_lock(host);
    migration = migration_find(host, id);
    if (!migration || migration->outgoing || strcmp(migration->source, from) != 0 ||
        migration->stage != STORAGE_COPIED || migration->ended || migration->cancelled) {
        host_unlock(host);
        return error_set(err, HOST_REFUSED, "host %s has no VM of migration %.64s to take",
                         host->config->name, id);
    }
    migration->refs++;
    migration->generation = generation;
    migration->stage = STORAGE_TAKEN;
    migration_touch(migration);
    while (!migration->ended && !host->stopping)
        pthread_cond_wait(&host->changed, &host->lock);
    if (!migration->ended)
        result = error_set(err, HOST_UNREACHABLE, "host %s is stopping", host->config->name);
    else if (strcmp(migration->outcome, "completed") != 0)
        result = error_set(err, HOST_REFUSED, "%s", migration->error);
    host_unlock(host);
    migration_unref(migration);
    return result;
}
