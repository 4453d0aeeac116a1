#include "checkpoint/reader.h"

#include "base/error.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- bytes ---- */

static int read_file(const struct ferry_checkpoint *checkpoint, void *out, size_t size, uint64_t offset,
                     const char *part, struct ferry_error *err)
{
    uint8_t *at = out;

    while (size > 0) {
        ssize_t n = pread(checkpoint->fd, at, size, (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_set_errno(err, -errno, "cannot read %s of checkpoint %s", part, checkpoint->name);
        if (n == 0)
            return error_set(err, -EBADMSG, "checkpoint %s is cut off in the middle of %s", checkpoint->name,
                             part);
        at += n;
        offset += (uint64_t)n;
        size -= (size_t)n;
    }
    return 0;
}

/* NULL with err, whose code is *RESULT. */
static void *read_part(const struct ferry_checkpoint *checkpoint, const struct checkpoint_extent *extent,
                       const char *part, int *result, struct ferry_error *err)
{
    /* Never empty, for malloc; and text gets its end. */
    uint8_t *data = malloc(extent->size + 1);

    if (!data) {
        *result = error_set(err, -ENOMEM, "out of memory for %s of checkpoint %s", part, checkpoint->name);
        return NULL;
    }
    data[extent->size] = 0;
    *result = read_file(checkpoint, data, extent->size, extent->offset, part, err);
    if (*result == 0 && !checkpoint_hash_is(&extent->hash, data, extent->size))
        *result = error_set(err, -EBADMSG, "checkpoint %s: %s is damaged (its checksum is wrong)",
                            checkpoint->name, part);
    if (*result == 0)
        return data;
    free(data);
    return NULL;
}

/* ---- opening ---- */

static int read_header(struct ferry_checkpoint *checkpoint, struct ferry_error *err)
{
    uint8_t page[CHECKPOINT_HEADER_SIZE];
    struct stat status;
    int result;

    if (fstat(checkpoint->fd, &status) < 0)
        return error_set_errno(err, -errno, "cannot look at checkpoint %s", checkpoint->name);
    if (!S_ISREG(status.st_mode))
        return error_set(err, -EINVAL, "%s is not a file", checkpoint->name);
    if (status.st_size < CHECKPOINT_HEADER_SIZE)
        return error_set(err, -EBADMSG, "%s is not a checkpoint of Ferry's: it has %lld bytes",
                         checkpoint->name, (long long)status.st_size);
    result = read_file(checkpoint, page, sizeof(page), 0, "the header", err);
    if (result == 0)
        result = checkpoint_header_decode(page, &checkpoint->header, checkpoint->name, err);
    if (result == 0 && checkpoint->header.file_size != (uint64_t)status.st_size)
        result = error_set(err, -EBADMSG, "checkpoint %s has %lld bytes and should have %llu: it is %s",
                           checkpoint->name, (long long)status.st_size,
                           (unsigned long long)checkpoint->header.file_size,
                           (uint64_t)status.st_size < checkpoint->header.file_size ? "cut off" : "damaged");
    return result;
}

static int read_directory(struct ferry_checkpoint *checkpoint, struct ferry_error *err)
{
    int result;
    void *data = read_part(checkpoint, &checkpoint->header.directory, "the directory", &result, err);

    if (!data)
        return result;
    result = checkpoint_directory_decode(data, checkpoint->header.directory.size, &checkpoint->header,
                                         &checkpoint->directory, checkpoint->name, err);
    free(data);
    if (result < 0)
        return result;
    checkpoint->digests = read_part(checkpoint, &checkpoint->header.digests, "the digests", &result, err);
    for (size_t i = 1; i < checkpoint->directory.region_count; i++)
        checkpoint->digest_first[i] =
            checkpoint->digest_first[i - 1] +
            (size_t)(checkpoint_index_size(checkpoint_region_pages(checkpoint, i - 1),
                                           checkpoint->info.zstd) /
                     FERRY_PAGE_SIZE);
    return result;
}

static int read_parts(struct ferry_checkpoint *checkpoint, struct ferry_error *err)
{
    int result = 0;

    for (size_t i = 0; i < checkpoint->directory.part_count && result == 0; i++) {
        const struct checkpoint_part *part = &checkpoint->directory.parts[i];
        bool is_section = part->type == CHECKPOINT_PART_SECTION;
        char words[FERRY_NAME_SIZE + 16];
        void *data;

        snprintf(words, sizeof(words), "%s %s", is_section ? "section" : "blob", part->name);
        data = read_part(checkpoint, &part->extent, words, &result, err);
        if (result < 0)
            break;
        if (is_section) {
            struct ferry_section *section = &checkpoint->sections[checkpoint->section_count++];

            memcpy(section->name, part->name, sizeof(section->name));
            section->version = part->version;
            section->data = data;
            section->size = part->extent.size;
        } else {
            struct ferry_checkpoint_blob *blob = &checkpoint->blobs[checkpoint->blob_count++];

            memcpy(blob->name, part->name, sizeof(blob->name));
            blob->data = data;
            blob->size = part->extent.size;
        }
    }
    return result;
}

static void fill_info(struct ferry_checkpoint *checkpoint)
{
    const struct checkpoint_header *header = &checkpoint->header;
    struct ferry_checkpoint_info *info = &checkpoint->info;
    const uint8_t *uuid = header->uuid;

    info->version = header->version;
    info->kind = header->kind;
    info->was_running = header->was_running;
    info->zstd = header->features & CHECKPOINT_FEATURE_ZSTD;
    snprintf(info->uuid, sizeof(info->uuid),
             "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", uuid[0], uuid[1],
             uuid[2], uuid[3], uuid[4], uuid[5], uuid[6], uuid[7], uuid[8], uuid[9], uuid[10], uuid[11],
             uuid[12], uuid[13], uuid[14], uuid[15]);
    memcpy(info->id, header->id, sizeof(info->id));
    memcpy(info->vm, header->vm, sizeof(info->vm));
    info->stopped_realtime_ns = header->stopped_realtime_ns;
    info->file_size = header->file_size;
    info->pages = header->pages;
}

int ferry_checkpoint_open_fd(struct ferry_checkpoint **out, int fd, const char *name, struct ferry_error *err)
{
    struct ferry_checkpoint *checkpoint = calloc(1, sizeof(*checkpoint));
    char path[32];
    int result;

    if (!checkpoint || !(checkpoint->name = strdup(name))) {
        free(checkpoint);
        return error_set(err, -ENOMEM, "out of memory for checkpoint %s", name);
    }
    checkpoint->direct_fd = -1;
    checkpoint->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    result = checkpoint->fd < 0 ? error_set_errno(err, -errno, "cannot open checkpoint %s", name) : 0;
    if (result == 0)
        result = read_header(checkpoint, err);
    if (result == 0) {
        fill_info(checkpoint);
        result = read_directory(checkpoint, err);
    }
    if (result == 0)
        result = read_parts(checkpoint, err);
    if (result < 0) {
        ferry_checkpoint_close(checkpoint);
        return result;
    }
    for (size_t i = 0; i < checkpoint->directory.region_count; i++)
        checkpoint->info.memory_bytes += checkpoint->directory.regions[i].size;
    snprintf(path, sizeof(path), "/proc/self/fd/%d", checkpoint->fd);
    checkpoint->direct_fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    *out = checkpoint;
    return 0;
}

int ferry_checkpoint_open(struct ferry_checkpoint **out, const char *path, struct ferry_error *err)
{
    /* A pipe of that name must not keep us. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    int result;

    if (fd < 0)
        return error_set_errno(err, -errno, "cannot open checkpoint %s", path);
    result = ferry_checkpoint_open_fd(out, fd, path, err);
    close(fd);
    return result;
}

void ferry_checkpoint_close(struct ferry_checkpoint *checkpoint)
{
    if (!checkpoint)
        return;
    for (size_t i = 0; i < checkpoint->section_count; i++)
        free((void *)checkpoint->sections[i].data);
    for (size_t i = 0; i < checkpoint->blob_count; i++)
        free((void *)checkpoint->blobs[i].data);
    checkpoint_directory_free(&checkpoint->directory);
    free(checkpoint->digests);
    if (checkpoint->fd >= 0)
        close(checkpoint->fd);
    if (checkpoint->direct_fd >= 0)
        close(checkpoint->direct_fd);
    free(checkpoint->name);
    free(checkpoint);
}

const struct ferry_checkpoint_info *ferry_checkpoint_info(const struct ferry_checkpoint *checkpoint)
{
    return &checkpoint->info;
}

size_t ferry_checkpoint_region_count(const struct ferry_checkpoint *checkpoint)
{
    return checkpoint->directory.region_count;
}

const struct ferry_checkpoint_region *ferry_checkpoint_region(const struct ferry_checkpoint *checkpoint,
                                                              size_t index)
{
    return index < checkpoint->directory.region_count ? &checkpoint->directory.regions[index] : NULL;
}

size_t ferry_checkpoint_section_count(const struct ferry_checkpoint *checkpoint)
{
    return checkpoint->section_count;
}

const struct ferry_section *ferry_checkpoint_section(const struct ferry_checkpoint *checkpoint, size_t index)
{
    return index < checkpoint->section_count ? &checkpoint->sections[index] : NULL;
}

const struct ferry_checkpoint_blob *ferry_checkpoint_blob(const struct ferry_checkpoint *checkpoint,
                                                          const char *name)
{
    for (size_t i = 0; i < checkpoint->blob_count; i++) {
        if (strcmp(checkpoint->blobs[i].name, name) == 0)
            return &checkpoint->blobs[i];
    }
    return NULL;
}

/* ---- the index ---- */

int checkpoint_pages_init(struct checkpoint_pages *pages, const struct ferry_checkpoint *checkpoint,
                          bool direct, struct ferry_error *err)
{
    *pages = (struct checkpoint_pages){.checkpoint = checkpoint, .direct = direct};
    pages->index = aligned_alloc(FERRY_PAGE_SIZE, FERRY_PAGE_SIZE);
    if (checkpoint->info.zstd) {
        pages->context = ZSTD_createDCtx();
        pages->packed = aligned_alloc(FERRY_PAGE_SIZE, CHECKPOINT_BLOCK_SIZE);
        pages->plain = aligned_alloc(FERRY_PAGE_SIZE, CHECKPOINT_BLOCK_SIZE);
    }
    if (pages->index && (!checkpoint->info.zstd || (pages->context && pages->packed && pages->plain)))
        return 0;
    checkpoint_pages_free(pages);
    return error_set(err, -ENOMEM, "out of memory for reading checkpoint %s", checkpoint->name);
}

void checkpoint_pages_free(struct checkpoint_pages *pages)
{
    free(pages->index);
    ZSTD_freeDCtx(pages->context);
    free(pages->packed);
    free(pages->plain);
    *pages = (struct checkpoint_pages){0};
}

/* 4 KiB of a region's index into pages->index. */
static int read_index(struct checkpoint_pages *pages, size_t region, uint64_t offset, struct ferry_error *err)
{
    const struct ferry_checkpoint *checkpoint = pages->checkpoint;
    char words[FERRY_NAME_SIZE + 40];
    uint64_t digest =
        le64toh(checkpoint->digests[checkpoint->digest_first[region] + offset / FERRY_PAGE_SIZE]);
    int result;

    snprintf(words, sizeof(words), "the index of memory region %s",
             checkpoint->directory.regions[region].name);
    result = read_file(checkpoint, pages->index, FERRY_PAGE_SIZE,
                       checkpoint->directory.index_offset[region] + offset, words, err);
    if (result == 0 && XXH3_64bits(pages->index, FERRY_PAGE_SIZE) != digest)
        result =
            error_set(err, -EBADMSG, "checkpoint %s: %s is damaged at offset %llu (its checksum is wrong)",
                      checkpoint->name, words,
                      (unsigned long long)(checkpoint->directory.index_offset[region] + offset));
    return result;
}

static int check_lengths(const struct ferry_checkpoint *checkpoint, const struct checkpoint_span *span,
                         struct ferry_error *err)
{
    for (size_t first = 0; first < span->count; first += CHECKPOINT_BLOCK_PAGES) {
        uint32_t length = span->lengths[first / CHECKPOINT_BLOCK_PAGES];
        size_t count =
            span->count - first < CHECKPOINT_BLOCK_PAGES ? span->count - first : CHECKPOINT_BLOCK_PAGES;
        bool empty = true;

        for (size_t i = 0; i < count; i++)
            empty = empty && span->hashes[first + i] == 0;
        if (length > count * FERRY_PAGE_SIZE || empty != (length == 0))
            return error_set(err, -EBADMSG,
                             "checkpoint %s: the index of memory region %s has a length that cannot be, for "
                             "page %llu",
                             checkpoint->name, checkpoint->directory.regions[span->region].name,
                             (unsigned long long)(span->first + first));
    }
    return 0;
}

int checkpoint_pages_seek(struct checkpoint_pages *pages, size_t region, uint64_t page,
                          struct ferry_error *err)
{
    struct checkpoint_span *span = &pages->span;
    uint64_t all = checkpoint_region_pages(pages->checkpoint, region);
    uint64_t first = page / CHECKPOINT_SPAN_PAGES * CHECKPOINT_SPAN_PAGES;
    uint64_t block = first / CHECKPOINT_BLOCK_PAGES;
    uint8_t *lengths = pages->index + block * 4 % FERRY_PAGE_SIZE;
    int result;

    if (pages->has_span && span->region == region && span->first == first)
        return 0;
    pages->has_span = false;
    span->region = region;
    span->first = first;
    span->count = all - first < CHECKPOINT_SPAN_PAGES ? (size_t)(all - first) : CHECKPOINT_SPAN_PAGES;
    result = read_index(pages, region, first * 8, err);
    if (result < 0)
        return result;
    for (size_t i = 0; i < span->count; i++)
        span->hashes[i] = le64toh(((const uint64_t *)pages->index)[i]);
    if (pages->checkpoint->info.zstd) {
        result = read_index(pages, region,
                            checkpoint_index_hashes_size(all) + block * 4 / FERRY_PAGE_SIZE * FERRY_PAGE_SIZE,
                            err);
        for (size_t i = 0; i < CHECKPOINT_SPAN_PAGES / CHECKPOINT_BLOCK_PAGES && result == 0; i++)
            span->lengths[i] = le32toh(((const uint32_t *)lengths)[i]);
        if (result == 0)
            result = check_lengths(pages->checkpoint, span, err);
    }
    pages->has_span = result == 0;
    return result;
}

/* ---- pages ---- */

/* Of RAM: whole pages. */
static int read_ram(struct checkpoint_pages *pages, uint8_t *out, size_t size, size_t region, uint64_t first,
                    struct ferry_error *err)
{
    struct ferry_checkpoint *checkpoint = (struct ferry_checkpoint *)pages->checkpoint;
    const struct ferry_checkpoint_region *ram = &checkpoint->directory.regions[region];
    uint64_t offset = ram->file_offset + first * FERRY_PAGE_SIZE;

    pages->bytes += size;
    while (size > 0) {
        bool direct = pages->direct && checkpoint->direct_fd >= 0 &&
                      !__atomic_load_n(&checkpoint->refused, __ATOMIC_RELAXED);
        ssize_t n = pread(direct ? checkpoint->direct_fd : checkpoint->fd, out, size, (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EINVAL && direct) {
            __atomic_store_n(&checkpoint->refused, true, __ATOMIC_RELAXED);
            continue;
        }
        if (n < 0)
            return error_set_errno(
                err, -errno, "cannot read checkpoint %s: page %llu of memory region %s", checkpoint->name,
                (unsigned long long)((offset - ram->file_offset) / FERRY_PAGE_SIZE), ram->name);
        if (n == 0)
            return error_set(err, -EBADMSG, "checkpoint %s is cut off in memory region %s", checkpoint->name,
                             ram->name);
        out += n;
        offset += (uint64_t)n;
        size -= (size_t)n;
    }
    return 0;
}

static int check_pages(const struct checkpoint_pages *pages, uint64_t first, size_t count,
                       const uint8_t *data, struct ferry_error *err)
{
    const struct checkpoint_span *span = &pages->span;
    const struct ferry_checkpoint_region *ram = &pages->checkpoint->directory.regions[span->region];

    for (size_t i = 0; i < count; i++) {
        uint64_t hash = span->hashes[first + i - span->first];
        uint64_t offset = ram->file_offset + (first + i) * FERRY_PAGE_SIZE;

        if (hash && checkpoint_page_hash(data + i * FERRY_PAGE_SIZE) != hash)
            return error_set(err, -EBADMSG,
                             "checkpoint %s: page %llu of memory region %s is damaged (at offset %llu; its "
                             "checksum is wrong)",
                             pages->checkpoint->name, (unsigned long long)(first + i), ram->name,
                             (unsigned long long)offset);
    }
    return 0;
}

static int read_plain(struct checkpoint_pages *pages, size_t region, uint64_t first, size_t count,
                      uint8_t *out, struct ferry_error *err)
{
    const uint64_t *hashes = pages->span.hashes + (first - pages->span.first);
    int result = 0;

    for (size_t from = 0; from < count && result == 0;) {
        size_t to = from;

        while (to < count && hashes[to])
            to++;
        if (to > from) {
            uint8_t *at = out + from * FERRY_PAGE_SIZE;

            result = read_ram(pages, at, (to - from) * FERRY_PAGE_SIZE, region, first + from, err);
            if (result == 0)
                result = check_pages(pages, first + from, to - from, at, err);
        }
        from = to + 1;
    }
    return result;
}

/* The block at FIRST into pages->plain. */
static int read_block(struct checkpoint_pages *pages, size_t region, uint64_t first, size_t count,
                      struct ferry_error *err)
{
    const struct checkpoint_span *span = &pages->span;
    uint32_t length = span->lengths[(first - span->first) / CHECKPOINT_BLOCK_PAGES];
    size_t size = count * FERRY_PAGE_SIZE;
    bool packed = length < size;
    int result = read_ram(pages, packed ? pages->packed : pages->plain,
                          (size_t)checkpoint_align(length, FERRY_PAGE_SIZE), region, first, err);

    if (result == 0 && packed &&
        ZSTD_decompressDCtx(pages->context, pages->plain, size, pages->packed, length) != size)
        result =
            error_set(err, -EBADMSG,
                      "checkpoint %s: the block at page %llu of memory region %s is damaged (it cannot be "
                      "decompressed)",
                      pages->checkpoint->name, (unsigned long long)first,
                      pages->checkpoint->directory.regions[region].name);
    return result ? result : check_pages(pages, first, count, pages->plain, err);
}

static int read_blocks(struct checkpoint_pages *pages, size_t region, uint64_t first, size_t count,
                       uint8_t *out, struct ferry_error *err)
{
    const struct checkpoint_span *span = &pages->span;
    uint64_t end = first + count, span_end = span->first + span->count;

    for (uint64_t at = first / CHECKPOINT_BLOCK_PAGES * CHECKPOINT_BLOCK_PAGES; at < end;
         at += CHECKPOINT_BLOCK_PAGES) {
        size_t block =
            span_end - at < CHECKPOINT_BLOCK_PAGES ? (size_t)(span_end - at) : CHECKPOINT_BLOCK_PAGES;
        int result;

        if (span->lengths[(at - span->first) / CHECKPOINT_BLOCK_PAGES] == 0)
            continue;
        result = read_block(pages, region, at, block, err);
        if (result < 0)
            return result;
        for (uint64_t page = at < first ? first : at; page < at + block && page < end; page++) {
            if (span->hashes[page - span->first])
                memcpy(out + (page - first) * FERRY_PAGE_SIZE, pages->plain + (page - at) * FERRY_PAGE_SIZE,
                       FERRY_PAGE_SIZE);
        }
    }
    return 0;
}

int checkpoint_pages_read(struct checkpoint_pages *pages, size_t region, uint64_t first, size_t count,
                          uint8_t *out, struct ferry_error *err)
{
    int result = checkpoint_pages_seek(pages, region, first, err);

    if (result < 0)
        return result;
    return pages->checkpoint->info.zstd ? read_blocks(pages, region, first, count, out, err)
                                        : read_plain(pages, region, first, count, out, err);
}

static int check_range(const struct ferry_checkpoint *checkpoint, size_t region, uint64_t first, size_t count,
                       struct ferry_error *err)
{
    uint64_t all =
        region < checkpoint->directory.region_count ? checkpoint_region_pages(checkpoint, region) : 0;

    if (first > all || count > all - first)
        return error_set(err, -EINVAL, "checkpoint %s has no such page: %llu of memory region %zu",
                         checkpoint->name, (unsigned long long)first, region);
    return 0;
}

int ferry_checkpoint_index(const struct ferry_checkpoint *checkpoint, size_t region, uint64_t first,
                           size_t count, uint64_t *index, struct ferry_error *err)
{
    struct checkpoint_pages pages;
    int result = check_range(checkpoint, region, first, count, err);

    if (result == 0)
        result = checkpoint_pages_init(&pages, checkpoint, false, err);
    if (result < 0)
        return result;
    for (size_t i = 0; i < count && result == 0;) {
        result = checkpoint_pages_seek(&pages, region, first + i, err);
        for (; result == 0 && i < count && first + i < pages.span.first + pages.span.count; i++)
            index[i] = pages.span.hashes[first + i - pages.span.first];
    }
    checkpoint_pages_free(&pages);
    return result;
}

int ferry_checkpoint_page(const struct ferry_checkpoint *checkpoint, size_t region, uint64_t page,
                          uint8_t *out, struct ferry_error *err)
{
    struct checkpoint_pages pages;
    int result = check_range(checkpoint, region, page, 1, err);

    if (result == 0)
        result = checkpoint_pages_init(&pages, checkpoint, false, err);
    if (result < 0)
        return result;
    memset(out, 0, FERRY_PAGE_SIZE);
    result = checkpoint_pages_read(&pages, region, page, 1, out, err);
    checkpoint_pages_free(&pages);
    return result;
}
