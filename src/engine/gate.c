#include "engine/gate.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/sock.h"
#include "engine/channel_tls.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define HELLO_TIMEOUT_NS (3 * NS_PER_S)
/* How long who was turned away may take to read why. */
#define LEAVE_TIMEOUT_NS (NS_PER_S)
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

/* Takes a pending connection out of the list; it is the caller's. */
static void gate_take(struct gate *gate, size_t index, struct gate_pending *out)
{
    *out = gate->pending[index];
    gate->count--;
    memmove(&gate->pending[index], &gate->pending[index + 1],
            (gate->count - index) * sizeof(gate->pending[0]));
}

static void gate_close_one(struct gate *gate, size_t index)
{
    struct gate_pending pending;

    gate_take(gate, index, &pending);
    tls_stream_free(pending.tls);
    channel_close(&pending.channel);
}

/* The newest in the list, initialised but for its channel. */
static struct gate_pending *gate_add(struct gate *gate)
{
    struct gate_pending *pending;

    if (gate->count == GATE_PENDING_MAX)
        gate_close_one(gate, 0);
    pending = &gate->pending[gate->count++];
    memset(pending, 0, offsetof(struct gate_pending, bytes));
    pending->events = POLLIN;
    pending->deadline_ns = clock_now_ns() + HELLO_TIMEOUT_NS;
    return pending;
}

static void gate_log_stranger(struct gate *gate, int fd, const char *why)
{
    char address[SOCK_ADDRESS_SIZE] = "somewhere";

    if (gate->strangers++ >= STRANGERS_LOGGED)
        return;
    sock_peer_address(fd, address, NULL);
    session_log(gate->session, FERRY_LOG_WARN,
                "Dropped a connection from %s while waiting for the migration: %s", address, why);
}

/* It may still read what it was told: closed with unread bytes of its own, it would be reset. */
static void gate_let_leave(struct gate_pending *pending)
{
    if (pending->tls) {
        tls_stream_free(pending->tls);
        pending->tls = NULL;
    }
    channel_finish(&pending->channel);
    pending->leaving = true;
    pending->events = POLLIN;
    pending->deadline_ns = clock_now_ns() + LEAVE_TIMEOUT_NS;
}

static void gate_drop(struct gate *gate, size_t index, const char *why)
{
    gate_log_stranger(gate, gate->pending[index].channel.fd, why);
    gate_let_leave(&gate->pending[index]);
}

void gate_close(struct gate *gate)
{
    while (gate->count > 0)
        gate_close_one(gate, gate->count - 1);
}

/* ABORT in one write that does not wait: it is gone or does not listen, or it has it. */
static void say_abort(struct channel *channel, enum ferry_cause cause, const char *why)
{
    struct wire_reason reason = {.cause = cause};
    struct buffer body = BUFFER_INIT;
    struct buffer frame = BUFFER_INIT;

    snprintf(reason.text, sizeof(reason.text), "%s", why);
    wire_reason_encode(&body, &reason);
    wire_frame_put(&frame, WIRE_ABORT, 0, 1, body.data, body.size);
    if (!buffer_failed(&body) && !buffer_failed(&frame))
        channel->ops->writev(channel, &(struct iovec){.iov_base = frame.data, .iov_len = frame.size}, 1,
                             NULL);
    buffer_free(&body);
    buffer_free(&frame);
}

void gate_turn_away(struct gate *gate, struct channel *channel, enum ferry_cause cause, const char *why)
{
    struct gate_pending *pending = gate_add(gate);

    say_abort(channel, cause, why);
    pending->channel = *channel;
    gate_let_leave(pending);
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

/* Until it closes, or has had its time. False: it is gone. */
static bool pending_drain(struct gate_pending *pending)
{
    uint8_t bytes[512];
    ssize_t n = recv(pending->channel.fd, bytes, sizeof(bytes), MSG_DONTWAIT);

    return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

/* In the clear or encrypted, as the session is? 1: it is; 0: nothing has come yet; negative: it is not. */
static int pending_recognise(struct gate *gate, struct gate_pending *pending, struct ferry_error *err)
{
    struct ferry_session *session = gate->session;
    char words[FERRY_ERROR_TEXT_SIZE];
    uint8_t first;
    ssize_t n = recv(pending->channel.fd, &first, 1, MSG_PEEK | MSG_DONTWAIT);
    bool encrypted = n == 1 && first == TLS_FIRST_BYTE;

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n <= 0 || encrypted == (session->settings.credentials != NULL)) {
        pending->known = true; /* its end is found by reading */
        return 1;
    }
    if (encrypted)
        error_set(err, -EPROTONOSUPPORT, "it speaks TLS, but host %s does not encrypt this migration",
                  session->handover.destination);
    else
        error_set(err, -EPROTONOSUPPORT, "it does not speak TLS, but host %s encrypts this migration",
                  session->handover.destination);
    snprintf(words, sizeof(words), "host %s %s this migration; the source does%s",
             session->handover.destination, encrypted ? "does not encrypt" : "encrypts",
             encrypted ? "" : " not");
    say_abort(&pending->channel, FERRY_CAUSE_NETWORK, words);
    return -EPROTONOSUPPORT;
}

/* 1: the channel is encrypted now. */
static int pending_shake_hands(struct gate *gate, struct gate_pending *pending, struct ferry_error *err)
{
    const struct session_settings *settings = &gate->session->settings;
    struct channel *channel = &pending->channel;
    int result = 0;

    if (!pending->tls)
        result = tls_stream_new(&pending->tls, settings->credentials, channel->fd, TLS_SERVER,
                                gate->session->handover.source, err);
    if (result == 0)
        result = tls_stream_handshake(pending->tls, &pending->events, err);
    if (result == 1) {
        channel_init_tls(channel, pending->tls, channel->fd, channel->cancel_fd, settings->peer_timeout_ns);
        pending->tls = NULL;
        pending->events = POLLIN;
    }
    return result;
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

        struct iovec iov = {.iov_base = pending->bytes + pending->have, .iov_len = want - pending->have};
        ssize_t n = pending->channel.ops->readv(&pending->channel, &iov, 1, err);

        if (n == -EINTR)
            continue;
        if (n == -EAGAIN)
            return 0;
        if (n < 0)
            return (int)n;
        if (n == 0)
            return error_set(err, -EPIPE, "it closed without saying who it is");
        pending->have += (size_t)n;
    }
}

