/* Frames: what is encoded is decoded, what is wrong is refused, and version 1 stays as it was released. */
#include "engine/link.h"
#include "engine/wire.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

static const struct wire_hello hello_sample = {
    .version_min = 1,
    .version_max = 1,
    .migration_id = "3f1c9a52-0000-4000-8000-00000000feed",
    .token = {0xa5, 0xa6, 0xa7},
    .connection = WIRE_CONNECTION_PAGES,
    .index = 1,
    .streams = 2,
    .page_size = FERRY_PAGE_SIZE,
    .features = 0x10,
    .required = 0,
    .source = "alpha",
    .destination = "beta",
};

static const struct wire_run runs_sample[] = {
    {.region = 0, .kind = WIRE_PAGE_RAW, .pages = 3, .first = 0x80000},
    {.region = 1, .kind = WIRE_PAGE_ZERO, .pages = 65535, .first = 7},
    {.region = 0, .kind = WIRE_PAGE_RAW, .pages = 1, .first = 9},
};

#define RUNS_DATA (4 * FERRY_PAGE_SIZE)

static const struct wire_encoded encoded_sample = {
    .round = 5,
    .compression = WIRE_COMPRESSION_ZSTD,
    .count = 3,
    .delta_count = 2,
    .runs = {{.region = 0, .kind = WIRE_PAGE_RAW, .pages = 3, .first = 0x80000},
             {.region = 1, .kind = WIRE_PAGE_ZERO, .pages = 65535, .first = 7},
             {.region = 0, .kind = WIRE_PAGE_DELTA, .pages = 2, .first = 9}},
    .deltas = {3, 300},
};

#define ENCODED_DATA (3 * FERRY_PAGE_SIZE + 303 - 1)

/* One message of every kind, as a body. */
static void encode_sample(enum wire_type type, struct buffer *out)
{
    struct ferry_ram_region regions[2] = {{.name = "ram0", .guest_addr = 0x80000000, .size = 0x1000000},
                                          {.name = "ram1", .guest_addr = 0, .size = 4096}};
    struct wire_reason reason = {.cause = FERRY_CAUSE_LOCK, .text = "because"};
    struct ferry_section section = {
        .name = "uart0", .version = 3, .data = (const uint8_t *)"state", .size = 5};

    switch (type) {
    case WIRE_HELLO:
        wire_hello_encode(out, &hello_sample);
        break;
    case WIRE_WELCOME:
        wire_welcome_encode(out, &(struct wire_welcome){.version = 1, .features = 0x10});
        break;
    case WIRE_REGIONS:
        wire_regions_encode(out, regions, 2);
        break;
    case WIRE_START:
        wire_start_encode(out, &(struct wire_start){.quiesce_timeout_ns = 10000000000});
        break;
    case WIRE_PAGES:
        wire_batch_encode(out, 5, runs_sample, 3);
        break;
    case WIRE_FENCE:
    case WIRE_ROUND_END:
    case WIRE_ROUND_DONE:
        wire_round_encode(out, 7);
        break;
    case WIRE_PAUSED:
        wire_paused_encode(out, true);
        break;
    case WIRE_SECTION:
        wire_section_encode(out, &section);
        break;
    case WIRE_END:
        wire_end_encode(out,
                        &(struct wire_end){.sections = 4, .fence = 9, .memory_checksum = 0x1122334455667788});
        break;
    case WIRE_VERDICT:
        wire_verdict_encode(out, WIRE_RESTORE_FAILURE, &reason);
        break;
    case WIRE_RUNNING:
        wire_running_encode(out, &(struct wire_running){1, 2, 3, 4, 5});
        break;
    case WIRE_NOT_RUNNING:
    case WIRE_ABORT:
        wire_reason_encode(out, &reason);
        break;
    case WIRE_MEMORY:
        wire_memory_encode(out, 2);
        break;
    case WIRE_ENCODED:
        wire_encoded_encode(out, &encoded_sample);
        break;
    case WIRE_PRESENT:
        wire_present_encode(
            out, &(struct wire_present){.region = 1, .bits = (const uint8_t *)"\x05\x80", .size = 2});
        break;
    case WIRE_GO:
    case WIRE_KEEPALIVE:
    case WIRE_PREPARED:
    case WIRE_MEMORY_TAKEN:
        break;
    case WIRE_FETCH:
        wire_fetch_encode(out, 3);
        break;
    case WIRE_READY:
        wire_ready_encode(out, 0x123456789a);
        break;
    case WIRE_MISSING:
        wire_missing_encode(out, &(struct wire_missing){.region = 1, .first = 640, .words = 2},
                            (const uint64_t[]){0x8000000000000001, 0x10});
        break;
    case WIRE_REQUEST:
        wire_request_encode(
            out, (const struct wire_page[]){{.region = 0, .page = 77}, {.region = 1, .page = 9}}, 2);
        break;
    case WIRE_FETCHED:
        wire_fetched_encode(out, &(struct wire_fetched){1, 2, 3, 4, 5, 6});
        break;
    }
}

