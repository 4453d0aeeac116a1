/*
 * Filling in `struct ferry_error` (include/ferry/error.h).
 *
 *     return error_set(err, -ENOENT, "kernel %s does not exist", path);
 *     return error_prefix(err, result, "cannot start %s", name);   // "cannot start web: kernel x does not
 * exist"
 *
 * Both return the code so that they can stand in a return statement. `err` may be NULL. Thread-safe.
 */
#ifndef FERRY_BASE_ERROR_H
#define FERRY_BASE_ERROR_H

#include <ferry/error.h>

#include <stdarg.h>

/* Sets code (negative errno) and text. Returns code. */
int error_set(struct ferry_error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4), cold));

/* As error_set with ": " and the words for -code (strerror) appended. Returns code. */
int error_set_errno(struct ferry_error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4), cold));

/* Puts "PREFIX: " before the text that is there; code stays. Returns code (the parameter). */
int error_prefix(struct ferry_error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4), cold));

#ifdef __clang_analyzer__
/* It sees one file at a time, and would follow paths on which an error is none. */
#define error_set(err, code, ...)       (error_set(err, code, __VA_ARGS__), -1)
#define error_set_errno(err, code, ...) (error_set_errno(err, code, __VA_ARGS__), -1)
#endif

#endif
