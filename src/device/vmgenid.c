#include "device/vmgenid.h"

#include "base/error.h"
#include "base/uuid.h"
#include "device/tables.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct vmgenid_state {
    uint8_t id[VMGENID_SIZE];
    bool irq_pending; /* the guest has not read it since it changed */
};

struct vmgenid {
    struct device device;
    struct device_env env;
    pthread_mutex_t lock; /* guards all below */
    struct vmgenid_state state;
    bool running;
};

_Static_assert(VMGENID_SIZE == UUID_SIZE, "it is made as a UUID is");

static const struct state_field vmgenid_fields[] = {
    STATE_ARRAY(struct vmgenid_state, id, STATE_BYTES),
    STATE_FIELD(struct vmgenid_state, irq_pending, STATE_BOOL),
};

const struct state_table vmgenid_table = {
    .name = "vmgenid",
    .version = 1,
    .fields = vmgenid_fields,
    .field_count = ARRAY_SIZE(vmgenid_fields),
    .object_size = sizeof(struct vmgenid_state),
};

static struct vmgenid *from_device(struct device *device)
{
    return (struct vmgenid *)((char *)device - offsetof(struct vmgenid, device));
}

static void update_interrupt(struct vmgenid *vmgenid)
{
    if (vmgenid->running)
        irq_set(&vmgenid->env.irq, vmgenid->state.irq_pending);
}

static uint64_t vmgenid_read(void *opaque, uint64_t offset, unsigned size)
{
    struct vmgenid *vmgenid = opaque;
    uint64_t value = 0;

    if (offset >= VMGENID_SIZE)
        return 0;
    pthread_mutex_lock(&vmgenid->lock);
    for (unsigned i = 0; i < size && offset + i < VMGENID_SIZE; i++)
        value |= (uint64_t)vmgenid->state.id[offset + i] << (8 * i);
    if (offset + size >= VMGENID_SIZE && vmgenid->state.irq_pending) {
        vmgenid->state.irq_pending = false;
        update_interrupt(vmgenid);
    }
    pthread_mutex_unlock(&vmgenid->lock);
    return value;
}

static void vmgenid_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
}

static const struct mmio_ops vmgenid_mmio_ops = {
    .read = vmgenid_read,
    .write = vmgenid_write,
};

int vmgenid_renew(struct device *device, struct ferry_error *err)
{
    struct vmgenid *vmgenid = from_device(device);
    uint8_t id[VMGENID_SIZE];
    int result = uuid_make(id, err);

    if (result)
        return error_prefix(err, result, "%s", device->name);
    pthread_mutex_lock(&vmgenid->lock);
    memcpy(vmgenid->state.id, id, sizeof(id));
    vmgenid->state.irq_pending = true;
    pthread_mutex_unlock(&vmgenid->lock);
    return 0;
}

/* A guest that boots reads it anyway. */
static void vmgenid_reset(struct device *device)
{
    struct vmgenid *vmgenid = from_device(device);

    pthread_mutex_lock(&vmgenid->lock);
    vmgenid->state.irq_pending = false;
    pthread_mutex_unlock(&vmgenid->lock);
}

static int vmgenid_start(struct device *device, struct ferry_error *err)
{
    struct vmgenid *vmgenid = from_device(device);

    pthread_mutex_lock(&vmgenid->lock);
    vmgenid->running = true;
    update_interrupt(vmgenid);
    pthread_mutex_unlock(&vmgenid->lock);
    return 0;
}

static int vmgenid_quiesce(struct device *device, uint64_t deadline_ns, struct ferry_error *err)
{
    struct vmgenid *vmgenid = from_device(device);

    pthread_mutex_lock(&vmgenid->lock);
    vmgenid->running = false;
    pthread_mutex_unlock(&vmgenid->lock);
    return 0;
}

static void vmgenid_save(struct device *device, struct buffer *out)
{
    state_save(&vmgenid_table, &from_device(device)->state, out);
}

static int vmgenid_load(struct device *device, uint32_t version, struct reader *in, struct ferry_error *err)
{
    struct vmgenid *vmgenid = from_device(device);
    int result;

    pthread_mutex_lock(&vmgenid->lock);
    result = state_load(&vmgenid_table, device->name, version, &vmgenid->state, in, err);
    pthread_mutex_unlock(&vmgenid->lock);
    return result;
}

static void vmgenid_destroy(struct device *device)
{
    struct vmgenid *vmgenid = from_device(device);

    pthread_mutex_destroy(&vmgenid->lock);
    free(vmgenid);
}

static const struct device_ops vmgenid_ops = {
    .reset = vmgenid_reset,
    .start = vmgenid_start,
    .quiesce = vmgenid_quiesce,
    .save = vmgenid_save,
    .load = vmgenid_load,
    .destroy = vmgenid_destroy,
};

int vmgenid_create(struct device **out, const struct device_env *env, unsigned index, struct ferry_error *err)
{
    struct vmgenid *vmgenid = calloc(1, sizeof(*vmgenid));
    int result;

    if (!vmgenid)
        return error_set(err, -ENOMEM, "out of memory while adding vmgenid%u", index);
    vmgenid->device.ops = &vmgenid_ops;
    vmgenid->device.state = &vmgenid_table;
    vmgenid->device.optional = true;
    snprintf(vmgenid->device.name, sizeof(vmgenid->device.name), "vmgenid%u", index);
    vmgenid->env = *env;
    pthread_mutex_init(&vmgenid->lock, NULL);
    result = uuid_make(vmgenid->state.id, err);
    if (result == 0)
        result = mmio_bus_add(env->bus, vmgenid->device.name, env->mmio_addr, VMGENID_MMIO_SIZE,
                              &vmgenid_mmio_ops, vmgenid, err);
    if (result < 0) {
        vmgenid_destroy(&vmgenid->device);
        return result;
    }
    *out = &vmgenid->device;
    return 0;
}
