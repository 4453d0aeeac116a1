/*
 * What the guest is told of its CPU (CPUID: Intel SDM volume 2A; AMD APM volume 3 appendix E): what KVM can
 * give on this host, less what Ferry does not carry from host to host, with the VM's own topology. It is
 * decided once, when the VM starts, and travels with the VM: it keeps it until it is powered off.
 */
#include "machine/x86_64/kvm_accel.h"

#include "base/error.h"
#include "cpu/kvm_host.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LEAF_FEATURES     0x1
#define LEAF_PMU          0xa
#define LEAF_TOPOLOGY     0xb
#define LEAF_XSAVE        0xd
#define LEAF_TOPOLOGY2    0x1f
#define LEAF_AMD_FEATURES 0x80000001
#define LEAF_AMD_SIZES    0x80000008
#define LEAF_AMD_SVM      0x8000000a
#define LEAF_AMD_TOPOLOGY 0x8000001e
#define LEAF_AMD_PMU      0x80000022

#define F1_ECX_VMX          (1u << 5)
#define F1_ECX_PDCM         (1u << 15)
#define F1_ECX_X2APIC       (1u << 21)
#define F1_ECX_TSC_DEADLINE (1u << 24)
#define F1_ECX_OSXSAVE      (1u << 27)
#define F1_ECX_HYPERVISOR   (1u << 31)
#define F1_EDX_HTT          (1u << 28)
#define AMD_ECX_CMP_LEGACY  (1u << 1)
#define AMD_ECX_SVM         (1u << 2)
#define AMD_ECX_PERFCTR     (1u << 23)

#define MSR_PERF_CAPABILITIES 0x345

#define XSAVE_LEGACY_SIZE 576 /* what is always there, and the header (SDM volume 1, 13.4) */

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
        entry->ecx &= ~(F1_ECX_VMX | F1_ECX_PDCM | F1_ECX_OSXSAVE | F1_ECX_TSC_DEADLINE);
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

/* ---- what of it the guest gets ---- */

static struct kvm_cpuid_entry2 *find_mutable(struct kvm_cpuid2 *table, uint32_t function, uint32_t index)
{
    return (struct kvm_cpuid_entry2 *)find(table, function, index);
}

static uint32_t *register_of(struct kvm_cpuid_entry2 *entry, enum cpu_register which)
{
    uint32_t *const registers[] = {
        [CPU_EAX] = &entry->eax, [CPU_EBX] = &entry->ebx, [CPU_ECX] = &entry->ecx, [CPU_EDX] = &entry->edx};

    return registers[which];
}

static uint32_t read_register(const struct kvm_cpuid_entry2 *entry, enum cpu_register which)
{
    struct kvm_cpuid_entry2 copy = *entry;

    return *register_of(&copy, which);
}

/* Which components of the extended state (SDM volume 1, 13.1) the features in SET use. */
static uint64_t xsave_components(const struct cpu_features *set)
{
    static const struct {
        const char *feature;
        uint64_t components;
    } users[] = {{"avx", 0x4}, {"avx512f", 0xe0}, {"pku", 0x200}, {"amx_tile", 0x60000}};
    uint64_t components = 0x3;

    for (size_t i = 0; i < ARRAY_SIZE(users); i++) {
        if (cpu_features_has(set, users[i].feature))
            components |= users[i].components;
    }
    return components;
}

