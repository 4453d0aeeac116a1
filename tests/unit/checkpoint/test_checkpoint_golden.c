/*
 * Files of every format version that was ever released, as they were written then: they are read for ever.
 *
 * They are in golden/, compressed as a whole, for they are mostly holes. A new version's are made by
 *
 *     test_checkpoint_golden --make DIRECTORY
 *
 * and stay as they are from then on; what this test knows of them is said below.
 */
#include "saving.h"

#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>
#include <zstd.h>

#define FILE_MAX (16 * MIB)

static const uint64_t sizes[] = {70 * FERRY_PAGE_SIZE, 21 * FERRY_PAGE_SIZE};

struct golden {
    const char *name;
    uint32_t version;
    bool zstd;
    const char *uuid;
    uint64_t stopped_realtime_ns;
    uint64_t memory[2]; /* checksums */
    uint64_t count;     /* of the guest's vCPU */
};

static const struct golden goldens[] = {
    {.name = "v1-plain",
     .version = 1,
     .zstd = false,
     .uuid = "68af26f9-67eb-40ec-ba77-75e3ae7d2130",
     .stopped_realtime_ns = UINT64_C(1795425564044408058),
     .memory = {UINT64_C(0x2db60e22357e1dbd), UINT64_C(0x3c7a19b4f2ca6e74)},
     .count = 100},
    {.name = "v1-zstd",
     .version = 1,
     .zstd = true,
     .uuid = "a1f52417-1474-482f-8e59-ae71c87c2f06",
     .stopped_realtime_ns = UINT64_C(1795425564066754591),
     .memory = {UINT64_C(0x2db60e22357e1dbd), UINT64_C(0x3c7a19b4f2ca6e74)},
     .count = 100},
};

/* The guest in them. */
static void make(const char *directory, const char *name, bool zstd)
{
    struct saving saving;
    struct ferry_error err = {0};
    char path[256];

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    saving_init(&saving, sizes, 2, true);
    /* Pages that compress well, and some that do not at all. */
    for (size_t page = 3; page < 40; page++)
        memset(saving.guest.regions[0].host_ptr + page * FERRY_PAGE_SIZE, (int)page, FERRY_PAGE_SIZE);
    fake_guest_fill(&saving.guest, 1, 20, 1, 4);
    saving.guest.pattern = FAKE_PATTERN_RANDOM;
    saving.guest.window = 30;
    fake_guest_step(&saving.guest, 100);
    saving.guest.extra_sections = 2;
    saving.guest.extra_size = 33;
    saving.options.path = path;
    saving.options.zstd = zstd;
    assert_ok(saving_save(&saving, &err), err);
    saving_free(&saving);
}

static void unpack(const struct golden *golden, const char *path)
{
    char packed_path[512];
    uint8_t *packed = malloc(MIB), *bytes = malloc(FILE_MAX);
    ssize_t packed_size;
    size_t size;
    int fd;

    assert_true(packed && bytes);
    snprintf(packed_path, sizeof(packed_path), "%s/%s.zst", GOLDEN_DIRECTORY, golden->name);
    fd = open(packed_path, O_RDONLY);
    if (fd < 0)
        fail_msg("%s is missing", packed_path);
    packed_size = read(fd, packed, MIB);
    close(fd);
    size = ZSTD_decompress(bytes, FILE_MAX, packed, (size_t)packed_size);
    assert_false(ZSTD_isError(size));
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_int_equal(write(fd, bytes, size), (ssize_t)size);
    close(fd);
    free(packed);
    free(bytes);
}

static void look(const struct golden *golden, const struct ferry_checkpoint *checkpoint)
{
    const struct ferry_checkpoint_info *info = ferry_checkpoint_info(checkpoint);
    const struct ferry_checkpoint_region *region = ferry_checkpoint_region(checkpoint, 1);
    const struct ferry_checkpoint_blob *blob = ferry_checkpoint_blob(checkpoint, "definition");
    struct ferry_error err = {0};

    assert_int_equal(info->version, golden->version);
    assert_int_equal(info->zstd, golden->zstd);
    assert_int_equal(info->kind, FERRY_CHECKPOINT_SNAPSHOT);
    assert_false(info->was_running);
    assert_string_equal(info->uuid, golden->uuid);
    assert_string_equal(info->id, "0d2f7b8e-7a33-4c1f-9f5b-1f9f2d9a5a77");
    assert_string_equal(info->vm, "web");
    assert_int_equal(info->stopped_realtime_ns, golden->stopped_realtime_ns);
    assert_int_equal(info->memory_bytes, sizes[0] + sizes[1]);
    assert_int_equal(ferry_checkpoint_region_count(checkpoint), 2);
    assert_string_equal(region->name, "ram1");
    assert_int_equal(region->guest_addr, UINT64_C(0x180000000));
    assert_int_equal(region->size, sizes[1]);
    assert_int_equal(region->file_offset, 4 * MIB);
    assert_int_equal(ferry_checkpoint_section_count(checkpoint), 3);
    assert_string_equal(ferry_checkpoint_section(checkpoint, 0)->name, "cpu0");
    assert_int_equal(ferry_checkpoint_section(checkpoint, 2)->size, 33);
    assert_int_equal(blob->size, 2);
    assert_memory_equal(blob->data, "{}", 2);
    assert_ok(ferry_checkpoint_verify(checkpoint, &err), err);
}

