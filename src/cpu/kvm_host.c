/* What the KVM of this host can give (Linux, Documentation/virt/kvm/api.rst, 4.46 KVM_GET_SUPPORTED_CPUID).
 */
#include "cpu/cpu.h"

#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#ifdef __x86_64__

#include <linux/kvm.h>

#define ENTRIES_MAX 256

int cpu_of_host(struct cpu *cpu, struct ferry_error *err)
{
    struct kvm_cpuid2 *table = calloc(1, sizeof(*table) + ENTRIES_MAX * sizeof(table->entries[0]));
    struct cpu_leaf *leaves = calloc(ENTRIES_MAX, sizeof(*leaves));
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
    }
    for (uint32_t i = 0; !result && i < table->nent && i < ENTRIES_MAX; i++) {
        const struct kvm_cpuid_entry2 *entry = &table->entries[i];

        leaves[i] = (struct cpu_leaf){
            entry->function, entry->index, {entry->eax, entry->ebx, entry->ecx, entry->edx}};
    }
    if (!result)
        cpu_from_leaves(cpu, leaves, table->nent);
    if (fd >= 0)
        close(fd);
    free(leaves);
    free(table);
    return result;
}

#else

int cpu_of_host(struct cpu *cpu, struct ferry_error *err)
{
    memset(cpu, 0, sizeof(*cpu));
    return error_set(err, -EOPNOTSUPP, "this host is not an x86-64");
}

#endif
