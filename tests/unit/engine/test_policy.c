/* The pre-copy policy against scripted guests and links: no clock, no network, only numbers. */
#include "engine/policy.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define MB UINT64_C(1000000)
#define MS UINT64_C(1000000)
#define S  UINT64_C(1000000000)

#define TRANSFERS_MAX 100

/* What a guest at SPEED per cent has dirtied when a round of BYTES that took DURATION_NS ends. */
typedef uint64_t script(unsigned round, uint64_t bytes, uint64_t duration_ns, unsigned speed);

struct scene {
    script *dirty;
    uint64_t memory;
    uint64_t link; /* bytes/s */
    uint64_t frozen_link;
    uint64_t downtime_ns; /* 0: 50 ms */
    uint64_t fixed_ns;
    unsigned throttle_max;
    bool quick_resume;
};

struct run {
    struct policy_decision decision;
    uint64_t sent[TRANSFERS_MAX]; /* bytes of each transfer, the frozen one included */
    unsigned throttle[TRANSFERS_MAX];
    unsigned transfers;
    unsigned throttle_most;
    double seconds; /* of rounds */
};

static struct policy_settings settings_of(const struct scene *scene)
{
    return (struct policy_settings){.downtime_limit_ns = scene->downtime_ns ? scene->downtime_ns : 50 * MS,
                                    .copy_time_limit_ns = 100 * S,
                                    .throttle_max = scene->throttle_max,
                                    .quick_resume = scene->quick_resume};
}

static struct run play(const struct scene *scene)
{
    struct policy_settings settings = settings_of(scene);
    struct policy policy;
    struct run run = {0};
    uint64_t bytes = scene->memory;

    policy_init(&policy, &settings);
    do {
        struct policy_round round = {.sent_bytes = bytes,
                                     .wire_bytes = bytes,
                                     .duration_ns = (uint64_t)((double)bytes * 1e9 / (double)scene->link),
                                     .frozen = {.wire_bandwidth = scene->frozen_link}};

        round.costs.part_ns[FERRY_DOWNTIME_STATE_LOAD] = scene->fixed_ns;
        run.throttle[run.transfers] = run.decision.throttle;
        run.sent[run.transfers++] = bytes;
        round.remaining_bytes =
            scene->dirty(run.transfers, bytes, round.duration_ns, 100 - run.decision.throttle);
        run.decision = policy_decide(&policy, &round);
        run.seconds += (double)round.duration_ns / 1e9;
        if (run.decision.throttle > run.throttle_most)
            run.throttle_most = run.decision.throttle;
        bytes = round.remaining_bytes;
    } while (run.decision.verdict == POLICY_CONTINUE && run.transfers < TRANSFERS_MAX - 1);
    if (run.decision.verdict == POLICY_STOP)
        run.sent[run.transfers++] = bytes;
    return run;
}

static struct run run_script(script *dirty, uint64_t memory, uint64_t link, uint64_t downtime_ns,
                             uint64_t fixed_ns)
{
    return play(&(struct scene){
        .dirty = dirty, .memory = memory, .link = link, .downtime_ns = downtime_ns, .fixed_ns = fixed_ns});
}

static uint64_t a_quarter(unsigned round, uint64_t bytes, uint64_t duration_ns, unsigned speed)
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

static uint64_t nothing(unsigned round, uint64_t bytes, uint64_t duration_ns, unsigned speed)
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

static uint64_t slow_writer(unsigned round, uint64_t bytes, uint64_t duration_ns, unsigned speed)
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

static uint64_t fast_writer(unsigned round, uint64_t bytes, uint64_t duration_ns, unsigned speed)
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

static uint64_t working_set(unsigned round, uint64_t bytes, uint64_t duration_ns, unsigned speed)
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

static uint64_t waves(unsigned round, uint64_t bytes, uint64_t duration_ns, unsigned speed)
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

static uint64_t rising(unsigned round, uint64_t bytes, uint64_t duration_ns, unsigned speed)
{
    return (100 + 100 * (uint64_t)round) * MB;
}

