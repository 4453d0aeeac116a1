#include "vm/ownership.h"

#include "base/clock.h"
#include "base/error.h"
#include "disk/vm_lock.h"
#include "engine/fault.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* How often a lock that somebody has is tried, at first and in the end. */
#define TRY_FIRST_MS 5
#define TRY_LAST_MS  500

struct ownership {
    struct ownership_options options; /* config is not kept */
    char vm[VM_LOCK_NAME_SIZE];
    char host[VM_LOCK_NAME_SIZE];
    char *disks[MACHINE_DISKS_MAX];
    unsigned disk_count;
    struct vm_lock *lock;         /* NULL: nothing shared */
    struct vm_lock *own_lock;     /* of the last move between two processes of this host; NULL: none */
    char *former;                 /* NULL: none */
    struct vm_lock_record before; /* what the lock said when it was taken for a start */
    int interrupt_fd;
    struct fault_plan faults;
};

static const char *first_writable_disk(const struct machine_config *config)
{
    for (unsigned i = 0; i < config->disk_count; i++)
        if (!config->disks[i].readonly)
            return config->disks[i].path;
    return NULL;
}

static int open_lock(struct ownership *ownership, const struct ownership_options *options,
                     struct ferry_error *err)
{
    char path[PATH_MAX];
    int result =
        vm_lock_place(path, first_writable_disk(options->config), options->lock_dir, ownership->vm, err);

    return result > 0 ? vm_lock_open(&ownership->lock, path, err) : result;
}

int ownership_new(struct ownership **out, const struct ownership_options *options, struct ferry_error *err)
{
    const struct machine_config *config = options->config;
    struct ownership *ownership = calloc(1, sizeof(*ownership));
    int result = 0;

    if (!ownership)
        return error_set(err, -ENOMEM, "out of memory for the VM's lock");
    ownership->options = *options;
    ownership->options.config = NULL;
    ownership->options.lock_dir = ownership->options.former = NULL; /* nor are these */
    snprintf(ownership->vm, sizeof(ownership->vm), "%s", config->name);
    snprintf(ownership->host, sizeof(ownership->host), "%s", options->host);
    for (unsigned i = 0; i < config->disk_count && !result; i++) {
        ownership->disks[i] = strdup(config->disks[i].path);
        ownership->disk_count = i + 1;
        if (!ownership->disks[i])
            result = error_set(err, -ENOMEM, "out of memory for the VM's lock");
    }
    if (!result && options->former && !(ownership->former = strdup(options->former)))
        result = error_set(err, -ENOMEM, "out of memory for the VM's lock");
    ownership->interrupt_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!result && ownership->interrupt_fd < 0)
        result = error_set_errno(err, -errno, "cannot make an event descriptor");
    if (!result)
        result = fault_plan_parse(&ownership->faults, getenv("FERRY_FAULT"), err);
    ownership->faults.drop = options->drop_connections;
    ownership->faults.opaque = options->migrating;
    if (!result)
        result = open_lock(ownership, options, err);
    if (result) {
        ownership_free(ownership);
        return result;
    }
    *out = ownership;
    return 0;
}

void ownership_free(struct ownership *ownership)
{
    if (!ownership)
        return;
    vm_lock_close(ownership->lock);
    vm_lock_close(ownership->own_lock);
    for (unsigned i = 0; i < ownership->disk_count; i++)
        free(ownership->disks[i]);
    free(ownership->former);
    if (ownership->interrupt_fd >= 0)
        close(ownership->interrupt_fd);
    free(ownership);
}

const char *ownership_path(const struct ownership *ownership)
{
    return ownership->lock ? vm_lock_path(ownership->lock) : NULL;
}

/* ---- the disks' images ---- */

