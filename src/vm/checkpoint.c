#include "vm/checkpoint.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "base/thread.h"
#include "vm/guest.h"
#include "vm/migrate.h"
#include "vm/params.h"
#include "vm/sample.h"

#include <ferry/checkpoint.h>

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TICK_NS (100 * NS_PER_MS)

#define BLOB_DEFINITION "definition" /* what came with the request */
#define BLOB_MACHINE    "machine"    /* what this process made the machine of */

struct vm_checkpoint {
    struct vm *vm;
    char id[FERRY_ID_SIZE];
    char path[PATH_MAX];
    enum ferry_checkpoint_kind kind;
    char *definition;
    char *machine;
    struct log *log;          /* lines carry the id */
    struct loop_timer *timer; /* the next progress notification */
    struct ferry_checkpoint_writer *writer;
    struct thread thread;
    bool active;
    bool untold; /* atomic: it has ended and the loop could not be told */
    struct ferry_checkpoint_progress progress;
};

/* ---- what is told ---- */

static void set_number(json_t *object, const char *name, uint64_t value)
{
    json_object_set_new(object, name, json_integer((json_int_t)value));
}

json_t *vm_checkpoint_json(const struct vm_checkpoint *checkpoint)
{
    const struct ferry_checkpoint_progress *progress;
    json_t *json;

    if (!checkpoint)
        return json_null();
    progress = &checkpoint->progress;
    json = json_pack("{s:s, s:s, s:s, s:s, s:s, s:b}", "id", checkpoint->id, "kind",
                     ferry_checkpoint_kind_name(checkpoint->kind), "path", checkpoint->path, "outcome",
                     ferry_outcome_name(progress->outcome), "error", progress->error, "direct",
                     progress->direct);
    if (!json)
        return json_null();
    set_number(json, "percent", progress->percent);
    set_number(json, "memory_bytes", progress->memory_bytes);
    set_number(json, "remaining_bytes", progress->remaining_bytes);
    set_number(json, "bytes", progress->bytes);
    set_number(json, "bytes_per_s", progress->bytes_per_s);
    set_number(json, "file_bytes", progress->file_bytes);
    set_number(json, "pages", progress->pages);
    set_number(json, "zero_pages", progress->zero_pages);
    set_number(json, "pages_written", progress->pages_written);
    set_number(json, "last_pages", progress->last_pages);
    set_number(json, "rounds", progress->rounds);
    set_number(json, "stopped_ns", progress->stopped_ns);
    json_object_set_new(json, "stopped_parts",
                        json_pack("{s:I, s:I, s:I, s:I, s:I}", "pause", (json_int_t)progress->pause_ns,
                                  "quiesce", (json_int_t)progress->quiesce_ns, "last pages",
                                  (json_int_t)progress->copy_ns, "state save", (json_int_t)progress->state_ns,
                                  "resume", (json_int_t)progress->resume_ns));
    set_number(json, "total_ns", progress->total_ns);
    return json;
}

static void checkpoint_notify(struct vm_checkpoint *checkpoint)
{
    jsonrpc_notify(checkpoint->vm->control, "checkpoint", vm_checkpoint_json(checkpoint));
}

static void checkpoint_on_log(void *opaque, enum ferry_log_level level, const char *text)
{
    struct vm_checkpoint *checkpoint = opaque;

    log_write(checkpoint->log, (enum log_level)level, "%s", text);
}

/* ---- course ---- */

static void checkpoint_ended(void *opaque)
{
    struct vm_checkpoint *checkpoint = opaque;

    if (!checkpoint->active)
        return;
    thread_join(&checkpoint->thread);
    ferry_checkpoint_progress(checkpoint->writer, &checkpoint->progress);
    ferry_checkpoint_writer_free(TAKE_POINTER(checkpoint->writer));
    checkpoint->active = false;
    loop_timer_disarm(checkpoint->timer);
    checkpoint_notify(checkpoint);
    vm_checkpoint_ended(checkpoint->vm);
}

static void *checkpoint_thread(void *argument)
{
    struct vm_checkpoint *checkpoint = argument;

    /* What it returns is in the progress, too. */
    (void)ferry_checkpoint_write(checkpoint->writer, NULL);
    /* Should there be no memory to tell the loop, its next tick finds out. */
    if (loop_post(checkpoint->vm->loop, checkpoint_ended, checkpoint))
        __atomic_store_n(&checkpoint->untold, true, __ATOMIC_RELEASE);
    return NULL;
}

