#include "machine/machine.h"

#include "base/clock.h"
#include "base/error.h"
#include "device/device.h"
#include "device/uart16550.h"
#include "device/virtio_blk.h"
#include "device/virtio_console.h"
#include "device/virtio_net.h"
#include "device/virtio_rng.h"
#include "device/vmgenid.h"
#include "machine/accel.h"
#include "machine/board.h"
#include "machine/vcpus.h"
#include "net/backend.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* UART, RTC, rng, console, generation ID, and disks and cards. */
#define DEVICES_MAX        (5 + MACHINE_DISKS_MAX + MACHINE_NETS_MAX)
#define ACCEL_SECTIONS_MAX (ACCEL_VCPUS_MAX + 16)

struct machine {
    struct machine_config config;
    struct log *log;
    const struct machine_callbacks *callbacks;
    const struct board *board;
    struct memory *memory;
    struct mmio_bus *bus;
    struct accel *accel;
    struct accel_platform platform;
    struct vcpus *vcpus;

    struct device *devices[DEVICES_MAX]; /* in the order of their sections */
    unsigned device_count;
    struct device *uart; /* these are among them */
    struct device *console;
    struct device *vmgenid;
    struct device *nets[MACHINE_NETS_MAX];

    struct accel_section accel_sections[ACCEL_SECTIONS_MAX];
    size_t accel_section_count;
    /* Sections loaded so far, the accelerator's first. */
    bool loaded[ACCEL_SECTIONS_MAX + DEVICES_MAX];

    bool running;       /* atomic; the controlling thread's and, for events, the vCPUs' */
    bool clock_running; /* these two: the controlling thread's */
    bool devices_started;

    pthread_mutex_t console_lock; /* makes output of several sources one stream */
};

/* ---- what devices and CPUs call ---- */

static void machine_irq_set(void *controller, unsigned number, bool level)
{
    struct machine *machine = controller;

    machine->accel->ops->irq_set(machine->accel, number, level);
}

static void machine_console_output(void *opaque, const void *data, size_t size)
{
    struct machine *machine = opaque;

    if (!machine->callbacks->console_output)
        return;
    pthread_mutex_lock(&machine->console_lock);
    machine->callbacks->console_output(machine->callbacks->opaque, data, size);
    pthread_mutex_unlock(&machine->console_lock);
}

static void machine_console_ready(void *opaque)
{
    struct machine *machine = opaque;

    if (machine->callbacks->console_input_ready)
        machine->callbacks->console_input_ready(machine->callbacks->opaque);
}

/* Typed characters go to the UART; the firmware's console never has any. */
static size_t machine_firmware_read(void *opaque, void *data, size_t size)
{
    return 0;
}

static void machine_control_line(void *opaque, const char *line)
{
    struct machine *machine = opaque;

    log_info(machine->log, "the guest's agent answers: %s", line);
}

static void machine_accel_event(void *opaque, enum accel_event event, const char *why)
{
    static const enum machine_event events[] = {
        [ACCEL_EVENT_POWER_OFF] = MACHINE_EVENT_POWER_OFF,
        [ACCEL_EVENT_RESET] = MACHINE_EVENT_RESET,
        [ACCEL_EVENT_CRASH] = MACHINE_EVENT_CRASH,
    };
    struct machine *machine = opaque;

    vcpus_report(machine->vcpus, events[event], why);
}

static void machine_vcpus_event(void *opaque, enum machine_event event, const char *why)
{
    struct machine *machine = opaque;

    __atomic_store_n(&machine->running, false, __ATOMIC_RELEASE);
    machine->callbacks->event(machine->callbacks->opaque, event, why);
}

/* ---- making and ending ---- */

static struct device_env machine_place(struct machine *machine, enum board_device kind, unsigned index)
{
    struct board_place place = machine->board->place(kind, index);

    return (struct device_env){
        .memory = machine->memory,
        .bus = machine->bus,
        .log = machine->log,
        .mmio_addr = place.mmio_addr,
        .irq = {.set = machine_irq_set, .controller = machine, .number = place.irq},
    };
}

static void machine_add(struct machine *machine, struct device *device)
{
    machine->devices[machine->device_count++] = device;
}

