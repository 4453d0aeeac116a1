#include "engine/precopy.h"

#include "base/clock.h"
#include "base/error.h"
#include "engine/policy.h"

#include <errno.h>

/* Parts of the downtime of which nothing is known yet: several times what they take on a quiet machine. */
static const uint64_t cautious_part_ns[FERRY_DOWNTIME_PARTS] = {
    [FERRY_DOWNTIME_PAUSE] = NS_PER_MS,          [FERRY_DOWNTIME_QUIESCE] = 2 * NS_PER_MS,
    [FERRY_DOWNTIME_STATE_SAVE] = NS_PER_MS / 2, [FERRY_DOWNTIME_STATE_LOAD] = NS_PER_MS / 2,
    [FERRY_DOWNTIME_LOCK] = 2 * NS_PER_MS,       [FERRY_DOWNTIME_RESUME] = NS_PER_MS,
    [FERRY_DOWNTIME_ANNOUNCE] = NS_PER_MS,
};

/* A VM's console history is most of it. */
#define CAUTIOUS_STATE_BYTES (1u << 20)
/* Frozen, the path will not carry quite what its bursts showed. */
#define BURST_SHARE 0.8

/* What was seen in earlier moves, half of it on top: it was one case of many. */
static void precopy_costs(const struct source *source, uint64_t fetch_ns, struct policy_costs *costs)
{
    const struct session_settings *settings = &source->session->settings;

    for (size_t i = 0; i < FERRY_DOWNTIME_PARTS; i++) {
        uint64_t known = settings->known_part_ns[i];

        costs->part_ns[i] = known ? known + known / 2 : cautious_part_ns[i];
    }
    costs->part_ns[FERRY_DOWNTIME_LAST_PAGES] = fetch_ns;
    /* State to the verdict is there and back, GO once more there. */
    costs->part_ns[FERRY_DOWNTIME_WIRE] = source->rtt_ns + source->rtt_ns / 2;
    costs->state_bytes = settings->known_state_bytes ? settings->known_state_bytes : CAUTIOUS_STATE_BYTES;
}

/* How the last pages will go. While the guest is stopped the rate is not limited. */
static void precopy_frozen(const struct source *source, const struct policy_round *round,
                           struct policy_frozen *frozen)
{
    bool limited = pace_limit(&source->pace) > 0;
    uint64_t pages = (round->sent_bytes - round->zero_bytes) / FERRY_PAGE_SIZE;

    sender_foresee(&source->sender, limited, frozen);
    if (limited)
        frozen->wire_bandwidth = (uint64_t)(BURST_SHARE * (double)frozen->wire_bandwidth);
    /* Many pages were zeros: no promise that the last ones are. */
    if (frozen->page_bytes == 0 && pages > 0)
        frozen->page_bytes = round->wire_bytes / pages > 0 ? round->wire_bytes / pages : 1;
}

/* First round: everything that is not a hole, *PAGES of them. */
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
    throttle_begin(&source->throttle, session);

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
    session->progress.bandwidth_bytes_per_s = decision->wire_bandwidth;
    session->progress.copy_bytes_per_s = decision->bandwidth;
    session->progress.dirty_bytes_per_s = decision->dirty_rate;
    pthread_mutex_unlock(&session->lock);
    if (session->observer.round_done)
        session->observer.round_done(session->observer.opaque, number, round);
}

static const char *const verdict_words[] = {
    [POLICY_CONTINUE] = "go on",
    [POLICY_STOP] = "stop",
    [POLICY_ABORT] = "give up",
    [POLICY_QUICK_RESUME] = "quick resume",
};

static void precopy_log(struct source *source, const struct policy_decision *decision, uint64_t dirtied,
                        int64_t last)
{
    struct ferry_session *session = source->session;

    session_log(session, FERRY_LOG_INFO, "Pre-copy decision: %s: %s", verdict_words[decision->verdict],
                decision->reason);
    if (decision->verdict == POLICY_CONTINUE)
        session_log(session, FERRY_LOG_INFO,
                    "Another pre-copy iteration needed with %llu modified pages (last = %lld)",
                    (unsigned long long)dirtied, (long long)last);
    else if (decision->verdict != POLICY_ABORT)
        session_log(session, FERRY_LOG_INFO, "Stopping pre-copy: only %llu pages were modified",
                    (unsigned long long)dirtied);
}

