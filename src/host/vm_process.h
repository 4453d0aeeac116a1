/*
 * One ferry-vm process as its ferryd sees it: started or adopted, spoken to, signalled, noticed when it ends.
 *
 * A VM process is its own session leader with no descriptors of ours: the end of ferryd is nothing to it. It
 * is identified by a pidfd, so that a signal can never reach another process that got its number. Which
 * process belongs to a VM is also written to `process.json` in the VM's directory (number and start time), by
 * which a restarted ferryd finds it even while its control socket does not answer.
 *
 * While a VM is being upgraded (upgrade.h) it has two processes, each in a directory of its own, which change
 * places: so a process's directory is known by a descriptor, not by its name.
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
    int dir_fd; /* its directory, by whatever name */
    bool child; /* of this ferryd: its exit status can be had */

    pthread_rwlock_t
        client_lock; /* guards client; held for reading during a call, for writing to replace it */
    struct jsonrpc_client *client; /* NULL while there is no connection */
    bool disconnected;             /* atomic: the connection ended; the next call makes a new one */

    unsigned refs;               /* host lock */
    char *remains;               /* host lock; where its directory is; NULL: it is the VM's */
    struct vm_process *leaving;  /* host lock; the next on the host's list of those that were replaced */
    struct loop_watch *watch;    /* loop thread */
    struct loop_timer *patience; /* loop thread; replaced, and not gone yet */
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

/* Instead of a boot the guest goes on from a checkpoint file. */
struct vm_process_resume {
    const char *file;
    bool eager;          /* all of its memory is read before it runs */
    bool new_identity;   /* as another VM than it was */
    bool new_generation; /* it has gone on from there before, or may have */
    uint64_t generation; /* what its lock must say: nobody has had the VM since; 0: anything */
};

int vm_process_resume(struct vm_process **out, struct host *host, struct vm *vm, unsigned flags,
                      const struct vm_process_resume *resume, int64_t timeout_ms, struct ferry_error *err);

/* The same for the process that is to take the VM over from the one that runs in the VM's directory; it gets
 * DIRECTORY. */
int vm_process_start_next(struct vm_process **out, struct host *host, struct vm *vm, const char *directory,
                          int64_t timeout_ms, struct ferry_error *err);

/* Finds the process that process.json in DIRECTORY speaks of. -ESRCH: it is gone; -ENOENT: there never was
 * one. */
int vm_process_adopt(struct vm_process **out, struct host *host, struct vm *vm, const char *directory,
                     struct ferry_error *err);

/* From now on vms_process_ended (vms.h) is called on the loop's thread when the process ends. Once. */
int vm_process_watch(struct vm_process *process);

void vm_process_unref(struct vm_process *process); /* takes the host's lock; NULL allowed */

/* JSON-RPC call; TIMEOUT_MS is for all of it, connecting included when the connection was lost. Steals params
 * (NULL for none); *result may be NULL if not wanted. */
int vm_process_call(struct vm_process *process, const char *method, json_t *params, int64_t timeout_ms,
                    json_t **result, struct ferry_error *err);
/* Whether such a call failed because the process has ended, or is just ending. */
bool vm_process_call_came_late(int result);

/* Its VM is another's now. Takes the caller's reference over: the process, which should end by itself, is
 * killed when it does not, and then REMAINS, its directory, is removed. It is watched already. */
void vm_process_leave(struct vm_process *process, const char *remains);
/* At the end of ferryd: forgets those that have not ended. */
void vm_processes_forget_leaving(struct host *host);
/* exit.json that it left, or NULL. New reference. */
json_t *vm_process_exit(const struct vm_process *process);

/* Kills the process that process.json in DIRECTORY speaks of, if there is one, and waits for its end. */
void vm_process_kill_in(const struct host *host, const char *directory);
void vm_process_kill(struct vm_process *process); /* SIGKILL */
bool vm_process_gone(const struct vm_process *process);
/* Whether it runs another ferry-vm than the one that is installed now: 1 or 0; negative errno when that
 * cannot be told, as when the program that is installed is a script. */
int vm_process_is_outdated(const struct vm_process *process);
/* After its end: "ferry-vm was killed by signal 9"; reaps a child. */
void vm_process_last_words(struct vm_process *process, char *text, size_t size);

#endif
