/*
 * The virtio-mmio transport, version 2 (virtio 1.2 §4.2): registers of one device on the MMIO bus.
 *
 * Registers are 32 bits wide and aligned, the configuration space any width; anything else reads as zero and
 * is ignored when written. Handlers run on vCPU threads and hold the device's lock for the moment it takes to
 * change a register; a notification only wakes the device's thread.
 */
#ifndef FERRY_DEVICE_VIRTIO_MMIO_H
#define FERRY_DEVICE_VIRTIO_MMIO_H

#include "device/virtio.h"

#define VIRTIO_MMIO_SIZE 0x200

/* Adds the device's registers at env.mmio_addr. VIRTIO is borrowed for the bus's life. */
int virtio_mmio_add(struct virtio *virtio, struct ferry_error *err);

#endif
