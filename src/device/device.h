/*
 * What every device is to the machine: a name, and the same verbs.
 *
 * A device is made the same way for a cold boot and for an arriving VM (its create function); state is loaded
 * into it afterwards. The order over a device's life:
 *
 *     create -> [load] -> start -> ( quiesce -> [save] -> start )* -> quiesce -> destroy
 *
 * Before start and after quiesce a device touches neither guest memory, nor its interrupt line, nor its
 * backend, on any thread. quiesce finishes what is outstanding (a disk: every request done and flushed) and
 * leaves new requests in the virtqueue, where the next start - here or on another host - finds them. MMIO
 * handlers may still run between quiesce and start only while vCPUs run, which the machine does not allow.
 */
#ifndef FERRY_DEVICE_DEVICE_H
#define FERRY_DEVICE_DEVICE_H

#include "base/buffer.h"
#include "base/log.h"
#include "bus/irq.h"
#include "bus/memory.h"
#include "bus/mmio.h"
#include "bus/state.h"

#include <ferry/error.h>

struct device;

struct device_ops {
    /* Guest-visible reset: all registers as after power-on. Only while quiesced or before start. */
    void (*reset)(struct device *device);
    /* What can fail is done at creation, where possible: other devices have started then, and may have
     * written to memory that another process wants back. */
    int (*start)(struct device *device, struct ferry_error *err);
    /* Returns -ETIMEDOUT naming the device when outstanding I/O does not end before the deadline; then it
     * goes on. */
    int (*quiesce)(struct device *device, uint64_t deadline_ns, struct ferry_error *err);
    void (*save)(struct device *device, struct buffer *out);
    int (*load)(struct device *device, uint32_t version, struct reader *in, struct ferry_error *err);
    /* Ownership of shared resources (disk image locks); either may be NULL. release may be followed by
     * acquire. */
    int (*acquire)(struct device *device, struct ferry_error *err);
    void (*release)(struct device *device);
    void (*destroy)(struct device *device);
};

struct device {
    const struct device_ops *ops;
    const struct state_table *state; /* for version and printing */
    char name[32];                   /* section name: "virtio-blk0", "uart0" */
    bool optional;                   /* a guest of before there was such a device comes without its state */
};

/* What a device is created with. All borrowed for the device's life. */
struct device_env {
    struct memory *memory;
    struct mmio_bus *bus;
    struct log *log;
    uint64_t mmio_addr; /* where its registers go */
    struct irq_line irq;
};

#endif
