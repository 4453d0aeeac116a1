/* What is done to pages: changes, compression, and the memory of what was sent. */
#include "engine/codec.h"
#include "engine/decoder.h"
#include "engine/delta.h"
#include "engine/encoder.h"
#include "engine/hot.h"
#include "engine/sent.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <cmocka.h>

#define SEED UINT64_C(0x2545f4914f6cdd1d)

static uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void random_fill(uint64_t *state, uint8_t *out, size_t size)
{
    for (size_t i = 0; i < size; i++)
        out[i] = (uint8_t)(random_next(state) >> 24);
}

/* ---- changes ---- */

/* A newer copy: some places of some bytes are different, sometimes to what they were. */
static void change_some(uint64_t *state, uint8_t *page)
{
    size_t places = random_next(state) % 40;

    for (size_t i = 0; i < places; i++) {
        size_t first = random_next(state) % FERRY_PAGE_SIZE;
        size_t count = random_next(state) % (random_next(state) % 8 == 0 ? 512 : 20);

        for (size_t n = first; n < first + count && n < FERRY_PAGE_SIZE; n++)
            page[n] = (uint8_t)random_next(state);
    }
}

static void changes_make_the_newer_copy(void **state)
{
    static uint8_t older[FERRY_PAGE_SIZE], newer[FERRY_PAGE_SIZE], page[FERRY_PAGE_SIZE];
    uint64_t random = SEED;
    size_t fitting = 0;

    for (int i = 0; i < 20000; i++) {
        uint8_t *delta = malloc(DELTA_SIZE_MAX); /* of exactly its size: writing past it is seen */
        size_t size;

        if (i % 100 == 0)
            random_fill(&random, older, sizeof(older));
        memcpy(newer, older, sizeof(newer));
        change_some(&random, newer);
        size = delta_encode(older, newer, delta, DELTA_SIZE_MAX);
        if (memcmp(older, newer, sizeof(newer)) == 0)
            assert_int_equal(size, 0);
        if (size != SIZE_MAX) {
            uint8_t *exact = malloc(size + 1);

            memcpy(exact, delta, size);
            exact = realloc(exact, size ? size : 1);
            memcpy(page, older, sizeof(page));
            assert_int_equal(delta_apply(page, exact, size, NULL), 0);
            if (memcmp(page, newer, sizeof(page)) != 0)
                fail_msg("case %d of seed %#llx", i, (unsigned long long)SEED);
            fitting++;
            free(exact);
        }
        free(delta);
    }
    assert_true(fitting > 10000);
}

static void changes_at_the_edges(void **state)
{
    static const size_t places[] = {0, 1, 7, 8, 127, 128, 2047, 4088, 4095};
    uint8_t older[FERRY_PAGE_SIZE] = {0}, newer[FERRY_PAGE_SIZE], delta[DELTA_SIZE_MAX];

    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        memset(newer, 0, sizeof(newer));
        newer[places[i]] = 1;

        size_t size = delta_encode(older, newer, delta, sizeof(delta));

        assert_true(size >= 3 && size <= 4);
        assert_int_equal(delta_apply(older, delta, size, NULL), 0);
        assert_memory_equal(older, newer, sizeof(newer));
        memset(older, 0, sizeof(older));
    }
    /* All of it differs: not worth it. */
    memset(newer, 1, sizeof(newer));
    assert_int_equal(delta_encode(older, newer, delta, sizeof(delta)), SIZE_MAX);
    assert_int_equal(delta_encode(older, older, delta, sizeof(delta)), 0);
}

static void what_is_no_delta_is_refused(void **state)
{
    uint8_t page[FERRY_PAGE_SIZE] = {0};

    assert_int_equal(delta_apply(page, (const uint8_t *)"\x00", 1, NULL), -EBADMSG);      /* cut short */
    assert_int_equal(delta_apply(page, (const uint8_t *)"\x80", 1, NULL), -EBADMSG);      /* in a number */
    assert_int_equal(delta_apply(page, (const uint8_t *)"\x00\x00", 2, NULL), -EBADMSG);  /* no bytes */
    assert_int_equal(delta_apply(page, (const uint8_t *)"\x00\x02x", 3, NULL), -EBADMSG); /* too few */
    assert_int_equal(delta_apply(page, (const uint8_t *)"\x80\x20\x01x", 4, NULL), -EBADMSG);  /* at 4096 */
    assert_int_equal(delta_apply(page, (const uint8_t *)"\xff\x1f\x02xx", 5, NULL), -EBADMSG); /* past it */
    assert_int_equal(delta_apply(page, (const uint8_t *)"\x80\x80\x01\x01x", 5, NULL),
                     -EBADMSG);                                                        /* 3 bytes */
    assert_int_equal(delta_apply(page, (const uint8_t *)"\xff\x1f\x01x", 4, NULL), 0); /* the last byte */
    assert_int_equal(page[FERRY_PAGE_SIZE - 1], 'x');
}