/* Words about the VM that has DISK, when its lock file tells; false when it does not. */
static bool find_holder(const struct ownership *ownership, const char *disk, struct ferry_error *err)
{
    struct vm_lock *lock = NULL;
    char path[PATH_MAX];
    bool found = false;

    if (vm_lock_place(path, disk, NULL, ownership->vm, NULL) <= 0 || access(path, F_OK) != 0 ||
        (ownership->lock && strcmp(path, vm_lock_path(ownership->lock)) == 0) ||
        vm_lock_open(&lock, path, NULL) < 0)
        return false;
    found = vm_lock_take(lock, err) == -EBUSY;
    vm_lock_close(lock);
    return found;
}

static int take_images(struct ownership *ownership, struct ferry_error *err)
{
    struct ferry_error why = {0}, holder = {0};
    int result = ownership->options.acquire_images(ownership->options.images, &why);

    if (!result)
        return 0;
    for (unsigned i = 0; i < ownership->disk_count && result == -EBUSY; i++)
        if (strstr(why.text, ownership->disks[i]) && find_holder(ownership, ownership->disks[i], &holder))
            return error_set(err, result, "%.220s: %.280s", why.text, holder.text);
    return error_set(err, result, "%s", why.text);
}

static void drop_images(struct ownership *ownership)
{
    ownership->options.release_images(ownership->options.images);
}

/* ---- the lock that decides about a move ---- */

static bool stays_on_host(const struct ferry_handover *handover)
{
    return strcmp(handover->source, handover->destination) == 0;
}

/*
 * Two processes of one host need no shared storage: when the VM has none, the lock of their move is in the
 * source's directory. No other move may look at it, and no cold start does.
 */
static struct vm_lock *lock_of(const struct ownership *ownership, const struct ferry_handover *handover)
{
    return ownership->lock || !stays_on_host(handover) ? ownership->lock : ownership->own_lock;
}

static int open_own_lock(struct ownership *ownership, const char *directory, bool anew,
                         struct ferry_error *err)
{
    char path[PATH_MAX];
    int result;

    if (!directory)
        return error_set(err, -EINVAL, "this process does not know the directory of the one before it");
    result = vm_lock_place(path, NULL, directory, ownership->vm, err);
    if (result < 0)
        return result;
    if (anew)
        unlink(path);
    vm_lock_close(ownership->own_lock);
    ownership->own_lock = NULL;
    return vm_lock_open_local(&ownership->own_lock, path, err);
}

/* ---- the record ---- */

static int write_record(struct ownership *ownership, struct vm_lock *lock, struct vm_lock_record *record,
                        enum vm_lock_state state, uint64_t generation, const struct ferry_handover *handover,
                        struct ferry_error *err)
{
    int result;

    record->state = state;
    record->generation = generation;
    record->pid = getpid();
    record->copied = false;
    snprintf(record->vm, sizeof(record->vm), "%s", ownership->vm);
    snprintf(record->holder, sizeof(record->holder), "%s", ownership->host);
    snprintf(record->source, sizeof(record->source), "%s", handover ? handover->source : "");
    snprintf(record->destination, sizeof(record->destination), "%s", handover ? handover->destination : "");
    snprintf(record->migration, sizeof(record->migration), "%s", handover ? handover->migration_id : "");
    result = vm_lock_write(lock, record, err);
    if (!result)
        log_info(ownership->options.log, "ownership: %s, generation %" PRIu64, vm_lock_state_name(state),
                 generation);
    return result;
}

static bool is_moving(const struct vm_lock_record *record)
{
    return record->state == VM_LOCK_HANDOVER || record->state == VM_LOCK_ACQUIRED;
}

/* The move that HANDOVER speaks of is under way, and not one instruction was executed by it. */
static bool is_this_move(const struct vm_lock_record *record, const struct ferry_handover *handover)
{
    return is_moving(record) && strcmp(record->migration, handover->migration_id) == 0;
}

/* ---- cold start ---- */

/* Memory that was saved goes on only with disks that nobody has written to since: every owner makes the
 * generation grow. */
static int check_generation(const struct ownership *ownership, const struct vm_lock_record *record,
                            struct ferry_error *err)
{
    uint64_t wanted = ownership->options.generation;

