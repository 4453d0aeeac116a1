/* What the KVM of this host can give (Linux, Documentation/virt/kvm/api.rst, 4.46 KVM_GET_SUPPORTED_CPUID).
 */
#include "cpu/kvm_host.h"

#include "base/error.h"
#include "cpu/cpu.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#ifdef __x86_64__

#include <linux/kvm.h>

#define ENTRIES_MAX 256

union one_msr {
    struct kvm_msrs msrs;
    uint8_t room[sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)];
};

uint64_t kvm_host_feature_msr(int kvm_fd, uint32_t msr)
{
    union one_msr one = {.msrs.nmsrs = 1};

    one.msrs.entries[0] = (struct kvm_msr_entry){.index = msr};
    return ioctl(kvm_fd, KVM_GET_MSRS, &one) == 1 ? one.msrs.entries[0].data : 0;
}

/* Whether a vCPU that is told of TABLE takes VALUE for MSR: a para-virtualised KVM may list it all the same.
 */
static bool vcpu_takes(int kvm_fd, const struct kvm_cpuid2 *table, uint32_t msr, uint64_t value)
{
    union one_msr one = {.msrs.nmsrs = 1};
    int vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, 0);
    int vcpu_fd = vm_fd < 0 ? -1 : ioctl(vm_fd, KVM_CREATE_VCPU, 0);
    bool taken;

    one.msrs.entries[0] = (struct kvm_msr_entry){.index = msr, .data = value};
    taken =
        vcpu_fd >= 0 && ioctl(vcpu_fd, KVM_SET_CPUID2, table) >= 0 && ioctl(vcpu_fd, KVM_SET_MSRS, &one) == 1;
    if (vcpu_fd >= 0)
        close(vcpu_fd);
    if (vm_fd >= 0)
        close(vm_fd);
    return taken;
}

int cpu_of_host(struct cpu *cpu, struct ferry_error *err)
{
    struct kvm_cpuid2 *table = calloc(1, sizeof(*table) + ENTRIES_MAX * sizeof(table->entries[0]));
    struct cpu_leaf *leaves = calloc(ENTRIES_MAX + 1, sizeof(*leaves));
    uint64_t capabilities = 0;
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    int result = 0;

    memset(cpu, 0, sizeof(*cpu));
    if (!table || !leaves)
        result = error_set(err, -ENOMEM, "out of memory for the CPUID table");
    else if (fd < 0)
        result = error_set_errno(err, -errno, "cannot open /dev/kvm");
    if (!result) {
        table->nent = ENTRIES_MAX;
        if (ioctl(fd, KVM_GET_SUPPORTED_CPUID, table) < 0)
            result = error_set_errno(err, -errno, "KVM does not say what CPU it can give");
        capabilities = kvm_host_feature_msr(fd, CPU_MSR_ARCH_CAPABILITIES);
        if (!result && capabilities && !vcpu_takes(fd, table, CPU_MSR_ARCH_CAPABILITIES, capabilities))
            capabilities = 0;
    }
    for (uint32_t i = 0; !result && i < table->nent && i < ENTRIES_MAX; i++) {
        const struct kvm_cpuid_entry2 *entry = &table->entries[i];

        leaves[i] = (struct cpu_leaf){
            entry->function, entry->index, {entry->eax, entry->ebx, entry->ecx, entry->edx}};
    }
    if (!result) {
        uint32_t count = table->nent < ENTRIES_MAX ? table->nent : ENTRIES_MAX;

        leaves[count] = cpu_leaf_of_msr(CPU_MSR_ARCH_CAPABILITIES, capabilities);
        cpu_from_leaves(cpu, leaves, count + 1);
    }
    if (fd >= 0)
        close(fd);
    free(leaves);
    free(table);
    return result;
}

#else

uint64_t kvm_host_feature_msr(int kvm_fd, uint32_t msr)
{
    return 0;
}

int cpu_of_host(struct cpu *cpu, struct ferry_error *err)
{
    memset(cpu, 0, sizeof(*cpu));
    return error_set(err, -EOPNOTSUPP, "this host is not an x86-64");
}

#endif
