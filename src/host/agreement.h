/*
 * Both hosts' records of a migration tell the same story, whoever died while it was made.
 *
 * Each host's record ends with what that host knows:
 *
 *     completed, failed, cancelled    it knows
 *     lost                            the destination owns the guest, and has not said how it is; by the
 *                                     destination: quick resume has broken off, and it can never run on
 *     unknown                         it cannot say
 *
 * A host that has come to its end tells the other (POST /v1/migrations/ID/end) and hears that one's. Who does
 * not know takes over what the other knows; of `failed` and `cancelled`, which mean the same for the guest,
 * the source's counts; and a source that thinks `completed` takes over a destination's `lost`. Should both
 * know and contradict each other, both keep their word and log an error.
 *
 * As long as that is not done the record says "agreed": false; the thread "agree" tries again, and so does
 * the next ferryd. When a host in doubt has learnt how it was, the VM it keeps for that reason follows: it
 * is recovered as by `ferry recover`, or what is left of it is dropped.
 *
 * Those with a migration or a host take the host's lock, unless it is said otherwise.
 */
#ifndef FERRY_HOST_AGREEMENT_H
#define FERRY_HOST_AGREEMENT_H

#include "host/migration.h"

enum agreement {
    AGREEMENT_SAME = 1,
    AGREEMENT_OURS,   /* the other host is to take our word */
    AGREEMENT_THEIRS, /* we are to take theirs */
    AGREEMENT_CONTRADICTION,
};

/* Two outcomes, as in the records of one migration. */
/* TEXT as a constant; "unknown" when it is no outcome. */
const char *agreement_outcome(const char *text);
/* "failed" or "cancelled": the guest is where it was. */
bool agreement_stayed(const char *outcome);
enum agreement agreement_compare(const char *ours, const char *theirs, bool we_are_source);

/* Before the end, which is certain: so that the other host need not guess. Its silence changes nothing. */
void agreement_tell(struct migration *migration, const char *outcome, const char *cause, const char *error);
/* How it ended, as the other host says: it is asked, and then has WAIT_MS to tell. A constant; NULL: it does
 * not say. */
const char *agreement_ask(struct migration *migration, int64_t wait_ms);
/* Returns once the other host's record is final, or after the peer timeout, so that who asks there next sees
 * how it is. */
void agreement_await(struct migration *migration);
/* Under the lock, at the end: what our record is to say. */
void agreement_join(struct migration *migration);

/* POST /v1/migrations/ID/end: host FROM tells. *answer: {outcome, cause, error} here, "none" before the end.
 */
int agreement_told(struct host *host, const char *id, const char *from, const json_t *word, json_t **answer,
                   struct ferry_error *err);

/* The thread. It ends when the host stops; agreement_stop waits for that. */
int agreement_start(struct host *host, struct ferry_error *err);
void agreement_stop(struct host *host); /* not started: nothing */

#endif
