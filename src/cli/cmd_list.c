#include "cli/command.h"

#include "cli/object.h"
#include "cli/table.h"
#include "cli/units.h"

#include <string.h>

static bool is_not_runnable(const json_t *vm)
{
    return strcmp(object_text(vm, "state"), "NOT_RUNNABLE") == 0;
}

/* Why it is in this state; of one that just runs, whether it should be upgraded. */
static const char *why(const json_t *vm)
{
    const char *text = object_text(vm, "why");

    if (*text || !json_is_true(object_get(vm, "outdated")))
        return text;
    return "runs in another ferry-vm than is installed; see ferry upgrade";
}

static void add_row(struct table *table, const json_t *vm)
{
    char text[UNITS_TEXT_SIZE];
    uint64_t resident = object_number(vm, "memory_resident");

    table_cell(table, object_text(vm, "name"));
    table_cell(table, is_not_runnable(vm) ? "Not Runnable" : object_text(vm, "state"));
    table_cell(table, object_text(vm, "definition.machine"));
    table_cell_format(table, "%llu", (unsigned long long)object_number(vm, "definition.vcpus"));
    table_cell(table, units_format_size(object_number(vm, "definition.memory"), text));
    table_cell(table, resident ? units_format_size(resident, text) : "");
    table_cell(table, units_format_time(object_text(vm, "started"), false, text));
    table_cell(table, why(vm));
}

/* What is elsewhere comes last. */
static void print_vms(struct cli *cli, const json_t *vms)
{
    struct table table = TABLE_INIT;
    const json_t *vm;
    size_t index;

    table_column(&table, "NAME", TABLE_LEFT);
    table_column(&table, "STATE", TABLE_LEFT);
    table_column(&table, "MACHINE", TABLE_LEFT);
    table_column(&table, "VCPUS", TABLE_RIGHT);
    table_column(&table, "MEMORY", TABLE_RIGHT);
    table_column(&table, "IN USE", TABLE_RIGHT);
    table_column(&table, "STARTED", TABLE_LEFT);
    table_column(&table, "WHY", TABLE_LEFT);
    json_array_foreach(vms, index, vm) if (!is_not_runnable(vm)) add_row(&table, vm);
    json_array_foreach(vms, index, vm) if (is_not_runnable(vm)) add_row(&table, vm);
    table_print(&table, cli->out, cli->term.bold, cli->term.reset);
    table_free(&table);
}

static int list(struct cli *cli, struct ferry_error *err)
{
    json_t *vms = NULL;
    int result = client_get(&cli->client, "/v1/vms", &vms, err);

    if (result == 0 && cli->json)
        cli_print_json(cli, vms);
    else if (result == 0 && json_array_size(vms) == 0)
        fprintf(stderr, "no VMs on this host; ferry run starts one\n");
    else if (result == 0)
        print_vms(cli, vms);
    json_decref(vms);
    return result;
}

const struct command command_list = {
    .name = "list",
    .group = "Virtual machines",
    .summary = "List the VMs on this host",
    .text = "VMs that are not runnable here come last: the guest has migrated to another host, or an "
            "administrator said so. WHY has the reason; ferry rm takes them off. It also says which VMs "
            "still run "
            "in the ferry-vm of before an update.",
    .examples =
        (const struct example[]){
            {"ferry list", "RUNNING(MIGR) is leaving, SETUP(MIGR) is arriving"},
            {"ferry list --json | jq -r '.[] | select(.state == \"RUNNING\") | .name'", "for scripts"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = list,
};
