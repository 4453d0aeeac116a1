/* Quick resume of fake guests: whatever is touched in whatever order, through whatever breaks, is what it
 * was. */
#include "harness.h"

#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static void quick_migration(struct migration *m, const uint64_t *sizes, size_t count,
                            enum fake_pattern pattern, uint64_t pages_per_s, unsigned rounds)
{
    migration_init(m, sizes, count, true);
    fake_guest_run(&m->source, false);
    for (size_t i = 0; i < count; i++) {
        uint64_t pages = sizes[i] / FERRY_PAGE_SIZE;

        /* Holes remain, and pages that were written and are zero. */
        fake_guest_fill(&m->source, i, 0, pages / 2, i + 1);
        memset(m->source.regions[i].host_ptr + pages / 8 * FERRY_PAGE_SIZE, 0, pages / 16 * FERRY_PAGE_SIZE);
    }
    m->source.pattern = m->destination.pattern = pattern;
    m->source.pages_per_s = m->destination.pages_per_s = pages_per_s;
    fake_guest_run(&m->source, true);
    m->source_options.quick_resume = FERRY_QUICK_RESUME_NOW;
    m->source_options.quick_resume_rounds = rounds;
    m->source_options.reconnect_ns = 20 * NS_PER_S;
}

/* The destination has what the source had at the stop, changed by what the vCPU has done since. */
static void assert_memory(struct migration *m)
{
    uint64_t done;

    fake_guest_run(&m->destination, false);
    assert_int_equal(m->destination.held, 0);
    done = fake_guest_count(&m->destination) - fake_guest_count(&m->source);
    fake_guest_step(&m->source, done);
    assert_int_equal(m->source.random, m->destination.random);
    for (size_t i = 0; i < m->source.region_count; i++)
        assert_int_equal(memcmp(m->source.regions[i].host_ptr, m->destination.regions[i].host_ptr,
                                m->source.regions[i].size),
                         0);
}

static void assert_quickly_completed(struct migration *m)
{
    if (m->source_result < 0)
        fail_msg("source: %s", m->source_error.text);
    if (m->destination_result < 0)
        fail_msg("destination: %s", m->destination_error.text);
    assert_int_equal(m->source_progress.outcome, FERRY_OUTCOME_COMPLETED);
    assert_int_equal(m->destination_progress.outcome, FERRY_OUTCOME_COMPLETED);
    assert_true(m->source_progress.fetch.used && m->destination_progress.fetch.used);
    assert_false(m->source_progress.fetch.running || m->destination_progress.fetch.running);
    assert_int_equal(m->source_progress.fetch.missing_pages, m->destination_progress.fetch.missing_pages);
    assert_int_equal(m->source_progress.fetch.faults, m->destination_progress.fetch.faults);
    assert_int_equal(m->destination_progress.remaining_bytes, 0);
    assert_false(fake_guest_running(&m->source));
    assert_int_equal(m->owner.running_max, 1);
    assert_ptr_equal(m->owner.holder, &m->destination);
    assert_false(m->source_witness.percent_fell);
    assert_false(m->destination_witness.percent_fell);
    assert_counts(&m->destination);
    assert_memory(m);
}

static void writing_guest_arrives_whole_in_every_mode(void **state)
{
    static const enum fake_pattern patterns[] = {FAKE_PATTERN_NONE, FAKE_PATTERN_SWEEP, FAKE_PATTERN_RANDOM,
                                                 FAKE_PATTERN_ZERO};
    static const uint64_t sizes[] = {8 * MIB, 3 * MIB + 4096};

    for (size_t i = 0; i < 4; i++) {
        for (unsigned rounds = 0; rounds <= 2; rounds++) {
            struct migration m;

            quick_migration(&m, sizes, 1 + i % 2, patterns[i], 20000, rounds);
            m.source_options.streams = 1 + (unsigned)i % 3;
            migration_run(&m);
            assert_quickly_completed(&m);
            if (rounds == 0)
                assert_true(m.source_progress.fetch.missing_pages >= 1024);
            migration_free(&m);
        }
    }
}

