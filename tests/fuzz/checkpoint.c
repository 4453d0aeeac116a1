/*
 * Checkpoint files that were changed in any way: refused, or restored as they were; never anything else.
 *
 * The files that are changed are made here, one plain and one compressed, from a guest of a few pages. An
 * input is a byte of flags and then changes of five bytes each: what to change, where, and how.
 *
 *     bit 0    the compressed file
 *     bit 1    header and directory get right checksums afterwards, so that what they say is looked at
 *     bit 2    the file is cut off, where the next four bytes say
 *     bit 3    the rest of the input is the directory, with bit 1
 *
 * Without bit 1 a file that is accepted must restore the guest as it was.
 *
 * Inputs that reached something new are kept in corpus/checkpoint (replay.c). The long form, ten minutes:
 *
 *     CC=clang meson setup -Dfuzz=true -Db_sanitize=address,undefined -Db_lundef=false \
 *         -Dc_args=-fsanitize=fuzzer-no-link build-fuzz
 *     ninja -C build-fuzz
 *     mkdir inputs && build-fuzz/tests/fuzz/replay_checkpoint tests/fuzz/corpus/checkpoint inputs
 *     build-fuzz/tests/fuzz/fuzz_checkpoint -max_total_time=600 -max_len=400 inputs
 */
#include "checkpoint/format.h"
#include "engine/testing/fake_guest.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const uint64_t sizes[] = {40 * FERRY_PAGE_SIZE, 21 * FERRY_PAGE_SIZE};

#define CHANGES_MAX 64

/* A file, and the same in a memfd that is changed and put right again. */
struct base {
    uint8_t *bytes;
    size_t size;
    int fd;
    uint8_t *file; /* mapped */
    struct checkpoint_header header;
    uint64_t changed[CHANGES_MAX]; /* offsets */
    size_t change_count;
};

static struct base bases[2];
static uint8_t *saved[2]; /* the guest's memory */
static struct fake_guest target;

static void must(bool good)
{
    if (!good)
        abort();
}

static void make_base(struct base *base, struct fake_guest *guest, bool zstd)
{
    char directory[] = "/tmp/ferry-fuzz-XXXXXX", path[64];
    struct ferry_checkpoint_blob blob = {.name = "definition", .data = "{}", .size = 2};
    struct ferry_checkpoint_options options = {.id = "0d2f7b8e-7a33-4c1f-9f5b-1f9f2d9a5a77",
                                               .vm = "web",
                                               .path = path,
                                               .kind = FERRY_CHECKPOINT_SNAPSHOT,
                                               .zstd = zstd,
                                               .blobs = &blob,
                                               .blob_count = 1};
    struct ferry_checkpoint_writer *writer;
    struct stat status;
    int fd;

    must(mkdtemp(directory));
    snprintf(path, sizeof(path), "%s/file", directory);
    must(ferry_checkpoint_writer_new(&writer, &options, &fake_guest_ops, guest, NULL, NULL) == 0);
    must(ferry_checkpoint_write(writer, NULL) == 0);
    ferry_checkpoint_writer_free(writer);
    fd = open(path, O_RDONLY);
    must(fd >= 0 && fstat(fd, &status) == 0);
    base->size = (size_t)status.st_size;
    base->bytes = malloc(base->size);
    must(base->bytes && read(fd, base->bytes, base->size) == status.st_size);
    close(fd);
    unlink(path);
    rmdir(directory);
    base->fd = memfd_create("checkpoint", MFD_CLOEXEC);
    must(base->fd >= 0 && write(base->fd, base->bytes, base->size) == status.st_size);
    base->file = mmap(NULL, base->size, PROT_READ | PROT_WRITE, MAP_SHARED, base->fd, 0);
    must(base->file != MAP_FAILED);
    must(checkpoint_header_decode(base->bytes, &base->header, "", NULL) == 0);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    struct fake_guest guest;

    must(fake_guest_init(&guest, NULL, sizes, 2, true, NULL) == 0);
    fake_guest_fill(&guest, 0, 2, 5, 1);
    fake_guest_fill(&guest, 1, 15, 6, 2);
    memset(guest.regions[0].host_ptr + 20 * FERRY_PAGE_SIZE, 7, 10 * FERRY_PAGE_SIZE);
    guest.extra_sections = 1;
    guest.extra_size = 50;
    make_base(&bases[0], &guest, false);
    make_base(&bases[1], &guest, true);
    for (size_t i = 0; i < 2; i++) {
        saved[i] = malloc(sizes[i]);
        must(saved[i]);
        memcpy(saved[i], guest.regions[i].host_ptr, sizes[i]);
    }
    fake_guest_destroy(&guest);
    must(fake_guest_init(&target, NULL, sizes, 2, true, NULL) == 0);
    target.arriving = true;
    return 0;
}

