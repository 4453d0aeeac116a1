/*
 * The MMIO bus: which device answers at which guest physical address.
 *
 * Devices are added before any vCPU runs; lookups afterwards are lock-free. Handlers are called on vCPU
 * threads, several at once: a device guards its own state. A handler must not block on I/O; it hands work to
 * its own thread.
 */
#ifndef FERRY_BUS_MMIO_H
#define FERRY_BUS_MMIO_H

#include <ferry/error.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mmio_ops {
    /* OFFSET is inside the range; SIZE is 1, 2, 4 or 8 and the access lies wholly in the range. Value in the
     * low bits. */
    uint64_t (*read)(void *device, uint64_t offset, unsigned size);
    void (*write)(void *device, uint64_t offset, unsigned size, uint64_t value);
};

struct mmio_bus;

int mmio_bus_new(struct mmio_bus **out, struct ferry_error *err);
void mmio_bus_free(struct mmio_bus *bus);
/* NAME is for messages and is copied. Refuses overlaps. OPS and DEVICE are borrowed for the bus's life. */
int mmio_bus_add(struct mmio_bus *bus, const char *name, uint64_t guest_addr, uint64_t size,
                 const struct mmio_ops *ops, void *device, struct ferry_error *err);
/* False when nobody answers there (the caller raises an access fault). */
bool mmio_bus_read(struct mmio_bus *bus, uint64_t guest_addr, unsigned size, uint64_t *value);
bool mmio_bus_write(struct mmio_bus *bus, uint64_t guest_addr, unsigned size, uint64_t value);

/*
 * Doorbells: writes that only tell a device to look need not come to its handler, where an accelerator can
 * have them add to an eventfd instead, whatever is written. The accelerator says so before devices are added:
 * RING gets an address of 4 bytes and the eventfd, and returns 0 or a negative errno.
 */
void mmio_bus_set_doorbells(struct mmio_bus *bus,
                            int (*ring)(void *opaque, uint64_t guest_addr, int event_fd), void *opaque);
/* For a device, of a register in a range of its own. False: such writes come to its handler, as ever; they
 * may with true, too. EVENT_FD may be closed when no vCPU runs any more. */
bool mmio_bus_add_doorbell(struct mmio_bus *bus, uint64_t guest_addr, int event_fd);

#endif
