/*
 * The PVH boot protocol (Xen docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h): the kernel's entry
 * comes from a note in its ELF file, and what it is told is struct hvm_start_info, version 1.
 *
 *     0x1000  hvm_start_info
 *     0x1100  memory map
 *     0x2000  command line
 */
#ifndef FERRY_MACHINE_X86_64_PVH_H
#define FERRY_MACHINE_X86_64_PVH_H

#include "bus/memory.h"
#include "machine/loader.h"

#include <ferry/error.h>

#define PVH_START_INFO   UINT64_C(0x1000)
#define PVH_MEMORY_MAP   UINT64_C(0x1100)
#define PVH_CMDLINE      UINT64_C(0x2000)
#define PVH_CMDLINE_SIZE 0x1000 /* with its NUL */

/* Where a PVH kernel begins; an error when the file has no such note. */
int pvh_find_entry(const struct loader_file *file, uint64_t *entry, struct ferry_error *err);

/* Writes everything the kernel is told. CMDLINE may be NULL; RSDP 0 when there are no ACPI tables; an initrd
 * of no bytes is none. */
struct pvh_inputs {
    const char *cmdline;
    uint64_t rsdp;
    uint64_t initrd, initrd_size;
};

int pvh_write(struct memory *memory, const struct pvh_inputs *inputs, struct ferry_error *err);

#endif
