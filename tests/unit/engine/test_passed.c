/* Memory that is passed to the other side by its descriptors instead of being copied. */
#include "harness.h"

#include "base/clock.h"
#include "base/sock.h"
#include "engine/fault.h"
#include "engine/link.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

static const uint64_t small[] = {64 * 4096, 16 * 4096};
static const uint64_t large[] = {UINT64_C(64) << 30};

static void passed_migration(struct migration *m)
{
    migration_init(m, small, 2, true);
    fake_guest_fill(&m->source, 0, 0, 16, 1);
    fake_guest_fill(&m->source, 1, 3, 5, 2);
    /* What the destination has of its own is dropped. */
    fake_guest_fill(&m->destination, 0, 20, 4, 3);
    migration_pass_memory(m);
}

static ino_t inode(int fd)
{
    struct stat status;

    assert_int_equal(fstat(fd, &status), 0);
    return status.st_ino;
}

static uint64_t checksum(const struct fake_guest *guest)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < guest->region_count; i++)
        sum = XXH3_64bits_withSeed(guest->regions[i].host_ptr, guest->regions[i].size, sum);
    return sum;
}

struct order {
    char steps[256];
};

static void note_step(void *opaque, const char *step)
{
    struct order *order = opaque;

    strncat(order->steps, step, sizeof(order->steps) - strlen(order->steps) - 1);
    strncat(order->steps, " ", sizeof(order->steps) - strlen(order->steps) - 1);
}

static void the_destination_gets_the_very_memory(void **state)
{
    struct order source = {{0}};
    struct order destination = {{0}};
    struct migration m;
    uint64_t before;

    passed_migration(&m);
    m.source.on_step = m.destination.on_step = note_step;
    m.source.opaque = &source;
    m.destination.opaque = &destination;
    before = checksum(&m.source);
    migration_run(&m);
    migration_assert_completed(&m);
    assert_int_equal(checksum(&m.destination), before);
    for (size_t i = 0; i < 2; i++)
        assert_int_equal(inode(m.source.regions[i].memfd), inode(m.destination.regions[i].memfd));
    assert_true(fake_guest_running(&m.destination));
    /* Nothing was tracked or sent; mapped before the guest stood still. */
    assert_string_equal(source.steps, "pause quiesce save release ");
    assert_string_equal(destination.steps, "adopt adopt load load_finish acquire resume announce ");
    assert_true(m.source_progress.wire_bytes < 4096);
    assert_int_equal(m.source_progress.round, 0);
    assert_int_equal(m.source_progress.pages_raw + m.source_progress.pages_zero, 0);
    assert_int_equal(m.source_progress.memory_bytes, small[0] + small[1]);
    assert_true(m.source_progress.downtime_ns > 0);
    migration_free(&m);
}

static void states_are_those_of_any_migration(void **state)
{
    static const enum ferry_state from[] = {MIGRATE_TO_VMX_READY,    MIGRATE_TO_VMX_PRECOPY,
                                            MIGRATE_TO_VMX_CHECKPT,  MIGRATE_TO_VMX_WAIT_HANDSHAKE,
                                            MIGRATE_TO_VMX_FINISHED, MIGRATE_VMX_NONE};
    static const enum ferry_state to[] = {MIGRATE_FROM_VMX_INIT,     MIGRATE_FROM_VMX_WAITING,
                                          MIGRATE_FROM_VMX_PRECOPY,  MIGRATE_FROM_VMX_CHECKPT,
                                          MIGRATE_FROM_VMX_FINISHED, MIGRATE_VMX_NONE};
    struct migration m;

    passed_migration(&m);
    migration_run(&m);
    migration_assert_completed(&m);
    assert_int_equal(m.source_witness.state_count, 6);
    assert_int_equal(m.destination_witness.state_count, 6);
    assert_memory_equal(m.source_witness.states, from, sizeof(from));
    assert_memory_equal(m.destination_witness.states, to, sizeof(to));
    migration_free(&m);
}

