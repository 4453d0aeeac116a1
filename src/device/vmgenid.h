/*
 * The VM generation ID (Microsoft, "Virtual Machine Generation ID", 2012; Linux drivers/virt/vmgenid.c,
 * Documentation/devicetree/bindings/rng/microsoft,vmgenid.yaml); section "vmgenidN".
 *
 * 16 random bytes that the guest reads at the beginning of the device's page. They stay what they are for as
 * long as the guest has one past: through moves, pauses and reboots. When it goes on from a moment from which
 * it has gone on already, or may have, they change, and the interrupt is raised: Linux then seeds its random
 * numbers anew, which two guests would else draw alike. Reading the last of the 16 bytes lowers the
 * interrupt.
 *
 * The specification allows memory or registers; these are registers, so that nothing is written into a guest
 * whose memory is still in a file.
 */
#ifndef FERRY_DEVICE_VMGENID_H
#define FERRY_DEVICE_VMGENID_H

#include "device/device.h"

#define VMGENID_SIZE      16
#define VMGENID_MMIO_SIZE 0x1000

int vmgenid_create(struct device **out, const struct device_env *env, unsigned index,
                   struct ferry_error *err);
/* Another id; the guest is told when it runs. Quiesced, or before start. */
int vmgenid_renew(struct device *device, struct ferry_error *err);

#endif
