/*
 * Which MSRs are state, and moving them: those that KVM lists, and those that it has beside its list, as far
 * as this CPU has them.
 */
#include "machine/x86_64/kvm_accel.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MSR_TSC          0x10
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_BATCH        64

struct range {
    uint32_t first, last;
};

/* What a guest can write though KVM does not list it (Intel SDM volume 4; AMD APM volume 2, appendix A): */
static const struct range unlisted[] = {
    {0x1d9, 0x1d9}, /* DEBUGCTL */
    {0x200, 0x20f}, /* MTRRs of variable ranges */
    {0x250, 0x250}, /* MTRRs of fixed ranges */
    {0x258, 0x259}, /* the same */
    {0x268, 0x26f}, /* the same */
    {0x2ff, 0x2ff}, /* the memory type outside of them */
    {0x400, 0x47f}, /* machine check: 32 banks of four */
    {0xda0, 0xda0}, /* XSS */
};

/*
 * What KVM lists and is no state: the clocks are kvm_clock.c's; and MSRs of Hyper-V's interface, from which
 * KVM keeps a guest that CPUID does not tell of it. (Two of these count the host's time.)
 */
static const struct range left_out[] = {
    {MSR_TSC, MSR_TSC},
    {MSR_TSC_DEADLINE, MSR_TSC_DEADLINE},
    {0x40000000, 0x400001ff},
};

/* What a VM is given with its CPU, as by CPUID, and keeps over a reset. After a vCPU has run KVM takes no
 * other value for most of them. */
static const struct range given[] = {
    {0x8b, 0x8b},                                           /* UCODE_REV */
    {0xce, 0xce},                                           /* PLATFORM_INFO */
    {CPU_MSR_ARCH_CAPABILITIES, CPU_MSR_ARCH_CAPABILITIES}, /* with kvm_cpuid.c's check */
    {0x345, 0x345},                                         /* PERF_CAPABILITIES */
    {0xc0010140, 0xc0010141},                               /* OSVW: errata */
    {0xc0011029, 0xc0011029},                               /* DE_CFG */
};

union msr_batch {
    struct kvm_msrs msrs;
    uint8_t room[sizeof(struct kvm_msrs) + MSR_BATCH * sizeof(struct kvm_msr_entry)];
};

int kvm_msr_get(const struct kvm_cpu *cpu, uint32_t msr, uint64_t *value)
{
    union msr_batch batch = {.msrs.nmsrs = 1};
    int result;

    batch.msrs.entries[0] = (struct kvm_msr_entry){.index = msr};
    result = kvm_ioctl(cpu->fd, KVM_GET_MSRS, &batch);
    *value = batch.msrs.entries[0].data;
    return result < 0 ? result : result == 1 ? 0 : -ENOENT;
}

int kvm_msr_set(const struct kvm_cpu *cpu, uint32_t msr, uint64_t value)
{
    union msr_batch batch = {.msrs.nmsrs = 1};
    int result;

    batch.msrs.entries[0] = (struct kvm_msr_entry){.index = msr, .data = value};
    result = kvm_ioctl(cpu->fd, KVM_SET_MSRS, &batch);
    return result < 0 ? result : result == 1 ? 0 : -EINVAL;
}

/* ---- which they are ---- */

static bool in_ranges(uint32_t msr, const struct range *ranges, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (msr >= ranges[i].first && msr <= ranges[i].last)
            return true;
    }
    return false;
}

static bool is_saved(const struct kvm_accel *kvm, uint32_t msr)
{
    for (size_t i = 0; i < kvm->msr_count; i++) {
        if (kvm->msrs[i] == msr)
            return true;
    }
    return false;
}

/* What this CPU does not have, or what cannot be written back, is not state. */
static void add_msr(struct kvm_accel *kvm, uint32_t msr)
{
    uint64_t value;

    if (kvm->msr_count < KVM_MSRS_MAX && !is_saved(kvm, msr) &&
        kvm_msr_get(&kvm->cpus[0], msr, &value) == 0 && kvm_msr_set(&kvm->cpus[0], msr, value) == 0)
        kvm->msrs[kvm->msr_count++] = msr;
}

static void add_ranges(struct kvm_accel *kvm, const struct range *ranges, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        for (uint32_t msr = ranges[i].first; msr <= ranges[i].last; msr++)
            add_msr(kvm, msr);
    }
}

