#include "base/uuid.h"

#include "base/error.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

int uuid_make(uint8_t uuid[static UUID_SIZE], struct ferry_error *err)
{
    if (getrandom(uuid, UUID_SIZE, 0) != UUID_SIZE)
        return error_set_errno(err, -errno, "no random numbers for a UUID");
    uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x40);
    uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
    return 0;
}

/* Whether a dash comes before byte I. */
static bool dash_before(unsigned i)
{
    return i == 4 || i == 6 || i == 8 || i == 10;
}

char *uuid_format(const uint8_t uuid[static UUID_SIZE], char text[static UUID_TEXT_SIZE])
{
    static const char digits[] = "0123456789abcdef";
    char *out = text;

    for (unsigned i = 0; i < UUID_SIZE; i++) {
        if (dash_before(i))
            *out++ = '-';
        *out++ = digits[uuid[i] >> 4];
        *out++ = digits[uuid[i] & 15];
    }
    *out = '\0';
    return text;
}

/* -1: it is no hexadecimal digit. */
static int digit_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

bool uuid_parse(const char *text, uint8_t uuid[static UUID_SIZE])
{
    uint8_t parsed[UUID_SIZE];

    if (strlen(text) != UUID_TEXT_SIZE - 1)
        return false;
    for (unsigned i = 0; i < UUID_SIZE; i++, text += 2) {
        int high, low;

        if (dash_before(i) && *text++ != '-')
            return false;
        high = digit_value(text[0]);
        low = digit_value(text[1]);
        if (high < 0 || low < 0)
            return false;
        parsed[i] = (uint8_t)(high << 4 | low);
    }
    memcpy(uuid, parsed, sizeof(parsed));
    return true;
}

bool uuid_is_set(const uint8_t uuid[static UUID_SIZE])
{
    for (unsigned i = 1; i < UUID_SIZE; i++)
        if (uuid[i] != uuid[0])
            return true;
    return uuid[0] != 0x00 && uuid[0] != 0xff;
}
