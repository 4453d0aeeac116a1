/* I/O ports: those of a PC that the programs use, and access to them. */
#ifndef BARE_PORT_H
#define BARE_PORT_H

#include <stdint.h>

#define PORT_PIT_CHANNEL2 0x42
#define PORT_PIT_MODE     0x43
#define PORT_SYSTEM       0x61 /* bit 0: the gate of PIT channel 2; bit 5: its output */
#define PORT_I8042        0x64
#define PORT_UART         0x3f8
#define PORT_PM1A_CONTROL 0x604 /* where QEMU's pc and Ferry's x86_64 have it */

static inline uint8_t port_in(uint16_t port)
{
    uint8_t value;

    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void port_out(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}

static inline void port_out16(uint16_t port, uint16_t value)
{
    __asm__ volatile("outw %0, %1" ::"a"(value), "Nd"(port));
}

/* One by one to the same port, by one instruction: on KVM that is one exit. */
static inline void port_out_bytes(uint16_t port, const char *data, uint64_t count)
{
    __asm__ volatile("rep outsb" : "+S"(data), "+c"(count) : "d"(port) : "memory");
}

#endif
