/* A disk's content as a stream: what arrives is what there was, holes included, or it is refused. */
#include "unit.h"

#include "disk/copy.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define MIB (1u << 20)

struct fixture {
    struct unit_dir dir;
    char from[128];
    char to[128];
    uint8_t *stream;
    size_t size;
};

static int set_up(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));

    unit_dir_make(&fixture->dir);
    snprintf(fixture->from, sizeof(fixture->from), "%s/from", fixture->dir.path);
    snprintf(fixture->to, sizeof(fixture->to), "%s/to", fixture->dir.path);
    *state = fixture;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *fixture = *state;

    unit_dir_remove(&fixture->dir);
    free(fixture->stream);
    free(fixture);
    return 0;
}

/* A disk of SIZE bytes that is all hole but for COUNT bytes of noise at each of the offsets (UINT64_MAX ends
 * them). */
static void make_disk(const struct fixture *fixture, uint64_t size, const uint64_t *offsets, size_t count)
{
    uint8_t *noise = malloc(count);
    uint64_t seed = 42;
    int fd = open(fixture->from, O_RDWR | O_CREAT | O_TRUNC, 0640);

    assert_true(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
    for (; *offsets != UINT64_MAX; offsets++) {
        for (size_t i = 0; i < count; i++)
            noise[i] = (uint8_t)(unit_random(&seed) | 1);
        assert_int_equal(pwrite(fd, noise, count, (off_t)*offsets), count);
    }
    close(fd);
    free(noise);
}

/* The whole stream, taken PIECE bytes at a time. */
static void read_stream(struct fixture *fixture, size_t piece)
{
    struct disk_reader *reader = NULL;
    struct ferry_error err;
    size_t capacity = 0;
    ssize_t got = 1;

    assert_ok(disk_reader_open(&reader, fixture->from, &err), err);
    for (fixture->size = 0; got > 0; fixture->size += (size_t)got) {
        if (capacity - fixture->size < piece) {
            capacity = 2 * capacity + piece;
            fixture->stream = realloc(fixture->stream, capacity);
        }
        got = disk_reader_read(reader, fixture->stream + fixture->size, piece, &err);
        assert_true(got >= 0);
    }
    disk_reader_close(reader);
}

static bool never(void *opaque)
{
    (void)opaque;
    return false;
}

static bool always(void *opaque)
{
    (void)opaque;
    return true;
}

/* Writes the first COUNT bytes of the stream, PIECE at a time, for a disk of SIZE bytes, and finishes it. */
static int write_stream(const struct fixture *fixture, uint64_t size, size_t count, size_t piece,
                        bool (*stopped)(void *opaque), struct ferry_error *err)
{
    const struct disk_shape shape = {.size = size, .mode = 0640, .changed_ns = UINT64_C(1234567890000000000)};
    struct disk_writer *writer = NULL;
    int result = disk_writer_open(&writer, fixture->to, size, err);

    assert_int_equal(result, 0);
    for (size_t at = 0; result == 0 && at < count; at += piece)
        result =
            disk_writer_write(writer, fixture->stream + at, count - at < piece ? count - at : piece, err);
    if (result == 0)
        result = disk_writer_finish(writer, &shape, stopped, NULL, err);
    disk_writer_close(writer);
    return result;
}

static void assert_same(const struct fixture *fixture)
{
    char command[300];

    snprintf(command, sizeof(command), "cmp %s %s", fixture->from, fixture->to);
    assert_int_equal(system(command), 0);
}

static void copy_is_the_same_and_holes_stay_holes(void **state)
{
    struct fixture *fixture = *state;
    /* At the beginning, across a block's end, and at the end, which is in the middle of a page. */
    const uint64_t size = 64 * MIB + 777;
    const uint64_t offsets[] = {0, 5 * DISK_COPY_BLOCK - 100, size - 5000, UINT64_MAX};
    struct disk_shape there, here;
    struct ferry_error err;
    struct stat status;

    make_disk(fixture, size, offsets, 5000);
    read_stream(fixture, 1000);
    assert_true(fixture->size < 8 * DISK_COPY_BLOCK);
    assert_ok(write_stream(fixture, size, fixture->size, 333, never, &err), err);
    assert_same(fixture);
    assert_ok(disk_shape_read(&there, fixture->from, &err), err);
    assert_ok(disk_shape_read(&here, fixture->to, &err), err);
    assert_int_equal(here.size, size);
    assert_true(here.bytes > 0 && here.bytes <= there.bytes && there.bytes < MIB);
    assert_int_equal(here.mode, 0640);
    assert_int_equal(here.changed_ns, UINT64_C(1234567890000000000));
    assert_int_equal(stat(fixture->to, &status), 0);
    assert_true(status.st_blocks * 512 < MIB);
}

static void disks_of_nothing_arrive(void **state)
{
    struct fixture *fixture = *state;
    const uint64_t sizes[] = {0, 1, 100 * (uint64_t)MIB};
    const uint64_t none[] = {UINT64_MAX};
    struct ferry_error err;

    for (size_t i = 0; i < 3; i++) {
        make_disk(fixture, sizes[i], none, 1);
        read_stream(fixture, 100);
        assert_int_equal(fixture->size, DISK_COPY_HEADER + DISK_COPY_CHECKSUM);
        assert_ok(write_stream(fixture, sizes[i], fixture->size, 100, never, &err), err);
        assert_same(fixture);
        unlink(fixture->to);
    }
}

static void zeros_that_were_written_become_a_hole(void **state)
{
    struct fixture *fixture = *state;
    uint8_t *zeros = calloc(1, MIB);
    struct disk_shape here;
    struct ferry_error err;
    int fd = open(fixture->from, O_RDWR | O_CREAT, 0600);

    assert_int_equal(write(fd, zeros, MIB), MIB);
    assert_int_equal(pwrite(fd, "x", 1, 3 * 4096), 1); /* in a block with zeros */
    close(fd);
    free(zeros);
    read_stream(fixture, DISK_COPY_BLOCK);
    assert_ok(write_stream(fixture, MIB, fixture->size, DISK_COPY_BLOCK, never, &err), err);
    assert_same(fixture);
    assert_ok(disk_shape_read(&here, fixture->to, &err), err);
    assert_int_equal(here.bytes, 4096);
}

static void stream_that_is_cut_short_is_no_disk(void **state)
{
    struct fixture *fixture = *state;
    const uint64_t offsets[] = {0, UINT64_MAX};
    struct ferry_error err;

    make_disk(fixture, MIB, offsets, 200000);
    read_stream(fixture, 1000);
    for (size_t left = 1; left < fixture->size; left += 9999) {
        assert_int_equal(write_stream(fixture, MIB, fixture->size - left, 4096, never, &err), -EPROTO);
        assert_contains(err.text, "only a part");
        unlink(fixture->to);
    }
}

static void stream_with_any_bit_flipped_is_refused(void **state)
{
    struct fixture *fixture = *state;
    const uint64_t offsets[] = {DISK_COPY_BLOCK, UINT64_MAX};
    struct ferry_error err;

    make_disk(fixture, 4 * DISK_COPY_BLOCK, offsets, 3000);
    read_stream(fixture, 1000);
    for (size_t at = 0; at < fixture->size; at += at < 20 || at + 40 > fixture->size ? 1 : 97) {
        fixture->stream[at] ^= 1;
        assert_true(write_stream(fixture, 4 * DISK_COPY_BLOCK, fixture->size, 4096, never, &err) < 0);
        fixture->stream[at] ^= 1;
        unlink(fixture->to);
    }
    /* More than there is to come, and a disk of another size. */
    fixture->stream = realloc(fixture->stream, fixture->size + 1);
    fixture->stream[fixture->size] = 0;
    assert_int_equal(write_stream(fixture, 4 * DISK_COPY_BLOCK, fixture->size + 1, 4096, never, &err),
                     -EPROTO);
    unlink(fixture->to);
    assert_int_equal(write_stream(fixture, 5 * DISK_COPY_BLOCK, fixture->size, 4096, never, &err), -EPROTO);
}

static void disk_written_to_meanwhile_is_noticed(void **state)
{
    struct fixture *fixture = *state;
    const uint64_t offsets[] = {0, UINT64_MAX};
    struct disk_reader *reader = NULL;
    struct ferry_error err;
    uint8_t data[4096];
    ssize_t got;
    int fd;

    make_disk(fixture, MIB, offsets, 200000);
    assert_ok(disk_reader_open(&reader, fixture->from, &err), err);
    assert_true(disk_reader_read(reader, data, sizeof(data), &err) > 0);
    fd = open(fixture->from, O_WRONLY);
    assert_int_equal(pwrite(fd, "x", 1, 0), 1);
    assert_int_equal(futimens(fd, (const struct timespec[2]){{.tv_sec = 1}, {.tv_sec = 1}}), 0);
    close(fd);
    while ((got = disk_reader_read(reader, data, sizeof(data), &err)) > 0)
        ;
    assert_int_equal(got, -ESTALE);
    assert_contains(err.text, "written to");
    disk_reader_close(reader);
}

static void what_is_there_is_not_overwritten(void **state)
{
    struct fixture *fixture = *state;
    const uint64_t none[] = {UINT64_MAX};
    struct disk_writer *writer = NULL;
    struct ferry_error err;

    make_disk(fixture, MIB, none, 1);
    assert_int_equal(disk_writer_open(&writer, fixture->from, MIB, &err), -EEXIST);
    assert_null(writer);
    assert_int_equal(disk_shape_read(&(struct disk_shape){0}, fixture->dir.path, &err), -EINVAL);
}

static void verifying_can_be_stopped(void **state)
{
    struct fixture *fixture = *state;
    const uint64_t offsets[] = {0, UINT64_MAX};
    struct ferry_error err;

    make_disk(fixture, MIB, offsets, 200000);
    read_stream(fixture, 1000);
    assert_int_equal(write_stream(fixture, MIB, fixture->size, 4096, always, &err), -ECANCELED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(copy_is_the_same_and_holes_stay_holes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(disks_of_nothing_arrive, set_up, tear_down),
        cmocka_unit_test_setup_teardown(zeros_that_were_written_become_a_hole, set_up, tear_down),
        cmocka_unit_test_setup_teardown(stream_that_is_cut_short_is_no_disk, set_up, tear_down),
        cmocka_unit_test_setup_teardown(stream_with_any_bit_flipped_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(disk_written_to_meanwhile_is_noticed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_there_is_not_overwritten, set_up, tear_down),
        cmocka_unit_test_setup_teardown(verifying_can_be_stopped, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
