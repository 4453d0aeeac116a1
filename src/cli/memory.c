#include "cli/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *require(void *pointer)
{
    if (!pointer) {
        fputs("ferry: out of memory\n", stderr);
        exit(1);
    }
    return pointer;
}

void *memory_resize(void *old, size_t size)
{
    return require(realloc(old, size));
}

char *memory_copy_text(const char *text)
{
    return require(strdup(text));
}

char *memory_format(const char *format, ...)
{
    va_list args;
    char *text;

    va_start(args, format);
    text = memory_format_list(format, args);
    va_end(args);
    return text;
}

char *memory_format_list(const char *format, va_list args)
{
    char *text = NULL;

    if (vasprintf(&text, format, args) < 0)
        text = NULL;
    return require(text);
}
