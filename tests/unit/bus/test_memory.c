#include "unit.h"

#include "base/bitmap.h"
#include "base/hugepages.h"
#include "bus/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE UINT64_C(4096)
#define LOW  UINT64_C(0x80000000)
#define HIGH UINT64_C(0x100000000)

/* Two regions with a gap, and a third that begins where the second ends: ram0, ram1, ram2. */
static int setup(void **state)
{
    struct memory *memory;
    struct ferry_error err;

    assert_ok(memory_new(&memory, &err), err);
    assert_ok(memory_add_region(memory, "ram0", LOW, 16 * PAGE, &err), err);
    assert_ok(memory_add_region(memory, "ram1", HIGH, 4 * PAGE, &err), err);
    assert_ok(memory_add_region(memory, "ram2", HIGH + 4 * PAGE, 4 * PAGE, &err), err);
    *state = memory;
    return 0;
}

static int teardown(void **state)
{
    memory_free(*state);
    return 0;
}

static void what_was_written_is_read(void **state)
{
    struct memory *memory = *state;
    uint8_t out[6] = {0};

    assert_true(memory_write(memory, LOW + PAGE - 3, "ferry", 6));
    assert_true(memory_read(memory, LOW + PAGE - 3, out, 6));
    assert_string_equal((char *)out, "ferry");
    assert_memory_equal(memory_region(memory, 0)->host_ptr + PAGE - 3, "ferry", 6);
    assert_ptr_equal(memory_ptr(memory, LOW + 5, 1), memory_region(memory, 0)->host_ptr + 5);
    assert_int_equal(memory_total(memory), 24 * PAGE);
    assert_int_equal(memory_region_count(memory), 3);
    assert_null(memory_region(memory, 3));
    assert_null(memory_region(memory, SIZE_MAX));
}

static void only_bytes_inside_one_region_are_reachable(void **state)
{
    static const struct {
        uint64_t addr;
        uint64_t size;
        bool reachable;
    } cases[] = {
        {LOW, 1, true},
        {LOW, 16 * PAGE, true},
        {LOW + 16 * PAGE - 1, 1, true},
        {LOW + PAGE, 15 * PAGE, true},
        {HIGH + 4 * PAGE, 4 * PAGE, true},
        {LOW - 1, 1, false},
        {LOW - 1, 2, false},
        {LOW, 16 * PAGE + 1, false},
        {LOW + 1, 16 * PAGE, false},
        {LOW + 16 * PAGE - 1, 2, false},
        {LOW + 16 * PAGE, 1, false},
        {0, 1, false},
        {0, UINT64_MAX, false},
        {UINT64_MAX, 1, false},
        {UINT64_MAX, UINT64_MAX, false},
        {HIGH - 1, 1, false},
        {HIGH - 1, 2, false},
        /* neighbours in the guest's eyes, two regions all the same */
        {HIGH + 4 * PAGE - 1, 2, false},
        {HIGH, 8 * PAGE, false},
        {HIGH + 8 * PAGE, 1, false},
        /* addr + size wraps round to inside the region */
        {LOW, UINT64_MAX, false},
        {LOW + 1, UINT64_MAX, false},
        {LOW + 8, UINT64_MAX - 7, false},
        {LOW + PAGE, UINT64_MAX - LOW - PAGE + 1, false},
        {UINT64_MAX - 7, LOW + 16, false},
        {HIGH + PAGE, UINT64_MAX - PAGE + 1, false},
    };
    struct memory *memory = *state;
    uint8_t *all = malloc(16 * PAGE + 1);

    assert_non_null(all);
    memset(all, 0, 16 * PAGE + 1);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        bool reachable = memory_ptr(memory, cases[i].addr, cases[i].size) != NULL;

        if (reachable != cases[i].reachable)
            fail_msg("case %zu", i);
        /* Refused before a byte is touched: the sanitizer would see it otherwise. */
        assert_int_equal(memory_read(memory, cases[i].addr, all, cases[i].size), reachable);
        assert_int_equal(memory_write(memory, cases[i].addr, all, cases[i].size), reachable);
    }
    free(all);
}

static void nothing_at_an_address_is_still_checked(void **state)
{
    struct memory *memory = *state;

    assert_non_null(memory_ptr(memory, LOW, 0));
    assert_null(memory_ptr(memory, LOW + 16 * PAGE, 0));
    assert_true(memory_read(memory, LOW, NULL, 0));
    assert_false(memory_write(memory, 0, NULL, 0));
}