/* Leaf 0xd: only COMPONENTS, none of the supervisor's, and as large as these are. */
static void cut_xsave(struct kvm_cpuid2 *table, uint64_t components)
{
    struct kvm_cpuid_entry2 *main_leaf = find_mutable(table, LEAF_XSAVE, 0);
    struct kvm_cpuid_entry2 *second = find_mutable(table, LEAF_XSAVE, 1);
    uint32_t size = XSAVE_LEGACY_SIZE;
    uint32_t kept = 0;

    if (!main_leaf)
        return;
    main_leaf->eax &= (uint32_t)components;
    main_leaf->edx &= (uint32_t)(components >> 32);
    components = main_leaf->eax | (uint64_t)main_leaf->edx << 32;
    if (second)
        second->ecx = second->edx = 0;
    for (uint32_t i = 0; i < table->nent; i++) {
        struct kvm_cpuid_entry2 *entry = &table->entries[i];

        if (entry->function == LEAF_XSAVE && entry->index >= 2) {
            if (entry->index >= 64 || !(components >> entry->index & 1))
                continue;
            if (entry->ebx + entry->eax > size)
                size = entry->ebx + entry->eax;
        }
        table->entries[kept++] = *entry;
    }
    table->nent = kept;
    main_leaf = find_mutable(table, LEAF_XSAVE, 0);
    main_leaf->ebx = main_leaf->ecx = size; /* EBX: KVM keeps it right as the guest sets XCR0 */
}

static void cut_features(struct kvm_cpuid2 *table, const struct cpu_features *set)
{
    struct kvm_cpuid_entry2 *amd = find_mutable(table, LEAF_AMD_FEATURES, 0);
    const struct kvm_cpuid_entry2 *features = find(table, LEAF_FEATURES, 0);

    for (unsigned i = 0; i < CPU_WORDS; i++) {
        struct kvm_cpuid_entry2 *entry = find_mutable(table, cpu_words[i].leaf, cpu_words[i].subleaf);

        if (entry)
            *register_of(entry, cpu_words[i].reg) &= set->words[i] | ~cpu_features_possible(i);
    }
    if (amd && features) /* the bits that AMD has in both leaves */
        amd->edx &= features->edx | ~CPU_AMD_REPEATED;
    cut_xsave(table, cpu_features_has(set, "xsave") ? xsave_components(set) : 0);
}

/* The same of IA32_ARCH_CAPABILITIES; features that are in no set the guest gets as the host has them. */
static uint64_t cut_arch_capabilities(uint64_t host, const struct cpu_features *set)
{
    for (unsigned i = 0; i < CPU_WORDS; i++) {
        if (cpu_words[i].subleaf == CPU_MSR)
            host &= ~((uint64_t)(cpu_features_possible(i) & ~set->words[i])
                      << (cpu_words[i].reg == CPU_EDX ? 32 : 0));
    }
    return host;
}

static void describe(const struct kvm_cpuid2 *table, uint64_t arch_capabilities, struct cpu *cpu)
{
    struct cpu_leaf leaves[KVM_CPUID_ENTRIES_MAX + 1];

    for (uint32_t i = 0; i < table->nent; i++) {
        const struct kvm_cpuid_entry2 *entry = &table->entries[i];

        leaves[i] = (struct cpu_leaf){
            entry->function, entry->index, {entry->eax, entry->ebx, entry->ecx, entry->edx}};
    }
    leaves[table->nent] = cpu_leaf_of_msr(CPU_MSR_ARCH_CAPABILITIES, arch_capabilities);
    cpu_from_leaves(cpu, leaves, table->nent + 1);
}

void kvm_cpu_given(struct accel *accel, struct cpu *cpu)
{
    const struct kvm_accel *kvm = kvm_accel_of(accel);

    describe(kvm->cpuid, kvm->arch_capabilities, cpu);
}

static bool tells_arch_capabilities(const struct kvm_cpuid2 *table)
{
    struct cpu cpu;

    describe(table, 0, &cpu);
    return cpu_features_has(&cpu.features, "arch_capabilities");
}

int kvm_cpuid_init(struct kvm_accel *kvm, unsigned cpus, const struct cpu_features *features,
                   struct ferry_error *err)
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
        kvm->host_arch_capabilities = kvm_host_feature_msr(kvm->kvm_fd, CPU_MSR_ARCH_CAPABILITIES);
        kvm->arch_capabilities = kvm->host_arch_capabilities;
        if (features) {
            cut_features(kvm->cpuid, features);
            kvm->arch_capabilities = cut_arch_capabilities(kvm->host_arch_capabilities, features);
        }
        if (!tells_arch_capabilities(kvm->cpuid))
            kvm->arch_capabilities = 0;
    }
    free(supported);
    return result < 0 ? result : 0;
}

