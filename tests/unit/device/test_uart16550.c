#include "guest.h"

#include "base/clock.h"
#include "device/uart16550.h"

#include <errno.h>

enum { DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR, FCR = IIR };

struct setup {
    struct guest *guest;
    struct driver driver; /* for its address and line */
    struct device *uart;
    char output[4096];
    size_t output_size;
    unsigned ready;
};

static void on_output(void *opaque, const void *data, size_t size)
{
    struct setup *test = opaque;

    memcpy(test->output + test->output_size, data, size);
    test->output_size += size;
}

static void on_ready(void *opaque)
{
    ((struct setup *)opaque)->ready++;
}

static struct device *create(struct setup *test, struct guest *guest, struct driver *driver)
{
    struct device_env env = guest_env(guest, driver);
    struct uart16550_options options = {.opaque = test, .output = on_output, .input_ready = on_ready};
    struct ferry_error err = {0};
    struct device *uart;

    assert_ok(uart16550_create(&uart, &env, 0, &options, &err), err);
    return uart;
}

static int setup(void **state)
{
    struct setup *test = calloc(1, sizeof(*test));

    test->guest = guest_new();
    test->uart = create(test, test->guest, &test->driver);
    device_start(test->uart);
    *state = test;
    return 0;
}

static int teardown(void **state)
{
    struct setup *test = *state;

    device_stop_and_destroy(test->uart);
    guest_free(test->guest);
    free(test);
    return 0;
}

static uint8_t get(struct setup *test, unsigned reg)
{
    uint64_t value;

    assert_true(mmio_bus_read(test->guest->bus, test->driver.mmio + reg, 1, &value));
    assert_true(value <= 0xff);
    return (uint8_t)value;
}

static void put(struct setup *test, unsigned reg, uint8_t value)
{
    assert_true(mmio_bus_write(test->guest->bus, test->driver.mmio + reg, 1, value));
}

static bool line(struct setup *test)
{
    return guest_level(test->guest, test->driver.line);
}

static void registers_have_their_reset_values(void **state)
{
    struct setup *test = *state;

    assert_int_equal(get(test, IER), 0);
    assert_int_equal(get(test, IIR), 1);
    assert_int_equal(get(test, LCR), 0);
    assert_int_equal(get(test, MCR), 0);
    assert_int_equal(get(test, LSR), 0x60);
    assert_int_equal(get(test, MSR), 0xb0);
    assert_int_equal(get(test, 100), 0);
    put(test, SCR, 0x5a);
    assert_int_equal(get(test, SCR), 0x5a);
}

static void output_leaves_at_once(void **state)
{
    struct setup *test = *state;

    for (unsigned i = 0; i < 5; i++)
        put(test, DATA, (uint8_t) "hello"[i]);
    assert_int_equal(test->output_size, 5);
    assert_memory_equal(test->output, "hello", 5);
    assert_int_equal(get(test, LSR), 0x60);
}

static void the_divisor_latch_hides_data_and_ier(void **state)
{
    struct setup *test = *state;

    put(test, IER, 0x05);
    put(test, LCR, 0x83);
    put(test, DATA, 0x34);
    put(test, IER, 0x12);
    assert_int_equal(get(test, DATA), 0x34);
    assert_int_equal(get(test, IER), 0x12);
    put(test, LCR, 0x03);
    assert_int_equal(get(test, IER), 0x05);
    assert_int_equal(test->output_size, 0);
}

static void transmit_empty_interrupts_once_when_asked_for(void **state)
{
    struct setup *test = *state;

    put(test, IER, 2);
    assert_true(line(test));
    assert_int_equal(get(test, IIR), 0x02);
    assert_false(line(test)); /* reading it was the answer */
    assert_int_equal(get(test, IIR), 0x01);
    put(test, DATA, 'x');
    assert_true(line(test));
    put(test, IER, 0);
    assert_false(line(test));
}

static void input_interrupts_by_trigger_level(void **state)
{
    struct setup *test = *state;

    put(test, FCR, 0x41); /* trigger at 4 */
    put(test, IER, 1);
    assert_int_equal(get(test, IIR), 0xc1);
    assert_int_equal(uart16550_input(test->uart, "abc", 3), 3);
    assert_true(line(test));
    assert_int_equal(get(test, IIR), 0xcc); /* fewer than the level: time-out */
    assert_int_equal(uart16550_input(test->uart, "d", 1), 1);
    assert_int_equal(get(test, IIR), 0xc4);
    assert_int_equal(get(test, LSR), 0x61);
    for (unsigned i = 0; i < 4; i++) {
        assert_true(line(test));
        assert_int_equal(get(test, DATA), 'a' + i);
    }
    assert_false(line(test));
    assert_int_equal(get(test, LSR), 0x60);
    assert_int_equal(get(test, DATA), 0);
}

static void input_pushes_back_and_loses_nothing(void **state)
{
    struct setup *test = *state;
    uint8_t text[5000];
    size_t taken;

    for (unsigned i = 0; i < sizeof(text); i++)
        text[i] = (uint8_t)(i % 253);
    put(test, FCR, 1);
    taken = uart16550_input(test->uart, text, sizeof(text));
    assert_true(taken < sizeof(text));
    for (unsigned i = 0; i < sizeof(text); i++) {
        unsigned ready = test->ready;

        assert_int_equal(get(test, LSR) & 1, 1);
        assert_int_equal(get(test, DATA), text[i]);
        if (test->ready != ready)
            taken += uart16550_input(test->uart, text + taken, sizeof(text) - taken);
    }
    assert_int_equal(taken, sizeof(text));
    assert_int_equal(get(test, LSR) & 1, 0);
}

