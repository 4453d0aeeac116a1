#include "args.h"

#include <stddef.h>

static bool text_starts(const char *text, const char *prefix)
{
    while (*prefix && *text == *prefix) {
        text++;
        prefix++;
    }
    return !*prefix;
}

/* The text behind "NAME=" in ARGS, or NULL. Words end at blanks or commas. */
static const char *args_find(const char *args, const char *name)
{
    while (*args) {
        if (text_starts(args, name)) {
            const char *p = args;

            for (const char *n = name; *n; n++)
                p++;
            if (*p == '=')
                return p + 1;
        }
        while (*args && *args != ' ' && *args != ',')
            args++;
        while (*args == ' ' || *args == ',')
            args++;
    }
    return NULL;
}

uint64_t args_number(const char *args, const char *name, uint64_t fallback)
{
    const char *p = args_find(args, name);
    uint64_t value = 0;

    if (!p || *p < '0' || *p > '9')
        return fallback;
    while (*p >= '0' && *p <= '9')
        value = value * 10 + (uint64_t)(*p++ - '0');
    if (*p == 'K')
        value <<= 10;
    else if (*p == 'M')
        value <<= 20;
    else if (*p == 'G')
        value <<= 30;
    return value;
}

bool args_is(const char *args, const char *name, const char *value)
{
    const char *p = args_find(args, name);

    if (!p || !text_starts(p, value))
        return false;
    while (*value++)
        p++;
    return *p == '\0' || *p == ' ' || *p == ',';
}
