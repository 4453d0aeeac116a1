/*
 * The guest's clocks: the TSC of each vCPU, its local APIC's deadline, and kvm-clock. While vCPUs are stopped
 * they stand still; what they showed is in struct kvm_clock, from where it is saved and whereto it is loaded.
 *
 * A vCPU's TSC is the host's, scaled the same way for all vCPUs, plus an offset of its own
 * (KVM_VCPU_TSC_OFFSET). So the scaled host TSC is read once and all offsets follow from it: vCPUs keep their
 * distances to the tick, however long that takes.
 */
#include "machine/x86_64/kvm_accel.h"

#include "base/error.h"

#include <errno.h>
#include <string.h>

#define MSR_TSC          0x10
#define MSR_TSC_DEADLINE 0x6e0

static int offset_access(const struct kvm_cpu *cpu, unsigned long request, uint64_t *offset)
{
    struct kvm_device_attr attribute = {
        .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uint64_t)(uintptr_t)offset};

    return kvm_ioctl(cpu->fd, request, &attribute);
}

/* The host's TSC as the guest's would be without an offset. */
static int scaled_tsc(const struct kvm_accel *kvm, uint64_t *tsc)
{
    uint64_t offset = 0;
    int result = offset_access(&kvm->cpus[0], KVM_GET_DEVICE_ATTR, &offset);

    if (result >= 0)
        result = kvm_msr_get(&kvm->cpus[0], MSR_TSC, tsc);
    *tsc -= offset;
    return result;
}

int kvm_clock_init(struct kvm_accel *kvm, struct ferry_error *err)
{
    uint64_t offset;
    int khz = kvm_ioctl(kvm->cpus[0].fd, KVM_GET_TSC_KHZ, NULL);
    int result = offset_access(&kvm->cpus[0], KVM_HAS_DEVICE_ATTR, &offset);

    if (khz <= 0)
        return error_set(err, -EOPNOTSUPP, "KVM does not say how fast the TSC is");
    if (result < 0)
        return error_set_errno(err, result, "this host's KVM cannot set the TSC's offset");
    kvm->tsc_khz = (uint32_t)khz;
    return 0;
}

void kvm_clock_reset(struct kvm_accel *kvm)
{
    kvm->clock = (struct kvm_clock){0};
}

void kvm_clock_advance(struct accel *accel, uint64_t nanoseconds)
{
    struct kvm_accel *kvm = kvm_accel_of(accel);
    uint64_t ticks = (uint64_t)((unsigned __int128)nanoseconds * kvm->tsc_khz / 1000000);

    kvm->clock.kvmclock_ns += nanoseconds;
    for (unsigned i = 0; i < kvm->cpu_count; i++)
        kvm->clock.tsc[i] += ticks;
}

static void warn(const struct kvm_accel *kvm, int result, const char *what)
{
    if (result < 0)
        log_error(kvm->log, "the guest's clock may be wrong: KVM does not %s: %s", what, strerror(-result));
}

void kvm_clock_stop(struct accel *accel)
{
    struct kvm_accel *kvm = kvm_accel_of(accel);
    struct kvm_clock_data data = {0};
    uint64_t now = 0;

    if (!kvm->clock.running)
        return;
    warn(kvm, scaled_tsc(kvm, &now), "give the TSC");
    warn(kvm, kvm_ioctl(kvm->vm_fd, KVM_GET_CLOCK, &data), "give kvm-clock");
    kvm->clock.kvmclock_ns = data.clock;
    for (unsigned i = 0; i < kvm->cpu_count; i++) {
        const struct kvm_cpu *cpu = &kvm->cpus[i];
        uint64_t offset = 0;

        warn(kvm, offset_access(cpu, KVM_GET_DEVICE_ATTR, &offset), "give the TSC's offset");
        kvm->clock.tsc[i] = now + offset;
        /* Disarmed: it would fire by the host's time. Without this MSR the guest has no deadline. */
        if (kvm_msr_get(cpu, MSR_TSC_DEADLINE, &kvm->clock.tsc_deadline[i]) < 0)
            kvm->clock.tsc_deadline[i] = 0;
        if (kvm->clock.tsc_deadline[i])
            (void)kvm_msr_set(cpu, MSR_TSC_DEADLINE, 0);
    }
    kvm->clock.running = false;
}

void kvm_clock_start(struct accel *accel)
{
    struct kvm_accel *kvm = kvm_accel_of(accel);
    struct kvm_clock_data data = {.clock = kvm->clock.kvmclock_ns};
    uint64_t now = 0;

    if (kvm->clock.running)
        return;
    warn(kvm, scaled_tsc(kvm, &now), "give the TSC");
    warn(kvm, kvm_ioctl(kvm->vm_fd, KVM_SET_CLOCK, &data), "set kvm-clock");
    for (unsigned i = 0; i < kvm->cpu_count; i++) {
        const struct kvm_cpu *cpu = &kvm->cpus[i];
        uint64_t offset = kvm->clock.tsc[i] - now;

        warn(kvm, offset_access(cpu, KVM_SET_DEVICE_ATTR, &offset), "set the TSC's offset");
        if (kvm->clock.tsc_deadline[i])
            (void)kvm_msr_set(cpu, MSR_TSC_DEADLINE, kvm->clock.tsc_deadline[i]);
    }
    kvm->clock.running = true;
}