static void hostile_changes_stay_inside_the_page(void **state)
{
    uint8_t memory[3 * FERRY_PAGE_SIZE];
    uint8_t delta[300];
    uint64_t random = SEED;
    size_t taken = 0;

    memset(memory, 0x5a, sizeof(memory));
    for (int i = 0; i < 100000; i++) {
        size_t size = random_next(&random) % sizeof(delta);

        random_fill(&random, delta, size);
        taken += delta_apply(memory + FERRY_PAGE_SIZE, delta, size, NULL) == 0;
    }
    for (size_t i = 0; i < FERRY_PAGE_SIZE; i++) {
        assert_int_equal(memory[i], 0x5a);
        assert_int_equal(memory[2 * FERRY_PAGE_SIZE + i], 0x5a);
    }
    assert_true(taken < 100000);
}

/* ---- compression ---- */

static void blocks_survive_compression_and_nothing_else_is_taken(void **state)
{
    size_t size = 16 * FERRY_PAGE_SIZE;
    uint8_t *in = malloc(size), *packed = malloc(size), *out = malloc(size);
    uint64_t random = SEED;

    for (size_t i = 0; i < size; i++)
        in[i] = i % 64 < 16 ? (uint8_t)random_next(&random) : (uint8_t)(i / 100);
    for (int kind = WIRE_COMPRESSION_LZ4; kind <= WIRE_COMPRESSION_ZSTD; kind++) {
        enum wire_compression compression = (enum wire_compression)kind;
        struct codec codec = {0};
        size_t n = codec_compress(&codec, compression, in, size, packed, size - 1);

        assert_true(n > 0 && n < size);
        assert_int_equal(codec_decompress(&codec, compression, packed, n, out, size, NULL), 0);
        assert_memory_equal(in, out, size);
        /* Not the size that was said, on either side; cut short; no room. */
        assert_int_equal(codec_decompress(&codec, compression, packed, n, out, size - 1, NULL), -EBADMSG);
        assert_int_equal(codec_decompress(&codec, compression, packed, n - 1, out, size, NULL), -EBADMSG);
        assert_int_equal(codec_compress(&codec, compression, in, size, packed, n / 2), 0);
        /* Any bytes: refused, or decompressed within bounds. */
        for (int i = 0; i < 2000; i++) {
            size_t length = random_next(&random) % 600 + 1;
            uint8_t *noise = malloc(length);

            random_fill(&random, noise, length);
            codec_decompress(&codec, compression, noise, length, out, size, NULL);
            free(noise);
        }
        codec_free(&codec);
    }
    free(in);
    free(packed);
    free(out);
}

/* ---- what was sent ---- */

static void sent_small(struct sent *sent, struct page_map *map, size_t cache_pages)
{
    *map = (struct page_map){.count = 2, .pages = {100, 50}, .total = 150};
    assert_int_equal(sent_init(sent, map, cache_pages * FERRY_PAGE_SIZE, NULL), 0);
}

static void a_page_is_known_by_what_was_sent_last(void **state)
{
    struct page_map map;
    struct sent sent;
    uint8_t page[FERRY_PAGE_SIZE] = {0};
    uint64_t zero, other;

    sent_small(&sent, &map, 8);
    zero = sent_hash(&sent, page);
    page[FERRY_PAGE_SIZE - 1] = 1;
    other = sent_hash(&sent, page);
    assert_int_not_equal(zero, other);
    assert_false(sent_same(&sent, 1, 3, zero));
    sent_record(&sent, 1, 3, zero);
    assert_true(sent_same(&sent, 1, 3, zero));
    assert_false(sent_same(&sent, 1, 3, other));
    assert_false(sent_same(&sent, 0, 3, zero));
    sent_forget(&sent, 1, 3);
    assert_false(sent_same(&sent, 1, 3, zero));
    sent_free(&sent);
}

