#include "cli/command.h"

static int unpause_vm(struct cli *cli, struct ferry_error *err)
{
    return cli_change_vm(cli, "unpause", NULL, err);
}

const struct command command_unpause = {
    .name = "unpause",
    .group = "Virtual machines",
    .summary = "Let a paused VM go on",
    .text = "The guest goes on where it was; its clock has stood still.",
    .operands =
        (const struct operand[]){
            {.name = "VM", .kind = VALUE_VM},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry unpause web", "undoes ferry pause web"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = unpause_vm,
};
