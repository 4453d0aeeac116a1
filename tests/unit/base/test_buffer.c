#include "unit.h"

#include "base/buffer.h"

/* One of each, in order; the size is that of the whole. */
static void put_all(struct buffer *buffer)
{
    buffer_put_u8(buffer, 0x01);
    buffer_put_u16(buffer, 0x0203);
    buffer_put_u32(buffer, 0x04050607);
    buffer_put_u64(buffer, 0x08090a0b0c0d0e0f);
    buffer_put_string(buffer, "ferry");
    buffer_put(buffer, "\x10\x11", 2);
}

#define ALL_SIZE (1 + 2 + 4 + 8 + 4 + 5 + 2)

static void integers_are_little_endian(void **state)
{
    static const uint8_t golden[ALL_SIZE] = {
        0x01, 0x03, 0x02, 0x07, 0x06, 0x05, 0x04, 0x0f, 0x0e, 0x0d, 0x0c, 0x0b, 0x0a,
        0x09, 0x08, 5,    0,    0,    0,    'f',  'e',  'r',  'r',  'y',  0x10, 0x11,
    };
    struct buffer buffer = BUFFER_INIT;

    put_all(&buffer);
    assert_false(buffer_failed(&buffer));
    assert_int_equal(buffer.size, ALL_SIZE);
    assert_memory_equal(buffer.data, golden, ALL_SIZE);
    buffer_free(&buffer);
    assert_null(buffer.data);
}

static void what_was_put_is_got(void **state)
{
    struct buffer buffer = BUFFER_INIT;
    struct reader reader;
    uint8_t bytes[2];
    char text[6];

    put_all(&buffer);
    reader = reader_init(buffer.data, buffer.size);
    assert_int_equal(reader_get_u8(&reader), 0x01);
    assert_int_equal(reader_get_u16(&reader), 0x0203);
    assert_int_equal(reader_get_u32(&reader), 0x04050607);
    assert_true(reader_get_u64(&reader) == 0x08090a0b0c0d0e0f);
    reader_get_string(&reader, text, sizeof(text));
    assert_string_equal(text, "ferry");
    assert_int_equal(reader_left(&reader), 2);
    reader_get(&reader, bytes, 2);
    assert_memory_equal(bytes, "\x10\x11", 2);
    assert_int_equal(reader_left(&reader), 0);
    assert_false(reader_failed(&reader));
    assert_int_equal(reader_get_u8(&reader), 0);
    assert_true(reader_failed(&reader));
    buffer_free(&buffer);
}

static void truncation_at_every_byte_is_seen(void **state)
{
    struct buffer buffer = BUFFER_INIT;

    put_all(&buffer);
    for (size_t size = 0; size < ALL_SIZE; size++) {
        /* A copy of exactly this size, so that a sanitizer sees any byte read past it. */
        uint8_t *copy = malloc(size ? size : 1);
        uint8_t bytes[2] = {0xff, 0xff};
        char text[16] = "untouched";
        struct reader reader;

        assert_non_null(copy);
        memcpy(copy, buffer.data, size);
        reader = reader_init(copy, size);
        reader_get_u8(&reader);
        reader_get_u16(&reader);
        reader_get_u32(&reader);
        assert_true(reader_get_u64(&reader) == (size >= 15 ? 0x08090a0b0c0d0e0f : 0));
        reader_get_string(&reader, text, sizeof(text));
        assert_string_equal(text, size >= 24 ? "ferry" : "");
        reader_get(&reader, bytes, 2);
        assert_memory_equal(bytes, "\0\0", 2);
        assert_true(reader_failed(&reader));
        assert_int_equal(reader_left(&reader), 0);
        /* failed for good */
        assert_null(reader_view(&reader, 0));
        free(copy);
    }
    buffer_free(&buffer);
}

static void strings_too_long_or_with_nul_are_refused(void **state)
{
    struct buffer buffer = BUFFER_INIT;
    struct reader reader;
    char text[6];

    buffer_put_string(&buffer, "sixsix");
    reader = reader_init(buffer.data, buffer.size);
    reader_get_string(&reader, text, sizeof(text));
    assert_true(reader_failed(&reader));
    assert_string_equal(text, "");

    buffer_clear(&buffer);
    buffer_put_u32(&buffer, 3);
    buffer_put(&buffer, "a\0b", 3);
    reader = reader_init(buffer.data, buffer.size);
    reader_get_string(&reader, text, sizeof(text));
    assert_true(reader_failed(&reader));
    assert_string_equal(text, "");

    buffer_clear(&buffer);
    buffer_put_u32(&buffer, UINT32_MAX);
    reader = reader_init(buffer.data, buffer.size);
    reader_get_string(&reader, text, sizeof(text));
    assert_true(reader_failed(&reader));
    buffer_free(&buffer);
}

static void views_stay_inside(void **state)
{
    static const uint8_t data[4] = {1, 2, 3, 4};
    struct reader reader = reader_init(data, 4);

    assert_ptr_equal(reader_view(&reader, 3), data);
    assert_ptr_equal(reader_view(&reader, 0), data + 3);
    assert_ptr_equal(reader_view(&reader, 1), data + 3);
    assert_null(reader_view(&reader, 1));
    reader = reader_init(data, 4);
    reader_view(&reader, 1);
    assert_null(reader_view(&reader, SIZE_MAX));
    reader = reader_init(NULL, 0);
    assert_non_null(reader_view(&reader, 0));
    assert_false(reader_failed(&reader));
    assert_null(reader_view(&reader, 1));
}

static void failed_buffer_ignores_writes_until_cleared(void **state)
{
    struct buffer buffer = BUFFER_INIT;

    buffer_put_u8(&buffer, 1);
    assert_false(buffer_reserve(&buffer, SIZE_MAX));
    assert_true(buffer_failed(&buffer));
    put_all(&buffer);
    buffer_set_u32(&buffer, 0, 1);
    assert_int_equal(buffer.size, 1);
    buffer_clear(&buffer);
    assert_false(buffer_failed(&buffer));
    put_all(&buffer);
    assert_int_equal(buffer.size, ALL_SIZE);
    buffer_free(&buffer);
}

static void grows_and_keeps_its_content(void **state)
{
    struct buffer buffer = BUFFER_INIT;
    struct reader reader;

    for (uint32_t i = 0; i < 100000; i++)
        buffer_put_u32(&buffer, i);
    buffer_put(&buffer, NULL, 0);
    assert_int_equal(buffer.size, 400000);
    buffer_set_u32(&buffer, 399996, 7);
    buffer_set_u32(&buffer, 2, 0xaabbccdd);
    reader = reader_init(buffer.data, buffer.size);
    assert_int_equal(reader_get_u32(&reader), 0xccdd0000);
    assert_int_equal(reader_get_u32(&reader), 0x0000aabb);
    for (uint32_t i = 2; i < 99999; i++)
        assert_int_equal(reader_get_u32(&reader), i);
    assert_int_equal(reader_get_u32(&reader), 7);
    assert_false(reader_failed(&reader));
    buffer_free(&buffer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(integers_are_little_endian),
        cmocka_unit_test(what_was_put_is_got),
        cmocka_unit_test(truncation_at_every_byte_is_seen),
        cmocka_unit_test(strings_too_long_or_with_nul_are_refused),
        cmocka_unit_test(views_stay_inside),
        cmocka_unit_test(failed_buffer_ignores_writes_until_cleared),
        cmocka_unit_test(grows_and_keeps_its_content),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
