#include "cli/saving.h"

#include "base/clock.h"
#include "base/error.h"
#include "cli/memory.h"
#include "cli/migration.h"
#include "cli/object.h"
#include "cli/signals.h"
#include "cli/text.h"
#include "cli/units.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BAR_WIDTH 16

static bool suspends(const json_t *saving)
{
    return strcmp(object_text(saving, "kind"), "suspend") == 0;
}

int cli_host_path(struct cli *cli, const char *path, char **absolute, struct ferry_error *err)
{
    char *here;

    *absolute = NULL;
    if (path[0] == '/') {
        *absolute = memory_copy_text(path);
        return 0;
    }
    if (!client_is_local(&cli->client))
        return error_set(err, -EINVAL, "%s is a file of the other machine: its path must begin with /", path);
    here = getcwd(NULL, 0);
    if (!here)
        return error_set_errno(err, -errno, "cannot tell what directory %s is in", path);
    if (asprintf(absolute, "%s/%s", here, path) < 0)
        *absolute = NULL;
    free(here);
    return *absolute ? 0 : error_set(err, -ENOMEM, "out of memory");
}

/* --- while it goes on --- */

struct view {
    struct cli *cli;
    bool told; /* that it began, where nothing is redrawn */
};

static void draw_bar(FILE *out, const struct term *term, unsigned percent)
{
    for (unsigned i = 0; i < BAR_WIDTH; i++) {
        bool full = i < percent * BAR_WIDTH / 100;

        fputs(term->utf8 ? (full ? "█" : "░") : (full ? "#" : "."), out);
    }
}

static void draw(struct cli *cli, const json_t *saving)
{
    unsigned percent = (unsigned)object_number(saving, "percent");
    uint64_t left = object_number(saving, "remaining_bytes");
    uint64_t rate = object_number(saving, "bytes_per_s");
    char text[UNITS_TEXT_SIZE];
    char *line = NULL;
    size_t size;
    FILE *out = open_memstream(&line, &size);

    if (!out)
        return;
    fprintf(out, "  %-12s", suspends(saving) ? "Suspending" : "Snapshot");
    draw_bar(out, &cli->term, percent > 100 ? 100 : percent);
    fprintf(out, " %3u %%", percent > 100 ? 100 : percent);
    if (left)
        fprintf(out, "  %s left", units_format_size(left, text));
    if (rate)
        fprintf(out, "  %s", units_format_rate(rate, text));
    if (object_number(saving, "rounds"))
        fprintf(out, "  round %llu", (unsigned long long)object_number(saving, "rounds"));
    fclose(out);
    fprintf(cli->out, "\r\033[K%.*s", (int)text_cut(line, term_width(cli->out) - 1), line);
    free(line);
}

static int show(void *opaque, json_t *saving, struct ferry_error *err)
{
    struct view *view = opaque;
    struct cli *cli = view->cli;

    (void)err;
    if (cli->term.is_terminal) {
        draw(cli, saving);
        if (*object_text(saving, "ended"))
            fputs("\r\033[K", cli->out);
    } else if (!view->told) {
        fprintf(cli->out, "%s %s to %s  (%s)\n", suspends(saving) ? "Suspending" : "Saving",
                object_text(saving, "vm"), object_text(saving, "file"), object_text(saving, "id"));
    }
    view->told = true;
    fflush(cli->out);
    return 0;
}

/* --- its end --- */

static int check_outcome(const json_t *saving, struct ferry_error *err)
{
    const char *outcome = object_text(saving, "outcome");
    const char *vm = object_text(saving, "vm");
    const char *reason = object_text(saving, "error");

    if (strcmp(outcome, "completed") == 0)
        return 0;
    if (strcmp(outcome, "cancelled") == 0)
        return error_set(err, -EIO, "the %s of %s was cancelled; there is no file, and the VM runs on",
                         suspends(saving) ? "suspending" : "snapshot", vm);
    return error_set(err, -EIO, "%s was not %s: %s; ferry show %s tells how it is", vm,
                     suspends(saving) ? "suspended" : "saved", *reason ? reason : "the host gave no reason",
                     vm);
}

