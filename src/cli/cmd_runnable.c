#include "cli/command.h"

#include "base/error.h"

#include <errno.h>
#include <string.h>

static const char *const choices[] = {"on", "off", NULL};

static int set_runnable(struct cli *cli, struct ferry_error *err)
{
    bool on = strcmp(args_operand(&cli->args, 1), "on") == 0;
    const char *reason = args_text(&cli->args, "reason", NULL);

    if (on && reason)
        return error_set(err, -EINVAL, "runnable: --reason belongs to off");
    return cli_change_vm(cli, "runnable", cli_pack("{s:b, s:s?}", "runnable", on, "reason", reason), err);
}

const struct command command_runnable = {
    .name = "runnable",
    .group = "Virtual machines",
    .summary = "Say that a VM must not be started on this host, or may be again",
    .text =
        "The VM must be stopped. While it is off, it is listed as Not Runnable with the reason, a start is "
        "refused, and so is its arrival by a migration. What a migration has made not runnable is lifted by "
        "its "
        "return, or decided with ferry recover.",
    .options =
        (const struct option[]){
            {.name = "reason",
             .kind = VALUE_TEXT,
             .value_name = "TEXT",
             .help = "why not; shown to whoever tries"},
            {.name = NULL},
        },
    .operands =
        (const struct operand[]){
            {.name = "VM", .kind = VALUE_VM},
            {.name = "on|off", .kind = VALUE_CHOICE, .choices = choices},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry runnable web off --reason 'its disk is being restored'", "nobody starts it meanwhile"},
            {"ferry runnable web on", "it may be started again"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = set_runnable,
};
