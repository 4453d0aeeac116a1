/*
 * CPU generations by name ("x86-64-v2", "amd-milan"): what a baseline is chosen from. They are in
 * data/cpu-baselines.json, which is part of the program:
 *
 *     {"always": [NAMES], "generations": [{"name", "vendor"?, "extends"?, "features": [NAMES]}, ...]}
 *
 * x86-64-v1 to v4 are the levels of the x86-64 psABI (Low Level System Information: Micro-Architecture
 * Levels); v1 has also what every processor with 64-bit mode has and operating systems build on (pae, msr,
 * apic, ...), but nothing that only 16- and 32-bit ones use (vme, pse36).
 *
 * One without a vendor is for all of them. One that extends another, which is before it in the file, has its
 * features, too. "always" are features that no baseline takes away where a host has them.
 */
#ifndef FERRY_CPU_BASELINE_H
#define FERRY_CPU_BASELINE_H

#include "cpu/cpu_features.h"

#define CPU_BASELINE_NAME_SIZE 32

struct cpu_generation {
    char name[CPU_BASELINE_NAME_SIZE];
    char vendor[CPU_VENDOR_SIZE]; /* empty: any */
    struct cpu_features features;
};

struct cpu_generations {
    struct cpu_features always;
    size_t count;
    struct cpu_generation list[];
};

/* From the text of such a file; -EINVAL says what is wrong. The caller frees it with free(). */
int cpu_generations_parse(struct cpu_generations **out, const char *text, struct ferry_error *err);
/* Those of this program. */
int cpu_generations_load(struct cpu_generations **out, struct ferry_error *err);

/*
 * What a person asks a VM's CPU to be: "x86-64-v3", "x86-64-v3,-avx2", "host,-avx512f" or "-avx512f": a
 * generation, and features to leave out. "host" is as much as the host, or its baseline, allows, as is
 * nothing.
 */
struct cpu_request {
    char generation[CPU_BASELINE_NAME_SIZE]; /* empty: as much as there is; may not exist */
    struct cpu_features without;
};
int cpu_request_parse(struct cpu_request *request, const char *text, struct ferry_error *err);

/* NULL and an error that lists the names. */
const struct cpu_generation *cpu_generation_find(const struct cpu_generations *generations, const char *name,
                                                 struct ferry_error *err);
/* The one with the most features that a CPU of VENDOR with FEATURES has all of; NULL: none. */
const struct cpu_generation *cpu_generation_best(const struct cpu_generations *generations,
                                                 const char *vendor, const struct cpu_features *features);

#endif
