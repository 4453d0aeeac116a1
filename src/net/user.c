/*
 * libslirp and the thread that polls its sockets ("net-user"). The thread is there from creation on and works
 * between start and stop, so that a start cannot fail when the guest's other devices have started. `stop`
 * sets `running` to false, writes to the eventfd and waits until the thread is parked.
 */
#include "net/user.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/thread.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <slirp/libslirp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define TIMERS_MAX     4 /* libslirp has one kind, used for IPv6 only */
#define POLLS_AT_FIRST 16

/*
 * libslirp keeps things in file scope (its list of instances, a cache of the name server's address), so all
 * its calls in this process take turns. It is never held while waiting.
 */
static pthread_mutex_t libslirp_lock = PTHREAD_MUTEX_INITIALIZER;

struct user_timer {
    bool used;
    bool armed;
    SlirpTimerId id;
    void *opaque;
    int64_t expires_ms;
};

struct user_net {
    struct net_backend backend;
    struct user_net_options options;
    struct log *log;
    Slirp *slirp; /* this and all below: under libslirp_lock */
    int event_fd;
    bool running;
    bool parked; /* the thread is outside of libslirp and delivers nothing */
    bool ending;
    pthread_cond_t changed; /* these three have */
    bool bound[USER_NET_FORWARDS_MAX];
    struct user_timer timers[TIMERS_MAX];
    struct pollfd *polls; /* the thread's own */
    unsigned poll_count;
    unsigned poll_capacity;
    struct thread thread;
};

static struct user_net *from_backend(struct net_backend *backend)
{
    return (struct user_net *)((char *)backend - offsetof(struct user_net, backend));
}

static ssize_t slirp_send_packet(const void *data, size_t size, void *opaque)
{
    struct user_net *user = opaque;

    if (user->running && user->backend.receive)
        user->backend.receive(user->backend.receiver, data, size);
    return (ssize_t)size;
}

static void slirp_guest_error(const char *message, void *opaque)
{
    struct user_net *user = opaque;

    log_debug(user->log, "network user: %s", message);
}

static int64_t slirp_clock_ns(void *opaque)
{
    return (int64_t)clock_now_ns();
}

static void *slirp_timer_new(SlirpTimerId id, void *timer_opaque, void *opaque)
{
    struct user_net *user = opaque;

    for (unsigned i = 0; i < TIMERS_MAX; i++) {
        if (!user->timers[i].used) {
            user->timers[i] = (struct user_timer){.used = true, .id = id, .opaque = timer_opaque};
            return &user->timers[i];
        }
    }
    return NULL;
}

static void slirp_timer_free(void *timer, void *opaque)
{
    if (timer)
        *(struct user_timer *)timer = (struct user_timer){0};
}

static void slirp_timer_mod(void *timer, int64_t expires_ms, void *opaque)
{
    struct user_timer *user_timer = timer;

    if (!user_timer)
        return;
    user_timer->armed = true;
    user_timer->expires_ms = expires_ms;
}

static void slirp_register_fd(int fd, void *opaque)
{
}

static void slirp_wake(void *opaque)
{
    struct user_net *user = opaque;

    (void)eventfd_write(user->event_fd, 1);
}

static const SlirpCb slirp_callbacks = {
    .send_packet = slirp_send_packet,
    .guest_error = slirp_guest_error,
    .clock_get_ns = slirp_clock_ns,
    .timer_new_opaque = slirp_timer_new,
    .timer_free = slirp_timer_free,
    .timer_mod = slirp_timer_mod,
    .register_poll_fd = slirp_register_fd,
    .unregister_poll_fd = slirp_register_fd,
    .notify = slirp_wake,
};

/* Adds one descriptor to the thread's list. Returns its index, or -1 when there is no memory for it. */
static int add_poll(int fd, int events, void *opaque)
{
    struct user_net *user = opaque;
    short wanted = (short)((events & SLIRP_POLL_IN ? POLLIN : 0) | (events & SLIRP_POLL_OUT ? POLLOUT : 0) |
                           (events & SLIRP_POLL_PRI ? POLLPRI : 0));

    if (user->poll_count == user->poll_capacity) {
        unsigned capacity = user->poll_capacity ? 2 * user->poll_capacity : POLLS_AT_FIRST;
        struct pollfd *polls = realloc(user->polls, capacity * sizeof(*polls));

        if (!polls)
            return -1;
        user->polls = polls;
        user->poll_capacity = capacity;
    }
    user->polls[user->poll_count] = (struct pollfd){.fd = fd, .events = wanted};
    return (int)user->poll_count++;
}

