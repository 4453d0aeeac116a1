/*
 * The decision after every pre-copy round: another round (perhaps with slower vCPUs), stop the guest, go on
 * by quick resume, or give up. Pure: numbers in, decision and the reason in words out; no clock, no guest, no
 * network. So it also tells beforehand how a migration would go (policy_forecast).
 *
 * After a round, REMAINING bytes of memory were found written. What the guest would stand still for if it
 * were stopped now is the time to send them plus the fixed cost: what a switchover takes whatever remains.
 *
 * 1. It fits the limit: stop; unless the rounds still shrink and one more would leave next to nothing (an
 *    eighth): a much smaller downtime costs little.
 * 2. The fixed cost alone is above the limit: no round and no slowing changes that. Go on while the rounds
 *    shrink, down to next to nothing, then stop.
 * 3. It does not fit, but the rounds shrink: go on.
 * 4. The rounds do not shrink: changes outrun the link. Slow the vCPUs, step by step, each step by what is
 *    missing; at most as far as the operator allows. When the guest has become quieter, let it run again.
 * 5. No slowing is left. The 100-second rule, by the estimated remaining copy time: above the limit give up;
 *    below it quick resume, when that is allowed, else stop and finish, at a local minimum: a round no larger
 *    than the smallest seen (a tenth of slack), waiting for one only so many rounds.
 *
 * Shrinking means a tenth below the smallest round so far. Rates are smoothed; a round too small to measure
 * the link does not lower the bandwidth known before.
 *
 * There are two bandwidths. On the wire it is what the link carries. In memory it is how fast the way pages
 * are sent works through them: more, by what compression saves and by pages that need not be sent at all.
 * That one is compared with what the guest writes, since both count the same pages. Stopped, the guest's last
 * pages may go in another way, so what they take is reckoned anew: what a page is on the wire in that way, at
 * what the link carries then. Zeros are no measure of anything: they are gone when data comes.
 */
#ifndef FERRY_ENGINE_POLICY_H
#define FERRY_ENGINE_POLICY_H

#include <ferry/ferry.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define POLICY_REASON_SIZE  384
#define POLICY_THROTTLE_MAX 99 /* per cent */
/* A guest at a hundredth of its speed for a round is better off than one stopped for as long. */
#define POLICY_THROTTLE_DEFAULT POLICY_THROTTLE_MAX

struct policy_settings {
    uint64_t downtime_limit_ns;
    uint64_t copy_time_limit_ns;
    unsigned throttle_max; /* per cent; 0: the vCPUs are never slowed */
    bool quick_resume;     /* is allowed */
};

struct policy {
    struct policy_settings settings;
    /* What has been seen. */
    unsigned rounds;
    uint64_t bandwidth;      /* bytes of memory a second; 0 unknown */
    uint64_t wire_bandwidth; /* bytes on the wire a second; 0 unknown */
    bool measured;           /* by a round that was large enough */
    uint64_t smallest;       /* bytes left after the best round; UINT64_MAX before the first */
    uint64_t previous;       /* and after the last one */
    unsigned stalled;        /* rounds that were not better than it, since one was */
    unsigned exhausted;      /* of those, how many since slowing the vCPUs was no help any more */
    unsigned throttle;       /* per cent, as decided last */
};

/* What a switchover takes beside the pages that remain: measured, remembered or guessed. */
struct policy_costs {
    /* "last pages" is what finding them takes, "wire" is latency. */
    uint64_t part_ns[FERRY_DOWNTIME_PARTS];
    uint64_t state_bytes; /* beside memory */
};

/* How pages go once the guest is stopped. */
struct policy_frozen {
    uint64_t wire_bandwidth; /* bytes on the wire a second, if more than in the rounds; 0: as in them */
    uint64_t page_bytes;     /* on the wire, of a page that is not zero; 0: as in the rounds */
    uint64_t page_ns;        /* to encode one; 0: next to nothing */
};

struct policy_round {
    uint64_t sent_bytes; /* of memory: pages */
    uint64_t zero_bytes; /* of these, pages that were zero */
    uint64_t wire_bytes; /* what they were on the wire */
    uint64_t duration_ns;
    uint64_t remaining_bytes; /* of memory, found written when it ended */
    struct policy_frozen frozen;
    struct policy_costs costs;
};

enum policy_verdict {
    POLICY_CONTINUE = 1,
    POLICY_STOP,
    POLICY_ABORT,
    POLICY_QUICK_RESUME,
};

struct policy_decision {
    enum policy_verdict verdict;
    unsigned throttle;         /* per cent the vCPUs are to be slowed from now on */
    uint64_t bandwidth;        /* bytes of memory a second in the rounds */
    uint64_t wire_bandwidth;   /* bytes on the wire a second in the rounds */
    uint64_t frozen_bandwidth; /* bytes of memory a second, the guest being stopped */
    uint64_t dirty_rate;       /* bytes of memory a second */
    uint64_t copy_ns;          /* to send what remains, the guest being stopped */
    uint64_t fixed_ns;         /* the rest of the downtime */
    uint64_t downtime_ns;      /* predicted, if stopped now: their sum; quick resume: the fixed part */
    bool fits;                 /* the downtime is within the limit */
    char reason[POLICY_REASON_SIZE];
};

void policy_init(struct policy *policy, const struct policy_settings *settings);
struct policy_decision policy_decide(struct policy *policy, const struct policy_round *round);

/* The sum of the costs, the state being sent at BANDWIDTH (bytes/s; 0: it takes no time). */
uint64_t policy_fixed_ns(const struct policy_costs *costs, uint64_t bandwidth);

/*
 * Which vCPUs to slow: those that write. WRITES[i] is what each of COUNT has written in the last round, in
 * any unit; percent[i] becomes THROTTLE, or 0 for one whose share is less than a tenth of an even one.
 */
void policy_spread(const uint64_t *writes, size_t count, unsigned throttle, unsigned *percent);

/* How a guest writes, as far as one can know. */
struct policy_model {
    uint64_t dirty_rate;       /* bytes of memory a second, at full speed */
    uint64_t working_set;      /* bytes it can have written at most */
    uint64_t frozen_bandwidth; /* bytes of memory a second once it is stopped; 0: as in the rounds */
};

struct policy_forecast {
    enum policy_verdict verdict; /* in the end; POLICY_CONTINUE: no end in sight */
    bool converges;              /* it stops within the downtime limit, or as near to it as it can be */
    unsigned rounds;             /* that are still to be sent, without the frozen one */
    uint64_t bytes;              /* of memory, in all of them and the frozen one */
    uint64_t total_ns; /* until the guest runs at the destination; quick resume: until all is there */
    uint64_t downtime_ns;
    unsigned throttle; /* the most that will be asked for */
};

/* What will happen from a round of BYTES on, the link carrying BANDWIDTH bytes of memory a second. POLICY is
 * a fresh one, or that of a migration in progress; it is not changed. */
struct policy_forecast policy_forecast(const struct policy *policy, uint64_t bytes, uint64_t bandwidth,
                                       const struct policy_model *model, const struct policy_costs *costs);

#endif
