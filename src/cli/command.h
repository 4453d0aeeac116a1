/*
 * ferry's commands: one file a command (cmd_*.c), one const table of them (commands.c).
 *
 * A command is described by its tables of options and operands; main parses the arguments by them, answers
 * --help from them, completion is made from them, and only then `run` is called. It returns 0 or a negative
 * errno with err filled in; main prints the sentence and chooses the exit status by the code: -EINVAL is a
 * usage error (2), -EPERM a refusal (3), everything else a failure (1). A command that ends with a status of
 * its own sets cli->exit_status and returns 0.
 *
 * Results go to cli->out: with --json the API's objects as they came, else text for people. Notes that are
 * not the result go to stderr.
 */
#ifndef FERRY_CLI_COMMAND_H
#define FERRY_CLI_COMMAND_H

#include "cli/args.h"
#include "cli/client.h"
#include "cli/term.h"

#include <ferry/error.h>

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

enum exit_status {
    EXIT_STATUS_DONE = 0,
    EXIT_STATUS_FAILED = 1,
    EXIT_STATUS_USAGE = 2,
    EXIT_STATUS_REFUSED = 3,
    EXIT_STATUS_INTERRUPTED = 130,
};

struct cli {
    const struct command *command;
    struct args args;
    struct client client; /* open when the command's needs_host is set */
    struct term term;     /* of out */
    FILE *out;
    bool json;
    bool verbose;
    int exit_status;
};

struct example {
    const char *command; /* NULL ends a table */
    const char *what;
};

struct command {
    const char *name;    /* words: "run", "host add", "host certs init" */
    const char *group;   /* heading in the overview; NULL: not shown */
    const char *summary; /* one line, no full stop */
    const char *text;    /* more, for --help; may be NULL */
    const struct option *options;
    const struct operand *operands;
    const struct example *examples;
    bool needs_host;
    bool any_words; /* arguments are not parsed but handed on as they are (words) */
    int (*run)(struct cli *cli, struct ferry_error *err);
};

extern const struct command *const commands[];
extern const size_t command_count;
/* Understood by every command. */
extern const struct option common_options[];

const struct command *command_find(const char *name);
/* The command named by the beginning of words[0..count); *used is how many words its name takes. NULL when
 * there is none. */
const struct command *command_match(char *const *words, int count, int *used);
/* When words[0..count) begin the command NAME: what is left of it, "certs init" after "host"; else NULL. */
const char *command_after(const char *name, char *const *words, int count);
/* A sentence for words that name no command, with the closest one. -EINVAL. */
int command_refuse(char *const *words, int count, struct ferry_error *err);

/* Help, on OUT. */
void command_print_overview(FILE *out);
void command_print_help(FILE *out, const struct command *command);
/* "ferry migrate VM DEST [--detach] …", wrapped, the later lines indented by INDENT. */
void command_print_synopsis(FILE *out, const struct command *command, size_t indent);

/* Which ferryd: --host, else $FERRY_HOST, else /run/ferry. */
const char *cli_target(const struct cli *cli);
/* Opens cli->client for that ferryd, which may say nothing for --host-timeout, else $FERRY_HOST_TIMEOUT, else
 * 10 s. */
int cli_connect(struct cli *cli, struct ferry_error *err);
/* Prints an API object as it came. */
void cli_print_json(struct cli *cli, const json_t *value);
/* The same in one line, flushed, for answers that go on. */
void cli_print_json_line(struct cli *cli, const json_t *value);
/* POST /v1/vms/NAME/VERB with BODY (taken over; NULL: {}); prints the VM object with --json, else its line.
 */
int cli_change_vm(struct cli *cli, const char *verb, json_t *body, struct ferry_error *err);
/* "web is RUNNING on a (riscv64, 256 MiB, 1 vCPU)" */
void cli_print_vm_line(struct cli *cli, const json_t *vm);
/* A JSON object that cannot be made is memory gone; these never give NULL. */
json_t *cli_pack(const char *format, ...);

extern const struct command command_cancel;
extern const struct command command_check;
extern const struct command command_checkpoint_diff;
extern const struct command command_checkpoint_show;
extern const struct command command_cluster_baseline_compute;
extern const struct command command_cluster_baseline_set;
extern const struct command command_cluster_baseline_show;
extern const struct command command_complete;
extern const struct command command_console;
extern const struct command command_events;
extern const struct command command_help;
extern const struct command command_host_add;
extern const struct command command_host_certs_init;
extern const struct command command_host_certs_install;
extern const struct command command_host_certs_issue;
extern const struct command command_host_disable;
extern const struct command command_host_enable;
extern const struct command command_host_list;
extern const struct command command_host_remove;
extern const struct command command_host_show;
extern const struct command command_kill;
extern const struct command command_list;
extern const struct command command_logs;
extern const struct command command_migrate;
extern const struct command command_migrations;
extern const struct command command_migrations_show;
extern const struct command command_pause;
extern const struct command command_recover;
extern const struct command command_resume;
extern const struct command command_rm;
extern const struct command command_run;
extern const struct command command_runnable;
extern const struct command command_show;
extern const struct command command_snapshot;
extern const struct command command_stop;
extern const struct command command_suspend;
extern const struct command command_unpause;
extern const struct command command_upgrade;

#endif
