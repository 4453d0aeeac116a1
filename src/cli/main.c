/* ferry: the command line. Arguments, dispatch, exit status; the work is in cmd_*.c. */
#include "cli/command.h"

#include "base/error.h"
#include "cli/text.h"

#include <errno.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

static const struct option first_options[] = {
    {.name = "version", .letter = 'V', .help = "print the version"},
    {.name = NULL},
};

static int exit_status_of(int code)
{
    switch (code) {
    case -EINVAL:
        return EXIT_STATUS_USAGE;
    case -EPERM:
        return EXIT_STATUS_REFUSED;
    default:
        return EXIT_STATUS_FAILED;
    }
}

static int report(struct ferry_error *err, int code)
{
    text_clean(err->text);
    fprintf(stderr, "ferry: %s\n", err->text);
    return exit_status_of(code);
}

/* A usage error of a known command: say how to learn more. */
static int report_usage(const struct command *command, struct ferry_error *err)
{
    text_clean(err->text);
    fprintf(stderr, "ferry: %s: %s (see: ferry %s --help)\n", command->name, err->text, command->name);
    return EXIT_STATUS_USAGE;
}

static int run_command(struct cli *cli, struct ferry_error *err)
{
    int result = 0;

    if (cli->command->needs_host)
        result = cli_connect(cli, err);
    if (result == 0)
        result = cli->command->run(cli, err);
    client_close(&cli->client);
    return result;
}

/* The command's words are at argv[0..argc). */
static int parse_command(struct cli *cli, int argc, char **argv)
{
    struct ferry_error err = {0};
    const struct command *command;
    int used, result;

    command = command_match(argv, argc, &used);
    if (!command)
        return report(&err, command_refuse(argv, argc, &err));
    cli->command = command;
    if (command->any_words) {
        for (int i = used; i < argc && cli->args.operand_count < ARGS_WORDS_MAX; i++)
            cli->args.operands[cli->args.operand_count++] = argv[i];
    } else {
        result = args_parse(&cli->args, command->options, common_options, command->operands, false,
                            argc - used, argv + used, &err);
        if (result < 0)
            return report_usage(command, &err);
        if (args_has(&cli->args, "help")) {
            command_print_help(cli->out, command);
            return EXIT_STATUS_DONE;
        }
        if (args_check_operands(&cli->args, command->operands, &err) < 0)
            return report_usage(command, &err);
    }
    cli->json = args_has(&cli->args, "json");
    cli->verbose = args_has(&cli->args, "verbose");
    result = run_command(cli, &err);
    return result < 0 ? report(&err, result) : cli->exit_status;
}

static int parse_first(struct cli *cli, int argc, char **argv)
{
    struct ferry_error err = {0};
    int used = args_parse(&cli->args, first_options, common_options, NULL, true, argc, argv, &err);

    if (used < 0) {
        fprintf(stderr, "ferry: %s (see: ferry --help)\n", err.text);
        return EXIT_STATUS_USAGE;
    }
    if (args_has(&cli->args, "version")) {
        fprintf(cli->out, "ferry " FERRY_VERSION "\n");
        return EXIT_STATUS_DONE;
    }
    if (used == argc && args_has(&cli->args, "help")) {
        command_print_overview(cli->out);
        return EXIT_STATUS_DONE;
    }
    if (used == argc) {
        command_print_overview(stderr);
        return EXIT_STATUS_USAGE;
    }
    return parse_command(cli, argc - used, argv + used);
}

/* A reader that went away (head, less) has seen what it wanted; a full disk has not. */
static int finish_output(struct cli *cli, int status)
{
    struct pollfd reader = {.fd = fileno(cli->out)};

    errno = 0;
    if (fflush(cli->out) == 0 && !ferror(cli->out))
        return status;
    if (errno == EPIPE || (poll(&reader, 1, 0) == 1 && reader.revents & POLLERR) ||
        status != EXIT_STATUS_DONE)
        return status;
    fprintf(stderr, "ferry: cannot write the output: %s\n", errno ? strerror(errno) : "an earlier error");
    return EXIT_STATUS_FAILED;
}

int main(int argc, char **argv)
{
    struct cli cli = {.out = stdout};
    int status;

    signal(SIGPIPE, SIG_IGN);
    term_init(&cli.term, cli.out);
    /* Widths of characters; what is read and written stays independent of the user's locale. */
    setlocale(LC_CTYPE, "C.UTF-8");
    curl_global_init(CURL_GLOBAL_DEFAULT);
    status = parse_first(&cli, argc - 1, argv + 1);
    curl_global_cleanup();
    return finish_output(&cli, status);
}
