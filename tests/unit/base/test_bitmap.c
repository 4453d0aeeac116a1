#include "unit.h"

#include "base/bitmap.h"
#include "base/thread.h"

#include <sched.h>

#define SEED UINT64_C(0x5eed0001)

/* The naive model: a byte a bit. */
struct pair {
    uint64_t *map;
    uint8_t *model;
    size_t bits;
};

static void pair_make(struct pair *pair, size_t bits)
{
    pair->bits = bits;
    pair->map = bitmap_new(bits);
    pair->model = calloc(bits + 1, 1);
    assert_non_null(pair->map);
    assert_non_null(pair->model);
}

static void pair_free(struct pair *pair)
{
    free(pair->map);
    free(pair->model);
}

static size_t model_next(const struct pair *pair, size_t from, uint8_t wanted)
{
    while (from < pair->bits && pair->model[from] != wanted)
        from++;
    return from < pair->bits ? from : pair->bits;
}

static void pair_compare(const struct pair *pair)
{
    size_t count = 0;

    for (size_t i = 0; i < pair->bits; i++) {
        assert_int_equal(bitmap_test(pair->map, i), pair->model[i]);
        count += pair->model[i];
    }
    assert_int_equal(bitmap_count(pair->map, pair->bits), count);
    for (size_t i = 0; i <= pair->bits + 1; i++) {
        assert_int_equal(bitmap_next_set(pair->map, pair->bits, i), model_next(pair, i, 1));
        assert_int_equal(bitmap_next_clear(pair->map, pair->bits, i), model_next(pair, i, 0));
    }
}

static void random_step(struct pair *pair, uint64_t *seed)
{
    size_t first = unit_random(seed) % pair->bits;
    size_t count = unit_random(seed) % (pair->bits - first + 1);

    switch (unit_random(seed) % 5) {
    case 0:
        bitmap_set(pair->map, first);
        pair->model[first] = 1;
        break;
    case 1:
        bitmap_clear(pair->map, first);
        pair->model[first] = 0;
        break;
    case 2:
        bitmap_set_atomic(pair->map, first);
        pair->model[first] = 1;
        break;
    case 3:
        bitmap_set_range(pair->map, first, count);
        memset(pair->model + first, 1, count);
        break;
    default:
        bitmap_clear_range(pair->map, first, count);
        memset(pair->model + first, 0, count);
        break;
    }
}

static void behaves_as_the_naive_model(void **state)
{
    static const size_t sizes[] = {1, 2, 63, 64, 65, 127, 128, 129, 200, 513};
    uint64_t seed = SEED;

    print_message("seed 0x%llx\n", (unsigned long long)seed);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct pair pair;

        pair_make(&pair, sizes[i]);
        pair_compare(&pair);
        for (int step = 0; step < 200; step++) {
            random_step(&pair, &seed);
            pair_compare(&pair);
        }
        pair_free(&pair);
    }
}

static void every_range_sets_exactly_its_bits(void **state)
{
    enum { BITS = 130 };

    for (size_t first = 0; first < BITS; first++) {
        for (size_t count = 0; first + count <= BITS; count++) {
            uint64_t map[3] = {0};

            bitmap_set_range(map, first, count);
            assert_int_equal(bitmap_count(map, BITS), count);
            assert_int_equal(bitmap_next_set(map, BITS, 0), count ? first : BITS);
            assert_int_equal(bitmap_next_clear(map, BITS, first), first + count);
            bitmap_clear_range(map, first, count);
            assert_int_equal(map[0] | map[1] | map[2], 0);
        }
    }
}

static void bits_past_the_end_are_not_seen(void **state)
{
    uint64_t map[2] = {0, UINT64_MAX};

    assert_int_equal(bitmap_count(map, 64), 0);
    assert_int_equal(bitmap_count(map, 70), 6);
    assert_int_equal(bitmap_next_set(map, 64, 0), 64);
    map[1] = UINT64_MAX << 6;
    assert_int_equal(bitmap_next_set(map, 70, 0), 70);
    assert_int_equal(bitmap_next_set(map, 0, 0), 0);
}

static void take_merges_and_clears(void **state)
{
    uint64_t from[3] = {0x5, 0, 0x8000000000000000};
    uint64_t into[3] = {0x3, 0x1, 0};

    assert_int_equal(bitmap_take_words(from, into, 3), 3);
    assert_int_equal(from[0] | from[1] | from[2], 0);
    assert_true(into[0] == 0x7 && into[1] == 1 && into[2] == 0x8000000000000000);
    assert_int_equal(bitmap_take_words(from, into, 3), 0);
}

