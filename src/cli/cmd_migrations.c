#include "cli/command.h"

#include "cli/migration.h"
#include "cli/object.h"
#include "cli/table.h"
#include "cli/units.h"

#include <stdlib.h>
#include <string.h>

static const char *const views[] = {"active", "history", "failed", NULL};

static void add_state(struct table *table, const json_t *migration)
{
    if (migration_has_ended(migration))
        table_cell(table, object_text(migration, "outcome"));
    else if (object_number(migration, "queue"))
        table_cell_format(table, "Queued, number %llu",
                          (unsigned long long)object_number(migration, "queue"));
    else
        table_cell_format(table, "%s %llu %%", object_text(migration, "phase"),
                          (unsigned long long)object_number(migration, "percent"));
}

static void print_migrations(struct cli *cli, const json_t *migrations, bool with_reason)
{
    struct table table = TABLE_INIT;
    const json_t *migration;
    size_t index;

    table_column(&table, "ID", TABLE_LEFT);
    table_column(&table, "VM", TABLE_LEFT);
    table_column(&table, "FROM", TABLE_LEFT);
    table_column(&table, "TO", TABLE_LEFT);
    table_column(&table, "STARTED", TABLE_LEFT);
    table_column(&table, "STATE", TABLE_LEFT);
    table_column(&table, "TOTAL", TABLE_RIGHT);
    table_column(&table, "DOWNTIME", TABLE_RIGHT);
    table_column(&table, "SENT", TABLE_RIGHT);
    table_column(&table, "ROUNDS", TABLE_RIGHT);
    if (with_reason)
        table_column(&table, "REASON", TABLE_LEFT);
    json_array_foreach(migrations, index, migration)
    {
        char id[MIGRATION_SHORT_SIZE], text[UNITS_TEXT_SIZE];
        uint64_t downtime = object_number(migration, "downtime_ns");

        table_cell(&table, migration_short_id(migration, id));
        table_cell(&table, object_text(migration, "vm"));
        table_cell(&table, object_text(migration, "source"));
        table_cell(&table,
                   migration_is_upgrade(migration) ? "(new process)" : object_text(migration, "destination"));
        table_cell(&table, units_format_time(object_text(migration, "started"), false, text));
        add_state(&table, migration);
        table_cell(&table, units_format_duration(object_number(migration, "total_ns"), text));
        table_cell(&table, downtime ? units_format_duration(downtime, text) : "");
        table_cell(&table, units_format_size(object_number(migration, "wire_bytes"), text));
        table_cell_format(&table, "%llu", (unsigned long long)object_number(migration, "round"));
        if (with_reason)
            table_cell(&table, object_text(migration, "error"));
    }
    table_print(&table, cli->out, cli->term.bold, cli->term.reset);
    table_free(&table);
}

static int migrations(struct cli *cli, struct ferry_error *err)
{
    const char *view = args_operand(&cli->args, 0);
    char *path = view ? client_path("/v1/migrations?view=%s", view) : client_path("/v1/migrations");
    json_t *answer = NULL;
    int result = client_get(&cli->client, path, &answer, err);

    if (result == 0 && cli->json)
        cli_print_json(cli, answer);
    else if (result == 0 && json_array_size(answer) == 0)
        fprintf(stderr, "no migrations on this host%s%s\n", view ? " in the view " : "", view ? view : "");
    else if (result == 0)
        print_migrations(cli, answer, view && strcmp(view, "failed") == 0);
    json_decref(answer);
    free(path);
    return result;
}

const struct command command_migrations = {
    .name = "migrations",
    .group = "Moving",
    .summary = "List migrations that this host takes or took part in, newest first",
    .text = "active: going on now, or queued because as many VMs leave the host already as may at once. "
            "history: ended. failed: ended without the VM having moved, with the reason. "
            "Without a word: all. Upgrades, from one process to another of this host, are among them.",
    .operands =
        (const struct operand[]){
            {.name = "active|history|failed", .kind = VALUE_CHOICE, .optional = true, .choices = views},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry migrations active", "what is moving now, and how far it is"},
            {"ferry migrations failed", "what went wrong, and why"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = migrations,
};
