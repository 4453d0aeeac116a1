#include "unit.h"

#include "base/hugepages.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

/* A pool as the kernel shows it. */
static void make_pool(const struct unit_dir *dir, const unsigned numbers[static 5])
{
    static const char *const names[] = {"nr_hugepages", "free_hugepages", "resv_hugepages",
                                        "surplus_hugepages", "nr_overcommit_hugepages"};
    char path[256];

    snprintf(path, sizeof(path), "%s/hugepages-2048kB", dir->path);
    mkdir(path, 0700);
    for (size_t i = 0; i < 5; i++) {
        FILE *file;

        snprintf(path, sizeof(path), "%s/hugepages-2048kB/%s", dir->path, names[i]);
        file = fopen(path, "w");
        assert_non_null(file);
        fprintf(file, "%u\n", numbers[i]);
        fclose(file);
    }
}

static void what_is_promised_to_others_is_not_available(void **state)
{
    static const struct {
        unsigned numbers[5];
        unsigned available;
    } cases[] = {
        {{0, 0, 0, 0, 0}, 0},   {{100, 100, 0, 0, 0}, 100}, {{100, 60, 20, 0, 0}, 40},
        {{100, 5, 9, 0, 0}, 0}, {{110, 10, 4, 10, 30}, 26}, {{130, 0, 0, 40, 30}, 0},
    };
    struct unit_dir dir;

    unit_dir_make(&dir);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct hugepages pages;
        struct ferry_error err;

        make_pool(&dir, cases[i].numbers);
        assert_ok(hugepages_read(dir.path, HUGEPAGES_2M, &pages, &err), err);
        assert_int_equal(pages.total, cases[i].numbers[0]);
        assert_int_equal(pages.available, cases[i].available);
    }
    unit_dir_remove(&dir);
}

static void host_without_pages_of_a_size_says_so(void **state)
{
    struct unit_dir dir;
    struct hugepages pages;
    struct ferry_error err;

    unit_dir_make(&dir);
    make_pool(&dir, (unsigned[5]){1, 1, 0, 0, 0});
    assert_int_equal(hugepages_read(dir.path, HUGEPAGES_1G, &pages, &err), -ENOENT);
    assert_contains(err.text, "no huge pages of 1 GiB");
    unit_dir_remove(&dir);
}

static void unreadable_numbers_are_an_error(void **state)
{
    struct unit_dir dir;
    struct hugepages pages;
    struct ferry_error err;
    char path[128];

    unit_dir_make(&dir);
    make_pool(&dir, (unsigned[5]){1, 1, 0, 0, 0});
    assert_int_equal(truncate(unit_path(&dir, "hugepages-2048kB/resv_hugepages", path), 0), 0);
    assert_true(hugepages_read(dir.path, HUGEPAGES_2M, &pages, &err) < 0);
    assert_contains(err.text, "resv_hugepages");
    unit_dir_remove(&dir);
}

static void advice_counts_what_is_in_use(void **state)
{
    struct hugepages pages = {.total = 100, .available = 30};
    char text[HUGEPAGES_ADVICE_SIZE];

    assert_string_equal(hugepages_advice(HUGEPAGES_2M, &pages, 64, text),
                        "echo 134 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages");
    assert_string_equal(hugepages_advice(HUGEPAGES_1G, &pages, 8, text),
                        "echo 100 > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages");
}

static void memory_must_be_whole_pages(void **state)
{
    static const uint64_t mib = UINT64_C(1) << 20;
    struct ferry_error err;

    assert_ok(hugepages_check_memory(512 * mib, HUGEPAGES_2M, &err), err);
    assert_ok(hugepages_check_memory(2048 * mib, HUGEPAGES_1G, &err), err);
    assert_int_equal(hugepages_check_memory(513 * mib, HUGEPAGES_2M, &err), -EINVAL);
    assert_string_equal(err.text, "memory of 513 MiB is not a whole number of huge pages of 2 MiB; give it "
                                  "512M or 514M");
    assert_int_equal(hugepages_check_memory(512 * mib, HUGEPAGES_1G, &err), -EINVAL);
    assert_string_equal(err.text, "memory of 512 MiB is less than one huge page of 1 GiB; give it 1024M");
    assert_true(hugepages_size_known(HUGEPAGES_2M) && hugepages_size_known(HUGEPAGES_1G));
    assert_false(hugepages_size_known(0) || hugepages_size_known(4096));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_promised_to_others_is_not_available),
        cmocka_unit_test(host_without_pages_of_a_size_says_so),
        cmocka_unit_test(unreadable_numbers_are_an_error),
        cmocka_unit_test(advice_counts_what_is_in_use),
        cmocka_unit_test(memory_must_be_whole_pages),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
