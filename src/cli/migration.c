#include "cli/migration.h"

#include "base/clock.h"
#include "base/error.h"
#include "cli/object.h"
#include "cli/table.h"
#include "cli/units.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define RETRY_PAUSE_MS 500

char *migration_short_id(const json_t *migration, char text[static MIGRATION_SHORT_SIZE])
{
    snprintf(text, MIGRATION_SHORT_SIZE, "%s", object_text(migration, "id"));
    return text;
}

bool migration_has_ended(const json_t *migration)
{
    return *object_text(migration, "ended") != '\0';
}

bool migration_is_completed(const json_t *migration)
{
    return strcmp(object_text(migration, "outcome"), "completed") == 0;
}

struct watching {
    const struct migration_watch *watch;
    json_t *last;
    bool heard; /* since the stream was begun anew */
};

static int keep_last(void *opaque, json_t *migration, struct ferry_error *err)
{
    struct watching *watching = opaque;

    json_decref(watching->last);
    watching->last = json_incref(migration);
    watching->heard = true;
    if (watching->watch->show)
        return watching->watch->show(watching->watch->opaque, migration, err);
    return 0;
}

/* Ends the watching when wake_fd is readable; who owns it reads it. */
static int look_at_wake(void *opaque, struct ferry_error *err)
{
    struct watching *watching = opaque;
    struct pollfd wake = {.fd = watching->watch->wake_fd, .events = POLLIN};

    (void)err;
    return poll(&wake, 1, 0) > 0;
}

int migration_watch_path(struct client *client, const char *path, const struct migration_watch *watch,
                         json_t **last, struct ferry_error *err)
{
    struct watching watching = {.watch = watch};
    struct client_stream stream = {
        .opaque = &watching, .object = keep_last, .step = look_at_wake, .wake_fd = watch->wake_fd};
    uint64_t deadline = clock_deadline(3 * (int64_t)client->timeout_ms);
    int result;

    *last = NULL;
    for (;;) {
        struct pollfd wake = {.fd = watch->wake_fd, .events = POLLIN};

        watching.heard = false;
        result = client_follow(client, path, &stream, err);
        if (watching.heard)
            deadline = clock_deadline(3 * (int64_t)client->timeout_ms);
        if (result == 1 || (watching.last && migration_has_ended(watching.last)))
            break;
        if (result < 0 && result != -EPIPE && result != -ECONNREFUSED)
            break;
        /* The stream ended but the migration did not: ferryd is being restarted. It adopts its VMs, and the
         * migration goes on meanwhile. */
        if (clock_left_ms(deadline) == 0) {
            if (result == 0)
                result =
                    error_set(err, -EPIPE, "ferryd at %s stopped telling how it goes on", client->target);
            break;
        }
        if (poll(&wake, 1, RETRY_PAUSE_MS) > 0) {
            result = 1;
            break;
        }
    }
    if (watching.last && migration_has_ended(watching.last) && result != 1) {
        *last = watching.last;
        return 0;
    }
    json_decref(watching.last);
    return result;
}

int migration_watch(struct client *client, const char *id, const struct migration_watch *watch, json_t **last,
                    struct ferry_error *err)
{
    char *path = client_path("/v1/migrations/%s/watch", id);
    int result = migration_watch_path(client, path, watch, last, err);

    free(path);
    return result;
}

bool migration_is_upgrade(const json_t *migration)
{
    return strcmp(object_text(migration, "kind"), "upgrade") == 0;
}

void migration_describe_process(const json_t *migration, const char *which, char *text, size_t size)
{
    char pid[32], version[32];

    snprintf(pid, sizeof(pid), "upgrade.%s_pid", which);
    snprintf(version, sizeof(version), "upgrade.%s_version", which);
    snprintf(text, size, "process %llu (ferry-vm %s)", (unsigned long long)object_number(migration, pid),
             *object_text(migration, version) ? object_text(migration, version) : "?");
}

