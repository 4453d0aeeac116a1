#include "cli/command.h"

#include "cli/migration.h"
#include "cli/object.h"

#include <stdlib.h>

static int cancel(struct cli *cli, struct ferry_error *err)
{
    char *path = client_path("/v1/migrations/%s/cancel", args_operand(&cli->args, 0));
    json_t *body = json_object(), *migration = NULL;
    int result = client_request(&cli->client, "POST", path, body, &migration, err);
    char id[MIGRATION_SHORT_SIZE];

    if (result == 0 && cli->json)
        cli_print_json(cli, migration);
    else if (result == 0)
        fprintf(cli->out, "the migration %s of %s to %s %s; %s stays on %s\n",
                migration_short_id(migration, id), object_text(migration, "vm"),
                object_text(migration, "destination"),
                migration_has_ended(migration) ? "is cancelled" : "is being cancelled",
                object_text(migration, "vm"), object_text(migration, "source"));
    json_decref(migration);
    json_decref(body);
    free(path);
    return result;
}

const struct command command_cancel = {
    .name = "cancel",
    .group = "Moving",
    .summary = "Cancel a migration; the VM stays where it is and runs on",
    .text =
        "Possible until the destination has been told to go on with the VM; after that it is too late, and "
        "ferry says so.",
    .operands =
        (const struct operand[]){
            {.name = "ID", .kind = VALUE_MIGRATION},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry cancel 1b4e28ba", "the beginning of an id is enough"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = cancel,
};
