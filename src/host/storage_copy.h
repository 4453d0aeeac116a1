/*
 * Cold migrations that take their disks along (storage.h has the plan, disk/copy.h the bytes), and those of
 * suspended VMs, with or without disks, whose file is copied when the destination does not reach it
 * (storage_file.h):
 *
 *     source                                            destination
 *     takes the VM's lock: nobody starts it, nor
 *     writes to its disks
 *     POST /v1/incoming                         ->      takes the VM's name, lists it as SETUP(MIGR)
 *     serves its disks                          <-      GET /v1/migrations/ID/disks/N, each into a new file
 *                                                       beside the one to be, PATH.ID.partial; on storage,
 *                                                       read back, compared; a suspended guest's file, too:
 *                                               <-      GET /v1/migrations/ID/file
 *                                               <-      POST /v1/migrations/ID/copied
 *     not runnable here (outcome unknown);
 *     the lock says `handover`, if it is beside
 *     one of those disks
 *     POST /v1/incoming/ID/take                 ->      files get their names; a lock beside them, of the
 *                                                       generation that the source's was; then the VM is
 *                                                       the destination's
 *     not runnable here (completed)
 *
 * Until `take` either side may give up, and all that the destination has is removed: by its job, or, from
 * what incoming.json in the VM's directory says, by the next ferryd. The source's disks are never touched.
 * Their lock goes on saying `handover`: they are no longer the VM's, and nobody starts it from them without
 * ferry recover. tests/model/storage.pml is the model of this.
 */
#ifndef FERRY_HOST_STORAGE_COPY_H
#define FERRY_HOST_STORAGE_COPY_H

#include "disk/vm_lock.h"
#include "host/migration.h"
#include "host/vms.h"

/* Both sides. Under the lock. */
bool storage_may_cancel(const struct migration *migration);
/* What moves, as `disks` of the migration's object; NULL: nothing does. New reference. */
json_t *storage_object(const struct migration *migration);
/* Of the job: state, phase, and how far the copying is. */
void storage_set_progress(struct migration *migration, const char *state, int number, const char *phase,
                          int percent);

/* --- source; the job's thread --- */

/* Returns when all is at the destination. Nothing was given away yet: whatever fails, the VM is here.
 * -ECANCELED: somebody's wish, or the host stops. */
int storage_send(struct migration *migration, struct ferry_error *err);
/* The other host gets the VM. LOCK (NULL: none) is held. HOST_UNREACHABLE: whether it has it, is not known;
 * then the VM stays not runnable, and its lock says `handover`. */
int storage_give(struct migration *migration, struct vm_lock *lock, struct ferry_error *err);

/* --- source; the API's threads --- */

struct storage_stream;

#define STORAGE_FILE UINT64_MAX /* for an index: the suspended guest's */

/* Disk INDEX of migration ID, for host TO. */
int storage_stream_open(struct storage_stream **out, struct host *host, const char *id, uint64_t index,
                        const char *to, struct ferry_error *err);
size_t storage_stream_fill(void *stream, char *buffer, size_t size); /* an api_fill */
void storage_stream_free(void *stream);
/* Host FROM has everything. */
int storage_copied(struct host *host, const char *id, const char *from, struct ferry_error *err);

/* --- destination --- */

/* ANSWER gets `storage`: {bytes, disks: [whether it is copied], file: where it will be, if it is copied}.
 * Returns when the job is under way. */
int storage_receive(struct host *host, const struct migration_offer *offer, const json_t *definition,
                    json_t *answer, struct ferry_error *err);
void storage_run(struct migration *migration); /* the job's thread */
/* Host FROM gives the VM; GENERATION of its lock, 0: none. Returns when the VM is here, or, HOST_REFUSED,
 * certainly is not. */
int storage_take(struct host *host, const char *id, const char *from, uint64_t generation,
                 struct ferry_error *err);

#endif
