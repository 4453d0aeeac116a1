#include "unit.h"

#include "cli/units.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t size_of(const char *text)
{
    uint64_t bytes = 0;

    assert_int_equal(units_parse_size(text, &bytes, NULL), 0);
    return bytes;
}

static uint64_t rate_of(const char *text)
{
    uint64_t rate = 0;

    assert_int_equal(units_parse_rate(text, &rate, NULL), 0);
    return rate;
}

static uint64_t duration_of(const char *text)
{
    uint64_t ns = 0;

    assert_int_equal(units_parse_duration(text, &ns, NULL), 0);
    return ns;
}

static void sizes_are_powers_of_1024(void **state)
{
    (void)state;
    assert_int_equal(size_of("0"), 0);
    assert_int_equal(size_of("4096"), 4096);
    assert_int_equal(size_of("512k"), 512 << 10);
    assert_int_equal(size_of("256M"), 256 << 20);
    assert_int_equal(size_of("256MiB"), 256 << 20);
    assert_int_equal(size_of("1.5G"), UINT64_C(3) << 29);
    assert_int_equal(size_of("1T"), UINT64_C(1) << 40);
}

static void rates_are_bytes_or_bits_a_second(void **state)
{
    (void)state;
    assert_int_equal(rate_of("1G"), 1 << 30);
    assert_int_equal(rate_of("1G/s"), 1 << 30);
    assert_int_equal(rate_of("1Gbit"), 125000000);
    assert_int_equal(rate_of("100Mbit/s"), 12500000);
}

static void durations_need_their_unit(void **state)
{
    uint64_t ns = 0;

    (void)state;
    assert_int_equal(duration_of("50ms"), 50000000);
    assert_int_equal(duration_of("1.5s"), 1500000000);
    assert_int_equal(duration_of("7us"), 7000);
    assert_int_equal(duration_of("9ns"), 9);
    assert_int_equal(duration_of("2min"), UINT64_C(120000000000));
    assert_int_equal(duration_of("1h"), UINT64_C(3600000000000));
    assert_int_equal(units_parse_duration("50", &ns, NULL), -EINVAL);
}

static void nonsense_is_refused_with_a_sentence(void **state)
{
    static const char *const wrong[] = {"",    "M",   "-1",  "+1",    " 1M",   "1 M",    "1.",
                                        ".5G", "1MB", "1e3", "256Mx", "0x100", "1.5.5M", "1,5G"};

    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        struct ferry_error err = {0};
        uint64_t value = 0;

        assert_int_equal(units_parse_size(wrong[i], &value, &err), -EINVAL);
        assert_non_null(strstr(err.text, "is not a size"));
        assert_int_equal(units_parse_duration(wrong[i], &value, &err), -EINVAL);
        assert_int_equal(units_parse_rate(wrong[i], &value, &err), -EINVAL);
        assert_int_equal(units_parse_number(wrong[i], &value, &err), -EINVAL);
    }
}

static void memory_may_be_of_huge_pages(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
        uint64_t hugepage;
    } cases[] = {
        {"512M", 512 << 20, 0},
        {"1G,hugepages", 1 << 30, 2 << 20},
        {"1G,hugepages=2M", 1 << 30, 2 << 20},
        {"1G,hugepages=2048K", 1 << 30, 2 << 20},
        {"1g,hugepages=1GiB", 1 << 30, 1 << 30},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint64_t bytes = 0, hugepage = 1;

        assert_int_equal(units_parse_memory(cases[i].text, &bytes, &hugepage, NULL), 0);
        assert_int_equal(bytes, cases[i].bytes);
        assert_int_equal(hugepage, cases[i].hugepage);
    }
}

