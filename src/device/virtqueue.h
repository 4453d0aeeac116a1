/*
 * The device's side of a split virtqueue (virtio 1.2 §2.7).
 *
 * Everything in the ring was written by the guest and may be nonsense, changing under our eyes: each value is
 * read once, checked, and only then used. A chain is taken whole or not at all: its length is capped at
 * VIRTQUEUE_CHAIN_MAX, every buffer lies inside guest memory, readable buffers come before writable ones. A
 * queue that breaks a rule answers -EPROTO once and for all (until it is set up anew); the caller then asks
 * the driver for a reset (virtio_violate in virtio.h).
 *
 *     while ((result = virtqueue_pop(queue, &chain, &why)) > 0) {
 *         ... chain.segments[0 .. out_count) read, [out_count .. out_count + in_count) written ...
 *         virtqueue_push(queue, chain.head, chain.segments + chain.out_count, chain.in_count, written);
 *     }
 *     if (virtqueue_must_signal(queue)) ... interrupt ...
 *
 * Not thread-safe: one lock guards a queue (the device's, virtio.h).
 */
#ifndef FERRY_DEVICE_VIRTQUEUE_H
#define FERRY_DEVICE_VIRTQUEUE_H

#include "bus/memory.h"
#include "bus/state.h"

#include <stdbool.h>
#include <stdint.h>

#define VIRTQUEUE_SIZE_MAX  256 /* largest queue any device offers */
#define VIRTQUEUE_CHAIN_MAX 256 /* most buffers in a chain, indirect ones included */

/* What moves with the VM. */
struct virtqueue_state {
    uint64_t desc_addr; /* guest addresses of the three parts */
    uint64_t driver_addr;
    uint64_t device_addr;
    uint16_t size;       /* a power of two */
    uint16_t next_avail; /* next entry of the available ring to look at */
    uint16_t next_used;  /* next entry of the used ring to write */
    uint16_t signalled;  /* next_used when the driver was last considered for an interrupt */
    bool ready;
};

/* The fields of TYPE.MEMBER (a struct virtqueue_state) for a state table. */
#define VIRTQUEUE_STATE_FIELDS(type, member)                                                                 \
    STATE_FIELD(type, member.desc_addr, STATE_U64), STATE_FIELD(type, member.driver_addr, STATE_U64),        \
        STATE_FIELD(type, member.device_addr, STATE_U64),                                                    \
        STATE_FIELD(type, member.size, STATE_U16, .max = VIRTQUEUE_SIZE_MAX),                                \
        STATE_FIELD(type, member.next_avail, STATE_U16), STATE_FIELD(type, member.next_used, STATE_U16),     \
        STATE_FIELD(type, member.signalled, STATE_U16), STATE_FIELD(type, member.ready, STATE_BOOL)

struct virtqueue_segment {
    uint8_t *ptr; /* checked: SIZE bytes of guest memory */
    uint64_t guest_addr;
    uint32_t size; /* 1 or more */
};

struct virtqueue_chain {
    uint16_t head;
    unsigned out_count; /* read by the device; first in segments */
    unsigned in_count;  /* written by the device */
    uint32_t out_size;  /* bytes */
    uint32_t in_size;
    struct virtqueue_segment segments[VIRTQUEUE_CHAIN_MAX];
};

struct virtqueue {
    struct virtqueue_state *state; /* borrowed */
    struct memory *memory;
    bool event_idx; /* VIRTIO_F_EVENT_IDX negotiated */
    bool indirect;  /* VIRTIO_F_INDIRECT_DESC negotiated */
    bool broken;
    bool mapped; /* the pointers below are checked and valid */
    uint8_t *desc;
    uint8_t *driver; /* the available ring */
    uint8_t *device; /* the used ring */
};

void virtqueue_init(struct virtqueue *queue, struct virtqueue_state *state, struct memory *memory);
/* Forgets mapping and breakage; for reset, a changed set-up, and after load. */
void virtqueue_remap(struct virtqueue *queue);
/* The state table's part that needs more than ranges. SIZE_MAX: what the device offers. */
int virtqueue_state_check(const struct virtqueue_state *state, unsigned index, unsigned size_max,
                          struct ferry_error *err);

/* 1 and a chain; 0 when there is none or the queue is not ready; -EPROTO and *why (a constant string). */
int virtqueue_pop(struct virtqueue *queue, struct virtqueue_chain *chain, const char **why);
/* Undoes the last pop, nothing having been pushed since. */
void virtqueue_unpop(struct virtqueue *queue);
/*
 * Returns the chain HEAD to the driver with WRITTEN bytes written to the IN segments (in order from their
 * start), and marks those dirty. Does nothing on a queue no longer ready.
 */
void virtqueue_push(struct virtqueue *queue, uint16_t head, const struct virtqueue_segment *in,
                    unsigned in_count, uint32_t written);
/* Whether the driver wants an interrupt for what was pushed since the last call. */
bool virtqueue_must_signal(struct virtqueue *queue);
/* Asks the driver to notify us of more. True when more came meanwhile: look again. */
bool virtqueue_listen(struct virtqueue *queue);

/* Gathers up to SIZE bytes from (scatters to) segments starting OFFSET bytes in; returns the count. The
 * writer does not mark dirty: virtqueue_push does. */
size_t virtqueue_read_segments(const struct virtqueue_segment *segments, unsigned count, uint64_t offset,
                               void *out, size_t size);
size_t virtqueue_write_segments(const struct virtqueue_segment *segments, unsigned count, uint64_t offset,
                                const void *data, size_t size);

#endif
