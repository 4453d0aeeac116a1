#include "device/virtio_blk.h"

#include "base/error.h"
#include "device/tables.h"
#include "device/virtio_mmio.h"
#include "disk/image.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SECTOR_SIZE  IMAGE_SECTOR_SIZE
#define QUEUE_SIZE   VIRTQUEUE_SIZE_MAX
#define SEGMENTS_MAX (VIRTQUEUE_CHAIN_MAX - 2) /* header and status take one each */
#define RANGES_MAX   16
#define RANGE_MAX    (UINT32_C(1) << 22) /* sectors in one range: 2 GiB */
#define BATCH        32
#define ID_SIZE      20
#define BOUNCE_ALIGN 4096

enum virtio_blk_feature { /* bits, §5.2.3 */
                          BLK_F_SEG_MAX = 2,
                          BLK_F_RO = 5,
                          BLK_F_BLK_SIZE = 6,
                          BLK_F_FLUSH = 9,
                          BLK_F_DISCARD = 13,
                          BLK_F_WRITE_ZEROES = 14,
};

enum virtio_blk_type { /* §5.2.6 */
                       BLK_T_IN = 0,
                       BLK_T_OUT = 1,
                       BLK_T_FLUSH = 4,
                       BLK_T_GET_ID = 8,
                       BLK_T_DISCARD = 11,
                       BLK_T_WRITE_ZEROES = 13,
};

enum virtio_blk_status {
    BLK_S_OK = 0,
    BLK_S_IOERR = 1,
    BLK_S_UNSUPP = 2,
};

struct blk_config { /* §5.2.4; guest's view, little-endian */
    uint64_t capacity;
    uint32_t size_max;
    uint32_t seg_max;
    uint8_t geometry[4];
    uint32_t blk_size;
    uint8_t topology[8];
    uint8_t writeback;
    uint8_t unused0;
    uint16_t num_queues;
    uint32_t max_discard_sectors;
    uint32_t max_discard_seg;
    uint32_t discard_sector_alignment;
    uint32_t max_write_zeroes_sectors;
    uint32_t max_write_zeroes_seg;
    uint8_t write_zeroes_may_unmap;
    uint8_t unused1[3];
} __attribute__((packed));

struct blk_header { /* at the start of each request */
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
};

struct blk_range { /* discard and write-zeroes, §5.2.6 */
    uint64_t sector;
    uint32_t count;
    uint32_t flags; /* bit 0: unmap */
};

struct blk_state {
    struct virtio_state virtio;
    uint64_t capacity; /* sectors; must be the same where the VM arrives */
};

struct virtio_blk {
    struct device device;
    struct virtio virtio;
    struct blk_state state;
    struct blk_config config;
    struct image *image;
    struct disk_io *io;
    bool unflushed; /* something was written since the last flush of ours */
    struct log_limit errors;
    struct virtqueue_chain chain; /* the worker's, while it looks at one */
};

/* A request in flight; the arrays follow in the same block of memory. */
struct blk_request {
    struct disk_request disk;
    uint32_t type;
    uint16_t head;
    uint32_t in_size;
    unsigned in_count;
    struct virtqueue_segment *in; /* data and status */
    struct iovec *iov;
    unsigned iov_count;
    struct disk_range *ranges;
    uint8_t *bounce; /* direct I/O with buffers that are not aligned; owned */
    struct iovec bounce_iov;
    size_t bounce_size;
};

static const struct state_field blk_fields[] = {
    VIRTIO_STATE_FIELDS(struct blk_state, virtio),
    VIRTQUEUE_STATE_FIELDS(struct blk_state, virtio.queues[0]),
    STATE_FIELD(struct blk_state, capacity, STATE_U64),
};

const struct state_table virtio_blk_table = {
    .name = "virtio-blk",
    .version = 1,
    .fields = blk_fields,
    .field_count = ARRAY_SIZE(blk_fields),
    .object_size = sizeof(struct blk_state),
};

