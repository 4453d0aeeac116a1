#include "unit.h"

#include "base/error.h"
#include "bus/state.h"

#include <errno.h>

struct thing {
    int lock; /* no part of the state */
    uint8_t u8;
    uint16_t u16;
    uint32_t u32;
    uint64_t u64;
    bool flag;
    uint16_t ring[3];
    uint8_t fifo[5];
    struct buffer queue;
    struct buffer pair[2];
    uint32_t newer; /* since 2 */
    uint64_t newest[2];
};

/* ring may not begin with 13; a relation between fields stands for all of them */
static int thing_validate(const void *object, struct ferry_error *err)
{
    const struct thing *thing = object;

    if (thing->ring[0] == 13)
        return error_set(err, -EINVAL, "a ring of 13 does not turn");
    return 0;
}

static const struct state_field thing_fields[] = {
    STATE_FIELD(struct thing, u8, STATE_U8, .max = 0x0f),
    STATE_FIELD(struct thing, u16, STATE_U16, .max = 1000),
    STATE_FIELD(struct thing, u32, STATE_U32, .max = 100000),
    STATE_FIELD(struct thing, u64, STATE_U64, .max = UINT64_C(1) << 60),
    STATE_FIELD(struct thing, flag, STATE_BOOL),
    STATE_ARRAY(struct thing, ring, STATE_U16, .max = 256),
    STATE_ARRAY(struct thing, fifo, STATE_BYTES),
    STATE_FIELD(struct thing, queue, STATE_BUFFER, .max = 8),
    STATE_ARRAY(struct thing, pair, STATE_BUFFER, .max = 4),
    STATE_FIELD(struct thing, newer, STATE_U32, .since = 2),
    STATE_ARRAY(struct thing, newest, STATE_U64, .since = 3),
};

static const struct state_table thing_state = {
    "thing", 3, thing_fields, ARRAY_SIZE(thing_fields), sizeof(struct thing), thing_validate,
};

static void thing_fill(struct thing *thing)
{
    *thing = (struct thing){
        .lock = 99,
        .u8 = 0x0f,
        .u16 = 1000,
        .u32 = 100000,
        .u64 = UINT64_C(1) << 60,
        .flag = true,
        .ring = {1, 256, 3},
        .fifo = {1, 2, 3, 4, 5},
        .newer = 0xdeadbeef,
        .newest = {UINT64_MAX, 7},
    };
    buffer_put(&thing->queue, "12345678", 8);
    buffer_put(&thing->pair[1], "ab", 2);
}

static void thing_free(struct thing *thing)
{
    buffer_free(&thing->queue);
    buffer_free(&thing->pair[0]);
    buffer_free(&thing->pair[1]);
}

struct fixture {
    struct thing from;
    struct thing to;
    struct buffer section;
    struct ferry_error err;
};

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));

    thing_fill(&fixture->from);
    state_save(&thing_state, &fixture->from, &fixture->section);
    fixture->to.lock = 1;
    *state = fixture;
    return buffer_failed(&fixture->section);
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;

    thing_free(&fixture->from);
    thing_free(&fixture->to);
    buffer_free(&fixture->section);
    free(fixture);
    return 0;
}

/* where each field begins in the section */
enum {
    AT_U8 = 0,
    AT_U16 = 1,
    AT_U32 = 3,
    AT_U64 = 7,
    AT_FLAG = 15,
    AT_RING = 16,
    AT_FIFO = 22,
    AT_QUEUE = 27,
    AT_PAIR = AT_QUEUE + 12,
    AT_NEWER = AT_PAIR + 10,
    AT_NEWEST = AT_NEWER + 4,
    AT_END = AT_NEWEST + 16,
};

static int load(struct fixture *fixture, uint32_t version, size_t size)
{
    struct reader reader = reader_init(fixture->section.data, size);

    return state_load(&thing_state, "thing0", version, &fixture->to, &reader, &fixture->err);
}

