#include "cli/progress.h"

#include "base/clock.h"
#include "cli/memory.h"
#include "cli/object.h"
#include "cli/text.h"
#include "cli/units.h"

#include <stdlib.h>
#include <string.h>

#define BAR_WIDTH 16

static const char *const phases[] = {"Init", "Copy", "I/O Quiesce", "Frozen", "Fetch"};

#define PHASE_MAX    ((int)(sizeof(phases) / sizeof(phases[0])))
#define PHASE_COPY   1
#define PHASE_FROZEN 3
#define PHASE_FETCH  4

void progress_init(struct progress *progress, const struct term *term, FILE *out)
{
    *progress = (struct progress){.term = term, .out = out, .phase = -1};
}

static int find_phase(const char *name)
{
    for (int i = 0; i < PHASE_MAX; i++) {
        if (strcmp(phases[i], name) == 0)
            return i;
    }
    return -1;
}

/* The last one is quick resume's. */
static int phase_count(const json_t *migration)
{
    return json_is_object(object_get(migration, "quick_resume")) ? PHASE_MAX : PHASE_MAX - 1;
}

static bool is_cut(const json_t *migration)
{
    return json_is_true(object_get(object_get(migration, "quick_resume"), "disconnected"));
}

static bool has_outcome(const json_t *migration, const char *outcome)
{
    return strcmp(object_text(migration, "outcome"), outcome) == 0;
}

static void append_bar(FILE *line, const struct progress *progress, unsigned percent)
{
    const char *full = progress->term->utf8 ? "█" : "#";
    const char *empty = progress->term->utf8 ? "░" : ".";

    for (unsigned i = 0; i < BAR_WIDTH; i++)
        fputs(i < percent * BAR_WIDTH / 100 ? full : empty, line);
}

#define PAGE_SIZE 4096

/* MEASURED by the host, or during the first round, when it has not yet: by the BYTES until now. */
static uint64_t rate_of(const json_t *migration, uint64_t measured, uint64_t bytes)
{
    uint64_t total_ns = object_number(migration, "total_ns"), setup_ns = object_number(migration, "setup_ns");
    double rate;

    if (measured || total_ns <= setup_ns)
        return measured;
    rate = (double)bytes * (double)NS_PER_S / (double)(total_ns - setup_ns);
    return rate < 1e18 ? (uint64_t)rate : 0;
}

/* What goes over the link. */
static uint64_t send_rate(const json_t *migration)
{
    return rate_of(migration, object_number(migration, "bandwidth"), object_number(migration, "wire_bytes"));
}

/* How fast what is left becomes less. */
static uint64_t copy_rate(const json_t *migration)
{
    uint64_t skipped = object_number(migration, "pages_skipped");
    uint64_t memory = object_number(migration, "memory_bytes");
    uint64_t copied = object_number(migration, "remaining_bytes");

    copied = skipped <= memory / PAGE_SIZE && copied <= memory - skipped * PAGE_SIZE
                 ? memory - skipped * PAGE_SIZE - copied
                 : 0;
    return rate_of(migration, object_number(migration, "copy_rate"), copied);
}

/* What there is to say about copying, most important first: what does not fit is cut off. */
static void append_copy_details(FILE *line, const json_t *migration)
{
    uint64_t left = object_number(migration, "remaining_bytes");
    uint64_t rate = send_rate(migration), copied = copy_rate(migration);
    uint64_t dirty = object_number(migration, "dirty_rate");
    char text[UNITS_TEXT_SIZE];

    fprintf(line, "  %s left", units_format_size(left, text));
    if (rate)
        fprintf(line, "  %s", units_format_rate(rate, text));
    if (copied) {
        double seconds = (double)left / (double)copied;

        if (seconds < 1e6)
            fprintf(line, "  about %s", units_format_duration((uint64_t)(seconds * (double)NS_PER_S), text));
    }
    if (dirty)
        fprintf(line, "  changing %s", units_format_rate(dirty, text));
    if (object_number(migration, "throttle"))
        fprintf(line, "  CPUs slowed by %llu %%", (unsigned long long)object_number(migration, "throttle"));
    if (object_number(migration, "round"))
        fprintf(line, "  round %llu", (unsigned long long)object_number(migration, "round") + 1);
}

static void append_fetch_details(FILE *line, const json_t *migration)
{
    const json_t *fetch = object_get(migration, "quick_resume");
    unsigned long long faults = object_number(fetch, "faults");
    char text[UNITS_TEXT_SIZE];

    fprintf(line, "  %s left", units_format_size(object_number(migration, "remaining_bytes"), text));
    if (is_cut(migration))
        fputs("  cut off: it stands still", line);
    if (faults)
        fprintf(line, "  %llu page faults", faults);
}

