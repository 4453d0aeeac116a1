#include "guest.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* A virtqueue without a device: rings in guest memory, popped by hand. */
struct ring {
    struct guest *guest;
    struct driver driver;
    struct driver_queue queue;
    struct virtqueue_state state;
    struct virtqueue virtqueue;
    struct virtqueue_chain chain;
    uint64_t buffer;
};

#define SIZE 16

static int setup(void **state)
{
    struct ring *ring = calloc(1, sizeof(*ring));

    ring->guest = guest_new();
    ring->driver.guest = ring->guest;
    ring->queue = (struct driver_queue){.driver = &ring->driver, .size = SIZE};
    ring->queue.desc = guest_alloc(ring->guest, 16 * SIZE, 4096);
    ring->queue.avail = guest_alloc(ring->guest, 6 + 2 * SIZE, 4096);
    ring->queue.used = guest_alloc(ring->guest, 6 + 8 * SIZE, 4096);
    ring->buffer = guest_alloc(ring->guest, 65536, 4096);
    ring->state = (struct virtqueue_state){.desc_addr = ring->queue.desc,
                                           .driver_addr = ring->queue.avail,
                                           .device_addr = ring->queue.used,
                                           .size = SIZE,
                                           .ready = true};
    virtqueue_init(&ring->virtqueue, &ring->state, ring->guest->memory);
    ring->virtqueue.event_idx = true;
    ring->virtqueue.indirect = true;
    *state = ring;
    return 0;
}

static int teardown(void **state)
{
    struct ring *ring = *state;

    guest_free(ring->guest);
    free(ring);
    return 0;
}

static void offer_head(struct ring *ring, uint16_t head)
{
    queue_offer(&ring->queue, head);
    queue_publish(&ring->queue);
}

static void assert_violated(struct ring *ring)
{
    const char *why = NULL;

    assert_int_equal(virtqueue_pop(&ring->virtqueue, &ring->chain, &why), -EPROTO);
    assert_non_null(why);
    /* and it stays so */
    assert_int_equal(virtqueue_pop(&ring->virtqueue, &ring->chain, &why), -EPROTO);
}

static void assert_popped(struct ring *ring)
{
    const char *why = "";

    if (virtqueue_pop(&ring->virtqueue, &ring->chain, &why) != 1)
        fail_msg("nothing popped: %s", why);
}

static void a_chain_is_popped_whole(void **state)
{
    struct ring *ring = *state;
    const struct driver_buffer buffers[] = {{ring->buffer, 100, false},
                                            {ring->buffer + 1000, 1, false},
                                            {ring->buffer + 2000, 65536 - 2000, true}};
    const char *why;

    assert_int_equal(virtqueue_pop(&ring->virtqueue, &ring->chain, &why), 0);
    offer_head(ring, queue_chain(&ring->queue, buffers, 3));
    assert_popped(ring);
    assert_int_equal(ring->chain.head, 0);
    assert_int_equal(ring->chain.out_count, 2);
    assert_int_equal(ring->chain.in_count, 1);
    assert_int_equal(ring->chain.out_size, 101);
    assert_int_equal(ring->chain.in_size, 65536 - 2000);
    assert_int_equal(virtqueue_pop(&ring->virtqueue, &ring->chain, &why), 0);
}

static void an_indirect_chain_is_popped_whole(void **state)
{
    struct ring *ring = *state;
    struct driver_buffer buffers[VIRTQUEUE_CHAIN_MAX];

    for (unsigned i = 0; i < VIRTQUEUE_CHAIN_MAX; i++)
        buffers[i] = (struct driver_buffer){ring->buffer + i, 1, i >= 100};
    offer_head(ring, queue_chain_indirect(&ring->queue, buffers, VIRTQUEUE_CHAIN_MAX));
    assert_popped(ring);
    assert_int_equal(ring->chain.out_count, 100);
    assert_int_equal(ring->chain.in_count, VIRTQUEUE_CHAIN_MAX - 100);
}

