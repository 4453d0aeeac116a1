#include "unit.h"

#include "bus/mmio.h"

#include <errno.h>

struct echo {
    uint64_t offset;
    unsigned size;
    uint64_t value;
    int calls;
};

static uint64_t echo_read(void *device, uint64_t offset, unsigned size)
{
    struct echo *echo = device;

    echo->offset = offset;
    echo->size = size;
    echo->calls++;
    return 0x1000 + offset;
}

static void echo_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    echo_read(device, offset, size);
    ((struct echo *)device)->value = value;
}

static const struct mmio_ops echo_ops = {.read = echo_read, .write = echo_write};

static int setup(void **state)
{
    struct mmio_bus *bus;
    struct ferry_error err;

    assert_ok(mmio_bus_new(&bus, &err), err);
    *state = bus;
    return 0;
}

static int teardown(void **state)
{
    mmio_bus_free(*state);
    return 0;
}

static void accesses_reach_their_device(void **state)
{
    struct mmio_bus *bus = *state;
    struct echo a = {0};
    struct echo b = {0};
    struct ferry_error err;
    uint64_t value;

    /* added out of order, and touching */
    assert_ok(mmio_bus_add(bus, "b", 0x2000, 0x100, &echo_ops, &b, &err), err);
    assert_ok(mmio_bus_add(bus, "a", 0x1f00, 0x100, &echo_ops, &a, &err), err);
    assert_true(mmio_bus_read(bus, 0x1ff8, 8, &value));
    assert_int_equal(value, 0x1000 + 0xf8);
    assert_int_equal(a.size, 8);
    assert_true(mmio_bus_write(bus, 0x2000, 1, 0xab));
    assert_int_equal(b.offset, 0);
    assert_int_equal(b.value, 0xab);
    assert_true(mmio_bus_write(bus, 0x20ff, 1, 0xcd));
    assert_int_equal(b.offset, 0xff);
    assert_int_equal(a.calls, 1);
    assert_int_equal(b.calls, 2);
}

static void accesses_not_wholly_inside_one_range_are_refused(void **state)
{
    static const struct {
        uint64_t addr;
        unsigned size;
    } cases[] = {
        {0x0fff, 1}, {0x0ffc, 8}, {0x1100, 1},     {0x10fd, 4},     {0x10f9, 8},         {0, 1},
        {0x10ff, 2}, {0x1200, 8}, {UINT64_MAX, 1}, {UINT64_MAX, 8}, {UINT64_MAX - 7, 8}, {0x11ff, 2},
        {0x1000, 0}, {0x1000, 3}, {0x1000, 5},     {0x1000, 7},     {0x1000, 16},        {0x1000, 0x80000000},
        {0x12ff, 2}, /* into the neighbour */
    };
    struct mmio_bus *bus = *state;
    struct echo echo = {0};
    struct ferry_error err;
    uint64_t value = 77;

    assert_false(mmio_bus_read(bus, 0x1000, 1, &value));
    assert_ok(mmio_bus_add(bus, "a", 0x1000, 0x100, &echo_ops, &echo, &err), err);
    assert_ok(mmio_bus_add(bus, "b", 0x1201, 0xff, &echo_ops, &echo, &err), err);
    assert_ok(mmio_bus_add(bus, "c", 0x1300, 0x10, &echo_ops, &echo, &err), err);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (mmio_bus_read(bus, cases[i].addr, cases[i].size, &value) ||
            mmio_bus_write(bus, cases[i].addr, cases[i].size, 1))
            fail_msg("case %zu", i);
    }
    assert_int_equal(echo.calls, 0);
    assert_int_equal(value, 77);
}

static void range_smaller_than_an_access_is_refused_it(void **state)
{
    struct mmio_bus *bus = *state;
    struct echo echo = {0};
    struct ferry_error err;
    uint64_t value;

    assert_ok(mmio_bus_add(bus, "a", 0x1000, 2, &echo_ops, &echo, &err), err);
    assert_false(mmio_bus_read(bus, 0x1000, 4, &value));
    assert_true(mmio_bus_read(bus, 0x1000, 2, &value));
}

