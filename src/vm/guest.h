/*
 * The guest seam (ferry/ferry.h) of ferry-vm: what libferry asks of the guest, carried out on a struct vm.
 *
 * What a guest does during a move. As long as it runs here, everything is as without a migration:
 *
 *     reboot                 part of the guest's execution: machine and memory are reset in place, with every
 *                            write recorded like the guest's own, and the move goes on. When it meets the
 *                            pause, it is carried out inside the pause, and the destination starts the
 *                            rebooted guest.
 *     power-off, crash       the session is aborted (cause guest) and the event takes effect here when the
 *                            session has ended.
 *
 * Once pause has returned there are no events: no guest instruction runs. At the destination events count as
 * soon as the guest runs, but take effect after the session has ended.
 */
#ifndef FERRY_VM_GUEST_H
#define FERRY_VM_GUEST_H

#include <ferry/ferry.h>

/* The opaque guest is a struct vm. Called on the migration thread. */
extern const struct ferry_guest_ops vm_guest_ops;

#endif
