#include "unit.h"

#include "base/clock.h"

#include <limits.h>
#include <time.h>

static void deadline_in_the_past_leaves_nothing(void **state)
{
    assert_int_equal(clock_left_ms(0), 0);
    assert_int_equal(clock_left_ms(clock_now_ns()), 0);
    assert_int_equal(clock_left_ms(clock_deadline(0)), 0);
}

static void negative_timeout_is_never(void **state)
{
    assert_true(clock_deadline(-1) == UINT64_MAX);
    assert_true(clock_deadline(INT64_MIN) == UINT64_MAX);
    assert_int_equal(clock_left_ms(UINT64_MAX), -1);
}

static void huge_timeouts_do_not_wrap(void **state)
{
    assert_true(clock_deadline(INT64_MAX) == UINT64_MAX);
    assert_int_equal(clock_left_ms(UINT64_MAX - 1), INT_MAX);
    assert_in_range(clock_left_ms(clock_deadline(INT_MAX)), INT_MAX - 60000, INT_MAX);
}

static void what_is_left_is_rounded_up(void **state)
{
    /* A nanosecond short of an hour from now: rounding down could never show the full hour. */
    uint64_t before = clock_now_ns();
    int left = clock_left_ms(before + 3600 * NS_PER_S - 1);

    assert_true(left >= 1);
    assert_true(left <= 3600 * 1000);
    assert_int_not_equal(clock_left_ms(clock_now_ns() + NS_PER_S), 0);
}

static void format_shows_local_time_with_zone(void **state)
{
    char text[CLOCK_TEXT_SIZE];

    setenv("TZ", "XXX-1", 1);
    tzset();
    assert_string_equal(clock_format(UINT64_C(1795228296123) * NS_PER_MS, text),
                        "2026-11-21T03:31:36.123+01:00");
    setenv("TZ", "XXX+3:30", 1);
    tzset();
    assert_string_equal(clock_format(0, text), "1969-12-31T20:30:00.000-03:30");
    setenv("TZ", "UTC", 1);
    tzset();
    assert_string_equal(clock_format(999999, text), "1970-01-01T00:00:00.000+00:00");
    clock_format(UINT64_MAX, text);
    assert_true(strlen(text) < CLOCK_TEXT_SIZE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(deadline_in_the_past_leaves_nothing), cmocka_unit_test(negative_timeout_is_never),
        cmocka_unit_test(huge_timeouts_do_not_wrap),           cmocka_unit_test(what_is_left_is_rounded_up),
        cmocka_unit_test(format_shows_local_time_with_zone),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
