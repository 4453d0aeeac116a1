/*
 * Traps and translation in S and U mode: illegal instructions, breakpoints, calls, page faults of every kind
 * under Sv39 and Sv48, accessed and dirty bits, SUM and MXR, sret, interrupts. Prints for each case whether
 * it trapped, with scause, sepc and stval. Misaligned accesses are left out: whether they trap is the
 * platform's choice.
 */
#include "console.h"
#include "csr.h"
#include "isa.h"
#include "paging.h"
#include "sbi.h"
#include "trap.h"

#define TEST_VA    UINT64_C(0x1000000000) /* Far from the program, below 2^38 so that it suits Sv39 too. */
#define LEAF_FLAGS (PTE_R | PTE_W | PTE_A | PTE_D)
#define RAM_BASE   UINT64_C(0x80000000)

static uint64_t frame[2][512] __attribute__((aligned(4096)));
static uint16_t user_code[2048] __attribute__((aligned(4096)));

/* Ends a line that says what was tried. */
static void report(const char *what, int trapped)
{
    console_text(what);
    console_text(": ");
    if (trapped)
        trap_print();
    else
        console_text("no trap\n");
}

static void do_load(uint64_t at, uint64_t *value)
{
    *value = *(volatile uint64_t *)at;
}

static void do_load_byte(uint64_t at)
{
    (void)*(volatile uint8_t *)at;
}

static void do_store(uint64_t at, uint64_t value)
{
    *(volatile uint64_t *)at = value;
}

static void do_amo(uint64_t at)
{
    __asm__ volatile("amoadd.d t0, zero, (%0)" ::"r"(at) : "t0", "memory");
}

static void do_lr(uint64_t at)
{
    __asm__ volatile("lr.d t0, (%0)" ::"r"(at) : "t0", "memory");
}

static void do_jump(uint64_t at)
{
    ((void (*)(void))at)();
}

static void do_fld(uint64_t at)
{
    __asm__ volatile("fld fa0, 0(%0)" ::"r"(at) : "fa0");
}

static void do_fsw(uint64_t at)
{
    __asm__ volatile("fsw fa0, 0(%0)" ::"r"(at) : "memory");
}

/* Words that are no instruction, or none that S mode may use. */
static void illegal_instructions(void)
{
    static const uint32_t words[] = {
        0x00000000, 0xffffffff, 0x0000006b,
        0x0000007f, /* no such opcodes */
        0x00002063, 0x00007003, 0x00004023,
        0x00004073, /* no such branch, load, store, system */
        0x80000033, 0x4000503b, 0x0800101b,
        0x8000101b,                         /* no such operations; the second is sraw, and legal */
        0x06000053, 0xc0400053, 0x02005053, /* fadd.q, fcvt from nothing, fadd.d with reserved rounding */
        0x30002073, 0x30001073,             /* csrr, csrw mstatus */
        0xc0001073,                         /* csrw cycle: read-only */
        0x7b002073, 0xf1402073,             /* csrr dcsr, mhartid */
        0x30200073,                         /* mret */
    };
    static uint32_t code[4] __attribute__((aligned(16)));

    for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        code[0] = words[i];
        code[1] = 0x00008067; /* ret */
        __asm__ volatile("fence.i" ::: "memory");
        console_text("word ");
        console_hex(words[i], 8);
        report("", trap_try(do_jump, (uint64_t)code, 0));
    }
    /* Compressed: 0 and reserved encodings. */
    static const uint16_t halves[] = {
        0x0000, /* all zero */
        0x2001, /* c.addiw with rd = 0 */
        0x6101, /* c.addi16sp with no immediate */
        0x6081, /* c.lui with no immediate */
        0x8002, /* c.jr x0 */
        0x4002, /* c.lwsp x0 */
        0x6002, /* c.ldsp x0 */
        0x9c41, /* reserved in C1 */
        0x8000, /* reserved in C0 */
    };
    for (unsigned i = 0; i < sizeof(halves) / sizeof(halves[0]); i++) {
        ((uint16_t *)code)[0] = halves[i];
        ((uint16_t *)code)[1] = 0x8082; /* c.jr ra */
        __asm__ volatile("fence.i" ::: "memory");
        console_text("half ");
        console_hex(halves[i], 4);
        report("", trap_try(do_jump, (uint64_t)code, 0));
    }
}

static void do_ebreak(void)
{
    __asm__ volatile(".option push\n.option norvc\nebreak\n.option pop");
}

static void do_c_ebreak(void)
{
    __asm__ volatile("c.ebreak");
}

