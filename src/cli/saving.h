/*
 * Saving a VM into a checkpoint file: what ferry snapshot and ferry suspend have in common.
 */
#ifndef FERRY_CLI_SAVING_H
#define FERRY_CLI_SAVING_H

#include "cli/command.h"

/* For a command's table of options. */
/* clang-format off */
#define SAVING_OPTIONS \
    {.name = "compress", \
     .kind = VALUE_CHOICE, \
     .value_name = "WAY", \
     .choices = (const char *const[]){"off", "zstd", NULL}, \
     .help = "zstd: a smaller file; off unless given"}, \
    {.name = "bandwidth", \
     .kind = VALUE_RATE, \
     .value_name = "RATE", \
     .help = "write no faster: bytes a second like 500M or 1G (powers of 1024); no limit unless given"}, \
    {.name = "overwrite", .help = "replace FILE, should there be one, once the new one is complete"}, \
    {.name = "detach", .letter = 'd', .help = "print the id of the save and return at once"}
/* clang-format on */

/* Operand 0 is the VM, operand 1 the file; KIND is "snapshot" or "suspend". */
int saving_run(struct cli *cli, const char *kind, struct ferry_error *err);

/* PATH, which the user gave as a file of the host, from the root; *absolute is owned by the caller. -EINVAL
 * when it is relative and the host another machine. */
int cli_host_path(struct cli *cli, const char *path, char **absolute, struct ferry_error *err);

/* Cancels the save ID; prints that. -ENOENT when there is none. */
int saving_cancel(struct cli *cli, const char *id, json_t **saving, struct ferry_error *err);
void saving_print_cancelled(struct cli *cli, const json_t *saving);

#endif
