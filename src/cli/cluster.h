/* What the commands "cluster baseline ..." share. */
#ifndef FERRY_CLI_CLUSTER_H
#define FERRY_CLI_CLUSTER_H

#include "cli/command.h"

/* The object of GET /v1/cluster/baseline, or with --json as it came. */
void cluster_print_baseline(struct cli *cli, const json_t *baseline);
/* An array of names as words, wrapped, indented by two. */
void cluster_print_features(struct cli *cli, const json_t *features);

#endif
