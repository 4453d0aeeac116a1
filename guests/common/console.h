/*
 * Text out and characters in, for bare-metal programs. Written a line at a time. One CPU at a time may use
 * it.
 */
#ifndef GUEST_CONSOLE_H
#define GUEST_CONSOLE_H

#include <stddef.h>
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

/* Every machine has its own of these two. The next character that was typed; 0 for none. */
void console_put(const char *data, size_t size);
char console_typed(void);

#endif