static int decode_any(enum wire_type type, struct reader *in, struct ferry_error *err)
{
    static struct wire_run runs[WIRE_RUNS_MAX];
    static struct wire_encoded encoded;
    struct wire_region regions[FERRY_REGIONS_MAX];
    struct wire_hello hello;
    struct wire_welcome welcome;
    struct wire_start start;
    struct ferry_section section;
    struct wire_end end;
    struct wire_reason reason;
    struct wire_running running;
    struct wire_present present;
    enum wire_verdict verdict;
    size_t count;
    uint32_t round;
    bool was_running;
    static uint64_t bits[WIRE_MISSING_WORDS_MAX];
    struct wire_page pages[WIRE_REQUEST_PAGES_MAX];
    struct wire_missing missing;
    struct wire_fetched fetched;
    uint16_t connections;
    uint64_t left;

    switch (type) {
    case WIRE_HELLO:
        return wire_hello_decode(in, &hello, err);
    case WIRE_WELCOME:
        return wire_welcome_decode(in, &welcome, err);
    case WIRE_REGIONS:
        return wire_regions_decode(in, regions, &count, err);
    case WIRE_START:
        return wire_start_decode(in, &start, err);
    case WIRE_PAGES:
        return wire_batch_decode(in, RUNS_DATA, &round, runs, &count, err);
    case WIRE_FENCE:
    case WIRE_ROUND_END:
    case WIRE_ROUND_DONE:
        return wire_round_decode(in, &round, err);
    case WIRE_PAUSED:
        return wire_paused_decode(in, &was_running, err);
    case WIRE_SECTION:
        return wire_section_decode(in, &section, err);
    case WIRE_END:
        return wire_end_decode(in, &end, err);
    case WIRE_VERDICT:
        return wire_verdict_decode(in, &verdict, &reason, err);
    case WIRE_RUNNING:
        return wire_running_decode(in, &running, err);
    case WIRE_NOT_RUNNING:
    case WIRE_ABORT:
        return wire_reason_decode(in, &reason, err);
    case WIRE_MEMORY:
        return wire_memory_decode(in, &count, err);
    case WIRE_ENCODED:
        return wire_encoded_decode(in, ENCODED_DATA, &encoded, err);
    case WIRE_PRESENT:
        return wire_present_decode(in, &present, err);
    case WIRE_GO:
    case WIRE_KEEPALIVE:
    case WIRE_PREPARED:
    case WIRE_MEMORY_TAKEN:
        return 0;
    case WIRE_FETCH:
        return wire_fetch_decode(in, &connections, err);
    case WIRE_READY:
        return wire_ready_decode(in, &left, err);
    case WIRE_MISSING:
        return wire_missing_decode(in, &missing, bits, err);
    case WIRE_REQUEST:
        return wire_request_decode(in, pages, &count, err);
    case WIRE_FETCHED:
        return wire_fetched_decode(in, &fetched, err);
    }
    return -EBADMSG;
}

