/*
 * Who may run the VM: this process or another, on this host or another. docs/SWITCHOVER.md is the protocol;
 * the states are those of the lock's record (disk/vm_lock.h) and of the model, tests/model/switchover.pml.
 *
 *     cold start        ownership_take          held
 *     source            ownership_release       handover, lock free
 *                       ownership_retake        started by the source (held, when nobody was told of the
 * handover) destination       ownership_acquire       acquired, the images' locks, started
 *                       ownership_give_back     acquired, lock free
 *
 * The lock file is beside the VM's first writable disk, else in the host's lock directory; with neither,
 * nothing shared can tell who owns the VM, and a source that has said GO may not decide alone - unless both
 * sides are processes of one host, whose names in the handover are the same: then there always is a lock, if
 * need be one that they have for themselves in the source's directory. The locks on
 * the disks' images are a second guard, against two different VMs with one image.
 *
 * Called by whoever owns the machine (vm.h), but for ownership_interrupt. Every step has a fault point before
 * and after (engine/fault.h).
 */
#ifndef FERRY_VM_OWNERSHIP_H
#define FERRY_VM_OWNERSHIP_H

#include "base/log.h"
#include "machine/machine.h"

#include <ferry/ferry.h>

/* A dead NFSv4 client's lock is dropped after the server's lease time, 90 s on Linux. */
#define OWNERSHIP_LOCK_WAIT_S 120

struct ownership_options {
    const struct machine_config *config; /* borrowed for the call */
    const char *lock_dir;                /* NULL: none */
    const char *host;                    /* this host's name */
    uint64_t
        generation;     /* a start takes the lock only if it says this: nobody has had the VM since; 0: any */
    const char *former; /* directory of the process of this host that the VM comes from; NULL: none */
    struct log *log;
    /* The locks on the disks' images: machine_acquire, machine_release. */
    void *images;
    int (*acquire_images)(void *images, struct ferry_error *err);
    void (*release_images)(void *images);
    /* What a fault point loses: the connections of the migration under way. NULL: there are none. */
    void *migrating;
    void (*drop_connections)(void *migrating);
};

struct ownership;

/* Opens the lock file, takes nothing. */
int ownership_new(struct ownership **out, const struct ownership_options *options, struct ferry_error *err);
void ownership_free(struct ownership *ownership); /* drops the lock; NULL allowed */
/* NULL when there is none. */
const char *ownership_path(const struct ownership *ownership);

/* -EBUSY in words when somebody else has the VM or one of its disks, or it is being moved. */
int ownership_take(struct ownership *ownership, struct ferry_error *err);
/* After ownership_take, with not one instruction executed: the lock says what it said before, and is free. */
void ownership_put_back(struct ownership *ownership);
/* On failure this side still owns it. */
int ownership_release(struct ownership *ownership, const struct ferry_handover *handover,
                      struct ferry_error *err);
/* On failure it is not owned here, and the source may take it back. */
int ownership_acquire(struct ownership *ownership, const struct ferry_handover *handover,
                      struct ferry_error *err);
void ownership_give_back(struct ownership *ownership, const struct ferry_handover *handover);
/*
 * RESUME: owned here again. LOST: the destination, or a third host, has run the VM since; never run it here.
 * UNKNOWN: nobody can say, or the lock was not to be had within WAIT_NS. err says why it is not RESUME.
 */
enum ferry_retake ownership_retake(struct ownership *ownership, const struct ferry_handover *handover,
                                   uint64_t wait_ns, struct ferry_error *err);
/* Quick resume: what has become of the guest that was handed over? Takes nothing; err says why it is not
 * OWNED. */
enum ferry_elsewhere ownership_look(struct ownership *ownership, const struct ferry_handover *handover,
                                    struct ferry_error *err);
/* Any thread: ends the waiting of ownership_retake, now and for ever. */
void ownership_interrupt(struct ownership *ownership);

#endif
