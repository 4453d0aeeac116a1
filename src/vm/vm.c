#include "vm/vm_parts.h"

#include "base/error.h"
#include "vm/checkpoint.h"
#include "vm/console_mark.h"
#include "vm/migrate.h"
#include "vm/ownership.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A migration that was told to end because the process is to end. */
#define SESSION_PATIENCE_NS (2 * NS_PER_S)
/* vCPUs that wait for memory to arrive. */
#define PAUSE_PATIENCE_NS (5 * NS_PER_S)

/* ---- guest events ---- */

enum machine_event vm_event(struct vm *vm, char why[FERRY_ERROR_TEXT_SIZE])
{
    enum machine_event event;

    pthread_mutex_lock(&vm->event_lock);
    event = vm->event;
    memcpy(why, vm->event_why, FERRY_ERROR_TEXT_SIZE);
    pthread_mutex_unlock(&vm->event_lock);
    return event;
}

static void vm_set_event(struct vm *vm, enum machine_event event, const char *why)
{
    pthread_mutex_lock(&vm->event_lock);
    vm->event = event;
    snprintf(vm->event_why, sizeof(vm->event_why), "%s", why);
    pthread_mutex_unlock(&vm->event_lock);
}

const char *vm_event_words(enum machine_event event)
{
    static const char *const words[] = {
        [MACHINE_EVENT_POWER_OFF] = "the guest powered off",
        [MACHINE_EVENT_RESET] = "the guest rebooted",
        [MACHINE_EVENT_CRASH] = "the guest crashed",
        [MACHINE_EVENT_ERROR] = "the virtual machine failed",
    };

    return words[event];
}

int vm_reboot(struct vm *vm, struct ferry_error *err)
{
    struct ferry_error reason = {0};
    int result = machine_reset(vm->machine, &reason);

    if (result) {
        error_prefix(&reason, result, "the guest cannot reboot here");
        vm_set_event(vm, MACHINE_EVENT_CRASH, reason.text);
        if (err)
            *err = reason;
        return result;
    }
    vm_set_event(vm, 0, "");
    log_info(vm->log, "the guest reboots");
    return 0;
}

/* The event that cannot be undone: the process ends, after a migration in progress has. */
static void vm_take_event(struct vm *vm, enum machine_event event, const char *why)
{
    char text[FERRY_ERROR_TEXT_SIZE];

    if (why[0] && event != MACHINE_EVENT_POWER_OFF)
        snprintf(text, sizeof(text), "%.60s: %.440s", vm_event_words(event), why);
    else
        snprintf(text, sizeof(text), "%s", vm_event_words(event));
    if (migration_active(vm->migration) && !migration_waiting(vm->migration))
        migration_abort(vm->migration, FERRY_CAUSE_GUEST, text);
    if (vm_checkpoint_active(vm->checkpoint))
        vm_checkpoint_abort(vm->checkpoint, text);
    vm_end(vm, event == MACHINE_EVENT_POWER_OFF ? VM_EXIT_POWERED_OFF : VM_EXIT_CRASHED, text);
}

/* An arriving VM whose session has not ended, or one whose memory still comes from a file. */
static bool vm_awaits_memory(const struct vm *vm)
{
    if (vm_checkpoint_filling(vm))
        return true;
    return migration_active(vm->migration) && !migration_is_source(vm->migration);
}

static void vm_handle_event(void *opaque)
{
    struct vm *vm = opaque;
    char why[FERRY_ERROR_TEXT_SIZE];
    enum machine_event event;

    pthread_mutex_lock(&vm->lock);
    event = vm_event(vm, why);
    /* A reboot waits for memory that is still to arrive: vCPUs may wait for it, and it would be written to.
     */
    if (event == MACHINE_EVENT_RESET && vm_awaits_memory(vm)) {
        event = 0;
    } else if (event == MACHINE_EVENT_RESET && !vm->frozen) {
        struct ferry_error err = {0};

        if (vm_reboot(vm, NULL) == 0 && vm->running && machine_resume(vm->machine, &err))
            vm_set_event(vm, MACHINE_EVENT_ERROR, err.text);
        event = vm_event(vm, why);
    }
    if (vm->frozen)
        event = 0;
    pthread_mutex_unlock(&vm->lock);
    if (event)
        vm_take_event(vm, event, why);
}

