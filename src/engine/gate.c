#include "engine/gate.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/sock.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define HELLO_TIMEOUT_NS (3 * NS_PER_S)
/* More strangers than this are dropped without a line in the log. */
#define STRANGERS_LOGGED 20
/* How long accepting rests when the process has no descriptors left. */
#define ACCEPT_RETRY_NS (100 * NS_PER_MS)

void gate_init(struct gate *gate, struct ferry_session *session)
{
    gate->session = session;
    gate->count = 0;
    gate->strangers = 0;
}

/* Takes a pending connection out of the list; its descriptor is the caller's. */
static int gate_take(struct gate *gate, size_t index)
{
    int fd = gate->pending[index].fd;

    gate->count--;
    memmove(&gate->pending[index], &gate->pending[index + 1],
            (gate->count - index) * sizeof(gate->pending[0]));
    return fd;
}

static void gate_drop(struct gate *gate, size_t index, const char *why)
{
    char address[SOCK_ADDRESS_SIZE] = "somewhere";
    int fd = gate_take(gate, index);

    sock_peer_address(fd, address, NULL);
    close(fd);
    if (gate->strangers++ < STRANGERS_LOGGED)
        session_log(gate->session, FERRY_LOG_WARN,
                    "Dropped a connection from %s while waiting for the migration: %s", address, why);
}

void gate_close(struct gate *gate)
{
    while (gate->count > 0)
        close(gate_take(gate, gate->count - 1));
}