/* One phase's line without colours. Freed by the caller. */
static char *phase_line(const struct progress *progress, const json_t *migration, int phase, int current)
{
    bool completed = has_outcome(migration, "completed");
    bool ended = !has_outcome(migration, "none");
    bool done = completed || phase < current;
    unsigned percent = (unsigned)object_number(migration, "percent");
    char *text = NULL;
    size_t size;
    FILE *line = open_memstream(&text, &size);

    if (!line)
        return memory_copy_text("");
    if (done || percent > 100)
        percent = 100;
    else if (phase > current)
        percent = 0;
    fprintf(line, "  %-12s", phases[phase]);
    append_bar(line, progress, percent);
    fprintf(line, " %3u %%", percent);
    if (phase == 0 && object_number(migration, "queue"))
        fprintf(line, "  queued, number %llu", (unsigned long long)object_number(migration, "queue"));
    if (phase == PHASE_COPY && phase == current && !ended)
        append_copy_details(line, migration);
    if (phase == PHASE_FETCH && phase == current && !ended)
        append_fetch_details(line, migration);
    if (phase == current && ended && !completed)
        fprintf(line, "  %s", object_text(migration, "outcome"));
    fclose(line);
    return text;
}

static void draw(struct progress *progress, const json_t *migration, int current)
{
    const struct term *term = progress->term;
    bool ended = !has_outcome(migration, "none");
    bool completed = has_outcome(migration, "completed");
    size_t width = term_width(progress->out) - 1;

    if (progress->drawn)
        fprintf(progress->out, "\033[%dA", progress->drawn);
    else
        fprintf(progress->out, "%sMoving %s from %s to %s%s  (%s)\n", term->bold,
                object_text(migration, "vm"), object_text(migration, "source"),
                object_text(migration, "destination"), term->reset, object_text(migration, "id"));
    progress->drawn = phase_count(migration);
    for (int i = 0; i < progress->drawn; i++) {
        char *line = phase_line(progress, migration, i, current);
        const char *color = term->dim;

        if (completed || i < current)
            color = term->green;
        else if (i == current)
            color = ended ? term->red : term->bold;
        fprintf(progress->out, "\r\033[K%s%.*s%s\n", color, (int)text_cut(line, width), line, term->reset);
        free(line);
    }
}

static void tell_rounds(struct progress *progress, const json_t *migration, size_t until)
{
    const json_t *rounds = object_get(migration, "rounds");
    char size[UNITS_TEXT_SIZE], time[UNITS_TEXT_SIZE], rate[UNITS_TEXT_SIZE];

    for (; progress->rounds < until; progress->rounds++) {
        const json_t *round = json_array_get(rounds, progress->rounds);
        uint64_t bytes = object_number(round, "bytes");
        uint64_t ns = object_number(round, "duration_ns");
        double per_second = ns ? (double)bytes * (double)NS_PER_S / (double)ns : 0;

        fprintf(progress->out, "  round %zu: %llu pages, %s in %s (%s), %llu pages changed meanwhile\n",
                progress->rounds + 1, (unsigned long long)object_number(round, "pages"),
                units_format_size(bytes, size), units_format_duration(ns, time),
                units_format_rate(per_second < 1e18 ? (uint64_t)per_second : 0, rate),
                (unsigned long long)object_number(round, "dirtied_pages"));
    }
}

static void tell_phases(struct progress *progress, int until)
{
    for (; progress->phase < until; progress->phase++)
        fprintf(progress->out, "%s\n", phases[progress->phase + 1]);
}

static void tell_cut(struct progress *progress, const json_t *migration)
{
    bool cut = is_cut(migration);

    if (cut && !progress->cut)
        fprintf(progress->out, "No connection to %s: %s stands still there, nothing is lost\n",
                object_text(migration, "destination"), object_text(migration, "vm"));
    else if (!cut && progress->cut && has_outcome(migration, "none"))
        fprintf(progress->out, "Connected again\n");
    progress->cut = cut;
}

/* A quick migration may show only its end: phases and rounds are told in their order all the same. The last
 * round is the one that is sent while the guest is frozen. */
static void tell(struct progress *progress, const json_t *migration, int current)
{
    size_t rounds = json_array_size(object_get(migration, "rounds"));
    size_t copied = rounds;
    uint64_t queue = object_number(migration, "queue");

    if (queue && queue != progress->queue)
        fprintf(progress->out, "Queued, number %llu\n", (unsigned long long)queue);
    progress->queue = queue;
    if (has_outcome(migration, "completed"))
        current = phase_count(migration) - 1;
    if (current == PHASE_FROZEN && progress->phase < PHASE_FROZEN && rounds > 0)
        copied = rounds - 1;
    tell_phases(progress, current < PHASE_COPY ? current : PHASE_COPY);
    tell_rounds(progress, migration, copied);
    tell_phases(progress, current);
    tell_cut(progress, migration);
    if (!has_outcome(migration, "none"))
        tell_rounds(progress, migration, rounds);
}

void progress_show(struct progress *progress, const json_t *migration)
{
    int current = find_phase(object_text(migration, "phase"));

    if (progress->term->is_terminal)
        draw(progress, migration, current);
    else
        tell(progress, migration, current);
    fflush(progress->out);
}