/* As pending_read, from the first byte on. */
static int pending_advance(struct gate *gate, struct gate_pending *pending, struct wire_hello *hello,
                           struct ferry_error *err)
{
    int result = 1;

    if (!pending->known)
        result = pending_recognise(gate, pending, err);
    if (result == 1 && gate->session->settings.credentials && !pending->channel.tls)
        result = pending_shake_hands(gate, pending, err);
    return result == 1 ? pending_read(pending, hello, err) : result;
}

/* 1: an awaited one is in HELLO and CHANNEL. */
static int pending_look(struct gate *gate, size_t index, struct wire_hello *hello, struct channel *channel,
                        struct ferry_error *err)
{
    struct ferry_error why = {0};
    struct gate_pending taken;
    int result;

    if (gate->pending[index].leaving) {
        if (!pending_drain(&gate->pending[index]))
            gate_close_one(gate, index);
        return 0;
    }
    result = pending_advance(gate, &gate->pending[index], hello, &why);
    if (result == 0)
        return 0;
    if (result < 0) {
        gate_drop(gate, index, why.text);
        return 0;
    }
    gate_take(gate, index, &taken);
    if (!is_awaited(gate->session, hello)) {
        session_log(gate->session, FERRY_LOG_WARN,
                    "Turned away a migration that is not the one awaited: wrong id or token");
        gate_turn_away(gate, &taken.channel, FERRY_CAUSE_NETWORK,
                       "this is not the migration that is awaited here (wrong id or token)");
        return 0;
    }
    if (hello->version == 0) {
        error_set(
            err, -EPROTONOSUPPORT,
            "the source speaks migration protocol versions %u to %u, this host %d to %d: update the older "
            "of the two",
            hello->version_min, hello->version_max, WIRE_VERSION_MIN, WIRE_VERSION_MAX);
        gate_turn_away(gate, &taken.channel, FERRY_CAUSE_VERSION, err->text);
        return -EPROTONOSUPPORT;
    }
    *channel = taken.channel;
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
        if (gate->count == GATE_PENDING_MAX && !gate->pending[0].leaving)
            gate_log_stranger(gate, gate->pending[0].channel.fd, "too many connections at once");
        channel_init_socket(&gate_add(gate)->channel, fd, gate->session->stop_fd,
                            gate->session->settings.peer_timeout_ns);
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
        polled[3 + i] = (struct pollfd){.fd = gate->pending[i].channel.fd, .events = gate->pending[i].events};
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

/* Who had his time. */
static void gate_expire(struct gate *gate)
{
    uint64_t now = clock_now_ns();

    for (size_t i = gate->count; i-- > 0;) {
        if (gate->pending[i].deadline_ns > now)
            continue;
        if (!gate->pending[i].leaving)
            gate_log_stranger(gate, gate->pending[i].channel.fd, "it did not say who it is");
        gate_close_one(gate, i);
    }
}

int gate_admit(struct gate *gate, int watch_fd, uint64_t deadline_ns, struct wire_hello *hello,
               struct channel *channel, struct ferry_error *err)
{
    int listen_fd = gate->session->settings.listen_fd;

    fcntl(listen_fd, F_SETFL, fcntl(listen_fd, F_GETFL) | O_NONBLOCK);
    for (;;) {
        bool accepting = gate_accept(gate);

        for (size_t i = gate->count; i-- > 0;) {
            int result = pending_look(gate, i, hello, channel, err);

            if (result != 0)
                return result < 0 ? result : 0;
        }
        gate_expire(gate);

        int result = gate_wait(gate, watch_fd, deadline_ns, accepting, err);

        if (result < 0)
            return result;
    }
}
