#include "host/migration_queue.h"

#include "base/error.h"
#include "host/migration_fetch.h"
#include "host/vms.h"

#include <stdlib.h>
#include <string.h>

#define LEAVING_MAX 1024 /* that share the bandwidth; more are each given what one of so many gets */

/* --- the queue; under the lock --- */

static bool has_place(const struct migration *migration)
{
    return migration->outgoing && !migration->stays && !migration->cold && !migration->queued &&
           !migration->ended;
}

/* It takes a part of the host's bandwidth. */
static bool takes_share(const struct migration *migration)
{
    bool copies = migration->outgoing && migration->cold && migration->sending &&
                  migration->stage == STORAGE_COPYING && !migration->ended;

    return copies || has_place(migration);
}

static bool is_before(const struct migration *a, const struct migration *b)
{
    return a->started_ns != b->started_ns ? a->started_ns < b->started_ns : strcmp(a->id, b->id) < 0;
}

unsigned queue_position(const struct migration *migration)
{
    unsigned position = 1;

    if (!migration->queued || migration->ended)
        return 0;
    for (const struct migration *other = migration->host->migrations; other; other = other->next)
        position += other->queued && !other->ended && is_before(other, migration);
    return position;
}

static bool place_is_free(const struct migration *migration)
{
    const struct host *host = migration->host;
    unsigned taken = 0;

    if (host->config->migrate_max == 0)
        return true;
    for (const struct migration *other = host->migrations; other; other = other->next)
        taken += other != migration && has_place(other) && !fetch_is_cut(other);
    return taken < host->config->migrate_max;
}

bool queue_enter(struct migration *migration)
{
    struct host *host = migration->host;
    bool placed;

    host_lock(host);
    migration->queued = true;
    placed = queue_position(migration) == 1 && place_is_free(migration);
    migration->queued = !placed;
    shares_update(host);
    migration->version++;
    host_changed(host);
    host_unlock(host);
    return placed;
}

enum queue_end queue_wait(struct migration *migration)
{
    struct host *host = migration->host;
    enum queue_end end = 0;

    host_lock(host);
    while (!end) {
        if (migration->cancelled)
            end = QUEUE_CANCELLED;
        else if (host->stopping)
            end = QUEUE_STOPPING;
        else if (!migration->vm || !migration->vm->process)
            end = QUEUE_VM_GONE;
        else if (queue_position(migration) == 1 && place_is_free(migration))
            end = QUEUE_GO;
        else
            pthread_cond_wait(&host->changed, &host->lock);
    }
    migration->queued = end == QUEUE_STOPPING;
    shares_update(host);
    migration->version++;
    host_changed(host); /* the next one is the first now */
    host_unlock(host);
    return end;
}

/* --- sharing --- */

/* Who wants less than an even part gets that; what is left is divided among the others, and again. */
void share_divide(uint64_t total, const uint64_t *limits, uint64_t *shares, size_t count)
{
    uint64_t left = total;
    size_t open = count;
    bool again = total != 0;

    for (size_t i = 0; i < count; i++)
        shares[i] = total == 0 ? limits[i] : 0;
    while (again && open > 0) {
        uint64_t even = left / open;

        again = false;
        for (size_t i = 0; i < count; i++) {
            if (shares[i] != 0 || limits[i] == 0 || limits[i] > even)
                continue;
            shares[i] = limits[i];
            left -= limits[i];
            open--;
            again = true;
        }
    }
    for (size_t i = 0; i < count && total != 0; i++) {
        if (shares[i] == 0)
            shares[i] = left / open ? left / open : 1;
    }
}

void shares_update(struct host *host)
{
    uint64_t limits[LEAVING_MAX] = {0}, shares[LEAVING_MAX];
    size_t count = 0, i = 0;

    for (const struct migration *each = host->migrations; each && count < LEAVING_MAX; each = each->next) {
        if (takes_share(each))
            limits[count++] = each->own_limit;
    }
    share_divide(host->config->migrate_bandwidth, limits, shares, count);
    for (struct migration *each = host->migrations; each && i < count; each = each->next) {
        if (!takes_share(each))
            continue;
        __atomic_store_n(&each->share, shares[i++], __ATOMIC_RELAXED);
        if (each->cold) /* what paces it looks there itself */
            each->share_told = each->share;
    }
    host_changed(host);
}

/* Under the lock. */
static bool is_settled(const struct migration *migration)
{
    for (const struct migration *each = migration->host->migrations; each; each = each->next) {
        if (each != migration && has_place(each) && each->sending && each->share_told != each->share)
            return false;
    }
    return true;
}

void shares_settle(struct migration *migration)
{
    struct host *host = migration->host;
    uint64_t deadline = clock_deadline(host_vm_ms(host));

    host_lock(host);
    while (!is_settled(migration) && !host->stopping && clock_left_ms(deadline) > 0)
        (void)thread_cond_wait_until(&host->changed, &host->lock, deadline);
    host_unlock(host);
}

void share_tell(struct migration *migration)
{
    struct host *host = migration->host;
    struct vm_process *process;
    struct ferry_error err;
    uint64_t share;
    json_t *params;

    host_lock(host);
    share = migration->share;
    if (migration->share_told == share) {
        host_unlock(host);
        return;
    }
    host_unlock(host);
    process = vm_process_get(host, migration->vm);
    params = json_pack("{s:s, s:I}", "id", migration->id, "bandwidth_limit", (json_int_t)share);
    if (!process)
        json_decref(params);
    else if (vm_process_call(process, "migrate.limit", params, host_vm_ms(host), NULL, &err) < 0)
        migration_log(migration, LOG_LEVEL_DEBUG, "telling ferry-vm its bandwidth: %s", err.text);
    vm_process_unref(process);
    /* Told or not: a process that does not hear has ended, or will be asked how it is. */
    host_lock(host);
    migration->share_told = share;
    host_changed(host);
    host_unlock(host);
}
