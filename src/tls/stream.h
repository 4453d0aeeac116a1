/*
 * TLS 1.3 over a connected socket, without ever waiting: the caller polls the socket when told to.
 *
 * Handshake. Both sides show certificates and check the other's (credentials.h). A TLS client is done before
 * its server has looked at its certificate; so that a refusal is known before anything else is sent, the
 * server says one byte when it has accepted the client, and the client's handshake ends with it:
 *
 *     client                                 server
 *       ClientHello           ────────────▶
 *                             ◀────────────    ServerHello … Finished
 *       Certificate, Finished ────────────▶    is that who is expected?
 *                             ◀────────────    one byte: yes           or an alert: no
 *
 * Bytes. Data is encrypted in records of up to 16 KiB, gathered from the iovecs; records leave together, up
 * to 128 KiB a system call. Received data is decrypted to where the iovecs point, with one copy in between,
 * which is OpenSSL's. Where the kernel does TLS (CONFIG_TLS) it encrypts what is sent, straight from the
 * iovecs; what is received is decrypted here (OpenSSL 3.0 has no other way for TLS 1.3). Keys are changed
 * long before they wear out (RFC 8446 §5.5), but for the kernel's, which cannot: after 400 GB on one
 * connection they are merely very good.
 *
 * Threads: one reader and one writer at a time, which may be different threads.
 */
#ifndef FERRY_TLS_STREAM_H
#define FERRY_TLS_STREAM_H

#include "tls/credentials.h"

#include <sys/types.h>
#include <sys/uio.h>

enum tls_role {
    TLS_CLIENT = 1,
    TLS_SERVER,
};

struct tls_stream;

/* FD is borrowed, connected and non-blocking. The other side must be the host PEER, which messages name, too.
 * CREDENTIALS are borrowed until it is freed. */
int tls_stream_new(struct tls_stream **out, const struct ferry_credentials *credentials, int fd,
                   enum tls_role role, const char *peer, struct ferry_error *err);
/* Says goodbye if the socket takes it at once. NULL allowed. */
void tls_stream_free(struct tls_stream *stream);

/*
 * 1: done. 0: to be called again when the socket has EVENTS (of poll). Otherwise what is wrong, in words that
 * name the peer: -EKEYREJECTED (a certificate, ours or theirs), -EPROTONOSUPPORT (they do not speak TLS 1.3),
 * -EPIPE (they closed), or the socket's error. The peer has been told what is wrong then, if it can be.
 */
int tls_stream_handshake(struct tls_stream *stream, short *events, struct ferry_error *err);

/* As readv and writev of the socket: bytes moved, 0 at the end that the peer meant, or a negative errno:
 * -EAGAIN to wait for POLLIN or POLLOUT; -EPIPE when the connection was cut; others have err filled in. A
 * write that gave -EAGAIN is repeated with the same data. */
ssize_t tls_stream_readv(struct tls_stream *stream, const struct iovec *iov, int count,
                         struct ferry_error *err);
ssize_t tls_stream_writev(struct tls_stream *stream, const struct iovec *iov, int count,
                          struct ferry_error *err);
/* Whether a read would not be told to wait. Only this can say: bytes may have come that are no data yet, or
 * have been taken from the socket already. */
bool tls_stream_readable(struct tls_stream *stream);
/* We shall send nothing more. */
void tls_stream_finish(struct tls_stream *stream);

/* "TLS 1.3 with TLS_AES_128_GCM_SHA256, encrypted by the kernel"; after the handshake. */
#define TLS_STREAM_TEXT_SIZE 96
char *tls_stream_describe(struct tls_stream *stream, char text[static TLS_STREAM_TEXT_SIZE]);

/* For tests: change the key after so many records. */
void tls_stream_change_keys_after(struct tls_stream *stream, uint64_t records);
/* How many times our key was changed. */
uint64_t tls_stream_key_changes(struct tls_stream *stream);

/* The first byte of a TLS connection from a client: the type of a handshake record. */
#define TLS_FIRST_BYTE 0x16

#endif