static void direct_buffers_may_end_in_an_indirect_table(void **state)
{
    struct ring *ring = *state;
    const struct driver_buffer buffers[] = {{ring->buffer, 10, false}, {ring->buffer, 20, true}};
    uint16_t indirect = queue_chain_indirect(&ring->queue, buffers, 2);

    queue_set_desc(&ring->queue, 7, ring->buffer, 5, DESC_NEXT, indirect);
    offer_head(ring, 7);
    assert_popped(ring);
    assert_int_equal(ring->chain.out_size, 15);
    assert_int_equal(ring->chain.in_size, 20);
}

static void the_used_ring_tells_head_and_length(void **state)
{
    struct ring *ring = *state;
    const struct driver_buffer buffer = {ring->buffer, 8192, true};
    const uint8_t *used = guest_ptr(ring->guest, ring->queue.used, 6 + 8 * SIZE);
    uint32_t entry[2];

    ring->queue.next_desc = 9;
    offer_head(ring, queue_chain(&ring->queue, &buffer, 1));
    assert_popped(ring);
    virtqueue_push(&ring->virtqueue, ring->chain.head, ring->chain.segments, 1, 77);
    memcpy(entry, used + 4, 8);
    assert_int_equal(entry[0], 9);
    assert_int_equal(entry[1], 77);
    assert_int_equal(queue_used_idx(&ring->queue), 1);
}

static void what_is_written_is_marked_dirty(void **state)
{
    struct ring *ring = *state;
    const struct memory_region *region = memory_region(ring->guest->memory, 0);
    const struct driver_buffer buffers[] = {{ring->buffer, 4096, true}, {ring->buffer + 8192, 8192, true}};
    size_t page = (ring->buffer - GUEST_RAM) / 4096;

    memory_set_tracking(ring->guest->memory, true);
    offer_head(ring, queue_chain(&ring->queue, buffers, 2));
    assert_popped(ring);
    virtqueue_push(&ring->virtqueue, ring->chain.head, ring->chain.segments, 2, 4097);
    assert_true(region->dirty[page / 64] >> page % 64 & 1);
    assert_false(region->dirty[(page + 1) / 64] >> (page + 1) % 64 & 1); /* between the buffers */
    assert_true(region->dirty[(page + 2) / 64] >> (page + 2) % 64 & 1);
    assert_false(region->dirty[(page + 3) / 64] >> (page + 3) % 64 & 1); /* not written */
    page = (ring->queue.used - GUEST_RAM) / 4096;
    assert_true(region->dirty[page / 64] >> page % 64 & 1);
}

static void the_driver_is_signalled_when_it_asked_to(void **state)
{
    struct ring *ring = *state;
    const struct driver_buffer buffer = {ring->buffer, 1, true};
    uint16_t *used_event = guest_ptr(ring->guest, ring->queue.avail + 4 + 2 * SIZE, 2);

    assert_false(virtqueue_must_signal(&ring->virtqueue));
    *used_event = 2; /* signal when entry 2, the third, is there */
    for (unsigned i = 0; i < 4; i++) {
        offer_head(ring, queue_chain(&ring->queue, &buffer, 1));
        assert_popped(ring);
        virtqueue_push(&ring->virtqueue, ring->chain.head, NULL, 0, 0);
        assert_int_equal(virtqueue_must_signal(&ring->virtqueue), i == 2);
    }
    assert_false(virtqueue_must_signal(&ring->virtqueue));
}

static void without_event_idx_a_flag_silences(void **state)
{
    struct ring *ring = *state;
    const struct driver_buffer buffer = {ring->buffer, 1, true};
    uint16_t *flags = guest_ptr(ring->guest, ring->queue.avail, 2);

    ring->virtqueue.event_idx = false;
    for (unsigned i = 0; i < 4; i++) {
        *flags = i % 2;
        offer_head(ring, queue_chain(&ring->queue, &buffer, 1));
        assert_popped(ring);
        virtqueue_push(&ring->virtqueue, ring->chain.head, NULL, 0, 0);
        assert_int_equal(virtqueue_must_signal(&ring->virtqueue), i % 2 == 0);
    }
}

