/*
 * Cold migrations: a VM that does not run moves with its definition, and, when it is suspended, with the
 * file that its guest is in, which is copied when the destination does not reach it. One that runs is
 * suspended first, and resumed at the destination; what fails on the way resumes it at the source.
 *
 *     source                                            destination
 *     checks, here and there                            the same as of other migrations, but for what a
 *                                                       running guest needs
 *     takes the VM's lock: nobody starts it meanwhile
 *     the VM is not runnable here (outcome unknown)
 *     POST /v1/incoming with `cold`             ->      makes the VM, with `incoming.json` in its directory
 *                                                       until all of it is there
 *     not runnable here (completed)
 *
 * So goes one that is powered off; one that is suspended, or whose disks move along, goes as in
 * storage_copy.h, where nothing is given before all that is to be copied has been. The lock's generation
 * stays as it is: nobody has run the VM.
 */
#ifndef FERRY_HOST_MIGRATION_COLD_H
#define FERRY_HOST_MIGRATION_COLD_H

#include "host/migration.h"
#include "host/vms.h"

#include <limits.h>

/* At the source, of a VM that is claimed: how it would move, as `cold` of the offer. HOST_CONFLICT when it
 * cannot. */
int cold_prepare(struct migration *migration, struct vm *vm, struct ferry_error *err);
/* The checks are passed. */
int cold_begin(struct migration *migration, struct vm *vm, struct ferry_error *err);
void cold_run(struct migration *migration); /* the job's thread */
/* Of one that a former ferryd began: VM (a reference; NULL: gone) is its. */
void cold_take_up(struct migration *migration, struct vm *vm);

/* At the destination: makes the VM, and its record. ANSWER as of storage_receive. */
int cold_receive(struct host *host, const struct migration_offer *offer, const json_t *definition,
                 json_t *answer, struct ferry_error *err);
/* The VM is here, suspended, and ran at the source: it goes on. Else it is removed (*dropped), and so is the
 * file. */
int cold_resume_arrived(struct host *host, const json_t *cold, const char *name, bool *dropped,
                        struct ferry_error *err);
void cold_tell_arrived(struct migration *migration);        /* its end */
const char *cold_text(const json_t *cold, const char *key); /* "": there is none */

#endif