static void golden_file_is_read_as_it_was_written(void **state)
{
    for (size_t i = 0; i < sizeof(goldens) / sizeof(goldens[0]); i++) {
        const struct golden *golden = &goldens[i];
        struct ferry_checkpoint *checkpoint;
        struct ferry_error err = {0};
        struct fake_guest guest;
        struct unit_dir dir;
        char path[128];

        unit_dir_make(&dir);
        unpack(golden, unit_path(&dir, golden->name, path));
        assert_ok(ferry_checkpoint_open(&checkpoint, path, &err), err);
        look(golden, checkpoint);
        assert_ok(fake_guest_init(&guest, NULL, sizes, 2, true, &err), err);
        guest.arriving = true;
        assert_ok(ferry_checkpoint_restore(checkpoint, &fake_guest_ops, &guest, NULL, NULL, &err), err);
        for (size_t j = 0; j < 2; j++)
            assert_int_equal(XXH3_64bits(guest.regions[j].host_ptr, sizes[j]), golden->memory[j]);
        assert_int_equal(fake_guest_count(&guest), golden->count);
        fake_guest_destroy(&guest);
        ferry_checkpoint_close(checkpoint);
        unit_dir_remove(&dir);
    }
}

/* Bytes 8 to 11 are the version. */
static void newer_version_is_refused_naming_it(void **state)
{
    struct ferry_checkpoint *checkpoint;
    struct ferry_error err = {0};
    struct unit_dir dir;
    char path[128];
    uint8_t version = FERRY_CHECKPOINT_VERSION + 1;
    int fd;

    unit_dir_make(&dir);
    unpack(&goldens[0], unit_path(&dir, "newer", path));
    fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, &version, 1, 8), 1);
    close(fd);
    assert_int_equal(ferry_checkpoint_open(&checkpoint, path, &err), -EPROTONOSUPPORT);
    assert_contains(err.text, "is of format version 2, this Ferry reads up to 1");
    unit_dir_remove(&dir);
}

static int refuse_section(void *guest, const struct ferry_section *section, struct ferry_error *err)
{
    return error_set(err, -EPROTONOSUPPORT, "section %s is of version %u, which is newer than 0",
                     section->name, section->version);
}

/* What a newer device has saved: the guest's own refusal, with the file's name before it. */
static void section_that_the_guest_does_not_know_is_refused_by_name(void **state)
{
    struct ferry_checkpoint *checkpoint;
    struct ferry_error err = {0};
    struct fake_guest guest;
    struct ferry_guest_ops ops = fake_guest_ops;
    struct unit_dir dir;
    char path[128];

    unit_dir_make(&dir);
    unpack(&goldens[0], unit_path(&dir, "newer", path));
    ops.load_section = refuse_section;
    assert_ok(ferry_checkpoint_open(&checkpoint, path, &err), err);
    assert_ok(fake_guest_init(&guest, NULL, sizes, 2, true, &err), err);
    assert_int_equal(ferry_checkpoint_restore(checkpoint, &ops, &guest, NULL, NULL, &err), -EPROTONOSUPPORT);
    assert_contains(err.text, path);
    assert_contains(err.text, "section cpu0 is of version 1");
    assert_false(guest.loaded);
    fake_guest_destroy(&guest);
    ferry_checkpoint_close(checkpoint);
    unit_dir_remove(&dir);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_file_is_read_as_it_was_written),
        cmocka_unit_test(newer_version_is_refused_naming_it),
        cmocka_unit_test(section_that_the_guest_does_not_know_is_refused_by_name),
    };

    if (argc == 3 && strcmp(argv[1], "--make") == 0) {
        make(argv[2], "v1-plain", false);
        make(argv[2], "v1-zstd", true);
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
