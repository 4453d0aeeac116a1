/* Fault points from a file, and what FERRY_FAULT may say. */
#include "engine/fault.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

static char path[] = "/tmp/ferry-fault.XXXXXX";

static void write_plan(const char *text)
{
    FILE *file = fopen(path, "we");

    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void file_is_read_at_every_point(void **state)
{
    struct fault_plan plan = {0};
    struct ferry_error err = {0};
    char name[sizeof(path) + 1];

    snprintf(name, sizeof(name), "@%s", path);
    assert_int_equal(fault_plan_parse(&plan, name, &err), 0);
    assert_int_equal(fault_hit(&plan, FAULT_SOURCE_BEFORE_GO, &err), 0);
    write_plan("source-before-go:error\n");
    assert_int_equal(fault_hit(&plan, FAULT_SOURCE_AFTER_GO, &err), 0);
    assert_int_equal(fault_hit(&plan, FAULT_SOURCE_BEFORE_GO, &err), -EIO);
    write_plan("");
    assert_int_equal(fault_hit(&plan, FAULT_SOURCE_BEFORE_GO, &err), 0);
}

static void points_that_were_reached_are_named(void **state)
{
    struct fault_plan plan = {0};
    char name[sizeof(path) + 1], reached[sizeof(path) + 8], text[128] = "";
    FILE *file;

    snprintf(name, sizeof(name), "@%s", path);
    snprintf(reached, sizeof(reached), "%s.reached", path);
    unlink(reached);
    assert_int_equal(fault_plan_parse(&plan, name, NULL), 0);
    write_plan("source-before-go:error,source-after-go:drop\n");
    assert_int_equal(fault_hit(&plan, FAULT_SOURCE_AFTER_RELEASE, NULL), 0);
    assert_int_equal(fault_hit(&plan, FAULT_SOURCE_BEFORE_GO, NULL), -EIO);
    assert_int_equal(fault_hit(&plan, FAULT_SOURCE_AFTER_GO, NULL), 0);
    file = fopen(reached, "re");
    assert_non_null(file);
    text[fread(text, 1, sizeof(text) - 1, file)] = '\0';
    fclose(file);
    unlink(reached);
    write_plan("");
    assert_string_equal(text, "source-before-go\nsource-after-go\n");
}

static void file_that_makes_no_sense_is_no_fault(void **state)
{
    struct fault_plan plan = {0};
    char name[sizeof(path) + 1];

    snprintf(name, sizeof(name), "@%s", path);
    assert_int_equal(fault_plan_parse(&plan, name, NULL), 0);
    write_plan("source-before-go:explode");
    assert_int_equal(fault_hit(&plan, FAULT_SOURCE_BEFORE_GO, NULL), 0);
    unlink(path);
    assert_int_equal(fault_hit(&plan, FAULT_SOURCE_BEFORE_GO, NULL), 0);
}

static void unknown_point_or_action_is_refused(void **state)
{
    struct fault_plan plan = {0};
    struct ferry_error err = {0};

    assert_int_equal(fault_plan_parse(&plan, "source-before-go:explode", &err), -EINVAL);
    assert_int_equal(fault_plan_parse(&plan, "nowhere:crash", &err), -EINVAL);
    assert_int_equal(fault_plan_parse(&plan, "source-before-go:error,destination-after-load:drop", &err), 0);
    assert_int_equal(fault_hit(&plan, FAULT_SOURCE_BEFORE_GO, &err), -EIO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(file_is_read_at_every_point),
        cmocka_unit_test(points_that_were_reached_are_named),
        cmocka_unit_test(file_that_makes_no_sense_is_no_fault),
        cmocka_unit_test(unknown_point_or_action_is_refused),
    };
    int fd = mkstemp(path);
    int result;

    if (fd < 0)
        return 1;
    close(fd);
    result = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return result;
}
