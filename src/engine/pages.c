#include "engine/pages.h"

#include "base/bitmap.h"
#include "base/error.h"

#include <errno.h>
#include <isa-l.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

/* Runs of so many pages are faulted in by one call before they are read. */
#define POPULATE_PAGES 8
/* Of a checksum, between two ticks: milliseconds. */
#define CHECKSUM_TICK_PAGES 4096

static bool page_is_zero(const uint8_t *page)
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

/* Calls for each range of a region that is no hole. Without a memfd, or when the file system cannot tell,
 * that is the whole region. */
static void for_present(const struct ferry_ram_region *region,
                        void (*function)(void *opaque, size_t first, size_t pages), void *opaque)
{
    uint64_t at = 0;

    while (at < region->size) {
        off_t data = region->memfd >= 0 ? lseek(region->memfd, (off_t)at, SEEK_DATA) : (off_t)at;

        if (data < 0 && errno == ENXIO)
            return;
        if (data < 0)
            data = (off_t)at;

        off_t hole = region->memfd >= 0 ? lseek(region->memfd, data, SEEK_HOLE) : (off_t)region->size;

        if ((uint64_t)data >= region->size)
            return;
        if (hole <= data || (uint64_t)hole > region->size)
            hole = (off_t)region->size;

        size_t first = (size_t)data / FERRY_PAGE_SIZE;
        size_t end = ((size_t)hole + FERRY_PAGE_SIZE - 1) / FERRY_PAGE_SIZE;

        function(opaque, first, end - first);
        at = (uint64_t)end * FERRY_PAGE_SIZE;
    }
}

static void set_present(void *opaque, size_t first, size_t pages)
{
    bitmap_set_range(opaque, first, pages);
}

uint64_t page_set_fill_present(struct page_set *set, const struct page_map *map)
{
    for (size_t i = 0; i < map->count; i++)
        for_present(&map->regions[i], set_present, set->bits[i]);
    return page_set_count(set, map);
}

void page_batch_clear(struct page_batch *batch)
{
    batch->count = 0;
    batch->iov_count = 2;
    batch->raw = 0;
    batch->zero = 0;
}

/* False when it does not fit any more. */
static bool batch_add_page(struct page_batch *batch, const struct page_map *map, size_t region, size_t page)
{
    uint8_t *address = map->regions[region].host_ptr + page * FERRY_PAGE_SIZE;
    uint8_t kind = page_is_zero(address) ? WIRE_PAGE_ZERO : WIRE_PAGE_RAW;
    struct wire_run *last = batch->count > 0 ? &batch->runs[batch->count - 1] : NULL;
    bool joins = last && last->region == region && last->kind == kind && last->pages < UINT16_MAX &&
                 (size_t)last->first + last->pages == page;

    if (kind == WIRE_PAGE_RAW && batch->raw == WIRE_BATCH_PAGES_MAX)
        return false;
    if (!joins && batch->count == WIRE_RUNS_MAX)
        return false;
    if (kind == WIRE_PAGE_RAW) {
        if (joins)
            batch->iov[batch->iov_count - 1].iov_len += FERRY_PAGE_SIZE;
        else
            batch->iov[batch->iov_count++] = (struct iovec){address, FERRY_PAGE_SIZE};
        batch->raw++;
    } else {
        batch->zero++;
    }
    if (joins)
        last->pages++;
    else
        batch->runs[batch->count++] =
            (struct wire_run){.region = (uint8_t)region, .kind = kind, .pages = 1, .first = (uint32_t)page};
    return true;
}

size_t page_batch_add(struct page_batch *batch, const struct page_map *map, const struct page_set *set,
                      size_t region, size_t first, size_t end)
{
    const uint64_t *bits = set->bits[region];

    for (size_t page = bitmap_next_set(bits, end, first); page < end;
         page = bitmap_next_set(bits, end, page + 1)) {
        if (!batch_add_page(batch, map, region, page))
            return page;
    }
    return end;
}

/* Sets or clears the bits of a run; other threads may be at other bits of the same words. Returns whether any
 * was set. */
static bool written_change(uint64_t *bits, size_t first, size_t pages, bool set)
{
    bool any = false;

    while (pages > 0) {
        size_t shift = first % 64;
        size_t n = 64 - shift < pages ? 64 - shift : pages;
        uint64_t mask = (n == 64 ? ~UINT64_C(0) : (UINT64_C(1) << n) - 1) << shift;
        uint64_t *word = &bits[first / 64];
        uint64_t before =
            set ? __atomic_fetch_or(word, mask, __ATOMIC_RELAXED) : __atomic_load_n(word, __ATOMIC_RELAXED);

        if (!set && (before & mask))
            __atomic_fetch_and(word, ~mask, __ATOMIC_RELAXED);
        any |= (before & mask) != 0;
        first += n;
        pages -= n;
    }
    return any;
}