static int get_revents(int index, void *opaque)
{
    struct user_net *user = opaque;
    short got = index >= 0 ? user->polls[index].revents : 0;

    return (got & POLLIN ? SLIRP_POLL_IN : 0) | (got & POLLOUT ? SLIRP_POLL_OUT : 0) |
           (got & POLLPRI ? SLIRP_POLL_PRI : 0) | (got & (POLLERR | POLLNVAL) ? SLIRP_POLL_ERR : 0) |
           (got & POLLHUP ? SLIRP_POLL_HUP : 0);
}

/* Fires timers that are due; returns the milliseconds to the next one, at most LIMIT. */
static uint32_t run_timers(struct user_net *user, uint32_t limit)
{
    int64_t now_ms = (int64_t)(clock_now_ns() / NS_PER_MS);

    for (unsigned i = 0; i < TIMERS_MAX; i++) {
        struct user_timer *timer = &user->timers[i];

        if (timer->used && timer->armed && timer->expires_ms <= now_ms) {
            timer->armed = false;
            slirp_handle_timer(user->slirp, timer->id, timer->opaque);
        }
        if (timer->used && timer->armed && timer->expires_ms - now_ms < (int64_t)limit)
            limit = timer->expires_ms > now_ms ? (uint32_t)(timer->expires_ms - now_ms) : 0;
    }
    return limit;
}

static void *user_main(void *argument)
{
    struct user_net *user = argument;

    pthread_mutex_lock(&libslirp_lock);
    while (!user->ending) {
        uint32_t timeout = UINT32_MAX;
        eventfd_t events;
        int result;

        user->parked = !user->running;
        if (user->parked) {
            pthread_cond_broadcast(&user->changed);
            pthread_cond_wait(&user->changed, &libslirp_lock);
            continue;
        }
        user->poll_count = 0;
        (void)add_poll(user->event_fd, SLIRP_POLL_IN, user); /* which has room for one */
        slirp_pollfds_fill(user->slirp, &timeout, add_poll, user);
        timeout = run_timers(user, timeout);
        pthread_mutex_unlock(&libslirp_lock);
        result = poll(user->polls, user->poll_count, timeout > INT32_MAX ? -1 : (int)timeout);
        if (result > 0 && (user->polls[0].revents & POLLIN))
            (void)eventfd_read(user->event_fd, &events);
        pthread_mutex_lock(&libslirp_lock);
        if (user->running)
            slirp_pollfds_poll(user->slirp, result < 0, get_revents, user);
    }
    pthread_mutex_unlock(&libslirp_lock);
    return NULL;
}

static struct in_addr ipv4(const char *text)
{
    struct in_addr addr;

    (void)inet_pton(AF_INET, text, &addr);
    return addr;
}

static int create_slirp(struct user_net *user, struct ferry_error *err)
{
    SlirpConfig config = {
        .version = 4,
        .in_enabled = true,
        .vnetwork = ipv4("10.0.2.0"),
        .vnetmask = ipv4("255.255.255.0"),
        .vhost = ipv4("10.0.2.2"),
        .vdhcp_start = ipv4("10.0.2.15"),
        .vnameserver = ipv4("10.0.2.3"),
    };

    pthread_mutex_lock(&libslirp_lock);
    user->slirp = slirp_new(&config, &slirp_callbacks, user);
    pthread_mutex_unlock(&libslirp_lock);
    return user->slirp ? 0 : error_set(err, -ENOMEM, "libslirp cannot be started");
}

/* Stopped, or not made completely. */
static void user_free(struct user_net *user)
{
    pthread_mutex_lock(&libslirp_lock);
    user->ending = true;
    pthread_cond_broadcast(&user->changed);
    pthread_mutex_unlock(&libslirp_lock);
    thread_join(&user->thread);
    pthread_mutex_lock(&libslirp_lock);
    if (user->slirp)
        slirp_cleanup(user->slirp);
    pthread_mutex_unlock(&libslirp_lock);
    if (user->event_fd >= 0)
        close(user->event_fd);
    pthread_cond_destroy(&user->changed);
    free(user->polls);
    free(user);
}

static int user_create(struct net_backend **out, const char *options, struct log *log,
                       struct ferry_error *err)
{
    struct user_net *user = calloc(1, sizeof(*user));
    int result;