static void without_fifo_one_byte_is_seen_at_a_time(void **state)
{
    struct setup *test = *state;

    put(test, IER, 1);
    assert_int_equal(uart16550_input(test->uart, "ab", 2), 2);
    assert_int_equal(get(test, IIR), 0x04);
    assert_int_equal(get(test, DATA), 'a');
    assert_int_equal(get(test, DATA), 'b');
    assert_int_equal(get(test, IIR), 0x01);
}

static void loopback_returns_data_and_modem_lines(void **state)
{
    struct setup *test = *state;

    put(test, FCR, 1);
    put(test, MCR, 0x1a); /* the probe of Linux's driver: RTS and OUT2 in loopback */
    assert_int_equal(get(test, MSR) & 0xf0, 0x90);
    put(test, DATA, 'L');
    assert_int_equal(test->output_size, 0);
    assert_int_equal(uart16550_input(test->uart, "outside", 7), 7);
    assert_int_equal(get(test, DATA), 'L');
    assert_int_equal(get(test, LSR) & 1, 0);
    for (unsigned i = 0; i < 17; i++)
        put(test, DATA, 'x');
    assert_int_equal(get(test, LSR), 0x63); /* overrun */
    assert_int_equal(get(test, LSR), 0x61); /* told once */
    put(test, FCR, 3);
    put(test, MCR, 0);
    assert_int_equal(get(test, DATA), 'o'); /* the outside again */
}

static void modem_changes_and_overruns_interrupt(void **state)
{
    struct setup *test = *state;

    put(test, FCR, 1);
    put(test, IER, 0x0c);
    assert_false(line(test));
    put(test, MCR, 0x10); /* loopback with all lines low: CTS, DSR and DCD change */
    assert_true(line(test));
    assert_int_equal(get(test, IIR), 0xc0);
    assert_int_equal(get(test, MSR), 0x0b);
    assert_false(line(test));
    put(test, MCR, 0x14); /* RI rises: no event */
    assert_false(line(test));
    put(test, MCR, 0x10); /* RI falls: one */
    assert_int_equal(get(test, MSR), 0x04);
    for (unsigned i = 0; i < 17; i++)
        put(test, DATA, 'x');
    assert_true(line(test));
    assert_int_equal(get(test, IIR), 0xc6);
    assert_int_equal(get(test, LSR) & 2, 2);
    assert_false(line(test));
}

static void everything_moves(void **state)
{
    struct setup *test = *state;
    struct setup moved = {.guest = guest_new()};
    char text[100];

    put(test, FCR, 0xc1);
    put(test, LCR, 3);
    put(test, SCR, 77);
    put(test, IER, 3);
    memset(text, 'q', sizeof(text));
    assert_int_equal(uart16550_input(test->uart, text, sizeof(text)), sizeof(text));
    assert_int_equal(get(test, DATA), 'q');
    device_quiesce(test->uart);
    moved.uart = create(&moved, moved.guest, &moved.driver);
    device_move(test->uart, moved.uart);
    assert_int_equal(uart16550_input(moved.uart, "r", 1), 1);
    assert_int_equal(moved.guest->raised[moved.driver.line], 0); /* not before start */
    device_start(moved.uart);
    assert_true(line(&moved));
    assert_int_equal(get(&moved, SCR), 77);
    assert_int_equal(get(&moved, IIR), 0xc4);
    for (unsigned i = 0; i < 99; i++)
        assert_int_equal(get(&moved, DATA), 'q');
    assert_int_equal(get(&moved, DATA), 'r');
    assert_int_equal(get(&moved, LSR) & 1, 0);
    device_stop_and_destroy(moved.uart);
    guest_free(moved.guest);
}

static void bad_state_is_refused_by_name(void **state)
{
    struct setup *test = *state;
    struct buffer section = BUFFER_INIT;
    struct ferry_error err = {0};
    struct reader reader;

    device_quiesce(test->uart);
    test->uart->ops->save(test->uart, &section);
    section.data[0] = 0xff;
    reader = reader_init(section.data, section.size);
    assert_int_equal(test->uart->ops->load(test->uart, 1, &reader, &err), -EINVAL);
    assert_contains(err.text, "uart0");
    assert_contains(err.text, "ier");
    buffer_free(&section);
}

static void a_reset_clears_it(void **state)
{
    struct setup *test = *state;

    put(test, SCR, 1);
    put(test, IER, 2);
    assert_true(line(test));
    device_quiesce(test->uart);
    test->uart->ops->reset(test->uart);
    device_start(test->uart);
    assert_false(line(test));
    registers_have_their_reset_values(state);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(registers_have_their_reset_values),
        CASE(output_leaves_at_once),
        CASE(the_divisor_latch_hides_data_and_ier),
        CASE(transmit_empty_interrupts_once_when_asked_for),
        CASE(input_interrupts_by_trigger_level),
        CASE(input_pushes_back_and_loses_nothing),
        CASE(without_fifo_one_byte_is_seen_at_a_time),
        CASE(loopback_returns_data_and_modem_lines),
        CASE(modem_changes_and_overruns_interrupt),
        CASE(everything_moves),
        CASE(bad_state_is_refused_by_name),
        CASE(a_reset_clears_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
