#include "cli/fields.h"

#include "base/clock.h"
#include "cli/memory.h"
#include "cli/units.h"

#include <stdlib.h>

void fields_begin(struct fields *fields, struct cli *cli)
{
    *fields = (struct fields){.cli = cli};
    table_column(&fields->table, "", TABLE_LEFT);
    table_column(&fields->table, "", TABLE_LEFT);
}

void fields_text(struct fields *fields, const char *name, const char *value)
{
    if (!*value)
        return;
    table_cell_format(&fields->table, "%s", name);
    table_cell(&fields->table, value);
}

void fields_format(struct fields *fields, const char *name, const char *format, ...)
{
    va_list args;
    char *text;

    va_start(args, format);
    text = memory_format_list(format, args);
    va_end(args);
    fields_text(fields, name, text);
    free(text);
}

void fields_size(struct fields *fields, const char *name, uint64_t bytes)
{
    char text[UNITS_TEXT_SIZE];

    fields_text(fields, name, units_format_size(bytes, text));
}

void fields_time(struct fields *fields, const char *name, const char *rfc3339)
{
    char time[UNITS_TEXT_SIZE], ago[UNITS_TEXT_SIZE];
    int64_t then, now = (int64_t)clock_realtime_ns();

    units_format_time(rfc3339, false, time);
    if (units_parse_time(rfc3339, &then) && now > then)
        fields_format(fields, name, "%s (%s ago)", time,
                      units_format_duration((uint64_t)(now - then) / NS_PER_S * NS_PER_S, ago));
    else
        fields_text(fields, name, time);
}

void fields_end(struct fields *fields)
{
    table_print(&fields->table, fields->cli->out, "", "");
    table_free(&fields->table);
}
