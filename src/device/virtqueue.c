#include "device/virtqueue.h"

#include "base/error.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

/* Offsets and sizes of the ring's parts (§2.7.5 to §2.7.8). */
#define DESC_SIZE       16
#define RING_FLAGS      0
#define RING_IDX        2
#define RING_ENTRIES    4
#define AVAIL_ENTRY     2
#define USED_ENTRY      8
#define RING_EVENT_SIZE 2

#define DESC_F_NEXT     1
#define DESC_F_WRITE    2
#define DESC_F_INDIRECT 4

#define AVAIL_F_NO_INTERRUPT 1

struct descriptor {
    uint64_t addr;
    uint32_t size;
    uint16_t flags;
    uint16_t next;
};

/*
 * Indices and flags are atomic and sequentially consistent: the driver writes what it wants to be told of and
 * then looks at our index, we write our index and then look at what it wants, and one of the two must see the
 * other's (§2.7.7, §2.7.13).
 */
static uint16_t load_u16(const uint8_t *ptr)
{
    return le16toh(__atomic_load_n((const uint16_t *)(const void *)ptr, __ATOMIC_SEQ_CST));
}

static void store_u16(uint8_t *ptr, uint16_t value)
{
    __atomic_store_n((uint16_t *)(void *)ptr, htole16(value), __ATOMIC_SEQ_CST);
}

void virtqueue_init(struct virtqueue *queue, struct virtqueue_state *state, struct memory *memory)
{
    *queue = (struct virtqueue){.state = state, .memory = memory};
}

void virtqueue_remap(struct virtqueue *queue)
{
    queue->broken = false;
    queue->mapped = false;
    queue->desc = NULL;
    queue->driver = NULL;
    queue->device = NULL;
}

static bool size_valid(unsigned size)
{
    return size && size <= VIRTQUEUE_SIZE_MAX && !(size & (size - 1));
}

int virtqueue_state_check(const struct virtqueue_state *state, unsigned index, unsigned size_max,
                          struct ferry_error *err)
{
    uint16_t outstanding = state->next_avail - state->next_used;

    if (!size_valid(state->size) || state->size > size_max)
        return error_set(err, -EINVAL, "field queues[%u].size: %u is not a queue size up to %u", index,
                         state->size, size_max);
    if (outstanding > state->size)
        return error_set(err, -EINVAL, "field queues[%u].next_used: %u does not fit next_avail %u", index,
                         state->next_used, state->next_avail);
    return 0;
}

/* Checks where the driver put the ring's parts and keeps host pointers: regions never change. */
static bool map_ring(struct virtqueue *queue, const char **why)
{
    const struct virtqueue_state *state = queue->state;
    unsigned event = queue->event_idx ? RING_EVENT_SIZE : 0;

    if (!size_valid(state->size)) {
        *why = "its size is not a power of two the device offers";
        return false;
    }
    if (state->desc_addr % 16 || state->driver_addr % 2 || state->device_addr % 4) {
        *why = "a ring address is not aligned";
        return false;
    }
    queue->desc = memory_ptr(queue->memory, state->desc_addr, (uint64_t)DESC_SIZE * state->size);
    queue->driver = memory_ptr(queue->memory, state->driver_addr,
                               RING_ENTRIES + (uint64_t)AVAIL_ENTRY * state->size + event);
    queue->device = memory_ptr(queue->memory, state->device_addr,
                               RING_ENTRIES + (uint64_t)USED_ENTRY * state->size + event);
    if (!queue->desc || !queue->driver || !queue->device) {
        *why = "a ring lies outside guest memory";
        return false;
    }
    queue->mapped = true;
    return true;
}