    if (!wanted || record->generation == wanted)
        return 0;
    if (record->state == VM_LOCK_NEW)
        return error_set(err, -ESTALE, "the lock file %s is empty: it is not the one that %s had",
                         vm_lock_path(ownership->lock), ownership->vm);
    return error_set(err, -ESTALE,
                     "host %s has run %s since (generation %" PRIu64 " of its lock, then %" PRIu64
                     "): its disks are ahead of this memory",
                     record->holder, ownership->vm, record->generation, wanted);
}

int ownership_take(struct ownership *ownership, struct ferry_error *err)
{
    struct vm_lock_record record;
    int result;

    if (!ownership->lock && ownership->options.generation)
        return error_set(err, -ENOLCK, "there is no lock that could tell whether somebody has run %s since",
                         ownership->vm);
    if (!ownership->lock)
        return take_images(ownership, err);
    result = vm_lock_take(ownership->lock, err);
    if (result)
        return result;
    result = vm_lock_read(ownership->lock, &record, err);
    if (!result)
        result = is_moving(&record) ? vm_lock_refuse_moving(&record, vm_lock_path(ownership->lock), err)
                                    : check_generation(ownership, &record, err);
    if (!result)
        result = take_images(ownership, err);
    ownership->before = record;
    if (!result) {
        result =
            write_record(ownership, ownership->lock, &record, VM_LOCK_HELD, record.generation + 1, NULL, err);
        if (result)
            drop_images(ownership);
    }
    if (result)
        vm_lock_drop(ownership->lock);
    return result;
}

void ownership_put_back(struct ownership *ownership)
{
    struct ferry_error err = {0};

    drop_images(ownership);
    if (!ownership->lock || !vm_lock_is_taken(ownership->lock))
        return;
    /* An empty file cannot be written again; who finds it held by nobody may take it. */
    if (ownership->before.state != VM_LOCK_NEW &&
        vm_lock_write(ownership->lock, &ownership->before, &err) < 0)
        log_error(ownership->options.log, "ownership: nothing ran here, but the lock cannot say so: %s",
                  err.text);
    vm_lock_drop(ownership->lock);
}

/* ---- source ---- */

/* A new one for every move, as if the VM had been started with it. */
static int hold_own_lock(struct ownership *ownership, struct ferry_error *err)
{
    struct vm_lock_record record = {0};
    int result = open_own_lock(ownership, ".", true, err);

    if (!result)
        result = vm_lock_take(ownership->own_lock, err);
    return result ? result
                  : write_record(ownership, ownership->own_lock, &record, VM_LOCK_HELD, 1, NULL, err);
}

int ownership_release(struct ownership *ownership, const struct ferry_handover *handover,
                      struct ferry_error *err)
{
    struct vm_lock *lock = ownership->lock;
    struct vm_lock_record record;
    int result;

    if (!lock && stays_on_host(handover)) {
        result = hold_own_lock(ownership, err);
        if (result)
            return result;
        lock = ownership->own_lock;
    }
    if (!lock) {
        drop_images(ownership);
        return 0;
    }
    result = vm_lock_read(lock, &record, err);
    if (!result)
        result = fault_hit(&ownership->faults, FAULT_SOURCE_BEFORE_HANDOVER, err);
    if (result)
        return result;
    result = write_record(ownership, lock, &record, VM_LOCK_HANDOVER, record.generation, handover, err);
    if (!result)
        result = fault_hit(&ownership->faults, FAULT_SOURCE_AFTER_HANDOVER, err);
    if (result) {
        /* Whatever of it is on storage: nobody was told, and nobody can take the lock. */
        (void)write_record(ownership, lock, &record, VM_LOCK_HELD, record.generation, NULL, NULL);
        return result;
    }
    drop_images(ownership);
    vm_lock_drop(lock);
    return 0;
}

