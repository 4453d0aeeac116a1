#include "cli/command.h"

#include "cli/cluster.h"
#include "cli/object.h"

static void print_common(struct cli *cli, const json_t *common)
{
    const char *generation = object_text(common, "generation");
    const json_t *host;
    size_t index;

    if (*generation)
        fprintf(cli->out, "all hosts can be %s; to make that the baseline: ferry cluster baseline set %s\n",
                generation, generation);
    else
        fprintf(cli->out, "there is no baseline that all hosts can be\n");
    fprintf(cli->out, "\ncommon to all:\n");
    cluster_print_features(cli, object_get(common, "features"));
    json_array_foreach(object_get(common, "hosts"), index, host)
    {
        fprintf(cli->out, "\n%s (%s): can be %s%s\n", object_text(host, "name"),
                *object_text(host, "model") ? object_text(host, "model") : object_text(host, "vendor"),
                *object_text(host, "generation") ? object_text(host, "generation") : "none of them",
                json_array_size(object_get(host, "beyond")) ? "; others lack of it:" : "");
        cluster_print_features(cli, object_get(host, "beyond"));
    }
}

static int cluster_baseline_compute(struct cli *cli, struct ferry_error *err)
{
    json_t *common = NULL;
    int result = client_get(&cli->client, "/v1/cluster/baseline/compute", &common, err);

    if (result == 0 && cli->json)
        cli_print_json(cli, common);
    else if (result == 0)
        print_common(cli, common);
    json_decref(common);
    return result;
}

const struct command command_cluster_baseline_compute = {
    .name = "cluster baseline compute",
    .group = "Hosts",
    .summary = "Find the highest CPU baseline that all hosts can be; changes nothing",
    .text = "Asks this host and all that it knows for their CPUs' features, as far as KVM gives them to VMs, "
            "and tells "
            "what is common to all, the highest baseline within that, and what each host has beyond.",
    .examples =
        (const struct example[]){
            {"ferry cluster baseline compute", "before ferry cluster baseline set"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = cluster_baseline_compute,
};