static int machine_add_disk(struct machine *machine, unsigned index, struct ferry_error *err)
{
    const struct machine_disk_config *config = &machine->config.disks[index];
    struct virtio_blk_options options = {
        .path = config->path, .readonly = config->readonly, .direct = config->direct};
    struct device_env env = machine_place(machine, BOARD_BLK, index);
    struct device *device;
    int result = virtio_blk_create(&device, &env, index, &options, err);

    if (result)
        return result;
    machine_add(machine, device);
    return 0;
}

static int machine_add_net(struct machine *machine, unsigned index, struct ferry_error *err)
{
    const struct machine_net_config *config = &machine->config.nets[index];
    struct device_env env = machine_place(machine, BOARD_NET, index);
    struct virtio_net_options options;
    int result;

    memcpy(options.mac, config->mac, sizeof(options.mac));
    options.new_address = machine->config.new_identity;
    result = net_backend_new(&options.backend, config->backend, machine->log, err);
    if (result)
        return error_prefix(err, result, "net %u", index);
    result = virtio_net_create(&machine->nets[index], &env, index, &options, err);
    if (result)
        return result;
    machine_add(machine, machine->nets[index]);
    return 0;
}

static int machine_add_platform_devices(struct machine *machine, struct ferry_error *err)
{
    struct uart16550_options uart = {
        .opaque = machine, .output = machine_console_output, .input_ready = machine_console_ready};
    struct virtio_console_options console = {
        .opaque = machine, .output = machine_console_output, .control_line = machine_control_line};
    struct device_env env = machine_place(machine, BOARD_UART, 0);
    struct device *device;
    int result = uart16550_create(&machine->uart, &env, 0, &uart, err);

    if (result)
        return result;
    machine_add(machine, machine->uart);
    env = machine_place(machine, BOARD_RTC, 0);
    result = machine->board->create_rtc(&device, &env, 0, err);
    if (result)
        return result;
    machine_add(machine, device);
    env = machine_place(machine, BOARD_RNG, 0);
    result = virtio_rng_create(&device, &env, 0, err);
    if (result)
        return result;
    machine_add(machine, device);
    env = machine_place(machine, BOARD_CONSOLE, 0);
    result = virtio_console_create(&machine->console, &env, 0, &console, err);
    if (result)
        return result;
    machine_add(machine, machine->console);
    env = machine_place(machine, BOARD_VMGENID, 0);
    result = vmgenid_create(&machine->vmgenid, &env, 0, err);
    if (result)
        return result;
    machine_add(machine, machine->vmgenid);
    return 0;
}

static int machine_add_devices(struct machine *machine, struct ferry_error *err)
{
    int result = machine_add_platform_devices(machine, err);

    for (unsigned i = 0; i < machine->config.disk_count && !result; i++)
        result = machine_add_disk(machine, i, err);
    for (unsigned i = 0; i < machine->config.net_count && !result; i++)
        result = machine_add_net(machine, i, err);
    return result;
}

static int machine_add_accel(struct machine *machine, struct ferry_error *err)
{
    const struct accel_ops *ops = machine->board->accel;
    struct accel_config config = {.vcpus = machine->config.vcpus,
                                  .memory = machine->memory,
                                  .bus = machine->bus,
                                  .log = machine->log,
                                  .platform = &machine->platform,
                                  .tracking = machine->config.tracking,
                                  .cpu_features =
                                      machine->config.cpu_cut ? &machine->config.cpu_features : NULL};
    int result;

    machine->platform = (struct accel_platform){.opaque = machine,
                                                .event = machine_accel_event,
                                                .console_write = machine_console_output,
                                                .console_read = machine_firmware_read};
    if (ops->probe) {
        result = ops->probe(err);
        if (result)
            return error_prefix(err, result, "this host cannot run machine %s", machine->board->machine);
    }
    result = ops->create(&machine->accel, &config, err);
    if (result)
        return result;
    machine->accel_section_count = ACCEL_SECTIONS_MAX;
    ops->sections(machine->accel, machine->accel_sections, &machine->accel_section_count);
    return vcpus_new(&machine->vcpus, machine->accel, machine->config.vcpus, machine_vcpus_event, machine,
                     err);
}

static int machine_copy_config(struct machine *machine, const struct machine_config *config,
                               struct ferry_error *err)
{
    json_t *json = machine_config_to_json(config);
    int result = machine_config_from_json(&machine->config, json, err);

    json_decref(json);
    machine->config.cpu_cut = config->cpu_cut;
    machine->config.cpu_features = config->cpu_features;
    machine->config.tracking = config->tracking;
    machine->config.new_identity = config->new_identity;
    return result;
}

