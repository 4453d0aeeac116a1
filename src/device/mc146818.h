/*
 * The PC's real-time clock, a Motorola MC146818A, with its battery-backed memory: an index port and, after
 * it, a data port; section "cmosN".
 *
 * The time is the host's CLOCK_REALTIME, in UTC, plus an offset that the guest's setting of the clock changes
 * and that moves with the VM. Alarm and update-ended interrupts come on the second, from a thread ("cmosN")
 * that sleeps while neither is enabled; it belongs to the device and ends in destroy. There is no periodic
 * interrupt, nor a square wave. Reference: MC146818A data sheet (Motorola 1984); register names as there. The
 * century is at 0x32, as ACPI is told.
 */
#ifndef FERRY_DEVICE_MC146818_H
#define FERRY_DEVICE_MC146818_H

#include "device/device.h"

#define MC146818_PORTS   2    /* bytes on the bus at env.mmio_addr */
#define MC146818_CENTURY 0x32 /* index of the century, for the FADT */

int mc146818_create(struct device **out, const struct device_env *env, unsigned index,
                    struct ferry_error *err);

#endif
