/*
 * Quick resume at the source: telling which pages are missing, and giving them away until all are there.
 *
 *     postcopy_source_begin      FETCH; the fetch connections are made, READY comes
 *                                                                             the guest is stopped
 *     postcopy_source_missing    MISSING in the place of the last pages
 *     postcopy_source_push       after Restore-OK: everything leaves, what is asked for first
 *                                                                             the guest runs there
 *     postcopy_source_serve      after RUNNING: until the destination has all
 *
 * Threads beside the session's, one a fetch connection (postcopy_serve.c): the first ("ferry-serve") answers
 * requests, the others ("ferry-push") send what nobody has asked for yet, near the last request first. A page
 * is sent once: whoever takes its bit out of the set sends it. What was lost with a connection is in the set
 * again when the destination has said what it lacks.
 *
 * The memory here is that of the moment at which the guest was stopped: nobody writes it, and once the guest
 * has run there it is never run here again.
 */
#ifndef FERRY_ENGINE_POSTCOPY_SOURCE_H
#define FERRY_ENGINE_POSTCOPY_SOURCE_H

#include "engine/source.h"

struct postcopy_source;

/* Failures of the first three are the session's. */
int postcopy_source_begin(struct postcopy_source **out, struct source *source, struct ferry_error *err);
/* source->set is what is missing. */
int postcopy_source_missing(struct postcopy_source *postcopy, struct ferry_error *err);
void postcopy_source_push(struct postcopy_source *postcopy);

/* SURE: RUNNING has come. COMPLETED; LOST; or FAILED when it was not sure, nothing ran there, and the guest
 * was taken back. err says why it is not COMPLETED. */
enum ferry_outcome postcopy_source_serve(struct postcopy_source *postcopy, bool sure,
                                         struct ferry_error *err);

/* Ends the threads and connections; NULL allowed. */
void postcopy_source_free(struct postcopy_source *postcopy);

#endif
