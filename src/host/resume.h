/*
 * ferry resume: a guest goes on from a checkpoint file (checkpoint.h wrote it, here or on another host).
 *
 *     what must hold                                     is found out by
 *     the original runs nowhere                          the inventory here, the host where it was saved, and
 *                                                        its lock, which ferry-vm takes
 *     its disks are as they were at that moment          the generation of the lock, which every owner makes
 *                                                        grow; of a snapshot, whose VM ran on, nothing can
 *                                                        tell but a person
 *     this host has what it needs                        the checks of an arriving migration
 *
 * Under another name it is another VM: it gets MAC addresses of its own and may not share a disk that is
 * written to. A resume that fails before the first instruction leaves everything as it was.
 */
#ifndef FERRY_HOST_RESUME_H
#define FERRY_HOST_RESUME_H

#include "host/host.h"

struct resume_options {
    const char *file; /* absolute */
    const char *name; /* NULL: its own */
    bool eager;
    bool paused;
    bool disks_restored; /* a person says that its disks are of the same moment */
};

/* *answer: the VM object, once its first instruction may run. */
int vms_resume(struct host *host, const struct resume_options *options, json_t **answer,
               struct ferry_error *err);
/* Host BY tells that it has resumed VM from the save ID: a VM that is suspended here by that is there now.
 * HOST_CONFLICT when it is not. */
int vms_resumed_elsewhere(struct host *host, const char *name, const char *by, const char *id,
                          struct ferry_error *err);

#endif
