#include "host/storage_copy.h"

#include "base/error.h"
#include "engine/pace.h"
#include "host/agreement.h"
#include "host/fields.h"
#include "host/migration_cold.h"
#include "host/migration_queue.h"
#include "host/peers.h"
#include "host/storage.h"
#include "host/storage_file.h"
#include "host/vm_runnable.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOOK_MS 200 /* how often progress is told */

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

/* --- both sides --- */

bool storage_may_cancel(const struct migration *migration)
{
    return !migration->ended && (migration->stage == STORAGE_COPYING || migration->stage == STORAGE_COPIED);
}

static uint64_t rate_of(const struct migration *migration)
{
    uint64_t until = migration->disk_end_ns ? migration->disk_end_ns : clock_now_ns();
    double seconds = (double)(until - migration->disk_begin_ns) / (double)NS_PER_S;

    return seconds > 0 ? (uint64_t)((double)migration->disk_bytes / seconds) : 0;
}

json_t *storage_object(const struct migration *migration)
{
    if (!migration->disk_files)
        return NULL;
    return json_pack("{s:I, s:I, s:I, s:O}", "total_bytes", (json_int_t)migration->disk_total, "bytes",
                     (json_int_t)migration->disk_bytes, "rate", (json_int_t)rate_of(migration), "files",
                     migration->disk_files);
}

void storage_set_progress(struct migration *migration, const char *state, int number, const char *phase,
                          int percent)
{
    uint64_t total, done, rate;
    json_t *progress;

    host_lock(migration->host);
    total = migration->disk_total;
    done = migration->disk_bytes < total ? migration->disk_bytes : total;
    rate = migration->disk_files ? rate_of(migration) : 0;
    progress = json_pack("{s:s, s:i, s:s, s:i, s:I, s:I, s:I, s:I, s:I}", "state", state, "state_number",
                         number, "phase", phase, "percent", percent, "total_ns",
                         (json_int_t)(clock_realtime_ns() - migration->started_ns), "remaining_bytes",
                         (json_int_t)(total - done), "bandwidth", (json_int_t)rate, "copy_rate",
                         (json_int_t)rate, "wire_bytes", (json_int_t)migration->disk_wire);
    json_decref(migration->progress);
    migration->progress = progress;
    migration_touch(migration);
    host_unlock(migration->host);
}

/* --- the job: copying --- */

/* What the destination copies, as its answer says. */
static int take_answer(struct migration *migration, const json_t *answer, struct ferry_error *err)
{
    json_t *storage = json_object_get(answer, "storage");
    json_t *copied = json_object_get(storage, "disks");
    json_t *there = storage_definition(migration->vm->definition, migration->storage);
    json_t *disks = storage_moves(migration->cold) ? definition_disks(migration->vm->definition) : NULL;
    const char *file = text_of(storage, "file");
    json_t *files = json_array();
    json_int_t bytes = json_integer_value(json_object_get(storage, "bytes"));
    int result = 0;

    if (json_array_size(copied) != json_array_size(disks) || bytes < 0)
        result = error_set(err, -EPROTO, "host %s makes no sense: it does not say what it copies",
                           migration->destination);
    for (size_t i = 0; result == 0 && i < json_array_size(disks); i++) {
        if (json_is_true(json_array_get(copied, i)))
            json_array_append_new(
                files, json_pack("{s:s, s:s}", "source", text_of(json_array_get(disks, i), "path"),
                                 "destination", text_of(json_array_get(definition_disks(there), i), "path")));
    }
    if (file[0] && !migration->saving[0]) /* of one that ran it does not stay here */
        json_array_append_new(files, json_pack("{s:o, s:o}", "source",
                                               fields_text(cold_text(migration->cold, "file")), "destination",
                                               fields_text(file)));
    host_lock(migration->host);
    if (disks || file[0])
        migration->disk_files = json_incref(files);
    migration->disk_total = (uint64_t)bytes;
    host_unlock(migration->host);
    json_decref(files);
    json_decref(there);
    return result;
}

/* Under the lock: 1: it goes on; 0: all is there; else why it does not. */
static int look(struct migration *migration, struct ferry_error *err)
{
    const char *theirs = migration->their_outcome;

    if (migration->stage == STORAGE_COPIED)
        return 0;
    if (migration->host->stopping)
        return error_set(err, -ECANCELED, "ferryd is stopping");
    if (migration->cancelled || (theirs && strcmp(theirs, "cancelled") == 0))
        return error_set(err, -ECANCELED, "cancelled while it was copied");
    if (migration->disk_error[0])
        return error_set(err, -EIO, "%s", migration->disk_error);
    if (theirs)
        return error_set(err, -EIO, "host %s says: %.400s", migration->destination, migration->their_error);
    return 1;
}

