/*
 * The console: text out by the SBI debug console where there is one, else by the old console call; characters
 * in from the UART.
 */
#ifndef BARE_CONSOLE_H
#define BARE_CONSOLE_H

#include "../common/console.h"

/* Where the UART is: one page, to be mapped by who uses console_typed() with paging on. */
#define CONSOLE_UART UINT64_C(0x10000000)

#endif
