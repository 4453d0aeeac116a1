/*
 * One ferry-vm process as its ferryd sees it: started or adopted, spoken to, signalled, noticed when it ends.
 *
 * A VM process is its own session leader with no descriptors of ours: the end of ferryd is nothing to it. It
 * is identified by a pidfd, so that a signal can never reach another process that got its number. Which
 * process belongs to a VM is also written to `process.json` in the VM's directory (number and start time), by
 * which a restarted ferryd finds it even while its control socket does not answer.
 *
 * Counted references; the count is guarded by the host's lock. Not to be released from the listener (it runs
 * on the client's reader thread, which the last release waits for).
 */
#ifndef FERRY_HOST_VM_PROCESS_H
#define FERRY_HOST_VM_PROCESS_H

#include "base/jsonrpc.h"
#include "host/host.h"

#include <sys/types.h>

struct vm;

struct vm_process {
    /* constant */
    struct host *host;
    struct vm *vm; /* a reference */
    pid_t pid;
    int pidfd;
    bool child; /* of this ferryd: its exit status can be had */

    pthread_rwlock_t
        client_lock; /* guards client; held for reading during a call, for writing to replace it */
    struct jsonrpc_client *client; /* NULL while there is no connection */
    bool disconnected;             /* atomic: the connection ended; the next call makes a new one */

    unsigned refs;            /* host lock */
    struct loop_watch *watch; /* loop thread */
};

enum vm_process_flags {
    VM_PROCESS_INCOMING = 1,
    VM_PROCESS_PAUSED = 2,
};

/*
 * Starts ferry-vm on the VM's directory and waits until it says that it is ready, at most TIMEOUT_MS. On
 * failure the process is gone. -EINVAL etc. with ferry-vm's own sentence when it refused.
 */
int vm_process_start(struct vm_process **out, struct host *host, struct vm *vm, unsigned flags,
                     int64_t timeout_ms, struct ferry_error *err);

/* Finds the process process.json speaks of. -ESRCH: it is gone; -ENOENT: there never was one. */
int vm_process_adopt(struct vm_process **out, struct host *host, struct vm *vm, struct ferry_error *err);

/* From now on vms_process_ended (vms.h) is called on the loop's thread when the process ends. Once. */
int vm_process_watch(struct vm_process *process);

void vm_process_unref(struct vm_process *process); /* takes the host's lock; NULL allowed */

/* JSON-RPC call; TIMEOUT_MS is for all of it, connecting included when the connection was lost. Steals params
 * (NULL for none); *result may be NULL if not wanted. */
int vm_process_call(struct vm_process *process, const char *method, json_t *params, int64_t timeout_ms,
                    json_t **result, struct ferry_error *err);

void vm_process_kill(struct vm_process *process); /* SIGKILL */
bool vm_process_gone(const struct vm_process *process);
/* After its end: "ferry-vm was killed by signal 9"; reaps a child. */
void vm_process_last_words(struct vm_process *process, char *text, size_t size);

#endif
