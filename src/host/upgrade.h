/*
 * A VM goes on in a new ferry-vm process of this host, the program as it is installed now, which takes its
 * memory over by descriptors (libferry, "pass_memory"): so Ferry is renewed under a VM that runs.
 *
 * It is a migration whose source and destination are this host, with one record of both ends (kind
 * `upgrade`), the same states, switchover and ownership lock; what is different is that both processes are
 * ferryd's own:
 *
 *     upgrade_start (synchronous)                    new process
 *       the VM runs, nothing else is being done to it
 *       new directory, ferry-vm --upgrade       ->     ready, nothing reserved
 *       migrate.prepare to the old process
 *       migrate.receive                         ->     listens on a Unix socket
 *     job (its own thread)
 *       migrate.send to the old process         ->     memory, state, lock, GO, RUNNING
 *       waits for the ends of both
 *       moved:    the directories change places; the new process is the VM's, the old one is on its way out
 *       stayed:   the new process and its directory are gone
 *
 * Whatever dies meanwhile, the two processes come to an end by themselves, and the job, or that of the next
 * ferryd (upgrades_adopt), looks which of them has the VM: what they said last, else the lock.
 */
#ifndef FERRY_HOST_UPGRADE_H
#define FERRY_HOST_UPGRADE_H

#include "host/migration.h"

/* POST /v1/vms/NAME/upgrade. Returns when it is under way. HOST_CONFLICT when the VM does not run or is busy,
 * HOST_REFUSED with its words when the new process does not start: nothing has changed then. */
int upgrade_start(struct host *host, const char *vm, char id[static MIGRATION_ID_SIZE],
                  struct ferry_error *err);

/* At start, after migrations_adopt: upgrades that are not on record as in progress, and what former ones have
 * left. The processes of those in progress are adopted before, by upgrades_adopt_processes. */
void upgrades_adopt_processes(struct host *host);
void upgrades_adopt(struct host *host);

/* From vms_process_ended, under the host's lock: the newcomer of VM has ended and left WORD, or NULL. */
void upgrade_newcomer_ended(struct vm *vm, const json_t *word, const char *last_words);

/* Between upgrade.c and upgrade_adopt.c: of a migration that a former ferryd began. True when its two
 * processes are still to be heard; else it has been ended. */
bool upgrade_take_up(struct migration *migration);

/*
 * Before VM (claimed, without a process) is started from its disks: when its lock says that it was on its way
 * between two processes of this host, none of which is left, nobody else can decide about it: it is held
 * here.
 */
int upgrade_settle_lock(struct host *host, struct vm *vm, struct ferry_error *err);

#endif
