#include "base/loop.h"

#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define EVENTS_AT_ONCE 64

struct loop_watch {
    struct loop *loop;
    struct loop_watch *next; /* in loop->watches, or in loop->removed */
    struct loop_watch *previous;
    int fd;
    bool removed;
    loop_watch_function *function;
    void *opaque;
};

struct loop_timer {
    struct loop *loop;
    struct loop_timer *next; /* in loop->timers */
    struct loop_timer *previous;
    int fd;
    struct loop_watch *watch;
    loop_function *function;
    void *opaque;
};

struct loop_job {
    struct loop_job *next;
    loop_function *function;
    void *opaque;
};

struct loop {
    int epoll_fd;
    int wake_fd; /* eventfd: something was posted, or stop */
    struct loop_watch *wake_watch;
    bool stop; /* atomic */

    struct loop_watch *watches;
    struct loop_timer *timers;
    /* Removed, but perhaps still named by events that were fetched: freed when the batch is done. */
    struct loop_watch *removed;

    pthread_mutex_t lock; /* guards the two below */
    struct loop_job *first_job;
    struct loop_job **last_job; /* where the next one is linked in */
};

static void wake(struct loop *loop)
{
    uint64_t one = 1;
    ssize_t written;

    do
        written = write(loop->wake_fd, &one, sizeof(one));
    while (written < 0 && errno == EINTR);
    /* EAGAIN means that the counter is at its limit: the loop is awake. */
}

/* Runs what was posted up to now; what these functions post runs in the next turn. */
static void run_jobs(void *opaque, unsigned events)
{
    struct loop *loop = opaque;
    struct loop_job *job;
    uint64_t count;

    (void)!read(loop->wake_fd, &count, sizeof(count));
    pthread_mutex_lock(&loop->lock);
    job = loop->first_job;
    loop->first_job = NULL;
    loop->last_job = &loop->first_job;
    pthread_mutex_unlock(&loop->lock);

    while (job) {
        struct loop_job *next = job->next;

        job->function(job->opaque);
        free(job);
        job = next;
    }
}

int loop_new(struct loop **out, struct ferry_error *err)
{
    struct loop *loop = calloc(1, sizeof(*loop));
    int result;

    *out = NULL;
    if (!loop)
        return error_set(err, -ENOMEM, "out of memory while setting up an event loop");
    loop->wake_fd = -1;
    pthread_mutex_init(&loop->lock, NULL);
    loop->last_job = &loop->first_job;
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (loop->epoll_fd >= 0)
        loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (loop->wake_fd < 0) {
        result = error_set_errno(err, -errno, "cannot set up an event loop");
        goto fail;
    }
    result = loop_watch_add(loop, loop->wake_fd, LOOP_READ, run_jobs, loop, &loop->wake_watch, err);
    if (result)
        goto fail;
    *out = loop;
    return 0;

fail:
    loop_free(loop);
    return result;
}

static void free_removed(struct loop *loop)
{
    while (loop->removed) {
        struct loop_watch *next = loop->removed->next;

        free(loop->removed);
        loop->removed = next;
    }
}

void loop_free(struct loop *loop)
{
    if (!loop)
        return;
    while (loop->timers)
        loop_timer_remove(loop->timers);
    while (loop->watches)
        loop_watch_remove(loop->watches);
    free_removed(loop);
    while (loop->first_job) {
        struct loop_job *next = loop->first_job->next;

        free(loop->first_job);
        loop->first_job = next;
    }
    if (loop->wake_fd >= 0)
        close(loop->wake_fd);
    if (loop->epoll_fd >= 0)
        close(loop->epoll_fd);
    pthread_mutex_destroy(&loop->lock);
    free(loop);
}

static struct epoll_event to_epoll(struct loop_watch *watch, unsigned events)
{
    struct epoll_event event = {.data.ptr = watch};

    if (events & LOOP_READ)
        event.events |= EPOLLIN;
    if (events & LOOP_WRITE)
        event.events |= EPOLLOUT;
    return event;
}

static unsigned from_epoll(uint32_t events)
{
    return (events & EPOLLIN ? LOOP_READ : 0u) | (events & EPOLLOUT ? LOOP_WRITE : 0u) |
           (events & (EPOLLHUP | EPOLLERR) ? LOOP_HANGUP : 0u);
}

int loop_watch_add(struct loop *loop, int fd, unsigned events, loop_watch_function *function, void *opaque,
                   struct loop_watch **out, struct ferry_error *err)
{
    struct loop_watch *watch = calloc(1, sizeof(*watch));
    struct epoll_event event;

    *out = NULL;
    if (!watch)
        return error_set(err, -ENOMEM, "out of memory while watching descriptor %d", fd);
    *watch = (struct loop_watch){.loop = loop, .fd = fd, .function = function, .opaque = opaque};
    event = to_epoll(watch, events);
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        int result = error_set_errno(err, -errno, "cannot watch descriptor %d", fd);

