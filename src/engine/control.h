/*
 * The control connection's conversation: sending, waiting for the frame that must come next, and saying
 * goodbye when the session fails so that both sides' records have the reason.
 *
 * Signs of life. Who waits gives the peer up when nothing came for the peer timeout. So who is waited for,
 * and has nothing to say yet, says KEEPALIVE several times within that: while it waits itself
 * (control_await), between the parts of long work (control_tick), and during a step that cannot be
 * interrupted, for as long as that may take (pulse.h). A thread that hangs says nothing.
 *
 * Session thread only, but for a pulse. All failures are recorded in the session.
 */
#ifndef FERRY_ENGINE_CONTROL_H
#define FERRY_ENGINE_CONTROL_H

#include "engine/link.h"
#include "engine/session.h"

struct control {
    struct ferry_session *session;
    struct link link;
    bool open;
    bool peer_ended;     /* its last word was ABORT, NOT_RUNNING or Restore-Failure, or ours was */
    uint64_t spoken_ns;  /* when we said something last */
    uint64_t excused_ns; /* the peer's KEEPALIVEs alone are good enough until then; 0: always */
};

/* Takes *CHANNEL over, which is copied. */
void control_open(struct control *control, struct ferry_session *session, const struct channel *channel);
void control_close(struct control *control);

int control_send(struct control *control, enum wire_type type, uint8_t flags, const struct buffer *body,
                 struct ferry_error *err);

/* KEEPALIVE, unless we have said something within the interval. */
int control_tick(struct control *control, struct ferry_error *err);
/* Time between two signs of life. Independent of the peer's own timeout, which may be shorter than ours. */
uint64_t control_interval_ns(const struct control *control);

/* The next frame that is not KEEPALIVE; ABORT is a failure with the peer's words, and so is the peer's
 * silence: the time counts from the last frame of any kind. */
int control_receive(struct control *control, struct frame *frame, struct ferry_error *err);
/* As control_receive, saying meanwhile that this side lives. Not for what may be followed by the peer's
 * closing: words that it has not read could cost us its last ones. */
int control_await(struct control *control, struct frame *frame, struct ferry_error *err);
/* As control_receive; any other type than TYPE is a failure. */
int control_expect(struct control *control, enum wire_type type, struct frame *frame,
                   struct ferry_error *err);
/* The peer is in a step that takes at most so long. It may say nothing but KEEPALIVE until then. */
void control_excuse(struct control *control, uint64_t limit_ns);
/* The peer has said nothing for its time: the session's failure. */
int control_silent(struct control *control, struct ferry_error *err);
/* A frame made no sense: records it. Returns code. */
int control_refuse(struct control *control, int code, struct ferry_error *err);

/*
 * After a failure: when it is only that the network failed here, listens shortly for the peer's reason; then
 * tells the peer ours (TYPE is ABORT or NOT_RUNNING) and lets it read that. Bounded by half a second each.
 */
void control_end_failed(struct control *control, enum wire_type type);

#endif
