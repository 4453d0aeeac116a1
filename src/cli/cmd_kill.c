#include "cli/command.h"

static int kill_vm(struct cli *cli, struct ferry_error *err)
{
    return cli_change_vm(cli, "kill", NULL, err);
}

const struct command command_kill = {
    .name = "kill",
    .group = "Virtual machines",
    .summary = "End a VM at once, without asking the guest",
    .text = "As if its power were cut: what the guest has not written to its disks is lost. Returns when the "
            "VM's process is gone; the VM stays defined.",
    .operands =
        (const struct operand[]){
            {.name = "VM", .kind = VALUE_VM},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry kill web", "when ferry stop web is not heard"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = kill_vm,
};
