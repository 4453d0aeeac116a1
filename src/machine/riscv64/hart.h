/*
 * The built-in CPU's inner structures: a hart, and the accelerator that owns all of them.
 *
 *      soft.c      accelerator table, life, requests between threads, dirty tracking
 *      clock.c     the guest's time, timers, throttling
 *      decode.c    instruction formats       translate.c  makes ops from instructions
 *      block.c     keeps blocks of ops       exec.c       runs them
 *      mmu.c       address translation       fpu.c        floating point
 *      csr.c       control and status        trap.c       traps and interrupts
 *      sbi.c       the firmware's calls      plic.c       interrupt controller
 *      state.c     what is saved and loaded
 *
 * Specifications: the RISC-V Instruction Set Manual, volume I 20191213 (unprivileged) and volume II 20211203
 * with Sstc, Svadu and Svvptc (privileged); SBI 2.0; PLIC 1.0.0.
 *
 * Threads. Each hart is run by one thread, the machine's, inside soft_vcpu_run: the hart thread. What is in
 * `struct hart` is its alone while it runs, but for the fields marked "shared". Other threads ask something
 * of a hart by setting bits in `requests` and the attention bit in `key.epoch`; the hart looks at that bit
 * whenever it goes from block to block, at no cost of its own (see `key`).
 */
#ifndef FERRY_MACHINE_RISCV64_HART_H
#define FERRY_MACHINE_RISCV64_HART_H

#include "base/thread.h"
#include "machine/accel.h"
#include "machine/riscv64/layout.h"
#include "machine/riscv64/op.h"
#include "machine/riscv64/plic.h"

#include <fenv.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "guest memory is used in place: little-endian hosts only");

#define likely(condition)   __builtin_expect(!!(condition), 1)
#define unlikely(condition) __builtin_expect(!!(condition), 0)

#define PAGE_SHIFT 12
#define PAGE_SIZE  UINT64_C(4096)
#define PAGE_MASK  (~(PAGE_SIZE - 1))

/* Host memory that holds guest data of any type. */
typedef uint8_t __attribute__((may_alias)) guest_u8;
typedef uint16_t __attribute__((may_alias)) guest_u16;
typedef uint32_t __attribute__((may_alias)) guest_u32;
typedef uint64_t __attribute__((may_alias)) guest_u64;

enum privilege {
    PRIVILEGE_USER = 0,
    PRIVILEGE_SUPERVISOR = 1,
};

enum trap_cause {
    CAUSE_FETCH_MISALIGNED = 0,
    CAUSE_FETCH_ACCESS = 1,
    CAUSE_ILLEGAL = 2,
    CAUSE_BREAKPOINT = 3,
    CAUSE_LOAD_MISALIGNED = 4,
    CAUSE_LOAD_ACCESS = 5,
    CAUSE_STORE_MISALIGNED = 6,
    CAUSE_STORE_ACCESS = 7,
    CAUSE_ECALL_USER = 8,
    CAUSE_FETCH_PAGE = 12,
    CAUSE_LOAD_PAGE = 13,
    CAUSE_STORE_PAGE = 15,
};
#define CAUSE_INTERRUPT (UINT64_C(1) << 63)

/* Bits of sip and sie. */
#define INTERRUPT_SOFTWARE (UINT64_C(1) << 1)
#define INTERRUPT_TIMER    (UINT64_C(1) << 5)
#define INTERRUPT_EXTERNAL (UINT64_C(1) << 9)
#define INTERRUPT_ALL      (INTERRUPT_SOFTWARE | INTERRUPT_TIMER | INTERRUPT_EXTERNAL)

/* sstatus, in its own bits. SD and UXL are made up when it is read. */
#define SSTATUS_SIE      (UINT64_C(1) << 1)
#define SSTATUS_SPIE     (UINT64_C(1) << 5)
#define SSTATUS_SPP      (UINT64_C(1) << 8)
#define SSTATUS_FS       (UINT64_C(3) << 13)
#define SSTATUS_FS_DIRTY (UINT64_C(3) << 13)
#define SSTATUS_SUM      (UINT64_C(1) << 18)
#define SSTATUS_MXR      (UINT64_C(1) << 19)
#define SSTATUS_UXL_64   (UINT64_C(2) << 32)
#define SSTATUS_SD       (UINT64_C(1) << 63)
#define SSTATUS_WRITABLE (SSTATUS_SIE | SSTATUS_SPIE | SSTATUS_SPP | SSTATUS_FS | SSTATUS_SUM | SSTATUS_MXR)