/* Each body in memory of exactly its size, so that a sanitizer sees a read past its end. */
static int decode_copy(enum wire_type type, const uint8_t *data, size_t size, struct ferry_error *err)
{
    uint8_t *copy = malloc(size ? size : 1);
    struct reader reader;
    int result;

    if (size)
        memcpy(copy, data, size);
    reader = reader_init(copy, size);
    result = decode_any(type, &reader, err);
    free(copy);
    return result;
}

static void every_message_decodes_and_no_other_length_does(void **state)
{
    for (int type = WIRE_HELLO; type <= WIRE_MEMORY_TAKEN; type++) {
        struct buffer body = BUFFER_INIT;
        struct ferry_error err = {0};

        if (strcmp(wire_type_name((uint8_t)type), "unknown") == 0)
            continue;
        encode_sample((enum wire_type)type, &body);
        assert_false(buffer_failed(&body));
        assert_int_equal(decode_copy((enum wire_type)type, body.data, body.size, &err), 0);
        if (body.size > 0) {
            for (size_t size = 0; size < body.size; size++) {
                assert_int_equal(decode_copy((enum wire_type)type, body.data, size, &err), -EBADMSG);
                assert_true(strlen(err.text) > 0);
            }
            buffer_put_u8(&body, 0);
            assert_int_equal(decode_copy((enum wire_type)type, body.data, body.size, &err), -EBADMSG);
        }
        buffer_free(&body);
    }
}

static void values_survive_the_round_trip(void **state)
{
    struct buffer body = BUFFER_INIT;
    struct wire_run runs[WIRE_RUNS_MAX];
    struct wire_region regions[FERRY_REGIONS_MAX];
    struct wire_hello hello;
    struct ferry_section section;
    struct wire_reason reason;
    enum wire_verdict verdict;
    struct wire_end end;
    struct wire_present present;
    struct wire_encoded encoded;
    struct reader reader;
    uint32_t round;
    size_t count;
    static uint64_t bits[WIRE_MISSING_WORDS_MAX];
    struct wire_page pages[WIRE_REQUEST_PAGES_MAX];
    struct wire_missing missing;
    struct wire_fetched fetched;

#define DECODE(type, call)                                                                                   \
    do {                                                                                                     \
        buffer_clear(&body);                                                                                 \
        encode_sample(type, &body);                                                                          \
        reader = reader_init(body.data, body.size);                                                          \
        assert_int_equal(call, 0);                                                                           \
    } while (0)

    DECODE(WIRE_HELLO, wire_hello_decode(&reader, &hello, NULL));
    assert_int_equal(hello.version, 1);
    hello.version = 0;
    assert_memory_equal(hello.token, hello_sample.token, FERRY_TOKEN_SIZE);
    assert_string_equal(hello.migration_id, hello_sample.migration_id);
    assert_string_equal(hello.source, "alpha");
    assert_string_equal(hello.destination, "beta");
    assert_int_equal(hello.index, 1);
    assert_int_equal(hello.streams, 2);
    DECODE(WIRE_REGIONS, wire_regions_decode(&reader, regions, &count, NULL));
    assert_int_equal(count, 2);
    assert_string_equal(regions[0].name, "ram0");
    assert_int_equal(regions[0].guest_addr, 0x80000000);
    assert_int_equal(regions[1].size, 4096);
    DECODE(WIRE_PAGES, wire_batch_decode(&reader, RUNS_DATA, &round, runs, &count, NULL));
    assert_int_equal(round, 5);
    assert_int_equal(count, 3);
    assert_memory_equal(runs, runs_sample, sizeof(runs_sample));
    DECODE(WIRE_SECTION, wire_section_decode(&reader, &section, NULL));
    assert_string_equal(section.name, "uart0");
    assert_int_equal(section.version, 3);
    assert_int_equal(section.size, 5);
    assert_memory_equal(section.data, "state", 5);
    DECODE(WIRE_VERDICT, wire_verdict_decode(&reader, &verdict, &reason, NULL));
    assert_int_equal(verdict, WIRE_RESTORE_FAILURE);
    assert_int_equal(reason.cause, FERRY_CAUSE_LOCK);
    assert_string_equal(reason.text, "because");
    DECODE(WIRE_END, wire_end_decode(&reader, &end, NULL));
    assert_int_equal(end.memory_checksum, 0x1122334455667788);
    DECODE(WIRE_ENCODED, wire_encoded_decode(&reader, ENCODED_DATA, &encoded, NULL));
    assert_int_equal(encoded.round, 5);
    assert_int_equal(encoded.compression, WIRE_COMPRESSION_ZSTD);
    assert_int_equal(encoded.count, 3);
    assert_memory_equal(encoded.runs, encoded_sample.runs, 3 * sizeof(encoded.runs[0]));
    assert_int_equal(encoded.delta_count, 2);
    assert_int_equal(encoded.deltas[1], 300);
    assert_int_equal(encoded.size, 3 * FERRY_PAGE_SIZE + 303);
    DECODE(WIRE_PRESENT, wire_present_decode(&reader, &present, NULL));
    assert_int_equal(present.region, 1);
    assert_int_equal(present.size, 2);
    assert_memory_equal(present.bits, "\x05\x80", 2);
    DECODE(WIRE_MISSING, wire_missing_decode(&reader, &missing, bits, NULL));
    assert_int_equal(missing.region, 1);
    assert_int_equal(missing.first, 640);
    assert_int_equal(missing.words, 2);
    assert_int_equal(bits[0], 0x8000000000000001);
    assert_int_equal(bits[1], 0x10);
    DECODE(WIRE_REQUEST, wire_request_decode(&reader, pages, &count, NULL));
    assert_int_equal(count, 2);
    assert_int_equal(pages[0].page, 77);
    assert_int_equal(pages[1].region, 1);
    DECODE(WIRE_FETCHED, wire_fetched_decode(&reader, &fetched, NULL));
    assert_int_equal(fetched.faults, 1);
    assert_int_equal(fetched.paused_ns, 6);
    buffer_free(&body);
}

