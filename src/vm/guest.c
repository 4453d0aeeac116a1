#include "vm/guest.h"

#include "base/clock.h"
#include "base/error.h"
#include "vm/checkpoint.h"
#include "vm/console_mark.h"
#include "vm/files.h"
#include "vm/migrate.h"
#include "vm/ownership.h"
#include "vm/vm.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static int guest_list_regions(void *guest, struct ferry_ram_region *regions, size_t *count,
                              struct ferry_error *err)
{
    struct vm *vm = guest;
    struct memory *memory = machine_memory(vm->machine);

    *count = memory_region_count(memory);
    if (*count > FERRY_REGIONS_MAX)
        return error_set(err, -E2BIG, "the VM has %zu memory regions; %d can be moved", *count,
                         FERRY_REGIONS_MAX);
    for (size_t i = 0; i < *count; i++) {
        const struct memory_region *region = memory_region(memory, i);

        regions[i] = (struct ferry_ram_region){.guest_addr = region->guest_addr,
                                               .size = region->size,
                                               .host_ptr = region->host_ptr,
                                               .memfd = region->memfd};
        snprintf(regions[i].name, sizeof(regions[i].name), "%s", region->name);
    }
    return 0;
}

static int guest_adopt_memory(void *guest, size_t index, int fd, struct ferry_error *err)
{
    return memory_adopt(machine_memory(((struct vm *)guest)->machine), index, fd, err);
}

static int guest_dirty_start(void *guest, struct ferry_error *err)
{
    return machine_dirty_start(((struct vm *)guest)->machine, err);
}

static int guest_dirty_fetch(void *guest, size_t region, uint64_t *bitmap, struct ferry_error *err)
{
    return machine_dirty_fetch(((struct vm *)guest)->machine, region, bitmap, err);
}

static void guest_dirty_stop(void *guest)
{
    machine_dirty_stop(((struct vm *)guest)->machine);
}

/* Lock held, vCPUs stopped: may the guest be moved as it stands? */
static int guest_settle_event(struct vm *vm, struct ferry_error *err)
{
    char why[FERRY_ERROR_TEXT_SIZE];
    enum machine_event event = vm_event(vm, why);

    if (event == MACHINE_EVENT_RESET) {
        if (vm_reboot(vm, NULL) == 0)
            return 0;
        event = vm_event(vm, why);
    }
    if (!event)
        return 0;
    if (vm_checkpoint_active(vm->checkpoint))
        vm_checkpoint_abort(vm->checkpoint, vm_event_words(event));
    else
        migration_abort(vm->migration, FERRY_CAUSE_GUEST, vm_event_words(event));
    return error_set(err, -ECANCELED, "%s", vm_event_words(event));
}

static int guest_pause(void *guest, bool *was_running, struct ferry_error *err)
{
    struct vm *vm = guest;
    int result;

    pthread_mutex_lock(&vm->lock);
    result = machine_pause(vm->machine, err);
    if (!result)
        result = guest_settle_event(vm, err);
    if (!result) {
        *was_running = vm->running;
        vm->frozen = true;
    }
    pthread_mutex_unlock(&vm->lock);
    return result;
}

static int guest_quiesce(void *guest, uint64_t timeout_ns, struct ferry_error *err)
{
    return machine_quiesce(((struct vm *)guest)->machine, clock_now_ns() + timeout_ns, err);
}

/* A paused VM's devices stay quiesced until it is resumed: they have nothing to do without its vCPUs. */
static int guest_resume(void *guest, bool run, struct ferry_error *err)
{
    struct vm *vm = guest;
    int result = 0;

    pthread_mutex_lock(&vm->lock);
    if (run)
        console_mark_continues(vm);
    if (run)
        result = machine_resume(vm->machine, err);
    if (!result) {
        vm->running = run;
        vm->frozen = false;
        vm->setup = false;
    }
    pthread_mutex_unlock(&vm->lock);
    if (!result)
        vm_went_on(vm);
    return result;
}

static int guest_visit_section(void *opaque, const char *name, uint32_t version, const void *data,
                               size_t size, struct ferry_error *err)
{
    return ferry_sink_section(opaque, name, version, data, size, err);
}

/* Sections beside the machine's: what the process keeps for the VM. */
static int guest_save_own(struct vm *vm, struct ferry_sink *sink, struct ferry_error *err)
{
    struct buffer buffer = BUFFER_INIT;
    int result = 0;

    console_mark_stopped(vm);
    /* The process that comes next reads on in the log. */
    if (migration_active(vm->migration) && migration_stays(vm->migration))
        console_flush(vm->console);
    console_save(vm->console, &buffer);
    if (buffer_failed(&buffer))
        result = error_set(err, -ENOMEM, "out of memory while saving the console's history");
    if (!result)
        result =
            ferry_sink_section(sink, CONSOLE_SECTION, console_state.version, buffer.data, buffer.size, err);
    buffer_clear(&buffer);
    if (!result)
        result = vm_log_save(vm, &buffer, err);
    if (!result)
        result =
            ferry_sink_section(sink, VM_LOG_SECTION, vm_log_state.version, buffer.data, buffer.size, err);
    buffer_free(&buffer);
    return result;
}

static int guest_save_state(void *guest, struct ferry_sink *sink, struct ferry_error *err)
{
    struct vm *vm = guest;
    int result = machine_save(vm->machine, guest_visit_section, sink, err);

    return result ? result : guest_save_own(vm, sink, err);
}

