#include "engine/precopy.h"

#include "base/clock.h"
#include "base/error.h"
#include "engine/policy.h"

#include <errno.h>

/* What stopping costs beside the measured parts: pausing, saving, loading, the lock. */
#define SWITCHOVER_GUESS_NS (2 * NS_PER_MS)

/* First round: everything that is not a hole. */
static int precopy_begin(struct source *source, uint64_t *pages, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    struct ferry_error why = {0};
    int result = session->ops->dirty_start(session->guest, &why);

    if (result < 0) {
        session_fail(session, FERRY_CAUSE_INTERNAL, result, &why);
        return error_set(err, result, "%s", why.text);
    }
    source->dirty_tracking = true;

    /* Looked at after tracking began: a hole filled from now on is in the next round. */
    *pages = page_set_fill_present(&source->set, &source->map);

    pthread_mutex_lock(&session->lock);
    session->progress.memory_bytes = source->map.total * FERRY_PAGE_SIZE;
    session->progress.pages_skipped = source->map.total - *pages;
    session->progress.setup_ns = clock_now_ns() - session->start_ns;
    pthread_mutex_unlock(&session->lock);
    return 0;
}

static void precopy_record(struct source *source, const struct ferry_round *round,
                           const struct policy_decision *decision)
{
    struct ferry_session *session = source->session;
    unsigned number;

    pthread_mutex_lock(&session->lock);
    number = ++session->progress.round;
    if (number <= FERRY_ROUNDS_MAX)
        session->progress.rounds[number - 1] = *round;
    session->progress.bandwidth_bytes_per_s = decision->bandwidth;
    session->progress.dirty_bytes_per_s = decision->dirty_rate;
    pthread_mutex_unlock(&session->lock);
    if (session->observer.round_done)
        session->observer.round_done(session->observer.opaque, number, round);
}

static void precopy_log(struct source *source, const struct policy_decision *decision, uint64_t dirtied,
                        int64_t last)
{
    struct ferry_session *session = source->session;

    session_log(session, FERRY_LOG_INFO, "Pre-copy decision: %s: %s",
                decision->verdict == POLICY_CONTINUE ? "go on"
                : decision->verdict == POLICY_STOP   ? "stop"
                                                     : "give up",
                decision->reason);
    if (decision->verdict == POLICY_CONTINUE)
        session_log(session, FERRY_LOG_INFO,
                    "Another pre-copy iteration needed with %llu modified pages (last = %lld)",
                    (unsigned long long)dirtied, (long long)last);
    else if (decision->verdict == POLICY_STOP)
        session_log(session, FERRY_LOG_INFO, "Stopping pre-copy: only %llu pages were modified",
                    (unsigned long long)dirtied);
}

/* One round, and the decision after it. */
static int precopy_round(struct source *source, struct policy *policy, uint64_t pages, uint64_t *dirtied,
                         struct policy_decision *decision, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    struct frame frame;
    uint64_t bytes = session_wire_bytes(session);
    uint64_t begin = clock_now_ns();
    int result = session_fault(session, FAULT_SOURCE_BEFORE_ROUND, err);

    if (result == 0)
        result = source_send_round(source, err);
    if (result == 0)
        result =
            control_expect(&source->control, WIRE_ROUND_DONE, &frame, session->settings.peer_timeout_ns, err);
    if (result == 0)
        result = session_fault(session, FAULT_SOURCE_AFTER_ROUND, err);
    if (result < 0)
        return result;

    uint64_t end = clock_now_ns();

    page_set_clear(&source->set, &source->map);
    result = source_fetch_dirty(source, dirtied, err);
    if (result < 0)
        return result;

    struct ferry_round round = {
        .pages = pages,
        .bytes = session_wire_bytes(session) - bytes,
        .duration_ns = end - begin,
        .dirtied_pages = *dirtied,
    };
    struct policy_round numbers = {
        .sent_bytes = round.bytes,
        .duration_ns = round.duration_ns,
        .remaining_bytes = *dirtied * FERRY_PAGE_SIZE,
        .fixed_cost_ns = 2 * source->rtt_ns + (clock_now_ns() - end) + SWITCHOVER_GUESS_NS,
    };

    *decision = policy_decide(policy, &numbers);
    source->bandwidth = decision->bandwidth;
    precopy_record(source, &round, decision);
    return 0;
}

int precopy_run(struct source *source, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    struct policy policy;
    struct policy_decision decision;
    struct ferry_error why = {0};
    uint64_t pages = 0;
    int64_t last = -1;
    int result;

    session_enter_state(session, MIGRATE_TO_VMX_PRECOPY);
    session_enter_phase(session, FERRY_PHASE_COPY);
    policy_init(&policy, session->settings.downtime_limit_ns, session->settings.copy_time_limit_ns);
    result = precopy_begin(source, &pages, err);
    if (result < 0)
        return result;

    for (;;) {
        uint64_t dirtied;

        result = precopy_round(source, &policy, pages, &dirtied, &decision, err);
        if (result < 0)
            return result;
        precopy_log(source, &decision, dirtied, last);
        if (decision.verdict == POLICY_STOP)
            break;
        if (decision.verdict == POLICY_ABORT) {
            error_set(&why, -ETIME, "the migration does not converge: %s", decision.reason);
            error_set(err, -ETIME, "%s", why.text);
            return session_fail(session, FERRY_CAUSE_CONVERGENCE, -ETIME, &why);
        }
        pages = dirtied;
        last = (int64_t)dirtied;
    }
    session_set_percent(session, 1, 1);
    return 0;
}
