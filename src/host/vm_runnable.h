/*
 * VMs that must not be started here: because their guest has migrated away or may have (set by Migrate), or
 * because an administrator said so (Admin). Such a VM stays in the inventory without a process, state
 * NOT_RUNNABLE, until it comes back by a migration, somebody lifts the ban, or it is removed.
 *
 *     Migrate    set by the end of a migration; lifted by a return migration or vms_recover
 *     Admin      vms_set_runnable
 */
#ifndef FERRY_HOST_VM_RUNNABLE_H
#define FERRY_HOST_VM_RUNNABLE_H

#include "host/vms.h"

enum recover_force {
    RECOVER_ASK = 0, /* the other host */
    RECOVER_HERE,    /* the administrator's word */
    RECOVER_THERE,
};

/* Verbs of the API. */
int vms_set_runnable(struct host *host, const char *name, bool runnable, const char *reason, json_t **answer,
                     struct ferry_error *err);
/*
 * Decides about a VM of which nobody can say where it runs: it goes on here, or it is not runnable here.
 * HOST_REFUSED, with what forcing it would risk, when the other host does not answer or cannot say either.
 */
int vms_recover(struct host *host, const char *name, enum recover_force force, json_t **answer,
                struct ferry_error *err);

/* --- for the other modules; the caller has claimed the VM, or its migration has --- */

/* HOST_CONFLICT with the reason and what can be done. */
int vm_check_runnable(struct host *host, struct vm *vm, struct ferry_error *err);
/* Recorded. Its process, if it has one, keeps it stopped. */
void vm_set_ban(struct host *host, struct vm *vm, const struct vm_ban *ban);
void vm_lift_ban(struct host *host, struct vm *vm);
/* A VM whose process is gone and that is elsewhere: stays in the inventory, banned. BAN NULL: as it is
 * already. */
void vm_retire(struct host *host, struct vm *vm, const struct vm_ban *ban);
/* "the guest has migrated to HOST", and its like: WHY (may be empty) is what ferry-vm said. */
void vm_ban_by_migration(struct vm_ban *ban, const char *other, const char *migration, const char *outcome,
                         const char *why);

#endif