/* Changes one byte of a good body and expects it to be refused. */
static void refuse_changed(enum wire_type type, size_t offset, uint8_t value)
{
    struct buffer body = BUFFER_INIT;

    encode_sample(type, &body);
    assert_true(offset < body.size);
    assert_int_not_equal(body.data[offset], value);
    body.data[offset] = value;
    if (decode_copy(type, body.data, body.size, NULL) != -EBADMSG)
        fail_msg("%s with byte %zu = %u was taken", wire_type_name((uint8_t)type), offset, value);
    buffer_free(&body);
}

static void impossible_values_are_refused(void **state)
{
    size_t connection = 8 + 4 + 4 + 36 + FERRY_TOKEN_SIZE;

    refuse_changed(WIRE_HELLO, 0, 'f');                /* not ours */
    refuse_changed(WIRE_HELLO, 8, 0);                  /* version 0 */
    refuse_changed(WIRE_HELLO, 12, 200);               /* id longer than an id */
    refuse_changed(WIRE_HELLO, connection, 0);         /* kinds of connection */
    refuse_changed(WIRE_HELLO, connection, 4);         /* that do not exist */
    refuse_changed(WIRE_HELLO, connection + 1, 2);     /* index 2 of 2 */
    refuse_changed(WIRE_HELLO, connection + 3, 0);     /* no page connection */
    refuse_changed(WIRE_HELLO, connection + 3, 17);    /* too many */
    refuse_changed(WIRE_REGIONS, 0, 0);                /* none */
    refuse_changed(WIRE_REGIONS, 0, 9);                /* too many */
    refuse_changed(WIRE_REGIONS, 1 + 8 + 8, 1);        /* not whole pages */
    refuse_changed(WIRE_REGIONS, 1 + 8 + 8 + 7, 0x10); /* more pages than can be numbered */
    refuse_changed(WIRE_PAGES, 0, 0);                  /* round 0 */
    refuse_changed(WIRE_PAGES, 4, 0);                  /* no runs */
    refuse_changed(WIRE_PAGES, 5, 2);                  /* 515 runs */
    refuse_changed(WIRE_PAGES, 6, 1);                  /* reserved */
    refuse_changed(WIRE_PAGES, 9, 0);                  /* page kind 0 */
    refuse_changed(WIRE_PAGES, 9, 3);                  /* unknown */
    refuse_changed(WIRE_PAGES, 9, 2);                  /* then the data is too much */
    refuse_changed(WIRE_PAGES, 10, 4);                 /* then it is too little */
    refuse_changed(WIRE_PAGES, 10, 0);                 /* a run of nothing */
    refuse_changed(WIRE_ENCODED, 0, 0);                /* round 0 */
    refuse_changed(WIRE_ENCODED, 4, 0);                /* no runs */
    refuse_changed(WIRE_ENCODED, 5, 2);                /* 515 runs */
    refuse_changed(WIRE_ENCODED, 6, 0);                /* compression 0 */
    refuse_changed(WIRE_ENCODED, 6, 1);                /* none: then the data is too little */
    refuse_changed(WIRE_ENCODED, 6, 4);                /* unknown */
    refuse_changed(WIRE_ENCODED, 7, 1);                /* reserved */
    refuse_changed(WIRE_ENCODED, 9, 0);                /* page kind 0 */
    refuse_changed(WIRE_ENCODED, 9, 4);                /* unknown */
    refuse_changed(WIRE_ENCODED, 10, 0);               /* a run of nothing */
    refuse_changed(WIRE_ENCODED, 10, 2);               /* then the data is not less than the pages */
    refuse_changed(WIRE_ENCODED, 10, 255);             /* more pages than a frame may have */
    refuse_changed(WIRE_ENCODED, 8 + 24, 0);           /* changes of no bytes */
    refuse_changed(WIRE_ENCODED, 8 + 24, 2);           /* then the data is not less than the pages */
    refuse_changed(WIRE_ENCODED, 8 + 26 + 1, 17);      /* more changes than a page has bytes */
    refuse_changed(WIRE_FENCE, 0, 0);
    refuse_changed(WIRE_PAUSED, 0, 0);
    refuse_changed(WIRE_PAUSED, 0, 3);
    refuse_changed(WIRE_SECTION, 9, 0);  /* version 0 */
    refuse_changed(WIRE_SECTION, 13, 6); /* more than there is */
    refuse_changed(WIRE_SECTION, 4, 0);  /* a NUL in the name */
    refuse_changed(WIRE_VERDICT, 0, 0);
    refuse_changed(WIRE_VERDICT, 0, 3);
    refuse_changed(WIRE_FETCH, 0, 1);      /* requests alone */
    refuse_changed(WIRE_FETCH, 0, 17);     /* too many */
    refuse_changed(WIRE_MISSING, 1, 1);    /* not the beginning of a word */
    refuse_changed(WIRE_MISSING, 5, 0);    /* no words */
    refuse_changed(WIRE_MISSING, 5, 3);    /* more than there are */
    refuse_changed(WIRE_MISSING, 6, 0x21); /* more than there may be */
    refuse_changed(WIRE_REQUEST, 0, 0);
    refuse_changed(WIRE_REQUEST, 0, 65);
}

