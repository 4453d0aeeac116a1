/* Whole migrations of fake guests: what arrives is what left, and what is told of it is right. */
#include "harness.h"

#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const uint64_t small[] = {8 * MIB};

static void idle_guest_arrives_whole(void **state)
{
    struct migration m;

    migration_init(&m, small, 1, true);
    fake_guest_fill(&m.source, 0, 0, 1024, 1);
    migration_run(&m);
    migration_assert_completed(&m);
    assert_true(fake_guest_running(&m.destination));
    assert_counts(&m.destination);
    assert_true(m.destination.advanced_ns > 0);
    assert_int_equal(m.destination.announced, 1);
    assert_int_equal(m.source.throttle, 0);
    assert_false(m.source.tracking);
    migration_free(&m);
}

static void writing_guest_arrives_whole(void **state)
{
    static const enum fake_pattern patterns[] = {FAKE_PATTERN_SWEEP, FAKE_PATTERN_RANDOM, FAKE_PATTERN_ZERO};

    for (size_t i = 0; i < 3; i++) {
        for (unsigned streams = 1; streams <= 3; streams++) {
            struct migration m;

            migration_init(&m, small, 1, true);
            fake_guest_fill(&m.source, 0, 0, 2048, i + 1);
            fake_guest_run(&m.source, false);
            m.source.pattern = patterns[i];
            m.source.pages_per_s = 20000;
            fake_guest_run(&m.source, true);
            m.source_options.streams = streams;
            m.source_options.verify_memory = true;
            migration_run(&m);
            migration_assert_completed(&m);
            migration_free(&m);
        }
    }
}

/* A guest that has always written all of its memory: whatever the scheduler does. */
static int everything_is_dirty(void *guest, size_t region, uint64_t *bitmap, struct ferry_error *err)
{
    const struct fake_guest *fake = guest;

    memset(bitmap, 0xff, fake->regions[region].size / FERRY_PAGE_SIZE / 8);
    return fake_guest_ops.dirty_fetch(guest, region, bitmap, err);
}

/* Writes all of memory as fast as a thread can: rounds do not shrink, it is stopped and finished. */
static void fast_writer_is_stopped_and_finished(void **state)
{
    struct migration m;

    migration_init(&m, (uint64_t[]){64 * MIB}, 1, true);
    m.source_ops.dirty_fetch = everything_is_dirty;
    fake_guest_fill(&m.source, 0, 0, 16384, 1);
    fake_guest_run(&m.source, false);
    m.source.pattern = FAKE_PATTERN_SWEEP;
    fake_guest_run(&m.source, true);
    m.source_options.streams = 2;
    m.source_options.downtime_limit_ns = 1000; /* never fits */
    m.source_options.verify_memory = true;
    migration_run(&m);
    migration_assert_completed(&m);
    /* The last round was a large one: it went by the page connections. */
    assert_true(m.source_progress.rounds[m.source_progress.round - 1].pages > 2048);
    migration_free(&m);
}

static void guest_outrunning_the_link_is_given_up(void **state)
{
    struct migration m;

    migration_init(&m, small, 1, true);
    m.source_ops.dirty_fetch = everything_is_dirty;
    fake_guest_fill(&m.source, 0, 0, 2048, 1);
    fake_guest_run(&m.source, false);
    m.source.pattern = FAKE_PATTERN_SWEEP;
    fake_guest_run(&m.source, true);
    m.source_options.downtime_limit_ns = 1000;
    m.source_options.copy_time_limit_ns = 1000;
    migration_run(&m);
    assert_int_equal(m.source_result, -ETIME);
    assert_int_equal(m.source_progress.cause, FERRY_CAUSE_CONVERGENCE);
    assert_int_equal(m.destination_progress.cause, FERRY_CAUSE_CONVERGENCE);
    assert_non_null(strstr(m.destination_progress.error, "does not converge"));
    migration_assert_one(&m, true);
    migration_free(&m);
}