/* What a record that is not of this move's says about the memory here. */
static enum ferry_retake judge_lost(const struct vm_lock *lock, const struct vm_lock_record *record,
                                    struct ferry_error *err)
{
    const char *taken = vm_lock_is_taken(lock) ? "it was started" : "it runs";

    if (record->state == VM_LOCK_NEW || record->state == VM_LOCK_HANDOVER ||
        record->state == VM_LOCK_ACQUIRED) {
        error_set(err, -EBADMSG,
                  "the lock file %s says nothing of this move any more (%s, generation %" PRIu64 ")",
                  vm_lock_path(lock), vm_lock_state_name(record->state), record->generation);
        return FERRY_RETAKE_UNKNOWN;
    }
    error_set(err, -EBUSY,
              "%s on host %s (process %" PRId64 ", generation %" PRIu64 "); the memory here is out of date%s",
              taken, record->holder, record->pid, record->generation,
              vm_lock_is_taken(lock) ? ", and nobody runs it now: start it anew from its disks" : "");
    return FERRY_RETAKE_LOST;
}

/* Something that somebody may have for a while. */
struct patience {
    uint64_t deadline; /* clock_now_ns */
    int interval_ms;
};

/* False when the time is over, or nobody wants to wait any more. */
static bool wait_a_moment(const struct ownership *ownership, struct patience *patience,
                          const struct ferry_error *why)
{
    struct pollfd interrupt = {.fd = ownership->interrupt_fd, .events = POLLIN};

    if (clock_now_ns() >= patience->deadline)
        return false;
    if (patience->interval_ms == TRY_FIRST_MS)
        log_warn(ownership->options.log, "ownership: waiting: %s", why->text);
    if (poll(&interrupt, 1, patience->interval_ms) > 0)
        return false;
    patience->interval_ms = patience->interval_ms * 2 < TRY_LAST_MS ? patience->interval_ms * 2 : TRY_LAST_MS;
    return true;
}

/* Waits until the lock could be taken (RESUME, so far), its holder says that it runs the VM, or the time is
 * over. */
static enum ferry_retake await_lock(struct ownership *ownership, struct vm_lock *lock, uint64_t deadline,
                                    struct ferry_error *err)
{
    struct patience patience = {.deadline = deadline, .interval_ms = TRY_FIRST_MS};
    struct vm_lock_record record;

    for (;;) {
        struct ferry_error why = {0};
        int result = vm_lock_take(lock, &why);

        if (!result)
            return FERRY_RETAKE_RESUME;
        if (result == -EBUSY && vm_lock_read(lock, &record, NULL) == 0 &&
            (record.state == VM_LOCK_HELD || record.state == VM_LOCK_STARTED))
            return judge_lost(lock, &record, err);
        if (!wait_a_moment(ownership, &patience, &why)) {
            error_set(err, result, "the lock could not be had: %.400s", why.text);
            return FERRY_RETAKE_UNKNOWN;
        }
    }
}

/* A destination that is just dying may have dropped the lock and not yet the images. */
static int await_images(struct ownership *ownership, uint64_t deadline, struct ferry_error *err)
{
    struct patience patience = {.deadline = deadline, .interval_ms = TRY_FIRST_MS};
    struct ferry_error why = {0};
    int result;

    while ((result = take_images(ownership, &why)) == -EBUSY)
        if (!wait_a_moment(ownership, &patience, &why))
            break;
    return result ? error_set(err, result, "%s", why.text) : 0;
}

static enum ferry_retake retake_locked(struct ownership *ownership, struct vm_lock *lock,
                                       const struct ferry_handover *handover, uint64_t deadline,
                                       struct ferry_error *err)
{
    enum vm_lock_state state = handover->destination_never_ran ? VM_LOCK_HELD : VM_LOCK_STARTED;
    struct vm_lock_record record;