static void versions_are_chosen_and_unknown_ones_told_apart(void **state)
{
    struct wire_hello hello = hello_sample;
    struct wire_hello decoded;
    struct buffer body = BUFFER_INIT;
    struct reader reader;

    hello.version_max = 9;
    wire_hello_encode(&body, &hello);
    reader = reader_init(body.data, body.size);
    assert_int_equal(wire_hello_decode(&reader, &decoded, NULL), 0);
    assert_int_equal(decoded.version, WIRE_VERSION_MAX);

    /* A later version alone: only the part that never changes is looked at. */
    buffer_clear(&body);
    hello.version_min = 2;
    wire_hello_encode(&body, &hello);
    buffer_put(&body, "what later versions add", 23);
    reader = reader_init(body.data, body.size);
    assert_int_equal(wire_hello_decode(&reader, &decoded, NULL), 0);
    assert_int_equal(decoded.version, 0);
    assert_string_equal(decoded.migration_id, hello.migration_id);
    buffer_free(&body);
}

static void hostile_text_is_made_printable(void **state)
{
    struct wire_reason reason = {.cause = (enum ferry_cause)200};
    struct wire_reason decoded;
    struct buffer body = BUFFER_INIT;
    struct reader reader;

    strcpy(reason.text, "a\nb\x1b[2J\x7f");
    wire_reason_encode(&body, &reason);
    reader = reader_init(body.data, body.size);
    assert_int_equal(wire_reason_decode(&reader, &decoded, NULL), 0);
    assert_string_equal(decoded.text, "a?b?[2J?");
    assert_int_equal(decoded.cause, FERRY_CAUSE_INTERNAL);
    buffer_free(&body);
}

