/* A host object (docs/API.md) for people, and what enable and disable share. */
#ifndef FERRY_CLI_HOST_H
#define FERRY_CLI_HOST_H

#include "cli/command.h"

/* With --json as it came. */
void host_print(struct cli *cli, const json_t *host);
/* Whether VMs may leave and arrive; prints the outcome. */
int host_set_migration(struct cli *cli, bool enabled, struct ferry_error *err);

#endif
