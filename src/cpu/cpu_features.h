/*
 * CPU features: which bits of CPUID are features, what they are called, and sets of them.
 *
 * A feature is a bit of one of the words below (Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E;
 * for leaf 0x40000001 Linux, Documentation/virt/kvm/x86/cpuid.rst; Intel SDM volume 4 for
 * IA32_ARCH_CAPABILITIES, an MSR that tells features, too). It is called as in /proc/cpuinfo, those of the
 * MSR as in Linux's msr-index.h ("rdcl_no"); a bit without a name of its own is called by its place,
 * "cpuid-7.0-ebx-22", "msr-10a-eax-9", so that no difference between two CPUs is without a name. What Ferry
 * itself makes for each VM (topology, hypervisor, x2apic, ...) and what it never gives (nested
 * virtualisation, performance counters) is in no set.
 *
 * Values only; any thread.
 */
#ifndef FERRY_CPU_CPU_FEATURES_H
#define FERRY_CPU_CPU_FEATURES_H

#include <ferry/error.h>

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CPU_VENDOR_SIZE       13
#define CPU_FEATURE_NAME_SIZE 32

enum cpu_register {
    CPU_EAX,
    CPU_EBX,
    CPU_ECX,
    CPU_EDX,
};

/* A subleaf that is none: the leaf is the number of an MSR, whose halves are in EAX and EDX as by RDMSR. */
#define CPU_MSR                   UINT32_MAX
#define CPU_MSR_ARCH_CAPABILITIES UINT32_C(0x10a)

struct cpu_word {
    uint32_t leaf, subleaf;
    enum cpu_register reg;
};

#define CPU_WORDS 18
extern const struct cpu_word cpu_words[CPU_WORDS];

/* AMD repeats these bits of leaf 1 EDX in leaf 0x80000001 EDX (APM volume 3, appendix E.4.2): there they are
 * no features of their own. */
#define CPU_AMD_REPEATED UINT32_C(0x0183f3ff)

struct cpu_features {
    uint32_t words[CPU_WORDS]; /* bit b of word w: the feature of that bit of cpu_words[w] */
};

/* The bits of word W that can be in a set. */
uint32_t cpu_features_possible(unsigned word);

bool cpu_features_has(const struct cpu_features *set, const char *name);
bool cpu_features_empty(const struct cpu_features *set);
/* 0, or -EINVAL when nothing is called NAME. */
int cpu_features_add(struct cpu_features *set, const char *name, struct ferry_error *err);
int cpu_features_remove(struct cpu_features *set, const char *name, struct ferry_error *err);
struct cpu_features cpu_features_and(const struct cpu_features *a, const struct cpu_features *b);
struct cpu_features cpu_features_or(const struct cpu_features *a, const struct cpu_features *b);
/* What is in A and not in B. */
struct cpu_features cpu_features_without(const struct cpu_features *a, const struct cpu_features *b);
unsigned cpu_features_count(const struct cpu_features *set);

/* Names in the order of the words, separated by ", "; when not all fit, it ends with "and 12 more". */
void cpu_features_text(const struct cpu_features *set, char *text, size_t size);

/* An array of names; new reference. */
json_t *cpu_features_json(const struct cpu_features *set);
/* WHAT begins the sentence of an error: -EINVAL for anything but an array of names of features. */
int cpu_features_from_json(struct cpu_features *set, const json_t *json, const char *what,
                           struct ferry_error *err);
/* Names with commas and nothing else; malloc'ed. For an argument of a program. */
char *cpu_features_list(const struct cpu_features *set);
int cpu_features_from_list(struct cpu_features *set, const char *list, struct ferry_error *err);

#endif