/* Everything comes by being asked for: the background is held back. */
static void pages_come_on_demand(void **state)
{
    struct migration m;
    struct ferry_progress *progress = &m.destination_progress;

    quick_migration(&m, (uint64_t[]){4 * MIB}, 1, FAKE_PATTERN_SWEEP, 0, 0);
    m.source_options.bandwidth_limit = 1 << 20;
    migration_run(&m);
    assert_quickly_completed(&m);
    assert_true(progress->fetch.faults > 20);
    /* Asked for one after the other, the next ones come along. */
    assert_true(progress->fetch.faults < progress->fetch.missing_pages / 4);
    assert_true(progress->fetch.fault_median_ns > 0);
    assert_true(progress->fetch.fault_median_ns <= progress->fetch.fault_p99_ns);
    assert_true(progress->fetch.fault_p99_ns <= progress->fetch.fault_max_ns);
    assert_int_equal(m.source_progress.fetch.fault_median_ns, progress->fetch.fault_median_ns);
    assert_true(m.source_progress.downtime_ns > 0);
    migration_free(&m);
}

/* What is asked for is more than the limit allows: that is made up for by what nobody waits for, and not by
 * a page that was about to go unasked. */
static void limit_holds_up_nobody_who_waits(void **state)
{
    struct migration m;

    quick_migration(&m, (uint64_t[]){8 * MIB}, 1, FAKE_PATTERN_SWEEP, 4000, 0);
    m.source_options.bandwidth_limit = 256 << 10;
    migration_run(&m);
    assert_quickly_completed(&m);
    assert_true(m.destination_progress.fetch.fault_max_ns < 2 * NS_PER_S);
    migration_free(&m);
}

static void states_and_phases_are_told_in_order(void **state)
{
    static const enum ferry_phase phases[] = {FERRY_PHASE_COPY, FERRY_PHASE_QUIESCE, FERRY_PHASE_FROZEN,
                                              FERRY_PHASE_FETCH};
    struct migration m;

    quick_migration(&m, (uint64_t[]){4 * MIB}, 1, FAKE_PATTERN_RANDOM, 20000, 1);
    migration_run(&m);
    assert_quickly_completed(&m);
    assert_int_equal(m.source_witness.phase_count, 4);
    assert_memory_equal(m.source_witness.phases, phases, sizeof(phases));
    for (enum ferry_state s = MIGRATE_TO_VMX_READY; s <= MIGRATE_TO_VMX_FINISHED; s++)
        assert_int_equal(m.source_witness.states[s - MIGRATE_TO_VMX_READY], s);
    assert_non_null(strstr(m.source_witness.log, "quick resume"));
    assert_non_null(strstr(m.destination_witness.log, "All memory is here"));
    migration_free(&m);
}

static void paused_guest_arrives_paused_and_whole(void **state)
{
    struct migration m;

    quick_migration(&m, (uint64_t[]){4 * MIB}, 1, FAKE_PATTERN_RANDOM, 20000, 0);
    fake_guest_run(&m.source, false);
    migration_run(&m);
    if (m.source_result < 0)
        fail_msg("%s", m.source_error.text);
    assert_int_equal(m.destination_result, 0);
    assert_false(fake_guest_running(&m.destination));
    assert_memory(&m);
    migration_free(&m);
}

static void guest_without_memory_descriptors_is_refused(void **state)
{
    struct migration m;

    migration_init(&m, (uint64_t[]){MIB}, 1, false);
    m.source_options.quick_resume = FERRY_QUICK_RESUME_NOW;
    migration_run(&m);
    assert_int_equal(m.source_progress.outcome, FERRY_OUTCOME_FAILED);
    assert_non_null(strstr(m.source_error.text, "no descriptor"));
    migration_assert_one(&m, true);
    migration_free(&m);

    /* Only allowed: it goes without. */
    migration_init(&m, (uint64_t[]){MIB}, 1, false);
    m.source_options.quick_resume = FERRY_QUICK_RESUME_ALLOWED;
    migration_run(&m);
    migration_assert_completed(&m);
    assert_false(m.source_progress.fetch.used);
    assert_non_null(strstr(m.destination_witness.log, "without quick resume"));
    migration_free(&m);
}

