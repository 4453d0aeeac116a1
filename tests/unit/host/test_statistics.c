/* Statistics of migrations count each one once, by its kind and its end. */
#include "unit.h"

#include "host/statistics.h"

static json_t *row(const char *kind, const char *outcome, const char *cause, json_int_t total,
                   json_int_t downtime, json_int_t bytes)
{
    return json_pack("{s:s, s:s, s:s, s:I, s:I, s:I}", "kind", kind, "outcome", outcome, "cause", cause,
                     "total_ns", total, "downtime_ns", downtime, "wire_bytes", bytes);
}

static json_int_t number(const json_t *object, const char *kind, const char *key, const char *inner)
{
    const json_t *value = json_object_get(json_object_get(object, kind), key);

    if (inner)
        value = json_object_get(value, inner);
    assert_true(json_is_integer(value));
    return json_integer_value(value);
}

static void ends_are_counted_by_kind_and_cause(void **state)
{
    json_t *rows = json_array();
    json_t *kinds;

    json_array_append_new(rows, row("hot", "completed", "", 100, 5, 1000));
    json_array_append_new(rows, row("hot", "completed", "", 300, 7, 1000));
    json_array_append_new(rows, row("hot", "failed", "network", 900, 0, 50));
    json_array_append_new(rows, row("hot", "lost", "lock", 900, 900, 50));
    json_array_append_new(rows, row("hot", "cancelled", "cancelled", 1, 0, 1));
    json_array_append_new(rows, row("upgrade", "completed", "", 30, 3, 0));
    kinds = statistics_make(rows);
    assert_int_equal(json_object_size(kinds), 2);
    assert_int_equal(number(kinds, "hot", "count", NULL), 5);
    assert_int_equal(number(kinds, "hot", "completed", NULL), 2);
    assert_int_equal(number(kinds, "hot", "failed", NULL), 1);
    assert_int_equal(number(kinds, "hot", "lost", NULL), 1);
    assert_int_equal(number(kinds, "hot", "cancelled", NULL), 1);
    assert_int_equal(number(kinds, "hot", "success_permille", NULL), 500);
    assert_int_equal(number(kinds, "hot", "wire_bytes", NULL), 2101);
    assert_int_equal(number(kinds, "hot", "causes", "network"), 1);
    assert_int_equal(number(kinds, "hot", "causes", "lock"), 1);
    assert_null(json_object_get(json_object_get(json_object_get(kinds, "hot"), "causes"), "cancelled"));
    assert_int_equal(number(kinds, "hot", "downtime_ns", "most"), 7);
    assert_int_equal(number(kinds, "upgrade", "success_permille", NULL), 1000);
    json_decref(kinds);
    json_decref(rows);
}

static void quantiles_are_those_of_the_completed_ones(void **state)
{
    json_t *rows = json_array();
    json_t *kinds;

    for (int i = 200; i >= 1; i--)
        json_array_append_new(rows, row("hot", "completed", "", i, 1000 - i, 0));
    json_array_append_new(rows, row("hot", "failed", "network", 100000, 100000, 0));
    kinds = statistics_make(rows);
    assert_int_equal(number(kinds, "hot", "total_ns", "median"), 100);
    assert_int_equal(number(kinds, "hot", "total_ns", "p99"), 198);
    assert_int_equal(number(kinds, "hot", "total_ns", "most"), 200);
    assert_int_equal(number(kinds, "hot", "downtime_ns", "median"), 899);
    json_decref(kinds);
    json_decref(rows);
}

static void what_is_missing_counts_as_nothing(void **state)
{
    json_t *rows = json_pack("[{}, {s:n, s:s, s:s}, {s:s, s:s}]", "kind", "outcome", "failed", "total_ns",
                             "nonsense", "kind", "cold", "outcome", "cancelled");
    json_t *kinds = statistics_make(rows);
    json_t *empty;

    assert_int_equal(number(kinds, "hot", "count", NULL), 2);
    assert_int_equal(number(kinds, "hot", "unknown", NULL), 1);
    assert_int_equal(number(kinds, "hot", "causes", "internal"), 2);
    assert_true(json_is_null(json_object_get(json_object_get(kinds, "hot"), "total_ns")));
    assert_true(json_is_null(json_object_get(json_object_get(kinds, "cold"), "success_permille")));
    json_decref(kinds);
    json_decref(rows);
    empty = statistics_make(NULL);
    assert_int_equal(json_object_size(empty), 0);
    json_decref(empty);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ends_are_counted_by_kind_and_cause),
        cmocka_unit_test(quantiles_are_those_of_the_completed_ones),
        cmocka_unit_test(what_is_missing_counts_as_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
