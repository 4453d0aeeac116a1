#include "engine/channel.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/thread.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

static ssize_t socket_failed(int error, struct ferry_error *err)
{
    if (error == EAGAIN || error == EINTR)
        return -error;
    return error_set_errno(err, -error, "the connection broke");
}

static ssize_t socket_readv(struct channel *channel, const struct iovec *iov, int count,
                            struct ferry_error *err)
{
    ssize_t n = readv(channel->fd, iov, count);

    return n < 0 ? socket_failed(errno, err) : n;
}

static ssize_t socket_writev(struct channel *channel, const struct iovec *iov, int count,
                             struct ferry_error *err)
{
    struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)count};
    ssize_t n = sendmsg(channel->fd, &message, MSG_NOSIGNAL);

    return n < 0 ? socket_failed(errno, err) : n;
}

static void socket_shutdown(struct channel *channel)
{
    shutdown(channel->fd, SHUT_RDWR);
}

static void socket_finish(struct channel *channel)
{
    shutdown(channel->fd, SHUT_WR);
}

static void socket_close(struct channel *channel)
{
    close(channel->fd);
}

const struct channel_ops channel_socket_ops = {
    .name = "socket",
    .readv = socket_readv,
    .writev = socket_writev,
    .shutdown = socket_shutdown,
    .finish = socket_finish,
    .close = socket_close,
};

