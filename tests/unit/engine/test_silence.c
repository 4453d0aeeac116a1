/* Slow is not silent: a side that works says that it lives, one that hangs does not. */
#include "harness.h"

#include "base/clock.h"
#include "engine/pages.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>

/* A loaded machine may keep a thread waiting for a good part of a second: that must not look like silence. */
#define TIMEOUT_NS (3 * NS_PER_S)
#define LONGER_MS  4500 /* than the peer timeout */

static const uint64_t small[] = {64 * 4096};
static const uint64_t four_mib[] = {4 * MIB};

static void impatient_migration(struct migration *m, const uint64_t *sizes)
{
    migration_init(m, sizes, 1, true);
    fake_guest_fill(&m->source, 0, 0, sizes[0] / 4096, 1);
    m->source_options.peer_timeout_ns = TIMEOUT_NS;
    m->destination_options.peer_timeout_ns = TIMEOUT_NS;
    m->destination_options.connect_timeout_ns = 20 * NS_PER_S;
}

static void linger_in_quiesce(void *opaque, const char *step)
{
    if (strcmp(step, "quiesce") == 0)
        poll(NULL, 0, LONGER_MS);
}

static void quiesce_may_take_longer_than_the_peer_timeout(void **state)
{
    struct migration m;

    impatient_migration(&m, small);
    m.source.on_step = linger_in_quiesce;
    migration_run(&m);
    migration_assert_completed(&m);
    assert_true(m.source_progress.downtime_part_ns[FERRY_DOWNTIME_QUIESCE] >= LONGER_MS * NS_PER_MS);
    migration_free(&m);
}

/* Until the other side has given up. */
static void hang_in_quiesce(void *opaque, const char *step)
{
    struct migration *m = opaque;
    uint64_t deadline = clock_deadline(20000);
    struct ferry_progress *progress;

    if (strcmp(step, "quiesce") != 0)
        return;
    progress = malloc(sizeof(*progress));
    do {
        poll(NULL, 0, 10);
        ferry_session_progress(m->to, progress);
    } while (progress->outcome == FERRY_OUTCOME_NONE && clock_now_ns() < deadline);
    free(progress);
}

static void quiesce_that_hangs_is_noticed_when_its_time_is_over(void **state)
{
    struct migration m;

    impatient_migration(&m, small);
    m.source_options.quiesce_timeout_ns = NS_PER_S / 10;
    m.source.on_step = hang_in_quiesce;
    m.source.opaque = &m;
    migration_run(&m);
    assert_int_equal(m.destination_progress.outcome, FERRY_OUTCOME_FAILED);
    assert_non_null(strstr(m.destination_progress.error, "silent for 3.0 s"));
    assert_true(m.destination_progress.total_ns < 15 * NS_PER_S);
    migration_assert_one(&m, true);
    migration_free(&m);
}

#define SECTIONS 16

static void linger_in_load(void *opaque, const char *step)
{
    if (strcmp(step, "load") == 0)
        poll(NULL, 0, LONGER_MS / SECTIONS);
}

static void loading_many_sections_may_take_longer_than_the_peer_timeout(void **state)
{
    struct migration m;

    impatient_migration(&m, small);
    m.source.extra_sections = SECTIONS;
    m.source.extra_size = 100;
    m.destination.on_step = linger_in_load;
    migration_run(&m);
    migration_assert_completed(&m);
    assert_true(m.source_progress.downtime_part_ns[FERRY_DOWNTIME_STATE_LOAD] >= LONGER_MS * NS_PER_MS);
    migration_free(&m);
}

static void round_may_take_longer_than_the_peer_timeout(void **state)
{
    struct migration m;

    impatient_migration(&m, four_mib);
    m.source_options.bandwidth_limit = 4 * MIB * 1000 / LONGER_MS;
    migration_run(&m);
    migration_assert_completed(&m);
    assert_true(m.source_progress.rounds[0].duration_ns > TIMEOUT_NS * 5 / 4);
    migration_free(&m);
}

struct ticks {
    unsigned count;
    unsigned fail_at;
};

static int count_tick(void *opaque, struct ferry_error *err)
{
    struct ticks *ticks = opaque;

    return ++ticks->count == ticks->fail_at ? -ECANCELED : 0;
}

/* 64 MiB: the checksum's maker is given time to say that it lives, and may be stopped. */
static void checksum_of_memory_ticks(void **state)
{
    const uint64_t size = 64 * MIB;
    struct fake_guest guest;
    struct page_map map;
    struct ticks ticks = {0};
    uint64_t checksum;

    assert_int_equal(fake_guest_init(&guest, NULL, &size, 1, true, NULL), 0);
    memset(guest.regions[0].host_ptr, 1, size);
    assert_int_equal(page_map_init(&map, &fake_guest_ops, &guest, NULL), 0);
    assert_int_equal(page_map_checksum(&map, count_tick, &ticks, &checksum, NULL), 0);
    assert_true(ticks.count >= 4);
    ticks = (struct ticks){.fail_at = 2};
    assert_int_equal(page_map_checksum(&map, count_tick, &ticks, &checksum, NULL), -ECANCELED);
    assert_int_equal(ticks.count, 2);
    fake_guest_destroy(&guest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quiesce_may_take_longer_than_the_peer_timeout),
        cmocka_unit_test(quiesce_that_hangs_is_noticed_when_its_time_is_over),
        cmocka_unit_test(loading_many_sections_may_take_longer_than_the_peer_timeout),
        cmocka_unit_test(round_may_take_longer_than_the_peer_timeout),
        cmocka_unit_test(checksum_of_memory_ticks),
    };

    return run_tests_apart(tests, NULL, NULL);
}