/*
 * A page as the migration sees it: the writer raises its value and then sets its bit; the taker copies the
 * value when it finds the bit. When all is done, the last copy must be the last value.
 */
#define PAGES   64
#define WRITERS 2
#define WRITES  200000

struct race {
    uint64_t dirty[PAGES / 64];
    uint64_t value[PAGES];
    uint64_t copy[PAGES];
    int running; /* atomic: writers still at work */
};

struct writer {
    struct race *race;
    size_t index; /* the pages it writes: index, index + WRITERS, ... */
    uint64_t seed;
};

static void *writer_main(void *opaque)
{
    struct writer *writer = opaque;
    struct race *race = writer->race;

    for (uint64_t i = 1; i <= WRITES; i++) {
        size_t page = writer->index + WRITERS * (unit_random(&writer->seed) % (PAGES / WRITERS));

        /* A plain store, which may linger in the CPU's store buffer; a read-modify-write would not. */
        __atomic_store_n(&race->value[page], i, __ATOMIC_RELAXED);
        bitmap_set_atomic(race->dirty, page);
    }
    __atomic_fetch_sub(&race->running, 1, __ATOMIC_RELEASE);
    return NULL;
}

static void copy_taken(struct race *race)
{
    uint64_t taken[PAGES / 64] = {0};

    bitmap_take_words(race->dirty, taken, PAGES / 64);
    for (size_t page = bitmap_next_set(taken, PAGES, 0); page < PAGES;
         page = bitmap_next_set(taken, PAGES, page + 1))
        race->copy[page] = __atomic_load_n(&race->value[page], __ATOMIC_RELAXED);
}

static void concurrent_set_and_take_lose_nothing(void **state)
{
    struct race race = {.running = WRITERS};
    struct writer writers[WRITERS];
    struct thread threads[WRITERS];
    struct ferry_error err;

    for (int i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){&race, (size_t)i, SEED + (uint64_t)i};
        assert_ok(thread_start(&threads[i], THREAD_GENERAL, "writer", writer_main, &writers[i], &err), err);
    }
    while (__atomic_load_n(&race.running, __ATOMIC_ACQUIRE) > 0)
        copy_taken(&race);
    for (int i = 0; i < WRITERS; i++)
        thread_join(&threads[i]);
    copy_taken(&race);
    assert_memory_equal(race.copy, race.value, sizeof(race.value));
}

/*
 * The hardest moment: the bit is set already and the page is written once more while the taker takes it. Each
 * round ends with both at rest, when what was copied must be what was written last.
 */
#define ROUNDS 20000

struct duel {
    uint64_t dirty;
    uint64_t value;
    unsigned turn; /* atomic: round the writer may play */
    unsigned done; /* atomic: round the writer has played */
};

static void wait_for(const unsigned *counter, unsigned wanted)
{
    while (__atomic_load_n(counter, __ATOMIC_ACQUIRE) != wanted)
        sched_yield();
}

static void *duel_main(void *opaque)
{
    struct duel *duel = opaque;

    for (unsigned round = 1; round <= ROUNDS; round++) {
        wait_for(&duel->turn, round);
        for (uint64_t i = 1; i <= 8; i++) {
            __atomic_store_n(&duel->value, round * 8 + i, __ATOMIC_RELAXED);
            bitmap_set_atomic(&duel->dirty, 0);
        }
        __atomic_store_n(&duel->done, round, __ATOMIC_RELEASE);
    }
    return NULL;
}

static void page_written_again_while_taken_is_not_lost(void **state)
{
    struct duel duel = {0};
    struct thread thread;
    struct ferry_error err;
    uint64_t copy = 0;
    unsigned lost = 0;

    assert_ok(thread_start(&thread, THREAD_GENERAL, "duel", duel_main, &duel, &err), err);
    for (unsigned round = 1; round <= ROUNDS; round++) {
        bool last;

        __atomic_store_n(&duel.turn, round, __ATOMIC_RELEASE);
        do {
            uint64_t taken = 0;

            last = __atomic_load_n(&duel.done, __ATOMIC_ACQUIRE) == round;
            if (bitmap_take_words(&duel.dirty, &taken, 1))
                copy = __atomic_load_n(&duel.value, __ATOMIC_RELAXED);
        } while (!last);
        lost += copy != round * 8 + 8;
    }
    thread_join(&thread);
    assert_int_equal(lost, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(behaves_as_the_naive_model),
        cmocka_unit_test(every_range_sets_exactly_its_bits),
        cmocka_unit_test(bits_past_the_end_are_not_seen),
        cmocka_unit_test(take_merges_and_clears),
        cmocka_unit_test(concurrent_set_and_take_lose_nothing),
        cmocka_unit_test(page_written_again_while_taken_is_not_lost),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
