/*
 * Bars on a terminal: as wide as it is, of eighths of a block where it shows those, else of '#'.
 *
 *     struct chart chart;
 *     chart_begin(&chart, cli, label_width, text_width);
 *     chart_bar(&chart, "round 1", chart_log(pages, most), CHART_MAIN, "256 MiB");
 *
 * A line is "label  bar  text". When the output is no terminal, or one without UTF-8, a bar is of ASCII
 * characters only; there are no colours then either (term.h).
 */
#ifndef FERRY_CLI_CHART_H
#define FERRY_CLI_CHART_H

#include "cli/command.h"

#include <stddef.h>
#include <stdint.h>

#define CHART_FULL 65536u /* the share that fills a bar */

enum chart_look {
    CHART_MAIN = 1,
    CHART_OTHER, /* told from the other by its character, too */
};

struct chart {
    struct cli *cli;
    size_t label_width, bar_width;
};

/* LABEL_WIDTH and TEXT_WIDTH: columns to leave for these. */
void chart_begin(struct chart *chart, struct cli *cli, size_t label_width, size_t text_width);
/* A value that is not 0 has a bar of at least one eighth, or one character. SHARE: up to CHART_FULL. */
void chart_bar(const struct chart *chart, const char *label, uint32_t share, enum chart_look look,
               const char *text);

/* The share of VALUE in MOST, linear; and for values of very different size: each doubling adds as much. */
uint32_t chart_linear(uint64_t value, uint64_t most);
uint32_t chart_log(uint64_t value, uint64_t most);

/* A migration's rounds: what each sent and what changed meanwhile, in pages. Nothing for fewer than two. */
void chart_print_rounds(struct cli *cli, const json_t *migration);
/* What the downtime consisted of. Nothing without any. */
void chart_print_downtime(struct cli *cli, const json_t *migration);

#endif
