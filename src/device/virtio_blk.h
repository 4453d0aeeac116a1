/*
 * virtio-blk (virtio 1.2 §5.2) on a raw image; section "virtio-blkN".
 *
 * Reads and writes of any number of segments, flush, discard, write-zeroes, get-id, read-only. I/O runs on
 * the device's own thread ("virtio-blkN") and the engine of disk/io.h, never on a vCPU. Without VIRTIO_BLK_F_
 * FLUSH negotiated each write is durable before it is reported. A failed request ends as VIRTIO_BLK_S_IOERR
 * with a line in the log (at most one every few seconds). quiesce waits for requests in flight and flushes
 * the image; requests that were not begun stay in the virtqueue. acquire and release take and drop the
 * image's lock.
 */
#ifndef FERRY_DEVICE_VIRTIO_BLK_H
#define FERRY_DEVICE_VIRTIO_BLK_H

#include "device/device.h"
#include "disk/io.h"

#include <stdbool.h>

struct virtio_blk_options {
    const char *path;
    bool readonly;
    bool direct;             /* O_DIRECT */
    enum disk_engine engine; /* DISK_ENGINE_AUTO unless a test wants one */
};

/* Opens the image without locking it. The guest sees "ferry-diskN" as the disk's id. */
int virtio_blk_create(struct device **out, const struct device_env *env, unsigned index,
                      const struct virtio_blk_options *options, struct ferry_error *err);

#endif