static void patience_for_a_local_minimum_is_bounded(void **state)
{
    struct run run = run_script(rising, 1000 * MB, 500 * MB, 50 * MS, 2 * MS);

    assert_int_equal(run.decision.verdict, POLICY_STOP);
    assert_in_range(run.transfers, 4, 12);
}

/* Every third round is a good one: a longer series of worse ones in between is no reason to stop. */
static uint64_t recovering(unsigned round, uint64_t bytes, uint64_t duration_ns, unsigned speed)
{
    static const uint64_t left[] = {400, 100, 380, 240, 150, 80, 40, 20, 10, 4};

    return left[round < 10 ? round - 1 : 9] * MB;
}

static void a_burst_that_ebbs_away_is_waited_for(void **state)
{
    struct run run = play(&(struct scene){
        .dirty = recovering, .memory = 1000 * MB, .link = 125 * MB, .fixed_ns = 2 * MS, .throttle_max = 80});

    assert_int_equal(run.decision.verdict, POLICY_STOP);
    assert_true(run.decision.fits);
    assert_true(run.throttle_most <= 25); /* one step */
}

/* A round of SENT bytes of memory that were WIRE on the link, in so many ms, and what it left. */
static struct policy_round round_of(uint64_t sent, uint64_t wire, uint64_t ms, uint64_t left)
{
    return (struct policy_round){
        .sent_bytes = sent, .wire_bytes = wire, .duration_ns = ms * MS, .remaining_bytes = left};
}

static void policy_begin(struct policy *policy)
{
    policy_init(policy, &(struct policy_settings){50 * MS, 100 * S, 0, false});
}

/* A latency-bound tiny round says nothing about the link. */
static void small_rounds_do_not_spoil_the_bandwidth(void **state)
{
    struct policy policy;
    struct policy_decision decision;
    struct policy_round round = round_of(1000 * MB, 1000 * MB, 1000, 100 * MB);

    policy_begin(&policy);
    policy_decide(&policy, &round);
    round = round_of(4096, 4096, 100, 4096);
    decision = policy_decide(&policy, &round);
    assert_int_equal(decision.bandwidth, 1000 * MB);
    assert_int_equal(decision.wire_bandwidth, 1000 * MB);
}

/* 4 GB of zeros are 1 MB on the wire and take a second: that is not the link, as the next round shows. */
static void zeros_of_the_first_round_are_no_measure(void **state)
{
    struct policy policy;
    struct policy_decision decision;
    struct policy_round round = round_of(4000 * MB, 1 * MB, 1000, 20 * MB);

    round.zero_bytes = 3999 * MB;
    policy_begin(&policy);
    decision = policy_decide(&policy, &round);
    assert_int_equal(decision.verdict, POLICY_CONTINUE);
    assert_true(decision.bandwidth < 2 * MB);
    round = round_of(20 * MB, 20 * MB, 20, 1 * MB);
    decision = policy_decide(&policy, &round);
    assert_true(decision.bandwidth > 700 * MB);
    assert_true(decision.fits);
}

/* A guest that clears memory: on a link of 125 MB/s a gigabyte of zeros goes in a tenth of a second, but the
 * 40 MB of data after it take a third of one. */
static void zeros_do_not_make_what_is_left_cheap(void **state)
{
    struct policy policy;
    struct policy_decision decision;
    struct policy_round round = round_of(1000 * MB, 1000 * MB, 8000, 1000 * MB);

    policy_begin(&policy);
    policy_decide(&policy, &round);
    round = round_of(1000 * MB, 1 * MB, 100, 40 * MB);
    round.zero_bytes = 1000 * MB;
    round.frozen.page_bytes = 4096;
    decision = policy_decide(&policy, &round);
    assert_true(decision.bandwidth > 1000 * MB);
    assert_in_range(decision.copy_ns, 300 * MS, 340 * MS);
    assert_false(decision.fits);
}