/* All of it, the start of the new process included. */
static uint64_t upgrade_time(const json_t *migration)
{
    int64_t started, ended;

    if (!units_parse_time(object_text(migration, "started"), &started) ||
        !units_parse_time(object_text(migration, "ended"), &ended) || ended < started)
        return object_number(migration, "total_ns");
    return (uint64_t)(ended - started);
}

static void print_upgrade(struct cli *cli, const json_t *migration)
{
    char before[96], after[96], total[UNITS_TEXT_SIZE], downtime[UNITS_TEXT_SIZE];

    migration_describe_process(migration, "old", before, sizeof(before));
    migration_describe_process(migration, "new", after, sizeof(after));
    fprintf(cli->out, "%s goes on in %s, before: %s; %s, downtime %s\n", object_text(migration, "vm"), after,
            before, units_format_duration(upgrade_time(migration), total),
            units_format_duration(object_number(migration, "downtime_ns"), downtime));
}

/* What stays behind of disks, and of a suspended guest's file, that were copied. */
static void print_left(struct cli *cli, const json_t *migration)
{
    json_t *file;
    size_t i;

    fprintf(cli->out, "These were copied; what was left on %s is no longer used, and may be removed:\n",
            object_text(migration, "source"));
    json_array_foreach(object_get(migration, "disks.files"), i, file)
        fprintf(cli->out, "  %s\n", object_text(file, "source"));
}

static void print_cold(struct cli *cli, const json_t *migration)
{
    char total[UNITS_TEXT_SIZE], size[UNITS_TEXT_SIZE];

    if (json_array_size(object_get(migration, "disks.files")) > 0)
        print_left(cli, migration); /* last is the line that tells how it went */
    fprintf(cli->out, "%s: %s moved cold from %s to %s: total %s", object_text(migration, "id"),
            object_text(migration, "vm"), object_text(migration, "source"),
            object_text(migration, "destination"),
            units_format_duration(object_number(migration, "total_ns"), total));
    if (json_is_object(object_get(migration, "disks")))
        fprintf(cli->out, ", %s copied",
                units_format_size(object_number(migration, "disks.total_bytes"), size));
    fputc('\n', cli->out);
}

void migration_print_summary(struct cli *cli, const json_t *migration)
{
    char total[UNITS_TEXT_SIZE], downtime[UNITS_TEXT_SIZE], size[UNITS_TEXT_SIZE];
    unsigned long long rounds = object_number(migration, "round");
    const json_t *fetch = object_get(migration, "quick_resume");
    char time[UNITS_TEXT_SIZE], fetched[UNITS_TEXT_SIZE + 80] = "";

    if (migration_is_upgrade(migration)) {
        print_upgrade(cli, migration);
        return;
    }
    if (json_is_object(fetch))
        snprintf(fetched, sizeof(fetched), ", memory fetched in %s with %llu page faults",
                 units_format_duration(object_number(fetch, "duration_ns"), time),
                 (unsigned long long)object_number(fetch, "faults"));
    if (strcmp(object_text(migration, "kind"), "cold") == 0) {
        print_cold(cli, migration);
        return;
    }
    fprintf(cli->out, "%s: %s moved from %s to %s: total %s, downtime %s, %s in %llu round%s%s\n",
            object_text(migration, "id"), object_text(migration, "vm"), object_text(migration, "source"),
            object_text(migration, "destination"),
            units_format_duration(object_number(migration, "total_ns"), total),
            units_format_duration(object_number(migration, "downtime_ns"), downtime),
            units_format_size(object_number(migration, "wire_bytes"), size), rounds, rounds == 1 ? "" : "s",
            fetched);
}

void migration_print_downtime(struct cli *cli, const json_t *migration)
{
    const json_t *parts = object_get(migration, "downtime_parts");
    char text[UNITS_TEXT_SIZE];
    const char *separator = " = ", *name;
    json_t *part;

    fprintf(cli->out, "downtime %s", units_format_duration(object_number(migration, "downtime_ns"), text));
    json_object_foreach((json_t *)parts, name, part)
    {
        fprintf(cli->out, "%s%s %s", separator, name,
                units_format_duration((uint64_t)json_integer_value(part), text));
        separator = " + ";
    }
    fputc('\n', cli->out);
}

