#include "checkpoint/format.h"

#include "base/error.h"
#include "engine/checkpoint.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char magic[8] = {'F', 'E', 'R', 'R', 'Y', 'C', 'K', '\n'};

#define HASHED_SIZE    (CHECKPOINT_HEADER_SIZE - CHECKPOINT_HASH_SIZE)
#define KNOWN_FEATURES CHECKPOINT_FEATURE_ZSTD

const char *ferry_checkpoint_kind_name(enum ferry_checkpoint_kind kind)
{
    switch (kind) {
    case FERRY_CHECKPOINT_SNAPSHOT:
        return "snapshot";
    case FERRY_CHECKPOINT_SUSPEND:
        return "suspend";
    }
    return "unknown";
}

void checkpoint_hash(struct checkpoint_hash *hash, const void *data, size_t size)
{
    XXH128_canonical_t canonical;

    XXH128_canonicalFromHash(&canonical, XXH3_128bits(data, size));
    memcpy(hash->bytes, canonical.digest, sizeof(hash->bytes));
}

bool checkpoint_hash_is(const struct checkpoint_hash *hash, const void *data, size_t size)
{
    struct checkpoint_hash found;

    checkpoint_hash(&found, data, size);
    return memcmp(&found, hash, sizeof(found)) == 0;
}

uint64_t checkpoint_page_hash(const uint8_t *page)
{
    uint64_t hash = XXH3_64bits(page, FERRY_PAGE_SIZE);

    return hash ? hash : 1;
}

uint64_t checkpoint_index_hashes_size(uint64_t pages)
{
    return checkpoint_align(pages * 8, FERRY_PAGE_SIZE);
}

uint64_t checkpoint_index_size(uint64_t pages, bool zstd)
{
    uint64_t blocks = (pages + CHECKPOINT_BLOCK_PAGES - 1) / CHECKPOINT_BLOCK_PAGES;
    uint64_t size = checkpoint_index_hashes_size(pages);

    return zstd ? size + checkpoint_align(blocks * 4, FERRY_PAGE_SIZE) : size;
}

uint64_t checkpoint_digests_size(const struct checkpoint_directory *directory, bool zstd)
{
    uint64_t size = 0;

    for (size_t i = 0; i < directory->region_count; i++)
        size += checkpoint_index_size(directory->regions[i].size / FERRY_PAGE_SIZE, zstd);
    return size / FERRY_PAGE_SIZE * 8;
}

/* ---- header ---- */

static void put_extent(struct buffer *out, const struct checkpoint_extent *extent)
{
    buffer_put_u64(out, extent->offset);
    buffer_put_u64(out, extent->size);
    buffer_put(out, extent->hash.bytes, sizeof(extent->hash.bytes));
}

static void get_extent(struct reader *in, struct checkpoint_extent *extent)
{
    extent->offset = reader_get_u64(in);
    extent->size = reader_get_u64(in);
    reader_get(in, extent->hash.bytes, sizeof(extent->hash.bytes));
}

void checkpoint_header_encode(uint8_t out[static CHECKPOINT_HEADER_SIZE],
                              const struct checkpoint_header *header)
{
    struct buffer buffer = BUFFER_INIT;
    struct checkpoint_hash hash;

    buffer_put(&buffer, magic, sizeof(magic));
    buffer_put_u32(&buffer, header->version);
    buffer_put_u32(&buffer, header->kind);
    buffer_put_u64(&buffer, header->features);
    buffer_put(&buffer, header->uuid, sizeof(header->uuid));
    buffer_put_u64(&buffer, header->stopped_realtime_ns);
    buffer_put_u32(&buffer, header->was_running);
    buffer_put_u32(&buffer, FERRY_PAGE_SIZE);
    buffer_put_u64(&buffer, header->pages);
    buffer_put_u64(&buffer, header->file_size);
    put_extent(&buffer, &header->directory);
    put_extent(&buffer, &header->digests);
    buffer_put_string(&buffer, header->id);
    buffer_put_string(&buffer, header->vm);
    memset(out, 0, CHECKPOINT_HEADER_SIZE);
    /* Without memory for it the page stays empty, which is no header. */
    if (buffer_failed(&buffer)) {
        buffer_free(&buffer);
        return;
    }
    memcpy(out, buffer.data, buffer.size);
    buffer_free(&buffer);
    checkpoint_hash(&hash, out, HASHED_SIZE);
    memcpy(out + HASHED_SIZE, hash.bytes, sizeof(hash.bytes));
}