static void section_has_the_bytes_the_table_says(void **state)
{
    static const uint8_t golden[AT_END] = {
        0x0f, 0xe8, 0x03, 0xa0, 0x86, 0x01, 0,    0,    0,    0,    0,    0,    0,    0, 0x10, 1,
        1,    0,    0,    1,    3,    0,    1,    2,    3,    4,    5,    8,    0,    0, 0,    '1',
        '2',  '3',  '4',  '5',  '6',  '7',  '8',  0,    0,    0,    0,    2,    0,    0, 0,    'a',
        'b',  0xef, 0xbe, 0xad, 0xde, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 7,
    };
    struct fixture *fixture = *state;

    assert_int_equal(fixture->section.size, AT_END);
    assert_memory_equal(fixture->section.data, golden, AT_END);
}

static void what_was_saved_is_loaded(void **state)
{
    struct fixture *fixture = *state;
    struct buffer again = BUFFER_INIT;

    buffer_put(&fixture->to.queue, "old", 3);
    assert_ok(load(fixture, 3, AT_END), fixture->err);
    assert_int_equal(fixture->to.lock, 1);
    assert_int_equal(fixture->to.ring[1], 256);
    assert_memory_equal(fixture->to.queue.data, "12345678", 8);
    assert_int_equal(fixture->to.pair[0].size, 0);
    assert_int_equal(fixture->to.pair[1].size, 2);
    state_save(&thing_state, &fixture->to, &again);
    assert_int_equal(again.size, AT_END);
    assert_memory_equal(again.data, fixture->section.data, AT_END);
    buffer_free(&again);
}

static void loading_leaves_what_follows_to_the_caller(void **state)
{
    struct fixture *fixture = *state;
    struct reader reader;

    buffer_put_u8(&fixture->section, 0xee);
    reader = reader_init(fixture->section.data, fixture->section.size);
    assert_ok(state_load(&thing_state, "thing0", 3, &fixture->to, &reader, &fixture->err), fixture->err);
    assert_int_equal(reader_left(&reader), 1);
}

static void every_field_out_of_range_is_refused_by_name(void **state)
{
    static const struct {
        size_t at;
        size_t size;
        uint64_t bad;
        const char *field;
    } cases[] = {
        {AT_U8, 1, 0x10, "u8"},
        {AT_U8, 1, 0xff, "u8"},
        {AT_U16, 2, 1001, "u16"},
        {AT_U32, 4, 100001, "u32"},
        {AT_U64, 8, (UINT64_C(1) << 60) + 1, "u64"},
        {AT_U64, 8, UINT64_MAX, "u64"},
        {AT_FLAG, 1, 2, "flag"},
        {AT_FLAG, 1, 255, "flag"},
        {AT_RING, 2, 257, "ring[0]"},
        {AT_RING + 2, 2, 257, "ring[1]"},
        {AT_RING + 4, 2, 0xffff, "ring[2]"},
        {AT_QUEUE, 4, 9, "queue"},
        {AT_QUEUE, 4, UINT32_MAX, "queue"},
        {AT_PAIR, 4, 5, "pair[0]"},
        {AT_PAIR + 4, 4, 0x80000000, "pair[1]"},
    };
    struct fixture *fixture = *state;

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        uint8_t kept[8];
        struct reader reader;

        memcpy(kept, fixture->section.data + cases[i].at, sizeof(kept));
        for (size_t j = 0; j < cases[i].size; j++)
            fixture->section.data[cases[i].at + j] = (uint8_t)(cases[i].bad >> 8 * j);
        assert_int_equal(load(fixture, 3, AT_END), -EINVAL);
        assert_contains(fixture->err.text, "thing0");
        assert_contains(fixture->err.text, cases[i].field);
        /* printing refuses it just the same */
        reader = reader_init(fixture->section.data, AT_END);
        assert_null(state_print(&thing_state, "thing0", 3, &reader, &fixture->err));
        assert_contains(fixture->err.text, cases[i].field);
        memcpy(fixture->section.data + cases[i].at, kept, sizeof(kept));
    }
    assert_ok(load(fixture, 3, AT_END), fixture->err);
}

