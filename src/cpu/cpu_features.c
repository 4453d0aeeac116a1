#include "cpu/cpu_features.h"

#include "base/error.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct cpu_word cpu_words[CPU_WORDS] = {
    {0x1, 0, CPU_ECX},
    {0x1, 0, CPU_EDX},
    {0x7, 0, CPU_EBX},
    {0x7, 0, CPU_ECX},
    {0x7, 0, CPU_EDX},
    {0x7, 1, CPU_EAX},
    {0x7, 1, CPU_EDX},
    {0x7, 2, CPU_EDX},
    {0xd, 1, CPU_EAX},
    {0x80000001, 0, CPU_ECX},
    {0x80000001, 0, CPU_EDX},
    {0x80000007, 0, CPU_EDX},
    {0x80000008, 0, CPU_EBX},
    {0x80000021, 0, CPU_EAX},
    {0x80000021, 0, CPU_ECX},
    {0x40000001, 0, CPU_EAX},
    {CPU_MSR_ARCH_CAPABILITIES, CPU_MSR, CPU_EAX},
    {CPU_MSR_ARCH_CAPABILITIES, CPU_MSR, CPU_EDX},
};

/* By word and bit. */
static const char *const names[CPU_WORDS][32] = {
    /* 0x1.0 ECX */
    {
        [0] = "pni",
        [1] = "pclmulqdq",
        [2] = "dtes64",
        [3] = "monitor",
        [4] = "ds_cpl",
        [5] = "vmx",
        [6] = "smx",
        [7] = "est",
        [8] = "tm2",
        [9] = "ssse3",
        [10] = "cid",
        [12] = "fma",
        [13] = "cx16",
        [14] = "xtpr",
        [15] = "pdcm",
        [17] = "pcid",
        [18] = "dca",
        [19] = "sse4_1",
        [20] = "sse4_2",
        [21] = "x2apic",
        [22] = "movbe",
        [23] = "popcnt",
        [24] = "tsc_deadline_timer",
        [25] = "aes",
        [26] = "xsave",
        [27] = "osxsave",
        [28] = "avx",
        [29] = "f16c",
        [30] = "rdrand",
        [31] = "hypervisor",
    },
    /* 0x1.0 EDX */
    {
        [0] = "fpu",  [1] = "vme",   [2] = "de",    [3] = "pse",   [4] = "tsc",    [5] = "msr",
        [6] = "pae",  [7] = "mce",   [8] = "cx8",   [9] = "apic",  [11] = "sep",   [12] = "mtrr",
        [13] = "pge", [14] = "mca",  [15] = "cmov", [16] = "pat",  [17] = "pse36", [19] = "clflush",
        [21] = "dts", [22] = "acpi", [23] = "mmx",  [24] = "fxsr", [25] = "sse",   [26] = "sse2",
        [27] = "ss",  [28] = "ht",   [29] = "tm",   [31] = "pbe",
    },
    /* 0x7.0 EBX */
    {
        [0] = "fsgsbase",
        [1] = "tsc_adjust",
        [2] = "sgx",
        [3] = "bmi1",
        [4] = "hle",
        [5] = "avx2",
        [6] = "fdp_excptn_only",
        [7] = "smep",
        [8] = "bmi2",
        [9] = "erms",
        [10] = "invpcid",
        [11] = "rtm",
        [12] = "cqm",
        [13] = "zero_fcs_fds",
        [14] = "mpx",
        [15] = "rdt_a",
        [16] = "avx512f",
        [17] = "avx512dq",
        [18] = "rdseed",
        [19] = "adx",
        [20] = "smap",
        [21] = "avx512ifma",
        [23] = "clflushopt",
        [24] = "clwb",
        [25] = "intel_pt",
        [26] = "avx512pf",
        [27] = "avx512er",
        [28] = "avx512cd",
        [29] = "sha_ni",
        [30] = "avx512bw",
        [31] = "avx512vl",
    },
    /* 0x7.0 ECX */
    {
        [1] = "avx512vbmi",
        [2] = "umip",
        [3] = "pku",
        [4] = "ospke",
        [5] = "waitpkg",
        [6] = "avx512_vbmi2",
        [7] = "shstk",
        [8] = "gfni",
        [9] = "vaes",
        [10] = "vpclmulqdq",
        [11] = "avx512_vnni",
        [12] = "avx512_bitalg",
        [14] = "avx512_vpopcntdq",
        [16] = "la57",
        [22] = "rdpid",
        [24] = "bus_lock_detect",
        [25] = "cldemote",
        [27] = "movdiri",
        [28] = "movdir64b",
        [30] = "sgx_lc",
    },
    /* 0x7.0 EDX */
    {
        [2] = "avx512_4vnniw",
        [3] = "avx512_4fmaps",
        [4] = "fsrm",
        [8] = "avx512_vp2intersect",
        [10] = "md_clear",
        [11] = "rtm_always_abort",
        [14] = "serialize",
        [16] = "tsxldtrk",
        [20] = "ibt",
        [22] = "amx_bf16",
        [23] = "avx512_fp16",
        [24] = "amx_tile",
        [25] = "amx_int8",
        [26] = "spec_ctrl",
        [27] = "stibp",
        [28] = "flush_l1d",
        [29] = "arch_capabilities",
        [31] = "ssbd",
    },
    /* 0x7.1 EAX */
    {
        [0] = "sha512",
        [1] = "sm3",
        [2] = "sm4",
        [4] = "avx_vnni",
        [5] = "avx512_bf16",
        [7] = "cmpccxadd",
        [10] = "fzrm",
        [11] = "fsrs",
        [12] = "fsrc",
        [21] = "amx_fp16",
        [23] = "avx_ifma",
        [26] = "lam",
    },
    /* 0x7.1 EDX */
    {
        [4] = "avx_vnni_int8",
        [5] = "avx_ne_convert",
        [8] = "amx_complex",
        [10] = "avx_vnni_int16",
        [14] = "prefetchiti",
        [19] = "avx10",
    },
    /* 0x7.2 EDX */
    {
        [0] = "intel_psfd",
        [1] = "ipred_ctrl",
        [2] = "rrsba_ctrl",
        [3] = "ddpd_u",
        [4] = "bhi_ctrl",
        [5] = "mcdt_no",
    },
    /* 0xd.1 EAX */
    {
        [0] = "xsaveopt",
        [1] = "xsavec",
        [2] = "xgetbv1",
        [3] = "xsaves",
        [4] = "xfd",
    },
    /* 0x80000001.0 ECX */
    {
        [0] = "lahf_lm",       [1] = "cmp_legacy", [2] = "svm",           [3] = "extapic",
        [4] = "cr8_legacy",    [5] = "abm",        [6] = "sse4a",         [7] = "misalignsse",
        [8] = "3dnowprefetch", [9] = "osvw",       [10] = "ibs",          [11] = "xop",
        [12] = "skinit",       [13] = "wdt",       [16] = "fma4",         [17] = "tce",
        [21] = "tbm",          [22] = "topoext",   [23] = "perfctr_core", [24] = "perfctr_nb",
        [28] = "perfctr_llc",  [29] = "mwaitx",
    },
    /* 0x80000001.0 EDX */
    {
        [11] = "syscall",
        [20] = "nx",
        [22] = "mmxext",
        [25] = "fxsr_opt",
        [26] = "pdpe1gb",
        [27] = "rdtscp",
        [29] = "lm",
        [30] = "3dnowext",
        [31] = "3dnow",
    },
    /* 0x80000007.0 EDX */
    {
        [8] = "nonstop_tsc",
    },
    /* 0x80000008.0 EBX */
    {
        [0] = "clzero",
        [2] = "xsaveerptr",
        [9] = "wbnoinvd",
        [12] = "ibpb",
        [14] = "ibrs",
        [15] = "amd_stibp",
        [16] = "ibrs_always_on",
        [17] = "stibp_always_on",
        [18] = "ibrs_preferred",
        [19] = "ibrs_same_mode",
        [24] = "amd_ssbd",
        [25] = "virt_ssbd",
        [26] = "amd_ssb_no",
        [28] = "amd_psfd",
        [29] = "btc_no",
        [30] = "ibpb_ret",
    },
    /* 0x80000021.0 EAX */
    {
        [0] = "no_nested_data_bp",
        [1] = "wrmsr_xx_base_ns",
        [2] = "lfence_rdtsc",
        [5] = "verw_clear",
        [6] = "null_sel_clr_base",
        [8] = "autoibrs",
        [9] = "no_smm_ctl_msr",
        [20] = "prefetchi",
        [27] = "sbpb",
        [28] = "ibpb_brtype",
        [29] = "srso_no",
        [30] = "srso_user_kernel_no",
    },
    /* 0x80000021.0 ECX */
    {
        [1] = "tsa_sq_no",
        [2] = "tsa_l1_no",
    },
    /* 0x40000001.0 EAX */
    {
        [0] = "kvmclock",
        [1] = "kvm_nopiodelay",
        [2] = "kvm_mmu",
        [3] = "kvmclock2",
        [4] = "kvm_asyncpf",
        [5] = "kvm_steal_time",
        [6] = "kvm_pv_eoi",
        [7] = "kvm_pv_unhalt",
        [9] = "kvm_pv_tlb_flush",
        [10] = "kvm_asyncpf_vmexit",
        [11] = "kvm_pv_ipi",
        [12] = "kvm_poll_control",
        [13] = "kvm_pv_sched_yield",
        [14] = "kvm_asyncpf_int",
        [15] = "kvm_msi_ext_dest_id",
        [16] = "kvm_hc_map_gpa_range",
        [17] = "kvm_migration_control",
        [24] = "kvmclock_stable_bit",
    },
    /* IA32_ARCH_CAPABILITIES, low half */
    {
        [0] = "rdcl_no",
        [1] = "ibrs_all",
        [2] = "rsba",
        [3] = "skip_vmentry_l1dflush",
        [4] = "ssb_no",
        [5] = "mds_no",
        [6] = "pschange_mc_no",
        [7] = "tsx_ctrl_msr",
        [8] = "taa_no",
        [10] = "misc_package_ctls",
        [11] = "energy_filtering_ctl",
        [12] = "doitm",
        [13] = "sbdr_ssdp_no",
        [14] = "fbsdp_no",
        [15] = "psdp_no",
        [17] = "fb_clear",
        [18] = "fb_clear_ctrl",
        [19] = "rrsba",
        [20] = "bhi_no",
        [21] = "xapic_disable",
        [23] = "overclocking_status",
        [24] = "pbrsb_no",
        [25] = "gds_ctrl",
        [26] = "gds_no",
        [27] = "rfds_no",
        [28] = "rfds_clear",
    },
    /* its high half */
    {
        [30] = "its_no",
    },
};

