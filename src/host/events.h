/*
 * Events: what administrators watching a host see, and what its log keeps. Numbered from 1, never reused.
 *
 * The newest are kept in memory (they reach watchers even when the records cannot be written), all go to the
 * store. Migration events carry fixed codes that operators search for; which of two codes is meant depends on
 * whether the VM's machine is hardware-assisted (KVM). Any thread; must not be called with the host's lock
 * held, since the store writes to disk.
 */
#ifndef FERRY_HOST_EVENTS_H
#define FERRY_HOST_EVENTS_H

#include "host/host.h"

enum event_kind {
    EVENT_MIGRATION_OUT_STARTED = 1, /* source: VMS2450 */
    EVENT_VM_STOPPED,                /* source: VMS2452 */
    EVENT_VM_DELETED,                /* source: VMS4024, KVM VMS6021 */
    EVENT_MIGRATION_OUT_COMPLETED,   /* source: VMS2451 */
    EVENT_MIGRATION_IN_STARTED,      /* destination: VMS2430 */
    EVENT_VM_CREATED,                /* destination: VMS3050, KVM VMS6020 */
    EVENT_VM_CONTINUED,              /* destination: VMS2432 */
    EVENT_MIGRATION_IN_COMPLETED,    /* destination: VMS2431 */
    EVENT_MIGRATION_FAILED,          /* either; no code of its own */
    EVENT_MIGRATION_WARNING,
    EVENT_VM_STARTED,
    EVENT_VM_ENDED,
    EVENT_VM_CRASHED,
    EVENT_VM_REMOVED,
    EVENT_VM_UPGRADED, /* it goes on in a new process of this host */
    EVENT_VM_SUSPENDED,
    EVENT_VM_RESUMED,
    EVENT_CHECKPOINT_STARTED,
    EVENT_CHECKPOINT_COMPLETED,
    EVENT_CHECKPOINT_CANCELLED,
    EVENT_CHECKPOINT_FAILED,
    EVENT_HOST_STARTED,
    EVENT_HOST_STOPPED,
    EVENT_HOST_SETTING,
};

int events_new(struct host *host, struct ferry_error *err); /* needs host->store; sets host->events */
void events_free(struct events *events);

/* VM and MIGRATION may be NULL. MACHINE: the VM's, chooses the code. */
void events_emit(struct host *host, enum event_kind kind, const char *vm, const char *machine,
                 const char *migration, const char *format, ...) __attribute__((format(printf, 6, 7)));

/* The same of something that happened at TIME_NS (real time; 0: now) and is only told now. */
void events_emit_at(struct host *host, uint64_t time_ns, enum event_kind kind, const char *vm,
                    const char *machine, const char *migration, const char *format, ...)
    __attribute__((format(printf, 7, 8)));

/* Takes over an event of another host (checked: object with host, code, level, text); numbered anew. */
int events_import(struct host *host, const json_t *event, struct ferry_error *err);

/* New array of the events above SINCE, oldest first, at most a few hundred; empty when there are none. */
json_t *events_read(struct host *host, uint64_t since);
/* Waits until there is an event above SINCE, the host stops, or the deadline. */
void events_wait(struct host *host, uint64_t since, uint64_t deadline);
void events_wake(struct events *events); /* the host is stopping: waiters look again */
uint64_t events_last(struct host *host);

#endif
