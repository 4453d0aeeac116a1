/* How a connection chooses to send pages, against a model of a link, its buffers and the CPUs. */
#include "engine/choice.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#define BATCH_PAGES 256
#define BUFFER      (4.0 * 1024 * 1024)
#define MS          1e6
#define SECOND      1e9

struct world {
    double link_ns;                 /* a byte */
    double receiver_ns;             /* a page: the destination's cores */
    double encode_ns[CHOICE_WAYS];  /* a page */
    double page_bytes[CHOICE_WAYS]; /* a page */
    double copy_ns;                 /* a byte into the buffer */
    double now_ns;
    double drained_ns; /* when the buffer will be empty */
    double hiccup_ns;  /* the next batch that is compressed waits so long for a core */
    double pages;
};

/* Compressible by half or to a third, on an ordinary core. */
static const struct world ordinary = {
    .copy_ns = 0.25,
    .encode_ns = {50, 900, 7000, 12000},
    .page_bytes = {4100, 4100, 2100, 1400},
};

/* One batch in the way that was chosen, and samples when they are wanted. */
static void world_send(struct world *world, struct choice *choice)
{
    enum choice_way way = choice->way;
    struct choice_batch batch = {.pages = BATCH_PAGES,
                                 .bytes = (uint64_t)(BATCH_PAGES * world->page_bytes[way]),
                                 .encode_ns = (uint64_t)(BATCH_PAGES * world->encode_ns[way])};
    double drain_ns = (double)batch.bytes * world->link_ns;
    double send_ns = (double)batch.bytes * world->copy_ns;
    double buffered_ns = BUFFER * world->link_ns;

    if (drain_ns < BATCH_PAGES * world->receiver_ns)
        drain_ns = BATCH_PAGES * world->receiver_ns;
    if (buffered_ns < 4 * BATCH_PAGES * world->receiver_ns)
        buffered_ns = 4 * BATCH_PAGES * world->receiver_ns;
    if (choice_wants_sample(choice)) {
        for (int i = CHOICE_LZ4; i < CHOICE_WAYS; i++) {
            double stage = world->encode_ns[CHOICE_STAGED];

            world->now_ns += 16 * (world->encode_ns[i] - stage);
            choice_sample(
                choice, (enum choice_way)i,
                &(struct choice_batch){.pages = 16,
                                       .bytes = (uint64_t)(16 * world->page_bytes[i]),
                                       .encode_ns = (uint64_t)(16 * (world->encode_ns[i] - stage))});
        }
        choice_sampled(choice);
    }
    if (way >= CHOICE_LZ4) {
        batch.encode_ns += (uint64_t)world->hiccup_ns;
        world->hiccup_ns = 0;
    }
    world->now_ns += (double)batch.encode_ns;
    if (world->drained_ns < world->now_ns)
        world->drained_ns = world->now_ns;
    world->drained_ns += drain_ns;
    if (world->drained_ns - buffered_ns > world->now_ns + send_ns)
        send_ns = world->drained_ns - buffered_ns - world->now_ns;
    world->now_ns += send_ns;
    world->pages += BATCH_PAGES;
    batch.send_ns = (uint64_t)send_ns;
    choice_note(choice, &batch);
}

/* Pages a second over so many seconds. */
static double world_run(struct world *world, struct choice *choice, double seconds)
{
    double begin_ns = world->now_ns;
    double pages = world->pages;

    while (world->now_ns < begin_ns + seconds * SECOND)
        world_send(world, choice);
    return (world->pages - pages) / (world->now_ns - begin_ns) * SECOND;
}

static double run_as(enum ferry_compress wish, struct world world, double seconds)
{
    struct choice choice;

    choice_init(&choice, wish, true, true);
    return world_run(&world, &choice, seconds);
}

static void a_fast_link_gets_pages_as_they_are(void **state)
{
    static const double links[] = {0.1, 0.2, 0.4, 0.8}; /* 10 to 1.25 GB/s for each connection */

    for (size_t i = 0; i < 4; i++) {
        struct world world = ordinary;
        struct choice choice;

        world.link_ns = links[i];
        choice_init(&choice, FERRY_COMPRESS_AUTO, true, true);
        double rate = world_run(&world, &choice, 3);

        assert_true(rate >= 0.98 * run_as(FERRY_COMPRESS_OFF, world, 3));
        assert_true(choice.way < CHOICE_LZ4);
    }
}

static void a_slow_link_gets_as_little_as_possible(void **state)
{
    struct world world = ordinary;
    struct choice choice;

    world.link_ns = 16; /* half of 1 Gbit/s */
    choice_init(&choice, FERRY_COMPRESS_AUTO, true, true);
    double rate = world_run(&world, &choice, 10);

    assert_int_equal(choice.way, CHOICE_ZSTD);
    assert_true(rate >= 0.9 * run_as(FERRY_COMPRESS_ZSTD, ordinary, 10) ||
                rate >= 2.4 * run_as(FERRY_COMPRESS_OFF, world, 10));
}

static void a_thread_that_once_waits_for_a_core_tells_nothing(void **state)
{
    struct world world = ordinary;
    struct choice choice;

    world.link_ns = 50; /* half of 40 MB/s: a window has one batch */
    world.hiccup_ns = 200 * MS;
    choice_init(&choice, FERRY_COMPRESS_AUTO, true, true);
    world_run(&world, &choice, 1);
    assert_true(world.hiccup_ns == 0);
    assert_true(choice.way >= CHOICE_LZ4);
}

