/*
 * A CPU: its vendor, what it calls itself, and its features, from what CPUID says.
 */
#ifndef FERRY_CPU_CPU_H
#define FERRY_CPU_CPU_H

#include "cpu/cpu_features.h"

#define CPU_MODEL_SIZE 49

struct cpu {
    char vendor[CPU_VENDOR_SIZE]; /* "AuthenticAMD"; empty: there is none */
    char model[CPU_MODEL_SIZE];   /* may be empty */
    struct cpu_features features;
};

/* One answer of CPUID; or with subleaf CPU_MSR an MSR. */
struct cpu_leaf {
    uint32_t leaf, subleaf;
    uint32_t value[4]; /* by enum cpu_register */
};

struct cpu_leaf cpu_leaf_of_msr(uint32_t msr, uint64_t value);

/* From COUNT answers; what is not there is zero. An IA32_ARCH_CAPABILITIES that CPUID does not tell of
 * (arch_capabilities) has no features. */
void cpu_from_leaves(struct cpu *cpu, const struct cpu_leaf *leaves, size_t count);
/* What KVM on this host can give its guests; an error when it has no KVM for x86-64. */
int cpu_of_host(struct cpu *cpu, struct ferry_error *err);
/*
 * From a table as tests have them: lines of LEAF SUBLEAF EAX EBX ECX EDX, hexadecimal; # begins a comment.
 */
int cpu_from_file(struct cpu *cpu, const char *path, struct ferry_error *err);

#endif
