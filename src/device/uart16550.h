/*
 * A 16550A UART: byte registers at stride 1, 16-byte FIFOs, all interrupts, loopback; section "uartN".
 *
 * Output leaves at once through a callback. Input comes in through uart16550_input, which takes what there is
 * room for (a receive queue of UART_INPUT_SIZE bytes behind the FIFO, so nothing is ever overrun); when some
 * was refused, `input_ready` is called once there is room again. Thread-safe.
 * Reference: National Semiconductor PC16550D data sheet; register names as there.
 */
#ifndef FERRY_DEVICE_UART16550_H
#define FERRY_DEVICE_UART16550_H

#include "device/device.h"

#define UART_MMIO_SIZE  0x100 /* registers in the first 8 bytes; the rest reads as zero */
#define UART_INPUT_SIZE 1024
#define UART_CLOCK_HZ   3686400 /* for the device tree's clock-frequency */

/* Callbacks run on whatever thread caused them, output serialised; they must not call the device. */
struct uart16550_options {
    void *opaque;
    void (*output)(void *opaque, const void *data, size_t size); /* NULL: output is dropped */
    void (*input_ready)(void *opaque);                           /* may be NULL */
};

int uart16550_create(struct device **out, const struct device_env *env, unsigned index,
                     const struct uart16550_options *options, struct ferry_error *err);
/* Any thread. Returns how many bytes were taken, in order. */
size_t uart16550_input(struct device *device, const void *data, size_t size);

#endif