#define SATP_MODE(satp) ((satp) >> 60)
#define SATP_MODE_BARE  0
#define SATP_MODE_SV39  8
#define SATP_MODE_SV48  9
#define SATP_PPN(satp)  ((satp) & ((UINT64_C(1) << 44) - 1))
#define SATP_WRITABLE   (UINT64_C(0xf) << 60 | ((UINT64_C(1) << 44) - 1)) /* no ASIDs: they read as 0 */

/* SBI hart states (SBI 2.0, 9.1 table 7); the numbers are the guest's and the state section's. */
enum hsm_state {
    HSM_STARTED = 0,
    HSM_STOPPED = 1,
    HSM_START_PENDING = 2,
};

/* What other threads ask of a hart. */
enum hart_request {
    REQUEST_KICK = 1 << 0,        /* leave vcpu_run */
    REQUEST_INTERRUPT = 1 << 1,   /* look at pending interrupts and at the timer */
    REQUEST_START = 1 << 2,       /* HSM: begin at start_addr */
    REQUEST_THROTTLE = 1 << 3,    /* the time to run is used up, or the percentage changed */
    REQUEST_DROP_TLB = 1 << 4,    /* remote sfence.vma; waited for */
    REQUEST_DROP_STORES = 1 << 5, /* dirty tracking; waited for */
    REQUEST_FENCE_I = 1 << 6,     /* remote fence.i; waited for */
};
#define REQUESTS_WAITED_FOR (REQUEST_DROP_TLB | REQUEST_DROP_STORES | REQUEST_FENCE_I)

/*
 * Software TLB: direct-mapped, one set an access mode, so that going to and from user mode costs nothing. A
 * tag is the page's virtual address, or TLB_EMPTY, which no masked address can equal. A store tag is there
 * only for pages that are writable, have their D bit set in the page table and, while dirty tracking is on,
 * have their dirty bit set since the tags were last dropped: see mmu.c.
 */
#define TLB_BITS    8
#define TLB_ENTRIES (1u << TLB_BITS)
#define TLB_EMPTY   UINT64_MAX

struct tlb_entry {
    uint64_t load_tag;
    uint64_t store_tag;
    uint64_t addend; /* host address = virtual address + addend */
    uint64_t unused;
};

enum tlb_mode {
    TLB_MODE_USER,
    TLB_MODE_SUPERVISOR,
    TLB_MODE_SUPERVISOR_SUM, /* S-mode with sstatus.SUM: may touch user pages */
    TLB_MODES,
};

/* Fetch TLB, one set a privilege. */
#define FETCH_TLB_ENTRIES 64

struct fetch_entry {
    uint64_t tag;
    uint64_t guest_page; /* guest physical */
    const uint8_t *host_page;
};

/*
 * Jump cache: where the ops for a virtual address are. Sixteen clusters of 64, a page's entries all in one
 * cluster, so that one page can be forgotten quickly. An entry is good while its key is the hart's.
 */
#define JUMP_CLUSTER_BITS 6
#define JUMP_CLUSTERS     16
#define JUMP_ENTRIES      (JUMP_CLUSTERS << JUMP_CLUSTER_BITS)

struct jump_entry {
    uint64_t pc;
    uint64_t key;
    const struct op *target;
};

static inline unsigned jump_cluster(uint64_t pc)
{
    return (unsigned)(pc >> PAGE_SHIFT & (JUMP_CLUSTERS - 1)) << JUMP_CLUSTER_BITS;
}

static inline unsigned jump_index(uint64_t pc)
{
    return jump_cluster(pc) | ((unsigned)(pc >> 1 ^ pc >> 7) & ((1u << JUMP_CLUSTER_BITS) - 1));
}

#define EPOCH_ATTENTION UINT32_C(0x80000000)

struct block;