static void copies_are_kept_within_bounds_and_one_owner_at_a_time(void **state)
{
    struct page_map map;
    struct sent sent;
    uint8_t *slot;
    bool hit;

    sent_small(&sent, &map, 8);
    assert_int_equal(sent.slots, 8);
    slot = sent_take(&sent, 0, 5, 2, &hit);
    assert_non_null(slot);
    assert_false(hit);
    assert_null(sent_take(&sent, 0, 13, 9, &hit)); /* the same slot: another thread has it */
    memset(slot, 7, FERRY_PAGE_SIZE);
    sent_record(&sent, 0, 5, 4711);
    sent_put(&sent, 0, 5, 2);

    slot = sent_take(&sent, 0, 5, 3, &hit);
    assert_non_null(slot);
    assert_true(hit);
    assert_int_equal(slot[0], 7);
    sent_put(&sent, 0, 5, 3);

    assert_null(sent_take(&sent, 0, 13, 4, &hit)); /* page 5 was sent lately */
    slot = sent_take(&sent, 0, 13, 5, &hit);
    assert_non_null(slot);
    assert_false(hit);
    sent_record(&sent, 0, 13, 4712);
    sent_put(&sent, 0, 13, 5);
    sent_forget(&sent, 0, 5); /* is not there any more: page 13's copy stays */
    assert_non_null(sent_take(&sent, 0, 13, 6, &hit));
    assert_true(hit);
    sent_put(&sent, 0, 13, 6);

    sent_forget(&sent, 0, 13);
    assert_non_null(sent_take(&sent, 0, 13, 6, &hit));
    assert_false(hit);
    sent_free(&sent);
}

static void without_room_there_is_no_cache(void **state)
{
    struct page_map map;
    struct sent sent;
    bool hit;

    sent_small(&sent, &map, 0);
    assert_null(sent_take(&sent, 0, 0, 5, &hit));
    sent_record(&sent, 0, 0, 1);
    sent_forget(&sent, 0, 0);
    sent_free(&sent);
}

/* ---- pages written in every round ---- */

static void set_pages(struct page_set *set, uint64_t bits)
{
    set->bits[0][0] |= bits;
}

static void pages_written_in_every_round_wait_for_the_end(void **state)
{
    struct page_map map = {.count = 1, .pages = {64}, .total = 64};
    struct page_set set;
    struct hot hot;

    assert_int_equal(page_set_init(&set, &map, NULL), 0);
    assert_int_equal(hot_init(&hot, &map, NULL), 0);

    set_pages(&set, UINT64_MAX); /* the first round is everything */
    assert_int_equal(hot_leave_out(&hot, &set, 100), 0);
    page_set_clear(&set, &map);

    set_pages(&hot.fresh, 0x0f);
    hot_gather(&hot, &set);
    assert_int_equal(hot_leave_out(&hot, &set, 100), 0); /* once is not every round */
    assert_int_equal(set.bits[0][0], 0x0f);
    page_set_clear(&set, &map);

    set_pages(&hot.fresh, 0xf3);
    hot_gather(&hot, &set);
    assert_int_equal(hot_leave_out(&hot, &set, 100), 2);
    assert_int_equal(set.bits[0][0], 0xf0);
    page_set_clear(&set, &map);

    set_pages(&hot.fresh, 0x31); /* page 1 came to rest, and is to be sent */
    hot_gather(&hot, &set);
    assert_int_equal(set.bits[0][0], 0x33);
    assert_int_equal(hot_leave_out(&hot, &set, 2), 2); /* no more than the bound: pages 0 and 4 */
    assert_int_equal(set.bits[0][0], 0x22);
    page_set_clear(&set, &map);

    hot_gather(&hot, &set); /* the last round has all that was left out */
    assert_int_equal(set.bits[0][0], 0x11);
    hot_free(&hot);
    page_set_free(&set);
}

/* ---- from one memory to another ---- */

#define WAY_PAGES 32

/* Two memories, and what moves pages from one to the other. */
struct way {
    uint8_t *memory[2];
    struct page_map maps[2];
    struct page_set set;
    struct sent sent;
    struct encoder encoder;
    struct page_place place;
    struct decoder decoder;
    struct link links[2];
};

