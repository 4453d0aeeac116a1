#include "engine/decoder.h"

#include "base/error.h"
#include "engine/delta.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void decoder_init(struct decoder *decoder, uint64_t features)
{
    *decoder = (struct decoder){.features = features};
}

void decoder_free(struct decoder *decoder)
{
    codec_free(&decoder->codec);
    free(decoder->encoded);
    free(decoder->packed);
    free(decoder->data);
    *decoder = (struct decoder){0};
}

static int decoder_ready(struct decoder *decoder, struct ferry_error *err)
{
    if (!decoder->encoded)
        decoder->encoded = malloc(sizeof(*decoder->encoded));
    if (!decoder->packed)
        decoder->packed = malloc(WIRE_DATA_MAX);
    if (!decoder->data)
        decoder->data = malloc(WIRE_DATA_MAX);
    if (!decoder->encoded || !decoder->packed || !decoder->data)
        return error_set(err, -ENOMEM, "out of memory for decoding pages");
    return 0;
}

static int place_pages(struct decoder *decoder, struct page_place *place, struct link *link,
                       struct frame *frame, uint32_t *round, struct page_counts *counts,
                       struct ferry_error *err)
{
    size_t count;
    int iov_count;
    int result = wire_batch_decode(&frame->body, frame->data, round, decoder->runs, &count, err);

    if (result == 0)
        result = page_place_runs(place, decoder->runs, count, decoder->iov, &iov_count, err);
    if (result == 0)
        result = link_receive_data(link, decoder->iov, iov_count, err);
    for (size_t i = 0; result == 0 && i < count; i++) {
        if (decoder->runs[i].kind == WIRE_PAGE_ZERO)
            counts->zero += decoder->runs[i].pages;
        else
            counts->raw += decoder->runs[i].pages;
    }
    return result;
}

/* Are compression and changes what was agreed on? */
static int check_agreed(const struct decoder *decoder, const struct wire_encoded *encoded,
                        struct ferry_error *err)
{
    uint64_t needed = codec_feature(encoded->compression);

    if (encoded->delta_count > 0)
        needed |= WIRE_FEATURE_DELTA;
    /* Without either it would be a PAGES frame. */
    if (needed == 0 || needed & ~decoder->features)
        return error_set(err, -EBADMSG, "ENCODED frame with what was not agreed on (%s, %zu changed pages)",
                         codec_name(encoded->compression), encoded->delta_count);
    return 0;
}

/* The frame's data, of encoded->size bytes, to *DATA: in decoder->data, or, when it is one run of pages,
 * where they belong. */
static int receive_data(struct decoder *decoder, struct link *link, const struct frame *frame,
                        const struct iovec *only, uint8_t **data, struct ferry_error *err)
{
    const struct wire_encoded *encoded = decoder->encoded;
    bool packed = encoded->compression != WIRE_COMPRESSION_NONE;
    struct iovec iov = {packed ? decoder->packed : decoder->data, frame->data};
    int result = link_receive_data(link, &iov, 1, err);

    *data = packed && only ? only->iov_base : decoder->data;
    if (result == 0 && packed)
        result = codec_decompress(&decoder->codec, encoded->compression, decoder->packed, frame->data, *data,
                                  encoded->size, err);
    return result;
}

static int place_data(struct decoder *decoder, struct page_place *place, const uint8_t *data,
                      struct ferry_error *err)
{
    const struct wire_encoded *encoded = decoder->encoded;
    const uint16_t *size = encoded->deltas;
    int result = 0;

    for (size_t i = 0; result == 0 && i < encoded->count; i++) {
        const struct wire_run *run = &encoded->runs[i];
        uint8_t *page = page_place_address(place, run);

        if (run->kind == WIRE_PAGE_RAW) {
            memcpy(page, data, (size_t)run->pages * FERRY_PAGE_SIZE);
            data += (size_t)run->pages * FERRY_PAGE_SIZE;
        }
        for (size_t n = 0; run->kind == WIRE_PAGE_DELTA && result == 0 && n < run->pages; n++, size++) {
            result = delta_apply(page + n * FERRY_PAGE_SIZE, data, *size, err);
            data += *size;
        }
    }
    return result;
}

static void count_encoded(const struct wire_encoded *encoded, uint32_t data, struct page_counts *counts)
{
    size_t delta_bytes = 0;

    for (size_t i = 0; i < encoded->count; i++) {
        const struct wire_run *run = &encoded->runs[i];

        counts->zero += run->kind == WIRE_PAGE_ZERO ? run->pages : 0;
        counts->raw += run->kind == WIRE_PAGE_RAW ? run->pages : 0;
    }
    counts->encoded[FERRY_ENCODING_DELTA].pages = encoded->delta_count;
    for (size_t i = 0; i < encoded->delta_count; i++)
        delta_bytes += encoded->deltas[i];
    codec_count(encoded->compression, encoded->size, data, delta_bytes, counts);
}

static int place_encoded(struct decoder *decoder, struct page_place *place, struct link *link,
                         struct frame *frame, uint32_t *round, struct page_counts *counts,
                         struct ferry_error *err)
{
    int result = decoder_ready(decoder, err);
    struct wire_encoded *encoded = decoder->encoded;
    const struct iovec *only;
    uint8_t *data;
    int iov_count;

    if (result == 0)
        result = wire_encoded_decode(&frame->body, frame->data, encoded, err);
    if (result == 0)
        result = check_agreed(decoder, encoded, err);
    if (result == 0)
        result = page_place_runs(place, encoded->runs, encoded->count, decoder->iov, &iov_count, err);
    if (result < 0)
        return result;
    only = iov_count == 1 && encoded->delta_count == 0 ? decoder->iov : NULL;
    result = receive_data(decoder, link, frame, only, &data, err);
    if (result == 0 && data == decoder->data)
        result = place_data(decoder, place, data, err);
    *round = encoded->round;
    if (result == 0)
        count_encoded(encoded, frame->data, counts);
    return result;
}

int decoder_place(struct decoder *decoder, struct page_place *place, struct link *link, struct frame *frame,
                  uint32_t *round, struct page_counts *counts, struct ferry_error *err)
{
    *counts = (struct page_counts){0};
    return frame->type == WIRE_ENCODED ? place_encoded(decoder, place, link, frame, round, counts, err)
                                       : place_pages(decoder, place, link, frame, round, counts, err);
}
