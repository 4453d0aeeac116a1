/*
 * The ports of a PC by which a guest ends: the i8042's reset line and ACPI's PM1 registers.
 *
 * They have no state worth keeping: PM1's status reads as nothing pending; of its events only the global
 * lock's is enabled, always, which Linux insists on and which never comes; the keyboard controller is always
 * ready.
 */
#ifndef FERRY_MACHINE_X86_64_PC_PORTS_H
#define FERRY_MACHINE_X86_64_PC_PORTS_H

#include "bus/mmio.h"
#include "machine/accel.h"

struct pc_ports {
    const struct accel_platform *platform;
};

/* PLATFORM and BUS are borrowed. */
int pc_ports_init(struct pc_ports *ports, struct mmio_bus *bus, const struct accel_platform *platform,
                  struct ferry_error *err);

#endif
