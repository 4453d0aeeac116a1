#include "host/checkpoint.h"

#include "base/error.h"
#include "host/definition.h"
#include "host/events.h"
#include "host/fields.h"
#include "host/vm_directory.h"
#include "host/vm_owner.h"
#include "host/vm_suspended.h"
#include "host/vms.h"

#include <ferry/checkpoint.h>

#include <stdlib.h>
#include <string.h>

#define ENDED_MAX 32 /* saves that are remembered after their end */

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

static const char *kind_of(const struct saving *saving)
{
    return saving->suspends ? "suspend" : "snapshot";
}

/* --- the list of them --- */

static struct saving *saving_new(struct host *host, const char *id, struct vm *vm, const char *file,
                                 bool suspends)
{
    struct saving *saving = calloc(1, sizeof(*saving));

    if (!saving)
        return NULL;
    saving->host = host;
    saving->refs = 1;
    saving->outcome = "none";
    saving->suspends = suspends;
    saving->started_ns = clock_realtime_ns();
    snprintf(saving->id, sizeof(saving->id), "%s", id);
    snprintf(saving->vm_name, sizeof(saving->vm_name), "%s", vm->name);
    snprintf(saving->machine, sizeof(saving->machine), "%s", definition_machine(vm->definition));
    snprintf(saving->file, sizeof(saving->file), "%s", file);
    host_lock(host);
    vm->refs++;
    host_unlock(host);
    saving->vm = vm;
    return saving;
}

static void saving_unref(struct saving *saving)
{
    struct host *host = saving->host;
    bool last;

    host_lock(host);
    last = --saving->refs == 0;
    host_unlock(host);
    if (!last)
        return;
    vm_unref(host, saving->vm);
    json_decref(saving->progress);
    free(saving);
}

static struct saving *saving_find(struct host *host, const char *id)
{
    for (struct saving *saving = host->savings; saving; saving = saving->next) {
        if (strcmp(saving->id, id) == 0)
            return saving;
    }
    return NULL;
}

/* Under the lock. */
static void touch(struct saving *saving)
{
    saving->version++;
    host_changed(saving->host);
}

/* On the list, and its VM is being saved from now on. */
static void saving_register(struct saving *saving)
{
    struct host *host = saving->host;

    host_lock(host);
    saving->vm->saving = saving;
    saving->next = host->savings;
    host->savings = saving;
    saving->refs += 2;
    touch(saving);
    host_unlock(host);
}

static void release_vm(struct saving *saving)
{
    struct host *host = saving->host;
    bool held;

    host_lock(host);
    held = saving->vm->saving == saving;
    if (held)
        saving->vm->saving = NULL;
    touch(saving);
    host_unlock(host);
    if (held)
        saving_unref(saving);
}

/* Off the list again, as if it had never been. */
static void saving_unregister(struct saving *saving)
{
    struct host *host = saving->host;
    bool found = false;

    release_vm(saving);
    host_lock(host);
    for (struct saving **link = &host->savings; *link; link = &(*link)->next) {
        if (*link == saving) {
            *link = saving->next;
            found = true;
            break;
        }
    }
    host_unlock(host);
    if (found)
        saving_unref(saving);
}

void checkpoints_reap(struct host *host, bool all)
{
    struct saving *done = NULL;
    unsigned kept = 0;

    host_lock(host);
    for (struct saving **link = &host->savings; *link;) {
        struct saving *saving = *link;

        if (!all && (!saving->ended || ++kept <= ENDED_MAX)) {
            link = &saving->next;
            continue;
        }
        *link = saving->next;
        saving->next = done;
        done = saving;
    }
    host_unlock(host);
    while (done) {
        struct saving *next = done->next;

        thread_join(&done->thread);
        release_vm(done);
        saving_unref(done);
        done = next;
    }
}

int checkpoint_check_idle(const struct vm *vm, struct ferry_error *err)
{
    const struct saving *saving = vm->saving;

    if (!saving)
        return 0;
    return error_set(err, -EBUSY,
                     "VM %s is being saved to %.300s (%s %.8s); wait for it, or cancel it first: ferry "
                     "cancel %s",
                     vm->name, saving->file, kind_of(saving), saving->id, vm->name);
}

/* --- objects --- */

static const char *const told_numbers[] = {"percent",     "memory_bytes", "remaining_bytes", "bytes",
                                           "bytes_per_s", "pages",        "zero_pages",      "rounds",
                                           "total_ns",    "stopped_ns"};

