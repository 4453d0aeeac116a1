#include "cli/chart.h"

#include "cli/object.h"
#include "cli/text.h"
#include "cli/units.h"

#include <stdio.h>
#include <string.h>

#define WIDTH_MAX  100 /* wider bars are no easier to compare */
#define BAR_MIN    8
#define ROWS_MAX   16 /* of rounds; more are put together */
#define PAGE_SIZE  4096
#define EIGHTHS    8
#define LABEL_SIZE 32

/* Rounds put together: the most that one of them sent, and the most that changed in one. */
struct round_row {
    size_t first, last;
    uint64_t pages, dirtied;
};

void chart_begin(struct chart *chart, struct cli *cli, size_t label_width, size_t text_width)
{
    size_t width = term_width(cli->out);
    size_t taken = label_width + 2 + 2 + text_width;

    if (width > WIDTH_MAX)
        width = WIDTH_MAX;
    *chart = (struct chart){.cli = cli, .label_width = label_width};
    chart->bar_width = width > taken + BAR_MIN ? width - taken : BAR_MIN;
}

/* COUNT eighths of a character, in blocks. */
static void put_blocks(FILE *out, size_t count)
{
    static const char *const parts[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};

    for (; count >= EIGHTHS; count -= EIGHTHS)
        fputs("█", out);
    fputs(parts[count], out);
}

/* Returns how many columns it took. */
static size_t put_bar(const struct chart *chart, uint32_t share, enum chart_look look)
{
    const struct term *term = &chart->cli->term;
    FILE *out = chart->cli->out;
    size_t eighths = ((uint64_t)share * chart->bar_width * EIGHTHS + CHART_FULL / 2) / CHART_FULL;
    size_t columns;

    if (share > 0 && eighths == 0)
        eighths = 1;
    columns = (eighths + EIGHTHS - 1) / EIGHTHS;
    fputs(look == CHART_MAIN ? term->green : term->yellow, out);
    if (term->is_terminal && term->utf8 && look == CHART_MAIN) {
        put_blocks(out, eighths);
    } else {
        for (size_t i = 0; i < columns; i++)
            fputs(term->is_terminal && term->utf8 ? "▒" : look == CHART_MAIN ? "#" : "=", out);
    }
    fputs(term->reset, out);
    return columns;
}

void chart_bar(const struct chart *chart, const char *label, uint32_t share, enum chart_look look,
               const char *text)
{
    FILE *out = chart->cli->out;
    size_t width, columns;
    char clean[LABEL_SIZE];

    snprintf(clean, sizeof(clean), "%s", label);
    text_clean(clean);
    width = text_width(clean);
    fprintf(out, "%s%*s", clean, (int)(width < chart->label_width ? chart->label_width - width : 0) + 2, "");
    columns = put_bar(chart, share, look);
    fprintf(out, "%s%s\n", columns > 0 ? "  " : "", text);
}

uint32_t chart_linear(uint64_t value, uint64_t most)
{
    if (most == 0)
        return 0;
    return (uint32_t)((double)(value < most ? value : most) / (double)most * CHART_FULL);
}

/* log2(VALUE + 1), in 256ths, to the next lower of them. */
static uint32_t log2_of(uint64_t value)
{
    uint32_t whole = 0;

    if (value == UINT64_MAX)
        value--;
    for (value++; value >> whole > 1;)
        whole++;
    /* Linear between powers of two: nobody can see the difference in a bar. */
    return whole * 256 +
           (uint32_t)((double)(value - (UINT64_C(1) << whole)) / (double)(UINT64_C(1) << whole) * 256);
}

uint32_t chart_log(uint64_t value, uint64_t most)
{
    return chart_linear(log2_of(value < most ? value : most), log2_of(most));
}

static size_t gather_rounds(const json_t *rounds, struct round_row rows[static ROWS_MAX], uint64_t *most)
{
    size_t count = json_array_size(rounds), per_row = (count + ROWS_MAX - 1) / ROWS_MAX, used = 0;
    const json_t *round;
    size_t index;

    *most = 0;
    json_array_foreach(rounds, index, round)
    {
        uint64_t pages = object_number(round, "pages"), dirtied = object_number(round, "dirtied_pages");
        struct round_row *row = &rows[index / per_row];

        used = index / per_row + 1;
        if (index % per_row == 0)
            *row = (struct round_row){.first = index + 1};
        row->last = index + 1;
        row->pages = pages > row->pages ? pages : row->pages;
        row->dirtied = dirtied > row->dirtied ? dirtied : row->dirtied;
        *most = pages > *most ? pages : *most;
        *most = dirtied > *most ? dirtied : *most;
    }
    return used;
}

void chart_print_rounds(struct cli *cli, const json_t *migration)
{
    const json_t *rounds = object_get(migration, "rounds");
    struct round_row rows[ROWS_MAX];
    struct chart chart;
    uint64_t most;
    size_t count;

    if (json_array_size(rounds) < 2)
        return;
    count = gather_rounds(rounds, rows, &most);
    chart_begin(&chart, cli, strlen("round 10-12"), strlen("1023.9 MiB changed meanwhile"));
    fprintf(cli->out, "\n%sSent, and changed meanwhile (each doubling is as long)%s\n", cli->term.bold,
            cli->term.reset);
    for (size_t i = 0; i < count; i++) {
        char label[LABEL_SIZE], size[UNITS_TEXT_SIZE], text[UNITS_TEXT_SIZE + 32];

        if (rows[i].first == rows[i].last)
            snprintf(label, sizeof(label), "round %zu", rows[i].first);
        else
            snprintf(label, sizeof(label), "round %zu-%zu", rows[i].first, rows[i].last);
        chart_bar(&chart, label, chart_log(rows[i].pages, most), CHART_MAIN,
                  units_format_size(rows[i].pages * PAGE_SIZE, text));
        snprintf(text, sizeof(text), "%s changed meanwhile",
                 units_format_size(rows[i].dirtied * PAGE_SIZE, size));
        chart_bar(&chart, "", chart_log(rows[i].dirtied, most), CHART_OTHER, text);
    }
}

void chart_print_downtime(struct cli *cli, const json_t *migration)
{
    json_t *parts = object_get(migration, "downtime_parts");
    uint64_t total = object_number(migration, "downtime_ns"), most = 0;
    struct chart chart;
    const char *name;
    json_t *part;

    if (total == 0)
        return;
    json_object_foreach(parts, name, part)
    {
        uint64_t value = object_number(parts, name);

        most = value > most ? value : most;
    }
    chart_begin(&chart, cli, strlen("last pages"), strlen("100.0 us"));
    fprintf(cli->out, "\n%sDowntime%s\n", cli->term.bold, cli->term.reset);
    json_object_foreach(parts, name, part)
    {
        uint64_t value = object_number(parts, name);
        char text[UNITS_TEXT_SIZE];

        chart_bar(&chart, name, chart_linear(value, most), CHART_MAIN, units_format_duration(value, text));
    }
}