/* Changed pages that shrink to a tenth on the wire go ten times as fast, on a link that is no faster. */
static void what_encodings_save_counts(void **state)
{
    struct policy policy;
    struct policy_decision decision;
    struct policy_round round = round_of(1000 * MB, 1000 * MB, 10000, 200 * MB);

    policy_begin(&policy);
    policy_decide(&policy, &round);
    round = round_of(200 * MB, 20 * MB, 200, 180 * MB);
    policy_decide(&policy, &round);
    round = round_of(180 * MB, 18 * MB, 180, 30 * MB);
    decision = policy_decide(&policy, &round);
    assert_true(decision.bandwidth > 900 * MB);
    assert_int_equal(decision.wire_bandwidth, 100 * MB);
    assert_true(decision.fits);
}

/* Most pages of the rounds were as they had been and not sent. Stopped, the last ones go as they are. */
static void pages_left_out_do_not_make_what_is_left_cheap(void **state)
{
    struct policy policy, other;
    struct policy_decision decision;
    struct policy_round round = round_of(1000 * MB, 1000 * MB, 10000, 200 * MB);

    policy_begin(&policy);
    policy_decide(&policy, &round);
    round = round_of(200 * MB, 20 * MB, 200, 30 * MB);
    other = policy;
    round.frozen.page_bytes = 4096;
    decision = policy_decide(&policy, &round);
    assert_in_range(decision.frozen_bandwidth, 99 * MB, 101 * MB);
    assert_in_range(decision.copy_ns, 297 * MS, 303 * MS);
    assert_false(decision.fits);
    assert_int_equal(decision.verdict, POLICY_CONTINUE);

    /* If they go as those of the rounds they are as cheap; unless a core is too slow for that. */
    round.frozen.page_bytes = 410;
    decision = policy_decide(&other, &round);
    assert_in_range(decision.copy_ns, 28 * MS, 31 * MS);
    assert_true(decision.fits);
    round.frozen.page_ns = 40960; /* 100 MB/s */
    decision = policy_decide(&other, &round);
    assert_in_range(decision.copy_ns, 297 * MS, 303 * MS);
}

/* A first round compressed to a quarter: four times the link's rate in memory. */
static void a_compressed_first_round_counts_as_memory(void **state)
{
    struct policy policy;
    struct policy_decision decision;
    struct policy_round round = round_of(1000 * MB, 250 * MB, 2000, 20 * MB);

    round.frozen = (struct policy_frozen){.page_bytes = 1024, .page_ns = 4096};
    policy_begin(&policy);
    decision = policy_decide(&policy, &round);
    assert_int_equal(decision.bandwidth, 500 * MB);
    assert_int_equal(decision.wire_bandwidth, 125 * MB);
    assert_int_equal(decision.copy_ns, 40 * MS);
    assert_true(decision.fits);
    /* The link was seen to carry more than what the cores had for it. */
    round.frozen.wire_bandwidth = 250 * MB;
    policy_begin(&policy);
    decision = policy_decide(&policy, &round);
    assert_int_equal(decision.copy_ns, 20 * MS);
}

/* ---- the fixed cost ---- */

static void every_fixed_cost_counts(void **state)
{
    struct policy_costs costs = {.state_bytes = 10 * MB};

    for (int i = 0; i < FERRY_DOWNTIME_PARTS; i++)
        costs.part_ns[i] = (uint64_t)(i + 1) * MS;
    assert_int_equal(policy_fixed_ns(&costs, 1000 * MB), 55 * MS);
    assert_int_equal(policy_fixed_ns(&costs, 0), 45 * MS);
}

static uint64_t five_left(unsigned round, uint64_t bytes, uint64_t duration_ns, unsigned speed)
{
    return round == 1 ? 5 * MB : duration_ns / 1000 * 30;
}

/* 5 MB at 125 MB/s are 40 ms: within 50 ms, but not with 15 ms of fixed cost. */
static void pages_that_fit_alone_do_not_fit_with_the_fixed_cost(void **state)
{
    struct run without = run_script(five_left, 20 * MB, 125 * MB, 50 * MS, 0);
    struct run with = run_script(five_left, 20 * MB, 125 * MB, 50 * MS, 15 * MS);

    assert_int_equal(without.transfers, 2);
    assert_int_equal(with.transfers, 3);
    assert_true(with.decision.fits);
    assert_true(with.decision.downtime_ns <= 50 * MS);
    assert_int_equal(with.decision.fixed_ns, 15 * MS);
}