static void a_link_between_gets_what_the_core_can_do(void **state)
{
    struct world world = ordinary;
    struct choice choice;

    world.link_ns = 3; /* 333 MB/s: plain 12.3 µs a page, lz4 7.5, zstd 12.4 */
    choice_init(&choice, FERRY_COMPRESS_AUTO, true, true);
    double rate = world_run(&world, &choice, 10);

    assert_int_equal(choice.way, CHOICE_LZ4);
    assert_true(rate >= 1.4 * run_as(FERRY_COMPRESS_OFF, world, 10));
}

static void what_does_not_compress_is_not_compressed(void **state)
{
    struct world world = ordinary;
    struct choice choice;

    world.link_ns = 16;
    world.page_bytes[CHOICE_LZ4] = world.page_bytes[CHOICE_ZSTD] = 4100;
    choice_init(&choice, FERRY_COMPRESS_AUTO, true, true);
    double rate = world_run(&world, &choice, 5);

    assert_int_equal(choice.way, CHOICE_STAGED); /* costs nothing there, and later rounds gain by it */
    assert_true(rate >= 0.98 * run_as(FERRY_COMPRESS_OFF, world, 5));
}

/* It is not the link that is slow but the destination's cores; compression makes them no faster. */
static void a_promise_that_does_not_come_true_is_given_up(void **state)
{
    struct world world = ordinary;
    struct choice choice;
    double plain, rate;

    world.link_ns = 0.1;
    world.receiver_ns = 14000;
    plain = run_as(FERRY_COMPRESS_OFF, world, 20);
    choice_init(&choice, FERRY_COMPRESS_AUTO, true, true);
    rate = world_run(&world, &choice, 20);
    assert_true(choice.way < CHOICE_LZ4);
    assert_true(rate >= 0.97 * plain);
}

static void the_link_is_followed_when_it_changes(void **state)
{
    struct world world = ordinary;
    struct choice choice;

    world.link_ns = 0.2;
    choice_init(&choice, FERRY_COMPRESS_AUTO, true, true);
    world_run(&world, &choice, 2);
    assert_true(choice.way < CHOICE_LZ4);
    world.link_ns = 16;
    world_run(&world, &choice, 5);
    assert_int_equal(choice.way, CHOICE_ZSTD);
    world.link_ns = 0.2;
    world_run(&world, &choice, 5);
    assert_int_equal(choice.way, CHOICE_PLAIN);
}

static void a_wish_is_followed_as_far_as_the_other_side_can(void **state)
{
    struct choice choice;

    choice_init(&choice, FERRY_COMPRESS_OFF, true, true);
    assert_int_equal(choice.way, CHOICE_PLAIN);
    choice_init(&choice, FERRY_COMPRESS_LZ4, true, true);
    assert_int_equal(choice.way, CHOICE_LZ4);
    choice_init(&choice, FERRY_COMPRESS_ZSTD, true, true);
    assert_int_equal(choice.way, CHOICE_ZSTD);
    choice_init(&choice, FERRY_COMPRESS_ZSTD, true, false);
    assert_int_equal(choice.way, CHOICE_STAGED);

    struct world world = ordinary;

    world.link_ns = 16;
    choice_init(&choice, FERRY_COMPRESS_AUTO, true, false);
    world_run(&world, &choice, 5);
    assert_int_equal(choice.way, CHOICE_LZ4);
}

static void when_the_guest_waits_latency_counts(void **state)
{
    struct world world = ordinary;
    struct choice choice;

    world.link_ns = 16;
    choice_init(&choice, FERRY_COMPRESS_AUTO, true, true);
    world_run(&world, &choice, 5);
    assert_int_equal(choice.way, CHOICE_ZSTD);
    assert_int_equal(choice_for(&choice, 0), CHOICE_PLAIN);
    assert_int_equal(choice_for(&choice, 0.1), CHOICE_PLAIN);
    assert_true(choice_for(&choice, 16) >= CHOICE_LZ4);
}

/* Changes of 300 bytes when staged; plain the page is whole, whatever the rounds were. */
static void what_a_page_comes_to_depends_on_the_way(void **state)
{
    struct choice choice;

    choice_init(&choice, FERRY_COMPRESS_AUTO, true, true);
    assert_int_equal(choice_page_bytes(&choice, CHOICE_STAGED), 4096);
    choice.way = CHOICE_STAGED;
    choice_note(&choice,
                &(struct choice_batch){
                    .pages = 8192, .bytes = 8192 * 300, .encode_ns = 8192 * 2000, .send_ns = 8192 * 100});
    assert_in_range(choice_page_bytes(&choice, CHOICE_STAGED), 1, 400);
    assert_in_range(choice_page_ns(&choice, CHOICE_STAGED), 1500, 2100);
    assert_int_equal(choice_page_bytes(&choice, CHOICE_PLAIN), 4096);
    assert_int_equal(choice_page_ns(&choice, CHOICE_PLAIN), 0);
    /* All as it was, nothing to send. */
    for (int i = 0; i < 20; i++) {
        choice.way = CHOICE_STAGED;
        choice_note(&choice, &(struct choice_batch){.pages = 8192, .encode_ns = 8192 * 2000});
    }
    assert_in_range(choice_page_bytes(&choice, CHOICE_STAGED), 1, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_page_comes_to_depends_on_the_way),
        cmocka_unit_test(a_fast_link_gets_pages_as_they_are),
        cmocka_unit_test(a_slow_link_gets_as_little_as_possible),
        cmocka_unit_test(a_thread_that_once_waits_for_a_core_tells_nothing),
        cmocka_unit_test(a_link_between_gets_what_the_core_can_do),
        cmocka_unit_test(what_does_not_compress_is_not_compressed),
        cmocka_unit_test(a_promise_that_does_not_come_true_is_given_up),
        cmocka_unit_test(the_link_is_followed_when_it_changes),
        cmocka_unit_test(a_wish_is_followed_as_far_as_the_other_side_can),
        cmocka_unit_test(when_the_guest_waits_latency_counts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
