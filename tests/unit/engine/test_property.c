/*
 * Random guests moved in random ways: what arrives is what the source had when it stopped, whatever was done
 * to the pages on their way. The seed is fixed; FERRY_TEST_SEED gives another, FERRY_TEST_CASES more of them.
 */
#include "harness.h"

#include "base/clock.h"
#include "engine/session.h"
#include "engine/wire.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>

#define SEED  UINT64_C(1)
#define CASES 48

/* SplitMix64: any seed will do, the next one too. */
static uint64_t random_next(uint64_t *state)
{
    uint64_t value = *state += UINT64_C(0x9e3779b97f4a7c15);

    value = (value ^ value >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    value = (value ^ value >> 27) * UINT64_C(0x94d049bb133111eb);
    return value ^ value >> 31;
}

static uint64_t random_below(uint64_t *state, uint64_t limit)
{
    return random_next(state) % limit;
}

static uint64_t number_from(const char *variable, uint64_t otherwise)
{
    const char *text = getenv(variable);

    return text ? strtoull(text, NULL, 0) : otherwise;
}

/* Noise, text, zeros that are there, and nothing at all, in runs of any length. */
static void fill_memory(struct fake_guest *guest, uint64_t *random)
{
    for (size_t region = 0; region < guest->region_count; region++) {
        uint64_t pages = guest->regions[region].size / FERRY_PAGE_SIZE;
        uint64_t run;

        for (uint64_t page = 0; page < pages; page += run) {
            uint8_t *memory = guest->regions[region].host_ptr + page * FERRY_PAGE_SIZE;

            run = random_below(random, 200) + 1;
            if (run > pages - page)
                run = pages - page;
            switch (random_below(random, 4)) {
            case 0:
                fake_guest_fill(guest, region, page, run, random_next(random));
                break;
            case 1:
                for (uint64_t i = 0; i < run * FERRY_PAGE_SIZE; i++)
                    memory[i] = (uint8_t) "all work and no play makes a page compressible\n"[i % 47];
                break;
            case 2:
                memset(memory, 0, run * FERRY_PAGE_SIZE);
                break;
            default:
                break;
            }
        }
    }
}

struct plan {
    uint64_t sizes[2];
    size_t regions;
    bool memfd;
    bool reserved; /* at the destination */
    enum fake_pattern pattern;
    uint64_t pages_per_s;
    uint64_t window;
};

static struct plan make_plan(uint64_t *random)
{
    static const uint64_t paces[] = {0, 500, 20000, 400000};
    static const uint64_t windows[] = {4, 64, 600, 0};

    return (struct plan){
        .sizes = {(4 + random_below(random, 9)) * MIB, (1 + random_below(random, 4)) * MIB},
        .regions = 1 + random_below(random, 2),
        .memfd = random_below(random, 4) > 0,
        .reserved = random_below(random, 2),
        .pattern = (enum fake_pattern)random_below(random, FAKE_PATTERN_MIXED + 1),
        .pages_per_s = paces[random_below(random, 4)],
        .window = windows[random_below(random, 4)],
    };
}

static void choose_options(struct ferry_source_options *options, uint64_t *random)
{
    static const uint64_t bandwidths[] = {0, 0, 25 * MIB, 100 * MIB, 400 * MIB};
    static const uint64_t downtimes[] = {NS_PER_MS, 5 * NS_PER_MS, 50 * NS_PER_MS, 300 * NS_PER_MS};

    options->streams = 1 + (unsigned)random_below(random, 4);
    options->compress = (enum ferry_compress)random_below(random, FERRY_COMPRESS_ZSTD + 1);
    options->bandwidth_limit = bandwidths[random_below(random, 5)];
    options->downtime_limit_ns = downtimes[random_below(random, 4)];
    static const uint64_t caches[] = {0, 0, 4096, 300000};

    options->delta_cache = caches[random_below(random, 4)];
    options->no_delta_cache = random_below(random, 8) == 0;
    options->no_throttle = random_below(random, 2);
    options->verify_memory = random_below(random, 2);
}

/* Sometimes the guest starts before all of its memory is there. */
static void choose_quick_resume(struct ferry_source_options *options, uint64_t *random)
{
    uint64_t value = random_below(random, 8);

    options->quick_resume = value < 2   ? FERRY_QUICK_RESUME_NOW
                            : value < 4 ? FERRY_QUICK_RESUME_ALLOWED
                                        : FERRY_QUICK_RESUME_OFF;
    options->quick_resume_rounds = (unsigned)random_below(random, 3);
}

/* Either side may be of a version that knows less. */
static void choose_versions(struct migration *m, uint64_t *random)
{
    struct ferry_session *const sides[] = {m->from, m->to};

    for (size_t i = 0; i < 2; i++) {
        if (random_below(random, 4) == 0)
            sides[i]->settings.features_unknown = random_next(random) & WIRE_FEATURES_COPY;
    }
}

static void run_case(uint64_t seed, struct ferry_progress *sum)
{
    uint64_t random = seed;
    struct migration *m = malloc(sizeof(*m));
    struct plan plan = make_plan(&random);

    migration_init(m, plan.sizes, plan.regions, plan.memfd);
    fake_guest_run(&m->source, false);
    fill_memory(&m->source, &random);
    for (size_t i = 0; plan.memfd && plan.reserved && i < plan.regions; i++)
        assert_int_equal(fallocate(m->destination.regions[i].memfd, 0, 0, (off_t)plan.sizes[i]), 0);
    m->source.pattern = plan.pattern;
    m->source.pages_per_s = plan.pages_per_s;
    m->source.window = plan.window;
    m->source.random = random | 1;
    choose_options(&m->source_options, &random);
    if (plan.memfd)
        choose_quick_resume(&m->source_options, &random);
    /* Loopback TCP is known to be fast, so that few rounds are enough. */
    if (random_below(&random, 2))
        migration_use_unix_socket(m);
    print_message(
        "seed %#llx: %zu regions, %s memory, pattern %d, %llu pages/s in %llu; %s, %u streams, limit %llu "
        "MiB/s, downtime %llu ms, quick resume %d\n",
        (unsigned long long)seed, plan.regions, plan.memfd ? "memfd" : "anonymous", (int)plan.pattern,
        (unsigned long long)plan.pages_per_s, (unsigned long long)plan.window,
        ferry_compress_name(m->source_options.compress), m->source_options.streams,
        (unsigned long long)(m->source_options.bandwidth_limit / MIB),
        (unsigned long long)(m->source_options.downtime_limit_ns / NS_PER_MS),
        (int)m->source_options.quick_resume);
    fake_guest_run(&m->source, true);
    migration_create(m);
    choose_versions(m, &random);
    migration_run(m);
    migration_assert_completed(m);

    const struct ferry_progress *from = &m->source_progress;
    const struct ferry_progress *to = &m->destination_progress;

    assert_int_equal(from->pages_raw, to->pages_raw);
    assert_int_equal(from->pages_zero, to->pages_zero);
    for (int i = FERRY_ENCODING_DELTA; i < FERRY_ENCODINGS; i++) {
        assert_int_equal(from->encoded[i].pages, to->encoded[i].pages);
        assert_int_equal(from->encoded[i].bytes, to->encoded[i].bytes);
    }
    assert_int_equal(from->remaining_bytes, 0);
    for (int i = 0; i < FERRY_ENCODINGS && m->source_options.compress == FERRY_COMPRESS_OFF; i++)
        assert_int_equal(from->encoded[i].pages, 0);
    sum->pages_raw += from->pages_raw;
    sum->pages_zero += from->pages_zero;
    for (int i = 0; i < FERRY_ENCODINGS; i++)
        sum->encoded[i].pages += from->encoded[i].pages;
    sum->pages_postponed += from->pages_postponed;
    migration_free(m);
    free(m);
}

static void what_arrives_is_what_was_there_at_the_stop(void **state)
{
    uint64_t seed = number_from("FERRY_TEST_SEED", SEED);
    uint64_t cases = number_from("FERRY_TEST_CASES", CASES);
    struct ferry_progress *sum = calloc(1, sizeof(*sum));

    for (uint64_t i = 0; i < cases; i++) {
        run_case(seed + i, sum);
    }
    print_message("%llu raw, %llu zero, %llu postponed", (unsigned long long)sum->pages_raw,
                  (unsigned long long)sum->pages_zero, (unsigned long long)sum->pages_postponed);
    for (int i = 0; i < FERRY_ENCODINGS; i++)
        print_message(", %llu %s", (unsigned long long)sum->encoded[i].pages,
                      ferry_encoding_name((enum ferry_encoding)i));
    print_message("\n");
    if (cases >= CASES)
        assert_true(sum->pages_raw > 0 && sum->pages_zero > 0);
    free(sum);
}

#define WRITTEN 256

/* In every round a guest changes one byte in each of its first WRITTEN pages, and stores to as many more what
 * they hold already. */
static int a_little_written(void *opaque, size_t region, uint64_t *bitmap, struct ferry_error *err)
{
    struct fake_guest *guest = opaque;

    for (size_t page = 0; page < WRITTEN; page++)
        guest->regions[0].host_ptr[page * FERRY_PAGE_SIZE]++;
    memset(bitmap, 0xff, 2 * WRITTEN / 8);
    return fake_guest_ops.dirty_fetch(guest, region, bitmap, err);
}

/* Its memory: what is written (noise), text, and zeros. The limits leave time for some rounds. */
static void every_way_a_page_can_take_is_taken(void **state)
{
    static const uint64_t size = 4 * WRITTEN * FERRY_PAGE_SIZE;
    static const struct {
        enum ferry_compress compress;
        enum ferry_encoding encoding;
    } ways[] = {{FERRY_COMPRESS_LZ4, FERRY_ENCODING_LZ4}, {FERRY_COMPRESS_ZSTD, FERRY_ENCODING_ZSTD}};

    for (size_t i = 0; i < 2; i++) {
        struct migration *m = malloc(sizeof(*m));
        const struct ferry_progress *from = &m->source_progress;

        migration_init(m, &size, 1, true);
        fake_guest_fill(&m->source, 0, 0, 2 * WRITTEN, 1);
        memset(m->source.regions[0].host_ptr + size / 2, 'x', size / 4);
        memset(m->source.regions[0].host_ptr + size / 4 * 3, 0, size / 4);
        migration_use_unix_socket(m);
        m->source_ops.dirty_fetch = a_little_written;
        m->source_options.compress = ways[i].compress;
        m->source_options.bandwidth_limit = 16 * MIB;
        m->source_options.downtime_limit_ns = NS_PER_MS;
        m->source_options.no_throttle = true;
        migration_run(m);
        migration_assert_completed(m);
        assert_true(from->pages_raw >= 2 * WRITTEN);
        assert_true(from->pages_zero >= WRITTEN);
        assert_true(from->encoded[FERRY_ENCODING_UNCHANGED].pages >= WRITTEN);
        assert_true(from->encoded[FERRY_ENCODING_DELTA].pages >= WRITTEN);
        assert_true(from->encoded[ways[i].encoding].pages >= WRITTEN);
        assert_true(from->bandwidth_bytes_per_s > 0 && from->copy_bytes_per_s > 0);
        assert_non_null(strstr(m->source_witness.log, "MB/s on the wire"));
        migration_free(m);
        free(m);
    }
}

/* Moves a guest that stores so often to the first WINDOW of its 4096 pages, in some way. */
static void move_writer(enum fake_pattern pattern, uint64_t pages_per_s, uint64_t window,
                        enum ferry_compress compress, struct ferry_progress *progress)
{
    static const uint64_t size = 16 * MIB;
    struct migration *m = malloc(sizeof(*m));

    migration_init(m, &size, 1, true);
    fake_guest_run(&m->source, false);
    fake_guest_fill(&m->source, 0, 0, size / FERRY_PAGE_SIZE, 1);
    m->source.pattern = pattern;
    m->source.pages_per_s = pages_per_s;
    m->source.window = window;
    m->source_options.compress = compress;
    m->source_options.bandwidth_limit = 100 * MIB;
    migration_use_unix_socket(m);
    m->source_options.downtime_limit_ns = 5 * NS_PER_MS;
    for (size_t i = 0; i < FERRY_DOWNTIME_PARTS; i++)
        m->source_options.known_part_ns[i] = 1000;
    m->source_options.no_throttle = true;
    fake_guest_run(&m->source, true);
    migration_run(m);
    migration_assert_completed(m);
    *progress = m->source_progress;
    migration_free(m);
    free(m);
}

/* Of a guest that stores to its pages all the time: what was sent after the first round, in bytes a page. */
static double cost_of(enum fake_pattern pattern, enum ferry_compress compress,
                      struct ferry_progress *progress)
{
    uint64_t pages = 0, bytes = 0;

    move_writer(pattern, 200000, 1024, compress, progress);
    for (unsigned i = 1; i < progress->round && i < FERRY_ROUNDS_MAX; i++) {
        pages += progress->rounds[i].pages;
        bytes += progress->rounds[i].bytes;
    }
    assert_true(pages > 1000);
    return (double)bytes / (double)pages;
}

static void a_page_that_is_what_it_was_is_not_sent_again(void **state)
{
    struct ferry_progress *progress = malloc(sizeof(*progress));

    assert_true(cost_of(FAKE_PATTERN_SAME, FERRY_COMPRESS_OFF, progress) > FERRY_PAGE_SIZE);
    assert_int_equal(progress->encoded[FERRY_ENCODING_UNCHANGED].pages, 0);
    assert_true(cost_of(FAKE_PATTERN_SAME, FERRY_COMPRESS_LZ4, progress) < 100);
    assert_true(progress->encoded[FERRY_ENCODING_UNCHANGED].pages > 1000);
    free(progress);
}

/* 32 pages have most of the stores, all others some. */
static void a_page_written_in_every_round_waits_for_the_end(void **state)
{
    struct ferry_progress *progress = malloc(sizeof(*progress));

    move_writer(FAKE_PATTERN_MIXED, 50000, 4096, FERRY_COMPRESS_OFF, progress);
    assert_true(progress->pages_postponed > 0);
    free(progress);
}

/* Whole pages go once; after that a few bytes of each. */
static void of_a_page_that_changes_a_little_only_that_is_sent(void **state)
{
    struct ferry_progress *progress = malloc(sizeof(*progress));

    move_writer(FAKE_PATTERN_RANDOM, 50000, 1024, FERRY_COMPRESS_LZ4, progress);
    assert_true(progress->encoded[FERRY_ENCODING_DELTA].pages > 100);
    assert_true(progress->encoded[FERRY_ENCODING_DELTA].bytes <
                progress->encoded[FERRY_ENCODING_DELTA].pages * 200);
    free(progress);
}

/* One of the two knows no encodings: the guest moves without them, and the source says so. */
static void an_older_version_is_sent_what_it_knows(void **state)
{
    static const uint64_t size = 4 * MIB;

    for (int older = 0; older < 2; older++) {
        struct migration *m = malloc(sizeof(*m));

        migration_init(m, &size, 1, true);
        memset(m->source.regions[0].host_ptr, 'x', size);
        m->source.pattern = FAKE_PATTERN_FLIP;
        m->source.pages_per_s = 20000;
        m->source_options.compress = FERRY_COMPRESS_ZSTD;
        migration_create(m);
        (older ? m->to : m->from)->settings.features_unknown = WIRE_FEATURES_COPY;
        migration_run(m);
        migration_assert_completed(m);
        for (int i = FERRY_ENCODING_DELTA; i < FERRY_ENCODINGS; i++)
            assert_int_equal(m->source_progress.encoded[i].pages, 0);
        assert_true(m->source_progress.pages_raw >= size / FERRY_PAGE_SIZE);
        assert_non_null(strstr(m->source_witness.log, "does not know zstd: pages are sent uncompressed"));
        migration_free(m);
        free(m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_arrives_is_what_was_there_at_the_stop),
        cmocka_unit_test(every_way_a_page_can_take_is_taken),
        cmocka_unit_test(a_page_that_is_what_it_was_is_not_sent_again),
        cmocka_unit_test(a_page_written_in_every_round_waits_for_the_end),
        cmocka_unit_test(of_a_page_that_changes_a_little_only_that_is_sent),
        cmocka_unit_test(an_older_version_is_sent_what_it_knows),
    };

    return run_tests_apart(tests, NULL, NULL);
}
