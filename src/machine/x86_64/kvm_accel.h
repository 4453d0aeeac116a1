/*
 * Accelerator "kvm": what its parts share. vCPUs, interrupt controllers and the PIT are the kernel's (Linux
 * Documentation/virt/kvm/api.rst; KVM_ names are explained there).
 *
 *     kvm.c         the table of functions, life, memory, interrupt lines
 *     kvm_cpu.c     a vCPU: running it, what it exits for, kicks, slowing it down
 *     kvm_cpuid.c   what the guest is told of its CPU
 *     kvm_state.c   sections
 *     kvm_msrs.c    which MSRs are state
 *     kvm_clock.c   TSC and kvm-clock, which stand still while vCPUs are stopped
 *     kvm_dirty.c   which pages were written: by KVM's dirty log, or
 *     kvm_ring.c    by its dirty rings, which also tell who wrote
 *
 * A kick is a signal that every thread blocks and only KVM_RUN lets in: sent before KVM_RUN is entered, it
 * ends it at once.
 */
#ifndef FERRY_MACHINE_X86_64_KVM_ACCEL_H
#define FERRY_MACHINE_X86_64_KVM_ACCEL_H

#include "base/buffer.h"
#include "bus/memory.h"
#include "machine/accel.h"
#include "machine/x86_64/pc_ports.h"

#include <linux/kvm.h>

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#define KVM_MSRS_MAX          512
#define KVM_SAVED_MSR_SIZE    12 /* u32 number, u64 value */
#define KVM_CPUID_ENTRIES_MAX 256

struct kvm_accel;

struct kvm_cpu {
    struct kvm_accel *kvm;
    unsigned index;
    int fd; /* -1: none */
    struct kvm_run *run;
    size_t run_size;
    /* KVM_RUN has to be entered once more before state is whole: an access was answered. vCPU thread. */
    bool unfinished;

    struct kvm_dirty_gfn *ring; /* NULL: none */
    uint32_t ring_next;         /* the entry to look at next; ring_lock */
    uint64_t dirtied;           /* atomic: entries there have been */

    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t wake;  /* kicked, or to be slowed otherwise */
    bool kicked;
    bool has_thread; /* thread and tid are known */
    pthread_t thread;
    pid_t tid;
    unsigned throttle; /* percent */

    timer_t turn_timer; /* these three: the vCPU's thread and, when there is none, destroy */
    bool has_turn_timer;
    uint64_t turn_end_ns; /* 0: no turn has begun */
};

/* The guest's clocks while they stand still; not to be looked at while they run. */
struct kvm_clock {
    bool running;
    uint64_t kvmclock_ns;
    uint64_t tsc[ACCEL_VCPUS_MAX];
    uint64_t tsc_deadline[ACCEL_VCPUS_MAX]; /* of the local APIC's timer; 0: none */
};

struct kvm_accel {
    struct accel accel;
    struct memory *memory; /* these three are borrowed */
    struct mmio_bus *bus;
    struct log *log;
    struct accel_platform platform;

    int kvm_fd, vm_fd;
    uint32_t ring_entries; /* of each vCPU's dirty ring; 0: the dirty log is used */
    pthread_mutex_t ring_lock;
    bool ring_overrun; /* ring_lock: what the guest writes is not known any more */
    struct kvm_cpu cpus[ACCEL_VCPUS_MAX];
    unsigned cpu_count;

    /* What this host's CPUs can do, and what the guest's are told: the same until a guest arrives. */
    struct kvm_cpuid2 *host_cpuid, *cpuid;
    uint64_t host_arch_capabilities, arch_capabilities; /* IA32_ARCH_CAPABILITIES, likewise */
    uint32_t msrs[KVM_MSRS_MAX];                        /* those that are saved */
    size_t msr_count;
    size_t xsave_size;
    uint32_t tsc_khz;
    struct buffer power_on[ACCEL_VCPUS_MAX + 2]; /* sections as they were when all was new */

    struct kvm_clock clock;
    struct pc_ports ports;
};

static inline struct kvm_accel *kvm_accel_of(struct accel *accel)
{
    return (struct kvm_accel *)(void *)((char *)accel - offsetof(struct kvm_accel, accel));
}

/* An ioctl that is done again when a signal interrupts it; negative errno on failure. */
int kvm_ioctl(int fd, unsigned long request, const void *argument);

/* ---- kvm_cpu.c ---- */

int kvm_cpu_create(struct kvm_accel *kvm, unsigned index, struct ferry_error *err);
void kvm_cpu_destroy(struct kvm_cpu *cpu);
/* Registers of the boot vCPU; everything else is as after power-on. */
int kvm_cpu_boot(struct kvm_cpu *cpu, const struct accel_boot *boot, struct ferry_error *err);
enum accel_exit kvm_vcpu_run(struct accel *accel, unsigned index, struct ferry_error *err);
void kvm_vcpu_kick(struct accel *accel, unsigned index);
void kvm_throttle(struct accel *accel, unsigned percent);
void kvm_vcpu_throttle(struct accel *accel, unsigned index, unsigned percent);

