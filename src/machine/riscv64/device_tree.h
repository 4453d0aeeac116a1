/*
 * The flattened device tree that tells a riscv64 guest what the machine has (Devicetree Specification 0.4;
 * Linux Documentation/devicetree/bindings). Made anew for each boot: it holds a random seed.
 */
#ifndef FERRY_MACHINE_RISCV64_DEVICE_TREE_H
#define FERRY_MACHINE_RISCV64_DEVICE_TREE_H

#include "machine/machine.h"

#include <ferry/error.h>

#include <stdint.h>

#define DEVICE_TREE_SIZE_MAX (64 * 1024)

struct device_tree_inputs {
    const struct machine_config *config;
    uint64_t initrd_start; /* guest physical; start == end: none */
    uint64_t initrd_end;
};

/* Writes the tree into out[DEVICE_TREE_SIZE_MAX] and its size into *size. */
int device_tree_make(const struct device_tree_inputs *inputs, void *out, uint32_t *size,
                     struct ferry_error *err);

#endif
