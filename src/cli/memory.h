/*
 * Allocation for the command line: a client that runs out of memory says so and ends (status 1); it holds
 * nothing that would need saving. Everything returned is freed with free(3).
 */
#ifndef FERRY_CLI_MEMORY_H
#define FERRY_CLI_MEMORY_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

void *memory_resize(void *old, size_t size) __attribute__((warn_unused_result));
char *memory_copy_text(const char *text) __attribute__((warn_unused_result));
char *memory_format(const char *format, ...) __attribute__((format(printf, 1, 2), warn_unused_result));
char *memory_format_list(const char *format, va_list args)
    __attribute__((format(printf, 1, 0), warn_unused_result));

#endif