int machine_new_on(struct machine **out, const struct board *board, const struct machine_config *config,
                   struct log *log, const struct machine_callbacks *callbacks, struct ferry_error *err)
{
    struct machine *machine = calloc(1, sizeof(*machine));
    int result;

    if (!machine)
        return error_set(err, -ENOMEM, "out of memory for a VM");
    machine->log = log;
    machine->callbacks = callbacks;
    machine->board = board;
    pthread_mutex_init(&machine->console_lock, NULL);
    result = machine_copy_config(machine, config, err);
    if (!result)
        result = memory_new(&machine->memory, err);
    if (!result && machine->config.hugepages)
        memory_use_huge_pages(machine->memory, machine->config.hugepages);
    if (!result)
        result = board->add_memory(machine->memory, machine->config.memory, err);
    if (!result)
        result = mmio_bus_new(&machine->bus, err);
    if (!result)
        result = machine_add_accel(machine, err);
    if (!result)
        result = machine_add_devices(machine, err);
    if (result) {
        machine_free(machine);
        return result;
    }
    *out = machine;
    return 0;
}

int machine_new(struct machine **out, const struct machine_config *config, struct log *log,
                const struct machine_callbacks *callbacks, struct ferry_error *err)
{
    const struct board *board = board_find(config->machine);

    if (!board)
        return error_set(err, -EOPNOTSUPP, "this host has no machine of type %s", config->machine);
    return machine_new_on(out, board, config, log, callbacks, err);
}

void machine_free(struct machine *machine)
{
    if (!machine)
        return;
    if (machine->vcpus) {
        machine_pause(machine, NULL);
        machine_quiesce(machine, UINT64_MAX, NULL);
        vcpus_free(machine->vcpus);
    }
    for (unsigned i = machine->device_count; i-- > 0;)
        machine->devices[i]->ops->destroy(machine->devices[i]);
    if (machine->accel)
        machine->board->accel->destroy(machine->accel);
    mmio_bus_free(machine->bus);
    memory_free(machine->memory);
    pthread_mutex_destroy(&machine->console_lock);
    machine_config_free(&machine->config);
    free(machine);
}

const struct machine_config *machine_config(const struct machine *machine)
{
    return &machine->config;
}

struct memory *machine_memory(struct machine *machine)
{
    return machine->memory;
}

/* ---- booting, running, pausing ---- */

static int machine_load_guest(struct machine *machine, struct ferry_error *err)
{
    struct accel_boot boot;
    int result = machine->board->load(&machine->config, machine->memory, &boot, err);

    if (result)
        return result;
    return machine->accel->ops->reset(machine->accel, &boot, err);
}

int machine_boot(struct machine *machine, struct ferry_error *err)
{
    for (unsigned i = 0; i < machine->config.net_count; i++) {
        int result = net_backend_check(machine->config.nets[i].backend, err);

        if (result)
            return error_prefix(err, result, "net %u", i);
    }
    return machine_load_guest(machine, err);
}

/* A reboot may interrupt I/O: what the guest asked for is finished first, as a disk's cache would. */
#define RESET_QUIESCE_NS (30 * NS_PER_S)

int machine_reset(struct machine *machine, struct ferry_error *err)
{
    int result = machine_pause(machine, err);

    if (!result)
        result = machine_quiesce(machine, clock_now_ns() + RESET_QUIESCE_NS, err);
    if (result)
        return error_prefix(err, result, "cannot reset the VM");
    for (unsigned i = 0; i < machine->device_count; i++)
        machine->devices[i]->ops->reset(machine->devices[i]);
    return machine_load_guest(machine, err);
}

/* Undoes a quiesce; what was started before a failure is quiesced again. */
static int machine_start_devices(struct machine *machine, struct ferry_error *err)
{
    if (machine->devices_started)
        return 0;
    for (unsigned i = 0; i < machine->device_count; i++) {
        struct device *device = machine->devices[i];
        int result = device->ops->start(device, err);

        if (result) {
            while (i-- > 0)
                machine->devices[i]->ops->quiesce(machine->devices[i], UINT64_MAX, NULL);
            return error_prefix(err, result, "cannot start %s", device->name);
        }
    }
    machine->devices_started = true;
    return 0;
}

