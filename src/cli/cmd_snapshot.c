#include "cli/command.h"

#include "cli/saving.h"

static int snapshot(struct cli *cli, struct ferry_error *err)
{
    return saving_run(cli, "snapshot", err);
}

const struct command command_snapshot = {
    .name = "snapshot",
    .group = "Checkpoints",
    .summary = "Save a running VM into a file; it runs on",
    .text =
        "Memory is written while the VM runs; it stands still only for the last changes. FILE is there when "
        "it is complete, and not before; whatever fails leaves the VM running and no file. Its disks are not "
        "in FILE: to go on from it later (ferry resume) they must be as they were at that moment.\n"
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
            {"ferry snapshot web web.ckpt", "memory and devices of web, as they are now"},
            {"ferry snapshot web web.ckpt --compress zstd --overwrite",
             "a smaller file in place of the last"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = snapshot,
};
