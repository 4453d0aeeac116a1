/*
 * Quick resume as a ferryd sees it: the guest runs at the destination while memory that it needs is still at
 * the source. Its two ferry-vm see to the memory; what a ferryd adds is the record of it, and that each host
 * tells the other when one of the two processes is gone for good:
 *
 *     source's process dies        its ferryd says "lost"; the destination's ends the guest, which can never
 *                                  run on, and says "lost"
 *     destination's process dies   its ferryd says "lost", or "completed" when all was there; the source's
 *                                  process ends
 *     the connection is cut        nothing: both keep what they have, until it is back
 *
 * "lost" by the destination is what is known, not a doubt: agreement.h.
 */
#ifndef FERRY_HOST_MIGRATION_FETCH_H
#define FERRY_HOST_MIGRATION_FETCH_H

#include "host/migration.h"
#include "host/vm_runnable.h"

/* --- under the host's lock --- */

/* Takes note of what ferry-vm said last. */
void fetch_note(struct migration *migration);
/* The guest runs, or stands, at the destination, and pages are missing there. */
bool fetch_is_under_way(const struct migration *migration);
/* Meanwhile: there is no connection. */
bool fetch_is_cut(const struct migration *migration);
uint64_t fetch_missing_bytes(const struct migration *migration);
/* There is something for fetch_follow to do. */
bool fetch_has_news(const struct migration *migration);

/* --- without it --- */

/* Its job: record and events follow, and ferry-vm hears what the other host says of the end. */
void fetch_follow(struct migration *migration);

/* POST /v1/migrations/ID/reconnect, to the source: connects again now. Waits, at most the peer timeout, until
 * it is done. */
int fetch_reconnect(struct host *host, const char *id, struct ferry_error *err);

/*
 * `recover` of a VM in that state, on either host; *handled is false when it is in none, and nothing was
 * done. ASK: connects again. THERE, at the source: the memory here is given up, and with it the guest. HERE:
 * refused, unless nothing ran at the destination.
 */
int fetch_recover(struct host *host, const char *vm, enum recover_force force, bool *handled,
                  struct ferry_error *err);

#endif
