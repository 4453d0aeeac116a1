#include "tls/stream.h"

#include "base/error.h"
#include "base/thread.h"
#include "tls/words.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define RECORD_SIZE (16u << 10) /* of data; RFC 8446 §5.1 */
/* What a record can take in the buffer. */
#define RECORD_ROOM (RECORD_SIZE + 256)
#define BUFFER_SIZE (8 * RECORD_ROOM)
/* Data moved in one call, so that a thread that waits for the other direction waits shortly. */
#define READ_MAX (1u << 20)
/* 2^24.5 full records may be protected with one AES-GCM key (RFC 8446 §5.5). */
#define RECORDS_A_KEY (UINT64_C(1) << 22)
#define ACCEPTED      0x46

enum step {
    STEP_HANDSHAKE = 1,
    STEP_ACCEPT, /* server: says that the client is accepted; client: waits for that */
    STEP_READY,
};

struct tls_stream {
    int fd; /* borrowed */
    enum tls_role role;
    enum step step;
    char peer[64];
    BIO_METHOD *method;
    SSL *ssl;
    X509 *refused;     /* the certificate, theirs or its CA's, that is not good; owned */
    bool kernel;       /* the kernel encrypts what is sent */
    const char *where; /* for people: who encrypts, and why not the kernel */
    bool first_seen;
    uint8_t first; /* byte that came */
    bool ended;    /* the socket has */
    int io_error;  /* of the socket, positive errno */

    pthread_mutex_t lock; /* guards all that is not constant after the handshake */
    uint8_t *in;          /* taken from the socket, not yet by OpenSSL */
    size_t in_begin;
    size_t in_end;
    uint8_t *out; /* records that are to leave */
    size_t out_begin;
    size_t out_end;
    uint8_t *gathered; /* data of one record from several iovecs */
    size_t taken;      /* data in `out` that the writer has not been told of */
    struct ferry_error failure;
    uint64_t records; /* with this key */
    uint64_t records_a_key;
    uint64_t key_changes;
};

/* ---- between OpenSSL and the socket ---- */

