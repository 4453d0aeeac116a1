#include "cli/command.h"

#include "cli/events_follow.h"
#include "cli/object.h"
#include "cli/units.h"

#include <errno.h>
#include <string.h>

static int print_event(struct cli *cli, const json_t *event)
{
    const char *level = object_text(event, "level");
    const char *color = "";
    char time[UNITS_TEXT_SIZE];

    if (strcmp(level, "error") == 0)
        color = cli->term.red;
    else if (strncmp(level, "warn", 4) == 0)
        color = cli->term.yellow;
    if (cli->json) {
        cli_print_json_line(cli, event);
    } else {
        fprintf(cli->out, "%s  %-12s  %-8s  %-12s  %.8s%s%s%s%s\n",
                units_format_time(object_text(event, "time"), true, time), object_text(event, "code"),
                object_text(event, "host"), object_text(event, "vm"), object_text(event, "migration"),
                *object_text(event, "migration") ? "  " : "", color, object_text(event, "text"),
                *color ? cli->term.reset : "");
        fflush(cli->out);
    }
    return ferror(cli->out) ? 1 : 0;
}

static int take_event(void *opaque, json_t *event, struct ferry_error *err)
{
    (void)err;
    return print_event(opaque, event);
}

static int events(struct cli *cli, struct ferry_error *err)
{
    struct client_stream stream = {.opaque = cli, .object = take_event, .wake_fd = -1};
    int result;

    if (args_has(&cli->args, "follow"))
        return events_follow(cli, args_has(&cli->args, "local"), print_event, err);
    result = client_follow(&cli->client, "/v1/events?follow=0", &stream, err);
    return result < 0 ? result : 0;
}

const struct command command_events = {
    .name = "events",
    .group = "Hosts",
    .summary = "Show what happened on this host, and with -f what happens",
    .text = "With -f those of the hosts that this one knows follow, too, as they happen; a host that is away "
            "is waited for, and tells what happened meanwhile. With --json each event is an object on a line "
            "of its own.",
    .options =
        (const struct option[]){
            {.name = "follow", .letter = 'f', .help = "go on as events happen, until Ctrl-C"},
            {.name = "local", .help = "with -f: of this host alone, and what others tell it"},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry events", "all that is recorded, oldest first"},
            {"ferry events -f --json", "each as it happens, for a program"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = events,
};
