/*
 * What the guest is told of its CPU (CPUID: Intel SDM volume 2A; AMD APM volume 3 appendix E): what KVM can
 * give on this host, less what Ferry does not carry from host to host, with the VM's own topology. It is
 * decided once, when the VM starts, and travels with the VM: it keeps it until it is powered off.
 */
#include "machine/x86_64/kvm_accel.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LEAF_FEATURES     0x1
#define LEAF_EXTENDED     0x7
#define LEAF_PMU          0xa
#define LEAF_TOPOLOGY     0xb
#define LEAF_XSAVE        0xd
#define LEAF_TOPOLOGY2    0x1f
#define LEAF_KVM_FEATURES 0x40000001
#define LEAF_AMD_FEATURES 0x80000001
#define LEAF_AMD_SIZES    0x80000008
#define LEAF_AMD_SVM      0x8000000a
#define LEAF_AMD_TOPOLOGY 0x8000001e
#define LEAF_AMD_PMU      0x80000022

#define F1_ECX_VMX          (1u << 5)
#define F1_ECX_X2APIC       (1u << 21)
#define F1_ECX_TSC_DEADLINE (1u << 24)
#define F1_ECX_OSXSAVE      (1u << 27)
#define F1_ECX_HYPERVISOR   (1u << 31)
#define F1_EDX_HTT          (1u << 28)
#define AMD_ECX_CMP_LEGACY  (1u << 1)
#define AMD_ECX_SVM         (1u << 2)
#define AMD_ECX_PERFCTR     (1u << 23)

#define TOPOLOGY_SMT  0x100
#define TOPOLOGY_CORE 0x201

/* Bytes of an entry as it is saved: function, index, flags, EAX, EBX, ECX, EDX. */
#define SAVED_ENTRY_SIZE 28

static size_t table_size(void)
{
    return sizeof(struct kvm_cpuid2) + KVM_CPUID_ENTRIES_MAX * sizeof(struct kvm_cpuid_entry2);
}

static struct kvm_cpuid2 *table_new(struct ferry_error *err)
{
    struct kvm_cpuid2 *table = calloc(1, table_size());

    if (!table)
        error_set(err, -ENOMEM, "out of memory for the CPUID table");
    return table;
}

static const struct kvm_cpuid_entry2 *find(const struct kvm_cpuid2 *table, uint32_t function, uint32_t index)
{
    for (uint32_t i = 0; i < table->nent; i++) {
        const struct kvm_cpuid_entry2 *entry = &table->entries[i];

        if (entry->function == function &&
            (entry->index == index || !(entry->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX)))
            return entry;
    }
    return NULL;
}

/* ---- making it ---- */

static unsigned topology_shift(unsigned cpus)
{
    unsigned shift = 0;

    while (1u << shift < cpus)
        shift++;
    return shift;
}

/* One package of single-threaded cores; each vCPU puts its own number in later. */
static void entry_adjust(struct kvm_cpuid_entry2 *entry, unsigned cpus, bool tsc_deadline)
{
    switch (entry->function) {
    case LEAF_FEATURES:
        entry->ebx = (entry->ebx & 0x0000ffff) | cpus << 16;
        entry->ecx &= ~(F1_ECX_VMX | F1_ECX_OSXSAVE | F1_ECX_TSC_DEADLINE);
        entry->ecx |= F1_ECX_HYPERVISOR | F1_ECX_X2APIC | (tsc_deadline ? F1_ECX_TSC_DEADLINE : 0);
        entry->edx = cpus > 1 ? entry->edx | F1_EDX_HTT : entry->edx & ~F1_EDX_HTT;
        break;
    case LEAF_AMD_FEATURES:
        entry->ecx &= ~(AMD_ECX_SVM | AMD_ECX_PERFCTR | AMD_ECX_CMP_LEGACY);
        entry->ecx |= cpus > 1 ? AMD_ECX_CMP_LEGACY : 0;
        break;
    case LEAF_AMD_SIZES:
        entry->ecx = topology_shift(cpus) << 12 | (cpus - 1);
        break;
    case LEAF_PMU: /* counters and nested guests do not travel */
    case LEAF_AMD_PMU:
    case LEAF_AMD_SVM:
        entry->eax = entry->ebx = entry->ecx = entry->edx = 0;
        break;
    default:
        break;
    }
}

