#include "cli/command.h"

#include "cli/object.h"

static int host_add(struct cli *cli, struct ferry_error *err)
{
    const char *name = args_operand(&cli->args, 0);
    const char *address = args_operand(&cli->args, 1);
    json_t *body = cli_pack("{s:s, s:s}", "name", name, "address", address);
    json_t *answer = NULL;
    int result = client_request(&cli->client, "POST", "/v1/hosts", body, &answer, err);

    if (result == 0 && cli->json)
        cli_print_json(cli, answer);
    else if (result == 0)
        fprintf(cli->out, "%s at %s is known now; VMs can move there\n", name, address);
    json_decref(answer);
    json_decref(body);
    return result;
}

const struct command command_host_add = {
    .name = "host add",
    .group = "Hosts",
    .summary = "Make another host known, so that VMs can move there",
    .text = "The other host is asked for its name first: it must answer at ADDR:PORT and be called NAME. For "
            "VMs to come back, add this host there too.",
    .operands =
        (const struct operand[]){
            {.name = "NAME", .kind = VALUE_TEXT},
            {.name = "ADDR:PORT", .kind = VALUE_TEXT},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry host add b 127.0.0.1:7002",
             "knows the ferryd started with --name b --listen 127.0.0.1:7002"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = host_add,
};
