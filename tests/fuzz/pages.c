/*
 * Frames of pages on arbitrary bytes, all the way into memory: placed within it, or refused. The first byte
 * says which frame, the next two how long its body is; what comes after the body is its data.
 */
#include "base/error.h"
#include "engine/decoder.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define PAGES    64
#define DATA_MAX 65536 /* what a socket takes at once */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t *memory_make(void)
{
    /* Between pages that must not be touched. */
    uint8_t *memory =
        mmap(NULL, (PAGES + 2) * FERRY_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED ||
        mprotect(memory + FERRY_PAGE_SIZE, PAGES * FERRY_PAGE_SIZE, PROT_READ | PROT_WRITE) < 0)
        abort();
    return memory + FERRY_PAGE_SIZE;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t *memory;
    struct wire_region region = {.name = "ram", .size = PAGES * FERRY_PAGE_SIZE};
    struct page_map map = {.count = 1, .pages = {PAGES}, .total = PAGES, .chunks = 1};
    struct page_place place;
    struct decoder decoder;
    struct page_counts counts;
    uint32_t round;
    struct link link;
    struct frame frame;
    size_t body;
    int fds[2];

    if (size < 3)
        return 0;
    body = (size_t)data[1] | (size_t)data[2] << 8;
    if (body > size - 3 || size - 3 - body > DATA_MAX)
        return 0;
    if (!memory)
        memory = memory_make();
    map.regions[0] =
        (struct ferry_ram_region){.name = "ram", .size = region.size, .host_ptr = memory, .memfd = -1};
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0 || page_place_init(&place, &map, &region, 1, NULL) < 0 ||
        page_place_prepare(&place, NULL) < 0)
        abort();
    link_init(&link, fds[1], -1, 1000000000);
    decoder_init(&decoder, data[0] & 2 ? WIRE_FEATURES_COPY : WIRE_FEATURE_LZ4);

    /* The body in memory of exactly its size: reading past it is seen. */
    uint8_t *copy = malloc(body ? body : 1);
    size_t left = size - 3 - body;

    memcpy(copy, data + 3, body);
    if (send(fds[0], data + 3 + body, left, 0) != (ssize_t)left)
        abort();
    close(fds[0]); /* more data than there is: the connection ends */
    frame = (struct frame){.type = data[0] & 1 ? WIRE_ENCODED : WIRE_PAGES,
                           .data = (uint32_t)left,
                           .body = reader_init(copy, body)};
    decoder_place(&decoder, &place, &link, &frame, &round, &counts, NULL);
    free(copy);
    link_close(&link);
    decoder_free(&decoder);
    page_place_free(&place);
    return 0;
}
