#include "engine/encoder.h"

#include "base/bitmap.h"
#include "base/clock.h"
#include "engine/delta.h"

#include <stdlib.h>
#include <string.h>

/* Pages that are compressed only to see what that would do. */
#define SAMPLE_PAGES 16
/* Compression must save so much to be worth undoing: a 32nd. */
#define SAVING_SHIFT 5
/* In the first round every page is new: copies of them would only push each other out. */
#define DELTA_ROUND 2

static const enum wire_compression way_compression[CHOICE_WAYS] = {
    [CHOICE_PLAIN] = WIRE_COMPRESSION_NONE,
    [CHOICE_STAGED] = WIRE_COMPRESSION_NONE,
    [CHOICE_LZ4] = WIRE_COMPRESSION_LZ4,
    [CHOICE_ZSTD] = WIRE_COMPRESSION_ZSTD,
};

void encoder_init(struct encoder *encoder, const struct page_map *map, struct sent *sent,
                  enum ferry_compress wish, uint64_t features)
{
    *encoder = (struct encoder){.map = map, .sent = sent, .delta = features & WIRE_FEATURE_DELTA};
    choice_init(&encoder->choice, sent ? wish : FERRY_COMPRESS_OFF, features & WIRE_FEATURE_LZ4,
                features & WIRE_FEATURE_ZSTD);
}

void encoder_free(struct encoder *encoder)
{
    codec_free(&encoder->codec);
    free(encoder->encoded);
    free(encoder->stage);
    free(encoder->packed);
    *encoder = (struct encoder){0};
}

/* What all ways but the plain one need. Without memory for it pages go as they are. */
static bool encoder_ready(struct encoder *encoder)
{
    if (!encoder->encoded)
        encoder->encoded = malloc(sizeof(*encoder->encoded));
    if (!encoder->stage)
        encoder->stage = malloc(WIRE_DATA_MAX);
    if (!encoder->packed)
        encoder->packed = malloc(WIRE_DATA_MAX);
    return encoder->encoded && encoder->stage && encoder->packed;
}

static void encoder_clear(struct encoder *encoder)
{
    page_batch_clear(&encoder->batch);
    encoder->staged = 0;
    encoder->delta_bytes = 0;
    encoder->counts = (struct page_counts){0};
    encoder->way = encoder->choice.way;
    if (encoder->way != CHOICE_PLAIN && !encoder_ready(encoder))
        encoder->way = CHOICE_PLAIN;
    if (encoder->encoded)
        encoder->encoded->delta_count = 0;
    encoder->begin_ns = clock_now_ns();
}

void encoder_begin(struct encoder *encoder, uint32_t round)
{
    encoder->round = round;
    encoder_clear(encoder);
}

bool encoder_empty(const struct encoder *encoder)
{
    return encoder->batch.count == 0;
}

/* The copy of a page at the end of the stage is new to the destination. As changes when that is worth it;
 * returns the bytes of these, or 0. The cache has the copy afterwards, if there is room for it. */
static size_t encode_changes(struct encoder *encoder, size_t region, size_t page, uint8_t *copy)
{
    uint8_t changes[DELTA_SIZE_MAX];
    size_t size = SIZE_MAX;
    bool hit;
    uint8_t *older = encoder->delta && encoder->round >= DELTA_ROUND
                         ? sent_take(encoder->sent, region, page, encoder->round, &hit)
                         : NULL;

    if (!older)
        return 0;
    if (hit)
        size = delta_encode(older, copy, changes, sizeof(changes));
    memcpy(older, copy, FERRY_PAGE_SIZE);
    sent_put(encoder->sent, region, page, encoder->round);
    if (size == 0 || size == SIZE_MAX)
        return 0;
    memcpy(copy, changes, size);
    return size;
}