static void headers_out_of_bounds_are_refused(void **state)
{
    struct wire_header good = {.type = WIRE_WELCOME, .length = 10, .sequence = 1};
    uint8_t body[10] = {0};
    uint8_t bytes[WIRE_HEADER_SIZE];
    struct wire_header header;
    struct ferry_error err = {0};

#define REFUSED(change)                                                                                      \
    do {                                                                                                     \
        struct wire_header wrong = good;                                                                     \
        uint8_t *made = calloc(1, WIRE_BODY_MAX + 1);                                                        \
        wrong.change;                                                                                        \
        uint32_t length = wrong.length;                                                                      \
        wrong.length = 10;                                                                                   \
        wire_header_encode(bytes, &wrong, made);                                                             \
        memcpy(bytes + 4, &length, 4);                                                                       \
        assert_int_equal(wire_header_decode(bytes, &header, &err), -EBADMSG);                                \
        free(made);                                                                                          \
    } while (0)

    wire_header_encode(bytes, &good, body);
    assert_int_equal(wire_header_decode(bytes, &header, &err), 0);
    REFUSED(type = 0);
    REFUSED(type = 200);
    REFUSED(type = 255);
    REFUSED(flags = 1);
    REFUSED(length = 9);
    REFUSED(length = 11);
    REFUSED(length = UINT32_MAX);
    REFUSED(data = 1);
    REFUSED(sequence = 0);
    good.type = WIRE_PAGES;
    good.length = 16;
    REFUSED(data = WIRE_DATA_MAX + 1);
    REFUSED(length = 8 + 8 * WIRE_RUNS_MAX + 1);
    good.type = WIRE_SECTION;
    REFUSED(length = WIRE_BODY_MAX + 1);
    REFUSED(length = UINT32_MAX);
    good.type = WIRE_HELLO;
    REFUSED(length = WIRE_HELLO_MAX + 1);
    wire_header_encode(bytes, &(struct wire_header){.type = WIRE_GO, .sequence = 1}, NULL);
    bytes[2] = 1; /* reserved */
    assert_int_equal(wire_header_decode(bytes, &header, &err), -EBADMSG);
}

struct ends {
    struct link in;
    int out;
};

static void ends_open(struct ends *ends)
{
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    link_init(&ends->in, fds[0], -1, UINT64_C(20000000000));
    ends->out = fds[1];
}

static void frame_sample(struct buffer *out, enum wire_type type, uint32_t sequence)
{
    struct buffer body = BUFFER_INIT;

    encode_sample(type, &body);
    wire_frame_put(out, type, 0, sequence, body.data, body.size);
    buffer_free(&body);
}

static void frames_cut_at_every_byte_are_an_ended_connection(void **state)
{
    struct buffer whole = BUFFER_INIT;

    frame_sample(&whole, WIRE_HELLO, 1);
    for (size_t size = 0; size < whole.size; size++) {
        struct ends ends;
        struct frame frame;

        ends_open(&ends);
        assert_int_equal(write(ends.out, whole.data, size), size);
        close(ends.out);
        assert_int_equal(link_receive(&ends.in, &frame, CHANNEL_FOREVER, NULL), -EPIPE);
        link_close(&ends.in);
    }
    buffer_free(&whole);
}