static void listening_notices_what_came_meanwhile(void **state)
{
    struct ring *ring = *state;
    const struct driver_buffer buffer = {ring->buffer, 1, true};
    const char *why;

    assert_int_equal(virtqueue_pop(&ring->virtqueue, &ring->chain, &why), 0);
    assert_false(virtqueue_listen(&ring->virtqueue));
    offer_head(ring, queue_chain(&ring->queue, &buffer, 1));
    assert_true(virtqueue_listen(&ring->virtqueue));
}

static void indices_wrap(void **state)
{
    struct ring *ring = *state;
    const struct driver_buffer buffer = {ring->buffer, 4, true};

    ring->state.next_avail = ring->state.next_used = ring->queue.avail_idx = 65530;
    for (unsigned i = 0; i < 20; i++) {
        offer_head(ring, queue_chain(&ring->queue, &buffer, 1));
        assert_popped(ring);
        virtqueue_push(&ring->virtqueue, ring->chain.head, ring->chain.segments, 1, 4);
        assert_int_equal(queue_used_idx(&ring->queue), (uint16_t)(65531 + i));
    }
}

static void a_queue_not_ready_gives_nothing(void **state)
{
    struct ring *ring = *state;
    const struct driver_buffer buffer = {ring->buffer, 4, true};
    const char *why;

    ring->state.ready = false;
    offer_head(ring, queue_chain(&ring->queue, &buffer, 1));
    assert_int_equal(virtqueue_pop(&ring->virtqueue, &ring->chain, &why), 0);
    assert_false(virtqueue_listen(&ring->virtqueue));
    assert_false(virtqueue_must_signal(&ring->virtqueue));
}

/* Everything a chain can do wrong; each case on a ring of its own. */

static void a_loop_is_refused(void **state)
{
    struct ring *ring = *state;

    queue_set_desc(&ring->queue, 0, ring->buffer, 1, DESC_NEXT, 1);
    queue_set_desc(&ring->queue, 1, ring->buffer, 1, DESC_NEXT, 0);
    offer_head(ring, 0);
    assert_violated(ring);
}

static void a_descriptor_that_follows_itself_is_refused(void **state)
{
    struct ring *ring = *state;

    queue_set_desc(&ring->queue, 3, ring->buffer, 1, DESC_NEXT | DESC_WRITE, 3);
    offer_head(ring, 3);
    assert_violated(ring);
}

static void a_head_outside_the_table_is_refused(void **state)
{
    struct ring *ring = *state;

    offer_head(ring, SIZE);
    assert_violated(ring);
}

static void a_next_outside_the_table_is_refused(void **state)
{
    struct ring *ring = *state;

    queue_set_desc(&ring->queue, 0, ring->buffer, 1, DESC_NEXT, 0xffff);
    offer_head(ring, 0);
    assert_violated(ring);
}

static void an_empty_buffer_is_refused(void **state)
{
    struct ring *ring = *state;

    queue_set_desc(&ring->queue, 0, ring->buffer, 0, 0, 0);
    offer_head(ring, 0);
    assert_violated(ring);
}

static void buffers_outside_memory_are_refused(void **state)
{
    static const struct {
        uint64_t addr;
        uint32_t size;
    } cases[] = {
        {0, 1},
        {GUEST_RAM - 1, 1},
        {GUEST_RAM - 1, 2},
        {GUEST_RAM + GUEST_RAM_SIZE, 1},
        {GUEST_RAM + GUEST_RAM_SIZE - 1, 2},
        {GUEST_RAM, GUEST_RAM_SIZE + 1},
        {GUEST_RAM, UINT32_MAX},
        {UINT64_MAX, 1},
        {UINT64_MAX, UINT32_MAX},
        {UINT64_MAX - 4095, 4096},
    };
    struct ring *ring = *state;

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        queue_set_desc(&ring->queue, 0, cases[i].addr, cases[i].size, DESC_WRITE, 0);
        offer_head(ring, 0);
        assert_violated(ring);
        virtqueue_remap(&ring->virtqueue);
        ring->state.next_avail++;
        ring->state.next_used++;
    }
}