    if (!user)
        return error_set(err, -ENOMEM, "out of memory");
    user->backend.ops = &net_backend_user;
    user->log = log;
    user->event_fd = -1;
    user->parked = true;
    pthread_cond_init(&user->changed, NULL);
    result = user_net_parse(&user->options, options, err);
    if (result == 0) {
        user->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (user->event_fd < 0)
            result = error_set_errno(err, -errno, "cannot make an eventfd");
    }
    if (result == 0) {
        user->polls = calloc(POLLS_AT_FIRST, sizeof(*user->polls));
        user->poll_capacity = POLLS_AT_FIRST;
        if (!user->polls)
            result = error_set(err, -ENOMEM, "out of memory");
    }
    if (result == 0)
        result = create_slirp(user, err);
    if (result == 0)
        result = thread_start(&user->thread, THREAD_NET, "net-user", user_main, user, err);
    if (result < 0) {
        user_free(user);
        return result;
    }
    *out = &user->backend;
    return 0;
}

static int user_check(const char *options, struct ferry_error *err)
{
    struct user_net_options parsed;
    int result = user_net_parse(&parsed, options, err);

    return result < 0 ? result : user_net_check_ports(&parsed, err);
}

/* Takes the host's ports; one that is not to be had is a warning: the VM may be running elsewhere already. */
static void bind_forwards(struct user_net *user)
{
    for (unsigned i = 0; i < user->options.forward_count; i++) {
        const struct user_net_forward *forward = &user->options.forwards[i];
        /* Asked first: libslirp would share a UDP port with another that shares. */
        const struct user_net_options one = {.forwards = {*forward}, .forward_count = 1};
        struct ferry_error err = {0};
        int result = user_net_check_ports(&one, &err);

        if (result == 0 &&
            slirp_add_hostfwd(user->slirp, forward->udp, forward->host_addr, forward->host_port,
                              forward->guest_addr, forward->guest_port) < 0)
            result = error_set_errno(&err, -errno, "port %u", forward->host_port);
        user->bound[i] = result == 0;
        if (result < 0)
            log_warn(user->log, "network user: a forwarded port is missing: %s", err.text);
    }
}

static void release_forwards(struct user_net *user)
{
    for (unsigned i = 0; i < user->options.forward_count; i++) {
        const struct user_net_forward *forward = &user->options.forwards[i];

        if (user->bound[i])
            slirp_remove_hostfwd(user->slirp, forward->udp, forward->host_addr, forward->host_port);
        user->bound[i] = false;
    }
}

static void user_stop(struct net_backend *backend)
{
    struct user_net *user = from_backend(backend);

    pthread_mutex_lock(&libslirp_lock);
    if (user->running) {
        user->running = false;
        release_forwards(user);
        (void)eventfd_write(user->event_fd, 1);
        while (!user->parked)
            pthread_cond_wait(&user->changed, &libslirp_lock);
    }
    pthread_mutex_unlock(&libslirp_lock);
}

static int user_start(struct net_backend *backend, struct ferry_error *err)
{
    struct user_net *user = from_backend(backend);

    pthread_mutex_lock(&libslirp_lock);
    if (!user->running) {
        user->running = true;
        user->parked = false;
        bind_forwards(user);
        pthread_cond_broadcast(&user->changed);
    }
    pthread_mutex_unlock(&libslirp_lock);
    return 0;
}

static void user_send(struct net_backend *backend, const void *packet, size_t size)
{
    struct user_net *user = from_backend(backend);

    pthread_mutex_lock(&libslirp_lock);
    if (user->running && size <= NET_PACKET_MAX) {
        slirp_input(user->slirp, packet, (int)size);
        (void)eventfd_write(user->event_fd, 1); /* there may be a new socket to poll */
    }
    pthread_mutex_unlock(&libslirp_lock);
}

static void user_announce(struct net_backend *backend, const uint8_t mac[6])
{
    /* Nobody but libslirp is on this network, and it learns the address by ARP. */
}

static void user_destroy(struct net_backend *backend)
{
    struct user_net *user = from_backend(backend);

    user_stop(backend);
    user_free(user);
}

const struct net_backend_ops net_backend_user = {
    .name = "user",
    .create = user_create,
    .check = user_check,
    .start = user_start,
    .stop = user_stop,
    .send = user_send,
    .announce = user_announce,
    .destroy = user_destroy,
};
