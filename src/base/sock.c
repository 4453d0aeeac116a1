#include "base/sock.h"

#include "base/clock.h"
#include "base/error.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/tcp.h> /* netinet/tcp.h has no tcpi_delivery_rate */
#include <netinet/in.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* Between two tries at a Unix socket whose backlog is full; poll(2) cannot wait for that. */
#define UNIX_RETRY_MS 10

union sock_any {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    struct sockaddr_un local;
};

static bool parse_port(const char *text, uint16_t *port)
{
    unsigned value = 0;

    if (!*text || strlen(text) > 5)
        return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9')
            return false;
        value = value * 10 + (unsigned)(*text - '0');
    }
    *port = (uint16_t)value;
    return value <= UINT16_MAX;
}

static int parse_unix(const char *path, union sock_any *out, socklen_t *size, struct ferry_error *err)
{
    size_t length = strlen(path);

    if (length >= sizeof(out->local.sun_path))
        return error_set(err, -ENAMETOOLONG,
                         "socket path %s is too long: %zu characters, at most %zu are possible", path, length,
                         sizeof(out->local.sun_path) - 1);
    out->local.sun_family = AF_UNIX;
    memcpy(out->local.sun_path, path, length + 1);
    *size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + 1);
    return 0;
}

static int parse_address(const char *address, union sock_any *out, socklen_t *size, struct ferry_error *err)
{
    const char *colon = strrchr(address, ':');
    char host[INET6_ADDRSTRLEN];
    bool v6 = address[0] == '[';
    const char *start = address + v6;
    size_t length;
    uint16_t port;

    memset(out, 0, sizeof(*out));
    if (strchr(address, '/'))
        return parse_unix(address, out, size, err);
    if (!colon || !parse_port(colon + 1, &port))
        goto refuse;
    length = (size_t)(colon - address);
    if (v6) {
        if (length < 2 || address[length - 1] != ']')
            goto refuse;
        length -= 2;
    }
    if (length >= sizeof(host))
        goto refuse;
    memcpy(host, start, length);
    host[length] = '\0';
    if (v6 && inet_pton(AF_INET6, host, &out->v6.sin6_addr) == 1) {
        out->v6.sin6_family = AF_INET6;
        out->v6.sin6_port = htons(port);
        *size = sizeof(out->v6);
        return 0;
    }
    if (!v6 && inet_pton(AF_INET, host, &out->v4.sin_addr) == 1) {
        out->v4.sin_family = AF_INET;
        out->v4.sin_port = htons(port);
        *size = sizeof(out->v4);
        return 0;
    }

refuse:
    return error_set(
        err, -EINVAL,
        "address \"%.128s\" is not understood: it must be a numeric ADDR:PORT, [IPv6]:PORT, or the "
        "path of a Unix socket",
        address);
}

bool sock_address_is_loopback(const char *address)
{
    union sock_any any;
    socklen_t size;

    if (strchr(address, '/'))
        return true;
    if (parse_address(address, &any, &size, NULL))
        return false;
    if (any.any.sa_family == AF_INET)
        return ntohl(any.v4.sin_addr.s_addr) >> 24 == 127;
    return IN6_IS_ADDR_LOOPBACK(&any.v6.sin6_addr) ||
           (IN6_IS_ADDR_V4MAPPED(&any.v6.sin6_addr) && any.v6.sin6_addr.s6_addr[12] == 127);
}

static int format_address(const union sock_any *any, socklen_t size, char out[static SOCK_ADDRESS_SIZE],
                          struct ferry_error *err)
{
    char host[INET6_ADDRSTRLEN];

