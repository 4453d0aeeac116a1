/*
 * virtio-blk on both I/O engines: every case runs twice.
 */
#include "guest.h"

#include "base/clock.h"
#include "device/virtio_blk.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define DISK_SIZE (4 << 20)
#define SECTOR    512
#define QUEUE     64
#define F_RO      (UINT64_C(1) << 5)
#define F_FLUSH   (UINT64_C(1) << 9)
#define F_DISCARD (UINT64_C(1) << 13)
#define F_ZEROES  (UINT64_C(1) << 14)
#define F_ALL     (F_FLUSH | F_DISCARD | F_ZEROES | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC)

enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_ZEROES = 13 };
enum { S_OK = 0, S_IOERR = 1, S_UNSUPP = 2, S_NONE = 0xee };

struct blk_header {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
};

struct setup {
    struct unit_dir dir;
    char path[128];
    enum disk_engine engine;
    struct guest *guest;
    struct driver driver;
    struct device *blk;
};

static int create(struct setup *test, struct guest *guest, struct driver *driver, struct device **blk,
                  bool readonly, bool direct, struct ferry_error *err)
{
    struct device_env env = guest_env(guest, driver);
    struct virtio_blk_options options = {
        .path = test->path, .readonly = readonly, .direct = direct, .engine = test->engine};

    return virtio_blk_create(blk, &env, 0, &options, err);
}

static void begin(struct setup *test, uint64_t features)
{
    driver_begin(&test->driver, features);
    driver_add_queue(&test->driver, 0, QUEUE);
    driver_ok(&test->driver);
}

static int setup_engine(void **state, enum disk_engine engine)
{
    struct setup *test = calloc(1, sizeof(*test));
    struct ferry_error err = {0};
    int fd;

    unit_dir_make(&test->dir);
    unit_path(&test->dir, "disk.img", test->path);
    fd = open(test->path, O_CREAT | O_RDWR, 0600);
    assert_int_equal(ftruncate(fd, DISK_SIZE), 0);
    close(fd);
    test->engine = engine;
    test->guest = guest_new();
    assert_ok(create(test, test->guest, &test->driver, &test->blk, false, false, &err), err);
    assert_ok(test->blk->ops->acquire(test->blk, &err), err);
    *state = test;
    return 0;
}

static int setup_threads(void **state)
{
    return setup_engine(state, DISK_ENGINE_THREADS);
}

/* AUTO: where the kernel has no io_uring this runs on threads a second time. */
static int setup_uring(void **state)
{
    return setup_engine(state, DISK_ENGINE_AUTO);
}

static int teardown(void **state)
{
    struct setup *test = *state;

    if (test->blk)
        device_stop_and_destroy(test->blk);
    guest_free(test->guest);
    unit_dir_remove(&test->dir);
    free(test);
    return 0;
}

/* A request in the making: its header, its data, its status byte. */
struct request {
    struct driver_buffer buffers[VIRTQUEUE_CHAIN_MAX];
    unsigned count;
    uint64_t status;
};

static struct request request_begin(struct guest *guest, uint32_t type, uint64_t sector)
{
    struct blk_header header = {.type = type, .sector = sector};
    struct request request = {.count = 1};

    request.buffers[0] =
        (struct driver_buffer){guest_put(guest, &header, sizeof(header)), sizeof(header), false};
    return request;
}

static void request_add(struct request *request, uint64_t addr, uint32_t size, bool write)
{
    request->buffers[request->count++] = (struct driver_buffer){addr, size, write};
}

static void request_end(struct guest *guest, struct request *request)
{
    uint8_t none = S_NONE;

    request->status = guest_put(guest, &none, 1);
    request_add(request, request->status, 1, true);
}

static uint8_t request_status(struct guest *guest, const struct request *request)
{
    return *(uint8_t *)guest_ptr(guest, request->status, 1);
}

static uint8_t run(struct driver *driver, struct request *request)
{
    request_end(driver->guest, request);
    queue_submit(&driver->queues[0], request->buffers, request->count);
    queue_wait_used(&driver->queues[0], NULL, NULL);
    return request_status(driver->guest, request);
}