static void checkpoint_tick(void *opaque)
{
    struct vm_checkpoint *checkpoint = opaque;
    struct ferry_checkpoint_progress progress;

    if (!checkpoint->active)
        return;
    if (__atomic_load_n(&checkpoint->untold, __ATOMIC_ACQUIRE)) {
        checkpoint_ended(checkpoint);
        return;
    }
    ferry_checkpoint_progress(checkpoint->writer, &progress);
    /* The end is told when the thread has ended. */
    if (progress.outcome == FERRY_OUTCOME_NONE) {
        checkpoint->progress = progress;
        checkpoint_notify(checkpoint);
    }
    loop_timer_arm(checkpoint->timer, TICK_NS);
}

bool vm_checkpoint_active(const struct vm_checkpoint *checkpoint)
{
    return checkpoint && checkpoint->active;
}

bool vm_checkpoint_suspended(const struct vm_checkpoint *checkpoint)
{
    return checkpoint && !checkpoint->active && checkpoint->kind == FERRY_CHECKPOINT_SUSPEND &&
           checkpoint->progress.outcome == FERRY_OUTCOME_COMPLETED;
}

const char *vm_checkpoint_id(const struct vm_checkpoint *checkpoint)
{
    return checkpoint->id;
}

const char *vm_checkpoint_path(const struct vm_checkpoint *checkpoint)
{
    return checkpoint->path;
}

void vm_checkpoint_abort(struct vm_checkpoint *checkpoint, const char *why)
{
    ferry_checkpoint_abort(checkpoint->writer, why);
}

void vm_checkpoint_give_up(struct vm_checkpoint *checkpoint)
{
    ferry_checkpoint_cancel(checkpoint->writer, NULL);
}

void vm_checkpoint_free(struct vm_checkpoint *checkpoint)
{
    if (!checkpoint)
        return;
    loop_timer_remove(checkpoint->timer);
    ferry_checkpoint_writer_free(checkpoint->writer);
    log_close(checkpoint->log);
    free(checkpoint->definition);
    free(checkpoint->machine);
    free(checkpoint);
}

/* ---- the request ---- */

static int take_words(struct vm_checkpoint *checkpoint, json_t *params,
                      struct ferry_checkpoint_options *options, struct ferry_error *err)
{
    const char *kind = json_string_value(json_object_get(params, "kind"));
    const char *compress = json_string_value(json_object_get(params, "compress"));
    const json_t *overwrite = json_object_get(params, "overwrite");

    if (!kind || (strcmp(kind, "snapshot") != 0 && strcmp(kind, "suspend") != 0))
        return error_set(err, -EINVAL, "parameter \"kind\" must be \"snapshot\" or \"suspend\"");
    if (json_object_get(params, "compress") &&
        (!compress || (strcmp(compress, "off") != 0 && strcmp(compress, "zstd") != 0)))
        return error_set(err, -EINVAL, "parameter \"compress\" must be \"off\" or \"zstd\"");
    if (overwrite && !json_is_boolean(overwrite))
        return error_set(err, -EINVAL, "parameter \"overwrite\" must be true or false");
    if (strspn(checkpoint->id, "0123456789abcdefABCDEF-") != strlen(checkpoint->id))
        return error_set(err, -EINVAL, "parameter \"id\" is not an id");
    checkpoint->kind = strcmp(kind, "suspend") == 0 ? FERRY_CHECKPOINT_SUSPEND : FERRY_CHECKPOINT_SNAPSHOT;
    options->kind = checkpoint->kind;
    options->zstd = compress && strcmp(compress, "zstd") == 0;
    options->overwrite = json_is_true(overwrite);
    return 0;
}

/* Any name that a file can have. */
static int take_path(struct vm_checkpoint *checkpoint, json_t *params, struct ferry_error *err)
{
    const char *path = json_string_value(json_object_get(params, "path"));

    if (!path || path[0] != '/' || strlen(path) >= sizeof(checkpoint->path))
        return error_set(err, -EINVAL, "parameter \"path\" must be the absolute name of a file");
    snprintf(checkpoint->path, sizeof(checkpoint->path), "%s", path);
    return 0;
}

