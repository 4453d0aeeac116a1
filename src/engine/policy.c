#include "engine/policy.h"

#include <stdarg.h>
#include <stdio.h>

#define NS_PER_S  1e9
#define NS_PER_MS 1e6

/* A round below this size says more about latency than about the link. */
#define MEASURABLE_BYTES (1u << 20)
/* What a link carries of which no round was large enough to tell: 1 Gbit/s. */
#define UNMEASURED_BANDWIDTH 117000000
/* With a dirty rate below bandwidth / POLISH_RATIO another round is worth it, down to POLISH_NS of sending.
 */
#define POLISH_RATIO 8
#define POLISH_NS    500000.0
/* Rounds without progress. The first may be chance, unless the guest demonstrably outran the link; after a
 * few it is believed, and then so many more are granted to find a local minimum. */
#define STALLED_ROUNDS 2
#define MINIMUM_ROUNDS 3
#define PATIENT_ROUNDS 8
/* A guest that goes round and round in its memory writes as much as is sent, neither more nor less: which of
 * the two is more by a hair must not decide. */
#define AS_MUCH 0.95
/* Slowing: what is aimed at is rounds of half the size; a step is neither tiny nor a shock. */
#define THROTTLE_AIM       0.5
#define THROTTLE_FIRST     20
#define THROTTLE_STEP      10
#define THROTTLE_STEP_MOST 25
/* A round without progress, but so much smaller than the last one, is on its way to some. */
#define RECOVERING 0.75

#define FORECAST_ROUNDS_MAX 1000

static uint64_t saturate(double value)
{
    return value <= 0 ? 0 : value >= 1.8e19 ? UINT64_MAX : (uint64_t)value;
}

static double seconds_at(double bytes, uint64_t bandwidth)
{
    return bandwidth ? bytes / (double)bandwidth : 0;
}

void policy_init(struct policy *policy, const struct policy_settings *settings)
{
    *policy = (struct policy){.settings = *settings, .smallest = UINT64_MAX};
    if (policy->settings.throttle_max > POLICY_THROTTLE_MAX)
        policy->settings.throttle_max = POLICY_THROTTLE_MAX;
}

uint64_t policy_fixed_ns(const struct policy_costs *costs, uint64_t bandwidth)
{
    double fixed = seconds_at((double)costs->state_bytes, bandwidth) * NS_PER_S;

    for (size_t i = 0; i < FERRY_DOWNTIME_PARTS; i++)
        fixed += (double)costs->part_ns[i];
    return saturate(fixed);
}

void policy_spread(const uint64_t *writes, size_t count, unsigned throttle, unsigned *percent)
{
    double total = 0;

    for (size_t i = 0; i < count; i++)
        total += (double)writes[i];
    for (size_t i = 0; i < count; i++)
        percent[i] = total == 0 || (double)writes[i] * (double)count * 10 >= total ? throttle : 0;
}

static void smooth(uint64_t *bandwidth, uint64_t bytes, uint64_t duration_ns)
{
    double rate = (double)bytes * NS_PER_S / (double)duration_ns;

    if (*bandwidth == 0 || (bytes < MEASURABLE_BYTES && rate > (double)*bandwidth))
        *bandwidth = saturate(rate);
    else if (bytes >= MEASURABLE_BYTES)
        *bandwidth = saturate(((double)*bandwidth + 3 * rate) / 4);
    if (*bandwidth == 0)
        *bandwidth = 1;
}

/* The first round is made of other pages than those that change: many are zeros, which are quick. */
static void policy_measure(struct policy *policy, const struct policy_round *round)
{
    uint64_t bytes = round->sent_bytes;

    if (policy->rounds++ == 0)
        bytes -= round->zero_bytes < bytes ? round->zero_bytes : bytes;
    if (round->duration_ns == 0)
        return;
    smooth(&policy->bandwidth, bytes, round->duration_ns);
    smooth(&policy->wire_bandwidth, round->wire_bytes, round->duration_ns);
    policy->measured |= bytes >= MEASURABLE_BYTES;
}