/* It has taken nothing for long, and may be comparing what it has written: lives it? */
static int ask_for_life(struct migration *migration, struct ferry_error *err)
{
    char path[80];
    json_t *object = NULL;
    const char *outcome;
    int result;

    snprintf(path, sizeof(path), "/v1/migrations/%s?local=1", migration->id);
    result = migration_call_peer(migration, "GET", path, NULL, PEER_PROMPT, &object, err);
    outcome = text_of(object, "outcome");
    if (result < 0 && !host_stopping(migration->host))
        result = error_prefix(err, -ECONNRESET, "it could not be copied");
    else if (result == 0 && strcmp(outcome, "none") != 0)
        result =
            error_set(err, -EIO, "host %s says: %.400s", migration->destination, text_of(object, "error"));
    json_decref(object);
    return result;
}

static int percent_of(const struct migration *migration)
{
    uint64_t done = migration->disk_bytes, total = migration->disk_total;

    return total == 0 || done >= total ? 99 : (int)((double)done / (double)total * 99);
}

static int await_copied(struct migration *migration, struct ferry_error *err)
{
    struct host *host = migration->host;
    int result;

    for (;;) {
        uint64_t told;
        bool silent;

        host_lock(host);
        result = look(migration, err);
        told = migration->disk_bytes;
        if (result == 1)
            thread_cond_wait_until(&host->changed, &host->lock, clock_deadline(LOOK_MS));
        silent = clock_now_ns() - migration->heard_ns > host->config->peer_timeout_ns;
        host_unlock(host);
        if (result != 1)
            return result;
        if (told != migration->disk_bytes)
            storage_set_progress(migration, "MIGRATE_TO_VMX_PRECOPY", 2, "Copy", percent_of(migration));
        if (silent) {
            result = ask_for_life(migration, err);
            if (result < 0)
                return result;
            host_lock(host);
            migration->heard_ns = clock_now_ns();
            host_unlock(host);
        }
    }
}

static int ask_to_copy(struct migration *migration, struct ferry_error *err)
{
    json_t *body = migration_offer_body(migration, migration->vm->definition, false);
    json_t *answer = NULL;
    int result = migration_call_peer(migration, "POST", "/v1/incoming", body, PEER_LONG, &answer, err);

    json_decref(body);
    if (result == HOST_UNREACHABLE || result == -ETIMEDOUT) /* nothing was given away */
        result = error_prefix(err, -ECONNRESET, "it could not be copied");
    if (result == 0)
        result = take_answer(migration, answer, err);
    json_decref(answer);
    if (result == 0)
        migration_record(migration); /* with what is copied, for the next ferryd */
    if (result == 0 && migration->disk_files)
        migration_log(migration, LOG_LEVEL_INFO, "host %s copies %zu files, %.1f MiB%s",
                      migration->destination, json_array_size(migration->disk_files),
                      (double)migration->disk_total / (1 << 20), migration->encrypted ? ", encrypted" : "");
    return result;
}

int storage_send(struct migration *migration, struct ferry_error *err)
{
    struct host *host = migration->host;
    int result;

    host_lock(host);
    migration->stage = STORAGE_COPYING;
    migration->disk_begin_ns = migration->heard_ns = clock_now_ns();
    host_unlock(host);
    storage_set_progress(migration, "MIGRATE_TO_VMX_PRECOPY", 2, "Copy", 0);
    result = ask_to_copy(migration, err);
    if (result == 0)
        result = await_copied(migration, err);
    host_lock(host);
    if (result == 0 && migration->cancelled)
        result = error_set(err, -ECANCELED, "cancelled while it was copied");
    /* It gets nothing any more; and it is too late to cancel, or over. */
    migration->stage = result == 0 ? STORAGE_TAKEN : STORAGE_NONE;
    if (result == 0)
        migration->disk_bytes = migration->disk_total; /* not what blocks have beside it */
    migration->disk_end_ns = clock_now_ns();
    shares_update(host);
    host_unlock(host);
    if (result == 0 && migration->disk_files)
        migration_log(migration, LOG_LEVEL_INFO, "all is on host %s, compared", migration->destination);
    return result;
}