/* A guest that has always written all of its memory: whatever the scheduler does. */
static int everything_is_dirty(void *guest, size_t region, uint64_t *bitmap, struct ferry_error *err)
{
    const struct fake_guest *fake = guest;

    memset(bitmap, 0xff, fake->regions[region].size / FERRY_PAGE_SIZE / 8);
    return fake_guest_ops.dirty_fetch(guest, region, bitmap, err);
}

/* It may not be slowed. */
static void rounds_that_do_not_shrink_end_in_quick_resume(void **state)
{
    struct migration m;

    quick_migration(&m, (uint64_t[]){8 * MIB}, 1, FAKE_PATTERN_SWEEP, 20000, 0);
    m.source_options.quick_resume = FERRY_QUICK_RESUME_ALLOWED;
    m.source_options.no_throttle = true;
    m.source_options.downtime_limit_ns = 1;
    m.source_ops.dirty_fetch = everything_is_dirty;
    migration_run(&m);
    assert_quickly_completed(&m);
    assert_non_null(strstr(m.source_witness.log, "quick resume:"));
    migration_free(&m);
}

/* It is only allowed: nothing comes of it when it is not needed. */
static void converging_guest_needs_no_quick_resume(void **state)
{
    struct migration m;

    migration_init(&m, (uint64_t[]){4 * MIB}, 1, true);
    fake_guest_fill(&m.source, 0, 0, 512, 3);
    m.source_options.quick_resume = FERRY_QUICK_RESUME_ALLOWED;
    migration_run(&m);
    migration_assert_completed(&m);
    assert_false(m.source_progress.fetch.used || m.destination_progress.fetch.used);
    migration_free(&m);
}

static uint64_t bytes_of_a_migration(void)
{
    struct migration m;
    uint64_t bytes;

    quick_migration(&m, (uint64_t[]){2 * MIB}, 1, FAKE_PATTERN_RANDOM, 20000, 0);
    migration_cut_after(&m, UINT64_MAX);
    migration_run(&m);
    assert_quickly_completed(&m);
    migration_free(&m); /* the proxy has ended */
    bytes = m.proxy.forwarded;
    return bytes;
}

/* All connections are cut at any moment, up to three times: before GO the source goes on, after it the guest
 * stands still and goes on. */
static void connection_cut_anywhere_is_made_again(void **state)
{
    uint64_t total = bytes_of_a_migration();
    unsigned failed = 0, completed = 0, held = 0;
    unsigned seed = 7;

    assert_true(total > 200 * 4096);
    for (unsigned i = 0; i < 60; i++) {
        struct migration m;
        uint64_t cut = i < 20 ? 100 + i * 97 : 2000 + (uint64_t)rand_r(&seed) % (total - 2000);

        quick_migration(&m, (uint64_t[]){2 * MIB}, 1, i % 2 ? FAKE_PATTERN_RANDOM : FAKE_PATTERN_SWEEP,
                        i % 3 ? 20000 : 0, 0);
        migration_cut_often(&m, cut, 1 + i % 3);
        migration_run(&m);
        if (m.source_progress.outcome == FERRY_OUTCOME_FAILED) {
            migration_assert_one(&m, true);
            failed++;
        } else {
            assert_quickly_completed(&m);
            completed++;
            held += m.destination.holds > 0;
        }
        migration_free(&m);
    }
    printf("%u failed before GO, %u completed, %u of them after a pause\n", failed, completed, held);
    assert_true(failed > 0);
    assert_true(held > 10);
}

static void fault_points_leave_exactly_one(void **state)
{
    static const char *const points[] = {
        "source-after-pause",
        "source-before-last-pages",
        "source-after-last-pages",
        "source-after-state-save",
        "source-before-verdict",
        "source-after-verdict",
        "source-before-release",
        "source-after-release",
        "source-before-go",
        "source-after-go",
        "source-before-running",
        "source-after-running",
        "destination-before-load",
        "destination-after-load",
        "destination-before-verdict",
        "destination-after-verdict",
        "destination-before-acquire",
        "destination-after-acquire",
        "destination-before-resume",
        "destination-after-resume",
        "destination-before-announce",
        "destination-after-announce",
        "destination-before-running",
        "destination-after-running",
    };
    static const char *const actions[] = {"error", "drop"};

    for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
        for (size_t action = 0; action < 2; action++) {
            char text[128];
            struct migration m;

            quick_migration(&m, (uint64_t[]){MIB}, 1, FAKE_PATTERN_RANDOM, 20000, 0);
            snprintf(text, sizeof(text), "%s:%s", points[i], actions[action]);
            setenv("FERRY_FAULT", text, 1);
            migration_create(&m);
            unsetenv("FERRY_FAULT");
            migration_run(&m);
            if (m.destination_progress.outcome == FERRY_OUTCOME_COMPLETED)
                assert_quickly_completed(&m);
            else
                migration_assert_one(&m, true);
            migration_free(&m);
        }
    }
}