int kvm_msrs_find(struct kvm_accel *kvm, struct ferry_error *err)
{
    struct kvm_msr_list *list = calloc(1, sizeof(*list) + KVM_MSRS_MAX * sizeof(list->indices[0]));
    int result;

    if (!list)
        return error_set(err, -ENOMEM, "out of memory for the list of MSRs");
    list->nmsrs = KVM_MSRS_MAX;
    result = kvm_ioctl(kvm->kvm_fd, KVM_GET_MSR_INDEX_LIST, list);
    if (result < 0) {
        free(list);
        return error_set_errno(err, result, "KVM does not list its MSRs");
    }
    for (uint32_t i = 0; i < list->nmsrs; i++) {
        if (!in_ranges(list->indices[i], left_out, ARRAY_SIZE(left_out)) &&
            !in_ranges(list->indices[i], given, ARRAY_SIZE(given)))
            add_msr(kvm, list->indices[i]);
    }
    free(list);
    add_ranges(kvm, unlisted, ARRAY_SIZE(unlisted));
    return 0;
}

void kvm_msrs_find_given(struct kvm_accel *kvm)
{
    add_ranges(kvm, given, ARRAY_SIZE(given));
}

/* ---- moving them ---- */

int kvm_msrs_save(const struct kvm_cpu *cpu, struct buffer *out, struct ferry_error *err)
{
    const struct kvm_accel *kvm = cpu->kvm;
    size_t first = 0;

    while (first < kvm->msr_count) {
        size_t left = kvm->msr_count - first;
        union msr_batch batch = {.msrs.nmsrs = (uint32_t)(left < MSR_BATCH ? left : MSR_BATCH)};
        int result;

        for (uint32_t i = 0; i < batch.msrs.nmsrs; i++)
            batch.msrs.entries[i].index = kvm->msrs[first + i];
        result = kvm_ioctl(cpu->fd, KVM_GET_MSRS, &batch);
        if (result < 0)
            return error_set_errno(err, result, "KVM does not give MSRs");
        for (int i = 0; i < result; i++) {
            buffer_put_u32(out, batch.msrs.entries[i].index);
            buffer_put_u64(out, batch.msrs.entries[i].data);
        }
        /* One that it does not give is of a feature which this host has and its guest, who came from another
         * one, has not. */
        first += (uint32_t)result < batch.msrs.nmsrs ? (size_t)result + 1 : (size_t)result;
    }
    return 0;
}

/* How far it got. An MSR that KVM does not take, and that is 0, is not there: KVM versions
 * differ in whether they say so of a feature that the guest was not given. */
static int set_batch(const struct kvm_cpu *cpu, const union msr_batch *batch)
{
    uint32_t first = 0;

    while (first < batch->msrs.nmsrs) {
        union msr_batch rest = {.msrs.nmsrs = batch->msrs.nmsrs - first};
        int result;

        memcpy(rest.msrs.entries, &batch->msrs.entries[first],
               rest.msrs.nmsrs * sizeof(rest.msrs.entries[0]));
        result = kvm_ioctl(cpu->fd, KVM_SET_MSRS, &rest);
        if (result < 0)
            return result;
        first += (uint32_t)result;
        if (first < batch->msrs.nmsrs && batch->msrs.entries[first].data)
            return (int)first;
        first += first < batch->msrs.nmsrs;
    }
    return (int)first;
}

int kvm_msrs_load(const struct kvm_cpu *cpu, const struct buffer *saved, struct ferry_error *err)
{
    struct reader in = reader_init(saved->data, saved->size);

    if (saved->size % KVM_SAVED_MSR_SIZE)
        return error_set(err, -EINVAL, "vcpu%u: msrs: %zu bytes are no whole number of MSRs", cpu->index,
                         saved->size);
    while (reader_left(&in)) {
        union msr_batch batch = {.msrs.nmsrs = 0};
        int result;

        while (reader_left(&in) && batch.msrs.nmsrs < MSR_BATCH) {
            struct kvm_msr_entry *entry = &batch.msrs.entries[batch.msrs.nmsrs++];

            entry->index = reader_get_u32(&in);
            entry->data = reader_get_u64(&in);
            if (entry->index != CPU_MSR_ARCH_CAPABILITIES)
                continue;
            result = kvm_arch_capabilities_load(cpu, entry->data, err);
            if (result)
                return result;
            batch.msrs.nmsrs--;
        }
        result = set_batch(cpu, &batch);
        if (result < 0)
            return error_set_errno(err, result, "vcpu%u: KVM does not take MSRs", cpu->index);
        if ((uint32_t)result < batch.msrs.nmsrs)
            return error_set(err, -EOPNOTSUPP, "vcpu%u: this host's KVM does not take 0x%llx for MSR 0x%x",
                             cpu->index, (unsigned long long)batch.msrs.entries[result].data,
                             batch.msrs.entries[result].index);
    }
    return 0;
}