/* 64 GiB, of which the guest has touched a little: nothing on the way depends on the size. */
static void a_large_guest_is_passed_without_being_touched(void **state)
{
    struct migration m;
    struct stat status;

    migration_init(&m, large, 1, true);
    fake_guest_fill(&m.source, 0, (large[0] >> 12) - 16, 16, 1);
    migration_pass_memory(&m);
    migration_create(&m);
    migration_start_destination(&m);
    m.source_result = ferry_session_run(m.from, &m.source_error);
    ferry_session_progress(m.from, &m.source_progress);
    migration_join_destination(&m);
    assert_int_equal(m.source_result, 0);
    assert_int_equal(m.destination_result, 0);
    assert_int_equal(inode(m.source.regions[0].memfd), inode(m.destination.regions[0].memfd));
    assert_int_equal(fstat(m.destination.regions[0].memfd, &status), 0);
    assert_true(status.st_blocks * 512 <= 32 * 4096);
    migration_free(&m);
}

static void a_guest_that_writes_goes_on_where_it_was(void **state)
{
    struct migration m;
    uint64_t count;

    passed_migration(&m);
    m.source.pattern = m.destination.pattern = FAKE_PATTERN_RANDOM;
    assert_counts(&m.source);
    count = fake_guest_count(&m.source);
    migration_run(&m);
    assert_int_equal(m.source_result, 0);
    assert_int_equal(m.destination_result, 0);
    assert_counts(&m.destination);
    assert_true(fake_guest_count(&m.destination) > count);
    assert_int_equal(m.owner.running_max, 1);
    migration_free(&m);
}

static void a_paused_guest_arrives_paused(void **state)
{
    struct migration m;

    passed_migration(&m);
    fake_guest_run(&m.source, false);
    migration_run(&m);
    migration_assert_completed(&m);
    assert_false(fake_guest_running(&m.destination));
    migration_free(&m);
}

static void failing_step_leaves_the_source_as_it_was(void **state)
{
    static const enum fake_step steps[] = {FAKE_STEP_PAUSE,   FAKE_STEP_QUIESCE, FAKE_STEP_SAVE,
                                           FAKE_STEP_ADOPT,   FAKE_STEP_LOAD,    FAKE_STEP_LOAD_FINISH,
                                           FAKE_STEP_RELEASE, FAKE_STEP_ACQUIRE, FAKE_STEP_RESUME};

    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        struct migration m;
        uint64_t before;

        passed_migration(&m);
        before = checksum(&m.source);
        m.source.fail = m.destination.fail = steps[i];
        migration_run(&m);
        assert_int_equal(m.source_progress.outcome, FERRY_OUTCOME_FAILED);
        assert_int_equal(m.destination_progress.outcome, FERRY_OUTCOME_FAILED);
        migration_assert_one(&m, true);
        assert_int_equal(checksum(&m.source), before);
        assert_non_null(strstr(m.source_progress.error, "fake failure"));
        migration_free(&m);
    }
}

/* Pages are neither sent nor awaited. */
static bool is_reached(int point)
{
    return point != FAULT_SOURCE_BEFORE_ROUND && point != FAULT_SOURCE_AFTER_ROUND &&
           point != FAULT_SOURCE_BEFORE_LAST_PAGES && point != FAULT_SOURCE_AFTER_LAST_PAGES;
}

static void fault_points_leave_exactly_one(void **state)
{
    static const char *const actions[] = {"error", "drop"};

    for (int point = FAULT_NONE + 1; point < FAULT_COUNT; point++) {
        if (!is_reached(point) || (point >= FAULT_SESSION_END && point < FAULT_SOURCE_BEFORE_MEMORY))
            continue;
        for (int action = 0; action < 2; action++) {
            char text[128];
            struct migration m;

            passed_migration(&m);
            m.source.pattern = m.destination.pattern = FAKE_PATTERN_RANDOM;
            snprintf(text, sizeof(text), "%s:%s", fault_point_name((enum fault_point)point), actions[action]);
            setenv("FERRY_FAULT", text, 1);
            migration_create(&m);
            unsetenv("FERRY_FAULT");
            migration_run(&m);
            migration_assert_one(&m, true);
            if (point >= FAULT_SOURCE_BEFORE_MEMORY && m.source_result == 0)
                fail_msg("%s had no effect", text);
            migration_free(&m);
        }
    }
}

/* ---- who does not fit ---- */

static void assert_both_refuse(struct migration *m, const char *words)
{
    migration_run(m);
    migration_assert_one(m, true);
    if (!strstr(m->source_progress.error, words) && !strstr(m->destination_progress.error, words))
        fail_msg("'%s' and '%s' do not say '%s'", m->source_progress.error, m->destination_progress.error,
                 words);
}

