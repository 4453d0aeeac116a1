#include "guest.h"

#include "base/clock.h"
#include "device/goldfish_rtc.h"

#include <errno.h>

enum {
    TIME_LOW = 0x00,
    TIME_HIGH = 0x04,
    ALARM_LOW = 0x08,
    ALARM_HIGH = 0x0c,
    IRQ_ENABLED = 0x10,
    CLEAR_ALARM = 0x14,
    ALARM_STATUS = 0x18,
    CLEAR_INTERRUPT = 0x1c,
};

#define HOUR_NS (3600 * NS_PER_S)

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

    assert_ok(goldfish_rtc_create(&rtc, &env, 0, &err), err);
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

static uint64_t read_time(struct driver *driver)
{
    uint64_t low = driver_read(driver, TIME_LOW);

    return low | (uint64_t)driver_read(driver, TIME_HIGH) << 32;
}

static void write_time(struct driver *driver, uint64_t time)
{
    driver_write(driver, TIME_HIGH, (uint32_t)(time >> 32));
    driver_write(driver, TIME_LOW, (uint32_t)time);
}

static void write_alarm(struct driver *driver, uint64_t time)
{
    driver_write(driver, ALARM_HIGH, (uint32_t)(time >> 32));
    driver_write(driver, ALARM_LOW, (uint32_t)time);
}

static bool line_is_high(void *opaque)
{
    struct driver *driver = opaque;

    return driver->guest->level[driver->line];
}

static void it_shows_the_hosts_time(void **state)
{
    struct setup *test = *state;
    uint64_t before = clock_realtime_ns();
    uint64_t shown = read_time(&test->driver);

    assert_true(shown >= before);
    assert_true(shown <= clock_realtime_ns());
}

static void it_can_be_set(void **state)
{
    struct setup *test = *state;
    uint64_t time = UINT64_C(1000000000) * NS_PER_S;
    uint64_t shown;

    write_time(&test->driver, time);
    shown = read_time(&test->driver);
    assert_true(shown >= time && shown < time + HOUR_NS);
}

static void a_set_time_moves(void **state)
{
    struct setup *test = *state;
    struct guest *guest = guest_new();
    struct driver driver;
    struct device *rtc = create(guest, &driver);
    uint64_t time = UINT64_C(1000000000) * NS_PER_S;
    uint64_t shown;

    write_time(&test->driver, time);
    device_quiesce(test->rtc);
    device_move(test->rtc, rtc);
    shown = read_time(&driver);
    assert_true(shown >= time && shown < time + HOUR_NS);
    rtc->ops->destroy(rtc);
    guest_free(guest);
}

static void an_alarm_in_the_past_fires_at_once(void **state)
{
    struct setup *test = *state;

    driver_write(&test->driver, IRQ_ENABLED, 1);
    write_alarm(&test->driver, 1);
    guest_wait(test->guest, line_is_high, &test->driver);
    assert_int_equal(driver_read(&test->driver, ALARM_STATUS), 0);
    driver_write(&test->driver, CLEAR_INTERRUPT, 1);
    assert_false(guest_level(test->guest, test->driver.line));
}

static void an_alarm_in_the_future_fires_then(void **state)
{
    struct setup *test = *state;
    uint64_t due = read_time(&test->driver) + 20 * NS_PER_MS;

    driver_write(&test->driver, IRQ_ENABLED, 1);
    write_alarm(&test->driver, due);
    guest_wait(test->guest, line_is_high, &test->driver);
    assert_true(read_time(&test->driver) >= due);
}

static void alarms_can_be_taken_back_and_masked(void **state)
{
    struct setup *test = *state;

    driver_write(&test->driver, IRQ_ENABLED, 1);
    write_alarm(&test->driver, read_time(&test->driver) + HOUR_NS);
    assert_int_equal(driver_read(&test->driver, ALARM_STATUS), 1);
    driver_write(&test->driver, CLEAR_ALARM, 1);
    assert_int_equal(driver_read(&test->driver, ALARM_STATUS), 0);
    write_alarm(&test->driver, 1);
    guest_wait(test->guest, line_is_high, &test->driver);
    driver_write(&test->driver, IRQ_ENABLED, 0);
    assert_false(guest_level(test->guest, test->driver.line));
    driver_write(&test->driver, IRQ_ENABLED, 1);
    assert_true(guest_level(test->guest, test->driver.line));
}

static void an_alarm_that_came_due_on_the_way_fires_on_arrival(void **state)
{
    struct setup *test = *state;
    struct guest *guest = guest_new();
    struct driver driver;
    struct device *rtc = create(guest, &driver);

    driver_write(&test->driver, IRQ_ENABLED, 1);
    device_quiesce(test->rtc);
    write_alarm(&test->driver, 1); /* quiesced: stays pending */
    assert_false(guest_level(test->guest, test->driver.line));
    device_move(test->rtc, rtc);
    device_start(rtc);
    guest_wait(guest, line_is_high, &driver);
    device_stop_and_destroy(rtc);
    guest_free(guest);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(it_shows_the_hosts_time),
        CASE(it_can_be_set),
        CASE(a_set_time_moves),
        CASE(an_alarm_in_the_past_fires_at_once),
        CASE(an_alarm_in_the_future_fires_then),
        CASE(alarms_can_be_taken_back_and_masked),
        CASE(an_alarm_that_came_due_on_the_way_fires_on_arrival),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