static void wrong_words_about_memory_are_refused(void **state)
{
    static const struct {
        const char *text;
        const char *word;
    } cases[] = {
        {"", "'' is not a size"},
        {",hugepages", "'' is not a size"},
        {"x,hugepages", "'x' is not a size"},
        {"1G,", "no memory option ''; there are hugepages"},
        {"1G,hugepage", "no memory option 'hugepage'"},
        {"1G,hugepages,hugepages", "no memory option"},
        {"1G,hugepages=", "no huge pages of ''"},
        {"1G,hugepages=4M", "no huge pages of '4M'; there are some of 2M and of 1G"},
        {"1G,hugepages=1G,x", "no huge pages of '1G,x'"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct ferry_error err = {0};
        uint64_t bytes, hugepage;

        assert_int_equal(units_parse_memory(cases[i].text, &bytes, &hugepage, &err), -EINVAL);
        assert_contains(err.text, cases[i].word);
    }
}

static void numbers_that_do_not_fit_are_refused(void **state)
{
    uint64_t value = 0;

    (void)state;
    assert_int_equal(units_parse_size("99999999999999999999", &value, NULL), -EINVAL);
    assert_int_equal(units_parse_size("8388608T", &value, NULL), -EINVAL);
    assert_int_equal(units_parse_number("9223372036854775808", &value, NULL), -EINVAL);
    assert_int_equal(units_parse_size("8388607T", &value, NULL), 0);
}

static void assert_size(uint64_t bytes, const char *wanted)
{
    char text[UNITS_TEXT_SIZE];

    assert_string_equal(units_format_size(bytes, text), wanted);
}

static void assert_duration(uint64_t ns, const char *wanted)
{
    char text[UNITS_TEXT_SIZE];

    assert_string_equal(units_format_duration(ns, text), wanted);
}

static void sizes_are_printed_with_three_figures(void **state)
{
    char text[UNITS_TEXT_SIZE];

    (void)state;
    assert_size(0, "0 B");
    assert_size(1023, "1023 B");
    assert_size(1024, "1 KiB");
    assert_size(46242201, "44.1 MiB");
    assert_size(UINT64_C(256) << 20, "256 MiB");
    assert_size(UINT64_C(3) << 29, "1.5 GiB");
    assert_size(UINT64_MAX, "16384 PiB");
    assert_string_equal(units_format_rate(UINT64_C(1) << 30, text), "1 GiB/s");
}

static void durations_are_printed_in_the_unit_that_fits(void **state)
{
    (void)state;
    assert_duration(0, "0 s");
    assert_duration(640, "640 ns");
    assert_duration(812345, "812 us");
    assert_duration(2100000, "2.1 ms");
    assert_duration(UINT64_C(4200000000), "4.2 s");
    assert_duration(UINT64_C(125000000000), "2 min 5 s");
    assert_duration(UINT64_C(11520000000000), "3 h 12 min");
    assert_duration(UINT64_C(183600000000000), "2 d 3 h");
}

static void times_are_local_with_their_zone(void **state)
{
    char text[UNITS_TEXT_SIZE];
    int64_t ns;

    (void)state;
    setenv("TZ", "XYZ-5:30", 1);
    tzset();
    assert_string_equal(units_format_time("2026-11-21T03:31:36.123+01:00", true, text),
                        "2026-11-21 08:01:36.123 +05:30");
    assert_string_equal(units_format_time("2026-11-21T02:31:36Z", false, text), "2026-11-21 08:01:36 +05:30");
    assert_true(units_parse_time("1970-01-01T00:00:01.5+00:00", &ns));
    assert_int_equal(ns, 1500000000);
}

static void what_is_no_time_is_shown_as_it_is(void **state)
{
    static const char *const wrong[] = {"",
                                        "yesterday",
                                        "2026-11-21",
                                        "2026-13-21T03:31:36Z",
                                        "2026-11-21T03:31:36",
                                        "2026-11-21T03:31:36+1"};

    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        char text[UNITS_TEXT_SIZE];

        assert_string_equal(units_format_time(wrong[i], true, text), wrong[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_powers_of_1024),
        cmocka_unit_test(rates_are_bytes_or_bits_a_second),
        cmocka_unit_test(durations_need_their_unit),
        cmocka_unit_test(nonsense_is_refused_with_a_sentence),
        cmocka_unit_test(memory_may_be_of_huge_pages),
        cmocka_unit_test(wrong_words_about_memory_are_refused),
        cmocka_unit_test(numbers_that_do_not_fit_are_refused),
        cmocka_unit_test(sizes_are_printed_with_three_figures),
        cmocka_unit_test(durations_are_printed_in_the_unit_that_fits),
        cmocka_unit_test(times_are_local_with_their_zone),
        cmocka_unit_test(what_is_no_time_is_shown_as_it_is),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