void gate_turn_away(int fd, enum ferry_cause cause, const char *why)
{
    struct wire_reason reason = {.cause = cause};
    struct buffer body = BUFFER_INIT;
    struct buffer frame = BUFFER_INIT;

    snprintf(reason.text, sizeof(reason.text), "%s", why);
    wire_reason_encode(&body, &reason);
    wire_frame_put(&frame, WIRE_ABORT, 0, 1, body.data, body.size);
    if (!buffer_failed(&body) && !buffer_failed(&frame) &&
        send(fd, frame.data, frame.size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
        /* It is gone or does not listen: nothing lost. */
    }
    buffer_free(&body);
    buffer_free(&frame);
    close(fd);
}

/* Takes as long whatever is wrong, so that time tells nothing of the secret. */
static bool is_awaited(const struct ferry_session *session, const struct wire_hello *hello)
{
    unsigned difference = 0;

    for (size_t i = 0; i < FERRY_TOKEN_SIZE; i++)
        difference |= session->settings.token[i] ^ hello->token[i];
    for (size_t i = 0; i < FERRY_ID_SIZE; i++)
        difference |=
            (unsigned char)session->handover.migration_id[i] ^ (unsigned char)hello->migration_id[i];
    return difference == 0;
}

/* Reads what is there, never more than the HELLO. 1: it is complete and decoded; 0: not yet; negative: not
 * one of ours. */
static int pending_read(struct gate_pending *pending, struct wire_hello *hello, struct ferry_error *err)
{
    for (;;) {
        struct wire_header header;
        size_t want = WIRE_HEADER_SIZE;

        if (pending->have >= WIRE_HEADER_SIZE) {
            int result = wire_header_decode(pending->bytes, &header, err);

            if (result < 0)
                return result;
            if (header.type != WIRE_HELLO || header.sequence != 1)
                return error_set(err, -EBADMSG, "it began with a %s frame", wire_type_name(header.type));
            want += header.length;
            if (pending->have == want) {
                result = wire_body_check(pending->bytes, &header, pending->bytes + WIRE_HEADER_SIZE, err);
                if (result < 0)
                    return result;

                struct reader body = reader_init(pending->bytes + WIRE_HEADER_SIZE, header.length);

                result = wire_hello_decode(&body, hello, err);
                return result < 0 ? result : 1;
            }
        }

        ssize_t n = recv(pending->fd, pending->bytes + pending->have, want - pending->have, MSG_DONTWAIT);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return 0;
        if (n < 0)
            return error_set_errno(err, -errno, "its connection broke");
        if (n == 0)
            return error_set(err, -EPIPE, "it closed without saying who it is");
        pending->have += (size_t)n;
    }
}

/* 1: an awaited one is in HELLO and FD. */
static int pending_look(struct gate *gate, size_t index, struct wire_hello *hello, int *fd,
                        struct ferry_error *err)
{
    struct ferry_error why = {0};
    int result = pending_read(&gate->pending[index], hello, &why);

    if (result == 0)
        return 0;
    if (result < 0) {
        gate_drop(gate, index, why.text);
        return 0;
    }
    if (!is_awaited(gate->session, hello)) {
        session_log(gate->session, FERRY_LOG_WARN,
                    "Turned away a migration that is not the one awaited: wrong id or token");
        gate_turn_away(gate_take(gate, index), FERRY_CAUSE_NETWORK,
                       "this is not the migration that is awaited here (wrong id or token)");
        return 0;
    }
    *fd = gate_take(gate, index);
    if (hello->version == 0) {
        error_set(
            err, -EPROTONOSUPPORT,
            "the source speaks migration protocol versions %u to %u, this host %d to %d: update the older "
            "of the two",
            hello->version_min, hello->version_max, WIRE_VERSION_MIN, WIRE_VERSION_MAX);
        gate_turn_away(*fd, FERRY_CAUSE_VERSION, err->text);
        *fd = -1;
        return -EPROTONOSUPPORT;
    }
    return 1;
}

/* Accepts all that wait. False when the process is out of descriptors: try again a little later. */
static bool gate_accept(struct gate *gate)
{
    for (;;) {
        int fd = accept4(gate->session->settings.listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
            continue;
        if (fd < 0)
            return errno == EAGAIN;
        if (gate->count == GATE_PENDING_MAX)
            gate_drop(gate, 0, "too many connections at once");

        struct gate_pending *pending = &gate->pending[gate->count++];

        pending->fd = fd;
        pending->have = 0;
        pending->deadline_ns = clock_now_ns() + HELLO_TIMEOUT_NS;
        if (gate->count == GATE_PENDING_MAX)
            return true; /* look at these first */
    }
}

static int left_ms(uint64_t now, uint64_t deadline)
{
    uint64_t ms = deadline <= now ? 0 : (deadline - now + NS_PER_MS - 1) / NS_PER_MS;

    return ms > INT_MAX ? INT_MAX : (int)ms;
}

/* Waits for something to happen. Readable events of pending connections are looked for by reading them. */
static int gate_wait(struct gate *gate, int watch_fd, uint64_t deadline_ns, bool accepting,
                     struct ferry_error *err)
{
    struct pollfd polled[3 + GATE_PENDING_MAX];
    uint64_t now = clock_now_ns();
    uint64_t until = accepting ? deadline_ns : now + ACCEPT_RETRY_NS;

    if (now >= deadline_ns)
        return error_set(err, -ETIMEDOUT, "the source did not connect in time");
    polled[0] = (struct pollfd){.fd = gate->session->stop_fd, .events = POLLIN};
    polled[1] = (struct pollfd){.fd = watch_fd, .events = POLLRDHUP};
    polled[2] = (struct pollfd){.fd = accepting ? gate->session->settings.listen_fd : -1, .events = POLLIN};
    for (size_t i = 0; i < gate->count; i++) {
        polled[3 + i] = (struct pollfd){.fd = gate->pending[i].fd, .events = POLLIN};
        if (gate->pending[i].deadline_ns < until)
            until = gate->pending[i].deadline_ns;
    }
    if (poll(polled, 3 + gate->count, left_ms(now, until)) < 0 && errno != EINTR)
        return error_set_errno(err, -errno, "cannot wait for connections");
    if (polled[0].revents)
        return error_set(err, -ECANCELED, "cancelled");
    if (polled[1].revents)
        return error_set(err, -ENOTCONN, "the source gave up");
    if (polled[2].revents & (POLLERR | POLLNVAL | POLLHUP))
        return error_set(err, -EBADF, "the listening socket is not usable");
    return 0;
}

int gate_admit(struct gate *gate, int watch_fd, uint64_t deadline_ns, struct wire_hello *hello, int *fd,
               struct ferry_error *err)
{
    int listen_fd = gate->session->settings.listen_fd;

    fcntl(listen_fd, F_SETFL, fcntl(listen_fd, F_GETFL) | O_NONBLOCK);
    for (;;) {
        bool accepting = gate_accept(gate);

        for (size_t i = gate->count; i-- > 0;) {
            int result = pending_look(gate, i, hello, fd, err);

            if (result != 0)
                return result < 0 ? result : 0;
        }

        uint64_t now = clock_now_ns();

        while (gate->count > 0 && gate->pending[0].deadline_ns <= now)
            gate_drop(gate, 0, "it did not say who it is");

        int result = gate_wait(gate, watch_fd, deadline_ns, accepting, err);

        if (result < 0)
            return result;
    }
}