static void print_summary(struct cli *cli, const json_t *saving)
{
    char size[UNITS_TEXT_SIZE], stopped[UNITS_TEXT_SIZE], total[UNITS_TEXT_SIZE];

    units_format_size(object_number(saving, "bytes"), size);
    units_format_duration(object_number(saving, "stopped_ns"), stopped);
    units_format_duration(object_number(saving, "total_ns"), total);
    if (suspends(saving))
        fprintf(cli->out, "%s: %s is suspended in %s: %s, stopped after %s\n", object_text(saving, "id"),
                object_text(saving, "vm"), object_text(saving, "file"), size, total);
    else
        fprintf(cli->out, "%s: snapshot of %s in %s: %s, stopped for %s, total %s\n",
                object_text(saving, "id"), object_text(saving, "vm"), object_text(saving, "file"), size,
                stopped, total);
}

static int stay(struct cli *cli, const char *id, struct ferry_error *err)
{
    struct view view = {.cli = cli};
    struct migration_watch watch = {.opaque = &view};
    struct signals signals;
    json_t *last = NULL;
    char *path = client_path("/v1/checkpoints/%s/watch", id);
    int result;

    if (!cli->json)
        watch.show = show;
    signals_begin(&signals, (const int[]){SIGINT, 0});
    watch.wake_fd = signals.fd;
    result = migration_watch_path(&cli->client, path, &watch, &last, err);
    if (result == 1) {
        signals_next(&signals);
        fprintf(stderr, "\nferry: interrupted; the save goes on; to cancel it: ferry cancel %.8s\n", id);
        cli->exit_status = EXIT_STATUS_INTERRUPTED;
        result = 0;
    } else if (result == 0) {
        if (cli->json)
            cli_print_json(cli, last);
        result = check_outcome(last, err);
        if (result == 0 && !cli->json)
            print_summary(cli, last);
    }
    signals_end(&signals);
    json_decref(last);
    free(path);
    return result;
}

/* --- */

static json_t *make_request(const struct args *args, const char *kind, const char *file)
{
    json_t *body =
        cli_pack("{s:s, s:s, s:b}", "kind", kind, "file", file, "overwrite", args_has(args, "overwrite"));

    if (args_has(args, "compress"))
        json_object_set_new(body, "compress", cli_pack("s", args_text(args, "compress", "off")));
    if (args_has(args, "bandwidth"))
        json_object_set_new(body, "bandwidth_limit",
                            json_integer((json_int_t)args_number(args, "bandwidth", 0)));
    return body;
}

int saving_run(struct cli *cli, const char *kind, struct ferry_error *err)
{
    char *file = NULL;
    char *path;
    json_t *body;
    json_t *answer = NULL;
    int result = cli_host_path(cli, args_operand(&cli->args, 1), &file, err);

    if (result < 0)
        return result;
    path = client_path("/v1/vms/%s/checkpoint", args_operand(&cli->args, 0));
    body = make_request(&cli->args, kind, file);
    result = client_request(&cli->client, "POST", path, body, &answer, err);
    if (result == 0 && args_has(&cli->args, "detach")) {
        if (cli->json)
            cli_print_json(cli, answer);
        else
            fprintf(cli->out, "%s\n", object_text(answer, "id"));
    } else if (result == 0) {
        result = stay(cli, object_text(answer, "id"), err);
    }
    json_decref(answer);
    json_decref(body);
    free(path);
    free(file);
    return result;
}

int saving_cancel(struct cli *cli, const char *id, json_t **saving, struct ferry_error *err)
{
    char *path = client_path("/v1/checkpoints/%s/cancel", id);
    json_t *body = json_object();
    int result = client_request(&cli->client, "POST", path, body, saving, err);

    json_decref(body);
    free(path);
    return result;
}

void saving_print_cancelled(struct cli *cli, const json_t *saving)
{
    fprintf(cli->out, "the %s %.8s of %s %s; %s runs on\n", suspends(saving) ? "suspending" : "snapshot",
            object_text(saving, "id"), object_text(saving, "vm"),
            *object_text(saving, "ended") ? "is cancelled" : "is being cancelled", object_text(saving, "vm"));
}
