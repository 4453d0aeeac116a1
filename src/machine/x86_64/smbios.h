/*
 * SMBIOS tables (DMTF DSP0134 3.3): a 64-bit entry point, in the segment where kernels look for it, and
 * behind it what firmware is said to be there (type 0), the machine with the VM's UUID (type 1), and the end
 * (type 127). Linux shows them in /sys/class/dmi/id; systemd makes a new system's machine id of the UUID.
 */
#ifndef FERRY_MACHINE_X86_64_SMBIOS_H
#define FERRY_MACHINE_X86_64_SMBIOS_H

#include "base/buffer.h"
#include "bus/memory.h"
#include "machine/machine.h"

#include <ferry/error.h>

#define SMBIOS_START UINT64_C(0xf0000)
#define SMBIOS_END   UINT64_C(0x100000)

/* Entry point and tables, as they are to lie in memory from SMBIOS_START on. -ENOMEM. */
int smbios_make(const struct machine_config *config, struct buffer *out, struct ferry_error *err);
int smbios_write(const struct machine_config *config, struct memory *memory, struct ferry_error *err);

#endif
