#include "cli/command.h"

#include "cli/host.h"

static int host_show(struct cli *cli, struct ferry_error *err)
{
    json_t *host = NULL;
    int result = client_get(&cli->client, "/v1/host", &host, err);

    if (result == 0)
        host_print(cli, host);
    json_decref(host);
    return result;
}

const struct command command_host_show = {
    .name = "host show",
    .group = "Hosts",
    .summary = "Show this host: its version, memory, and which machines it can run",
    .examples =
        (const struct example[]){
            {"ferry host show", "the host whose ferryd runs at /run/ferry"},
            {"ferry --host 127.0.0.1:7001 host show", "the one that listens there"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = host_show,
};