/* stval may hold the address or zero (privileged spec 1.12, 4.1.9), so only its being one of them is told. */
static void breakpoint(const char *name, void *function)
{
    int trapped = trap_try(function, 0, 0);

    console_text(name);
    console_char(':');
    isa_result((uint64_t)trapped);
    isa_result(trap_last.scause);
    isa_result(trap_last.sepc);
    isa_result(trap_last.stval == 0 || trap_last.stval == trap_last.sepc);
    isa_end();
}

/* One page at TEST_VA with FLAGS, and what each kind of access makes of it. */
static void page_accesses(struct paging *paging, const char *name, uint64_t flags)
{
    static const struct {
        const char *name;
        void *run;
    } accesses[] = {
        {"load", do_load_byte}, {"store", do_store}, {"jump", do_jump},
        {"lr", do_lr},          {"fld", do_fld},     {"fsw", do_fsw},
    };
    uint64_t *entry = paging_entry(paging, TEST_VA, 0);

    for (unsigned i = 0; i < sizeof(accesses) / sizeof(accesses[0]); i++) {
        *entry = (uint64_t)user_code >> 12 << 10 | flags;
        paging_flush(TEST_VA);
        console_text(name);
        console_char(' ');
        report(accesses[i].name, trap_try(accesses[i].run, TEST_VA + 8, 0x8082808280828082));
        console_text("    entry");
        isa_result(*entry & 0x3ff);
        isa_end();
    }
}

/*
 * Atomic operations fault as stores, also where reading is what fails (unprivileged spec 2.2, chapter 8 and
 * privileged spec 1.12, table 4.2). QEMU up to 7.2 reports some as loads, so the cause goes in a line that is
 * not compared.
 */
static void atomic_faults(struct paging *paging)
{
    static const uint64_t kinds[] = {
        0,
        PTE_V | PTE_R | PTE_A | PTE_D,
        PTE_V | PTE_X | PTE_A | PTE_D,
        PTE_V | PTE_R | PTE_W | PTE_U | PTE_A | PTE_D,
        PTE_V | PTE_R | PTE_W,
        PTE_V | PTE_R | PTE_W | PTE_A | PTE_D,
    };
    uint64_t *entry = paging_entry(paging, TEST_VA, 0);

    for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        int trapped;

        *entry = (uint64_t)frame[0] >> 12 << 10 | kinds[i];
        paging_flush(TEST_VA);
        trapped = trap_try(do_amo, TEST_VA + 16, 0);
        console_text("amo ");
        console_hex(kinds[i], 2);
        console_char(':');
        isa_result((uint64_t)trapped);
        isa_result(trapped ? trap_last.sepc : 0);
        isa_result(trapped ? trap_last.stval : 0);
        isa_result(*entry & 0xff);
        isa_end();
        if (trapped) {
            console_text("# amo fault cause:");
            isa_result(trap_last.scause);
            isa_end();
        }
    }
}

static void permissions(struct paging *paging)
{
    static const struct {
        const char *name;
        uint64_t flags;
    } kinds[] = {
        {"invalid", 0},
        {"invalid rwx", PTE_R | PTE_W | PTE_X | PTE_A | PTE_D},
        {"r", PTE_V | PTE_R | PTE_A | PTE_D},
        {"rw", PTE_V | PTE_R | PTE_W | PTE_A | PTE_D},
        {"x", PTE_V | PTE_X | PTE_A | PTE_D},
        {"rx", PTE_V | PTE_R | PTE_X | PTE_A | PTE_D},
        {"rwx", PTE_V | PTE_R | PTE_W | PTE_X | PTE_A | PTE_D},
        {"w reserved", PTE_V | PTE_W | PTE_A | PTE_D},
        {"wx reserved", PTE_V | PTE_W | PTE_X | PTE_A | PTE_D},
        {"rwx user", PTE_V | PTE_R | PTE_W | PTE_X | PTE_U | PTE_A | PTE_D},
        {"rwx not accessed", PTE_V | PTE_R | PTE_W | PTE_X},
        {"rwx not dirty", PTE_V | PTE_R | PTE_W | PTE_X | PTE_A},
        {"pointer at the last level", PTE_V},
    };

    for (unsigned i = 0; i < 2048; i++)
        user_code[i] = 0x8082; /* c.jr ra */
    __asm__ volatile("fence.i" ::: "memory");
    for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        page_accesses(paging, kinds[i].name, kinds[i].flags);

    csr_set(sstatus, SSTATUS_SUM);
    page_accesses(paging, "sum: rwx user", PTE_V | PTE_R | PTE_W | PTE_X | PTE_U | PTE_A | PTE_D);
    csr_clear(sstatus, SSTATUS_SUM);
    csr_set(sstatus, SSTATUS_MXR);
    page_accesses(paging, "mxr: x", PTE_V | PTE_X | PTE_A | PTE_D);
    csr_clear(sstatus, SSTATUS_MXR);
}