static void readable_after_writable_is_refused(void **state)
{
    struct ring *ring = *state;
    const struct driver_buffer buffers[] = {{ring->buffer, 1, true}, {ring->buffer, 1, false}};

    offer_head(ring, queue_chain(&ring->queue, buffers, 2));
    assert_violated(ring);
}

static void indirect_without_the_feature_is_refused(void **state)
{
    struct ring *ring = *state;
    const struct driver_buffer buffer = {ring->buffer, 1, true};

    ring->virtqueue.indirect = false;
    offer_head(ring, queue_chain_indirect(&ring->queue, &buffer, 1));
    assert_violated(ring);
}

static void indirect_in_indirect_is_refused(void **state)
{
    struct ring *ring = *state;
    const struct driver_buffer buffer = {ring->buffer, 1, true};
    uint16_t head = queue_chain_indirect(&ring->queue, &buffer, 1);
    uint64_t table;
    uint8_t *inner;

    memcpy(&table, guest_ptr(ring->guest, ring->queue.desc + 16 * (uint64_t)head, 8), 8);
    inner = guest_ptr(ring->guest, table, 16);
    memcpy(inner + 12, &(uint16_t){DESC_INDIRECT}, 2);
    memcpy(inner + 8, &(uint32_t){16}, 4);
    offer_head(ring, head);
    assert_violated(ring);
}

static void indirect_with_a_next_is_refused(void **state)
{
    struct ring *ring = *state;

    queue_set_desc(&ring->queue, 0, ring->buffer, 16, DESC_INDIRECT | DESC_NEXT, 1);
    offer_head(ring, 0);
    assert_violated(ring);
}

static void indirect_tables_of_odd_lengths_are_refused(void **state)
{
    static const uint32_t sizes[] = {0,          1,         15, 17, 24, 16 * (VIRTQUEUE_CHAIN_MAX + 1),
                                     0xfffffff0, UINT32_MAX};
    struct ring *ring = *state;

    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        queue_set_desc(&ring->queue, 0, ring->buffer, sizes[i], DESC_INDIRECT, 0);
        offer_head(ring, 0);
        assert_violated(ring);
        virtqueue_remap(&ring->virtqueue);
        ring->state.next_avail++;
        ring->state.next_used++;
    }
}

static void an_indirect_table_outside_memory_is_refused(void **state)
{
    struct ring *ring = *state;

    queue_set_desc(&ring->queue, 0, GUEST_RAM + GUEST_RAM_SIZE - 16, 32, DESC_INDIRECT, 0);
    offer_head(ring, 0);
    assert_violated(ring);
}

static void a_loop_in_an_indirect_table_is_refused(void **state)
{
    struct ring *ring = *state;
    const struct driver_buffer buffers[] = {{ring->buffer, 1, true}, {ring->buffer, 1, true}};
    uint16_t head = queue_chain_indirect(&ring->queue, buffers, 2);
    uint64_t table;
    uint8_t *inner;

    memcpy(&table, guest_ptr(ring->guest, ring->queue.desc + 16 * (uint64_t)head, 8), 8);
    inner = guest_ptr(ring->guest, table, 32);
    memcpy(inner + 16 + 12, &(uint16_t){DESC_NEXT | DESC_WRITE}, 2);
    memcpy(inner + 16 + 14, &(uint16_t){0}, 2);
    offer_head(ring, head);
    assert_violated(ring);
}

