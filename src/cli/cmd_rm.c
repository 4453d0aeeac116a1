#include "cli/command.h"

#include <stdlib.h>

static int rm(struct cli *cli, struct ferry_error *err)
{
    const char *name = args_operand(&cli->args, 0);
    char *path = client_path("/v1/vms/%s", name);
    int result = client_request(&cli->client, "DELETE", path, NULL, NULL, err);

    if (result == 0 && cli->json)
        cli_print_json(cli, NULL);
    else if (result == 0)
        fprintf(cli->out, "%s is removed\n", name);
    free(path);
    return result;
}

const struct command command_rm = {
    .name = "rm",
    .group = "Virtual machines",
    .summary = "Remove a VM that is stopped or has crashed",
    .text = "Its definition, its console's history and its log go; its disks stay.",
    .operands =
        (const struct operand[]){
            {.name = "VM", .kind = VALUE_VM},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry stop web && ferry rm web", "web is powered off, then forgotten"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = rm,
};
