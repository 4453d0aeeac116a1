#include "device/virtio_rng.h"

#include "base/error.h"
#include "device/tables.h"
#include "device/virtio_mmio.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#define QUEUE_SIZE  64
#define REQUEST_MAX 4096 /* bytes given for one request; a driver copes with less than it asked for */

struct rng_state {
    struct virtio_state virtio;
};

struct virtio_rng {
    struct device device;
    struct virtio virtio;
    struct rng_state state;
    struct virtqueue_chain chain; /* the worker's, while it looks at one */
};

static const struct state_field rng_fields[] = {
    VIRTIO_STATE_FIELDS(struct rng_state, virtio),
    VIRTQUEUE_STATE_FIELDS(struct rng_state, virtio.queues[0]),
};

const struct state_table virtio_rng_table = {
    .name = "virtio-rng",
    .version = 1,
    .fields = rng_fields,
    .field_count = ARRAY_SIZE(rng_fields),
    .object_size = sizeof(struct rng_state),
};

static struct virtio_rng *from_virtio(struct virtio *virtio)
{
    return (struct virtio_rng *)((char *)virtio - offsetof(struct virtio_rng, virtio));
}

static struct virtio_rng *from_device(struct device *device)
{
    return (struct virtio_rng *)((char *)device - offsetof(struct virtio_rng, device));
}

static void answer_chain(struct virtio_rng *rng)
{
    struct virtqueue_chain *chain = &rng->chain;
    struct virtqueue_segment *in = chain->segments + chain->out_count;
    uint8_t random[REQUEST_MAX];
    size_t size = chain->in_size < sizeof(random) ? chain->in_size : sizeof(random);
    size_t filled = 0;

    while (filled < size) {
        ssize_t got = getrandom(random + filled, size - filled, 0);

        if (got < 0 && errno != EINTR)
            break;
        if (got > 0)
            filled += (size_t)got;
    }
    virtqueue_write_segments(in, chain->in_count, 0, random, filled);
    virtio_push(&rng->virtio, 0, chain->head, in, chain->in_count, (uint32_t)filled);
}

static void rng_process(struct virtio *virtio)
{
    struct virtio_rng *rng = from_virtio(virtio);

    for (unsigned i = 0; i < QUEUE_SIZE && virtio_pop(virtio, 0, &rng->chain); i++) {
        if (!rng->chain.in_count) {
            virtio_violate(virtio, "a request without room for an answer");
            virtio_unpop(virtio, 0);
            return;
        }
        answer_chain(rng);
    }
    virtio_signal(virtio, 0);
    if (virtio_live(virtio) && virtqueue_listen(&virtio->queues[0]))
        virtio_wake(virtio); /* others want the lock in between */
}

static const struct virtio_ops rng_virtio_ops = {
    .worker = THREAD_IO,
    .device_id = 4,
    .queue_count = 1,
    .queue_size = QUEUE_SIZE,
    .process = rng_process,
};

static void rng_reset(struct device *device)
{
    virtio_reset(&from_device(device)->virtio);
}

static int rng_start(struct device *device, struct ferry_error *err)
{
    virtio_start(&from_device(device)->virtio);
    return 0;
}

static int rng_quiesce(struct device *device, uint64_t deadline_ns, struct ferry_error *err)
{
    return virtio_quiesce(&from_device(device)->virtio, deadline_ns, err);
}

static void rng_save(struct device *device, struct buffer *out)
{
    state_save(&virtio_rng_table, &from_device(device)->state, out);
}

static int rng_load(struct device *device, uint32_t version, struct reader *in, struct ferry_error *err)
{
    struct virtio_rng *rng = from_device(device);
    struct rng_state loaded = rng->state;
    int result = state_load(&virtio_rng_table, device->name, version, &loaded, in, err);

    if (result == 0) {
        result = virtio_state_check(&rng->virtio, &loaded.virtio, err);
        if (result < 0)
            error_prefix(err, result, "state section %s", device->name);
    }
    if (result < 0)
        return result;
    rng->state = loaded;
    virtio_loaded(&rng->virtio);
    return 0;
}

static void rng_destroy(struct device *device)
{
    struct virtio_rng *rng = from_device(device);

    virtio_destroy(&rng->virtio);
    free(rng);
}

static const struct device_ops rng_device_ops = {
    .reset = rng_reset,
    .start = rng_start,
    .quiesce = rng_quiesce,
    .save = rng_save,
    .load = rng_load,
    .destroy = rng_destroy,
};

int virtio_rng_create(struct device **out, const struct device_env *env, unsigned index,
                      struct ferry_error *err)
{
    struct virtio_rng *rng = calloc(1, sizeof(*rng));
    int result;

    if (!rng)
        return error_set(err, -ENOMEM, "out of memory while adding virtio-rng%u", index);
    rng->device.ops = &rng_device_ops;
    rng->device.state = &virtio_rng_table;
    snprintf(rng->device.name, sizeof(rng->device.name), "virtio-rng%u", index);
    result = virtio_init(&rng->virtio, &rng_virtio_ops, &rng->state.virtio, 0, NULL, 0, rng->device.name, env,
                         err);
    if (result < 0) {
        free(rng);
        return result;
    }
    result = virtio_mmio_add(&rng->virtio, err);
    if (result < 0) {
        rng_destroy(&rng->device);
        return result;
    }
    *out = &rng->device;
    return 0;
}
