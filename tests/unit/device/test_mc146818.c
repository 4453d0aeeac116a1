/* The PC's real-time clock: what a driver reads, sets and waits for, and what of it moves. */
#include "guest.h"

#include "base/clock.h"
#include "device/mc146818.h"

#include <time.h>

enum {
    SECONDS = 0,
    SECONDS_ALARM = 1,
    MINUTES = 2,
    MINUTES_ALARM = 3,
    HOURS = 4,
    HOURS_ALARM = 5,
    WEEKDAY = 6,
    DAY = 7,
    MONTH = 8,
    YEAR = 9,
    A = 10,
    B = 11,
    C = 12,
    D = 13,
    CENTURY = MC146818_CENTURY,
};

#define A_UPDATE   0x80
#define B_SET      0x80
#define B_ALARM    0x20
#define B_UPDATE   0x10
#define B_BINARY   0x04
#define B_24_HOURS 0x02
#define ANY        0xff

struct setup {
    struct guest *guest;
    struct driver driver; /* for its address and line */
    struct device *rtc;
};

static struct device *create(struct guest *guest, struct driver *driver)
{
    struct device_env env = guest_env(guest, driver);
    struct ferry_error err = {0};
    struct device *rtc;

    assert_ok(mc146818_create(&rtc, &env, 0, &err), err);
    return rtc;
}

static int setup(void **state)
{
    struct setup *test = calloc(1, sizeof(*test));

    test->guest = guest_new();
    test->rtc = create(test->guest, &test->driver);
    device_start(test->rtc);
    *state = test;
    return 0;
}

static int teardown(void **state)
{
    struct setup *test = *state;

    device_stop_and_destroy(test->rtc);
    guest_free(test->guest);
    free(test);
    return 0;
}

static uint8_t get(struct driver *driver, uint8_t index)
{
    uint64_t value = 0;

    assert_true(mmio_bus_write(driver->guest->bus, driver->mmio, 1, index));
    assert_true(mmio_bus_read(driver->guest->bus, driver->mmio + 1, 1, &value));
    return (uint8_t)value;
}

static void put(struct driver *driver, uint8_t index, uint8_t value)
{
    assert_true(mmio_bus_write(driver->guest->bus, driver->mmio, 1, index));
    assert_true(mmio_bus_write(driver->guest->bus, driver->mmio + 1, 1, value));
}

static int from_bcd(uint8_t value)
{
    return (value >> 4) * 10 + (value & 0xf);
}

static int same(uint8_t value)
{
    return value;
}

/* Between two updates, as Linux does it: again when one was near or came meanwhile. */
static time_t read_time(struct driver *driver, int (*decode)(uint8_t value))
{
    for (;;) {
        uint8_t second = get(driver, SECONDS);
        struct tm tm = {.tm_sec = decode(second),
                        .tm_min = decode(get(driver, MINUTES)),
                        .tm_hour = decode(get(driver, HOURS)),
                        .tm_mday = decode(get(driver, DAY)),
                        .tm_mon = decode(get(driver, MONTH)) - 1,
                        .tm_year = decode(get(driver, CENTURY)) * 100 + decode(get(driver, YEAR)) - 1900};

        if (get(driver, SECONDS) == second && !(get(driver, A) & A_UPDATE))
            return timegm(&tm);
    }
}

/* 1999-12-31 23:59:58, in BCD. */
#define SET_TIME 946684798
static void set_time(struct driver *driver)
{
    static const uint8_t values[][2] = {{SECONDS, 0x58}, {MINUTES, 0x59}, {HOURS, 0x23},  {DAY, 0x31},
                                        {MONTH, 0x12},   {YEAR, 0x99},    {CENTURY, 0x19}};

    put(driver, B, B_SET | B_24_HOURS);
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++)
        put(driver, values[i][0], values[i][1]);
    put(driver, B, B_24_HOURS);
}

static bool line_is_high(void *opaque)
{
    struct driver *driver = opaque;

    return driver->guest->level[driver->line];
}

static void it_shows_the_hosts_time(void **state)
{
    struct setup *test = *state;
    struct tm tm;
    time_t before, shown, after;

    for (uint8_t format = 0; format <= B_BINARY; format += B_BINARY) {
        put(&test->driver, B, B_24_HOURS | format);
        before = time(NULL);
        shown = read_time(&test->driver, format ? same : from_bcd);
        after = time(NULL) + 1; /* time() is of the last tick */
        assert_in_range(shown, before, after);
    }
    shown = read_time(&test->driver, same);
    gmtime_r(&shown, &tm);
    assert_int_equal(get(&test->driver, D), 0x80);
    assert_in_range(get(&test->driver, WEEKDAY), tm.tm_wday + 1, tm.tm_wday + 2);
}