    switch (any->any.sa_family) {
    case AF_INET:
        inet_ntop(AF_INET, &any->v4.sin_addr, host, sizeof(host));
        snprintf(out, SOCK_ADDRESS_SIZE, "%s:%u", host, (unsigned)ntohs(any->v4.sin_port));
        return 0;
    case AF_INET6:
        inet_ntop(AF_INET6, &any->v6.sin6_addr, host, sizeof(host));
        snprintf(out, SOCK_ADDRESS_SIZE, "[%s]:%u", host, (unsigned)ntohs(any->v6.sin6_port));
        return 0;
    case AF_UNIX:
        if (size <= offsetof(struct sockaddr_un, sun_path) || !any->local.sun_path[0])
            snprintf(out, SOCK_ADDRESS_SIZE, "(unnamed Unix socket)");
        else
            snprintf(out, SOCK_ADDRESS_SIZE, "%.*s", (int)sizeof(any->local.sun_path), any->local.sun_path);
        return 0;
    default:
        return error_set(err, -EAFNOSUPPORT, "a socket of family %d has no address in text",
                         any->any.sa_family);
    }
}

int sock_local_address(int fd, char out[static SOCK_ADDRESS_SIZE], struct ferry_error *err)
{
    union sock_any any = {0};
    socklen_t size = sizeof(any);

    if (getsockname(fd, &any.any, &size) < 0)
        return error_set_errno(err, -errno, "cannot tell a socket's own address");
    return format_address(&any, size, out, err);
}

int sock_peer_address(int fd, char out[static SOCK_ADDRESS_SIZE], struct ferry_error *err)
{
    union sock_any any = {0};
    socklen_t size = sizeof(any);

    if (getpeername(fd, &any.any, &size) < 0)
        return error_set_errno(err, -errno, "cannot tell the address of a socket's peer");
    return format_address(&any, size, out, err);
}

/* Is anybody listening there? 0 when not; -EADDRINUSE, or another error when that cannot be told. */
static int check_unused(const char *path, const union sock_any *any, socklen_t size, struct ferry_error *err)
{
    struct stat status;
    int result;
    int fd;

    if (lstat(path, &status) < 0)
        return errno == ENOENT ? 0 : error_set_errno(err, -errno, "cannot listen on %s", path);
    if (!S_ISSOCK(status.st_mode))
        return error_set(err, -EEXIST, "cannot listen on %s: there is a file of that name which is no socket",
                         path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_set_errno(err, -errno, "cannot listen on %s", path);
    result = connect(fd, &any->any, size) < 0 ? -errno : 0;
    close(fd);
    if (result == 0 || result == -EAGAIN || result == -EINPROGRESS)
        return error_set(err, -EADDRINUSE, "cannot listen on %s: another process is listening there", path);
    if (result != -ECONNREFUSED && result != -ENOENT)
        return error_set_errno(err, result, "cannot listen on %s", path);
    if (unlink(path) < 0 && errno != ENOENT)
        return error_set_errno(err, -errno, "cannot replace the old socket %s", path);
    return 0;
}

int sock_listen(const char *address, struct ferry_error *err)
{
    union sock_any any;
    socklen_t size;
    int on = 1;
    int fd;
    int result = parse_address(address, &any, &size, err);

    if (result)
        return result;
    if (any.any.sa_family == AF_UNIX) {
        result = check_unused(address, &any, size, err);
        if (result)
            return result;
    }
    /* Not blocking: a connection may be gone again between poll and accept. */
    fd = socket(any.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_set_errno(err, -errno, "cannot listen on %s", address);
    if (any.any.sa_family != AF_UNIX && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0)
        goto fail;
    if (bind(fd, &any.any, size) < 0)
        goto fail;
    /* Before listen, so that nobody can have connected under the wider mode. */
    if (any.any.sa_family == AF_UNIX && chmod(address, 0600) < 0)
        goto fail;
    if (listen(fd, SOMAXCONN) < 0)
        goto fail;
    return fd;

fail:
    result = error_set_errno(err, -errno, "cannot listen on %s", address);
    close(fd);
    return result;
}

/* Waits until FD is ready for EVENTS (or has an error to tell): 0, -ETIMEDOUT, -ECANCELED. FD may be -1. */
static int wait_ready(int fd, short events, uint64_t deadline, int cancel_fd, struct ferry_error *err)
{
    for (;;) {
        struct pollfd polls[2] = {{.fd = fd, .events = events}, {.fd = cancel_fd, .events = POLLIN}};
        int count = poll(polls, 2, clock_left_ms(deadline));

        if (count < 0 && errno != EINTR)
            return error_set_errno(err, -errno, "cannot wait for a socket");
        if (count > 0 && polls[1].revents)
            return error_set(err, -ECANCELED, "cancelled");
        if (count > 0 && polls[0].revents & POLLNVAL)
            return error_set(err, -EBADF, "cannot wait for a socket that is not open");
        if (count > 0)
            return 0;
        if (count == 0 && clock_left_ms(deadline) == 0)
            return error_set(err, -ETIMEDOUT, "timed out");
    }
}

/* The words for ERROR alone, for a caller who puts before them what failed. */
static int set_words(struct ferry_error *err, int error)
{
    const char *words = strerrordesc_np(error);

    return error_set(err, -error, "%s", words ? words : "unknown error");
}

static int connect_unix(int fd, const union sock_any *any, socklen_t size, uint64_t deadline, int cancel_fd,
                        struct ferry_error *err)
{
    while (connect(fd, &any->any, size) < 0) {
        uint64_t retry = clock_deadline(UNIX_RETRY_MS);
        int result;

        if (errno == EINTR)
            continue;
        if (errno != EAGAIN)
            return set_words(err, errno);
        result = wait_ready(-1, 0, retry < deadline ? retry : deadline, cancel_fd, err);
        if (result != -ETIMEDOUT || retry >= deadline)
            return result;
    }
    return 0;
}

static int connect_inet(int fd, const union sock_any *any, socklen_t size, uint64_t deadline, int cancel_fd,
                        struct ferry_error *err)
{
    int failure = 0;
    socklen_t failure_size = sizeof(failure);
    int result;

    if (connect(fd, &any->any, size) == 0)
        return 0;
    if (errno != EINPROGRESS && errno != EINTR)
        return set_words(err, errno);
    result = wait_ready(fd, POLLOUT, deadline, cancel_fd, err);
    if (result)
        return result;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &failure_size) < 0)
        failure = errno;
    return failure ? set_words(err, failure) : 0;
}

