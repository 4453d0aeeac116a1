/* What is there of a file is found, whatever its pages, and nothing is lost. */
#include "unit.h"

#include "base/sparse.h"

#include <sys/mman.h>
#include <unistd.h>

#define PAGE  UINT64_C(4096)
#define PAGES 10000

struct file {
    int fd;
    uint8_t *mapped;
    uint64_t size;
};

static uint8_t *map(int fd, uint64_t size)
{
    uint8_t *mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);

    assert_ptr_not_equal(mapped, MAP_FAILED);
    return mapped;
}

static int set_up(void **state)
{
    struct file *file = malloc(sizeof(*file));

    *file = (struct file){.fd = memfd_create("sparse", MFD_CLOEXEC), .size = PAGES * PAGE};
    assert_true(file->fd >= 0);
    assert_int_equal(ftruncate(file->fd, (off_t)file->size), 0);
    file->mapped = map(file->fd, file->size);
    /* Small pages, whatever the host gives to shared memory. */
    madvise(file->mapped, file->size, MADV_NOHUGEPAGE);
    *state = file;
    return 0;
}

static int tear_down(void **state)
{
    struct file *file = *state;

    munmap(file->mapped, file->size);
    close(file->fd);
    free(file);
    return 0;
}

static void touch(struct file *file, unsigned first, unsigned end)
{
    for (unsigned page = first; page < end; page++)
        file->mapped[page * PAGE] = 1;
}

/* At or after page AT there are the pages from FIRST to END, of PAGE_SIZE, and then others or none. */
static void assert_next(const struct sparse *sparse, uint64_t page_size, uint64_t at, uint64_t first,
                        uint64_t end)
{
    uint64_t from = 0, to = 0;

    assert_true(sparse_next(sparse, at * page_size, &from, &to));
    assert_int_equal(from, first * page_size);
    assert_int_equal(to, end * page_size);
}

static void what_was_touched_is_found_and_nothing_else(void **state)
{
    struct file *file = *state;
    struct sparse sparse;
    uint64_t from, to;

    sparse_look(&sparse, file->fd, file->mapped, file->size);
    assert_false(sparse_next(&sparse, 0, &from, &to));
    touch(file, 1, 2);
    touch(file, 2000, 7000);
    touch(file, PAGES - 1, PAGES);
    assert_next(&sparse, PAGE, 0, 1, 2);
    assert_next(&sparse, PAGE, 1, 1, 2);
    assert_next(&sparse, PAGE, 2, 2000, 7000);
    assert_next(&sparse, PAGE, 6999, 6999, 7000);
    assert_next(&sparse, PAGE, 7000, PAGES - 1, PAGES);
    assert_false(sparse_next(&sparse, PAGES * PAGE, &from, &to));
    sparse_free(&sparse);
    assert_int_equal(sparse_huge_page_size(file->fd), 0);
    assert_int_equal(sparse_huge_page_size(-1), 0);
}

static void all_is_there_when_nobody_can_tell(void **state)
{
    struct file *file = *state;
    struct sparse sparse;
    uint64_t from, to;

    sparse_look(&sparse, -1, file->mapped, file->size);
    assert_next(&sparse, PAGE, 3, 3, PAGES);
    assert_false(sparse_next(&sparse, PAGES * PAGE, &from, &to));
    sparse_free(&sparse);
}

#define HUGE       (UINT64_C(2) << 20)
#define HUGE_PAGES 6

/* A file of huge pages, all of them reserved; skips the test when they cannot. */
static void huge_file(struct file *file)
{
    void *reserved = MAP_FAILED;

    *file = (struct file){.fd = memfd_create("sparse", MFD_CLOEXEC | MFD_HUGETLB | 21 << 26),
                          .size = HUGE_PAGES * HUGE};
    if (file->fd >= 0 && ftruncate(file->fd, (off_t)file->size) == 0)
        reserved = mmap(NULL, file->size, PROT_READ | PROT_WRITE, MAP_SHARED, file->fd, 0);
    if (reserved == MAP_FAILED) {
        print_message("needs 6 free huge pages: echo 6 > /proc/sys/vm/nr_hugepages\n");
        skip();
    }
    munmap(reserved, file->size);
    file->mapped = map(file->fd, file->size);
}

static void huge_pages_that_were_touched_are_found(void **state)
{
    struct file file;
    struct sparse sparse;
    uint64_t from, to;

    huge_file(&file);
    assert_int_equal(sparse_huge_page_size(file.fd), HUGE);
    sparse_look(&sparse, file.fd, file.mapped, file.size);
    assert_false(sparse_next(&sparse, 0, &from, &to));
    sparse_free(&sparse);
    file.mapped[HUGE + 12345] = 1;
    file.mapped[4 * HUGE - 1] = 1;
    file.mapped[5 * HUGE - 1] = 1;
    sparse_look(&sparse, file.fd, file.mapped, file.size);
    assert_next(&sparse, HUGE, 0, 1, 2);
    assert_next(&sparse, HUGE, 2, 3, 5);
    assert_next(&sparse, HUGE, 4, 4, 5);
    assert_false(sparse_next(&sparse, 5 * HUGE, &from, &to));
    assert_true(sparse_next(&sparse, 4 * HUGE + PAGE, &from, &to));
    assert_int_equal(from, 4 * HUGE + PAGE);
    assert_int_equal(to, 5 * HUGE);
    sparse_free(&sparse);
    munmap(file.mapped, file.size);
    close(file.fd);
}

/* Another process, here another mapping, has touched a page that ours does not have. */
static void huge_pages_that_somebody_else_touched_are_not_lost(void **state)
{
    struct file file;
    struct sparse sparse;
    uint64_t from, to;
    uint8_t *other;

    huge_file(&file);
    other = map(file.fd, file.size);
    file.mapped[0] = 1;
    other[3 * HUGE] = 2;
    sparse_look(&sparse, file.fd, file.mapped, file.size);
    assert_next(&sparse, HUGE, 0, 0, HUGE_PAGES);
    sparse_free(&sparse);
    /* Until ours has it, too. */
    assert_int_equal(file.mapped[3 * HUGE], 2);
    sparse_look(&sparse, file.fd, file.mapped, file.size);
    assert_next(&sparse, HUGE, 0, 0, 1);
    assert_next(&sparse, HUGE, 1, 3, 4);
    assert_false(sparse_next(&sparse, 4 * HUGE, &from, &to));
    sparse_free(&sparse);
    munmap(other, file.size);
    munmap(file.mapped, file.size);
    close(file.fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_was_touched_is_found_and_nothing_else, set_up, tear_down),
        cmocka_unit_test_setup_teardown(all_is_there_when_nobody_can_tell, set_up, tear_down),
        cmocka_unit_test(huge_pages_that_were_touched_are_found),
        cmocka_unit_test(huge_pages_that_somebody_else_touched_are_not_lost),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
