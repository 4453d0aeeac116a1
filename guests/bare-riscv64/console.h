/*
 * Text out, by the SBI debug console where there is one, else by the old console call. Written a line at a
 * time. One hart at a time may use it. Characters in, from the UART.
 */
#ifndef BARE_CONSOLE_H
#define BARE_CONSOLE_H

#include <stdint.h>

void console_char(char c);
void console_text(const char *text);

/* VALUE in hexadecimal, exactly DIGITS digits, without a prefix. */
void console_hex(uint64_t value, unsigned digits);

void console_decimal(uint64_t value);

/* THOUSANDTHS as a decimal fraction with three digits: 1234 is "1.234". */
void console_thousandths(uint64_t thousandths);

/* " NAME=" and VALUE. */
void console_field(const char *name, uint64_t value);
void console_field_hex(const char *name, uint64_t value);

void console_flush(void);

/* Where the UART is: one page, to be mapped by who uses console_typed() with paging on. */
#define CONSOLE_UART UINT64_C(0x10000000)

/* The next character that was typed; 0 for none. */
char console_typed(void);

#endif