static uint64_t busy(unsigned round, uint64_t bytes, uint64_t duration_ns, unsigned speed)
{
    return 1 * MB;
}

/* Fixed cost above the limit: neither rounds nor slowing the guest can help, so neither is tried for long. */
static void unreachable_limit_does_not_slow_the_guest(void **state)
{
    struct run run = play(&(struct scene){.dirty = busy,
                                          .memory = 1000 * MB,
                                          .link = 1000 * MB,
                                          .downtime_ns = 5 * MS,
                                          .fixed_ns = 10 * MS,
                                          .throttle_max = 80});

    assert_int_equal(run.decision.verdict, POLICY_STOP);
    assert_int_equal(run.throttle_most, 0);
    assert_in_range(run.transfers, 2, 4);
    assert_non_null(strstr(run.decision.reason, "not for what is left"));
}

/* 2 MB/s are what the operator allows while the guest runs; frozen, the link carries 100 MB/s. */
static void cap_does_not_count_while_frozen(void **state)
{
    struct scene scene = {.dirty = busy, .memory = 100 * MB, .link = 2 * MB, .fixed_ns = 2 * MS};

    assert_false(play(&scene).decision.fits);
    scene.frozen_link = 100 * MB;
    assert_int_equal(play(&scene).decision.verdict, POLICY_STOP);
    assert_in_range(play(&scene).transfers, 2, 3);
    assert_int_equal(play(&scene).decision.downtime_ns, 12 * MS);
}

/* ---- slowing the vCPUs ---- */

static uint64_t writer(unsigned round, uint64_t bytes, uint64_t duration_ns, unsigned speed)
{
    uint64_t dirtied = duration_ns / 100000 * 188 * speed; /* 188 MB/s at full speed */

    return dirtied < 1000 * MB ? dirtied : 1000 * MB;
}

/* A write load of 1.5 times the link. */
static void guest_that_outruns_the_link_is_slowed_and_converges(void **state)
{
    struct scene scene = {
        .dirty = writer, .memory = 2000 * MB, .link = 125 * MB, .fixed_ns = 5 * MS, .throttle_max = 80};
    struct run run = play(&scene);

    assert_int_equal(run.decision.verdict, POLICY_STOP);
    assert_true(run.decision.fits);
    assert_in_range(run.throttle_most, 40, 80);
    for (unsigned i = 1; i + 1 < run.transfers; i++)
        assert_true(run.throttle[i] <= run.throttle[i - 1] + 25);
    assert_true(run.seconds < 80);

    scene.throttle_max = 0;
    run = play(&scene);
    assert_int_equal(run.decision.verdict, POLICY_STOP);
    assert_false(run.decision.fits);
    assert_int_equal(run.throttle_most, 0);
}

static void operators_bound_holds(void **state)
{
    for (unsigned max = 0; max <= 120; max += 5) {
        struct run run = play(&(struct scene){
            .dirty = writer, .memory = 2000 * MB, .link = 40 * MB, .fixed_ns = 5 * MS, .throttle_max = max});

        assert_int_equal(run.decision.verdict, POLICY_STOP);
        assert_true(run.throttle_most <= max && run.throttle_most <= POLICY_THROTTLE_MAX);
    }
}

static uint64_t burst(unsigned round, uint64_t bytes, uint64_t duration_ns, unsigned speed)
{
    uint64_t rate = round <= 2 ? 200 : 12;

    return duration_ns / 100000 * rate * speed;
}

static void guest_that_became_quiet_runs_at_full_speed_again(void **state)
{
    struct run run = play(&(struct scene){
        .dirty = burst, .memory = 2000 * MB, .link = 125 * MB, .fixed_ns = 5 * MS, .throttle_max = 80});

    assert_int_equal(run.decision.verdict, POLICY_STOP);
    assert_true(run.throttle_most >= 20);
    assert_int_equal(run.decision.throttle, 0);
}

