/*
 * The ports of a PC by which a guest ends: the i8042's reset line and ACPI's PM1 registers.
 *
 * PM1's status reads as nothing pending; which of its events are enabled is kept, because Linux reads it
 * back, but none ever comes. The keyboard controller is always ready.
 */
#ifndef FERRY_MACHINE_X86_64_PC_PORTS_H
#define FERRY_MACHINE_X86_64_PC_PORTS_H

#include "bus/mmio.h"
#include "bus/state.h"
#include "machine/accel.h"

struct pc_ports {
    const struct accel_platform *platform;
    uint16_t pm1_enable; /* atomic while vCPUs run */
};

extern const struct state_table pc_ports_state; /* section "ports" */

/* PLATFORM and BUS are borrowed. */
int pc_ports_init(struct pc_ports *ports, struct mmio_bus *bus, const struct accel_platform *platform,
                  struct ferry_error *err);

#endif
