#include "vm/vm.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "base/sock.h"
#include "vm/checkpoint.h"
#include "vm/console_mark.h"
#include "vm/files.h"
#include "vm/migrate.h"
#include "vm/ownership.h"
#include "vm/sample.h"

#include <ferry/checkpoint.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

/* An arriving VM whose migration never comes gives its memory back. */
#define INCOMING_PATIENCE_NS (60 * NS_PER_S)
/* A migration that was told to end because the process is to end. */
#define SESSION_PATIENCE_NS (2 * NS_PER_S)
/* vCPUs that wait for memory to arrive. */
#define PAUSE_PATIENCE_NS (5 * NS_PER_S)
/* Outstanding I/O at the end of the process. */
#define QUIESCE_PATIENCE_NS (10 * NS_PER_S)

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
static void vm_on_machine_event(void *opaque, enum machine_event event, const char *why)
{
    struct vm *vm = opaque;

    vm_set_event(vm, event, why);
    if (loop_post(vm->loop, vm_handle_event, vm))
        log_error(vm->log, "out of memory: %s, and it has no effect", vm_event_words(event));
}

static void vm_on_console_output(void *opaque, const void *data, size_t size)
{
    console_output(((struct vm *)opaque)->console, data, size);
}

static void vm_on_console_ready(void *opaque)
{
    console_input_ready(((struct vm *)opaque)->console);
}

static size_t vm_console_input(void *opaque, const void *data, size_t size)
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

static void vm_set_exit(struct vm *vm, enum vm_exit exit, const char *why)
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

static void vm_patience_ended(void *opaque)
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

/* How it ended: the words for a record. */
static json_t *vm_exit_json(const struct vm *vm, const char *reason)
{
    /* The last one, whatever became of the VM since: its ferryd may not have heard how it ended. */
    const struct migration *last = vm->migration;
    json_t *json =
        json_pack("{s:s, s:s, s:s?, s:s?, s:o, s:o}", "reason", reason, "why", vm->exit_why, "migration",
                  last ? migration_id(last) : NULL, "destination", last ? migration_destination(last) : NULL,
                  "report", migration_json(last, true), "save", vm_checkpoint_json(vm->checkpoint));

    if (json && vm->exit == VM_EXIT_SUSPENDED) {
        json_object_set_new(json, "file", json_string(vm_checkpoint_path(vm->checkpoint)));
        json_object_set_new(json, "checkpoint", json_string(vm_checkpoint_id(vm->checkpoint)));
    }
    return json;
}

static int vm_write_exit(struct vm *vm)
{
    static const char *const reasons[] = {
        [VM_EXIT_NONE] = "failed",         [VM_EXIT_POWERED_OFF] = "powered-off",
        [VM_EXIT_CRASHED] = "crashed",     [VM_EXIT_KILLED] = "killed",
        [VM_EXIT_MIGRATED] = "migrated",   [VM_EXIT_FAILED] = "failed",
        [VM_EXIT_SUSPENDED] = "suspended",
    };
    json_t *json = vm_exit_json(vm, reasons[vm->exit]);
    struct ferry_error err = {0};
    int result = files_write_json("exit.json", json, &err);

    json_decref(json);
    if (result)
        log_error(vm->log, "%s", err.text);
    return vm->exit == VM_EXIT_CRASHED || vm->exit == VM_EXIT_FAILED || vm->exit == VM_EXIT_NONE;
}

/* Everything is put away; exit.json comes last. Returns the exit status. */
static int vm_finish(struct vm *vm)
{
    int status;

    /* What cannot be waited for dies with the process, as it would by a signal: vCPUs may wait for ever for
     * memory that never came. */
    if (migration_active(vm->migration) || migration_left_torn(vm->migration) ||
        vm_checkpoint_active(vm->checkpoint) || vm_checkpoint_filling(vm) ||
        (vm->machine && (machine_pause(vm->machine, NULL) ||
                         machine_quiesce(vm->machine, clock_now_ns() + QUIESCE_PATIENCE_NS, NULL)))) {
        console_flush(vm->console);
        _exit(vm_write_exit(vm));
    }
    if (vm->console)
        console_set_sink(vm->console, NULL, NULL);
    sample_abort(vm, "the VM ends");
    ferry_checkpoint_fill_free(vm->fill);
    machine_free(vm->machine);
    ownership_free(vm->ownership);
    console_free(vm->console);
    /* Before the control socket ends: whoever sees that looks for the reason. */
    status = vm_write_exit(vm);
    migration_free(vm->migration);
    vm_checkpoint_free(vm->checkpoint);
    if (vm->control) {
        jsonrpc_server_free(vm->control);
        unlink("control.sock");
    }
    loop_watch_remove(vm->signal_watch);
    loop_timer_remove(vm->patience);
    loop_free(vm->loop);
    if (vm->signal_fd >= 0)
        close(vm->signal_fd);
    json_decref(vm->definition);
    machine_config_free(&vm->config);
    buffer_free(&vm->log_history);
    log_close(vm->log);
    if (vm->log_fd >= 0)
        close(vm->log_fd);
    if (vm->handover_fd >= 0)
        close(vm->handover_fd);
    pthread_mutex_destroy(&vm->log_lock);
    pthread_mutex_destroy(&vm->event_lock);
    pthread_mutex_destroy(&vm->lock);
    return status;
}

