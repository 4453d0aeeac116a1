/*
 * Parameters of a request: taken out of the JSON object with checks, errors naming the parameter.
 * All return 0 or -EINVAL.
 */
#ifndef FERRY_VM_PARAMS_H
#define FERRY_VM_PARAMS_H

#include <ferry/error.h>

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

/* Nothing but the NULL-terminated list of names may be there. */
int params_only(const json_t *params, const char *const *names, struct ferry_error *err);
/* A needed text of 1 to size - 1 printable ASCII characters. */
int params_text(const json_t *params, const char *name, char *out, size_t size, struct ferry_error *err);
/* 2 * SIZE hexadecimal digits. */
int params_hex(const json_t *params, const char *name, uint8_t *out, size_t size, struct ferry_error *err);
/* A whole number from 0 to MAX; *out stays as it is when the parameter is absent or null. */
int params_number(const json_t *params, const char *name, uint64_t max, uint64_t *out,
                  struct ferry_error *err);

#endif