/* In no set: what Ferry makes for each VM or never gives, what the guest itself turns on, and some that say
 * that the hardware does less, or is less safe. */
static const char *const withheld[] = {
    "hypervisor",   "x2apic",       "tsc_deadline_timer",
    "ht",           "cmp_legacy",   "vmx",
    "svm",          "osxsave",      "ospke",
    "pdcm",         "perfctr_core", "fdp_excptn_only",
    "zero_fcs_fds", "rsba",         "rrsba",
};

static void name_of(unsigned word, unsigned bit, char name[static CPU_FEATURE_NAME_SIZE])
{
    const struct cpu_word *at = &cpu_words[word];

    if (names[word][bit])
        memccpy(name, names[word][bit], '\0', CPU_FEATURE_NAME_SIZE);
    else if (at->subleaf == CPU_MSR)
        snprintf(name, CPU_FEATURE_NAME_SIZE, "msr-%x-e%cx-%u", at->leaf, "abcd"[at->reg], bit);
    else
        snprintf(name, CPU_FEATURE_NAME_SIZE, "cpuid-%x.%u-e%cx-%u", at->leaf, at->subleaf, "abcd"[at->reg],
                 bit);
}

static int find(const char *name, unsigned *word, unsigned *bit)
{
    bool by_place = strncmp(name, "cpuid-", 6) == 0 || strncmp(name, "msr-", 4) == 0;

    for (*word = 0; *word < CPU_WORDS; (*word)++) {
        for (*bit = 0; *bit < 32; (*bit)++) {
            char own[CPU_FEATURE_NAME_SIZE];

            if (!names[*word][*bit] && !by_place)
                continue;
            name_of(*word, *bit, own);
            if (strcmp(own, name) == 0)
                return 0;
        }
    }
    return -ENOENT;
}

