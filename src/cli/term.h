/*
 * What the terminal can do: whether it is one, how wide, colours, characters beyond ASCII.
 *
 * Colours only on a terminal, not with NO_COLOR set (and not empty), not with TERM=dumb. Escape codes are
 * chosen once (term_init) as a palette of strings that are empty when there are no colours, so callers never
 * ask.
 */
#ifndef FERRY_CLI_TERM_H
#define FERRY_CLI_TERM_H

#include <stdbool.h>
#include <stdio.h>

struct term {
    bool is_terminal; /* output can be redrawn in place */
    bool utf8;
    const char *bold, *dim, *red, *green, *yellow, *reset;
};

/* Looks at OUT and the environment. Call before the locale is changed. */
void term_init(struct term *term, FILE *out);
/* Columns right now (the window may have been resized); 80 when unknown. */
size_t term_width(FILE *out);

#endif
