#include "cli/command.h"

#include "cli/saving.h"

static int suspend(struct cli *cli, struct ferry_error *err)
{
    return saving_run(cli, "suspend", err);
}

const struct command command_suspend = {
    .name = "suspend",
    .group = "Checkpoints",
    .summary = "Save a running VM into a file and end its process",
    .text = "Memory is written while the VM runs; then it stops, and is SUSPENDED until ferry resume FILE "
            "lets it "
            "go on, here or on another host that reaches FILE and the disks. Whatever fails before FILE is "
            "complete leaves the VM running and no file. ferry rm VM takes the VM off this host, not FILE.\n"
            "Ctrl-C leaves the save going on; ferry cancel VM ends it.",
    .options =
        (const struct option[]){
            SAVING_OPTIONS,
            {.name = NULL},
        },
    .operands =
        (const struct operand[]){
            {.name = "VM", .kind = VALUE_VM},
            {.name = "FILE", .kind = VALUE_FILE},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry suspend web web.ckpt", "web is SUSPENDED, its memory in web.ckpt"},
            {"ferry resume web.ckpt", "it goes on where it was"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = suspend,
};
