#include "cli/command.h"

#include "cli/fields.h"
#include "cli/object.h"
#include "cli/units.h"

#include <stdlib.h>

static void print_disks(struct fields *fields, const json_t *disks)
{
    const json_t *disk;
    size_t index;

    json_array_foreach(disks, index, disk) fields_format(
        fields, index == 0 ? "disks" : "", "%s%s%s", object_text(disk, "path"),
        object_flag(disk, "readonly") ? ", read-only" : "", object_flag(disk, "direct") ? ", direct" : "");
}

static void print_nets(struct fields *fields, const json_t *nets)
{
    const json_t *net;
    size_t index;

    json_array_foreach(nets, index, net)
    {
        const char *mac = object_text(net, "mac");

        fields_format(fields, index == 0 ? "networks" : "", "%s%s%s", object_text(net, "backend"),
                      *mac ? ", mac " : "", mac);
    }
}

static void print_memory(struct fields *fields, const json_t *vm)
{
    uint64_t hugepage = object_number(vm, "definition.hugepages");
    char size[UNITS_TEXT_SIZE], page[UNITS_TEXT_SIZE];

    units_format_size(object_number(vm, "definition.memory"), size);
    if (hugepage)
        fields_format(fields, "memory", "%s in huge pages of %s", size, units_format_size(hugepage, page));
    else
        fields_text(fields, "memory", size);
}

static void print_vm(struct cli *cli, const json_t *vm)
{
    struct fields fields;

    fields_begin(&fields, cli);
    fields_text(&fields, "name", object_text(vm, "name"));
    fields_text(&fields, "UUID", object_text(vm, "definition.uuid"));
    if (*object_text(vm, "not_runnable.set_by")) {
        fields_text(&fields, "state", "Not Runnable");
        fields_text(&fields, "Not Runnable Set By", object_text(vm, "not_runnable.set_by"));
        fields_text(&fields, "Not Runnable Reason", object_text(vm, "not_runnable.reason"));
    } else {
        fields_text(&fields, "state", object_text(vm, "state"));
        if (!json_is_object(object_get(vm, "suspended")))
            fields_text(&fields, "why", object_text(vm, "why"));
    }
    fields_text(&fields, "host", object_text(vm, "host"));
    fields_text(&fields, "migration", object_text(vm, "migration"));
    fields_text(&fields, "being saved", object_text(vm, "saving"));
    fields_text(&fields, "suspended in", object_text(vm, "suspended.file"));
    fields_time(&fields, "suspended since", object_text(vm, "suspended.since"));
    fields_text(&fields, "machine", object_text(vm, "definition.machine"));
    fields_text(&fields, "CPU", object_text(vm, "definition.cpu"));
    if (json_is_object(object_get(vm, "cpu")))
        fields_format(&fields, "CPU given", "%s, %zu features (--json names them)",
                      object_text(vm, "cpu.vendor"), json_array_size(object_get(vm, "cpu.features")));
    fields_format(&fields, "vCPUs", "%llu", (unsigned long long)object_number(vm, "definition.vcpus"));
    print_memory(&fields, vm);
    if (object_number(vm, "memory_resident"))
        fields_size(&fields, "memory in use", object_number(vm, "memory_resident"));
    fields_text(&fields, "kernel", object_text(vm, "definition.kernel"));
    fields_text(&fields, "initrd", object_text(vm, "definition.initrd"));
    fields_text(&fields, "command line", object_text(vm, "definition.cmdline"));
    if (object_flag(vm, "definition.console_marks"))
        fields_text(&fields, "console marks", "moves leave HAL0331 and HAL0332");
    print_disks(&fields, object_get(vm, "definition.disks"));
    print_nets(&fields, object_get(vm, "definition.nets"));
    if (object_number(vm, "pid"))
        fields_format(&fields, "process", "%llu%s%s%s", (unsigned long long)object_number(vm, "pid"),
                      *object_text(vm, "version") ? ", ferry-vm " : "", object_text(vm, "version"),
                      json_is_true(object_get(vm, "outdated")) ? " (not the one installed now: ferry upgrade)"
                                                               : "");
    fields_text(&fields, "system call filters", object_text(vm, "seccomp"));
    fields_time(&fields, "started", object_text(vm, "started"));
    fields_end(&fields);
}

static int show(struct cli *cli, struct ferry_error *err)
{
    char *path = client_path("/v1/vms/%s", args_operand(&cli->args, 0));
    json_t *vm = NULL;
    int result = client_get(&cli->client, path, &vm, err);

    if (result == 0 && cli->json)
        cli_print_json(cli, vm);
    else if (result == 0)
        print_vm(cli, vm);
    json_decref(vm);
    free(path);
    return result;
}

const struct command command_show = {
    .name = "show",
    .group = "Virtual machines",
    .summary = "Show a VM: its state and how it is defined",
    .operands =
        (const struct operand[]){
            {.name = "VM", .kind = VALUE_VM},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry show web", "everything about web"},
            {"ferry show web --json | jq -r .state", "its state, for scripts"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = show,
};
