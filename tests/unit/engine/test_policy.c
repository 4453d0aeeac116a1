/* The pre-copy policy against scripted guests and links: no clock, no network, only numbers. */
#include "engine/policy.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define MB UINT64_C(1000000)
#define MS UINT64_C(1000000)
#define S  UINT64_C(1000000000)

#define TRANSFERS_MAX 100

/* What a guest has dirtied when a round of BYTES that took DURATION_NS ends. */
typedef uint64_t script(unsigned round, uint64_t bytes, uint64_t duration_ns);

struct run {
    struct policy_decision decision;
    uint64_t sent[TRANSFERS_MAX]; /* bytes of each transfer, the frozen one included */
    unsigned transfers;
};

static struct run run_script(script *dirty, uint64_t memory, uint64_t link, uint64_t downtime_ns,
                             uint64_t fixed_ns)
{
    struct policy policy;
    struct run run = {0};
    uint64_t bytes = memory;

    policy_init(&policy, downtime_ns, 100 * S);
    do {
        struct policy_round round = {.sent_bytes = bytes,
                                     .duration_ns = (uint64_t)((double)bytes * 1e9 / (double)link),
                                     .fixed_cost_ns = fixed_ns};

        run.sent[run.transfers++] = bytes;
        round.remaining_bytes = dirty(run.transfers, bytes, round.duration_ns);
        run.decision = policy_decide(&policy, &round);
        bytes = round.remaining_bytes;
    } while (run.decision.verdict == POLICY_CONTINUE && run.transfers < TRANSFERS_MAX - 1);
    if (run.decision.verdict == POLICY_STOP)
        run.sent[run.transfers++] = bytes;
    return run;
}

static uint64_t a_quarter(unsigned round, uint64_t bytes, uint64_t duration_ns)
{
    return bytes / 4;
}

/* The reference calculation: 128 MB/s, a quarter of what was sent is dirtied meanwhile. */
static void reference_table_comes_out(void **state)
{
    static const uint64_t table[] = {2048 * MB, 512 * MB, 128 * MB, 32 * MB, 8 * MB};
    struct run run = run_script(a_quarter, 2048 * MB, 128 * MB, 64 * MS, 0);

    assert_int_equal(run.decision.verdict, POLICY_STOP);
    assert_int_equal(run.transfers, 5);
    assert_memory_equal(run.sent, table, sizeof(table));
    assert_int_equal(run.decision.bandwidth, 128 * MB);
    assert_int_equal(run.decision.downtime_ns, 62500000);
}

/* With the default limit the 8 MB (62 ms) are sent while the guest runs, and 2 MB (16 ms) frozen. */
static void reference_table_goes_one_round_further_by_default(void **state)
{
    static const uint64_t table[] = {2048 * MB, 512 * MB, 128 * MB, 32 * MB, 8 * MB, 2 * MB};
    struct run run = run_script(a_quarter, 2048 * MB, 128 * MB, 50 * MS, 2 * MS);

    assert_int_equal(run.decision.verdict, POLICY_STOP);
    assert_int_equal(run.transfers, 6);
    assert_memory_equal(run.sent, table, sizeof(table));
}

static uint64_t nothing(unsigned round, uint64_t bytes, uint64_t duration_ns)
{
    return 0;
}

static void idle_guest_stops_after_one_round(void **state)
{
    struct run run = run_script(nothing, 512 * MB, 1000 * MB, 50 * MS, 2 * MS);

    assert_int_equal(run.decision.verdict, POLICY_STOP);
    assert_int_equal(run.transfers, 2);
    assert_int_equal(run.decision.downtime_ns, 2 * MS);
}

/* A limit below what a switchover costs at all: more rounds would not change that. */
static void unreachable_limit_ends(void **state)
{
    struct run run = run_script(nothing, 512 * MB, 1000 * MB, 1000, 2 * MS);

    assert_int_equal(run.decision.verdict, POLICY_STOP);
    assert_int_equal(run.transfers, 2);
}

static uint64_t slow_writer(unsigned round, uint64_t bytes, uint64_t duration_ns)
{
    return duration_ns / 1000 * 50; /* 50 MB/s */
}

/* Within the limit at once, but further rounds are cheap and leave next to nothing. */
static void slow_writer_is_polished(void **state)
{
    struct run run = run_script(slow_writer, 512 * MB, 1000 * MB, 50 * MS, 2 * MS);

    assert_int_equal(run.decision.verdict, POLICY_STOP);
    assert_true(run.sent[run.transfers - 1] < MB);
    assert_true(run.transfers <= 6);
}