/* Most of a file is holes: an offset that says something. */
static uint64_t pick(const struct base *base, const uint8_t change[static 5])
{
    const struct checkpoint_header *header = &base->header;
    uint64_t where = change[1] | (uint64_t)change[2] << 8 | (uint64_t)change[3] << 16;

    switch (change[0] % 6) {
    case 0:
        return where % 256;
    case 1:
        return header->directory.offset + where % header->directory.size;
    case 2:
        return header->digests.offset + where % header->digests.size;
    case 3: /* the index is before the digests */
        return header->digests.offset - 1 - where % (4 * FERRY_PAGE_SIZE);
    case 4:
        return CHECKPOINT_RAM_ALIGN + where % sizes[0];
    default:
        return where % base->size;
    }
}

/* Header and directory say what they say with right checksums. */
static void mend(uint8_t *bytes, size_t size)
{
    struct checkpoint_header header;
    struct checkpoint_hash hash;

    checkpoint_hash(&hash, bytes, CHECKPOINT_HEADER_SIZE - CHECKPOINT_HASH_SIZE);
    memcpy(bytes + CHECKPOINT_HEADER_SIZE - CHECKPOINT_HASH_SIZE, hash.bytes, sizeof(hash.bytes));
    if (checkpoint_header_decode(bytes, &header, "", NULL) < 0 || header.directory.offset > size ||
        header.directory.size > size - header.directory.offset)
        return;
    checkpoint_hash(&header.directory.hash, bytes + header.directory.offset, header.directory.size);
    checkpoint_header_encode(bytes, &header);
}

static int restore(int fd)
{
    struct ferry_checkpoint *checkpoint;
    int result = ferry_checkpoint_open_fd(&checkpoint, fd, "file", NULL);

    if (result < 0)
        return result;
    for (size_t i = 0; i < target.region_count; i++)
        memset(target.regions[i].host_ptr, 0, sizes[i]);
    (void)ferry_checkpoint_verify(checkpoint, NULL);
    result = ferry_checkpoint_restore(checkpoint, &fake_guest_ops, &target, NULL, NULL, NULL);
    ferry_checkpoint_close(checkpoint);
    return result;
}

static void change_byte(struct base *base, uint64_t offset, uint8_t bits)
{
    base->file[offset] ^= bits;
    base->changed[base->change_count++] = offset;
}

/* The changes of an input; returns the file's size. */
static size_t change(struct base *base, uint8_t flags, const uint8_t *data, size_t size)
{
    size_t length = base->size;

    base->change_count = 0;
    if (flags & 4 && size >= 4) {
        length =
            (data[0] | (size_t)data[1] << 8 | (size_t)data[2] << 16 | (size_t)data[3] << 24) % base->size;
        data += 4;
        size -= 4;
    }
    if (flags & 8) {
        struct checkpoint_header header = base->header;

        header.directory.size = size < FERRY_PAGE_SIZE ? size : FERRY_PAGE_SIZE;
        if (header.directory.size)
            memcpy(base->file + header.directory.offset, data, header.directory.size);
        checkpoint_header_encode(base->file, &header);
    } else {
        for (; size >= 5 && base->change_count < CHANGES_MAX; data += 5, size -= 5)
            change_byte(base, pick(base, data), data[4]);
    }
    if (flags & 10)
        mend(base->file, base->size);
    return length;
}

/* As it was made. */
static void undo(struct base *base, size_t length)
{
    uint64_t directory = base->header.directory.offset;

    if (length < base->size) {
        must(ftruncate(base->fd, (off_t)base->size) == 0);
        memcpy(base->file + length, base->bytes + length, base->size - length);
    }
    for (size_t i = 0; i < base->change_count; i++)
        base->file[base->changed[i]] = base->bytes[base->changed[i]];
    memcpy(base->file, base->bytes, CHECKPOINT_HEADER_SIZE);
    memcpy(base->file + directory, base->bytes + directory, FERRY_PAGE_SIZE);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct base *base;
    size_t length;

    if (size < 1)
        return 0;
    base = &bases[data[0] & 1];
    length = change(base, data[0], data + 1, size - 1);
    if (length < base->size)
        must(ftruncate(base->fd, (off_t)length) == 0);
    if (restore(base->fd) == 0 && !(data[0] & 10)) {
        for (size_t i = 0; i < 2; i++)
            must(memcmp(target.regions[i].host_ptr, saved[i], sizes[i]) == 0);
    }
    undo(base, length);
    return 0;
}
