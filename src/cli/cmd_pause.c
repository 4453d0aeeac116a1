#include "cli/command.h"

static int pause_vm(struct cli *cli, struct ferry_error *err)
{
    return cli_change_vm(cli, "pause", NULL, err);
}

const struct command command_pause = {
    .name = "pause",
    .group = "Virtual machines",
    .summary = "Stop a VM's CPUs; its memory stays",
    .text = "A paused VM can be moved; it arrives paused.",
    .operands =
        (const struct operand[]){
            {.name = "VM", .kind = VALUE_VM},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry pause web", "web stands still until ferry unpause web"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = pause_vm,
};
