/* Checkpoint files that were damaged in any way: refused, naming file and part, or read correctly. */
#include "saving.h"

#include "checkpoint/format.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static const uint64_t sizes[] = {3 * MIB, 2 * MIB + 3 * FERRY_PAGE_SIZE};

/* One file, saved once. */
struct sample {
    struct saving saving;
    char copy[128];
    uint8_t *bytes;
    size_t size;
};

static void sample_make(struct sample *sample, bool zstd)
{
    struct ferry_error err = {0};
    struct stat status;
    int fd;

    saving_init(&sample->saving, sizes, 2, true);
    fake_guest_fill(&sample->saving.guest, 0, 10, 20, 1);
    fake_guest_fill(&sample->saving.guest, 1, 500, 15, 2);
    memset(sample->saving.guest.regions[1].host_ptr, 1, 20 * FERRY_PAGE_SIZE);
    sample->saving.guest.extra_sections = 2;
    sample->saving.guest.extra_size = 100;
    sample->saving.options.zstd = zstd;
    assert_ok(saving_save(&sample->saving, &err), err);
    unit_path(&sample->saving.dir, "copy", sample->copy);
    fd = open(sample->saving.path, O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &status), 0);
    sample->size = (size_t)status.st_size;
    sample->bytes = malloc(sample->size);
    assert_non_null(sample->bytes);
    assert_int_equal(read(fd, sample->bytes, sample->size), status.st_size);
    close(fd);
    fd = open(sample->copy, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_int_equal(write(fd, sample->bytes, sample->size), status.st_size);
    close(fd);
}

static void sample_free(struct sample *sample)
{
    free(sample->bytes);
    saving_free(&sample->saving);
}

/* The copy with COUNT bytes of it different; afterwards as it was. 0: it was restored, and is right. */
static int try_bytes(struct sample *sample, size_t offset, const void *bytes, size_t count,
                     struct ferry_error *err)
{
    int fd = open(sample->copy, O_WRONLY);
    int result;

    assert_int_equal(pwrite(fd, bytes, count, (off_t)offset), (ssize_t)count);
    result = saving_restore(&sample->saving, sample->copy, err);
    assert_int_equal(pwrite(fd, sample->bytes + offset, count, (off_t)offset), (ssize_t)count);
    close(fd);
    return result;
}

static int try_bit(struct sample *sample, size_t offset, unsigned bit, struct ferry_error *err)
{
    uint8_t byte = sample->bytes[offset] ^ (uint8_t)(1 << bit);

    return try_bytes(sample, offset, &byte, 1, err);
}

static void expect_refused(struct sample *sample, size_t from, size_t to)
{
    struct ferry_error err = {0};

    /* Every byte, a bit of each: the next one's in the next byte. */
    for (size_t offset = from; offset < to; offset++) {
        if (try_bit(sample, offset, offset % 8, &err) == 0)
            fail_msg("byte %zu was changed, and the file accepted", offset);
        assert_contains(err.text, sample->copy);
        assert_true(err.code == -EBADMSG || err.code == -EPROTONOSUPPORT);
    }
}

static void every_bit_of_header_and_tables_counts(void **state)
{
    for (int zstd = 0; zstd < 2; zstd++) {
        struct checkpoint_header header;
        struct sample sample;
        struct ferry_error err = {0};

        sample_make(&sample, zstd);
        assert_ok(checkpoint_header_decode(sample.bytes, &header, "", &err), err);
        /* The first bytes in all their bits. */
        for (size_t bit = 0; bit < (size_t)8 * 256; bit++)
            assert_true(try_bit(&sample, bit / 8, bit % 8, &err) < 0);
        expect_refused(&sample, 256, CHECKPOINT_HEADER_SIZE);
        expect_refused(&sample, header.directory.offset, header.directory.offset + header.directory.size);
        expect_refused(&sample, header.digests.offset, header.digests.offset + header.digests.size);
        sample_free(&sample);
    }
}

static void truncated_file_is_refused_at_any_length(void **state)
{
    struct sample sample;
    struct ferry_error err = {0};
    uint64_t seed = 1;

    sample_make(&sample, false);
    for (int i = 0; i < 300; i++) {
        size_t length = i < 100 ? (size_t)i * 64 : unit_random(&seed) % sample.size;
        int fd = open(sample.copy, O_WRONLY);

        if (i >= 280)
            length = sample.size - (size_t)(i - 279);
        assert_int_equal(ftruncate(fd, (off_t)length), 0);
        assert_int_equal(saving_restore(&sample.saving, sample.copy, &err), -EBADMSG);
        assert_contains(err.text, sample.copy);
        assert_int_equal(pwrite(fd, sample.bytes + length, sample.size - length, (off_t)length),
                         (ssize_t)(sample.size - length));
        close(fd);
    }
    assert_ok(saving_restore(&sample.saving, sample.copy, &err), err);
    sample_free(&sample);
}