static void twelve_hours_have_a_bit_for_the_afternoon(void **state)
{
    static const struct {
        uint8_t hours24, hours12;
    } cases[] = {{0x00, 0x12}, {0x01, 0x01}, {0x11, 0x11}, {0x12, 0x92}, {0x23, 0x91}};
    struct setup *test = *state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        set_time(&test->driver);
        put(&test->driver, B, B_SET | B_24_HOURS);
        put(&test->driver, MINUTES, 0);
        put(&test->driver, SECONDS, 0);
        put(&test->driver, HOURS, cases[i].hours24);
        put(&test->driver, B, B_24_HOURS);
        put(&test->driver, B, 0);
        assert_int_equal(get(&test->driver, HOURS), cases[i].hours12);
        put(&test->driver, B, B_SET);
        put(&test->driver, HOURS, cases[i].hours12);
        put(&test->driver, B, 0);
        put(&test->driver, B, B_24_HOURS);
        assert_int_equal(get(&test->driver, HOURS), cases[i].hours24);
    }
}

static void a_set_time_stands_until_it_is_let_go_and_moves(void **state)
{
    struct setup *test = *state;
    struct guest *guest = guest_new();
    struct driver driver;
    struct device *rtc = create(guest, &driver);

    set_time(&test->driver);
    assert_in_range(read_time(&test->driver, from_bcd), SET_TIME, SET_TIME + 3600);
    put(&test->driver, 0x40, 0x5a); /* memory */
    device_quiesce(test->rtc);
    device_move(test->rtc, rtc);
    assert_in_range(read_time(&driver, from_bcd), SET_TIME, SET_TIME + 3600);
    assert_int_equal(get(&driver, 0x40), 0x5a);
    rtc->ops->destroy(rtc);
    guest_free(guest);
}

static void alarm_of_every_second_interrupts_until_it_is_read(void **state)
{
    struct setup *test = *state;

    for (uint8_t index = SECONDS_ALARM; index <= HOURS_ALARM; index += 2)
        put(&test->driver, index, ANY);
    get(&test->driver, C);
    put(&test->driver, B, B_24_HOURS | B_ALARM);
    for (unsigned times = 0; times < 2; times++) {
        guest_wait(test->guest, line_is_high, &test->driver);
        assert_int_equal(get(&test->driver, C) & 0xa0, 0xa0);
        assert_false(guest_level(test->guest, test->driver.line));
    }
    put(&test->driver, B, B_24_HOURS);
}

/* Two seconds before midnight the alarm for midnight is not due; then it is, once. */
static void alarm_of_one_time_comes_then(void **state)
{
    struct setup *test = *state;

    for (uint8_t index = SECONDS_ALARM; index <= HOURS_ALARM; index += 2)
        put(&test->driver, index, 0);
    set_time(&test->driver);
    get(&test->driver, C);
    put(&test->driver, B, B_24_HOURS | B_ALARM);
    guest_wait(test->guest, line_is_high, &test->driver);
    assert_in_range(read_time(&test->driver, from_bcd), SET_TIME + 2, SET_TIME + 3600);
}

static void update_that_came_on_the_way_interrupts_on_arrival(void **state)
{
    struct setup *test = *state;
    struct guest *guest = guest_new();
    struct driver driver;
    struct device *rtc = create(guest, &driver);

    device_quiesce(test->rtc);
    put(&test->driver, B, B_24_HOURS | B_UPDATE);
    device_move(test->rtc, rtc);
    device_start(rtc);
    guest_wait(guest, line_is_high, &driver);
    device_stop_and_destroy(rtc);
    guest_free(guest);
}

static void what_is_no_date_does_no_harm(void **state)
{
    struct setup *test = *state;

    for (unsigned value = 0; value < 256; value++) {
        put(&test->driver, B, (uint8_t)(B_SET | value));
        for (uint8_t index = 0; index < 64; index++)
            if (index != A && index != B)
                put(&test->driver, index, (uint8_t)value);
        put(&test->driver, B, value & (uint8_t)~B_SET);
        for (unsigned index = 0; index < 128; index++)
            get(&test->driver, (uint8_t)index);
    }
    set_time(&test->driver);
    assert_in_range(read_time(&test->driver, from_bcd), SET_TIME, SET_TIME + 3600);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(it_shows_the_hosts_time),
        CASE(twelve_hours_have_a_bit_for_the_afternoon),
        CASE(a_set_time_stands_until_it_is_let_go_and_moves),
        CASE(alarm_of_every_second_interrupts_until_it_is_read),
        CASE(alarm_of_one_time_comes_then),
        CASE(update_that_came_on_the_way_interrupts_on_arrival),
        CASE(what_is_no_date_does_no_harm),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
