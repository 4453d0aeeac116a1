#include "cli/command.h"

#include "cli/cluster.h"

static int cluster_baseline_show(struct cli *cli, struct ferry_error *err)
{
    json_t *baseline = NULL;
    int result = client_get(&cli->client, "/v1/cluster/baseline", &baseline, err);

    if (result == 0)
        cluster_print_baseline(cli, baseline);
    json_decref(baseline);
    return result;
}

const struct command command_cluster_baseline_show = {
    .name = "cluster baseline show",
    .group = "Hosts",
    .summary = "Show the CPU baseline of all hosts, and what each host's CPU can",
    .examples =
        (const struct example[]){
            {"ferry cluster baseline show", "which CPU VMs are given"},
            {"ferry cluster baseline show --json", "with all its features"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = cluster_baseline_show,
};