static int guest_load_own(const struct ferry_section *section, bool *loaded, struct reader *in, int result,
                          struct ferry_error *err)
{
    if (result)
        return result;
    if (reader_left(in))
        return error_set(err, -EINVAL, "section %s has %zu bytes too many", section->name, reader_left(in));
    *loaded = true;
    return 0;
}

static int guest_load_section(void *guest, const struct ferry_section *section, struct ferry_error *err)
{
    struct vm *vm = guest;
    struct reader in = reader_init(section->data, section->size);
    bool is_console = strcmp(section->name, CONSOLE_SECTION) == 0;
    bool is_log = strcmp(section->name, VM_LOG_SECTION) == 0;

    if ((is_console && vm->console_loaded) || (is_log && vm->log_loaded))
        return error_set(err, -EEXIST, "section %s came twice", section->name);
    if (is_console)
        return guest_load_own(section, &vm->console_loaded, &in,
                              console_load(vm->console, section->version, &in, err), err);
    if (is_log)
        return guest_load_own(section, &vm->log_loaded, &in, vm_log_load(vm, section->version, &in, err),
                              err);
    return machine_load_section(vm->machine, section->name, section->version, section->data, section->size,
                                err);
}

static int guest_load_finish(void *guest, struct ferry_error *err)
{
    struct vm *vm = guest;

    if (!vm->console_loaded || !vm->log_loaded)
        return error_set(err, -ENOENT, "section %s is missing",
                         vm->console_loaded ? VM_LOG_SECTION : CONSOLE_SECTION);

    int result = machine_load_finish(vm->machine, err);

    /* A guest from a file is given by nobody. */
    if (result || vm->options.resume)
        return result;
    return files_mark_handover(vm->handover_fd, true, err);
}

static void guest_advance_clock(void *guest, uint64_t nanoseconds)
{
    machine_clock_advance(((struct vm *)guest)->machine, nanoseconds);
}

static void guest_throttle(void *guest, unsigned percent)
{
    machine_throttle(((struct vm *)guest)->machine, percent);
}

static size_t guest_vcpu_writes(void *guest, uint64_t *pages, size_t max)
{
    return machine_vcpus_dirtied(((struct vm *)guest)->machine, pages, max);
}

static void guest_throttle_vcpus(void *guest, const unsigned *percent, size_t count)
{
    machine_throttle_vcpus(((struct vm *)guest)->machine, percent, count);
}

static int guest_release(void *guest, const struct ferry_handover *handover, struct ferry_error *err)
{
    struct vm *vm = guest;
    int result = files_mark_handover(vm->handover_fd, true, err);

    return result ? result : ownership_release(vm->ownership, handover, err);
}

static int guest_acquire(void *guest, const struct ferry_handover *handover, struct ferry_error *err)
{
    return ownership_acquire(((struct vm *)guest)->ownership, handover, err);
}

static enum ferry_retake guest_retake(void *guest, const struct ferry_handover *handover,
                                      struct ferry_error *err)
{
    struct vm *vm = guest;
    struct ferry_error why = {0};
    enum ferry_retake answer = ownership_retake(vm->ownership, handover, vm->options.lock_wait_ns, &why);

    if (answer == FERRY_RETAKE_RESUME)
        return answer;
    pthread_mutex_lock(&vm->lock);
    memcpy(vm->why, why.text, sizeof(vm->why));
    pthread_mutex_unlock(&vm->lock);
    error_set(err, why.code, "%s", why.text);
    return answer;
}

static void guest_give_back(void *guest, const struct ferry_handover *handover)
{
    ownership_give_back(((struct vm *)guest)->ownership, handover);
}

static enum ferry_elsewhere guest_look_elsewhere(void *guest, const struct ferry_handover *handover,
                                                 struct ferry_error *err)
{
    return ownership_look(((struct vm *)guest)->ownership, handover, err);
}

/* Not under the lock: whoever has it may be waiting for a vCPU, and that for memory. */
static void guest_hold(void *guest, bool hold, const char *why)
{
    struct vm *vm = guest;

    machine_suspend(vm->machine, hold);
    vm_set_held(vm, hold, why);
}

static void guest_announce(void *guest)
{
    machine_announce(((struct vm *)guest)->machine);
}

const struct ferry_guest_ops vm_guest_ops = {
    .list_regions = guest_list_regions,
    .adopt_memory = guest_adopt_memory,
    .dirty_start = guest_dirty_start,
    .dirty_fetch = guest_dirty_fetch,
    .dirty_stop = guest_dirty_stop,
    .pause = guest_pause,
    .quiesce = guest_quiesce,
    .resume = guest_resume,
    .save_state = guest_save_state,
    .load_section = guest_load_section,
    .load_finish = guest_load_finish,
    .advance_clock = guest_advance_clock,
    .throttle = guest_throttle,
    .vcpu_writes = guest_vcpu_writes,
    .throttle_vcpus = guest_throttle_vcpus,
    .release_ownership = guest_release,
    .acquire_ownership = guest_acquire,
    .retake_ownership = guest_retake,
    .announce = guest_announce,
    .give_back_ownership = guest_give_back,
    .look_elsewhere = guest_look_elsewhere,
    .hold = guest_hold,
};