static uint8_t transfer(struct driver *driver, bool write, uint64_t sector, uint64_t addr, uint32_t size)
{
    struct request request = request_begin(driver->guest, write ? T_OUT : T_IN, sector);

    request_add(&request, addr, size, !write);
    return run(driver, &request);
}

static uint64_t put_pattern(struct guest *guest, uint32_t size, unsigned seed)
{
    uint64_t addr = guest_alloc(guest, size, 512);
    uint8_t *data = guest_ptr(guest, addr, size);

    for (uint32_t i = 0; i < size; i++)
        data[i] = (uint8_t)(i * 31 + i / 256 + seed);
    return addr;
}

static void read_file(const char *path, off_t offset, void *out, size_t size)
{
    int fd = open(path, O_RDONLY);

    assert_true(fd >= 0);
    assert_int_equal(pread(fd, out, size, offset), (ssize_t)size);
    close(fd);
}

static void config_tells_the_capacity(void **state)
{
    struct setup *test = *state;

    assert_int_equal(driver_read(&test->driver, R_DEVICE_ID), 2);
    assert_int_equal(driver_read(&test->driver, R_CONFIG), DISK_SIZE / SECTOR);
    assert_int_equal(driver_read(&test->driver, R_CONFIG + 4), 0);
    assert_int_equal(driver_device_features(&test->driver) & (F_RO | F_FLUSH | F_DISCARD | F_ZEROES),
                     F_FLUSH | F_DISCARD | F_ZEROES);
}

static void what_is_written_is_read_back(void **state)
{
    static const uint64_t features[] = {0, F_ALL, F_FLUSH, VIRTIO_F_EVENT_IDX};
    struct setup *test = *state;
    static uint8_t file[8 * SECTOR];

    device_start(test->blk);
    for (unsigned i = 0; i < ARRAY_SIZE(features); i++) {
        uint64_t out = put_pattern(test->guest, 8 * SECTOR, i);
        uint64_t in = guest_alloc(test->guest, 8 * SECTOR, 512);

        begin(test, features[i]);
        assert_int_equal(transfer(&test->driver, true, 16 * i, out, 8 * SECTOR), S_OK);
        assert_int_equal(transfer(&test->driver, false, 16 * i, in, 8 * SECTOR), S_OK);
        assert_memory_equal(guest_ptr(test->guest, in, 8 * SECTOR), guest_ptr(test->guest, out, 8 * SECTOR),
                            8 * SECTOR);
        read_file(test->path, (off_t)16 * i * SECTOR, file, sizeof(file));
        assert_memory_equal(file, guest_ptr(test->guest, out, 8 * SECTOR), 8 * SECTOR);
    }
}

/* Framing is the driver's choice: header and data in odd pieces, the status byte behind data. */
static void any_layout_is_understood(void **state)
{
    struct setup *test = *state;
    struct guest *guest = test->guest;
    uint64_t data = put_pattern(guest, 1024, 5);
    struct blk_header header = {.type = T_OUT, .sector = 3};
    uint64_t block = guest_alloc(guest, 16 + 1024, 16);
    uint64_t in = guest_alloc(guest, 1025, 16);
    struct request request = {0};

    device_start(test->blk);
    begin(test, F_ALL);
    memcpy(guest_ptr(guest, block, 16), &header, 16);
    memcpy(guest_ptr(guest, block + 16, 1024), guest_ptr(guest, data, 1024), 1024);
    request_add(&request, block, 7, false);
    request_add(&request, block + 7, 100, false);
    request_add(&request, block + 107, 16 + 1024 - 107, false);
    assert_int_equal(run(&test->driver, &request), S_OK);

    request = request_begin(guest, T_IN, 3);
    request_add(&request, in, 1, true);
    request_add(&request, in + 1, 1024, true); /* 1023 of data and the status */
    queue_submit(&test->driver.queues[0], request.buffers, request.count);
    queue_wait_used(&test->driver.queues[0], NULL, NULL);
    assert_memory_equal(guest_ptr(guest, in, 1024), guest_ptr(guest, data, 1024), 1024);
    assert_int_equal(*(uint8_t *)guest_ptr(guest, in + 1024, 1), S_OK);
}

