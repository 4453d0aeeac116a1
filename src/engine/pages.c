#include "engine/pages.h"

#include "base/bitmap.h"
#include "base/error.h"
#include "base/sparse.h"

#include <errno.h>
#include <isa-l.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* Of a checksum, between two ticks: milliseconds. */
#define CHECKSUM_TICK_PAGES 4096

bool page_is_zero(const uint8_t *page)
{
    return isal_zero_detect((void *)page, FERRY_PAGE_SIZE) == 0;
}

static int region_check(const struct page_map *map, size_t index, struct ferry_error *err)
{
    const struct ferry_ram_region *region = &map->regions[index];

    if (region->size == 0 || region->size % FERRY_PAGE_SIZE != 0 ||
        region->size / FERRY_PAGE_SIZE > UINT32_MAX || !region->host_ptr || region->name[0] == '\0' ||
        strnlen(region->name, FERRY_NAME_SIZE) == FERRY_NAME_SIZE)
        return error_set(err, -EINVAL, "memory region %zu of the guest has no name, memory or whole pages",
                         index);
    for (size_t i = 0; i < index; i++) {
        if (strcmp(map->regions[i].name, region->name) == 0)
            return error_set(err, -EINVAL, "memory region %s is there twice", region->name);
    }
    return 0;
}

int page_map_init(struct page_map *map, const struct ferry_guest_ops *ops, void *guest,
                  struct ferry_error *err)
{
    *map = (struct page_map){0};

    int result = ops->list_regions(guest, map->regions, &map->count, err);

    if (result < 0)
        return result;
    if (map->count == 0 || map->count > FERRY_REGIONS_MAX)
        return error_set(err, -EINVAL, "the guest has %zu memory regions, must be 1 to %d", map->count,
                         FERRY_REGIONS_MAX);
    for (size_t i = 0; i < map->count; i++) {
        result = region_check(map, i, err);
        if (result < 0)
            return result;
        map->pages[i] = map->regions[i].size / FERRY_PAGE_SIZE;
        map->total += map->pages[i];
        map->chunks += (map->pages[i] + PAGES_CHUNK - 1) / PAGES_CHUNK;
    }
    return 0;
}

size_t page_map_chunk(const struct page_map *map, uint64_t chunk, size_t *first, size_t *end)
{
    size_t region = 0;

    for (;; region++) {
        uint64_t chunks = (map->pages[region] + PAGES_CHUNK - 1) / PAGES_CHUNK;

        if (chunk < chunks)
            break;
        chunk -= chunks;
    }
    *first = (size_t)chunk * PAGES_CHUNK;
    *end = *first + PAGES_CHUNK < map->pages[region] ? *first + PAGES_CHUNK : map->pages[region];
    return region;
}

int page_set_init(struct page_set *set, const struct page_map *map, struct ferry_error *err)
{
    *set = (struct page_set){0};
    for (size_t i = 0; i < map->count; i++) {
        set->bits[i] = bitmap_new(map->pages[i]);
        if (!set->bits[i]) {
            page_set_free(set);
            return error_set(err, -ENOMEM, "out of memory for a bitmap of %zu pages", map->pages[i]);
        }
    }
    return 0;
}

void page_set_free(struct page_set *set)
{
    for (size_t i = 0; i < FERRY_REGIONS_MAX; i++)
        free(set->bits[i]);
    *set = (struct page_set){0};
}

void page_set_clear(struct page_set *set, const struct page_map *map)
{
    for (size_t i = 0; i < map->count; i++)
        memset(set->bits[i], 0, bitmap_words(map->pages[i]) * sizeof(uint64_t));
}

uint64_t page_set_count(const struct page_set *set, const struct page_map *map)
{
    uint64_t count = 0;

    for (size_t i = 0; i < map->count; i++)
        count += bitmap_count(set->bits[i], map->pages[i]);
    return count;
}

void page_for_present(const struct ferry_ram_region *region,
                      void (*function)(void *opaque, size_t first, size_t pages), void *opaque)
{
    struct sparse sparse;
    uint64_t from, to;

    sparse_look(&sparse, region->memfd, region->host_ptr, region->size);
    for (uint64_t at = 0; sparse_next(&sparse, at, &from, &to);) {
        size_t first = (size_t)from / FERRY_PAGE_SIZE;
        size_t end = ((size_t)to + FERRY_PAGE_SIZE - 1) / FERRY_PAGE_SIZE;

        function(opaque, first, end - first);
        at = (uint64_t)end * FERRY_PAGE_SIZE;
    }
    sparse_free(&sparse);
}

static void set_granules(void *opaque, size_t first, size_t pages)
{
    uint8_t *bits = opaque;

    for (size_t i = first / WIRE_GRANULE_PAGES; i <= (first + pages - 1) / WIRE_GRANULE_PAGES; i++)
        bits[i / 8] |= (uint8_t)(1 << i % 8);
}

