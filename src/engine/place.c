#include "engine/place.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Runs of so many pages are faulted in by one call. */
#define POPULATE_PAGES 8

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
            page_for_present(&map->regions[i], zero_present, &zero);
    }
    for (size_t i = 0; i < map->count; i++) {
        place->faulted[i] = calloc(map->pages[i] / PAGES_CHUNK + 1, 1);
        if (!place->faulted[i])
            return error_set(err, -ENOMEM, "out of memory for a record of %zu pages", map->pages[i]);
    }
    return page_set_init(&place->written, map, err);
}

void page_place_free(struct page_place *place)
{
    page_set_free(&place->written);
    for (size_t i = 0; i < FERRY_REGIONS_MAX; i++)
        free(place->faulted[i]);
}

bool page_place_claim(struct page_place *place, size_t region, size_t chunk)
{
    uint8_t *faulted = &place->faulted[region][chunk];

    return !__atomic_load_n(faulted, __ATOMIC_RELAXED) && !__atomic_exchange_n(faulted, 1, __ATOMIC_RELAXED);
}

void page_place_fault_in(struct page_place *place, size_t region, size_t first, size_t pages)
{
    uint8_t *memory = place->map->regions[region].host_ptr;

    while (pages > 0) {
        size_t chunk = first / PAGES_CHUNK;
        size_t here = (chunk + 1) * PAGES_CHUNK - first;
        bool wanted;

        if (here > pages)
            here = pages;
        wanted = here == PAGES_CHUNK ? page_place_claim(place, region, chunk)
                                     : !__atomic_load_n(&place->faulted[region][chunk], __ATOMIC_RELAXED);
        /* Should it fail, the write that follows faults the pages in, or says what is wrong. */
        if (wanted && here >= POPULATE_PAGES)
            madvise(memory + first * FERRY_PAGE_SIZE, here * FERRY_PAGE_SIZE, MADV_POPULATE_WRITE);
        first += here;
        pages -= here;
    }
}

uint8_t *page_place_address(const struct page_place *place, const struct wire_run *run)
{
    return place->map->regions[place->region_of[run->region]].host_ptr + (size_t)run->first * FERRY_PAGE_SIZE;
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

        uint8_t *address = page_place_address(place, run);
        size_t size = (size_t)run->pages * FERRY_PAGE_SIZE;
        uint64_t *written = place->written.bits[region];

        if (run->kind != WIRE_PAGE_ZERO) {
            if (!written_change(written, run->first, run->pages, true))
                page_place_fault_in(place, region, run->first, run->pages);
            if (run->kind == WIRE_PAGE_RAW)
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