static void many_segments_and_many_requests(void **state)
{
    struct setup *test = *state;
    struct guest *guest = test->guest;
    struct driver_queue *queue = &test->driver.queues[0];
    struct request requests[32];
    uint64_t data = put_pattern(guest, 32 * 16 * SECTOR, 9);
    static uint8_t file[32 * 16 * SECTOR];
    bool seen[QUEUE] = {false};

    device_start(test->blk);
    begin(test, F_ALL);
    for (unsigned i = 0; i < 32; i++) {
        requests[i] = request_begin(guest, T_OUT, 16 * i);
        for (unsigned j = 0; j < 16; j++)
            request_add(&requests[i], data + (16 * i + j) * SECTOR, SECTOR, false);
        request_end(guest, &requests[i]);
        queue_offer(queue, queue_chain_indirect(queue, requests[i].buffers, requests[i].count));
    }
    queue_publish(queue);
    queue_notify(queue);
    for (unsigned i = 0; i < 32; i++) {
        uint32_t id;

        queue_wait_used(queue, &id, NULL);
        assert_true(id < 32);
        assert_false(seen[id]);
        seen[id] = true;
    }
    for (unsigned i = 0; i < 32; i++)
        assert_int_equal(request_status(guest, &requests[i]), S_OK);
    read_file(test->path, 0, file, sizeof(file));
    assert_memory_equal(file, guest_ptr(guest, data, sizeof(file)), sizeof(file));
}

static void reads_mark_their_pages_dirty(void **state)
{
    struct setup *test = *state;
    uint64_t in = guest_alloc(test->guest, 8192, 4096);
    size_t page = (in - GUEST_RAM) / 4096;
    uint64_t word;

    device_start(test->blk);
    begin(test, F_ALL);
    memory_set_tracking(test->guest->memory, true);
    assert_int_equal(transfer(&test->driver, false, 0, in, 8192), S_OK);
    device_quiesce(test->blk);
    word = memory_region(test->guest->memory, 0)->dirty[page / 64] >> page % 64;
    assert_int_equal(word & 3, 3);
}

static void out_of_range_is_an_io_error(void **state)
{
    static const struct {
        uint64_t sector;
        uint32_t size;
    } cases[] = {
        {DISK_SIZE / SECTOR, SECTOR},
        {DISK_SIZE / SECTOR - 1, 2 * SECTOR},
        {UINT64_MAX, SECTOR},
        {UINT64_MAX / SECTOR + 1, SECTOR},
        {UINT64_C(1) << 55, SECTOR},
        {0, 100},
        {0, SECTOR + 1},
    };
    struct setup *test = *state;
    uint64_t buffer = guest_alloc(test->guest, 4096, 16);

    device_start(test->blk);
    begin(test, F_ALL);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        assert_int_equal(transfer(&test->driver, false, cases[i].sector, buffer, cases[i].size), S_IOERR);
        assert_int_equal(transfer(&test->driver, true, cases[i].sector, buffer, cases[i].size), S_IOERR);
    }
    assert_int_equal(transfer(&test->driver, false, DISK_SIZE / SECTOR - 1, buffer, SECTOR), S_OK);
    assert_false(driver_needs_reset(&test->driver));
}

static void flush_identity_and_unknown_types(void **state)
{
    struct setup *test = *state;
    uint64_t id = guest_alloc(test->guest, 20, 16);
    struct request request;

    device_start(test->blk);
    begin(test, F_ALL);
    request = request_begin(test->guest, T_FLUSH, 0);
    assert_int_equal(run(&test->driver, &request), S_OK);
    request = request_begin(test->guest, T_GET_ID, 0);
    request_add(&request, id, 20, true);
    assert_int_equal(run(&test->driver, &request), S_OK);
    assert_string_equal(guest_ptr(test->guest, id, 20), "ferry-disk0");
    request = request_begin(test->guest, 77, 0);
    assert_int_equal(run(&test->driver, &request), S_UNSUPP);
}

