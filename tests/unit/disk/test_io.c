/*
 * Both engines, the same cases.
 */
#include "unit.h"

#include "disk/io.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define FILE_SIZE (1 << 20)
#define DEPTH     64

struct setup {
    struct unit_dir dir;
    int fd;
    int event_fd;
    struct disk_io *io;
};

static int setup_engine(void **state, enum disk_engine engine)
{
    struct setup *test = calloc(1, sizeof(*test));
    struct ferry_error err = {0};
    char path[128];
    int result;

    unit_dir_make(&test->dir);
    test->fd = open(unit_path(&test->dir, "file", path), O_CREAT | O_RDWR, 0600);
    assert_true(test->fd >= 0);
    assert_int_equal(ftruncate(test->fd, FILE_SIZE), 0);
    test->event_fd = eventfd(0, 0);
    result = disk_io_new(&test->io, test->fd, test->event_fd, DEPTH, engine, &err);
    if (result < 0 && engine == DISK_ENGINE_URING)
        print_message("no io_uring here: %s\n", err.text);
    else
        assert_ok(result, err);
    *state = test;
    return 0;
}

static int setup_threads(void **state)
{
    return setup_engine(state, DISK_ENGINE_THREADS);
}

static int setup_uring(void **state)
{
    return setup_engine(state, DISK_ENGINE_URING);
}

static int teardown(void **state)
{
    struct setup *test = *state;

    disk_io_free(test->io);
    close(test->fd);
    close(test->event_fd);
    unit_dir_remove(&test->dir);
    free(test);
    return 0;
}

static struct disk_request *wait_done(struct setup *test)
{
    struct disk_request *request;
    eventfd_t events;

    while (!(request = disk_io_reap(test->io)))
        assert_int_equal(eventfd_read(test->event_fd, &events), 0);
    return request;
}

static int run(struct setup *test, struct disk_request *request)
{
    disk_io_submit(test->io, request);
    disk_io_flush_queue(test->io);
    assert_ptr_equal(wait_done(test), request);
    assert_null(disk_io_reap(test->io));
    return request->result;
}

static void need_engine(struct setup *test)
{
    if (!test->io)
        skip();
}

static void what_is_written_is_read_back(void **state)
{
    struct setup *test = *state;
    uint8_t out[5000];
    uint8_t in[5000] = {0};
    struct iovec out_iov[3] = {{out, 1}, {out + 1, 4000}, {out + 4001, 999}};
    struct iovec in_iov[2] = {{in, 2500}, {in + 2500, 2500}};
    struct disk_request request = {.op = DISK_OP_WRITE, .offset = 777, .iov = out_iov, .iov_count = 3};

    need_engine(test);
    for (unsigned i = 0; i < sizeof(out); i++)
        out[i] = (uint8_t)(i * 7);
    assert_int_equal(run(test, &request), 0);
    request = (struct disk_request){.op = DISK_OP_READ, .offset = 777, .iov = in_iov, .iov_count = 2};
    assert_int_equal(run(test, &request), 0);
    assert_memory_equal(in, out, sizeof(out));
    request = (struct disk_request){.op = DISK_OP_FLUSH};
    assert_int_equal(run(test, &request), 0);
}

static void durable_writes_work(void **state)
{
    struct setup *test = *state;
    uint8_t byte = 99;
    struct iovec iov = {&byte, 1};
    struct disk_request request = {.op = DISK_OP_WRITE, .iov = &iov, .iov_count = 1, .durable = true};

    need_engine(test);
    assert_int_equal(run(test, &request), 0);
}

static void reads_past_the_end_are_errors(void **state)
{
    struct setup *test = *state;
    uint8_t data[1024];
    struct iovec iov = {data, sizeof(data)};
    struct disk_request request = {
        .op = DISK_OP_READ, .offset = FILE_SIZE - 512, .iov = &iov, .iov_count = 1};

    need_engine(test);
    assert_int_equal(run(test, &request), -EIO);
}

