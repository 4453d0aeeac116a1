/* Encrypted channels, and migrations over them: nobody else gets in, and nothing of the guest is seen
 * outside. */
#include "harness.h"

#include "base/clock.h"
#include "base/sock.h"
#include "engine/channel_tls.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define TIMEOUT_NS (60 * NS_PER_S)

static struct certificates ours, others;

static int make(void **state)
{
    certificates_make(&ours);
    certificates_make(&others);
    return 0;
}

static int clean_up(void **state)
{
    certificates_remove(&ours);
    certificates_remove(&others);
    return 0;
}

/* ---- two ends ---- */

struct server {
    struct thread thread;
    struct ferry_credentials *credentials;
    const char *peer;
    int fd;
    struct channel channel;
    int result;
    struct ferry_error error;
};

static void *server_main(void *opaque)
{
    struct server *server = opaque;
    struct tls_stream *tls = NULL;
    short events = 0;

    server->result = tls_stream_new(&tls, server->credentials, server->fd, TLS_SERVER, server->peer, NULL);
    while (server->result == 0) {
        struct pollfd polled = {.fd = server->fd};

        server->result = tls_stream_handshake(tls, &events, &server->error);
        polled.events = events;
        if (server->result == 0 && poll(&polled, 1, UNIT_DEADLINE_MS) != 1)
            server->result = -ETIMEDOUT;
    }
    if (server->result == 1) {
        channel_init_tls(&server->channel, tls, server->fd, -1, TIMEOUT_NS);
    } else {
        tls_stream_free(tls);
        close(server->fd);
    }
    return NULL;
}

struct pair {
    struct ferry_credentials *credentials;
    struct channel client;
    struct server server;
    int result; /* of the client */
    struct ferry_error error;
};

