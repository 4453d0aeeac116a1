/*
 * What the PVH boot protocol tells a program (Xen public/arch-x86/hvm/start_info.h, version 1): the memory
 * map and the command line.
 */
#ifndef BARE_PVH_H
#define BARE_PVH_H

#include <stdint.h>

#define PVH_MAGIC      0x336ec578
#define PVH_MEMORY_RAM 1

struct pvh_memory {
    uint64_t addr, size;
    uint32_t type, reserved;
};

struct pvh_start_info {
    uint32_t magic, version, flags, module_count;
    uint64_t modules, cmdline, rsdp, memory_map;
    uint32_t memory_map_entries, reserved;
};

#endif
