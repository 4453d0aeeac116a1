/*
 * Reading the API's JSON objects: a field that is missing or of another type reads as nothing, because an
 * older or newer host may leave it out. Keys with dots go down: "downtime_parts.pause".
 */
#ifndef FERRY_CLI_OBJECT_H
#define FERRY_CLI_OBJECT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

const char *object_text(const json_t *object, const char *key); /* "" when it is no text */
uint64_t object_number(const json_t *object, const char *key);  /* 0 when it is no number or negative */
bool object_flag(const json_t *object, const char *key);
json_t *object_get(const json_t *object, const char *key); /* NULL; borrowed */

/* A copy in which every string is harmless on a terminal (text.h). Owned by the caller. */
json_t *object_clean(json_t *value) __attribute__((warn_unused_result));

#endif
