/*
 * How many VMs leave this host at once (--migrate-max), who waits, and how those that leave share the host's
 * bandwidth (--migrate-bandwidth).
 *
 *     queue_enter  ──▶ has a place ───────────────────────────▶ prepared, sent ──▶ ended: the place is free
 *                  └─▶ queued; queue_wait, oldest first ──▶ has a place
 *
 * Every migration that leaves, is not queued and has not ended, has a place, but not one that has lost its
 * connection in the middle of quick resume: that may be for long; nor one that is cold, which never waits:
 * its VM does not run, and whoever moves it wants it out of the way.
 *
 * The bandwidth is divided evenly among all that have not ended and are not queued; a cold one is among them
 * while its disks, or its guest's file, are copied from here. One that is limited to less by its own
 * --bandwidth leaves the rest to the others. When the division changes each job tells its ferry-vm; a new
 * one begins only when the others have been told.
 *
 * All take the host's lock, but for those marked.
 */
#ifndef FERRY_HOST_MIGRATION_QUEUE_H
#define FERRY_HOST_MIGRATION_QUEUE_H

#include "host/migration.h"

enum queue_end {
    QUEUE_GO = 1,    /* it has a place */
    QUEUE_CANCELLED, /* somebody asked */
    QUEUE_VM_GONE,   /* its VM ended */
    QUEUE_STOPPING,  /* the host does: the next ferryd goes on */
};

/* A registered migration: takes a place, or (false) becomes queued. */
bool queue_enter(struct migration *migration);
/* Its job: until one of these. */
enum queue_end queue_wait(struct migration *migration);
/* 1: it is the next; 0: it is not queued. Under the lock. */
unsigned queue_position(const struct migration *migration);

/* What LIMITS (0: none) become when TOTAL (0: no limit) is divided; into SHARES (0: no limit). Pure. */
void share_divide(uint64_t total, const uint64_t *limits, uint64_t *shares, size_t count);
/* Under the lock: divides anew, when one has come or gone. */
void shares_update(struct host *host);
/* Waits (a second or two at most) until nobody sends with a share that was larger. */
void shares_settle(struct migration *migration);
/* Its job: tells ferry-vm the share if it has changed. */
void share_tell(struct migration *migration);

#endif
