/* What earlier migrations tell about the next one: of several the middle one, of the most like it. */
#include "unit.h"

#include "host/host.h"
#include "host/migration.h"

#include <ferry/ferry.h>

#define US 1000

struct fixture {
    struct unit_dir dir;
    struct host host;
    unsigned count;
};

static int set_up(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    struct ferry_error err;
    char path[128];

    unit_dir_make(&fixture->dir);
    unit_path(&fixture->dir, "ferryd.db", path);
    *state = fixture;
    return store_open_sqlite(&fixture->host.store, path, &err);
}

static int tear_down(void **state)
{
    struct fixture *fixture = *state;

    store_close(fixture->host.store);
    unit_dir_remove(&fixture->dir);
    free(fixture);
    return 0;
}

/* One of web to b that this host sent and that completed, with what else there is of it. Steals MORE. */
static void record(struct fixture *fixture, json_t *more)
{
    char id[16];
    struct ferry_error err;

    snprintf(id, sizeof(id), "id-%u", ++fixture->count);
    json_object_update_new(more, json_pack("{s:s, s:s, s:s, s:s, s:s}", "id", id, "vm", "web", "destination",
                                           "b", "outcome", "completed", "side", "source"));
    assert_ok(
        fixture->host.store->ops->migration_put(fixture->host.store,
                                                &(struct store_migration){.id = id,
                                                                          .vm = "web",
                                                                          .outcome = "completed",
                                                                          .started_ns = fixture->count,
                                                                          .ended_ns = fixture->count + 1,
                                                                          .object = more},
                                                &err),
        err);
    json_decref(more);
}

/* A completed move that this host sent; RESUME_US, and all else of the downtime 0. */
static void moved(struct fixture *fixture, const char *vm, const char *to, int resume_us, int setup_ms)
{
    char id[16];
    struct ferry_error err;
    json_t *object;

    snprintf(id, sizeof(id), "id-%u", ++fixture->count);
    object =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:{s:i, s:i}, s:I, s:I, s:i, s:i}", "id", id, "vm", vm,
                  "destination", to, "outcome", "completed", "side", "source", "downtime_parts", "resume",
                  resume_us * US, "wire", 1000, "setup_ns", (json_int_t)setup_ms * 1000 * US, "memory_bytes",
                  (json_int_t)1 << 30, "pages_skipped", 1 << 17, "state_bytes", (int)fixture->count);
    assert_ok(
        fixture->host.store->ops->migration_put(fixture->host.store,
                                                &(struct store_migration){.id = id,
                                                                          .vm = vm,
                                                                          .outcome = "completed",
                                                                          .started_ns = fixture->count,
                                                                          .ended_ns = fixture->count + 1,
                                                                          .object = object},
                                                &err),
        err);
    json_decref(object);
}

static json_int_t resume_of(const struct migration_known *known)
{
    return json_integer_value(json_object_get(json_object_get(known->costs, "downtime_parts"), "resume"));
}

static void nothing_is_known_of_the_first(void **state)
{
    struct fixture *fixture = *state;
    struct migration_known known;

    migration_known_costs(&fixture->host, "web", "b", 0, &known);
    assert_null(known.costs);
    assert_false(known.same_way);
    assert_int_equal(known.setup_ns, 0);
}

/* One of them met a busy moment, and it was the newest. */
static void one_bad_move_does_not_count(void **state)
{
    struct fixture *fixture = *state;
    struct migration_known known;

    moved(fixture, "web", "b", 9999, 9);
    moved(fixture, "web", "b", 41, 10);
    moved(fixture, "web", "b", 42, 12);
    moved(fixture, "web", "b", 40, 11);
    moved(fixture, "web", "b", 43, 10);
    moved(fixture, "web", "b", 2700, 800);
    migration_known_costs(&fixture->host, "web", "b", 0, &known);
    assert_int_equal(resume_of(&known), 42 * US);
    assert_int_equal(known.setup_ns, 11 * 1000 * US);
    assert_int_equal(known.used_bytes, 1 << 29);
    assert_int_equal(json_integer_value(json_object_get(known.costs, "state_bytes")), 6);
    assert_true(known.same_way);
    json_decref(known.costs);
}

static void the_same_vm_and_way_come_before_others(void **state)
{
    struct fixture *fixture = *state;
    struct migration_known known;

    moved(fixture, "db", "b", 10, 1);
    migration_known_costs(&fixture->host, "web", "b", 0, &known);
    assert_int_equal(resume_of(&known), 10 * US);
    assert_true(known.same_way);
    assert_int_equal(known.setup_ns, 0); /* another VM's memory */
    assert_null(json_object_get(known.costs, "state_bytes"));
    json_decref(known.costs);

    moved(fixture, "web", "c", 20, 2);
    migration_known_costs(&fixture->host, "web", "b", 0, &known);
    assert_int_equal(resume_of(&known), 20 * US);
    assert_false(known.same_way);
    json_decref(known.costs);

    moved(fixture, "web", "b", 30, 3);
    moved(fixture, "web", "c", 21, 2);
    migration_known_costs(&fixture->host, "web", "b", 0, &known);
    assert_int_equal(resume_of(&known), 30 * US);
    assert_true(known.same_way);
    json_decref(known.costs);
}

