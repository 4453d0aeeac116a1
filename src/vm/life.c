/* The beginning and the end of a ferry-vm, and what makes them one life: vm_main. */
#include "vm/vm_parts.h"

#include "base/error.h"
#include "base/sock.h"
#include "vm/checkpoint.h"
#include "vm/files.h"
#include "vm/migrate.h"
#include "vm/ownership.h"
#include "vm/sample.h"

#include <ferry/checkpoint.h>

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <sys/signalfd.h>
#include <unistd.h>

/* An arriving VM whose migration never comes gives its memory back. */
#define INCOMING_PATIENCE_NS (60 * NS_PER_S)
/* Outstanding I/O at the end of the process. */
#define QUIESCE_PATIENCE_NS (10 * NS_PER_S)

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

/* ---- end ---- */

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
