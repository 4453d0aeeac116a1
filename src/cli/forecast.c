#include "cli/forecast.h"

#include "cli/fields.h"
#include "cli/migration.h"
#include "cli/object.h"
#include "cli/units.h"

#include <string.h>

struct columns {
    struct fields *fields;
    const json_t *forecast;
    const json_t *migration; /* NULL: there is only the forecast */
};

static void print_duration(const struct columns *columns, const char *name, const char *key)
{
    char here[UNITS_TEXT_SIZE], there[UNITS_TEXT_SIZE];

    units_format_duration(object_number(columns->forecast, key), here);
    if (columns->migration)
        fields_format(columns->fields, name, "%s, it was %s", here,
                      units_format_duration(object_number(columns->migration, key), there));
    else
        fields_text(columns->fields, name, here);
}

static void print_sizes(const struct columns *columns)
{
    char here[UNITS_TEXT_SIZE], there[UNITS_TEXT_SIZE];

    units_format_size(object_number(columns->forecast, "bytes"), here);
    if (columns->migration)
        fields_format(columns->fields, "bytes", "%s, it was %s", here,
                      units_format_size(object_number(columns->migration, "wire_bytes"), there));
    else
        fields_text(columns->fields, "bytes", here);
}

/* The frozen round is no pre-copy round; the record has it among its rounds. */
static void print_rounds(const struct columns *columns)
{
    unsigned long long rounds = (unsigned long long)object_number(columns->forecast, "rounds");
    uint64_t were = columns->migration ? object_number(columns->migration, "round") : 0;

    if (were > 0)
        fields_format(columns->fields, "rounds", "%llu, it was %llu", rounds, (unsigned long long)were - 1);
    else
        fields_format(columns->fields, "rounds", "%llu", rounds);
}

static void print_end(const struct columns *columns)
{
    const char *end = object_text(columns->forecast, "end");
    unsigned long long throttle = (unsigned long long)object_number(columns->forecast, "throttle");

    if (throttle > 0)
        fields_format(columns->fields, "vCPUs", "slowed by up to %llu %%", throttle);
    if (object_flag(columns->forecast, "converges"))
        fields_text(columns->fields, "convergence", "it converges");
    else if (strcmp(end, "abort") == 0)
        fields_text(
            columns->fields, "convergence",
            "not converging: it would be given up; stop the VM, allow more slowing, or a longer downtime");
    else if (strcmp(end, "quick resume") == 0)
        fields_text(columns->fields, "convergence", "not converging: it would end by quick resume");
    else
        fields_text(columns->fields, "convergence",
                    "not converging: it would stop for longer than the downtime limit");
}

static void print_basis(struct fields *fields, const json_t *forecast)
{
    const char *compress = object_text(forecast, "compress");
    char text[UNITS_TEXT_SIZE], more[UNITS_TEXT_SIZE];

    fields_size(fields, "to send", object_number(forecast, "memory_bytes"));
    fields_format(fields, "written by the VM", "%s at first, %s again and again",
                  units_format_rate(object_number(forecast, "dirty_bytes_per_s"), text),
                  units_format_size(object_number(forecast, "working_set_bytes"), more));
    fields_text(fields, "the way there",
                units_format_rate(object_number(forecast, "bandwidth_bytes_per_s"), text));
    if (strcmp(compress, "lz4") == 0 || strcmp(compress, "zstd") == 0)
        fields_format(fields, "sent", "compressed by %s", compress);
}

void forecast_print(struct cli *cli, const json_t *forecast, const json_t *migration)
{
    struct fields fields;
    struct columns columns = {.fields = &fields, .forecast = forecast};

    if (!json_is_object(forecast))
        return;
    if (migration && strcmp(object_text(migration, "outcome"), "completed") == 0)
        columns.migration = migration;
    fputs(migration ? "\nForecast\n" : "\n", cli->out);
    fields_begin(&fields, cli);
    if (!migration)
        print_basis(&fields, forecast);
    print_duration(&columns, "total time", "total_ns");
    print_duration(&columns, "downtime", "downtime_ns");
    print_sizes(&columns);
    print_rounds(&columns);
    print_end(&columns);
    fields_end(&fields);
}