void migration_print_rounds(struct cli *cli, const json_t *migration)
{
    const json_t *rounds = object_get(migration, "rounds");
    struct table table = TABLE_INIT;
    size_t index;
    json_t *round;

    table_column(&table, "ROUND", TABLE_RIGHT);
    table_column(&table, "PAGES", TABLE_RIGHT);
    table_column(&table, "SENT", TABLE_RIGHT);
    table_column(&table, "TIME", TABLE_RIGHT);
    table_column(&table, "CHANGED MEANWHILE", TABLE_RIGHT);
    json_array_foreach(rounds, index, round)
    {
        char text[UNITS_TEXT_SIZE];

        table_cell_format(&table, "%zu", index + 1);
        table_cell_format(&table, "%llu", (unsigned long long)object_number(round, "pages"));
        table_cell(&table, units_format_size(object_number(round, "bytes"), text));
        table_cell(&table, units_format_duration(object_number(round, "duration_ns"), text));
        table_cell_format(&table, "%llu pages", (unsigned long long)object_number(round, "dirtied_pages"));
    }
    if (table_rows(&table) > 0)
        table_print(&table, cli->out, cli->term.bold, cli->term.reset);
    table_free(&table);
}

static int check_upgrade(const json_t *migration, struct ferry_error *err)
{
    const char *vm = object_text(migration, "vm");
    const char *reason = object_text(migration, "error");

    if (!migration_is_completed(migration))
        return error_set(err, -EIO, "%s was not upgraded: %s; ferry show %s tells how it is", vm,
                         *reason ? reason : "the host gave no reason", vm);
    if (!*reason)
        return 0;
    return error_set(
        err, -EIO,
        "%s went on in a new process and did not live on there: %s; start it anew from its disks with: "
        "ferry run %s",
        vm, reason, vm);
}

int migration_check_outcome(const json_t *migration, struct ferry_error *err)
{
    const char *outcome = object_text(migration, "outcome");
    const char *vm = object_text(migration, "vm");
    const char *source = object_text(migration, "source");
    const char *destination = object_text(migration, "destination");
    const char *reason = object_text(migration, "error");

    if (migration_is_upgrade(migration))
        return check_upgrade(migration, err);
    if (strcmp(outcome, "completed") == 0 && !*reason)
        return 0;
    if (strcmp(outcome, "completed") == 0)
        return error_set(
            err, -EIO,
            "%s moved to %s and did not live on there: %s; look on %s, and start it anew from its "
            "disks with: ferry run %s",
            vm, destination, reason, destination, vm);
    if (strcmp(outcome, "cancelled") == 0)
        return error_set(err, -EIO, "the migration of %s to %s was cancelled; %s is on %s as before", vm,
                         destination, vm, source);
    if (strcmp(outcome, "unknown") == 0)
        return error_set(
            err, -EIO,
            "nobody can say whether %s runs on %s: %s; it stays stopped on %s; look on %s before "
            "anything else",
            vm, destination, *reason ? reason : "the connection broke", source, destination);
    if (strcmp(outcome, "lost") == 0 && json_is_object(object_get(migration, "quick_resume")))
        return error_set(err, -EIO, "%s is lost: %s; look on %s, and start it anew with: ferry run %s", vm,
                         *reason ? reason : "the connection broke", destination, vm);
    if (strcmp(outcome, "lost") == 0)
        return error_set(err, -EIO, "%s belongs to %s now, which did not say that it runs there: %s", vm,
                         destination, *reason ? reason : "the connection broke");
    return error_set(err, -EIO, "%s was not moved to %s: %s; it is on %s as before", vm, destination,
                     *reason ? reason : "the host gave no reason", source);
}