void channel_init_socket(struct channel *channel, int fd, int cancel_fd, uint64_t timeout_ns)
{
    *channel = (struct channel){
        .ops = &channel_socket_ops,
        .fd = fd,
        .cancel_fd = cancel_fd,
        .read_ns = timeout_ns,
        .write_ns = timeout_ns,
    };
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

void channel_close(struct channel *channel)
{
    int fds[CHANNEL_DESCRIPTORS_MAX];
    struct thread_mute mute;

    /* Where the kernel does TLS, closing a socket sends what it has not sent yet, and may raise SIGPIPE. */
    thread_mute_begin(&mute);
    if (channel->ops && channel->fd >= 0)
        channel->ops->close(channel);
    thread_mute_end(&mute);
    channel->fd = -1;
    for (size_t i = channel_take_descriptors(channel, fds); i-- > 0;)
        close(fds[i]);
}

void channel_shutdown(struct channel *channel)
{
    if (channel->ops && channel->fd >= 0)
        channel->ops->shutdown(channel);
}

void channel_finish(struct channel *channel)
{
    if (channel->ops && channel->fd >= 0)
        channel->ops->finish(channel);
}

static int poll_ms(uint64_t deadline)
{
    if (deadline == CHANNEL_FOREVER)
        return -1;

    uint64_t now = clock_now_ns();

    if (now >= deadline)
        return 0;

    uint64_t ms = (deadline - now + NS_PER_MS - 1) / NS_PER_MS;

    return ms > INT_MAX ? INT_MAX : (int)ms;
}

int channel_wait(struct channel *channel, short events, uint64_t timeout_ns, struct ferry_error *err)
{
    uint64_t deadline = timeout_ns == CHANNEL_FOREVER ? CHANNEL_FOREVER : clock_now_ns() + timeout_ns;

    for (;;) {
        struct pollfd polled[2] = {
            {.fd = channel->fd, .events = events},
            {.fd = channel->cancel_fd, .events = POLLIN}, /* negative descriptors are ignored */
        };
        int n = poll(polled, 2, poll_ms(deadline));

        if (n < 0 && errno != EINTR)
            return error_set_errno(err, -errno, "cannot wait for the connection");
        if (n > 0 && polled[1].revents)
            return error_set(err, -ECANCELED, "cancelled");
        if (n > 0 && polled[0].revents)
            return 0;
        if (n == 0 && poll_ms(deadline) == 0)
            return error_set(err, -ETIMEDOUT, "the other side was silent for %.1f s",
                             (double)timeout_ns / NS_PER_S);
    }
}

int channel_await(struct channel *channel, uint64_t timeout_ns, struct ferry_error *err)
{
    uint64_t deadline = timeout_ns == CHANNEL_FOREVER ? CHANNEL_FOREVER : clock_now_ns() + timeout_ns;

    if (!channel->ops->readable)
        return channel_wait(channel, POLLIN, timeout_ns, err);
    while (!channel->ops->readable(channel)) {
        uint64_t now = clock_now_ns();
        uint64_t left = deadline == CHANNEL_FOREVER ? CHANNEL_FOREVER : now < deadline ? deadline - now : 0;
        int result = channel_wait(channel, POLLIN, left, err);

        if (result < 0)
            return result;
    }
    return 0;
}

/* Drops N moved bytes from the front. */
static void iov_advance(struct iovec **iov, int *count, size_t n)
{
    while (*count > 0 && n >= (*iov)->iov_len) {
        n -= (*iov)->iov_len;
        (*iov)++;
        (*count)--;
    }
    if (*count > 0) {
        (*iov)->iov_base = (uint8_t *)(*iov)->iov_base + n;
        (*iov)->iov_len -= n;
    }
}

/* One read that moved something, or -EAGAIN. */
static ssize_t try_read(struct channel *channel, const struct iovec *iov, int count, struct ferry_error *err)
{
    ssize_t n;

    do {
        n = channel->ops->readv(channel, iov, count < IOV_MAX ? count : IOV_MAX, err);
    } while (n == -EINTR);
    if (n == 0)
        return error_set(err, -EPIPE, "the other side closed the connection");
    if (n > 0)
        __atomic_fetch_add(&channel->bytes_in, (uint64_t)n, __ATOMIC_RELAXED);
    return n;
}

static ssize_t read_once(struct channel *channel, const struct iovec *iov, int count, uint64_t timeout_ns,
                         struct ferry_error *err)
{
    for (;;) {
        ssize_t n = try_read(channel, iov, count, err);
        int result;

        if (n != -EAGAIN)
            return n;
        result = channel_wait(channel, POLLIN, timeout_ns, err);
        if (result < 0)
            return result;
    }
}

int channel_readv(struct channel *channel, struct iovec *iov, int count, uint64_t timeout_ns,
                  struct ferry_error *err)
{
    iov_advance(&iov, &count, 0);
    while (count > 0) {
        ssize_t n = read_once(channel, iov, count, timeout_ns, err);

        if (n < 0)
            return (int)n;
        iov_advance(&iov, &count, (size_t)n);
    }
    return 0;
}

int channel_read(struct channel *channel, void *data, size_t size, uint64_t timeout_ns,
                 struct ferry_error *err)
{
    struct iovec iov = {.iov_base = data, .iov_len = size};

    return channel_readv(channel, &iov, 1, timeout_ns, err);
}

ssize_t channel_read_some(struct channel *channel, void *data, size_t size, uint64_t timeout_ns,
                          struct ferry_error *err)
{
    struct iovec iov = {.iov_base = data, .iov_len = size};

    return read_once(channel, &iov, 1, timeout_ns, err);
}

ssize_t channel_read_ready(struct channel *channel, void *data, size_t size, struct ferry_error *err)
{
    struct iovec iov = {.iov_base = data, .iov_len = size};

    return try_read(channel, &iov, 1, err);
}

bool channel_holds_data(struct channel *channel)
{
    return channel->ops->readable && channel->ops->readable(channel);
}

/* One write that moved something, or -EAGAIN. */
static ssize_t try_write(struct channel *channel, const struct iovec *iov, int count, struct ferry_error *err)
{
    ssize_t n;

    do {
        n = channel->ops->writev(channel, iov, count < IOV_MAX ? count : IOV_MAX, err);
    } while (n == -EINTR);
    if (n > 0)
        __atomic_fetch_add(&channel->bytes_out, (uint64_t)n, __ATOMIC_RELAXED);
    return n;
}

int channel_writev(struct channel *channel, struct iovec *iov, int count, struct ferry_error *err)
{
    iov_advance(&iov, &count, 0);
    while (count > 0) {
        ssize_t n = try_write(channel, iov, count, err);
        int result = n < 0 ? (int)n : 0;

        if (result == -EAGAIN)
            result = channel_wait(channel, POLLOUT, channel->write_ns, err);
        if (result < 0)
            return result;
        if (n > 0)
            iov_advance(&iov, &count, (size_t)n);
    }
    return 0;
}

ssize_t channel_write_ready(struct channel *channel, const void *data, size_t size, struct ferry_error *err)
{
    struct iovec iov = {.iov_base = (void *)data, .iov_len = size};

    return try_write(channel, &iov, 1, err);
}

uint64_t channel_bytes_in(const struct channel *channel)
{
    return __atomic_load_n(&channel->bytes_in, __ATOMIC_RELAXED);
}

uint64_t channel_bytes_out(const struct channel *channel)
{
    return __atomic_load_n(&channel->bytes_out, __ATOMIC_RELAXED);
}