static void top_of_the_address_space_is_usable(void **state)
{
    struct mmio_bus *bus = *state;
    struct echo echo = {0};
    struct ferry_error err;
    uint64_t value;

    assert_ok(mmio_bus_add(bus, "top", UINT64_MAX - 0xff, 0x100, &echo_ops, &echo, &err), err);
    assert_true(mmio_bus_read(bus, UINT64_MAX, 1, &value));
    assert_int_equal(echo.offset, 0xff);
    assert_true(mmio_bus_read(bus, UINT64_MAX - 7, 8, &value));
    assert_false(mmio_bus_read(bus, UINT64_MAX - 6, 8, &value));
    assert_int_equal(mmio_bus_add(bus, "x", UINT64_MAX, 1, &echo_ops, &echo, &err), -EEXIST);
}

static void overlaps_are_refused_naming_both(void **state)
{
    static const struct {
        uint64_t addr;
        uint64_t size;
    } cases[] = {
        {0x1000, 0x100}, {0x1000, 1},    {0x10ff, 1},     {0x0fff, 2},
        {0x0f00, 0x300}, {0x1050, 0x10}, {0, UINT64_MAX}, {0x1001, UINT64_MAX - 0x1001},
    };
    struct mmio_bus *bus = *state;
    struct echo echo = {0};
    struct ferry_error err;

    assert_ok(mmio_bus_add(bus, "uart0", 0x1000, 0x100, &echo_ops, &echo, &err), err);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        err = (struct ferry_error){0};
        assert_int_equal(mmio_bus_add(bus, "rtc0", cases[i].addr, cases[i].size, &echo_ops, &echo, &err),
                         -EEXIST);
        assert_contains(err.text, "rtc0");
        assert_contains(err.text, "uart0");
    }
    assert_ok(mmio_bus_add(bus, "below", 0x0f00, 0x100, &echo_ops, &echo, &err), err);
    assert_ok(mmio_bus_add(bus, "above", 0x1100, 0x100, &echo_ops, &echo, &err), err);
}

static void empty_and_wrapping_ranges_are_refused(void **state)
{
    struct mmio_bus *bus = *state;
    struct ferry_error err = {0};

    assert_int_equal(mmio_bus_add(bus, "a", 0x1000, 0, &echo_ops, NULL, &err), -EINVAL);
    assert_int_equal(mmio_bus_add(bus, "a", 0x1000, UINT64_MAX, &echo_ops, NULL, &err), -EINVAL);
    assert_int_equal(mmio_bus_add(bus, "a", UINT64_MAX, 2, &echo_ops, NULL, &err), -EINVAL);
    assert_contains(err.text, "of a:");
}

static void random_ranges_answer_as_a_naive_list(void **state)
{
    enum { RANGES = 64, SPACE = 4096 };
    struct mmio_bus *bus = *state;
    struct echo echoes[RANGES] = {0};
    int owner[SPACE];
    uint64_t seed = 0x5eed0002;
    struct ferry_error err;

    print_message("seed 0x%llx\n", (unsigned long long)seed);
    memset(owner, 0xff, sizeof(owner));
    for (int i = 0; i < RANGES; i++) {
        uint64_t addr = unit_random(&seed) % (SPACE - 64);
        uint64_t size = 1 + unit_random(&seed) % 64;
        bool unused = true;

        for (uint64_t j = addr; j < addr + size; j++)
            unused = unused && owner[j] < 0;
        assert_int_equal(mmio_bus_add(bus, "r", addr, size, &echo_ops, &echoes[i], &err),
                         unused ? 0 : -EEXIST);
        for (uint64_t j = addr; unused && j < addr + size; j++)
            owner[j] = i;
    }
    for (uint64_t addr = 0; addr < SPACE - 8; addr++) {
        for (unsigned size = 1; size <= 8; size *= 2) {
            bool inside = owner[addr] >= 0;
            int before = inside ? echoes[owner[addr]].calls : 0;
            uint64_t value;

            for (unsigned j = 0; j < size; j++)
                inside = inside && owner[addr + j] == owner[addr];
            assert_int_equal(mmio_bus_read(bus, addr, size, &value), inside);
            if (inside)
                assert_int_equal(echoes[owner[addr]].calls, before + 1);
        }
    }
}

#define MMIO_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        MMIO_TEST(accesses_reach_their_device),
        MMIO_TEST(accesses_not_wholly_inside_one_range_are_refused),
        MMIO_TEST(range_smaller_than_an_access_is_refused_it),
        MMIO_TEST(top_of_the_address_space_is_usable),
        MMIO_TEST(overlaps_are_refused_naming_both),
        MMIO_TEST(empty_and_wrapping_ranges_are_refused),
        MMIO_TEST(random_ranges_answer_as_a_naive_list),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
