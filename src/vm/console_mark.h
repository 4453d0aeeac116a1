/*
 * Marks in the guest's console where a migration between hosts stopped the guest and where it went on, for
 * systems whose operators look for them there (`console_marks` of the definition):
 *
 *     HAL0331 2026-11-21T03:31:40.712+01:00 VM web stopped on host a
 *     HAL0332 2026-11-21T03:31:40.727+01:00 VM web continued on host b
 *
 * They are in the history that moves with the VM. A guest that goes on at the source because the migration
 * failed has a HAL0332 of that host. One that was paused has neither; nor has an upgrade, which stays on its
 * host, or a checkpoint.
 */
#ifndef FERRY_VM_CONSOLE_MARK_H
#define FERRY_VM_CONSOLE_MARK_H

struct vm;

/* The guest stands still and all its output is there; before the console's history is saved. The thread that
 * owns the frozen machine. */
void console_mark_stopped(struct vm *vm);
/* The next thing is that its vCPUs run. The lock is held. */
void console_mark_continues(struct vm *vm);

#endif
