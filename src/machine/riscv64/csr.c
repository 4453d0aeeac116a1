/*
 * Control and status registers of S-mode and U-mode (privileged specification, 2.2 and 4.1; Sstc). What is
 * not in here does not exist and traps.
 */
#include "machine/riscv64/fpu.h"
#include "machine/riscv64/hart.h"

enum csr {
    CSR_FFLAGS = 0x001,
    CSR_FRM = 0x002,
    CSR_FCSR = 0x003,
    CSR_SSTATUS = 0x100,
    CSR_SIE = 0x104,
    CSR_STVEC = 0x105,
    CSR_SCOUNTEREN = 0x106,
    CSR_SENVCFG = 0x10a,
    CSR_SSCRATCH = 0x140,
    CSR_SEPC = 0x141,
    CSR_SCAUSE = 0x142,
    CSR_STVAL = 0x143,
    CSR_SIP = 0x144,
    CSR_STIMECMP = 0x14d,
    CSR_SATP = 0x180,
    CSR_CYCLE = 0xc00,
    CSR_TIME = 0xc01,
    CSR_INSTRET = 0xc02,
};

#define SCOUNTEREN_WRITABLE 7 /* cycle, time, instret */
#define SENVCFG_WRITABLE    1 /* FIOM: without effect, fences order everything */

static bool is_permitted(const struct hart *hart, unsigned number, bool writes)
{
    unsigned needed = number >> 8 & 3;

    if (needed > hart->privilege || (writes && number >> 10 == 3))
        return false;
    switch (number) {
    case CSR_FFLAGS:
    case CSR_FRM:
    case CSR_FCSR:
        return (hart->sstatus & SSTATUS_FS) != 0;
    case CSR_CYCLE:
    case CSR_TIME:
    case CSR_INSTRET:
        return hart->privilege == PRIVILEGE_SUPERVISOR || hart->scounteren >> (number - CSR_CYCLE) & 1;
    }
    return true;
}

static uint64_t read_sstatus(const struct hart *hart)
{
    uint64_t dirty = (hart->sstatus & SSTATUS_FS) == SSTATUS_FS_DIRTY ? SSTATUS_SD : 0;

    return hart->sstatus | SSTATUS_UXL_64 | dirty;
}

static uint64_t read_sip(struct hart *hart)
{
    hart_timer_update(hart);
    return __atomic_load_n(&hart->sip, __ATOMIC_ACQUIRE);
}

static bool csr_read(struct hart *hart, unsigned number, uint64_t *value)
{
    switch (number) {
    case CSR_FFLAGS:
        *value = fpu_flags(hart);
        return true;
    case CSR_FRM:
        *value = hart->frm;
        return true;
    case CSR_FCSR:
        *value = (uint64_t)hart->frm << 5 | fpu_flags(hart);
        return true;
    case CSR_SSTATUS:
        *value = read_sstatus(hart);
        return true;
    case CSR_SIE:
        *value = hart->sie;
        return true;
    case CSR_STVEC:
        *value = hart->stvec;
        return true;
    case CSR_SCOUNTEREN:
        *value = hart->scounteren;
        return true;
    case CSR_SENVCFG:
        *value = hart->senvcfg;
        return true;
    case CSR_SSCRATCH:
        *value = hart->sscratch;
        return true;
    case CSR_SEPC:
        *value = hart->sepc;
        return true;
    case CSR_SCAUSE:
        *value = hart->scause;
        return true;
    case CSR_STVAL:
        *value = hart->stval;
        return true;
    case CSR_SIP:
        *value = read_sip(hart);
        return true;
    case CSR_STIMECMP:
        *value = hart->stimecmp;
        return true;
    case CSR_SATP:
        *value = hart->satp;
        return true;
    case CSR_CYCLE:
    case CSR_INSTRET:
        *value = hart->retired;
        return true;
    case CSR_TIME:
        *value = hart_time(hart);
        return true;
    }
    return false;
}

/* An interrupt may have become deliverable: have the hart look before it goes on. */
static void check_interrupts(struct hart *hart)
{
    if (trap_interrupt_waiting(hart) && (hart->sstatus & SSTATUS_SIE))
        hart_post(hart, REQUEST_INTERRUPT);
}

