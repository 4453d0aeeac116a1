/* ferry_compressibility_measure: what compression would do to a guest's pages. */
#include "engine/codec.h"

#include "base/clock.h"

#include <stdlib.h>
#include <string.h>

void ferry_compressibility_measure(const uint8_t *const *pages, size_t count,
                                   struct ferry_compressibility *result)
{
    uint8_t *copy = malloc(WIRE_DATA_MAX), *packed = malloc(WIRE_DATA_MAX);
    struct codec codec = {0};

    *result = (struct ferry_compressibility){0};
    if (count > WIRE_BATCH_PAGES_MAX)
        count = WIRE_BATCH_PAGES_MAX;
    for (int kind = WIRE_COMPRESSION_LZ4; copy && packed && count > 0 && kind < WIRE_COMPRESSIONS; kind++) {
        enum ferry_encoding encoding =
            kind == WIRE_COMPRESSION_LZ4 ? FERRY_ENCODING_LZ4 : FERRY_ENCODING_ZSTD;
        size_t size = count * FERRY_PAGE_SIZE, n;
        uint64_t begin;

        /* The first time is spent on tables that are kept afterwards. */
        memcpy(copy, pages[0], FERRY_PAGE_SIZE);
        codec_compress(&codec, (enum wire_compression)kind, copy, FERRY_PAGE_SIZE, packed, WIRE_DATA_MAX);
        begin = clock_now_ns();
        /* As the pages are sent: from a copy, because the guest may write them. */
        for (size_t i = 0; i < count; i++)
            memcpy(copy + i * FERRY_PAGE_SIZE, pages[i], FERRY_PAGE_SIZE);
        n = codec_compress(&codec, (enum wire_compression)kind, copy, size, packed, WIRE_DATA_MAX);
        result->page_ns[encoding] = (clock_now_ns() - begin) / count + 1;
        result->page_bytes[encoding] = (n > 0 && n < size ? n : size) / count + 1;
    }
    codec_free(&codec);
    free(copy);
    free(packed);
}
