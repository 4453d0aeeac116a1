#include "cli/command.h"

#include "cli/forecast.h"
#include "cli/migration_options.h"
#include "cli/object.h"
#include "cli/table.h"

#include <stdlib.h>

static void print_rows(struct cli *cli, const json_t *rows)
{
    struct table table = TABLE_INIT;
    const json_t *row;
    size_t i;

    for (int column = 0; column < 3; column++)
        table_column(&table, "", TABLE_LEFT);
    json_array_foreach(rows, i, row)
    {
        table_cell(&table, object_text(row, "severity"));
        table_cell(&table, object_text(row, "check"));
        table_cell(&table, object_text(row, "message"));
    }
    table_print(&table, cli->out, "", "");
    table_free(&table);
}

static int check(struct cli *cli, struct ferry_error *err)
{
    char *path;
    json_t *body = NULL;
    json_t *answer = NULL;
    int result = migration_request(&cli->args, &body, err);

    if (result < 0)
        return result;
    json_object_set_new(body, "forecast", json_boolean(!args_has(&cli->args, "no-forecast")));
    path = client_path("/v1/vms/%s/check", args_operand(&cli->args, 0));
    result = client_request(&cli->client, "POST", path, body, &answer, err);
    if (result == 0) {
        bool possible = object_flag(answer, "possible");

        if (cli->json) {
            cli_print_json(cli, answer);
        } else {
            fprintf(cli->out, "%s %s move from %s to %s\n", object_text(answer, "vm"),
                    possible ? "can" : "cannot", object_text(answer, "source"),
                    object_text(answer, "destination"));
            print_rows(cli, object_get(answer, "checks"));
            forecast_print(cli, object_get(answer, "forecast"), NULL);
        }
        if (!possible)
            cli->exit_status = EXIT_STATUS_REFUSED;
    }
    json_decref(answer);
    json_decref(body);
    free(path);
    return result;
}

const struct command command_check = {
    .name = "check",
    .group = "Moving",
    .summary = "Tell whether a VM could move to another host, and how it would go",
    .text =
        "Makes all the checks that ferry migrate begins with, on both hosts, and lists every error and every "
        "warning. With warnings alone the VM can move (exit status 0); with an error it cannot (3).\n"
        "Then it watches for a second how the VM writes its memory, measures the way to the other host with "
        "64 MiB, "
        "and tells what a migration with these options would be like: rounds, total time, downtime, bytes, "
        "and "
        "whether it would converge. Nothing is changed.",
    .options =
        (const struct option[]){
            {.name = "no-forecast", .help = "only the checks"},
            MIGRATION_OPTIONS,
            {.name = NULL},
        },
    .operands =
        (const struct operand[]){
            {.name = "VM", .kind = VALUE_VM},
            {.name = "DEST", .kind = VALUE_HOST},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry check web b", "could web move to b, and what would it mean?"},
            {"ferry check web b --bandwidth 1Gbit", "the same on a tenth of a 10 Gbit/s link"},
            {"ferry check web b --json | jq -r '.checks[].message'", "the reasons, for scripts"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = check,
};