static void direct_and_indirect_together_are_capped(void **state)
{
    struct ring *ring = *state;
    struct driver_buffer buffers[VIRTQUEUE_CHAIN_MAX];
    uint16_t indirect;

    for (unsigned i = 0; i < VIRTQUEUE_CHAIN_MAX; i++)
        buffers[i] = (struct driver_buffer){ring->buffer, 1, true};
    indirect = queue_chain_indirect(&ring->queue, buffers, VIRTQUEUE_CHAIN_MAX);
    queue_set_desc(&ring->queue, 5, ring->buffer, 1, DESC_NEXT | DESC_WRITE, indirect);
    offer_head(ring, 5);
    assert_violated(ring);
}

static void four_gigabytes_in_one_chain_are_refused(void **state)
{
    struct ring *ring = *state;
    struct ferry_error err;
    uint64_t big = UINT64_C(0x100000000);
    struct driver_buffer buffers[5];

    assert_ok(memory_add_region(ring->guest->memory, "ram1", big, UINT64_C(0x40000000), &err), err);
    for (unsigned i = 0; i < 5; i++)
        buffers[i] = (struct driver_buffer){big, 0x40000000, true};
    offer_head(ring, queue_chain(&ring->queue, buffers, 5));
    assert_violated(ring);
}

static void an_index_that_jumps_is_refused(void **state)
{
    struct ring *ring = *state;

    ring->queue.avail_idx = SIZE + 1;
    queue_publish(&ring->queue);
    assert_violated(ring);
}

static void more_outstanding_than_the_queue_is_long_is_refused(void **state)
{
    struct ring *ring = *state;
    const struct driver_buffer buffer = {ring->buffer, 1, true};

    for (unsigned i = 0; i < SIZE; i++) {
        offer_head(ring, queue_chain(&ring->queue, &buffer, 1));
        assert_popped(ring);
    }
    offer_head(ring, 0);
    assert_violated(ring);
}

static void rings_in_wrong_places_are_refused(void **state)
{
    struct ring *ring = *state;
    const struct virtqueue_state good = ring->state;
    struct virtqueue_state bad[12];

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        bad[i] = good;
    bad[0].desc_addr += 8;
    bad[1].driver_addr += 1;
    bad[2].device_addr += 2;
    bad[3].desc_addr = 0;
    bad[4].driver_addr = UINT64_MAX - 1;
    bad[5].device_addr = GUEST_RAM + GUEST_RAM_SIZE - 4;
    bad[6].desc_addr = GUEST_RAM + GUEST_RAM_SIZE - 16;
    bad[7].size = 0;
    bad[8].size = 3;
    bad[9].size = 2 * VIRTQUEUE_SIZE_MAX;
    bad[10].size = 0x8000;
    bad[11].driver_addr = GUEST_RAM + GUEST_RAM_SIZE - 4 - 2 * SIZE; /* no room for the event field */
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        ring->state = bad[i];
        virtqueue_remap(&ring->virtqueue);
        assert_violated(ring);
    }
}

static void segments_are_read_and_written_at_any_offset(void **state)
{
    struct ring *ring = *state;
    uint8_t *base = guest_ptr(ring->guest, ring->buffer, 4096);
    struct virtqueue_segment segments[3] = {
        {.ptr = base, .size = 3}, {.ptr = base + 100, .size = 1}, {.ptr = base + 200, .size = 6}};
    uint8_t data[10];

    for (unsigned i = 0; i < 10; i++) {
        uint8_t byte = (uint8_t)(i + 1);

        assert_int_equal(virtqueue_write_segments(segments, 3, i, &byte, 1), 1);
    }
    assert_int_equal(virtqueue_read_segments(segments, 3, 2, data, 10), 8);
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(data[i], i + 3);
    assert_int_equal(virtqueue_read_segments(segments, 3, 10, data, 1), 0);
    assert_int_equal(virtqueue_read_segments(segments, 3, UINT64_MAX, data, 1), 0);
}

