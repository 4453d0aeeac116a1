/* A vCPU: making it, running it, what it exits for, kicks, and slowing it down. */
#include "machine/x86_64/kvm_accel.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/thread.h"
#include "machine/x86_64/layout.h"
#include "machine/x86_64/linux_boot.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define KICK_SIGNAL SIGUSR1
/* The kernel's own sigset_t. */
#define SIGNAL_SET_SIZE 8

/* How long a slowed vCPU runs before it rests. */
#define TURN_NS (NS_PER_MS * 1)

/* ---- making and ending ---- */

/* In KVM_RUN the kick gets through, and nothing else that does not anyway. */
static int set_signal_mask(const struct kvm_cpu *cpu, struct ferry_error *err)
{
    union {
        struct kvm_signal_mask mask;
        uint8_t bytes[sizeof(struct kvm_signal_mask) + SIGNAL_SET_SIZE];
    } argument = {.mask = {.len = SIGNAL_SET_SIZE}};
    sigset_t set;
    int result;

    sigfillset(&set);
    sigdelset(&set, KICK_SIGNAL);
    sigdelset(&set, SIGSEGV);
    sigdelset(&set, SIGBUS);
    memcpy(argument.mask.sigset, &set, SIGNAL_SET_SIZE);
    result = kvm_ioctl(cpu->fd, KVM_SET_SIGNAL_MASK, &argument);
    return result < 0 ? error_set_errno(err, result, "vCPU %u: KVM takes no signal mask", cpu->index) : 0;
}

int kvm_cpu_create(struct kvm_accel *kvm, unsigned index, struct ferry_error *err)
{
    struct kvm_cpu *cpu = &kvm->cpus[index];
    int size = kvm_ioctl(kvm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, NULL);
    int result;

    *cpu = (struct kvm_cpu){.kvm = kvm, .index = index, .fd = -1};
    pthread_mutex_init(&cpu->lock, NULL);
    thread_cond_init(&cpu->wake);
    kvm->cpu_count = index + 1;
    if (size < (int)sizeof(*cpu->run))
        return error_set(err, -EOPNOTSUPP, "KVM shares no memory with a vCPU");
    cpu->fd = kvm_ioctl(kvm->vm_fd, KVM_CREATE_VCPU, (const void *)(uintptr_t)index);
    if (cpu->fd < 0)
        return error_set_errno(err, cpu->fd, "KVM makes no vCPU %u", index);
    cpu->run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu->fd, 0);
    if (cpu->run == MAP_FAILED) {
        cpu->run = NULL;
        return error_set_errno(err, -errno, "cannot map what KVM shares with vCPU %u", index);
    }
    cpu->run_size = (size_t)size;
    result = kvm_ring_map(cpu, err);
    if (result)
        return result;
    result = set_signal_mask(cpu, err);
    if (result)
        return result;
    return kvm_cpuid_apply(cpu, err);
}

void kvm_cpu_destroy(struct kvm_cpu *cpu)
{
    if (cpu->has_turn_timer)
        timer_delete(cpu->turn_timer);
    kvm_ring_unmap(cpu);
    if (cpu->run)
        munmap(cpu->run, cpu->run_size);
    if (cpu->fd >= 0)
        close(cpu->fd);
    pthread_cond_destroy(&cpu->wake);
    pthread_mutex_destroy(&cpu->lock);
}

/* Flat 32-bit segments with what the protocol wants to be seen in them. */
static struct kvm_segment flat_segment(uint8_t type, uint16_t selector)
{
    return (struct kvm_segment){
        .limit = UINT32_MAX, .selector = selector, .type = type, .present = 1, .db = 1, .s = 1, .g = 1};
}

#define CR0_PE       UINT64_C(1)
#define CR0_ET       UINT64_C(0x10)
#define CR0_PG       UINT64_C(0x80000000)
#define CR4_PAE      UINT64_C(0x20)
#define EFER_LME     UINT64_C(0x100)
#define EFER_LMA     UINT64_C(0x400)
#define SEGMENT_CODE 0x0b /* execute, read, accessed */
#define SEGMENT_DATA 0x03 /* read, write, accessed */
#define SEGMENT_TSS  0x0b /* 32-bit, busy */

