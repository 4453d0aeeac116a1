#include "host/door.h"

#include "base/clock.h"
#include "base/error.h"
#include "tls/stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define GUESTS_MAX 64
/* How long accepting rests when the process has no descriptors left. */
#define REST_NS (100 * NS_PER_MS)

/* Somebody who has not said anything yet. */
struct guest {
    struct door *door;
    struct loop_watch *watch; /* NULL: the place is free */
    int fd;
    uint64_t since_ns;
};

struct door {
    struct loop *loop;
    struct loop_watch *watch;
    struct loop_timer *patience; /* the next guest's who had his time */
    struct loop_timer *rest;
    int listen_fd;
    uint64_t patience_ns;
    door_function *function;
    void *opaque;
    struct guest guests[GUESTS_MAX];
};

/* His descriptor is the caller's. */
static int see_off(struct guest *guest)
{
    loop_watch_remove(guest->watch);
    guest->watch = NULL;
    return guest->fd;
}

static struct guest *find_oldest(struct door *door)
{
    struct guest *oldest = NULL;

    for (size_t i = 0; i < GUESTS_MAX; i++) {
        struct guest *guest = &door->guests[i];

        if (guest->watch && (!oldest || guest->since_ns < oldest->since_ns))
            oldest = guest;
    }
    return oldest;
}

static struct guest *find_place(struct door *door)
{
    struct guest *oldest;

    for (size_t i = 0; i < GUESTS_MAX; i++) {
        if (!door->guests[i].watch)
            return &door->guests[i];
    }
    oldest = find_oldest(door);
    close(see_off(oldest));
    return oldest;
}

static void arm_patience(struct door *door)
{
    const struct guest *oldest = find_oldest(door);
    uint64_t now = clock_now_ns();
    uint64_t until = oldest ? oldest->since_ns + door->patience_ns : 0;

    if (oldest)
        loop_timer_arm(door->patience, until > now ? until - now : 1);
}

static void patience_ended(void *opaque)
{
    struct door *door = opaque;
    struct guest *oldest;

    while ((oldest = find_oldest(door)) && clock_now_ns() - oldest->since_ns >= door->patience_ns)
        close(see_off(oldest));
    arm_patience(door);
}

static void guest_spoke(void *opaque, unsigned events)
{
    struct guest *guest = opaque;
    struct door *door = guest->door;
    uint8_t first;
    ssize_t n = recv(guest->fd, &first, 1, MSG_PEEK | MSG_DONTWAIT);
    int fd;

    (void)events;
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    fd = see_off(guest);
    if (n == 1)
        door->function(door->opaque, fd, first == TLS_FIRST_BYTE);
    else
        close(fd);
}

static void let_in(struct door *door, int fd)
{
    struct guest *guest = find_place(door);

    *guest = (struct guest){.door = door, .fd = fd, .since_ns = clock_now_ns()};
    if (loop_watch_add(door->loop, fd, LOOP_READ, guest_spoke, guest, &guest->watch, NULL) < 0) {
        guest->watch = NULL;
        close(fd);
    }
}

/* A few at a time: others wait for the loop, too. */
static void knocked(void *opaque, unsigned events)
{
    struct door *door = opaque;

    (void)events;
    for (int i = 0; i < 16; i++) {
        int fd = accept4(door->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)) {
            loop_watch_set(door->watch, 0, NULL);
            loop_timer_arm(door->rest, REST_NS);
        }
        if (fd < 0)
            break;
        let_in(door, fd);
    }
    arm_patience(door);
}

static void rested(void *opaque)
{
    struct door *door = opaque;

    loop_watch_set(door->watch, LOOP_READ, NULL);
}

int door_open(struct door **out, struct loop *loop, int listen_fd, uint64_t patience_ns,
              door_function *function, void *opaque, struct ferry_error *err)
{
    struct door *door = calloc(1, sizeof(*door));
    int result;

    *out = NULL;
    if (!door) {
        close(listen_fd);
        return error_set(err, -ENOMEM, "out of memory");
    }
    door->loop = loop;
    door->listen_fd = listen_fd;
    door->patience_ns = patience_ns;
    door->function = function;
    door->opaque = opaque;
    result = loop_timer_add(loop, patience_ended, door, &door->patience, err);
    if (result == 0)
        result = loop_timer_add(loop, rested, door, &door->rest, err);
    if (result == 0)
        result = loop_watch_add(loop, listen_fd, LOOP_READ, knocked, door, &door->watch, err);
    if (result < 0) {
        door_close(door);
        return result;
    }
    *out = door;
    return 0;
}

void door_close(struct door *door)
{
    if (!door)
        return;
    for (size_t i = 0; i < GUESTS_MAX; i++) {
        if (door->guests[i].watch)
            close(see_off(&door->guests[i]));
    }
    loop_watch_remove(door->watch);
    loop_timer_remove(door->patience);
    loop_timer_remove(door->rest);
    close(door->listen_fd);
    free(door);
}