/* Decoded blocks of one hart: block.c. */
struct block_cache {
    uint8_t *arena;      /* blocks grow up from its start, their directory down from its end */
    size_t used;         /* bytes */
    size_t count;        /* blocks in the directory */
    struct block **hash; /* by guest physical address */
    uint32_t generation; /* counts how often the arena was emptied */
    uint64_t built;      /* statistics: blocks made */
    uint64_t emptied;
};

struct soft;

struct hart {
    /* Guest registers. x[0] stays 0; x[OP_REG_SINK] takes what is written to it. */
    uint64_t x[34];
    uint64_t f[32];

    /*
     * One word compared on every jump between blocks. `epoch` counts this hart's instruction fences; a link
     * or jump-cache entry made in an earlier epoch is looked at again before it is followed. Setting the
     * attention bit (shared, atomic) makes every comparison fail, which is how other threads get the hart's
     * attention. `context` changes with the address mapping and the privilege: jumps to other pages depend on
     * it, links inside a page do not.
     */
    union {
        struct {
            uint32_t context;
            uint32_t epoch;
        };
        uint64_t both;
    } key;

    struct tlb_entry *tlb; /* the set of the present mode */
    uint8_t fp_blocked; /* floating point needs a look first: FS not dirty, or frm without host equivalent */
    uint64_t pc;        /* exact whenever exec.c is not running ops */
    uint64_t retired;   /* instructions retired: cycle and instret */

    /* LR/SC: see exec.c. NULL: no reservation. */
    const void *reservation;
    uint64_t reservation_value;
    unsigned reservation_size;

    /* The exception raised by the op that reported a fault. */
    uint64_t fault_cause;
    uint64_t fault_value;

    uint8_t privilege;
    uint8_t frm;      /* 0 to 7 as written; 5 to 7 make arithmetic illegal */
    uint8_t fflags;   /* accrued, without what the host's flags still hold: see fpu.h */
    uint32_t mapping; /* counts changes of the address mapping; part of key.context */

    uint64_t sstatus; /* SSTATUS_WRITABLE bits */
    uint64_t sie, stvec, sscratch, sepc, scause, stval, satp, stimecmp;
    uint32_t scounteren, senvcfg;
    uint64_t sip; /* shared, atomic */

    /* SBI hart state; written under `lock`, and atomically, because the hart looks at it without. */
    uint8_t hsm;
    uint64_t start_addr, start_argument;

    struct soft *soft;
    unsigned index;

    /*
     * Other threads' requests. `requests` is atomic. `lock` guards running, may_be_held, held, tickets,
     * served and hsm. `running`: the thread is between hart_begin and hart_end and may execute guest
     * instructions; while it is false nothing cached by the hart is in use, and requests are served before it
     * is set again.
     */
    uint32_t requests;   /* shared, atomic */
    uint32_t sleep_mask; /* shared, atomic: requests that wake the hart; 0 when it does not sleep */
    pthread_mutex_t lock;
    pthread_cond_t wake;           /* the hart waits here when it sleeps */
    pthread_cond_t served_changed; /* others wait here for running or served */
    bool running;
    bool may_be_held;  /* it sleeps, and nothing of it is anywhere else than here */
    bool held;         /* it sleeps on, whatever comes */
    bool kicked;       /* hart thread's own: a kick was served, vcpu_run returns */
    unsigned throttle; /* shared, atomic; per cent of the time not to run */
    uint64_t dirtied;  /* shared, atomic; pages it was the first to write, while dirty tracking is on */
    uint64_t tickets, served;
    fenv_t host_fenv; /* the thread's floating-point environment outside vcpu_run */

    struct block_cache blocks;
    /* Where large pages in the TLB lie, by half of the address space; base 1: nowhere. An sfence.vma of one
     * page in there drops all. */
    uint64_t large_base[2], large_mask[2];
    struct tlb_entry tlbs[TLB_MODES][TLB_ENTRIES] __attribute__((aligned(64)));
    struct fetch_entry fetch_tlb[2][FETCH_TLB_ENTRIES];
    struct jump_entry jumps[JUMP_ENTRIES];
};

/* A copy of what matters of the memory regions, for speed. */
struct soft_ram {
    uint64_t guest_addr, size;
    uint8_t *host_ptr;
    uint64_t *dirty;
};

