/* SMBIOS tables: they are found as a kernel finds them, add up, and say who the machine is. */
#include "unit.h"

#include "machine/x86_64/smbios.h"

#define UUID "1b4e28ba-2fa1-41d2-883f-0016d3cca427"

static int setup(void **state)
{
    struct machine_config config = {.machine = "x86_64"};
    struct buffer *made = calloc(1, sizeof(*made));
    struct ferry_error err;

    assert_true(uuid_parse(UUID, config.uuid));
    assert_ok(smbios_make(&config, made, &err), err);
    *state = made;
    return 0;
}

static int teardown(void **state)
{
    buffer_free(*state);
    free(*state);
    return 0;
}

static uint64_t get(const struct buffer *made, size_t offset, size_t size)
{
    uint64_t value = 0;

    assert_true(offset + size <= made->size);
    memcpy(&value, made->data + offset, size);
    return value;
}

static size_t tables_start(const struct buffer *made)
{
    assert_true(get(made, 16, 8) >= SMBIOS_START + 24);
    return get(made, 16, 8) - SMBIOS_START;
}

/* Past its texts, which an empty one ends. */
static size_t next_table(const struct buffer *made, size_t at)
{
    at += get(made, at + 1, 1);
    while (get(made, at, 2) != 0)
        at++;
    return at + 2;
}

static size_t find_table(const struct buffer *made, uint8_t type)
{
    size_t at = tables_start(made);

    while (get(made, at, 1) != type) {
        assert_int_not_equal(get(made, at, 1), 127);
        at = next_table(made, at);
    }
    return at;
}

static const char *text(const struct buffer *made, size_t table, size_t field)
{
    unsigned number = (unsigned)get(made, table + field, 1);
    const char *found = (const char *)made->data + table + get(made, table + 1, 1);

    assert_true(number > 0);
    while (--number > 0) {
        assert_true(*found);
        found += strlen(found) + 1;
    }
    return found;
}

static void entry_point_adds_up_and_leads_to_the_tables(void **state)
{
    const struct buffer *made = *state;
    uint8_t sum = 0;
    size_t at;

    assert_memory_equal(made->data, "_SM3_", 5);
    assert_int_equal(get(made, 6, 1), 24);
    for (size_t i = 0; i < 24; i++)
        sum = (uint8_t)(sum + made->data[i]);
    assert_int_equal(sum, 0);
    assert_int_equal(get(made, 7, 1), 3);
    assert_int_equal(tables_start(made) % 16, 0);
    assert_int_equal(tables_start(made) + get(made, 12, 4), made->size);
    at = find_table(made, 127);
    assert_int_equal(next_table(made, at), made->size);
    assert_true(made->size <= SMBIOS_END - SMBIOS_START);
}

static void machine_has_the_uuid_of_its_vm(void **state)
{
    const struct buffer *made = *state;
    size_t at = find_table(made, 1);
    static const uint8_t uuid[] = {0xba, 0x28, 0x4e, 0x1b, 0xa1, 0x2f, 0xd2, 0x41,
                                   0x88, 0x3f, 0x00, 0x16, 0xd3, 0xcc, 0xa4, 0x27};

    assert_int_equal(get(made, at + 1, 1), 27);
    assert_string_equal(text(made, at, 4), "Ferry");
    assert_string_equal(text(made, at, 5), "x86_64");
    assert_memory_equal(made->data + at + 8, uuid, sizeof(uuid));
}

static void firmware_says_that_it_is_a_vm(void **state)
{
    const struct buffer *made = *state;
    size_t at = find_table(made, 0);

    assert_int_equal(get(made, at + 1, 1), 26);
    assert_string_equal(text(made, at, 4), "Ferry");
    assert_true(get(made, at + 0x13, 1) & 0x10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(entry_point_adds_up_and_leads_to_the_tables, setup, teardown),
        cmocka_unit_test_setup_teardown(machine_has_the_uuid_of_its_vm, setup, teardown),
        cmocka_unit_test_setup_teardown(firmware_says_that_it_is_a_vm, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