static void bad_regions_are_refused_in_words(void **state)
{
    static const struct {
        const char *name;
        uint64_t addr;
        uint64_t size;
        int code;
    } cases[] = {
        {"x", 0, 0, -EINVAL},
        {"x", 0, PAGE + 1, -EINVAL},
        {"x", 1, PAGE, -EINVAL},
        {"x", UINT64_MAX - PAGE + 1, 2 * PAGE, -EINVAL},
        {"x", 0, UINT64_MAX - PAGE + 1, -EINVAL},
        {"x", LOW, PAGE, -EEXIST},
        {"x", LOW - PAGE, 2 * PAGE, -EEXIST},
        {"x", LOW + 15 * PAGE, 2 * PAGE, -EEXIST},
        {"x", LOW - PAGE, 32 * PAGE, -EEXIST},
        {"x", LOW + PAGE, PAGE, -EEXIST},
        {"ram0", 0, PAGE, -EEXIST},
        {"a-name-of-sixteen", 0, PAGE, -EINVAL},
    };
    struct memory *memory = *state;
    struct ferry_error err;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        err = (struct ferry_error){0};
        assert_int_equal(memory_add_region(memory, cases[i].name, cases[i].addr, cases[i].size, &err),
                         cases[i].code);
        assert_contains(err.text, cases[i].name);
        assert_int_equal(memory_region_count(memory), 3);
    }
    assert_ok(memory_add_region(memory, "x", LOW - PAGE, PAGE, &err), err);
    assert_ok(memory_add_region(memory, "y", LOW + 16 * PAGE, PAGE, &err), err);
}

static void more_regions_than_the_most_are_refused(void **state)
{
    struct memory *memory = *state;
    struct ferry_error err;
    char name[16];

    for (unsigned i = 3; i < MEMORY_REGIONS_MAX; i++) {
        snprintf(name, sizeof(name), "ram%u", i);
        assert_ok(memory_add_region(memory, name, i * PAGE, PAGE, &err), err);
    }
    assert_int_equal(memory_add_region(memory, "last", 100 * PAGE, PAGE, &err), -ENOSPC);
}

static size_t dirty_count(struct memory *memory)
{
    size_t count = 0;

    for (size_t i = 0; i < memory_region_count(memory); i++)
        count += bitmap_count(memory_region(memory, i)->dirty, memory_region(memory, i)->size / PAGE);
    return count;
}

static void writes_are_recorded_only_while_tracking(void **state)
{
    struct memory *memory = *state;
    const uint64_t *dirty = memory_region(memory, 0)->dirty;

    assert_true(memory_write(memory, LOW, "x", 1));
    memory_mark_dirty(memory, LOW, PAGE);
    assert_int_equal(dirty_count(memory), 0);
    memory_set_tracking(memory, true);
    assert_true(memory_tracking(memory));
    assert_true(memory_write(memory, LOW + PAGE - 1, "xy", 2));
    assert_true(bitmap_test(dirty, 0) && bitmap_test(dirty, 1));
    assert_int_equal(dirty_count(memory), 2);
    assert_true(memory_write(memory, LOW + 4 * PAGE, NULL, 0));
    assert_false(memory_write(memory, LOW + 16 * PAGE - 1, "xy", 2));
    assert_int_equal(dirty_count(memory), 2);
    memory_set_tracking(memory, false);
    assert_true(memory_write(memory, LOW + 5 * PAGE, "x", 1));
    assert_int_equal(dirty_count(memory), 2);
    memory_set_tracking(memory, true);
    assert_int_equal(dirty_count(memory), 0);
}

static void tracking_again_keeps_what_was_recorded(void **state)
{
    struct memory *memory = *state;

    memory_set_tracking(memory, true);
    assert_true(memory_write(memory, LOW, "x", 1));
    memory_set_tracking(memory, true);
    assert_int_equal(dirty_count(memory), 1);
}

static void marks_cover_every_page_touched_and_no_other(void **state)
{
    static const struct {
        uint64_t addr;
        uint64_t size;
        size_t pages;
    } cases[] = {
        {LOW, 0, 0},
        {LOW, 1, 1},
        {LOW, PAGE, 1},
        {LOW, PAGE + 1, 2},
        {LOW + PAGE - 1, 2, 2},
        {LOW, 16 * PAGE, 16},
        {LOW - PAGE, 2 * PAGE, 1},
        {LOW - PAGE, PAGE, 0},
        {LOW + 15 * PAGE, 8 * PAGE, 1},
        {HIGH + 3 * PAGE, 2 * PAGE, 2},
        {0, UINT64_MAX, 24},
        {HIGH, UINT64_MAX, 8},
        {UINT64_MAX, UINT64_MAX, 0},
    };
    struct memory *memory = *state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        memory_set_tracking(memory, true);
        memory_mark_dirty(memory, cases[i].addr, cases[i].size);
        if (dirty_count(memory) != cases[i].pages)
            fail_msg("case %zu: %zu pages", i, dirty_count(memory));
        memory_set_tracking(memory, false);
    }
}

