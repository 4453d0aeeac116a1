#include "unit.h"

#include "base/uuid.h"

#define TEXT "1b4e28ba-2fa1-41d2-883f-0016d3cca427"

static const uint8_t bytes[UUID_SIZE] = {0x1b, 0x4e, 0x28, 0xba, 0x2f, 0xa1, 0x41, 0xd2,
                                         0x88, 0x3f, 0x00, 0x16, 0xd3, 0xcc, 0xa4, 0x27};

static void text_and_bytes_are_the_same(void **state)
{
    char text[UUID_TEXT_SIZE];
    uint8_t uuid[UUID_SIZE];

    assert_string_equal(uuid_format(bytes, text), TEXT);
    assert_true(uuid_parse(TEXT, uuid));
    assert_memory_equal(uuid, bytes, UUID_SIZE);
    assert_true(uuid_parse("1B4E28BA-2FA1-41D2-883F-0016D3CCA427", uuid));
    assert_memory_equal(uuid, bytes, UUID_SIZE);
}

static void what_is_no_uuid_is_refused(void **state)
{
    static const char *const texts[] = {"",
                                        "1b4e28ba-2fa1-41d2-883f-0016d3cca42",
                                        "1b4e28ba-2fa1-41d2-883f-0016d3cca4277",
                                        "1b4e28ba2fa1-41d2-883f-0016d3cca427-",
                                        "1b4e28ba-2fa1-41d2-883f_0016d3cca427",
                                        "1b4e28bg-2fa1-41d2-883f-0016d3cca427",
                                        " b4e28ba-2fa1-41d2-883f-0016d3cca427"};
    uint8_t uuid[UUID_SIZE];

    memcpy(uuid, bytes, UUID_SIZE);
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        assert_false(uuid_parse(texts[i], uuid));
        assert_memory_equal(uuid, bytes, UUID_SIZE);
    }
}

static void made_ones_are_random_and_say_so(void **state)
{
    struct ferry_error err;
    uint8_t a[UUID_SIZE], b[UUID_SIZE];

    assert_ok(uuid_make(a, &err), err);
    assert_ok(uuid_make(b, &err), err);
    assert_memory_not_equal(a, b, UUID_SIZE);
    assert_int_equal(a[6] >> 4, 4);
    assert_int_equal(a[8] >> 6, 2);
    assert_true(uuid_is_set(a));
}

static void nobodys_are_known(void **state)
{
    uint8_t uuid[UUID_SIZE];

    memset(uuid, 0, UUID_SIZE);
    assert_false(uuid_is_set(uuid));
    uuid[15] = 1;
    assert_true(uuid_is_set(uuid));
    memset(uuid, 0xff, UUID_SIZE);
    assert_false(uuid_is_set(uuid));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_and_bytes_are_the_same),
        cmocka_unit_test(what_is_no_uuid_is_refused),
        cmocka_unit_test(made_ones_are_random_and_say_so),
        cmocka_unit_test(nobodys_are_known),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
