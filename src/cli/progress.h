/*
 * How a migration comes along, as it happens. On a terminal a block that is redrawn in place: a line for each
 * of the phases (four, and Fetch when quick resume is used) with a bar, what is left, the rate, how fast the
 * guest changes memory and how long it may take. Elsewhere (a file, a pipe) one line a phase and one a round,
 * nothing ever redrawn.
 */
#ifndef FERRY_CLI_PROGRESS_H
#define FERRY_CLI_PROGRESS_H

#include "cli/term.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct progress {
    const struct term *term; /* borrowed */
    FILE *out;
    int drawn;      /* lines of phases on the terminal */
    bool cut;       /* it was told that there is no connection */
    uint64_t queue; /* the number in the queue that was told last */
    int phase;      /* the furthest seen; -1: none yet */
    size_t rounds;  /* told so far */
};

void progress_init(struct progress *progress, const struct term *term, FILE *out);
/* MIGRATION is a migration object (docs/API.md); the final one too. */
void progress_show(struct progress *progress, const json_t *migration);

#endif
