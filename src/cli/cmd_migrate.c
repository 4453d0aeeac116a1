#include "cli/command.h"

#include "cli/memory.h"
#include "cli/migration.h"
#include "cli/migration_options.h"
#include "cli/object.h"
#include "cli/progress.h"
#include "cli/signals.h"

#include <stdlib.h>

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

static int migrate(struct cli *cli, struct ferry_error *err)
{
    char *path;
    json_t *body = NULL;
    json_t *answer = NULL;
    int result = migration_request(&cli->args, &body, err);

    if (result < 0)
        return result;
    path = client_path("/v1/vms/%s/migrate", args_operand(&cli->args, 0));
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
        "leaves the migration going on.\n"
        "With --quick-resume there may be a fifth, Fetch: the VM runs at DEST and its process here still "
        "has memory that it needs. When their connection is lost then, the VM stands still at DEST until "
        "it is back: made by itself for a set time (ferryd --reconnect-time), afterwards by ferry recover "
        "VM on either host.\n"
        "With --cold a VM that is powered off or suspended moves with its definition; both hosts must reach "
        "its disks, and the file that a suspended one is in is copied when DEST does not reach it. One that "
        "runs is suspended to a file beside its disk, moved, and resumed at DEST; whatever fails resumes it "
        "here.\n"
        "With --cold --storage its disks move along: they are copied to DEST, holes and zeros left out, and "
        "compared there with what was sent. What they would replace is never overwritten: the move is "
        "refused. Whatever fails leaves nothing there, and the VM here as it was. The disks here are kept; "
        "they are no longer the VM's, and may be removed: ferry tells their names.",
    .options =
        (const struct option[]){
            {.name = "detach", .letter = 'd', .help = "print the migration's id and return at once"},
            MIGRATION_OPTIONS,
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
            {"ferry migrate db b --quick-resume", "ends, however fast db changes its memory"},
            {"ferry migrate web b --cold", "web, which is powered off or suspended, is b's from now on"},
            {"ferry migrate web b --cold --storage=/srv/vms", "with copies of its disks in b's /srv/vms"},
            {"ferry migrate web b --detach", "prints the id; ferry migrations show ID tells the rest"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = migrate,
};