/* A vCPU thread. The first event counts: nothing runs after it. */
void vm_on_machine_event(void *opaque, enum machine_event event, const char *why)
{
    struct vm *vm = opaque;

    vm_set_event(vm, event, why);
    if (loop_post(vm->loop, vm_handle_event, vm))
        log_error(vm->log, "out of memory: %s, and it has no effect", vm_event_words(event));
}

void vm_on_console_output(void *opaque, const void *data, size_t size)
{
    console_output(((struct vm *)opaque)->console, data, size);
}

void vm_on_console_ready(void *opaque)
{
    console_input_ready(((struct vm *)opaque)->console);
}

size_t vm_console_input(void *opaque, const void *data, size_t size)
{
    return machine_console_input(((struct vm *)opaque)->machine, data, size);
}

/* ---- running and pausing ---- */

static bool vm_held(struct vm *vm, char why[FERRY_ERROR_TEXT_SIZE])
{
    bool held;

    pthread_mutex_lock(&vm->event_lock);
    held = vm->held;
    memcpy(why, vm->held_why, FERRY_ERROR_TEXT_SIZE);
    pthread_mutex_unlock(&vm->event_lock);
    return held;
}

static void vm_on_held(void *opaque)
{
    vm_notify_state(opaque);
}

void vm_set_held(struct vm *vm, bool held, const char *why)
{
    pthread_mutex_lock(&vm->event_lock);
    vm->held = held;
    snprintf(vm->held_why, sizeof(vm->held_why), "%s", why);
    pthread_mutex_unlock(&vm->event_lock);
    (void)loop_post(vm->loop, vm_on_held, vm); /* news only */
}

/* Quick resume: the guest runs at the destination, and needs what is here. */
static bool vm_serves(struct vm *vm)
{
    return migration_active(vm->migration) && migration_is_source(vm->migration) &&
           migration_fetching(vm->migration);
}

static int vm_say_serving(struct vm *vm, struct ferry_error *err)
{
    return error_set(err, -EBUSY, "%s runs on host %s, which still needs %llu MiB of its memory from here",
                     vm->config.name, migration_destination(vm->migration),
                     (unsigned long long)(migration_progress(vm->migration)->remaining_bytes >> 20));
}

/* Lock held: may the loop's thread change whether the guest runs? */
static int vm_check_free(struct vm *vm, struct ferry_error *err)
{
    const char *name = vm->config.name;
    char why[FERRY_ERROR_TEXT_SIZE];

    if (vm->setup)
        return error_set(err, -EBUSY, "%s is still arriving", name);
    if (vm->away)
        return error_set(err, -EBUSY, "%s may not run here: %s", name, vm->why);
    if (vm_serves(vm))
        return vm_say_serving(vm, err);
    if (vm->frozen && vm_checkpoint_active(vm->checkpoint))
        return error_set(err, -EBUSY, "%s is just being saved into %s", name,
                         vm_checkpoint_path(vm->checkpoint));
    if (vm->frozen)
        return error_set(err, -EBUSY, "%s is just being handed over to %s", name,
                         migration_destination(vm->migration));
    if (vm_held(vm, why))
        return error_set(err, -EBUSY, "%s stands still: %.400s", name, why);
    if (vm->exit)
        return error_set(err, -ESHUTDOWN, "%s is ending: %s", name, vm->exit_why);
    return 0;
}

int vm_pause(struct vm *vm, struct ferry_error *err)
{
    int result;

    pthread_mutex_lock(&vm->lock);
    result = vm_check_free(vm, err);
    if (!result)
        result = machine_try_pause(
            vm->machine, vm_awaits_memory(vm) ? clock_now_ns() + PAUSE_PATIENCE_NS : UINT64_MAX, err);
    if (!result)
        vm->running = false;
    pthread_mutex_unlock(&vm->lock);
    if (!result)
        vm_notify_state(vm);
    return result;
}

