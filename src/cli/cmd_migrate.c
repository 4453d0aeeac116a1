#include "cli/command.h"

#include "base/error.h"
#include "cli/memory.h"
#include "cli/migration.h"
#include "cli/object.h"
#include "cli/progress.h"
#include "cli/signals.h"

#include <errno.h>
#include <stdlib.h>

#define THROTTLE_MAX 99 /* per cent */

static json_t *make_request(const struct args *args)
{
    json_t *body = cli_pack("{s:s}", "destination", args_operand(args, 1));

    if (args_has(args, "downtime"))
        json_object_set_new(body, "downtime_limit",
                            json_integer((json_int_t)args_number(args, "downtime", 0)));
    if (args_has(args, "bandwidth"))
        json_object_set_new(body, "bandwidth_limit",
                            json_integer((json_int_t)args_number(args, "bandwidth", 0)));
    if (args_has(args, "copy-time-limit"))
        json_object_set_new(body, "copy_time_limit",
                            json_integer((json_int_t)args_number(args, "copy-time-limit", 0)));
    if (args_has(args, "throttle-max") || args_has(args, "no-throttle"))
        json_object_set_new(body, "throttle_max",
                            json_integer((json_int_t)args_number(args, "throttle-max", 0)));
    if (args_has(args, "streams"))
        json_object_set_new(body, "streams", json_integer((json_int_t)args_number(args, "streams", 0)));
    return body;
}

static int show_progress(void *opaque, json_t *migration, struct ferry_error *err)
{
    (void)err;
    progress_show(opaque, migration);
    return 0;
}

static void tell_interrupted(struct cli *cli, const char *id)
{
    fprintf(
        stderr,
        "\nferry: interrupted; the migration goes on; to see it: ferry migrations show %.8s; to cancel it: "
        "ferry cancel %.8s\n",
        id, id);
    cli->exit_status = EXIT_STATUS_INTERRUPTED;
}

/* In the foreground: until it ended, or Ctrl-C ends the watching of it. */
static int stay(struct cli *cli, const char *id, struct ferry_error *err)
{
    struct progress progress;
    struct signals signals;
    struct migration_watch watch = {.opaque = &progress};
    json_t *last = NULL;
    int result;

    progress_init(&progress, &cli->term, cli->out);
    if (!cli->json)
        watch.show = show_progress;
    signals_begin(&signals, (const int[]){SIGINT, 0});
    watch.wake_fd = signals.fd;
    result = migration_watch(&cli->client, id, &watch, &last, err);
    if (result == 1) {
        signals_next(&signals);
        tell_interrupted(cli, id);
        result = 0;
    } else if (result == 0) {
        if (cli->json)
            cli_print_json(cli, last);
        result = migration_check_outcome(last, err);
        if (result == 0 && !cli->json) {
            migration_print_summary(cli, last);
            if (cli->verbose)
                migration_print_downtime(cli, last);
        }
    }
    signals_end(&signals);
    json_decref(last);
    return result;
}

static int check_options(const struct args *args, struct ferry_error *err)
{
    if (args_has(args, "no-throttle") && args_has(args, "throttle-max"))
        return error_set(err, -EINVAL, "migrate: --no-throttle and --throttle-max exclude each other");
    if (args_number(args, "throttle-max", 0) > THROTTLE_MAX)
        return error_set(err, -EINVAL, "migrate: --throttle-max is a percentage, 0 to %d", THROTTLE_MAX);
    return 0;
}

static int migrate(struct cli *cli, struct ferry_error *err)
{
    char *path;
    json_t *body;
    json_t *answer = NULL;
    int result = check_options(&cli->args, err);

    if (result < 0)
        return result;
    path = client_path("/v1/vms/%s/migrate", args_operand(&cli->args, 0));
    body = make_request(&cli->args);
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
    return result;
}

const struct command command_migrate = {
    .name = "migrate",
    .group = "Moving",
    .summary = "Move a running VM to another host",
    .text =
        "Both hosts check first that the VM can run there; a refusal (exit status 3) changes nothing. Then "
        "its memory is copied while it runs, it is stopped for a moment, and goes on at DEST. Whatever "
        "fails before that moment leaves it running here.\n"
        "In the foreground ferry shows the phases Init, Copy, I/O Quiesce and Frozen, and ends with one "
        "line: id, total time, downtime, bytes, rounds; -v adds what the downtime consists of. Ctrl-C "
        "leaves the migration going on.",
    .options =
        (const struct option[]){
            {.name = "detach", .letter = 'd', .help = "print the migration's id and return at once"},
            {.name = "downtime",
             .kind = VALUE_DURATION,
             .value_name = "TIME",
             .help = "how long the VM may stand still, like 50ms (the default) or 0.3s"},
            {.name = "bandwidth",
             .kind = VALUE_RATE,
             .value_name = "RATE",
             .help = "while it runs send no faster: bytes a second like 500M or 1G (powers of 1024), or bits "
                     "a second like 10Gbit (powers of 1000); no limit unless given"},
            {.name = "throttle-max",
             .kind = VALUE_NUMBER,
             .value_name = "PERCENT",
             .help = "when the VM changes its memory faster than it can be sent, slow its CPUs by at most so "
                     "much, 0 to 99 %, 99 unless given"},
            {.name = "no-throttle", .help = "never slow its CPUs"},
            {.name = "copy-time-limit",
             .kind = VALUE_DURATION,
             .value_name = "TIME",
             .help = "when that does not help either: give up if sending what is left takes longer, 100s "
                     "unless given; else stop the VM and finish"},
            {.name = "streams",
             .kind = VALUE_NUMBER,
             .value_name = "N",
             .help = "connections to send memory on, 1 to 16; chosen by the host unless given"},
            {.name = NULL},
        },
    .operands =
        (const struct operand[]){
            {.name = "VM", .kind = VALUE_VM},
            {.name = "DEST", .kind = VALUE_HOST},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry migrate web b", "moves web to the host b and shows how it goes"},
            {"ferry migrate web b --downtime 10ms --bandwidth 1Gbit", "gently, and with a shorter stop"},
            {"ferry migrate web b --detach", "prints the id; ferry migrations show ID tells the rest"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = migrate,
};