/* Bytes on the wire a second once the guest is stopped. */
static uint64_t frozen_wire(const struct policy *policy, const struct policy_frozen *frozen)
{
    return frozen->wire_bandwidth > policy->wire_bandwidth ? frozen->wire_bandwidth : policy->wire_bandwidth;
}

/* Bytes of memory a second once the guest is stopped. */
static uint64_t frozen_memory(const struct policy *policy, const struct policy_frozen *frozen)
{
    double wire = (double)frozen_wire(policy, frozen);
    double rate = (double)policy->bandwidth;

    if (frozen->page_bytes)
        rate = wire * FERRY_PAGE_SIZE / (double)frozen->page_bytes;
    else if (policy->wire_bandwidth)
        rate *= wire / (double)policy->wire_bandwidth;
    if (frozen->page_ns && rate > FERRY_PAGE_SIZE * NS_PER_S / (double)frozen->page_ns)
        rate = FERRY_PAGE_SIZE * NS_PER_S / (double)frozen->page_ns;
    return rate < 1 ? 1 : saturate(rate);
}

/* Returns whether the rounds shrink. The first round has only itself to be compared with. */
static bool policy_note(struct policy *policy, const struct policy_round *round)
{
    uint64_t remaining = round->remaining_bytes;
    bool recovering = false;

    if (policy->smallest == UINT64_MAX)
        policy->stalled = (double)remaining >= AS_MUCH * (double)round->sent_bytes && remaining > 0;
    else if (remaining < policy->smallest - policy->smallest / 10)
        policy->stalled = 0;
    else if (policy->exhausted > 0 || (double)remaining > RECOVERING * (double)policy->previous)
        policy->stalled++;
    else
        recovering = true;
    if (policy->stalled == 0)
        policy->exhausted = 0;
    if (remaining < policy->smallest)
        policy->smallest = remaining;
    policy->previous = remaining;
    return recovering || policy->stalled == 0;
}

/* How much the vCPUs must be slowed for the next round to be what is aimed at. */
static unsigned throttle_wanted(const struct policy *policy, const struct policy_decision *decision)
{
    unsigned now = policy->throttle;
    unsigned least = now ? now + THROTTLE_STEP : THROTTLE_FIRST;
    unsigned most = now + THROTTLE_STEP_MOST;
    double speed = (100.0 - now) * THROTTLE_AIM * (double)decision->bandwidth /
                   (decision->dirty_rate ? (double)decision->dirty_rate : 1);
    unsigned wanted = speed >= 100 ? 0 : (unsigned)(100.5 - speed);

    wanted = wanted < least ? least : wanted > most ? most : wanted;
    return wanted > policy->settings.throttle_max ? policy->settings.throttle_max : wanted;
}

/* At full speed it would dirty no more than is aimed at. */
static bool throttle_unneeded(const struct policy *policy, const struct policy_decision *decision)
{
    double full = (double)decision->dirty_rate * 100 / (100.0 - policy->throttle);

    return policy->throttle > 0 && full <= THROTTLE_AIM * (double)decision->bandwidth;
}