/* A and D appear when, and only when, they must; also on 2 MiB and 1 GiB pages. */
static void accessed_and_dirty(struct paging *paging)
{
    static const struct {
        const char *name;
        uint64_t va, size;
        unsigned level;
    } pages[] = {
        {"4K", TEST_VA + 0x200000, 0x1000, 0},
        {"2M", TEST_VA + 0x400000, 0x200000, 1},
        {"1G", TEST_VA + 0x40000000, 0x40000000, 2},
    };
    uint64_t value = 0;

    for (unsigned i = 0; i < 3; i++) {
        uint64_t offset = (uint64_t)frame[0] - RAM_BASE, va = pages[i].va + offset % pages[i].size;
        uint64_t physical = (uint64_t)frame[0] / pages[i].size * pages[i].size;

        uint64_t *entry = paging_entry(paging, pages[i].va, pages[i].level);

        *entry = physical >> 12 << 10 | PTE_V | PTE_R | PTE_W;
        paging_flush_all();
        frame[0][0] = 0x1234 + i;
        console_text("a/d ");
        console_text(pages[i].name);
        console_char(':');
        isa_result(*entry & 0xff);
        isa_result((uint64_t)trap_try(do_load, va, (uint64_t)&value));
        isa_result(value);
        isa_result(*entry & 0xff);
        isa_result((uint64_t)trap_try(do_store, va + 8, 0x77));
        isa_result(frame[0][1]);
        isa_result(*entry & 0xff);
        /* Cleared again and flushed, as a kernel that looks for dirty pages does. */
        *entry &= ~(PTE_A | PTE_D);
        paging_flush(va);
        trap_try(do_load, va, (uint64_t)&value);
        isa_result(*entry & 0xff);
        trap_try(do_store, va, 0x99);
        isa_result(*entry & 0xff);
        isa_end();
    }
}

static void addresses(struct paging *paging)
{
    static const uint64_t probes[] = {
        0,
        0xdead0000,
        0x3ffffff000,
        0x4000000000,
        0x7fffffffff,
        0x800000000000,
        0x8000000000000000,
        0xffffffbffffff000,
        0xffffffc000000000,
        0xfffffffffffff000,
        0xffff7ffffffff000,
        0x1000000080200000,
    };
    uint64_t value;

    for (unsigned i = 0; i < sizeof(probes) / sizeof(probes[0]); i++) {
        if (paging->mode == PAGING_SV48 && probes[i] == 0x4000000000)
            continue;
        console_text("load ");
        console_hex(probes[i], 16);
        report("", trap_try(do_load, probes[i], (uint64_t)&value));
        console_text("store ");
        console_hex(probes[i], 16);
        report("", trap_try(do_store, probes[i], 0));
        console_text("jump ");
        console_hex(probes[i], 16);
        report("", trap_try(do_jump, probes[i], 0));
    }
}

/* Superpages must be aligned; physical addresses that lead nowhere fault as accesses, not as pages. */
static void odd_mappings(struct paging *paging)
{
    uint64_t va = TEST_VA + 0x80000000, value;
    uint64_t *entry = paging_entry(paging, va, 2);

    *entry = (RAM_BASE + 0x200000) >> 12 << 10 | LEAF_FLAGS | PTE_V;
    paging_flush_all();
    report("misaligned 1G load", trap_try(do_load, va, (uint64_t)&value));
    *entry = (RAM_BASE + 0x1000) >> 12 << 10 | LEAF_FLAGS | PTE_V;
    paging_flush_all();
    report("misaligned 1G store", trap_try(do_store, va, 0));
    *entry = 0;
    entry = paging_entry(paging, va, 1);
    *entry = ((uint64_t)frame[0] | 0x1000) >> 12 << 10 | LEAF_FLAGS | PTE_X | PTE_V;
    paging_flush_all();
    report("misaligned 2M jump", trap_try(do_jump, va, 0));
    *entry = 0;
    paging_map(paging, va + 0x200000, UINT64_C(0xf00000000000), 0, LEAF_FLAGS | PTE_X);
    paging_flush_all();
    report("nowhere load", trap_try(do_load, va + 0x200000, (uint64_t)&value));
    report("nowhere store", trap_try(do_store, va + 0x200000, 0));
    report("nowhere jump", trap_try(do_jump, va + 0x200000, 0));
}