static void random_rings_never_hurt(void **state)
{
    struct ring *ring = *state;
    unsigned seed = 20261;
    unsigned popped = 0;

    print_message("seed %u\n", seed);
    for (unsigned round = 0; round < 20000; round++) {
        uint8_t *desc = guest_ptr(ring->guest, ring->queue.desc, 16 * SIZE);
        const char *why;
        int result;

        for (unsigned i = 0; i < SIZE; i++) {
            uint64_t addr = rand_r(&seed) % 4
                                ? ring->queue.desc + (unsigned)rand_r(&seed) % 65536
                                : GUEST_RAM + (uint64_t)rand_r(&seed) % (GUEST_RAM_SIZE + 65536);
            uint32_t size = rand_r(&seed) % 8 ? (unsigned)rand_r(&seed) % 512 : (uint32_t)rand_r(&seed) * 2;
            uint16_t flags = (uint16_t)(rand_r(&seed) % 16 < 12 ? rand_r(&seed) % 4 : rand_r(&seed) % 8);

            if (flags & DESC_INDIRECT)
                size = size / 16 * 16;
            queue_set_desc(&ring->queue, i, addr, size, flags,
                           (uint16_t)((unsigned)rand_r(&seed) % (SIZE + 1)));
        }
        if (rand_r(&seed) % 4 == 0)
            desc[rand_r(&seed) % (16 * SIZE)] ^= (uint8_t)rand_r(&seed);
        offer_head(ring, (uint16_t)((unsigned)rand_r(&seed) % (SIZE + 1)));
        result = virtqueue_pop(&ring->virtqueue, &ring->chain, &why);
        if (result == 1) {
            uint8_t data[600];

            popped++;
            virtqueue_read_segments(ring->chain.segments, ring->chain.out_count, 0, data, sizeof(data));
            virtqueue_push(&ring->virtqueue, ring->chain.head, ring->chain.segments + ring->chain.out_count,
                           ring->chain.in_count, ring->chain.in_size);
        } else {
            assert_int_equal(result, -EPROTO);
            virtqueue_remap(&ring->virtqueue);
            ring->state.next_avail = ring->state.next_used = ring->queue.avail_idx;
        }
    }
    assert_true(popped > 1000);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(a_chain_is_popped_whole),
        CASE(an_indirect_chain_is_popped_whole),
        CASE(direct_buffers_may_end_in_an_indirect_table),
        CASE(the_used_ring_tells_head_and_length),
        CASE(what_is_written_is_marked_dirty),
        CASE(the_driver_is_signalled_when_it_asked_to),
        CASE(without_event_idx_a_flag_silences),
        CASE(listening_notices_what_came_meanwhile),
        CASE(indices_wrap),
        CASE(a_queue_not_ready_gives_nothing),
        CASE(a_loop_is_refused),
        CASE(a_descriptor_that_follows_itself_is_refused),
        CASE(a_head_outside_the_table_is_refused),
        CASE(a_next_outside_the_table_is_refused),
        CASE(an_empty_buffer_is_refused),
        CASE(buffers_outside_memory_are_refused),
        CASE(readable_after_writable_is_refused),
        CASE(indirect_without_the_feature_is_refused),
        CASE(indirect_in_indirect_is_refused),
        CASE(indirect_with_a_next_is_refused),
        CASE(indirect_tables_of_odd_lengths_are_refused),
        CASE(an_indirect_table_outside_memory_is_refused),
        CASE(a_loop_in_an_indirect_table_is_refused),
        CASE(direct_and_indirect_together_are_capped),
        CASE(four_gigabytes_in_one_chain_are_refused),
        CASE(an_index_that_jumps_is_refused),
        CASE(more_outstanding_than_the_queue_is_long_is_refused),
        CASE(rings_in_wrong_places_are_refused),
        CASE(segments_are_read_and_written_at_any_offset),
        CASE(random_rings_never_hurt),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