/* Takes more from the socket. Bytes, 0 at its end, or -errno. */
static ssize_t fill_in(struct tls_stream *stream)
{
    ssize_t n;

    assert(stream->in_begin == stream->in_end);
    do
        n = recv(stream->fd, stream->in, BUFFER_SIZE, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    stream->in_begin = 0;
    stream->in_end = n > 0 ? (size_t)n : 0;
    if (n > 0 && !stream->first_seen) {
        stream->first = stream->in[0];
        stream->first_seen = true;
    }
    return n < 0 ? -errno : n;
}

/* 0: everything has left. -EAGAIN, or the socket's error. */
static int flush_out(struct tls_stream *stream)
{
    while (stream->out_begin < stream->out_end) {
        ssize_t n = send(stream->fd, stream->out + stream->out_begin, stream->out_end - stream->out_begin,
                         MSG_DONTWAIT | MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return -EAGAIN;
        if (n < 0) {
            stream->io_error = errno;
            return -errno;
        }
        stream->out_begin += (size_t)n;
    }
    stream->out_begin = stream->out_end = 0;
    return 0;
}

static int bio_read(BIO *bio, char *data, int size)
{
    struct tls_stream *stream = BIO_get_data(bio);
    size_t have;

    BIO_clear_retry_flags(bio);
    if (stream->in_begin == stream->in_end) {
        ssize_t n = fill_in(stream);

        if (n == -EAGAIN) {
            BIO_set_retry_read(bio);
            return -1;
        }
        if (n <= 0) {
            stream->ended = n == 0;
            stream->io_error = (int)-n;
            return (int)(n < 0 ? -1 : 0);
        }
    }
    have = stream->in_end - stream->in_begin;
    if (have > (size_t)size)
        have = (size_t)size;
    memcpy(data, stream->in + stream->in_begin, have);
    stream->in_begin += have;
    return (int)have;
}

static int bio_write(BIO *bio, const char *data, int size)
{
    struct tls_stream *stream = BIO_get_data(bio);

    BIO_clear_retry_flags(bio);
    if (BUFFER_SIZE - stream->out_end < (size_t)size) {
        int result = flush_out(stream);

        if (result == -EAGAIN)
            BIO_set_retry_write(bio);
        if (result < 0)
            return -1;
    }
    assert((size_t)size <= BUFFER_SIZE - stream->out_end);
    memcpy(stream->out + stream->out_end, data, (size_t)size);
    stream->out_end += (size_t)size;
    return size;
}

static long bio_ctrl(BIO *bio, int command, long number, void *pointer)
{
    const struct tls_stream *stream = BIO_get_data(bio);

    if (command == BIO_CTRL_EOF)
        return stream->ended;
    /* Whoever called OpenSSL flushes, when all that is to leave together is there. */
    return command == BIO_CTRL_FLUSH || command == BIO_CTRL_PUSH || command == BIO_CTRL_POP;
}

static BIO *make_bio(struct tls_stream *stream)
{
    BIO *bio = BIO_new(stream->method);

    if (bio) {
        BIO_set_data(bio, stream);
        BIO_set_init(bio, 1);
    }
    return bio;
}

/* Before the handshake: the kernel must be asked then. */
static bool kernel_has_tls(struct tls_stream *stream)
{
    static const char name[] = "tls";

    if (setsockopt(stream->fd, IPPROTO_TCP, TCP_ULP, name, sizeof(name) - 1) == 0)
        return true;
    stream->where = errno == ENOENT ? "in user space: the kernel has no tls"
                                    : "in user space: no socket for the kernel's";
    return false;
}

static bool connect_bios(struct tls_stream *stream)
{
    bool kernel = kernel_has_tls(stream);
    BIO *in = make_bio(stream);
    BIO *out = kernel ? BIO_new_socket(stream->fd, BIO_NOCLOSE) : make_bio(stream);

    if (!in || !out) {
        BIO_free(in);
        BIO_free(out);
        return false;
    }
    SSL_set_bio(stream->ssl, in, out);
    if (kernel)
        SSL_set_options(stream->ssl, SSL_OP_ENABLE_KTLS);
    return true;
}

/* ---- what went wrong ---- */

static int explain_certificate(struct tls_stream *stream, struct ferry_error *err)
{
    char words[WORDS_VERIFY_SIZE];

    words_verify(SSL_get_verify_result(stream->ssl), stream->refused, words);
    return error_set(err, -EKEYREJECTED, "the certificate that host %s shows %s", stream->peer, words);
}

static int explain_alert(struct tls_stream *stream, int alert, struct ferry_error *err)
{
    const char *words = words_alert_text(alert);

    if (words)
        return error_set(err, -EKEYREJECTED, "host %s does not accept this host's certificate: %s",
                         stream->peer, words);
    if (alert == SSL_AD_PROTOCOL_VERSION)
        return error_set(err, -EPROTONOSUPPORT, "host %s does not speak TLS 1.3", stream->peer);
    return error_set(err, -EPROTO, "host %s ended the TLS connection (alert \"%s\")", stream->peer,
                     SSL_alert_desc_string_long(alert));
}

/* OpenSSL said SSL_ERROR_SSL. */
static int explain_reason(struct tls_stream *stream, struct ferry_error *err)
{
    unsigned long reason = ERR_peek_error();
    bool early = stream->step == STEP_HANDSHAKE;

    if (words_alert())
        return explain_alert(stream, words_alert(), err);
    /* An alert is TLS, too. */
    if (early && stream->first_seen && stream->first != TLS_FIRST_BYTE && stream->first != 0x15)
        return error_set(err, -EPROTONOSUPPORT,
                         "host %s does not speak TLS on this connection; has it a certificate?",
                         stream->peer);
    switch (ERR_GET_REASON(reason)) {
    case SSL_R_CERTIFICATE_VERIFY_FAILED:
        return explain_certificate(stream, err);
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
        return error_set(err, -EKEYREJECTED, "host %s shows no certificate", stream->peer);
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_WRONG_SSL_VERSION:
        return error_set(err, -EPROTONOSUPPORT, "host %s does not speak TLS 1.3", stream->peer);
    case SSL_R_UNEXPECTED_EOF_WHILE_READING:
        return error_set(err, -EPIPE,
                         early ? "host %s closed the connection during the TLS handshake"
                               : "the connection to host %s was cut",
                         stream->peer);
    case SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC:
        return error_set(err, -EPROTO, "what came from host %s was changed on its way", stream->peer);
    default:
        return words_set(err, -EPROTO, "TLS with host %s failed", stream->peer);
    }
}

/* RESULT is what OpenSSL returned. 0: the end that the peer meant; -EAGAIN, or the failure, for good. */
static int explain(struct tls_stream *stream, int result, struct ferry_error *err)
{
    int code = SSL_get_error(stream->ssl, result);

    if (code == SSL_ERROR_WANT_READ || code == SSL_ERROR_WANT_WRITE)
        return -EAGAIN;
    if (code == SSL_ERROR_ZERO_RETURN)
        return 0;
    if (stream->io_error)
        error_set_errno(&stream->failure, -stream->io_error, "the connection to host %s broke", stream->peer);
    else if (code == SSL_ERROR_SYSCALL)
        error_set(&stream->failure, -EPIPE, "host %s closed the connection", stream->peer);
    else
        explain_reason(stream, &stream->failure);
    ERR_clear_error();
    return error_set(err, stream->failure.code, "%s", stream->failure.text);
}

static int fail_again(const struct tls_stream *stream, struct ferry_error *err)
{
    return error_set(err, stream->failure.code, "%s", stream->failure.text);
}

static int fail_by_socket(struct tls_stream *stream, int code, struct ferry_error *err)
{
    if (code == -EPIPE || code == -ECONNRESET)
        error_set(&stream->failure, -EPIPE, "host %s closed the connection", stream->peer);
    else
        error_set_errno(&stream->failure, code, "the connection to host %s broke", stream->peer);
    return fail_again(stream, err);
}

/* ---- entering and leaving ---- */

struct visit {
    bool muted;
    struct thread_mute mute;
};

/* OpenSSL writes to a socket without MSG_NOSIGNAL, which is what it does when the kernel encrypts. */
static void enter(struct tls_stream *stream, struct visit *visit)
{
    pthread_mutex_lock(&stream->lock);
    ERR_clear_error();
    visit->muted = BIO_method_type(SSL_get_wbio(stream->ssl)) == BIO_TYPE_SOCKET;
    if (visit->muted)
        thread_mute_begin(&visit->mute);
}

static void leave(struct tls_stream *stream, const struct visit *visit)
{
    if (visit->muted)
        thread_mute_end(&visit->mute);
    ERR_clear_error();
    pthread_mutex_unlock(&stream->lock);
}

/* ---- life ---- */

/* OpenSSL forgets a certificate that was not accepted. */
static int verify(int good, X509_STORE_CTX *check)
{
    SSL *ssl = X509_STORE_CTX_get_ex_data(check, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct tls_stream *stream = SSL_get_app_data(ssl);
    X509 *certificate = X509_STORE_CTX_get_current_cert(check);

    good = credentials_verify(good, check);
    if (!good && !stream->refused && certificate && X509_up_ref(certificate))
        stream->refused = certificate;
    return good;
}

int tls_stream_new(struct tls_stream **out, const struct ferry_credentials *credentials, int fd,
                   enum tls_role role, const char *peer, struct ferry_error *err)
{
    struct tls_stream *stream = calloc(1, sizeof(*stream));

    *out = NULL;
    if (!stream)
        return error_set(err, -ENOMEM, "out of memory for a TLS connection");
    pthread_mutex_init(&stream->lock, NULL);
    stream->fd = fd;
    stream->role = role;
    stream->step = STEP_HANDSHAKE;
    stream->records_a_key = RECORDS_A_KEY;
    snprintf(stream->peer, sizeof(stream->peer), "%s", peer);
    stream->in = malloc(BUFFER_SIZE);
    stream->out = malloc(BUFFER_SIZE);
    stream->gathered = malloc(RECORD_SIZE);
    stream->method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "ferry");
    stream->ssl = SSL_new(credentials_context(credentials));
    if (!stream->in || !stream->out || !stream->gathered || !stream->method || !stream->ssl ||
        !BIO_meth_set_read(stream->method, bio_read) || !BIO_meth_set_write(stream->method, bio_write) ||
        !BIO_meth_set_ctrl(stream->method, bio_ctrl) || !credentials_expect(stream->ssl, peer) ||
        !connect_bios(stream)) {
        tls_stream_free(stream);
        return words_set(err, -ENOMEM, "cannot prepare a TLS connection");
    }
    SSL_set_app_data(stream->ssl, stream);
    SSL_set_verify(stream->ssl, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, verify);
    if (role == TLS_CLIENT)
        SSL_set_connect_state(stream->ssl);
    else
        SSL_set_accept_state(stream->ssl);
    *out = stream;
    return 0;
}

void tls_stream_free(struct tls_stream *stream)
{
    if (!stream)
        return;
    if (stream->step == STEP_READY)
        tls_stream_finish(stream);
    SSL_free(stream->ssl);
    X509_free(stream->refused);
    BIO_meth_free(stream->method);
    free(stream->in);
    free(stream->out);
    free(stream->gathered);
    pthread_mutex_destroy(&stream->lock);
    ERR_clear_error();
    free(stream);
}

void tls_stream_finish(struct tls_stream *stream)
{
    struct visit visit;

    enter(stream, &visit);
    if (!stream->failure.code) {
        SSL_shutdown(stream->ssl);
        flush_out(stream);
    }
    leave(stream, &visit);
}

/* ---- handshake ---- */

/* 1: done, 0: EVENTS. */
static int step_handshake(struct tls_stream *stream, short *events, struct ferry_error *err)
{
    int result = SSL_do_handshake(stream->ssl);
    int flushed;

    if (result != 1)
        result = explain(stream, result, err);
    flushed = flush_out(stream); /* what is to be said, an alert too */
    if (result < 0 && result != -EAGAIN)
        return result;
    if (result == 0)
        return error_set(err, -EPIPE, "host %s closed the connection during the TLS handshake", stream->peer);
    if (flushed < 0 && flushed != -EAGAIN)
        return fail_by_socket(stream, flushed, err);
    *events = POLLIN;
    if (flushed == -EAGAIN || (result == -EAGAIN && SSL_want_write(stream->ssl)))
        *events = POLLOUT;
    return result == 1 && flushed == 0;
}

/* The kernel was willing, but the cipher or a key did not suit it. */
static bool take_back_from_kernel(struct tls_stream *stream)
{
    BIO *out;

    stream->kernel = BIO_get_ktls_send(SSL_get_wbio(stream->ssl));
    if (stream->kernel)
        stream->where = "by the kernel";
    if (stream->kernel || BIO_method_type(SSL_get_wbio(stream->ssl)) != BIO_TYPE_SOCKET)
        return true;
    stream->where = "in user space: the kernel's tls cannot do it";
    out = make_bio(stream);
    if (out)
        SSL_set0_wbio(stream->ssl, out);
    return out != NULL;
}

static int step_accept(struct tls_stream *stream, short *events, struct ferry_error *err)
{
    bool client = stream->role == TLS_CLIENT;
    uint8_t byte = ACCEPTED;
    int result = client ? SSL_read(stream->ssl, &byte, 1) : SSL_write(stream->ssl, &byte, 1);

    *events = client ? POLLIN : POLLOUT;
    if (result == 1 && byte != ACCEPTED)
        return error_set(err, -EPROTO, "what answers as host %s is no ferry-vm", stream->peer);
    if (result == 1)
        result = flush_out(stream);
    else
        result = explain(stream, result, err) ?: -EPIPE;
    if (result == -EAGAIN)
        return 0;
    if (result < 0 && !stream->failure.code)
        return fail_by_socket(stream, result, err);
    return result < 0 ? fail_again(stream, err) : 1;
}

int tls_stream_handshake(struct tls_stream *stream, short *events, struct ferry_error *err)
{
    struct visit visit;
    int result = 1;

    enter(stream, &visit);
    if (stream->step == STEP_HANDSHAKE) {
        result = step_handshake(stream, events, err);
        if (result == 1 && !take_back_from_kernel(stream))
            result = error_set(err, -ENOMEM, "out of memory for a TLS connection");
        if (result == 1)
            stream->step = STEP_ACCEPT;
    }
    if (stream->step == STEP_ACCEPT) {
        result = step_accept(stream, events, err);
        if (result == 1)
            stream->step = STEP_READY;
    }
    leave(stream, &visit);
    return result;
}

/* ---- data ---- */

static ssize_t read_some(struct tls_stream *stream, const struct iovec *iov, int count,
                         struct ferry_error *err)
{
    size_t total = 0;

    for (int i = 0; i < count; i++) {
        uint8_t *to = iov[i].iov_base;
        size_t left = iov[i].iov_len;

        while (left > 0) {
            size_t got = 0;
            int result = SSL_read_ex(stream->ssl, to, left, &got);

            if (result != 1)
                return total > 0 ? (ssize_t)total : explain(stream, result, err);
            to += got;
            left -= got;
            total += got;
            if (total >= READ_MAX)
                return (ssize_t)total;
        }
    }
    return (ssize_t)total;
}

ssize_t tls_stream_readv(struct tls_stream *stream, const struct iovec *iov, int count,
                         struct ferry_error *err)
{
    ssize_t result;
    struct visit visit;

    enter(stream, &visit);
    result = stream->failure.code ? fail_again(stream, err) : read_some(stream, iov, count, err);
    leave(stream, &visit);
    return result;
}

bool tls_stream_readable(struct tls_stream *stream)
{
    struct visit visit;
    uint8_t byte;
    int result = 1;

    enter(stream, &visit);
    if (!stream->failure.code) {
        result = SSL_peek(stream->ssl, &byte, 1);
        if (result != 1)
            result = explain(stream, result, NULL) != -EAGAIN;
    }
    leave(stream, &visit);
    return result == 1;
}

/* Where the writer is in its iovecs. */
struct cursor {
    const struct iovec *iov;
    int count;
    size_t offset;
};

/* The data of the next record, at most RECORD_SIZE bytes; 0 at the end. What lies in one piece is not copied.
 */
static size_t next_record(struct tls_stream *stream, struct cursor *cursor, const uint8_t **data)
{
    size_t size = 0;

    while (cursor->count > 0 && size < RECORD_SIZE) {
        const uint8_t *from = (const uint8_t *)cursor->iov->iov_base + cursor->offset;
        size_t left = cursor->iov->iov_len - cursor->offset;
        size_t part = left < RECORD_SIZE - size ? left : RECORD_SIZE - size;

        if (size == 0 && (left >= RECORD_SIZE || cursor->count == 1)) {
            *data = from;
        } else {
            memcpy(stream->gathered + size, from, part);
            *data = stream->gathered;
        }
        size += part;
        cursor->offset += part;
        if (cursor->offset == cursor->iov->iov_len) {
            cursor->iov++;
            cursor->count--;
            cursor->offset = 0;
        }
        if (*data != stream->gathered)
            break;
    }
    return size;
}

static void change_key(struct tls_stream *stream)
{
    if (++stream->records < stream->records_a_key)
        return;
    /* It leaves before the next record. */
    if (SSL_key_update(stream->ssl, SSL_KEY_UPDATE_NOT_REQUESTED) == 1)
        stream->key_changes++;
    stream->records = 0;
}

/* Encrypts as much as there is room for. */
static ssize_t encrypt_some(struct tls_stream *stream, const struct iovec *iov, int count,
                            struct ferry_error *err)
{
    struct cursor cursor = {.iov = iov, .count = count};
    const uint8_t *data = NULL;
    size_t total = 0;

    /* A change of key takes a little of it, too. */
    while (BUFFER_SIZE - stream->out_end >= RECORD_ROOM) {
        size_t size = next_record(stream, &cursor, &data);
        size_t written = 0;
        int result;

        if (size == 0)
            break;
        result = SSL_write_ex(stream->ssl, data, size, &written);
        if (result != 1) {
            result = explain(stream, result, err);
            return result == 0 || result == -EAGAIN ? fail_by_socket(stream, -EPIPE, err) : result;
        }
        assert(written == size);
        total += size;
        change_key(stream);
    }
    return (ssize_t)total;
}

static ssize_t write_some(struct tls_stream *stream, const struct iovec *iov, int count,
                          struct ferry_error *err)
{
    int result = flush_out(stream);
    ssize_t encrypted;
    size_t told;

    if (result == 0 && stream->taken == 0) {
        encrypted = encrypt_some(stream, iov, count, err);
        if (encrypted < 0)
            return encrypted;
        stream->taken = (size_t)encrypted;
        result = flush_out(stream);
    }
    if (result == -EAGAIN)
        return -EAGAIN;
    if (result < 0)
        return fail_by_socket(stream, result, err);
    told = stream->taken;
    stream->taken = 0;
    return (ssize_t)told;
}

static ssize_t write_by_kernel(struct tls_stream *stream, const struct iovec *iov, int count,
                               struct ferry_error *err)
{
    struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)count};
    ssize_t n;

    do
        n = sendmsg(stream->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN)
        return -EAGAIN;
    return n < 0 ? fail_by_socket(stream, -errno, err) : n;
}