static void add_topology(struct kvm_cpuid2 *table, unsigned cpus)
{
    const struct kvm_cpuid_entry2 levels[] = {
        {.function = LEAF_TOPOLOGY, .index = 0, .ebx = 1, .ecx = TOPOLOGY_SMT},
        {.function = LEAF_TOPOLOGY,
         .index = 1,
         .eax = topology_shift(cpus),
         .ebx = cpus,
         .ecx = TOPOLOGY_CORE},
    };

    for (size_t i = 0; i < ARRAY_SIZE(levels) && table->nent < KVM_CPUID_ENTRIES_MAX; i++) {
        table->entries[table->nent] = levels[i];
        table->entries[table->nent++].flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    }
}

static void make_table(struct kvm_cpuid2 *table, const struct kvm_cpuid2 *supported, unsigned cpus,
                       bool tsc_deadline)
{
    for (uint32_t i = 0; i < supported->nent; i++) {
        struct kvm_cpuid_entry2 entry = supported->entries[i];

        if (entry.function == LEAF_TOPOLOGY || entry.function == LEAF_TOPOLOGY2)
            continue;
        entry_adjust(&entry, cpus, tsc_deadline);
        table->entries[table->nent++] = entry;
    }
    add_topology(table, cpus);
}

int kvm_cpuid_init(struct kvm_accel *kvm, unsigned cpus, struct ferry_error *err)
{
    struct kvm_cpuid2 *supported = table_new(err);
    bool tsc_deadline =
        kvm_ioctl(kvm->vm_fd, KVM_CHECK_EXTENSION, (const void *)(intptr_t)KVM_CAP_TSC_DEADLINE_TIMER) > 0;
    int result;

    kvm->host_cpuid = supported ? table_new(err) : NULL;
    kvm->cpuid = kvm->host_cpuid ? table_new(err) : NULL;
    if (!kvm->cpuid) {
        free(supported);
        return -ENOMEM;
    }
    supported->nent = KVM_CPUID_ENTRIES_MAX;
    result = kvm_ioctl(kvm->kvm_fd, KVM_GET_SUPPORTED_CPUID, supported);
    if (result < 0) {
        error_set_errno(err, result, "KVM does not say what CPU it can give");
    } else {
        make_table(kvm->host_cpuid, supported, cpus, tsc_deadline);
        memcpy(kvm->cpuid, kvm->host_cpuid, table_size());
    }
    free(supported);
    return result < 0 ? result : 0;
}

int kvm_cpuid_apply(struct kvm_cpu *cpu, struct ferry_error *err)
{
    struct kvm_cpuid2 *table = table_new(err);
    int result;

    if (!table)
        return -ENOMEM;
    memcpy(table, cpu->kvm->cpuid, table_size());
    for (uint32_t i = 0; i < table->nent; i++) {
        struct kvm_cpuid_entry2 *entry = &table->entries[i];

        if (entry->function == LEAF_FEATURES)
            entry->ebx = (entry->ebx & 0x00ffffff) | cpu->index << 24;
        else if (entry->function == LEAF_TOPOLOGY)
            entry->edx = cpu->index;
        else if (entry->function == LEAF_AMD_TOPOLOGY)
            entry->eax = entry->ebx = cpu->index;
    }
    result = kvm_ioctl(cpu->fd, KVM_SET_CPUID2, table);
    free(table);
    return result < 0 ? error_set_errno(err, result, "KVM does not take the CPUID of vCPU %u", cpu->index)
                      : 0;
}

/* ---- carrying it over ---- */

void kvm_cpuid_save(const struct kvm_accel *kvm, struct buffer *out)
{
    for (uint32_t i = 0; i < kvm->cpuid->nent; i++) {
        const struct kvm_cpuid_entry2 *entry = &kvm->cpuid->entries[i];

        buffer_put_u32(out, entry->function);
        buffer_put_u32(out, entry->index);
        buffer_put_u32(out, entry->flags);
        buffer_put_u32(out, entry->eax);
        buffer_put_u32(out, entry->ebx);
        buffer_put_u32(out, entry->ecx);
        buffer_put_u32(out, entry->edx);
    }
}