/* ---- with a hand on it ---- */

/* Runs both sessions on threads of their own. */
struct hand {
    struct migration m;
    struct thread source_thread;
};

static void *source_main(void *opaque)
{
    struct migration *m = opaque;

    m->source_result = ferry_session_run(m->from, &m->source_error);
    ferry_session_progress(m->from, &m->source_progress);
    return NULL;
}

static void hand_start(struct hand *hand)
{
    migration_create(&hand->m);
    migration_start_destination(&hand->m);
    assert_int_equal(
        thread_start(&hand->source_thread, THREAD_GENERAL, "source", source_main, &hand->m, NULL), 0);
}

static void hand_join(struct hand *hand)
{
    thread_join(&hand->source_thread);
    migration_join_destination(&hand->m);
}

typedef bool looks(const struct ferry_progress *progress);

static bool is_fetching(const struct ferry_progress *progress)
{
    return progress->fetch.running;
}

static bool is_disconnected(const struct ferry_progress *progress)
{
    return progress->fetch.disconnected;
}

static bool is_connected(const struct ferry_progress *progress)
{
    return progress->fetch.running && !progress->fetch.disconnected;
}

static void await(struct ferry_session *session, looks *look)
{
    struct ferry_progress *progress = malloc(sizeof(*progress));
    uint64_t deadline = clock_deadline(30000);

    do {
        poll(NULL, 0, 1);
        ferry_session_progress(session, progress);
    } while (!look(progress) && clock_now_ns() < deadline);
    assert_true(look(progress));
    free(progress);
}

/* So slowly that there is time to look. */
static void slow_migration(struct hand *hand)
{
    quick_migration(&hand->m, (uint64_t[]){4 * MIB}, 1, FAKE_PATTERN_NONE, 20000, 0);
    hand->m.source_options.bandwidth_limit = 1 << 20;
}

static void cancel_is_refused_in_words(void **state)
{
    struct hand hand;
    struct ferry_error err = {0};

    slow_migration(&hand);
    hand_start(&hand);
    await(hand.m.to, is_fetching);
    await(hand.m.from, is_fetching);
    assert_int_equal(ferry_session_cancel(hand.m.from, &err), -EALREADY);
    assert_non_null(strstr(err.text, "the guest runs on beta"));
    assert_int_equal(ferry_session_cancel(hand.m.to, &err), -EALREADY);
    /* Nor can anybody have it at the source again. */
    assert_int_equal(ferry_session_end_fetch(hand.m.from, FERRY_FETCH_STAYED, "", &err), -EPERM);
    assert_int_equal(ferry_session_reconnect(hand.m.from, &err), -EALREADY);
    hand_join(&hand);
    assert_quickly_completed(&hand.m);
    migration_free(&hand.m);
}

/* The kernel's own accesses: reading and writing files with missing pages as buffers. */
static void system_calls_wait_for_pages(void **state)
{
    struct hand hand;
    uint8_t *bytes = malloc(MIB);
    int fd = memfd_create("file", MFD_CLOEXEC);

    slow_migration(&hand);
    hand_start(&hand);
    await(hand.m.to, is_fetching);
    /* Out of missing memory, and partly into it. */
    assert_int_equal(pwrite(fd, hand.m.destination.regions[0].host_ptr + MIB, MIB, 0), MIB);
    assert_int_equal(pread(fd, bytes, MIB, 0), MIB);
    assert_memory_equal(bytes, hand.m.source.regions[0].host_ptr + MIB, MIB);
    assert_int_equal(pread(fd, hand.m.destination.regions[0].host_ptr + 1000, 1000, 4096), 1000);
    memcpy(hand.m.source.regions[0].host_ptr + 1000, bytes + 4096, 1000);
    hand_join(&hand);
    assert_quickly_completed(&hand.m);
    assert_true(hand.m.destination_progress.fetch.faults > 0);
    free(bytes);
    close(fd);
    migration_free(&hand.m);
}