/* False when the frame is full. */
static bool add_staged(struct encoder *encoder, size_t region, size_t page, const uint8_t *memory)
{
    struct page_batch *batch = &encoder->batch;
    uint8_t *copy = encoder->stage + encoder->staged;
    uint64_t hash;
    size_t size;

    if (!page_batch_has_room(batch))
        return false;
    memcpy(copy, memory, FERRY_PAGE_SIZE);
    hash = sent_hash(encoder->sent, copy);
    if (sent_same(encoder->sent, region, page, hash)) {
        encoder->counts.encoded[FERRY_ENCODING_UNCHANGED].pages++;
        return true;
    }
    if (page_is_zero(copy)) {
        sent_forget(encoder->sent, region, page);
        sent_record(encoder->sent, region, page, hash);
        page_batch_join(batch, region, page, WIRE_PAGE_ZERO);
        encoder->counts.zero++;
        return true;
    }
    size = encode_changes(encoder, region, page, copy);
    sent_record(encoder->sent, region, page, hash);
    if (size > 0) {
        encoder->encoded->deltas[encoder->encoded->delta_count++] = (uint16_t)size;
        encoder->delta_bytes += size;
        encoder->counts.encoded[FERRY_ENCODING_DELTA].pages++;
        page_batch_join(batch, region, page, WIRE_PAGE_DELTA);
    } else {
        size = FERRY_PAGE_SIZE;
        encoder->counts.raw++;
        page_batch_join(batch, region, page, WIRE_PAGE_RAW);
    }
    encoder->staged += size;
    return true;
}

static bool add_plain(struct encoder *encoder, size_t region, size_t page)
{
    uint32_t zero = encoder->batch.zero;

    if (!page_batch_add_page(&encoder->batch, encoder->map, region, page))
        return false;
    if (encoder->sent)
        sent_forget(encoder->sent, region, page);
    encoder->counts.zero += encoder->batch.zero - zero;
    encoder->counts.raw += encoder->batch.zero == zero;
    return true;
}

size_t encoder_add(struct encoder *encoder, const struct page_set *set, size_t region, size_t first,
                   size_t end)
{
    const uint64_t *bits = set->bits[region];
    const uint8_t *memory = encoder->map->regions[region].host_ptr;

    for (size_t page = bitmap_next_set(bits, end, first); page < end;
         page = bitmap_next_set(bits, end, page + 1)) {
        const uint8_t *address = memory + page * FERRY_PAGE_SIZE;

        /* The first line of a page tells most of them from zeros; it comes from far away. */
        if (page + PAGES_LOOK_AHEAD < end)
            __builtin_prefetch(address + PAGES_LOOK_AHEAD * FERRY_PAGE_SIZE);
        if (encoder->way == CHOICE_PLAIN ? !add_plain(encoder, region, page)
                                         : !add_staged(encoder, region, page, address))
            return page;
    }
    return end;
}

/* The pages at hand, some of them, in all ways of compressing. */
static void take_samples(struct encoder *encoder)
{
    size_t size = SAMPLE_PAGES * FERRY_PAGE_SIZE;
    const struct iovec *run = &encoder->batch.iov[2];

    if (!encoder_ready(encoder))
        return;
    if (encoder->way != CHOICE_PLAIN) {
        size = encoder->staged < size ? encoder->staged : size;
    } else {
        size_t copied = 0;

        for (int i = 2; i < encoder->batch.iov_count && copied < size; i++, run++) {
            size_t n = run->iov_len < size - copied ? run->iov_len : size - copied;

            memcpy(encoder->stage + copied, run->iov_base, n);
            copied += n;
        }
        size = copied;
    }
    if (size < FERRY_PAGE_SIZE)
        return;
    for (int way = CHOICE_LZ4; way < CHOICE_WAYS; way++) {
        uint64_t begin = clock_now_ns();
        size_t packed;

        if (!encoder->choice.allowed[way])
            continue;
        packed = codec_compress(&encoder->codec, way_compression[way], encoder->stage, size, encoder->packed,
                                WIRE_DATA_MAX);
        choice_sample(&encoder->choice, (enum choice_way)way,
                      &(struct choice_batch){.pages = size / FERRY_PAGE_SIZE,
                                             .bytes = packed > 0 && packed < size ? packed : size,
                                             .encode_ns = clock_now_ns() - begin});
    }
    choice_sampled(&encoder->choice);
}

