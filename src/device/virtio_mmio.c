#include "device/virtio_mmio.h"

#include <endian.h>
#include <string.h>

/* Register offsets (§4.2.2). */
enum virtio_mmio_register {
    REG_MAGIC_VALUE = 0x000,
    REG_VERSION = 0x004,
    REG_DEVICE_ID = 0x008,
    REG_VENDOR_ID = 0x00c,
    REG_DEVICE_FEATURES = 0x010,
    REG_DEVICE_FEATURES_SEL = 0x014,
    REG_DRIVER_FEATURES = 0x020,
    REG_DRIVER_FEATURES_SEL = 0x024,
    REG_QUEUE_SEL = 0x030,
    REG_QUEUE_NUM_MAX = 0x034,
    REG_QUEUE_NUM = 0x038,
    REG_QUEUE_READY = 0x044,
    REG_QUEUE_NOTIFY = 0x050,
    REG_INTERRUPT_STATUS = 0x060,
    REG_INTERRUPT_ACK = 0x064,
    REG_STATUS = 0x070,
    REG_QUEUE_DESC_LOW = 0x080,
    REG_QUEUE_DESC_HIGH = 0x084,
    REG_QUEUE_DRIVER_LOW = 0x090,
    REG_QUEUE_DRIVER_HIGH = 0x094,
    REG_QUEUE_DEVICE_LOW = 0x0a0,
    REG_QUEUE_DEVICE_HIGH = 0x0a4,
    REG_SHM_LEN_LOW = 0x0b0,
    REG_SHM_LEN_HIGH = 0x0b4,
    REG_SHM_BASE_LOW = 0x0b8,
    REG_SHM_BASE_HIGH = 0x0bc,
    REG_CONFIG_GENERATION = 0x0fc,
    REG_CONFIG = 0x100,
};

#define MAGIC_VALUE UINT32_C(0x74726976) /* "virt" */
#define VENDOR_ID   UINT32_C(0x59525246) /* "FRRY" */

static void set_low(uint64_t *value, uint32_t low)
{
    *value = (*value & ~UINT64_C(0xffffffff)) | low;
}

static void set_high(uint64_t *value, uint32_t high)
{
    *value = (*value & UINT64_C(0xffffffff)) | (uint64_t)high << 32;
}

/* The selected queue, or NULL when the device has no such queue. */
static struct virtqueue_state *selected_queue(struct virtio *virtio)
{
    uint32_t index = virtio->state->queue_sel;

    return index < virtio->ops->queue_count ? &virtio->state->queues[index] : NULL;
}

static uint64_t read_config(struct virtio *virtio, uint64_t offset, unsigned size)
{
    uint64_t value = 0;

    if (offset < virtio->config_size) {
        uint64_t left = virtio->config_size - offset;

        pthread_mutex_lock(&virtio->lock);
        memcpy(&value, (const uint8_t *)virtio->config + offset, size < left ? size : left);
        pthread_mutex_unlock(&virtio->lock);
    }
    return le64toh(value);
}

static uint32_t read_register(struct virtio *virtio, uint64_t offset)
{
    const struct virtio_state *state = virtio->state;
    const struct virtqueue_state *queue = selected_queue(virtio);

    switch (offset) {
    case REG_MAGIC_VALUE:
        return MAGIC_VALUE;
    case REG_VERSION:
        return 2;
    case REG_DEVICE_ID:
        return virtio->ops->device_id;
    case REG_VENDOR_ID:
        return VENDOR_ID;
    case REG_DEVICE_FEATURES:
        return state->device_features_sel < 2
                   ? (uint32_t)(virtio->features >> 32 * state->device_features_sel)
                   : 0;
    case REG_QUEUE_NUM_MAX:
        return queue ? virtio->ops->queue_size : 0;
    case REG_QUEUE_READY:
        return queue ? queue->ready : 0;
    case REG_INTERRUPT_STATUS:
        return state->interrupt_status;
    case REG_STATUS:
        return state->status;
    case REG_SHM_LEN_LOW: /* there is no shared memory region of any number */
    case REG_SHM_LEN_HIGH:
    case REG_SHM_BASE_LOW:
    case REG_SHM_BASE_HIGH:
        return UINT32_MAX;
    case REG_CONFIG_GENERATION:
        return state->config_generation;
    default:
        return 0;
    }
}

static uint64_t mmio_read(void *device, uint64_t offset, unsigned size)
{
    struct virtio *virtio = device;
    uint32_t value;

    if (offset >= REG_CONFIG)
        return read_config(virtio, offset - REG_CONFIG, size);
    if (size != 4 || offset % 4)
        return 0;
    pthread_mutex_lock(&virtio->lock);
    value = read_register(virtio, offset);
    pthread_mutex_unlock(&virtio->lock);
    return value;
}