/* Remapping a page shows the new frame after sfence.vma, whatever was cached before. */
static void remapping(struct paging *paging)
{
    uint64_t va = TEST_VA + 0x300000, sum = 0, value = 0;

    frame[0][7] = 1000;
    frame[1][7] = 7;
    for (unsigned i = 0; i < 50; i++) {
        paging_map(paging, va, (uint64_t)frame[i & 1], 0, LEAF_FLAGS);
        if (i & 2)
            paging_flush(va);
        else
            paging_flush_all();
        trap_try(do_load, va + 56, (uint64_t)&value);
        sum = sum * 3 + value;
    }
    console_text("remapping:");
    isa_result(sum);
    isa_end();
}

/* A 4-byte instruction whose second half is on a page that is not there: sepc is the instruction's, stval the
 * page's. */
static void crossing_fault(struct paging *paging)
{
    uint64_t va = TEST_VA + 0x310000;

    user_code[2047] = 0x0513; /* First half of addi a0, zero, ... */
    __asm__ volatile("fence.i" ::: "memory");
    paging_map(paging, va, (uint64_t)user_code, 0, PTE_R | PTE_X | PTE_A);
    *paging_entry(paging, va + PAGE_SIZE, 0) = 0;
    paging_flush_all();
    report("crossing jump", trap_try(do_jump, va + 4094, 0));
    user_code[2046] = 0x0001; /* c.nop */
    __asm__ volatile("fence.i" ::: "memory");
    report("crossing fall through", trap_try(do_jump, va + 4092, 0));
    paging_map(paging, va + PAGE_SIZE, (uint64_t)user_code, 0, PTE_R | PTE_X | PTE_A);
    user_code[0] = 0x1230;
    user_code[1] = 0x8082;
    __asm__ volatile("fence.i" ::: "memory");
    paging_flush_all();
    report("crossing whole", trap_try(do_jump, va + 4094, 0));
}

/* Places CODE in a user page and runs it there in U mode with ARGUMENT in a0. */
static void run_user(struct paging *paging, const char *name, const uint32_t *code, unsigned count,
                     uint64_t argument)
{
    uint64_t va = TEST_VA + 0x320000;
    uint32_t *at = (uint32_t *)user_code;

    for (unsigned i = 0; i < count; i++)
        at[i] = code[i];
    at[count] = 0x00000073; /* ecall */
    __asm__ volatile("fence.i" ::: "memory");
    paging_map(paging, va, (uint64_t)user_code, 0, PTE_R | PTE_X | PTE_U | PTE_A);
    paging_map(paging, va + PAGE_SIZE, (uint64_t)frame[0], 0, PTE_R | PTE_W | PTE_U | PTE_A | PTE_D);
    paging_map(paging, va + 2 * PAGE_SIZE, (uint64_t)frame[1], 0, PTE_R | PTE_W | PTE_A | PTE_D);
    paging_flush_all();
    console_text("user ");
    report(name, trap_try(trap_enter_user, va, argument));
    console_text("    a0");
    isa_result(trap_last.x[10]);
    isa_end();
}

static void user_mode(struct paging *paging)
{
    const uint64_t va = TEST_VA + 0x320000;
#define USER(name, argument, ...)                                                                            \
    do {                                                                                                     \
        static const uint32_t code_[] = {__VA_ARGS__};                                                       \
        run_user(paging, name, code_, sizeof(code_) / sizeof(code_[0]), argument);                           \
    } while (0)

    frame[0][0] = 0x5555;
    frame[1][0] = 0x6666;
    USER("ecall", 5, 0x00150513 /* addi a0, a0, 1 */);
    USER("ebreak", 6, 0x00100073);
    USER("load user page", va + PAGE_SIZE, 0x00053503 /* ld a0, 0(a0) */);
    USER("store user page", va + PAGE_SIZE, 0x00a53423 /* sd a0, 8(a0) */);
    USER("load supervisor page", va + 2 * PAGE_SIZE, 0x00053503);
    USER("store supervisor page", va + 2 * PAGE_SIZE, 0x00a53423);
    USER("load execute-only is readable page", va, 0x00053503);
    USER("store to code", va, 0x00a53423);
    USER("jump to supervisor code", (uint64_t)do_ebreak, 0x00050067 /* jr a0 */);
    USER("csrr sstatus", 1, 0x10002573);
    USER("csrw sscratch", 1, 0x14051073);
    USER("sret", 1, 0x10200073);
    USER("sfence.vma", 1, 0x12000073);
    USER("csrr satp", 1, 0x18002573);
    USER("fence.i fence", 9, 0x0000100f, 0x0ff0000f);
    USER("fadd.d frflags", 3, 0x02a57553, 0x00102573);
}

