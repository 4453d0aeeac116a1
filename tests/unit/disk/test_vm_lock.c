/* The ownership lock: one holder at a time, a record that is whole or refused. */
#include "disk/vm_lock.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct fixture {
    char directory[64];
    char path[96];
};

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));

    assert_non_null(fixture);
    strcpy(fixture->directory, "/tmp/ferry-vm-lock-XXXXXX");
    assert_non_null(mkdtemp(fixture->directory));
    snprintf(fixture->path, sizeof(fixture->path), "%s/disk.raw" VM_LOCK_SUFFIX, fixture->directory);
    *state = fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;

    unlink(fixture->path);
    rmdir(fixture->directory);
    free(fixture);
    return 0;
}

static struct vm_lock *open_lock(const struct fixture *fixture)
{
    struct vm_lock *lock = NULL;
    struct ferry_error err;

    assert_int_equal(vm_lock_open(&lock, fixture->path, &err), 0);
    return lock;
}

static const struct vm_lock_record example = {
    .state = VM_LOCK_HANDOVER,
    .generation = 7,
    .pid = 4711,
    .vm = "web",
    .holder = "a",
    .destination = "b",
    .migration = "1b4e28ba-2fa1-41d2-883f-0016d3cca427",
};

/* The one that only this host's processes look at: excludes and tells like any other, by either way of
 * opening. */
static void local_lock_is_seen_by_all_of_this_host(void **state)
{
    const struct fixture *fixture = *state;
    struct vm_lock *other = open_lock(fixture);
    struct vm_lock *lock = NULL;
    struct vm_lock_record record;
    struct ferry_error err;

    assert_int_equal(vm_lock_open_local(&lock, fixture->path, &err), 0);
    assert_int_equal(vm_lock_take(lock, &err), 0);
    assert_int_equal(vm_lock_write(lock, &example, &err), 0);
    assert_int_equal(vm_lock_take(other, &err), -EBUSY);
    assert_int_equal(vm_lock_read(other, &record, &err), 0);
    assert_int_equal(record.generation, example.generation);
    vm_lock_close(lock);
    assert_int_equal(vm_lock_take(other, &err), 0);
    vm_lock_close(other);
}

static void new_file_says_new(void **state)
{
    struct vm_lock *lock = open_lock(*state);
    struct vm_lock_record record;

    assert_int_equal(vm_lock_read(lock, &record, NULL), 0);
    assert_int_equal(record.state, VM_LOCK_NEW);
    assert_int_equal(record.generation, 0);
    vm_lock_close(lock);
}

static void record_reads_back_as_written(void **state)
{
    struct vm_lock *lock = open_lock(*state);
    struct vm_lock_record record;

    assert_int_equal(vm_lock_take(lock, NULL), 0);
    assert_int_equal(vm_lock_write(lock, &example, NULL), 0);
    vm_lock_close(lock);
    lock = open_lock(*state);
    assert_int_equal(vm_lock_read(lock, &record, NULL), 0);
    assert_memory_equal(&record, &example, sizeof(record));
    vm_lock_close(lock);
}

static void disks_that_were_left_behind_are_called_so(void **state)
{
    struct vm_lock *lock = open_lock(*state);
    struct vm_lock_record record = example, read;
    struct ferry_error err;

    assert_int_equal(vm_lock_take(lock, NULL), 0);
    record.state = VM_LOCK_HANDOVER;
    record.copied = true;
    assert_int_equal(vm_lock_write(lock, &record, NULL), 0);
    assert_int_equal(vm_lock_read(lock, &read, NULL), 0);
    assert_true(read.copied);
    assert_int_equal(vm_lock_refuse_moving(&read, "/srv/disk.ferry-lock", &err), -EBUSY);
    assert_non_null(strstr(err.text, "left on host"));
    assert_non_null(strstr(err.text, "/srv/disk.ferry-lock"));
    /* Taken back, or somebody else's. */
    record.state = VM_LOCK_HELD;
    assert_int_equal(vm_lock_write(lock, &record, NULL), 0);
    assert_int_equal(vm_lock_read(lock, &read, NULL), 0);
    assert_false(read.copied);
    vm_lock_close(lock);
}