/* clock.c */
struct soft_clock {
    pthread_mutex_t lock; /* guards everything here but reading `offset` */
    pthread_cond_t changed;
    struct thread thread; /* "soft-timer": ended by `stopping` */
    bool stopping;
    bool ticking;
    uint64_t stopped_at;                   /* the guest's time in ns while not ticking */
    uint64_t offset;                       /* atomic: guest time - CLOCK_MONOTONIC while ticking */
    uint64_t next;                         /* when the thread will wake up by itself */
    uint64_t timer[RISCV64_HARTS_MAX];     /* CLOCK_MONOTONIC, or CLOCK_NEVER */
    uint64_t run_until[RISCV64_HARTS_MAX]; /* end of a throttled hart's turn, or CLOCK_NEVER */
};
#define CLOCK_NEVER UINT64_MAX

struct soft {
    struct accel accel;
    struct memory *memory;
    struct mmio_bus *bus;
    struct log *log;
    struct accel_platform platform;
    struct soft_ram ram[MEMORY_REGIONS_MAX];
    size_t ram_count;
    const void *const *handlers; /* exec.c's labels by enum op_id */
    struct plic plic;
    struct soft_clock clock;
    bool ended; /* atomic; the guest switched itself off: harts sleep until reset */
    unsigned hart_count;
    struct hart *harts[RISCV64_HARTS_MAX];
};

/* --- soft.c ------------------------------------------------------------------------------------------- */

/* Any thread: asks for something without waiting. Wakes the hart if it sleeps and cares. */
void hart_post(struct hart *hart, uint32_t requests);
/*
 * Any thread: asks and returns when the hart has done it or is not running (then it will before its next
 * instruction). A hart thread must not be `running` itself meanwhile (hart_end), or two could wait for each
 * other for ever.
 */
void hart_post_and_wait(struct hart *hart, uint32_t requests);
/* Hart thread: begins and ends the time in which guest instructions may run. */
void hart_begin(struct hart *hart);
void hart_end(struct hart *hart);
/*
 * Hart thread, running: sleeps until one of the requests in MASK (REQUEST_KICK is implied) or the instant.
 * MAY_BE_HELD: all of the hart's state is in the structure, and the caller looks at it anew afterwards.
 */
void hart_sleep(struct hart *hart, uint32_t mask, uint64_t deadline_ns, bool may_be_held);
/*
 * Hart thread: serves requests and takes a pending interrupt. False when the hart has to leave exec_run
 * (kicked, stopped, throttled).
 */
bool hart_attend(struct hart *hart);
/* wfi: sleeps until an interrupt is pending or a request comes; may return early. MAY_BE_HELD: see
 * hart_sleep.
 */
void hart_wait_interrupt(struct hart *hart, bool may_be_held);
/* Recomputes what depends on privilege, sstatus and mapping: key.context, tlb. */
void hart_context_changed(struct hart *hart);
/* Registers at power-on and at HSM start: S-mode, no translation, interrupts off. */
void hart_reset(struct hart *hart, uint64_t entry, uint64_t a0, uint64_t a1);
/* The region's host address of guest physical [addr, addr + size), or NULL. */
uint8_t *soft_ram_ptr(const struct soft *soft, uint64_t addr, uint64_t size, const struct soft_ram **ram);
/* Reports an event to the machine and makes all harts leave. Hart thread. */
void soft_report(struct soft *soft, enum accel_event event, const char *why);

/* --- clock.c ------------------------------------------------------------------------------------------ */

int soft_clock_init(struct soft *soft, struct ferry_error *err); /* starts the thread */
void soft_clock_destroy(struct soft *soft);
uint64_t soft_clock_ns(struct soft *soft);                    /* the guest's time */
void soft_clock_set(struct soft *soft, uint64_t nanoseconds); /* stopped only */
void soft_clock_start(struct soft *soft);
void soft_clock_stop(struct soft *soft);
/* The time CSR. */
uint64_t hart_time(struct hart *hart);
/* Recomputes sip.STIP from stimecmp, and asks the timer thread for a REQUEST_INTERRUPT when it is due. */
void hart_timer_update(struct hart *hart);
/* Switches the timer thread's attention off for this hart: it sleeps and sees to its deadline itself. */
void hart_timer_disarm(struct hart *hart);
/* CLOCK_MONOTONIC instant at which stimecmp is reached, or CLOCK_NEVER. */
uint64_t hart_timer_deadline(struct hart *hart);
/* Throttling: begins a turn of running (does nothing at full speed); sleeps between two turns. */
void hart_throttle_begin(struct hart *hart);
void hart_throttle_pause(struct hart *hart);

