/* What is foretold of a migration, and how the way to another host is measured. */
#include "unit.h"

#include "base/clock.h"
#include "base/sock.h"
#include "base/thread.h"

#include <ferry/ferry.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MB UINT64_C(1000000)

static struct ferry_forecast_input quarter_dirtied(void)
{
    return (struct ferry_forecast_input){.memory_bytes = 2048 * MB,
                                         .dirty_bytes_per_s = 32 * MB,
                                         .working_set_bytes = 2048 * MB,
                                         .bandwidth_bytes_per_s = 128 * MB,
                                         .downtime_limit_ns = 70 * NS_PER_MS,
                                         .no_throttle = true};
}

static void assert_about(uint64_t value, uint64_t expected)
{
    assert_in_range(value, expected - expected / 50, expected + expected / 50);
}

/* 2048, 512, 128 and 32 MB in 16, 4, 1 and 0.25 s, and 8 MB in 0.06 s with the guest stopped. */
static void reference_calculation_comes_out(void **state)
{
    struct ferry_forecast_input input = quarter_dirtied();
    struct ferry_forecast forecast;

    ferry_forecast(&input, &forecast);
    assert_true(forecast.converges);
    assert_int_equal(forecast.end, FERRY_FORECAST_STOP);
    assert_int_equal(forecast.rounds, 4);
    assert_about(forecast.bytes, 2728 * MB);
    assert_about(forecast.total_ns, 21312 * NS_PER_MS);
    assert_about(forecast.downtime_ns, 62500 * NS_PER_US);
}

static void setup_and_rate_limit_count(void **state)
{
    struct ferry_forecast_input input = quarter_dirtied();
    struct ferry_forecast free_way, limited;

    ferry_forecast(&input, &free_way);
    input.bandwidth_limit = 64 * MB;
    input.setup_ns = 3 * NS_PER_S;
    ferry_forecast(&input, &limited);
    assert_true(limited.total_ns > 2 * free_way.total_ns + 3 * NS_PER_S);
}

/* Half a page in 5 µs, a quarter in 40. */
static struct ferry_forecast_input compressible(uint64_t bandwidth)
{
    struct ferry_forecast_input input = quarter_dirtied();

    input.dirty_bytes_per_s = 0;
    input.bandwidth_bytes_per_s = bandwidth;
    input.streams = 1;
    input.compressibility.page_bytes[FERRY_ENCODING_LZ4] = 2048;
    input.compressibility.page_ns[FERRY_ENCODING_LZ4] = 5000;
    input.compressibility.page_bytes[FERRY_ENCODING_ZSTD] = 1024;
    input.compressibility.page_ns[FERRY_ENCODING_ZSTD] = 40000;
    return input;
}

static void compression_counts_where_it_pays(void **state)
{
    struct ferry_forecast_input input = compressible(5000 * MB);
    struct ferry_forecast forecast, plain;

    ferry_forecast(&input, &forecast); /* 0.8 µs a page as it is */
    assert_int_equal(forecast.compress, FERRY_COMPRESS_OFF);
    assert_about(forecast.bytes, 2048 * MB);
    input.bandwidth_bytes_per_s = 256 * MB; /* 16 µs a page, lz4 8, zstd 40 */
    ferry_forecast(&input, &forecast);
    assert_int_equal(forecast.compress, FERRY_COMPRESS_LZ4);
    assert_about(forecast.bytes, 1028 * MB);
    assert_about(forecast.total_ns, 4016 * NS_PER_MS);
    input.bandwidth_bytes_per_s = 25 * MB; /* 164 µs, 82, 41 */
    ferry_forecast(&input, &forecast);
    assert_int_equal(forecast.compress, FERRY_COMPRESS_ZSTD);
    input.compress = FERRY_COMPRESS_LZ4;
    ferry_forecast(&input, &forecast);
    assert_about(forecast.bytes, 1024 * MB);
    assert_about(forecast.total_ns, 41 * NS_PER_S);
    input.compress = FERRY_COMPRESS_OFF;
    ferry_forecast(&input, &plain);
    assert_about(plain.total_ns, 82 * NS_PER_S);
}

static void compressibility_is_measured(void **state)
{
    uint8_t *memory = malloc(256 * FERRY_PAGE_SIZE);
    const uint8_t *pages[256];
    struct ferry_compressibility result;
    uint64_t random = 1;

    for (size_t i = 0; i < 256; i++) {
        uint8_t *page = memory + i * FERRY_PAGE_SIZE;

        pages[i] = page;
        memset(page, 'x', FERRY_PAGE_SIZE);
        for (size_t at = 0; at < FERRY_PAGE_SIZE / 2; at++) {
            random = random * UINT64_C(6364136223846793005) + 1442695040888963407;
            page[at] = (uint8_t)(random >> 56);
        }
    }
    ferry_compressibility_measure(pages, 256, &result);
    for (int i = FERRY_ENCODING_LZ4; i <= FERRY_ENCODING_ZSTD; i++) {
        assert_in_range(result.page_bytes[i], FERRY_PAGE_SIZE / 2, FERRY_PAGE_SIZE / 2 + 200);
        assert_true(result.page_ns[i] > 0);
    }
    ferry_compressibility_measure(pages, 0, &result);
    assert_int_equal(result.page_bytes[FERRY_ENCODING_LZ4], 0);
    free(memory);
}

