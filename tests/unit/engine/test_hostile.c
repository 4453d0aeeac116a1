/* Peers that are not who or what they should be: strangers, other versions, silence, and fuzz with a fixed
 * seed. */
#include "harness.h"

#include "base/clock.h"
#include "base/sock.h"
#include "engine/link.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* A peer timeout that no thread on a busy machine is kept waiting for. */
#define LONG_ENOUGH_NS (2 * NS_PER_S)
#define FUZZ_SEED      UINT64_C(0x9e3779b97f4a7c15)
#define FUZZ_ROUNDS    200

static const uint64_t small[] = {64 * 4096};

static void small_migration(struct migration *m)
{
    migration_init(m, small, 1, true);
    fake_guest_fill(&m->source, 0, 0, 16, 1);
}

static int connect_to(const struct migration *m)
{
    int fd = sock_connect(m->source_options.address, clock_deadline(10000), -1, NULL);

    assert_true(fd >= 0);
    return fd;
}

/* ---- a peer of our own making ---- */

static struct wire_hello peer_hello(const struct migration *m, enum wire_connection connection)
{
    struct wire_hello hello = {.version_min = 1,
                               .version_max = 1,
                               .connection = connection,
                               .streams = 1,
                               .page_size = FERRY_PAGE_SIZE};

    memcpy(hello.migration_id, m->source_options.migration_id, sizeof(hello.migration_id));
    memcpy(hello.token, m->source_options.token, sizeof(hello.token));
    memcpy(hello.source, m->source_options.source, sizeof(hello.source));
    memcpy(hello.destination, m->source_options.destination, sizeof(hello.destination));
    return hello;
}

static void peer_connect(const struct migration *m, struct link *link, const struct wire_hello *hello)
{
    struct buffer body = BUFFER_INIT;

    link_init(link, connect_to(m), -1, 20 * NS_PER_S);
    wire_hello_encode(&body, hello);
    link_send(link, WIRE_HELLO, 0, &body, NULL);
    buffer_free(&body);
}

static void peer_send_regions(const struct migration *m, struct link *link)
{
    struct buffer body = BUFFER_INIT;

    wire_regions_encode(&body, m->source.regions, m->source.region_count);
    link_send(link, WIRE_REGIONS, 0, &body, NULL);
    buffer_free(&body);
}

static void peer_send_start(struct link *link)
{
    struct buffer body = BUFFER_INIT;

    wire_start_encode(&body, &(struct wire_start){.quiesce_timeout_ns = NS_PER_MS});
    link_send(link, WIRE_START, 0, &body, NULL);
    buffer_free(&body);
}

/* Reads frames, page data included, until one of TYPE has come. */
static int peer_read_until(struct link *link, enum wire_type type, struct frame *frame)
{
    int result;

    do {
        result = link_receive(link, frame, 20 * NS_PER_S, NULL);
        if (result == 0 && frame->data > 0) {
            uint8_t *data = malloc(frame->data);
            struct iovec iov = {.iov_base = data, .iov_len = frame->data};

            result = link_receive_data(link, &iov, 1, NULL);
            free(data);
        }
    } while (result == 0 && frame->type != type);
    return result;
}

/* ---- at the destination's door ---- */

static void strangers_do_not_disturb_the_awaited_migration(void **state)
{
    static const char *const noise[] = {"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                                        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "SSH-2.0-scanner\r\n",
                                        "\x01"};
    struct migration m;
    int fds[60];

    small_migration(&m);
    m.source_options.streams = 3;
    migration_create(&m);
    migration_start_destination(&m);
    for (int i = 0; i < 60; i++) {
        fds[i] = connect_to(&m);
        if (i % 3 == 0)
            send(fds[i], noise[i / 3 % 4], strlen(noise[i / 3 % 4]), MSG_NOSIGNAL);
        if (i % 7 == 0) {
            close(fds[i]); /* a port scanner */
            fds[i] = -1;
        }
    }
    m.source_result = ferry_session_run(m.from, &m.source_error);
    ferry_session_progress(m.from, &m.source_progress);
    migration_join_destination(&m);
    migration_assert_completed(&m);
    assert_non_null(strstr(m.destination_witness.log, "Dropped a connection from 127.0.0.1:"));
    for (int i = 0; i < 60; i++) {
        if (fds[i] >= 0)
            close(fds[i]);
    }
    migration_free(&m);
}

