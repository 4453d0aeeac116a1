/*
 * Named threads. A thread has one owner, who starts it and joins it; how it is told to stop is documented
 * where the thread is started. All signals are blocked in threads started here, but for those that a thread's
 * own faulting instruction raises (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP), or
 * its own system call (SIGSYS).
 */
#ifndef FERRY_BASE_THREAD_H
#define FERRY_BASE_THREAD_H

#include <ferry/error.h>

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

struct thread {
    pthread_t id;
    bool started;
};

/* What a thread is for: a process that confines its threads goes by that (thread_set_guard). */
enum thread_kind {
    THREAD_GENERAL = 0, /* nothing special; the main thread is one */
    THREAD_VCPU,        /* runs guest code, and what a guest's accesses to devices do at once */
    THREAD_IO,          /* device work: disks, consoles, timers */
    THREAD_NET,         /* device work that speaks to the network for a guest */
    THREAD_MIGRATION,   /* sends, receives or stores a guest's memory and state */
    THREAD_KINDS,
};

/* NAME is cut to 15 characters (Linux's limit). */
int thread_start(struct thread *thread, enum thread_kind kind, const char *name, void *(*function)(void *),
                 void *argument, struct ferry_error *err);
/* Waits for the thread to end; does nothing if it was never started or has been joined. */
void thread_join(struct thread *thread);

/*
 * GUARD is the first thing that threads started from now on do, with OPAQUE and their kind, when that is not
 * the kind of the thread that started them: what it does to a thread is taken to hold for those that this
 * starts. It may end the process, not the thread. One for the process (the one setting here that is), to be
 * set before there is a second thread.
 */
typedef void thread_guard(void *opaque, enum thread_kind kind);
void thread_set_guard(thread_guard *guard, void *opaque);

/* CPUs that this process may run on, at least 1. */
unsigned thread_cpus(void);

/* A thread that goes where another one works, whose CPU has in its caches what it is to read. */
struct thread_follow {
    cpu_set_t allowed; /* the CPUs that it may run on */
    int cpu;           /* where it is; -1: it has not followed yet */
};

/* Of the calling thread, which may run where it may now. */
void thread_follow_init(struct thread_follow *follow);
/* The calling thread goes to CPU and stays there until the next call. One that it may not run on, or a
 * negative one (not known), changes nothing. */
void thread_follow(struct thread_follow *follow, int cpu);

/* The calling thread works in the background: others, first of all a guest's vCPUs, get more of the processor
 * and are not interrupted by it. With FALSE it does no longer, as far as the kernel allows that. */
void thread_set_background(bool background);

/* The calling thread gets no SIGPIPE in between, for calls that raise it and cannot be told not to. */
struct thread_mute {
    bool pending; /* there was one already */
    sigset_t before;
};

void thread_mute_begin(struct thread_mute *mute);
void thread_mute_end(const struct thread_mute *mute);

/* A condition variable on CLOCK_MONOTONIC. */
void thread_cond_init(pthread_cond_t *condition);
/* Waits until signalled or the deadline (clock_deadline; UINT64_MAX is never). Returns false when the
 * deadline passed. May return early (spuriously): look at the condition again. */
bool thread_cond_wait_until(pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t deadline_ns);

#endif
