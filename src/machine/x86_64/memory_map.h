/*
 * The memory map that guests are given, as PVH and the Linux boot protocol want it (e820: ACPI 6.4 §15): RAM
 * but what firmware keeps below 1 MiB.
 */
#ifndef FERRY_MACHINE_X86_64_MEMORY_MAP_H
#define FERRY_MACHINE_X86_64_MEMORY_MAP_H

#include "bus/memory.h"

#include <stddef.h>
#include <stdint.h>

#define MEMORY_MAP_RAM      1
#define MEMORY_MAP_RESERVED 2
#define MEMORY_MAP_MAX      (MEMORY_REGIONS_MAX + 2)

struct memory_map_entry {
    uint64_t addr, size;
    uint32_t type;
};

/* In order of addresses; returns how many there are. */
size_t memory_map_make(const struct memory *memory, struct memory_map_entry entries[static MEMORY_MAP_MAX]);

#endif
