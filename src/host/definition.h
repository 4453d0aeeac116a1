/*
 * The definition of a VM (docs/API.md, "VM definition"): checked at the edge, completed, and from then on
 * immutable: a json_t that many threads read and that travels with the VM.
 *
 * ferry-vm checks the same again with all that only it can know (is the kernel a kernel?); here is what the
 * host needs to be sure of before it makes directories and starts processes.
 */
#ifndef FERRY_HOST_DEFINITION_H
#define FERRY_HOST_DEFINITION_H

#include <ferry/error.h>

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define DEFINITION_MEMORY_DEFAULT (256ull << 20)
#define DEFINITION_MEMORY_MIN     (16ull << 20)
#define DEFINITION_MEMORY_MAX     (16ull << 40)
#define DEFINITION_VCPUS_MAX      64
#define DEFINITION_HARTS_MAX      8 /* riscv64 */
#define DEFINITION_DISKS_MAX      8
#define DEFINITION_NETS_MAX       8

/*
 * Checks INPUT strictly and returns in *out a new definition in which everything is said: defaults filled in,
 * a random UUID when it has none, a random MAC address for each network that has none. -EINVAL names the key.
 */
int definition_normalise(const json_t *input, json_t **out, struct ferry_error *err);

/* Of a normalised definition. */
const char *definition_name(const json_t *definition);
const char *
definition_uuid(const json_t *definition); /* NULL also of one as it was before it was normalised */
const char *definition_machine(const json_t *definition);
uint64_t definition_memory(const json_t *definition);
uint64_t definition_hugepages(const json_t *definition); /* bytes of one; 0: ordinary memory */
json_t *definition_disks(const json_t *definition);      /* borrowed arrays */
json_t *definition_nets(const json_t *definition);
const char *definition_kernel(const json_t *definition);
const char *definition_cpu(const json_t *definition); /* NULL: as the host has it */

#endif
