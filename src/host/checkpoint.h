/*
 * Saving VMs into checkpoint files: ferry snapshot (the VM runs on) and ferry suspend (its process ends, and
 * ferry resume lets the guest go on: resume.h). The writing is done by the VM's process; ferryd starts it,
 * watches, and learns the outcome, also when it was restarted meanwhile: `saving.json` in the VM's directory
 * says that a save was begun.
 *
 *     checkpoint_save (synchronous)      saving.json, `checkpoint-save` to ferry-vm
 *     job (its own thread)               waits for the end; a suspended VM gets `suspended.json`
 *
 * A VM that is being saved can be paused, stopped and killed; everything else waits for the end of it.
 */
#ifndef FERRY_HOST_CHECKPOINT_H
#define FERRY_HOST_CHECKPOINT_H

#include "base/thread.h"
#include "host/migration.h"

struct saving {
    /* constant once registered */
    struct host *host;
    char id[MIGRATION_ID_SIZE];
    char vm_name[HOST_NAME_SIZE];
    char machine[16];
    char file[PATH_MAX];
    bool suspends;
    bool adopted; /* begun by an earlier ferryd */
    uint64_t started_ns;
    struct vm *vm; /* a reference */

    /* host lock */
    struct saving *next;
    unsigned refs;
    unsigned version; /* counts changes, for watchers */
    json_t *progress; /* what ferry-vm told last, or NULL; immutable */
    bool told_final;
    bool ended;
    const char *outcome; /* "none" until it has ended */
    char error[FERRY_ERROR_TEXT_SIZE];
    uint64_t ended_ns;

    struct thread thread;
};

/* --- verbs of the API --- */

struct checkpoint_options {
    const char *file;     /* absolute */
    const char *kind;     /* "snapshot" or "suspend" */
    const char *compress; /* "off" or "zstd"; NULL: off */
    uint64_t bandwidth;   /* bytes/s; 0: no limit */
    bool overwrite;
};

/* Returns when the save is under way. */
int checkpoint_save(struct host *host, const char *vm, const struct checkpoint_options *options,
                    char id[static MIGRATION_ID_SIZE], struct ferry_error *err);
/* Those of this ferryd's life, the newest first. New array. */
json_t *checkpoints_list(struct host *host);
/* The whole id of the save whose id begins with PREFIX. */
int checkpoint_resolve(struct host *host, const char *prefix, char id[static MIGRATION_ID_SIZE],
                       struct ferry_error *err);
int checkpoint_show(struct host *host, const char *id, json_t **answer, struct ferry_error *err);
/* As migration_watch. */
int checkpoint_watch(struct host *host, const char *id, unsigned *seen, uint64_t deadline, json_t **answer,
                     bool *ended, struct ferry_error *err);
int checkpoint_cancel(struct host *host, const char *id, json_t **answer, struct ferry_error *err);

/* --- for the other modules --- */

/* A ferry-vm's notification `checkpoint`; on a reader thread. */
void checkpoint_told(struct vm_process *process, const json_t *params);
/* At start, after the VMs were adopted: takes up what was in progress. */
void checkpoints_adopt(struct host *host);
/* Joins ended jobs; with ALL (the host stops) waits for every job and forgets them. */
void checkpoints_reap(struct host *host, bool all);
/* -EBUSY, in words, when VM is being saved. Under the lock. */
int checkpoint_check_idle(const struct vm *vm, struct ferry_error *err);

#endif
