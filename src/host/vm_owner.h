/*
 * What the ownership lock of a VM says to a ferryd (disk/vm_lock.h, docs/SWITCHOVER.md). The VM processes
 * take and write it; ferryd looks when they cannot be asked any more, and settles it when a person, or the
 * other host, has decided about a VM of which no process is left.
 *
 * A look needs no lock: it is worth something when nobody who could write is left, or for what cannot become
 * untrue (that the guest has run at the destination).
 */
#ifndef FERRY_HOST_VM_OWNER_H
#define FERRY_HOST_VM_OWNER_H

#include "disk/vm_lock.h"
#include "host/vms.h"

struct vm_owner {
    char path[PATH_MAX]; /* of the lock file; empty: nothing shared, or never owned */
    struct vm_lock_record record;
};

/* Of a VM that need not be here: by its definition. */
int vm_owner_read_of(const struct host *host, const json_t *definition, struct vm_owner *owner,
                     struct ferry_error *err);
/* state VM_LOCK_NEW when there is no lock. */
int vm_owner_read(const struct host *host, const struct vm *vm, struct vm_owner *owner,
                  struct ferry_error *err);
/* Handed over, and not one instruction was executed by the destination. */
bool vm_owner_is_moving(const struct vm_lock_record *record);

enum vm_owner_word {
    VM_OWNER_SILENT = 1, /* no lock, or it speaks of something else */
    VM_OWNER_GIVEN,      /* to the destination, where not one instruction was executed so far */
    VM_OWNER_STARTED,    /* the guest runs, or ran, at the destination */
    VM_OWNER_TAKEN_BACK, /* the guest runs, or ran on, at the source */
};

enum vm_owner_word vm_owner_of_migration(const struct host *host, const struct vm *vm, const char *migration);

/*
 * Takes the lock at PATH (-EBUSY: somebody has it), and when it says that a move is under way, writes `held`
 * by this host into it, generation + 2: from then on nobody of that move can take it. Then lets go. With
 * SUSPENDED the guest is in a file that the generation must fit, which then stays: such a move was one with
 * copied disks, and the other host has a lock of its own.
 */
int vm_owner_settle(const struct host *host, const char *path, bool suspended, struct ferry_error *err);
/* Of a VM whose disks have just been copied here: its lock, which nobody has, says `held` by HOLDER, as it
 * did there, on GENERATION. */
int vm_owner_carry(const struct host *host, const json_t *definition, uint64_t generation, const char *holder,
                   struct ferry_error *err);

#endif
