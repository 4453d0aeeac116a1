/* Transition states and percent: what is legal, and names as in the logs. */
#include "engine/state.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static bool source(int from, int to)
{
    return state_may_follow(SESSION_SOURCE, (enum ferry_state)from, (enum ferry_state)to);
}

static bool destination(int from, int to)
{
    return state_may_follow(SESSION_DESTINATION, (enum ferry_state)from, (enum ferry_state)to);
}

static void only_the_documented_transitions_are_legal(void **state)
{
    for (int from = 0; from < 14; from++) {
        for (int to = 0; to < 14; to++) {
            bool source_legal = (from == 0 && to == 1) ||
                                (from >= 1 && from <= 4 && (to == from + 1 || to == 5)) ||
                                (from == 5 && to == 0);
            bool destination_legal = (from == 0 && to == 7) ||
                                     (from >= 7 && from <= 10 && (to == from + 1 || to == 11)) ||
                                     (from == 11 && to == 0);

            assert_int_equal(source(from, to), source_legal);
            assert_int_equal(destination(from, to), destination_legal);
        }
    }
}

static void names_are_those_in_the_logs(void **state)
{
    assert_string_equal(ferry_state_name(MIGRATE_VMX_NONE), "MIGRATE_VMX_NONE");
    assert_string_equal(ferry_state_name(MIGRATE_TO_VMX_WAIT_HANDSHAKE), "MIGRATE_TO_VMX_WAIT_HANDSHAKE");
    assert_string_equal(ferry_state_name(MIGRATE_FROM_VMX_FINISHED), "MIGRATE_FROM_VMX_FINISHED");
    assert_string_equal(ferry_state_name((enum ferry_state)6), "unknown");
    assert_string_equal(ferry_state_name((enum ferry_state)99), "unknown");
    assert_string_equal(ferry_phase_name(FERRY_PHASE_QUIESCE), "I/O Quiesce");
    assert_string_equal(ferry_outcome_name(FERRY_OUTCOME_LOST), "lost");
    assert_string_equal(ferry_cause_name(FERRY_CAUSE_INTERNAL), "internal");
    for (int part = 0; part < FERRY_DOWNTIME_PARTS; part++)
        assert_string_not_equal(ferry_downtime_part_name((enum ferry_downtime_part)part), "unknown");
}

static void percent_never_goes_back_nor_above_100(void **state)
{
    assert_int_equal(state_percent(0, 1, 4), 25);
    assert_int_equal(state_percent(30, 1, 4), 30);
    assert_int_equal(state_percent(30, 9, 4), 100);
    assert_int_equal(state_percent(30, 0, 0), 100);
    assert_int_equal(state_percent(0, UINT64_MAX - 1, UINT64_MAX), 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_the_documented_transitions_are_legal),
        cmocka_unit_test(names_are_those_in_the_logs),
        cmocka_unit_test(percent_never_goes_back_nor_above_100),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