/* Under the lock. New reference. */
static json_t *saving_object(const struct saving *saving)
{
    json_t *object =
        json_pack("{s:s, s:s, s:s, s:s, s:o, s:s, s:o}", "id", saving->id, "vm", saving->vm_name, "host",
                  saving->host->config->name, "kind", kind_of(saving), "file", fields_text(saving->file),
                  "outcome", saving->outcome, "error", fields_text(saving->error));

    for (size_t i = 0; i < sizeof(told_numbers) / sizeof(told_numbers[0]); i++) {
        json_t *told = json_object_get(saving->progress, told_numbers[i]);

        json_object_set_new(object, told_numbers[i],
                            json_is_integer(told) ? json_incref(told) : json_integer(0));
    }
    json_object_set_new(object, "phase", fields_text(text_of(saving->progress, "phase")));
    migration_set_time(object, "started", saving->started_ns);
    migration_set_time(object, "ended", saving->ended_ns);
    return object;
}

json_t *checkpoints_list(struct host *host)
{
    json_t *list = json_array();

    host_lock(host);
    for (struct saving *saving = host->savings; saving; saving = saving->next)
        json_array_append_new(list, saving_object(saving));
    host_unlock(host);
    return list;
}

int checkpoint_resolve(struct host *host, const char *prefix, char id[static MIGRATION_ID_SIZE],
                       struct ferry_error *err)
{
    unsigned found = 0;

    host_lock(host);
    for (struct saving *saving = host->savings; saving && prefix[0]; saving = saving->next) {
        if (strncmp(saving->id, prefix, strlen(prefix)) != 0)
            continue;
        snprintf(id, MIGRATION_ID_SIZE, "%s", saving->id);
        found++;
    }
    host_unlock(host);
    if (found == 0)
        return error_set(err, HOST_NOT_FOUND, "host %s knows of no snapshot or suspend %.64s",
                         host->config->name, prefix);
    if (found > 1)
        return error_set(err, HOST_CONFLICT, "more than one save begins with %.36s; give more of its id",
                         prefix);
    return 0;
}

int checkpoint_show(struct host *host, const char *id, json_t **answer, struct ferry_error *err)
{
    struct saving *saving;

    host_lock(host);
    saving = saving_find(host, id);
    *answer = saving ? saving_object(saving) : NULL;
    host_unlock(host);
    return saving ? 0
                  : error_set(err, HOST_NOT_FOUND, "host %s knows of no snapshot or suspend %.64s",
                              host->config->name, id);
}

int checkpoint_watch(struct host *host, const char *id, unsigned *seen, uint64_t deadline, json_t **answer,
                     bool *ended, struct ferry_error *err)
{
    struct saving *saving;

    *answer = NULL;
    *ended = false;
    host_lock(host);
    saving = saving_find(host, id);
    if (saving) {
        saving->refs++;
        while (saving->version == *seen && !saving->ended && !host->stopping) {
            if (!thread_cond_wait_until(&host->changed, &host->lock, deadline))
                break;
        }
        if (saving->version != *seen || saving->ended) {
            *seen = saving->version;
            *answer = saving_object(saving);
            *ended = saving->ended;
        }
    }
    host_unlock(host);
    if (!saving)
        return error_set(err, HOST_NOT_FOUND, "host %s knows of no snapshot or suspend %.64s",
                         host->config->name, id);
    saving_unref(saving);
    return 0;
}

/* --- what ferry-vm tells --- */

static bool is_final(const json_t *word)
{
    const char *outcome = text_of(word, "outcome");

    return outcome[0] && strcmp(outcome, "none") != 0;
}

/* Under the lock. */
static void take_word(struct saving *saving, const json_t *word)
{
    if (saving->told_final)
        return;
    json_decref(saving->progress);
    saving->progress = json_incref((json_t *)word);
    saving->told_final = is_final(word);
    touch(saving);
}

void checkpoint_told(struct vm_process *process, const json_t *params)
{
    struct host *host = process->host;
    const char *id = text_of(params, "id");

    host_lock(host);
    if (process->vm->saving && strcmp(process->vm->saving->id, id) == 0)
        take_word(process->vm->saving, params);
    host_unlock(host);
}