    if (vm_lock_read(lock, &record, err) < 0)
        return FERRY_RETAKE_UNKNOWN;
    if (!is_this_move(&record, handover))
        return judge_lost(lock, &record, err);
    if (await_images(ownership, deadline, err) < 0)
        return FERRY_RETAKE_UNKNOWN;
    if (write_record(ownership, lock, &record, state, record.generation + 2, handover, err) < 0) {
        drop_images(ownership);
        return FERRY_RETAKE_UNKNOWN;
    }
    return FERRY_RETAKE_RESUME;
}

/* The images' locks are not asked: they do not tell who ran the VM. */
static enum ferry_retake retake_alone(struct ownership *ownership, const struct ferry_handover *handover,
                                      struct ferry_error *err)
{
    if (!handover->destination_never_ran) {
        error_set(err, -ENOLCK, "no lock on shared storage can tell whether the VM runs on %s",
                  handover->destination);
        return FERRY_RETAKE_UNKNOWN;
    }
    return take_images(ownership, err) < 0 ? FERRY_RETAKE_UNKNOWN : FERRY_RETAKE_RESUME;
}

enum ferry_retake ownership_retake(struct ownership *ownership, const struct ferry_handover *handover,
                                   uint64_t wait_ns, struct ferry_error *err)
{
    struct vm_lock *lock = lock_of(ownership, handover);
    uint64_t deadline = clock_now_ns() + wait_ns;
    enum ferry_retake answer;

    if (fault_hit(&ownership->faults, FAULT_SOURCE_BEFORE_RETAKE, err) < 0)
        return FERRY_RETAKE_UNKNOWN;
    if (!lock)
        return retake_alone(ownership, handover, err);
    answer = await_lock(ownership, lock, deadline, err);
    if (answer != FERRY_RETAKE_RESUME)
        return answer;
    answer = retake_locked(ownership, lock, handover, deadline, err);
    if (answer != FERRY_RETAKE_RESUME)
        vm_lock_drop(lock);
    else if (fault_hit(&ownership->faults, FAULT_SOURCE_AFTER_RETAKE, err) < 0)
        log_warn(ownership->options.log, "ownership: it is here again, whatever a fault point says");
    return answer;
}

enum ferry_elsewhere ownership_look(struct ownership *ownership, const struct ferry_handover *handover,
                                    struct ferry_error *err)
{
    struct vm_lock_record record, before;
    bool held;

    if (!ownership->lock) {
        error_set(err, -ENOLCK, "no lock on shared storage can tell");
        return FERRY_ELSEWHERE_UNKNOWN;
    }
    /* What it says must be from the moment at which it is seen whether somebody has it. */
    if (vm_lock_read(ownership->lock, &before, err) < 0 ||
        vm_lock_is_held_elsewhere(ownership->lock, &held, err) < 0 ||
        vm_lock_read(ownership->lock, &record, err) < 0)
        return FERRY_ELSEWHERE_UNKNOWN;
    if (record.state != before.state || record.generation != before.generation) {
        error_set(err, -EAGAIN, "the lock is just changing");
        return FERRY_ELSEWHERE_UNKNOWN;
    }
    error_set(err, -EBUSY, "the lock says: %s, by host %s, generation %" PRIu64 ", and %s",
              vm_lock_state_name(record.state), record.holder, record.generation,
              held ? "somebody has it" : "nobody has it");
    if (is_this_move(&record, handover))
        return held ? FERRY_ELSEWHERE_UNKNOWN : FERRY_ELSEWHERE_NEVER_RAN;
    /* By the destination: whoever asks has not taken it back. */
    if (record.state == VM_LOCK_STARTED && strcmp(record.migration, handover->migration_id) == 0)
        return held ? FERRY_ELSEWHERE_OWNED : FERRY_ELSEWHERE_GONE;
    /* Somebody else started it since: the destination did not have it any more. */
    if (record.state == VM_LOCK_STARTED || record.state == VM_LOCK_HELD)
        return FERRY_ELSEWHERE_GONE;
    return FERRY_ELSEWHERE_UNKNOWN;
}