static void boot_pvh(struct kvm_sregs2 *sregs)
{
    sregs->cs = flat_segment(SEGMENT_CODE, 0x08);
    sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = flat_segment(SEGMENT_DATA, 0x10);
    sregs->tr = (struct kvm_segment){.limit = 0x67, .type = SEGMENT_TSS, .present = 1};
    sregs->cr0 = CR0_PE | CR0_ET;
    sregs->cr3 = sregs->cr4 = sregs->efer = 0;
}

static void boot_linux(struct kvm_sregs2 *sregs)
{
    boot_pvh(sregs);
    sregs->cs = flat_segment(SEGMENT_CODE, LINUX_BOOT_CODE);
    sregs->cs.db = 0;
    sregs->cs.l = 1;
    sregs->ds.selector = sregs->es.selector = sregs->ss.selector = LINUX_BOOT_DATA;
    sregs->fs.selector = sregs->gs.selector = LINUX_BOOT_DATA;
    sregs->gdt = (struct kvm_dtable){.base = LINUX_BOOT_GDT, .limit = LINUX_BOOT_GDT_SIZE - 1};
    sregs->cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs->cr3 = LINUX_BOOT_PAGE_TABLES;
    sregs->cr4 = CR4_PAE;
    sregs->efer = EFER_LME | EFER_LMA;
}

int kvm_cpu_boot(struct kvm_cpu *cpu, const struct accel_boot *boot, struct ferry_error *err)
{
    struct kvm_regs regs = {.rip = boot->entry, .rflags = 2};
    struct kvm_sregs2 sregs = {0};
    int result = kvm_ioctl(cpu->fd, KVM_GET_SREGS2, &sregs);

    switch (boot->arguments[1]) {
    case X86_64_BOOT_PVH:
        regs.rbx = boot->arguments[0];
        boot_pvh(&sregs);
        break;
    case X86_64_BOOT_LINUX64:
        regs.rsi = boot->arguments[0];
        boot_linux(&sregs);
        break;
    default:
        return error_set(err, -EINVAL, "unknown boot protocol %" PRIu64, boot->arguments[1]);
    }
    if (result >= 0)
        result = kvm_ioctl(cpu->fd, KVM_SET_SREGS2, &sregs);
    if (result >= 0)
        result = kvm_ioctl(cpu->fd, KVM_SET_REGS, &regs);
    return result < 0 ? error_set_errno(err, result, "KVM does not take the boot vCPU's registers") : 0;
}

/* ---- what it exits for ---- */

static uint64_t get_bytes(const uint8_t *bytes, unsigned size)
{
    uint64_t value = 0;

    memcpy(&value, bytes, size);
    return value;
}

static void put_bytes(uint8_t *bytes, unsigned size, uint64_t value)
{
    memcpy(bytes, &value, size);
}

/* Where nothing answers, all ones are read. */
static uint64_t bus_read(struct kvm_accel *kvm, uint64_t addr, unsigned size)
{
    uint64_t value;

    return mmio_bus_read(kvm->bus, addr, size, &value) ? value : UINT64_MAX;
}

static void exit_mmio(struct kvm_cpu *cpu)
{
    struct kvm_run *run = cpu->run;
    uint64_t addr = run->mmio.phys_addr;
    unsigned size = run->mmio.len;

    /* The ports' part of the bus is not memory. */
    if (size > sizeof(run->mmio.data) || addr >= X86_64_PORTS)
        return;
    if (run->mmio.is_write)
        (void)mmio_bus_write(cpu->kvm->bus, addr, size, get_bytes(run->mmio.data, size));
    else
        put_bytes(run->mmio.data, size, bus_read(cpu->kvm, addr, size));
}

static void exit_io(struct kvm_cpu *cpu)
{
    struct kvm_run *run = cpu->run;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    uint64_t addr = X86_64_PORTS + run->io.port;
    unsigned size = run->io.size;

    if (size != 1 && size != 2 && size != 4)
        return;
    for (uint32_t i = 0; i < run->io.count; i++, data += size) {
        if (data + size > (uint8_t *)run + cpu->run_size)
            return;
        if (run->io.direction == KVM_EXIT_IO_OUT)
            (void)mmio_bus_write(cpu->kvm->bus, addr, size, get_bytes(data, size));
        else
            put_bytes(data, size, bus_read(cpu->kvm, addr, size));
    }
}