static void longer_file_is_refused(void **state)
{
    struct sample sample;
    struct ferry_error err = {0};

    sample_make(&sample, false);
    assert_int_equal(truncate(sample.copy, (off_t)sample.size + 4096), 0);
    assert_int_equal(saving_restore(&sample.saving, sample.copy, &err), -EBADMSG);
    sample_free(&sample);
}

/* Anywhere: where it matters it is found, and elsewhere the guest is right (saving_restore compares). */
static void flipped_bit_is_refused_or_does_not_matter(void **state)
{
    for (int zstd = 0; zstd < 2; zstd++) {
        struct sample sample;
        struct ferry_error err = {0};
        uint64_t seed = 7;
        unsigned refused = 0;

        sample_make(&sample, zstd);
        for (int i = 0; i < 400; i++) {
            size_t offset = unit_random(&seed) % sample.size;

            /* Half of them where there is something. */
            if (i % 2) {
                while (!sample.bytes[offset])
                    offset = (offset + 509) % sample.size;
            }
            if (try_bit(&sample, offset, (unsigned)(unit_random(&seed) % 8), &err) < 0) {
                refused++;
                assert_contains(err.text, sample.copy);
            }
        }
        assert_true(refused > 150);
        sample_free(&sample);
    }
}

static void damaged_page_is_named(void **state)
{
    for (int zstd = 0; zstd < 2; zstd++) {
        struct sample sample;
        struct ferry_error err = {0};
        size_t page = CHECKPOINT_RAM_ALIGN + 16 * FERRY_PAGE_SIZE;

        sample_make(&sample, zstd);
        assert_int_equal(try_bit(&sample, page + 100, 3, &err), -EBADMSG);
        assert_contains(err.text, "page 16 of memory region ram0");
        sample_free(&sample);
    }
}

static void pages_that_changed_places_are_refused(void **state)
{
    struct sample sample;
    struct ferry_error err = {0};
    uint8_t both[2 * FERRY_PAGE_SIZE];
    size_t page = CHECKPOINT_RAM_ALIGN + 12 * FERRY_PAGE_SIZE;

    sample_make(&sample, false);
    memcpy(both, sample.bytes + page + FERRY_PAGE_SIZE, FERRY_PAGE_SIZE);
    memcpy(both + FERRY_PAGE_SIZE, sample.bytes + page, FERRY_PAGE_SIZE);
    assert_int_equal(try_bytes(&sample, page, both, sizeof(both), &err), -EBADMSG);
    assert_contains(err.text, "page 12 of memory region ram0");
    sample_free(&sample);
}

/* A header whose checksum is right says what cannot be, or is not known here. */
static int try_header(struct sample *sample, const struct checkpoint_header *header, struct ferry_error *err)
{
    uint8_t page[CHECKPOINT_HEADER_SIZE];

    checkpoint_header_encode(page, header);
    return try_bytes(sample, 0, page, sizeof(page), err);
}

static void newer_format_is_refused_in_words(void **state)
{
    struct checkpoint_header header, was;
    struct sample sample;
    struct ferry_error err = {0};

    sample_make(&sample, false);
    assert_ok(checkpoint_header_decode(sample.bytes, &was, "", &err), err);
    assert_ok(try_header(&sample, &was, &err), err);
    header = was;
    header.version = FERRY_CHECKPOINT_VERSION + 1;
    assert_int_equal(try_header(&sample, &header, &err), -EPROTONOSUPPORT);
    assert_contains(err.text, "format version 2");
    header = was;
    header.features = UINT64_C(1) << 40;
    assert_int_equal(try_header(&sample, &header, &err), -EPROTONOSUPPORT);
    assert_contains(err.text, "features");
    header = was;
    header.directory.offset = UINT64_MAX - 4095;
    assert_int_equal(try_header(&sample, &header, &err), -EBADMSG);
    header = was;
    header.directory.size = UINT64_MAX;
    assert_int_equal(try_header(&sample, &header, &err), -EBADMSG);
    header = was;
    header.digests.size += 8;
    assert_int_equal(try_header(&sample, &header, &err), -EBADMSG);
    sample_free(&sample);
}

