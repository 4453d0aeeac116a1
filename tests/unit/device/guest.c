#include "guest.h"

#include "base/clock.h"

#include <stdlib.h>
#include <string.h>

struct guest *guest_new(void)
{
    struct guest *guest = calloc(1, sizeof(*guest));
    struct ferry_error err;

    assert_non_null(guest);
    assert_ok(memory_new(&guest->memory, &err), err);
    assert_ok(memory_add_region(guest->memory, "ram0", GUEST_RAM, GUEST_RAM_SIZE, &err), err);
    assert_ok(mmio_bus_new(&guest->bus, &err), err);
    guest->next_mmio = GUEST_MMIO;
    guest->next_ram = GUEST_RAM;
    pthread_mutex_init(&guest->lock, NULL);
    thread_cond_init(&guest->changed);
    return guest;
}

struct guest *guest_clone(struct guest *guest)
{
    struct guest *clone = guest_new();

    memcpy(guest_ptr(clone, GUEST_RAM, GUEST_RAM_SIZE), guest_ptr(guest, GUEST_RAM, GUEST_RAM_SIZE),
           GUEST_RAM_SIZE);
    clone->next_ram = guest->next_ram;
    return clone;
}

void guest_free(struct guest *guest)
{
    mmio_bus_free(guest->bus);
    memory_free(guest->memory);
    pthread_cond_destroy(&guest->changed);
    pthread_mutex_destroy(&guest->lock);
    free(guest);
}

static void set_line(void *controller, unsigned number, bool level)
{
    struct guest *guest = controller;

    pthread_mutex_lock(&guest->lock);
    guest->level[number] = level;
    guest->raised[number] += level;
    pthread_cond_broadcast(&guest->changed);
    pthread_mutex_unlock(&guest->lock);
}

struct device_env guest_env(struct guest *guest, struct driver *driver)
{
    struct device_env env = {
        .memory = guest->memory,
        .bus = guest->bus,
        .mmio_addr = guest->next_mmio,
        .irq = {.set = set_line, .controller = guest, .number = guest->next_line},
    };

    *driver = (struct driver){.guest = guest, .mmio = guest->next_mmio, .line = guest->next_line};
    guest->next_mmio += GUEST_MMIO_GAP;
    guest->next_line++;
    assert_true(guest->next_line <= GUEST_LINES);
    return env;
}

uint64_t guest_alloc(struct guest *guest, size_t size, size_t align)
{
    uint64_t addr = (guest->next_ram + align - 1) / align * align;

    guest->next_ram = addr + size;
    assert_true(guest->next_ram <= GUEST_RAM + GUEST_RAM_SIZE);
    return addr;
}

void *guest_ptr(struct guest *guest, uint64_t addr, size_t size)
{
    void *ptr = memory_ptr(guest->memory, addr, size);

    assert_non_null(ptr);
    return ptr;
}

uint64_t guest_put(struct guest *guest, const void *data, size_t size)
{
    uint64_t addr = guest_alloc(guest, size, 16);

    memcpy(guest_ptr(guest, addr, size), data, size);
    return addr;
}

void guest_wait(struct guest *guest, bool (*condition)(void *opaque), void *opaque)
{
    uint64_t deadline = clock_deadline(GUEST_WAIT_MS);
    bool in_time = true;

    pthread_mutex_lock(&guest->lock);
    while (!condition(opaque) && in_time)
        in_time = thread_cond_wait_until(&guest->changed, &guest->lock, deadline);
    pthread_mutex_unlock(&guest->lock);
    assert_true(in_time);
}

void guest_poke(struct guest *guest)
{
    pthread_mutex_lock(&guest->lock);
    pthread_cond_broadcast(&guest->changed);
    pthread_mutex_unlock(&guest->lock);
}

bool guest_level(struct guest *guest, unsigned line)
{
    bool level;

    pthread_mutex_lock(&guest->lock);
    level = guest->level[line];
    pthread_mutex_unlock(&guest->lock);
    return level;
}

uint32_t driver_read(struct driver *driver, uint64_t reg)
{
    uint64_t value = 0;

    assert_true(mmio_bus_read(driver->guest->bus, driver->mmio + reg, 4, &value));
    return (uint32_t)value;
}

void driver_write(struct driver *driver, uint64_t reg, uint32_t value)
{
    assert_true(mmio_bus_write(driver->guest->bus, driver->mmio + reg, 4, value));
}

void driver_write64(struct driver *driver, uint64_t reg, uint64_t value)
{
    driver_write(driver, reg, (uint32_t)value);
    driver_write(driver, reg + 4, (uint32_t)(value >> 32));
}

