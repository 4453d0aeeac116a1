/*
 * The state tables of all devices, for who reads their sections without having the devices (bus/state.h). A
 * section is called as its device: "virtio-blk0".
 */
#ifndef FERRY_DEVICE_TABLES_H
#define FERRY_DEVICE_TABLES_H

#include "bus/state.h"

extern const struct state_table goldfish_rtc_table;
extern const struct state_table mc146818_table;
extern const struct state_table uart16550_table;
extern const struct state_table virtio_blk_table;
extern const struct state_table virtio_console_table;
extern const struct state_table virtio_net_table;
extern const struct state_table virtio_rng_table;
extern const struct state_table vmgenid_table;

#endif
