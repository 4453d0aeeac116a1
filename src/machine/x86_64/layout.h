/*
 * The x86_64 machine as the guest sees it: where things are, and which interrupt they raise. The guest
 * depends on these numbers across a migration: they never change for an existing machine.
 *
 *     0x0000_0000  RAM, up to 3 GiB; 640 KiB to 1 MiB is reserved in the memory map
 *     0xc000_0000  nothing, then devices (the hole that PCI has on a PC):
 *     0xd000_0000  virtio-mmio slot 0, 0x1000 bytes each
 *     0xd010_0000  VM generation ID
 *     0xfec0_0000  I/O APIC, 0xfee0_0000 local APICs (in the kernel)
 *     0xfffb_c000  what KVM needs for itself on Intel processors
 *     1_0000_0000  the rest of RAM
 *
 * I/O ports are on the machine's MMIO bus, too, beyond any address that memory accesses can have.
 */
#ifndef FERRY_MACHINE_X86_64_LAYOUT_H
#define FERRY_MACHINE_X86_64_LAYOUT_H

#include <stdint.h>

#define X86_64_LOW_RAM_END  UINT64_C(0x9fc00)
#define X86_64_KERNEL_RAM   UINT64_C(0x100000)
#define X86_64_HOLE         UINT64_C(0xc0000000)
#define X86_64_HIGH_RAM     UINT64_C(0x100000000)
#define X86_64_KVM_IDENTITY UINT64_C(0xfffbc000) /* a page, and three for the TSS */
#define X86_64_KVM_TSS      UINT64_C(0xfffbd000)

/* A physical address has 52 bits at most. */
#define X86_64_PORTS      (UINT64_C(1) << 60)
#define X86_64_PORT_COUNT 0x10000

#define X86_64_PORT_I8042 0x64
#define X86_64_PORT_CMOS  0x70 /* index, and data at +1 */
#define X86_64_PORT_UART  0x3f8
#define X86_64_PORT_PM1A  0x600 /* ACPI: event block of 4 bytes, control block at +4 */
#define X86_64_UART_IRQ   4
#define X86_64_RTC_IRQ    8

#define X86_64_VIRTIO_BASE   UINT64_C(0xd0000000)
#define X86_64_VIRTIO_STRIDE UINT64_C(0x1000)
#define X86_64_VIRTIO_SLOTS  18

/* The keyboard's pin: there is none. */
#define X86_64_VMGENID_BASE UINT64_C(0xd0100000)
#define X86_64_VMGENID_IRQ  1

/* Pins of the I/O APIC, in order of slots: all but timer (0, 2), VM generation ID (1), UART, RTC and ACPI
 * (9).
 */
#define X86_64_VIRTIO_IRQS                                                                                   \
    {                                                                                                        \
        5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 3                                   \
    }

/* How the boot vCPU starts: accel_boot.arguments[1]. */
enum x86_64_boot {
    /* 32-bit protected mode, EBX: struct hvm_start_info (Xen docs/misc/pvh.pandoc). */
    X86_64_BOOT_PVH = 1,
    /* Long mode, RSI: struct boot_params (linux_boot.h). */
    X86_64_BOOT_LINUX64,
};

#endif
