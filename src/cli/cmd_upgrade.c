#include "cli/command.h"

#include "base/error.h"
#include "cli/migration.h"
#include "cli/object.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int upgrade_one(struct cli *cli, const char *name, struct ferry_error *err)
{
    char *path = client_path("/v1/vms/%s/upgrade", name);
    struct migration_watch watch = {.wake_fd = -1};
    json_t *answer = NULL;
    json_t *last = NULL;
    int result = client_request(&cli->client, "POST", path, NULL, &answer, err);

    if (result == 0)
        result = migration_watch(&cli->client, object_text(answer, "id"), &watch, &last, err);
    if (result == 0 && cli->json)
        cli_print_json_line(cli, last);
    if (result == 0)
        result = migration_check_outcome(last, err);
    if (result == 0 && !cli->json) {
        migration_print_summary(cli, last);
        if (cli->verbose)
            migration_print_downtime(cli, last);
        fflush(cli->out);
    }
    json_decref(last);
    json_decref(answer);
    free(path);
    return result;
}

/* One that fails does not keep the others from it. */
struct course {
    struct cli *cli;
    unsigned tried;
    bool alone; /* it was the only one asked for: its error is the command's */
};

static int go_on(struct course *course, const char *name, struct ferry_error *err)
{
    struct cli *cli = course->cli;
    struct ferry_error why = {0};
    int result = upgrade_one(cli, name, &why);

    course->tried++;
    if (result == 0)
        return 0;
    if (course->alone)
        return error_set(err, result, "%s", why.text);
    fprintf(stderr, "ferry: %s\n", why.text);
    cli->exit_status = EXIT_STATUS_FAILED;
    return 0;
}

static bool runs(const json_t *vm)
{
    const char *state = object_text(vm, "state");

    return strncmp(state, "RUNNING", 7) == 0 || strncmp(state, "PAUSED", 6) == 0;
}

static int upgrade_all(struct course *course, bool outdated, struct ferry_error *err)
{
    json_t *vms = NULL;
    const json_t *vm;
    size_t index;
    int result = client_get(&course->cli->client, "/v1/vms", &vms, err);

    json_array_foreach(vms, index, vm)
    {
        if (result == 0 && runs(vm) && (!outdated || json_is_true(object_get(vm, "outdated"))))
            result = go_on(course, object_text(vm, "name"), err);
    }
    json_decref(vms);
    if (result == 0 && course->tried == 0)
        fprintf(stderr,
                outdated ? "all VMs that run on this host are up to date\n" : "no VM runs on this host\n");
    return result;
}

static int upgrade(struct cli *cli, struct ferry_error *err)
{
    struct course course = {.cli = cli, .alone = cli->args.operand_count == 1};
    bool outdated = args_has(&cli->args, "outdated");
    bool all = args_has(&cli->args, "all") || outdated;
    int result = 0;

    if (all == (cli->args.operand_count > 0))
        return error_set(err, -EINVAL,
                         all ? "upgrade: either --all, --outdated or names of VMs"
                             : "upgrade: which VM? --outdated takes all that need it, --all all that run");
    if (all)
        return upgrade_all(&course, outdated, err);
    for (size_t i = 0; i < cli->args.operand_count && result == 0; i++)
        result = go_on(&course, cli->args.operands[i], err);
    return result;
}

const struct command command_upgrade = {
    .name = "upgrade",
    .group = "Moving",
    .summary = "Let running VMs go on in the ferry-vm that is installed now",
    .text =
        "After a new Ferry was installed, VMs still run in the ferry-vm they were started with. Each goes to "
        "a new "
        "process on this host, which takes over its memory instead of copying it, so that it takes no longer "
        "for a large VM than for a small one. The VM stands still for a few milliseconds. Whatever fails "
        "before "
        "that leaves it running as before. Established connections of user-mode networking end.",
    .options =
        (const struct option[]){
            {.name = "all", .help = "all VMs of this host that run, one after the other"},
            {.name = "outdated", .help = "those of them that run in another ferry-vm than the one installed"},
            {.name = NULL},
        },
    .operands =
        (const struct operand[]){
            {.name = "VM", .kind = VALUE_VM, .optional = true, .repeats = true},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry upgrade web", "prints the processes before and after, the time it took and the downtime"},
            {"ferry upgrade --outdated",
             "after an update of Ferry; restart ferryd first, which does not touch them"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = upgrade,
};
