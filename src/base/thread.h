/*
 * Named threads. A thread has one owner, who starts it and joins it; how it is told to stop is documented
 * where the thread is started. All signals are blocked in threads started here, but for those that a thread's
 * own faulting instruction raises (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP).
 */
#ifndef FERRY_BASE_THREAD_H
#define FERRY_BASE_THREAD_H

#include <ferry/error.h>

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

struct thread {
    pthread_t id;
    bool started;
};

/* NAME is cut to 15 characters (Linux's limit). */
int thread_start(struct thread *thread, const char *name, void *(*function)(void *), void *argument,
                 struct ferry_error *err);
/* Waits for the thread to end; does nothing if it was never started or has been joined. */
void thread_join(struct thread *thread);

/* CPUs that this process may run on, at least 1. */
unsigned thread_cpus(void);

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
