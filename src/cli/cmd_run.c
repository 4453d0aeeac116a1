#include "cli/command.h"

#include "base/error.h"
#include "cli/definition.h"

#include <errno.h>
#include <stdlib.h>

static const char *const machines[] = {"riscv64", "x86_64", NULL};

static int start_defined(struct cli *cli, struct ferry_error *err, json_t **vm)
{
    char *path = client_path("/v1/vms/%s/start", args_operand(&cli->args, 0));
    json_t *body = cli_pack("{s:b}", "paused", args_has(&cli->args, "paused"));
    int result = client_request(&cli->client, "POST", path, body, vm, err);

    if (result == -ENOENT)
        error_set(err, -ENOENT, "there is no VM %s yet; a new one needs --kernel FILE",
                  args_operand(&cli->args, 0));
    json_decref(body);
    free(path);
    return result;
}

static int start_new(struct cli *cli, struct ferry_error *err, json_t **vm)
{
    json_t *definition = NULL, *body;
    int result = definition_make(&cli->args, client_is_local(&cli->client), &definition, err);

    if (result < 0)
        return result;
    body = cli_pack("{s:o, s:b}", "definition", definition, "paused", args_has(&cli->args, "paused"));
    result = client_request(&cli->client, "POST", "/v1/vms", body, vm, err);
    json_decref(body);
    return result;
}

static int run(struct cli *cli, struct ferry_error *err)
{
    bool is_new = args_has(&cli->args, "kernel");
    json_t *vm = NULL;
    int result;

    for (size_t i = 0; i < cli->args.option_count && !is_new; i++) {
        const char *name = cli->args.options[i].option->name;

        if (definition_is_option(name))
            return error_set(
                err, -EINVAL,
                "run: --%s is for a new VM, which needs --kernel FILE too; a defined VM starts as "
                "it was defined",
                name);
    }
    result = is_new ? start_new(cli, err, &vm) : start_defined(cli, err, &vm);
    if (result == 0 && cli->json)
        cli_print_json(cli, vm);
    else if (result == 0)
        cli_print_vm_line(cli, vm);
    json_decref(vm);
    return result;
}

const struct command command_run = {
    .name = "run",
    .group = "Virtual machines",
    .summary = "Define a VM and start it, or start one that is stopped",
    .text =
        "With --kernel a new VM is defined and started. With only a NAME a VM that was defined before and "
        "is stopped boots again. A start that fails leaves nothing behind.",
    .options =
        (const struct option[]){
            {.name = "kernel",
             .kind = VALUE_FILE,
             .value_name = "FILE",
             .help = "the kernel: a flat Image or ELF"},
            {.name = "initrd", .kind = VALUE_FILE, .value_name = "FILE", .help = "the initial RAM disk"},
            {.name = "cpu",
             .kind = VALUE_TEXT,
             .value_name = "BASELINE[,-FEATURE...]",
             .help = "x86_64: give the guest no more than this CPU, like x86-64-v3 or host,-avx2 (default: "
                     "what the "
                     "cluster's baseline, or the host, has)"},
            {.name = "cmdline",
             .kind = VALUE_TEXT,
             .value_name = "TEXT",
             .help = "the kernel's command line"},
            {.name = "machine",
             .kind = VALUE_CHOICE,
             .value_name = "KIND",
             .choices = machines,
             .help = "riscv64 or x86_64; what the kernel is for unless given"},
            {.name = "memory",
             .kind = VALUE_MEMORY,
             .value_name = "SIZE[,hugepages[=2M|1G]]",
             .help = "guest memory, like 512M or 2G (powers of 1024); 256M unless given; hugepages: of those "
                     "that the host has set aside, of 2M unless 1G is said, all of them reserved at once"},
            {.name = "cpus", .kind = VALUE_NUMBER, .value_name = "N", .help = "virtual CPUs; 1 unless given"},
            {.name = "disk",
             .kind = VALUE_FILE,
             .value_name = "PATH[,readonly][,direct]",
             .repeats = true,
             .help =
                 "a disk image; readonly: the guest cannot write; direct: past the host's page cache; may "
                 "be repeated"},
            {.name = "net",
             .kind = VALUE_TEXT,
             .value_name = "NETWORK|user[,...]",
             .repeats = true,
             .help = "a network card; user: network of the host's user, with "
                     "hostfwd=tcp:ADDR:PORT-:PORT to reach the guest; mac=52:54:00:xx:xx:xx to fix its "
                     "address; may be repeated"},
            {.name = "console-marks",
             .help =
                 "moves leave marks with the time in the guest's console: HAL0331 where it stopped, HAL0332 "
                 "where it went on"},
            {.name = "paused", .help = "do not let it run yet: ferry unpause does"},
            {.name = NULL},
        },
    .operands =
        (const struct operand[]){
            {.name = "NAME", .kind = VALUE_VM},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry run web --kernel Image --initrd initrd --cmdline console=ttyS0 --memory 512M",
             "a new VM with 512 MiB"},
            {"ferry run web --kernel Image --disk web.img --net user,hostfwd=tcp:127.0.0.1:2222-:22",
             "with a disk, and its port 22 at port 2222 of this machine"},
            {"ferry run db --kernel Image --memory 4G,hugepages",
             "its memory of 2048 huge pages of 2 MiB that were set aside before"},
            {"ferry run web", "starts it again after ferry stop web"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = run,
};