int sock_connect(const char *address, uint64_t deadline, int cancel_fd, struct ferry_error *err)
{
    union sock_any any;
    socklen_t size;
    int fd;
    int result = parse_address(address, &any, &size, err);

    if (result)
        return result;
    fd = socket(any.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_set_errno(err, -errno, "cannot connect to %s", address);
    if (any.any.sa_family == AF_UNIX)
        result = connect_unix(fd, &any, size, deadline, cancel_fd, err);
    else
        result = connect_inet(fd, &any, size, deadline, cancel_fd, err);
    if (!result && fcntl(fd, F_SETFL, 0) < 0)
        result = set_words(err, errno);
    if (result) {
        close(fd);
        return error_prefix(err, result, "cannot connect to %s", address);
    }
    return fd;
}

/* Failures of the connection that was to be accepted, not of accepting; accept(2) says to try again. */
static bool accept_again(int error)
{
    switch (error) {
    case EAGAIN:
    case EINTR:
    case ECONNABORTED:
    case EPROTO:
    case ENETDOWN:
    case ENETUNREACH:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case ENONET:
    case ENOPROTOOPT:
        return true;
    default:
        return false;
    }
}

int sock_accept(int listen_fd, uint64_t deadline, int cancel_fd, struct ferry_error *err)
{
    for (;;) {
        int result = wait_ready(listen_fd, POLLIN, deadline, cancel_fd, err);
        int fd;

        if (result)
            return error_prefix(err, result, "waiting for a connection");
        fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0)
            return fd;
        if (!accept_again(errno))
            return error_set_errno(err, -errno, "cannot accept a connection");
    }
}

int sock_tune(int fd, unsigned timeout_ms, struct ferry_error *err)
{
    /* Probes begin after half of the timeout; TCP_USER_TIMEOUT ends the connection at the whole of it. */
    int idle_s = timeout_ms / 2000 ? (int)(timeout_ms / 2000) : 1;
    int interval_s = timeout_ms / 8000 ? (int)(timeout_ms / 8000) : 1;
    int probes = 4;
    int on = 1;
    int family;
    socklen_t size = sizeof(family);

    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &size) < 0)
        return error_set_errno(err, -errno, "cannot tune a socket");
    if (family == AF_UNIX)
        return 0;
    /* the kernel's limits for these two */
    idle_s = idle_s < 32767 ? idle_s : 32767;
    interval_s = interval_s < 32767 ? interval_s : 32767;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on)) < 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s)) < 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s)) < 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes)) < 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof(timeout_ms)) < 0)
        return error_set_errno(err, -errno, "cannot tune a socket");
    return 0;
}