/* For when words were lost. False: the process answered, and knows nothing of this save. */
static bool ask(struct saving *saving)
{
    struct host *host = saving->host;
    struct vm_process *process = vm_process_get(host, saving->vm);
    json_t *status = NULL;
    bool known = true;

    if (process && vm_process_call(process, "status", NULL, host_vm_ms(host), &status, NULL) == 0) {
        const json_t *word = json_object_get(status, "checkpoint");

        known = strcmp(text_of(word, "id"), saving->id) == 0;
        if (known)
            checkpoint_told(process, word);
    }
    json_decref(status);
    vm_process_unref(process);
    return known;
}

/* --- the job --- */

/* False: the host stops. Then the next ferryd takes it up. */
static bool await_end(struct saving *saving, bool *known)
{
    struct host *host = saving->host;
    bool over;

    host_lock(host);
    while (*known && !saving->told_final && saving->vm->process && !host->stopping) {
        unsigned version = saving->version;

        if (!thread_cond_wait_until(&host->changed, &host->lock, clock_deadline(host_vm_ms(host))) &&
            saving->version == version) {
            host_unlock(host);
            *known = ask(saving);
            host_lock(host);
        }
    }
    over = saving->told_final || !saving->vm->process || !*known;
    host_unlock(host);
    return over;
}

static void end(struct saving *saving, const char *outcome, const char *error)
{
    struct host *host = saving->host;

    vm_directory_saved(saving->vm);
    host_lock(host);
    saving->outcome = outcome;
    snprintf(saving->error, sizeof(saving->error), "%s", error);
    saving->ended_ns = clock_realtime_ns();
    host_unlock(host);
    release_vm(saving);
    host_lock(host);
    saving->ended = true;
    touch(saving);
    host_unlock(host);
}

static void end_failed(struct saving *saving, const char *outcome, const char *error)
{
    bool cancelled = strcmp(outcome, "cancelled") == 0;

    events_emit(saving->host, cancelled ? EVENT_CHECKPOINT_CANCELLED : EVENT_CHECKPOINT_FAILED,
                saving->vm_name, saving->machine, NULL, "%s %s of VM %s to %s %s%s%s", kind_of(saving),
                saving->id, saving->vm_name, saving->file, outcome, error[0] ? ": " : "", error);
    end(saving, outcome, error);
}

/* The guest is in the file and stopped for good: its process has nothing left to do. */
static bool await_process(struct saving *saving)
{
    struct host *host = saving->host;
    struct vm_process *process;

    if (vm_wait_gone(host, saving->vm, clock_deadline(host_start_ms(host))))
        return true;
    process = vm_process_get(host, saving->vm);
    if (process && !host_stopping(host)) {
        log_warn(host->log, "VM %s: ferry-vm has suspended the VM and does not end; killing it",
                 saving->vm_name);
        vm_process_kill(process);
        vm_wait_gone(host, saving->vm, clock_deadline(host_start_ms(host)));
    }
    vm_process_unref(process);
    return !host_stopping(host);
}

static void end_completed(struct saving *saving)
{
    struct host *host = saving->host;
    unsigned long long bytes, stopped_us;

    if (saving->suspends) {
        if (!await_process(saving))
            return;
        vm_set_suspended(host, saving->vm, saving->file, saving->id);
    }
    host_lock(host);
    bytes = (unsigned long long)json_integer_value(json_object_get(saving->progress, "bytes"));
    stopped_us =
        (unsigned long long)json_integer_value(json_object_get(saving->progress, "stopped_ns")) / 1000;
    host_unlock(host);
    if (saving->suspends)
        events_emit(host, EVENT_VM_SUSPENDED, saving->vm_name, saving->machine, NULL,
                    "VM %s is suspended to %s (suspend %s, %llu bytes); ferry resume lets it go on",
                    saving->vm_name, saving->file, saving->id, bytes);
    else
        events_emit(host, EVENT_CHECKPOINT_COMPLETED, saving->vm_name, saving->machine, NULL,
                    "snapshot %s of VM %s is in %s (%llu bytes, the VM stood still for %llu.%03llu ms)",
                    saving->id, saving->vm_name, saving->file, bytes, stopped_us / 1000, stopped_us % 1000);
    end(saving, "completed", "");
}

/* It has its name only when all of it is on the disk, and then the guest never runs on. */
static bool file_is_complete(const struct saving *saving)
{
    struct ferry_checkpoint *file = NULL;
    bool complete = ferry_checkpoint_open(&file, saving->file, NULL) == 0 &&
                    strcmp(ferry_checkpoint_info(file)->id, saving->id) == 0;

    ferry_checkpoint_close(file);
    return complete;
}

