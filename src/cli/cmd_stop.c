#include "cli/command.h"

#include "base/clock.h"
#include "base/error.h"
#include "cli/object.h"
#include "cli/units.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_TIMEOUT_NS (60 * NS_PER_S)
#define LOOK_INTERVAL_MS   1000

/* Waiting for the VM to be off: its host's events say when to look; now and then a look without one. */
struct stopping {
    struct cli *cli;
    const char *name;
    char *path; /* of the VM */
    uint64_t last_event;
    uint64_t deadline;
    uint64_t next_look;
    bool look;  /* an event about the VM came */
    json_t *vm; /* how it was last seen; owned */
};

static int note_event(void *opaque, json_t *event, struct ferry_error *err)
{
    struct stopping *stopping = opaque;

    (void)err;
    stopping->last_event = object_number(event, "number");
    if (strcmp(object_text(event, "vm"), stopping->name) == 0)
        stopping->look = true;
    return 0;
}

static bool is_off(const json_t *vm)
{
    const char *state = object_text(vm, "state");

    return strcmp(state, "STOPPED") == 0 || strcmp(state, "CRASHED") == 0;
}

static int look(struct stopping *stopping, struct ferry_error *err)
{
    json_t *vm = NULL;
    int result = client_get(&stopping->cli->client, stopping->path, &vm, err);

    if (result < 0)
        return result;
    json_decref(stopping->vm);
    stopping->vm = vm;
    stopping->look = false;
    stopping->next_look = clock_deadline(LOOK_INTERVAL_MS);
    return is_off(vm);
}

static int step(void *opaque, struct ferry_error *err)
{
    struct stopping *stopping = opaque;

    if (stopping->look || clock_left_ms(stopping->next_look) == 0) {
        int result = look(stopping, err);

        if (result != 0)
            return result;
    }
    return clock_left_ms(stopping->deadline) == 0;
}

static int wait_until_off(struct stopping *stopping, struct ferry_error *err)
{
    struct client_stream stream = {.opaque = stopping,
                                   .object = note_event,
                                   .step = step,
                                   .wake_fd = -1,
                                   .interval_ms = LOOK_INTERVAL_MS / 4};
    char number[24], timeout[UNITS_TEXT_SIZE];
    char *path;
    int result;

    snprintf(number, sizeof(number), "%llu", (unsigned long long)stopping->last_event);
    path = client_path("/v1/events?follow=1&since=%s", number);
    result = client_follow(&stopping->cli->client, path, &stream, err);
    free(path);
    if (result < 0)
        return result;
    if (is_off(stopping->vm))
        return 0;
    if (result == 0)
        return error_set(err, -EPIPE, "ferryd ended while %s was being stopped", stopping->name);
    return error_set(
        err, -ETIMEDOUT, "%s did not power off within %s, it is still %s; ferry kill %s ends it at once",
        stopping->name,
        units_format_duration(args_number(&stopping->cli->args, "timeout", DEFAULT_TIMEOUT_NS), timeout),
        object_text(stopping->vm, "state"), stopping->name);
}

/* The newest event's number, so that waiting begins after it. */
static int find_last_event(struct stopping *stopping, struct ferry_error *err)
{
    struct client_stream stream = {.opaque = stopping, .object = note_event, .wake_fd = -1};

    return client_follow(&stopping->cli->client, "/v1/events?follow=0", &stream, err);
}

static int ask(struct stopping *stopping, struct ferry_error *err)
{
    char *path = client_path("/v1/vms/%s/stop", stopping->name);
    json_t *body = json_object();
    int result = client_request(&stopping->cli->client, "POST", path, body, &stopping->vm, err);

    json_decref(body);
    free(path);
    return result;
}

static int stop(struct cli *cli, struct ferry_error *err)
{
    struct stopping stopping = {.cli = cli, .name = args_operand(&cli->args, 0)};
    uint64_t timeout_ns = args_number(&cli->args, "timeout", DEFAULT_TIMEOUT_NS);
    bool wait = !args_has(&cli->args, "no-wait");
    int result = 0;

    stopping.path = client_path("/v1/vms/%s", stopping.name);
    stopping.deadline = clock_deadline((int64_t)(timeout_ns / NS_PER_MS));
    if (wait)
        result = find_last_event(&stopping, err);
    if (result == 0)
        result = ask(&stopping, err);
    stopping.look = true;
    if (result == 0 && wait && !is_off(stopping.vm))
        result = wait_until_off(&stopping, err);
    if (result == 0 && cli->json)
        cli_print_json(cli, stopping.vm);
    else if (result == 0 && !wait)
        fprintf(cli->out, "%s is asked to power off\n", stopping.name);
    else if (result == 0)
        cli_print_vm_line(cli, stopping.vm);
    json_decref(stopping.vm);
    free(stopping.path);
    return result;
}

const struct command command_stop = {
    .name = "stop",
    .group = "Virtual machines",
    .summary = "Ask a VM's guest to power off, and wait until it has",
    .text =
        "A guest that does not listen goes on running; ferry kill ends it. The VM stays defined: ferry run "
        "NAME boots it again.",
    .options =
        (const struct option[]){
            {.name = "timeout",
             .kind = VALUE_DURATION,
             .value_name = "TIME",
             .help = "wait this long, then fail; 60s unless given"},
            {.name = "no-wait", .help = "ask and return at once"},
            {.name = NULL},
        },
    .operands =
        (const struct operand[]){
            {.name = "VM", .kind = VALUE_VM},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry stop web", "returns when web is off"},
            {"ferry stop web --timeout 20s || ferry kill web", "asks first, then insists"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = stop,
};