        free(watch);
        return result;
    }
    watch->next = loop->watches;
    if (watch->next)
        watch->next->previous = watch;
    loop->watches = watch;
    *out = watch;
    return 0;
}

int loop_watch_set(struct loop_watch *watch, unsigned events, struct ferry_error *err)
{
    struct epoll_event event = to_epoll(watch, events);

    if (epoll_ctl(watch->loop->epoll_fd, EPOLL_CTL_MOD, watch->fd, &event) < 0)
        return error_set_errno(err, -errno, "cannot watch descriptor %d", watch->fd);
    return 0;
}

void loop_watch_remove(struct loop_watch *watch)
{
    struct loop *loop;

    if (!watch)
        return;
    loop = watch->loop;
    epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
    if (watch->previous)
        watch->previous->next = watch->next;
    else
        loop->watches = watch->next;
    if (watch->next)
        watch->next->previous = watch->previous;
    watch->removed = true;
    watch->next = loop->removed;
    loop->removed = watch;
}

static void timer_fired(void *opaque, unsigned events)
{
    struct loop_timer *timer = opaque;
    uint64_t expirations;

    /* Nothing to read: disarmed or armed anew by a callback that ran before this one in the same batch. */
    if (read(timer->fd, &expirations, sizeof(expirations)) != sizeof(expirations))
        return;
    timer->function(timer->opaque);
}

int loop_timer_add(struct loop *loop, loop_function *function, void *opaque, struct loop_timer **out,
                   struct ferry_error *err)
{
    struct loop_timer *timer = calloc(1, sizeof(*timer));
    int result;

    *out = NULL;
    if (!timer)
        return error_set(err, -ENOMEM, "out of memory while adding a timer");
    timer->loop = loop;
    timer->function = function;
    timer->opaque = opaque;
    timer->fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (timer->fd < 0) {
        result = error_set_errno(err, -errno, "cannot create a timer");
        goto fail;
    }
    result = loop_watch_add(loop, timer->fd, LOOP_READ, timer_fired, timer, &timer->watch, err);
    if (result)
        goto fail;
    timer->next = loop->timers;
    if (timer->next)
        timer->next->previous = timer;
    loop->timers = timer;
    *out = timer;
    return 0;

fail:
    if (timer->fd >= 0)
        close(timer->fd);
    free(timer);
    return result;
}

static void set_timer(struct loop_timer *timer, uint64_t delay_ns)
{
    struct itimerspec spec = {
        .it_value = {.tv_sec = (time_t)(delay_ns / NS_PER_S), .tv_nsec = (long)(delay_ns % NS_PER_S)},
    };

    timerfd_settime(timer->fd, 0, &spec, NULL);
}

void loop_timer_arm(struct loop_timer *timer, uint64_t delay_ns)
{
    set_timer(timer, delay_ns ? delay_ns : 1); /* zero would disarm it */
}

void loop_timer_disarm(struct loop_timer *timer)
{
    set_timer(timer, 0);
}

void loop_timer_remove(struct loop_timer *timer)
{
    if (!timer)
        return;
    loop_watch_remove(timer->watch);
    close(timer->fd);
    if (timer->previous)
        timer->previous->next = timer->next;
    else
        timer->loop->timers = timer->next;
    if (timer->next)
        timer->next->previous = timer->previous;
    free(timer); /* its watch, which alone could still be named by an event, is freed later */
}

int loop_post(struct loop *loop, loop_function *function, void *opaque)
{
    struct loop_job *job = malloc(sizeof(*job));

    if (!job)
        return -ENOMEM;
    *job = (struct loop_job){.function = function, .opaque = opaque};
    pthread_mutex_lock(&loop->lock);
    *loop->last_job = job;
    loop->last_job = &job->next;
    pthread_mutex_unlock(&loop->lock);
    wake(loop);
    return 0;
}

/* True once a stop was asked for; that stop is then used up. */
static bool take_stop(struct loop *loop)
{
    return __atomic_exchange_n(&loop->stop, false, __ATOMIC_ACQ_REL);
}

int loop_run(struct loop *loop, struct ferry_error *err)
{
    struct epoll_event events[EVENTS_AT_ONCE];

    while (!take_stop(loop)) {
        int count = epoll_wait(loop->epoll_fd, events, EVENTS_AT_ONCE, -1);

        if (count < 0 && errno != EINTR)
            return error_set_errno(err, -errno, "the event loop cannot wait for events");
        for (int i = 0; i < count && !__atomic_load_n(&loop->stop, __ATOMIC_ACQUIRE); i++) {
            struct loop_watch *watch = events[i].data.ptr;

            if (!watch->removed)
                watch->function(watch->opaque, from_epoll(events[i].events));
        }
        free_removed(loop);
    }
    return 0;
}

void loop_stop(struct loop *loop)
{
    __atomic_store_n(&loop->stop, true, __ATOMIC_RELEASE);
    wake(loop);
}
