/* Durations by size: what is said of them is within a sixteenth of the truth. */
#include "engine/latency.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

static void nothing_counted_is_zero(void **state)
{
    struct latency latency = {0};

    assert_int_equal(latency_quantile(&latency, 500), 0);
    assert_int_equal(latency_quantile(&latency, 990), 0);
}

static void quantiles_are_near_the_truth(void **state)
{
    struct latency latency = {0};

    for (uint64_t i = 1; i <= 100000; i++)
        latency_add(&latency, i * 37);
    assert_int_equal(latency.count, 100000);
    assert_int_equal(latency.max_ns, 3700000);

    static const unsigned wanted[] = {1, 100, 500, 990, 999};

    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
        uint64_t truth = (uint64_t)wanted[i] * 100 * 37;
        uint64_t said = latency_quantile(&latency, wanted[i]);

        assert_in_range(said, truth - truth / 16, truth + truth / 16);
    }
    assert_int_equal(latency_quantile(&latency, 1000) <= latency.max_ns, 1);
}

static void every_duration_has_its_place(void **state)
{
    for (unsigned bit = 0; bit < 64; bit++) {
        struct latency latency = {0};
        uint64_t ns = (UINT64_C(1) << bit) + (bit > 6 ? UINT64_C(1) << (bit - 1) : 0);

        latency_add(&latency, ns);

        uint64_t said = latency_quantile(&latency, 500);

        assert_true(said <= ns && ns - said <= ns / 16);
    }
    struct latency latency = {0};

    latency_add(&latency, UINT64_MAX);
    latency_add(&latency, 0);
    assert_int_equal(latency_quantile(&latency, 500), 0);
    assert_int_equal(latency.max_ns, UINT64_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_counted_is_zero),
        cmocka_unit_test(quantiles_are_near_the_truth),
        cmocka_unit_test(every_duration_has_its_place),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