static void only_vcpus_that_write_are_slowed(void **state)
{
    static const uint64_t writes[] = {1000, 0, 900, 10};
    static const uint64_t none[] = {0, 0};
    unsigned percent[4];

    policy_spread(writes, 4, 40, percent);
    assert_int_equal(percent[0], 40);
    assert_int_equal(percent[1], 0);
    assert_int_equal(percent[2], 40);
    assert_int_equal(percent[3], 0);
    policy_spread(none, 2, 40, percent);
    assert_int_equal(percent[0], 40);
    assert_int_equal(percent[1], 40);
}

/* ---- quick resume ---- */

static void diverging_goes_on_by_quick_resume_when_allowed(void **state)
{
    struct scene scene = {.dirty = working_set,
                          .memory = 4000 * MB,
                          .link = 125 * MB,
                          .fixed_ns = 2 * MS,
                          .quick_resume = true};
    struct run run = play(&scene);

    assert_int_equal(run.decision.verdict, POLICY_QUICK_RESUME);
    assert_int_equal(run.decision.downtime_ns, 2 * MS);
    assert_non_null(strstr(run.decision.reason, "8.0 s, within the limit of 100.0 s: quick resume"));

    /* Slowing comes first. */
    scene.dirty = writer;
    scene.throttle_max = 80;
    assert_int_equal(play(&scene).decision.verdict, POLICY_STOP);
    scene.throttle_max = 10;
    run = play(&scene);
    assert_int_equal(run.decision.verdict, POLICY_QUICK_RESUME);
    assert_int_equal(run.throttle_most, 10);

    /* Over 100 s it is given up all the same. */
    scene =
        (struct scene){.dirty = fast_writer, .memory = 20000 * MB, .link = 125 * MB, .quick_resume = true};
    assert_int_equal(play(&scene).decision.verdict, POLICY_ABORT);
}

/* ---- looking ahead ---- */

static void forecast_is_what_happens(void **state)
{
    static const uint64_t rates[] = {0, 10, 32, 60, 100, 190, 1000};

    for (unsigned i = 0; i < 7; i++) {
        struct policy_model model = {.dirty_rate = rates[i] * MB, .working_set = 1500 * MB};
        struct policy_settings settings = {50 * MS, 100 * S, i % 2 ? 80 : 0, false};
        struct policy_costs costs = {.part_ns = {[FERRY_DOWNTIME_STATE_LOAD] = 4 * MS}};
        struct policy policy, ahead;
        struct policy_decision decision = {.verdict = POLICY_CONTINUE};
        struct policy_forecast forecast;
        uint64_t bytes = 2048 * MB, total = 0;
        unsigned rounds = 0;

        policy_init(&policy, &settings);
        ahead = policy;
        forecast = policy_forecast(&policy, bytes, 128 * MB, &model, &costs);
        assert_memory_equal(&policy, &ahead, sizeof(policy));
        while (decision.verdict == POLICY_CONTINUE) {
            struct policy_round round = {.sent_bytes = bytes, .wire_bytes = bytes, .costs = costs};
            double dirtied;

            round.duration_ns = (uint64_t)((double)bytes * 1e9 / (128.0 * 1e6));
            dirtied = (double)round.duration_ns / 1e9 * (double)model.dirty_rate *
                      (100.0 - decision.throttle) / 100;
            round.remaining_bytes =
                dirtied < (double)model.working_set ? (uint64_t)dirtied : model.working_set;
            decision = policy_decide(&policy, &round);
            total += round.duration_ns;
            bytes = round.remaining_bytes;
            rounds++;
        }
        assert_int_equal(forecast.verdict, decision.verdict);
        assert_int_equal(forecast.rounds, rounds);
        assert_int_equal(forecast.converges, decision.fits);
        assert_true(forecast.downtime_ns / 1000 == decision.downtime_ns / 1000);
        assert_in_range(forecast.total_ns / MS, (total + decision.downtime_ns) / MS - 1,
                        (total + decision.downtime_ns) / MS + 1);
    }
}