static struct virtio_blk *from_virtio(struct virtio *virtio)
{
    return (struct virtio_blk *)((char *)virtio - offsetof(struct virtio_blk, virtio));
}

static struct virtio_blk *from_device(struct device *device)
{
    return (struct virtio_blk *)((char *)device - offsetof(struct virtio_blk, device));
}

static const char *type_name(uint32_t type)
{
    switch (type) {
    case BLK_T_IN:
        return "read";
    case BLK_T_OUT:
        return "write";
    case BLK_T_FLUSH:
        return "flush";
    case BLK_T_DISCARD:
        return "discard";
    default:
        return "write-zeroes";
    }
}

static void log_error_limited(struct virtio_blk *blk, const char *what, uint64_t offset, const char *why)
{
    unsigned suppressed;

    if (log_limit_pass(&blk->errors, &suppressed))
        log_error(blk->virtio.env.log, "%s: %s at byte %" PRIu64 " of disk %s failed: %s (%u more before)",
                  blk->device.name, what, offset, blk->image->path, why, suppressed);
}

/* Ends the chain looked at with STATUS in its last byte. */
static void answer_chain(struct virtio_blk *blk, uint8_t status)
{
    struct virtqueue_chain *chain = &blk->chain;
    struct virtqueue_segment *in = chain->segments + chain->out_count;

    virtqueue_write_segments(in, chain->in_count, chain->in_size - 1, &status, 1);
    /* The status comes last, so all before it counts as written. */
    virtio_push(&blk->virtio, 0, chain->head, in, chain->in_count, chain->in_size);
}

static void answer_id(struct virtio_blk *blk)
{
    struct virtqueue_chain *chain = &blk->chain;
    char id[ID_SIZE + 1] = {0};
    uint32_t room = chain->in_size - 1;

    snprintf(id, sizeof(id), "ferry-disk%s", blk->device.name + strlen("virtio-blk"));
    virtqueue_write_segments(chain->segments + chain->out_count, chain->in_count, 0, id,
                             room < ID_SIZE ? room : ID_SIZE);
    answer_chain(blk, BLK_S_OK);
}

/* One allocation: request, input segments, vectors and ranges. */
static struct blk_request *request_new(const struct virtqueue_chain *chain, unsigned range_count)
{
    unsigned vectors = chain->out_count + chain->in_count;
    size_t in_size = chain->in_count * sizeof(struct virtqueue_segment);
    size_t iov_size = vectors * sizeof(struct iovec);
    struct blk_request *request =
        calloc(1, sizeof(*request) + in_size + iov_size + range_count * sizeof(struct disk_range));

    if (!request)
        return NULL;
    request->in = (void *)(request + 1);
    request->iov = (void *)((char *)request->in + in_size);
    request->ranges = (void *)((char *)request->iov + iov_size);
    request->head = chain->head;
    request->in_count = chain->in_count;
    request->in_size = chain->in_size;
    memcpy(request->in, chain->segments + chain->out_count, in_size);
    return request;
}

static void request_free(struct blk_request *request)
{
    free(request->bounce);
    free(request);
}

/* Vectors for bytes [skip, skip + size) of the segments. */
static void fill_vectors(struct blk_request *request, const struct virtqueue_segment *segments,
                         unsigned count, uint32_t skip, uint32_t size)
{
    for (unsigned i = 0; i < count && size; i++) {
        struct iovec *iov = &request->iov[request->iov_count];
        uint32_t piece = segments[i].size;

        if (skip >= piece) {
            skip -= piece;
            continue;
        }
        piece -= skip;
        if (piece > size)
            piece = size;
        *iov = (struct iovec){.iov_base = segments[i].ptr + skip, .iov_len = piece};
        request->iov_count++;
        size -= piece;
        skip = 0;
    }
}

