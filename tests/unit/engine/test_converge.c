/* How a migration decides while a guest writes: what it costs the guest, and what is said of it. */
#include "harness.h"

#include "base/clock.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

static const uint64_t memory[] = {8 * MIB};
#define PAGES 2048

/* A guest that always has written PAGES x (100 - throttle) / 100 pages of its memory, whatever the scheduler
 * does. */
static int throttled_writer(void *guest, size_t region, uint64_t *bitmap, struct ferry_error *err)
{
    const struct fake_guest *fake = guest;
    size_t bytes = PAGES / 8 * (100 - fake->throttle) / 100;

    memset(bitmap, 0xff, bytes);
    return fake_guest_ops.dirty_fetch(guest, region, bitmap, err);
}

/* Writes everything at full speed, and next to nothing when slowed by half or more. */
static int tamed_writer(void *guest, size_t region, uint64_t *bitmap, struct ferry_error *err)
{
    const struct fake_guest *fake = guest;

    memset(bitmap, 0xff, fake->throttle < 50 ? PAGES / 8 : 1);
    return fake_guest_ops.dirty_fetch(guest, region, bitmap, err);
}

/* Over a Unix socket nobody can tell what the path carries beyond the rate limit: a quarter of a second for
 * all of memory, far above the downtime limit, on any machine. Pages go as they are: the writers here only
 * say that they write, and what did not change need not be sent in any other way. */
static void writer_init(struct migration *m,
                        int (*dirty_fetch)(void *, size_t, uint64_t *, struct ferry_error *))
{
    migration_init(m, memory, 1, true);
    migration_use_unix_socket(m);
    m->source_ops.dirty_fetch = dirty_fetch;
    fake_guest_fill(&m->source, 0, 0, PAGES, 1);
    fake_guest_run(&m->source, false);
    m->source.pattern = FAKE_PATTERN_RANDOM;
    m->source.pages_per_s = 100; /* beside what dirty_fetch says */
    fake_guest_run(&m->source, true);
    m->source_options.downtime_limit_ns = 100 * NS_PER_MS;
    m->source_options.bandwidth_limit = 32 * MIB;
    m->source_options.compress = FERRY_COMPRESS_OFF;
}

/* Slowed by 50 to 75 %, as what tamed_writer does asks for. */
static void assert_tamed(const struct migration *m)
{
    if (m->source.throttle_most < 50 || m->source.throttle_most > 75)
        fail_msg("slowed by %u %%:\n%s", m->source.throttle_most, m->source_witness.log);
}

static void fast_writer_is_slowed_and_let_go_at_the_end(void **state)
{
    struct migration m;

    writer_init(&m, tamed_writer);
    migration_run(&m);
    migration_assert_completed(&m);
    assert_tamed(&m);
    assert_int_equal(m.source_progress.throttle_percent_most, m.source.throttle_most);
    assert_int_equal(m.source_progress.throttle_percent, 0);
    assert_int_equal(m.source.throttle, 0);
    assert_non_null(strstr(m.source_witness.log, "the vCPUs are slowed by 25 % (at most 99 %)"));
    migration_free(&m);
}

static void only_the_vcpu_that_writes_is_slowed(void **state)
{
    struct migration m;

    writer_init(&m, tamed_writer);
    m.source.vcpus = 3;
    migration_run(&m);
    migration_assert_completed(&m);
    assert_tamed(&m);
    assert_int_equal(m.source.throttle_others, 0);
    assert_int_equal(m.source.throttle, 0);
    assert_non_null(strstr(m.source_witness.log, "1 of 3 vCPUs write and are slowed by 25 %"));
    migration_free(&m);
}

static void operators_bound_and_refusal_hold(void **state)
{
    for (unsigned i = 0; i < 2; i++) {
        struct migration m;

        writer_init(&m, throttled_writer);
        m.source_options.throttle_max = 30;
        m.source_options.no_throttle = i == 1;
        migration_run(&m);
        migration_assert_completed(&m);
        assert_int_equal(m.source.throttle_most, i == 1 ? 0 : 30);
        assert_int_equal(m.source.throttle, 0);
        if (!strstr(m.source_witness.log, "stop and finish"))
            fail_msg("it did not stop as one that does not get any smaller:\n%s", m.source_witness.log);
        migration_free(&m);
    }
}

static void too_high_a_bound_is_refused(void **state)
{
    struct migration m;
    struct ferry_session *session = NULL;
    struct ferry_error err = {0};

    migration_init(&m, memory, 1, true);
    m.source_options.throttle_max = 100;
    assert_int_equal(ferry_source_new(&session, &m.source_options, &m.source_ops, &m.source, NULL, &err),
                     -EINVAL);
    assert_non_null(strstr(err.text, "at most by 99 %"));
    migration_free(&m);
}

static void guest_that_cannot_be_slowed_is_not(void **state)
{
    struct migration m;

    writer_init(&m, throttled_writer);
    m.source_ops.throttle = NULL;
    migration_run(&m);
    migration_assert_completed(&m);
    assert_int_equal(m.source_progress.throttle_percent_most, 0);
    migration_free(&m);
}

static void given_up_guest_runs_at_full_speed(void **state)
{
    struct migration m;

    writer_init(&m, throttled_writer);
    m.source_options.copy_time_limit_ns = NS_PER_MS;
    m.source_options.throttle_max = 40;
    migration_run(&m);
    assert_int_equal(m.source_result, -ETIME);
    assert_int_equal(m.source_progress.cause, FERRY_CAUSE_CONVERGENCE);
    assert_int_equal(m.source.throttle_most, 40);
    assert_int_equal(m.source.throttle, 0);
    migration_assert_one(&m, true);
    migration_free(&m);
}