void ownership_interrupt(struct ownership *ownership)
{
    uint64_t one = 1;
    ssize_t put = write(ownership->interrupt_fd, &one, sizeof(one));

    (void)put; /* full: it is readable already */
}

/* ---- destination ---- */

static int check_handover(const struct ownership *ownership, const struct vm_lock *lock,
                          const struct vm_lock_record *record, const struct ferry_handover *handover,
                          struct ferry_error *err)
{
    const char *path = vm_lock_path(lock);

    if (record->state == VM_LOCK_NEW)
        return error_set(err, -EBADMSG, "the lock file %s is empty: it is not the one host %s wrote to", path,
                         handover->source);
    if (record->state != VM_LOCK_HANDOVER || strcmp(record->migration, handover->migration_id) != 0 ||
        strcmp(record->destination, handover->destination) != 0 || strcmp(record->vm, ownership->vm) != 0)
        return error_set(err, -EBUSY,
                         "the lock %s does not hand %s over to this host any more: %s by host %s, generation "
                         "%" PRIu64,
                         path, ownership->vm, vm_lock_state_name(record->state), record->holder,
                         record->generation);
    return 0;
}

/* Lock held: from handover to started. */
static int acquire_locked(struct ownership *ownership, struct vm_lock *lock,
                          const struct ferry_handover *handover, struct ferry_error *err)
{
    struct vm_lock_record record;
    int result = vm_lock_read(lock, &record, err);

    if (!result)
        result = check_handover(ownership, lock, &record, handover, err);
    if (!result)
        result = fault_hit(&ownership->faults, FAULT_DESTINATION_BEFORE_ACQUIRED, err);
    if (!result)
        result =
            write_record(ownership, lock, &record, VM_LOCK_ACQUIRED, record.generation + 1, handover, err);
    if (!result)
        result = fault_hit(&ownership->faults, FAULT_DESTINATION_AFTER_ACQUIRED, err);
    if (!result)
        result = take_images(ownership, err);
    if (result)
        return result;
    result = fault_hit(&ownership->faults, FAULT_DESTINATION_BEFORE_STARTED, err);
    if (!result)
        result = write_record(ownership, lock, &record, VM_LOCK_STARTED, record.generation, handover, err);
    if (result) {
        /* A write that failed may be on storage all the same; not one instruction was executed. */
        (void)write_record(ownership, lock, &record, VM_LOCK_ACQUIRED, record.generation, handover, NULL);
        drop_images(ownership);
    }
    return result;
}

int ownership_acquire(struct ownership *ownership, const struct ferry_handover *handover,
                      struct ferry_error *err)
{
    struct vm_lock *lock = ownership->lock;
    int result;

    if (!lock && !stays_on_host(handover))
        return take_images(ownership, err);
    if (!lock) {
        result = open_own_lock(ownership, ownership->former, false, err);
        if (result)
            return result;
        lock = ownership->own_lock;
    }
    result = vm_lock_take(lock, err);
    if (result)
        return result;
    result = acquire_locked(ownership, lock, handover, err);
    if (result) {
        vm_lock_drop(lock);
        return result;
    }
    result = fault_hit(&ownership->faults, FAULT_DESTINATION_AFTER_STARTED, err);
    if (result)
        ownership_give_back(ownership, handover);
    return result;
}

void ownership_give_back(struct ownership *ownership, const struct ferry_handover *handover)
{
    struct vm_lock *lock = lock_of(ownership, handover);
    struct vm_lock_record record;
    struct ferry_error err = {0};

    drop_images(ownership);
    if (!lock || !vm_lock_is_taken(lock))
        return;
    if (vm_lock_read(lock, &record, &err) < 0 ||
        write_record(ownership, lock, &record, VM_LOCK_ACQUIRED, record.generation, handover, &err) < 0)
        log_error(ownership->options.log, "ownership: nothing ran here, but the lock cannot say so: %s",
                  err.text);
    vm_lock_drop(lock);
}