/* --- the job: the moment of giving --- */

/* Whether the other host certainly does not have the VM. */
static bool is_refusal(int result)
{
    return result == HOST_REFUSED || result == HOST_CONFLICT || result == HOST_NOT_FOUND ||
           result == HOST_USAGE || result == -ENOMEM;
}

static int say_handover(const struct migration *migration, struct vm_lock *lock,
                        const struct vm_lock_record *before, struct ferry_error *err)
{
    struct vm_lock_record record = *before;

    record.state = VM_LOCK_HANDOVER;
    record.copied = true;
    record.generation = before->generation ? before->generation : 1;
    record.pid = getpid();
    snprintf(record.vm, sizeof(record.vm), "%s", migration->vm_name);
    snprintf(record.holder, sizeof(record.holder), "%s", migration->source);
    snprintf(record.source, sizeof(record.source), "%s", migration->source);
    snprintf(record.destination, sizeof(record.destination), "%s", migration->destination);
    snprintf(record.migration, sizeof(record.migration), "%s", migration->id);
    return vm_lock_write(lock, &record, err);
}

/* The VM is here for certain, and nobody had these disks: as if nothing had been. */
static void take_back(struct migration *migration, struct vm_lock *lock, const struct vm_lock_record *before)
{
    struct vm_lock_record record = *before;
    struct ferry_error err;

    if (before->state == VM_LOCK_NEW) { /* an empty file cannot be written again */
        say_handover(migration, lock, before, NULL);
        vm_lock_read(lock, &record, NULL);
        record.state = VM_LOCK_HELD;
        record.destination[0] = record.source[0] = record.migration[0] = '\0';
    }
    if (lock && vm_lock_write(lock, &record, &err) < 0)
        migration_log(migration, LOG_LEVEL_ERROR, "the VM is here, but its lock cannot say so: %s", err.text);
    vm_lift_ban(migration->host, migration->vm);
}

static int call_take(struct migration *migration, const struct vm_lock_record *before,
                     struct ferry_error *err)
{
    char path[80];
    const char *there;
    json_t *body =
        json_pack("{s:s, s:I}", "host", migration->source, "generation", (json_int_t)before->generation);
    int result;

    snprintf(path, sizeof(path), "/v1/incoming/%s/take", migration->id);
    result = migration_call_peer(migration, "POST", path, body, PEER_LONG, NULL, err);
    json_decref(body);
    if (result == 0 || is_refusal(result) || host_stopping(migration->host))
        return result;
    there = agreement_ask(migration, host_vm_ms(migration->host));
    if (there && strcmp(there, "completed") == 0)
        return 0;
    return there && agreement_stayed(there)
               ? error_prefix(err, HOST_REFUSED, "host %s did not take it", migration->destination)
               : HOST_UNREACHABLE;
}

int storage_give(struct migration *migration, struct vm_lock *lock, struct ferry_error *err)
{
    struct vm_lock_record before = {0};
    struct vm_ban ban;
    int result = lock ? vm_lock_read(lock, &before, err) : 0;

    if (result < 0)
        return result;
    vm_ban_by_migration(&ban, migration->destination, migration->id, "unknown",
                        "it is being moved, and does not run meanwhile");
    vm_set_ban(migration->host, migration->vm, &ban);
    storage_set_progress(migration, "MIGRATE_TO_VMX_WAIT_HANDSHAKE", 4, "Frozen", 90);
    /* Before the other host may have it: from then on nobody runs it from the disks here. */
    if (lock && storage_moves_lock(migration->cold, migration->vm->definition))
        result = say_handover(migration, lock, &before, err);
    else
        lock = NULL; /* where it is, both hosts look */
    if (result == 0)
        result = call_take(migration, &before, err);
    else
        result = error_prefix(err, HOST_REFUSED, "the lock of the VM cannot be written");
    if (is_refusal(result)) {
        if (lock)
            take_back(migration, lock, &before);
        else
            vm_lift_ban(migration->host, migration->vm);
    }
    return result;
}

/* --- serving --- */

struct storage_stream {
    struct migration *migration;
    struct disk_reader *reader;
    struct pace pace; /* by the migration's share, as it changes */
    bool failed;
};

/* Under the lock: that of migration ID that goes to TO and is being copied; NULL with err. */
static struct migration *find(struct host *host, const char *id, const char *to, struct ferry_error *err)
{
    struct migration *migration = migration_find(host, id);

