/*
 * The control connection's conversation: sending, waiting for the frame that must come next, and saying
 * goodbye when the session fails so that both sides' records have the reason.
 *
 * Session thread only. All failures are recorded in the session.
 */
#ifndef FERRY_ENGINE_CONTROL_H
#define FERRY_ENGINE_CONTROL_H

#include "engine/link.h"
#include "engine/session.h"

struct control {
    struct ferry_session *session;
    struct link link;
    bool open;
    bool peer_ended; /* its last word was ABORT, NOT_RUNNING or Restore-Failure, or ours was */
};

/* Takes FD over. */
void control_open(struct control *control, struct ferry_session *session, int fd);
void control_close(struct control *control);

int control_send(struct control *control, enum wire_type type, uint8_t flags, const struct buffer *body,
                 struct ferry_error *err);

/* The next frame that is not KEEPALIVE; ABORT is a failure with the peer's words. The time counts from the
 * last frame of any kind. */
int control_receive(struct control *control, struct frame *frame, uint64_t timeout_ns,
                    struct ferry_error *err);
/* As control_receive; any other type than TYPE is a failure. */
int control_expect(struct control *control, enum wire_type type, struct frame *frame, uint64_t timeout_ns,
                   struct ferry_error *err);
/* A frame made no sense: records it. Returns code. */
int control_refuse(struct control *control, int code, struct ferry_error *err);

/*
 * After a failure: when it is only that the network failed here, listens shortly for the peer's reason; then
 * tells the peer ours (TYPE is ABORT or NOT_RUNNING) and lets it read that. Bounded by half a second each.
 */
void control_end_failed(struct control *control, enum wire_type type);

#endif
