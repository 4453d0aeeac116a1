/*
 * Traps. Outside trap_try() a trap is a fault of the program: it is printed and the machine stops. Inside, it
 * ends the tried function and is remembered, so that a test can print it.
 */
#ifndef BARE_TRAP_H
#define BARE_TRAP_H

#define TRAP_FRAME_SEPC    256
#define TRAP_FRAME_SSTATUS 264
#define TRAP_FRAME_SCAUSE  272
#define TRAP_FRAME_STVAL   280
#define TRAP_FRAME_SIZE    288

#ifndef __ASSEMBLER__

#include <stdbool.h>
#include <stdint.h>

struct trap_frame {
    uint64_t x[32];
    uint64_t sepc, sstatus, scause, stval;
};
_Static_assert(sizeof(struct trap_frame) == TRAP_FRAME_SIZE, "as start.S lays it out");

/* The trap that ended the last trap_try() which returned 1. */
extern struct trap_frame trap_last;

/*
 * Calls FUNCTION(a, b). Returns 0 when it came back, 1 when a trap ended it; execution then goes on here, in
 * S mode, with trap_last filled in and interrupts off. Does not nest.
 */
int trap_try(void *function, uint64_t a, uint64_t b);

/* Goes to U mode at PC with ARGUMENT in a0; only a trap comes back, so call it inside trap_try(). */
void trap_enter_user(uint64_t pc, uint64_t argument);

/* Prints trap_last: cause, pc, value and the sstatus bits that a trap sets. */
void trap_print(void);

/* Called by the trap entry in start.S. */
void trap_handle(struct trap_frame *frame);

#endif
#endif
