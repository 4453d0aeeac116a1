#include "cli/command.h"

#include "base/error.h"
#include "cli/guest_output.h"
#include "cli/memory.h"
#include "cli/moved.h"
#include "cli/object.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BREAKS_MAX 5

struct reading {
    struct guest_output output;
    bool again;      /* some of the history was shown already */
    unsigned breaks; /* of the connection in a row, with nothing shown in between */
    size_t skip;     /* bytes of the history that were shown already, before the VM moved */
};

struct history {
    char *data;
    size_t size;
};

static int show(void *opaque, const char *data, size_t size, struct ferry_error *err)
{
    struct reading *reading = opaque;
    size_t skip = reading->skip < size ? reading->skip : size;

    (void)err;
    reading->skip -= skip;
    if (size > skip)
        reading->breaks = 0;
    return size > skip ? guest_output_write(&reading->output, data + skip, size - skip) : 0;
}

static int collect(void *opaque, const char *data, size_t size, struct ferry_error *err)
{
    struct history *history = opaque;

    (void)err;
    history->data = memory_resize(history->data, history->size + size);
    memcpy(history->data + history->size, data, size);
    history->size += size;
    return history->size > CLIENT_ANSWER_MAX;
}

/* How much of the history of the host (another one, or the same again) was shown already. */
static int find_place(struct cli *cli, const char *vm, struct reading *reading, struct ferry_error *err)
{
    struct history history = {0};
    struct client_stream stream = {.opaque = &history, .data = collect, .wake_fd = -1};
    char *path = client_path("/v1/vms/%s/console/log?follow=0", vm);
    int result = client_follow(&cli->client, path, &stream, err);

    if (result >= 0)
        reading->skip = guest_output_find(&reading->output, history.data, history.size);
    free(history.data);
    free(path);
    return result < 0 ? result : 0;
}

static int go_after(struct cli *cli, const char *vm, struct reading *reading, bool *go_on,
                    struct ferry_error *err)
{
    struct moved moved;
    int result = moved_follow(&cli->client, vm, &moved, err);

    if (result < 0)
        return result;
    if (moved.kind == MOVED_ENDED) {
        fprintf(stderr, "ferry: %s: %s\n", vm, moved.why);
        return 0;
    }
    if (moved.kind == MOVED_NOT && ++reading->breaks > BREAKS_MAX)
        return error_set(err, -EPIPE, "ferryd at %s ends the connection again and again; %s is still there",
                         cli->client.target, vm);
    if (moved.kind == MOVED_AWAY) {
        fprintf(stderr, "ferry: %s moved to %s\n", vm, moved.host);
        snprintf(reading->output.host, sizeof(reading->output.host), "%s", moved.host);
    }
    reading->again = *go_on = true;
    return 0;
}

/* Whether what ended the connection leaves something to look for. */
static bool may_go_on(const struct reading *reading, int result)
{
    return result == 0 || result == -EPIPE || result == -ENOENT ||
           (reading->again && result == -ECONNREFUSED);
}

/* --json names the host that the text came from. */
static int find_host_name(struct cli *cli, struct reading *reading, struct ferry_error *err)
{
    json_t *host = NULL;
    int result = client_get(&cli->client, "/v1/host", &host, err);

    snprintf(reading->output.host, sizeof(reading->output.host), "%s", object_text(host, "name"));
    json_decref(host);
    return result;
}

/* What its process says on this host; it has no guest's output to follow to another one. */
static int process_logs(struct cli *cli, const char *vm, bool follow, struct ferry_error *err)
{
    struct reading reading = {0};
    struct client_stream stream = {.opaque = &reading, .data = show, .wake_fd = -1};
    char *path = client_path("/v1/vms/%s/log?follow=%s", vm, follow ? "1" : "0");
    int result;

    guest_output_init(&reading.output, cli, vm);
    result = cli->json ? find_host_name(cli, &reading, err) : 0;
    if (result == 0)
        result = client_follow(&cli->client, path, &stream, err);
    free(path);
    return result < 0 ? result : 0;
}

static int logs(struct cli *cli, struct ferry_error *err)
{
    const char *vm = args_operand(&cli->args, 0);
    bool follow = args_has(&cli->args, "follow"), go_on = true;
    struct reading reading = {0};
    struct client_stream stream = {.opaque = &reading, .data = show, .wake_fd = -1};
    char *path = client_path("/v1/vms/%s/console/log?follow=%s", vm, follow ? "1" : "0");
    int result = 0;

    if (args_has(&cli->args, "process")) {
        free(path);
        return process_logs(cli, vm, follow, err);
    }
    guest_output_init(&reading.output, cli, vm);
    if (cli->json)
        result = find_host_name(cli, &reading, err);
    while (result == 0 && go_on) {
        if (reading.again)
            result = find_place(cli, vm, &reading, err);
        if (result == 0)
            result = client_follow(&cli->client, path, &stream, err);
        go_on = false;
        if (result == 1)
            result = 0;
        else if (follow && may_go_on(&reading, result))
            result = go_after(cli, vm, &reading, &go_on, err);
    }
    free(path);
    return result;
}

const struct command command_logs = {
    .name = "logs",
    .group = "Virtual machines",
    .summary = "Print what a VM's guest wrote to its console",
    .text = "The last 1 MiB is kept, and moves with the VM. With -f it goes on as the guest writes, across "
            "moves to hosts that this one knows, until the guest is off or Ctrl-C.",
    .options =
        (const struct option[]){
            {.name = "follow", .letter = 'f', .help = "go on as the guest writes"},
            {.name = "process",
             .help = "not the guest's console, but what the VM's process on this host says: its newest log"},
            {.name = NULL},
        },
    .operands =
        (const struct operand[]){
            {.name = "VM", .kind = VALUE_VM},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry logs web | tail", "its last lines"},
            {"ferry logs web -f", "and what comes"},
            {"ferry logs web --process", "what ferry-vm says about it, its moves among that"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = logs,
};
