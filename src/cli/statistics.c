#include "cli/statistics.h"

#include "cli/causes.h"
#include "cli/object.h"
#include "cli/table.h"
#include "cli/units.h"

static void add_count(struct table *table, const json_t *sums, const char *key)
{
    unsigned long long count = object_number(sums, key);

    if (count > 0)
        table_cell_format(table, "%llu", count);
    else
        table_cell_format(table, "%s", "");
}

static void add_duration(struct table *table, const json_t *sums, const char *key)
{
    char text[UNITS_TEXT_SIZE];

    table_cell(table, json_is_integer(object_get(sums, key))
                          ? units_format_duration(object_number(sums, key), text)
                          : "");
}

static void add_kind(struct table *table, const char *kind, const json_t *sums)
{
    unsigned long long success = object_number(sums, "success_permille");
    char text[UNITS_TEXT_SIZE];

    table_cell(table, kind);
    table_cell_format(table, "%llu", (unsigned long long)object_number(sums, "count"));
    table_cell_format(table, "%llu", (unsigned long long)object_number(sums, "completed"));
    add_count(table, sums, "failed");
    add_count(table, sums, "cancelled");
    add_count(table, sums, "lost");
    add_count(table, sums, "unknown");
    if (json_is_integer(object_get(sums, "success_permille")))
        table_cell_format(table, "%llu.%llu %%", success / 10, success % 10);
    else
        table_cell(table, "");
    add_duration(table, sums, "total_ns.median");
    add_duration(table, sums, "total_ns.p99");
    add_duration(table, sums, "downtime_ns.median");
    add_duration(table, sums, "downtime_ns.p99");
    table_cell(table, units_format_size(object_number(sums, "wire_bytes"), text));
}

void statistics_print(struct cli *cli, const json_t *statistics)
{
    static const char *const headings[] = {"COUNT", "COMPLETED",       "FAILED",  "CANCELLED",
                                           "LOST",  "UNKNOWN",         "SUCCESS", "TOTAL MEDIAN",
                                           "99 %",  "DOWNTIME MEDIAN", "99 %",    "SENT"};
    json_t *kinds = object_get(statistics, "kinds");
    struct table table = TABLE_INIT;
    const char *kind;
    json_t *sums;

    table_column(&table, "KIND", TABLE_LEFT);
    for (size_t i = 0; i < sizeof(headings) / sizeof(headings[0]); i++)
        table_column(&table, headings[i], TABLE_RIGHT);
    json_object_foreach(kinds, kind, sums) add_kind(&table, kind, sums);
    if (table_rows(&table) > 0)
        table_print(&table, cli->out, cli->term.bold, cli->term.reset);
    table_free(&table);
}

void statistics_print_causes(struct cli *cli, const json_t *statistics)
{
    json_t *kinds = object_get(statistics, "kinds");
    json_t *all = json_object();
    struct table table = TABLE_INIT;
    const char *kind, *cause;
    json_t *sums, *count;

    json_object_foreach(kinds, kind, sums)
    {
        json_object_foreach(object_get(sums, "causes"), cause, count)
        {
            json_int_t sum = json_integer_value(json_object_get(all, cause)) + json_integer_value(count);

            json_object_set_new(all, cause, json_integer(sum));
        }
    }
    table_column(&table, "CAUSE", TABLE_LEFT);
    table_column(&table, "COUNT", TABLE_RIGHT);
    table_column(&table, "MEANS", TABLE_LEFT);
    json_object_foreach(all, cause, count)
    {
        const char *words = cause_words(cause);

        table_cell(&table, cause);
        table_cell_format(&table, "%llu", (unsigned long long)object_number(all, cause));
        table_cell(&table, words ? words : "");
    }
    if (table_rows(&table) > 0)
        table_print(&table, cli->out, cli->term.bold, cli->term.reset);
    table_free(&table);
    json_decref(all);
}
