/*
 * ACPI tables (ACPI 6.4 §5.2): RSDP, XSDT, FADT, FACS, MADT and DSDT, in the first half of the 128 KiB below
 * 1 MiB where kernels look for the first of them. They say how many CPUs there are, how to switch off and
 * reset, where COM1 is, which virtio devices there are ("LNRO0005", as kernels that know no device tree want
 * them), and the VM's generation ID with its event.
 */
#ifndef FERRY_MACHINE_X86_64_ACPI_H
#define FERRY_MACHINE_X86_64_ACPI_H

#include "base/buffer.h"
#include "bus/memory.h"
#include "machine/machine.h"

#include <ferry/error.h>

#define ACPI_START UINT64_C(0xe0000)
#define ACPI_END   UINT64_C(0xf0000)

/* All tables, as they are to lie in memory from ACPI_START on; the RSDP is first. -ENOMEM. */
int acpi_make(const struct machine_config *config, struct buffer *out, struct ferry_error *err);
int acpi_write(const struct machine_config *config, struct memory *memory, struct ferry_error *err);

#endif
