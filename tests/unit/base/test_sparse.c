/* What is there of a file is found by either way, and nothing else. */
#include "unit.h"

#include "base/sparse.h"

#include <sys/mman.h>
#include <unistd.h>

#define PAGE  UINT64_C(4096)
#define PAGES 10000

static int set_up(void **state)
{
    struct sparse *sparse = malloc(sizeof(*sparse));

    *sparse = (struct sparse){.fd = memfd_create("sparse", MFD_CLOEXEC), .size = PAGES * PAGE};
    assert_true(sparse->fd >= 0);
    assert_int_equal(ftruncate(sparse->fd, (off_t)sparse->size), 0);
    sparse->mapped = mmap(NULL, sparse->size, PROT_READ | PROT_WRITE, MAP_SHARED, sparse->fd, 0);
    assert_ptr_not_equal(sparse->mapped, MAP_FAILED);
    /* Small pages, whatever the host gives to shared memory. */
    madvise(sparse->mapped, sparse->size, MADV_NOHUGEPAGE);
    *state = sparse;
    return 0;
}

static int tear_down(void **state)
{
    struct sparse *sparse = *state;

    munmap(sparse->mapped, sparse->size);
    close(sparse->fd);
    free(sparse);
    return 0;
}

static void touch(struct sparse *sparse, unsigned first, unsigned end)
{
    for (unsigned page = first; page < end; page++)
        sparse->mapped[page * PAGE] = 1;
}

static void assert_next(const struct sparse *sparse, uint64_t at, uint64_t first, uint64_t end)
{
    uint64_t from = 0, to = 0;

    assert_true(sparse_next(sparse, at * PAGE, &from, &to));
    assert_int_equal(from, first * PAGE);
    assert_int_equal(to, end * PAGE);
}

static void assert_ranges(struct sparse *sparse)
{
    uint64_t from, to;

    assert_next(sparse, 0, 1, 2);
    assert_next(sparse, 1, 1, 2);
    assert_next(sparse, 2, 2000, 7000);
    assert_next(sparse, 6999, 6999, 7000);
    assert_next(sparse, 7000, PAGES - 1, PAGES);
    assert_false(sparse_next(sparse, PAGES * PAGE, &from, &to));
}

static void both_ways_find_what_was_touched(void **state)
{
    struct sparse *sparse = *state;
    uint64_t from, to;

    assert_false(sparse_next(sparse, 0, &from, &to));
    touch(sparse, 1, 2);
    touch(sparse, 2000, 7000);
    touch(sparse, PAGES - 1, PAGES);
    assert_ranges(sparse);
    sparse->by_mapping = true;
    assert_ranges(sparse);
}

static void untouched_file_has_nothing_by_its_mapping(void **state)
{
    struct sparse *sparse = *state;
    uint64_t from, to;

    sparse->by_mapping = true;
    assert_false(sparse_next(sparse, 0, &from, &to));
}

static void all_is_there_when_nobody_can_tell(void **state)
{
    struct sparse *sparse = *state;
    struct sparse unknown = {.fd = -1, .mapped = sparse->mapped, .size = sparse->size};
    struct sparse unmapped = {.fd = sparse->fd, .mapped = NULL, .size = sparse->size, .by_mapping = true};
    uint64_t from, to;

    assert_next(&unknown, 3, 3, PAGES);
    assert_false(sparse_next(&unknown, PAGES * PAGE, &from, &to));
    assert_next(&unmapped, 3, 3, PAGES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(both_ways_find_what_was_touched, set_up, tear_down),
        cmocka_unit_test_setup_teardown(untouched_file_has_nothing_by_its_mapping, set_up, tear_down),
        cmocka_unit_test_setup_teardown(all_is_there_when_nobody_can_tell, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