/* sret from S to S, with SPIE becoming SIE, and back through a trap. */
static void return_to_supervisor(void)
{
    uint64_t status;

    csr_clear(sstatus, SSTATUS_SIE);
    __asm__ volatile("la t0, 1f\ncsrw sepc, t0\nli t0, 0x120\ncsrs sstatus, t0\nsret\nnop\n"
                     "1: csrr %0, sstatus\n"
                     : "=r"(status)::"t0", "memory");
    csr_clear(sstatus, SSTATUS_SIE);
    console_text("sret to s:");
    isa_result(status & (SSTATUS_SIE | SSTATUS_SPIE | SSTATUS_SPP));
    isa_end();
}

static void wait_for_interrupt(void)
{
    /* Set inside trap_try(), so that it cannot arrive before. */
    csr_set(sstatus, SSTATUS_SIE);
    for (;;)
        __asm__ volatile("wfi");
}

static void set_software_interrupt(void)
{
    csr_set(sip, INTERRUPT_SOFTWARE);
    wait_for_interrupt();
}

static void print_interrupt(const char *name, int trapped)
{
    console_text(name);
    console_char(':');
    isa_result((uint64_t)trapped);
    isa_result(trap_last.scause);
    isa_result(trap_last.stval);
    isa_result((trap_last.sstatus & SSTATUS_SPP) | (trap_last.sstatus & SSTATUS_SPIE));
    isa_end();
}

static void interrupts(struct paging *paging)
{
    static const uint32_t loop[] = {0x0000006f /* j . */};
    int trapped;

    csr_write(sie, INTERRUPT_SOFTWARE);
    trapped = trap_try(set_software_interrupt, 0, 0);
    csr_clear(sip, INTERRUPT_SOFTWARE);
    print_interrupt("software", trapped);

    sbi_call(SBI_EXT_IPI, 0, 1, 0, 0);
    trapped = trap_try(wait_for_interrupt, 0, 0);
    csr_clear(sip, INTERRUPT_SOFTWARE);
    print_interrupt("ipi to itself", trapped);

    csr_write(sie, INTERRUPT_TIMER);
    timer_set(time_read() + 1000);
    trapped = trap_try(wait_for_interrupt, 0, 0);
    print_interrupt("timer", trapped);
    console_text("timer pending, then set ahead:");
    isa_result(csr_read(sip) & INTERRUPT_TIMER);
    timer_set(UINT64_MAX);
    isa_result(csr_read(sip) & INTERRUPT_TIMER);
    isa_end();

    /* In U mode interrupts are on whatever SIE says. */
    timer_set(time_read() + 1000);
    ((uint32_t *)user_code)[0] = loop[0];
    __asm__ volatile("fence.i" ::: "memory");
    paging_map(paging, TEST_VA + 0x320000, (uint64_t)user_code, 0, PTE_R | PTE_X | PTE_U | PTE_A);
    paging_flush_all();
    csr_clear(sstatus, SSTATUS_SIE);
    trapped = trap_try(trap_enter_user, TEST_VA + 0x320000, 0);
    print_interrupt("timer in user mode", trapped);
    timer_set(UINT64_MAX);

    /* Pending and enabled, but not taken while SIE is off: wfi must end nevertheless. */
    timer_set(time_read() + 1000);
    __asm__ volatile("wfi");
    console_text("wfi with interrupts off ends\n");
    timer_set(UINT64_MAX);
    csr_write(sie, 0);
}

static void run_translation(enum paging_mode mode)
{
    struct paging paging;

    console_text(mode == PAGING_SV39 ? "sv39\n" : "sv48\n");
    paging_init(&paging, mode);
    paging_map(&paging, RAM_BASE, RAM_BASE, 2, PTE_R | PTE_W | PTE_X | PTE_A | PTE_D);
    paging_use(&paging);
    console_text("satp:");
    isa_result(csr_read(satp) >> 60);
    isa_end();
    permissions(&paging);
    atomic_faults(&paging);
    accessed_and_dirty(&paging);
    addresses(&paging);
    odd_mappings(&paging);
    remapping(&paging);
    crossing_fault(&paging);
    user_mode(&paging);
    interrupts(&paging);
    paging_use(NULL);
}

void bare_main(void)
{
    isa_begin("trap");
    illegal_instructions();
    breakpoint("ebreak", do_ebreak);
    breakpoint("c.ebreak", do_c_ebreak);
    return_to_supervisor();
    run_translation(PAGING_SV39);
    run_translation(PAGING_SV48);
    isa_finish();
}