static uint64_t fast_writer(unsigned round, uint64_t bytes, uint64_t duration_ns)
{
    uint64_t dirtied = duration_ns / 1000 * 200; /* 200 MB/s */

    return dirtied < 20000 * MB ? dirtied : 20000 * MB;
}

/* 20 GB would take 160 s: over 100 s, abort, and at the first round that shows it. */
static void diverging_over_100_s_aborts_at_once(void **state)
{
    struct run run = run_script(fast_writer, 20000 * MB, 125 * MB, 50 * MS, 2 * MS);

    assert_int_equal(run.decision.verdict, POLICY_ABORT);
    assert_int_equal(run.transfers, 1);
    assert_non_null(strstr(run.decision.reason, "160.0 s"));
    assert_non_null(strstr(run.decision.reason, "limit of 100.0 s"));
}

static uint64_t working_set(unsigned round, uint64_t bytes, uint64_t duration_ns)
{
    uint64_t dirtied = duration_ns / 1000 * 200;

    return dirtied < 1000 * MB ? dirtied : 1000 * MB;
}

/* 1 GB rewritten all the time: 8 s of copying are under 100 s, so it is stopped and finished. */
static void diverging_under_100_s_stops_and_finishes(void **state)
{
    struct run run = run_script(working_set, 4000 * MB, 125 * MB, 50 * MS, 2 * MS);

    assert_int_equal(run.decision.verdict, POLICY_STOP);
    assert_in_range(run.transfers, 4, 8);
    assert_non_null(strstr(run.decision.reason, "stop and finish"));
}

static uint64_t waves(unsigned round, uint64_t bytes, uint64_t duration_ns)
{
    static const uint64_t left[] = {400, 200, 210, 260, 300, 280, 205, 290, 300};

    return left[(round - 1) % 9] * MB;
}

/* Never fits and does not shrink: waits for a round near the smallest seen, rather than for a number of them.
 */
static void stops_at_a_local_minimum(void **state)
{
    struct run run = run_script(waves, 1000 * MB, 125 * MB, 50 * MS, 2 * MS);

    assert_int_equal(run.decision.verdict, POLICY_STOP);
    assert_int_equal(run.sent[run.transfers - 1], 205 * MB);
}

static uint64_t rising(unsigned round, uint64_t bytes, uint64_t duration_ns)
{
    return (100 + 100 * (uint64_t)round) * MB;
}

static void patience_for_a_local_minimum_is_bounded(void **state)
{
    struct run run = run_script(rising, 1000 * MB, 500 * MB, 50 * MS, 2 * MS);

    assert_int_equal(run.decision.verdict, POLICY_STOP);
    assert_in_range(run.transfers, 4, 12);
}

/* A latency-bound tiny round says nothing about the link. */
static void small_rounds_do_not_spoil_the_bandwidth(void **state)
{
    struct policy policy;
    struct policy_decision decision;

    policy_init(&policy, 50 * MS, 100 * S);
    policy_decide(&policy, &(struct policy_round){1000 * MB, S, 100 * MB, 0});
    decision = policy_decide(&policy, &(struct policy_round){4096, 100 * MS, 4096, 0});
    assert_int_equal(decision.bandwidth, 1000 * MB);
}

static void extreme_numbers_are_survived(void **state)
{
    static const uint64_t numbers[] = {0, 1, 4096, UINT64_MAX / 2, UINT64_MAX};

    for (int a = 0; a < 5; a++) {
        for (int b = 0; b < 5; b++) {
            struct policy policy;

            policy_init(&policy, numbers[a], numbers[b]);
            for (int c = 0; c < 25; c++) {
                struct policy_round round = {numbers[c / 5], numbers[c % 5], numbers[(a + c) % 5],
                                             numbers[b]};
                struct policy_decision decision = policy_decide(&policy, &round);

                assert_in_range(decision.verdict, POLICY_CONTINUE, POLICY_ABORT);
                assert_true(strlen(decision.reason) > 0);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reference_table_comes_out),
        cmocka_unit_test(reference_table_goes_one_round_further_by_default),
        cmocka_unit_test(idle_guest_stops_after_one_round),
        cmocka_unit_test(unreachable_limit_ends),
        cmocka_unit_test(slow_writer_is_polished),
        cmocka_unit_test(diverging_over_100_s_aborts_at_once),
        cmocka_unit_test(diverging_under_100_s_stops_and_finishes),
        cmocka_unit_test(stops_at_a_local_minimum),
        cmocka_unit_test(patience_for_a_local_minimum_is_bounded),
        cmocka_unit_test(small_rounds_do_not_spoil_the_bandwidth),
        cmocka_unit_test(extreme_numbers_are_survived),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