static int transfer_failed(int error, struct ferry_error *err)
{
    switch (error) {
    case EPIPE:
        return error_set(err, -EPIPE, "the peer closed the connection");
    case ECONNRESET:
        return error_set(err, -EPIPE, "the peer closed the connection (reset)");
    case ETIMEDOUT:
        return error_set(err, -ETIMEDOUT, "timed out: the peer does not answer any more");
    default:
        return error_set_errno(err, -error, "the connection failed");
    }
}

/* A stream that never has to wait would otherwise never see that it is cancelled. */
static int check_cancelled(int cancel_fd, struct ferry_error *err)
{
    struct pollfd cancel = {.fd = cancel_fd, .events = POLLIN};

    if (cancel_fd >= 0 && poll(&cancel, 1, 0) > 0)
        return error_set(err, -ECANCELED, "cancelled");
    return 0;
}

int sock_read_full(int fd, void *data, size_t size, uint64_t deadline, int cancel_fd, struct ferry_error *err)
{
    uint8_t *to = data;
    int result = check_cancelled(cancel_fd, err);

    while (!result && size > 0) {
        ssize_t got = recv(fd, to, size, MSG_DONTWAIT);

        if (got > 0) {
            to += got;
            size -= (size_t)got;
        } else if (got == 0) {
            result = transfer_failed(EPIPE, err);
        } else if (errno == EAGAIN) {
            result = wait_ready(fd, POLLIN, deadline, cancel_fd, err);
        } else if (errno != EINTR) {
            result = transfer_failed(errno, err);
        }
    }
    return result;
}

int sock_write_full(int fd, const void *data, size_t size, uint64_t deadline, int cancel_fd,
                    struct ferry_error *err)
{
    const uint8_t *from = data;
    int result = check_cancelled(cancel_fd, err);

    while (!result && size > 0) {
        ssize_t put = send(fd, from, size, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (put >= 0) {
            from += put;
            size -= (size_t)put;
        } else if (errno == EAGAIN) {
            result = wait_ready(fd, POLLOUT, deadline, cancel_fd, err);
        } else if (errno != EINTR) {
            result = transfer_failed(errno, err);
        }
    }
    return result;
}

uint64_t sock_delivery_rate(int fd)
{
    struct tcp_info info = {0};
    socklen_t size = sizeof(info);

    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) < 0 ||
        size < offsetof(struct tcp_info, tcpi_delivery_rate) + sizeof(info.tcpi_delivery_rate))
        return 0;
    return info.tcpi_delivery_rate;
}

static bool same_address(const struct sockaddr_storage *a, const struct sockaddr_storage *b)
{
    if (a->ss_family != b->ss_family)
        return false;
    if (a->ss_family == AF_INET)
        return ((const struct sockaddr_in *)a)->sin_addr.s_addr ==
               ((const struct sockaddr_in *)b)->sin_addr.s_addr;
    return a->ss_family == AF_INET6 &&
           memcmp(&((const struct sockaddr_in6 *)a)->sin6_addr, &((const struct sockaddr_in6 *)b)->sin6_addr,
                  sizeof(struct in6_addr)) == 0;
}

bool sock_is_within_host(int fd)
{
    struct sockaddr_storage here, there;
    socklen_t here_size = sizeof(here), there_size = sizeof(there);

    return getsockname(fd, (struct sockaddr *)&here, &here_size) == 0 &&
           getpeername(fd, (struct sockaddr *)&there, &there_size) == 0 && same_address(&here, &there);
}

int sock_incoming_cpu(int fd)
{
    int cpu = -1;
    socklen_t size = sizeof(cpu);

    return getsockopt(fd, SOL_SOCKET, SO_INCOMING_CPU, &cpu, &size) == 0 ? cpu : -1;
}
