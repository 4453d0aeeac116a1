/*
 * The decision after every pre-copy round: another round, stop the guest, or give up. Pure: numbers in,
 * decision and the reason in words out; no clock, no guest, no network.
 *
 * After a round, REMAINING bytes were found written. Sending them takes remaining / bandwidth; with the fixed
 * cost of a switchover (what was measured of it) that is the downtime if the guest were stopped now.
 *
 * 1. It fits the limit: stop; unless the guest writes so slowly that one more short round would leave next to
 *    nothing (dirty rate at most an eighth of the bandwidth): then go on, a smaller downtime costs little.
 * 2. It does not fit, but next to nothing is left: stop. More rounds cannot make the fixed cost smaller.
 * 3. It does not fit, but the rounds shrink: go on.
 * 4. The rounds do not shrink any more, changes outrun the link. The 100-second rule, by the estimated
 *    remaining copy time: above the limit abort; below it stop and finish, at a local minimum: a round no
 *    larger than the smallest seen (a tenth of slack), waiting for one only so many rounds.
 *
 * Rates are smoothed: a round too small to measure the link keeps the bandwidth known before.
 */
#ifndef FERRY_ENGINE_POLICY_H
#define FERRY_ENGINE_POLICY_H

#include <stddef.h>
#include <stdint.h>

#define POLICY_REASON_SIZE 256

struct policy {
    /* Settings. */
    uint64_t downtime_limit_ns;
    uint64_t copy_time_limit_ns;
    /* What has been seen. */
    uint64_t bandwidth; /* bytes/s; 0 unknown */
    uint64_t smallest;  /* bytes left after the best round; UINT64_MAX before the first */
    unsigned stalled;   /* rounds one after another that were not better than it */
};

struct policy_round {
    uint64_t sent_bytes; /* on the wire */
    uint64_t duration_ns;
    uint64_t remaining_bytes; /* found written when it ended */
    uint64_t fixed_cost_ns;   /* measured cost of a switchover that does not depend on what remains */
};

enum policy_verdict {
    POLICY_CONTINUE = 1,
    POLICY_STOP,
    POLICY_ABORT,
};

struct policy_decision {
    enum policy_verdict verdict;
    uint64_t bandwidth;   /* bytes/s */
    uint64_t dirty_rate;  /* bytes/s */
    uint64_t downtime_ns; /* predicted, if stopped now */
    char reason[POLICY_REASON_SIZE];
};

void policy_init(struct policy *policy, uint64_t downtime_limit_ns, uint64_t copy_time_limit_ns);
struct policy_decision policy_decide(struct policy *policy, const struct policy_round *round);

#endif
