/*
 * ferryd: one host. `struct host` is the context everything in src/host works on; there are no globals.
 *
 * Threads
 *   main           runs the event loop: signals, processes that end. Short work only.
 *   API threads    one a connection, made by libmicrohttpd; they may block (on a VM, another host, a client).
 *   rpc readers    one a VM, inside base/jsonrpc; they deliver what a VM tells, and do short work only.
 *   migration jobs one a migration in progress; they may block.
 * All end when `stopping` is set: it is announced by `stop_fd` becoming readable (for poll) and a broadcast
 * of `changed` (for waiters). Whoever waits, watches one of the two.
 *
 * Lock
 *   `lock` guards the inventory: the lists below and every field of what is on them that is not marked
 *   constant. `changed` is broadcast at every change of a VM or a migration. It is never held over anything
 *   that may take long: a call to a VM or another host, a store, a file, a child. Who needs a VM's process,
 *   a peer's address or a migration meanwhile takes a reference or a copy, and looks again afterwards. A VM
 *   on which something slow is being done is claimed (vms.h), so that nobody else does.
 *   Order: `lock` before the events' own lock; the store's own lock is never taken under either.
 */
#ifndef FERRY_HOST_HOST_H
#define FERRY_HOST_HOST_H

#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "cpu/cpu.h"
#include "cpu/kvm_kind.h"
#include "host/config.h"
#include "host/store.h"

#include <ferry/error.h>

#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <stdbool.h>

#define HOST_PROTOCOL 1 /* of the calls between hosts; other versions are refused */

/*
 * Error codes whose class the API tells its caller (docs/API.md, "Errors"). Every other code is `failed`.
 * EEXIST, EBUSY, EADDRINUSE and EALREADY all are `conflict`.
 */
#define HOST_USAGE       (-EINVAL)
#define HOST_NOT_FOUND   (-ESRCH)
#define HOST_CONFLICT    (-EEXIST)
#define HOST_REFUSED     (-EKEYREJECTED)
#define HOST_UNREACHABLE (-EHOSTUNREACH)

struct vm;
struct vm_process;
struct peer;
struct migration;
struct saving;
struct events;
struct api;
struct agreement_thread;
struct journal;
struct migration_files;
struct ferry_credentials;
struct probe_door;
struct cpu_generations;

struct host {
    /* constant after host_new */
    const struct config *config;
    struct log *log;
    struct journal *journal; /* NULL: nobody reads it there */
    struct loop *loop;
    struct store *store;
    struct events *events;
    struct api *api;
    struct agreement_thread *agreement;
    struct migration_files *files;
    int stop_fd;
    int pid_fd; /* locked: one ferryd a state directory */
    char started[CLOCK_TEXT_SIZE];
    bool ready;                      /* host_new succeeded */
    char boot_id[40];                /* this machine's, to tell whether two hosts share it */
    const char *hugepages_directory; /* as of hugepages_read */

    enum kvm_kind kvm; /* what its KVM is good for, and if not for all, why */
    struct ferry_error kvm_why;
    struct cpu cpu;                      /* vendor empty: it runs no x86_64 VMs */
    struct cpu_generations *generations; /* CPU baselines by name */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stopping;
    bool migration_enabled;
    struct ferry_credentials *credentials; /* NULL: this host has no certificate (certificate.h) */
    struct vm *vms;                        /* by name */
    struct vm_process *leaving;            /* replaced by an upgrade, not gone yet; references */
    struct peer *peers;                    /* by name */
    struct migration *migrations;          /* newest first */
    struct saving *savings;                /* newest first (checkpoint.h) */
    unsigned records_version;              /* counts what is recorded of migrations */
    json_t *baseline;         /* the CPU baseline in force (cpu_baseline.h); immutable; NULL: none */
    struct probe_door *probe; /* constant */
};

/*
 * Takes the state directory (refused while another ferryd has it), opens the records, adopts the VMs that
 * run, and serves the API. CONFIG and LOOP are borrowed.
 */
int host_new(struct host **out, const struct config *config, struct loop *loop, struct ferry_error *err);
/* Stops serving, waits for threads, leaves the VMs alone. After loop_run has returned. NULL allowed. */
void host_free(struct host *host);

static inline void host_lock(struct host *host)
{
    pthread_mutex_lock(&host->lock);
}

static inline void host_unlock(struct host *host)
{
    pthread_mutex_unlock(&host->lock);
}

/* Under the lock. */
static inline void host_changed(struct host *host)
{
    pthread_cond_broadcast(&host->changed);
}

/*
 * How long something is waited for, in milliseconds; all other deadlines follow from these settings.
 *   peer   another host's silence
 *   vm     an answer of a VM's process, or its end when it was told to end: longer, and it hangs
 *   start  work as long as a VM's memory is large: its process starting, or ending, here or there
 */
static inline int64_t host_peer_ms(const struct host *host)
{
    return (int64_t)(host->config->peer_timeout_ns / NS_PER_MS);
}

static inline int64_t host_vm_ms(const struct host *host)
{
    return (int64_t)(host->config->vm_timeout_ns / NS_PER_MS);
}

static inline int64_t host_start_ms(const struct host *host)
{
    return (int64_t)(host->config->start_timeout_ns / NS_PER_MS);
}

/* Whether the host is going down; any thread, with or without the lock. */
bool host_stopping(struct host *host);

/* The host object of docs/API.md. New reference. */
json_t *host_object(struct host *host);
/* Bytes of ordinary memory that a new VM may have here now, and how many there are in all. */
uint64_t host_memory_available(struct host *host);
uint64_t host_memory_total(const struct host *host);
/* Bytes that --memory-limit leaves to a new VM, of whatever pages; UINT64_MAX without a limit. */
uint64_t host_memory_allowed(struct host *host);
/* Whether there are the huge pages, not promised to another VM, that a new VM is to have. -EBUSY, or -ENOENT
 * when this host has none of that size, in words with both numbers: "it needs 512 huge pages …". */
int host_check_hugepages(struct host *host, const json_t *definition, struct ferry_error *err);
/* Enables or disables migrations to and from this host; recorded. */
void host_set_migration(struct host *host, bool enabled);

/* Logs and forgets a failure to record something. */
void host_record_failed(struct host *host, const struct ferry_error *err);

/* Writes TEXT to PATH so that after a crash it is there whole or not at all. */
int host_write_file(const char *path, const char *text, struct ferry_error *err);
/* FROM becomes TO, which is not there (HOST_CONFLICT), on storage when it returns. */
int host_rename_new(const char *from, const char *to, struct ferry_error *err);
/* That PATH is in its directory, or is not there any more, is on storage. */
void host_sync_directory(const char *path);
/* Parses the JSON object in PATH, at most 16 MiB; -ENOENT when there is none. */
int host_read_json(const char *path, json_t **out, struct ferry_error *err);

#endif