static void exit_crash(struct kvm_cpu *cpu, const char *what)
{
    struct kvm_regs regs = {0};
    struct ferry_error why;

    (void)kvm_ioctl(cpu->fd, KVM_GET_REGS, &regs);
    error_set(&why, -EFAULT, "vCPU %u %s at RIP 0x%llx", cpu->index, what, (unsigned long long)regs.rip);
    cpu->kvm->platform.event(cpu->kvm->platform.opaque, ACCEL_EVENT_CRASH, why.text);
}

static void exit_internal(struct kvm_cpu *cpu)
{
    if (cpu->run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION)
        exit_crash(cpu, "came to an instruction that this host's KVM cannot emulate");
    else
        exit_crash(cpu, "met an internal error of KVM");
}

static void exit_system_event(struct kvm_cpu *cpu)
{
    const struct accel_platform *platform = &cpu->kvm->platform;

    switch (cpu->run->system_event.type) {
    case KVM_SYSTEM_EVENT_SHUTDOWN:
        platform->event(platform->opaque, ACCEL_EVENT_POWER_OFF, "system event");
        break;
    case KVM_SYSTEM_EVENT_RESET:
        platform->event(platform->opaque, ACCEL_EVENT_RESET, "system event");
        break;
    default:
        exit_crash(cpu, "reported a crash");
    }
}

static int handle_exit(struct kvm_cpu *cpu, struct ferry_error *err)
{
    switch (cpu->run->exit_reason) {
    case KVM_EXIT_MMIO:
        exit_mmio(cpu);
        cpu->unfinished = true;
        return 0;
    case KVM_EXIT_IO:
        exit_io(cpu);
        cpu->unfinished = true;
        return 0;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
        return 0;
    case KVM_EXIT_SHUTDOWN:
        exit_crash(cpu, "met a triple fault");
        return 0;
    case KVM_EXIT_INTERNAL_ERROR:
        exit_internal(cpu);
        return 0;
    case KVM_EXIT_SYSTEM_EVENT:
        exit_system_event(cpu);
        return 0;
    case KVM_EXIT_DIRTY_RING_FULL:
        return kvm_ring_empty(cpu->kvm, err);
    case KVM_EXIT_FAIL_ENTRY:
        return error_set(err, -EIO, "vCPU %u: the processor refuses to enter the guest, reason 0x%llx",
                         cpu->index, (unsigned long long)cpu->run->fail_entry.hardware_entry_failure_reason);
    default:
        return error_set(err, -EIO, "vCPU %u: KVM stops for a reason Ferry does not know: %u", cpu->index,
                         cpu->run->exit_reason);
    }
}

/* ---- running ---- */

static void take_signals(void)
{
    const struct timespec now = {0};
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, KICK_SIGNAL);
    while (sigtimedwait(&set, NULL, &now) > 0)
        ;
}

/* One KVM_RUN and its exit. */
static int run_once(struct kvm_cpu *cpu, struct ferry_error *err)
{
    int result;

    cpu->unfinished = false;
    result = ioctl(cpu->fd, KVM_RUN, NULL) < 0 ? -errno : 0;
    if (result == 0)
        return handle_exit(cpu, err);
    if (result == -EINTR || result == -EAGAIN) {
        take_signals();
        return 0;
    }
    return error_set_errno(err, result, "vCPU %u cannot run", cpu->index);
}

/* An access that was answered is part of an instruction that KVM ends only when it is entered again. */
static int finish(struct kvm_cpu *cpu, struct ferry_error *err)
{
    int result = 0;

    cpu->run->immediate_exit = 1;
    while (cpu->unfinished && !result)
        result = run_once(cpu, err);
    cpu->run->immediate_exit = 0;
    return result;
}

/* ---- slowing down: a turn of TURN_NS, then a rest, whose share is the percentage ---- */

static bool ensure_turn_timer(struct kvm_cpu *cpu)
{
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = KICK_SIGNAL};

    event._sigev_un._tid = cpu->tid;
    if (!cpu->has_turn_timer)
        cpu->has_turn_timer = timer_create(CLOCK_MONOTONIC, &event, &cpu->turn_timer) == 0;
    return cpu->has_turn_timer;
}

