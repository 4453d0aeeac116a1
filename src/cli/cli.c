/* What the commands share (command.h). */
#include "cli/command.h"

#include "base/clock.h"
#include "base/error.h"
#include "cli/memory.h"
#include "cli/object.h"
#include "cli/units.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_TARGET     "/run/ferry"
#define DEFAULT_TIMEOUT_NS (10 * NS_PER_S)
#define TIMEOUT_MAX_NS     (24 * 3600 * NS_PER_S)

const char *cli_target(const struct cli *cli)
{
    const char *environment = getenv("FERRY_HOST");

    return args_text(&cli->args, "host", environment && *environment ? environment : DEFAULT_TARGET);
}

static int find_timeout(const struct cli *cli, uint64_t *timeout_ns, struct ferry_error *err)
{
    const char *environment = getenv("FERRY_HOST_TIMEOUT");
    int result = 0;

    *timeout_ns = DEFAULT_TIMEOUT_NS;
    if (args_has(&cli->args, "host-timeout"))
        *timeout_ns = args_number(&cli->args, "host-timeout", 0);
    else if (environment && *environment)
        result = units_parse_duration(environment, timeout_ns, err);
    if (result < 0)
        return error_prefix(err, result, "FERRY_HOST_TIMEOUT");
    if (*timeout_ns < NS_PER_MS || *timeout_ns > TIMEOUT_MAX_NS)
        return error_set(err, -EINVAL, "the time a host may say nothing is 1ms to 24h");
    return 0;
}

int cli_connect(struct cli *cli, struct ferry_error *err)
{
    uint64_t timeout_ns;
    int result = find_timeout(cli, &timeout_ns, err);

    return result < 0 ? result
                      : client_open(&cli->client, cli_target(cli), cli->json,
                                    (unsigned)(timeout_ns / NS_PER_MS), err);
}

static void print_dump(struct cli *cli, const json_t *value, size_t flags)
{
    char *text = json_dumps(value, JSON_ENCODE_ANY | flags);

    fprintf(cli->out, "%s\n", text ? text : "null");
    free(text);
}

void cli_print_json(struct cli *cli, const json_t *value)
{
    json_t *nothing = json_object();

    print_dump(cli, value ? value : nothing, JSON_INDENT(2));
    json_decref(nothing);
}

void cli_print_json_line(struct cli *cli, const json_t *value)
{
    print_dump(cli, value, JSON_COMPACT);
    fflush(cli->out);
}

static const char *describe_state(const char *state)
{
    static const struct {
        const char *state, *words;
    } words[] = {
        {"RUNNING", "running"},
        {"PAUSED", "paused"},
        {"STOPPED", "stopped"},
        {"CRASHED", "crashed"},
        {"RUNNING(MIGR)", "running and being moved away"},
        {"PAUSED(MIGR)", "paused and being moved away"},
        {"SETUP(MIGR)", "arriving"},
        {"NOT_RUNNABLE", "not runnable"},
    };

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (strcmp(words[i].state, state) == 0)
            return words[i].words;
    }
    return state;
}

void cli_print_vm_line(struct cli *cli, const json_t *vm)
{
    const char *machine = object_text(vm, "definition.machine");
    uint64_t vcpus = object_number(vm, "definition.vcpus");
    char memory[UNITS_TEXT_SIZE];

    fprintf(cli->out, "%s is %s on %s", object_text(vm, "name"), describe_state(object_text(vm, "state")),
            object_text(vm, "host"));
    if (*machine && vcpus)
        fprintf(cli->out, " (%s, %s, %llu vCPU%s)", machine,
                units_format_size(object_number(vm, "definition.memory"), memory), (unsigned long long)vcpus,
                vcpus == 1 ? "" : "s");
    if (*object_text(vm, "why"))
        fprintf(cli->out, ": %s", object_text(vm, "why"));
    fputc('\n', cli->out);
}

json_t *cli_pack(const char *format, ...)
{
    json_error_t where;
    va_list args;
    json_t *value;

    va_start(args, format);
    value = json_vpack_ex(&where, 0, format, args);
    va_end(args);
    if (!value) {
        fprintf(stderr, "ferry: an argument is not UTF-8 text\n");
        exit(EXIT_STATUS_USAGE);
    }
    return value;
}

int cli_change_vm(struct cli *cli, const char *verb, json_t *body, struct ferry_error *err)
{
    char *path = client_path("/v1/vms/%s/%s", args_operand(&cli->args, 0), verb);
    json_t *vm = NULL;
    int result;

    if (!body)
        body = json_object();
    result = client_request(&cli->client, "POST", path, body, &vm, err);
    if (result == 0 && cli->json)
        cli_print_json(cli, vm);
    else if (result == 0)
        cli_print_vm_line(cli, vm);
    json_decref(body);
    json_decref(vm);
    free(path);
    return result;
}