static bool range_valid(const struct virtio_blk *blk, uint64_t sector, uint64_t sectors)
{
    return sector <= blk->state.capacity && sectors <= blk->state.capacity - sector;
}

/* Direct I/O needs aligned buffers; the guest's may lie anywhere. */
static bool use_bounce(struct virtio_blk *blk, struct blk_request *request, size_t size)
{
    uint32_t mask = blk->image->block_size - 1;
    bool aligned = true;

    if (!blk->image->direct)
        return true;
    for (unsigned i = 0; i < request->iov_count; i++)
        aligned = aligned && !(((uintptr_t)request->iov[i].iov_base | request->iov[i].iov_len) & mask);
    if (aligned)
        return true;
    request->bounce = aligned_alloc(BOUNCE_ALIGN, (size + BOUNCE_ALIGN - 1) & ~(size_t)(BOUNCE_ALIGN - 1));
    if (!request->bounce)
        return false;
    request->bounce_size = size;
    request->bounce_iov = (struct iovec){.iov_base = request->bounce, .iov_len = size};
    return true;
}

static void gather_bounce(struct blk_request *request)
{
    uint8_t *to = request->bounce;

    for (unsigned i = 0; i < request->iov_count; i++) {
        memcpy(to, request->iov[i].iov_base, request->iov[i].iov_len);
        to += request->iov[i].iov_len;
    }
}

/* The status byte may share the last segment with data: segment arithmetic, not vectors (which advance). */
static void scatter_bounce(struct blk_request *request)
{
    virtqueue_write_segments(request->in, request->in_count, 0, request->bounce, request->bounce_size);
}

/* Read or write. Returns a request, or NULL and the status to answer with. */
static struct blk_request *parse_transfer(struct virtio_blk *blk, const struct blk_header *header,
                                          uint8_t *status)
{
    const struct virtqueue_chain *chain = &blk->chain;
    bool write = header->type == BLK_T_OUT;
    uint32_t size = write ? chain->out_size - (uint32_t)sizeof(*header) : chain->in_size - 1;
    struct blk_request *request;

    *status = BLK_S_IOERR;
    if (write && blk->image->readonly)
        return NULL;
    if (!size || size % SECTOR_SIZE || !range_valid(blk, header->sector, size / SECTOR_SIZE))
        return NULL;
    request = request_new(chain, 0);
    if (!request)
        return NULL;
    if (write)
        fill_vectors(request, chain->segments, chain->out_count, sizeof(*header), size);
    else
        fill_vectors(request, request->in, request->in_count, 0, size);
    if (!use_bounce(blk, request, size)) {
        request_free(request);
        return NULL;
    }
    if (write && request->bounce)
        gather_bounce(request);
    request->disk.op = write ? DISK_OP_WRITE : DISK_OP_READ;
    request->disk.offset = header->sector * SECTOR_SIZE;
    request->disk.iov = request->bounce ? &request->bounce_iov : request->iov;
    request->disk.iov_count = request->bounce ? 1 : request->iov_count;
    request->disk.durable = write && !virtio_has(&blk->virtio, UINT64_C(1) << BLK_F_FLUSH);
    return request;
}

