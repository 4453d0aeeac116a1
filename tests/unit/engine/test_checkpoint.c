/* Checkpoints in memory: bounds, names, look-up; and fault plans, which share nothing but their size. */
#include "engine/checkpoint.h"
#include "engine/fault.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void sections_are_kept_in_order_and_found(void **state)
{
    struct checkpoint checkpoint;
    struct ferry_sink sink = {.checkpoint = &checkpoint};
    uint8_t data[3] = {1, 2, 3};

    checkpoint_init(&checkpoint);
    assert_int_equal(ferry_sink_section(&sink, "cpu0", 2, data, 3, NULL), 0);
    assert_int_equal(ferry_sink_section(&sink, "uart", 1, NULL, 0, NULL), 0);
    data[0] = 9; /* the checkpoint has a copy */
    assert_int_equal(checkpoint.count, 2);
    assert_int_equal(checkpoint.size, 3);
    assert_string_equal(checkpoint.sections[1].name, "uart");
    assert_int_equal(checkpoint_find(&checkpoint, "cpu0")->data[0], 1);
    assert_int_equal(checkpoint_find(&checkpoint, "cpu0")->version, 2);
    assert_null(checkpoint_find(&checkpoint, "cpu1"));
    checkpoint_free(&checkpoint);
    assert_int_equal(checkpoint.count, 0);
}

static void what_is_out_of_bounds_is_refused_by_name(void **state)
{
    struct checkpoint checkpoint;
    struct ferry_sink sink = {.checkpoint = &checkpoint};
    struct ferry_error err = {0};
    char name[FERRY_NAME_SIZE + 1];

    checkpoint_init(&checkpoint);
    assert_int_equal(ferry_sink_section(&sink, "twice", 1, "x", 1, &err), 0);
    assert_int_equal(ferry_sink_section(&sink, "twice", 1, "x", 1, &err), -EEXIST);
    assert_non_null(strstr(err.text, "twice"));
    assert_int_equal(ferry_sink_section(&sink, "", 1, "x", 1, &err), -EINVAL);
    assert_int_equal(ferry_sink_section(&sink, "zero", 0, "x", 1, &err), -EINVAL);
    assert_int_equal(ferry_sink_section(&sink, "large", 1, "x", FERRY_SECTION_SIZE_MAX + 1, &err), -E2BIG);
    memset(name, 'n', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    assert_int_equal(ferry_sink_section(&sink, name, 1, "x", 1, &err), -EINVAL);
    for (int i = 1; i < FERRY_SECTIONS_MAX; i++) {
        snprintf(name, sizeof(name), "s%d", i);
        assert_int_equal(ferry_sink_section(&sink, name, 1, "x", 1, &err), 0);
    }
    assert_int_equal(ferry_sink_section(&sink, "one more", 1, "x", 1, &err), -E2BIG);
    assert_non_null(strstr(err.text, "one more"));
    checkpoint_free(&checkpoint);
}

static void all_sections_together_are_bounded(void **state)
{
    struct checkpoint checkpoint;
    struct ferry_section section = {.version = 1, .size = FERRY_SECTION_SIZE_MAX};
    uint8_t *data = calloc(1, FERRY_SECTION_SIZE_MAX);

    checkpoint_init(&checkpoint);
    section.data = data;
    checkpoint.size = CHECKPOINT_SIZE_MAX - 1; /* as if they were there */
    strcpy(section.name, "last");
    assert_int_equal(checkpoint_add(&checkpoint, &section, NULL), -E2BIG);
    section.size = 1;
    assert_int_equal(checkpoint_add(&checkpoint, &section, NULL), 0);
    checkpoint_free(&checkpoint);
    free(data);
}

static void fault_plans_are_understood_or_refused(void **state)
{
    struct fault_plan plan = {0};
    struct ferry_error err = {0};

    assert_int_equal(fault_plan_parse(&plan, NULL, NULL), 0);
    assert_int_equal(fault_plan_parse(&plan, "", NULL), 0);
    assert_int_equal(fault_plan_parse(&plan, "source-before-go:crash,destination-after-load:drop", NULL), 0);
    assert_int_equal(plan.action[FAULT_SOURCE_BEFORE_GO], FAULT_ACTION_CRASH);
    assert_int_equal(plan.action[FAULT_DESTINATION_AFTER_LOAD], FAULT_ACTION_DROP);
    assert_int_equal(fault_plan_parse(&plan, "nowhere:crash", &err), -EINVAL);
    assert_non_null(strstr(err.text, "nowhere:crash"));
    assert_int_equal(fault_plan_parse(&plan, "source-before-go:explode", &err), -EINVAL);
    assert_int_equal(fault_plan_parse(&plan, "source-before-go", &err), -EINVAL);
    assert_int_equal(fault_plan_parse(&plan, ":", &err), -EINVAL);
    for (int i = 1; i < FAULT_COUNT; i++)
        assert_non_null(fault_point_name((enum fault_point)i));
    assert_null(fault_point_name(FAULT_NONE));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sections_are_kept_in_order_and_found),
        cmocka_unit_test(what_is_out_of_bounds_is_refused_by_name),
        cmocka_unit_test(all_sections_together_are_bounded),
        cmocka_unit_test(fault_plans_are_understood_or_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