/* --- exec.c ------------------------------------------------------------------------------------------- */

const void *const *exec_handlers(void);
/* Runs from hart->pc until hart_attend says to leave. */
void exec_run(struct hart *hart);

/* --- block.c ------------------------------------------------------------------------------------------ */

int block_cache_init(struct block_cache *cache, struct ferry_error *err);
void block_cache_destroy(struct block_cache *cache);
/* Forgets all blocks. */
void block_cache_empty(struct hart *hart);
/* fence.i: blocks are compared with memory before they are used again. */
void block_fence(struct hart *hart);
/*
 * The ops for hart->pc: serves requests first, takes fetch traps and interrupts (hart->pc moves), finds or
 * makes the block, notes it in the jump cache. NULL when exec_run has to return.
 */
const struct op *block_enter(struct hart *hart);
/* The same, when the op FROM, which is followed by a link, leads to hart->pc inside its page: sets the link.
 */
const struct op *block_enter_linked(struct hart *hart, const struct op *from);
/* Which instruction of its block an op is: for precise traps. */
struct block_place {
    unsigned page_offset; /* of the instruction that can fault, in bytes; may be above the page's size - 2 */
    unsigned retired;     /* instructions from the start of the block before it */
    uint32_t bits;        /* the instruction, for stval */
};
struct block_place block_locate(const struct hart *hart, const struct op *op);

/* --- mmu.c -------------------------------------------------------------------------------------------- */

enum mmu_access {
    MMU_LOAD,
    MMU_STORE,
    MMU_FETCH,
};

/* Slow path of loads and stores of 1, 2, 4 or 8 bytes, any alignment. False: hart->fault_* is set. */
bool mmu_load(struct hart *hart, uint64_t addr, unsigned size, uint64_t *value);
bool mmu_store(struct hart *hart, uint64_t addr, unsigned size, uint64_t value);
/* Host address for an atomic access of 4 or 8 bytes; NULL: hart->fault_* is set. */
void *mmu_atomic(struct hart *hart, uint64_t addr, unsigned size, enum mmu_access access);
/* The fetch TLB's entry for the page of ADDR; NULL: hart->fault_* is set. */
const struct fetch_entry *mmu_fetch(struct hart *hart, uint64_t addr);
void mmu_drop_all(struct hart *hart);
void mmu_drop_page(struct hart *hart, uint64_t addr);
void mmu_drop_stores(struct hart *hart);

/* --- csr.c -------------------------------------------------------------------------------------------- */

enum csr_operation {
    CSR_WRITE,
    CSR_SET,
    CSR_CLEAR,
};

/*
 * One CSR instruction: reads into *OLD, then writes unless WRITES is false. hart->retired and hart->pc must
 * be exact. Returns false when it is illegal.
 */
bool csr_access(struct hart *hart, unsigned number, enum csr_operation operation, bool writes,
                uint64_t operand, uint64_t *old);

/* --- trap.c ------------------------------------------------------------------------------------------- */

void trap_take(struct hart *hart, uint64_t cause, uint64_t value); /* from hart->pc */
bool trap_interrupt(struct hart *hart);                            /* takes a pending, enabled interrupt */
bool trap_interrupt_waiting(const struct hart *hart);              /* is one pending and enabled (wfi)? */
void trap_return(struct hart *hart);                               /* sret */

/* --- sbi.c -------------------------------------------------------------------------------------------- */

void sbi_call(struct hart *hart); /* ecall from S-mode; hart->pc is past it */

/* --- state.c ------------------------------------------------------------------------------------------ */

void soft_sections(struct accel *accel, struct accel_section *sections, size_t *count);
int soft_section_save(struct accel *accel, unsigned index, struct buffer *out, struct ferry_error *err);
int soft_section_load(struct accel *accel, unsigned index, uint32_t version, struct reader *in,
                      struct ferry_error *err);

#endif