static void writer_that_outruns_the_way_does_not_converge(void **state)
{
    struct ferry_forecast_input input = quarter_dirtied();
    struct ferry_forecast forecast;

    input.dirty_bytes_per_s = 192 * MB;
    ferry_forecast(&input, &forecast);
    assert_false(forecast.converges);
    assert_int_equal(forecast.throttle, 0);

    input.no_throttle = false;
    ferry_forecast(&input, &forecast);
    assert_true(forecast.converges);
    assert_in_range(forecast.throttle, 30, 80);

    input.no_throttle = true;
    input.copy_time_limit_ns = NS_PER_S;
    ferry_forecast(&input, &forecast);
    assert_int_equal(forecast.end, FERRY_FORECAST_ABORT);
    input.copy_time_limit_ns = 1000 * NS_PER_S;
    input.quick_resume = true;
    ferry_forecast(&input, &forecast);
    assert_int_equal(forecast.end, FERRY_FORECAST_QUICK_RESUME);
}

static void nothing_known_of_the_way_is_no_crash(void **state)
{
    struct ferry_forecast_input input = {.memory_bytes = 1 << 20};
    struct ferry_forecast forecast;

    ferry_forecast(&input, &forecast);
    assert_true(forecast.total_ns > 0);
    input = (struct ferry_forecast_input){0};
    ferry_forecast(&input, &forecast);
    assert_int_equal(forecast.bytes, 0);
}

/* --- the probe --- */

#define PROBE_PAGES 256

struct receiver {
    struct ferry_destination_options options;
    struct thread thread;
    int result;
    struct ferry_error err;
};

static void *receive(void *argument)
{
    struct receiver *receiver = argument;

    receiver->result =
        ferry_probe_receive(&receiver->options, -1, PROBE_PAGES * FERRY_PAGE_SIZE, &receiver->err);
    return NULL;
}

static void receiver_start(struct receiver *receiver, struct ferry_source_options *source)
{
    struct ferry_error err = {0};

    *receiver = (struct receiver){.options = {.source = "a", .destination = "b"}};
    *source = (struct ferry_source_options){.source = "a", .destination = "b"};
    strcpy(receiver->options.migration_id, "11111111-1111-4111-8111-111111111111");
    strcpy(source->migration_id, receiver->options.migration_id);
    receiver->options.listen_fd = sock_listen("127.0.0.1:0", &err);
    assert_true(receiver->options.listen_fd >= 0);
    assert_ok(sock_local_address(receiver->options.listen_fd, source->address, &err), err);
    assert_ok(thread_start(&receiver->thread, THREAD_GENERAL, "receiver", receive, receiver, &err), err);
}

static void receiver_end(struct receiver *receiver)
{
    thread_join(&receiver->thread);
    close(receiver->options.listen_fd);
}

static void probe_moves_every_page_and_tells_how_fast(void **state)
{
    struct ferry_source_options options;
    struct ferry_progress report;
    struct receiver receiver;
    struct ferry_error err = {0};

    receiver_start(&receiver, &options);
    assert_ok(ferry_probe_send(&options, -1, PROBE_PAGES * FERRY_PAGE_SIZE, &report, &err), err);
    receiver_end(&receiver);
    assert_ok(receiver.result, receiver.err);
    assert_int_equal(report.outcome, FERRY_OUTCOME_COMPLETED);
    assert_int_equal(report.rounds[0].pages, PROBE_PAGES);
    assert_true(report.wire_bytes > PROBE_PAGES * FERRY_PAGE_SIZE);
    assert_true(report.rounds[0].duration_ns > 0);
}

static void probe_of_another_size_is_refused(void **state)
{
    struct ferry_source_options options = {.source = "a", .destination = "b"};
    struct ferry_progress report;
    struct receiver receiver;
    struct ferry_error err = {0};

    assert_int_equal(ferry_probe_send(&options, -1, 0, &report, &err), -EINVAL);
    assert_int_equal(ferry_probe_send(&options, -1, FERRY_PAGE_SIZE + 1, &report, &err), -EINVAL);
    assert_int_equal(ferry_probe_send(&options, -1, FERRY_PROBE_SIZE_MAX + FERRY_PAGE_SIZE, &report, &err),
                     -EINVAL);
    receiver_start(&receiver, &options);
    assert_true(ferry_probe_send(&options, -1, 2 * PROBE_PAGES * FERRY_PAGE_SIZE, &report, &err) < 0);
    receiver_end(&receiver);
    assert_true(receiver.result < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reference_calculation_comes_out),
        cmocka_unit_test(setup_and_rate_limit_count),
        cmocka_unit_test(compression_counts_where_it_pays),
        cmocka_unit_test(compressibility_is_measured),
        cmocka_unit_test(writer_that_outruns_the_way_does_not_converge),
        cmocka_unit_test(nothing_known_of_the_way_is_no_crash),
        cmocka_unit_test(probe_moves_every_page_and_tells_how_fast),
        cmocka_unit_test(probe_of_another_size_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