/* ---- beginning ---- */

static void vm_on_signal(void *opaque, unsigned events)
{
    struct vm *vm = opaque;
    struct signalfd_siginfo info;

    if (read(vm->signal_fd, &info, sizeof(info)) == sizeof(info))
        vm_end(vm, VM_EXIT_KILLED, "killed by SIGTERM");
}

static int vm_watch_signals(struct vm *vm, struct ferry_error *err)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    vm->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (vm->signal_fd < 0)
        return error_set_errno(err, -errno, "cannot watch for signals");
    return loop_watch_add(vm->loop, vm->signal_fd, LOOP_READ, vm_on_signal, vm, &vm->signal_watch, err);
}

static int vm_open_sockets(struct vm *vm, struct ferry_error *err)
{
    int fd = sock_listen("./control.sock", err);

    if (fd < 0)
        return fd;
    int result = jsonrpc_server_new(&vm->control, vm->loop, fd, vm_control, vm, err);

    if (result) {
        unlink("control.sock");
        return result;
    }
    return console_new(&vm->console, vm->loop, vm->log, "console.log", "./console.sock", err);
}

static int vm_prepare(struct vm *vm, struct ferry_error *err)
{
    int result = files_open_handover(&vm->handover_fd, err);

    if (!result)
        result = loop_new(&vm->loop, err);
    if (!result)
        result = vm_log_open(vm, err);
    if (!result)
        result = files_read_definition("definition.json", &vm->config, err);
    if (!result) {
        vm->definition = machine_config_to_json(&vm->config);
        if (!vm->definition)
            result = error_set(err, -ENOMEM, "out of memory for the VM definition");
    }
    if (!result)
        result = loop_timer_add(vm->loop, vm_patience_ended, vm, &vm->patience, err);
    if (!result)
        result = vm_watch_signals(vm, err);
    if (!result)
        result = vm_open_sockets(vm, err);
    return result;
}

static int vm_acquire_images(void *machine, struct ferry_error *err)
{
    return machine_acquire(machine, err);
}

static void vm_release_images(void *machine)
{
    machine_release(machine);
}

static void vm_drop_connections(void *opaque)
{
    struct vm *vm = opaque;

    if (vm->migration)
        migration_drop_connections(vm->migration);
}

static int vm_make_ownership(struct vm *vm, struct ferry_error *err)
{
    char host[FERRY_NAME_SIZE] = "";
    char former[32]; /* by whatever name the directory has then */
    struct ownership_options options = {
        .config = &vm->config,
        .lock_dir = vm->options.lock_dir,
        .generation = vm->options.lock_generation,
        .former = vm->options.former_fd < 0 ? NULL : former,
        .host = vm->options.host,
        .log = vm->log,
        .images = vm->machine,
        .acquire_images = vm_acquire_images,
        .release_images = vm_release_images,
        .migrating = vm,
        .drop_connections = vm_drop_connections,
    };
    int result;

    snprintf(former, sizeof(former), "/proc/self/fd/%d", vm->options.former_fd);
    if (!options.host) {
        gethostname(host, sizeof(host) - 1);
        options.host = host;
    }
    result = ownership_new(&vm->ownership, &options, err);
    if (result)
        return result;
    if (ownership_path(vm->ownership))
        log_info(vm->log, "ownership: the lock is %s", ownership_path(vm->ownership));
    else
        log_info(vm->log, "ownership: there is no lock that other hosts see");
    return 0;
}

static int vm_make_machine(struct vm *vm, struct ferry_error *err)
{
    int result;

    vm->callbacks = (struct machine_callbacks){.opaque = vm,
                                               .event = vm_on_machine_event,
                                               .console_output = vm_on_console_output,
                                               .console_input_ready = vm_on_console_ready};
    if (vm->options.cpu_features) {
        vm->config.cpu_cut = true;
        result = cpu_features_from_list(&vm->config.cpu_features, vm->options.cpu_features, err);
        if (result)
            return error_prefix(err, result, "--cpu-features");
    }
    vm->config.tracking = vm->options.tracking;
    vm->config.new_identity = vm->options.new_identity;
    result = machine_new(&vm->machine, &vm->config, vm->log, &vm->callbacks, err);
    if (result)
        return result;
    console_set_sink(vm->console, vm_console_input, vm);
    return vm_make_ownership(vm, err);
}