static void turn_begin(struct kvm_cpu *cpu, uint64_t now_ns)
{
    struct itimerspec when = {0};

    cpu->turn_end_ns = now_ns + TURN_NS;
    when.it_value.tv_sec = (time_t)(cpu->turn_end_ns / NS_PER_S);
    when.it_value.tv_nsec = (long)(cpu->turn_end_ns % NS_PER_S);
    if (ensure_turn_timer(cpu))
        (void)timer_settime(cpu->turn_timer, TIMER_ABSTIME, &when, NULL);
}

/* Begins a turn, or ends it with a rest. Returns early when kicked. */
static void take_turns(struct kvm_cpu *cpu)
{
    uint64_t now_ns;

    pthread_mutex_lock(&cpu->lock);
    now_ns = clock_now_ns();
    if (!cpu->throttle) {
        cpu->turn_end_ns = 0;
    } else if (!cpu->turn_end_ns) {
        turn_begin(cpu, now_ns);
    } else if (now_ns >= cpu->turn_end_ns) {
        bool in_time = true;

        while (in_time && !cpu->kicked && cpu->throttle)
            in_time = thread_cond_wait_until(&cpu->wake, &cpu->lock,
                                             now_ns + TURN_NS * cpu->throttle / (100 - cpu->throttle));
        if (cpu->throttle && !cpu->kicked)
            turn_begin(cpu, clock_now_ns());
    }
    pthread_mutex_unlock(&cpu->lock);
}

/* Takes the kick. */
static bool was_kicked(struct kvm_cpu *cpu)
{
    bool kicked;

    pthread_mutex_lock(&cpu->lock);
    kicked = cpu->kicked;
    cpu->kicked = false;
    pthread_mutex_unlock(&cpu->lock);
    return kicked;
}

static void set_thread(struct kvm_cpu *cpu)
{
    pthread_mutex_lock(&cpu->lock);
    cpu->thread = pthread_self();
    cpu->tid = gettid();
    cpu->has_thread = true;
    pthread_mutex_unlock(&cpu->lock);
}

/* So that nobody signals a thread that may be gone. */
static void clear_thread(struct kvm_cpu *cpu)
{
    pthread_mutex_lock(&cpu->lock);
    cpu->has_thread = false;
    pthread_mutex_unlock(&cpu->lock);
}

enum accel_exit kvm_vcpu_run(struct accel *accel, unsigned index, struct ferry_error *err)
{
    struct kvm_cpu *cpu = &kvm_accel_of(accel)->cpus[index];
    int result = 0;

    set_thread(cpu);
    while (!result && !was_kicked(cpu)) {
        take_turns(cpu);
        result = run_once(cpu, err);
    }
    if (!result)
        result = finish(cpu, err);
    clear_thread(cpu);
    return result ? ACCEL_EXIT_ERROR : ACCEL_EXIT_KICKED;
}

void kvm_vcpu_kick(struct accel *accel, unsigned index)
{
    struct kvm_cpu *cpu = &kvm_accel_of(accel)->cpus[index];

    pthread_mutex_lock(&cpu->lock);
    cpu->kicked = true;
    if (cpu->has_thread)
        pthread_kill(cpu->thread, KICK_SIGNAL);
    pthread_cond_signal(&cpu->wake);
    pthread_mutex_unlock(&cpu->lock);
}

void kvm_vcpu_throttle(struct accel *accel, unsigned index, unsigned percent)
{
    struct kvm_cpu *cpu = &kvm_accel_of(accel)->cpus[index];

    pthread_mutex_lock(&cpu->lock);
    cpu->throttle = percent > 99 ? 99 : percent;
    if (cpu->has_thread)
        pthread_kill(cpu->thread, KICK_SIGNAL);
    pthread_cond_signal(&cpu->wake);
    pthread_mutex_unlock(&cpu->lock);
}

void kvm_throttle(struct accel *accel, unsigned percent)
{
    for (unsigned i = 0; i < kvm_accel_of(accel)->cpu_count; i++)
        kvm_vcpu_throttle(accel, i, percent);
}
