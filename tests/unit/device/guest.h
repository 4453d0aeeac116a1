/*
 * A tiny machine with a driver in it, for testing devices: guest memory, an MMIO bus, interrupt lines that
 * can be waited for, and the driver's half of virtio over MMIO and of split virtqueues.
 */
#ifndef FERRY_TESTS_DEVICE_GUEST_H
#define FERRY_TESTS_DEVICE_GUEST_H

#include "unit.h"

#include "base/log.h"
#include "base/thread.h"
#include "device/device.h"
#include "device/virtio.h"

#define GUEST_RAM      UINT64_C(0x80000000)
#define GUEST_RAM_SIZE UINT64_C(0x800000)
#define GUEST_MMIO     UINT64_C(0x10000000)
#define GUEST_MMIO_GAP 0x1000
#define GUEST_LINES    8
#define GUEST_WAIT_MS  60000 /* far more than anything here takes */

enum { /* virtio-mmio registers */
       R_MAGIC = 0x00,
       R_VERSION = 0x04,
       R_DEVICE_ID = 0x08,
       R_DEVICE_FEATURES = 0x10,
       R_DEVICE_FEATURES_SEL = 0x14,
       R_DRIVER_FEATURES = 0x20,
       R_DRIVER_FEATURES_SEL = 0x24,
       R_QUEUE_SEL = 0x30,
       R_QUEUE_NUM_MAX = 0x34,
       R_QUEUE_NUM = 0x38,
       R_QUEUE_READY = 0x44,
       R_QUEUE_NOTIFY = 0x50,
       R_INTERRUPT_STATUS = 0x60,
       R_INTERRUPT_ACK = 0x64,
       R_STATUS = 0x70,
       R_QUEUE_DESC = 0x80,
       R_QUEUE_DRIVER = 0x90,
       R_QUEUE_DEVICE = 0xa0,
       R_CONFIG_GENERATION = 0xfc,
       R_CONFIG = 0x100,
};

enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 };

struct guest {
    struct memory *memory;
    struct mmio_bus *bus;
    uint64_t next_mmio;
    uint64_t next_ram; /* bump allocator */
    pthread_mutex_t lock;
    pthread_cond_t changed; /* an interrupt line was set, or guest_poke */
    bool level[GUEST_LINES];
    unsigned raised[GUEST_LINES]; /* how often a line was set high */
    unsigned next_line;
};

/* One virtio device seen by its driver. */
struct driver_queue {
    struct driver *driver;
    unsigned index;
    unsigned size;
    uint64_t desc;
    uint64_t avail;
    uint64_t used;
    uint16_t next_desc; /* descriptors are used round and round */
    uint16_t avail_idx;
    uint16_t last_used;
};

struct driver {
    struct guest *guest;
    uint64_t mmio;
    unsigned line;
    uint64_t features; /* negotiated */
    struct driver_queue queues[VIRTIO_QUEUES_MAX];
};

/* One buffer of a chain: SIZE bytes at ADDR. */
struct driver_buffer {
    uint64_t addr;
    uint32_t size;
    bool write;
};

struct guest *guest_new(void);
void guest_free(struct guest *guest);
/* An environment for the next device, and the driver's handle to it. */
struct device_env guest_env(struct guest *guest, struct driver *driver);
/* A copy of the guest on which a moved VM's devices are made: same memory contents, same addresses. */
struct guest *guest_clone(struct guest *guest);
uint64_t guest_alloc(struct guest *guest, size_t size, size_t align);
/* Host pointer to guest memory; fails the test when there is none. */
void *guest_ptr(struct guest *guest, uint64_t addr, size_t size);
uint64_t guest_put(struct guest *guest, const void *data, size_t size); /* alloc and copy in */
/* Waits until CONDITION(opaque) holds, looking whenever a line changed or guest_poke was called. */
void guest_wait(struct guest *guest, bool (*condition)(void *opaque), void *opaque);
void guest_poke(struct guest *guest);
bool guest_level(struct guest *guest, unsigned line);

uint32_t driver_read(struct driver *driver, uint64_t reg);
void driver_write(struct driver *driver, uint64_t reg, uint32_t value);
void driver_write64(struct driver *driver, uint64_t reg, uint64_t value);
uint64_t driver_device_features(struct driver *driver);
/* Reset, acknowledge, negotiate FEATURES (VERSION_1 is added), up to FEATURES_OK. */
void driver_begin(struct driver *driver, uint64_t features);
void driver_add_queue(struct driver *driver, unsigned index, unsigned size);
void driver_ok(struct driver *driver);
bool driver_needs_reset(struct driver *driver);
void driver_wait_needs_reset(struct driver *driver);
/* The same driver on the machine the VM moved to. */
struct driver driver_moved(const struct driver *driver, struct guest *to);

/* Writes descriptor INDEX raw. */
void queue_set_desc(struct driver_queue *queue, unsigned index, uint64_t addr, uint32_t size, uint16_t flags,
                    uint16_t next);
/* Builds a chain; returns its head. It is not offered yet. */
uint16_t queue_chain(struct driver_queue *queue, const struct driver_buffer *buffers, unsigned count);
uint16_t queue_chain_indirect(struct driver_queue *queue, const struct driver_buffer *buffers,
                              unsigned count);
void queue_offer(struct driver_queue *queue, uint16_t head); /* puts it in the available ring */
void queue_publish(struct driver_queue *queue);              /* writes the available index */
void queue_notify(struct driver_queue *queue);
/* offer, publish, notify */
void queue_submit(struct driver_queue *queue, const struct driver_buffer *buffers, unsigned count);
uint16_t queue_used_idx(struct driver_queue *queue);
/* Takes the next used entry, waiting for it. */
void queue_wait_used(struct driver_queue *queue, uint32_t *id, uint32_t *written);

/* Saves FROM (quiesced) and loads it into TO (not started); fails the test when that fails. */
void device_move(struct device *from, struct device *to);
void device_start(struct device *device);
void device_quiesce(struct device *device);
void device_stop_and_destroy(struct device *device);

#endif
