#include "cli/cluster.h"

#include "cli/object.h"
#include "cli/table.h"

#include <string.h>

#define LINE_WIDTH 100

void cluster_print_features(struct cli *cli, const json_t *features)
{
    const json_t *feature;
    size_t index, column = 0;

    json_array_foreach(features, index, feature)
    {
        const char *name = json_string_value(feature) ? json_string_value(feature) : "";

        if (column == 0 || column + 1 + strlen(name) > LINE_WIDTH) {
            fprintf(cli->out, "%s ", column ? "\n" : "");
            column = 1;
        }
        fprintf(cli->out, " %s", name);
        column += 1 + strlen(name);
    }
    if (column)
        fprintf(cli->out, "\n");
}

void cluster_print_baseline(struct cli *cli, const json_t *baseline)
{
    struct table table = TABLE_INIT;
    const json_t *host;
    size_t index;

    if (cli->json) {
        cli_print_json(cli, baseline);
        return;
    }
    if (*object_text(baseline, "name"))
        fprintf(cli->out, "CPU baseline: %s, %zu features\n\n", object_text(baseline, "name"),
                json_array_size(object_get(baseline, "features")));
    else
        fprintf(cli->out, "no CPU baseline: a VM gets all that the host has which starts it\n\n");
    table_column(&table, "HOST", TABLE_LEFT);
    table_column(&table, "BASELINE", TABLE_LEFT);
    table_column(&table, "CPU CAN", TABLE_LEFT);
    table_column(&table, "WHY NOT", TABLE_LEFT);
    json_array_foreach(object_get(baseline, "hosts"), index, host)
    {
        table_cell(&table, object_text(host, "name"));
        table_cell(&table, object_text(host, "baseline"));
        table_cell(&table, object_text(host, "generation"));
        table_cell_format(&table, "%s", object_text(host, "why"));
    }
    table_print(&table, cli->out, cli->term.bold, cli->term.reset);
    table_free(&table);
}
