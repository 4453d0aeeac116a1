/*
 * Who may run the VM: this process or another. For now the locks on its disks' images say so; a VM without a
 * writable disk has nothing that could.
 *
 * cold start        ownership_take
 * source            ownership_release, then perhaps ownership_retake
 * destination       ownership_acquire, then perhaps ownership_give_back
 *
 * Called by whoever owns the machine (vm.h).
 */
#ifndef FERRY_VM_OWNERSHIP_H
#define FERRY_VM_OWNERSHIP_H

#include "machine/machine.h"

#include <ferry/ferry.h>

/* -EBUSY in words when another VM has a disk. */
int ownership_take(struct machine *machine, struct ferry_error *err);
int ownership_release(struct machine *machine, const struct ferry_handover *handover,
                      struct ferry_error *err);
int ownership_acquire(struct machine *machine, const struct ferry_handover *handover,
                      struct ferry_error *err);
void ownership_give_back(struct machine *machine, const struct ferry_handover *handover);
/*
 * RESUME when the destination is known never to have run the guest, or when a writable disk's lock could be
 * had: then nobody runs it now. Otherwise UNKNOWN, with the reason.
 */
enum ferry_retake ownership_retake(struct machine *machine, const struct ferry_handover *handover,
                                   struct ferry_error *err);

#endif
