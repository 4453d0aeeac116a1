/*
 * A channel whose bytes are encrypted: TLS 1.3 between two hosts that know each other by their certificates
 * (tls/stream.h). What channel.h says of waiting, cancelling and time holds here, too: the deadline is moved
 * by every byte that comes, whether it completes a record or not.
 *
 * The counters count what is carried, not what TLS adds to it (1.4 parts in 1000 of page data).
 */
#ifndef FERRY_ENGINE_CHANNEL_TLS_H
#define FERRY_ENGINE_CHANNEL_TLS_H

#include "engine/channel.h"
#include "tls/stream.h"

/* Takes over TLS, whose handshake is done, and its socket FD. */
void channel_init_tls(struct channel *channel, struct tls_stream *tls, int fd, int cancel_fd,
                      uint64_t timeout_ns);

/* Encrypts CHANNEL, a socket that was just connected to the host PEER: does the client's side of the
 * handshake, waiting at most timeout_ns. On failure it is as it was and of no further use. */
int channel_start_tls(struct channel *channel, const struct ferry_credentials *credentials, const char *peer,
                      uint64_t timeout_ns, struct ferry_error *err);

/* "TLSv1.3 with …", "" for a channel in the clear. Returns text. */
char *channel_describe_encryption(const struct channel *channel, char text[static TLS_STREAM_TEXT_SIZE]);

#endif
