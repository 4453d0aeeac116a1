#include "trap.h"

#include "console.h"
#include "csr.h"
#include "sbi.h"

struct trap_frame trap_last;
uint64_t trap_try_sp; /* Zero outside trap_try(). */

extern char trap_try_abort[];

void trap_print(void)
{
    console_text("trap");
    console_field_hex("cause", trap_last.scause);
    console_field_hex("epc", trap_last.sepc);
    console_field_hex("tval", trap_last.stval);
    console_field("spp", (trap_last.sstatus & SSTATUS_SPP) != 0);
    console_field("spie", (trap_last.sstatus & SSTATUS_SPIE) != 0);
    console_field("sie", (trap_last.sstatus & SSTATUS_SIE) != 0);
    console_char('\n');
}

void trap_handle(struct trap_frame *frame)
{
    trap_last = *frame;
    if (!trap_try_sp) {
        console_text("UNEXPECTED ");
        trap_print();
        machine_off();
    }
    frame->sepc = (uint64_t)trap_try_abort;
    frame->sstatus = (frame->sstatus | SSTATUS_SPP) & ~SSTATUS_SPIE;
}
