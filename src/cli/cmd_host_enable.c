#include "cli/command.h"

#include "cli/host.h"

static int host_enable(struct cli *cli, struct ferry_error *err)
{
    return host_set_migration(cli, true, err);
}

const struct command command_host_enable = {
    .name = "host enable",
    .group = "Hosts",
    .summary = "Let VMs leave this host and arrive on it",
    .examples =
        (const struct example[]){
            {"ferry host enable", "undoes ferry host disable"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = host_enable,
};