static void several_regions_and_mixed_memory_arrive(void **state)
{
    static const uint64_t sizes[] = {4096, 3 * MIB, 2 * MIB + 4096, 300 * 4096};

    for (int memfd = 0; memfd < 2; memfd++) {
        struct migration m;

        migration_init(&m, sizes, 4, memfd);
        fake_guest_fill(&m.source, 0, 0, 1, 1);
        for (uint64_t page = 0; page < 768; page += 7)
            fake_guest_fill(&m.source, 1, page, 1 + page % 3, page);
        memset(m.source.regions[2].host_ptr, 0, MIB);
        m.source.regions[2].host_ptr[MIB - 1] = 1;
        fake_guest_fill(&m.source, 3, 299, 1, 9);
        m.source_options.streams = 4;
        migration_run(&m);
        migration_assert_completed(&m);
        migration_free(&m);
    }
}

static uint64_t allocated(const struct fake_guest *guest)
{
    struct stat status;

    assert_int_equal(fstat(guest->regions[0].memfd, &status), 0);
    return (uint64_t)status.st_blocks * 512;
}

static void untouched_memory_stays_untouched_on_both_sides(void **state)
{
    struct migration m;

    migration_init(&m, (uint64_t[]){64 * MIB}, 1, true);
    fake_guest_fill(&m.source, 0, 100, 256, 1);
    /* Allocated, but only zeros: not sent as bytes, not allocated at the destination. */
    memset(m.source.regions[0].host_ptr + 8 * MIB, 0, 4 * MIB);
    migration_run(&m);
    assert_int_equal(m.source_result, 0);
    assert_true(allocated(&m.source) <= 6 * MIB);
    assert_true(allocated(&m.destination) <= 2 * MIB);
    assert_int_equal(m.source_progress.pages_raw, 256);
    assert_int_equal(m.source_progress.pages_zero, 1024);
    assert_int_equal(m.source_progress.pages_skipped, 64 * 256 - 256 - 1024);
    assert_true(m.source_progress.wire_bytes < 256 * 4096 + 2048);
    migration_assert_completed(&m);
    migration_free(&m);
}

/* Pages [first, first + pages) of the first region that were touched since they were allocated. */
static size_t touched(const struct fake_guest *guest, size_t first, size_t pages)
{
    unsigned char *there = malloc(pages);
    size_t count = 0;

    assert_int_equal(
        mincore(guest->regions[0].host_ptr + first * FERRY_PAGE_SIZE, pages * FERRY_PAGE_SIZE, there), 0);
    for (size_t i = 0; i < pages; i++)
        count += there[i] & 1;
    free(there);
    return count;
}

struct look {
    const struct fake_guest *destination;
    size_t in_use;
    size_t all;
};

static void look_at_destination_memory(void *opaque, const char *step)
{
    struct look *look = opaque;

    if (strcmp(step, "dirty_start") != 0)
        return;
    look->in_use = touched(look->destination, 320, 3000);
    look->all = touched(look->destination, 0, 64 * 256);
}

static void reserved_memory_is_faulted_in_before_writes_are_tracked(void **state)
{
    struct migration m;
    struct look look = {.destination = &m.destination};

    migration_init(&m, (uint64_t[]){64 * MIB}, 1, true);
    migration_use_two_addresses(&m);
    fake_guest_fill(&m.source, 0, 320, 3000, 1);
    assert_int_equal(fallocate(m.destination.regions[0].memfd, 0, 0, 64 * MIB), 0);
    m.source.opaque = &look;
    m.source.on_step = look_at_destination_memory;
    migration_run(&m);
    migration_assert_completed(&m);
    assert_int_equal(look.in_use, 3000);
    assert_int_equal(look.all, 3008); /* to the granule, and nothing else */
    migration_free(&m);
}