    if (migration && migration->outgoing && migration->vm && migration->stage == STORAGE_COPYING &&
        strcmp(migration->destination, to) == 0)
        return migration;
    error_set(err, HOST_CONFLICT, "host %s copies nothing to host %s for migration %.64s", host->config->name,
              to, id);
    return NULL;
}

/* "": there is none that moves along. */
static const char *path_of(const struct migration *migration, uint64_t index)
{
    if (index == STORAGE_FILE)
        return storage_file_moves(migration->cold) ? cold_text(migration->cold, "file") : "";
    if (!storage_moves(migration->cold))
        return "";
    return text_of(json_array_get(definition_disks(migration->vm->definition), (size_t)index), "path");
}

/* From here on it has its share of the bandwidth, and those that send already less. */
static void begin_sending(struct migration *migration)
{
    struct host *host = migration->host;

    host_lock(host);
    if (!migration->sending) {
        migration->sending = true;
        shares_update(host);
    }
    host_unlock(host);
    shares_settle(migration);
}

int storage_stream_open(struct storage_stream **out, struct host *host, const char *id, uint64_t index,
                        const char *to, struct ferry_error *err)
{
    struct storage_stream *stream = calloc(1, sizeof(*stream));
    char path[PATH_MAX] = "";
    int result = 0;

    if (!stream)
        return error_set(err, -ENOMEM, "out of memory");
    host_lock(host);
    stream->migration = find(host, id, to, err);
    if (stream->migration) {
        stream->migration->refs++;
        snprintf(path, sizeof(path), "%s", path_of(stream->migration, index));
    }
    host_unlock(host);
    if (!stream->migration)
        result = HOST_CONFLICT;
    else if (!path[0])
        result = index == STORAGE_FILE
                     ? error_set(err, HOST_NOT_FOUND, "VM %s has no file", stream->migration->vm_name)
                     : error_set(err, HOST_NOT_FOUND, "VM %s moves without a disk %llu",
                                 stream->migration->vm_name, (unsigned long long)index);
    if (result == 0)
        result = disk_reader_open(&stream->reader, path, err);
    if (result < 0) {
        migration_unref(stream->migration);
        free(stream);
        return result;
    }
    begin_sending(stream->migration);
    pace_init(&stream->pace, &stream->migration->share, host->stop_fd);
    *out = stream;
    return 0;
}

/* What has gone by, for progress. False: nobody wants it any more. */
static bool note(struct storage_stream *stream, uint64_t bytes, size_t wire)
{
    struct migration *migration = stream->migration;
    bool wanted;

    host_lock(migration->host);
    migration->disk_bytes += bytes;
    migration->disk_wire += wire;
    migration->heard_ns = clock_now_ns();
    wanted = migration->stage == STORAGE_COPYING && !migration->cancelled;
    host_unlock(migration->host);
    return wanted;
}

static void note_failure(struct storage_stream *stream, const struct ferry_error *err)
{
    struct migration *migration = stream->migration;

    stream->failed = true;
    host_lock(migration->host);
    snprintf(migration->disk_error, sizeof(migration->disk_error), "%s", err->text);
    migration_touch(migration);
    host_unlock(migration->host);
}

size_t storage_stream_fill(void *opaque, char *buffer, size_t size)
{
    struct storage_stream *stream = opaque;
    uint64_t before = disk_reader_done(stream->reader);
    struct ferry_error err = {0};
    size_t count = 0;
    ssize_t got;

    if (stream->failed || pace_take(&stream->pace, size, &count, &err) < 0)
        return 0;
    got = disk_reader_read(stream->reader, buffer, count, &err);
    if (got < 0)
        note_failure(stream, &err);
    if (!note(stream, disk_reader_done(stream->reader) - before, got > 0 ? (size_t)got : 0))
        return 0;
    return got > 0 ? (size_t)got : 0;
}

void storage_stream_free(void *opaque)
{
    struct storage_stream *stream = opaque;

    disk_reader_close(stream->reader);
    pace_destroy(&stream->pace);
    migration_unref(stream->migration);
    free(stream);
}

int storage_copied(struct host *host, const char *id, const char *from, struct ferry_error *err)
{
    struct migration *migration;

    host_lock(host);
    migration = find(host, id, from, err);
    if (migration) {
        migration->stage = STORAGE_COPIED;
        shares_update(host);
        migration_touch(migration);
    }
    host_unlock(host);
    return migration ? 0 : HOST_CONFLICT;
}