/* Directories that are consistent in themselves, with one thing that cannot be. */
static int decode(const struct checkpoint_directory *directory, struct ferry_error *err)
{
    struct checkpoint_header header = {.file_size = 64 * MIB,
                                       .directory = {.offset = 32 * MIB, .size = 4096},
                                       .digests = {.offset = 33 * MIB}};
    struct checkpoint_directory again;
    struct buffer out = BUFFER_INIT;
    int result;

    header.digests.size = checkpoint_digests_size(directory, false);
    checkpoint_directory_encode(&out, directory);
    result = checkpoint_directory_decode(out.data, out.size, &header, &again, "f", err);
    checkpoint_directory_free(&again);
    buffer_free(&out);
    return result;
}

static void directory_with_impossible_places_is_refused(void **state)
{
    struct checkpoint_part parts[2] = {
        {.type = CHECKPOINT_PART_SECTION,
         .name = "cpu0",
         .version = 1,
         .extent = {.offset = 40 * MIB, .size = 100}},
        {.type = CHECKPOINT_PART_BLOB, .name = "definition", .extent = {.offset = 41 * MIB, .size = 100}},
    };
    struct checkpoint_directory good = {
        .regions = {{.name = "ram", .guest_addr = 0, .size = 4 * MIB, .file_offset = 2 * MIB}},
        .index_offset = {30 * MIB},
        .region_count = 1,
        .parts = parts,
        .part_count = 2,
    };
    struct checkpoint_directory directory = good;
    struct ferry_error err = {0};

    assert_ok(decode(&good, &err), err);
    directory.regions[0].size = UINT64_MAX - 4095;
    assert_int_equal(decode(&directory, &err), -EBADMSG);
    directory = good;
    directory.regions[0].file_offset = 62 * MIB; /* beyond the end */
    assert_int_equal(decode(&directory, &err), -EBADMSG);
    directory.regions[0].file_offset = 28 * MIB; /* over the index */
    assert_int_equal(decode(&directory, &err), -EBADMSG);
    assert_contains(err.text, "over each other");
    directory = good;
    directory.index_offset[0] = 0; /* the header */
    assert_int_equal(decode(&directory, &err), -EBADMSG);
    parts[1].extent.offset = 40 * MIB;
    assert_int_equal(decode(&good, &err), -EBADMSG);
    parts[1].extent.offset = 41 * MIB;
    parts[0].extent.size = UINT64_MAX;
    assert_int_equal(decode(&good, &err), -EBADMSG);
    parts[0].extent.size = FERRY_SECTION_SIZE_MAX + 1;
    assert_int_equal(decode(&good, &err), -EBADMSG);
    parts[0].extent.size = 100;
    parts[0].type = 9;
    assert_int_equal(decode(&good, &err), -EPROTONOSUPPORT);
    assert_contains(err.text, "\"cpu0\" of a kind (9)");
    parts[0].type = CHECKPOINT_PART_SECTION;
    parts[0].version = 0;
    assert_int_equal(decode(&good, &err), -EBADMSG);
    parts[0].version = 1;
    parts[1] = parts[0];
    parts[1].extent.offset = 42 * MIB;
    assert_int_equal(decode(&good, &err), -EBADMSG);
    assert_contains(err.text, "twice");
}

static void other_files_are_refused(void **state)
{
    struct unit_dir dir;
    struct ferry_checkpoint *checkpoint;
    struct ferry_error err = {0};
    char path[128], text[8192];
    int fd;

    unit_dir_make(&dir);
    unit_path(&dir, "file", path);
    assert_int_equal(ferry_checkpoint_open(&checkpoint, path, &err), -ENOENT);
    assert_contains(err.text, path);
    fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_int_equal(ferry_checkpoint_open(&checkpoint, path, &err), -EBADMSG);
    memset(text, 'x', sizeof(text));
    assert_int_equal(write(fd, text, sizeof(text)), sizeof(text));
    assert_int_equal(ferry_checkpoint_open(&checkpoint, path, &err), -EBADMSG);
    assert_contains(err.text, "not a checkpoint");
    close(fd);
    assert_int_equal(ferry_checkpoint_open(&checkpoint, dir.path, &err), -EINVAL);
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(ferry_checkpoint_open(&checkpoint, path, &err), -EINVAL);
    unit_dir_remove(&dir);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_bit_of_header_and_tables_counts),
        cmocka_unit_test(truncated_file_is_refused_at_any_length),
        cmocka_unit_test(longer_file_is_refused),
        cmocka_unit_test(flipped_bit_is_refused_or_does_not_matter),
        cmocka_unit_test(damaged_page_is_named),
        cmocka_unit_test(pages_that_changed_places_are_refused),
        cmocka_unit_test(newer_format_is_refused_in_words),
        cmocka_unit_test(directory_with_impossible_places_is_refused),
        cmocka_unit_test(other_files_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
