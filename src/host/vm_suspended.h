/*
 * VMs whose guest is in a checkpoint file (state SUSPENDED): where it is, kept in `suspended.json` in the
 * VM's directory from the end of ferry suspend until the guest has gone on, whatever process tried that in
 * between.
 */
#ifndef FERRY_HOST_VM_SUSPENDED_H
#define FERRY_HOST_VM_SUSPENDED_H

#include "host/vms.h"

/* The guest of VM, which has no process, is in FILE, written by the save ID. Recorded. */
void vm_set_suspended(struct host *host, struct vm *vm, const char *file, const char *id);
/* It goes on, or was given up. */
void vm_clear_suspended(struct host *host, struct vm *vm);
/* HOST_CONFLICT, with the next step, when it is suspended. */
int vm_check_not_suspended(struct host *host, struct vm *vm, struct ferry_error *err);

/* At start: what is on record. */
void vm_suspended_read(struct host *host, struct vm *vm);
/* Its process is gone and left WORD (exit.json; NULL: nothing): whether vm->suspended holds (now, or still)
 * follows from that, and from its lock, which tells whether somebody has run it. */
void vm_suspended_settle(struct host *host, struct vm *vm, const json_t *word);

#endif