static void every_flipped_bit_of_a_frame_is_noticed(void **state)
{
    struct buffer whole = BUFFER_INIT;

    frame_sample(&whole, WIRE_END, 1);
    for (size_t bit = 0; bit < whole.size * 8; bit++) {
        struct ends ends;
        struct frame frame;

        ends_open(&ends);
        whole.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_equal(write(ends.out, whole.data, whole.size), whole.size);
        whole.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        close(ends.out);
        int result = link_receive(&ends.in, &frame, CHANNEL_FOREVER, NULL);

        assert_true(result == -EBADMSG || result == -EPIPE);
        link_close(&ends.in);
    }
    buffer_free(&whole);
}

static void lost_or_repeated_frames_are_noticed(void **state)
{
    struct ends ends;
    struct frame frame;
    struct buffer bytes = BUFFER_INIT;

    ends_open(&ends);
    frame_sample(&bytes, WIRE_KEEPALIVE, 1);
    frame_sample(&bytes, WIRE_KEEPALIVE, 1);
    assert_int_equal(write(ends.out, bytes.data, bytes.size), bytes.size);
    assert_int_equal(link_receive(&ends.in, &frame, CHANNEL_FOREVER, NULL), 0);
    assert_int_equal(link_receive(&ends.in, &frame, CHANNEL_FOREVER, NULL), -EBADMSG);
    link_close(&ends.in);
    close(ends.out);
    buffer_free(&bytes);
}

/* Frames, the second one with data, come in pieces of every size: each is taken once, when it is whole. */
static void frames_in_pieces_are_taken_whole(void **state)
{
    static const struct wire_run run = {.region = 0, .kind = WIRE_PAGE_RAW, .pages = 1, .first = 7};
    struct wire_header header = {.type = WIRE_PAGES, .data = FERRY_PAGE_SIZE, .sequence = 2};
    struct buffer bytes = BUFFER_INIT, body = BUFFER_INIT;
    uint8_t page[FERRY_PAGE_SIZE], out[WIRE_HEADER_SIZE];

    for (size_t i = 0; i < sizeof(page); i++)
        page[i] = (uint8_t)(i * 7);
    wire_batch_encode(&body, 1, &run, 1);
    header.length = (uint32_t)body.size;
    wire_header_encode(out, &header, body.data);
    frame_sample(&bytes, WIRE_KEEPALIVE, 1);
    buffer_put(&bytes, out, sizeof(out));
    buffer_put(&bytes, body.data, body.size);
    buffer_put(&bytes, page, sizeof(page));
    frame_sample(&bytes, WIRE_KEEPALIVE, 3);
    for (size_t piece = 1; piece <= bytes.size; piece += piece < 64 ? 1 : 997) {
        struct frame frame;
        struct ends ends;
        const uint8_t *data;
        unsigned taken = 0;
        int result;

        ends_open(&ends);
        for (size_t at = 0; at < bytes.size; at += piece) {
            size_t size = piece < bytes.size - at ? piece : bytes.size - at;

            assert_int_equal(write(ends.out, bytes.data + at, size), size);
            while ((result = link_take(&ends.in, &frame, &data, NULL)) == 1) {
                taken++;
                assert_int_equal(frame.type, taken == 2 ? WIRE_PAGES : WIRE_KEEPALIVE);
                assert_int_equal(frame.data, taken == 2 ? FERRY_PAGE_SIZE : 0);
                assert_memory_equal(data, page, frame.data);
            }
            assert_int_equal(result, 0);
        }
        assert_int_equal(taken, 3);
        assert_false(link_holds_data(&ends.in));
        close(ends.out);
        assert_int_equal(link_take(&ends.in, &frame, &data, NULL), -EPIPE);
        link_close(&ends.in);
    }
    buffer_free(&bytes);
    buffer_free(&body);
}

