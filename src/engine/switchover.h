/*
 * Switchover: from the decision to stop until the destination runs the guest. Never two running copies, never
 * none.
 *
 *     source                                             destination
 *  1  pause, quiesce, last pages, state     ──────────▶
 *  2                                                     load everything, check everything, run nothing
 *                                           ◀──────────  Restore-OK or Restore-Failure
 *  3  on OK: release ownership (handover),
 *     GO                                    ──────────▶
 *  4                                                     acquire ownership, resume, announce
 *                                           ◀──────────  RUNNING, or NOT_RUNNING
 *  5  finished; or retake ownership
 *
 * Until step 3 releases ownership every failure has the guest resumed at the source. From then on only
 * retake_ownership decides: it is told when the destination certainly never ran the guest (GO was not sent,
 * or NOT_RUNNING or ABORT came after it).
 *
 * Each step has a fault point before and after it (fault.h).
 */
#ifndef FERRY_ENGINE_SWITCHOVER_H
#define FERRY_ENGINE_SWITCHOVER_H

#include "engine/destination.h"
#include "engine/source.h"

/* Steps 1, 3 and 5. source->set holds what pre-copy left to send. */
int switchover_source(struct source *source, struct ferry_error *err);
/* The source failed after it released ownership: asks for it back. FAILED when the guest may run here. */
enum ferry_outcome switchover_retake(struct source *source);

/* Steps 2 and 4: END has come and all pages are placed. VERIFY: compare memory with the checksum in END. */
int switchover_destination(struct destination *destination, const struct wire_end *end, bool verify,
                           struct ferry_error *err);

#endif
