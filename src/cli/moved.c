#include "cli/moved.h"

#include "base/clock.h"
#include "base/error.h"
#include "cli/migration.h"
#include "cli/object.h"
#include "cli/units.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define RETRY_PAUSE_MS 500

/* Whether MIGRATION began after VM had (VM may be NULL: not here any more). */
static bool is_newer(const json_t *migration, const json_t *vm)
{
    int64_t migration_ns, vm_ns;

    if (!units_parse_time(object_text(migration, "started"), &migration_ns) ||
        !units_parse_time(object_text(vm, "started"), &vm_ns))
        return true;
    return migration_ns >= vm_ns;
}

/* The migration that takes or took VM, as it is seen here (OBJECT; NULL: not any more), away from this host
 * (*migration, owned by the caller), or NULL. */
static int find_departure(struct client *client, const char *vm, const json_t *object, json_t **migration,
                          struct ferry_error *err)
{
    json_t *all = NULL, *candidate;
    size_t index;
    int result = client_get(client, "/v1/migrations", &all, err);

    *migration = NULL;
    if (result < 0)
        return result;
    json_array_foreach(all, index, candidate)
    {
        if (strcmp(object_text(candidate, "vm"), vm) != 0)
            continue;
        if (!migration_is_upgrade(candidate) && strcmp(object_text(candidate, "side"), "source") == 0 &&
            is_newer(candidate, object))
            *migration = json_incref(candidate);
        break;
    }
    json_decref(all);
    return 0;
}

static int find_address(struct client *client, struct moved *moved, struct ferry_error *err)
{
    json_t *hosts = NULL;
    const json_t *host;
    size_t index;
    int result = client_get(client, "/v1/hosts", &hosts, err);

    json_array_foreach(hosts, index, host)
    {
        if (strcmp(object_text(host, "name"), moved->host) == 0)
            snprintf(moved->address, sizeof(moved->address), "%s", object_text(host, "address"));
    }
    json_decref(hosts);
    return result;
}

/* Whether MIGRATION moved it away for good; waits for its end. */
static int judge_migration(struct client *client, const json_t *migration, struct moved *moved,
                           struct ferry_error *err)
{
    struct migration_watch watch = {.wake_fd = -1};
    json_t *last = NULL;
    int result = 0;

    if (!migration_has_ended(migration)) {
        result = migration_watch(client, object_text(migration, "id"), &watch, &last, err);
        if (result < 0)
            return result;
        migration = last;
    }
    if (migration_is_completed(migration)) {
        moved->kind = MOVED_AWAY;
        snprintf(moved->host, sizeof(moved->host), "%s", object_text(migration, "destination"));
        result = find_address(client, moved, err);
    }
    json_decref(last);
    return result;
}

static bool is_off(const json_t *vm)
{
    const char *state = object_text(vm, "state");

    return strcmp(state, "STOPPED") == 0 || strcmp(state, "CRASHED") == 0 ||
           strcmp(state, "NOT_RUNNABLE") == 0;
}

static int find_now(struct client *client, const char *vm, struct moved *moved, struct ferry_error *err)
{
    char *path = client_path("/v1/vms/%s", vm);
    json_t *object = NULL, *migration = NULL;
    bool is_gone;
    int result = client_get(client, path, &object, err);

    free(path);
    *moved = (struct moved){.kind = MOVED_NOT};
    is_gone = result == -ENOENT;
    if (result < 0 && !is_gone)
        return result;
    /* A VM that has just left may still be seen here, as if it were off. */
    result = find_departure(client, vm, object, &migration, err);
    if (result == 0 && migration)
        result = judge_migration(client, migration, moved, err);
    if (result == 0 && moved->kind == MOVED_NOT && is_gone) {
        result = error_set(err, -ENOENT, "there is no VM %s on this host", vm);
    } else if (result == 0 && moved->kind == MOVED_NOT && is_off(object)) {
        moved->kind = MOVED_ENDED;
        snprintf(moved->why, sizeof(moved->why), "%s",
                 *object_text(object, "why") ? object_text(object, "why") : "it is off");
    }
    json_decref(migration);
    json_decref(object);
    return result;
}

int moved_find(struct client *client, const char *vm, struct moved *moved, struct ferry_error *err)
{
    uint64_t deadline = clock_deadline(3 * (int64_t)client->timeout_ms);
    bool told = false;
    int result;

    while ((result = find_now(client, vm, moved, err)) == -ECONNREFUSED || result == -EPIPE) {
        if (clock_left_ms(deadline) == 0)
            break;
        if (!told)
            fprintf(stderr, "ferry: ferryd at %s does not answer; waiting for it\n", client->target);
        told = true;
        poll(NULL, 0, RETRY_PAUSE_MS);
    }
    return result;
}

int moved_follow(struct client *client, const char *vm, struct moved *moved, struct ferry_error *err)
{
    struct client next;
    int result = moved_find(client, vm, moved, err);

    if (result == 0 && moved->kind == MOVED_NOT)
        poll(NULL, 0, RETRY_PAUSE_MS);
    if (result < 0 || moved->kind != MOVED_AWAY)
        return result;
    if (!*moved->address)
        return error_set(err, -EHOSTUNREACH,
                         "%s moved to %s, whose address is not known here; look there with ferry --host", vm,
                         moved->host);
    result = client_open_host(&next, client, moved->host, moved->address, err);
    if (result < 0)
        return error_prefix(err, result, "%s moved to %s", vm, moved->host);
    client_close(client);
    *client = next;
    return 0;
}
