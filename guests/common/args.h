/* Boot arguments of bare-metal programs: a list of words, separated by blanks or commas. */
#ifndef GUEST_ARGS_H
#define GUEST_ARGS_H

#include <stdbool.h>
#include <stdint.h>

/* The number behind "NAME=" in the word list ARGS, with K, M, G (1024s) allowed; FALLBACK when it is not
 * there. */
uint64_t args_number(const char *args, const char *name, uint64_t fallback);

/* True when ARGS has "NAME=VALUE". */
bool args_is(const char *args, const char *name, const char *value);

#endif