static int take_definition(struct vm_checkpoint *checkpoint, json_t *params, struct ferry_error *err)
{
    const json_t *definition = json_object_get(params, "definition");

    if (!json_is_object(definition))
        return error_set(err, -EINVAL, "parameter \"definition\" must be an object");
    checkpoint->definition = json_dumps(definition, JSON_COMPACT);
    checkpoint->machine = json_dumps(checkpoint->vm->definition, JSON_COMPACT);
    if (!checkpoint->definition || !checkpoint->machine)
        return error_set(err, -ENOMEM, "out of memory for a checkpoint");
    return 0;
}

static struct ferry_checkpoint_blob text_blob(const char *name, const char *text)
{
    struct ferry_checkpoint_blob blob = {.data = text, .size = strlen(text)};

    snprintf(blob.name, sizeof(blob.name), "%s", name);
    return blob;
}

static int checkpoint_prepare(struct vm_checkpoint *checkpoint, json_t *params, struct ferry_error *err)
{
    struct vm *vm = checkpoint->vm;
    struct ferry_checkpoint_options options = {.path = checkpoint->path};
    struct ferry_observer observer = {.opaque = checkpoint, .log = checkpoint_on_log};
    struct ferry_checkpoint_blob blobs[2];
    char tag[LOG_TAG_SIZE];
    int result = params_text(params, "id", checkpoint->id, sizeof(checkpoint->id), err);

    if (!result)
        result = take_words(checkpoint, params, &options, err);
    if (!result)
        result = take_path(checkpoint, params, err);
    if (!result)
        result = take_definition(checkpoint, params, err);
    if (!result)
        result = params_number(params, "bandwidth", INT64_MAX, &options.bandwidth_limit, err);
    if (result)
        return result;
    memcpy(options.id, checkpoint->id, sizeof(options.id));
    snprintf(options.vm, sizeof(options.vm), "%s", vm->config.name);
    blobs[0] = text_blob(BLOB_DEFINITION, checkpoint->definition);
    blobs[1] = text_blob(BLOB_MACHINE, checkpoint->machine);
    options.blobs = blobs;
    options.blob_count = ARRAY_SIZE(blobs);
    snprintf(tag, sizeof(tag), "checkpoint %s", checkpoint->id);
    checkpoint->log = log_scope(vm->log, tag);
    if (!checkpoint->log)
        return error_set(err, -ENOMEM, "out of memory for a checkpoint");
    result = loop_timer_add(vm->loop, checkpoint_tick, checkpoint, &checkpoint->timer, err);
    return result ? result
                  : ferry_checkpoint_writer_new(&checkpoint->writer, &options, &vm_guest_ops, vm, &observer,
                                                err);
}

static int check_idle(const struct vm *vm, struct ferry_error *err)
{
    const char *name = vm->config.name;

    if (vm_checkpoint_active(vm->checkpoint))
        return error_set(err, -EBUSY, "%s is being saved already (into %s)", name, vm->checkpoint->path);
    if (migration_active(vm->migration))
        return error_set(err, -EBUSY, "%s is being migrated (migration %s)", name,
                         migration_id(vm->migration));
    if (vm->setup || vm->away || vm->exit)
        return error_set(err, -EBUSY, "%s is not running here", name);
    return vm_checkpoint_check_filled(vm, err);
}

int vm_checkpoint_save(struct vm *vm, json_t *params, json_t **result, struct ferry_error *err)
{
    static const char *const names[] = {"id",        "path",      "kind",       "compress",
                                        "bandwidth", "overwrite", "definition", NULL};
    struct vm_checkpoint *checkpoint;
    int code = params_only(params, names, err);

    if (!code)
        code = check_idle(vm, err);
    if (code)
        return code;
    checkpoint = calloc(1, sizeof(*checkpoint));
    if (!checkpoint)
        return error_set(err, -ENOMEM, "out of memory for a checkpoint");
    checkpoint->vm = vm;
    code = checkpoint_prepare(checkpoint, params, err);
    if (!code) {
        sample_abort(vm, "it is being saved");
        vm_checkpoint_free(vm->checkpoint);
        vm->checkpoint = checkpoint;
        checkpoint->active = true; /* the guest seam looks for it there */
        code = thread_start(&checkpoint->thread, THREAD_MIGRATION, "checkpoint", checkpoint_thread,
                            checkpoint, err);
    }
    if (code) {
        if (vm->checkpoint == checkpoint)
            vm->checkpoint = NULL;
        vm_checkpoint_free(checkpoint);
        return code;
    }
    loop_timer_arm(checkpoint->timer, TICK_NS);
    log_info(checkpoint->log, "%s is being saved into %s (%s)", vm->config.name, checkpoint->path,
             ferry_checkpoint_kind_name(checkpoint->kind));
    *result = json_pack("{s:s}", "id", checkpoint->id);
    return 0;
}

