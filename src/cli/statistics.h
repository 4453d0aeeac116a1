/* Statistics of a host's migrations (GET /v1/migrations/statistics), for people. */
#ifndef FERRY_CLI_STATISTICS_H
#define FERRY_CLI_STATISTICS_H

#include "cli/command.h"

/* A line a kind: how many, how they ended, how long they took. Nothing when none has ended. */
void statistics_print(struct cli *cli, const json_t *statistics);
/* A line a class of failure: how many, and what it means. Nothing when none has failed. */
void statistics_print_causes(struct cli *cli, const json_t *statistics);

#endif
