#include "unit.h"

#include "base/clock.h"
#include "base/sock.h"
#include "base/thread.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

struct fixture {
    struct unit_dir dir;
    char path[128];
    struct ferry_error err;
    int pair[2]; /* connected stream sockets */
    int cancel;  /* an eventfd, not readable */
};

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));

    *state = fixture;
    unit_dir_make(&fixture->dir);
    unit_path(&fixture->dir, "sock", fixture->path);
    fixture->cancel = eventfd(0, EFD_CLOEXEC);
    return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fixture->pair);
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;

    for (int i = 0; i < 2; i++) {
        if (fixture->pair[i] >= 0)
            close(fixture->pair[i]);
    }
    close(fixture->cancel);
    unit_dir_remove(&fixture->dir);
    free(fixture);
    return 0;
}

static uint64_t in_time(void)
{
    return clock_deadline(UNIT_DEADLINE_MS);
}

static void cancel(struct fixture *fixture)
{
    uint64_t one = 1;

    assert_int_equal(write(fixture->cancel, &one, sizeof(one)), sizeof(one));
}

/* Listens, connects, accepts, says hello, and closes all. */
static void meet(struct fixture *fixture, const char *address)
{
    struct ferry_error *err = &fixture->err;
    char listening[SOCK_ADDRESS_SIZE];
    char peer[SOCK_ADDRESS_SIZE];
    char text[6];
    int server = sock_listen(address, err);
    int from;
    int to;

    if (server < 0)
        fail_msg("%s", err->text);
    assert_ok(sock_local_address(server, listening, err), *err);
    from = sock_connect(listening, in_time(), fixture->cancel, err);
    if (from < 0)
        fail_msg("%s", err->text);
    to = sock_accept(server, in_time(), fixture->cancel, err);
    if (to < 0)
        fail_msg("%s", err->text);
    assert_ok(sock_tune(from, 3000, err), *err);
    assert_ok(sock_write_full(from, "hello", 6, in_time(), fixture->cancel, err), *err);
    assert_ok(sock_read_full(to, text, 6, in_time(), fixture->cancel, err), *err);
    assert_string_equal(text, "hello");
    assert_in_range(sock_shortest_rtt_ns(to), 0, UNIT_DEADLINE_MS * NS_PER_MS);
    assert_ok(sock_peer_address(from, peer, err), *err);
    assert_string_equal(peer, listening);
    assert_int_equal(sock_is_within_host(from), strchr(listening, '/') == NULL);
    assert_ok(sock_peer_address(to, peer, err), *err);
    assert_int_equal(fcntl(server, F_GETFD), FD_CLOEXEC);
    assert_int_equal(fcntl(from, F_GETFD), FD_CLOEXEC);
    assert_int_equal(fcntl(to, F_GETFD), FD_CLOEXEC);
    assert_int_equal(fcntl(from, F_GETFL) & O_NONBLOCK, 0);
    close(from);
    close(to);
    close(server);
}

static void two_ends_meet_over_every_kind_of_address(void **state)
{
    struct fixture *fixture = *state;
    int fd;

    meet(fixture, "127.0.0.1:0");
    meet(fixture, fixture->path);
    fd = sock_listen("[::1]:0", &fixture->err);
    if (fd < 0) /* a host without IPv6 */
        return;
    close(fd);
    meet(fixture, "[::1]:0");
}

static void bad_addresses_are_refused_in_words(void **state)
{
    static const char *const bad[] = {
        "",         ":",           ":80",          "127.0.0.1",    "127.0.0.1:",     "127.0.0.1:65536",
        "1.2.3:80", "[::1]",       "[::1]:",       "[::1:80",      "::1]:80",        "127.0.0.1:123456",
        "[]:80",    "localhost:1", "[1.2.3.4]:80", "127.0.0.1:-1", "127.0.0.1: 80",  "127.0.0.1:80 ",
        "[",        "]:1",         "1.2.3.4.5:1",  "256.0.0.1:80", "127.0.0.1:0x50", "[::1]x:80",
    };
    struct fixture *fixture = *state;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        if (sock_listen(bad[i], &fixture->err) != -EINVAL || sock_connect(bad[i], 0, -1, NULL) != -EINVAL)
            fail_msg("\"%s\" was not refused", bad[i]);
        assert_contains(fixture->err.text, bad[i]);
        assert_false(sock_address_is_loopback(bad[i]));
    }
}

