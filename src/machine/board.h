/*
 * The board seam: what differs between machines beside the CPU. Where RAM and devices are, and what is put
 * into memory for the guest to start. One const table a machine; machine.c knows nothing else of them.
 *
 * Devices have places fixed by kind and number, so that both sides of a migration put them at the same
 * addresses whatever else the VM has.
 */
#ifndef FERRY_MACHINE_BOARD_H
#define FERRY_MACHINE_BOARD_H

#include "bus/memory.h"
#include "device/device.h"
#include "machine/accel.h"
#include "machine/machine.h"

#include <ferry/error.h>

enum board_device {
    BOARD_UART = 1,
    BOARD_RTC,
    BOARD_RNG,
    BOARD_CONSOLE,
    BOARD_VMGENID,
    BOARD_BLK, /* 0 to MACHINE_DISKS_MAX - 1 */
    BOARD_NET, /* 0 to MACHINE_NETS_MAX - 1 */
};

struct board_place {
    uint64_t mmio_addr;
    unsigned irq;
};

struct board {
    const char *machine; /* "riscv64" */
    const struct accel_ops *accel;
    int (*add_memory)(struct memory *memory, uint64_t size, struct ferry_error *err);
    struct board_place (*place)(enum board_device device, unsigned index);
    /* Makes the real-time clock that this kind of machine has. */
    int (*create_rtc)(struct device **out, const struct device_env *env, unsigned index,
                      struct ferry_error *err);
    /*
     * Loads kernel, initrd and what describes the machine, as the configuration says, and fills in where the
     * boot vCPU starts. May be called again for a guest's reboot.
     */
    int (*load)(const struct machine_config *config, struct memory *memory, struct accel_boot *boot,
                struct ferry_error *err);
};

/* NULL when this Ferry has no such machine. */
const struct board *board_find(const char *machine);

/* machine_new on a given board; for tests, which bring an accelerator of their own. */
int machine_new_on(struct machine **out, const struct board *board, const struct machine_config *config,
                   struct log *log, const struct machine_callbacks *callbacks, struct ferry_error *err);

extern const struct board board_riscv64; /* riscv64/board.c */
extern const struct board board_x86_64;  /* x86_64/board.c; on x86-64 hosts only */

#endif