static void cancel_when_slowed(void *opaque, const char *step)
{
    struct migration *m = opaque;

    if (strcmp(step, "throttle") == 0)
        ferry_session_cancel(m->from, NULL);
}

static void cancelled_guest_runs_at_full_speed(void **state)
{
    struct migration m;

    writer_init(&m, throttled_writer);
    m.source.on_step = cancel_when_slowed;
    m.source.opaque = &m;
    migration_run(&m);
    assert_int_equal(m.source_progress.outcome, FERRY_OUTCOME_CANCELLED);
    assert_true(m.source.throttle_most > 0);
    assert_int_equal(m.source.throttle, 0);
    migration_assert_one(&m, true);
    migration_free(&m);
}

static int all_written(void *guest, size_t region, uint64_t *bitmap, struct ferry_error *err)
{
    memset(bitmap, 0xff, PAGES / 8);
    return fake_guest_ops.dirty_fetch(guest, region, bitmap, err);
}

/* 8 MiB take a second each round, but not while the guest is stopped. */
static void rate_limit_does_not_prolong_the_downtime(void **state)
{
    struct migration m;

    writer_init(&m, all_written);
    m.source_options.bandwidth_limit = 8 * MIB;
    m.source_options.no_throttle = true;
    migration_run(&m);
    migration_assert_completed(&m);
    assert_int_equal(m.source_progress.rounds[m.source_progress.round - 1].pages, PAGES);
    assert_true(m.source_progress.rounds[0].duration_ns > 700 * NS_PER_MS);
    assert_true(m.source_progress.downtime_ns < 900 * NS_PER_MS);
    migration_free(&m);
}

/* Looks at the threads of this process: how nice those that move pages are. */
struct priorities {
    int threads;
    int least; /* the least nice of them */
};

static int look_at_threads(void *guest, size_t region, uint64_t *bitmap, struct ferry_error *err)
{
    struct priorities *found = ((struct fake_guest *)guest)->opaque;
    DIR *tasks = opendir("/proc/self/task");
    const struct dirent *task;

    assert_non_null(tasks);
    while ((task = readdir(tasks))) {
        char path[300], name[32] = "";
        FILE *comm;
        int nice;

        snprintf(path, sizeof(path), "/proc/self/task/%s/comm", task->d_name);
        comm = fopen(path, "r");
        if (!comm)
            continue;
        if (fgets(name, sizeof(name), comm) &&
            (strncmp(name, "ferry-send", 10) == 0 || strncmp(name, "ferry-recv", 10) == 0)) {
            nice = getpriority(PRIO_PROCESS, (id_t)strtoul(task->d_name, NULL, 10));
            found->least = found->threads++ == 0 || nice < found->least ? nice : found->least;
        }
        fclose(comm);
    }
    closedir(tasks);
    return fake_guest_ops.dirty_fetch(guest, region, bitmap, err);
}

static void copying_is_less_urgent_than_the_guest(void **state)
{
    struct migration m;
    struct priorities found = {0};
    int own = getpriority(PRIO_PROCESS, 0);

    if (own >= 19)
        skip();
    migration_init(&m, memory, 1, true);
    fake_guest_fill(&m.source, 0, 0, PAGES, 1);
    m.source.opaque = &found;
    m.source_ops.dirty_fetch = look_at_threads;
    m.source_options.streams = 2;
    migration_run(&m);
    migration_assert_completed(&m);
    assert_true(found.threads >= 4);
    assert_true(found.least > own);
    migration_free(&m);
}

/* The decision names what was known of the switchover. */
static void known_costs_are_in_the_decision(void **state)
{
    struct migration m;
    const char *line;
    double fixed_ms = 0;

    migration_init(&m, memory, 1, true);
    m.source_options.known_part_ns[FERRY_DOWNTIME_LOCK] = 400 * NS_PER_MS;
    m.source_options.downtime_limit_ns = NS_PER_S;
    migration_run(&m);
    migration_assert_completed(&m);
    line = strstr(m.source_witness.log, "Pre-copy decision: stop: 0 bytes left");
    assert_non_null(line);
    line = strstr(line, "for what is left, ");
    assert_non_null(line);
    assert_int_equal(sscanf(line, "for what is left, %lf ms fixed", &fixed_ms), 1);
    assert_true(fixed_ms > 600 && fixed_ms < 1000);
    assert_true(m.source_progress.state_bytes > 0);
    migration_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fast_writer_is_slowed_and_let_go_at_the_end),
        cmocka_unit_test(only_the_vcpu_that_writes_is_slowed),
        cmocka_unit_test(operators_bound_and_refusal_hold),
        cmocka_unit_test(too_high_a_bound_is_refused),
        cmocka_unit_test(guest_that_cannot_be_slowed_is_not),
        cmocka_unit_test(given_up_guest_runs_at_full_speed),
        cmocka_unit_test(cancelled_guest_runs_at_full_speed),
        cmocka_unit_test(rate_limit_does_not_prolong_the_downtime),
        cmocka_unit_test(copying_is_less_urgent_than_the_guest),
        cmocka_unit_test(known_costs_are_in_the_decision),
    };

    return run_tests_apart(tests, NULL, NULL);
}