static void path_too_long_for_a_socket_is_refused(void **state)
{
    struct fixture *fixture = *state;
    char path[200];

    memset(path, 'x', sizeof(path) - 1);
    path[0] = '/';
    path[sizeof(path) - 1] = '\0';
    assert_int_equal(sock_listen(path, &fixture->err), -ENAMETOOLONG);
    assert_contains(fixture->err.text, "too long");
}

static void loopback_is_told_from_other_addresses(void **state)
{
    assert_true(sock_address_is_loopback("127.0.0.1:1"));
    assert_true(sock_address_is_loopback("127.255.0.1:1"));
    assert_true(sock_address_is_loopback("[::1]:1"));
    assert_true(sock_address_is_loopback("[::ffff:127.0.0.1]:1"));
    assert_true(sock_address_is_loopback("/run/ferry"));
    assert_false(sock_address_is_loopback("0.0.0.0:1"));
    assert_false(sock_address_is_loopback("128.0.0.1:1"));
    assert_false(sock_address_is_loopback("[::]:1"));
    assert_false(sock_address_is_loopback("[::ffff:10.0.0.1]:1"));
}

static void nobody_listening_is_said_with_the_address(void **state)
{
    struct fixture *fixture = *state;
    char address[SOCK_ADDRESS_SIZE];
    int fd = sock_listen("127.0.0.1:0", &fixture->err);

    assert_ok(sock_local_address(fd, address, &fixture->err), fixture->err);
    close(fd);
    assert_int_equal(sock_connect(address, in_time(), -1, &fixture->err), -ECONNREFUSED);
    assert_contains(fixture->err.text, address);
    assert_int_equal(sock_connect(fixture->path, in_time(), -1, &fixture->err), -ENOENT);
    assert_contains(fixture->err.text, fixture->path);
}

static void old_unix_socket_is_replaced_and_a_live_one_is_not(void **state)
{
    struct fixture *fixture = *state;
    int first = sock_listen(fixture->path, &fixture->err);
    struct stat status;
    int again;

    assert_true(first >= 0);
    assert_int_equal(sock_listen(fixture->path, &fixture->err), -EADDRINUSE);
    assert_contains(fixture->err.text, fixture->path);
    close(first);
    again = sock_listen(fixture->path, &fixture->err);
    assert_true(again >= 0);
    assert_int_equal(stat(fixture->path, &status), 0);
    assert_int_equal(status.st_mode & 0777, 0600);
    close(again);
}

static void file_in_the_place_of_a_socket_is_left_alone(void **state)
{
    struct fixture *fixture = *state;
    int fd = open(fixture->path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);

    close(fd);
    assert_int_equal(sock_listen(fixture->path, &fixture->err), -EEXIST);
    assert_int_equal(access(fixture->path, F_OK), 0);
}

static void port_in_use_is_refused(void **state)
{
    struct fixture *fixture = *state;
    char address[SOCK_ADDRESS_SIZE];
    int fd = sock_listen("127.0.0.1:0", &fixture->err);

    assert_ok(sock_local_address(fd, address, &fixture->err), fixture->err);
    assert_int_equal(sock_listen(address, &fixture->err), -EADDRINUSE);
    assert_contains(fixture->err.text, address);
    close(fd);
}

static void waits_end_at_their_deadline(void **state)
{
    struct fixture *fixture = *state;
    int listener = sock_listen("127.0.0.1:0", &fixture->err);
    static char plenty[4 << 20];
    char byte;

    assert_int_equal(sock_accept(listener, clock_deadline(10), -1, &fixture->err), -ETIMEDOUT);
    assert_int_equal(
        sock_read_full(fixture->pair[0], &byte, 1, clock_deadline(10), fixture->cancel, &fixture->err),
        -ETIMEDOUT);
    assert_int_equal(sock_read_full(fixture->pair[0], &byte, 1, 0, -1, &fixture->err), -ETIMEDOUT);
    assert_int_equal(sock_write_full(fixture->pair[0], plenty, sizeof(plenty), clock_deadline(10),
                                     fixture->cancel, &fixture->err),
                     -ETIMEDOUT);
    /* a part is there, the rest never comes */
    assert_int_equal(write(fixture->pair[1], "ab", 2), 2);
    assert_int_equal(sock_read_full(fixture->pair[0], plenty, 3, clock_deadline(10), -1, &fixture->err),
                     -ETIMEDOUT);
    close(listener);
}