/* A destination whose memory was used before must not keep any of it. */
static void stale_destination_memory_is_cleared(void **state)
{
    struct migration m;

    migration_init(&m, small, 1, true);
    fake_guest_fill(&m.source, 0, 0, 64, 1);
    fake_guest_fill(&m.destination, 0, 32, 512, 2);
    migration_run(&m);
    migration_assert_completed(&m);
    migration_free(&m);
}

static void pages_that_become_zero_are_cleared_at_the_destination(void **state)
{
    struct migration m;

    migration_init(&m, small, 1, true);
    fake_guest_fill(&m.source, 0, 0, 2048, 1);
    fake_guest_run(&m.source, false);
    m.source.pattern = FAKE_PATTERN_ZERO;
    fake_guest_run(&m.source, true);
    m.source_options.verify_memory = true;
    migration_run(&m);
    migration_assert_completed(&m);
    migration_free(&m);
}

static void paused_guest_stays_paused(void **state)
{
    struct migration m;

    migration_init(&m, small, 1, true);
    fake_guest_fill(&m.source, 0, 0, 64, 1);
    fake_guest_run(&m.source, false);
    migration_run(&m);
    migration_assert_completed(&m);
    assert_false(fake_guest_running(&m.destination));
    assert_int_equal(m.destination.advanced_ns, 0);
    migration_free(&m);
}

static void many_and_large_sections_arrive(void **state)
{
    struct migration m;

    migration_init(&m, small, 1, true);
    m.source.extra_sections = FERRY_SECTIONS_MAX - 1;
    m.source.extra_size = 100000;
    migration_run(&m);
    migration_assert_completed(&m);
    migration_free(&m);

    migration_init(&m, small, 1, true);
    m.source.extra_sections = 1;
    m.source.extra_size = FERRY_SECTION_SIZE_MAX;
    migration_run(&m);
    migration_assert_completed(&m);
    migration_free(&m);
}

static void too_many_sections_leave_the_source_running(void **state)
{
    struct migration m;

    migration_init(&m, small, 1, true);
    m.source.extra_sections = FERRY_SECTIONS_MAX;
    m.source.extra_size = 1;
    migration_run(&m);
    assert_true(m.source_result < 0);
    assert_non_null(strstr(m.source_error.text, "at most 256 sections"));
    migration_assert_one(&m, true);
    migration_free(&m);
}

static void states_and_phases_come_in_order(void **state)
{
    static const enum ferry_state source[] = {MIGRATE_TO_VMX_READY,    MIGRATE_TO_VMX_PRECOPY,
                                              MIGRATE_TO_VMX_CHECKPT,  MIGRATE_TO_VMX_WAIT_HANDSHAKE,
                                              MIGRATE_TO_VMX_FINISHED, MIGRATE_VMX_NONE};
    static const enum ferry_state destination[] = {MIGRATE_FROM_VMX_INIT,     MIGRATE_FROM_VMX_WAITING,
                                                   MIGRATE_FROM_VMX_PRECOPY,  MIGRATE_FROM_VMX_CHECKPT,
                                                   MIGRATE_FROM_VMX_FINISHED, MIGRATE_VMX_NONE};
    static const enum ferry_phase phases[] = {FERRY_PHASE_COPY, FERRY_PHASE_QUIESCE, FERRY_PHASE_FROZEN};
    struct ferry_progress progress;
    struct migration m;

    migration_init(&m, small, 1, true);
    migration_create(&m);
    ferry_session_progress(m.from, &progress);
    assert_int_equal(progress.state, MIGRATE_VMX_NONE);
    ferry_session_progress(m.to, &progress);
    assert_int_equal(progress.state, MIGRATE_FROM_VMX_INIT);
    assert_int_equal(progress.phase, FERRY_PHASE_INIT);
    migration_run(&m);
    migration_assert_completed(&m);
    assert_int_equal(m.source_witness.state_count, 6);
    assert_memory_equal(m.source_witness.states, source, sizeof(source));
    assert_int_equal(m.destination_witness.state_count, 6);
    assert_memory_equal(m.destination_witness.states, destination, sizeof(destination));
    assert_int_equal(m.source_witness.phase_count, 3);
    assert_memory_equal(m.source_witness.phases, phases, sizeof(phases));
    assert_int_equal(m.source_progress.percent, 100);
    assert_int_equal(m.destination_progress.percent, 100);
    migration_free(&m);
}

