#include "engine/control.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/sock.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define LAST_WORDS_NS (NS_PER_S / 2)

void control_open(struct control *control, struct ferry_session *session, int fd)
{
    *control = (struct control){.session = session, .open = true};
    sock_tune(fd, (unsigned)(session->settings.peer_timeout_ns / NS_PER_MS), NULL);
    link_init(&control->link, fd, session->stop_fd, session->settings.peer_timeout_ns);
    session_add_channel(session, &control->link.channel);
}

void control_close(struct control *control)
{
    if (!control->open)
        return;
    session_remove_channel(control->session, &control->link.channel);
    link_close(&control->link);
    control->open = false;
}

/* Bytes did not get through, or made no sense. */
static int control_failed(struct control *control, int code, struct ferry_error *err)
{
    if (code == -ECANCELED)
        return session_check(control->session, err) < 0 ? session_check(control->session, err) : code;
    if (code == -EBADMSG) {
        error_prefix(err, code, "the other side does not keep to the protocol");
        return session_fail(control->session, FERRY_CAUSE_NETWORK, code, err);
    }
    if (code == -ENOMEM)
        return session_fail(control->session, FERRY_CAUSE_MEMORY, code, err);
    return session_fail_network(control->session, code, err);
}

int control_refuse(struct control *control, int code, struct ferry_error *err)
{
    return control_failed(control, code, err);
}

int control_send(struct control *control, enum wire_type type, uint8_t flags, const struct buffer *body,
                 struct ferry_error *err)
{
    struct ferry_error why = {0};
    int result = link_send(&control->link, type, flags, body, &why);

    if (result < 0) {
        result = control_failed(control, result, &why);
        error_set(err, result, "%s", why.text);
    }
    return result;
}

int control_receive(struct control *control, struct frame *frame, uint64_t timeout_ns,
                    struct ferry_error *err)
{
    struct ferry_error why = {0};
    int result;

    do {
        result = link_receive(&control->link, frame, timeout_ns, &why);
        if (result < 0)
            break;
        if (frame->type == WIRE_ABORT) {
            struct wire_reason reason;

            result = wire_reason_decode(&frame->body, &reason, &why);
            if (result < 0)
                break;
            control->peer_ended = true;
            return session_fail_by_peer(control->session, reason.cause, reason.text, err);
        }
    } while (frame->type == WIRE_KEEPALIVE);
    if (result < 0) {
        result = control_failed(control, result, &why);
        error_set(err, result, "%s", why.text);
    }
    return result;
}

int control_expect(struct control *control, enum wire_type type, struct frame *frame, uint64_t timeout_ns,
                   struct ferry_error *err)
{
    struct ferry_error why = {0};
    int result = control_receive(control, frame, timeout_ns, err);

    if (result == 0 && frame->type != type) {
        error_set(&why, -EBADMSG, "%s frame where %s was expected", wire_type_name((uint8_t)frame->type),
                  wire_type_name((uint8_t)type));
        result = control_failed(control, -EBADMSG, &why);
        error_set(err, result, "%s", why.text);
    }
    return result;
}

/* The peer may have said why before the connection broke. */
static void listen_for_reason(struct control *control)
{
    struct frame frame;
    uint64_t deadline = clock_now_ns() + LAST_WORDS_NS;

    while (clock_now_ns() < deadline) {
        if (link_receive(&control->link, &frame, LAST_WORDS_NS, NULL) < 0)
            return;
        if (frame.data > 0)
            return;
        if (frame.type == WIRE_ABORT || frame.type == WIRE_NOT_RUNNING) {
            struct wire_reason reason;

            if (wire_reason_decode(&frame.body, &reason, NULL) == 0) {
                control->peer_ended = true;
                session_fail_by_peer(control->session, reason.cause, reason.text, NULL);
            }
            return;
        }
    }
}

/* Lets the peer read what was sent: closing with unread bytes would reset the connection. */
static void drain(struct control *control)
{
    uint64_t deadline = clock_now_ns() + LAST_WORDS_NS;
    uint8_t bytes[4096];

    shutdown(control->link.channel.fd, SHUT_WR);
    while (clock_now_ns() < deadline) {
        struct iovec iov = {.iov_base = bytes, .iov_len = 1};

        if (channel_readv(&control->link.channel, &iov, 1, LAST_WORDS_NS, NULL) < 0)
            return;
        while (control->link.channel.ops->readv(&control->link.channel,
                                                &(struct iovec){.iov_base = bytes, .iov_len = sizeof(bytes)},
                                                1) > 0)
            continue;
    }
}

void control_end_failed(struct control *control, enum wire_type type)
{
    struct ferry_session *session = control->session;
    struct wire_reason reason = {.cause = FERRY_CAUSE_INTERNAL};
    struct buffer body = BUFFER_INIT;
    bool listen;

    if (!control->open || control->peer_ended)
        return;
    control->link.channel.cancel_fd = -1;
    control->link.channel.read_ns = control->link.channel.write_ns = LAST_WORDS_NS;

    pthread_mutex_lock(&session->lock);
    listen = session->local_network;
    pthread_mutex_unlock(&session->lock);
    if (listen)
        listen_for_reason(control);
    if (control->peer_ended)
        return;

    pthread_mutex_lock(&session->lock);
    reason.cause = session->cause;
    memcpy(reason.text, session->failure.text, sizeof(reason.text));
    pthread_mutex_unlock(&session->lock);
    buffer_clear(&control->link.out);
    wire_reason_encode(&body, &reason);
    if (link_send(&control->link, type, 0, &body, NULL) == 0)
        drain(control);
    buffer_free(&body);
}