static void refused_section_leaves_the_object_as_it_was(void **state)
{
    struct fixture *fixture = *state;
    struct thing before;

    fixture->to.u8 = 3;
    fixture->to.newer = 4;
    buffer_put(&fixture->to.queue, "mine", 4);
    before = fixture->to;
    fixture->section.data[AT_PAIR] = 5;
    assert_int_equal(load(fixture, 3, AT_END), -EINVAL);
    assert_memory_equal(&fixture->to, &before, sizeof(before));
    assert_memory_equal(fixture->to.queue.data, "mine", 4);
}

static void truncation_at_every_byte_is_refused(void **state)
{
    static const struct {
        size_t end;
        const char *field;
    } fields[] = {
        {AT_U16, "u8"},     {AT_U32, "u16"},      {AT_U64, "u32"},    {AT_FLAG, "u64"},
        {AT_RING, "flag"},  {AT_FIFO, "ring"},    {AT_QUEUE, "fifo"}, {AT_PAIR, "queue"},
        {AT_NEWER, "pair"}, {AT_NEWEST, "newer"}, {AT_END, "newest"},
    };
    struct fixture *fixture = *state;
    struct thing before = fixture->to;
    size_t field = 0;

    for (size_t size = 0; size < AT_END; size++) {
        uint8_t *copy = malloc(size ? size : 1);
        struct reader reader = reader_init(copy, size);

        assert_non_null(copy);
        memcpy(copy, fixture->section.data, size);
        while (size >= fields[field].end)
            field++;
        assert_int_equal(state_load(&thing_state, "thing0", 3, &fixture->to, &reader, &fixture->err),
                         -EINVAL);
        assert_contains(fixture->err.text, "thing0");
        assert_contains(fixture->err.text, fields[field].field);
        assert_memory_equal(&fixture->to, &before, sizeof(before));
        reader = reader_init(copy, size);
        assert_null(state_print(&thing_state, "thing0", 3, &reader, &fixture->err));
        free(copy);
    }
}

static void versions_that_cannot_be_read_are_refused(void **state)
{
    struct fixture *fixture = *state;
    struct reader reader = reader_init(fixture->section.data, AT_END);

    assert_int_equal(load(fixture, 4, AT_END), -EPROTONOSUPPORT);
    assert_contains(fixture->err.text, "thing0");
    assert_contains(fixture->err.text, "version 4");
    assert_int_equal(load(fixture, UINT32_MAX, AT_END), -EPROTONOSUPPORT);
    assert_int_equal(load(fixture, 0, AT_END), -EPROTONOSUPPORT);
    assert_null(state_print(&thing_state, "thing0", 4, &reader, &fixture->err));
    assert_int_equal(fixture->err.code, -EPROTONOSUPPORT);
    assert_int_equal(fixture->to.u8, 0);
}

static void fields_newer_than_the_section_keep_their_value(void **state)
{
    struct fixture *fixture = *state;
    struct reader reader = reader_init(fixture->section.data, AT_END);

    fixture->to.newer = 42;
    fixture->to.newest[1] = 43;
    assert_ok(state_load(&thing_state, "thing0", 1, &fixture->to, &reader, &fixture->err), fixture->err);
    assert_int_equal(reader_left(&reader), AT_END - AT_NEWER);
    assert_int_equal(fixture->to.u16, 1000);
    assert_int_equal(fixture->to.newer, 42);
    assert_int_equal(fixture->to.newest[1], 43);

    assert_ok(load(fixture, 2, AT_NEWEST), fixture->err);
    assert_int_equal(fixture->to.newer, 0xdeadbeef);
    assert_int_equal(fixture->to.newest[1], 43);
}

