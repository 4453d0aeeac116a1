#include "engine/control.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/sock.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define LAST_WORDS_NS (NS_PER_S / 2)
/* At most between two signs of life; the shortest peer timeout of a ferryd is four times that. */
#define INTERVAL_MAX_NS (250 * NS_PER_MS)

void control_open(struct control *control, struct ferry_session *session, const struct channel *channel)
{
    *control = (struct control){.session = session, .open = true};
    sock_tune(channel->fd, (unsigned)(session->settings.peer_timeout_ns / NS_PER_MS), NULL);
    link_init_channel(&control->link, channel);
    session_note_encryption(session, channel);
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

    control->spoken_ns = clock_now_ns();
    if (result < 0) {
        result = control_failed(control, result, &why);
        error_set(err, result, "%s", why.text);
    }
    return result;
}

uint64_t control_interval_ns(const struct control *control)
{
    uint64_t quarter = control->session->settings.peer_timeout_ns / 4;

    return quarter < INTERVAL_MAX_NS ? quarter : INTERVAL_MAX_NS;
}

int control_tick(struct control *control, struct ferry_error *err)
{
    if (clock_now_ns() - control->spoken_ns < control_interval_ns(control))
        return 0;
    return control_send(control, WIRE_KEEPALIVE, 0, NULL, err);
}

int control_silent(struct control *control, struct ferry_error *err)
{
    uint64_t timeout_ns = control->session->settings.peer_timeout_ns;
    struct ferry_error why = {0};
    int result =
        error_set(&why, -ETIMEDOUT, "the other side was silent for %.1f s", (double)timeout_ns / NS_PER_S);

    error_set(err, result, "%s", why.text);
    return session_fail_network(control->session, result, &why);
}

void control_excuse(struct control *control, uint64_t limit_ns)
{
    control->excused_ns = clock_now_ns() + limit_ns;
}

/* The peer lives, and says nothing else. */
static int bear_with(struct control *control, struct ferry_error *err)
{
    struct ferry_error why = {0};
    int result;

    if (control->excused_ns == 0 || clock_now_ns() < control->excused_ns)
        return 0;
    result = error_set(&why, -ETIMEDOUT, "the other side lives, but takes longer than it said it would");
    error_set(err, result, "%s", why.text);
    return session_fail_network(control->session, result, &why);
}

/* Until something comes. */
static int talk_until_news(struct control *control, struct ferry_error *err)
{
    uint64_t deadline = clock_now_ns() + control->session->settings.peer_timeout_ns;

    for (;;) {
        struct ferry_error why = {0};
        uint64_t now = clock_now_ns();
        uint64_t left = now < deadline ? deadline - now : 0;
        uint64_t interval = control_interval_ns(control);
        int result = channel_await(&control->link.channel, left < interval ? left : interval, &why);

        if (result == -ETIMEDOUT && left <= interval)
            return control_silent(control, err);
        if (result == -ETIMEDOUT)
            result = control_tick(control, err);
        else if (result < 0)
            result = error_set(err, control_failed(control, result, &why), "%s", why.text);
        else
            return 0;
        if (result < 0)
            return result;
    }
}

/* One frame that is not KEEPALIVE. */
static int receive(struct control *control, struct frame *frame, bool talk, struct ferry_error *err)
{
    struct ferry_error why = {0};
    int result;

    do {
        result = talk ? talk_until_news(control, err) : 0;
        if (result < 0)
            return result;
        result = link_receive(&control->link, frame, control->session->settings.peer_timeout_ns, &why);
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
        if (frame->type == WIRE_KEEPALIVE && bear_with(control, err) < 0)
            return -ETIMEDOUT;
    } while (frame->type == WIRE_KEEPALIVE);
    if (result < 0) {
        result = control_failed(control, result, &why);
        error_set(err, result, "%s", why.text);
    }
    control->excused_ns = 0;
    return result;
}

int control_receive(struct control *control, struct frame *frame, struct ferry_error *err)
{
    return receive(control, frame, false, err);
}

int control_await(struct control *control, struct frame *frame, struct ferry_error *err)
{
    return receive(control, frame, true, err);
}

int control_expect(struct control *control, enum wire_type type, struct frame *frame, struct ferry_error *err)
{
    struct ferry_error why = {0};
    int result = control_receive(control, frame, err);

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

    channel_finish(&control->link.channel);
    while (clock_now_ns() < deadline) {
        if (channel_read_some(&control->link.channel, bytes, sizeof(bytes), LAST_WORDS_NS, NULL) < 0)
            return;
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