/* 1 MB at 100 MB/s are 10 ms, of which giving them to the link took 2. */
static void pages_on_the_wire_are_not_the_switchovers(void **state)
{
    struct fixture *fixture = *state;
    struct migration_known known;
    struct ferry_error err;
    const json_t *parts;
    json_t *object =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:[{s:i, s:i}, {s:i, s:i}], s:{s:i, s:i}}", "id", "id", "vm",
                  "web", "destination", "b", "outcome", "completed", "side", "source", "rounds", "bytes",
                  50000000, "duration_ns", 500000000, "bytes", 1000000, "duration_ns", 2000000,
                  "downtime_parts", "wire", 8300000, "last pages", 2150000);
    struct store_migration row = {
        .id = "id", .vm = "web", .outcome = "completed", .started_ns = 1, .ended_ns = 2, .object = object};

    assert_ok(fixture->host.store->ops->migration_put(fixture->host.store, &row, &err), err);
    json_decref(object);
    migration_known_costs(&fixture->host, "web", "b", 100000000, &known);
    parts = json_object_get(known.costs, "downtime_parts");
    assert_int_equal(json_integer_value(json_object_get(parts, "wire")), 300000);
    assert_int_equal(json_integer_value(json_object_get(parts, "last pages")), 150000);
    json_decref(known.costs);
}

/* Each of three was slow in another part: the middle one took 102 us, though no part's middle value is
 * above 1. */
static void busy_moments_in_different_parts_are_not_lost(void **state)
{
    struct fixture *fixture = *state;
    struct migration_known known;
    const json_t *parts;
    json_int_t sum = 0;
    static const int times[3][3] = {{100, 1, 1}, {1, 100, 1}, {1, 1, 100}};

    for (int i = 0; i < 3; i++)
        record(fixture, json_pack("{s:{s:i, s:i, s:i}}", "downtime_parts", "pause", times[i][0] * US, "lock",
                                  times[i][1] * US, "resume", times[i][2] * US));
    migration_known_costs(&fixture->host, "web", "b", 0, &known);
    parts = json_object_get(known.costs, "downtime_parts");
    for (int i = 0; i < FERRY_DOWNTIME_PARTS; i++)
        sum +=
            json_integer_value(json_object_get(parts, ferry_downtime_part_name((enum ferry_downtime_part)i)));
    assert_int_equal(sum, 102 * US);
    json_decref(known.costs);
}

/* A first round of 64 MB in SECONDS. */
static void sent(struct fixture *fixture, int seconds, int limit, int compressed)
{
    record(fixture,
           json_pack("{s:{s:i}, s:[{s:i, s:I}], s:i, s:i, s:{s:{s:i}}}", "downtime_parts", "pause", 1,
                     "rounds", "bytes", 64000000, "duration_ns", (json_int_t)seconds * 1000000000,
                     "bandwidth_limit", limit, "pages_raw", 16000, "encodings", "lz4", "pages", compressed));
}

static void bandwidth_is_known_of_moves_that_nothing_held_back(void **state)
{
    struct fixture *fixture = *state;
    struct migration_known known;

    sent(fixture, 1, 0, 0);
    sent(fixture, 2, 0, 0);
    sent(fixture, 1, 0, 100);
    sent(fixture, 64, 1000000, 0);
    sent(fixture, 64, 0, 16000);
    migration_known_costs(&fixture->host, "web", "b", 0, &known);
    assert_int_equal(known.bandwidth, 64000000);
    json_decref(known.costs);
    migration_known_costs(&fixture->host, "web", "c", 0, &known);
    assert_int_equal(known.bandwidth, 0);
    json_decref(known.costs);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(nothing_is_known_of_the_first, set_up, tear_down),
        cmocka_unit_test_setup_teardown(one_bad_move_does_not_count, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_same_vm_and_way_come_before_others, set_up, tear_down),
        cmocka_unit_test_setup_teardown(pages_on_the_wire_are_not_the_switchovers, set_up, tear_down),
        cmocka_unit_test_setup_teardown(busy_moments_in_different_parts_are_not_lost, set_up, tear_down),
        cmocka_unit_test_setup_teardown(bandwidth_is_known_of_moves_that_nothing_held_back, set_up,
                                        tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
