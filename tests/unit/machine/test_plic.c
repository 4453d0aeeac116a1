/* The interrupt controller, through its registers. */
#include "unit.h"

#include "machine/riscv64/plic.h"

#define PRIORITY(source)   (RISCV64_PLIC_BASE + 4 * (source))
#define PENDING            (RISCV64_PLIC_BASE + 0x1000)
#define ENABLE(context)    (RISCV64_PLIC_BASE + 0x2000 + 0x80 * (context))
#define THRESHOLD(context) (RISCV64_PLIC_BASE + 0x200000 + 0x1000 * (context))
#define CLAIM(context)     (THRESHOLD(context) + 4)

struct fixture {
    struct plic plic;
    struct mmio_bus *bus;
    bool output[2];
};

static void notify(void *opaque, unsigned context, bool level)
{
    struct fixture *f = opaque;

    f->output[context] = level;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct ferry_error err = {0};

    assert_ok(mmio_bus_new(&f->bus, &err), err);
    assert_ok(plic_init(&f->plic, 2, f->bus, notify, f, &err), err);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    plic_destroy(&f->plic);
    mmio_bus_free(f->bus);
    free(f);
    return 0;
}

static uint32_t read_register(struct fixture *f, uint64_t addr)
{
    uint64_t value;

    assert_true(mmio_bus_read(f->bus, addr, 4, &value));
    return (uint32_t)value;
}

static void write_register(struct fixture *f, uint64_t addr, uint32_t value)
{
    assert_true(mmio_bus_write(f->bus, addr, 4, value));
}

static void a_source_needs_priority_and_enable(void **state)
{
    struct fixture *f = *state;

    plic_set(&f->plic, 5, true);
    assert_false(f->output[0]);
    assert_int_equal(read_register(f, PENDING), 1 << 5);
    write_register(f, ENABLE(0), 1 << 5);
    assert_false(f->output[0]);
    write_register(f, PRIORITY(5), 1);
    assert_true(f->output[0]);
    assert_false(f->output[1]);
    write_register(f, THRESHOLD(0), 1);
    assert_false(f->output[0]);
}

static void the_highest_priority_then_the_lowest_number_is_claimed(void **state)
{
    struct fixture *f = *state;

    write_register(f, ENABLE(0), 0xffffffff);
    write_register(f, ENABLE(0) + 4, 0xffffffff);
    assert_int_equal(read_register(f, ENABLE(0)), 0xfffffffe); /* there is no source 0 */
    for (unsigned i = 1; i <= RISCV64_PLIC_SOURCES; i++)
        write_register(f, PRIORITY(i), i == 40 ? 3 : 2);
    plic_set(&f->plic, 7, true);
    plic_set(&f->plic, 3, true);
    plic_set(&f->plic, 40, true);
    assert_int_equal(read_register(f, CLAIM(0)), 40);
    assert_int_equal(read_register(f, CLAIM(0)), 3);
    assert_int_equal(read_register(f, CLAIM(0)), 7);
    assert_int_equal(read_register(f, CLAIM(0)), 0);
    assert_false(f->output[0]);
}

static void a_level_that_stays_is_pending_again_after_completion(void **state)
{
    struct fixture *f = *state;

    write_register(f, ENABLE(0), 1 << 2);
    write_register(f, PRIORITY(2), 7);
    plic_set(&f->plic, 2, true);
    assert_int_equal(read_register(f, CLAIM(0)), 2);
    assert_false(f->output[0]);
    write_register(f, CLAIM(0), 2);
    assert_true(f->output[0]);
    assert_int_equal(read_register(f, CLAIM(0)), 2);
    plic_set(&f->plic, 2, false);
    write_register(f, CLAIM(0), 2);
    assert_false(f->output[0]);
    assert_int_equal(read_register(f, CLAIM(0)), 0);
}

static void completing_what_is_not_enabled_or_not_there_does_nothing(void **state)
{
    struct fixture *f = *state;

    write_register(f, ENABLE(0), 1 << 2);
    write_register(f, PRIORITY(2), 7);
    plic_set(&f->plic, 2, true);
    assert_int_equal(read_register(f, CLAIM(0)), 2);
    write_register(f, CLAIM(1), 2);
    write_register(f, CLAIM(0), 0xffffffff);
    write_register(f, CLAIM(0), 0);
    assert_false(f->output[0]);
    write_register(f, CLAIM(0), 2);
    assert_true(f->output[0]);
}

static void registers_beyond_the_contexts_read_as_zero(void **state)
{
    struct fixture *f = *state;
    uint64_t value;

    for (uint64_t at = 0; at < RISCV64_PLIC_SIZE; at += 0x7c) {
        write_register(f, RISCV64_PLIC_BASE + at, 0xffffffff);
        (void)read_register(f, RISCV64_PLIC_BASE + at);
    }
    assert_int_equal(read_register(f, ENABLE(2)), 0);
    assert_int_equal(read_register(f, THRESHOLD(2)), 0);
    assert_true(mmio_bus_read(f->bus, RISCV64_PLIC_BASE, 8, &value));
    assert_int_equal(value, 0);
    plic_set(&f->plic, 0, true);
    plic_set(&f->plic, RISCV64_PLIC_SOURCES + 1, true);
    assert_int_equal(read_register(f, PENDING) & 1, 0);
}

static void state_survives_a_round_trip_and_restores_outputs(void **state)
{
    struct fixture *f = *state;
    struct buffer saved = BUFFER_INIT;
    struct ferry_error err = {0};
    struct reader in;

    write_register(f, ENABLE(1), 1 << 9);
    write_register(f, PRIORITY(9), 4);
    plic_set(&f->plic, 9, true);
    state_save(&plic_state, &f->plic, &saved);
    plic_reset(&f->plic);
    plic_set(&f->plic, 9, false);
    assert_false(f->output[1]);
    in = reader_init(saved.data, saved.size);
    assert_ok(state_load(&plic_state, "plic", 1, &f->plic, &in, &err), err);
    plic_refresh(&f->plic);
    assert_true(f->output[1]);
    assert_int_equal(read_register(f, CLAIM(1)), 9);
    buffer_free(&saved);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_source_needs_priority_and_enable, setup, teardown),
        cmocka_unit_test_setup_teardown(the_highest_priority_then_the_lowest_number_is_claimed, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_level_that_stays_is_pending_again_after_completion, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(completing_what_is_not_enabled_or_not_there_does_nothing, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(registers_beyond_the_contexts_read_as_zero, setup, teardown),
        cmocka_unit_test_setup_teardown(state_survives_a_round_trip_and_restores_outputs, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
