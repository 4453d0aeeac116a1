/* How the bandwidth of a host is divided among the VMs that leave it. */
#include "unit.h"

#include "host/config.h"
#include "host/migration_queue.h"

#define COUNT_MAX 8

static void assert_shares(uint64_t total, size_t count, const uint64_t *limits, const uint64_t *expected)
{
    uint64_t shares[COUNT_MAX];

    share_divide(total, limits, shares, count);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(shares[i], expected[i]);
}

#define LIST(...) ((const uint64_t[]){__VA_ARGS__})

static void without_a_total_everyone_has_his_own_limit(void **state)
{
    assert_shares(0, 3, LIST(0, 5, 7), LIST(0, 5, 7));
}

static void it_is_divided_evenly(void **state)
{
    assert_shares(100, 1, LIST(0), LIST(100));
    assert_shares(100, 4, LIST(0, 0, 0, 0), LIST(25, 25, 25, 25));
    assert_shares(100, 0, NULL, NULL);
}

static void who_wants_less_leaves_the_rest_to_the_others(void **state)
{
    assert_shares(100, 3, LIST(10, 0, 0), LIST(10, 45, 45));
    /* What the first leaves makes room for more than the second wants. */
    assert_shares(100, 3, LIST(10, 40, 0), LIST(10, 40, 50));
    assert_shares(100, 3, LIST(0, 40, 10), LIST(50, 40, 10));
    assert_shares(100, 2, LIST(10, 20), LIST(10, 20));
}

static void limits_above_the_even_part_do_not_count(void **state)
{
    assert_shares(100, 2, LIST(80, 90), LIST(50, 50));
    assert_shares(100, 2, LIST(1000, 0), LIST(50, 50));
}

static void never_more_than_the_total_nor_nothing(void **state)
{
    uint64_t random = 1;

    for (unsigned round = 0; round < 10000; round++) {
        uint64_t limits[COUNT_MAX], shares[COUNT_MAX], sum = 0, total;
        size_t count = 1 + round % COUNT_MAX;

        for (size_t i = 0; i < count; i++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            limits[i] = (random >> 40) % 4 == 0 ? 0 : (random >> 33) % 1000 + 1;
        }
        total = (random >> 20) % 5000 + COUNT_MAX;
        share_divide(total, limits, shares, count);
        for (size_t i = 0; i < count; i++) {
            assert_true(shares[i] > 0);
            assert_true(limits[i] == 0 || shares[i] <= limits[i]);
            sum += shares[i];
        }
        assert_true(sum <= total);
    }
}

/* More VMs than bytes a second: each gets something, and no limit would be nothing. */
static void a_tiny_total_is_not_taken_for_none(void **state)
{
    assert_shares(2, 3, LIST(0, 0, 0), LIST(1, 1, 1));
}

/* A host from which three VMs leave. */
struct fixture {
    struct config config;
    struct host host;
    struct migration hot, cold, other;
    json_t *kind;
};

static void leave(struct fixture *fixture, struct migration *migration, bool cold)
{
    *migration =
        (struct migration){.host = &fixture->host, .outgoing = true, .next = fixture->host.migrations};
    if (cold)
        migration->cold = fixture->kind;
    fixture->host.migrations = migration;
}

static int set_up(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));

    fixture->config.migrate_bandwidth = 120;
    fixture->host.config = &fixture->config;
    fixture->kind = json_object();
    leave(fixture, &fixture->hot, false);
    leave(fixture, &fixture->cold, true);
    leave(fixture, &fixture->other, true);
    *state = fixture;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *fixture = *state;

    json_decref(fixture->kind);
    free(fixture);
    return 0;
}

static void cold_one_takes_part_while_it_copies(void **state)
{
    struct fixture *fixture = *state;

    shares_update(&fixture->host);
    assert_int_equal(fixture->hot.share, 120);
    /* Nobody asks for anything yet. */
    fixture->cold.stage = STORAGE_COPYING;
    shares_update(&fixture->host);
    assert_int_equal(fixture->hot.share, 120);
    fixture->cold.sending = true;
    shares_update(&fixture->host);
    assert_int_equal(fixture->hot.share, 60);
    assert_int_equal(fixture->cold.share, 60);
    assert_int_equal(fixture->other.share, 0);
    fixture->other.stage = STORAGE_COPYING;
    fixture->other.sending = true;
    shares_update(&fixture->host);
    assert_int_equal(fixture->hot.share, 40);
    assert_int_equal(fixture->cold.share, 40);
    assert_int_equal(fixture->other.share, 40);
    assert_int_equal(fixture->other.share_told, 40);
    /* What is sent with the VM itself is not worth it. */
    fixture->cold.stage = STORAGE_COPIED;
    fixture->other.ended = true;
    shares_update(&fixture->host);
    assert_int_equal(fixture->hot.share, 120);
    fixture->cold.stage = STORAGE_COPYING;
    fixture->cold.outgoing = false;
    shares_update(&fixture->host);
    assert_int_equal(fixture->hot.share, 120);
}

static void cold_one_keeps_its_own_limit(void **state)
{
    struct fixture *fixture = *state;

    fixture->cold.stage = STORAGE_COPYING;
    fixture->cold.sending = true;
    fixture->cold.own_limit = 20;
    shares_update(&fixture->host);
    assert_int_equal(fixture->cold.share, 20);
    assert_int_equal(fixture->hot.share, 100);
    fixture->config.migrate_bandwidth = 0;
    shares_update(&fixture->host);
    assert_int_equal(fixture->cold.share, 20);
    assert_int_equal(fixture->hot.share, 0);
}

/* It takes none of the places, of which there is one. */
static void cold_one_neither_waits_nor_makes_wait(void **state)
{
    struct fixture *fixture = *state;

    fixture->config.migrate_max = 1;
    fixture->cold.stage = STORAGE_COPYING;
    fixture->cold.sending = true;
    assert_true(queue_enter(&fixture->hot));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_total_everyone_has_his_own_limit),
        cmocka_unit_test(it_is_divided_evenly),
        cmocka_unit_test(who_wants_less_leaves_the_rest_to_the_others),
        cmocka_unit_test(limits_above_the_even_part_do_not_count),
        cmocka_unit_test(never_more_than_the_total_nor_nothing),
        cmocka_unit_test(a_tiny_total_is_not_taken_for_none),
        cmocka_unit_test_setup_teardown(cold_one_takes_part_while_it_copies, set_up, tear_down),
        cmocka_unit_test_setup_teardown(cold_one_keeps_its_own_limit, set_up, tear_down),
        cmocka_unit_test_setup_teardown(cold_one_neither_waits_nor_makes_wait, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