static void way_open(struct way *way, enum ferry_compress compress, uint64_t sent_features,
                     uint64_t taken_features)
{
    struct wire_region region = {.name = "ram", .size = WAY_PAGES * FERRY_PAGE_SIZE};
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    for (int i = 0; i < 2; i++) {
        way->memory[i] = aligned_alloc(FERRY_PAGE_SIZE, WAY_PAGES * FERRY_PAGE_SIZE);
        memset(way->memory[i], 0, WAY_PAGES * FERRY_PAGE_SIZE);
        way->maps[i] = (struct page_map){
            .regions = {{.name = "ram", .size = region.size, .host_ptr = way->memory[i], .memfd = -1}},
            .pages = {WAY_PAGES},
            .count = 1,
            .total = WAY_PAGES,
            .chunks = 1};
        link_init(&way->links[i], fds[i], -1, UINT64_C(10000000000));
    }
    assert_int_equal(page_set_init(&way->set, &way->maps[0], NULL), 0);
    assert_int_equal(sent_init(&way->sent, &way->maps[0], WAY_PAGES * FERRY_PAGE_SIZE, NULL), 0);
    encoder_init(&way->encoder, &way->maps[0], &way->sent, compress, sent_features);
    assert_int_equal(page_place_init(&way->place, &way->maps[1], &region, 1, NULL), 0);
    assert_int_equal(page_place_prepare(&way->place, NULL), 0);
    decoder_init(&way->decoder, taken_features);
}

static void way_close(struct way *way)
{
    for (int i = 0; i < 2; i++) {
        free(way->memory[i]);
        link_close(&way->links[i]);
    }
    page_set_free(&way->set);
    sent_free(&way->sent);
    encoder_free(&way->encoder);
    page_place_free(&way->place);
    decoder_free(&way->decoder);
}

/* Sends all pages as one frame of ROUND (few enough for the socket's buffer); returns what the receiver says.
 */
static int way_send(struct way *way, uint32_t round, struct page_counts *sent, struct page_counts *placed)
{
    struct buffer body = BUFFER_INIT;
    struct encoder_frame out;
    struct frame in;
    uint32_t placed_round;
    int result = 0;

    memset(way->set.bits[0], 0xff, 8);
    encoder_begin(&way->encoder, round);
    assert_int_equal(encoder_add(&way->encoder, &way->set, 0, 0, WAY_PAGES), WAY_PAGES);
    *placed = (struct page_counts){0};
    if (!encoder_empty(&way->encoder)) {
        encoder_finish(&way->encoder, &body, &out);
        assert_int_equal(
            link_send_data(&way->links[0], out.type, &body, out.iov, out.iov_count, out.data, NULL), 0);
        assert_int_equal(link_receive(&way->links[1], &in, CHANNEL_FOREVER, NULL), 0);
        result = decoder_place(&way->decoder, &way->place, &way->links[1], &in, &placed_round, placed, NULL);
    }
    *sent = encoder_sent(&way->encoder, 1000);
    buffer_free(&body);
    if (result == 0) {
        struct page_counts known = *sent;

        known.encoded[FERRY_ENCODING_UNCHANGED].pages = 0; /* they were not sent */
        assert_memory_equal(placed, &known, sizeof(known));
        assert_memory_equal(way->memory[0], way->memory[1], WAY_PAGES * FERRY_PAGE_SIZE);
    }
    return result;
}

