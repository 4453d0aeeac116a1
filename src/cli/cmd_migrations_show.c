#include "cli/command.h"

#include "cli/causes.h"
#include "cli/chart.h"
#include "cli/fields.h"
#include "cli/forecast.h"
#include "cli/migration.h"
#include "cli/object.h"
#include "cli/table.h"
#include "cli/units.h"

#include <stdlib.h>
#include <string.h>

#define PAGE_SIZE 4096

static void print_rates(struct fields *fields, const json_t *migration)
{
    char text[UNITS_TEXT_SIZE];

    if (object_number(migration, "bandwidth"))
        fields_text(fields, "bandwidth", units_format_rate(object_number(migration, "bandwidth"), text));
    if (object_number(migration, "dirty_rate"))
        fields_format(fields, "memory changed", "%s by the guest",
                      units_format_rate(object_number(migration, "dirty_rate"), text));
    if (*object_text(migration, "dirty_tracking"))
        fields_text(fields, "dirty tracking", object_text(migration, "dirty_tracking"));
}

static void print_throttle(struct fields *fields, const json_t *migration)
{
    unsigned long long most = object_number(migration, "throttle_most");

    if (most && migration_has_ended(migration))
        fields_format(fields, "CPUs slowed", "by up to %llu %%", most);
    else if (most)
        fields_format(fields, "CPUs slowed", "by %llu %%, by up to %llu %% so far",
                      (unsigned long long)object_number(migration, "throttle"), most);
}

static void print_ends(struct fields *fields, const json_t *migration)
{
    char text[96];

    if (!migration_is_upgrade(migration)) {
        fields_text(fields, "from", object_text(migration, "source"));
        fields_text(fields, "to", object_text(migration, "destination"));
        return;
    }
    fields_text(fields, "host", object_text(migration, "source"));
    migration_describe_process(migration, "old", text, sizeof(text));
    fields_text(fields, "from", text);
    migration_describe_process(migration, "new", text, sizeof(text));
    fields_text(fields, "to", text);
}

static void print_fetch(struct fields *fields, const json_t *migration)
{
    const json_t *fetch = object_get(migration, "quick_resume");
    unsigned long long faults = object_number(fetch, "faults");
    char missing[UNITS_TEXT_SIZE], text[UNITS_TEXT_SIZE], p99[UNITS_TEXT_SIZE], max[UNITS_TEXT_SIZE];

    if (!json_is_object(fetch))
        return;
    units_format_size(object_number(fetch, "missing_pages") * PAGE_SIZE, missing);
    if (object_number(fetch, "duration_ns"))
        fields_format(fields, "quick resume", "%s were missing, there after %s", missing,
                      units_format_duration(object_number(fetch, "duration_ns"), text));
    else
        fields_format(fields, "quick resume", "%s were missing", missing);
    if (json_is_true(object_get(fetch, "disconnected")))
        fields_text(fields, "", "no connection now: the VM stands still");
    if (faults)
        fields_format(fields, "page faults", "%llu, waited %s (median), %s (99 %%), at most %s", faults,
                      units_format_duration(object_number(fetch, "fault_median_ns"), text),
                      units_format_duration(object_number(fetch, "fault_p99_ns"), p99),
                      units_format_duration(object_number(fetch, "fault_max_ns"), max));
    if (object_number(fetch, "reconnects"))
        fields_format(fields, "connection", "lost and made again %llu times, the VM stood still for %s",
                      (unsigned long long)object_number(fetch, "reconnects"),
                      units_format_duration(object_number(fetch, "paused_ns"), text));
}

/* Why it has not gone well, in its own words, by its class, and what can be done about such. */
static void print_reason(struct fields *fields, const json_t *migration)
{
    const char *cause = object_text(migration, "cause");
    const char *words = cause_words(cause), *advice = cause_advice(cause);

    if (!*object_text(migration, "error"))
        return;
    fields_text(fields, "reason", object_text(migration, "error"));
    if (*cause)
        fields_format(fields, "cause", "%s%s%s", cause, words ? ": " : "", words ? words : "");
    if (advice)
        fields_text(fields, "", advice);
}