static uint8_t run_ranges(struct setup *test, uint32_t type, const void *ranges, uint32_t size)
{
    struct request request = request_begin(test->guest, type, 0);

    request_add(&request, guest_put(test->guest, ranges, size), size, false);
    return run(&test->driver, &request);
}

static void discard_and_write_zeroes(void **state)
{
    const struct {
        uint64_t sector;
        uint32_t count;
        uint32_t flags;
    } good[2] = {{8, 8, 0}, {32, 16, 1}}, outside = {DISK_SIZE / SECTOR - 1, 2, 0}, flagged = {0, 8, 2},
      plain = {64, 8, 0};
    struct setup *test = *state;
    uint64_t out = put_pattern(test->guest, 65536, 1);
    static uint8_t file[65536];
    static uint8_t expected[65536];

    device_start(test->blk);
    begin(test, F_ALL);
    assert_int_equal(transfer(&test->driver, true, 0, out, 65536), S_OK);
    assert_int_equal(run_ranges(test, T_ZEROES, good, sizeof(good)), S_OK);
    memcpy(expected, guest_ptr(test->guest, out, 65536), 65536);
    memset(expected + 8 * SECTOR, 0, 8 * SECTOR);
    memset(expected + 32 * SECTOR, 0, 16 * SECTOR);
    read_file(test->path, 0, file, sizeof(file));
    assert_memory_equal(file, expected, sizeof(file));

    assert_int_equal(run_ranges(test, T_DISCARD, &plain, sizeof(plain)), S_OK);
    assert_int_equal(run_ranges(test, T_DISCARD, &outside, sizeof(outside)), S_IOERR);
    assert_int_equal(run_ranges(test, T_ZEROES, &outside, sizeof(outside)), S_IOERR);
    assert_int_equal(run_ranges(test, T_ZEROES, &flagged, sizeof(flagged)), S_UNSUPP);
    assert_int_equal(run_ranges(test, T_DISCARD, &good[1], sizeof(good[1])), S_UNSUPP); /* unmap flag */
    assert_int_equal(run_ranges(test, T_DISCARD, good, 15), S_IOERR);
}

static void a_readonly_disk_is_not_written(void **state)
{
    struct setup *test = *state;
    struct ferry_error err = {0};
    const struct {
        uint64_t sector;
        uint32_t count;
        uint32_t flags;
    } range = {0, 8, 0};
    struct request request;
    uint64_t buffer = guest_alloc(test->guest, SECTOR, 16);

    test->blk->ops->destroy(test->blk);
    test->blk = NULL;
    assert_int_equal(chmod(test->path, 0400), 0);
    assert_ok(create(test, test->guest, &test->driver, &test->blk, true, false, &err), err);
    assert_int_equal(driver_device_features(&test->driver) & (F_RO | F_FLUSH | F_DISCARD), F_RO);
    device_start(test->blk);
    begin(test, F_RO);
    assert_int_equal(transfer(&test->driver, false, 0, buffer, SECTOR), S_OK);
    assert_int_equal(transfer(&test->driver, true, 0, buffer, SECTOR), S_IOERR);
    assert_int_equal(run_ranges(test, T_ZEROES, &range, sizeof(range)), S_IOERR);
    request = request_begin(test->guest, T_FLUSH, 0);
    assert_int_equal(run(&test->driver, &request), S_OK);
}

static void direct_io_takes_any_buffer(void **state)
{
    struct setup *test = *state;
    struct ferry_error err = {0};
    struct guest *guest = test->guest;
    uint64_t out = put_pattern(guest, 8192 + 64, 3);
    uint64_t in = guest_alloc(guest, 8192 + 64, 4096);
    struct request request;
    int result;

    test->blk->ops->destroy(test->blk);
    test->blk = NULL;
    result = create(test, guest, &test->driver, &test->blk, false, true, &err);
    if (result == -EINVAL)
        skip(); /* no direct I/O in the temporary directory */
    assert_ok(result, err);
    device_start(test->blk);
    begin(test, F_ALL);
    assert_int_equal(transfer(&test->driver, true, 0, out + 3, 8192), S_OK);
    request = request_begin(guest, T_IN, 0);
    request_add(&request, in + 1, 5000, true);
    request_add(&request, in + 1 + 5000, 3192, true);
    assert_int_equal(run(&test->driver, &request), S_OK);
    assert_memory_equal(guest_ptr(guest, in + 1, 8192), guest_ptr(guest, out + 3, 8192), 8192);
    assert_int_equal(transfer(&test->driver, false, 0, in, 8192), S_OK); /* aligned: no copy */
    assert_memory_equal(guest_ptr(guest, in, 8192), guest_ptr(guest, out + 3, 8192), 8192);
}

