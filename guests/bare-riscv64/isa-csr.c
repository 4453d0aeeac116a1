/*
 * Zicsr: what each form of access returns and leaves behind, on registers of S mode whose bits are fixed by
 * the specification; the floating-point registers' fields; counters going forward.
 */
#include "console.h"
#include "csr.h"
#include "isa.h"
#include "trap.h"

#define FORMS(name)                                                                                          \
    static void forms_##name(void)                                                                           \
    {                                                                                                        \
        uint64_t r[12];                                                                                      \
        __asm__ volatile("li t1, 0x5a5a5a5a\n"                                                               \
                         "csrw " #name ", t1\n"                                                              \
                         "li t0, 0xf0f0\ncsrrw %0, " #name ", t0\n"                                          \
                         "li t0, 0x0ff0\ncsrrs %1, " #name ", t0\n"                                          \
                         "li t0, 0x3c3c\ncsrrc %2, " #name ", t0\n"                                          \
                         "csrrs %3, " #name ", x0\n"                                                         \
                         "csrrc %4, " #name ", x0\n"                                                         \
                         "csrrwi %5, " #name ", 21\n"                                                        \
                         : "=&r"(r[0]), "=&r"(r[1]), "=&r"(r[2]), "=&r"(r[3]), "=&r"(r[4]),                  \
                           "=&r"(r[5])::"t0", "t1", "memory");                                               \
        __asm__ volatile("csrrsi %0, " #name ", 10\n"                                                        \
                         "csrrci %1, " #name ", 17\n"                                                        \
                         "csrrsi %2, " #name ", 0\n"                                                         \
                         "csrrci %3, " #name ", 0\n"                                                         \
                         "li t0, -1\ncsrrw %4, " #name ", t0\n"                                              \
                         "csrrw t0, " #name ", t0\n"                                                         \
                         "csrrw %5, " #name ", x0\n"                                                         \
                         : "=&r"(r[6]), "=&r"(r[7]), "=&r"(r[8]), "=&r"(r[9]), "=&r"(r[10]),                 \
                           "=&r"(r[11])::"t0", "memory");                                                    \
        print_forms(#name, r);                                                                               \
    }

static void print_forms(const char *name, const uint64_t r[12])
{
    console_text(name);
    console_char(':');
    for (unsigned i = 0; i < 12; i++)
        isa_result(r[i]);
    isa_end();
}

FORMS(fcsr)
FORMS(frm)
FORMS(fflags)
FORMS(stval)

/* sscratch belongs to the trap entry between traps; it is borrowed here, where none happens. */
static void forms_of_sscratch(void)
{
    uint64_t keep = csr_read(sscratch), r[3];

    csr_write(sscratch, 0x8123456789abcdef);
    r[0] = csr_read(sscratch);
    __asm__ volatile("csrrw %0, sscratch, %0" : "=r"(r[1]) : "0"(UINT64_C(77)));
    r[2] = csr_read(sscratch);
    csr_write(sscratch, keep);
    console_text("sscratch:");
    for (unsigned i = 0; i < 3; i++)
        isa_result(r[i]);
    isa_end();
}

static void sstatus_bits(void)
{
    static const uint64_t bits[] = {SSTATUS_SPIE, SSTATUS_SPP, SSTATUS_SUM, SSTATUS_MXR};
    const uint64_t seen = SSTATUS_SIE | SSTATUS_SPIE | SSTATUS_SPP | SSTATUS_SUM | SSTATUS_MXR;
    uint64_t keep = csr_read(sstatus);

    for (unsigned i = 0; i < sizeof(bits) / sizeof(bits[0]); i++) {
        console_text("sstatus:");
        csr_clear(sstatus, bits[i]);
        isa_result(csr_read(sstatus) & seen);
        csr_set(sstatus, bits[i]);
        isa_result(csr_read(sstatus) & seen);
        csr_clear(sstatus, bits[i]);
        isa_end();
    }
    /* UXL, XLEN of U mode, is 64 bits. */
    console_text("sstatus uxl:");
    isa_result(keep >> 32 & 3);
    isa_end();
    csr_write(sstatus, keep);
}

static void fs_set(uint64_t fs)
{
    csr_clear(sstatus, SSTATUS_FS);
    csr_set(sstatus, fs << 13);
}

static void fs_print(const char *what)
{
    uint64_t status = csr_read(sstatus);

    console_text("fs after ");
    console_text(what);
    console_char(':');
    isa_result(status >> 13 & 3);
    isa_result(status >> 63);
    isa_end();
}

static void try_fadd(void)
{
    __asm__ volatile("fadd.d fa0, fa0, fa0" ::: "fa0");
}

static void try_fmv_x(void)
{
    __asm__ volatile("fmv.x.d t0, fa0" ::: "t0");
}

static void try_frcsr(void)
{
    __asm__ volatile("frcsr t0" ::: "t0");
}

static void try_fsd(uint64_t *at)
{
    __asm__ volatile("fsd fa0, 0(%0)" ::"r"(at) : "memory");
}

static void try_fld(const uint64_t *at)
{
    __asm__ volatile("fld fa0, 0(%0)" ::"r"(at) : "fa0");
}

/* FS goes Initial -> Dirty when floating-point state changes; Off makes every access to it illegal. */
static void fs_states(void)
{
    static uint64_t area;
    static const struct {
        const char *name;
        void *run;
    } tries[] = {
        {"fadd.d", try_fadd}, {"fmv.x.d", try_fmv_x}, {"frcsr", try_frcsr},
        {"fsd", try_fsd},     {"fld", try_fld},
    };

    fs_set(1);
    fs_print("set to initial");
    __asm__ volatile("fadd.d fa0, fa0, fa0" ::: "fa0");
    fs_print("fadd.d");
    fs_set(2);
    fs_print("set to clean");
    __asm__ volatile("fld fa0, 0(%0)" ::"r"(&area) : "fa0");
    fs_print("fld");
    fs_set(1);
    __asm__ volatile("fsrmi 1\nfsrmi 0");
    fs_print("fsrmi");
    for (unsigned i = 0; i < sizeof(tries) / sizeof(tries[0]); i++) {
        fs_set(0);
        console_text(tries[i].name);
        console_text(" while off: ");
        if (trap_try(tries[i].run, (uint64_t)&area, 0))
            trap_print();
        else
            console_text("no trap\n");
    }
    fs_set(1);
}

static void try_frm(uint64_t rm)
{
    __asm__ volatile("csrw frm, %0\nfadd.d fa0, fa0, fa0" ::"r"(rm) : "fa0");
}

static void try_frm_sign(uint64_t rm)
{
    __asm__ volatile("csrw frm, %0\nfsgnj.d fa0, fa0, fa0\nfeq.d t0, fa0, fa0\nfmv.x.d t0, fa0" ::"r"(rm)
                     : "fa0", "t0");
}

/* Reserved values of frm make what rounds illegal, and nothing else. */
static void reserved_rounding(void)
{
    for (uint64_t rm = 4; rm < 8; rm++) {
        console_text("frm ");
        console_decimal(rm);
        console_text(" fadd.d: ");
        if (trap_try(try_frm, rm, 0))
            trap_print();
        else
            console_text("no trap\n");
        console_text("frm ");
        console_decimal(rm);
        console_text(" fsgnj.d: ");
        if (trap_try(try_frm_sign, rm, 0))
            trap_print();
        else
            console_text("no trap\n");
    }
    csr_write(fcsr, 0);
}

static void sie_bits(void)
{
    const uint64_t seen = 0x222;

    console_text("sie:");
    csr_write(sie, seen);
    isa_result(csr_read(sie) & seen);
    csr_clear(sie, 0x20);
    isa_result(csr_read(sie) & seen);
    csr_write(sie, 0);
    isa_result(csr_read(sie) & seen);
    isa_end();
    console_text("sip.ssip:");
    csr_set(sip, 2);
    isa_result(csr_read(sip) & 2);
    csr_clear(sip, 2);
    isa_result(csr_read(sip) & 2);
    isa_end();
}

/* Interrupt causes and exception codes are held as written, and even addresses by sepc. */
static void scause_holds(void)
{
    console_text("scause:");
    csr_write(scause, 0x8000000000000005);
    isa_result(csr_read(scause));
    csr_write(scause, 15);
    isa_result(csr_read(scause));
    isa_end();
}

static void sepc_holds(void)
{
    console_text("sepc:");
    csr_write(sepc, 0xffffffc012345678);
    isa_result(csr_read(sepc));
    csr_write(sepc, 0x12);
    isa_result(csr_read(sepc));
    isa_end();
}

static void satp_modes(void)
{
    extern char __image_start[];
    uint64_t table = (uint64_t)__image_start >> 12; /* Not a table; these writes must be ignored. */

    console_text("satp unsupported modes:");
    for (uint64_t mode = 1; mode < 8; mode++) {
        csr_write(satp, mode << 60 | table);
        isa_result(csr_read(satp));
    }
    isa_end();
}

static void counters(void)
{
    uint64_t before, after, changes = 0;

    before = time_read();
    for (unsigned i = 0; i < 2000000 && changes < 3; i++) {
        after = time_read();
        changes += after > before;
        before = after;
    }
    console_text("time goes on:");
    isa_result(changes);
    isa_end();
}

void bare_main(void)
{
    isa_begin("csr");
    forms_fcsr();
    forms_frm();
    forms_fflags();
    forms_stval();
    forms_of_sscratch();
    sstatus_bits();
    fs_states();
    reserved_rounding();
    sie_bits();
    scause_holds();
    sepc_holds();
    satp_modes();
    counters();
    isa_finish();
}
