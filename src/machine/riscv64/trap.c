/*
 * Traps and interrupts. All go to S-mode: there is no M-mode (privileged specification, chapter 4).
 */
#include "machine/riscv64/hart.h"

void trap_take(struct hart *hart, uint64_t cause, uint64_t value)
{
    uint64_t base = hart->stvec & ~UINT64_C(3);
    bool vectored = (hart->stvec & 1) && (cause & CAUSE_INTERRUPT);

    hart->scause = cause;
    hart->sepc = hart->pc;
    hart->stval = value;
    hart->sstatus &= ~(SSTATUS_SPIE | SSTATUS_SPP);
    if (hart->sstatus & SSTATUS_SIE)
        hart->sstatus |= SSTATUS_SPIE;
    if (hart->privilege == PRIVILEGE_SUPERVISOR)
        hart->sstatus |= SSTATUS_SPP;
    hart->sstatus &= ~SSTATUS_SIE;
    hart->privilege = PRIVILEGE_SUPERVISOR;
    hart->pc = vectored ? base + 4 * (cause & ~CAUSE_INTERRUPT) : base;
    hart->reservation = NULL;
    hart_context_changed(hart);
}

void trap_return(struct hart *hart)
{
    hart->privilege = hart->sstatus & SSTATUS_SPP ? PRIVILEGE_SUPERVISOR : PRIVILEGE_USER;
    hart->sstatus &= ~(SSTATUS_SIE | SSTATUS_SPP);
    if (hart->sstatus & SSTATUS_SPIE)
        hart->sstatus |= SSTATUS_SIE;
    hart->sstatus |= SSTATUS_SPIE;
    hart->pc = hart->sepc;
    hart->reservation = NULL;
    hart_context_changed(hart);
}

bool trap_interrupt_waiting(const struct hart *hart)
{
    return (__atomic_load_n(&hart->sip, __ATOMIC_ACQUIRE) & hart->sie) != 0;
}

bool trap_interrupt(struct hart *hart)
{
    static const uint8_t order[] = {9, 1, 5}; /* external, software, timer (4.1.3) */
    uint64_t waiting = __atomic_load_n(&hart->sip, __ATOMIC_ACQUIRE) & hart->sie;

    if (!waiting || (hart->privilege == PRIVILEGE_SUPERVISOR && !(hart->sstatus & SSTATUS_SIE)))
        return false;
    for (unsigned i = 0; i < sizeof(order); i++) {
        if (waiting >> order[i] & 1) {
            trap_take(hart, CAUSE_INTERRUPT | order[i], 0);
            return true;
        }
    }
    return false;
}
