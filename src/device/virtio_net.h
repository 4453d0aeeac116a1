/*
 * virtio-net (virtio 1.2 §5.1): one pair of queues, no offloads, a fixed MAC; section "virtio-netN".
 *
 * Packets from the guest go to the backend on the device's thread ("virtio-netN"); packets for the guest come
 * in on the backend's thread. When the guest offers no receive buffers up to VIRTIO_NET_PENDING_MAX packets
 * wait, the rest is dropped; waiting packets are lost in a migration, as a network may.
 */
#ifndef FERRY_DEVICE_VIRTIO_NET_H
#define FERRY_DEVICE_VIRTIO_NET_H

#include "device/device.h"
#include "net/backend.h"

#define VIRTIO_NET_PENDING_MAX 256

struct virtio_net_options {
    struct net_backend *backend; /* from net_backend_new; taken over, also when create fails */
    uint8_t mac[6];
    bool new_address; /* state that is loaded may have another: the guest's before it became another VM */
};

int virtio_net_create(struct device **out, const struct device_env *env, unsigned index,
                      const struct virtio_net_options *options, struct ferry_error *err);
/* After start: has the backend tell its network where the guest is now. */
void virtio_net_announce(struct device *device);

#endif
