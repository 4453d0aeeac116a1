/*
 * virtio-rng (virtio 1.2 §5.4): the host's getrandom(2) for the guest; section "virtio-rngN".
 */
#ifndef FERRY_DEVICE_VIRTIO_RNG_H
#define FERRY_DEVICE_VIRTIO_RNG_H

#include "device/device.h"

int virtio_rng_create(struct device **out, const struct device_env *env, unsigned index,
                      struct ferry_error *err);

#endif