static void decide(struct policy_decision *decision, enum policy_verdict verdict, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The reason goes on after the numbers that are there. */
static void decide(struct policy_decision *decision, enum policy_verdict verdict, const char *format, ...)
{
    size_t length = 0;
    va_list arguments;

    while (decision->reason[length])
        length++;
    decision->verdict = verdict;
    va_start(arguments, format);
    vsnprintf(decision->reason + length, sizeof(decision->reason) - length, format, arguments);
    va_end(arguments);
}

/* Nothing makes the rounds shrink. */
static void policy_judge_diverging(struct policy *policy, const struct policy_round *round,
                                   struct policy_decision *decision)
{
    double limit_ms = (double)policy->settings.downtime_limit_ns / NS_PER_MS;
    double copy_s = (double)decision->copy_ns / NS_PER_S;
    double copy_limit_s = (double)policy->settings.copy_time_limit_ns / NS_PER_S;
    uint64_t slack = policy->smallest / 10;

    policy->exhausted++;
    if (decision->copy_ns > policy->settings.copy_time_limit_ns) {
        decide(decision, POLICY_ABORT,
               "; the guest writes faster than the link carries and copying would take %.1f s, above the "
               "limit of %.1f s",
               copy_s, copy_limit_s);
    } else if (policy->settings.quick_resume) {
        decision->downtime_ns = decision->fixed_ns;
        decide(decision, POLICY_QUICK_RESUME,
               ", above the limit of %.1f ms; the guest writes faster than the link carries; copying would "
               "take %.1f s, within the limit of %.1f s: quick resume",
               limit_ms, copy_s, copy_limit_s);
    } else if (policy->exhausted < MINIMUM_ROUNDS ||
               (policy->exhausted < PATIENT_ROUNDS && round->remaining_bytes - slack > policy->smallest)) {
        decide(decision, POLICY_CONTINUE, ", above the limit of %.1f ms; not shrinking for %u rounds",
               limit_ms, policy->stalled);
    } else {
        decide(decision, POLICY_STOP,
               ", above the limit of %.1f ms, but not shrinking for %u rounds: stop and finish", limit_ms,
               policy->stalled);
    }
}

static void policy_judge_stalled(struct policy *policy, const struct policy_round *round,
                                 struct policy_decision *decision)
{
    double limit_ms = (double)policy->settings.downtime_limit_ns / NS_PER_MS;
    bool outran = (double)decision->dirty_rate >= AS_MUCH * (double)decision->bandwidth;
    bool can_slow = policy->throttle < policy->settings.throttle_max;

    if (!outran && policy->stalled < STALLED_ROUNDS) {
        decide(decision, POLICY_CONTINUE, ", above the limit of %.1f ms; not shrinking for %u round",
               limit_ms, policy->stalled);
    } else if (can_slow) {
        policy->throttle = throttle_wanted(policy, decision);
        decide(decision, POLICY_CONTINUE,
               ", above the limit of %.1f ms; not shrinking for %u rounds: the vCPUs are slowed by %u %% (at "
               "most %u %%)",
               limit_ms, policy->stalled, policy->throttle, policy->settings.throttle_max);
    } else {
        policy_judge_diverging(policy, round, decision);
    }
}

static void policy_judge(struct policy *policy, const struct policy_round *round, bool shrinking,
                         struct policy_decision *decision)
{
    uint64_t limit = policy->settings.downtime_limit_ns;
    double limit_ms = (double)limit / NS_PER_MS;
    bool little = (double)decision->copy_ns <= POLISH_NS;

    if (decision->fits) {
        if (shrinking && !little && decision->dirty_rate <= decision->bandwidth / POLISH_RATIO)
            decide(decision, POLICY_CONTINUE,
                   ", within the limit of %.1f ms; one more round leaves much less", limit_ms);
        else
            decide(decision, POLICY_STOP, ", within the limit of %.1f ms", limit_ms);
    } else if (little || (decision->fixed_ns >= limit && !shrinking && decision->copy_ns <= limit)) {
        decide(decision, POLICY_STOP, ", above the limit of %.1f ms, but that is not for what is left",
               limit_ms);
    } else if (shrinking && throttle_unneeded(policy, decision)) {
        policy->throttle = 0;
        decide(decision, POLICY_CONTINUE,
               ", above the limit of %.1f ms; the guest is quieter: the vCPUs run at full speed again",
               limit_ms);
    } else if (shrinking) {
        decide(decision, POLICY_CONTINUE, ", above the limit of %.1f ms; the rounds shrink", limit_ms);
    } else {
        policy_judge_stalled(policy, round, decision);
    }
}

struct policy_decision policy_decide(struct policy *policy, const struct policy_round *round)
{
    struct policy_decision decision = {0};
    uint64_t remaining = round->remaining_bytes;
    uint64_t wire;
    bool shrinking;

    policy_measure(policy, round);
    shrinking = policy_note(policy, round);
    wire = frozen_wire(policy, &round->frozen);

    decision.bandwidth = policy->bandwidth;
    decision.wire_bandwidth = policy->wire_bandwidth;
    decision.frozen_bandwidth = frozen_memory(policy, &round->frozen);
    if (round->duration_ns > 0)
        decision.dirty_rate = saturate((double)remaining * NS_PER_S / (double)round->duration_ns);
    decision.copy_ns = saturate(seconds_at((double)remaining, decision.frozen_bandwidth) * NS_PER_S);
    if (!policy->measured && wire < UNMEASURED_BANDWIDTH)
        wire = UNMEASURED_BANDWIDTH;
    decision.fixed_ns = policy_fixed_ns(&round->costs, wire);
    decision.downtime_ns = saturate((double)decision.copy_ns + (double)decision.fixed_ns);
    decision.fits = decision.downtime_ns <= policy->settings.downtime_limit_ns;
    snprintf(
        decision.reason, sizeof(decision.reason),
        "%llu bytes left, %.1f MB/s of memory sent (%.1f MB/s on the wire), %.1f MB/s written, %.1f ms of "
        "downtime (%.1f ms for what is left, %.1f ms fixed)",
        (unsigned long long)remaining, (double)policy->bandwidth / 1e6, (double)policy->wire_bandwidth / 1e6,
        (double)decision.dirty_rate / 1e6, (double)decision.downtime_ns / NS_PER_MS,
        (double)decision.copy_ns / NS_PER_MS, (double)decision.fixed_ns / NS_PER_MS);

    policy_judge(policy, round, shrinking, &decision);
    decision.throttle = policy->throttle;
    return decision;
}

static void forecast_end(struct policy_forecast *forecast, const struct policy *policy,
                         const struct policy_decision *decision, double total_s, double bytes)
{
    uint64_t limit = policy->settings.downtime_limit_ns;
    bool above = decision->downtime_ns > limit && decision->copy_ns > limit;

    forecast->verdict = decision->verdict;
    forecast->converges = decision->verdict == POLICY_STOP && !above;
    forecast->downtime_ns = decision->downtime_ns;
    if (decision->verdict == POLICY_STOP || decision->verdict == POLICY_QUICK_RESUME)
        total_s += ((double)decision->copy_ns + (double)decision->fixed_ns) / NS_PER_S;
    forecast->total_ns = saturate(total_s * NS_PER_S);
    forecast->bytes = saturate(bytes);
}

struct policy_forecast policy_forecast(const struct policy *policy, uint64_t bytes, uint64_t bandwidth,
                                       const struct policy_model *model, const struct policy_costs *costs)
{
    struct policy ahead = *policy;
    struct policy_forecast forecast = {.throttle = policy->throttle};
    struct policy_decision decision = {.verdict = POLICY_CONTINUE};
    double total_s = 0, total_bytes = 0;

    if (bandwidth == 0)
        bandwidth = 1;
    /* What comes is reckoned in memory only. */
    ahead.wire_bandwidth = ahead.bandwidth;
    while (decision.verdict == POLICY_CONTINUE && forecast.rounds < FORECAST_ROUNDS_MAX) {
        double duration_s =
            seconds_at((double)bytes, bandwidth) + (double)costs->part_ns[FERRY_DOWNTIME_WIRE] / NS_PER_S;
        double dirtied = (double)model->dirty_rate * duration_s * (100.0 - ahead.throttle) / 100;
        struct policy_round round = {.sent_bytes = bytes,
                                     .wire_bytes = bytes,
                                     .duration_ns = saturate(duration_s * NS_PER_S),
                                     .frozen = {.wire_bandwidth = model->frozen_bandwidth},
                                     .costs = *costs};

        if (dirtied > (double)model->working_set)
            dirtied = (double)model->working_set;
        round.remaining_bytes = saturate(dirtied);
        decision = policy_decide(&ahead, &round);
        total_s += duration_s;
        total_bytes += (double)bytes;
        bytes = round.remaining_bytes;
        forecast.rounds++;
        if (decision.throttle > forecast.throttle)
            forecast.throttle = decision.throttle;
    }
    if (decision.verdict == POLICY_STOP || decision.verdict == POLICY_QUICK_RESUME)
        total_bytes += (double)bytes;
    forecast_end(&forecast, policy, &decision, total_s, total_bytes);
    return forecast;
}
