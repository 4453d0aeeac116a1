/*
 * Text on its way to a person: how wide it is on a terminal, and without what could command the terminal.
 *
 * Names, reasons and log lines come from other hosts and from guests. text_clean makes them harmless before
 * they are printed: control characters become '?', broken UTF-8 too. Widths follow wcwidth(3), which needs a
 * UTF-8 LC_CTYPE to know characters beyond ASCII (main sets C.UTF-8).
 */
#ifndef FERRY_CLI_TEXT_H
#define FERRY_CLI_TEXT_H

#include <stddef.h>

/* Columns that the text takes on a terminal. */
size_t text_width(const char *text);
/* Bytes of the longest beginning of text that takes at most COLUMNS. */
size_t text_cut(const char *text, size_t columns);
/* In place; the text never gets longer. */
void text_clean(char *text);
/* The candidate closest to WORD, or NULL when none is near enough to be what was meant. */
const char *text_closest(const char *word, const char *const *candidates, size_t count);

#endif
