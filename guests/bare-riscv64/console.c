#include "console.h"

#include "sbi.h"

#include <stdbool.h>
#include <stddef.h>

void console_put(const char *data, size_t size)
{
    static bool probed, has_dbcn;
    size_t done = 0;

    if (!probed) {
        has_dbcn = sbi_has(SBI_EXT_DBCN);
        probed = true;
    }
    while (done < size) {
        if (has_dbcn) {
            struct sbi_result result = sbi_call(SBI_EXT_DBCN, 0, size - done, (uint64_t)(data + done), 0);

            if (result.error)
                break;
            done += result.value;
        } else {
            sbi_call(SBI_EXT_LEGACY_PUTCHAR, 0, (uint64_t)data[done++], 0, 0);
        }
    }
}

char console_typed(void)
{
    /* A 16550: its data and its line status, whose bit 0 tells of data. */
    const volatile uint8_t *uart = (const volatile uint8_t *)CONSOLE_UART;

    return (uart[5] & 1) ? (char)uart[0] : 0;
}