/* A buffer of a later version is the object's own through an older section's loading, good or bad. */
static void newer_buffers_survive_older_sections(void **state)
{
    static const struct state_field fields[] = {
        STATE_FIELD(struct thing, u8, STATE_U8, .max = 1),
        STATE_FIELD(struct thing, queue, STATE_BUFFER, .max = 8, .since = 2),
    };
    static const struct state_table table = {"t", 2, fields, ARRAY_SIZE(fields), sizeof(struct thing), NULL};
    struct fixture *fixture = *state;
    struct reader reader = reader_init("\x01\x02", 2);

    buffer_put(&fixture->to.queue, "mine", 4);
    assert_ok(state_load(&table, "t", 1, &fixture->to, &reader, &fixture->err), fixture->err);
    assert_int_equal(state_load(&table, "t", 1, &fixture->to, &reader, &fixture->err), -EINVAL);
    assert_memory_equal(fixture->to.queue.data, "mine", 4);
}

static void relations_are_checked_before_the_object_changes(void **state)
{
    struct fixture *fixture = *state;

    fixture->section.data[AT_RING] = 13;
    assert_int_equal(load(fixture, 3, AT_END), -EINVAL);
    assert_string_equal(fixture->err.text, "state section thing0: a ring of 13 does not turn");
    assert_int_equal(fixture->to.u8, 0);
    assert_null(fixture->to.queue.data);
}

static void flipped_bits_never_break_more_than_the_load(void **state)
{
    struct fixture *fixture = *state;
    uint64_t seed = 0x5eed0003;

    print_message("seed 0x%llx\n", (unsigned long long)seed);
    for (int i = 0; i < 20000; i++) {
        size_t at = unit_random(&seed) % AT_END;
        uint8_t kept = fixture->section.data[at];

        fixture->section.data[at] = (uint8_t)unit_random(&seed);
        load(fixture, 1 + (uint32_t)(unit_random(&seed) % 3), unit_random(&seed) % (AT_END + 1));
        fixture->section.data[at] = kept;
        assert_true(fixture->to.u8 <= 0x0f && fixture->to.u16 <= 1000 && fixture->to.u32 <= 100000);
        assert_true(fixture->to.queue.size <= 8 && fixture->to.pair[1].size <= 4);
    }
}

static void print_names_every_field(void **state)
{
    struct fixture *fixture = *state;
    struct reader reader = reader_init(fixture->section.data, AT_END);
    json_t *json = state_print(&thing_state, "thing0", 3, &reader, &fixture->err);
    char *text = json_dumps(json, JSON_COMPACT | JSON_PRESERVE_ORDER);

    assert_string_equal(text,
                        "{\"u8\":15,\"u16\":1000,\"u32\":100000,\"u64\":\"0x1000000000000000\",\"flag\":true,"
                        "\"ring\":[1,256,3],\"fifo\":\"0102030405\",\"queue\":\"3132333435363738\","
                        "\"pair\":[\"\",\"6162\"],\"newer\":3735928559,"
                        "\"newest\":[\"0xffffffffffffffff\",\"0x7\"]}");
    free(text);
    json_decref(json);
    reader = reader_init(fixture->section.data, AT_END);
    json = state_print(&thing_state, "thing0", 1, &reader, &fixture->err);
    assert_null(json_object_get(json, "newer"));
    assert_non_null(json_object_get(json, "pair"));
    json_decref(json);
}

#define STATE_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        STATE_TEST(section_has_the_bytes_the_table_says),
        STATE_TEST(what_was_saved_is_loaded),
        STATE_TEST(loading_leaves_what_follows_to_the_caller),
        STATE_TEST(every_field_out_of_range_is_refused_by_name),
        STATE_TEST(refused_section_leaves_the_object_as_it_was),
        STATE_TEST(truncation_at_every_byte_is_refused),
        STATE_TEST(versions_that_cannot_be_read_are_refused),
        STATE_TEST(fields_newer_than_the_section_keep_their_value),
        STATE_TEST(newer_buffers_survive_older_sections),
        STATE_TEST(relations_are_checked_before_the_object_changes),
        STATE_TEST(flipped_bits_never_break_more_than_the_load),
        STATE_TEST(print_names_every_field),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
