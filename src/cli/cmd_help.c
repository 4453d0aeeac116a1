#include "cli/command.h"

/* "ferry help", "ferry help host add". */
static int help(struct cli *cli, struct ferry_error *err)
{
    char *words[ARGS_OPERANDS_MAX];
    int count = (int)cli->args.operand_count, used;
    const struct command *command;

    for (int i = 0; i < count; i++)
        words[i] = (char *)cli->args.operands[i];
    if (count == 0) {
        command_print_overview(cli->out);
        return 0;
    }
    command = command_match(words, count, &used);
    if (!command)
        return command_refuse(words, count, err);
    command_print_help(cli->out, command);
    return 0;
}

const struct command command_help = {
    .name = "help",
    .group = "More",
    .summary = "Explain a command, with examples",
    .operands =
        (const struct operand[]){
            {.name = "COMMAND", .kind = VALUE_COMMAND, .optional = true},
            {.name = "WORD", .kind = VALUE_TEXT, .optional = true},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry help migrate", "the same as ferry migrate --help"},
            {NULL, NULL},
        },
    .run = help,
};