static void forecast_of_the_reference_table(void **state)
{
    struct policy_settings settings = {64 * MS, 100 * S, 0, false};
    struct policy_model model = {.dirty_rate = 32 * MB, .working_set = 2048 * MB};
    struct policy_costs costs = {.state_bytes = 0};
    struct policy policy;
    struct policy_forecast forecast;

    policy_init(&policy, &settings);
    forecast = policy_forecast(&policy, 2048 * MB, 128 * MB, &model, &costs);
    assert_int_equal(forecast.rounds, 4);
    assert_int_equal(forecast.bytes, 2728 * MB);
    assert_int_equal(forecast.downtime_ns, 62500000);
    assert_int_equal(forecast.total_ns / MS, 21312);
    assert_true(forecast.converges);
    model.dirty_rate = 200 * MB;
    forecast = policy_forecast(&policy, 2048 * MB, 128 * MB, &model, &costs);
    assert_false(forecast.converges);
    /* The rate is limited to 128 MB/s, but not while the guest is stopped. */
    model.frozen_bandwidth = 100000 * MB;
    forecast = policy_forecast(&policy, 2048 * MB, 128 * MB, &model, &costs);
    assert_true(forecast.converges);
    assert_int_equal(forecast.rounds, 1);
}

static void extreme_numbers_are_survived(void **state)
{
    static const uint64_t numbers[] = {0, 1, 4096, UINT64_MAX / 2, UINT64_MAX};

    for (int a = 0; a < 5; a++) {
        for (int b = 0; b < 5; b++) {
            struct policy_settings settings = {numbers[a], numbers[b], (unsigned)numbers[b], a % 2};
            struct policy_model model = {numbers[a], numbers[b], numbers[b]};
            struct policy policy;

            policy_init(&policy, &settings);
            for (int c = 0; c < 25; c++) {
                struct policy_round round = {.sent_bytes = numbers[c / 5],
                                             .wire_bytes = numbers[(b + c) % 5],
                                             .duration_ns = numbers[c % 5],
                                             .remaining_bytes = numbers[(a + c) % 5],
                                             .zero_bytes = numbers[(a + b) % 5],
                                             .frozen = {numbers[c / 5], numbers[c % 5], numbers[b]},
                                             .costs = {.state_bytes = numbers[b]}};
                struct policy_decision decision = policy_decide(&policy, &round);
                struct policy_forecast forecast =
                    policy_forecast(&policy, numbers[a], numbers[b], &model, &round.costs);

                assert_in_range(decision.verdict, POLICY_CONTINUE, POLICY_QUICK_RESUME);
                assert_in_range(forecast.verdict, POLICY_CONTINUE, POLICY_QUICK_RESUME);
                assert_true(decision.throttle <= POLICY_THROTTLE_MAX);
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
        cmocka_unit_test(a_burst_that_ebbs_away_is_waited_for),
        cmocka_unit_test(small_rounds_do_not_spoil_the_bandwidth),
        cmocka_unit_test(zeros_of_the_first_round_are_no_measure),
        cmocka_unit_test(zeros_do_not_make_what_is_left_cheap),
        cmocka_unit_test(what_encodings_save_counts),
        cmocka_unit_test(pages_left_out_do_not_make_what_is_left_cheap),
        cmocka_unit_test(a_compressed_first_round_counts_as_memory),
        cmocka_unit_test(every_fixed_cost_counts),
        cmocka_unit_test(pages_that_fit_alone_do_not_fit_with_the_fixed_cost),
        cmocka_unit_test(unreachable_limit_does_not_slow_the_guest),
        cmocka_unit_test(cap_does_not_count_while_frozen),
        cmocka_unit_test(guest_that_outruns_the_link_is_slowed_and_converges),
        cmocka_unit_test(operators_bound_holds),
        cmocka_unit_test(guest_that_became_quiet_runs_at_full_speed_again),
        cmocka_unit_test(only_vcpus_that_write_are_slowed),
        cmocka_unit_test(diverging_goes_on_by_quick_resume_when_allowed),
        cmocka_unit_test(forecast_is_what_happens),
        cmocka_unit_test(forecast_of_the_reference_table),
        cmocka_unit_test(extreme_numbers_are_survived),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