int vm_checkpoint_cancel(struct vm *vm, json_t *params, struct ferry_error *err)
{
    static const char *const names[] = {"id", NULL};
    const char *id = json_string_value(json_object_get(params, "id"));
    int result = params_only(params, names, err);

    if (result)
        return result;
    if (!id || !vm->checkpoint || strcmp(id, vm->checkpoint->id) != 0)
        return error_set(err, -ENOENT, "there is no checkpoint %.40s here", id ? id : "(none)");
    if (!vm->checkpoint->active)
        return error_set(err, -EALREADY, "too late: checkpoint %s has ended", id);
    return ferry_checkpoint_cancel(vm->checkpoint->writer, err);
}

/* ---- starting from one ---- */

static int differs(const char *what, const char *path, const char *there, const char *here,
                   struct ferry_error *err)
{
    return error_set(err, -EINVAL, "checkpoint %s is of a VM with %s %s, and this one has %s", path, what,
                     there, here);
}

static int compare_numbers(const char *what, const char *path, uint64_t there, uint64_t here,
                           struct ferry_error *err)
{
    char texts[2][24];

    if (there == here)
        return 0;
    snprintf(texts[0], sizeof(texts[0]), "%llu", (unsigned long long)there);
    snprintf(texts[1], sizeof(texts[1]), "%llu", (unsigned long long)here);
    return differs(what, path, texts[0], texts[1], err);
}

/* What differs is told before a section that does not fit would tell it. */
static int check_machine(const struct vm *vm, const struct ferry_checkpoint *checkpoint,
                         struct ferry_error *err)
{
    const struct ferry_checkpoint_blob *blob = ferry_checkpoint_blob(checkpoint, BLOB_MACHINE);
    const char *path = vm->options.resume;
    struct machine_config there;
    json_t *json = blob ? json_loadb(blob->data, blob->size, JSON_REJECT_DUPLICATES, NULL) : NULL;
    int result;

    if (!json)
        return error_set(err, -EINVAL, "checkpoint %s does not say of what machine it is", path);
    result = machine_config_from_json(&there, json, err);
    json_decref(json);
    if (result)
        return error_prefix(err, result, "checkpoint %s", path);
    if (strcmp(there.machine, vm->config.machine) != 0)
        result = differs("machine", path, there.machine, vm->config.machine, err);
    if (!result)
        result = compare_numbers("vCPUs:", path, there.vcpus, vm->config.vcpus, err);
    if (!result)
        result = compare_numbers("memory (MiB):", path, there.memory >> 20, vm->config.memory >> 20, err);
    if (!result)
        result = compare_numbers("disks:", path, there.disk_count, vm->config.disk_count, err);
    if (!result)
        result = compare_numbers("networks:", path, there.net_count, vm->config.net_count, err);
    machine_config_free(&there);
    return result;
}

static void restore_on_log(void *opaque, enum ferry_log_level level, const char *text)
{
    log_write(((struct vm *)opaque)->log, (enum log_level)level, "%s", text);
}

/* The guest's clock goes by the host's from now on. Were it set back since, the guest's stands still. */
static void catch_up(struct vm *vm, uint64_t stopped_ns)
{
    uint64_t now = clock_realtime_ns();

    if (now > stopped_ns)
        vm_guest_ops.advance_clock(vm, now - stopped_ns);
}

static void filled_on_loop(void *opaque)
{
    vm_filled(opaque);
}

/* One of the fill's threads. */
static void on_filled(void *opaque)
{
    struct vm *vm = opaque;

    if (loop_post(vm->loop, filled_on_loop, vm))
        log_error(vm->log, "out of memory: that memory has come has no effect");
}