static void print_what(struct fields *fields, const json_t *migration)
{
    fields_text(fields, "id", object_text(migration, "id"));
    fields_text(fields, "VM", object_text(migration, "vm"));
    print_ends(fields, migration);
    fields_text(fields, "kind", object_text(migration, "kind"));
    fields_format(fields, "state", "%llu %s (%s here)",
                  (unsigned long long)object_number(migration, "state_number"),
                  object_text(migration, "state"), object_text(migration, "side"));
    if (migration_has_ended(migration))
        fields_text(fields, "outcome", object_text(migration, "outcome"));
    else if (object_number(migration, "queue"))
        fields_format(fields, "phase", "Queued, number %llu",
                      (unsigned long long)object_number(migration, "queue"));
    else
        fields_format(fields, "phase", "%s, %llu %%", object_text(migration, "phase"),
                      (unsigned long long)object_number(migration, "percent"));
    print_reason(fields, migration);
    fields_time(fields, "started", object_text(migration, "started"));
    fields_time(fields, "ended", object_text(migration, "ended"));
}

/* What of memory need not go over the link, and why. */
static void print_saved(struct fields *fields, const json_t *migration)
{
    static const struct {
        const char *name, *words;
    } encodings[] = {
        {"zero", "are zero"},           {"unchanged", "are as they were sent before"},
        {"delta", "changed a little"},  {"lz4", "compressed by lz4"},
        {"zstd", "compressed by zstd"},
    };
    const json_t *encoded = object_get(migration, "encodings");
    const char *label = "saved";

    for (size_t i = 0; i < sizeof(encodings) / sizeof(encodings[0]); i++) {
        const json_t *row = object_get(encoded, encodings[i].name);
        char text[UNITS_TEXT_SIZE];

        if (!object_number(row, "pages"))
            continue;
        fields_format(fields, label, "%-9s %llu pages %s",
                      units_format_size(object_number(row, "saved_bytes"), text),
                      (unsigned long long)object_number(row, "pages"), encodings[i].words);
        label = "";
    }
    if (object_number(migration, "pages_postponed"))
        fields_format(fields, label, "%llu pages written in every round were left for the end",
                      (unsigned long long)object_number(migration, "pages_postponed"));
}

/* What moved along with a cold migration. */
static void print_disks(struct fields *fields, const json_t *migration)
{
    const json_t *disks = object_get(migration, "disks");
    char bytes[UNITS_TEXT_SIZE], total[UNITS_TEXT_SIZE], rate[UNITS_TEXT_SIZE];
    json_t *file;
    size_t i;

    if (!json_is_object(disks))
        return;
    fields_format(fields, "copied", "%s of %s, %s", units_format_size(object_number(disks, "bytes"), bytes),
                  units_format_size(object_number(disks, "total_bytes"), total),
                  units_format_rate(object_number(disks, "rate"), rate));
    json_array_foreach(object_get(disks, "files"), i, file)
        fields_format(fields, "", "%s -> %s", object_text(file, "source"), object_text(file, "destination"));
}

static void print_numbers(struct fields *fields, const json_t *migration)
{
    char text[UNITS_TEXT_SIZE];

    fields_text(fields, "total", units_format_duration(object_number(migration, "total_ns"), text));
    fields_size(fields, "memory", object_number(migration, "memory_bytes"));
    fields_size(fields, "sent", object_number(migration, "wire_bytes"));
    if (!migration_has_ended(migration))
        fields_size(fields, "left", object_number(migration, "remaining_bytes"));
    fields_format(fields, "pages", "%llu sent whole, %llu zero, %llu never touched",
                  (unsigned long long)object_number(migration, "pages_raw"),
                  (unsigned long long)object_number(migration, "pages_zero"),
                  (unsigned long long)object_number(migration, "pages_skipped"));
    print_disks(fields, migration);
    print_saved(fields, migration);
    print_rates(fields, migration);
    print_throttle(fields, migration);
    print_fetch(fields, migration);
    if (object_number(migration, "state_bytes"))
        fields_size(fields, "state", object_number(migration, "state_bytes"));
    if (object_number(migration, "downtime_ns"))
        fields_text(fields, "downtime", units_format_duration(object_number(migration, "downtime_ns"), text));
}