/* Buffers as small as they can be, so that writers soon have to wait. */
static void make_sockets(int fds[2])
{
    int size = 4096;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), 0);
    setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    setsockopt(fds[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
}

/* CLIENT is who he is by his certificate, SERVER likewise; each expects the other to be who is named. */
static void pair_connect(struct pair *pair, struct ferry_credentials *client, const char *expected_server,
                         struct ferry_credentials *server, const char *expected_client)
{
    int fds[2];

    *pair = (struct pair){.credentials = client, .server = {.credentials = server, .peer = expected_client}};
    make_sockets(fds);
    pair->server.fd = fds[1];
    channel_init_socket(&pair->client, fds[0], -1, TIMEOUT_NS);
    assert_int_equal(
        thread_start(&pair->server.thread, THREAD_GENERAL, "server", server_main, &pair->server, NULL), 0);
    pair->result = channel_start_tls(&pair->client, client, expected_server, TIMEOUT_NS, &pair->error);
    if (pair->result < 0)
        channel_close(&pair->client);
    thread_join(&pair->server.thread);
}

static void pair_open(struct pair *pair)
{
    pair_connect(pair, certificates_issue(&ours, "alpha"), "beta", certificates_issue(&ours, "beta"),
                 "alpha");
    if (pair->result < 0 || pair->server.result != 1)
        fail_msg("%s; %s", pair->error.text, pair->server.error.text);
}

static void pair_close(struct pair *pair)
{
    if (pair->result == 0)
        channel_close(&pair->client);
    if (pair->server.result == 1)
        channel_close(&pair->server.channel);
    credentials_unref(pair->credentials);
    credentials_unref(pair->server.credentials);
}

/* ---- handshakes ---- */

struct handshake {
    const char *what;
    struct ferry_credentials *client, *server;
    const char *expected_server, *expected_client;
    const char *client_says, *server_says;
};

static void who_is_not_expected_is_refused_on_both_sides(void **state)
{
    struct handshake cases[] = {
        {"client of another CA", certificates_issue(&others, "alpha"), certificates_issue(&ours, "beta"),
         "beta", "alpha", "the certificate that host beta shows is not from the CA that is trusted here",
         "host alpha does not accept this host's certificate: it is from another CA"},
        {"expired server", certificates_issue(&ours, "alpha"),
         certificates_issue_for(&ours, "beta", -7200, -3600), "beta", "alpha",
         "the certificate that host beta shows has expired",
         "host alpha does not accept this host's certificate: it has expired"},
        {"expired client", certificates_issue_for(&ours, "alpha", -7200, -3600),
         certificates_issue(&ours, "beta"), "beta", "alpha",
         "host beta does not accept this host's certificate: it has expired",
         "the certificate that host alpha shows has expired"},
        {"server of another name", certificates_issue(&ours, "alpha"), certificates_issue(&ours, "gamma"),
         "beta", "alpha", "the certificate that host beta shows is that of gamma",
         "host alpha does not accept this host's certificate: it is not the one that is expected there"},
        {"client of another name", certificates_issue(&ours, "gamma"), certificates_issue(&ours, "beta"),
         "beta", "alpha",
         "host beta does not accept this host's certificate: it is not the one that is expected there",
         "the certificate that host alpha shows is that of gamma"},
        {"names differ in a capital letter", certificates_issue(&ours, "Alpha"),
         certificates_issue(&ours, "beta"), "beta", "alpha",
         "host beta does not accept this host's certificate",
         "the certificate that host alpha shows is that of Alpha"},
        {"not valid yet", certificates_issue_for(&ours, "alpha", 3600, 7200),
         certificates_issue(&ours, "beta"), "beta", "alpha",
         "host beta does not accept this host's certificate", "is not valid before"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct pair pair;

        pair_connect(&pair, cases[i].client, cases[i].expected_server, cases[i].server,
                     cases[i].expected_client);
        if (pair.result == 0 || pair.server.result == 1)
            fail_msg("%s: accepted", cases[i].what);
        assert_contains(pair.error.text, cases[i].client_says);
        assert_contains(pair.server.error.text, cases[i].server_says);
        assert_int_equal(pair.result, -EKEYREJECTED);
        pair_close(&pair);
    }
}

/* Somebody who uses OpenSSL as he likes, on the other end of a server. */
struct foreigner {
    struct thread thread;
    int fd;
    bool is_server;
    int max_version;                 /* of TLS */
    struct ferry_credentials *shows; /* NULL: no certificate */
};

static void *foreigner_main(void *opaque)
{
    struct foreigner *foreigner = opaque;
    SSL_CTX *context = SSL_CTX_new(foreigner->is_server ? TLS_server_method() : TLS_client_method());
    SSL *ssl;
    char byte;

    SSL_CTX_set_max_proto_version(context, foreigner->max_version);
    if (foreigner->shows) {
        SSL_CTX *other = credentials_context(foreigner->shows);

        SSL_CTX_use_certificate(context, SSL_CTX_get0_certificate(other));
        SSL_CTX_use_PrivateKey(context, SSL_CTX_get0_privatekey(other));
    }
    ssl = SSL_new(context);
    fcntl(foreigner->fd, F_SETFL, 0);
    SSL_set_fd(ssl, foreigner->fd);
    if ((foreigner->is_server ? SSL_accept(ssl) : SSL_connect(ssl)) == 1)
        SSL_read(ssl, &byte, 1);
    SSL_free(ssl);
    SSL_CTX_free(context);
    close(foreigner->fd);
    ERR_clear_error();
    return NULL;
}

static void client_without_certificate_is_refused(void **state)
{
    struct server server = {.credentials = certificates_issue(&ours, "beta"), .peer = "alpha"};
    struct foreigner foreigner = {.max_version = TLS1_3_VERSION};
    int fds[2];

    make_sockets(fds);
    foreigner.fd = fds[0];
    server.fd = fds[1];
    assert_int_equal(
        thread_start(&foreigner.thread, THREAD_GENERAL, "foreigner", foreigner_main, &foreigner, NULL), 0);
    server_main(&server);
    thread_join(&foreigner.thread);
    assert_int_equal(server.result, -EKEYREJECTED);
    assert_string_equal(server.error.text, "host alpha shows no certificate");
    credentials_unref(server.credentials);
}

static void older_tls_is_refused_by_either_side(void **state)
{
    struct ferry_credentials *alpha = certificates_issue(&ours, "alpha");
    struct ferry_credentials *beta = certificates_issue(&ours, "beta");
    struct server server = {.credentials = beta, .peer = "alpha"};
    struct foreigner client = {.max_version = TLS1_2_VERSION, .shows = alpha};
    struct foreigner old_server = {.is_server = true, .max_version = TLS1_2_VERSION, .shows = beta};
    struct channel channel;
    struct ferry_error err = {0};
    int fds[2];

    make_sockets(fds);
    client.fd = fds[0];
    server.fd = fds[1];
    assert_int_equal(thread_start(&client.thread, THREAD_GENERAL, "foreigner", foreigner_main, &client, NULL),
                     0);
    server_main(&server);
    thread_join(&client.thread);
    assert_int_equal(server.result, -EPROTONOSUPPORT);
    assert_string_equal(server.error.text, "host alpha does not speak TLS 1.3");

    make_sockets(fds);
    old_server.fd = fds[1];
    channel_init_socket(&channel, fds[0], -1, TIMEOUT_NS);
    assert_int_equal(
        thread_start(&old_server.thread, THREAD_GENERAL, "foreigner", foreigner_main, &old_server, NULL), 0);
    assert_int_equal(channel_start_tls(&channel, alpha, "beta", TIMEOUT_NS, &err), -EPROTONOSUPPORT);
    assert_string_equal(err.text, "host beta does not speak TLS 1.3");
    channel_close(&channel);
    thread_join(&old_server.thread);
    credentials_unref(alpha);
    credentials_unref(beta);
}

static void server_that_answers_in_the_clear_is_known(void **state)
{
    struct ferry_credentials *alpha = certificates_issue(&ours, "alpha");
    struct channel channel;
    struct ferry_error err = {0};
    int fds[2];

    make_sockets(fds);
    channel_init_socket(&channel, fds[0], -1, TIMEOUT_NS);
    assert_int_equal(write(fds[1], "HTTP/1.1 400 Bad Request\r\n\r\n", 28), 28);
    assert_int_equal(channel_start_tls(&channel, alpha, "beta", TIMEOUT_NS, &err), -EPROTONOSUPPORT);
    assert_string_equal(err.text, "host beta does not speak TLS on this connection; has it a certificate?");
    channel_close(&channel);
    close(fds[1]);

    make_sockets(fds);
    channel_init_socket(&channel, fds[0], -1, TIMEOUT_NS);
    close(fds[1]);
    assert_int_equal(channel_start_tls(&channel, alpha, "beta", TIMEOUT_NS, &err), -EPIPE);
    assert_contains(err.text, "host beta");
    channel_close(&channel);
    credentials_unref(alpha);
}

static void handshake_ends_with_its_time_or_when_cancelled(void **state)
{
    struct ferry_credentials *alpha = certificates_issue(&ours, "alpha");
    int cancel = eventfd(0, EFD_CLOEXEC);
    struct channel channel;
    struct ferry_error err = {0};
    int fds[2];

    make_sockets(fds);
    channel_init_socket(&channel, fds[0], cancel, TIMEOUT_NS);
    assert_int_equal(channel_start_tls(&channel, alpha, "beta", 20 * NS_PER_MS, &err), -ETIMEDOUT);
    assert_contains(err.text, "TLS handshake");
    eventfd_write(cancel, 1);
    assert_int_equal(channel_start_tls(&channel, alpha, "beta", TIMEOUT_NS, &err), -ECANCELED);
    channel_close(&channel);
    close(fds[1]);
    close(cancel);
    credentials_unref(alpha);
}

/* ---- bytes ---- */

static uint8_t pattern(uint64_t position)
{
    return (uint8_t)(position * 131 + (position >> 8) * 17 + (position >> 16));
}

#define FLOW_BYTES (UINT64_C(6) << 20)

/* Sends or receives so many bytes in pieces of all sizes. */
struct flow {
    struct thread thread;
    struct channel *channel;
    bool sends;
    uint64_t bytes;
    uint64_t seed;
    struct ferry_error error;
    int result;
};

#define PIECES_MAX 40

/* Up to 40 iovecs, empty ones and large ones too, one after the other in BYTES. */
static int cut_up(uint64_t *seed, uint8_t *bytes, uint64_t left, struct iovec *iov)
{
    int count = 1 + (int)(unit_random(seed) % PIECES_MAX);
    uint64_t done = 0;

    for (int i = 0; i < count; i++) {
        uint64_t size = unit_random(seed) % (i % 7 == 0 ? 70000 : i % 3 == 0 ? 5000 : 200);

        size = size < left - done ? size : left - done;
        iov[i] = (struct iovec){.iov_base = bytes + done, .iov_len = size};
        done += size;
    }
    return count;
}

static void *flow_main(void *opaque)
{
    struct flow *flow = opaque;
    uint8_t *bytes = malloc(PIECES_MAX * 70000);

    for (uint64_t done = 0; done < flow->bytes && flow->result == 0;) {
        struct iovec iov[PIECES_MAX];
        int count = cut_up(&flow->seed, bytes, flow->bytes - done, iov);
        uint64_t size = 0;

        for (int i = 0; i < count; i++)
            size += iov[i].iov_len;
        for (uint64_t i = 0; flow->sends && i < size; i++)
            bytes[i] = pattern(done + i);
        flow->result = flow->sends ? channel_writev(flow->channel, iov, count, &flow->error)
                                   : channel_readv(flow->channel, iov, count, TIMEOUT_NS, &flow->error);
        for (uint64_t i = 0; !flow->sends && flow->result == 0 && i < size; i++) {
            if (bytes[i] != pattern(done + i))
                flow->result = -EILSEQ;
        }
        done += size;
    }
    free(bytes);
    return NULL;
}

/* One reader and one writer on each end, four threads, and keys that change all the time. */
static void bytes_arrive_in_order_both_ways_at_once(void **state)
{
    struct pair pair;
    struct flow flows[4];

    pair_open(&pair);
    tls_stream_change_keys_after(pair.client.tls, 7);
    tls_stream_change_keys_after(pair.server.channel.tls, 50);
    for (int i = 0; i < 4; i++) {
        flows[i] = (struct flow){.channel = i < 2 ? &pair.client : &pair.server.channel,
                                 .sends = i % 2 == 0,
                                 .bytes = FLOW_BYTES,
                                 .seed = 1000 + (uint64_t)i};
        assert_int_equal(thread_start(&flows[i].thread, THREAD_GENERAL, "flow", flow_main, &flows[i], NULL),
                         0);
    }
    for (int i = 0; i < 4; i++)
        thread_join(&flows[i].thread);
    for (int i = 0; i < 4; i++) {
        if (flows[i].result < 0)
            fail_msg("flow %d: %d: %s", i, flows[i].result, flows[i].error.text);
    }
    assert_int_equal(channel_bytes_out(&pair.client), FLOW_BYTES);
    assert_int_equal(channel_bytes_in(&pair.client), FLOW_BYTES);
    assert_true(tls_stream_key_changes(pair.client.tls) > 30);
    assert_true(tls_stream_key_changes(pair.server.channel.tls) > 3);
    pair_close(&pair);
}

static void report_says_how_it_is_encrypted(void **state)
{
    char text[TLS_STREAM_TEXT_SIZE];
    struct channel plain;
    struct pair pair;
    int fds[2];

    pair_open(&pair);
    channel_describe_encryption(&pair.client, text);
    assert_contains(text, "TLSv1.3 with TLS_");
    assert_contains(text, "in user space"); /* these are no TCP sockets */
    pair_close(&pair);
    make_sockets(fds);
    channel_init_socket(&plain, fds[0], -1, TIMEOUT_NS);
    assert_string_equal(channel_describe_encryption(&plain, text), "");
    channel_close(&plain);
    close(fds[1]);
}

static void end_that_was_meant_and_one_that_was_not_differ(void **state)
{
    struct ferry_error err = {0};
    uint8_t bytes[100];
    struct pair pair;

    for (int meant = 0; meant < 2; meant++) {
        struct iovec iov = {.iov_base = bytes, .iov_len = 50};

        pair_open(&pair);
        assert_ok(channel_writev(&pair.client, &iov, 1, &err), err);
        if (meant)
            channel_finish(&pair.client);
        else
            channel_shutdown(&pair.client);
        assert_int_equal(channel_read(&pair.server.channel, bytes, 50, TIMEOUT_NS, &err), 0);
        assert_int_equal(channel_read(&pair.server.channel, bytes, 50, TIMEOUT_NS, &err), -EPIPE);
        assert_contains(err.text, meant ? "the other side closed" : "the connection to host alpha was cut");
        /* and it stays so */
        assert_int_equal(channel_read(&pair.server.channel, bytes, 1, TIMEOUT_NS, &err), -EPIPE);
        pair_close(&pair);
    }
}

static void waiting_for_bytes_sees_those_already_taken(void **state)
{
    struct ferry_error err = {0};
    uint8_t bytes[3000] = {1, 2, 3};
    struct pair pair;

    pair_open(&pair);
    assert_int_equal(channel_await(&pair.server.channel, 0, &err), -ETIMEDOUT);
    for (int i = 0; i < 3; i++) {
        struct iovec iov = {.iov_base = bytes, .iov_len = 1000};

        assert_ok(channel_writev(&pair.client, &iov, 1, &err), err);
    }
    /* three records, of which the socket gives up all with the first read */
    for (int i = 0; i < 6; i++) {
        assert_ok(channel_await(&pair.server.channel, TIMEOUT_NS, &err), err);
        assert_ok(channel_read(&pair.server.channel, bytes, 500, TIMEOUT_NS, &err), err);
    }
    assert_int_equal(channel_await(&pair.server.channel, NS_PER_MS, &err), -ETIMEDOUT);
    channel_shutdown(&pair.client);
    assert_ok(channel_await(&pair.server.channel, TIMEOUT_NS, &err), err);
    pair_close(&pair);
}

struct waiter {
    struct thread thread;
    struct channel *channel;
    bool writes;
    int result;
    struct ferry_error error;
};

static void *waiter_main(void *opaque)
{
    struct waiter *waiter = opaque;
    uint8_t *bytes = calloc(1, 1 << 20);

    /* more than any buffer holds */
    for (int i = 0; i < 64 && waiter->result == 0; i++) {
        struct iovec iov = {.iov_base = bytes, .iov_len = 1 << 20};

        waiter->result = waiter->writes
                             ? channel_writev(waiter->channel, &iov, 1, &waiter->error)
                             : channel_readv(waiter->channel, &iov, 1, CHANNEL_FOREVER, &waiter->error);
    }
    free(bytes);
    return NULL;
}

static void blocked_readers_and_writers_are_cancelled(void **state)
{
    for (int writes = 0; writes < 2; writes++) {
        int cancel = eventfd(0, EFD_CLOEXEC);
        struct waiter waiter = {.writes = writes};
        struct pair pair;

        pair_open(&pair);
        pair.client.cancel_fd = cancel;
        pair.client.write_ns = CHANNEL_FOREVER;
        waiter.channel = &pair.client;
        assert_int_equal(thread_start(&waiter.thread, THREAD_GENERAL, "waiter", waiter_main, &waiter, NULL),
                         0);
        poll(NULL, 0, 20); /* it may wait by then or not: both must end */
        eventfd_write(cancel, 1);
        thread_join(&waiter.thread);
        assert_int_equal(waiter.result, -ECANCELED);
        pair_close(&pair);
        close(cancel);
    }
}

static void silent_peer_ends_reads_and_writes(void **state)
{
    struct ferry_error err = {0};
    uint8_t *bytes = calloc(1, 4 << 20);
    struct iovec iov = {.iov_base = bytes, .iov_len = 4 << 20};
    struct pair pair;

    pair_open(&pair);
    pair.client.write_ns = 30 * NS_PER_MS;
    assert_int_equal(channel_read(&pair.client, bytes, 1, 30 * NS_PER_MS, &err), -ETIMEDOUT);
    assert_int_equal(channel_writev(&pair.client, &iov, 1, &err), -ETIMEDOUT);
    assert_contains(err.text, "silent");
    free(bytes);
    pair_close(&pair);
}

/* ---- somebody between the two ends ---- */

/* Forwards what comes from `from` to `to`, DELAY_MS before each STEP bytes, and changes one byte. */
struct relay {
    struct thread thread;
    int from, to;
    size_t step;
    int delay_ms;
    uint64_t change_at; /* UINT64_MAX: nothing */
};

static void *relay_main(void *opaque)
{
    struct relay *relay = opaque;
    uint64_t position = 0;
    uint8_t bytes[4096];

    fcntl(relay->from, F_SETFL, 0);
    fcntl(relay->to, F_SETFL, 0);
    for (;;) {
        ssize_t n = read(relay->from, bytes, relay->step);

        if (n <= 0)
            break;
        if (relay->change_at >= position && relay->change_at < position + (uint64_t)n)
            bytes[relay->change_at - position] ^= 0x40;
        position += (uint64_t)n;
        poll(NULL, 0, relay->delay_ms);
        if (send(relay->to, bytes, (size_t)n, MSG_NOSIGNAL) != n)
            break;
    }
    shutdown(relay->to, SHUT_WR);
    return NULL;
}

/* A pair whose client's bytes pass a relay once the handshake is done: its socket is exchanged for the
 * relay's.
 */
static void relay_open(struct relay *relay, struct pair *pair, int spare[2])
{
    int moved = fcntl(pair->client.fd, F_DUPFD_CLOEXEC, 3);

    make_sockets(spare);
    assert_true(dup2(spare[0], pair->client.fd) >= 0);
    relay->from = spare[1];
    relay->to = moved;
    assert_int_equal(thread_start(&relay->thread, THREAD_GENERAL, "relay", relay_main, relay, NULL), 0);
}

static void relay_close(struct relay *relay, const int spare[2])
{
    shutdown(spare[1], SHUT_RDWR);
    thread_join(&relay->thread);
    close(spare[0]);
    close(spare[1]);
    close(relay->to);
}

/* Every byte is news: it takes longer than the time allowed without any. */
static void slow_peer_is_waited_for(void **state)
{
    struct relay relay = {.step = 40, .delay_ms = 4, .change_at = UINT64_MAX};
    struct flow flow = {.sends = true, .bytes = 16000, .seed = 7};
    struct ferry_error err = {0};
    uint8_t bytes[16000];
    struct pair pair;
    uint64_t began;
    int spare[2];

    pair_open(&pair);
    relay_open(&relay, &pair, spare);
    began = clock_now_ns();
    flow.channel = &pair.client;
    assert_int_equal(thread_start(&flow.thread, THREAD_GENERAL, "flow", flow_main, &flow, NULL), 0);
    assert_ok(channel_read(&pair.server.channel, bytes, sizeof(bytes), NS_PER_S, &err), err);
    assert_true(clock_now_ns() - began > NS_PER_S);
    assert_int_equal(bytes[15999], pattern(15999));
    thread_join(&flow.thread);
    assert_int_equal(flow.result, 0);
    relay_close(&relay, spare);
    pair_close(&pair);
}

static void changed_bytes_are_noticed_wherever(void **state)
{
    static const uint64_t places[] = {0, 2, 3, 4, 5, 6, 500, 1000, 1020};

    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        struct relay relay = {.step = 4096, .change_at = places[i]};
        struct ferry_error err = {0};
        uint8_t bytes[1000] = {0};
        struct iovec iov = {.iov_base = bytes, .iov_len = sizeof(bytes)};
        struct pair pair;
        int spare[2];
        int result;

        pair_open(&pair);
        relay_open(&relay, &pair, spare);
        assert_ok(channel_writev(&pair.client, &iov, 1, &err), err);
        channel_finish(&pair.client);
        memset(bytes, 0xee, sizeof(bytes));
        result = channel_read(&pair.server.channel, bytes, sizeof(bytes), TIMEOUT_NS, &err);
        if (result == 0)
            fail_msg("a change of byte %llu was not noticed", (unsigned long long)places[i]);
        assert_contains(err.text, "host alpha");
        assert_int_equal(bytes[0], 0xee);
        relay_close(&relay, spare);
        pair_close(&pair);
    }
}

/* ---- whole migrations ---- */

static const uint64_t small[] = {64 * 4096};

static void encrypted_migration(struct migration *m)
{
    migration_init(m, small, 1, true);
    fake_guest_fill(&m->source, 0, 0, 32, 1);
    if (!m->certificates)
        migration_encrypt(m);
}

static void replace(struct ferry_credentials **place, struct ferry_credentials *by)
{
    credentials_unref(*place);
    *place = by;
}

/* Guest memory is on the wire in the clear, unless it is encrypted. */
static void nothing_of_the_guest_is_seen_outside(void **state)
{
    for (int encrypted = 0; encrypted < 2; encrypted++) {
        struct migration m;

        if (encrypted) {
            encrypted_migration(&m);
        } else {
            migration_init(&m, small, 1, true);
            replace(&m.source_options.credentials, NULL);
            replace(&m.destination_options.credentials, NULL);
        }
        for (size_t i = 0; i < 64 * 4096; i += 64)
            memcpy(m.source.regions[0].host_ptr + i, "the guest's secret, which is long", NEEDLE_SIZE);
        migration_cut_after(&m, UINT64_MAX);
        memcpy(m.proxy.needle, "the guest's secret, which is long", NEEDLE_SIZE);
        m.source_options.streams = 2;
        m.source_options.verify_memory = true;
        migration_run(&m);
        migration_assert_completed(&m);
        assert_int_equal(m.proxy.found > 0, !encrypted);
        if (encrypted) {
            assert_contains(m.source_progress.encryption, "TLSv1.3");
            assert_contains(m.destination_progress.encryption, "TLSv1.3");
            assert_contains(m.source_witness.log, "Encrypted: TLSv1.3");
            assert_contains(m.destination_witness.log, "alpha is who its certificate says");
        } else {
            assert_string_equal(m.source_progress.encryption, "");
        }
        migration_free(&m);
    }
}

struct refusal {
    const char *what;
    struct ferry_credentials *source; /* NULL: in the clear */
    struct ferry_credentials *destination;
    const char *source_says;
    const char *destination_logs;
};

/* Waits until a witness has heard WORDS. */
static bool heard(struct witness *witness, const char *words)
{
    uint64_t deadline = clock_deadline(UNIT_DEADLINE_MS);
    bool found;

    do {
        poll(NULL, 0, 1);
        pthread_mutex_lock(&witness->lock);
        found = strstr(witness->log, words) != NULL;
        pthread_mutex_unlock(&witness->lock);
    } while (!found && clock_now_ns() < deadline);
    return found;
}

/* The source runs on, as if nothing had been asked, and the destination goes on waiting. */
static void wrong_certificates_leave_the_source_running(void **state)
{
    struct refusal cases[] = {
        {"another CA", certificates_issue(&others, "alpha"), certificates_issue(&ours, "beta"),
         "the certificate that host beta shows is not from the CA",
         "host alpha does not accept this host's certificate"},
        {"expired", certificates_issue_for(&ours, "alpha", -7200, -3600), certificates_issue(&ours, "beta"),
         "host beta does not accept this host's certificate: it has expired",
         "the certificate that host alpha shows has expired"},
        {"source of another name", certificates_issue(&ours, "gamma"), certificates_issue(&ours, "beta"),
         "host beta does not accept this host's certificate",
         "the certificate that host alpha shows is that of gamma"},
        {"destination of another name", certificates_issue(&ours, "alpha"),
         certificates_issue(&ours, "gamma"), "the certificate that host beta shows is that of gamma",
         "host alpha does not accept"},
        {"source in the clear", NULL, certificates_issue(&ours, "beta"),
         "beta says: host beta encrypts this migration; the source does not", "it does not speak TLS"},
        {"destination in the clear", certificates_issue(&ours, "alpha"), NULL,
         "host beta does not speak TLS on this connection; has it a certificate?",
         "it speaks TLS, but host beta"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct migration m;

        encrypted_migration(&m);
        replace(&m.source_options.credentials, cases[i].source);
        replace(&m.destination_options.credentials, cases[i].destination);
        migration_create(&m);
        migration_start_destination(&m);
        m.source_result = ferry_session_run(m.from, &m.source_error);
        ferry_session_progress(m.from, &m.source_progress);
        if (!heard(&m.destination_witness, cases[i].destination_logs))
            fail_msg("%s: the destination says: %s", cases[i].what, m.destination_witness.log);
        /* it has not ended by that */
        assert_ok(ferry_session_cancel(m.to, &m.destination_error), m.destination_error);
        migration_join_destination(&m);
        assert_int_equal(m.destination_progress.outcome, FERRY_OUTCOME_CANCELLED);
        migration_assert_one(&m, true);
        assert_int_equal(m.source_progress.outcome, FERRY_OUTCOME_FAILED);
        assert_int_equal(m.source_progress.cause, FERRY_CAUSE_NETWORK);
        assert_contains(m.source_progress.error, cases[i].source_says);
        migration_free(&m);
    }
}

/* Who is refused does not keep the right one out. */
static void destination_still_takes_the_right_source(void **state)
{
    struct migration m;
    struct ferry_session *first;
    struct ferry_credentials *good;
    struct ferry_error err = {0};

    encrypted_migration(&m);
    good = credentials_ref(m.source_options.credentials);
    replace(&m.source_options.credentials, certificates_issue(&others, "alpha"));
    migration_create(&m);
    migration_start_destination(&m);
    assert_true(ferry_session_run(m.from, &err) < 0);
    first = m.from;
    replace(&m.source_options.credentials, good);
    assert_ok(ferry_source_new(&m.from, &m.source_options, &m.source_ops, &m.source, NULL, &err), err);
    m.source_witness.session = NULL;
    ferry_session_free(first);
    m.source_result = ferry_session_run(m.from, &m.source_error);
    ferry_session_progress(m.from, &m.source_progress);
    migration_join_destination(&m);
    migration_assert_completed(&m);
    migration_free(&m);
}

/* They connect, say nothing or a piece of a handshake, and stay: more than there is room for. */
static void strangers_do_not_keep_the_source_out(void **state)
{
    static const uint8_t begun[] = {TLS_FIRST_BYTE, 3, 1, 2, 0, 1, 0};
    struct migration m;
    int strangers[60];

    encrypted_migration(&m);
    migration_create(&m);
    migration_start_destination(&m);
    for (size_t i = 0; i < 60; i++) {
        strangers[i] = sock_connect(m.source_options.address, clock_deadline(UNIT_DEADLINE_MS), -1, NULL);
        assert_true(strangers[i] >= 0);
        if (i % 3 == 1)
            assert_int_equal(send(strangers[i], begun, sizeof(begun), MSG_NOSIGNAL), sizeof(begun));
        if (i % 3 == 2)
            assert_int_equal(send(strangers[i], "GET / HTTP/1.1\r\n\r\n", 18, MSG_NOSIGNAL), 18);
    }
    m.source_result = ferry_session_run(m.from, &m.source_error);
    ferry_session_progress(m.from, &m.source_progress);
    migration_join_destination(&m);
    migration_assert_completed(&m);
    for (size_t i = 0; i < 60; i++)
        close(strangers[i]);
    migration_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_is_not_expected_is_refused_on_both_sides),
        cmocka_unit_test(client_without_certificate_is_refused),
        cmocka_unit_test(older_tls_is_refused_by_either_side),
        cmocka_unit_test(server_that_answers_in_the_clear_is_known),
        cmocka_unit_test(handshake_ends_with_its_time_or_when_cancelled),
        cmocka_unit_test(bytes_arrive_in_order_both_ways_at_once),
        cmocka_unit_test(report_says_how_it_is_encrypted),
        cmocka_unit_test(end_that_was_meant_and_one_that_was_not_differ),
        cmocka_unit_test(waiting_for_bytes_sees_those_already_taken),
        cmocka_unit_test(blocked_readers_and_writers_are_cancelled),
        cmocka_unit_test(silent_peer_ends_reads_and_writes),
        cmocka_unit_test(slow_peer_is_waited_for),
        cmocka_unit_test(changed_bytes_are_noticed_wherever),
        cmocka_unit_test(nothing_of_the_guest_is_seen_outside),
        cmocka_unit_test(wrong_certificates_leave_the_source_running),
        cmocka_unit_test(destination_still_takes_the_right_source),
        cmocka_unit_test(strangers_do_not_keep_the_source_out),
    };

    return run_tests_apart(tests, make, clean_up);
}