uint64_t driver_device_features(struct driver *driver)
{
    uint64_t features;

    driver_write(driver, R_DEVICE_FEATURES_SEL, 0);
    features = driver_read(driver, R_DEVICE_FEATURES);
    driver_write(driver, R_DEVICE_FEATURES_SEL, 1);
    return features | (uint64_t)driver_read(driver, R_DEVICE_FEATURES) << 32;
}

void driver_begin(struct driver *driver, uint64_t features)
{
    driver->features = features | VIRTIO_F_VERSION_1;
    memset(driver->queues, 0, sizeof(driver->queues));
    driver_write(driver, R_STATUS, 0);
    assert_int_equal(driver_read(driver, R_STATUS), 0);
    driver_write(driver, R_STATUS, VIRTIO_STATUS_ACKNOWLEDGE);
    driver_write(driver, R_STATUS, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
    driver_write(driver, R_DRIVER_FEATURES_SEL, 0);
    driver_write(driver, R_DRIVER_FEATURES, (uint32_t)driver->features);
    driver_write(driver, R_DRIVER_FEATURES_SEL, 1);
    driver_write(driver, R_DRIVER_FEATURES, (uint32_t)(driver->features >> 32));
    driver_write(driver, R_STATUS,
                 VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK);
    assert_true(driver_read(driver, R_STATUS) & VIRTIO_STATUS_FEATURES_OK);
}

void driver_add_queue(struct driver *driver, unsigned index, unsigned size)
{
    struct driver_queue *queue = &driver->queues[index];
    struct guest *guest = driver->guest;

    *queue = (struct driver_queue){.driver = driver, .index = index, .size = size};
    queue->desc = guest_alloc(guest, 16 * (size_t)size, 16);
    queue->avail = guest_alloc(guest, 6 + 2 * (size_t)size, 2);
    queue->used = guest_alloc(guest, 6 + 8 * (size_t)size, 4);
    memset(guest_ptr(guest, queue->desc, 16 * (size_t)size), 0, 16 * (size_t)size);
    memset(guest_ptr(guest, queue->avail, 6 + 2 * (size_t)size), 0, 6 + 2 * (size_t)size);
    memset(guest_ptr(guest, queue->used, 6 + 8 * (size_t)size), 0, 6 + 8 * (size_t)size);
    driver_write(driver, R_QUEUE_SEL, index);
    assert_true(driver_read(driver, R_QUEUE_NUM_MAX) >= size);
    driver_write(driver, R_QUEUE_NUM, size);
    driver_write64(driver, R_QUEUE_DESC, queue->desc);
    driver_write64(driver, R_QUEUE_DRIVER, queue->avail);
    driver_write64(driver, R_QUEUE_DEVICE, queue->used);
    driver_write(driver, R_QUEUE_READY, 1);
    assert_int_equal(driver_read(driver, R_QUEUE_READY), 1);
}

void driver_ok(struct driver *driver)
{
    driver_write(driver, R_STATUS, driver_read(driver, R_STATUS) | VIRTIO_STATUS_DRIVER_OK);
}

bool driver_needs_reset(struct driver *driver)
{
    return driver_read(driver, R_STATUS) & VIRTIO_STATUS_NEEDS_RESET;
}

/* Called with the guest's lock held: looks at the line only. */
static bool config_interrupt(void *opaque)
{
    struct driver *driver = opaque;

    return driver->guest->level[driver->line];
}

void driver_wait_needs_reset(struct driver *driver)
{
    for (;;) {
        guest_wait(driver->guest, config_interrupt, driver);
        if (driver_needs_reset(driver))
            return;
        driver_write(driver, R_INTERRUPT_ACK, VIRTIO_INTERRUPT_QUEUE);
    }
}

struct driver driver_moved(const struct driver *driver, struct guest *to)
{
    struct driver moved = *driver;

    moved.guest = to;
    return moved;
}

static struct guest *queue_guest(struct driver_queue *queue)
{
    return queue->driver->guest;
}

void queue_set_desc(struct driver_queue *queue, unsigned index, uint64_t addr, uint32_t size, uint16_t flags,
                    uint16_t next)
{
    uint8_t *desc = guest_ptr(queue_guest(queue), queue->desc + 16 * (uint64_t)index, 16);

    memcpy(desc, &addr, 8);
    memcpy(desc + 8, &size, 4);
    memcpy(desc + 12, &flags, 2);
    memcpy(desc + 14, &next, 2);
}

uint16_t queue_chain(struct driver_queue *queue, const struct driver_buffer *buffers, unsigned count)
{
    uint16_t head = queue->next_desc;

    for (unsigned i = 0; i < count; i++) {
        uint16_t index = queue->next_desc;
        uint16_t next = (uint16_t)((index + 1) % queue->size);

        queue_set_desc(queue, index, buffers[i].addr, buffers[i].size,
                       (uint16_t)((buffers[i].write ? DESC_WRITE : 0) | (i + 1 < count ? DESC_NEXT : 0)),
                       next);
        queue->next_desc = next;
    }
    return head;
}

uint16_t queue_chain_indirect(struct driver_queue *queue, const struct driver_buffer *buffers, unsigned count)
{
    struct guest *guest = queue_guest(queue);
    uint16_t head = queue->next_desc;
    uint64_t table = guest_alloc(guest, 16 * (size_t)count, 16);
    uint8_t *desc = guest_ptr(guest, table, 16 * (size_t)count);

    for (unsigned i = 0; i < count; i++) {
        uint16_t flags = (uint16_t)((buffers[i].write ? DESC_WRITE : 0) | (i + 1 < count ? DESC_NEXT : 0));
        uint16_t next = (uint16_t)(i + 1);

        memcpy(desc + 16 * i, &buffers[i].addr, 8);
        memcpy(desc + 16 * i + 8, &buffers[i].size, 4);
        memcpy(desc + 16 * i + 12, &flags, 2);
        memcpy(desc + 16 * i + 14, &next, 2);
    }
    queue_set_desc(queue, head, table, 16 * count, DESC_INDIRECT, 0);
    queue->next_desc = (uint16_t)((head + 1) % queue->size);
    return head;
}

void queue_offer(struct driver_queue *queue, uint16_t head)
{
    uint8_t *entry =
        guest_ptr(queue_guest(queue), queue->avail + 4 + 2 * (uint64_t)(queue->avail_idx % queue->size), 2);

    __atomic_store_n((uint16_t *)(void *)entry, head, __ATOMIC_RELAXED);
    queue->avail_idx++;
}

void queue_publish(struct driver_queue *queue)
{
    uint8_t *idx = guest_ptr(queue_guest(queue), queue->avail + 2, 2);

    __atomic_store_n((uint16_t *)(void *)idx, queue->avail_idx, __ATOMIC_SEQ_CST);
}

void queue_notify(struct driver_queue *queue)
{
    driver_write(queue->driver, R_QUEUE_NOTIFY, queue->index);
}

void queue_submit(struct driver_queue *queue, const struct driver_buffer *buffers, unsigned count)
{
    queue_offer(queue, queue_chain(queue, buffers, count));
    queue_publish(queue);
    queue_notify(queue);
}

uint16_t queue_used_idx(struct driver_queue *queue)
{
    const uint8_t *idx = guest_ptr(queue_guest(queue), queue->used + 2, 2);

    return __atomic_load_n((const uint16_t *)(const void *)idx, __ATOMIC_SEQ_CST);
}

static bool more_used(void *opaque)
{
    struct driver_queue *queue = opaque;

    return queue_used_idx(queue) != queue->last_used;
}

void queue_wait_used(struct driver_queue *queue, uint32_t *id, uint32_t *written)
{
    struct guest *guest = queue_guest(queue);
    uint8_t *event = guest_ptr(guest, queue->avail + 4 + 2 * (uint64_t)queue->size, 2);
    const uint8_t *entry;

    if (queue->driver->features & VIRTIO_F_EVENT_IDX)
        __atomic_store_n((uint16_t *)(void *)event, queue->last_used, __ATOMIC_SEQ_CST);
    guest_wait(guest, more_used, queue);
    driver_write(queue->driver, R_INTERRUPT_ACK, VIRTIO_INTERRUPT_QUEUE);
    entry = guest_ptr(guest, queue->used + 4 + 8 * (uint64_t)(queue->last_used % queue->size), 8);
    if (id)
        memcpy(id, entry, 4);
    if (written)
        memcpy(written, entry + 4, 4);
    queue->last_used++;
}

void device_move(struct device *from, struct device *to)
{
    struct buffer section = BUFFER_INIT;
    struct ferry_error err = {0};
    struct reader reader;

    from->ops->save(from, &section);
    assert_false(buffer_failed(&section));
    reader = reader_init(section.data, section.size);
    assert_ok(to->ops->load(to, from->state->version, &reader, &err), err);
    assert_int_equal(reader_left(&reader), 0);
    buffer_free(&section);
}

void device_start(struct device *device)
{
    struct ferry_error err = {0};

    assert_ok(device->ops->start(device, &err), err);
}

void device_quiesce(struct device *device)
{
    struct ferry_error err = {0};

    assert_ok(device->ops->quiesce(device, clock_deadline(GUEST_WAIT_MS), &err), err);
}

void device_stop_and_destroy(struct device *device)
{
    device_quiesce(device);
    device->ops->destroy(device);
}