/* An extent of whole pages behind the header, SIZE bytes of the last of which count. */
static bool extent_fits(const struct checkpoint_extent *extent, uint64_t file_size)
{
    return extent->offset % FERRY_PAGE_SIZE == 0 && extent->offset >= CHECKPOINT_HEADER_SIZE &&
           extent->offset <= file_size && extent->size <= file_size - extent->offset;
}

static int header_check(const struct checkpoint_header *header, uint32_t page_size, uint32_t was_running,
                        const char *file, struct ferry_error *err)
{
    if (header->kind != FERRY_CHECKPOINT_SNAPSHOT && header->kind != FERRY_CHECKPOINT_SUSPEND)
        return error_set(err, -EBADMSG, "checkpoint %s: the header names an unknown kind (%u)", file,
                         header->kind);
    if (page_size != FERRY_PAGE_SIZE || was_running > 1 || header->file_size > CHECKPOINT_FILE_MAX ||
        header->file_size % FERRY_PAGE_SIZE != 0)
        return error_set(err, -EBADMSG, "checkpoint %s: the header has a value that cannot be", file);
    if (!extent_fits(&header->directory, header->file_size) ||
        header->directory.size > CHECKPOINT_DIRECTORY_MAX)
        return error_set(err, -EBADMSG, "checkpoint %s: the header places the directory outside of the file",
                         file);
    if (!extent_fits(&header->digests, header->file_size) || header->digests.size % 8 != 0)
        return error_set(err, -EBADMSG, "checkpoint %s: the header places the digests outside of the file",
                         file);
    return 0;
}

int checkpoint_header_decode(const uint8_t in[static CHECKPOINT_HEADER_SIZE],
                             struct checkpoint_header *header, const char *file, struct ferry_error *err)
{
    struct reader reader = reader_init(in, HASHED_SIZE);
    struct checkpoint_hash hash;
    uint32_t page_size, was_running;

    memcpy(hash.bytes, in + HASHED_SIZE, sizeof(hash.bytes));
    if (memcmp(in, magic, sizeof(magic)) != 0)
        return error_set(err, -EBADMSG, "%s is not a checkpoint of Ferry's", file);
    reader_view(&reader, sizeof(magic));
    *header = (struct checkpoint_header){.version = reader_get_u32(&reader)};
    /* What is newer may have its checksum elsewhere. */
    if (header->version > FERRY_CHECKPOINT_VERSION)
        return error_set(
            err, -EPROTONOSUPPORT,
            "checkpoint %s is of format version %u, this Ferry reads up to %u: it was written by "
            "a newer one, or its header is damaged",
            file, header->version, FERRY_CHECKPOINT_VERSION);
    if (header->version == 0 || !checkpoint_hash_is(&hash, in, HASHED_SIZE))
        return error_set(err, -EBADMSG, "checkpoint %s: the header is damaged (its checksum is wrong)", file);
    header->kind = reader_get_u32(&reader);
    header->features = reader_get_u64(&reader);
    reader_get(&reader, header->uuid, sizeof(header->uuid));
    header->stopped_realtime_ns = reader_get_u64(&reader);
    was_running = reader_get_u32(&reader);
    page_size = reader_get_u32(&reader);
    header->was_running = was_running == 1;
    header->pages = reader_get_u64(&reader);
    header->file_size = reader_get_u64(&reader);
    get_extent(&reader, &header->directory);
    get_extent(&reader, &header->digests);
    reader_get_string(&reader, header->id, sizeof(header->id));
    reader_get_string(&reader, header->vm, sizeof(header->vm));
    if (reader_failed(&reader))
        return error_set(err, -EBADMSG, "checkpoint %s: the header names are too long", file);
    if (header->features & ~(uint64_t)KNOWN_FEATURES)
        return error_set(err, -EPROTONOSUPPORT,
                         "checkpoint %s uses features of the format that this Ferry does not know (%#llx)",
                         file, (unsigned long long)(header->features & ~(uint64_t)KNOWN_FEATURES));
    return header_check(header, page_size, was_running, file, err);
}

/* ---- directory ---- */

void checkpoint_directory_encode(struct buffer *out, const struct checkpoint_directory *directory)
{
    buffer_put_u32(out, (uint32_t)directory->region_count);
    for (size_t i = 0; i < directory->region_count; i++) {
        const struct ferry_checkpoint_region *region = &directory->regions[i];

        buffer_put_string(out, region->name);
        buffer_put_u64(out, region->guest_addr);
        buffer_put_u64(out, region->size);
        buffer_put_u64(out, region->file_offset);
        buffer_put_u64(out, directory->index_offset[i]);
    }
    buffer_put_u32(out, (uint32_t)directory->part_count);
    for (size_t i = 0; i < directory->part_count; i++) {
        const struct checkpoint_part *part = &directory->parts[i];

        buffer_put_u32(out, part->type);
        buffer_put_string(out, part->name);
        buffer_put_u32(out, part->version);
        put_extent(out, &part->extent);
    }
}

