/*
 * Saving this VM into a checkpoint file, from the request on the control socket through one writer on a
 * thread of its own ("checkpoint") to the object that tells of it (docs/API.md "ferry-vm"); and starting from
 * one.
 *
 *     vm_checkpoint_save ──▶ ferry_checkpoint_write ──▶ vm_checkpoint_ended
 *                                                        (a suspended VM's process ends)
 *
 * Not while a migration is in progress, and no migration while this is. All functions are for the loop's
 * thread except where said.
 */
#ifndef FERRY_VM_CHECKPOINT_H
#define FERRY_VM_CHECKPOINT_H

#include "vm/vm.h"

struct vm_checkpoint;

/* Params as in docs/API.md; *result: {"id"}. */
int vm_checkpoint_save(struct vm *vm, json_t *params, json_t **result, struct ferry_error *err);
int vm_checkpoint_cancel(struct vm *vm, json_t *params, struct ferry_error *err);

/* NULL: false. */
bool vm_checkpoint_active(const struct vm_checkpoint *checkpoint);
/* It has ended, and the guest is in its file for good. NULL: false. */
bool vm_checkpoint_suspended(const struct vm_checkpoint *checkpoint);
const char *vm_checkpoint_id(const struct vm_checkpoint *checkpoint);
const char *vm_checkpoint_path(const struct vm_checkpoint *checkpoint);
/* Any thread, while it is active: the guest is over. What was taken of it before stays. */
void vm_checkpoint_abort(struct vm_checkpoint *checkpoint, const char *why);
/* As checkpoint-cancel, for the process's own reasons. */
void vm_checkpoint_give_up(struct vm_checkpoint *checkpoint);
/* null for NULL. */
json_t *vm_checkpoint_json(const struct vm_checkpoint *checkpoint);
/* Not active. NULL allowed. */
void vm_checkpoint_free(struct vm_checkpoint *checkpoint);

/*
 * Puts what is in options.resume into the machine, which was just made and whose lock is held, and sets its
 * clock by the time that has passed since. *was_running tells what the guest did when it was saved. On
 * failure nothing ran. Unless options.eager says otherwise, or this cannot be, memory comes while the guest
 * runs: vm->fill.
 */
int vm_checkpoint_restore(struct vm *vm, bool *was_running, struct ferry_error *err);

/* Memory is still to come, or never will. */
bool vm_checkpoint_filling(const struct vm *vm);
/* -EBUSY in words while vm_checkpoint_filling. */
int vm_checkpoint_check_filled(const struct vm *vm, struct ferry_error *err);
/* Of the memory that came, or comes; null when none did. */
json_t *vm_checkpoint_fill_json(const struct vm *vm);

#endif