static void pages_take_every_way_and_arrive(void **state)
{
    uint64_t features = WIRE_FEATURES_COPY;

    for (int compress = FERRY_COMPRESS_OFF; compress <= FERRY_COMPRESS_ZSTD; compress++) {
        struct way *way = calloc(1, sizeof(*way));
        struct page_counts counts;
        struct page_counts placed;
        uint64_t random = SEED;
        bool encodes = compress != FERRY_COMPRESS_OFF;
        const struct ferry_encoded *unchanged = &counts.encoded[FERRY_ENCODING_UNCHANGED];
        const struct ferry_encoded *delta = &counts.encoded[FERRY_ENCODING_DELTA];
        const struct ferry_encoded *compressed =
            &counts.encoded[compress == FERRY_COMPRESS_LZ4 ? FERRY_ENCODING_LZ4 : FERRY_ENCODING_ZSTD];

        way_open(way, (enum ferry_compress)compress, features, features);
        /* A quarter noise, a quarter text, a quarter both, a quarter zeros. */
        random_fill(&random, way->memory[0], 8 * FERRY_PAGE_SIZE);
        memset(way->memory[0] + 8 * FERRY_PAGE_SIZE, 'x', 16 * FERRY_PAGE_SIZE);
        for (size_t page = 16; page < 24; page++)
            random_fill(&random, way->memory[0] + page * FERRY_PAGE_SIZE, 1000);
        assert_int_equal(way_send(way, 1, &counts, &placed), 0);
        assert_int_equal(counts.zero, 8);
        assert_int_equal(counts.raw, encodes ? 0 : 24);
        assert_int_equal(compressed->pages, encodes ? 24 : 0);
        if (encodes)
            assert_true(compressed->bytes < 17 * FERRY_PAGE_SIZE);

        /* Nothing changed. */
        assert_int_equal(way_send(way, 2, &counts, &placed), 0);
        assert_int_equal(unchanged->pages, encodes ? WAY_PAGES : 0);

        /* All of it is new: now copies are kept. */
        random_fill(&random, way->memory[0], WAY_PAGES * FERRY_PAGE_SIZE);
        assert_int_equal(way_send(way, 3, &counts, &placed), 0);
        assert_int_equal(counts.raw, WAY_PAGES);

        /* A few bytes here and there, a page that is new, one that is zero, one that is as it was. */
        for (size_t page = 0; page < WAY_PAGES; page++)
            random_fill(&random, way->memory[0] + page * FERRY_PAGE_SIZE + page * 60, 20);
        random_fill(&random, way->memory[0] + 5 * FERRY_PAGE_SIZE, FERRY_PAGE_SIZE);
        memset(way->memory[0] + 6 * FERRY_PAGE_SIZE, 0, FERRY_PAGE_SIZE);
        memcpy(way->memory[0] + 7 * FERRY_PAGE_SIZE, way->memory[1] + 7 * FERRY_PAGE_SIZE, FERRY_PAGE_SIZE);
        assert_int_equal(way_send(way, 4, &counts, &placed), 0);
        assert_int_equal(delta->pages, encodes ? WAY_PAGES - 3 : 0);
        assert_int_equal(counts.raw + compressed->pages, encodes ? 1 : WAY_PAGES - 1);
        assert_int_equal(unchanged->pages, encodes ? 1 : 0);
        assert_int_equal(counts.zero, 1);
        if (encodes)
            assert_true(delta->bytes < WAY_PAGES * 24);

        /* Changes on changes; page 6 has no older copy any more. */
        for (size_t page = 0; page < WAY_PAGES; page++)
            random_fill(&random, way->memory[0] + page * FERRY_PAGE_SIZE + 2000, 50);
        assert_int_equal(way_send(way, 5, &counts, &placed), 0);
        assert_int_equal(delta->pages, encodes ? WAY_PAGES - 1 : 0);
        way_close(way);
        free(way);
    }
}

static void what_was_not_agreed_on_is_refused(void **state)
{
    struct way *way = calloc(1, sizeof(*way));
    struct page_counts counts;
    struct page_counts placed;

    way_open(way, FERRY_COMPRESS_ZSTD, WIRE_FEATURES_COPY, WIRE_FEATURES_COPY & ~WIRE_FEATURE_ZSTD);
    memset(way->memory[0], 'x', WAY_PAGES * FERRY_PAGE_SIZE);
    assert_int_equal(way_send(way, 1, &counts, &placed), -EBADMSG);
    way_close(way);

    way_open(way, FERRY_COMPRESS_LZ4, WIRE_FEATURE_DELTA, 0);
    uint64_t random = SEED;

    random_fill(&random, way->memory[0], WAY_PAGES * FERRY_PAGE_SIZE);
    assert_int_equal(way_send(way, 2, &counts, &placed), 0);
    way->memory[0][0] ^= 1;
    assert_int_equal(way_send(way, 3, &counts, &placed), -EBADMSG);
    way_close(way);
    free(way);
}