static void wrong_token_or_id_is_refused_and_the_right_one_still_gets_in(void **state)
{
    for (int what = 0; what < 2; what++) {
        struct migration m;

        small_migration(&m);
        if (what == 0)
            m.source_options.token[31] ^= 1;
        else
            m.source_options.migration_id[0] = '4';
        migration_create(&m);
        migration_start_destination(&m);
        assert_true(ferry_session_run(m.from, &m.source_error) < 0);
        assert_non_null(strstr(m.source_error.text, "not the migration that is awaited"));
        assert_counts(&m.source);
        ferry_session_free(m.from);
        memcpy(m.source_options.token, m.destination_options.token, FERRY_TOKEN_SIZE);
        memcpy(m.source_options.migration_id, m.destination_options.migration_id, FERRY_ID_SIZE);
        m.source_witness.session = NULL;
        assert_int_equal(ferry_source_new(&m.from, &m.source_options, &m.source_ops, &m.source, NULL, NULL),
                         0);
        m.source_result = ferry_session_run(m.from, &m.source_error);
        ferry_session_progress(m.from, &m.source_progress);
        migration_join_destination(&m);
        migration_assert_completed(&m);
        migration_free(&m);
    }
}

static void unknown_version_is_refused_in_words(void **state)
{
    struct migration m;
    struct link link;
    struct frame frame;
    struct wire_reason reason;
    struct wire_hello hello;

    small_migration(&m);
    migration_create(&m);
    migration_start_destination(&m);
    hello = peer_hello(&m, WIRE_CONNECTION_CONTROL);
    hello.version_min = 7;
    hello.version_max = 9;
    peer_connect(&m, &link, &hello);
    assert_int_equal(peer_read_until(&link, WIRE_ABORT, &frame), 0);
    assert_int_equal(wire_reason_decode(&frame.body, &reason, NULL), 0);
    assert_int_equal(reason.cause, FERRY_CAUSE_VERSION);
    assert_non_null(strstr(reason.text, "versions 7 to 9, this host 1 to 1"));
    link_close(&link);
    migration_join_destination(&m);
    assert_int_equal(m.destination_result, -EPROTONOSUPPORT);
    assert_int_equal(m.destination_progress.cause, FERRY_CAUSE_VERSION);
    migration_free(&m);
}

static void required_feature_is_refused_in_words(void **state)
{
    struct migration m;
    struct link link;
    struct frame frame;
    struct wire_reason reason;
    struct wire_hello hello;

    small_migration(&m);
    migration_create(&m);
    migration_start_destination(&m);
    hello = peer_hello(&m, WIRE_CONNECTION_CONTROL);
    hello.features = hello.required = 0x8000;
    peer_connect(&m, &link, &hello);
    peer_send_regions(&m, &link);
    assert_int_equal(peer_read_until(&link, WIRE_ABORT, &frame), 0);
    assert_int_equal(wire_reason_decode(&frame.body, &reason, NULL), 0);
    assert_non_null(strstr(reason.text, "0x8000"));
    link_close(&link);
    migration_join_destination(&m);
    assert_int_equal(m.destination_progress.cause, FERRY_CAUSE_VERSION);
    migration_free(&m);
}

static void different_memory_is_refused_in_words(void **state)
{
    struct migration m;
    uint64_t larger = 128 * 4096;

    small_migration(&m);
    fake_guest_destroy(&m.destination);
    assert_int_equal(fake_guest_init(&m.destination, &m.owner, &larger, 1, true, NULL), 0);
    m.destination.arriving = true;
    migration_run(&m);
    migration_assert_one(&m, true);
    assert_int_equal(m.source_progress.cause, FERRY_CAUSE_MEMORY);
    assert_non_null(strstr(m.source_progress.error, "ram0 is 262144 bytes"));
    assert_non_null(strstr(m.destination_progress.error, "524288"));
    migration_free(&m);
}

