/* Accelerator "kvm": its table of functions, its life, memory and interrupt lines. */
#include "machine/x86_64/kvm_accel.h"

#include "base/error.h"
#include "machine/x86_64/layout.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define KVM_DEVICE "/dev/kvm"

int kvm_ioctl(int fd, unsigned long request, const void *argument)
{
    int result;

    do
        result = ioctl(fd, request, argument);
    while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : result;
}

/* ---- what the host has ---- */

static int kvm_open(int *out, struct ferry_error *err)
{
    int fd = open(KVM_DEVICE, O_RDWR | O_CLOEXEC);
    int version;

    if (fd < 0 && errno == ENOENT)
        return error_set(err, -ENOENT, "there is no " KVM_DEVICE ": KVM is missing or switched off");
    if (fd < 0)
        return error_set_errno(err, -errno, "cannot open " KVM_DEVICE);
    version = kvm_ioctl(fd, KVM_GET_API_VERSION, NULL);
    if (version != KVM_API_VERSION) {
        close(fd);
        return error_set(err, -EOPNOTSUPP, KVM_DEVICE " answers with version %d of its interface, not %d",
                         version, KVM_API_VERSION);
    }
    *out = fd;
    return 0;
}

static int check_capabilities(int vm_fd, struct ferry_error *err)
{
    static const struct {
        int number;
        const char *name;
    } needed[] = {
        {KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"},
        {KVM_CAP_PIT2, "KVM_CAP_PIT2"},
        {KVM_CAP_PIT_STATE2, "KVM_CAP_PIT_STATE2"},
        {KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},
        {KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
        {KVM_CAP_SREGS2, "KVM_CAP_SREGS2"},
        {KVM_CAP_XSAVE, "KVM_CAP_XSAVE"},
        {KVM_CAP_XCRS, "KVM_CAP_XCRS"},
        {KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS"},
        {KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"},
        {KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"},
        {KVM_CAP_ADJUST_CLOCK, "KVM_CAP_ADJUST_CLOCK"},
        {KVM_CAP_GET_TSC_KHZ, "KVM_CAP_GET_TSC_KHZ"},
        {KVM_CAP_VCPU_ATTRIBUTES, "KVM_CAP_VCPU_ATTRIBUTES"},
        {KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(needed); i++)
        if (kvm_ioctl(vm_fd, KVM_CHECK_EXTENSION, (const void *)(intptr_t)needed[i].number) <= 0)
            return error_set(err, -EOPNOTSUPP,
                             "this host's KVM has no %s; Ferry needs that of Linux 5.16 or newer",
                             needed[i].name);
    return 0;
}

static int kvm_probe(struct ferry_error *err)
{
    int fd = -1;
    int vm_fd;
    int result = kvm_open(&fd, err);

    if (result)
        return result;
    vm_fd = kvm_ioctl(fd, KVM_CREATE_VM, NULL);
    if (vm_fd < 0) {
        result = error_set_errno(err, vm_fd, "KVM makes no virtual machine");
    } else {
        result = check_capabilities(vm_fd, err);
        close(vm_fd);
    }
    close(fd);
    return result;
}

/* ---- life ---- */

static int enable_capability(const struct kvm_accel *kvm, uint32_t capability, uint64_t argument,
                             const char *name, struct ferry_error *err)
{
    struct kvm_enable_cap enable = {.cap = capability, .args = {argument}};
    int result = kvm_ioctl(kvm->vm_fd, KVM_ENABLE_CAP, &enable);

    return result < 0 ? error_set_errno(err, result, "KVM does not switch %s on", name) : 0;
}

/* All that is one for the VM, in the order KVM wants it: interrupt controllers before vCPUs. */
static int kvm_create_vm(struct kvm_accel *kvm, const struct accel_config *config, struct ferry_error *err)
{
    uint64_t identity = X86_64_KVM_IDENTITY;
    struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
    int result = kvm_open(&kvm->kvm_fd, err);

    if (result)
        return result;
    kvm->vm_fd = kvm_ioctl(kvm->kvm_fd, KVM_CREATE_VM, NULL);
    if (kvm->vm_fd < 0)
        return error_set_errno(err, kvm->vm_fd, "KVM makes no virtual machine");
    result = check_capabilities(kvm->vm_fd, err);
    if (result)
        return result;
    result = kvm_ioctl(kvm->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity);
    if (result >= 0)
        result = kvm_ioctl(kvm->vm_fd, KVM_SET_TSS_ADDR, (const void *)X86_64_KVM_TSS);
    if (result >= 0)
        result = kvm_ioctl(kvm->vm_fd, KVM_CREATE_IRQCHIP, NULL);
    if (result >= 0)
        result = kvm_ioctl(kvm->vm_fd, KVM_CREATE_PIT2, &pit);
    if (result < 0)
        return error_set_errno(err, result, "KVM makes no interrupt controllers");
    if (config->tracking != MEMORY_TRACKING_LOG)
        result = kvm_ring_init(kvm, config->vcpus, config->tracking == MEMORY_TRACKING_RING, err);
    if (!result && !kvm->ring_entries)
        result =
            enable_capability(kvm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
                              "manual protection of the dirty log", err);
    for (size_t i = 0; i < memory_region_count(kvm->memory) && !result; i++)
        result = kvm_set_slot(kvm, i, false, err);
    return result;
}

static void kvm_destroy(struct accel *accel)
{
    struct kvm_accel *kvm;

    if (!accel)
        return;
    kvm = kvm_accel_of(accel);
    for (unsigned i = 0; i < kvm->cpu_count; i++)
        kvm_cpu_destroy(&kvm->cpus[i]);
    kvm_state_destroy(kvm);
    if (kvm->vm_fd >= 0)
        close(kvm->vm_fd);
    if (kvm->kvm_fd >= 0)
        close(kvm->kvm_fd);
    pthread_mutex_destroy(&kvm->ring_lock);
    free(kvm->host_cpuid);
    free(kvm->cpuid);
    free(kvm);
}

/* No exit to user space, and for whatever size of write where KVM can: then it need not even decode the
 * instruction. It lets go of the eventfd with the VM. */
static int kvm_doorbell(void *opaque, uint64_t guest_addr, int event_fd)
{
    const struct kvm_accel *kvm = opaque;
    bool any = kvm_ioctl(kvm->vm_fd, KVM_CHECK_EXTENSION, (const void *)KVM_CAP_IOEVENTFD_ANY_LENGTH) > 0;
    struct kvm_ioeventfd doorbell = {.addr = guest_addr, .len = any ? 0 : 4, .fd = event_fd};

    return kvm_ioctl(kvm->vm_fd, KVM_IOEVENTFD, &doorbell);
}

static int kvm_create(struct accel **out, const struct accel_config *config, struct ferry_error *err)
{
    struct kvm_accel *kvm;
    int result;

    if (config->vcpus < 1 || config->vcpus > ACCEL_VCPUS_MAX)
        return error_set(err, -EINVAL, "a VM on KVM has 1 to %d vCPUs, not %u", ACCEL_VCPUS_MAX,
                         config->vcpus);
    kvm = calloc(1, sizeof(*kvm));
    if (!kvm)
        return error_set(err, -ENOMEM, "out of memory for a VM on KVM");
    kvm->accel.ops = &accel_kvm;
    kvm->memory = config->memory;
    kvm->bus = config->bus;
    kvm->log = config->log;
    kvm->platform = *config->platform;
    kvm->kvm_fd = kvm->vm_fd = -1;
    pthread_mutex_init(&kvm->ring_lock, NULL);
    result = kvm_create_vm(kvm, config, err);
    if (!result)
        result = kvm_cpuid_init(kvm, config->vcpus, config->cpu_features, err);
    for (unsigned i = 0; i < config->vcpus && !result; i++)
        result = kvm_cpu_create(kvm, i, err);
    if (!result)
        result = kvm_clock_init(kvm, err);
    if (!result)
        result = kvm_state_init(kvm, err);
    if (!result)
        result = pc_ports_init(&kvm->ports, kvm->bus, &kvm->platform, err);
    if (result) {
        kvm_destroy(&kvm->accel);
        return result;
    }
    mmio_bus_set_doorbells(kvm->bus, kvm_doorbell, kvm);
    *out = &kvm->accel;
    return 0;
}

static int kvm_reset(struct accel *accel, const struct accel_boot *boot, struct ferry_error *err)
{
    struct kvm_accel *kvm = kvm_accel_of(accel);
    int result = kvm_state_reset(kvm, err);

    if (result)
        return error_prefix(err, result, "cannot reset the VM");
    kvm_clock_reset(kvm);
    kvm->ports.pm1_enable = 0;
    return kvm_cpu_boot(&kvm->cpus[0], boot, err);
}

static void kvm_irq_set(struct accel *accel, unsigned line, bool level)
{
    struct kvm_irq_level irq = {.irq = line, .level = level};
    int result = kvm_ioctl(kvm_accel_of(accel)->vm_fd, KVM_IRQ_LINE, &irq);

    if (result < 0)
        log_error(kvm_accel_of(accel)->log, "KVM does not take interrupt %u: %s", line, strerror(-result));
}

const struct accel_ops accel_kvm = {
    .name = "kvm",
    .machine = "x86_64",
    .probe = kvm_probe,
    .create = kvm_create,
    .destroy = kvm_destroy,
    .reset = kvm_reset,
    .vcpu_run = kvm_vcpu_run,
    .vcpu_kick = kvm_vcpu_kick,
    .cpu_given = kvm_cpu_given,
    .irq_set = kvm_irq_set,
    .sections = kvm_sections,
    .section_save = kvm_section_save,
    .section_load = kvm_section_load,
    .clock_advance = kvm_clock_advance,
    .clock_stop = kvm_clock_stop,
    .clock_start = kvm_clock_start,
    .dirty_start = kvm_dirty_start,
    .dirty_fetch = kvm_dirty_fetch,
    .dirty_stop = kvm_dirty_stop,
    .dirty_describe = kvm_dirty_describe,
    .throttle = kvm_throttle,
    .vcpu_throttle = kvm_vcpu_throttle,
    .vcpu_dirtied = kvm_vcpu_dirtied,
};
