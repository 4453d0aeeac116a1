#include "cli/command.h"

static int kill_vm(struct cli *cli, struct ferry_error *err)
{
    bool force = args_has(&cli->args, "force");

    return cli_change_vm(cli, "kill", force ? cli_pack("{s:b}", "force", 1) : NULL, err);
}

const struct command command_kill = {
    .name = "kill",
    .group = "Virtual machines",
    .summary = "End a VM at once, without asking the guest",
    .text = "As if its power were cut: what the guest has not written to its disks is lost. Returns when the "
            "VM's process is gone; the VM stays defined.\n"
            "Refused while the guest runs on another host already and its memory is still partly here (quick "
            "resume): it would be lost there.",
    .options =
        (const struct option[]){
            {.name = "force",
             .help = "also when another host needs memory that is here: the guest there is lost"},
            {.name = NULL},
        },
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