static void requests_without_header_or_status_are_violations(void **state)
{
    struct setup *test = *state;
    struct driver_buffer short_header[] = {{GUEST_RAM, 15, false}, {GUEST_RAM + 100, 1, true}};
    struct driver_buffer no_status[] = {{GUEST_RAM, 16, false}};

    device_start(test->blk);
    begin(test, 0);
    queue_submit(&test->driver.queues[0], short_header, 2);
    driver_wait_needs_reset(&test->driver);
    begin(test, 0);
    queue_submit(&test->driver.queues[0], no_status, 1);
    driver_wait_needs_reset(&test->driver);
    begin(test, 0);
    assert_int_equal(transfer(&test->driver, false, 0, GUEST_RAM + 0x100000, SECTOR), S_OK);
}

static void a_truncated_image_gives_io_errors(void **state)
{
    struct setup *test = *state;
    uint64_t buffer = guest_alloc(test->guest, 4096, 16);

    device_start(test->blk);
    begin(test, F_ALL);
    assert_int_equal(truncate(test->path, SECTOR), 0);
    assert_int_equal(transfer(&test->driver, false, 0, buffer, SECTOR), S_OK);
    assert_int_equal(transfer(&test->driver, false, 0, buffer, 4096), S_IOERR);
    assert_int_equal(transfer(&test->driver, false, 100, buffer, 4096), S_IOERR);
}

static void quiesce_leaves_no_request_half_done(void **state)
{
    struct setup *test = *state;
    struct guest *guest = test->guest;
    struct driver_queue *queue = &test->driver.queues[0];
    uint64_t data = put_pattern(guest, 16 * 4096, 2);

    device_start(test->blk);
    begin(test, F_ALL);
    for (unsigned round = 0; round < 20; round++) {
        uint16_t before;

        for (unsigned i = 0; i < 16; i++) {
            struct request request = request_begin(guest, T_OUT, 8 * i);

            request_add(&request, data + 4096 * i, 4096, false);
            request_end(guest, &request);
            queue_offer(queue, queue_chain(queue, request.buffers, request.count));
        }
        queue_publish(queue);
        queue_notify(queue);
        device_quiesce(test->blk);
        /* However many were begun, now nothing moves. */
        before = queue_used_idx(queue);
        queue_notify(queue);
        assert_int_equal(queue_used_idx(queue), before);
        device_start(test->blk);
        for (unsigned i = 0; i < 16; i++)
            queue_wait_used(queue, NULL, NULL);
        assert_int_equal(queue_used_idx(queue), queue->avail_idx);
    }
}

/* Back and forth ten times with requests in the ring each time; each is answered exactly once. */
static void nothing_is_lost_or_done_twice_in_a_move(void **state)
{
    struct setup *test = *state;
    struct ferry_error err = {0};
    uint64_t data;
    static uint8_t file[16 * 4096];
    unsigned answered = 0;

    device_start(test->blk);
    begin(test, F_ALL);
    data = put_pattern(test->guest, 16 * 4096, 77);
    for (unsigned move = 0; move < 10; move++) {
        struct driver_queue *queue = &test->driver.queues[0];
        struct guest *guest;
        struct driver driver;
        struct driver moved;
        struct device *blk;

        for (unsigned i = 0; i < 16; i++) {
            struct request request = request_begin(test->guest, T_OUT, 8 * i);

            request_add(&request, data + 4096 * i, 4096, false);
            request_end(test->guest, &request);
            queue_offer(queue, queue_chain(queue, request.buffers, request.count));
        }
        queue_publish(queue);
        queue_notify(queue);
        device_quiesce(test->blk);

        guest = guest_clone(test->guest);
        assert_ok(create(test, guest, &driver, &blk, false, false, &err), err);
        device_move(test->blk, blk);
        assert_int_equal(blk->ops->acquire(blk, &err), -EBUSY);
        test->blk->ops->release(test->blk);
        assert_ok(blk->ops->acquire(blk, &err), err);
        test->blk->ops->destroy(test->blk);
        moved = driver_moved(&test->driver, guest);
        guest_free(test->guest);
        test->guest = guest;
        test->blk = blk;
        test->driver = moved;
        queue = &test->driver.queues[0];
        queue->driver = &test->driver;
        device_start(blk);
        for (unsigned i = 0; i < 16; i++, answered++)
            queue_wait_used(queue, NULL, NULL);
        assert_int_equal(queue_used_idx(queue), queue->avail_idx);
    }
    assert_int_equal(answered, 160);
    device_quiesce(test->blk);
    read_file(test->path, 0, file, sizeof(file));
    assert_memory_equal(file, guest_ptr(test->guest, data, sizeof(file)), sizeof(file));
}