static void migration_between_other_hosts_is_refused_in_words(void **state)
{
    struct migration m;

    small_migration(&m);
    strcpy(m.source_options.source, "gamma");
    migration_run(&m);
    migration_assert_one(&m, true);
    assert_non_null(strstr(m.source_progress.error, "from gamma to beta"));
    migration_free(&m);
}

static void silent_source_is_given_up(void **state)
{
    struct migration m;
    struct link link;
    struct wire_hello hello;

    small_migration(&m);
    m.destination_options.peer_timeout_ns = 50 * NS_PER_MS;
    m.destination_options.connect_timeout_ns = 20 * NS_PER_S;
    migration_create(&m);
    migration_start_destination(&m);
    hello = peer_hello(&m, WIRE_CONNECTION_CONTROL);
    peer_connect(&m, &link, &hello);
    migration_join_destination(&m);
    assert_int_equal(m.destination_result, -ETIMEDOUT);
    assert_non_null(strstr(m.destination_error.text, "silent"));
    link_close(&link);
    migration_free(&m);
}

/* A source that stops the guest, and from then on only lives. */
static void source_that_takes_longer_than_it_announced_is_given_up(void **state)
{
    struct migration m;
    struct link control;
    struct link pages;
    struct frame frame;
    struct wire_hello hello;
    struct buffer body = BUFFER_INIT;

    small_migration(&m);
    m.destination_options.peer_timeout_ns = LONG_ENOUGH_NS;
    m.destination_options.connect_timeout_ns = 20 * NS_PER_S;
    migration_create(&m);
    migration_start_destination(&m);
    hello = peer_hello(&m, WIRE_CONNECTION_CONTROL);
    peer_connect(&m, &control, &hello);
    peer_send_regions(&m, &control);
    assert_int_equal(peer_read_until(&control, WIRE_WELCOME, &frame), 0);
    peer_send_start(&control);
    hello = peer_hello(&m, WIRE_CONNECTION_PAGES);
    peer_connect(&m, &pages, &hello);
    wire_paused_encode(&body, true);
    link_send(&control, WIRE_PAUSED, 0, &body, NULL);
    for (int i = 0; i < 400 && link_send(&control, WIRE_KEEPALIVE, 0, NULL, NULL) == 0; i++)
        poll(NULL, 0, 50);
    migration_join_destination(&m);
    assert_int_equal(m.destination_result, -ETIMEDOUT);
    assert_non_null(strstr(m.destination_error.text, "longer than it said"));
    assert_true(m.destination_progress.total_ns < 16 * NS_PER_S);
    buffer_free(&body);
    link_close(&pages);
    link_close(&control);
    migration_free(&m);
}

/* ---- a destination of our own making ---- */

enum act {
    ACT_SILENT = 0,       /* accepts and says nothing */
    ACT_SILENT_IN_ROUND,  /* or only says WELCOME */
    ACT_VERSION,          /* answers with a version that was not offered */
    ACT_CLOSE_AFTER_GO,   /* all well until GO, then gone */
    ACT_SILENT_AFTER_GO,  /* or mute */
    ACT_NOT_RUNNING,      /* says that it does not run */
    ACT_GARBAGE_AFTER_GO, /* or nonsense */
    ACT_FUZZ,
};

struct peer {
    struct migration *m;
    struct thread thread;
    enum act act;
    uint64_t random;
    int done_fd[2]; /* closed by the test when the source has ended */
};

static uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* A body for TYPE that is right or nearly so. */
static void fuzz_body(struct buffer *body, enum wire_type type, uint64_t *random)
{
    struct wire_run run = {.region = (uint8_t)(random_next(random) % 3),
                           .kind = (uint8_t)(1 + random_next(random) % 2),
                           .pages = (uint16_t)(random_next(random) % 70),
                           .first = (uint32_t)(random_next(random) % 70)};
    struct ferry_section section = {.version = 1, .data = (const uint8_t *)"x", .size = 1};
    struct wire_reason reason = {.cause = FERRY_CAUSE_LOCK, .text = "fuzz"};

    snprintf(section.name, sizeof(section.name), "s%u", (unsigned)(random_next(random) % 5));
    switch (type) {
    case WIRE_WELCOME:
        wire_welcome_encode(body, &(struct wire_welcome){.version = (uint16_t)(random_next(random) % 3)});
        break;
    case WIRE_PAGES:
        wire_batch_encode(body, (uint32_t)(random_next(random) % 3), &run, 1);
        break;
    case WIRE_FENCE:
    case WIRE_ROUND_END:
    case WIRE_ROUND_DONE:
        wire_round_encode(body, (uint32_t)(random_next(random) % 3));
        break;
    case WIRE_PAUSED:
        wire_paused_encode(body, true);
        break;
    case WIRE_SECTION:
        wire_section_encode(body, &section);
        break;
    case WIRE_END:
        wire_end_encode(body, &(struct wire_end){.sections = (uint32_t)(random_next(random) % 3),
                                                 .fence = (uint32_t)(random_next(random) % 2)});
        break;
    case WIRE_VERDICT:
        wire_verdict_encode(body, WIRE_RESTORE_FAILURE, &reason);
        break;
    case WIRE_RUNNING:
        wire_running_encode(
            body, &(struct wire_running){UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX});
        break;
    case WIRE_ABORT:
    case WIRE_NOT_RUNNING:
        wire_reason_encode(body, &reason);
        break;
    default:
        break;
    }
    if (body->size > 0 && random_next(random) % 4 == 0)
        body->data[random_next(random) % body->size] = (uint8_t)random_next(random);
    if (random_next(random) % 8 == 0)
        buffer_put_u8(body, 0);
}

