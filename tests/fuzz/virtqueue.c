/*
 * libFuzzer target: whatever a driver puts into memory and queue registers, popping and pushing stays inside
 * guest memory and ends.
 *
 *     CC=clang meson setup build-fuzz -Dfuzz=true -Dc_args=-fsanitize=fuzzer-no-link \
 *         -Db_sanitize=address,undefined -Db_lundef=false
 *     ninja -C build-fuzz tests/fuzz/fuzz_virtqueue && build-fuzz/tests/fuzz/fuzz_virtqueue
 * -max_total_time=60
 *
 * The input: 12 bytes of set-up (see below), then guest memory from its start.
 */
#include "device/virtqueue.h"

#include <stdlib.h>
#include <string.h>

#define RAM      UINT64_C(0x1000)
#define RAM_SIZE UINT64_C(0x10000)
#define SETUP    12
#define POPS_MAX 1000

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint16_t get_u16(const uint8_t *data)
{
    return (uint16_t)(data[0] | data[1] << 8);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct virtqueue_chain chain;
    struct virtqueue_state state = {.ready = true};
    struct virtqueue queue;
    struct memory *memory;
    uint8_t copy[4096];
    const char *why;

    if (size < SETUP || memory_new(&memory, NULL))
        return 0;
    if (memory_add_region(memory, "ram", RAM, RAM_SIZE, NULL))
        abort();
    /* Nearly always a size and alignment that pass, so that the rings are looked at. */
    state.size = (uint16_t)(data[0] & 0x80 ? data[1] : 1 << (data[0] & 7));
    state.desc_addr = (data[0] & 0x40 ? get_u16(data + 2) : get_u16(data + 2) & ~15U) + RAM;
    state.driver_addr = (get_u16(data + 4) & ~1U) + RAM;
    state.device_addr = (get_u16(data + 6) & ~3U) + RAM;
    state.next_avail = get_u16(data + 8);
    state.next_used = get_u16(data + 10);
    virtqueue_init(&queue, &state, memory);
    queue.event_idx = data[0] & 0x20;
    queue.indirect = data[0] & 0x10;
    size -= SETUP;
    memcpy(memory_region(memory, 0)->host_ptr, data + SETUP, size < RAM_SIZE ? size : RAM_SIZE);
    memory_set_tracking(memory, true);

    for (unsigned i = 0; i < POPS_MAX && virtqueue_pop(&queue, &chain, &why) == 1; i++) {
        uint32_t written = chain.in_size;

        if (!chain.out_count && !chain.in_count)
            abort();
        virtqueue_read_segments(chain.segments, chain.out_count, i, copy, sizeof(copy));
        virtqueue_write_segments(chain.segments + chain.out_count, chain.in_count, 0, copy, sizeof(copy));
        virtqueue_push(&queue, chain.head, chain.segments + chain.out_count, chain.in_count, written);
        (void)virtqueue_must_signal(&queue);
        (void)virtqueue_listen(&queue);
    }
    memory_free(memory);
    return 0;
}
