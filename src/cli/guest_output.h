/*
 * What a guest wrote to its console, on its way to standard output: as bytes, or with --json as objects
 * {"vm", "host", "text"}, one a line.
 *
 * The end of what was written is remembered, so that after a move the place can be found again in the
 * history that moved along with the VM (guest_output_find).
 */
#ifndef FERRY_CLI_GUEST_OUTPUT_H
#define FERRY_CLI_GUEST_OUTPUT_H

#include "cli/command.h"

#define GUEST_OUTPUT_TAIL 1024

struct guest_output {
    struct cli *cli;
    const char *vm;
    char host[64];
    uint64_t count; /* bytes written since the history's beginning */
    char tail[GUEST_OUTPUT_TAIL];
    size_t tail_size;
    char partial[4]; /* --json: the beginning of a UTF-8 character whose rest has not come */
    size_t partial_size;
};

void guest_output_init(struct guest_output *output, struct cli *cli, const char *vm);
/* Writes and flushes. 1 when nobody reads any more, else 0. */
int guest_output_write(struct guest_output *output, const char *data, size_t size);
/* Where in the history (SIZE bytes) what was written so far ends; 0 when it cannot be found: show it all. */
size_t guest_output_find(const struct guest_output *output, const char *history, size_t size);

#endif