static int vm_await(struct vm *vm, struct ferry_error *err)
{
    uint64_t start = clock_now_ns();
    bool passed = vm->options.former_fd >= 0;
    int result = passed ? 0 : memory_reserve(machine_memory(vm->machine), err);

    if (result)
        return result;
    vm->setup = true;
    loop_timer_arm(vm->patience, INCOMING_PATIENCE_NS);
    if (passed) {
        console_set_former(vm->console, vm->options.former_fd);
        log_info(vm->log, "%s is expected to come from another process: ferry-vm %s, process %d",
                 vm->config.name, FERRY_VERSION, (int)getpid());
        return 0;
    }
    log_info(vm->log, "%s is expected to arrive; %" PRIu64 " MiB of memory reserved in %" PRIu64 " ms",
             vm->config.name, vm->config.memory >> 20, (clock_now_ns() - start) / NS_PER_MS);
    return 0;
}

static int vm_boot(struct vm *vm, struct ferry_error *err)
{
    /* Ordinary memory is had when it is touched. A huge page that is not to be had then would be the end. */
    int result = vm->config.hugepages ? memory_reserve(machine_memory(vm->machine), err) : 0;

    if (!result)
        result = ownership_take(vm->ownership, err);
    if (!result)
        result = machine_boot(vm->machine, err);
    if (!result && !vm->options.paused)
        result = machine_resume(vm->machine, err);
    if (result)
        return result;
    vm->running = !vm->options.paused;
    log_info(vm->log, "%s starts%s: machine %s, %" PRIu64 " MiB, %u vCPUs, ferry-vm %s, process %d",
             vm->config.name, vm->running ? "" : " paused", vm->config.machine, vm->config.memory >> 20,
             vm->config.vcpus, FERRY_VERSION, (int)getpid());
    return 0;
}

/* As vm_boot, with the guest that is in a file. */
static int vm_go_on_from_file(struct vm *vm, struct ferry_error *err)
{
    uint64_t start = clock_now_ns();
    bool run = false;
    int result = vm->config.hugepages ? memory_reserve(machine_memory(vm->machine), err) : 0;

    if (!result)
        result = ownership_take(vm->ownership, err);
    if (!result)
        result = vm_checkpoint_restore(vm, &run, err);
    run = run && !vm->options.paused;
    if (!result && run)
        result = machine_resume(vm->machine, err);
    if (result)
        return result;
    vm->running = run;
    log_info(vm->log,
             "%s goes on%s after %.1f ms: machine %s, %" PRIu64 " MiB, %u vCPUs, ferry-vm %s, process %d",
             vm->config.name, run ? "" : " paused", (double)(clock_now_ns() - start) / NS_PER_MS,
             vm->config.machine, vm->config.memory >> 20, vm->config.vcpus, FERRY_VERSION, (int)getpid());
    vm_went_on(vm);
    return 0;
}

static int vm_begin(struct vm *vm, struct ferry_error *err)
{
    if (vm->options.incoming)
        return vm_await(vm, err);
    return vm->options.resume ? vm_go_on_from_file(vm, err) : vm_boot(vm, err);
}

int vm_main(const struct vm_options *options)
{
    struct vm vm = {.options = *options, .signal_fd = -1, .log_fd = -1, .handover_fd = -1};
    struct ferry_error err = {0};
    int result;

    pthread_mutex_init(&vm.lock, NULL);
    pthread_mutex_init(&vm.event_lock, NULL);
    pthread_mutex_init(&vm.log_lock, NULL);
    clock_format(clock_realtime_ns(), vm.started);
    unlink("exit.json");
    result = vm_prepare(&vm, &err);
    if (!result)
        result = vm_make_machine(&vm, &err);
    if (!result)
        result = vm_begin(&vm, &err);
    /* What a file of its memory says of its lock is true as before. */
    if (result && vm.ownership && options->lock_generation)
        ownership_put_back(vm.ownership);
    files_tell_ready(options->ready_fd, result ? &err : NULL);
    if (!result) {
        result = files_leave_terminal(vm.log_fd, &err);
    } else {
        fprintf(stderr, "ferry-vm: %s\n", err.text);
    }
    if (!result)
        result = confine_self(options->confine, &err);
    if (!result)
        result = loop_run(vm.loop, &err);
    if (result) {
        log_error(vm.log, "%s", err.text);
        vm_set_exit(&vm, VM_EXIT_FAILED, err.text);
    }
    return vm_finish(&vm);
}