/* Up to 20 frames that may or may not make sense; now and then plain noise. */
static void fuzz_link(struct link *link, uint64_t *random)
{
    for (uint64_t n = random_next(random) % 20; n > 0; n--) {
        enum wire_type type = (enum wire_type)(random_next(random) % 19);
        struct buffer body = BUFFER_INIT;
        static uint8_t data[4 * FERRY_PAGE_SIZE];
        uint32_t size = type == WIRE_PAGES ? (uint32_t)(random_next(random) % 5 * FERRY_PAGE_SIZE) : 0;
        struct iovec iov[3] = {[2] = {data, size}};

        if (random_next(random) % 16 == 0) {
            uint64_t noise = random_next(random);

            if (send(link->channel.fd, &noise, 1 + noise % 8, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
                return;
        }
        fuzz_body(&body, type, random);
        if (random_next(random) % 32 == 0)
            link->sent += (uint32_t)random_next(random);
        if (link_send_data(link, type, &body, iov, 3, size, NULL) < 0)
            n = 1;
        buffer_free(&body);
    }
}

static int peer_migrate(struct peer *peer, struct link *link)
{
    struct buffer body = BUFFER_INIT;
    struct wire_reason ok = {.cause = FERRY_CAUSE_NONE};
    struct frame frame;
    int result = peer_read_until(link, WIRE_ROUND_END, &frame);

    if (result == 0) {
        wire_round_encode(&body, 1);
        result = link_send(link, WIRE_ROUND_DONE, 0, &body, NULL);
    }
    if (result == 0)
        result = peer_read_until(link, WIRE_END, &frame);
    buffer_clear(&body);
    wire_verdict_encode(&body, WIRE_RESTORE_OK, &ok);
    if (result == 0)
        result = link_send(link, WIRE_VERDICT, 0, &body, NULL);
    if (result == 0)
        result = peer_read_until(link, WIRE_GO, &frame);
    buffer_clear(&body);
    if (peer->act == ACT_NOT_RUNNING) {
        snprintf(ok.text, sizeof(ok.text), "no luck");
        wire_reason_encode(&body, &ok);
        link_send(link, WIRE_NOT_RUNNING, 0, &body, NULL);
    } else if (peer->act == ACT_GARBAGE_AFTER_GO) {
        link_send(link, WIRE_GO, 0, NULL, NULL);
    }
    buffer_free(&body);
    return result;
}

static void *peer_main(void *opaque)
{
    struct peer *peer = opaque;
    struct buffer body = BUFFER_INIT;
    struct link link;
    struct frame frame;
    char byte;
    int fd = sock_accept(peer->m->destination_options.listen_fd, clock_deadline(20000), -1, NULL);

    link_init(&link, fd, -1, 20 * NS_PER_S);
    if (peer->act == ACT_FUZZ && random_next(&peer->random) % 4 == 0)
        fuzz_link(&link, &peer->random);
    if (peer->act != ACT_SILENT && peer_read_until(&link, WIRE_REGIONS, &frame) == 0) {
        wire_welcome_encode(&body, &(struct wire_welcome){.version = peer->act == ACT_VERSION ? 2 : 1});
        link_send(&link, WIRE_WELCOME, 0, &body, NULL);
        if (peer->act == ACT_FUZZ)
            fuzz_link(&link, &peer->random);
        else if (peer->act != ACT_VERSION && peer->act != ACT_SILENT_IN_ROUND)
            peer_migrate(peer, &link);
    }
    buffer_free(&body);
    if (peer->act != ACT_CLOSE_AFTER_GO && peer->act != ACT_FUZZ && read(peer->done_fd[0], &byte, 1) < 0)
        perror("read");
    link_close(&link);
    return NULL;
}

/* A source against such a destination; its guest's owner knows no destination that could take it. */
static void run_against(struct migration *m, enum act act, uint64_t seed)
{
    struct peer peer = {.m = m, .act = act, .random = seed};

    assert_int_equal(pipe(peer.done_fd), 0);
    if (!m->from)
        migration_create(m);
    assert_int_equal(thread_start(&peer.thread, THREAD_GENERAL, "peer", peer_main, &peer, NULL), 0);
    m->source_result = ferry_session_run(m->from, &m->source_error);
    ferry_session_progress(m->from, &m->source_progress);
    close(peer.done_fd[1]);
    thread_join(&peer.thread);
    close(peer.done_fd[0]);
}

static void silent_destination_is_given_up(void **state)
{
    struct migration m;

    small_migration(&m);
    m.source_options.peer_timeout_ns = 50 * NS_PER_MS;
    run_against(&m, ACT_SILENT, 0);
    assert_int_equal(m.source_result, -ETIMEDOUT);
    assert_int_equal(m.source_progress.cause, FERRY_CAUSE_NETWORK);
    migration_assert_one(&m, true);
    migration_free(&m);
}

/* Its kernel takes what is sent for a long while. */
static void destination_that_falls_silent_in_a_round_is_given_up(void **state)
{
    const uint64_t four_mib = 4 * MIB;
    struct migration m;

    migration_init(&m, &four_mib, 1, true);
    fake_guest_fill(&m.source, 0, 0, four_mib / FERRY_PAGE_SIZE, 1);
    m.source_options.bandwidth_limit = MIB / 4;
    m.source_options.peer_timeout_ns = LONG_ENOUGH_NS;
    run_against(&m, ACT_SILENT_IN_ROUND, 0);
    assert_int_equal(m.source_result, -ETIMEDOUT);
    assert_non_null(strstr(m.source_error.text, "silent for 2.0 s"));
    assert_true(m.source_progress.total_ns < 14 * NS_PER_S); /* what is paced takes 16 s */
    migration_assert_one(&m, true);
    migration_free(&m);
}

static void version_that_was_not_offered_is_refused(void **state)
{
    struct migration m;

    small_migration(&m);
    run_against(&m, ACT_VERSION, 0);
    assert_int_equal(m.source_result, -EBADMSG);
    assert_non_null(strstr(m.source_error.text, "version 2"));
    migration_assert_one(&m, true);
    migration_free(&m);
}

static void no_running_after_go_asks_for_the_guest_back(void **state)
{
    static const enum act acts[] = {ACT_CLOSE_AFTER_GO, ACT_SILENT_AFTER_GO, ACT_GARBAGE_AFTER_GO};

    for (int i = 0; i < 3; i++) {
        for (int arbiter = 0; arbiter < 2; arbiter++) {
            struct migration m;

            small_migration(&m);
            m.owner.arbiter = arbiter;
            m.source_options.peer_timeout_ns = LONG_ENOUGH_NS;
            run_against(&m, acts[i], 0);
            assert_true(m.source_result < 0);
            assert_int_equal(m.source_progress.outcome,
                             arbiter ? FERRY_OUTCOME_FAILED : FERRY_OUTCOME_UNKNOWN);
            assert_int_equal(fake_guest_running(&m.source), arbiter);
            migration_free(&m);
        }
    }
}

/* Its word that it never ran the guest is as good as an arbiter. */
static void not_running_gives_the_guest_back_without_an_arbiter(void **state)
{
    struct migration m;

    small_migration(&m);
    m.owner.arbiter = false;
    run_against(&m, ACT_NOT_RUNNING, 0);
    assert_int_equal(m.source_progress.outcome, FERRY_OUTCOME_FAILED);
    if (!strstr(m.source_error.text, "beta says: no luck"))
        fail_msg("%s", m.source_error.text);
    migration_assert_one(&m, true);
    migration_free(&m);
}

static void fuzzed_source_is_not_harmed(void **state)
{
    uint64_t seed = FUZZ_SEED;

    print_message("seed 0x%llx\n", (unsigned long long)seed);
    for (int i = 0; i < FUZZ_ROUNDS; i++) {
        struct migration m;

        small_migration(&m);
        m.source_options.peer_timeout_ns = 2 * NS_PER_S;
        run_against(&m, ACT_FUZZ, random_next(&seed));
        assert_true(m.source_result < 0);
        migration_assert_one(&m, true);
        migration_free(&m);
    }
}

static void fuzzed_destination_is_not_harmed(void **state)
{
    uint64_t seed = FUZZ_SEED;

    print_message("seed 0x%llx\n", (unsigned long long)seed);
    for (int i = 0; i < FUZZ_ROUNDS; i++) {
        struct wire_hello hello;
        struct migration m;
        struct frame frame;
        struct link control;
        struct link pages;

        small_migration(&m);
        m.destination_options.peer_timeout_ns = 2 * NS_PER_S;
        migration_create(&m);
        migration_start_destination(&m);
        hello = peer_hello(&m, WIRE_CONNECTION_CONTROL);
        peer_connect(&m, &control, &hello);
        if (i % 8 == 0)
            fuzz_link(&control, &seed);
        peer_send_regions(&m, &control);
        if (peer_read_until(&control, WIRE_WELCOME, &frame) == 0)
            peer_send_start(&control);
        hello = peer_hello(&m, WIRE_CONNECTION_PAGES);
        peer_connect(&m, &pages, &hello);
        fuzz_link(&pages, &seed);
        fuzz_link(&control, &seed);
        fuzz_link(&pages, &seed);
        link_close(&pages);
        link_close(&control);
        migration_join_destination(&m);
        assert_true(m.destination_result < 0);
        assert_false(fake_guest_running(&m.destination));
        migration_free(&m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strangers_do_not_disturb_the_awaited_migration),
        cmocka_unit_test(wrong_token_or_id_is_refused_and_the_right_one_still_gets_in),
        cmocka_unit_test(unknown_version_is_refused_in_words),
        cmocka_unit_test(required_feature_is_refused_in_words),
        cmocka_unit_test(different_memory_is_refused_in_words),
        cmocka_unit_test(migration_between_other_hosts_is_refused_in_words),
        cmocka_unit_test(silent_source_is_given_up),
        cmocka_unit_test(source_that_takes_longer_than_it_announced_is_given_up),
        cmocka_unit_test(silent_destination_is_given_up),
        cmocka_unit_test(destination_that_falls_silent_in_a_round_is_given_up),
        cmocka_unit_test(version_that_was_not_offered_is_refused),
        cmocka_unit_test(no_running_after_go_asks_for_the_guest_back),
        cmocka_unit_test(not_running_gives_the_guest_back_without_an_arbiter),
        cmocka_unit_test(fuzzed_source_is_not_harmed),
        cmocka_unit_test(fuzzed_destination_is_not_harmed),
    };

    return run_tests_apart(tests, NULL, NULL);
}
