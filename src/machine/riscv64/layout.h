/*
 * The riscv64 machine as the guest sees it: where things are, which interrupt they raise, what the CPU can
 * do. One place, used by the built-in CPU, the device tree and the devices' set-up. The guest depends on
 * these numbers across a migration: they never change for an existing machine.
 *
 *     0x0010_1000  goldfish RTC
 *     0x0010_2000  VM generation ID
 *     0x0c00_0000  PLIC
 *     0x1000_0000  UART 16550
 *     0x1000_1000  virtio-mmio slot 0, 0x1000 bytes each
 *     0x8000_0000  RAM
 */
#ifndef FERRY_MACHINE_RISCV64_LAYOUT_H
#define FERRY_MACHINE_RISCV64_LAYOUT_H

#include <stdint.h>

#define RISCV64_HARTS_MAX 8

#define RISCV64_RAM_BASE UINT64_C(0x80000000)
/* Where a flat Image wants to be: 2 MiB above the start of RAM. */
#define RISCV64_KERNEL_OFFSET UINT64_C(0x200000)

#define RISCV64_RTC_BASE UINT64_C(0x101000)
#define RISCV64_RTC_SIZE UINT64_C(0x1000)
#define RISCV64_RTC_IRQ  33

#define RISCV64_VMGENID_BASE UINT64_C(0x102000)
#define RISCV64_VMGENID_SIZE UINT64_C(0x1000)
#define RISCV64_VMGENID_IRQ  34

#define RISCV64_UART_BASE  UINT64_C(0x10000000)
#define RISCV64_UART_SIZE  UINT64_C(0x100)
#define RISCV64_UART_IRQ   32
#define RISCV64_UART_CLOCK 3686400 /* Hz, for clock-frequency */

#define RISCV64_VIRTIO_BASE   UINT64_C(0x10001000)
#define RISCV64_VIRTIO_STRIDE UINT64_C(0x1000)
#define RISCV64_VIRTIO_SLOTS  24
#define RISCV64_VIRTIO_IRQ    1 /* slot N raises RISCV64_VIRTIO_IRQ + N */

/*
 * PLIC (registered on the bus by the CPU itself). There is no M-mode, so there is one context a hart: context
 * number = hart number, interrupts-extended = <&cpuN_intc 9> for each hart in order.
 */
#define RISCV64_PLIC_BASE    UINT64_C(0x0c000000)
#define RISCV64_PLIC_SIZE    UINT64_C(0x600000)
#define RISCV64_PLIC_SOURCES 63 /* riscv,ndev: sources 1 to 63 */

#define RISCV64_TIMEBASE_HZ 10000000 /* timebase-frequency */

/*
 * What the CPU is, for the device tree. svadu: the page-table walk sets A and D. svvptc: invalid entries are
 * never cached, so a new valid entry is seen without sfence.vma.
 */
#define RISCV64_ISA      "rv64imafdc_zicntr_zicsr_zifencei_sstc_svadu_svvptc"
#define RISCV64_ISA_BASE "rv64i"
/* A device tree string list. */
#define RISCV64_ISA_EXTENSIONS "i\0m\0a\0f\0d\0c\0zicntr\0zicsr\0zifencei\0sstc\0svadu\0svvptc"
#define RISCV64_MMU_TYPE       "riscv,sv48"

#endif