uint32_t cpu_features_possible(unsigned word)
{
    const struct cpu_word *words = &cpu_words[word];
    uint32_t possible = words->leaf == 0x80000001 && words->reg == CPU_EDX ? ~CPU_AMD_REPEATED : UINT32_MAX;
    unsigned at, bit;

    for (size_t i = 0; i < sizeof(withheld) / sizeof(withheld[0]); i++) {
        if (find(withheld[i], &at, &bit) == 0 && at == word)
            possible &= ~(UINT32_C(1) << bit);
    }
    return possible;
}

bool cpu_features_has(const struct cpu_features *set, const char *name)
{
    unsigned word, bit;

    return find(name, &word, &bit) == 0 && set->words[word] >> bit & 1;
}

bool cpu_features_empty(const struct cpu_features *set)
{
    return cpu_features_count(set) == 0;
}

static int find_possible(const char *name, unsigned *word, unsigned *bit, struct ferry_error *err)
{
    if (find(name, word, bit) < 0)
        return error_set(err, -EINVAL,
                         "there is no CPU feature \"%.40s\"; they are called as in /proc/cpuinfo", name);
    if (!(cpu_features_possible(*word) >> *bit & 1))
        return error_set(err, -EINVAL, "CPU feature %s is not given or taken by baselines and masks", name);
    return 0;
}

