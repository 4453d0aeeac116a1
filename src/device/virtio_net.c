#include "device/virtio_net.h"

#include "base/error.h"
#include "device/tables.h"
#include "device/virtio_mmio.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define QUEUE_SIZE  VIRTQUEUE_SIZE_MAX
#define RX_QUEUE    0
#define TX_QUEUE    1
#define HEADER_SIZE 12 /* struct virtio_net_hdr with num_buffers, §5.1.6 */
#define TX_BATCH    32
#define ETHER_MIN   14

enum virtio_net_feature { /* bits, §5.1.3 */
                          NET_F_MAC = 5,
                          NET_F_STATUS = 16,
};

#define NET_S_LINK_UP 1

struct net_config { /* §5.1.4; guest's view, little-endian */
    uint8_t mac[6];
    uint16_t status;
} __attribute__((packed));

struct net_state {
    struct virtio_state virtio;
    uint8_t mac[6]; /* must be the same where the VM arrives */
};

struct net_packet {
    uint16_t size;
    uint8_t data[NET_PACKET_MAX];
};

struct virtio_net {
    struct device device;
    struct virtio virtio;
    struct net_state state;
    struct net_config config;
    struct net_backend *backend;
    /* Under the virtio lock: packets that wait for receive buffers, a ring; and the chain being filled. */
    struct net_packet pending[VIRTIO_NET_PENDING_MAX];
    unsigned pending_first;
    unsigned pending_count;
    struct virtqueue_chain chain;
    struct net_packet batch[TX_BATCH]; /* the worker's own */
    bool new_address;                  /* constant */
};

static const struct state_field net_fields[] = {
    VIRTIO_STATE_FIELDS(struct net_state, virtio),
    VIRTQUEUE_STATE_FIELDS(struct net_state, virtio.queues[0]),
    VIRTQUEUE_STATE_FIELDS(struct net_state, virtio.queues[1]),
    STATE_ARRAY(struct net_state, mac, STATE_BYTES),
};

const struct state_table virtio_net_table = {
    .name = "virtio-net",
    .version = 1,
    .fields = net_fields,
    .field_count = ARRAY_SIZE(net_fields),
    .object_size = sizeof(struct net_state),
};

static struct virtio_net *from_virtio(struct virtio *virtio)
{
    return (struct virtio_net *)((char *)virtio - offsetof(struct virtio_net, virtio));
}

static struct virtio_net *from_device(struct device *device)
{
    return (struct virtio_net *)((char *)device - offsetof(struct virtio_net, device));
}

/* Gets the next receive buffer into net->chain; asks to be told of more when there is none. */
static bool take_receive_buffer(struct virtio_net *net)
{
    struct virtio *virtio = &net->virtio;

    while (!virtio_pop(virtio, RX_QUEUE, &net->chain)) {
        if (!virtio_live(virtio) || !virtqueue_listen(&virtio->queues[RX_QUEUE]))
            return false;
    }
    /* §5.1.6.3.1: without offloads the driver offers buffers for the largest packet. */
    if (net->chain.in_size >= HEADER_SIZE + NET_PACKET_MAX)
        return true;
    virtio_violate(virtio, "a receive buffer of only %u bytes", net->chain.in_size);
    virtio_unpop(virtio, RX_QUEUE);
    return false;
}

static bool deliver_packet(struct virtio_net *net, const void *packet, size_t size)
{
    static const uint8_t header[HEADER_SIZE] = {[10] = 1}; /* num_buffers */
    struct virtqueue_chain *chain = &net->chain;
    struct virtqueue_segment *in;

    if (!take_receive_buffer(net))
        return false;
    in = chain->segments + chain->out_count;
    virtqueue_write_segments(in, chain->in_count, 0, header, sizeof(header));
    virtqueue_write_segments(in, chain->in_count, sizeof(header), packet, size);
    virtio_push(&net->virtio, RX_QUEUE, chain->head, in, chain->in_count, (uint32_t)(sizeof(header) + size));
    return true;
}

