/*
 * Every decoder of the migration protocol on arbitrary bytes: refused or decoded within bounds, nothing else.
 * The first 24 bytes are taken as a header, the rest as the body of the frame it names; what decodes is
 * encoded again and must come out the same.
 */
#include "engine/wire.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

union message {
    struct wire_hello hello;
    struct wire_welcome welcome;
    struct wire_region regions[FERRY_REGIONS_MAX];
    struct wire_start start;
    struct wire_run runs[WIRE_RUNS_MAX];
    struct ferry_section section;
    struct wire_end end;
    struct wire_running running;
    struct wire_present present;
    struct wire_encoded encoded;
};

/* Decodes, and encodes into OUT what has one encoding only. */
static int decode(const struct wire_header *header, struct reader *in, union message *message,
                  struct buffer *out)
{
    struct wire_reason reason;
    enum wire_verdict verdict;
    size_t count = 0;
    uint32_t round = 0;
    bool flag = false;
    int result = -1;

    switch (header->type) {
    case WIRE_HELLO:
        result = wire_hello_decode(in, &message->hello, NULL);
        if (result == 0 && message->hello.version != 0)
            wire_hello_encode(out, &message->hello);
        break;
    case WIRE_WELCOME:
        result = wire_welcome_decode(in, &message->welcome, NULL);
        wire_welcome_encode(out, &message->welcome);
        break;
    case WIRE_REGIONS:
        result = wire_regions_decode(in, message->regions, &count, NULL);
        break;
    case WIRE_START:
        result = wire_start_decode(in, &message->start, NULL);
        wire_start_encode(out, &message->start);
        break;
    case WIRE_PAGES:
        result = wire_batch_decode(in, header->data, &round, message->runs, &count, NULL);
        if (result == 0)
            wire_batch_encode(out, round, message->runs, count);
        break;
    case WIRE_MEMORY:
        result = wire_memory_decode(in, &count, NULL);
        wire_memory_encode(out, count);
        break;
    case WIRE_ENCODED:
        result = wire_encoded_decode(in, header->data, &message->encoded, NULL);
        if (result == 0)
            wire_encoded_encode(out, &message->encoded);
        break;
    case WIRE_FENCE:
    case WIRE_ROUND_END:
    case WIRE_ROUND_DONE:
        result = wire_round_decode(in, &round, NULL);
        wire_round_encode(out, round);
        break;
    case WIRE_PAUSED:
        result = wire_paused_decode(in, &flag, NULL);
        wire_paused_encode(out, flag);
        break;
    case WIRE_SECTION:
        result = wire_section_decode(in, &message->section, NULL);
        if (result == 0)
            wire_section_encode(out, &message->section);
        break;
    case WIRE_END:
        result = wire_end_decode(in, &message->end, NULL);
        wire_end_encode(out, &message->end);
        break;
    case WIRE_PRESENT:
        result = wire_present_decode(in, &message->present, NULL);
        if (result == 0)
            wire_present_encode(out, &message->present);
        break;
    case WIRE_RUNNING:
        result = wire_running_decode(in, &message->running, NULL);
        wire_running_encode(out, &message->running);
        break;
    case WIRE_VERDICT:
        return wire_verdict_decode(in, &verdict, &reason, NULL);
    case WIRE_NOT_RUNNING:
    case WIRE_ABORT:
        return wire_reason_decode(in, &reason, NULL);
    default:
        break;
    }
    return result;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct wire_header header;
    struct buffer out = BUFFER_INIT;
    union message message;
    uint8_t *body;

    if (size < WIRE_HEADER_SIZE || wire_header_decode(data, &header, NULL) < 0)
        return 0;
    data += WIRE_HEADER_SIZE;
    size -= WIRE_HEADER_SIZE;
    /* A copy of exactly its size: reading past it is seen. */
    body = malloc(size ? size : 1);
    if (!body)
        return 0;
    if (size)
        memcpy(body, data, size);

    struct reader in = reader_init(body, size);

    if (decode(&header, &in, &message, &out) == 0 && out.size > 0 &&
        (out.size != size || memcmp(out.data, body, size) != 0))
        abort();
    free(body);
    buffer_free(&out);
    return 0;
}