/* A frame of all kinds of pages: its body to BODY, its data to DATA. Returns which it is. */
static enum wire_type make_frame(struct way *way, uint64_t *random, struct buffer *body, uint8_t *data,
                                 uint32_t *size)
{
    struct encoder_frame frame;
    struct page_counts counts;
    uint32_t round = (uint32_t)(random_next(random) % 5) + 1;

    change_some(random, way->memory[0] + random_next(random) % WAY_PAGES * FERRY_PAGE_SIZE);
    random_fill(random, way->memory[0], FERRY_PAGE_SIZE / 2);
    memset(way->memory[0] + random_next(random) % WAY_PAGES * FERRY_PAGE_SIZE, (int)(random_next(random) & 1),
           FERRY_PAGE_SIZE);
    memset(way->set.bits[0], 0xff, 8);
    encoder_begin(&way->encoder, round);
    encoder_add(&way->encoder, &way->set, 0, 0, WAY_PAGES);
    encoder_finish(&way->encoder, body, &frame);
    *size = 0;
    for (int i = 2; i < frame.iov_count; i++) {
        memcpy(data + *size, frame.iov[i].iov_base, frame.iov[i].iov_len);
        *size += (uint32_t)frame.iov[i].iov_len;
    }
    assert_int_equal(*size, frame.data);
    counts = encoder_sent(&way->encoder, 1000);
    (void)counts;
    return frame.type;
}

/* Pages beside the memory that must not be touched. */
static uint8_t *guarded_memory(void)
{
    uint8_t *memory =
        mmap(NULL, (WAY_PAGES + 2) * FERRY_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    assert_true(memory != MAP_FAILED);
    assert_int_equal(mprotect(memory + FERRY_PAGE_SIZE, WAY_PAGES * FERRY_PAGE_SIZE, PROT_READ | PROT_WRITE),
                     0);
    return memory + FERRY_PAGE_SIZE;
}

/* The fuzz target fuzz_pages does this for longer. */
static void damaged_frames_are_refused_or_stay_within_memory(void **state)
{
    static uint8_t data[WIRE_DATA_MAX];
    uint64_t random = SEED;
    unsigned refused = 0, taken = 0;

    for (int i = 0; i < 4000; i++) {
        struct way *way = calloc(1, sizeof(*way));
        struct buffer body = BUFFER_INIT;
        struct page_counts counts;
        struct frame frame;
        uint32_t round;

        way_open(way, (enum ferry_compress)(i % (FERRY_COMPRESS_ZSTD + 1)), WIRE_FEATURES_COPY,
                 WIRE_FEATURES_COPY);
        free(way->memory[1]);
        way->memory[1] = way->maps[1].regions[0].host_ptr = guarded_memory();
        frame.type = make_frame(way, &random, &body, data, &frame.data);
        for (uint64_t n = random_next(&random) % 4; n > 0; n--)
            body.data[random_next(&random) % body.size] = (uint8_t)random_next(&random);
        for (uint64_t n = random_next(&random) % 4; n > 0 && frame.data > 0; n--)
            data[random_next(&random) % frame.data] = (uint8_t)random_next(&random);
        if (random_next(&random) % 8 == 0)
            frame.data = (uint32_t)(random_next(&random) % (frame.data + 1));
        frame.body = reader_init(body.data, random_next(&random) % 8 ? body.size : body.size / 2);
        /* Whatever it says of its length: then the connection ends. */
        assert_int_equal(send(way->links[0].channel.fd, data, frame.data, 0), frame.data);
        shutdown(way->links[0].channel.fd, SHUT_WR);
        if (decoder_place(&way->decoder, &way->place, &way->links[1], &frame, &round, &counts, NULL) < 0)
            refused++;
        else
            taken++;
        munmap(way->memory[1] - FERRY_PAGE_SIZE, (WAY_PAGES + 2) * FERRY_PAGE_SIZE);
        way->memory[1] = NULL;
        buffer_free(&body);
        way_close(way);
        free(way);
    }
    assert_true(refused > 500 && taken > 500);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(changes_make_the_newer_copy),
        cmocka_unit_test(changes_at_the_edges),
        cmocka_unit_test(what_is_no_delta_is_refused),
        cmocka_unit_test(hostile_changes_stay_inside_the_page),
        cmocka_unit_test(blocks_survive_compression_and_nothing_else_is_taken),
        cmocka_unit_test(a_page_is_known_by_what_was_sent_last),
        cmocka_unit_test(copies_are_kept_within_bounds_and_one_owner_at_a_time),
        cmocka_unit_test(pages_written_in_every_round_wait_for_the_end),
        cmocka_unit_test(pages_take_every_way_and_arrive),
        cmocka_unit_test(what_was_not_agreed_on_is_refused),
        cmocka_unit_test(damaged_frames_are_refused_or_stay_within_memory),
        cmocka_unit_test(without_room_there_is_no_cache),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