bool vm_checkpoint_filling(const struct vm *vm)
{
    struct ferry_checkpoint_fill_progress progress;

    if (!vm->fill)
        return false;
    ferry_checkpoint_fill_progress(vm->fill, &progress);
    return !progress.complete;
}

int vm_checkpoint_check_filled(const struct vm *vm, struct ferry_error *err)
{
    struct ferry_checkpoint_fill_progress progress;

    if (!vm->fill)
        return 0;
    ferry_checkpoint_fill_progress(vm->fill, &progress);
    if (progress.complete)
        return 0;
    if (progress.failed)
        return error_set(err, -EBUSY, "%s stands still: %.400s", vm->config.name, progress.error);
    return error_set(err, -EBUSY,
                     "%s has just been resumed, %llu MiB of its memory are still to come from %s",
                     vm->config.name, (unsigned long long)(progress.missing_bytes + (1u << 20) - 1) >> 20,
                     vm->options.resume);
}

json_t *vm_checkpoint_fill_json(const struct vm *vm)
{
    struct ferry_checkpoint_fill_progress progress;
    json_t *json;

    if (!vm->fill)
        return json_null();
    ferry_checkpoint_fill_progress(vm->fill, &progress);
    json = json_pack("{s:s, s:b, s:s}", "file", vm->options.resume, "complete", progress.complete, "error",
                     progress.error);
    if (!json)
        return json_null();
    set_number(json, "missing_bytes", progress.missing_bytes);
    set_number(json, "faults", progress.faults);
    set_number(json, "fault_median_ns", progress.fault_median_ns);
    set_number(json, "fault_p99_ns", progress.fault_p99_ns);
    set_number(json, "fault_max_ns", progress.fault_max_ns);
    set_number(json, "total_ns", progress.total_ns);
    return json;
}

/* Takes the checkpoint over if it can be done; -EOPNOTSUPP: it cannot, and was said why. */
static int restore_lazily(struct vm *vm, struct ferry_checkpoint *checkpoint,
                          const struct ferry_observer *observer, struct ferry_error *err)
{
    int result;

    if (vm->options.eager)
        return -EOPNOTSUPP;
    result =
        ferry_checkpoint_fill_start(&vm->fill, checkpoint, &vm_guest_ops, vm, observer, on_filled, vm, err);
    if (result != -EOPNOTSUPP && result != -EPERM && result != -ENOSYS)
        return result;
    log_info(vm->log, "memory is read before the guest runs: %s", err->text);
    return -EOPNOTSUPP;
}

static int restore(struct vm *vm, struct ferry_checkpoint *checkpoint, struct ferry_error *err)
{
    struct ferry_observer observer = {.opaque = vm, .log = restore_on_log};
    int result = check_machine(vm, checkpoint, err);

    if (!result)
        result = restore_lazily(vm, checkpoint, &observer, err);
    if (result == -EOPNOTSUPP)
        result = ferry_checkpoint_restore(checkpoint, &vm_guest_ops, vm, &observer, NULL, err);
    return result;
}

/* A snapshot's guest went on then, so that this one's past is also another's. */
static int renew_generation(struct vm *vm, const struct ferry_checkpoint_info *info, struct ferry_error *err)
{
    if (info->kind != FERRY_CHECKPOINT_SNAPSHOT && !vm->options.new_identity && !vm->options.new_generation)
        return 0;
    return machine_new_generation(vm->machine, err);
}

int vm_checkpoint_restore(struct vm *vm, bool *was_running, struct ferry_error *err)
{
    struct ferry_checkpoint_info info;
    struct ferry_checkpoint *checkpoint;
    char stopped[CLOCK_TEXT_SIZE];
    int result = ferry_checkpoint_open(&checkpoint, vm->options.resume, err);

    if (result)
        return result;
    info = *ferry_checkpoint_info(checkpoint);
    *was_running = info.was_running;
    result = restore(vm, checkpoint, err);
    if (!result)
        result = renew_generation(vm, &info, err);
    if (!result) {
        catch_up(vm, info.stopped_realtime_ns);
        log_info(vm->log, "%s is resumed from %s: the %s %s of %s, stopped at %s", vm->config.name,
                 vm->options.resume, ferry_checkpoint_kind_name(info.kind), info.id, info.vm,
                 clock_format(info.stopped_realtime_ns, stopped));
    }
    if (!vm->fill)
        ferry_checkpoint_close(checkpoint);
    return result;
}