static void errors_of_the_kernel_come_back(void **state)
{
    struct setup *test = *state;
    uint8_t data[16];
    struct iovec iov = {data, sizeof(data)};
    struct disk_request request = {
        .op = DISK_OP_READ, .offset = UINT64_C(1) << 63, .iov = &iov, .iov_count = 1};

    need_engine(test);
    assert_true(run(test, &request) < 0);
}

static void many_requests_all_finish_once(void **state)
{
    struct setup *test = *state;
    static struct disk_request requests[DEPTH];
    static uint8_t data[DEPTH][512];
    static struct iovec iovs[DEPTH];
    unsigned seen[DEPTH] = {0};

    need_engine(test);
    for (unsigned round = 0; round < 20; round++) {
        memset(seen, 0, sizeof(seen));
        for (unsigned i = 0; i < DEPTH; i++) {
            memset(data[i], (int)(round + i), sizeof(data[i]));
            iovs[i] = (struct iovec){data[i], sizeof(data[i])};
            requests[i] = (struct disk_request){
                .op = DISK_OP_WRITE, .offset = UINT64_C(512) * i, .iov = &iovs[i], .iov_count = 1};
            disk_io_submit(test->io, &requests[i]);
        }
        disk_io_flush_queue(test->io);
        for (unsigned i = 0; i < DEPTH; i++) {
            struct disk_request *done = wait_done(test);

            assert_int_equal(done->result, 0);
            seen[done - requests]++;
        }
        for (unsigned i = 0; i < DEPTH; i++) {
            uint8_t byte;

            assert_int_equal(seen[i], 1);
            assert_int_equal(pread(test->fd, &byte, 1, 512 * (off_t)i), 1);
            assert_int_equal(byte, (uint8_t)(round + i));
        }
    }
}

static void ranges_become_zeroes(void **state)
{
    struct setup *test = *state;
    uint8_t ones[65536];
    uint8_t after[65536];
    const struct disk_range zeroes[] = {{4096, 8192, false}, {32768, 4096, true}};
    const struct disk_range discard[] = {{49152, 4096, false}};
    struct disk_request request = {.op = DISK_OP_WRITE_ZEROES, .ranges = zeroes, .range_count = 2};

    need_engine(test);
    memset(ones, 1, sizeof(ones));
    assert_int_equal(pwrite(test->fd, ones, sizeof(ones), 0), sizeof(ones));
    assert_int_equal(run(test, &request), 0);
    request = (struct disk_request){.op = DISK_OP_DISCARD, .ranges = discard, .range_count = 1};
    assert_int_equal(run(test, &request), 0);
    assert_int_equal(pread(test->fd, after, sizeof(after), 0), sizeof(after));
    memset(ones + 4096, 0, 8192);
    memset(ones + 32768, 0, 4096);
    memcpy(ones + 49152, after + 49152, 4096); /* whatever it is now */
    assert_memory_equal(after, ones, sizeof(ones));
}

static void automatic_choice_finds_an_engine(void **state)
{
    struct setup *test = *state;
    struct ferry_error err = {0};
    struct disk_io *io;

    assert_ok(disk_io_new(&io, test->fd, test->event_fd, DEPTH, DISK_ENGINE_AUTO, &err), err);
    assert_true(disk_io_engine(io) == DISK_ENGINE_URING || disk_io_engine(io) == DISK_ENGINE_THREADS);
    disk_io_free(io);
}

#define CASE(name)                                                                                           \
    cmocka_unit_test_setup_teardown(name, setup_threads, teardown),                                          \
        cmocka_unit_test_setup_teardown(name, setup_uring, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(what_is_written_is_read_back),     CASE(durable_writes_work),
        CASE(reads_past_the_end_are_errors),    CASE(errors_of_the_kernel_come_back),
        CASE(many_requests_all_finish_once),    CASE(ranges_become_zeroes),
        CASE(automatic_choice_finds_an_engine),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