/* Each host's codes in a column of its own: those of the source on the left, of the destination on the right.
 */
static void print_events(struct cli *cli, const json_t *migration)
{
    const char *source = object_text(migration, "source");
    bool both = strcmp(source, object_text(migration, "destination")) != 0;
    char left[96], right[96];
    struct table table = TABLE_INIT;
    const json_t *event;
    size_t index;

    snprintf(left, sizeof(left), both ? "%.80s (source)" : "%.80s", source);
    snprintf(right, sizeof(right), "%.80s (destination)", object_text(migration, "destination"));
    table_column(&table, "EVENT AT", TABLE_LEFT);
    table_column(&table, left, TABLE_LEFT);
    if (both)
        table_column(&table, right, TABLE_LEFT);
    table_column(&table, "WHAT", TABLE_LEFT);
    json_array_foreach(object_get(migration, "events"), index, event)
    {
        bool here = !both || strcmp(object_text(event, "host"), source) == 0;
        char time[UNITS_TEXT_SIZE];

        table_cell(&table, units_format_time(object_text(event, "time"), true, time));
        table_cell_format(&table, "%s", here ? object_text(event, "code") : "");
        if (both)
            table_cell_format(&table, "%s", here ? "" : object_text(event, "code"));
        table_cell(&table, object_text(event, "text"));
    }
    if (table_rows(&table) > 0) {
        fputc('\n', cli->out);
        table_print(&table, cli->out, cli->term.bold, cli->term.reset);
    }
    table_free(&table);
}

static void print_log(struct cli *cli, const json_t *migration)
{
    const json_t *line;
    size_t index;

    json_array_foreach(object_get(migration, "log"), index, line)
    {
        const char *level = object_text(line, "level");
        const char *color = cli->term.reset;
        char time[UNITS_TEXT_SIZE];

        if (strcmp(level, "error") == 0)
            color = cli->term.red;
        else if (strncmp(level, "warn", 4) == 0)
            color = cli->term.yellow;
        if (index == 0)
            fputc('\n', cli->out);
        fprintf(cli->out, "%s  %s  %s%s%s\n", units_format_time(object_text(line, "time"), true, time),
                object_text(line, "host"), color, object_text(line, "text"), cli->term.reset);
    }
}

static int migrations_show(struct cli *cli, struct ferry_error *err)
{
    char *path = client_path("/v1/migrations/%s", args_operand(&cli->args, 0));
    json_t *migration = NULL;
    int result = client_get(&cli->client, path, &migration, err);
    struct fields fields;

    free(path);
    if (result < 0)
        return result;
    if (cli->json) {
        cli_print_json(cli, migration);
    } else {
        fields_begin(&fields, cli);
        print_what(&fields, migration);
        print_numbers(&fields, migration);
        fields_end(&fields);
        forecast_print(cli, object_get(migration, "forecast"), migration);
        if (json_array_size(object_get(migration, "rounds")) > 0)
            fputc('\n', cli->out);
        migration_print_rounds(cli, migration);
        chart_print_rounds(cli, migration);
        chart_print_downtime(cli, migration);
        print_events(cli, migration);
        print_log(cli, migration);
    }
    json_decref(migration);
    return 0;
}

const struct command command_migrations_show = {
    .name = "migrations show",
    .group = "Moving",
    .summary = "Show all about one migration: numbers, rounds, downtime, events, log",
    .text =
        "With what was foretold beside what came of it, the class of a failure and what can be done about "
        "it, and the events and log lines of both hosts in order of time. The chart is as wide as the "
        "terminal, and of ASCII characters where the output is none or not of UTF-8.",
    .operands =
        (const struct operand[]){
            {.name = "ID", .kind = VALUE_MIGRATION},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry migrations show 1b4e28ba", "the beginning of an id is enough"},
            {"ferry migrations show 1b4e28ba --json | jq .downtime_ns", "the downtime in nanoseconds"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = migrations_show,
};