/* Discard or write-zeroes (§5.2.6.2). */
static struct blk_request *parse_ranges(struct virtio_blk *blk, const struct blk_header *header,
                                        uint8_t *status)
{
    const struct virtqueue_chain *chain = &blk->chain;
    uint32_t size = chain->out_size - (uint32_t)sizeof(*header);
    unsigned count = size / sizeof(struct blk_range);
    bool discard = header->type == BLK_T_DISCARD;
    struct blk_request *request;

    *status = BLK_S_IOERR;
    if (blk->image->readonly || !count || count > RANGES_MAX || size % sizeof(struct blk_range))
        return NULL;
    request = request_new(chain, count);
    if (!request)
        return NULL;
    for (unsigned i = 0; i < count; i++) {
        struct blk_range range;

        virtqueue_read_segments(chain->segments, chain->out_count, sizeof(*header) + i * sizeof(range),
                                &range, sizeof(range));
        range.sector = le64toh(range.sector);
        range.count = le32toh(range.count);
        range.flags = le32toh(range.flags);
        if (range.flags & (discard ? ~UINT32_C(0) : ~UINT32_C(1)))
            *status = BLK_S_UNSUPP;
        else if (range_valid(blk, range.sector, range.count) && range.count <= RANGE_MAX &&
                 !(range.count * SECTOR_SIZE % blk->image->block_size))
            *status = BLK_S_OK;
        else
            *status = BLK_S_IOERR;
        if (*status != BLK_S_OK) {
            request_free(request);
            return NULL;
        }
        request->ranges[i] = (struct disk_range){.offset = range.sector * SECTOR_SIZE,
                                                 .length = (uint64_t)range.count * SECTOR_SIZE,
                                                 .unmap = range.flags & 1};
    }
    request->disk.op = discard ? DISK_OP_DISCARD : DISK_OP_WRITE_ZEROES;
    request->disk.ranges = request->ranges;
    request->disk.range_count = count;
    request->disk.durable = !virtio_has(&blk->virtio, UINT64_C(1) << BLK_F_FLUSH);
    return request;
}

static struct blk_request *parse_flush(struct virtio_blk *blk, uint8_t *status)
{
    struct blk_request *request = blk->image->readonly ? NULL : request_new(&blk->chain, 0);

    *status = blk->image->readonly ? BLK_S_OK : BLK_S_IOERR;
    if (request)
        request->disk.op = DISK_OP_FLUSH;
    return request;
}

/*
 * Looks at the chain popped. Returns a request to run, or NULL when the chain is done with: answered, or
 * handed back because it broke the rules.
 */
static struct blk_request *parse_chain(struct virtio_blk *blk)
{
    struct virtqueue_chain *chain = &blk->chain;
    struct blk_request *request = NULL;
    uint8_t status = BLK_S_UNSUPP;
    struct blk_header header;

    if (chain->out_size < sizeof(header) || !chain->in_size) {
        virtio_violate(&blk->virtio, "a request without its header or its status byte");
        virtio_unpop(&blk->virtio, 0);
        return NULL;
    }
    virtqueue_read_segments(chain->segments, chain->out_count, 0, &header, sizeof(header));
    header.type = le32toh(header.type);
    header.sector = le64toh(header.sector);
    switch (header.type) {
    case BLK_T_IN:
    case BLK_T_OUT:
        request = parse_transfer(blk, &header, &status);
        break;
    case BLK_T_FLUSH:
        request = parse_flush(blk, &status);
        break;
    case BLK_T_DISCARD:
    case BLK_T_WRITE_ZEROES:
        request = parse_ranges(blk, &header, &status);
        break;
    case BLK_T_GET_ID:
        answer_id(blk);
        return NULL;
    default:
        break;
    }
    if (!request) {
        if (status == BLK_S_IOERR)
            log_error_limited(blk, type_name(header.type), header.sector * SECTOR_SIZE,
                              "the guest's request is not valid");
        answer_chain(blk, status);
        return NULL;
    }
    request->type = header.type;
    return request;
}

static void finish_request(struct virtio_blk *blk, struct blk_request *request)
{
    uint8_t status = request->disk.result < 0 ? BLK_S_IOERR : BLK_S_OK;
    bool resetting = blk->virtio.resetting;

    if (request->disk.result < 0)
        log_error_limited(blk, type_name(request->type), request->disk.offset,
                          strerror(-request->disk.result));
    else if (request->bounce && request->disk.op == DISK_OP_READ && !resetting)
        scatter_bounce(request);
    if (request->disk.op != DISK_OP_READ && request->disk.op != DISK_OP_FLUSH)
        blk->unflushed = true;
    if (!resetting)
        virtqueue_write_segments(request->in, request->in_count, request->in_size - 1, &status, 1);
    /* A read, also one that failed half-way, may have written all of its buffers. */
    virtio_push(&blk->virtio, 0, request->head, request->in, request->in_count, request->in_size);
    request_free(request);
}

