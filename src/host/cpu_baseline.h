/*
 * This host's CPU, the baseline in force on it, and what of its CPU a VM is given.
 *
 * A baseline is a set of CPU features that all hosts of a cluster have: a VM that is started gets no others,
 * so that it can go to any of them. It has the name of a generation (cpu/baseline.h), but is kept as the
 * features themselves: those of the generation, and of the "always" ones what all hosts had when it was set.
 * As JSON: {"name", "vendor", "features": [NAMES]}, or null. A VM keeps what it was given until it is powered
 * off, whatever becomes of the baseline.
 *
 * A VM's definition may say more ("cpu", as cpu_request_parse has it). Only x86_64 machines have all this.
 */
#ifndef FERRY_HOST_CPU_BASELINE_H
#define FERRY_HOST_CPU_BASELINE_H

#include "cpu/baseline.h"
#include "cpu/cpu.h"
#include "host/host.h"

struct vm;

/* When ferryd starts: finds out what the CPU is, and reads the baseline. Releases by cpu_baseline_close. */
int cpu_baseline_open(struct host *host, struct ferry_error *err);
void cpu_baseline_close(struct host *host);

/* {vendor, model, generation, features}, null when this host runs no x86_64 VMs. New reference. */
json_t *cpu_baseline_host_object(const struct host *host);
/* New reference; null when there is none. */
json_t *cpu_baseline_get(struct host *host);

/*
 * BASELINE becomes this host's; NULL: there is none any more. HOST_REFUSED when this host's CPU lacks any of
 * it, or a running VM was given more. Changes nothing with CHECK_ONLY.
 */
int cpu_baseline_take(struct host *host, const json_t *baseline, bool check_only, struct ferry_error *err);

/* What a VM of DEFINITION gets when it is started here, as ferry-vm's --cpu-features has it: *list is
 * malloc'ed; NULL: all that the host has. HOST_REFUSED when this host lacks what the definition asks for. */
int cpu_baseline_for_vm(struct host *host, const json_t *definition, char **list, struct ferry_error *err);

/* What VM, which runs here, was given; false when that is not known, or there is nothing to know. Asks its
 * process. Not under the lock. */
bool cpu_baseline_given(struct host *host, const char *vm, char vendor[static CPU_VENDOR_SIZE],
                        struct cpu_features *given);

/* From what another host says of itself ("cpu" of GET /v1/host); -EINVAL. */
int cpu_baseline_read_cpu(struct cpu *cpu, const json_t *json, struct ferry_error *err);

#endif