int machine_resume(struct machine *machine, struct ferry_error *err)
{
    int result;

    if (machine_running(machine))
        return 0;
    result = machine_start_devices(machine, err);
    if (result)
        return result;
    /* An event may have stopped the vCPUs without a pause; then the clock never stopped. */
    if (!machine->clock_running) {
        machine->accel->ops->clock_start(machine->accel);
        machine->clock_running = true;
    }
    __atomic_store_n(&machine->running, true, __ATOMIC_RELEASE);
    vcpus_run(machine->vcpus);
    return 0;
}

void machine_suspend(struct machine *machine, bool on)
{
    vcpus_suspend(machine->vcpus, on);
}

int machine_pause(struct machine *machine, struct ferry_error *err)
{
    return machine_try_pause(machine, UINT64_MAX, err);
}

int machine_try_pause(struct machine *machine, uint64_t deadline_ns, struct ferry_error *err)
{
    if (!vcpus_stop_until(machine->vcpus, deadline_ns))
        return error_set(err, -EBUSY, "a vCPU waits for memory that has not arrived yet");
    __atomic_store_n(&machine->running, false, __ATOMIC_RELEASE);
    if (machine->clock_running) {
        machine->accel->ops->clock_stop(machine->accel);
        machine->clock_running = false;
    }
    return 0;
}

int machine_quiesce(struct machine *machine, uint64_t deadline_ns, struct ferry_error *err)
{
    if (!machine->devices_started)
        return 0;
    for (unsigned i = 0; i < machine->device_count; i++) {
        struct device *device = machine->devices[i];
        int result = device->ops->quiesce(device, deadline_ns, err);

        if (result) {
            while (i-- > 0)
                machine->devices[i]->ops->start(machine->devices[i], NULL);
            return result;
        }
    }
    machine->devices_started = false;
    return 0;
}

bool machine_running(const struct machine *machine)
{
    return __atomic_load_n(&machine->running, __ATOMIC_ACQUIRE);
}

int machine_acquire(struct machine *machine, struct ferry_error *err)
{
    for (unsigned i = 0; i < machine->device_count; i++) {
        struct device *device = machine->devices[i];
        int result = device->ops->acquire ? device->ops->acquire(device, err) : 0;

        if (result) {
            machine_release(machine);
            return result;
        }
    }
    return 0;
}

void machine_release(struct machine *machine)
{
    for (unsigned i = 0; i < machine->device_count; i++)
        if (machine->devices[i]->ops->release)
            machine->devices[i]->ops->release(machine->devices[i]);
}

int machine_ask_stop(struct machine *machine, struct ferry_error *err)
{
    int result = virtio_console_control_send(machine->console, "shutdown\n", err);

    if (result == -ENOTCONN)
        return error_set(err, -EOPNOTSUPP,
                         "%s cannot be asked to stop: nothing in the guest has the control port %s open",
                         machine->config.name, VIRTIO_CONSOLE_CONTROL_NAME);
    return result;
}

size_t machine_console_input(struct machine *machine, const void *data, size_t size)
{
    return uart16550_input(machine->uart, data, size);
}

void machine_announce(struct machine *machine)
{
    for (unsigned i = 0; i < machine->config.net_count; i++)
        virtio_net_announce(machine->nets[i]);
}

/* ---- state ---- */

static int machine_save_one(struct machine *machine, size_t index, struct buffer *buffer,
                            machine_section_visitor *visitor, void *opaque, struct ferry_error *err)
{
    const char *name;
    uint32_t version;

    buffer_clear(buffer);
    if (index < machine->accel_section_count) {
        const struct accel_section *section = &machine->accel_sections[index];
        int result = machine->accel->ops->section_save(machine->accel, section->index, buffer, err);

        if (result)
            return error_prefix(err, result, "cannot save %s", section->name);
        name = section->name;
        version = section->table->version;
    } else {
        struct device *device = machine->devices[index - machine->accel_section_count];

        device->ops->save(device, buffer);
        name = device->name;
        version = device->state->version;
    }
    if (buffer_failed(buffer))
        return error_set(err, -ENOMEM, "out of memory while saving %s", name);
    return visitor(opaque, name, version, buffer->data, buffer->size, err);
}

int machine_save(struct machine *machine, machine_section_visitor *visitor, void *opaque,
                 struct ferry_error *err)
{
    struct buffer buffer = BUFFER_INIT;
    int result = 0;

    for (size_t i = 0; i < machine->accel_section_count + machine->device_count && !result; i++)
        result = machine_save_one(machine, i, &buffer, visitor, opaque, err);
    buffer_free(&buffer);
    return result;
}