static void write_sstatus(struct hart *hart, uint64_t value)
{
    uint64_t changed = hart->sstatus ^ (value & SSTATUS_WRITABLE);

    hart->sstatus ^= changed;
    if (changed & SSTATUS_FS)
        fpu_update_blocked(hart);
    if (changed & SSTATUS_MXR)
        mmu_drop_all(hart);
    else if (changed & SSTATUS_SUM)
        hart_context_changed(hart);
    if (changed & SSTATUS_SIE)
        check_interrupts(hart);
}

static void write_satp(struct hart *hart, uint64_t value)
{
    uint64_t mode = SATP_MODE(value);

    /* "If satp is written with an unsupported MODE, the entire write has no effect" (4.1.11). */
    if (mode != SATP_MODE_BARE && mode != SATP_MODE_SV39 && mode != SATP_MODE_SV48)
        return;
    hart->satp = value & SATP_WRITABLE;
    mmu_drop_all(hart);
}

static void write_fcsr(struct hart *hart, unsigned frm, unsigned flags)
{
    hart->sstatus |= SSTATUS_FS_DIRTY;
    hart->frm = frm & 7;
    fpu_set_flags(hart, flags & FFLAGS);
    fpu_changed(hart);
}

static void csr_write(struct hart *hart, unsigned number, uint64_t value)
{
    switch (number) {
    case CSR_FFLAGS:
        write_fcsr(hart, hart->frm, (unsigned)value);
        break;
    case CSR_FRM:
        write_fcsr(hart, (unsigned)value, fpu_flags(hart));
        break;
    case CSR_FCSR:
        write_fcsr(hart, (unsigned)value >> 5, (unsigned)value);
        break;
    case CSR_SSTATUS:
        write_sstatus(hart, value);
        break;
    case CSR_SIE:
        hart->sie = value & INTERRUPT_ALL;
        check_interrupts(hart);
        break;
    case CSR_STVEC:
        hart->stvec = value & ~UINT64_C(2); /* direct or vectored */
        break;
    case CSR_SCOUNTEREN:
        hart->scounteren = value & SCOUNTEREN_WRITABLE;
        break;
    case CSR_SENVCFG:
        hart->senvcfg = value & SENVCFG_WRITABLE;
        break;
    case CSR_SSCRATCH:
        hart->sscratch = value;
        break;
    case CSR_SEPC:
        hart->sepc = value & ~UINT64_C(1);
        break;
    case CSR_SCAUSE:
        hart->scause = value;
        break;
    case CSR_STVAL:
        hart->stval = value;
        break;
    case CSR_SIP: /* only the software interrupt can be written (4.1.3) */
        if (value & INTERRUPT_SOFTWARE)
            __atomic_or_fetch(&hart->sip, INTERRUPT_SOFTWARE, __ATOMIC_SEQ_CST);
        else
            __atomic_and_fetch(&hart->sip, ~INTERRUPT_SOFTWARE, __ATOMIC_SEQ_CST);
        check_interrupts(hart);
        break;
    case CSR_STIMECMP:
        hart->stimecmp = value;
        hart_timer_update(hart);
        check_interrupts(hart);
        break;
    case CSR_SATP:
        write_satp(hart, value);
        break;
    }
}

static uint64_t combined(enum csr_operation operation, uint64_t old, uint64_t operand)
{
    switch (operation) {
    case CSR_SET:
        return old | operand;
    case CSR_CLEAR:
        return old & ~operand;
    case CSR_WRITE:
        break;
    }
    return operand;
}

bool csr_access(struct hart *hart, unsigned number, enum csr_operation operation, bool writes,
                uint64_t operand, uint64_t *old)
{
    if (!is_permitted(hart, number, writes) || !csr_read(hart, number, old))
        return false;
    if (!writes)
        return true;
    /* A set or clear of other bits leaves the software interrupt to whoever raises it. */
    if (number == CSR_SIP && operation != CSR_WRITE && !(operand & INTERRUPT_SOFTWARE))
        return true;
    csr_write(hart, number, combined(operation, *old, operand));
    return true;
}
