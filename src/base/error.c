#include "base/error.h"

#include <stdio.h>
#include <string.h>

/* Appends to text[FERRY_ERROR_TEXT_SIZE], cutting off what does not fit. */
static void append(char *text, const char *more)
{
    size_t used = strlen(text);
    size_t size = strnlen(more, FERRY_ERROR_TEXT_SIZE - 1 - used);

    memcpy(text + used, more, size);
    text[used + size] = '\0';
}

/* The analyzer sees the functions themselves here. */
#undef error_set
#undef error_set_errno

/* All three format into a copy first: an argument may well be err->text itself. */
int error_set(struct ferry_error *err, int code, const char *format, ...)
{
    char text[FERRY_ERROR_TEXT_SIZE];
    va_list args;

    if (!err)
        return code;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    err->code = code;
    memcpy(err->text, text, sizeof(text));
    return code;
}

int error_set_errno(struct ferry_error *err, int code, const char *format, ...)
{
    char text[FERRY_ERROR_TEXT_SIZE];
    char words[128];
    va_list args;

    if (!err)
        return code;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    append(text, ": ");
    append(text, strerror_r(code < 0 ? -code : code, words, sizeof(words)));
    err->code = code;
    memcpy(err->text, text, sizeof(text));
    return code;
}

int error_prefix(struct ferry_error *err, int code, const char *format, ...)
{
    char text[FERRY_ERROR_TEXT_SIZE];
    va_list args;

    if (!err)
        return code;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    append(text, ": ");
    append(text, err->text);
    memcpy(err->text, text, sizeof(text));
    return code;
}
