#include "console.h"

#include <stddef.h>

static struct {
    char data[1024];
    size_t used;
} out;

void console_flush(void)
{
    console_put(out.data, out.used);
    out.used = 0;
}

void console_char(char c)
{
    out.data[out.used++] = c;
    if (c == '\n' || out.used == sizeof(out.data))
        console_flush();
}

void console_text(const char *text)
{
    while (*text)
        console_char(*text++);
}

void console_hex(uint64_t value, unsigned digits)
{
    while (digits-- > 0)
        console_char("0123456789abcdef"[(value >> (4 * digits)) & 15]);
}

void console_decimal(uint64_t value)
{
    char text[20];
    unsigned n = 0;

    do {
        text[n++] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    while (n > 0)
        console_char(text[--n]);
}

void console_thousandths(uint64_t thousandths)
{
    console_decimal(thousandths / 1000);
    console_char('.');
    console_char((char)('0' + thousandths / 100 % 10));
    console_char((char)('0' + thousandths / 10 % 10));
    console_char((char)('0' + thousandths % 10));
}

void console_field(const char *name, uint64_t value)
{
    console_char(' ');
    console_text(name);
    console_char('=');
    console_decimal(value);
}

void console_field_hex(const char *name, uint64_t value)
{
    console_char(' ');
    console_text(name);
    console_char('=');
    console_hex(value, 16);
}