int vm_resume(struct vm *vm, struct ferry_error *err)
{
    char why[FERRY_ERROR_TEXT_SIZE];
    int result;

    pthread_mutex_lock(&vm->lock);
    result = vm_check_free(vm, err);
    /* With an event waiting its handler, which is on its way, decides. */
    if (!result && !vm_event(vm, why))
        result = machine_resume(vm->machine, err);
    if (!result)
        vm->running = true;
    pthread_mutex_unlock(&vm->lock);
    if (!result)
        vm_notify_state(vm);
    return result;
}

int vm_ask_stop(struct vm *vm, struct ferry_error *err)
{
    int result;

    pthread_mutex_lock(&vm->lock);
    result = vm_check_free(vm, err);
    if (!result)
        result = machine_ask_stop(vm->machine, err);
    pthread_mutex_unlock(&vm->lock);
    return result;
}

static void vm_on_went_on(void *opaque)
{
    struct vm *vm = opaque;

    vm_log_join(vm);
    console_flush(vm->console);
    console_input_ready(vm->console);
    vm_notify_state(vm);
}

void vm_went_on(struct vm *vm)
{
    /* News only; without memory for it nothing is lost but the news. */
    (void)loop_post(vm->loop, vm_on_went_on, vm);
}

/* ---- what it tells ---- */

static const char *vm_state_name(struct vm *vm)
{
    bool moving = migration_active(vm->migration);
    char why[FERRY_ERROR_TEXT_SIZE];

    if (vm->exit == VM_EXIT_CRASHED)
        return "CRASHED";
    if (vm->exit == VM_EXIT_POWERED_OFF)
        return "STOPPED";
    if (vm->setup)
        return "SETUP(MIGR)";
    if (vm->away || vm_serves(vm))
        return "NOT_RUNNABLE";
    if (vm->running && !vm_held(vm, why))
        return moving ? "RUNNING(MIGR)" : "RUNNING";
    return moving ? "PAUSED(MIGR)" : "PAUSED";
}

/* Lock held: why it is in that state. */
static const char *vm_state_why(struct vm *vm, char text[FERRY_ERROR_TEXT_SIZE])
{
    struct ferry_error err;

    if (vm->exit)
        return vm->exit_why;
    if (vm_serves(vm)) {
        vm_say_serving(vm, &err);
        snprintf(text, FERRY_ERROR_TEXT_SIZE, "%s", err.text);
        return text;
    }
    return vm_held(vm, text) ? text : vm->why;
}

/* Guest memory that the host has given so far. */
static uint64_t vm_memory_resident(struct vm *vm)
{
    struct memory *memory = machine_memory(vm->machine);
    uint64_t bytes = 0;
    struct stat status;

    for (size_t i = 0; i < memory_region_count(memory); i++)
        if (fstat(memory_region(memory, i)->memfd, &status) == 0)
            bytes += (uint64_t)status.st_blocks * 512;
    return bytes;
}

/* What the guest was told of its CPU; null while that is arriving. Under the lock. */
static json_t *vm_cpu_json(const struct vm *vm)
{
    struct cpu cpu;

    if (vm->setup || !machine_cpu(vm->machine, &cpu))
        return json_null();
    return json_pack("{s:s, s:o}", "vendor", cpu.vendor, "features", cpu_features_json(&cpu.features));
}

json_t *vm_status_json(struct vm *vm)
{
    json_t *migration = migration_active(vm->migration) ? migration_json(vm->migration, false) : json_null();
    char why[FERRY_ERROR_TEXT_SIZE];
    json_t *json;

    pthread_mutex_lock(&vm->lock);
    json = json_pack("{s:s, s:s, s:s, s:i, s:s, s:s, s:O, s:I, s:o, s:o, s:o, s:o}", "name", vm->config.name,
                     "state", vm_state_name(vm), "why", vm_state_why(vm, why), "pid", (int)getpid(),
                     "version", FERRY_VERSION, "started", vm->started, "definition", vm->definition,
                     "memory_resident", (json_int_t)vm_memory_resident(vm), "migration", migration,
                     "checkpoint", vm_checkpoint_json(vm->checkpoint), "fill", vm_checkpoint_fill_json(vm),
                     "cpu", vm_cpu_json(vm));
    pthread_mutex_unlock(&vm->lock);
    json_object_set_new(json, "seccomp", json_string(confine_mode_name(vm->options.confine_mode)));
    return json;
}

