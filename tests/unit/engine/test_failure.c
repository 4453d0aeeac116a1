/* Migrations that fail, at every step and every byte: never two running copies, never none. */
#include "harness.h"

#include "base/clock.h"
#include "engine/fault.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

static const uint64_t small[] = {64 * 4096};

static void small_migration(struct migration *m)
{
    migration_init(m, small, 1, true);
    fake_guest_fill(&m->source, 0, 0, 16, 1);
}

struct step_case {
    enum fake_step step;
    enum ferry_cause cause;
    const char *words;
};

static void failing_step_leaves_the_source_running(void **state)
{
    static const struct step_case cases[] = {
        {FAKE_STEP_DIRTY_START, FERRY_CAUSE_INTERNAL, "fake failure of dirty_start"},
        {FAKE_STEP_PAUSE, FERRY_CAUSE_INTERNAL, "fake failure of pause"},
        {FAKE_STEP_QUIESCE, FERRY_CAUSE_STORAGE, "outstanding I/O did not finish"},
        {FAKE_STEP_SAVE, FERRY_CAUSE_INTERNAL, "state cannot be saved"},
        {FAKE_STEP_LOAD, FERRY_CAUSE_INTERNAL, "section cpu0: fake failure of load"},
        {FAKE_STEP_LOAD_FINISH, FERRY_CAUSE_INTERNAL, "Restore-Failure"},
        {FAKE_STEP_RELEASE, FERRY_CAUSE_LOCK, "cannot be handed over"},
        {FAKE_STEP_ACQUIRE, FERRY_CAUSE_LOCK, "cannot be taken over"},
        {FAKE_STEP_RESUME, FERRY_CAUSE_INTERNAL, "cannot be resumed"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        for (int running = 0; running < 2; running++) {
            struct migration m;

            small_migration(&m);
            fake_guest_run(&m.source, running);
            m.source.fail = m.destination.fail = cases[i].step;
            migration_run(&m);
            assert_int_equal(m.source_progress.outcome, FERRY_OUTCOME_FAILED);
            assert_int_equal(m.destination_progress.outcome, FERRY_OUTCOME_FAILED);
            migration_assert_one(&m, running);
            /* Switching tracking off takes a while, which the guest does not wait for. */
            assert_true(m.source.ran_at_dirty_stop == running || cases[i].step == FAKE_STEP_DIRTY_START);
            /* Both records say why. */
            assert_int_equal(m.source_progress.cause, cases[i].cause);
            assert_int_equal(m.destination_progress.cause, cases[i].cause);
            if (!strstr(m.source_progress.error, cases[i].words) ||
                !strstr(m.destination_progress.error, cases[i].words))
                fail_msg("'%s' and '%s' do not say '%s'", m.source_progress.error,
                         m.destination_progress.error, cases[i].words);
            assert_string_equal(m.source_error.text, m.source_progress.error);
            migration_free(&m);
        }
    }
}

/* After a Restore-Failure the same guest moves at once. */
static void second_attempt_after_restore_failure_completes(void **state)
{
    struct migration m;
    uint64_t count;

    small_migration(&m);
    m.source.pattern = FAKE_PATTERN_RANDOM;
    m.source.pages_per_s = 1000;
    m.destination.fail = FAKE_STEP_LOAD;
    migration_run(&m);
    assert_non_null(strstr(m.source_witness.log, "beta said Restore-Failure"));
    migration_assert_one(&m, true);
    ferry_session_free(m.from);
    ferry_session_free(m.to);
    m.from = m.to = NULL;
    m.destination.fail = FAKE_STEP_NONE;
    count = fake_guest_count(&m.source);
    migration_run(&m);
    migration_assert_completed(&m);
    assert_true(fake_guest_count(&m.destination) > count);
    migration_free(&m);
}

/* Connections cannot be lost before there are any, nor once RUNNING has arrived; and once the guest runs
 * nothing that fails there matters any more. */
static bool may_complete(enum fault_point point, bool drop)
{
    if (point == FAULT_SOURCE_AFTER_RUNNING || point == FAULT_DESTINATION_AFTER_RUNNING)
        return true;
    if (drop)
        return point == FAULT_SOURCE_BEFORE_CONNECT || point == FAULT_SOURCE_AFTER_GO ||
               point == FAULT_SOURCE_BEFORE_RUNNING;
    return point >= FAULT_DESTINATION_AFTER_RESUME;
}

static void fault_points_leave_exactly_one(void **state)
{
    static const char *const actions[] = {"error", "drop"};

    for (int point = FAULT_NONE + 1; point < FAULT_SESSION_END; point++) {
        for (int action = 0; action < 2; action++) {
            for (int arbiter = 0; arbiter < 2; arbiter++) {
                char text[128];
                struct migration m;

                small_migration(&m);
                m.owner.arbiter = arbiter;
                m.destination_exits = true;
                snprintf(text, sizeof(text), "%s:%s", fault_point_name((enum fault_point)point),
                         actions[action]);
                setenv("FERRY_FAULT", text, 1);
                migration_create(&m);
                unsetenv("FERRY_FAULT");
                migration_run(&m);
                migration_assert_one(&m, true);
                /* Where no arbiter can tell, nobody guesses: only when GO was sent and RUNNING lost. */
                if (m.source_progress.outcome == FERRY_OUTCOME_UNKNOWN)
                    assert_true(!arbiter &&
                                (point == FAULT_SOURCE_AFTER_GO || point == FAULT_SOURCE_BEFORE_RUNNING ||
                                 point >= FAULT_DESTINATION_AFTER_VERDICT));
                if (!may_complete((enum fault_point)point, action == 1) && m.source_result == 0)
                    fail_msg("%s had no effect", text);
                migration_free(&m);
            }
        }
    }
}

/* Its listening socket stays open, so that page connections are made, but nobody takes them any more. */
static void destination_that_fails_after_welcome_is_heard_at_once(void **state)
{
    uint64_t begin = clock_now_ns();
    struct migration m;

    small_migration(&m);
    m.source_options.peer_timeout_ns = m.destination_options.peer_timeout_ns = 250 * NS_PER_S;
    setenv("FERRY_FAULT", "destination-after-welcome:error", 1);
    migration_create(&m);
    unsetenv("FERRY_FAULT");
    migration_run(&m);
    migration_assert_one(&m, true);
    assert_contains(m.source_progress.error, "destination-after-welcome");
    assert_true(clock_now_ns() - begin < UNIT_DEADLINE_MS * NS_PER_MS);
    migration_free(&m);
}

static void unknown_fault_point_is_refused(void **state)
{
    struct migration m;
    struct ferry_session *session;
    struct ferry_error err = {0};

    small_migration(&m);
    setenv("FERRY_FAULT", "no-such-point:crash", 1);
    assert_int_equal(ferry_source_new(&session, &m.source_options, &fake_guest_ops, &m.source, NULL, &err),
                     -EINVAL);
    unsetenv("FERRY_FAULT");
    assert_non_null(strstr(err.text, "no-such-point"));
    migration_free(&m);
}

static uint64_t bytes_of_a_migration(void)
{
    struct migration m;
    uint64_t bytes;

    small_migration(&m);
    migration_cut_after(&m, UINT64_MAX);
    migration_run(&m);
    migration_assert_completed(&m);
    migration_free(&m); /* the proxy has ended */
    bytes = m.proxy.forwarded;
    return bytes;
}

/* All connections end after N bytes in all: every byte where frames are, every so often inside of pages. */
static void connection_cut_anywhere_leaves_exactly_one(void **state)
{
    uint64_t total = bytes_of_a_migration();
    unsigned completed = 0;
    unsigned failed = 0;

    assert_true(total > 16 * 4096);
    for (uint64_t n = 0; n <= total + 3; n += n < 900 || n + 3000 > total ? 3 : 2111) {
        struct migration m;

        small_migration(&m);
        migration_cut_after(&m, n);
        migration_run(&m);
        migration_assert_one(&m, true);
        completed += m.destination_progress.outcome == FERRY_OUTCOME_COMPLETED;
        failed += m.source_progress.outcome == FERRY_OUTCOME_FAILED;
        migration_free(&m);
    }
    assert_true(failed > 0);
    assert_true(completed > 0);
}

/* The same without anything that could tell who has the guest: stopped at the source in the worst case. */
static void connection_cut_without_arbiter_never_runs_two(void **state)
{
    uint64_t total = bytes_of_a_migration();

    for (uint64_t n = total - 400; n <= total; n += 5) {
        struct migration m;

        small_migration(&m);
        m.owner.arbiter = false;
        migration_cut_after(&m, n);
        migration_run(&m);
        migration_assert_one(&m, true);
        migration_free(&m);
    }
}

struct canceller {
    struct migration *m;
    const char *step;
    bool source; /* whose session is cancelled */
    bool abort;
    int result;
    bool reached;
};

static void cancel_at_step(void *opaque, const char *step)
{
    struct canceller *canceller = opaque;
    struct ferry_session *session = canceller->source ? canceller->m->from : canceller->m->to;

    if (strcmp(step, canceller->step) != 0 || canceller->reached)
        return;
    canceller->reached = true;
    if (canceller->abort)
        ferry_session_abort(session, FERRY_CAUSE_GUEST, "the guest rebooted");
    else
        canceller->result = ferry_session_cancel(session, NULL);
}

static void cancel_in_every_phase_wins_before_go_and_is_refused_after(void **state)
{
    static const char *const before[] = {"dirty_start", "pause", "quiesce", "save", "load", "load_finish"};
    static const char *const after[] = {"release", "acquire", "resume", "announce"};

    for (size_t i = 0; i < 10; i++) {
        for (int side = 0; side < 2; side++) {
            struct migration m;
            struct canceller canceller = {.m = &m, .step = i < 6 ? before[i] : after[i - 6], .source = side};

            small_migration(&m);
            m.source.on_step = m.destination.on_step = cancel_at_step;
            m.source.opaque = m.destination.opaque = &canceller;
            migration_run(&m);
            assert_true(canceller.reached);
            migration_assert_one(&m, true);
            if (i < 6) {
                assert_int_equal(canceller.result, 0);
                assert_int_equal(m.source_progress.outcome, FERRY_OUTCOME_CANCELLED);
                assert_int_equal(m.destination_progress.outcome, FERRY_OUTCOME_CANCELLED);
                assert_int_equal(m.source_progress.cause, FERRY_CAUSE_CANCELLED);
            } else if (canceller.result == 0) {
                /* "release": GO has not reached the destination, so its own cancel still wins. */
                assert_false(side);
                assert_string_equal(canceller.step, "release");
                assert_int_equal(m.source_progress.outcome, FERRY_OUTCOME_CANCELLED);
            } else {
                assert_int_equal(canceller.result, -EALREADY);
                assert_int_equal(m.source_progress.outcome, FERRY_OUTCOME_COMPLETED);
            }
            migration_free(&m);
        }
    }
}

static void guest_reset_meanwhile_ends_as_failed_by_the_guest(void **state)
{
    struct migration m;
    struct canceller canceller = {.m = &m, .step = "pause", .source = true, .abort = true};

    small_migration(&m);
    m.source.on_step = cancel_at_step;
    m.source.opaque = &canceller;
    migration_run(&m);
    assert_int_equal(m.source_progress.outcome, FERRY_OUTCOME_FAILED);
    assert_int_equal(m.source_progress.cause, FERRY_CAUSE_GUEST);
    assert_int_equal(m.destination_progress.cause, FERRY_CAUSE_GUEST);
    assert_non_null(strstr(m.destination_progress.error, "the guest rebooted"));
    migration_assert_one(&m, true);
    migration_free(&m);
}

static void cancel_while_the_destination_waits_ends_it(void **state)
{
    struct migration m;

    small_migration(&m);
    migration_create(&m);
    migration_start_destination(&m);
    assert_int_equal(ferry_session_cancel(m.to, NULL), 0);
    migration_join_destination(&m);
    assert_int_equal(m.destination_result, -ECANCELED);
    assert_int_equal(m.destination_progress.outcome, FERRY_OUTCOME_CANCELLED);
    migration_free(&m);
}

/* Held back by a bandwidth limit the copy would take a minute: cancelling ends the waits at once. */
static void *cancel_when_copying(void *opaque)
{
    struct migration *m = opaque;
    struct ferry_progress progress;

    do {
        poll(NULL, 0, 1);
        ferry_session_progress(m->from, &progress);
    } while (progress.pages_raw == 0 && progress.outcome == FERRY_OUTCOME_NONE);
    assert_int_equal(ferry_session_cancel(m->from, NULL), 0);
    return NULL;
}

static void cancel_ends_a_migration_held_back_by_its_limit(void **state)
{
    struct migration m;
    struct thread thread;

    migration_init(&m, (uint64_t[]){64 * MIB}, 1, true);
    fake_guest_fill(&m.source, 0, 0, 16384, 1);
    m.source_options.bandwidth_limit = MIB;
    m.source_options.streams = 1;
    migration_create(&m);
    assert_int_equal(thread_start(&thread, THREAD_GENERAL, "cancel", cancel_when_copying, &m, NULL), 0);
    migration_run(&m);
    thread_join(&thread);
    assert_int_equal(m.source_progress.outcome, FERRY_OUTCOME_CANCELLED);
    assert_int_equal(m.destination_progress.outcome, FERRY_OUTCOME_CANCELLED);
    assert_true(m.source_progress.total_ns < 30 * NS_PER_S);
    migration_assert_one(&m, true);
    migration_free(&m);
}

static void unreachable_destination_is_a_clear_error(void **state)
{
    struct migration m;

    small_migration(&m);
    strcpy(m.source_options.address, "127.0.0.1:1");
    migration_run(&m);
    assert_int_equal(m.source_progress.cause, FERRY_CAUSE_NETWORK);
    assert_non_null(strstr(m.source_error.text, "127.0.0.1:1"));
    migration_assert_one(&m, true);
    migration_free(&m);
}

static void source_that_never_comes_is_a_timeout(void **state)
{
    struct migration m;

    small_migration(&m);
    m.destination_options.connect_timeout_ns = 20 * NS_PER_MS;
    migration_create(&m);
    migration_start_destination(&m);
    migration_join_destination(&m);
    assert_int_equal(m.destination_result, -ETIMEDOUT);
    assert_int_equal(m.destination_progress.cause, FERRY_CAUSE_NETWORK);
    migration_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(failing_step_leaves_the_source_running),
        cmocka_unit_test(second_attempt_after_restore_failure_completes),
        cmocka_unit_test(fault_points_leave_exactly_one),
        cmocka_unit_test(destination_that_fails_after_welcome_is_heard_at_once),
        cmocka_unit_test(unknown_fault_point_is_refused),
        cmocka_unit_test(connection_cut_anywhere_leaves_exactly_one),
        cmocka_unit_test(connection_cut_without_arbiter_never_runs_two),
        cmocka_unit_test(cancel_in_every_phase_wins_before_go_and_is_refused_after),
        cmocka_unit_test(guest_reset_meanwhile_ends_as_failed_by_the_guest),
        cmocka_unit_test(cancel_while_the_destination_waits_ends_it),
        cmocka_unit_test(cancel_ends_a_migration_held_back_by_its_limit),
        cmocka_unit_test(unreachable_destination_is_a_clear_error),
        cmocka_unit_test(source_that_never_comes_is_a_timeout),
    };

    return run_tests_apart(tests, NULL, NULL);
}
