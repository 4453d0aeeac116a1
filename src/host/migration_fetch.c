#include "host/migration_fetch.h"

#include "base/error.h"
#include "host/events.h"
#include "host/peers.h"
#include "host/vms.h"

#include <string.h>

static bool is_true(const struct migration *migration, const char *key)
{
    return json_is_true(json_object_get(json_object_get(migration->progress, "quick_resume"), key));
}

bool fetch_is_under_way(const struct migration *migration)
{
    return migration->fetched && !migration->told_final && is_true(migration, "fetching");
}

bool fetch_is_cut(const struct migration *migration)
{
    return fetch_is_under_way(migration) && is_true(migration, "disconnected");
}

uint64_t fetch_missing_bytes(const struct migration *migration)
{
    return (uint64_t)json_integer_value(json_object_get(migration->progress, "remaining_bytes"));
}

static unsigned long long missing_mib(const struct migration *migration)
{
    return (unsigned long long)(fetch_missing_bytes(migration) + (1u << 20) - 1) >> 20;
}

void fetch_note(struct migration *migration)
{
    if (is_true(migration, "fetching"))
        migration->fetched = true;
}

/* The source tells how it ended for it: when the connection is gone too, so is what is missing here. A
 * destination that has ended needs nothing any more. */
static bool is_over(const struct migration *migration)
{
    return migration->their_outcome && strcmp(migration->their_outcome, "unknown") != 0 &&
           (migration->outgoing ? fetch_is_under_way(migration) : fetch_is_cut(migration));
}

bool fetch_has_news(const struct migration *migration)
{
    return (migration->fetched && !migration->fetch_recorded) ||
           migration->cut_told != fetch_is_cut(migration) || (is_over(migration) && !migration->end_told);
}

/* --- record and events --- */

static void tell_begin(struct migration *migration, unsigned long long left)
{
    if (migration->outgoing)
        events_emit_at(migration->host, migration_state_time(migration, "MIGRATE_TO_VMX_CHECKPT"),
                       EVENT_VM_STOPPED, migration->vm_name, migration->machine, migration->id,
                       "VM %s stopped on host %s, which keeps %llu MiB of its memory for host %s",
                       migration->vm_name, migration->source, left, migration->destination);
    else
        events_emit(migration->host, EVENT_VM_CONTINUED, migration->vm_name, migration->machine,
                    migration->id, "VM %s continued on host %s; %llu MiB of its memory are still on host %s",
                    migration->vm_name, migration->destination, left, migration->source);
}

static void tell_cut(struct migration *migration, bool cut, unsigned long long left)
{
    if (cut)
        events_emit(migration->host, EVENT_MIGRATION_WARNING, migration->vm_name, migration->machine,
                    migration->id,
                    "VM %s stands still on host %s: there is no connection to host %s, which has %llu MiB "
                    "of its memory; ferry recover %s makes it again at once",
                    migration->vm_name, migration->destination, migration->source, left, migration->vm_name);
    else
        events_emit(migration->host, EVENT_MIGRATION_WARNING, migration->vm_name, migration->machine,
                    migration->id, "VM %s: the connection between hosts %s and %s is back",
                    migration->vm_name, migration->source, migration->destination);
}

/* --- what ends it --- */

static int call_vm(struct migration *migration, const char *method, json_t *params, struct ferry_error *err)
{
    struct vm_process *process = vm_process_get(migration->host, migration->vm);
    int result;

    if (!process) {
        json_decref(params);
        return error_set(err, -ESTALE, "its process is gone");
    }
    result = vm_process_call(process, method, params, host_vm_ms(migration->host), NULL, err);
    vm_process_unref(process);
    return result;
}

static void tell_end(struct migration *migration, const char *theirs, const char *error)
{
    bool completed = migration->outgoing && strcmp(theirs, "completed") == 0;
    bool stayed = migration->outgoing && strcmp(theirs, "completed") != 0 && strcmp(theirs, "lost") != 0;
    char why[FERRY_ERROR_TEXT_SIZE];
    struct ferry_error err;
    int result;

    if (error[0])
        snprintf(why, sizeof(why), "%s", error);
    else
        snprintf(why, sizeof(why), "host %s has ended the migration and keeps no memory of the guest",
                 migration_peer_name(migration));
    if (stayed)
        result = call_vm(migration, "recover", json_pack("{s:b}", "here", 1), &err);
    else
        result = call_vm(migration, "migrate.end_fetch",
                         json_pack("{s:s, s:s, s:s}", "id", migration->id, "how",
                                   completed ? "completed" : "lost", "why", why),
                         &err);
    if (result < 0)
        migration_log(migration, LOG_LEVEL_DEBUG, "telling ferry-vm that host %s has ended: %s",
                      migration_peer_name(migration), err.text);
}

void fetch_follow(struct migration *migration)
{
    struct host *host = migration->host;
    bool begun, over, cut, was_cut;
    const char *theirs;
    char error[FERRY_ERROR_TEXT_SIZE];
    unsigned long long left;

    host_lock(host);
    begun = migration->fetched && !migration->fetch_recorded;
    cut = fetch_is_cut(migration);
    was_cut = migration->cut_told;
    over = is_over(migration) && !migration->end_told;
    theirs = migration->their_outcome;
    memcpy(error, migration->their_error, sizeof(error));
    left = missing_mib(migration);
    migration->fetch_recorded = migration->fetched;
    migration->cut_told = cut;
    migration->end_told = migration->end_told || over;
    host_changed(host); /* one that is cut leaves its place to others */
    host_unlock(host);
    if (begun) {
        migration_record(migration);
        tell_begin(migration, left);
    }
    if (cut != was_cut && migration->vm)
        tell_cut(migration, cut, left);
    if (over)
        tell_end(migration, theirs, error);
}