static void downtime_is_the_sum_of_its_parts(void **state)
{
    struct migration m;
    uint64_t sum = 0;

    migration_init(&m, small, 1, true);
    fake_guest_fill(&m.source, 0, 0, 256, 1);
    migration_run(&m);
    migration_assert_completed(&m);
    for (int i = 0; i < FERRY_DOWNTIME_PARTS; i++)
        sum += m.source_progress.downtime_part_ns[i];
    assert_int_equal(sum, m.source_progress.downtime_ns);
    assert_true(m.source_progress.downtime_ns > 0);
    assert_true(m.source_progress.downtime_ns <= m.source_progress.total_ns);
    assert_true(m.source_progress.downtime_part_ns[FERRY_DOWNTIME_RESUME] > 0);
    migration_free(&m);
}

static void bytes_are_the_same_on_both_sides(void **state)
{
    struct migration m;

    migration_init(&m, small, 1, true);
    fake_guest_fill(&m.source, 0, 0, 256, 1);
    m.source_options.streams = 2;
    migration_run(&m);
    migration_assert_completed(&m);
    /* The greetings of all three connections are read before the destination counts. */
    assert_in_range(m.source_progress.wire_bytes - m.destination_progress.wire_bytes, 1, 3 * 512);
    assert_int_equal(m.source_progress.pages_raw, m.destination_progress.pages_raw);
    migration_free(&m);
}

static void log_lines_are_those_operators_search_for(void **state)
{
    struct migration m;
    char *log;
    char *line;
    unsigned long long pages;
    long long last = -2;
    long long expected = -1;

    migration_init(&m, (uint64_t[]){32 * MIB}, 1, true);
    m.source_ops.dirty_fetch = everything_is_dirty;
    fake_guest_fill(&m.source, 0, 0, 8192, 1);
    fake_guest_run(&m.source, false);
    m.source.pattern = FAKE_PATTERN_RANDOM;
    fake_guest_run(&m.source, true);
    m.source_options.downtime_limit_ns = 1000;
    migration_run(&m);
    migration_assert_completed(&m);
    log = m.source_witness.log;
    assert_non_null(strstr(log, "MIGRATE_TO_VMX_READY (1)\n"));
    assert_non_null(strstr(log, "MIGRATE_VMX_NONE (0)\n"));
    assert_non_null(
        strstr(log, "Migration 3f1c9a52-0000-4000-8000-00000000feed set up: source ip 127.0.0.1:"));
    assert_non_null(strstr(log, ", destination VM process id 4711\n"));
    for (line = log; (line = strstr(line, "Another pre-copy")); line++) {
        assert_int_equal(sscanf(line,
                                "Another pre-copy iteration needed with %llu modified pages (last = %lld)\n",
                                &pages, &last),
                         2);
        assert_int_equal(last, expected);
        expected = (long long)pages;
    }
    assert_int_not_equal(last, -2);
    line = strstr(log, "Stopping pre-copy");
    assert_non_null(line);
    assert_int_equal(sscanf(line, "Stopping pre-copy: only %llu pages were modified\n", &pages), 1);
    migration_free(&m);
}

static void two_migrations_at_once_do_not_disturb_each_other(void **state)
{
    struct migration a;
    struct migration b;

    migration_init(&a, small, 1, true);
    migration_init(&b, small, 1, true);
    fake_guest_fill(&a.source, 0, 0, 512, 1);
    fake_guest_fill(&b.source, 0, 0, 512, 2);
    migration_create(&a);
    migration_create(&b);
    migration_start_destination(&b);
    migration_run(&a);
    b.source_result = ferry_session_run(b.from, &b.source_error);
    ferry_session_progress(b.from, &b.source_progress);
    migration_join_destination(&b);
    migration_assert_completed(&a);
    migration_assert_completed(&b);
    migration_free(&a);
    migration_free(&b);
}