/* One round, and the decision after it. */
static int precopy_round(struct source *source, struct policy *policy, uint64_t *dirtied,
                         struct policy_decision *decision, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    struct frame frame;
    uint64_t bytes = session_wire_bytes(session);
    uint64_t zeros = __atomic_load_n(&session->pages_zero, __ATOMIC_RELAXED);
    uint64_t begin = clock_now_ns();
    int result = session_fault(session, FAULT_SOURCE_BEFORE_ROUND, err);

    if (result == 0)
        result = source_send_round(source, err);
    if (result == 0)
        result = control_expect(&source->control, WIRE_ROUND_DONE, &frame, err);
    if (result == 0)
        result = session_fault(session, FAULT_SOURCE_AFTER_ROUND, err);
    if (result < 0)
        return result;

    uint64_t end = clock_now_ns();

    zeros = __atomic_load_n(&session->pages_zero, __ATOMIC_RELAXED) - zeros;
    page_set_clear(&source->set, &source->map);
    result = source_fetch_dirty(source, dirtied, err);
    if (result < 0)
        return result;

    struct ferry_round round = {
        .pages = source->round_pages,
        .bytes = session_wire_bytes(session) - bytes,
        .duration_ns = end - begin,
        .dirtied_pages = *dirtied,
    };
    struct policy_round numbers = {
        .sent_bytes = source->round_pages * FERRY_PAGE_SIZE,
        .zero_bytes = zeros * FERRY_PAGE_SIZE,
        .wire_bytes = round.bytes,
        .duration_ns = round.duration_ns,
        .remaining_bytes = *dirtied * FERRY_PAGE_SIZE,
    };

    precopy_frozen(source, &numbers, &numbers.frozen);
    precopy_costs(source, clock_now_ns() - end, &numbers.costs);
    *decision = policy_decide(policy, &numbers);
    source->wire_bandwidth = decision->wire_bandwidth;
    source->frozen_bandwidth = decision->frozen_bandwidth;
    throttle_set(&source->throttle, decision->throttle);
    precopy_record(source, &round, decision);
    return 0;
}

int precopy_run(struct source *source, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    struct policy policy;
    struct policy_decision decision;
    struct ferry_error why = {0};
    int64_t last = -1;
    uint64_t pages = 0;
    int result;

    session_enter_state(session, MIGRATE_TO_VMX_PRECOPY);
    session_enter_phase(session, FERRY_PHASE_COPY);
    policy_init(&policy, &(struct policy_settings){.downtime_limit_ns = session->settings.downtime_limit_ns,
                                                   .copy_time_limit_ns = session->settings.copy_time_limit_ns,
                                                   .throttle_max = session->settings.throttle_max,
                                                   .quick_resume = source->features & WIRE_FEATURE_FETCH});
    result = precopy_begin(source, &pages, err);
    if (result < 0)
        return result;

    for (uint64_t rounds = 0;; rounds++) {
        uint64_t dirtied;

        if (session->settings.quick_resume == FERRY_QUICK_RESUME_NOW &&
            rounds >= session->settings.quick_resume_rounds) {
            source->fetch = true;
            session_log(session, FERRY_LOG_INFO,
                        "Stopping pre-copy: quick resume, %llu pages are to be fetched",
                        (unsigned long long)pages);
            break;
        }
        result = precopy_round(source, &policy, &dirtied, &decision, err);
        if (result < 0)
            return result;
        precopy_log(source, &decision, dirtied, last);
        pages = dirtied;
        last = (int64_t)dirtied;
        if (session->settings.quick_resume == FERRY_QUICK_RESUME_NOW && decision.verdict != POLICY_CONTINUE)
            rounds = session->settings.quick_resume_rounds;
        if (session->settings.quick_resume == FERRY_QUICK_RESUME_NOW && decision.verdict != POLICY_ABORT)
            continue;
        source->fetch = decision.verdict == POLICY_QUICK_RESUME;
        if (decision.verdict == POLICY_STOP || decision.verdict == POLICY_QUICK_RESUME)
            break;
        if (decision.verdict == POLICY_ABORT) {
            error_set(&why, -ETIME, "the migration does not converge: %s", decision.reason);
            error_set(err, -ETIME, "%s", why.text);
            return session_fail(session, FERRY_CAUSE_CONVERGENCE, -ETIME, &why);
        }
    }
    session_set_percent(session, 1, 1);
    return 0;
}
