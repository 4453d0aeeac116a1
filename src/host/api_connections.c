#include "host/api_connections.h"

#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct api_connection {
    struct api_connection *next;
    int fd;
    struct sockaddr_storage address;
    bool started;      /* FD is not closed before this is gone */
    uint64_t since_ns; /* a request is being waited for; 0: it has come */
};

struct api_connections {
    struct loop_timer *timer; /* the loop's thread only, as the next */
    bool armed;
    uint64_t patience_ns;

    pthread_mutex_t lock; /* guards the rest */
    struct api_connection *first;
    unsigned count;
};

static void arm(struct api_connections *connections)
{
    connections->armed = true;
    loop_timer_arm(connections->timer, connections->patience_ns / 2);
}

static void cut_late(void *opaque)
{
    struct api_connections *connections = opaque;
    uint64_t now = clock_now_ns();
    bool any;

    pthread_mutex_lock(&connections->lock);
    for (struct api_connection *each = connections->first; each; each = each->next) {
        if (each->started && each->since_ns && now - each->since_ns >= connections->patience_ns)
            shutdown(each->fd, SHUT_RDWR); /* its thread sees the end, and closes it */
    }
    any = connections->first != NULL;
    pthread_mutex_unlock(&connections->lock);
    connections->armed = false;
    if (any)
        arm(connections);
}

int api_connections_new(struct api_connections **out, struct loop *loop, uint64_t patience_ns,
                        struct ferry_error *err)
{
    struct api_connections *connections = calloc(1, sizeof(*connections));
    int result;

    *out = NULL;
    if (!connections)
        return error_set(err, -ENOMEM, "out of memory");
    connections->patience_ns = patience_ns;
    result = loop_timer_add(loop, cut_late, connections, &connections->timer, err);
    if (result < 0) {
        free(connections);
        return result;
    }
    pthread_mutex_init(&connections->lock, NULL);
    *out = connections;
    return 0;
}

void api_connections_free(struct api_connections *connections)
{
    if (!connections)
        return;
    while (connections->first) {
        struct api_connection *next = connections->first->next;

        free(connections->first);
        connections->first = next;
    }
    loop_timer_remove(connections->timer);
    pthread_mutex_destroy(&connections->lock);
    free(connections);
}

static bool same_host(const struct sockaddr_storage *a, const struct sockaddr_storage *b)
{
    if (a->ss_family != b->ss_family)
        return false;
    if (a->ss_family == AF_INET)
        return ((const struct sockaddr_in *)a)->sin_addr.s_addr ==
               ((const struct sockaddr_in *)b)->sin_addr.s_addr;
    return a->ss_family != AF_INET6 || memcmp(&((const struct sockaddr_in6 *)a)->sin6_addr,
                                              &((const struct sockaddr_in6 *)b)->sin6_addr, 16) == 0;
}

/* Under the lock. */
static void discard(struct api_connections *connections, struct api_connection **link)
{
    struct api_connection *connection = *link;

    *link = connection->next;
    connections->count--;
    free(connection);
}

static void discard_unstarted(struct api_connections *connections, int fd)
{
    for (struct api_connection **link = &connections->first; *link; link = &(*link)->next) {
        if ((*link)->fd == fd && !(*link)->started) {
            discard(connections, link);
            return;
        }
    }
}

bool api_connections_admit(struct api_connections *connections, int fd,
                           const struct sockaddr_storage *address)
{
    struct api_connection *connection = calloc(1, sizeof(*connection));
    unsigned from_there = 0;
    bool admitted;

    pthread_mutex_lock(&connections->lock);
    /* Its number was another's that failed before it was started. */
    discard_unstarted(connections, fd);
    for (const struct api_connection *each = connections->first; each; each = each->next)
        from_there += same_host(&each->address, address);
    admitted = connection && connections->count < CONNECTIONS_MAX && from_there < CONNECTIONS_MAX_AN_ADDRESS;
    if (admitted) {
        *connection = (struct api_connection){
            .next = connections->first, .fd = fd, .address = *address, .since_ns = clock_now_ns()};
        connections->first = connection;
        connections->count++;
    }
    pthread_mutex_unlock(&connections->lock);
    if (!admitted)
        free(connection);
    else if (!connections->armed)
        arm(connections);
    return admitted;
}

void api_connections_drop(struct api_connections *connections, int fd)
{
    pthread_mutex_lock(&connections->lock);
    discard_unstarted(connections, fd);
    pthread_mutex_unlock(&connections->lock);
}

struct api_connection *api_connection_started(struct api_connections *connections, int fd)
{
    struct api_connection *found = NULL;

    pthread_mutex_lock(&connections->lock);
    for (struct api_connection *each = connections->first; each && !found; each = each->next) {
        if (each->fd == fd && !each->started)
            found = each;
    }
    if (found)
        found->started = true;
    pthread_mutex_unlock(&connections->lock);
    return found;
}

void api_connection_served(struct api_connections *connections, struct api_connection *connection,
                           bool being_served)
{
    if (!connection)
        return;
    pthread_mutex_lock(&connections->lock);
    connection->since_ns = being_served ? 0 : clock_now_ns();
    pthread_mutex_unlock(&connections->lock);
}

void api_connection_closed(struct api_connections *connections, struct api_connection *connection)
{
    if (!connection)
        return;
    pthread_mutex_lock(&connections->lock);
    for (struct api_connection **link = &connections->first; *link; link = &(*link)->next) {
        if (*link == connection) {
            discard(connections, link);
            break;
        }
    }
    pthread_mutex_unlock(&connections->lock);
}