static const char *machine_section_name(const struct machine *machine, size_t index)
{
    if (index < machine->accel_section_count)
        return machine->accel_sections[index].name;
    return machine->devices[index - machine->accel_section_count]->name;
}

static bool machine_section_optional(const struct machine *machine, size_t index)
{
    return index >= machine->accel_section_count &&
           machine->devices[index - machine->accel_section_count]->optional;
}

static int machine_load_one(struct machine *machine, size_t index, uint32_t version, struct reader *in,
                            struct ferry_error *err)
{
    struct device *device;

    if (index < machine->accel_section_count)
        return machine->accel->ops->section_load(machine->accel, machine->accel_sections[index].index,
                                                 version, in, err);
    device = machine->devices[index - machine->accel_section_count];
    return device->ops->load(device, version, in, err);
}

int machine_load_section(struct machine *machine, const char *name, uint32_t version, const void *data,
                         size_t size, struct ferry_error *err)
{
    size_t count = machine->accel_section_count + machine->device_count;
    struct reader in = reader_init(data, size);
    size_t index = 0;
    int result;

    while (index < count && strcmp(machine_section_name(machine, index), name) != 0)
        index++;
    if (index == count)
        return error_set(err, -ENOENT, "section %s is of something this VM does not have", name);
    if (machine->loaded[index])
        return error_set(err, -EEXIST, "section %s came twice", name);
    result = machine_load_one(machine, index, version, &in, err);
    if (result)
        return result;
    if (reader_left(&in))
        return error_set(err, -EINVAL, "section %s has %zu bytes too many", name, reader_left(&in));
    machine->loaded[index] = true;
    return 0;
}

int machine_load_finish(struct machine *machine, struct ferry_error *err)
{
    for (size_t i = 0; i < machine->accel_section_count + machine->device_count; i++)
        if (!machine->loaded[i] && !machine_section_optional(machine, i))
            return error_set(err, -ENOENT, "section %s is missing", machine_section_name(machine, i));
    memset(machine->loaded, 0, sizeof(machine->loaded));
    return 0;
}

int machine_new_generation(struct machine *machine, struct ferry_error *err)
{
    return vmgenid_renew(machine->vmgenid, err);
}

void machine_clock_advance(struct machine *machine, uint64_t nanoseconds)
{
    machine->accel->ops->clock_advance(machine->accel, nanoseconds);
}

/* ---- dirty tracking and throttling, any thread ---- */

int machine_dirty_start(struct machine *machine, struct ferry_error *err)
{
    return machine->accel->ops->dirty_start(machine->accel, err);
}

int machine_dirty_fetch(struct machine *machine, size_t region, uint64_t *bitmap, struct ferry_error *err)
{
    if (region >= memory_region_count(machine->memory))
        return error_set(err, -EINVAL, "there is no memory region %zu", region);
    return machine->accel->ops->dirty_fetch(machine->accel, region, bitmap, err);
}

void machine_dirty_stop(struct machine *machine)
{
    machine->accel->ops->dirty_stop(machine->accel);
}

void machine_dirty_tracking(const struct machine *machine, char *text, size_t size)
{
    machine->accel->ops->dirty_describe(machine->accel, text, size);
}

void machine_throttle(struct machine *machine, unsigned percent)
{
    machine->accel->ops->throttle(machine->accel, percent);
}

size_t machine_vcpus_dirtied(const struct machine *machine, uint64_t *pages, size_t max)
{
    const struct accel_ops *ops = machine->accel->ops;
    size_t count = machine->config.vcpus < max ? machine->config.vcpus : max;

    if (!ops->vcpu_dirtied || !ops->vcpu_throttle)
        return 0;
    for (unsigned i = 0; i < count; i++)
        if (!ops->vcpu_dirtied(machine->accel, i, &pages[i]))
            return 0;
    return count;
}

void machine_throttle_vcpus(struct machine *machine, const unsigned *percent, size_t count)
{
    for (unsigned i = 0; i < count; i++)
        machine->accel->ops->vcpu_throttle(machine->accel, i, percent[i]);
}

bool machine_cpu(const struct machine *machine, struct cpu *cpu)
{
    if (!machine->accel->ops->cpu_given)
        return false;
    machine->accel->ops->cpu_given(machine->accel, cpu);
    return true;
}