static void memory_without_descriptor_is_refused(void **state)
{
    struct migration m;

    migration_init(&m, small, 1, false);
    migration_pass_memory(&m);
    assert_both_refuse(&m, "ram0 has no descriptor");
    migration_free(&m);
}

static void memory_that_is_a_file_on_a_disk_is_refused(void **state)
{
    struct migration m;
    struct ferry_ram_region *region;

    passed_migration(&m);
    region = &m.source.regions[0];
    close(region->memfd);
    region->memfd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    assert_true(region->memfd >= 0);
    assert_both_refuse(&m, "is no memory");
    migration_free(&m);
}

static void memory_of_another_size_is_refused(void **state)
{
    struct migration m;
    struct ferry_ram_region *region;
    int fd = memfd_create("short", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    passed_migration(&m);
    region = &m.source.regions[0];
    assert_int_equal(ftruncate(fd, (off_t)region->size - 4096), 0);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
    close(region->memfd);
    region->memfd = fd;
    assert_both_refuse(&m, "must be 262144");
    migration_free(&m);
}

static void a_tcp_connection_is_refused(void **state)
{
    struct migration m;

    migration_init(&m, small, 1, true);
    m.source_options.pass_memory = m.destination_options.memory_passed = true;
    assert_both_refuse(&m, "of this machine only");
    migration_free(&m);
}

static void sides_that_disagree_refuse(void **state)
{
    struct migration m;

    passed_migration(&m);
    m.source_options.pass_memory = false;
    assert_both_refuse(&m, "waits for it to be passed");
    migration_free(&m);

    passed_migration(&m);
    m.destination_options.memory_passed = false;
    assert_both_refuse(&m, "requires features (0x10000)");
    migration_free(&m);
}

static void a_guest_that_cannot_adopt_is_refused(void **state)
{
    struct ferry_guest_ops ops = fake_guest_ops;
    struct ferry_session *session;
    struct ferry_error err = {0};
    struct migration m;

    passed_migration(&m);
    ops.adopt_memory = NULL;
    assert_int_equal(
        ferry_destination_new(&session, &m.destination_options, &ops, &m.destination, NULL, &err), -EINVAL);
    assert_non_null(strstr(err.text, "cannot take memory"));
    migration_free(&m);
}

/* ---- a source of our own making ---- */

struct peer {
    struct link link;
};

static void peer_greet(struct migration *m, struct peer *peer)
{
    struct wire_hello hello = {.version_min = 1,
                               .version_max = 1,
                               .connection = WIRE_CONNECTION_CONTROL,
                               .streams = 1,
                               .page_size = FERRY_PAGE_SIZE,
                               .features = WIRE_FEATURE_MEMORY,
                               .required = WIRE_FEATURE_MEMORY};
    struct buffer body = BUFFER_INIT;
    struct frame frame;
    int fd = sock_connect(m->socket_path, clock_deadline(10000), -1, NULL);

    assert_true(fd >= 0);
    memcpy(hello.migration_id, m->source_options.migration_id, sizeof(hello.migration_id));
    memcpy(hello.token, m->source_options.token, sizeof(hello.token));
    strcpy(hello.source, "alpha");
    strcpy(hello.destination, "beta");
    link_init(&peer->link, fd, -1, 20 * NS_PER_S);
    wire_hello_encode(&body, &hello);
    link_queue(&peer->link, WIRE_HELLO, 0, &body);
    buffer_clear(&body);
    wire_regions_encode(&body, m->source.regions, m->source.region_count);
    assert_int_equal(link_send(&peer->link, WIRE_REGIONS, 0, &body, NULL), 0);
    assert_int_equal(link_receive(&peer->link, &frame, 20 * NS_PER_S, NULL), 0);
    assert_int_equal(frame.type, WIRE_WELCOME);
    buffer_clear(&body);
    wire_start_encode(&body, &(struct wire_start){.quiesce_timeout_ns = NS_PER_S});
    assert_int_equal(link_send(&peer->link, WIRE_START, 0, &body, NULL), 0);
    buffer_free(&body);
}

static void peer_pass(struct peer *peer, size_t said, const int *fds, size_t count)
{
    struct buffer body = BUFFER_INIT;

    wire_memory_encode(&body, said);
    if (count > 0)
        assert_int_equal(link_pass(&peer->link, WIRE_MEMORY, &body, fds, count, NULL), 0);
    else
        assert_int_equal(link_send(&peer->link, WIRE_MEMORY, 0, &body, NULL), 0);
    buffer_free(&body);
}

static unsigned open_descriptors(void)
{
    unsigned count = 0;

    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void assert_destination_refused(struct migration *m, struct peer *peer, const char *words)
{
    migration_join_destination(m);
    assert_int_equal(m->destination_progress.outcome, FERRY_OUTCOME_FAILED);
    if (!strstr(m->destination_progress.error, words))
        fail_msg("'%s' does not say '%s'", m->destination_progress.error, words);
    assert_false(fake_guest_running(&m->destination));
    link_close(&peer->link);
}

static void wrong_descriptors_are_refused_and_closed(void **state)
{
    for (int which = 0; which < 6; which++) {
        struct migration m;
        struct peer peer;
        int eight[8], pipes[2];
        unsigned before;

        passed_migration(&m);
        migration_create(&m);
        assert_int_equal(pipe(pipes), 0);
        for (int i = 0; i < 8; i++)
            eight[i] = m.source.regions[0].memfd;
        before = open_descriptors();
        migration_start_destination(&m);
        peer_greet(&m, &peer);
        if (which == 0) { /* none */
            peer_pass(&peer, 2, NULL, 0);
            assert_destination_refused(&m, &peer, "came with 0 descriptors");
        } else if (which == 1) { /* too few */
            peer_pass(&peer, 2, eight, 1);
            assert_destination_refused(&m, &peer, "came with 1 descriptors");
        } else if (which == 2) { /* as many as said, more than there are regions */
            peer_pass(&peer, 8, eight, 8);
            assert_destination_refused(&m, &peer, "came with 8 descriptors");
        } else if (which == 3) { /* no memory */
            peer_pass(&peer, 2, pipes, 2);
            assert_destination_refused(&m, &peer, "is no memory");
        } else if (which == 4) { /* with a frame that has none */
            assert_int_equal(link_pass(&peer.link, WIRE_KEEPALIVE, NULL, eight, 8, NULL), 0);
            peer_pass(&peer, 2, eight, 2);
            assert_destination_refused(&m, &peer, "does not keep to the protocol");
        } else { /* pages after all */
            const int both[] = {m.source.regions[0].memfd, m.source.regions[1].memfd};
            struct buffer body = BUFFER_INIT;
            struct wire_run run = {.kind = WIRE_PAGE_ZERO, .pages = 1};
            struct frame frame;

            peer_pass(&peer, 2, both, 2);
            assert_int_equal(link_receive(&peer.link, &frame, 20 * NS_PER_S, NULL), 0);
            assert_int_equal(frame.type, WIRE_MEMORY_TAKEN);
            wire_paused_encode(&body, true);
            assert_int_equal(link_send(&peer.link, WIRE_PAUSED, 0, &body, NULL), 0);
            buffer_clear(&body);
            wire_batch_encode(&body, 1, &run, 1);
            assert_int_equal(link_send(&peer.link, WIRE_PAGES, 0, &body, NULL), 0);
            buffer_free(&body);
            assert_destination_refused(&m, &peer, "PAGES frame after the guest was paused");
        }
        assert_int_equal(open_descriptors(), before);
        close(pipes[0]);
        close(pipes[1]);
        migration_free(&m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_destination_gets_the_very_memory),
        cmocka_unit_test(states_are_those_of_any_migration),
        cmocka_unit_test(a_large_guest_is_passed_without_being_touched),
        cmocka_unit_test(a_guest_that_writes_goes_on_where_it_was),
        cmocka_unit_test(a_paused_guest_arrives_paused),
        cmocka_unit_test(failing_step_leaves_the_source_as_it_was),
        cmocka_unit_test(fault_points_leave_exactly_one),
        cmocka_unit_test(memory_without_descriptor_is_refused),
        cmocka_unit_test(memory_that_is_a_file_on_a_disk_is_refused),
        cmocka_unit_test(memory_of_another_size_is_refused),
        cmocka_unit_test(a_tcp_connection_is_refused),
        cmocka_unit_test(sides_that_disagree_refuse),
        cmocka_unit_test(a_guest_that_cannot_adopt_is_refused),
        cmocka_unit_test(wrong_descriptors_are_refused_and_closed),
    };

    return run_tests_apart(tests, NULL, NULL);
}