static void write_driver_features(struct virtio *virtio, uint32_t value)
{
    struct virtio_state *state = virtio->state;

    if (state->status & VIRTIO_STATUS_FEATURES_OK)
        return;
    if (state->driver_features_sel == 0)
        set_low(&state->driver_features, value);
    else if (state->driver_features_sel == 1)
        set_high(&state->driver_features, value);
}

/* Registers of the selected queue; its addresses and size are fixed while it is ready. */
static void write_queue_register(struct virtio *virtio, uint64_t offset, uint32_t value)
{
    struct virtqueue_state *queue = selected_queue(virtio);

    if (!queue || queue->ready)
        return;
    switch (offset) {
    case REG_QUEUE_NUM:
        if (!value || value > virtio->ops->queue_size || (value & (value - 1)))
            virtio_violate(virtio, "queue %u: size %u is not offered", virtio->state->queue_sel, value);
        else
            queue->size = value;
        break;
    case REG_QUEUE_READY:
        if (value & 1) {
            queue->ready = true;
            virtqueue_remap(&virtio->queues[virtio->state->queue_sel]);
            virtio_wake(virtio);
        }
        break;
    case REG_QUEUE_DESC_LOW:
        set_low(&queue->desc_addr, value);
        break;
    case REG_QUEUE_DESC_HIGH:
        set_high(&queue->desc_addr, value);
        break;
    case REG_QUEUE_DRIVER_LOW:
        set_low(&queue->driver_addr, value);
        break;
    case REG_QUEUE_DRIVER_HIGH:
        set_high(&queue->driver_addr, value);
        break;
    case REG_QUEUE_DEVICE_LOW:
        set_low(&queue->device_addr, value);
        break;
    case REG_QUEUE_DEVICE_HIGH:
        set_high(&queue->device_addr, value);
        break;
    default:
        break;
    }
}

static void acknowledge_interrupt(struct virtio *virtio, uint32_t value)
{
    virtio->state->interrupt_status &= ~value;
    if (!virtio->state->interrupt_status)
        irq_set(&virtio->env.irq, false);
}

static void write_register(struct virtio *virtio, uint64_t offset, uint32_t value)
{
    switch (offset) {
    case REG_DEVICE_FEATURES_SEL:
        virtio->state->device_features_sel = value;
        break;
    case REG_DRIVER_FEATURES:
        write_driver_features(virtio, value);
        break;
    case REG_DRIVER_FEATURES_SEL:
        virtio->state->driver_features_sel = value;
        break;
    case REG_QUEUE_SEL:
        virtio->state->queue_sel = value;
        break;
    case REG_INTERRUPT_ACK:
        acknowledge_interrupt(virtio, value);
        break;
    default:
        write_queue_register(virtio, offset, value);
        break;
    }
}

/* Is this a write of zero to the ready register of a queue that is ready? */
static bool disables_queue(struct virtio *virtio, uint64_t offset, uint32_t value, unsigned *index)
{
    const struct virtqueue_state *queue = selected_queue(virtio);

    *index = virtio->state->queue_sel;
    return offset == REG_QUEUE_READY && !(value & 1) && queue && queue->ready;
}

static void mmio_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct virtio *virtio = device;
    unsigned disabled;
    bool disable;

    if (offset >= REG_CONFIG || size != 4 || offset % 4)
        return;
    if (offset == REG_QUEUE_NOTIFY) {
        virtio_wake(virtio); /* whichever queue: the worker looks at them all */
        return;
    }
    if (offset == REG_STATUS) {
        virtio_guest_set_status(virtio, value);
        return;
    }
    pthread_mutex_lock(&virtio->lock);
    disable = disables_queue(virtio, offset, value, &disabled);
    if (!disable)
        write_register(virtio, offset, value);
    pthread_mutex_unlock(&virtio->lock);
    if (disable)
        virtio_guest_disable_queue(virtio, disabled);
}

static const struct mmio_ops virtio_mmio_ops = {
    .read = mmio_read,
    .write = mmio_write,
};

int virtio_mmio_add(struct virtio *virtio, struct ferry_error *err)
{
    int result = mmio_bus_add(virtio->env.bus, virtio->name, virtio->env.mmio_addr, VIRTIO_MMIO_SIZE,
                              &virtio_mmio_ops, virtio, err);

    /* A notification only wakes the worker, which looks at all queues; so it does when the device starts, and
     * one that came while it stood still is not missed. */
    if (!result)
        (void)mmio_bus_add_doorbell(virtio->env.bus, virtio->env.mmio_addr + REG_QUEUE_NOTIFY,
                                    virtio->event_fd);
    return result;
}