void checkpoint_directory_free(struct checkpoint_directory *directory)
{
    free(directory->parts);
    *directory = (struct checkpoint_directory){0};
}

static int decode_regions(struct reader *in, const struct checkpoint_header *header,
                          struct checkpoint_directory *directory, const char *file, struct ferry_error *err)
{
    bool zstd = header->features & CHECKPOINT_FEATURE_ZSTD;
    uint32_t count = reader_get_u32(in);

    if (count == 0 || count > FERRY_REGIONS_MAX)
        return error_set(err, -EBADMSG, "checkpoint %s: the directory has %u memory regions", file, count);
    for (size_t i = 0; i < count; i++) {
        struct ferry_checkpoint_region *region = &directory->regions[i];
        struct checkpoint_extent ram, index;

        reader_get_string(in, region->name, sizeof(region->name));
        region->guest_addr = reader_get_u64(in);
        region->size = reader_get_u64(in);
        region->file_offset = reader_get_u64(in);
        directory->index_offset[i] = reader_get_u64(in);
        if (reader_failed(in) || !region->name[0] || region->size == 0 ||
            region->size % FERRY_PAGE_SIZE != 0 || region->size > CHECKPOINT_FILE_MAX ||
            region->file_offset % CHECKPOINT_RAM_ALIGN != 0)
            return error_set(err, -EBADMSG, "checkpoint %s: memory region %zu of the directory cannot be",
                             file, i);
        ram = (struct checkpoint_extent){.offset = region->file_offset, .size = region->size};
        index = (struct checkpoint_extent){
            .offset = directory->index_offset[i],
            .size = checkpoint_index_size(region->size / FERRY_PAGE_SIZE, zstd),
        };
        if (!extent_fits(&ram, header->file_size) || !extent_fits(&index, header->file_size))
            return error_set(err, -EBADMSG, "checkpoint %s: memory region %s is outside of the file", file,
                             region->name);
        for (size_t j = 0; j < i; j++) {
            if (strcmp(region->name, directory->regions[j].name) == 0)
                return error_set(err, -EBADMSG, "checkpoint %s: memory region %s is there twice", file,
                                 region->name);
        }
        directory->region_count = i + 1;
    }
    if (header->digests.size != checkpoint_digests_size(directory, zstd))
        return error_set(err, -EBADMSG, "checkpoint %s: the digests do not fit the memory regions", file);
    return 0;
}

/* What is the size, and how often it is there, of parts of one kind. */
struct part_limits {
    size_t count, count_max;
    uint64_t size, size_max; /* of all */
    uint64_t one_max;
};

static int check_part(const struct checkpoint_part *part, struct part_limits *limits, const char *file,
                      struct ferry_error *err)
{
    bool is_section = part->type == CHECKPOINT_PART_SECTION;

    if (!part->name[0] || is_section != (part->version > 0))
        return error_set(err, -EBADMSG, "checkpoint %s: a part has no name, or a wrong version", file);
    if (part->extent.size > limits->one_max || part->extent.size > limits->size_max - limits->size ||
        limits->count == limits->count_max)
        return error_set(err, -EBADMSG, "checkpoint %s: part %s is too large, or one too many", file,
                         part->name);
    limits->size += part->extent.size;
    limits->count++;
    return 0;
}

static int decode_part(struct reader *in, const struct checkpoint_header *header,
                       struct checkpoint_directory *directory, const char *file, struct ferry_error *err)
{
    struct checkpoint_part *part = &directory->parts[directory->part_count];

    part->type = reader_get_u32(in);
    reader_get_string(in, part->name, sizeof(part->name));
    part->version = reader_get_u32(in);
    get_extent(in, &part->extent);
    if (reader_failed(in))
        return error_set(err, -EBADMSG, "checkpoint %s: the directory ends in the middle of a part", file);
    if (part->type != CHECKPOINT_PART_SECTION && part->type != CHECKPOINT_PART_BLOB)
        return error_set(err, -EPROTONOSUPPORT,
                         "checkpoint %s has a part \"%s\" of a kind (%u) that this Ferry does not know", file,
                         part->name, part->type);
    if (!extent_fits(&part->extent, header->file_size))
        return error_set(err, -EBADMSG, "checkpoint %s: part %s is outside of the file", file, part->name);
    for (size_t i = 0; i < directory->part_count; i++) {
        if (part->type == directory->parts[i].type && strcmp(part->name, directory->parts[i].name) == 0)
            return error_set(err, -EBADMSG, "checkpoint %s: part %s is there twice", file, part->name);
    }
    directory->part_count++;
    return 0;
}

