#include "cli/command.h"

#include <stdlib.h>

static int host_remove(struct cli *cli, struct ferry_error *err)
{
    const char *name = args_operand(&cli->args, 0);
    char *path = client_path("/v1/hosts/%s", name);
    int result = client_request(&cli->client, "DELETE", path, NULL, NULL, err);

    if (result == 0 && cli->json)
        cli_print_json(cli, NULL);
    else if (result == 0)
        fprintf(cli->out, "%s is forgotten\n", name);
    free(path);
    return result;
}

const struct command command_host_remove = {
    .name = "host remove",
    .group = "Hosts",
    .summary = "Forget another host",
    .text = "Nothing changes on the other host, and its VMs run on.",
    .operands =
        (const struct operand[]){
            {.name = "NAME", .kind = VALUE_HOST},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry host remove b", "VMs can no longer move to b from here"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = host_remove,
};