static void full_unix_backlog_ends_at_the_deadline(void **state)
{
    struct fixture *fixture = *state;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int fds[8];
    int count = 0;

    snprintf(address.sun_path, sizeof(address.sun_path), "%.100s", fixture->path);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(listener, 0), 0);
    while (count < 8) {
        fds[count] = sock_connect(fixture->path, clock_deadline(30), fixture->cancel, &fixture->err);
        if (fds[count] < 0)
            break;
        count++;
    }
    assert_in_range(count, 1, 7);
    assert_int_equal(fds[count], -ETIMEDOUT);
    cancel(fixture);
    assert_int_equal(sock_connect(fixture->path, in_time(), fixture->cancel, &fixture->err), -ECANCELED);
    while (count > 0)
        close(fds[--count]);
    close(listener);
}

static void waits_end_when_cancelled(void **state)
{
    struct fixture *fixture = *state;
    int listener = sock_listen("127.0.0.1:0", &fixture->err);
    static char plenty[4 << 20];
    char byte;

    cancel(fixture);
    assert_int_equal(sock_accept(listener, UINT64_MAX, fixture->cancel, &fixture->err), -ECANCELED);
    assert_int_equal(sock_read_full(fixture->pair[0], &byte, 1, UINT64_MAX, fixture->cancel, &fixture->err),
                     -ECANCELED);
    assert_int_equal(
        sock_write_full(fixture->pair[0], plenty, sizeof(plenty), UINT64_MAX, fixture->cancel, &fixture->err),
        -ECANCELED);
    /* even where there is nothing to wait for */
    assert_int_equal(write(fixture->pair[1], "a", 1), 1);
    assert_int_equal(sock_read_full(fixture->pair[0], &byte, 1, UINT64_MAX, fixture->cancel, &fixture->err),
                     -ECANCELED);
    close(listener);
}

struct waiting {
    struct fixture *fixture;
    struct ferry_error err;
    int result;
};

static void *wait_for_a_byte(void *opaque)
{
    struct waiting *waiting = opaque;
    char byte;

    waiting->result = sock_read_full(waiting->fixture->pair[0], &byte, 1, UINT64_MAX,
                                     waiting->fixture->cancel, &waiting->err);
    return NULL;
}

static void cancel_reaches_a_wait_on_another_thread(void **state)
{
    struct fixture *fixture = *state;
    struct waiting waiting = {.fixture = fixture};
    struct thread thread;

    assert_ok(thread_start(&thread, THREAD_GENERAL, "waiting", wait_for_a_byte, &waiting, &fixture->err),
              fixture->err);
    cancel(fixture);
    thread_join(&thread);
    assert_int_equal(waiting.result, -ECANCELED);
}

static void peer_that_closes_mid_read_is_named_so(void **state)
{
    struct fixture *fixture = *state;
    char data[10];

    assert_int_equal(write(fixture->pair[1], "abc", 3), 3);
    close(fixture->pair[1]);
    fixture->pair[1] = -1;
    assert_int_equal(sock_read_full(fixture->pair[0], data, sizeof(data), in_time(), -1, &fixture->err),
                     -EPIPE);
    assert_string_equal(fixture->err.text, "the peer closed the connection");
    assert_int_equal(sock_write_full(fixture->pair[0], data, 1, in_time(), -1, &fixture->err), -EPIPE);
    assert_string_equal(fixture->err.text, "the peer closed the connection");
}

