/*
 * Quick resume at the destination: which pages are missing, waiting for them, and putting them in their
 * places.
 *
 *     FETCH       postcopy_begin      no page has a mapping any more, whoever touches one waits; let the
 *                                     fetch connections in
 *     MISSING     postcopy_add
 *     END         postcopy_prepare
 *                 (load, Restore-OK, GO, the guest runs)
 *                 postcopy_fetch      until all is there
 *
 * Threads beside the session's: "ferry-missing" takes faults, asks for pages by the first fetch connection
 * and places the answers (it also answers faults of pages that are not missing, which lost or never had a
 * mapping); one for each other fetch connection places what arrives. One thread for faults and answers, since
 * two wake each other to no end where they share a CPU. They live from postcopy_begin to postcopy_free, those
 * of connections as long as the connections.
 *
 * A lost connection before GO fails the session, and lets go of whoever waits: nothing of it will ever run.
 * Afterwards nothing does: the guest is held, everything stays, and postcopy_fetch lets the source in again.
 */
#ifndef FERRY_ENGINE_POSTCOPY_DESTINATION_H
#define FERRY_ENGINE_POSTCOPY_DESTINATION_H

#include "engine/destination.h"

struct postcopy;

/* FETCH said so many connections: waits for them and answers READY. All failures are the session's. */
int postcopy_begin(struct postcopy **out, struct destination *destination, uint16_t connections,
                   struct ferry_error *err);
/* A MISSING frame. -EBADMSG. */
int postcopy_add(struct postcopy *postcopy, struct frame *frame, struct ferry_error *err);
/* All MISSING have come: memory may be touched again. */
int postcopy_prepare(struct postcopy *postcopy, struct ferry_error *err);

/* The guest runs, or is here paused. Returns when all pages are there (COMPLETED), or when somebody said that
 * they never will be (ferry_session_end_fetch). */
enum ferry_outcome postcopy_fetch(struct postcopy *postcopy, struct ferry_error *err);

/* Ends the threads. When the guest has run and pages are missing, they stay so until the process ends. NULL
 * allowed. */
void postcopy_free(struct postcopy *postcopy);

#endif
