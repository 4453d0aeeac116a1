#include "cli/command.h"

#include "base/error.h"
#include "cli/migration.h"
#include "cli/object.h"
#include "cli/saving.h"

#include <errno.h>
#include <stdlib.h>

static int cancel_by_id(struct cli *cli, const char *id, json_t **migration, struct ferry_error *err)
{
    char *path = client_path("/v1/migrations/%s/cancel", id);
    json_t *body = json_object();
    int result = client_request(&cli->client, "POST", path, body, migration, err);

    json_decref(body);
    free(path);
    return result;
}

/* What is being done to the VM of that name; -ENOENT with no sentence when there is no such VM. */
static int cancel_by_vm(struct cli *cli, const char *name, json_t **cancelled, struct ferry_error *err)
{
    char *path = client_path("/v1/vms/%s", name);
    json_t *vm = NULL;
    int result = client_get(&cli->client, path, &vm, NULL);
    const char *id = object_text(vm, "migration");
    const char *saving = object_text(vm, "saving");

    if (result == 0 && *id)
        result = cancel_by_id(cli, id, cancelled, err);
    else if (result == 0 && *saving)
        result = saving_cancel(cli, saving, cancelled, err);
    else if (result == 0)
        result = error_set(err, -EBUSY, "%s is not being migrated, nor saved", name);
    json_decref(vm);
    free(path);
    return result;
}

static void print_cancelled(struct cli *cli, const json_t *migration)
{
    char id[MIGRATION_SHORT_SIZE];

    if (*object_text(migration, "file")) {
        saving_print_cancelled(cli, migration);
        return;
    }
    fprintf(cli->out, "the migration %s of %s to %s %s; %s stays on %s\n", migration_short_id(migration, id),
            object_text(migration, "vm"), object_text(migration, "destination"),
            migration_has_ended(migration) ? "is cancelled" : "is being cancelled",
            object_text(migration, "vm"), object_text(migration, "source"));
}

static int cancel(struct cli *cli, struct ferry_error *err)
{
    const char *named = args_operand(&cli->args, 0);
    json_t *cancelled = NULL;
    int result = cancel_by_id(cli, named, &cancelled, err);

    if (result == -ENOENT && saving_cancel(cli, named, &cancelled, NULL) == 0)
        result = 0;
    if (result == -ENOENT) { /* then err says that there is no such migration, unless there is more to say */
        struct ferry_error of_vm = {0};
        int other = cancel_by_vm(cli, named, &cancelled, &of_vm);

        if (other == 0 || of_vm.text[0])
            result = other;
        if (of_vm.text[0] && err)
            *err = of_vm;
    }

    if (result == 0 && cli->json)
        cli_print_json(cli, cancelled);
    else if (result == 0)
        print_cancelled(cli, cancelled);
    json_decref(cancelled);
    return result;
}

const struct command command_cancel = {
    .name = "cancel",
    .group = "Moving",
    .summary = "Cancel a migration, snapshot or suspend; the VM stays where it is and runs on",
    .text =
        "Possible until the destination has been told to go on with the VM; after that it is too late, and "
        "ferry says so.",
    .operands =
        (const struct operand[]){
            {.name = "ID|VM", .kind = VALUE_MIGRATION},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry cancel 1b4e28ba", "the beginning of an id is enough"},
            {"ferry cancel web", "the migration, snapshot or suspend of web that is in progress"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = cancel,
};
