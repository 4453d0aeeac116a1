/*
 * UUIDs (RFC 9562): 16 bytes in the order in which they are written down.
 */
#ifndef FERRY_BASE_UUID_H
#define FERRY_BASE_UUID_H

#include <ferry/error.h>

#include <stdbool.h>
#include <stdint.h>

#define UUID_SIZE      16
#define UUID_TEXT_SIZE 37 /* with its NUL */

/* A random one (version 4). */
int uuid_make(uint8_t uuid[static UUID_SIZE], struct ferry_error *err);
/* "1b4e28ba-2fa1-41d2-883f-0016d3cca427"; digits in lower case. Returns TEXT. */
char *uuid_format(const uint8_t uuid[static UUID_SIZE], char text[static UUID_TEXT_SIZE]);
/* Digits of either case. False, with UUID as it was: that is none. */
bool uuid_parse(const char *text, uint8_t uuid[static UUID_SIZE]);
/* Whether it is anybody's: all zeros, or all ones, stands for none. */
bool uuid_is_set(const uint8_t uuid[static UUID_SIZE]);

#endif