static void keep_packet(struct virtio_net *net, const void *packet, size_t size)
{
    struct net_packet *slot;

    if (net->pending_count == VIRTIO_NET_PENDING_MAX)
        return;
    slot = &net->pending[(net->pending_first + net->pending_count++) % VIRTIO_NET_PENDING_MAX];
    memcpy(slot->data, packet, size);
    slot->size = (uint16_t)size;
}

static void deliver_pending(struct virtio_net *net)
{
    while (net->pending_count) {
        struct net_packet *packet = &net->pending[net->pending_first];

        if (!deliver_packet(net, packet->data, packet->size))
            break;
        net->pending_first = (net->pending_first + 1) % VIRTIO_NET_PENDING_MAX;
        net->pending_count--;
    }
}

/* The backend's thread. */
static void net_receive(void *opaque, const void *packet, size_t size)
{
    struct virtio_net *net = opaque;
    struct virtio *virtio = &net->virtio;

    if (size < ETHER_MIN || size > NET_PACKET_MAX)
        return;
    pthread_mutex_lock(&virtio->lock);
    if (virtio_live(virtio)) {
        deliver_pending(net);
        if (net->pending_count || !deliver_packet(net, packet, size))
            keep_packet(net, packet, size);
        virtio_signal(virtio, RX_QUEUE);
    }
    pthread_mutex_unlock(&virtio->lock);
}

/* Copies a packet out of the chain. False when it is one to drop. */
static bool copy_packet(struct virtio_net *net, struct net_packet *packet)
{
    const struct virtqueue_chain *chain = &net->chain;
    uint32_t size = chain->out_size - HEADER_SIZE;

    if (size < ETHER_MIN || size > NET_PACKET_MAX)
        return false;
    packet->size = (uint16_t)size;
    virtqueue_read_segments(chain->segments, chain->out_count, HEADER_SIZE, packet->data, size);
    return true;
}

/* Takes up to TX_BATCH packets; *more says whether the ring may hold more. */
static unsigned take_batch(struct virtio_net *net, bool *more)
{
    struct virtio *virtio = &net->virtio;
    unsigned count = 0;

    *more = true;
    for (unsigned i = 0; i < TX_BATCH && *more; i++) {
        if (!virtio_pop(virtio, TX_QUEUE, &net->chain)) {
            *more = virtio_live(virtio) && virtqueue_listen(&virtio->queues[TX_QUEUE]);
            continue;
        }
        if (net->chain.out_size < HEADER_SIZE) {
            virtio_violate(virtio, "a packet to send without its header");
            virtio_unpop(virtio, TX_QUEUE);
            continue;
        }
        if (copy_packet(net, &net->batch[count]))
            count++;
        virtio_push(virtio, TX_QUEUE, net->chain.head, NULL, 0, 0);
    }
    virtio_signal(virtio, TX_QUEUE);
    return count;
}

static void net_process(struct virtio *virtio)
{
    struct virtio_net *net = from_virtio(virtio);
    bool more = true;

    deliver_pending(net);
    virtio_signal(virtio, RX_QUEUE);
    while (more) {
        unsigned count = take_batch(net, &more);

        /* The backend may answer by calling net_receive, here or on its thread while it holds its lock. */
        pthread_mutex_unlock(&virtio->lock);
        for (unsigned i = 0; i < count; i++)
            net->backend->ops->send(net->backend, net->batch[i].data, net->batch[i].size);
        pthread_mutex_lock(&virtio->lock);
    }
}

static void net_virtio_reset(struct virtio *virtio)
{
    from_virtio(virtio)->pending_count = 0;
}

static const struct virtio_ops net_virtio_ops = {
    .worker = THREAD_NET,
    .device_id = 1,
    .queue_count = 2,
    .queue_size = QUEUE_SIZE,
    .process = net_process,
    .reset = net_virtio_reset,
};

