/*
 * The 64-bit Linux boot protocol (Linux Documentation/arch/x86/boot.rst, zero-page.rst) for bzImage kernels:
 * the boot vCPU starts in long mode with the first 4 GiB mapped one to one, RSI the address of struct
 * boot_params.
 *
 *     0x0500  GDT with the segments the protocol names
 *     0x2000  command line
 *     0x7000  boot_params
 *     0x9000  page tables: root, directory pointers, four directories
 */
#ifndef FERRY_MACHINE_X86_64_LINUX_BOOT_H
#define FERRY_MACHINE_X86_64_LINUX_BOOT_H

#include "bus/memory.h"
#include "machine/loader.h"

#include <ferry/error.h>

#include <stdbool.h>
#include <stdint.h>

#define LINUX_BOOT_GDT         UINT64_C(0x500)
#define LINUX_BOOT_GDT_SIZE    32
#define LINUX_BOOT_CODE        0x10 /* selectors */
#define LINUX_BOOT_DATA        0x18
#define LINUX_BOOT_CMDLINE     UINT64_C(0x2000)
#define LINUX_BOOT_PARAMS      UINT64_C(0x7000)
#define LINUX_BOOT_PAGE_TABLES UINT64_C(0x9000)

/* What is needed of a file's beginning. */
#define LINUX_BOOT_HEAD_SIZE 1024

/* Whether it is a bzImage at all; whether it can be started is said by linux_boot_load. */
bool linux_boot_is_bzimage(const uint8_t head[static LINUX_BOOT_HEAD_SIZE]);

/* Loads the kernel where it prefers to be; IMAGE->end is the end of what it needs before it has looked at the
 * memory map. */
int linux_boot_load(const struct loader_file *file, const uint8_t head[static LINUX_BOOT_HEAD_SIZE],
                    struct memory *memory, struct loader_image *image, struct ferry_error *err);

/* One past the last address an initrd may have. */
uint64_t linux_boot_initrd_end(const uint8_t head[static LINUX_BOOT_HEAD_SIZE]);

struct linux_boot_inputs {
    const char *cmdline; /* or NULL */
    uint64_t rsdp;
    uint64_t initrd, initrd_size; /* no bytes: none */
};

/* Writes everything the kernel is told, and what the boot vCPU starts with. */
int linux_boot_write(struct memory *memory, const uint8_t head[static LINUX_BOOT_HEAD_SIZE],
                     const struct linux_boot_inputs *inputs, struct ferry_error *err);

#endif
