#include "cli/command.h"

#include "cli/saving.h"

#include <stdlib.h>

static int resume(struct cli *cli, struct ferry_error *err)
{
    const char *name = args_operand(&cli->args, 1);
    char *file = NULL;
    json_t *vm = NULL;
    json_t *body;
    int result = cli_host_path(cli, args_operand(&cli->args, 0), &file, err);

    if (result < 0)
        return result;
    body = cli_pack("{s:s, s:b, s:b, s:b}", "file", file, "eager", args_has(&cli->args, "eager"), "paused",
                    args_has(&cli->args, "paused"), "disks_restored", args_has(&cli->args, "disks-restored"));
    if (name)
        json_object_set_new(body, "name", cli_pack("s", name));
    result = client_request(&cli->client, "POST", "/v1/resume", body, &vm, err);
    if (result == 0 && cli->json)
        cli_print_json(cli, vm);
    else if (result == 0)
        cli_print_vm_line(cli, vm);
    json_decref(vm);
    json_decref(body);
    free(file);
    return result;
}

const struct command command_resume = {
    .name = "resume",
    .group = "Checkpoints",
    .summary = "Let a guest go on from a checkpoint file",
    .text =
        "The guest goes on where it was, on this host, which must reach FILE and the VM's disks. Its memory "
        "is "
        "read when it is needed, and in the background; with --eager all of it before it runs.\n"
        "A guest whose disks were written to since is refused (exit status 3): memory older than a disk "
        "corrupts file systems. Of a suspended VM the lock tells that. After a snapshot the VM ran on: put "
        "its "
        "disks back as they were then, and say so with --disks-restored.\n"
        "Under another NAME it is a VM of its own, with MAC addresses (which the guest learns when it starts "
        "its network cards anew) and a UUID (which it learns when it boots next) of its own, and must have "
        "no disk that it writes to. What fails before the "
        "first instruction leaves everything as it was.",
    .options =
        (const struct option[]){
            {.name = "eager", .help = "read and check all of its memory before it runs"},
            {.name = "paused", .help = "do not let it run yet: ferry unpause does"},
            {.name = "disks-restored",
             .help = "its disks are of the moment at which FILE was written; were that not so, its file "
                     "systems would be corrupted"},
            {.name = NULL},
        },
    .operands =
        (const struct operand[]){
            {.name = "FILE", .kind = VALUE_FILE},
            {.name = "NAME", .kind = VALUE_TEXT, .optional = true},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry resume web.ckpt", "the VM that was suspended to web.ckpt goes on"},
            {"ferry resume web.ckpt web2", "a second one from a snapshot, beside the first"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = resume,
};
