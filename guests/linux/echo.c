#include "echo.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTIONS_MAX 64

struct connection {
    char data[4096];
    size_t start, end; /* What was received and not yet sent back. */
};

/* pollfd 0 is the listening socket; pollfd n belongs to connection n. */
struct echo {
    struct pollfd fds[CONNECTIONS_MAX + 1];
    struct connection *connections[CONNECTIONS_MAX + 1];
    unsigned count;
};

static int listen_on(const char *text)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    char *end;
    unsigned long port = strtoul(text, &end, 10);
    int fd, on = 1;

    if (*end || port == 0 || port > 65535) {
        printf("ferry-work echo: %s is not a TCP port\n", text);
        return -1;
    }
    address.sin_port = htons((uint16_t)port);
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 16) < 0) {
        perror("ferry-work echo");
        close(fd);
        return -1;
    }
    printf("echo listening port=%lu\n", port);
    return fd;
}

static void echo_accept(struct echo *echo)
{
    int fd = accept4(echo->fds[0].fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    struct connection *connection;

    if (fd < 0)
        return;
    connection = echo->count < CONNECTIONS_MAX ? calloc(1, sizeof(*connection)) : NULL;
    if (!connection) {
        close(fd);
        return;
    }
    echo->count++;
    echo->connections[echo->count] = connection;
    echo->fds[echo->count] = (struct pollfd){.fd = fd, .events = POLLIN};
}

static void echo_close(struct echo *echo, unsigned index)
{
    close(echo->fds[index].fd);
    free(echo->connections[index]);
    echo->fds[index] = echo->fds[echo->count];
    echo->connections[index] = echo->connections[echo->count];
    echo->count--;
}

/* Moves data one way or the other; false when the connection is over. */
static int echo_serve(struct pollfd *poll, struct connection *connection)
{
    ssize_t moved;

    if (connection->start == connection->end) {
        moved = recv(poll->fd, connection->data, sizeof(connection->data), 0);
        if (moved == 0 || (moved < 0 && errno != EAGAIN && errno != EINTR))
            return 0;
        connection->start = 0;
        connection->end = moved > 0 ? (size_t)moved : 0;
    }
    if (connection->start < connection->end) {
        moved = send(poll->fd, connection->data + connection->start, connection->end - connection->start, 0);
        if (moved < 0 && errno != EAGAIN && errno != EINTR)
            return 0;
        connection->start += moved > 0 ? (size_t)moved : 0;
    }
    poll->events = connection->start < connection->end ? POLLOUT : POLLIN;
    return 1;
}

int echo_run(const char *text)
{
    struct echo *echo = calloc(1, sizeof(*echo));

    if (!echo)
        return 1;
    signal(SIGPIPE, SIG_IGN);
    echo->fds[0] = (struct pollfd){.fd = listen_on(text), .events = POLLIN};
    if (echo->fds[0].fd < 0) {
        free(echo);
        return 1;
    }
    for (;;) {
        if (poll(echo->fds, echo->count + 1, -1) < 0 && errno != EINTR)
            break;
        /* From the end, as closing one moves the last into its place. */
        for (unsigned i = echo->count; i > 0; i--) {
            if (echo->fds[i].revents && !echo_serve(&echo->fds[i], echo->connections[i]))
                echo_close(echo, i);
        }
        if (echo->fds[0].revents)
            echo_accept(echo);
    }
    perror("ferry-work echo");
    return 1;
}