static uint64_t allocated(const struct memory *memory, size_t index)
{
    struct stat status;

    assert_int_equal(fstat(memory_region(memory, index)->memfd, &status), 0);
    return (uint64_t)status.st_blocks * 512;
}

static void nothing_is_allocated_until_reserved(void **state)
{
    struct memory *memory = *state;
    struct ferry_error err;

    assert_int_equal(allocated(memory, 0), 0);
    assert_ok(memory_reserve(memory, &err), err);
    assert_int_equal(allocated(memory, 0), 16 * PAGE);
    assert_int_equal(allocated(memory, 2), 4 * PAGE);
    assert_ok(memory_reserve(memory, &err), err);
}

static void reserving_more_than_the_host_has_is_refused(void **state)
{
    struct memory *memory = *state;
    struct ferry_error err = {0};

    assert_ok(memory_add_region(memory, "vast", UINT64_C(1) << 42, UINT64_C(1) << 40, &err), err);
    assert_int_equal(memory_reserve(memory, &err), -ENOMEM);
    assert_contains(err.text, "not enough memory");
    assert_int_equal(allocated(memory, 0), 0);
    assert_int_equal(allocated(memory, 3), 0);
}

/* Another process's memory in the place of our own: seen at the addresses that are known already. */
static void adopted_memory_takes_the_place_of_the_own(void **state)
{
    struct memory *memory = *state;
    struct memory *former;
    uint8_t *host_ptr = memory_region(memory, 1)->host_ptr;
    struct ferry_error err;
    char out[6] = "";
    int memfd;

    assert_ok(memory_new(&former, &err), err);
    assert_ok(memory_add_region(former, "ram1", HIGH, 4 * PAGE, &err), err);
    assert_true(memory_write(former, HIGH + PAGE, "older", 6));
    assert_true(memory_write(memory, HIGH + PAGE, "dropped", 8));
    memfd = dup(memory_region(former, 0)->memfd);
    assert_ok(memory_adopt(memory, 1, memfd, &err), err);
    assert_int_equal(memory_region(memory, 1)->memfd, memfd);
    assert_ptr_equal(memory_region(memory, 1)->host_ptr, host_ptr);
    assert_true(memory_read(memory, HIGH + PAGE, out, 6));
    assert_string_equal(out, "older");
    /* Shared, and there when the other one is gone. */
    assert_true(memory_write(former, HIGH + PAGE, "newer", 6));
    memory_free(former);
    assert_true(memory_read(memory, HIGH + PAGE, out, 6));
    assert_string_equal(out, "newer");
    /* Its neighbours are their own. */
    assert_true(memory_write(memory, HIGH + 4 * PAGE, "third", 6));
    assert_true(memory_read(memory, HIGH + 4 * PAGE, out, 6));
    assert_string_equal(out, "third");
    assert_int_equal(allocated(memory, 2), PAGE);
}

static void memory_that_cannot_be_adopted_changes_nothing(void **state)
{
    struct memory *memory = *state;
    int fd = open("/dev/null", O_RDONLY);
    struct ferry_error err;
    char out[6] = "";

    assert_true(memory_write(memory, LOW, "stays", 6));
    assert_true(memory_adopt(memory, 0, fd, &err) < 0);
    assert_contains(err.text, "cannot map");
    assert_true(memory_read(memory, LOW, out, 6));
    assert_string_equal(out, "stays");
    close(fd);
}

static void memory_is_of_huge_pages_where_they_are_to_be_had(void **state)
{
    struct memory *memory;
    struct stat before, after;

    assert_int_equal(memory_new(&memory, NULL), 0);
    assert_int_equal(memory_add_region(memory, "ram0", 0, UINT64_C(8) << 20, NULL), 0);
    assert_int_equal(fstat(memory_region(memory, 0)->memfd, &before), 0);
    assert_int_equal(before.st_blocks, 0);
    assert_true(memory_write(memory, 0, "x", 1));
    assert_int_equal(fstat(memory_region(memory, 0)->memfd, &after), 0);
    /* st_blksize is the size of a huge page where the file system gives them. */
    if (before.st_blksize > MEMORY_PAGE_SIZE && after.st_blocks * 512 == MEMORY_PAGE_SIZE)
        print_message("the host has no free huge page\n");
    else
        assert_int_equal(after.st_blocks * 512, before.st_blksize);
    memory_free(memory);
}

#define MIB      (UINT64_C(1) << 20)
#define HUGE     HUGEPAGES_2M
#define NO_PAGES "needs 8 free huge pages: echo 8 > /proc/sys/vm/nr_hugepages"

static struct memory *huge_memory(uint64_t page_size, uint64_t size)
{
    struct memory *memory;
    struct ferry_error err;