/* Cut when both sides are at it, until they have seen it. */
static void hand_cut(struct hand *hand)
{
    await(hand->m.from, is_fetching);
    await(hand->m.to, is_fetching);
    migration_block(&hand->m, true);
    await(hand->m.from, is_disconnected);
    await(hand->m.to, is_disconnected);
}

static bool witness_heard(struct witness *witness, const char *words)
{
    pthread_mutex_lock(&witness->lock);

    bool heard = strstr(witness->log, words);

    pthread_mutex_unlock(&witness->lock);
    return heard;
}

/* Not back within the set time: everything waits until somebody asks for it. */
static void connection_is_made_again_when_asked_for(void **state)
{
    struct hand hand;
    struct ferry_error err = {0};
    uint64_t deadline = clock_deadline(30000);

    slow_migration(&hand);
    hand.m.source_options.reconnect_ns = 1;
    migration_cut_after(&hand.m, UINT64_MAX);
    hand_start(&hand);
    hand_cut(&hand);
    while (!witness_heard(&hand.m.source_witness, "not tried any more") && clock_now_ns() < deadline)
        poll(NULL, 0, 1);
    assert_true(witness_heard(&hand.m.source_witness, "not tried any more"));
    assert_true(hand.m.destination.held);
    assert_non_null(strstr(hand.m.destination.held_why, "alpha"));
    assert_int_equal(ferry_session_cancel(hand.m.from, &err), -EALREADY);
    migration_block(&hand.m, false);
    poll(NULL, 0, 300); /* nothing comes by itself */
    await(hand.m.to, is_disconnected);
    assert_int_equal(ferry_session_reconnect(hand.m.from, &err), 0);
    await(hand.m.to, is_connected);
    hand_join(&hand);
    assert_quickly_completed(&hand.m);
    assert_int_equal(hand.m.destination_progress.fetch.reconnects, 1);
    assert_true(hand.m.destination_progress.fetch.paused_ns > 300 * NS_PER_MS);
    migration_free(&hand.m);
}

/* The destination's process dies: nobody has the lock, and it says that the guest ran there. */
static void destination_that_dies_is_a_lost_guest(void **state)
{
    struct hand hand;

    slow_migration(&hand);
    migration_cut_after(&hand.m, UINT64_MAX);
    hand_start(&hand);
    hand_cut(&hand);
    pthread_mutex_lock(&hand.m.owner.lock);
    hand.m.owner.holder = NULL;
    pthread_mutex_unlock(&hand.m.owner.lock);
    thread_join(&hand.source_thread);
    assert_int_equal(hand.m.source_progress.outcome, FERRY_OUTCOME_LOST);
    assert_non_null(strstr(hand.m.source_error.text, "the guest is lost"));
    assert_false(fake_guest_running(&hand.m.source));
    /* And there it is known that the source has died. */
    assert_int_equal(ferry_session_end_fetch(hand.m.to, FERRY_FETCH_LOST, "alpha has died", NULL), 0);
    migration_join_destination(&hand.m);
    assert_int_equal(hand.m.destination_progress.outcome, FERRY_OUTCOME_LOST);
    assert_non_null(strstr(hand.m.destination_error.text, "alpha has died"));
    assert_true(hand.m.destination_progress.remaining_bytes > 0);
    migration_free(&hand.m);
}

