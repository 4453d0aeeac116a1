#include "console.h"

#include "sbi.h"

#include <stdbool.h>
#include <stddef.h>

static struct {
    char data[1024];
    size_t used;
    bool probed, has_dbcn;
} out;

void console_flush(void)
{
    size_t done = 0;

    if (!out.probed) {
        out.has_dbcn = sbi_has(SBI_EXT_DBCN);
        out.probed = true;
    }
    while (done < out.used) {
        if (out.has_dbcn) {
            struct sbi_result result =
                sbi_call(SBI_EXT_DBCN, 0, out.used - done, (uint64_t)(out.data + done), 0);

            if (result.error)
                break;
            done += result.value;
        } else {
            sbi_call(SBI_EXT_LEGACY_PUTCHAR, 0, (uint64_t)out.data[done++], 0, 0);
        }
    }
    out.used = 0;
}

char console_typed(void)
{
    /* A 16550: its data and its line status, whose bit 0 tells of data. */
    const volatile uint8_t *uart = (const volatile uint8_t *)CONSOLE_UART;

    return (uart[5] & 1) ? (char)uart[0] : 0;
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
