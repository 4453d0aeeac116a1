/*
 * The inventory: the VMs of this host, each with its directory STATE_DIR/vms/NAME, and the verbs on them.
 *
 * The directory is the record of a VM: definition.json (what it is), process.json (which process runs it),
 * exit.json (how that ended, written by ferry-vm), incoming.json (it is arriving: migration and source; taken
 * away when it runs here), not-runnable.json (it must not be started here, and why: vm_runnable.h),
 * saving.json (it is being saved: checkpoint.h), suspended.json (its guest is in a file: vm_suspended.h). The
 * inventory is made from the directories when ferryd starts.
 *
 * Two threads never do something slow to one VM at once: the one that begins claims it (`busy` says what is
 * being done), others are refused with -EBUSY. A VM with a migration in progress counts as claimed, except
 * for pause, unpause and stop, which ferry-vm itself arbitrates.
 */
#ifndef FERRY_HOST_VMS_H
#define FERRY_HOST_VMS_H

#include "host/host.h"
#include "host/vm_process.h"

enum vm_state {
    VM_STATE_SETUP = 1, /* arriving, not running yet */
    VM_STATE_RUNNING,
    VM_STATE_PAUSED,
    VM_STATE_STOPPED,
    VM_STATE_CRASHED,
    VM_STATE_SUSPENDED,    /* its guest is in a checkpoint file */
    VM_STATE_NOT_RUNNABLE, /* its process keeps it stopped: nobody can say where it runs */
};

/* Why a VM must not be started here ("Not Runnable Set By", "Not Runnable Reason"). */
struct vm_ban {
    char by[8]; /* "Migrate" or "Admin"; empty: there is none */
    char reason[FERRY_ERROR_TEXT_SIZE];
    /* set by Migrate */
    char host[HOST_NAME_SIZE]; /* the other one */
    char migration[40];
    char outcome[16]; /* of the migration: "completed", "lost", "unknown" */
};

struct vm {
    /* constant */
    char name[HOST_NAME_SIZE];
    char directory[PATH_MAX];
    json_t *definition; /* normalised; immutable */

    /* guarded by the host's lock */
    struct vm *next;
    unsigned refs;
    bool listed; /* false while it is being made: only its name is taken */
    enum vm_state state;
    char why[FERRY_ERROR_TEXT_SIZE];
    char started[CLOCK_TEXT_SIZE]; /* empty until it runs */
    uint64_t memory_resident;      /* bytes, as last told */
    uint64_t memory_promised;      /* bytes, while a reservation is being made */
    const char *busy;              /* "being started"; NULL: unclaimed */
    json_t *cpu;                   /* what it was given, as its process last told: {vendor, features}; NULL */
    char version[32];              /* of the ferry-vm that runs it; empty: it has not said */
    char seccomp[8];               /* its system call filters: on, log, off; empty: it has not said */
    struct vm_process *process;    /* NULL: none */
    bool killed;                   /* that one, by a person's wish, as it did not end by itself */
    struct vm_process *newcomer;   /* is to take it over, by an upgrade; NULL: none */
    struct migration *migration;   /* in progress; a reference */
    struct saving *saving;         /* the same of a snapshot or suspend */
    struct vm_ban ban;
    json_t *exit;      /* exit.json of the process that ended last, or NULL */
    json_t *suspended; /* {file, checkpoint, since}; immutable; NULL: it is not */
    /* What a migration to a host was last said to be like; NULL: not asked. */
    json_t *forecast;
    char forecast_for[HOST_NAME_SIZE];
};

/* Verbs of the API. *answer: a new VM object. Codes as in host.h. */
int vms_create(struct host *host, const json_t *definition, bool paused, json_t **answer,
               struct ferry_error *err);
int vms_start(struct host *host, const char *name, bool paused, json_t **answer, struct ferry_error *err);
/* METHOD of ferry-vm: "pause", "resume" or "stop". */
int vms_command(struct host *host, const char *name, const char *method, json_t **answer,
                struct ferry_error *err);
/* Refused without FORCE while the guest runs on another host and needs memory that is here. */
int vms_kill(struct host *host, const char *name, bool force, json_t **answer, struct ferry_error *err);
int vms_remove(struct host *host, const char *name, struct ferry_error *err);
int vms_show(struct host *host, const char *name, json_t **answer, struct ferry_error *err);
json_t *vms_list(struct host *host);
unsigned vms_count(struct host *host);

/* For the other modules. References are released by vm_unref, which takes the lock. */
struct vm *vms_find(struct host *host, const char *name); /* under the lock; borrowed; NULL */
struct vm *vm_get(struct host *host, const char *name, struct ferry_error *err); /* a reference; NULL */
void vm_unref(struct host *host, struct vm *vm);
/* A reference to the VM, claimed; WHAT is a constant like "being started". -EBUSY, HOST_NOT_FOUND. */
int vm_claim(struct host *host, const char *name, const char *what, struct vm **out, struct ferry_error *err);
void vm_release(struct host *host, struct vm *vm);                   /* unclaims and releases the reference */
struct vm_process *vm_process_get(struct host *host, struct vm *vm); /* a reference; NULL: not running */

/* Takes the name; the VM is claimed (WHAT) and not listed yet. HOST_CONFLICT when the name is taken. */
int vm_add(struct host *host, const json_t *definition, const char *what, bool over, struct vm **out,
           struct ferry_error *err);
bool vm_may_be_replaced(const struct vm *vm); /* by OVER. Under the lock. */
/* The same and makes the directory. With OVER it may take the place of one that has migrated away; then it
 * has that one's ban until it has arrived. */
int vm_make(struct host *host, const json_t *definition, const char *what, bool over, struct vm **out,
            struct ferry_error *err);
/* Lists VM (claimed) with its running process, which is taken over and watched. */
void vm_publish(struct host *host, struct vm *vm, struct vm_process *process, enum vm_state state);
/* Takes VM off the inventory and removes its directory, unless it is banned: then it stays, without the files
 * of its last life. Its process is gone. */
void vm_drop(struct host *host, struct vm *vm);
/* Waits until VM has no process; false when it still has one at the deadline (or the host stops). */
bool vm_wait_gone(struct host *host, struct vm *vm, uint64_t deadline);
json_t *vm_object_locked(struct host *host, const struct vm *vm); /* takes the lock; new reference */

/* "RUNNING(MIGR)" and its like. Under the lock. */
const char *vm_state_text(const struct vm *vm);
bool vm_runs(const struct vm *vm); /* RUNNING or PAUSED. Under the lock. */

/* What a process told about its VM: `vm.state`, or the result of `status`. Ignored from one that does not
 * have it. */
void vms_state_told(struct vm_process *process, const json_t *params);
void vms_refresh(struct host *host, struct vm *vm); /* asks the process; its silence changes nothing */
/* If VM has no process any more: STOPPED or CRASHED, as that said, though it was still arriving. */
void vm_note_end(struct host *host, struct vm *vm);
/* The process has ended: on the loop's thread. */
void vms_process_ended(struct vm_process *process);
/*
 * The newcomer has the VM now; it takes the place of the process before, which is returned (a reference;
 * NULL: it is gone). A newcomer that is gone, too, has left EXIT (or NULL) and WHY: then the VM has ended.
 */
struct vm_process *vm_replace_process(struct host *host, struct vm *vm, const json_t *exit, const char *why);

/* At start: reads the directories, adopts what runs. At the end: lets go of all. */
int vms_adopt(struct host *host, struct ferry_error *err);
void vms_drop_leftovers(struct host *host); /* after migrations_adopt: of VMs that are elsewhere */
void vms_free(struct host *host);

#endif