/* The guest powers off there: what is still here is of no use to anybody. */
static void guest_that_ends_needs_nothing_more(void **state)
{
    for (int connected = 0; connected < 2; connected++) {
        struct hand hand;

        slow_migration(&hand);
        migration_cut_after(&hand.m, UINT64_MAX);
        hand_start(&hand);
        await(hand.m.from, is_fetching);
        await(hand.m.to, is_fetching);
        if (!connected)
            hand_cut(&hand);
        assert_int_equal(
            ferry_session_end_fetch(hand.m.to, FERRY_FETCH_GUEST_ENDED, "the guest powered off", NULL), 0);
        if (!connected) {
            migration_join_destination(&hand.m);
            /* Its agent was told by the other one. */
            assert_int_equal(ferry_session_end_fetch(hand.m.from, FERRY_FETCH_COMPLETED, "", NULL), 0);
            thread_join(&hand.source_thread);
        } else {
            hand_join(&hand);
        }
        assert_int_equal(hand.m.source_result, 0);
        assert_int_equal(hand.m.destination_result, 0);
        assert_int_equal(hand.m.source_progress.outcome, FERRY_OUTCOME_COMPLETED);
        assert_int_equal(hand.m.destination_progress.outcome, FERRY_OUTCOME_COMPLETED);
        migration_free(&hand.m);
    }
}

/* The connection is lost just before GO; the destination gives up. */
static void cut_before_go(void *opaque, const char *step)
{
    struct hand *hand = opaque;
    struct ferry_progress *progress;
    uint64_t deadline = clock_deadline(30000);

    if (strcmp(step, "release") != 0)
        return;
    progress = malloc(sizeof(*progress));
    migration_block(&hand->m, true);
    do {
        poll(NULL, 0, 1);
        ferry_session_progress(hand->m.to, progress);
    } while (progress->outcome == FERRY_OUTCOME_NONE && clock_now_ns() < deadline);
    free(progress);
}

/* Without an arbiter and without RUNNING nobody guesses, and nothing is given up; a person may say what
 * happened. */
static void person_may_say_that_nothing_ran(void **state)
{
    struct hand hand;

    slow_migration(&hand);
    hand.m.owner.arbiter = false;
    migration_cut_after(&hand.m, UINT64_MAX);
    hand.m.source.on_step = cut_before_go;
    hand.m.source.opaque = &hand;
    hand_start(&hand);
    migration_join_destination(&hand.m);
    assert_int_equal(hand.m.destination_progress.outcome, FERRY_OUTCOME_FAILED);
    await(hand.m.from, is_disconnected);
    assert_false(fake_guest_running(&hand.m.source));
    assert_int_equal(ferry_session_end_fetch(hand.m.from, FERRY_FETCH_STAYED, "said so", NULL), 0);
    thread_join(&hand.source_thread);
    assert_int_equal(hand.m.source_progress.outcome, FERRY_OUTCOME_FAILED);
    migration_assert_one(&hand.m, true);
    migration_free(&hand.m);
}

/* The same with an arbiter: the source finds out by itself. */
static void guest_that_never_ran_there_is_taken_back(void **state)
{
    struct hand hand;

    slow_migration(&hand);
    migration_cut_after(&hand.m, UINT64_MAX);
    hand.m.source.on_step = cut_before_go;
    hand.m.source.opaque = &hand;
    hand_start(&hand);
    hand_join(&hand);
    assert_int_equal(hand.m.source_progress.outcome, FERRY_OUTCOME_FAILED);
    migration_assert_one(&hand.m, true);
    migration_free(&hand.m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writing_guest_arrives_whole_in_every_mode),
        cmocka_unit_test(pages_come_on_demand),
        cmocka_unit_test(limit_holds_up_nobody_who_waits),
        cmocka_unit_test(states_and_phases_are_told_in_order),
        cmocka_unit_test(paused_guest_arrives_paused_and_whole),
        cmocka_unit_test(guest_without_memory_descriptors_is_refused),
        cmocka_unit_test(rounds_that_do_not_shrink_end_in_quick_resume),
        cmocka_unit_test(converging_guest_needs_no_quick_resume),
        cmocka_unit_test(connection_cut_anywhere_is_made_again),
        cmocka_unit_test(fault_points_leave_exactly_one),
        cmocka_unit_test(cancel_is_refused_in_words),
        cmocka_unit_test(system_calls_wait_for_pages),
        cmocka_unit_test(connection_is_made_again_when_asked_for),
        cmocka_unit_test(destination_that_dies_is_a_lost_guest),
        cmocka_unit_test(guest_that_ends_needs_nothing_more),
        cmocka_unit_test(person_may_say_that_nothing_ran),
        cmocka_unit_test(guest_that_never_ran_there_is_taken_back),
    };

    return run_tests_apart(tests, NULL, NULL);
}
