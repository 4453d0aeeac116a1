#include "bus/mmio.h"

#include "base/error.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct mmio_range {
    uint64_t guest_addr;
    uint64_t size;
    const struct mmio_ops *ops;
    void *device;
    char name[32];
};

/* Sorted by address. Frozen before vCPUs run, which is why lookups take no lock. */
struct mmio_bus {
    struct mmio_range *ranges;
    size_t count;
    int (*ring)(void *opaque, uint64_t guest_addr, int event_fd); /* NULL: no doorbells */
    void *ring_opaque;
};

int mmio_bus_new(struct mmio_bus **out, struct ferry_error *err)
{
    *out = calloc(1, sizeof(**out));
    if (!*out)
        return error_set(err, -ENOMEM, "out of memory while setting up the MMIO bus");
    return 0;
}

void mmio_bus_free(struct mmio_bus *bus)
{
    if (!bus)
        return;
    free(bus->ranges);
    free(bus);
}

/* The number of ranges that begin at or below ADDR. */
static size_t ranges_up_to(const struct mmio_bus *bus, uint64_t addr)
{
    size_t low = 0;
    size_t high = bus->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (bus->ranges[middle].guest_addr <= addr)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int refuse_overlap(const char *name, uint64_t guest_addr, const struct mmio_range *other,
                          struct ferry_error *err)
{
    return error_set(err, -EEXIST, "MMIO range of %s at 0x%" PRIx64 " overlaps that of %s at 0x%" PRIx64,
                     name, guest_addr, other->name, other->guest_addr);
}

int mmio_bus_add(struct mmio_bus *bus, const char *name, uint64_t guest_addr, uint64_t size,
                 const struct mmio_ops *ops, void *device, struct ferry_error *err)
{
    struct mmio_range *ranges;
    struct mmio_range *range;
    size_t index;

    if (size == 0 || size - 1 > UINT64_MAX - guest_addr)
        return error_set(err, -EINVAL,
                         "MMIO range of %s: 0x%" PRIx64 " bytes at 0x%" PRIx64
                         " are none, or reach past the end of the address space",
                         name, size, guest_addr);
    index = ranges_up_to(bus, guest_addr);
    if (index > 0 && guest_addr - bus->ranges[index - 1].guest_addr < bus->ranges[index - 1].size)
        return refuse_overlap(name, guest_addr, &bus->ranges[index - 1], err);
    if (index < bus->count && bus->ranges[index].guest_addr - guest_addr < size)
        return refuse_overlap(name, guest_addr, &bus->ranges[index], err);

    ranges = reallocarray(bus->ranges, bus->count + 1, sizeof(*ranges));
    if (!ranges)
        return error_set(err, -ENOMEM, "out of memory while adding %s to the MMIO bus", name);
    bus->ranges = ranges;
    range = &ranges[index];
    memmove(range + 1, range, (bus->count - index) * sizeof(*range));
    *range = (struct mmio_range){.guest_addr = guest_addr, .size = size, .ops = ops, .device = device};
    snprintf(range->name, sizeof(range->name), "%s", name);
    bus->count++;
    return 0;
}

/* The range that holds all of the access, or NULL. */
static const struct mmio_range *find(const struct mmio_bus *bus, uint64_t addr, unsigned size)
{
    const struct mmio_range *range;
    size_t index;
    uint64_t offset;

    if (size != 1 && size != 2 && size != 4 && size != 8)
        return NULL;
    index = ranges_up_to(bus, addr);
    if (index == 0)
        return NULL;
    range = &bus->ranges[index - 1];
    offset = addr - range->guest_addr;
    if (offset >= range->size || size > range->size - offset)
        return NULL;
    return range;
}

bool mmio_bus_read(struct mmio_bus *bus, uint64_t guest_addr, unsigned size, uint64_t *value)
{
    const struct mmio_range *range = find(bus, guest_addr, size);

    if (!range)
        return false;
    *value = range->ops->read(range->device, guest_addr - range->guest_addr, size);
    return true;
}

bool mmio_bus_write(struct mmio_bus *bus, uint64_t guest_addr, unsigned size, uint64_t value)
{
    const struct mmio_range *range = find(bus, guest_addr, size);

    if (!range)
        return false;
    range->ops->write(range->device, guest_addr - range->guest_addr, size, value);
    return true;
}

void mmio_bus_set_doorbells(struct mmio_bus *bus,
                            int (*ring)(void *opaque, uint64_t guest_addr, int event_fd), void *opaque)
{
    bus->ring = ring;
    bus->ring_opaque = opaque;
}

bool mmio_bus_add_doorbell(struct mmio_bus *bus, uint64_t guest_addr, int event_fd)
{
    return bus->ring && bus->ring(bus->ring_opaque, guest_addr, event_fd) == 0;
}
