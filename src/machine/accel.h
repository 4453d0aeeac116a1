/*
 * The CPU seam: what runs guest instructions. Two implementations: `soft` (riscv64, own CPU) and `kvm`
 * (x86_64). Nothing outside src/machine asks which one is in use.
 *
 * The machine owns one thread a vCPU, which loops in vcpu_run. Everything else may be called from other
 * threads, but, except where said, only while no vCPU is inside vcpu_run ("stopped"). The accelerator also is
 * the interrupt controller (PLIC or in-kernel irqchip) and the guest's clock.
 */
#ifndef FERRY_MACHINE_ACCEL_H
#define FERRY_MACHINE_ACCEL_H

#include "base/log.h"
#include "bus/memory.h"
#include "bus/mmio.h"
#include "bus/state.h"
#include "cpu/cpu.h"

#include <ferry/error.h>

#define ACCEL_VCPUS_MAX 64

enum accel_event {
    ACCEL_EVENT_POWER_OFF = 1, /* the guest asked to be switched off */
    ACCEL_EVENT_RESET,         /* the guest asked for a reboot */
    ACCEL_EVENT_CRASH,         /* the guest cannot go on (triple fault, SBI reset with a failure reason) */
};

/* What an accelerator asks of the machine. Called on vCPU threads; must not block. */
struct accel_platform {
    void *opaque;
    void (*event)(void *opaque, enum accel_event event, const char *why);
    void (*console_write)(void *opaque, const void *data, size_t size); /* firmware console (SBI DBCN) */
    size_t (*console_read)(void *opaque, void *data, size_t size);      /* what is there, 0 for nothing */
};

struct accel_config {
    unsigned vcpus;
    struct memory *memory; /* all regions present; borrowed, as are the next three */
    struct mmio_bus *bus;
    struct log *log;
    const struct accel_platform *platform;
    const struct cpu_features *cpu_features; /* the guest gets no others; NULL: all that the host has */
    enum memory_tracking tracking;           /* create refuses what it does not have */
};

enum accel_exit {
    ACCEL_EXIT_KICKED = 1, /* vcpu_kick was called, or an event was reported */
    ACCEL_EXIT_ERROR,      /* the accelerator itself failed; err says why; the VM cannot go on */
};

/* Where the boot vCPU starts; the others wait for the guest to start them. */
struct accel_boot {
    uint64_t entry;
    /* riscv64: a0 hart id, a1 device tree address. x86_64: address of what the kernel is told, enum
     * x86_64_boot. */
    uint64_t arguments[2];
};

/* One named, versioned piece of accelerator state: "hart0", "plic", "clock". */
struct accel_section {
    char name[32];
    const struct state_table *table;
    unsigned index; /* handle for section_save / section_load */
};

struct accel {
    const struct accel_ops *ops;
};

struct accel_ops {
    const char *name;    /* "soft", "kvm" */
    const char *machine; /* "riscv64", "x86_64" */

    /* Can this host run it at all? 0, or an error with the reason. */
    int (*probe)(struct ferry_error *err);
    int (*create)(struct accel **out, const struct accel_config *config, struct ferry_error *err);
    void (*destroy)(struct accel *accel);

    /* Power-on state, boot vCPU at boot->entry. Also used for a guest reboot. */
    int (*reset)(struct accel *accel, const struct accel_boot *boot, struct ferry_error *err);

    /* Runs vCPU INDEX on the calling thread until kicked; sleeps when the guest is idle. */
    enum accel_exit (*vcpu_run)(struct accel *accel, unsigned index, struct ferry_error *err);
    /* Any thread: the current or next vcpu_run of that vCPU returns ACCEL_EXIT_KICKED soon (microseconds). */
    void (*vcpu_kick)(struct accel *accel, unsigned index);
    /*
     * Any thread, vCPU inside vcpu_run and not held: when it sleeps it is kept asleep, whatever comes, and is
     * as good as out of vcpu_run, without the time it takes to wake its thread: its state may be saved,
     * loaded and reset. False: it does not sleep; kick it. vcpu_release lets it go: its vcpu_run returns as
     * if kicked. Both NULL when the accelerator cannot.
     */
    bool (*vcpu_hold)(struct accel *accel, unsigned index);
    void (*vcpu_release)(struct accel *accel, unsigned index);

    /* What the guest was told of its CPU; no vCPU state is being loaded. NULL when there is nothing to tell.
     */
    void (*cpu_given)(struct accel *accel, struct cpu *cpu);

    /* Any thread, any time. LINE: interrupt source number. */
    void (*irq_set)(struct accel *accel, unsigned line, bool level);

    /* State. Fills at most *count sections and sets *count; the list is fixed for an accelerator. */
    void (*sections)(struct accel *accel, struct accel_section *sections, size_t *count);
    int (*section_save)(struct accel *accel, unsigned index, struct buffer *out, struct ferry_error *err);
    int (*section_load)(struct accel *accel, unsigned index, uint32_t version, struct reader *in,
                        struct ferry_error *err);
    /*
     * The guest's clock stops while vCPUs are stopped for a pause, and goes on over a migration: after load
     * it shows what it showed when saved; clock_advance moves it forward by the downtime before the first
     * instruction.
     */
    void (*clock_advance)(struct accel *accel, uint64_t nanoseconds);
    /* Called when the vCPUs stop and before they start again, so that the guest's clock stands still
     * meanwhile. */
    void (*clock_stop)(struct accel *accel);
    void (*clock_start)(struct accel *accel);

    /*
     * Dirty tracking of the guest's own stores (see bus/memory.h for the device side). Any thread, vCPUs
     * running or not. dirty_fetch ORs the region's dirty bits into BITMAP and clears them: a page written
     * after dirty_fetch took its bit is reported by the next call; a write is never missed.
     */
    int (*dirty_start)(struct accel *accel, struct ferry_error *err);
    int (*dirty_fetch)(struct accel *accel, size_t region, uint64_t *bitmap, struct ferry_error *err);
    void (*dirty_stop)(struct accel *accel);
    /* In words how that is done: "KVM dirty log". Any thread. */
    void (*dirty_describe)(struct accel *accel, char *text, size_t size);

    /* Slows the vCPUs: they run (100 - PERCENT) % of the time. 0 is full speed, 99 the most. Any thread. */
    void (*throttle)(struct accel *accel, unsigned percent);
    /* The same for one vCPU, and how many pages it was the first to write since each dirty_fetch, summed up:
     * a count that only grows while dirty tracking is on. False when that is not known. Any thread. Both may
     * be NULL. */
    void (*vcpu_throttle)(struct accel *accel, unsigned index, unsigned percent);
    bool (*vcpu_dirtied)(struct accel *accel, unsigned index, uint64_t *pages);
};

extern const struct accel_ops accel_soft; /* src/machine/riscv64/soft.c */
extern const struct accel_ops accel_kvm;  /* src/machine/x86_64/kvm.c; on x86-64 hosts only */

#endif