/* Its process is gone without a word about the save, or knows nothing of it. */
static void end_silent(struct saving *saving, bool known)
{
    struct host *host = saving->host;
    char why[FERRY_ERROR_TEXT_SIZE];
    bool gone, suspended;

    host_lock(host);
    gone = !saving->vm->process;
    suspended = gone && saving->vm->state == VM_STATE_SUSPENDED;
    snprintf(why, sizeof(why), "the VM ended meanwhile: %.400s", saving->vm->why);
    host_unlock(host);
    if (saving->suspends && (suspended || (gone && file_is_complete(saving))))
        end_completed(saving);
    else if (known)
        end_failed(saving, "failed", why);
    else
        end_failed(saving, "failed", "ferryd ended before ferry-vm had been told to begin");
}

static void run(struct saving *saving)
{
    bool known = !saving->adopted || ask(saving);
    const char *outcome;
    json_t *word;

    if (!await_end(saving, &known))
        return;
    host_lock(saving->host);
    word = saving->told_final ? json_incref(saving->progress) : NULL;
    host_unlock(saving->host);
    outcome = text_of(word, "outcome");
    if (!word)
        end_silent(saving, known);
    else if (strcmp(outcome, "completed") == 0)
        end_completed(saving);
    else
        end_failed(saving, strcmp(outcome, "cancelled") == 0 ? "cancelled" : "failed",
                   text_of(word, "error"));
    json_decref(word);
}

static void *job_main(void *opaque)
{
    run(opaque);
    saving_unref(opaque);
    return NULL;
}

static int start_job(struct saving *saving, struct ferry_error *err)
{
    char name[16];
    int result;

    snprintf(name, sizeof(name), "save-%.8s", saving->id);
    host_lock(saving->host);
    saving->refs++;
    result = thread_start(&saving->thread, THREAD_GENERAL, name, job_main, saving,
                          err); /* before it can be joined */
    host_unlock(saving->host);
    if (result < 0)
        saving_unref(saving);
    return result;
}

/* --- beginning --- */

static int check_options(const struct checkpoint_options *options, struct ferry_error *err)
{
    if (strcmp(options->kind, "snapshot") != 0 && strcmp(options->kind, "suspend") != 0)
        return error_set(err, HOST_USAGE, "\"kind\" is \"snapshot\" or \"suspend\", not \"%.32s\"",
                         options->kind);
    if (options->file[0] != '/' || strlen(options->file) >= PATH_MAX)
        return error_set(err, HOST_USAGE, "\"file\" must be an absolute path, not \"%.200s\"", options->file);
    if (options->compress && strcmp(options->compress, "off") != 0 && strcmp(options->compress, "zstd") != 0)
        return error_set(err, HOST_USAGE, "\"compress\" is \"off\" or \"zstd\", not \"%.32s\"",
                         options->compress);
    return 0;
}

/* What a resume must know beside the VM's state: whether somebody has run the VM since (its lock's
 * generation), and who to ask. */
static int describe(struct host *host, const struct vm *vm, const struct saving *saving, json_t **out,
                    struct ferry_error *err)
{
    struct vm_owner owner;
    int result = vm_owner_read(host, vm, &owner, err);

    if (result < 0)
        return result;
    *out = json_pack("{s:s, s:s, s:s, s:O}", "id", saving->id, "kind", kind_of(saving), "host",
                     host->config->name, "definition", vm->definition);
    if (*out && owner.path[0])
        json_object_set_new(
            *out, "lock",
            json_pack("{s:s, s:I}", "path", owner.path, "generation", (json_int_t)owner.record.generation));
    return *out ? 0 : error_set(err, -ENOMEM, "out of memory");
}

static int call_save(struct saving *saving, struct vm_process *process,
                     const struct checkpoint_options *options, struct ferry_error *err)
{
    json_t *description = NULL;
    json_t *params;
    int result = describe(saving->host, saving->vm, saving, &description, err);

    if (result < 0)
        return result;
    params = json_pack("{s:s, s:s, s:s, s:s, s:b, s:o}", "id", saving->id, "path", saving->file, "kind",
                       kind_of(saving), "compress", options->compress ? options->compress : "off",
                       "overwrite", options->overwrite, "definition", description);
    if (options->bandwidth)
        json_object_set_new(params, "bandwidth", json_integer((json_int_t)options->bandwidth));
    result = vm_process_call(process, "checkpoint-save", params, host_vm_ms(saving->host), NULL, err);
    /* It may have begun although the answer did not come: then the job finds out. */
    return result == -ETIMEDOUT || result == -EPIPE ? 0 : result;
}

