#include "cli/command.h"

#include "cli/host.h"

static int host_disable(struct cli *cli, struct ferry_error *err)
{
    return host_set_migration(cli, false, err);
}

const struct command command_host_disable = {
    .name = "host disable",
    .group = "Hosts",
    .summary = "Let no VM leave this host or arrive on it",
    .examples =
        (const struct example[]){
            {"ferry host disable", "for the time of some work on the host; its VMs run on"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = host_disable,
};
