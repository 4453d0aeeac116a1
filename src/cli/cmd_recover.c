#include "cli/command.h"

#include "base/error.h"

#include <errno.h>

static int recover(struct cli *cli, struct ferry_error *err)
{
    bool here = args_has(&cli->args, "force-here"), there = args_has(&cli->args, "force-there");
    const char *force = here ? "here" : there ? "there" : NULL;

    if (here && there)
        return error_set(err, -EINVAL, "recover: --force-here or --force-there, not both");
    return cli_change_vm(cli, "recover", cli_pack("{s:s?}", "force", force), err);
}

const struct command command_recover = {
    .name = "recover",
    .group = "Moving",
    .summary = "Connect a VM with its memory again, or decide where it runs when nobody can say",
    .text = "A move that breaks off after the destination was told to go on, with no lock that both hosts "
            "reach, leaves "
            "the VM stopped and listed as Not Runnable; so do two hosts that died while they handed it over. "
            "Without an "
            "option the other host is asked: if the guest runs there, it is given up here; if it never ran "
            "there, it "
            "goes on here, with its memory if its process still has it, else it can be started from its "
            "disks. When the "
            "other host cannot tell, ferry says what each of the two options would risk, and does nothing.\n"
            "A VM that quick resume has moved stands still when the connection to the host that still has "
            "memory of it is lost: without an option it is made again at once. On that host --force-there "
            "gives that memory up, and the guest with it.",
    .options =
        (const struct option[]){
            {.name = "force-here",
             .help = "your word that it does not run on the other host: if it does, both write to its disks"},
            {.name = "force-there",
             .help = "your word that it runs on the other host: if it does not, its memory is lost"},
            {.name = NULL},
        },
    .operands =
        (const struct operand[]){
            {.name = "VM", .kind = VALUE_VM},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry recover web", "asks the other host and decides"},
            {"ferry recover web", "quick resume: the network works again, connect now"},
            {"ferry recover web --force-here", "the other host was switched off by hand: it goes on here"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = recover,
};