static void blk_reap(struct virtio *virtio)
{
    struct virtio_blk *blk = from_virtio(virtio);
    struct disk_request *done;

    /* What an earlier round could not hand to the kernel. */
    disk_io_flush_queue(blk->io);
    while ((done = disk_io_reap(blk->io)))
        finish_request(blk, (struct blk_request *)((char *)done - offsetof(struct blk_request, disk)));
    virtio_signal(virtio, 0);
}

/* Takes up to BATCH chains; returns how many became requests to run, *more whether the ring may hold more. */
static unsigned take_batch(struct virtio_blk *blk, struct blk_request **batch, bool *more)
{
    unsigned count = 0;

    *more = true;
    for (unsigned i = 0; i < BATCH && *more; i++) {
        if (!virtio_pop(&blk->virtio, 0, &blk->chain)) {
            *more = virtio_live(&blk->virtio) && virtqueue_listen(&blk->virtio.queues[0]);
            continue;
        }
        batch[count] = parse_chain(blk);
        if (batch[count])
            count++;
    }
    return count;
}

static void blk_process(struct virtio *virtio)
{
    struct virtio_blk *blk = from_virtio(virtio);
    struct blk_request *batch[BATCH];
    bool more = true;

    while (more) {
        unsigned count = take_batch(blk, batch, &more);

        virtio_signal(virtio, 0); /* for what was answered at once */
        /* Handing over may copy data or wait for a disk; vCPUs want the lock for their registers. */
        pthread_mutex_unlock(&virtio->lock);
        for (unsigned i = 0; i < count; i++)
            disk_io_submit(blk->io, &batch[i]->disk);
        disk_io_flush_queue(blk->io);
        pthread_mutex_lock(&virtio->lock);
        blk_reap(virtio);
    }
}

static int blk_drain(struct virtio *virtio, struct ferry_error *err)
{
    struct virtio_blk *blk = from_virtio(virtio);
    int result = 0;

    if (!blk->unflushed)
        return 0;
    pthread_mutex_unlock(&virtio->lock);
    if (fdatasync(blk->image->fd) < 0)
        result = error_set_errno(err, -errno, "%s: cannot flush disk %s", blk->device.name, blk->image->path);
    pthread_mutex_lock(&virtio->lock);
    if (result == 0)
        blk->unflushed = false;
    return result;
}

static const struct virtio_ops blk_virtio_ops = {
    .worker = THREAD_IO,
    .device_id = 2,
    .queue_count = 1,
    .queue_size = QUEUE_SIZE,
    .process = blk_process,
    .reap = blk_reap,
    .drain = blk_drain,
};

static void blk_reset(struct device *device)
{
    virtio_reset(&from_device(device)->virtio);
}

static int blk_start(struct device *device, struct ferry_error *err)
{
    virtio_start(&from_device(device)->virtio);
    return 0;
}

static int blk_quiesce(struct device *device, uint64_t deadline_ns, struct ferry_error *err)
{
    return virtio_quiesce(&from_device(device)->virtio, deadline_ns, err);
}

static void blk_save(struct device *device, struct buffer *out)
{
    state_save(&virtio_blk_table, &from_device(device)->state, out);
}

