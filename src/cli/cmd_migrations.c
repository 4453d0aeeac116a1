#include "cli/command.h"

#include "cli/migration.h"
#include "cli/object.h"
#include "cli/statistics.h"
#include "cli/table.h"
#include "cli/units.h"

#include <stdlib.h>
#include <string.h>

static const char *const views[] = {"active", "history", "failed", "statistics", NULL};

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
    if (with_reason) {
        table_column(&table, "CAUSE", TABLE_LEFT);
        table_column(&table, "REASON", TABLE_LEFT);
    }
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
        if (with_reason) {
            table_cell(&table, object_text(migration, "cause"));
            table_cell(&table, object_text(migration, "error"));
        }
    }
    table_print(&table, cli->out, cli->term.bold, cli->term.reset);
    table_free(&table);
}

/* Below a list: of all that have ended, or by cause of those that failed. A host of an earlier version has no
 * statistics; the list is the answer all the same. */
static void print_statistics(struct cli *cli, const char *view)
{
    bool failed = view && strcmp(view, "failed") == 0;
    json_t *statistics = NULL;

    if (view && strcmp(view, "active") == 0)
        return;
    if (client_get(&cli->client, "/v1/migrations/statistics", &statistics, NULL) == 0 &&
        json_object_size(object_get(statistics, "kinds")) > 0) {
        fputc('\n', cli->out);
        if (failed)
            statistics_print_causes(cli, statistics);
        else
            statistics_print(cli, statistics);
    }
    json_decref(statistics);
}

static int show_statistics(struct cli *cli, struct ferry_error *err)
{
    json_t *statistics = NULL;
    int result = client_get(&cli->client, "/v1/migrations/statistics", &statistics, err);

    if (result == 0 && cli->json) {
        cli_print_json(cli, statistics);
    } else if (result == 0) {
        fprintf(cli->out, "%llu in progress or queued\n",
                (unsigned long long)object_number(statistics, "active"));
        statistics_print(cli, statistics);
        statistics_print_causes(cli, statistics);
    }
    json_decref(statistics);
    return result;
}

static int show_list(struct cli *cli, const char *view, struct ferry_error *err)
{
    char *path = view ? client_path("/v1/migrations?view=%s", view) : client_path("/v1/migrations");
    json_t *answer = NULL;
    int result = client_get(&cli->client, path, &answer, err);

    if (result == 0 && cli->json)
        cli_print_json(cli, answer);
    else if (result == 0 && json_array_size(answer) == 0)
        fprintf(stderr, "no migrations on this host%s%s\n", view ? " in the view " : "", view ? view : "");
    else if (result == 0)
        print_migrations(cli, answer, view && strcmp(view, "failed") == 0);
    if (result == 0 && !cli->json && json_array_size(answer) > 0)
        print_statistics(cli, view);
    json_decref(answer);
    free(path);
    return result;
}

static int migrations(struct cli *cli, struct ferry_error *err)
{
    const char *view = args_operand(&cli->args, 0);

    return view && strcmp(view, "statistics") == 0 ? show_statistics(cli, err) : show_list(cli, view, err);
}

const struct command command_migrations = {
    .name = "migrations",
    .group = "Moving",
    .summary = "List migrations that this host takes or took part in, newest first",
    .text = "active: going on now, or queued because as many VMs leave the host already as may at once. "
            "history: ended. failed: ended without the VM having moved, with the reason. "
            "Without a word: all. Upgrades, from one process to another of this host, are among them. "
            "statistics, which also follow a list: by kind, how many of those that ended went well (of those "
            "nobody cancelled), median and 99th percentile of time and downtime of these, and bytes; of "
            "those that failed, how many by cause.",
    .operands =
        (const struct operand[]){
            {.name = "active|history|failed|statistics",
             .kind = VALUE_CHOICE,
             .optional = true,
             .choices = views},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry migrations active", "what is moving now, and how far it is"},
            {"ferry migrations failed", "what went wrong, and why"},
            {"ferry migrations statistics --json", "how it goes on this host, for a program"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = migrations,
};
