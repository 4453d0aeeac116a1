/*
 * A VM definition (docs/API.md) from the options of `ferry run`.
 */
#ifndef FERRY_CLI_DEFINITION_H
#define FERRY_CLI_DEFINITION_H

#include "cli/args.h"

#include <jansson.h>

/* Paths become absolute. With LOCAL the host reads this machine's files, and those that are not there are
 * refused here (-ENOENT and such); else paths must be absolute already. What makes no sense is -EINVAL.
 * *definition is the caller's. */
int definition_make(const struct args *args, bool local, json_t **definition, struct ferry_error *err);
/* Whether the option of `ferry run` is part of the definition. */
bool definition_is_option(const char *name);

#endif