uint8_t *page_map_granules(const struct page_map *map, size_t region, size_t *size)
{
    uint8_t *bits;

    *size = (map->pages[region] + 8 * WIRE_GRANULE_PAGES - 1) / (8 * WIRE_GRANULE_PAGES);
    bits = calloc(*size, 1);
    if (bits)
        page_for_present(&map->regions[region], set_granules, bits);
    return bits;
}

static void set_present(void *opaque, size_t first, size_t pages)
{
    bitmap_set_range(opaque, first, pages);
}

uint64_t page_set_fill_present(struct page_set *set, const struct page_map *map)
{
    for (size_t i = 0; i < map->count; i++)
        page_for_present(&map->regions[i], set_present, set->bits[i]);
    return page_set_count(set, map);
}

uint64_t page_counts_sum(const struct page_counts *counts)
{
    uint64_t sum = counts->raw + counts->zero;

    for (size_t i = 0; i < FERRY_ENCODINGS; i++)
        sum += counts->encoded[i].pages;
    return sum;
}

void page_batch_clear(struct page_batch *batch)
{
    batch->count = 0;
    batch->iov_count = 2;
    batch->raw = 0;
    batch->zero = 0;
}

bool page_batch_has_room(const struct page_batch *batch)
{
    return batch->raw < WIRE_BATCH_PAGES_MAX && batch->count < WIRE_RUNS_MAX;
}

bool page_batch_join(struct page_batch *batch, size_t region, size_t page, enum wire_page_kind kind)
{
    struct wire_run *last = batch->count > 0 ? &batch->runs[batch->count - 1] : NULL;
    bool joins = last && last->region == region && last->kind == kind && last->pages < UINT16_MAX &&
                 (size_t)last->first + last->pages == page;

    if (kind == WIRE_PAGE_ZERO)
        batch->zero++;
    else
        batch->raw++;
    if (joins)
        last->pages++;
    else
        batch->runs[batch->count++] = (struct wire_run){
            .region = (uint8_t)region, .kind = (uint8_t)kind, .pages = 1, .first = (uint32_t)page};
    return joins;
}

bool page_batch_add_page(struct page_batch *batch, const struct page_map *map, size_t region, size_t page)
{
    uint8_t *address = map->regions[region].host_ptr + page * FERRY_PAGE_SIZE;

    if (!page_batch_has_room(batch))
        return false;
    if (page_is_zero(address))
        page_batch_join(batch, region, page, WIRE_PAGE_ZERO);
    else if (page_batch_join(batch, region, page, WIRE_PAGE_RAW))
        batch->iov[batch->iov_count - 1].iov_len += FERRY_PAGE_SIZE;
    else
        batch->iov[batch->iov_count++] = (struct iovec){address, FERRY_PAGE_SIZE};
    return true;
}

struct checksum {
    XXH3_state_t *state;
    const struct ferry_ram_region *region;
    page_map_tick *tick;
    void *opaque;
    uint64_t looked_at; /* pages */
    int result;
    struct ferry_error *err;
};

static void checksum_present(void *opaque, size_t first, size_t pages)
{
    struct checksum *checksum = opaque;

    for (size_t page = first; page < first + pages && checksum->result == 0; page++) {
        const uint8_t *data = checksum->region->host_ptr + page * FERRY_PAGE_SIZE;
        uint64_t number = page;

        if (checksum->looked_at++ % CHECKSUM_TICK_PAGES == 0)
            checksum->result = checksum->tick(checksum->opaque, checksum->err);
        if (page_is_zero(data))
            continue;
        XXH3_64bits_update(checksum->state, &number, sizeof(number));
        XXH3_64bits_update(checksum->state, data, FERRY_PAGE_SIZE);
    }
}

/* Regions in the order of their addresses, which both sides agree on. */
int page_map_checksum(const struct page_map *map, page_map_tick *tick, void *opaque, uint64_t *checksum,
                      struct ferry_error *err)
{
    struct checksum walk = {.state = XXH3_createState(), .tick = tick, .opaque = opaque, .err = err};
    bool done[FERRY_REGIONS_MAX] = {false};

    if (!walk.state)
        return error_set(err, -ENOMEM, "out of memory for a memory checksum");
    XXH3_64bits_reset(walk.state);
    for (size_t n = 0; n < map->count; n++) {
        size_t next = map->count;

        for (size_t i = 0; i < map->count; i++) {
            if (!done[i] &&
                (next == map->count || map->regions[i].guest_addr < map->regions[next].guest_addr))
                next = i;
        }
        done[next] = true;
        walk.region = &map->regions[next];
        page_for_present(walk.region, checksum_present, &walk);
    }
    *checksum = XXH3_64bits_digest(walk.state);
    XXH3_freeState(walk.state);
    return walk.result;
}
