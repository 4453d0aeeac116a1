/*
 * ferry-vm: the process around one machine, from its start to exit.json.
 *
 *     loop thread ("ferry-vm")      signals, control.sock, console.sock, timers, what to do about guest
 * events "migration" thread            one libferry session; calls the guest seam (guest.h) the machine's
 * threads         vCPUs and devices; hand events over to the loop
 *
 * Who may call the machine's verbs: whoever holds `lock`, as long as the VM is not `frozen`. The migration
 * thread sets `frozen` when it has paused the guest for good, and owns the machine until it clears it; then
 * nobody else pauses, resumes or resets. `lock` is held for moments only (a guest's reboot is the longest).
 *
 * A guest event (guest.h tells what a migration does about it):
 *
 *     vCPU thread: vm_on_machine_event ──▶ `event`, under event_lock ──▶ loop: vm_handle_event
 *                                                                  └──▶ migration thread: the pause of the
 * seam
 *
 * Everything not said to be otherwise is for the loop thread.
 */
#ifndef FERRY_VM_VM_H
#define FERRY_VM_VM_H

#include "base/clock.h"
#include "base/jsonrpc.h"
#include "base/log.h"
#include "base/loop.h"
#include "machine/machine.h"
#include "vm/confine.h"
#include "vm/console.h"
#include "vm/vm_log.h"

#include <ferry/ferry.h>

#include <pthread.h>

struct migration;
struct ownership;
struct vm_checkpoint;
struct ferry_checkpoint_fill;

struct vm_options {
    const char *dir;
    const char *host;         /* this host's name; NULL: the machine's */
    const char *lock_dir;     /* NULL: none */
    uint64_t lock_wait_ns;    /* for the lock, when a destination does not answer */
    bool new_identity;        /* with resume: as another VM than it was */
    bool new_generation;      /* with resume: the guest has gone on from there before, or may have */
    uint64_t lock_generation; /* starts only if the lock says it: nobody has had the VM since; 0: any */
    const char *cpu_features; /* names with commas: the guest gets of the host's only those; NULL: all */
    enum memory_tracking tracking;
    enum confine_mode confine_mode;
    const struct confine *confine; /* borrowed; the loop thread takes its filter when set-up is done */
    bool incoming;
    const char *resume; /* the checkpoint file that it goes on from; NULL: none */
    bool eager;         /* with all of its memory there before it does */
    int former_fd; /* incoming, memory passed: the directory of the process that has the VM now; -1: not so */
    bool paused;
    bool insecure; /* migration may listen on addresses other than loopback */
    int ready_fd;  /* -1: nobody wants to know */
    struct vm_log_limit log_limit;
};

enum vm_exit {
    VM_EXIT_NONE = 0,
    VM_EXIT_POWERED_OFF,
    VM_EXIT_CRASHED,
    VM_EXIT_KILLED,
    VM_EXIT_MIGRATED,
    VM_EXIT_FAILED,
    VM_EXIT_SUSPENDED,
};

struct vm {
    /* Constant once the machine was made. */
    struct vm_options options;
    struct loop *loop;
    int log_fd;      /* vm.log: vm_log.h */
    int handover_fd; /* FILES_HANDOVER */
    struct log *log;
    struct machine_config config;
    json_t *definition;
    char started[CLOCK_TEXT_SIZE];
    struct machine *machine;
    struct ownership *ownership; /* its functions: as the machine's verbs */
    struct machine_callbacks callbacks;
    struct console *console;
    struct jsonrpc_server *control;

    pthread_mutex_t lock; /* guards the next ten; see above */
    bool setup;           /* an arriving VM that does not run yet */
    bool running;         /* the guest is meant to run, whether or not it does at this moment */
    bool frozen;
    bool marked;      /* the console says that the guest stopped, and not yet that it went on */
    bool away;        /* nobody can say where the VM runs; it must not run here */
    bool was_running; /* before it was away */
    char why[FERRY_ERROR_TEXT_SIZE];
    bool console_loaded;
    bool log_loaded;
    struct buffer log_history; /* of an arriving VM, until it runs */

    pthread_mutex_t log_lock; /* what is behind log_fd; taken last */
    bool log_rotated;         /* vm.log.1 is of this process, and vm.log goes on from there */

    pthread_mutex_t event_lock; /* guards the next four; taken last, for moments */
    enum machine_event event;   /* 0: none is waiting to take effect */
    char event_why[FERRY_ERROR_TEXT_SIZE];
    bool held; /* quick resume: the connection to where its memory is is lost, it stands still */
    char held_why[FERRY_ERROR_TEXT_SIZE];

    /* Loop thread's. */
    struct migration *migration;        /* the one in progress or the last one; NULL: never one */
    struct vm_checkpoint *checkpoint;   /* being written, or the last one; NULL: never one */
    struct ferry_checkpoint_fill *fill; /* of memory from a file, under way or complete; NULL: never one */
    struct sample *sample;              /* the guest's memory is being watched; see sample.h */
    int signal_fd;
    struct loop_watch *signal_watch;
    struct loop_timer *patience; /* a prepared thing was not used; a session does not end */
    enum vm_exit exit;           /* what is to be, first one counts */
    char exit_why[FERRY_ERROR_TEXT_SIZE];
};

/* The whole life of the process, in the current directory. Returns the exit status. */
int vm_main(const struct vm_options *options);

int vm_pause(struct vm *vm, struct ferry_error *err);
int vm_resume(struct vm *vm, struct ferry_error *err);
/* Asks the guest to stop; refused while it could not hear. */
int vm_ask_stop(struct vm *vm, struct ferry_error *err);
/* Ends the process with this reason, after a migration in progress has ended. The first reason counts, but
 * for a migration that completes. */
void vm_end(struct vm *vm, enum vm_exit exit, const char *why);
/* As somebody asks; refused while another host's guest needs memory that is here. */
int vm_quit(struct vm *vm, struct ferry_error *err);
/* What a person, or the other host, says of a VM that is away: it is HERE and goes on, or it is there and
 * this process ends. Refused when the lock knows better. */
int vm_recover(struct vm *vm, bool here, struct ferry_error *err);
json_t *vm_status_json(struct vm *vm);
/* Tells subscribers. */
void vm_notify_state(struct vm *vm);
/* From migrate.c, when vm->migration has ended. */
void vm_migration_ended(struct vm *vm);
/* From checkpoint.c, when vm->checkpoint has ended. */
void vm_checkpoint_ended(struct vm *vm);
/* From checkpoint.c: all memory has come from its file, or never will. */
void vm_filled(struct vm *vm);
/* From the guest seam, any thread: quick resume, the connection is lost or back. */
void vm_set_held(struct vm *vm, bool held, const char *why);
/* From the guest seam, any thread: an arriving VM, or one that a migration had stopped, goes on here. */
void vm_went_on(struct vm *vm);

/* The event that waits, with its words; 0 for none. Any thread. */
enum machine_event vm_event(struct vm *vm, char why[FERRY_ERROR_TEXT_SIZE]);
/* Any thread, lock held, not frozen (or on the thread that owns the frozen machine): carries a waiting reset
 * out. Afterwards the vCPUs are parked; the caller lets them run. On failure the reset has become a crash. */
int vm_reboot(struct vm *vm, struct ferry_error *err);
/* For messages: "powered off", "rebooted", "crashed". */
const char *vm_event_words(enum machine_event event);

/* control.c: vm->control's handler. */
jsonrpc_handler vm_control;

#endif
