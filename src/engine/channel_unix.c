#include "engine/channel.h"

#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Room for the descriptors of one message. */
union control_room {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(CHANNEL_DESCRIPTORS_MAX * sizeof(int))];
};

/* Takes over the descriptors of one control message. False when there are too many; then none stays open. */
static bool keep_descriptors(struct channel *channel, const struct cmsghdr *control)
{
    size_t count = (control->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    bool fits = channel->descriptor_count + count <= CHANNEL_DESCRIPTORS_MAX;

    for (size_t i = 0; i < count; i++) {
        int fd;

        memcpy(&fd, CMSG_DATA(control) + i * sizeof(int), sizeof(fd));
        if (fits)
            channel->descriptors[channel->descriptor_count++] = fd;
        else
            close(fd);
    }
    return fits;
}

static ssize_t unix_readv(struct channel *channel, const struct iovec *iov, int count,
                          struct ferry_error *err)
{
    union control_room room;
    struct msghdr message = {
        .msg_iov = (struct iovec *)iov,
        .msg_iovlen = (size_t)count,
        .msg_control = &room,
        .msg_controllen = sizeof(room),
    };
    ssize_t n = recvmsg(channel->fd, &message, MSG_CMSG_CLOEXEC);
    bool fits = true;

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return -errno;
    if (n < 0)
        return error_set_errno(err, -errno, "the connection broke");
    for (struct cmsghdr *control = CMSG_FIRSTHDR(&message); control; control = CMSG_NXTHDR(&message, control))
        if (control->cmsg_level == SOL_SOCKET && control->cmsg_type == SCM_RIGHTS)
            fits &= keep_descriptors(channel, control);
    if (fits && !(message.msg_flags & MSG_CTRUNC))
        return n;
    return error_set(err, -EBADMSG, "more descriptors came than there can be");
}

static ssize_t unix_writev(struct channel *channel, const struct iovec *iov, int count,
                           struct ferry_error *err)
{
    return channel_socket_ops.writev(channel, iov, count, err);
}

static void unix_shutdown(struct channel *channel)
{
    channel_socket_ops.shutdown(channel);
}

static void unix_finish(struct channel *channel)
{
    channel_socket_ops.finish(channel);
}

static void unix_close(struct channel *channel)
{
    channel_socket_ops.close(channel);
}

const struct channel_ops channel_unix_ops = {
    .name = "unix",
    .readv = unix_readv,
    .writev = unix_writev,
    .shutdown = unix_shutdown,
    .finish = unix_finish,
    .close = unix_close,
};

void channel_accept_descriptors(struct channel *channel)
{
    channel->ops = &channel_unix_ops;
}

int channel_pass(struct channel *channel, const void *data, size_t size, const int *fds, size_t count,
                 struct ferry_error *err)
{
    union control_room room = {0};
    struct iovec first = {.iov_base = (void *)data, .iov_len = 1};
    struct iovec rest = {.iov_base = (uint8_t *)data + 1, .iov_len = size - 1};
    struct msghdr message = {
        .msg_iov = &first,
        .msg_iovlen = 1,
        .msg_control = &room,
        .msg_controllen = CMSG_SPACE(count * sizeof(int)),
    };
    struct cmsghdr *control = CMSG_FIRSTHDR(&message);
    ssize_t n;

    assert(size > 0 && count > 0 && count <= CHANNEL_DESCRIPTORS_MAX);
    control->cmsg_level = SOL_SOCKET;
    control->cmsg_type = SCM_RIGHTS;
    control->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(control), fds, count * sizeof(int));
    do {
        n = sendmsg(channel->fd, &message, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            int result = channel_wait(channel, POLLOUT, channel->write_ns, err);

            if (result < 0)
                return result;
        }
    } while (n < 0 && (errno == EAGAIN || errno == EINTR));
    if (n < 0)
        return error_set_errno(err, -errno, "descriptors cannot be passed");
    __atomic_fetch_add(&channel->bytes_out, 1, __ATOMIC_RELAXED);
    return channel_writev(channel, &rest, 1, err);
}

size_t channel_take_descriptors(struct channel *channel, int fds[static CHANNEL_DESCRIPTORS_MAX])
{
    size_t count = channel->descriptor_count;

    memcpy(fds, channel->descriptors, count * sizeof(fds[0]));
    channel->descriptor_count = 0;
    return count;
}
