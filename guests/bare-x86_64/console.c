/* The console on the 16550 at COM1. */
#include "../common/console.h"

#include "port.h"

#include <stdbool.h>

#define UART_DATA         0
#define UART_FIFO_CONTROL 2
#define UART_FIFO_SIZE    16
#define FIFO_ENABLE       0x01
#define UART_LINE_STATUS  5
#define LINE_STATUS_DATA  0x01
#define LINE_STATUS_EMPTY 0x20

void console_put(const char *data, size_t size)
{
    static bool has_fifo;

    if (!has_fifo) {
        port_out(PORT_UART + UART_FIFO_CONTROL, FIFO_ENABLE);
        has_fifo = true;
    }
    while (size > 0) {
        size_t part = size < UART_FIFO_SIZE ? size : UART_FIFO_SIZE;

        while (!(port_in(PORT_UART + UART_LINE_STATUS) & LINE_STATUS_EMPTY))
            __builtin_ia32_pause();
        port_out_bytes(PORT_UART + UART_DATA, data, part);
        data += part;
        size -= part;
    }
}

char console_typed(void)
{
    if (!(port_in(PORT_UART + UART_LINE_STATUS) & LINE_STATUS_DATA))
        return 0;
    return (char)port_in(PORT_UART + UART_DATA);
}