static int blk_load(struct device *device, uint32_t version, struct reader *in, struct ferry_error *err)
{
    struct virtio_blk *blk = from_device(device);
    struct blk_state loaded = blk->state;
    int result = state_load(&virtio_blk_table, device->name, version, &loaded, in, err);

    if (result == 0) {
        result = virtio_state_check(&blk->virtio, &loaded.virtio, err);
        if (result == 0 && loaded.capacity != blk->state.capacity)
            result = error_set(err, -EINVAL,
                               "field capacity: the guest's disk has %" PRIu64 " sectors, %s has %" PRIu64,
                               loaded.capacity, blk->image->path, blk->state.capacity);
        if (result < 0)
            error_prefix(err, result, "state section %s", device->name);
    }
    if (result < 0)
        return result;
    blk->state = loaded;
    virtio_loaded(&blk->virtio);
    return 0;
}

static int blk_acquire(struct device *device, struct ferry_error *err)
{
    return image_acquire(from_device(device)->image, err);
}

static void blk_release(struct device *device)
{
    image_release(from_device(device)->image);
}

static void blk_destroy(struct device *device)
{
    struct virtio_blk *blk = from_device(device);

    virtio_destroy(&blk->virtio);
    disk_io_free(blk->io);
    image_close(blk->image);
    free(blk);
}

static const struct device_ops blk_device_ops = {
    .reset = blk_reset,
    .start = blk_start,
    .quiesce = blk_quiesce,
    .save = blk_save,
    .load = blk_load,
    .acquire = blk_acquire,
    .release = blk_release,
    .destroy = blk_destroy,
};

static uint64_t fill_config(struct virtio_blk *blk)
{
    uint64_t features = UINT64_C(1) << BLK_F_SEG_MAX | UINT64_C(1) << BLK_F_BLK_SIZE;
    struct blk_config *config = &blk->config;

    config->capacity = htole64(blk->image->size / SECTOR_SIZE);
    config->seg_max = htole32(SEGMENTS_MAX);
    config->blk_size = htole32(blk->image->block_size);
    config->num_queues = htole16(1);
    if (blk->image->readonly)
        return features | UINT64_C(1) << BLK_F_RO;
    config->max_discard_sectors = htole32(RANGE_MAX);
    config->max_discard_seg = htole32(RANGES_MAX);
    config->discard_sector_alignment = htole32(blk->image->block_size / SECTOR_SIZE);
    config->max_write_zeroes_sectors = htole32(RANGE_MAX);
    config->max_write_zeroes_seg = htole32(RANGES_MAX);
    config->write_zeroes_may_unmap = 1;
    return features | UINT64_C(1) << BLK_F_FLUSH | UINT64_C(1) << BLK_F_DISCARD |
           UINT64_C(1) << BLK_F_WRITE_ZEROES;
}

int virtio_blk_create(struct device **out, const struct device_env *env, unsigned index,
                      const struct virtio_blk_options *options, struct ferry_error *err)
{
    struct virtio_blk *blk = calloc(1, sizeof(*blk));
    uint64_t features;
    int result;

    if (!blk)
        return error_set(err, -ENOMEM, "out of memory while adding disk %s", options->path);
    blk->device.ops = &blk_device_ops;
    blk->device.state = &virtio_blk_table;
    snprintf(blk->device.name, sizeof(blk->device.name), "virtio-blk%u", index);
    result = image_open(&blk->image, options->path, options->readonly, options->direct, err);
    if (result < 0)
        goto fail_blk;
    features = fill_config(blk);
    result = virtio_init(&blk->virtio, &blk_virtio_ops, &blk->state.virtio, features, &blk->config,
                         sizeof(blk->config), blk->device.name, env, err);
    if (result < 0)
        goto fail_image;
    blk->state.capacity = blk->image->size / SECTOR_SIZE;
    result = disk_io_new(&blk->io, blk->image->fd, blk->virtio.event_fd, QUEUE_SIZE, options->engine, err);
    if (result == 0)
        result = virtio_mmio_add(&blk->virtio, err);
    if (result < 0) {
        blk_destroy(&blk->device);
        return result;
    }
    *out = &blk->device;
    return 0;

fail_image:
    image_close(blk->image);
fail_blk:
    free(blk);
    return result;
}