static void a_reset_with_requests_in_flight_waits_for_them(void **state)
{
    struct setup *test = *state;
    struct guest *guest = test->guest;
    uint64_t in = guest_alloc(guest, 65536, 4096);
    uint8_t *data = guest_ptr(guest, in, 65536);

    device_start(test->blk);
    for (unsigned round = 0; round < 30; round++) {
        struct driver_queue *queue = &test->driver.queues[0];

        guest->next_ram = in + 65536;
        begin(test, F_ALL);
        for (unsigned i = 0; i < 16; i++) {
            struct request request = request_begin(guest, T_IN, 8 * i);

            request_add(&request, in + 4096 * i, 4096, true);
            request_end(guest, &request);
            queue_offer(queue, queue_chain(queue, request.buffers, request.count));
        }
        queue_publish(queue);
        queue_notify(queue);
        driver_write(&test->driver, R_STATUS, 0);
        memset(data, 0xab, 65536); /* the memory is ours again */
        begin(test, F_ALL);
        assert_int_equal(transfer(&test->driver, false, 0, guest_alloc(guest, SECTOR, 16), SECTOR), S_OK);
        for (unsigned i = 0; i < 65536; i++)
            assert_int_equal(data[i], 0xab);
    }
}

static void a_disk_of_another_size_does_not_take_the_state(void **state)
{
    struct setup *test = *state;
    struct ferry_error err = {0};
    struct buffer section = BUFFER_INIT;
    struct reader reader;
    struct driver driver;
    struct device *other;

    test->blk->ops->save(test->blk, &section);
    assert_int_equal(truncate(test->path, DISK_SIZE / 2), 0);
    assert_ok(create(test, test->guest, &driver, &other, false, false, &err), err);
    reader = reader_init(section.data, section.size);
    assert_int_equal(other->ops->load(other, 1, &reader, &err), -EINVAL);
    assert_contains(err.text, "virtio-blk0");
    assert_contains(err.text, "capacity");
    buffer_free(&section);
    other->ops->destroy(other);
}

#define CASE(name)                                                                                           \
    cmocka_unit_test_setup_teardown(name, setup_threads, teardown),                                          \
        cmocka_unit_test_setup_teardown(name, setup_uring, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(config_tells_the_capacity),
        CASE(what_is_written_is_read_back),
        CASE(any_layout_is_understood),
        CASE(many_segments_and_many_requests),
        CASE(reads_mark_their_pages_dirty),
        CASE(out_of_range_is_an_io_error),
        CASE(flush_identity_and_unknown_types),
        CASE(discard_and_write_zeroes),
        CASE(a_readonly_disk_is_not_written),
        CASE(direct_io_takes_any_buffer),
        CASE(requests_without_header_or_status_are_violations),
        CASE(a_truncated_image_gives_io_errors),
        CASE(quiesce_leaves_no_request_half_done),
        CASE(nothing_is_lost_or_done_twice_in_a_move),
        CASE(a_reset_with_requests_in_flight_waits_for_them),
        CASE(a_disk_of_another_size_does_not_take_the_state),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
