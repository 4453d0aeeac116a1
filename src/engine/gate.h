/*
 * The destination's door: lets in the connections of the migration that is awaited, and nobody else.
 *
 * Whoever connects must send one HELLO with the migration's id and token within a few seconds; if the session
 * has credentials, after a TLS handshake in which he showed the certificate of the source host. Any number of
 * strangers (port scanners, garbage, clients that say nothing) may come meanwhile; they are read without
 * waiting, a few bytes at most, and dropped, the oldest first when there are too many at once. A stranger who
 * can be told why is told, and gets a moment to read it.
 *
 * Session thread only.
 */
#ifndef FERRY_ENGINE_GATE_H
#define FERRY_ENGINE_GATE_H

#include "engine/session.h"
#include "engine/wire.h"

#define GATE_PENDING_MAX 32

struct gate_pending {
    struct channel channel;
    struct tls_stream *tls; /* while hands are shaken; then the channel has it */
    bool known;             /* the first byte has come, and is what it must be */
    bool leaving;           /* was turned away: until he closes */
    short events;           /* what is waited for */
    uint64_t deadline_ns;
    size_t have;
    uint8_t bytes[WIRE_HEADER_SIZE + WIRE_HELLO_MAX];
};

struct gate {
    struct ferry_session *session;
    size_t count;
    struct gate_pending pending[GATE_PENDING_MAX]; /* oldest first */
    unsigned strangers;                            /* dropped so far */
};

void gate_init(struct gate *gate, struct ferry_session *session);
/* Drops who is still pending. */
void gate_close(struct gate *gate);

/*
 * The next connection that showed the id and token: its HELLO and its channel (the caller's). A version
 * that is not spoken here has been told to the peer and is -EPROTONOSUPPORT. Ends with -ENOTCONN when
 * the peer of WATCH_FD (-1 for none) ends that connection, -ETIMEDOUT at the deadline, -ECANCELED when the
 * session ends.
 */
int gate_admit(struct gate *gate, int watch_fd, uint64_t deadline_ns, struct wire_hello *hello,
               struct channel *channel, struct ferry_error *err);

/* Tells a peer that was let in, but is not wanted, why. Takes CHANNEL over, and closes it in the end. */
void gate_turn_away(struct gate *gate, struct channel *channel, enum ferry_cause cause, const char *why);

#endif