ssize_t tls_stream_writev(struct tls_stream *stream, const struct iovec *iov, int count,
                          struct ferry_error *err)
{
    ssize_t result;
    struct visit visit;

    enter(stream, &visit);
    if (stream->failure.code)
        result = fail_again(stream, err);
    else if (stream->kernel)
        result = write_by_kernel(stream, iov, count, err);
    else
        result = write_some(stream, iov, count, err);
    leave(stream, &visit);
    return result;
}

/* ---- what it is ---- */

char *tls_stream_describe(struct tls_stream *stream, char text[static TLS_STREAM_TEXT_SIZE])
{
    pthread_mutex_lock(&stream->lock);
    snprintf(text, TLS_STREAM_TEXT_SIZE, "%s with %s, encrypted %s", SSL_get_version(stream->ssl),
             SSL_get_cipher_name(stream->ssl), stream->where);
    pthread_mutex_unlock(&stream->lock);
    return text;
}

void tls_stream_change_keys_after(struct tls_stream *stream, uint64_t records)
{
    pthread_mutex_lock(&stream->lock);
    stream->records_a_key = records;
    pthread_mutex_unlock(&stream->lock);
}

uint64_t tls_stream_key_changes(struct tls_stream *stream)
{
    uint64_t changes;

    pthread_mutex_lock(&stream->lock);
    changes = stream->key_changes;
    pthread_mutex_unlock(&stream->lock);
    return changes;
}