/* Compresses the stage. Returns the size, or 0 when it is better left as it is. */
static size_t pack(struct encoder *encoder)
{
    size_t room = encoder->staged - (encoder->staged >> SAVING_SHIFT) - 1;

    if (way_compression[encoder->way] == WIRE_COMPRESSION_NONE || encoder->staged < FERRY_PAGE_SIZE / 4)
        return 0;
    return codec_compress(&encoder->codec, way_compression[encoder->way], encoder->stage, encoder->staged,
                          encoder->packed, room);
}

static void finish_staged(struct encoder *encoder, struct encoder_frame *frame)
{
    struct wire_encoded *encoded = encoder->encoded;
    struct page_counts *counts = &encoder->counts;
    size_t packed = pack(encoder);

    frame->iov_count = encoder->staged > 0 ? 3 : 2;
    frame->data = (uint32_t)(packed ? packed : encoder->staged);
    frame->iov[2] = (struct iovec){packed ? encoder->packed : encoder->stage, frame->data};
    if (!packed && encoded->delta_count == 0)
        return;
    frame->type = WIRE_ENCODED;
    encoded->round = encoder->round;
    encoded->compression = packed ? way_compression[encoder->way] : WIRE_COMPRESSION_NONE;
    encoded->count = encoder->batch.count;
    memcpy(encoded->runs, encoder->batch.runs, encoded->count * sizeof(encoded->runs[0]));
    codec_count(encoded->compression, encoder->staged, frame->data, encoder->delta_bytes, counts);
}

void encoder_finish(struct encoder *encoder, struct buffer *body, struct encoder_frame *frame)
{
    struct page_batch *batch = &encoder->batch;
    uint64_t pages = page_counts_sum(&encoder->counts) - encoder->counts.zero;

    *frame = (struct encoder_frame){.type = WIRE_PAGES,
                                    .iov = batch->iov,
                                    .iov_count = batch->iov_count,
                                    .data = batch->raw * FERRY_PAGE_SIZE};
    if (choice_wants_sample(&encoder->choice) && pages > 0) {
        uint64_t begin = clock_now_ns();

        take_samples(encoder);
        encoder->begin_ns += clock_now_ns() - begin;
    }
    if (encoder->way != CHOICE_PLAIN)
        finish_staged(encoder, frame);
    if (frame->type == WIRE_ENCODED)
        wire_encoded_encode(body, encoder->encoded);
    else
        wire_batch_encode(body, encoder->round, batch->runs, batch->count);
    encoder->took = (struct choice_batch){.pages = pages,
                                          .bytes = WIRE_HEADER_SIZE + body->size + frame->data,
                                          .encode_ns = clock_now_ns() - encoder->begin_ns};
    /* Looking at many zeros would be taken for slow encoding. */
    if (encoder->counts.zero > pages)
        encoder->took.pages = 0;
}

struct page_counts encoder_sent(struct encoder *encoder, uint64_t send_ns)
{
    struct page_counts counts = encoder->counts;

    encoder->took.send_ns = send_ns;
    if (encoder->took.pages > 0)
        choice_note(&encoder->choice, &encoder->took);
    encoder->took = (struct choice_batch){0};
    encoder_clear(encoder);
    return counts;
}

void encoder_freeze(struct encoder *encoder, double link_ns)
{
    encoder->choice.way = choice_for(&encoder->choice, link_ns);
    encoder->choice.adaptive = false;
}

void encoder_foresee(const struct encoder *encoder, double link_ns, uint64_t *page_bytes, uint64_t *page_ns)
{
    const struct choice *choice = &encoder->choice;
    enum choice_way way = choice_for(choice, link_ns);

    /* A way that was prescribed is not measured. */
    *page_bytes = choice->adaptive || way == CHOICE_PLAIN ? choice_page_bytes(choice, way) : 0;
    *page_ns = choice->adaptive ? choice_page_ns(choice, way) : 0;
}
