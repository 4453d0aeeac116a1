#include "cli/command.h"

#include "cli/cluster.h"

#include <string.h>

static int cluster_baseline_set(struct cli *cli, struct ferry_error *err)
{
    const char *name = args_operand(&cli->args, 0);
    json_t *body = strcmp(name, "none") == 0 ? cli_pack("{}") : cli_pack("{s:s}", "name", name);
    json_t *baseline = NULL;
    int result = client_request(&cli->client, "POST", "/v1/cluster/baseline", body, &baseline, err);

    if (result == 0)
        cluster_print_baseline(cli, baseline);
    json_decref(baseline);
    json_decref(body);
    return result;
}

const struct command command_cluster_baseline_set = {
    .name = "cluster baseline set",
    .group = "Hosts",
    .summary = "Give new VMs on all hosts no more CPU features than a baseline has",
    .text = "BASELINE is a CPU generation, like x86-64-v2 or amd-milan (an unknown one is refused with the "
            "list), or "
            "\"none\". All hosts must answer and have all of it. VMs that run keep what they were given "
            "until they are "
            "powered off and started again: a baseline can be raised under them, and is not lowered below "
            "what one of "
            "them was given.",
    .operands =
        (const struct operand[]){
            {.name = "BASELINE", .kind = VALUE_TEXT},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry cluster baseline set amd-milan", "VMs started from now on can move between all hosts"},
            {"ferry cluster baseline set none", "a VM gets all that its host has"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = cluster_baseline_set,
};