static int decode_parts(struct reader *in, const struct checkpoint_header *header,
                        struct checkpoint_directory *directory, const char *file, struct ferry_error *err)
{
    struct part_limits limits[] = {
        [CHECKPOINT_PART_SECTION] = {.count_max = FERRY_SECTIONS_MAX,
                                     .size_max = CHECKPOINT_SIZE_MAX,
                                     .one_max = FERRY_SECTION_SIZE_MAX},
        [CHECKPOINT_PART_BLOB] = {.count_max = FERRY_CHECKPOINT_BLOBS_MAX,
                                  .size_max =
                                      (uint64_t)FERRY_CHECKPOINT_BLOBS_MAX * FERRY_CHECKPOINT_BLOB_SIZE_MAX,
                                  .one_max = FERRY_CHECKPOINT_BLOB_SIZE_MAX},
    };
    uint32_t count = reader_get_u32(in);
    int result = 0;

    if (reader_failed(in) || count > CHECKPOINT_PARTS_MAX)
        return error_set(err, -EBADMSG, "checkpoint %s: the directory has %u parts", file, count);
    directory->parts = calloc(count ? count : 1, sizeof(*directory->parts));
    if (!directory->parts)
        return error_set(err, -ENOMEM, "out of memory for the directory of checkpoint %s", file);
    for (uint32_t i = 0; i < count && result == 0; i++) {
        result = decode_part(in, header, directory, file, err);
        if (result == 0)
            result = check_part(&directory->parts[i], &limits[directory->parts[i].type], file, err);
    }
    if (result == 0 && reader_left(in))
        result = error_set(err, -EBADMSG, "checkpoint %s: the directory has %zu bytes too many", file,
                           reader_left(in));
    return result;
}

/* ---- nothing may lie over anything else ---- */

struct place {
    uint64_t offset, size;
};

static int compare_places(const void *left, const void *right)
{
    uint64_t a = ((const struct place *)left)->offset, b = ((const struct place *)right)->offset;

    return a < b ? -1 : a > b;
}

static int check_overlaps(const struct checkpoint_header *header,
                          const struct checkpoint_directory *directory, const char *file,
                          struct ferry_error *err)
{
    struct place places[3 + 2 * FERRY_REGIONS_MAX + CHECKPOINT_PARTS_MAX];
    bool zstd = header->features & CHECKPOINT_FEATURE_ZSTD;
    size_t count = 0;

    places[count++] = (struct place){0, CHECKPOINT_HEADER_SIZE};
    places[count++] = (struct place){header->directory.offset, header->directory.size};
    places[count++] = (struct place){header->digests.offset, header->digests.size};
    for (size_t i = 0; i < directory->region_count; i++) {
        const struct ferry_checkpoint_region *region = &directory->regions[i];

        places[count++] = (struct place){region->file_offset, region->size};
        places[count++] = (struct place){directory->index_offset[i],
                                         checkpoint_index_size(region->size / FERRY_PAGE_SIZE, zstd)};
    }
    for (size_t i = 0; i < directory->part_count; i++) {
        if (directory->parts[i].extent.size > 0)
            places[count++] =
                (struct place){directory->parts[i].extent.offset, directory->parts[i].extent.size};
    }
    qsort(places, count, sizeof(places[0]), compare_places);
    for (size_t i = 1; i < count; i++) {
        if (places[i].offset < places[i - 1].offset + places[i - 1].size)
            return error_set(err, -EBADMSG, "checkpoint %s: two parts lie over each other at offset %llu",
                             file, (unsigned long long)places[i].offset);
    }
    return 0;
}

int checkpoint_directory_decode(const void *data, size_t size, const struct checkpoint_header *header,
                                struct checkpoint_directory *directory, const char *file,
                                struct ferry_error *err)
{
    struct reader in = reader_init(data, size);
    int result;

    *directory = (struct checkpoint_directory){0};
    result = decode_regions(&in, header, directory, file, err);
    if (result == 0)
        result = decode_parts(&in, header, directory, file, err);
    return result ? result : check_overlaps(header, directory, file, err);
}