/* A para-virtualised KVM lists this MSR and does not give it to guests: then no VM here has any of it. */
static void apply_arch_capabilities(const struct kvm_cpu *cpu)
{
    struct kvm_accel *kvm = cpu->kvm;

    if (kvm_msr_set(cpu, CPU_MSR_ARCH_CAPABILITIES, kvm->arch_capabilities) < 0)
        kvm->host_arch_capabilities = kvm->arch_capabilities = 0;
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
    if (result < 0)
        return error_set_errno(err, result, "KVM does not take the CPUID of vCPU %u", cpu->index);
    /* What KVM may have put there of itself, and no guest is told of: counters do not travel. */
    (void)kvm_msr_set(cpu, MSR_PERF_CAPABILITIES, 0);
    apply_arch_capabilities(cpu);
    return 0;
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

/* What is no feature (cpu_features.h) Ferry makes itself, here as there: it cannot be more. */
static int check_rest(const struct kvm_cpuid2 *given, const struct kvm_cpuid2 *host, struct ferry_error *err)
{
    for (unsigned i = 0; i < CPU_WORDS; i++) {
        const struct cpu_word *word = &cpu_words[i];
        const struct kvm_cpuid_entry2 *want = find(given, word->leaf, word->subleaf);
        const struct kvm_cpuid_entry2 *have = find(host, word->leaf, word->subleaf);
        uint32_t more = want ? read_register(want, word->reg) : 0;

        more &= ~cpu_features_possible(i) & ~(have ? read_register(have, word->reg) : 0);
        if (more)
            return error_set(err, -EOPNOTSUPP, "no VM is given CPUID leaf 0x%x.%u E%cX, bits 0x%x",
                             word->leaf, word->subleaf, "ABCD"[word->reg], more);
    }
    return 0;
}

static int check_lacking(const struct cpu_features *given, const struct cpu_features *here,
                         struct ferry_error *err)
{
    struct cpu_features lacking = cpu_features_without(given, here);
    char names[FERRY_ERROR_TEXT_SIZE / 2];

    cpu_features_text(&lacking, names, sizeof(names));
    if (!names[0])
        return 0;
    return error_set(err, -EOPNOTSUPP, "this host lacks CPU features that the VM was given: %s", names);
}

/* What a guest was given must be here. */
static int check_features(const struct kvm_cpuid2 *given, const struct kvm_cpuid2 *host,
                          struct ferry_error *err)
{
    const struct kvm_cpuid_entry2 *want = find(given, LEAF_XSAVE, 0), *have = find(host, LEAF_XSAVE, 0);
    uint64_t wanted = want ? want->eax | (uint64_t)want->edx << 32 : 0;
    uint64_t there = have ? have->eax | (uint64_t)have->edx << 32 : 0;
    struct cpu guest, here;
    int result;

    describe(given, 0, &guest); /* IA32_ARCH_CAPABILITIES comes with the vCPUs */
    describe(host, 0, &here);
    result = check_lacking(&guest.features, &here.features, err);
    if (result)
        return result;
    if (wanted & ~there)
        return error_set(
            err, -EOPNOTSUPP,
            "this host's CPU lacks components of the extended state (XCR0) that the VM was given: 0x%llx",
            (unsigned long long)(wanted & ~there));
    return check_rest(given, host, err);
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

int kvm_arch_capabilities_load(const struct kvm_cpu *cpu, uint64_t saved, struct ferry_error *err)
{
    struct kvm_accel *kvm = cpu->kvm;
    uint64_t value = tells_arch_capabilities(kvm->cpuid) ? saved : 0;
    struct cpu guest, here;
    int result;

    describe(kvm->cpuid, value, &guest);
    describe(kvm->host_cpuid, kvm->host_arch_capabilities, &here);
    result = check_lacking(&guest.features, &here.features, err);
    if (result)
        return error_prefix(err, result, "vcpu%u", cpu->index);
    kvm->arch_capabilities = value;
    apply_arch_capabilities(cpu);
    return 0;
}
