#include "cli/command.h"

#include "cli/object.h"
#include "cli/table.h"

static void print_hosts(struct cli *cli, const json_t *hosts)
{
    struct table table = TABLE_INIT;
    const json_t *host;
    size_t index;

    table_column(&table, "NAME", TABLE_LEFT);
    table_column(&table, "ADDRESS", TABLE_LEFT);
    table_column(&table, "ANSWERS", TABLE_LEFT);
    table_column(&table, "VERSION", TABLE_LEFT);
    table_column(&table, "MIGRATION", TABLE_LEFT);
    table_column(&table, "WHY NOT", TABLE_LEFT);
    json_array_foreach(hosts, index, host)
    {
        table_cell(&table, object_text(host, "name"));
        table_cell(&table, object_text(host, "address"));
        table_cell(&table, object_flag(host, "reachable") ? "yes" : "no");
        table_cell(&table, object_text(host, "version"));
        table_cell(&table, object_text(host, "migration_status"));
        table_cell_format(&table, "%s", object_text(host, "why"));
    }
    table_print(&table, cli->out, cli->term.bold, cli->term.reset);
    table_free(&table);
}

static int host_list(struct cli *cli, struct ferry_error *err)
{
    json_t *hosts = NULL;
    int result = client_get(&cli->client, "/v1/hosts", &hosts, err);

    if (result == 0 && cli->json)
        cli_print_json(cli, hosts);
    else if (result == 0)
        print_hosts(cli, hosts);
    json_decref(hosts);
    return result;
}

const struct command command_host_list = {
    .name = "host list",
    .group = "Hosts",
    .summary = "List the hosts that this one knows, itself first",
    .examples =
        (const struct example[]){
            {"ferry host list", "which hosts VMs can move to, and whether they answer"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = host_list,
};
