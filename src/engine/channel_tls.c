#include "engine/channel_tls.h"

#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

static ssize_t tls_readv(struct channel *channel, const struct iovec *iov, int count, struct ferry_error *err)
{
    return tls_stream_readv(channel->tls, iov, count, err);
}

static ssize_t tls_writev(struct channel *channel, const struct iovec *iov, int count,
                          struct ferry_error *err)
{
    return tls_stream_writev(channel->tls, iov, count, err);
}

static bool tls_readable(struct channel *channel)
{
    return tls_stream_readable(channel->tls);
}

/* Only the socket: another thread may hold the stream's lock while it reads or writes. */
static void tls_shutdown(struct channel *channel)
{
    shutdown(channel->fd, SHUT_RDWR);
}

static void tls_finish(struct channel *channel)
{
    tls_stream_finish(channel->tls);
    shutdown(channel->fd, SHUT_WR);
}

static void tls_close(struct channel *channel)
{
    tls_stream_free(channel->tls);
    channel->tls = NULL;
    close(channel->fd);
}

static const struct channel_ops channel_tls_ops = {
    .name = "tls",
    .readv = tls_readv,
    .writev = tls_writev,
    .readable = tls_readable,
    .shutdown = tls_shutdown,
    .finish = tls_finish,
    .close = tls_close,
};

void channel_init_tls(struct channel *channel, struct tls_stream *tls, int fd, int cancel_fd,
                      uint64_t timeout_ns)
{
    channel_init_socket(channel, fd, cancel_fd, timeout_ns);
    channel->ops = &channel_tls_ops;
    channel->tls = tls;
}

/* The whole handshake has so much time: who answers a byte now and then is not good enough. */
static int shake_hands(struct channel *channel, struct tls_stream *tls, uint64_t timeout_ns,
                       struct ferry_error *err)
{
    uint64_t deadline = clock_now_ns() + timeout_ns;

    for (;;) {
        short events = 0;
        int result = tls_stream_handshake(tls, &events, err);
        uint64_t now = clock_now_ns();

        if (result != 0)
            return result < 0 ? result : 0;
        result = channel_wait(channel, events, now < deadline ? deadline - now : 0, err);
        if (result < 0)
            return result == -ECANCELED ? result : error_prefix(err, result, "during the TLS handshake");
    }
}

int channel_start_tls(struct channel *channel, const struct ferry_credentials *credentials, const char *peer,
                      uint64_t timeout_ns, struct ferry_error *err)
{
    struct tls_stream *tls = NULL;
    int result = tls_stream_new(&tls, credentials, channel->fd, TLS_CLIENT, peer, err);

    if (result == 0)
        result = shake_hands(channel, tls, timeout_ns, err);
    if (result < 0) {
        tls_stream_free(tls);
        return result;
    }
    channel->ops = &channel_tls_ops;
    channel->tls = tls;
    return 0;
}

char *channel_describe_encryption(const struct channel *channel, char text[static TLS_STREAM_TEXT_SIZE])
{
    text[0] = '\0';
    return channel->tls ? tls_stream_describe(channel->tls, text) : text;
}