/* --- connecting again --- */

/* Until ferry-vm says that there is a connection, or that it has ended. */
static int await_connection(struct migration *migration, struct ferry_error *err)
{
    struct host *host = migration->host;
    uint64_t deadline = clock_deadline(host_peer_ms(host));
    bool cut;

    host_lock(host);
    while (fetch_is_cut(migration) && !host->stopping &&
           thread_cond_wait_until(&host->changed, &host->lock, deadline))
        continue;
    cut = fetch_is_cut(migration);
    host_unlock(host);
    if (cut)
        return error_set(
            err, HOST_UNREACHABLE,
            "there is still no connection from host %s to host %s for VM %s; it is tried for %llu "
            "s more, and nothing is given up",
            migration->source, migration->destination, migration->vm_name,
            (unsigned long long)(host->config->reconnect_ns / NS_PER_S));
    return 0;
}

static int reconnect_here(struct migration *migration, struct ferry_error *err)
{
    int result = call_vm(migration, "migrate.reconnect", json_pack("{s:s}", "id", migration->id), err);

    if (result == -EALREADY)
        return error_prefix(err, HOST_CONFLICT, "VM %s: there is nothing to recover", migration->vm_name);
    return result < 0 ? error_prefix(err, result, "VM %s cannot be connected again", migration->vm_name)
                      : await_connection(migration, err);
}

int fetch_reconnect(struct host *host, const char *id, struct ferry_error *err)
{
    struct migration *migration;
    int result;

    host_lock(host);
    migration = migration_find(host, id);
    if (migration)
        migration->refs++;
    host_unlock(host);
    if (!migration || !migration->outgoing || !migration->vm)
        result = error_set(err, HOST_NOT_FOUND, "there is no migration %.64s from host %s under way", id,
                           host->config->name);
    else
        result = reconnect_here(migration, err);
    migration_unref(migration);
    return result;
}

/* At the destination: the source makes the connection. */
static int reconnect_there(struct migration *migration, struct ferry_error *err)
{
    char address[SOCK_ADDRESS_SIZE];
    char path[80];
    json_t *body;
    int result = 0;

    if (peers_find(migration->host, migration->source, address, NULL) < 0)
        snprintf(address, sizeof(address), "%s", migration->peer_address);
    if (!address[0])
        return error_set(err, HOST_UNREACHABLE,
                         "the address of host %s, which has the memory of VM %s, is not known here",
                         migration->source, migration->vm_name);
    snprintf(path, sizeof(path), "/v1/migrations/%s/reconnect", migration->id);
    body = json_object();
    result = peer_call(migration->host, address, "POST", path, body, PEER_LONG, NULL, err);
    json_decref(body);
    if (result == HOST_UNREACHABLE)
        return error_prefix(err, result,
                            "VM %s stands still until host %s is back, which has memory of it (ferry kill %s "
                            "gives it up)",
                            migration->vm_name, migration->source, migration->vm_name);
    return result < 0 ? result : await_connection(migration, err);
}

/* --- recover --- */

static int give_up(struct migration *migration, struct ferry_error *err)
{
    struct host *host = migration->host;
    int result = call_vm(migration, "recover", json_pack("{s:b}", "here", 0), err);

    if (result == 0 && !vm_wait_gone(host, migration->vm, clock_deadline(host_start_ms(host))))
        result =
            error_set(err, -ETIMEDOUT, "the process of VM %s does not end; ferry kill %s --force ends it",
                      migration->vm_name, migration->vm_name);
    return result;
}

static int take_back(struct migration *migration, struct ferry_error *err)
{
    const char *vm = migration->vm_name;
    int result = call_vm(migration, "recover", json_pack("{s:b}", "here", 1), err);

    if (result == -EPERM)
        return error_set(
            err, HOST_CONFLICT,
            "VM %s has run on host %s: the memory here is out of date and can never run again. Should host "
            "%s have lost it: ferry recover %s --force-there gives the memory here up, and ferry recover %s "
            "--force-here then lets it be started here from its disks",
            vm, migration->destination, migration->destination, vm, vm);
    return result;
}

static int recover_source(struct migration *migration, enum recover_force force, struct ferry_error *err)
{
    switch (force) {
    case RECOVER_HERE:
        return take_back(migration, err);
    case RECOVER_THERE:
        return give_up(migration, err);
    case RECOVER_ASK:
        break;
    }
    return reconnect_here(migration, err);
}

static int recover_destination(struct migration *migration, enum recover_force force, struct ferry_error *err)
{
    if (force != RECOVER_ASK)
        return error_set(err, HOST_CONFLICT,
                         "VM %s is on host %s and waits for memory from host %s; ferry recover %s connects "
                         "them again, ferry kill %s gives it up",
                         migration->vm_name, migration->destination, migration->source, migration->vm_name,
                         migration->vm_name);
    return reconnect_there(migration, err);
}

int fetch_recover(struct host *host, const char *name, enum recover_force force, bool *handled,
                  struct ferry_error *err)
{
    struct migration *migration = NULL;
    struct vm *vm;
    bool cut = false;
    int result;

    host_lock(host);
    vm = vms_find(host, name);
    if (vm && vm->migration && fetch_is_under_way(vm->migration)) {
        migration = vm->migration;
        migration->refs++;
        cut = fetch_is_cut(migration);
    }
    host_unlock(host);
    *handled = migration != NULL;
    if (!migration)
        return 0;
    if (!cut && force == RECOVER_ASK)
        result = error_set(err, HOST_CONFLICT,
                           "VM %s: there is nothing to recover; its memory is just arriving on host %s", name,
                           migration->destination);
    else
        result = migration->outgoing ? recover_source(migration, force, err)
                                     : recover_destination(migration, force, err);
    migration_unref(migration);
    return result;
}