static void net_reset(struct device *device)
{
    virtio_reset(&from_device(device)->virtio);
}

static int net_start(struct device *device, struct ferry_error *err)
{
    struct virtio_net *net = from_device(device);
    int result = net->backend->ops->start(net->backend, err);

    if (result < 0)
        return error_prefix(err, result, "%s", device->name);
    virtio_start(&net->virtio);
    return 0;
}

static int net_quiesce(struct device *device, uint64_t deadline_ns, struct ferry_error *err)
{
    struct virtio_net *net = from_device(device);
    int result = virtio_quiesce(&net->virtio, deadline_ns, err);

    if (result == 0)
        net->backend->ops->stop(net->backend);
    return result;
}

static void net_save(struct device *device, struct buffer *out)
{
    state_save(&virtio_net_table, &from_device(device)->state, out);
}

static int net_load(struct device *device, uint32_t version, struct reader *in, struct ferry_error *err)
{
    struct virtio_net *net = from_device(device);
    struct net_state loaded = net->state;
    int result = state_load(&virtio_net_table, device->name, version, &loaded, in, err);

    if (result == 0) {
        result = virtio_state_check(&net->virtio, &loaded.virtio, err);
        if (result == 0 && net->new_address) {
            /* The driver reads it when it starts the card anew. */
            memcpy(loaded.mac, net->state.mac, sizeof(loaded.mac));
            loaded.virtio.config_generation++;
        }
        if (result == 0 && memcmp(loaded.mac, net->state.mac, sizeof(loaded.mac)) != 0)
            result = error_set(err, -EINVAL, "field mac: the guest knows its card by another address");
        if (result < 0)
            error_prefix(err, result, "state section %s", device->name);
    }
    if (result < 0)
        return result;
    net->state = loaded;
    virtio_loaded(&net->virtio);
    return 0;
}

static void net_destroy(struct device *device)
{
    struct virtio_net *net = from_device(device);

    net_backend_destroy(net->backend);
    virtio_destroy(&net->virtio);
    free(net);
}

static const struct device_ops net_device_ops = {
    .reset = net_reset,
    .start = net_start,
    .quiesce = net_quiesce,
    .save = net_save,
    .load = net_load,
    .destroy = net_destroy,
};

int virtio_net_create(struct device **out, const struct device_env *env, unsigned index,
                      const struct virtio_net_options *options, struct ferry_error *err)
{
    struct virtio_net *net = calloc(1, sizeof(*net));
    int result;

    if (!net) {
        net_backend_destroy(options->backend);
        return error_set(err, -ENOMEM, "out of memory while adding virtio-net%u", index);
    }
    net->device.ops = &net_device_ops;
    net->device.state = &virtio_net_table;
    snprintf(net->device.name, sizeof(net->device.name), "virtio-net%u", index);
    memcpy(net->config.mac, options->mac, sizeof(net->config.mac));
    net->config.status = htole16(NET_S_LINK_UP);
    memcpy(net->state.mac, options->mac, sizeof(net->state.mac));
    net->new_address = options->new_address;
    net->backend = options->backend;
    net->backend->receive = net_receive;
    net->backend->receiver = net;
    result = virtio_init(&net->virtio, &net_virtio_ops, &net->state.virtio,
                         UINT64_C(1) << NET_F_MAC | UINT64_C(1) << NET_F_STATUS, &net->config,
                         sizeof(net->config), net->device.name, env, err);
    if (result < 0) {
        net_backend_destroy(net->backend);
        free(net);
        return result;
    }
    result = virtio_mmio_add(&net->virtio, err);
    if (result < 0) {
        net_destroy(&net->device);
        return result;
    }
    *out = &net->device;
    return 0;
}

void virtio_net_announce(struct device *device)
{
    struct virtio_net *net = from_device(device);

    net->backend->ops->announce(net->backend, net->state.mac);
}
