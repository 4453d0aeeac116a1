/*
 * Which system calls ferry-vm may make: a filter (seccomp(2)) for each kind of thread, that lets through what
 * such threads do and no more, so that a guest that broke out of its vCPU or of a device finds little to go
 * on with. The rules are in confine_rules.c, with why each is there.
 *
 *     confine_new(&confine, CONFINE_ON, &err);    first thing, one thread: from here on threads that are
 *                                                 started have the filter of their kind
 *     ... set-up: machine, memory, sockets ...
 *     confine_self(confine, &err);                the calling thread gets that of THREAD_GENERAL
 *
 * A thread keeps its filter and gives it to threads that it starts, so these are confined by both; a filter
 * can only be made narrower. A call that is not let through ends the process by SIGSYS, after a line in its
 * log (standard error) with the thread's name and the call's number. Other calls' arguments are looked at,
 * too, where a number can tell harm: memory is never made executable, signals go to this process only, no
 * process is made.
 */
#ifndef FERRY_VM_CONFINE_H
#define FERRY_VM_CONFINE_H

#include <ferry/error.h>

enum confine_mode {
    CONFINE_OFF = 1,
    CONFINE_LOG, /* a forbidden call is done, and told in the kernel's audit log */
    CONFINE_ON,
};

struct confine;

/* "on", "log", "off"; 0 for other words. */
enum confine_mode confine_mode_named(const char *name);
const char *confine_mode_name(enum confine_mode mode);
/* What ferry-vm does unless it is told otherwise: on, or off when it was built without filters. */
enum confine_mode confine_mode_default(void);

/* To be freed when no thread is started any more. With CONFINE_OFF no call is forbidden. -ENOSYS when this
 * build, or the kernel, has no filters. */
int confine_new(struct confine **out, enum confine_mode mode, struct ferry_error *err);
int confine_self(const struct confine *confine, struct ferry_error *err);
void confine_free(struct confine *confine);

#endif
