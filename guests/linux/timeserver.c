#include "timeserver.h"

#include "clock.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define QUESTIONS   16             /* of which the quickest answer counts */
#define INTERVAL    (NS_PER_S / 2) /* between two lines */
#define PATIENCE_US 500000         /* an answer that takes longer is lost */

struct times {
    uint64_t question; /* Number of the question; the answer carries the same. */
    uint64_t wall, monotonic;
};

/* Server's and guest's clocks at one moment of the guest's; the difference is off by half of RTT at most. */
struct sighting {
    int64_t wall, monotonic;
    uint64_t rtt;
};

static uint64_t wall_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static int port_of(const char *text, struct sockaddr_in *address)
{
    char *end;
    unsigned long port = strtoul(text, &end, 10);

    if (*end || port == 0 || port > 65535) {
        printf("ferry-work clock: %s is not a UDP port\n", text);
        return -1;
    }
    address->sin_port = htons((uint16_t)port);
    return 0;
}

int timeserver_run(const char *text)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    int fd;

    if (port_of(text, &address) < 0)
        return 2;
    fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        perror("ferry-work time");
        return 1;
    }
    for (;;) {
        struct sockaddr_in from;
        socklen_t size = sizeof(from);
        struct times times;

        if (recvfrom(fd, &times, sizeof(times), 0, (struct sockaddr *)&from, &size) != sizeof(times))
            continue;
        times.wall = wall_now();
        times.monotonic = clock_now();
        sendto(fd, &times, sizeof(times), 0, (struct sockaddr *)&from, size);
    }
}

/* Asks question NUMBER; false when no answer to it came. */
static bool ask(int fd, uint64_t number, struct sighting *sighting)
{
    struct times times = {.question = number};
    uint64_t wall = wall_now(), start = clock_now(), middle;

    if (send(fd, &times, sizeof(times), 0) != sizeof(times))
        return false;
    do {
        if (recv(fd, &times, sizeof(times), 0) != sizeof(times))
            return false;
    } while (times.question != number);
    sighting->rtt = clock_now() - start;
    middle = sighting->rtt / 2;
    sighting->wall = (int64_t)(wall + middle - times.wall);
    sighting->monotonic = (int64_t)(start + middle - times.monotonic);
    return true;
}

static int connect_to(const char *text)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    struct timeval patience = {.tv_usec = PATIENCE_US};
    const char *colon = strchr(text, ':');
    char host[64];
    int fd;

    snprintf(host, sizeof(host), "%.*s", colon ? (int)(colon - text) : 0, text);
    if (!colon || inet_pton(AF_INET, host, &address.sin_addr) != 1 || port_of(colon + 1, &address) < 0) {
        printf("ferry-work clock: %s is not ADDRESS:PORT\n", text);
        return -2;
    }
    fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) < 0) {
        perror("ferry-work clock");
        return -1;
    }
    return fd;
}

int timeserver_ask(const char *text)
{
    uint64_t question = 0;
    int fd = connect_to(text);

    if (fd < 0)
        return -fd;
    for (uint64_t line = 1;; line++) {
        struct sighting best = {.rtt = UINT64_MAX}, now;

        clock_sleep_until(clock_now() + INTERVAL);
        for (unsigned i = 0; i < QUESTIONS; i++)
            if (ask(fd, question++, &now) && now.rtt < best.rtt)
                best = now;
        if (best.rtt == UINT64_MAX)
            printf("clock %" PRIu64 " no answer\n", line);
        else
            printf("clock %" PRIu64 " wall=%+" PRId64 "us monotonic=%+" PRId64 "us rtt=%" PRIu64 "us\n", line,
                   best.wall / 1000, best.monotonic / 1000, best.rtt / 1000);
    }
}