int cpu_features_add(struct cpu_features *set, const char *name, struct ferry_error *err)
{
    unsigned word, bit;
    int result = find_possible(name, &word, &bit, err);

    if (!result)
        set->words[word] |= UINT32_C(1) << bit;
    return result;
}

int cpu_features_remove(struct cpu_features *set, const char *name, struct ferry_error *err)
{
    unsigned word, bit;
    int result = find_possible(name, &word, &bit, err);

    if (!result)
        set->words[word] &= ~(UINT32_C(1) << bit);
    return result;
}

struct cpu_features cpu_features_and(const struct cpu_features *a, const struct cpu_features *b)
{
    struct cpu_features set;

    for (unsigned i = 0; i < CPU_WORDS; i++)
        set.words[i] = a->words[i] & b->words[i];
    return set;
}

struct cpu_features cpu_features_or(const struct cpu_features *a, const struct cpu_features *b)
{
    struct cpu_features set;

    for (unsigned i = 0; i < CPU_WORDS; i++)
        set.words[i] = a->words[i] | b->words[i];
    return set;
}

struct cpu_features cpu_features_without(const struct cpu_features *a, const struct cpu_features *b)
{
    struct cpu_features set;

    for (unsigned i = 0; i < CPU_WORDS; i++)
        set.words[i] = a->words[i] & ~b->words[i];
    return set;
}

unsigned cpu_features_count(const struct cpu_features *set)
{
    unsigned count = 0;

    for (unsigned i = 0; i < CPU_WORDS; i++)
        count += (unsigned)__builtin_popcount(set->words[i]);
    return count;
}

#define MORE_SIZE 16 /* ", and 448 more" */

void cpu_features_text(const struct cpu_features *set, char *text, size_t size)
{
    unsigned left = cpu_features_count(set);
    size_t length = 0;

    text[0] = '\0';
    for (unsigned i = 0; i < CPU_WORDS * 32; i++) {
        char name[CPU_FEATURE_NAME_SIZE];

        if (!(set->words[i / 32] >> (i % 32) & 1))
            continue;
        name_of(i / 32, i % 32, name);
        if (length + strlen(name) + 2 + (left > 1 ? MORE_SIZE : 0) >= size) {
            snprintf(text + length, size - length, "%sand %u more", length ? " " : "", left);
            return;
        }
        length += (size_t)snprintf(text + length, size - length, "%s%s", length ? " " : "", name);
        if (--left)
            length += (size_t)snprintf(text + length, size - length, ",");
    }
}

json_t *cpu_features_json(const struct cpu_features *set)
{
    json_t *array = json_array();

    for (unsigned i = 0; i < CPU_WORDS * 32; i++) {
        char name[CPU_FEATURE_NAME_SIZE];

        if (!(set->words[i / 32] >> (i % 32) & 1))
            continue;
        name_of(i / 32, i % 32, name);
        json_array_append_new(array, json_string(name));
    }
    return array;
}

int cpu_features_from_json(struct cpu_features *set, const json_t *json, const char *what,
                           struct ferry_error *err)
{
    json_t *name;
    size_t i;

    *set = (struct cpu_features){0};
    if (!json_is_array(json))
        return error_set(err, -EINVAL, "%s: the features are not an array", what);
    json_array_foreach(json, i, name)
    {
        int result = json_is_string(name) ? cpu_features_add(set, json_string_value(name), err)
                                          : error_set(err, -EINVAL, "the name of a feature is not a string");

        if (result)
            return error_prefix(err, result, "%s", what);
    }
    return 0;
}

char *cpu_features_list(const struct cpu_features *set)
{
    size_t size = cpu_features_count(set) * CPU_FEATURE_NAME_SIZE + 1;
    char *list = calloc(1, size);
    size_t length = 0;

    for (unsigned i = 0; list && i < CPU_WORDS * 32; i++) {
        char name[CPU_FEATURE_NAME_SIZE];

        if (!(set->words[i / 32] >> (i % 32) & 1))
            continue;
        name_of(i / 32, i % 32, name);
        length += (size_t)snprintf(list + length, size - length, "%s%s", length ? "," : "", name);
    }
    return list;
}

int cpu_features_from_list(struct cpu_features *set, const char *list, struct ferry_error *err)
{
    *set = (struct cpu_features){0};
    while (*list) {
        char name[CPU_FEATURE_NAME_SIZE];
        size_t length = strcspn(list, ",");
        int result;

        snprintf(name, sizeof(name), "%.*s", (int)(length < sizeof(name) ? length : sizeof(name) - 1), list);
        result = cpu_features_add(set, name, err);
        if (result)
            return result;
        list += length + (list[length] == ',');
    }
    return 0;
}