void vm_notify_state(struct vm *vm)
{
    char why[FERRY_ERROR_TEXT_SIZE];
    json_t *json;

    if (!vm->control)
        return;
    pthread_mutex_lock(&vm->lock);
    json = json_pack("{s:s, s:s}", "state", vm_state_name(vm), "why", vm_state_why(vm, why));
    pthread_mutex_unlock(&vm->lock);
    jsonrpc_notify(vm->control, "vm.state", json);
}

/* ---- ending ---- */

void vm_set_exit(struct vm *vm, enum vm_exit exit, const char *why)
{
    vm->exit = exit;
    snprintf(vm->exit_why, sizeof(vm->exit_why), "%s", why);
}

void vm_end(struct vm *vm, enum vm_exit exit, const char *why)
{
    if (vm->exit)
        return;
    vm_set_exit(vm, exit, why);
    log_info(vm->log, "the VM ends: %s", why);
    vm_notify_state(vm);
    if (vm_checkpoint_active(vm->checkpoint)) {
        if (exit == VM_EXIT_KILLED) {
            vm_checkpoint_give_up(vm->checkpoint);
            loop_timer_arm(vm->patience, SESSION_PATIENCE_NS);
        }
        return;
    }
    if (!migration_active(vm->migration)) {
        loop_stop(vm->loop);
        return;
    }
    loop_timer_arm(vm->patience, SESSION_PATIENCE_NS);
    ownership_interrupt(vm->ownership);
    /* An event of the guest's has aborted it already. */
    if (exit == VM_EXIT_KILLED || migration_waiting(vm->migration))
        migration_give_up(vm->migration);
}

int vm_quit(struct vm *vm, struct ferry_error *err)
{
    if (vm_serves(vm)) {
        vm_say_serving(vm, err);
        return error_prefix(err, -EBUSY, "its memory is kept (ferry recover %s --force-there gives it up)",
                            vm->config.name);
    }
    vm_end(vm, VM_EXIT_KILLED, "killed on request");
    return 0;
}

void vm_patience_ended(void *opaque)
{
    struct vm *vm = opaque;

    if (vm->exit)
        loop_stop(vm->loop);
    else
        vm_end(vm, VM_EXIT_FAILED, "no migration came");
}

/* The source still has the guest. The session has resumed it; what it may have left undone is done here. */
static void vm_thaw(struct vm *vm)
{
    char why[FERRY_ERROR_TEXT_SIZE];
    struct ferry_error err = {0};
    int result = 0;

    pthread_mutex_lock(&vm->lock);
    if (vm->frozen && vm->running && !vm_event(vm, why))
        result = machine_resume(vm->machine, &err);
    if (result)
        vm_set_event(vm, MACHINE_EVENT_ERROR, err.text);
    vm->frozen = false;
    pthread_mutex_unlock(&vm->lock);
    machine_throttle(vm->machine, 0);
    vm_handle_event(vm);
}