/* ---- kvm_cpuid.c ---- */

/* Fills host_cpuid, cpuid and the same of IA32_ARCH_CAPABILITIES, for a VM of so many vCPUs; the guest gets
 * of the host's features only those in FEATURES (NULL: all). */
int kvm_cpuid_init(struct kvm_accel *kvm, unsigned cpus, const struct cpu_features *features,
                   struct ferry_error *err);
void kvm_cpu_given(struct accel *accel, struct cpu *cpu);
/* Gives a vCPU kvm->cpuid, with its own numbers. Before it first runs. */
int kvm_cpuid_apply(struct kvm_cpu *cpu, struct ferry_error *err);
void kvm_cpuid_save(const struct kvm_accel *kvm, struct buffer *out);
/* Replaces kvm->cpuid by what was saved, and gives it to all vCPUs; refused when this host lacks any of it.
 */
int kvm_cpuid_load(struct kvm_accel *kvm, const struct buffer *saved, struct ferry_error *err);
/* The same for the IA32_ARCH_CAPABILITIES that a vCPU comes with; kvm->cpuid has been loaded. */
int kvm_arch_capabilities_load(const struct kvm_cpu *cpu, uint64_t saved, struct ferry_error *err);

/* ---- kvm_state.c ---- */

/* Finds out what there is to save, and remembers all state as it is at power-on. */
int kvm_state_init(struct kvm_accel *kvm, struct ferry_error *err);
void kvm_state_destroy(struct kvm_accel *kvm);
/* Back to the state at power-on. */
int kvm_state_reset(struct kvm_accel *kvm, struct ferry_error *err);
void kvm_sections(struct accel *accel, struct accel_section *sections, size_t *count);
int kvm_section_save(struct accel *accel, unsigned index, struct buffer *out, struct ferry_error *err);
int kvm_section_load(struct accel *accel, unsigned index, uint32_t version, struct reader *in,
                     struct ferry_error *err);

/* ---- kvm_msrs.c ---- */

int kvm_msr_get(const struct kvm_cpu *cpu, uint32_t msr, uint64_t *value);
int kvm_msr_set(const struct kvm_cpu *cpu, uint32_t msr, uint64_t value);
/* Finds out which MSRs are to be saved, but for those that a reset leaves as they are, which are for
 * kvm_msrs_find_given. Once there are vCPUs. */
int kvm_msrs_find(struct kvm_accel *kvm, struct ferry_error *err);
void kvm_msrs_find_given(struct kvm_accel *kvm);
/* Entries of KVM_SAVED_MSR_SIZE; one that this host's KVM does not take is refused by its number. */
int kvm_msrs_save(const struct kvm_cpu *cpu, struct buffer *out, struct ferry_error *err);
int kvm_msrs_load(const struct kvm_cpu *cpu, const struct buffer *saved, struct ferry_error *err);

/* ---- kvm_clock.c ---- */

int kvm_clock_init(struct kvm_accel *kvm, struct ferry_error *err);
/* All clocks to zero, standing still. */
void kvm_clock_reset(struct kvm_accel *kvm);
void kvm_clock_advance(struct accel *accel, uint64_t nanoseconds);
void kvm_clock_stop(struct accel *accel);
void kvm_clock_start(struct accel *accel);

/* ---- kvm_dirty.c ---- */

int kvm_dirty_start(struct accel *accel, struct ferry_error *err);
int kvm_dirty_fetch(struct accel *accel, size_t region, uint64_t *bitmap, struct ferry_error *err);
void kvm_dirty_stop(struct accel *accel);
void kvm_dirty_describe(struct accel *accel, char *text, size_t size);
/* Gives region INDEX to the VM as slot INDEX, with or without a log of what is written. */
int kvm_set_slot(struct kvm_accel *kvm, size_t index, bool logged, struct ferry_error *err);

/* ---- kvm_ring.c ---- */

/* Switches rings on where KVM has them and can be relied on; if they are WANTED, wherever it has them, and
 * else that is an error. Before there are vCPUs. */
int kvm_ring_init(struct kvm_accel *kvm, unsigned cpus, bool wanted, struct ferry_error *err);
/* A vCPU's part of it, if there are rings. */
int kvm_ring_map(struct kvm_cpu *cpu, struct ferry_error *err);
void kvm_ring_unmap(struct kvm_cpu *cpu);
/* Can they still be relied on? */
int kvm_ring_check(struct kvm_accel *kvm, struct ferry_error *err);
/* What is in the rings goes into the regions' bitmaps. Any thread, as the next. An error when there is
 * nothing in them though KVM may say so, after an overrun. */
int kvm_ring_empty(struct kvm_accel *kvm, struct ferry_error *err);
/* The same, and the region's bits are taken: as accel_ops.dirty_fetch. */
int kvm_ring_fetch(struct kvm_accel *kvm, const struct memory_region *region, uint64_t *bitmap,
                   struct ferry_error *err);
bool kvm_vcpu_dirtied(struct accel *accel, unsigned index, uint64_t *pages);

#endif