static int parse(struct kvm_cpuid2 *table, const struct buffer *saved, struct ferry_error *err)
{
    struct reader in = reader_init(saved->data, saved->size);

    if (saved->size % SAVED_ENTRY_SIZE || saved->size / SAVED_ENTRY_SIZE > KVM_CPUID_ENTRIES_MAX)
        return error_set(err, -EINVAL, "cpuid: entries: %zu bytes are not 1 to %d entries", saved->size,
                         KVM_CPUID_ENTRIES_MAX);
    while (reader_left(&in)) {
        struct kvm_cpuid_entry2 *entry = &table->entries[table->nent++];

        entry->function = reader_get_u32(&in);
        entry->index = reader_get_u32(&in);
        entry->flags = reader_get_u32(&in);
        entry->eax = reader_get_u32(&in);
        entry->ebx = reader_get_u32(&in);
        entry->ecx = reader_get_u32(&in);
        entry->edx = reader_get_u32(&in);
    }
    return 0;
}

enum cpuid_register { CPUID_EAX, CPUID_EBX, CPUID_ECX, CPUID_EDX };

static uint32_t get_register(const struct kvm_cpuid_entry2 *entry, enum cpuid_register which)
{
    if (!entry)
        return 0;
    switch (which) {
    case CPUID_EAX:
        return entry->eax;
    case CPUID_EBX:
        return entry->ebx;
    case CPUID_ECX:
        return entry->ecx;
    case CPUID_EDX:
        break;
    }
    return entry->edx;
}

/* Where each bit is a feature. What a guest was given must be here. */
static int check_features(const struct kvm_cpuid2 *given, const struct kvm_cpuid2 *host,
                          struct ferry_error *err)
{
    static const struct {
        uint32_t function, index;
        enum cpuid_register which;
    } words[] = {
        {LEAF_FEATURES, 0, CPUID_ECX},     {LEAF_FEATURES, 0, CPUID_EDX},
        {LEAF_EXTENDED, 0, CPUID_EBX},     {LEAF_EXTENDED, 0, CPUID_ECX},
        {LEAF_EXTENDED, 0, CPUID_EDX},     {LEAF_EXTENDED, 1, CPUID_EAX},
        {LEAF_XSAVE, 0, CPUID_EAX},        {LEAF_XSAVE, 0, CPUID_EDX},
        {LEAF_XSAVE, 1, CPUID_EAX},        {LEAF_KVM_FEATURES, 0, CPUID_EAX},
        {LEAF_AMD_FEATURES, 0, CPUID_ECX}, {LEAF_AMD_FEATURES, 0, CPUID_EDX},
        {LEAF_AMD_SIZES, 0, CPUID_EBX},
    };
    static const char *const names[] = {"EAX", "EBX", "ECX", "EDX"};

    for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
        uint32_t want = get_register(find(given, words[i].function, words[i].index), words[i].which);
        uint32_t have = get_register(find(host, words[i].function, words[i].index), words[i].which);

        if (want & ~have)
            return error_set(err, -EOPNOTSUPP,
                             "this host's CPU lacks features that the VM was given: CPUID leaf 0x%x.%u %s, "
                             "bits 0x%x",
                             words[i].function, words[i].index, names[words[i].which], want & ~have);
    }
    return 0;
}

static int check_vendor(const struct kvm_cpuid2 *given, const struct kvm_cpuid2 *host,
                        struct ferry_error *err)
{
    const struct kvm_cpuid_entry2 *a = find(given, 0, 0), *b = find(host, 0, 0);

    if (!a || !b)
        return error_set(err, -EINVAL, "cpuid: entries: there is no leaf 0");
    if (a->ebx != b->ebx || a->ecx != b->ecx || a->edx != b->edx)
        return error_set(err, -EOPNOTSUPP, "this host's CPU is of another vendor than the VM's");
    return 0;
}

int kvm_cpuid_load(struct kvm_accel *kvm, const struct buffer *saved, struct ferry_error *err)
{
    struct kvm_cpuid2 *table = table_new(err);
    int result;

    if (!table)
        return -ENOMEM;
    result = parse(table, saved, err);
    if (!result)
        result = check_vendor(table, kvm->host_cpuid, err);
    if (!result)
        result = check_features(table, kvm->host_cpuid, err);
    if (result) {
        free(table);
        return result;
    }
    free(kvm->cpuid);
    kvm->cpuid = table;
    for (unsigned i = 0; i < kvm->cpu_count && !result; i++)
        result = kvm_cpuid_apply(&kvm->cpus[i], err);
    return result;
}