static void second_taker_is_refused_naming_the_holder(void **state)
{
    struct vm_lock *first = open_lock(*state), *second = open_lock(*state);
    struct ferry_error err = {0};

    assert_int_equal(vm_lock_take(first, NULL), 0);
    assert_int_equal(vm_lock_write(first, &example, NULL), 0);
    assert_int_equal(vm_lock_take(second, &err), -EBUSY);
    assert_non_null(strstr(err.text, "web"));
    assert_non_null(strstr(err.text, "host a"));
    assert_non_null(strstr(err.text, "4711"));
    vm_lock_drop(first);
    assert_int_equal(vm_lock_take(second, NULL), 0);
    vm_lock_close(first);
    vm_lock_close(second);
}

static void closing_drops_the_lock_and_keeps_the_record(void **state)
{
    struct vm_lock *first = open_lock(*state), *second = open_lock(*state);
    struct vm_lock_record record;

    assert_int_equal(vm_lock_take(first, NULL), 0);
    assert_int_equal(vm_lock_write(first, &example, NULL), 0);
    vm_lock_close(first);
    assert_int_equal(vm_lock_take(second, NULL), 0);
    assert_int_equal(vm_lock_read(second, &record, NULL), 0);
    assert_int_equal(record.generation, 7);
    vm_lock_close(second);
}

static void every_flipped_bit_and_every_truncation_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct vm_lock *lock = open_lock(fixture);
    struct vm_lock_record record;
    uint8_t good[512];
    int fd = open(fixture->path, O_RDWR);

    assert_true(fd >= 0);
    assert_int_equal(vm_lock_take(lock, NULL), 0);
    assert_int_equal(vm_lock_write(lock, &example, NULL), 0);
    assert_int_equal(pread(fd, good, sizeof(good), 0), sizeof(good));
    for (unsigned bit = 0; bit < sizeof(good) * 8; bit++) {
        uint8_t bad = good[bit / 8] ^ (uint8_t)(1u << bit % 8);

        assert_int_equal(pwrite(fd, &bad, 1, bit / 8), 1);
        assert_int_equal(vm_lock_read(lock, &record, NULL), -EBADMSG);
        assert_int_equal(pwrite(fd, &good[bit / 8], 1, bit / 8), 1);
    }
    for (off_t size = 1; size < (off_t)sizeof(good); size++) {
        assert_int_equal(ftruncate(fd, 0), 0);
        assert_int_equal(pwrite(fd, good, (size_t)size, 0), size);
        assert_int_equal(vm_lock_read(lock, &record, NULL), -EBADMSG);
    }
    close(fd);
    vm_lock_close(lock);
}

static void directory_or_missing_place_is_refused_in_words(void **state)
{
    struct fixture *fixture = *state;
    struct vm_lock *lock = NULL;
    struct ferry_error err = {0};

    assert_true(vm_lock_open(&lock, fixture->directory, &err) < 0);
    assert_non_null(strstr(err.text, fixture->directory));
    assert_int_equal(vm_lock_open(&lock, "/nonexistent/web" VM_LOCK_SUFFIX, &err), -ENOENT);
    assert_non_null(strstr(err.text, "/nonexistent/web"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(new_file_says_new, setup, teardown),
        cmocka_unit_test_setup_teardown(local_lock_is_seen_by_all_of_this_host, setup, teardown),
        cmocka_unit_test_setup_teardown(record_reads_back_as_written, setup, teardown),
        cmocka_unit_test_setup_teardown(disks_that_were_left_behind_are_called_so, setup, teardown),
        cmocka_unit_test_setup_teardown(second_taker_is_refused_naming_the_holder, setup, teardown),
        cmocka_unit_test_setup_teardown(closing_drops_the_lock_and_keeps_the_record, setup, teardown),
        cmocka_unit_test_setup_teardown(every_flipped_bit_and_every_truncation_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(directory_or_missing_place_is_refused_in_words, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
