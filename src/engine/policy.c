#include "engine/policy.h"

#include <stdio.h>

#define NS_PER_S 1e9

/* A round below this size says more about latency than about the link. */
#define MEASURABLE_BYTES (1u << 20)
/* With a dirty rate below bandwidth / POLISH_RATIO another round is worth it, down to POLISH_NS of sending.
 */
#define POLISH_RATIO 8
#define POLISH_NS    500000.0
/* Rounds without progress: after the first few the guest is believed to outrun the link; then so many more
 * are granted to find a local minimum. */
#define STALLED_ROUNDS 3
#define PATIENT_ROUNDS 8

void policy_init(struct policy *policy, uint64_t downtime_limit_ns, uint64_t copy_time_limit_ns)
{
    *policy = (struct policy){
        .downtime_limit_ns = downtime_limit_ns,
        .copy_time_limit_ns = copy_time_limit_ns,
        .smallest = UINT64_MAX,
    };
}

static void policy_measure(struct policy *policy, const struct policy_round *round)
{
    if (round->duration_ns == 0)
        return;

    uint64_t rate = (uint64_t)((double)round->sent_bytes * NS_PER_S / (double)round->duration_ns);

    if (round->sent_bytes >= MEASURABLE_BYTES)
        policy->bandwidth = policy->bandwidth ? (policy->bandwidth + 3 * rate) / 4 : rate;
    else if (rate > policy->bandwidth)
        policy->bandwidth = rate;
    if (policy->bandwidth == 0)
        policy->bandwidth = 1;
}

static void policy_judge(struct policy *policy, const struct policy_round *round, double copy_ns,
                         struct policy_decision *decision)
{
    uint64_t remaining = round->remaining_bytes;
    char numbers[128];

    snprintf(numbers, sizeof(numbers),
             "%llu bytes left, %.1f MB/s sent, %.1f MB/s written, %.1f ms of downtime",
             (unsigned long long)remaining, (double)decision->bandwidth / 1e6,
             (double)decision->dirty_rate / 1e6, (double)decision->downtime_ns / 1e6);
#define DECIDE(verdict_, format, ...)                                                                        \
    do {                                                                                                     \
        decision->verdict = (verdict_);                                                                      \
        snprintf(decision->reason, sizeof(decision->reason), "%s" format, numbers, __VA_ARGS__);             \
    } while (0)

    double limit_ms = (double)policy->downtime_limit_ns / 1e6;

    if (copy_ns <= POLISH_NS && decision->downtime_ns > policy->downtime_limit_ns) {
        DECIDE(POLICY_STOP, ", above the limit of %.1f ms, but that is not for what is left", limit_ms);
        return;
    }
    if (decision->downtime_ns <= policy->downtime_limit_ns) {
        if (policy->stalled == 0 && copy_ns > POLISH_NS &&
            decision->dirty_rate <= decision->bandwidth / POLISH_RATIO)
            DECIDE(POLICY_CONTINUE, ", within the limit of %.1f ms; one more round leaves much less",
                   limit_ms);
        else
            DECIDE(POLICY_STOP, ", within the limit of %.1f ms", limit_ms);
        return;
    }
    if (policy->stalled == 0) {
        DECIDE(POLICY_CONTINUE, ", above the limit of %.1f ms; the rounds shrink", limit_ms);
        return;
    }
    if (copy_ns > (double)policy->copy_time_limit_ns) {
        DECIDE(POLICY_ABORT,
               "; the guest writes faster than the link carries and copying would take %.1f s, "
               "above the limit of %.1f s",
               copy_ns / NS_PER_S, (double)policy->copy_time_limit_ns / NS_PER_S);
        return;
    }
    if (policy->stalled < STALLED_ROUNDS ||
        (policy->stalled < PATIENT_ROUNDS && remaining > policy->smallest + policy->smallest / 10)) {
        DECIDE(POLICY_CONTINUE, ", above the limit of %.1f ms; not shrinking for %u rounds", limit_ms,
               policy->stalled);
        return;
    }
    DECIDE(POLICY_STOP, ", above the limit of %.1f ms, but not shrinking for %u rounds: stop and finish",
           limit_ms, policy->stalled);
#undef DECIDE
}

struct policy_decision policy_decide(struct policy *policy, const struct policy_round *round)
{
    struct policy_decision decision = {0};
    uint64_t remaining = round->remaining_bytes;

    policy_measure(policy, round);

    double copy_ns = policy->bandwidth ? (double)remaining * NS_PER_S / (double)policy->bandwidth : 0;

    decision.bandwidth = policy->bandwidth;
    if (round->duration_ns > 0)
        decision.dirty_rate = (uint64_t)((double)remaining * NS_PER_S / (double)round->duration_ns);
    decision.downtime_ns = (uint64_t)copy_ns + round->fixed_cost_ns;

    /* Shrinking means a tenth below the smallest so far; the first round has only itself to be compared with.
     */
    if (policy->smallest == UINT64_MAX)
        policy->stalled = remaining >= round->sent_bytes && remaining > 0;
    else if (remaining >= policy->smallest - policy->smallest / 10)
        policy->stalled++;
    else
        policy->stalled = 0;
    if (remaining < policy->smallest)
        policy->smallest = remaining;

    policy_judge(policy, round, copy_ns, &decision);
    return decision;
}