static void reset_is_a_closed_connection_too(void **state)
{
    struct fixture *fixture = *state;
    struct linger abort_it = {.l_onoff = 1};
    char address[SOCK_ADDRESS_SIZE];
    int listener = sock_listen("127.0.0.1:0", &fixture->err);
    char byte;
    int from;
    int to;

    assert_ok(sock_local_address(listener, address, &fixture->err), fixture->err);
    from = sock_connect(address, in_time(), -1, &fixture->err);
    to = sock_accept(listener, in_time(), -1, &fixture->err);
    assert_true(from >= 0 && to >= 0);
    assert_int_equal(setsockopt(to, SOL_SOCKET, SO_LINGER, &abort_it, sizeof(abort_it)), 0);
    close(to);
    assert_int_equal(sock_read_full(from, &byte, 1, in_time(), -1, &fixture->err), -EPIPE);
    assert_contains(fixture->err.text, "the peer closed the connection");
    close(from);
    close(listener);
}

static void *write_in_pieces(void *opaque)
{
    struct fixture *fixture = opaque;

    for (unsigned i = 0; i < 1000; i++) {
        uint8_t bytes[3] = {(uint8_t)i, (uint8_t)(i >> 8), 0xaa};

        if (sock_write_full(fixture->pair[1], bytes, 1 + i % 3, in_time(), -1, NULL))
            abort();
    }
    return NULL;
}

static void pieces_are_put_together(void **state)
{
    struct fixture *fixture = *state;
    struct thread thread;
    uint8_t data[2000];
    size_t at = 0;

    assert_ok(thread_start(&thread, THREAD_GENERAL, "pieces", write_in_pieces, fixture, &fixture->err),
              fixture->err);
    assert_ok(sock_read_full(fixture->pair[0], data, 1999, in_time(), fixture->cancel, &fixture->err),
              fixture->err);
    thread_join(&thread);
    for (unsigned i = 0; i < 1000; i++) {
        assert_int_equal(data[at], (uint8_t)i);
        at += 1 + i % 3;
    }
    assert_ok(sock_read_full(fixture->pair[0], NULL, 0, 0, -1, &fixture->err), fixture->err);
    assert_ok(sock_write_full(fixture->pair[0], NULL, 0, 0, -1, &fixture->err), fixture->err);
}

static void tuning_sets_the_time_a_silent_peer_has(void **state)
{
    struct fixture *fixture = *state;
    unsigned timeout = 0;
    int value = 0;
    socklen_t size = sizeof(timeout);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_ok(sock_tune(fd, 10000, &fixture->err), fixture->err);
    assert_int_equal(getsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, &size), 0);
    assert_int_equal(timeout, 10000);
    assert_int_equal(getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &value, &size), 0);
    assert_true(value);
    assert_ok(sock_tune(fd, 1, &fixture->err), fixture->err);
    assert_ok(sock_tune(fixture->pair[0], 10000, &fixture->err), fixture->err);
    assert_int_equal(sock_tune(fixture->cancel, 10000, &fixture->err), -ENOTSOCK);
    assert_int_equal(sock_shortest_rtt_ns(fixture->pair[0]), 0);
    assert_int_equal(sock_shortest_rtt_ns(fd), UINT64_MAX); /* not connected */
    assert_int_equal(sock_shortest_rtt_ns(fixture->cancel), UINT64_MAX);
    close(fd);
}

#define SOCK_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        SOCK_TEST(two_ends_meet_over_every_kind_of_address),
        SOCK_TEST(bad_addresses_are_refused_in_words),
        SOCK_TEST(path_too_long_for_a_socket_is_refused),
        SOCK_TEST(loopback_is_told_from_other_addresses),
        SOCK_TEST(nobody_listening_is_said_with_the_address),
        SOCK_TEST(old_unix_socket_is_replaced_and_a_live_one_is_not),
        SOCK_TEST(file_in_the_place_of_a_socket_is_left_alone),
        SOCK_TEST(port_in_use_is_refused),
        SOCK_TEST(waits_end_at_their_deadline),
        SOCK_TEST(full_unix_backlog_ends_at_the_deadline),
        SOCK_TEST(waits_end_when_cancelled),
        SOCK_TEST(cancel_reaches_a_wait_on_another_thread),
        SOCK_TEST(peer_that_closes_mid_read_is_named_so),
        SOCK_TEST(reset_is_a_closed_connection_too),
        SOCK_TEST(pieces_are_put_together),
        SOCK_TEST(tuning_sets_the_time_a_silent_peer_has),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