struct zero_present {
    uint8_t *host_ptr;
};

static void zero_present(void *opaque, size_t first, size_t pages)
{
    uint8_t *page = ((struct zero_present *)opaque)->host_ptr + first * FERRY_PAGE_SIZE;

    for (; pages > 0; pages--, page += FERRY_PAGE_SIZE) {
        if (!page_is_zero(page))
            memset(page, 0, FERRY_PAGE_SIZE);
    }
}

static int place_match(struct page_place *place, size_t index, const struct wire_region *theirs,
                       struct ferry_error *err)
{
    const struct page_map *map = place->map;

    for (size_t i = 0; i < map->count; i++) {
        const struct ferry_ram_region *ours = &map->regions[i];

        if (strcmp(ours->name, theirs->name) != 0)
            continue;
        if (ours->size != theirs->size || ours->guest_addr != theirs->guest_addr)
            return error_set(
                err, -EINVAL, "memory region %s is %llu bytes at 0x%llx at the source, %llu at 0x%llx here",
                ours->name, (unsigned long long)theirs->size, (unsigned long long)theirs->guest_addr,
                (unsigned long long)ours->size, (unsigned long long)ours->guest_addr);
        for (size_t j = 0; j < index; j++) {
            if (place->region_of[j] == i)
                return error_set(err, -EINVAL, "memory region %s was sent twice", ours->name);
        }
        place->region_of[index] = i;
        return 0;
    }
    return error_set(err, -EINVAL, "the source's guest has a memory region that is not here");
}

int page_place_init(struct page_place *place, const struct page_map *map, const struct wire_region *regions,
                    size_t count, struct ferry_error *err)
{
    *place = (struct page_place){.map = map, .region_count = count};
    if (count != map->count)
        return error_set(err, -EINVAL, "the source's guest has %zu memory regions, the one here %zu", count,
                         map->count);
    for (size_t i = 0; i < count; i++) {
        int result = place_match(place, i, &regions[i], err);

        if (result < 0)
            return result;
    }
    return 0;
}

int page_place_prepare(struct page_place *place, struct ferry_error *err)
{
    const struct page_map *map = place->map;

    for (size_t i = 0; i < map->count; i++) {
        struct zero_present zero = {.host_ptr = map->regions[i].host_ptr};

        if (map->regions[i].memfd >= 0)
            for_present(&map->regions[i], zero_present, &zero);
    }
    return page_set_init(&place->written, map, err);
}

void page_place_free(struct page_place *place)
{
    page_set_free(&place->written);
}

int page_place_runs(struct page_place *place, const struct wire_run *runs, size_t count, struct iovec *iov,
                    int *iov_count, struct ferry_error *err)
{
    *iov_count = 0;
    for (size_t i = 0; i < count; i++) {
        const struct wire_run *run = &runs[i];
        size_t region = run->region < place->region_count ? place->region_of[run->region] : 0;
        size_t pages = place->map->pages[region];

        if (run->region >= place->region_count || run->first >= pages || run->pages > pages - run->first)
            return error_set(err, -EBADMSG, "PAGES frame for pages outside of memory (region %u, page %u)",
                             run->region, run->first);

        uint8_t *address = place->map->regions[region].host_ptr + (size_t)run->first * FERRY_PAGE_SIZE;
        size_t size = (size_t)run->pages * FERRY_PAGE_SIZE;
        uint64_t *written = place->written.bits[region];

        if (run->kind == WIRE_PAGE_RAW) {
            /* First touch page by page, inside the read, costs half as much again. */
            if (!written_change(written, run->first, run->pages, true) && run->pages >= POPULATE_PAGES)
                madvise(address, size, MADV_POPULATE_WRITE);
            iov[(*iov_count)++] = (struct iovec){.iov_base = address, .iov_len = size};
        } else {
            for (size_t page = 0; page < run->pages; page++) {
                if (written_change(written, run->first + page, 1, false))
                    memset(address + page * FERRY_PAGE_SIZE, 0, FERRY_PAGE_SIZE);
            }
        }
    }
    return 0;
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
        for_present(walk.region, checksum_present, &walk);
    }
    *checksum = XXH3_64bits_digest(walk.state);
    XXH3_freeState(walk.state);
    return walk.result;
}