/* What the socket does not take at once stays queued, and leaves in order later. */
static void frames_that_find_no_room_are_kept(void **state)
{
    struct link link;
    struct ends ends;
    struct frame frame;
    const uint8_t *data;
    unsigned sent = 0, taken = 0;
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    link_init(&link, fds[0], -1, UINT64_C(20000000000));
    link_init(&ends.in, fds[1], -1, UINT64_C(20000000000));
    do {
        link_queue(&link, WIRE_KEEPALIVE, 0, NULL);
        sent++;
        assert_int_equal(link_flush_ready(&link, NULL), 0);
    } while (link.out.size == 0);
    link_queue(&link, WIRE_KEEPALIVE, 0, NULL);
    sent++;
    while (taken < sent) {
        int result = link_take(&ends.in, &frame, &data, NULL);

        assert_true(result >= 0);
        taken += (unsigned)result;
        assert_int_equal(link_flush_ready(&link, NULL), 0);
    }
    assert_int_equal(link.out.size, 0);
    link_close(&link);
    link_close(&ends.in);
}

static void silence_is_a_timeout(void **state)
{
    struct ends ends;
    struct frame frame;

    ends_open(&ends);
    assert_int_equal(link_receive(&ends.in, &frame, 1000000, NULL), -ETIMEDOUT);
    link_close(&ends.in);
    close(ends.out);
}

static void assert_bytes(const struct buffer *buffer, const char *hex)
{
    char *text = malloc(buffer->size * 2 + 1);

    text[0] = '\0';
    for (size_t i = 0; i < buffer->size; i++)
        snprintf(text + 2 * i, 3, "%02x", buffer->data[i]);
    assert_string_equal(text, hex);
    free(text);
}

/* Version 1 as it was released. These bytes never change; a change of the format is a new version. */
static void golden_bytes_of_version_1(void **state)
{
    struct buffer frame = BUFFER_INIT;
    struct buffer body = BUFFER_INIT;
    struct wire_header header = {.type = WIRE_PAGES, .data = RUNS_DATA, .sequence = 3};
    uint8_t bytes[WIRE_HEADER_SIZE];

    frame_sample(&frame, WIRE_HELLO, 1);
    assert_bytes(&frame, "010000007e000000000000000100000082abe72b5a38ff8146455252594d49470100010024000000336"
                         "63163396135322d303030302d343030302d383030302d303030303030303066656564a5a6a700000000"
                         "00000000000000000000000000000000000000000000000000020100020000100000100000000000000"
                         "0000000000000000005000000616c7068610400000062657461");

    buffer_clear(&frame);
    encode_sample(WIRE_PAGES, &body);
    header.length = (uint32_t)body.size;
    wire_header_encode(bytes, &header, body.data);
    buffer_put(&frame, bytes, sizeof(bytes));
    buffer_put(&frame, body.data, body.size);
    assert_bytes(&frame, "0500000020000000004000000300000083531c7ecb600a5605000000030000000001030000000800010"
                         "2ffff070000000001010009000000");

    buffer_clear(&frame);
    frame_sample(&frame, WIRE_SECTION, 9);
    assert_bytes(
        &frame,
        "0a00000016000000000000000900000045e572932da6e84a05000000756172743003000000050000007374617465");
    buffer_free(&frame);
    buffer_free(&body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_message_decodes_and_no_other_length_does),
        cmocka_unit_test(values_survive_the_round_trip),
        cmocka_unit_test(impossible_values_are_refused),
        cmocka_unit_test(versions_are_chosen_and_unknown_ones_told_apart),
        cmocka_unit_test(hostile_text_is_made_printable),
        cmocka_unit_test(headers_out_of_bounds_are_refused),
        cmocka_unit_test(frames_cut_at_every_byte_are_an_ended_connection),
        cmocka_unit_test(every_flipped_bit_of_a_frame_is_noticed),
        cmocka_unit_test(lost_or_repeated_frames_are_noticed),
        cmocka_unit_test(frames_in_pieces_are_taken_whole),
        cmocka_unit_test(frames_that_find_no_room_are_kept),
        cmocka_unit_test(silence_is_a_timeout),
        cmocka_unit_test(golden_bytes_of_version_1),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