    assert_ok(memory_new(&memory, &err), err);
    memory_use_huge_pages(memory, page_size);
    assert_ok(memory_add_region(memory, "ram0", 0, size, &err), err);
    return memory;
}

static uint64_t huge_pages_available(void)
{
    struct hugepages pages;

    return hugepages_read(NULL, HUGE, &pages, NULL) == 0 ? pages.available : 0;
}

static void parts_of_set_aside_pages_are_refused(void **state)
{
    struct memory *memory;
    struct ferry_error err;

    assert_ok(memory_new(&memory, &err), err);
    memory_use_huge_pages(memory, HUGE);
    assert_int_equal(memory_add_region(memory, "ram0", 0, 3 * MIB, &err), -EINVAL);
    assert_contains(err.text, "3 MiB at 0x0 are not whole huge pages of 2 MiB");
    assert_int_equal(memory_add_region(memory, "ram0", MIB, 2 * MIB, &err), -EINVAL);
    memory_free(memory);
}

/* Whether there are any or none. */
static void more_set_aside_pages_than_are_free_are_refused(void **state)
{
    struct memory *memory;
    struct hugepages pages;
    struct ferry_error err;

    if (hugepages_read(NULL, HUGE, &pages, NULL))
        skip();
    memory = huge_memory(HUGE, UINT64_C(1) << 40);
    assert_int_equal(memory_reserve(memory, &err), -ENOMEM);
    assert_contains(err.text, "needs 524288 of 2 MiB");
    assert_contains(err.text, "> /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages");
    memory_free(memory);
}

/* How many others have is not for this test to say: they come and go meanwhile. */
static void set_aside_pages_are_reserved_and_not_yet_taken(void **state)
{
    struct memory *memory;
    struct ferry_error err;

    if (huge_pages_available() < 8) {
        print_message("%s\n", NO_PAGES);
        skip();
    }
    memory = huge_memory(HUGE, 8 * MIB);
    assert_ok(memory_reserve(memory, &err), err);
    assert_ok(memory_reserve(memory, &err), err);
    assert_int_equal(allocated(memory, 0), 0);
    for (uint64_t at = 0; at < 8; at += 2)
        assert_true(memory_write(memory, at * MIB, "there", 6));
    assert_int_equal(allocated(memory, 0), 8 * MIB);
    memory_free(memory);
}

static void adopted_set_aside_pages_are_not_taken_twice(void **state)
{
    struct memory *memory, *next;
    struct ferry_error err;
    char out[6] = "";

    if (huge_pages_available() < 8) {
        print_message("%s\n", NO_PAGES);
        skip();
    }
    memory = huge_memory(HUGE, 8 * MIB);
    assert_ok(memory_reserve(memory, &err), err);
    assert_true(memory_write(memory, 5 * MIB, "older", 6));
    next = huge_memory(HUGE, 8 * MIB);
    assert_ok(memory_adopt(next, 0, dup(memory_region(memory, 0)->memfd), &err), err);
    memory_free(memory);
    assert_true(memory_read(next, 5 * MIB, out, 6));
    assert_string_equal(out, "older");
    /* What was reserved is there for the heir, too. */
    assert_int_equal(allocated(next, 0), HUGE);
    for (uint64_t at = 0; at < 8; at += 2)
        assert_true(memory_write(next, at * MIB, "newer", 6));
    memory_free(next);
}

static void free_of_nothing_is_allowed(void **state)
{
    memory_free(NULL);
}

#define MEMORY_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        MEMORY_TEST(what_was_written_is_read),
        MEMORY_TEST(only_bytes_inside_one_region_are_reachable),
        MEMORY_TEST(nothing_at_an_address_is_still_checked),
        MEMORY_TEST(bad_regions_are_refused_in_words),
        MEMORY_TEST(more_regions_than_the_most_are_refused),
        MEMORY_TEST(writes_are_recorded_only_while_tracking),
        MEMORY_TEST(tracking_again_keeps_what_was_recorded),
        MEMORY_TEST(marks_cover_every_page_touched_and_no_other),
        MEMORY_TEST(nothing_is_allocated_until_reserved),
        MEMORY_TEST(reserving_more_than_the_host_has_is_refused),
        MEMORY_TEST(adopted_memory_takes_the_place_of_the_own),
        MEMORY_TEST(memory_that_cannot_be_adopted_changes_nothing),
        cmocka_unit_test(memory_is_of_huge_pages_where_they_are_to_be_had),
        cmocka_unit_test(parts_of_set_aside_pages_are_refused),
        cmocka_unit_test(more_set_aside_pages_than_are_free_are_refused),
        cmocka_unit_test(set_aside_pages_are_reserved_and_not_yet_taken),
        cmocka_unit_test(adopted_set_aside_pages_are_not_taken_twice),
        cmocka_unit_test(free_of_nothing_is_allowed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