static void vm_source_ended(struct vm *vm)
{
    const char *destination = migration_destination(vm->migration);
    bool stays = migration_stays(vm->migration);
    char why[FERRY_ERROR_TEXT_SIZE];

    switch (migration_progress(vm->migration)->outcome) {
    case FERRY_OUTCOME_COMPLETED:
        vm_set_exit(vm, VM_EXIT_MIGRATED, "");
        break;
    case FERRY_OUTCOME_LOST:
        pthread_mutex_lock(&vm->lock);
        if (migration_progress(vm->migration)->fetch.used && !vm->why[0])
            snprintf(why, sizeof(why), "%s", migration_progress(vm->migration)->error);
        else
            snprintf(why, sizeof(why), "%s%.63s owns the guest but did not confirm it: %.380s",
                     stays ? "the new process on " : "host ", destination, vm->why);
        pthread_mutex_unlock(&vm->lock);
        vm_set_exit(vm, VM_EXIT_MIGRATED, why);
        break;
    case FERRY_OUTCOME_UNKNOWN:
        pthread_mutex_lock(&vm->lock);
        vm->away = true;
        vm->was_running = vm->running;
        vm->running = false;
        snprintf(why, sizeof(why), "the guest may run %s%.63s: %.380s",
                 stays ? "in the new process on " : "on host ", destination, vm->why);
        memcpy(vm->why, why, sizeof(why));
        pthread_mutex_unlock(&vm->lock);
        log_error(vm->log, "%s stays stopped: %s", vm->config.name, vm->why);
        break;
    default:
        vm_thaw(vm);
        break;
    }
}

/* Lock held: the guest that was frozen when nobody could say where it runs. */
static int vm_go_on(struct vm *vm, const struct ferry_handover *handover, struct ferry_error *err)
{
    struct ferry_error why = {0};
    int result;

    if (ownership_retake(vm->ownership, handover, 0, &why) != FERRY_RETAKE_RESUME)
        return error_set(err, -EBUSY, "%s may not run here: %.430s", vm->config.name, why.text);
    if (vm->was_running) {
        console_mark_continues(vm);
        result = machine_resume(vm->machine, err);
        if (result)
            return result; /* owned and paused */
    }
    vm->running = vm->was_running;
    vm->frozen = false;
    vm->away = false;
    vm->why[0] = '\0';
    return 0;
}

int vm_recover(struct vm *vm, bool here, struct ferry_error *err)
{
    struct ferry_handover handover;
    int result = 0;

    if (vm_serves(vm) && !vm->exit)
        return migration_end_serving(vm->migration, here, err);
    if (!vm->away || vm->exit)
        return error_set(err, -EBUSY, "%s is not in doubt: there is nothing to recover", vm->config.name);
    if (!here) {
        char why[FERRY_ERROR_TEXT_SIZE];

        snprintf(why, sizeof(why), "the guest has migrated to %.63s", migration_destination(vm->migration));
        vm_end(vm, VM_EXIT_MIGRATED, why);
        return 0;
    }
    migration_handover(vm->migration, &handover);
    handover.destination_never_ran = true; /* so it was said */
    pthread_mutex_lock(&vm->lock);
    result = vm_go_on(vm, &handover, err);
    pthread_mutex_unlock(&vm->lock);
    if (result)
        return result;
    log_warn(vm->log, "%s goes on here, as it was decided", vm->config.name);
    vm_went_on(vm);
    vm_handle_event(vm);
    return 0;
}

void vm_migration_ended(struct vm *vm)
{
    const struct ferry_progress *progress = migration_progress(vm->migration);

    if (migration_is_source(vm->migration))
        vm_source_ended(vm);
    else if (vm->setup)
        vm_end(vm, VM_EXIT_FAILED, progress->error);
    else if (progress->outcome == FERRY_OUTCOME_LOST)
        vm_end(vm, VM_EXIT_CRASHED, progress->error);
    vm_notify_state(vm);
    if (vm->exit)
        loop_stop(vm->loop);
    else if (!migration_is_source(vm->migration))
        vm_handle_event(vm); /* that has waited */
}

void vm_checkpoint_ended(struct vm *vm)
{
    if (vm_checkpoint_suspended(vm->checkpoint)) {
        vm_set_exit(vm, VM_EXIT_SUSPENDED, "");
        log_info(vm->log, "the VM ends: it is in %s", vm_checkpoint_path(vm->checkpoint));
    } else {
        vm_thaw(vm);
    }
    vm_notify_state(vm);
    if (vm->exit)
        loop_stop(vm->loop);
}

void vm_filled(struct vm *vm)
{
    vm_notify_state(vm);
    if (!vm_checkpoint_filling(vm))
        vm_handle_event(vm); /* that has waited */
}
