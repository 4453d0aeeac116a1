/*
 * User networking by its backend's table, packets made by hand.
 */
#include "unit.h"

#include "base/clock.h"
#include "base/thread.h"
#include "net/user.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#define PACKETS 64

struct wire {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint8_t data[PACKETS][NET_PACKET_MAX];
    size_t size[PACKETS];
    unsigned count;
    unsigned taken;
};

static const uint8_t guest_mac[6] = {0x52, 0x54, 0, 1, 2, 3};

static void receive(void *opaque, const void *packet, size_t size)
{
    struct wire *wire = opaque;

    pthread_mutex_lock(&wire->lock);
    if (wire->count < PACKETS) {
        memcpy(wire->data[wire->count], packet, size);
        wire->size[wire->count++] = size;
        pthread_cond_signal(&wire->changed);
    }
    pthread_mutex_unlock(&wire->lock);
}

static int setup(void **state)
{
    struct wire *wire = calloc(1, sizeof(*wire));

    pthread_mutex_init(&wire->lock, NULL);
    thread_cond_init(&wire->changed);
    *state = wire;
    return 0;
}

static int teardown(void **state)
{
    struct wire *wire = *state;

    pthread_mutex_destroy(&wire->lock);
    pthread_cond_destroy(&wire->changed);
    free(wire);
    return 0;
}

/* The next packet from the network; fails the test when none comes. */
static const uint8_t *next_packet(struct wire *wire, size_t *size)
{
    uint64_t deadline = clock_deadline(UNIT_DEADLINE_MS);
    const uint8_t *packet = NULL;
    bool in_time = true;

    pthread_mutex_lock(&wire->lock);
    while (wire->taken == wire->count && in_time)
        in_time = thread_cond_wait_until(&wire->changed, &wire->lock, deadline);
    if (wire->taken < wire->count) {
        *size = wire->size[wire->taken];
        packet = wire->data[wire->taken++];
    }
    pthread_mutex_unlock(&wire->lock);
    assert_non_null(packet);
    return packet;
}

static struct net_backend *make(struct wire *wire, const char *specification)
{
    struct net_backend *backend;
    struct ferry_error err = {0};

    assert_ok(net_backend_new(&backend, specification, NULL, &err), err);
    backend->receive = receive;
    backend->receiver = wire;
    return backend;
}

static void start(struct net_backend *backend)
{
    struct ferry_error err = {0};

    assert_ok(backend->ops->start(backend, &err), err);
}

/* Puts an Ethernet and IPv4/ARP neutral header: destination, source, type. */
static uint8_t *put_ether(uint8_t *packet, const uint8_t destination[6], uint16_t type)
{
    memcpy(packet, destination, 6);
    memcpy(packet + 6, guest_mac, 6);
    packet[12] = (uint8_t)(type >> 8);
    packet[13] = (uint8_t)type;
    return packet + 14;
}

static void send_arp(struct net_backend *backend, bool reply, const uint8_t to_mac[6], const char *to,
                     const char *from)
{
    static const uint8_t everyone[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    uint8_t packet[42] = {0};
    uint8_t *arp = put_ether(packet, reply ? to_mac : everyone, 0x0806);

    memcpy(arp, (const uint8_t[]){0, 1, 8, 0, 6, 4, 0, reply ? 2 : 1}, 8);
    memcpy(arp + 8, guest_mac, 6);
    assert_int_equal(inet_pton(AF_INET, from, arp + 14), 1);
    if (reply)
        memcpy(arp + 18, to_mac, 6);
    assert_int_equal(inet_pton(AF_INET, to, arp + 24), 1);
    backend->ops->send(backend, packet, sizeof(packet));
}

static void assert_gateway_answers(struct net_backend *backend, struct wire *wire)
{
    const uint8_t *packet;
    size_t size;

    send_arp(backend, false, NULL, "10.0.2.2", "10.0.2.15");
    packet = next_packet(wire, &size);
    assert_true(size >= 42);
    assert_memory_equal(packet, guest_mac, 6);
    assert_memory_equal(packet + 12, ((const uint8_t[]){8, 6}), 2);
    assert_int_equal(packet[21], 2); /* a reply */
    assert_memory_equal(packet + 28, ((const uint8_t[]){10, 0, 2, 2}), 4);
}

static uint16_t free_port(int type)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(addr);
    int fd = socket(AF_INET, type, 0);

    assert_int_equal(bind(fd, (struct sockaddr *)&addr, size), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&addr, &size), 0);
    close(fd);
    return ntohs(addr.sin_port);
}

