/* The console on the 16550 at COM1. */
#include "../common/console.h"

#include "port.h"

#define UART_DATA         0
#define UART_LINE_STATUS  5
#define LINE_STATUS_DATA  0x01
#define LINE_STATUS_EMPTY 0x20

void console_put(const char *data, size_t size)
{
    while (size-- > 0) {
        while (!(port_in(PORT_UART + UART_LINE_STATUS) & LINE_STATUS_EMPTY))
            __builtin_ia32_pause();
        port_out(PORT_UART + UART_DATA, (uint8_t)*data++);
    }
}

char console_typed(void)
{
    if (!(port_in(PORT_UART + UART_LINE_STATUS) & LINE_STATUS_DATA))
        return 0;
    return (char)port_in(PORT_UART + UART_DATA);
}