/* After copying out of guest memory: what was checked must be what is used, so nothing may be read again. */
static void read_once(void)
{
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

static struct descriptor read_descriptor(const uint8_t *table, unsigned index)
{
    struct descriptor desc;

    memcpy(&desc, table + (size_t)index * DESC_SIZE, DESC_SIZE);
    read_once();
    desc.addr = le64toh(desc.addr);
    desc.size = le32toh(desc.size);
    desc.flags = le16toh(desc.flags);
    desc.next = le16toh(desc.next);
    return desc;
}

/* Returns NULL or what is wrong with the buffer. */
static const char *add_segment(struct virtqueue *queue, struct virtqueue_chain *chain,
                               const struct descriptor *desc)
{
    unsigned index = chain->out_count + chain->in_count;
    struct virtqueue_segment *segment = &chain->segments[index];
    bool write = desc->flags & DESC_F_WRITE;
    uint32_t *total = write ? &chain->in_size : &chain->out_size;

    if (index >= VIRTQUEUE_CHAIN_MAX)
        return "a chain has too many buffers";
    if (!desc->size)
        return "a buffer is empty";
    if (!write && chain->in_count)
        return "a readable buffer follows a writable one";
    if (__builtin_add_overflow(*total, desc->size, total))
        return "a chain is 4 GiB or longer";
    segment->guest_addr = desc->addr;
    segment->size = desc->size;
    segment->ptr = memory_ptr(queue->memory, desc->addr, desc->size);
    if (!segment->ptr)
        return "a buffer lies outside guest memory";
    if (write)
        chain->in_count++;
    else
        chain->out_count++;
    return NULL;
}

/* Checks an indirect descriptor's table and returns it, or NULL and *why. */
static const uint8_t *indirect_table(struct virtqueue *queue, const struct descriptor *desc, bool nested,
                                     const char **why)
{
    const uint8_t *table;

    *why = NULL;
    if (!queue->indirect)
        *why = "an indirect buffer without the feature";
    else if (nested)
        *why = "an indirect table inside an indirect table";
    else if (desc->flags & DESC_F_NEXT)
        *why = "an indirect buffer with a next one";
    else if (!desc->size || desc->size % DESC_SIZE || desc->size / DESC_SIZE > VIRTQUEUE_CHAIN_MAX)
        *why = "an indirect table of a wrong length";
    if (*why)
        return NULL;
    table = memory_ptr(queue->memory, desc->addr, desc->size);
    if (!table)
        *why = "an indirect table outside guest memory";
    return table;
}

/* Follows the chain from INDEX; the number of steps is bounded by the table's size, so loops end. */
static const char *walk_chain(struct virtqueue *queue, struct virtqueue_chain *chain, unsigned index)
{
    const uint8_t *table = queue->desc;
    unsigned table_size = queue->state->size;
    bool nested = false;
    unsigned steps = 0;
    const char *why;

    for (;;) {
        struct descriptor desc;

        if (index >= table_size)
            return "a descriptor index is outside its table";
        if (steps++ >= table_size)
            return "a chain loops";
        desc = read_descriptor(table, index);
        if (desc.flags & DESC_F_INDIRECT) {
            table = indirect_table(queue, &desc, nested, &why);
            if (!table)
                return why;
            table_size = desc.size / DESC_SIZE;
            nested = true;
            steps = 0;
            index = 0;
            continue;
        }
        why = add_segment(queue, chain, &desc);
        if (why || !(desc.flags & DESC_F_NEXT))
            return why;
        index = desc.next;
    }
}

static int break_queue(struct virtqueue *queue, const char *reason, const char **why)
{
    queue->broken = true;
    *why = reason;
    return -EPROTO;
}

int virtqueue_pop(struct virtqueue *queue, struct virtqueue_chain *chain, const char **why)
{
    struct virtqueue_state *state = queue->state;
    const char *reason = NULL;
    uint16_t available;
    uint16_t outstanding;

    if (queue->broken)
        return break_queue(queue, "it was found broken before", why);
    if (!state->ready)
        return 0;
    if (!queue->mapped && !map_ring(queue, &reason))
        return break_queue(queue, reason, why);
    available = load_u16(queue->driver + RING_IDX) - state->next_avail;
    if (!available)
        return 0;
    outstanding = state->next_avail - state->next_used;
    if (available > state->size || outstanding >= state->size)
        return break_queue(queue, "the available index jumped by more than its size", why);
    chain->head = load_u16(queue->driver + RING_ENTRIES + AVAIL_ENTRY * (state->next_avail % state->size));
    chain->out_count = 0;
    chain->in_count = 0;
    chain->out_size = 0;
    chain->in_size = 0;
    reason = walk_chain(queue, chain, chain->head);
    if (reason)
        return break_queue(queue, reason, why);
    state->next_avail++;
    return 1;
}

void virtqueue_unpop(struct virtqueue *queue)
{
    queue->state->next_avail--;
}

static void mark_written(struct virtqueue *queue, const struct virtqueue_segment *in, unsigned in_count,
                         uint32_t written)
{
    for (unsigned i = 0; i < in_count && written; i++) {
        uint32_t size = in[i].size < written ? in[i].size : written;

        memory_mark_dirty(queue->memory, in[i].guest_addr, size);
        written -= size;
    }
}

void virtqueue_push(struct virtqueue *queue, uint16_t head, const struct virtqueue_segment *in,
                    unsigned in_count, uint32_t written)
{
    struct virtqueue_state *state = queue->state;
    uint32_t entry[2] = {htole32(head), htole32(written)};
    uint64_t offset;

    mark_written(queue, in, in_count, written);
    if (!state->ready || !queue->mapped)
        return;
    offset = RING_ENTRIES + (uint64_t)USED_ENTRY * (state->next_used % state->size);
    memcpy(queue->device + offset, entry, sizeof(entry));
    memory_mark_dirty(queue->memory, state->device_addr + offset, sizeof(entry));
    state->next_used++;
    store_u16(queue->device + RING_IDX, state->next_used);
    memory_mark_dirty(queue->memory, state->device_addr + RING_IDX, 2);
}

bool virtqueue_must_signal(struct virtqueue *queue)
{
    struct virtqueue_state *state = queue->state;
    uint16_t old = state->signalled;
    uint16_t wanted;

    if (!state->ready || !queue->mapped || old == state->next_used)
        return false;
    state->signalled = state->next_used;
    if (!queue->event_idx)
        return !(load_u16(queue->driver + RING_FLAGS) & AVAIL_F_NO_INTERRUPT);
    wanted = load_u16(queue->driver + RING_ENTRIES + AVAIL_ENTRY * (size_t)state->size);
    /* §2.7.7.1: the wanted index lies in [old, next_used). */
    return (uint16_t)(state->next_used - wanted - 1) < (uint16_t)(state->next_used - old);
}

bool virtqueue_listen(struct virtqueue *queue)
{
    struct virtqueue_state *state = queue->state;
    uint64_t offset = RING_ENTRIES + (uint64_t)USED_ENTRY * state->size;

    if (!state->ready || !queue->mapped || queue->broken)
        return false;
    if (queue->event_idx) {
        store_u16(queue->device + offset, state->next_avail);
        memory_mark_dirty(queue->memory, state->device_addr + offset, 2);
    }
    return load_u16(queue->driver + RING_IDX) != state->next_avail;
}

/* Calls copy for each piece of [offset, offset + size) of the segments. */
static size_t walk_segments(const struct virtqueue_segment *segments, unsigned count, uint64_t offset,
                            uint8_t *data, size_t size, bool to_guest)
{
    size_t done = 0;

    for (unsigned i = 0; i < count && done < size; i++) {
        size_t piece;

        if (offset >= segments[i].size) {
            offset -= segments[i].size;
            continue;
        }
        piece = segments[i].size - offset;
        if (piece > size - done)
            piece = size - done;
        if (to_guest)
            memcpy(segments[i].ptr + offset, data + done, piece);
        else
            memcpy(data + done, segments[i].ptr + offset, piece);
        done += piece;
        offset = 0;
    }
    read_once();
    return done;
}

size_t virtqueue_read_segments(const struct virtqueue_segment *segments, unsigned count, uint64_t offset,
                               void *out, size_t size)
{
    return walk_segments(segments, count, offset, out, size, false);
}

size_t virtqueue_write_segments(const struct virtqueue_segment *segments, unsigned count, uint64_t offset,
                                const void *data, size_t size)
{
    return walk_segments(segments, count, offset, (uint8_t *)(uintptr_t)data, size, true);
}