static void session_that_never_ran_can_be_freed_and_cancelled(void **state)
{
    struct migration m;

    migration_init(&m, small, 1, true);
    migration_create(&m);
    assert_int_equal(ferry_session_cancel(m.from, NULL), 0);
    assert_int_equal(ferry_session_cancel(m.from, NULL), 0);
    migration_run(&m);
    assert_int_equal(m.source_result, -ECANCELED);
    assert_int_equal(m.source_progress.outcome, FERRY_OUTCOME_CANCELLED);
    assert_int_equal(ferry_session_cancel(m.from, NULL), -EALREADY);
    assert_int_equal(ferry_session_run(m.from, NULL), -EALREADY);
    migration_assert_one(&m, true);
    migration_free(&m);

    migration_init(&m, small, 1, true);
    migration_create(&m);
    migration_free(&m);
}

static void nonsense_options_are_refused(void **state)
{
    struct migration m;
    struct ferry_session *session = NULL;
    struct ferry_error err = {0};
    struct ferry_source_options options;
    struct ferry_guest_ops ops = fake_guest_ops;

    migration_init(&m, small, 1, true);
    options = m.source_options;
    options.streams = FERRY_STREAMS_MAX + 1;
    assert_int_equal(ferry_source_new(&session, &options, &fake_guest_ops, &m.source, NULL, &err), -EINVAL);
    options = m.source_options;
    options.migration_id[0] = '\0';
    assert_int_equal(ferry_source_new(&session, &options, &fake_guest_ops, &m.source, NULL, &err), -EINVAL);
    options = m.source_options;
    memset(options.address, 'x', sizeof(options.address));
    assert_int_equal(ferry_source_new(&session, &options, &fake_guest_ops, &m.source, NULL, &err), -EINVAL);
    ops.pause = NULL;
    assert_int_equal(ferry_source_new(&session, &m.source_options, &ops, &m.source, NULL, &err), -EINVAL);
    ops.acquire_ownership = NULL;
    assert_int_equal(
        ferry_destination_new(&session, &m.destination_options, &ops, &m.destination, NULL, &err), -EINVAL);
    assert_null(session);
    migration_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(idle_guest_arrives_whole),
        cmocka_unit_test(writing_guest_arrives_whole),
        cmocka_unit_test(fast_writer_is_stopped_and_finished),
        cmocka_unit_test(guest_outrunning_the_link_is_given_up),
        cmocka_unit_test(several_regions_and_mixed_memory_arrive),
        cmocka_unit_test(untouched_memory_stays_untouched_on_both_sides),
        cmocka_unit_test(reserved_memory_is_faulted_in_before_writes_are_tracked),
        cmocka_unit_test(stale_destination_memory_is_cleared),
        cmocka_unit_test(pages_that_become_zero_are_cleared_at_the_destination),
        cmocka_unit_test(paused_guest_stays_paused),
        cmocka_unit_test(many_and_large_sections_arrive),
        cmocka_unit_test(too_many_sections_leave_the_source_running),
        cmocka_unit_test(states_and_phases_come_in_order),
        cmocka_unit_test(downtime_is_the_sum_of_its_parts),
        cmocka_unit_test(bytes_are_the_same_on_both_sides),
        cmocka_unit_test(log_lines_are_those_operators_search_for),
        cmocka_unit_test(two_migrations_at_once_do_not_disturb_each_other),
        cmocka_unit_test(session_that_never_ran_can_be_freed_and_cancelled),
        cmocka_unit_test(nonsense_options_are_refused),
    };

    return run_tests_apart(tests, NULL, NULL);
}