static int connect_to(uint16_t port)
{
    struct sockaddr_in addr = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0)
        return fd;
    close(fd);
    return -1;
}

static void forwards_are_parsed(void **state)
{
    struct user_net_options options;
    struct ferry_error err = {0};
    char text[INET_ADDRSTRLEN];

    assert_ok(user_net_parse(&options, "", &err), err);
    assert_int_equal(options.forward_count, 0);
    assert_ok(user_net_parse(&options, "hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=udp::53-10.0.2.99:5353", &err),
              err);
    assert_int_equal(options.forward_count, 2);
    assert_false(options.forwards[0].udp);
    assert_int_equal(options.forwards[0].host_port, 2222);
    assert_int_equal(options.forwards[0].guest_port, 22);
    assert_string_equal(inet_ntop(AF_INET, &options.forwards[0].guest_addr, text, sizeof(text)), "10.0.2.15");
    assert_true(options.forwards[1].udp);
    assert_string_equal(inet_ntop(AF_INET, &options.forwards[1].host_addr, text, sizeof(text)), "127.0.0.1");
    assert_string_equal(inet_ntop(AF_INET, &options.forwards[1].guest_addr, text, sizeof(text)), "10.0.2.99");
}

static void wrong_options_are_refused_in_words(void **state)
{
    static const struct {
        const char *text;
        const char *words;
    } cases[] = {
        {"user,", NULL},
        {"user,nonsense", "unknown option \"nonsense\""},
        {"user,hostfwd=", "not of the form"},
        {"user,hostfwd=sctp::1-:2", "neither tcp: nor udp:"},
        {"user,hostfwd=tcp:127.0.0.1:22", "after a -"},
        {"user,hostfwd=tcp:127.0.0.1:0-:22", "1 to 65535"},
        {"user,hostfwd=tcp:127.0.0.1:65536-:22", "1 to 65535"},
        {"user,hostfwd=tcp:127.0.0.1:-1-:22", "1 to 65535"},
        {"user,hostfwd=tcp:127.0.0.1:2222-:", "1 to 65535"},
        {"user,hostfwd=tcp:127.0.0.1:22x-:22", "1 to 65535"},
        {"user,hostfwd=tcp:localhost:2222-:22", "not an IPv4 address"},
        {"user,hostfwd=tcp:1.2.3:2222-:22", "not an IPv4 address"},
        {"user,hostfwd=tcp:2222-:22", "has no port"},
        {"user,hostfwd=tcp::2222-192.168.0.1:22", "outside the guest's network"},
        {"user,hostfwd=tcp::2222-:22,hostfwd=tcp:127.0.0.1:2222-:23", "a second time"},
        {"user,hostfwd=tcp::2222-:22,,", "unknown option"},
        {"bridge0", "no network of that name"},
        {"use", "no network of that name"},
        {"", "no network of that name"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct net_backend *backend = NULL;
        struct ferry_error err = {0};
        int result = net_backend_new(&backend, cases[i].text, NULL, &err);

        if (!cases[i].words) {
            assert_ok(result, err);
            net_backend_destroy(backend);
            continue;
        }
        assert_int_equal(result, -EINVAL);
        assert_contains(err.text, cases[i].words);
    }
}

static void a_taken_port_fails_the_check_by_name(void **state)
{
    static const int types[] = {SOCK_STREAM, SOCK_DGRAM};

    for (unsigned i = 0; i < 2; i++) {
        struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t size = sizeof(addr);
        struct ferry_error err = {0};
        char text[100];
        char words[100];
        int fd = socket(AF_INET, types[i], 0);

        assert_int_equal(bind(fd, (struct sockaddr *)&addr, size), 0);
        assert_int_equal(getsockname(fd, (struct sockaddr *)&addr, &size), 0);
        if (types[i] == SOCK_STREAM)
            assert_int_equal(listen(fd, 1), 0);
        snprintf(text, sizeof(text), "user,hostfwd=%s:127.0.0.1:%u-:22", i ? "udp" : "tcp",
                 ntohs(addr.sin_port));
        snprintf(words, sizeof(words), "port 127.0.0.1:%u is in use; choose another hostfwd port",
                 ntohs(addr.sin_port));
        assert_int_equal(net_backend_check(text, &err), -EADDRINUSE);
        assert_contains(err.text, words);
        close(fd);
        assert_ok(net_backend_check(text, &err), err);
    }
}

static void the_gateway_answers_arp(void **state)
{
    struct wire *wire = *state;
    struct net_backend *backend = make(wire, "user");

    start(backend);
    assert_gateway_answers(backend, wire);
    net_backend_destroy(backend);
}

static uint16_t checksum(const uint8_t *data, size_t size)
{
    uint32_t sum = 0;

    for (size_t i = 0; i < size; i += 2)
        sum += (uint32_t)(data[i] << 8 | (i + 1 < size ? data[i + 1] : 0));
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static void dhcp_offers_the_guests_address(void **state)
{
    static const uint8_t everyone[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    struct wire *wire = *state;
    struct net_backend *backend = make(wire, "user");
    uint8_t packet[14 + 20 + 8 + 300] = {0};
    uint8_t *ip = put_ether(packet, everyone, 0x0800);
    uint8_t *udp = ip + 20;
    uint8_t *bootp = udp + 8;
    const uint8_t *answer;
    uint16_t sum;
    size_t size;

    memcpy(ip, (const uint8_t[]){0x45, 0, 1, 72, 0, 0, 0, 0, 64, 17}, 10); /* length 328 */
    memset(ip + 16, 0xff, 4);
    sum = checksum(ip, 20);
    ip[10] = (uint8_t)(sum >> 8);
    ip[11] = (uint8_t)sum;
    memcpy(udp, (const uint8_t[]){0, 68, 0, 67, 1, 52, 0, 0}, 8); /* length 308, no checksum */
    memcpy(bootp, (const uint8_t[]){1, 1, 6, 0, 1, 2, 3, 4}, 8);
    memcpy(bootp + 28, guest_mac, 6);
    memcpy(bootp + 236, (const uint8_t[]){0x63, 0x82, 0x53, 0x63, 53, 1, 1, 0xff}, 8); /* DISCOVER */
    start(backend);
    backend->ops->send(backend, packet, sizeof(packet));
    answer = next_packet(wire, &size);
    assert_true(size > 14 + 20 + 8 + 240);
    assert_int_equal(answer[14 + 20 + 8], 2); /* BOOTREPLY */
    assert_memory_equal(answer + 14 + 20 + 8 + 16, ((const uint8_t[]){10, 0, 2, 15}), 4);
    net_backend_destroy(backend);
}

/* A connection from outside makes the backend ask for the guest's MAC and send it a SYN. */
static void assert_forward_works(struct net_backend *backend, struct wire *wire, uint16_t port,
                                 int *connection)
{
    const uint8_t *packet;
    size_t size;

    *connection = connect_to(port);
    assert_true(*connection >= 0);
    do {
        packet = next_packet(wire, &size);
        if (packet[12] == 8 && packet[13] == 6) /* "who has 10.0.2.15": we */
            send_arp(backend, true, packet + 6, "10.0.2.2", "10.0.2.15");
    } while (packet[13] != 0);
    assert_int_equal(packet[14 + 9], 6);      /* TCP */
    assert_int_equal(packet[14 + 20 + 2], 0); /* to port 22 */
    assert_int_equal(packet[14 + 20 + 3], 22);
    assert_int_equal(packet[14 + 20 + 13] & 0x12, 0x02); /* SYN */
}

static void connections_from_outside_reach_the_guest(void **state)
{
    struct wire *wire = *state;
    uint16_t port = free_port(SOCK_STREAM);
    struct net_backend *backend;
    char text[100];
    int connection;

    snprintf(text, sizeof(text), "user,hostfwd=tcp:127.0.0.1:%u-:22", port);
    backend = make(wire, text);
    assert_int_equal(connect_to(port), -1); /* not before start */
    start(backend);
    assert_forward_works(backend, wire, port, &connection);
    close(connection);
    net_backend_destroy(backend);
    assert_int_equal(connect_to(port), -1);
}

/* The move of a VM on one host: two backends with the same options, one running at a time. */
static void ports_pass_from_one_backend_to_the_other(void **state)
{
    struct wire *wire = *state;
    uint16_t port = free_port(SOCK_STREAM);
    uint16_t udp_port = free_port(SOCK_DGRAM);
    struct net_backend *source;
    struct net_backend *destination;
    struct ferry_error err = {0};
    char text[200];
    int old;
    int connection;
    char byte;

    snprintf(text, sizeof(text), "user,hostfwd=tcp:127.0.0.1:%u-:22,hostfwd=udp:127.0.0.1:%u-:53", port,
             udp_port);
    source = make(wire, text);
    destination = make(wire, text); /* made while the source runs */
    start(source);
    assert_forward_works(source, wire, port, &old);
    assert_int_equal(net_backend_check(text, &err), -EADDRINUSE);

    source->ops->stop(source);
    source->ops->stop(source);
    assert_ok(net_backend_check(text, &err), err);
    start(destination);
    wire->taken = wire->count;
    assert_forward_works(destination, wire, port, &connection);
    close(connection);
    assert_gateway_answers(destination, wire);

    /* It falls back: the source takes its ports again and goes on. */
    destination->ops->stop(destination);
    start(source);
    wire->taken = wire->count;
    assert_forward_works(source, wire, port, &connection);
    close(connection);

    /* It succeeds: connections of old end when the source is gone. */
    source->ops->stop(source);
    start(destination);
    net_backend_destroy(source);
    assert_true(recv(old, &byte, 1, 0) <= 0);
    close(old);
    net_backend_destroy(destination);
}

static void a_port_taken_at_start_is_only_a_missing_forward(void **state)
{
    struct wire *wire = *state;
    uint16_t port = free_port(SOCK_STREAM);
    struct net_backend *a;
    struct net_backend *b;
    char text[100];

    snprintf(text, sizeof(text), "user,hostfwd=tcp:127.0.0.1:%u-:22", port);
    a = make(wire, text);
    b = make(wire, text);
    start(a);
    start(b);
    assert_gateway_answers(b, wire);
    net_backend_destroy(b);
    net_backend_destroy(a);
}

static void a_stopped_backend_delivers_nothing(void **state)
{
    struct wire *wire = *state;
    struct net_backend *backend = make(wire, "user");

    send_arp(backend, false, NULL, "10.0.2.2", "10.0.2.15"); /* not started: dropped */
    start(backend);
    assert_gateway_answers(backend, wire);
    backend->ops->stop(backend);
    send_arp(backend, false, NULL, "10.0.2.2", "10.0.2.15");
    assert_int_equal(wire->count, 1);
    start(backend);
    assert_gateway_answers(backend, wire);
    net_backend_destroy(backend);
}

static void random_packets_never_hurt(void **state)
{
    struct wire *wire = *state;
    struct net_backend *backend = make(wire, "user");
    uint64_t seed = 99;

    print_message("seed 99\n");
    start(backend);
    for (unsigned i = 0; i < 5000; i++) {
        uint8_t packet[NET_PACKET_MAX];
        size_t size = 34 + unit_random(&seed) % 200;

        for (size_t j = 0; j < size; j++)
            packet[j] = (uint8_t)unit_random(&seed);
        packet[12] = 8;
        packet[13] = unit_random(&seed) % 2 ? 6 : 0;
        if (unit_random(&seed) % 2)
            packet[14] = 0x45;
        memcpy(packet + 30, (const uint8_t[]){10, 0, 2, 77}, 4); /* whatever it is, it stays inside */
        backend->ops->send(backend, packet, size);
    }
    net_backend_destroy(backend);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(forwards_are_parsed),
        CASE(wrong_options_are_refused_in_words),
        CASE(a_taken_port_fails_the_check_by_name),
        CASE(the_gateway_answers_arp),
        CASE(dhcp_offers_the_guests_address),
        CASE(connections_from_outside_reach_the_guest),
        CASE(ports_pass_from_one_backend_to_the_other),
        CASE(a_port_taken_at_start_is_only_a_missing_forward),
        CASE(a_stopped_backend_delivers_nothing),
        CASE(random_packets_never_hurt),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