/* VM is claimed. */
static int begin(struct host *host, struct vm *vm, const struct checkpoint_options *options,
                 char id[static MIGRATION_ID_SIZE], struct ferry_error *err)
{
    struct vm_process *process = vm_process_get(host, vm);
    struct saving *saving = NULL;
    bool runs;
    int result = 0;

    host_lock(host);
    runs = process && vm_runs(vm);
    if (!runs)
        result = error_set(err, HOST_CONFLICT, "VM %s does not run: it is %s; there is nothing to save",
                           vm->name, vm_state_text(vm));
    host_unlock(host);
    if (result == 0)
        result = migration_make_id(id, err);
    if (result == 0) {
        saving = saving_new(host, id, vm, options->file, strcmp(options->kind, "suspend") == 0);
        if (!saving)
            result = error_set(err, -ENOMEM, "out of memory");
    }
    if (result == 0)
        result = vm_directory_mark_saving(vm, id, options->kind, options->file, err);
    if (result == 0) {
        saving_register(saving);
        result = call_save(saving, process, options, err);
        if (result == 0)
            result = start_job(saving, err);
        if (result < 0) {
            vm_directory_saved(vm);
            saving_unregister(saving);
            error_prefix(err, result, "VM %s cannot be saved", vm->name);
        } else {
            events_emit(host, EVENT_CHECKPOINT_STARTED, vm->name, saving->machine, NULL,
                        "%s %s of VM %s to %s started", kind_of(saving), id, vm->name, saving->file);
        }
    }
    if (saving)
        saving_unref(saving);
    vm_process_unref(process);
    return result;
}

int checkpoint_save(struct host *host, const char *name, const struct checkpoint_options *options,
                    char id[static MIGRATION_ID_SIZE], struct ferry_error *err)
{
    struct vm *vm = NULL;
    int result = check_options(options, err);

    checkpoints_reap(host, false);
    if (result == 0)
        result = vm_claim(host, name, "being saved", &vm, err);
    if (!vm)
        return result;
    result = begin(host, vm, options, id, err);
    vm_release(host, vm);
    return result;
}

int checkpoint_cancel(struct host *host, const char *id, json_t **answer, struct ferry_error *err)
{
    struct vm_process *process = NULL;
    struct saving *saving;
    int result;

    host_lock(host);
    saving = saving_find(host, id);
    if (saving && !saving->ended && saving->vm->process) {
        process = saving->vm->process;
        process->refs++;
    }
    host_unlock(host);
    if (!saving)
        return checkpoint_show(host, id, answer, err);
    if (!process)
        return error_set(err, HOST_CONFLICT, "save %s cannot be cancelled: too late, it has ended", id);
    result = vm_process_call(process, "checkpoint-cancel", json_pack("{s:s}", "id", id), host_vm_ms(host),
                             NULL, err);
    vm_process_unref(process);
    if (result < 0)
        return error_prefix(err,
                            result == -EALREADY || vm_process_call_came_late(result) ? HOST_CONFLICT : result,
                            "save %s cannot be cancelled", id);
    return checkpoint_show(host, id, answer, err);
}

/* --- at start --- */

static void adopt(struct host *host, struct vm *vm, const json_t *mark)
{
    const char *id = text_of(mark, "id");
    const char *file = text_of(mark, "file");
    struct saving *saving =
        migration_id_valid(id) && file[0] == '/'
            ? saving_new(host, id, vm, file, strcmp(text_of(mark, "kind"), "suspend") == 0)
            : NULL;
    struct ferry_error err;

    if (!saving) {
        log_warn(host->log, "VM %s: saving.json in its directory makes no sense", vm->name);
        vm_directory_saved(vm);
        return;
    }
    saving->adopted = true;
    saving->started_ns = migration_parse_time(text_of(mark, "started"));
    saving_register(saving);
    if (start_job(saving, &err) < 0) {
        log_error(host->log, "VM %s: %s", vm->name, err.text);
        saving_unregister(saving);
    }
    saving_unref(saving);
}

void checkpoints_adopt(struct host *host)
{
    json_t *list = vms_list(host);
    json_t *object;
    size_t i;

    json_array_foreach(list, i, object)
    {
        struct vm *vm = vm_get(host, text_of(object, "name"), NULL);
        json_t *mark = vm ? vm_directory_saving(vm) : NULL;

        if (mark)
            adopt(host, vm, mark);
        json_decref(mark);
        vm_unref(host, vm);
    }
    json_decref(list);
}
