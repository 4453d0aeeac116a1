#include "base/thread.h"

#include "base/clock.h"
#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#define THREAD_NAME_SIZE 16 /* with its NUL; Linux's limit */
#define BACKGROUND_NICE  5  /* a third of the processor against one thread that is not nice */

static struct {
    thread_guard *enter;
    void *opaque;
} guard;

static _Thread_local enum thread_kind own_kind;

struct thread_start_info {
    enum thread_kind kind;
    enum thread_kind starter;
    char name[THREAD_NAME_SIZE];
    void *(*function)(void *);
    void *argument;
};

static void *thread_main(void *opaque)
{
    struct thread_start_info info = *(struct thread_start_info *)opaque;

    free(opaque);
    pthread_setname_np(pthread_self(), info.name);
    own_kind = info.kind;
    if (guard.enter && info.kind != info.starter)
        guard.enter(guard.opaque, info.kind);
    return info.function(info.argument);
}

void thread_set_guard(thread_guard *enter, void *opaque)
{
    guard.enter = enter;
    guard.opaque = opaque;
}

/* Everything but the signals that a thread raises itself, by a fault or a system call that is forbidden:
 * those must reach handlers. */
static void signals_to_block(sigset_t *set)
{
    sigfillset(set);
    sigdelset(set, SIGSEGV);
    sigdelset(set, SIGBUS);
    sigdelset(set, SIGFPE);
    sigdelset(set, SIGILL);
    sigdelset(set, SIGTRAP);
    sigdelset(set, SIGSYS);
}

int thread_start(struct thread *thread, enum thread_kind kind, const char *name, void *(*function)(void *),
                 void *argument, struct ferry_error *err)
{
    struct thread_start_info *info = malloc(sizeof(*info));
    sigset_t blocked;
    sigset_t before;
    int result;

    thread->started = false;
    if (!info)
        return error_set(err, -ENOMEM, "out of memory while starting thread %s", name);
    snprintf(info->name, sizeof(info->name), "%s", name);
    info->kind = kind;
    info->starter = own_kind;
    info->function = function;
    info->argument = argument;

    /* The new thread inherits the mask, so that no signal can reach it before it has set its own. */
    signals_to_block(&blocked);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    result = pthread_create(&thread->id, NULL, thread_main, info);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (result) {
        free(info);
        return error_set_errno(err, -result, "cannot start thread %s", name);
    }
    thread->started = true;
    return 0;
}

void thread_join(struct thread *thread)
{
    if (!thread->started)
        return;
    pthread_join(thread->id, NULL);
    thread->started = false;
}

void thread_set_background(bool background)
{
    struct sched_param none = {0};
    int nice = getpriority(PRIO_PROCESS, (id_t)getpid()); /* the main thread's */

    /* What the kernel refuses costs nothing but time. Leaving a nice value needs a privilege. */
    (void)pthread_setschedparam(pthread_self(), background ? SCHED_BATCH : SCHED_OTHER, &none);
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), background ? nice + BACKGROUND_NICE : nice);
}

void thread_cond_init(pthread_cond_t *condition)
{
    pthread_condattr_t attributes;
    int result;

    pthread_condattr_init(&attributes);
    result = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    assert(result == 0);
    result = pthread_cond_init(condition, &attributes);
    assert(result == 0);
    (void)result;
    pthread_condattr_destroy(&attributes);
}

bool thread_cond_wait_until(pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t deadline_ns)
{
    struct timespec until = {
        .tv_sec = (time_t)(deadline_ns / NS_PER_S),
        .tv_nsec = (long)(deadline_ns % NS_PER_S),
    };

    if (deadline_ns == UINT64_MAX) {
        pthread_cond_wait(condition, mutex);
        return true;
    }
    return pthread_cond_timedwait(condition, mutex, &until) != ETIMEDOUT;
}

unsigned thread_cpus(void)
{
    cpu_set_t set;

    /* Fails with more CPUs than the set has room for: then there are enough of them. */
    if (sched_getaffinity(0, sizeof(set), &set) < 0)
        return CPU_SETSIZE;
    return CPU_COUNT(&set) > 0 ? (unsigned)CPU_COUNT(&set) : 1;
}

void thread_follow_init(struct thread_follow *follow)
{
    follow->cpu = -1;
    if (sched_getaffinity(0, sizeof(follow->allowed), &follow->allowed) < 0)
        CPU_ZERO(&follow->allowed);
}

void thread_follow(struct thread_follow *follow, int cpu)
{
    cpu_set_t there;

    if (cpu == follow->cpu || cpu < 0 || cpu >= CPU_SETSIZE || !CPU_ISSET(cpu, &follow->allowed))
        return;
    CPU_ZERO(&there);
    CPU_SET(cpu, &there);
    if (sched_setaffinity(0, sizeof(there), &there) == 0)
        follow->cpu = cpu;
}

static void pipe_signal(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGPIPE);
}

void thread_mute_begin(struct thread_mute *mute)
{
    sigset_t pending;
    sigset_t pipe;

    pipe_signal(&pipe);
    sigpending(&pending);
    mute->pending = sigismember(&pending, SIGPIPE) == 1;
    pthread_sigmask(SIG_BLOCK, &pipe, &mute->before);
}

void thread_mute_end(const struct thread_mute *mute)
{
    static const struct timespec at_once;
    sigset_t pipe;

    pipe_signal(&pipe);
    while (!mute->pending && sigtimedwait(&pipe, NULL, &at_once) == SIGPIPE)
        continue;
    pthread_sigmask(SIG_SETMASK, &mute->before, NULL);
}
