#include "engine/sent.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <xxhash.h>

/* A tag: the page's number plus one in the low bits, above it the round of the copy. */
#define TAG_ROUND_SHIFT 40
#define TAG_PAGE        ((UINT64_C(1) << TAG_ROUND_SHIFT) - 1)
#define TAG_TAKEN       UINT64_MAX
/* A copy may be replaced by another page's when it was not used for so many rounds. */
#define KEEP_ROUNDS 2

int sent_init(struct sent *sent, const struct page_map *map, uint64_t cache_bytes, struct ferry_error *err)
{
    size_t pages = 0;
    size_t slots = 1;

    *sent = (struct sent){.map = map};
    if (getrandom(&sent->seed, sizeof(sent->seed), GRND_NONBLOCK) != sizeof(sent->seed))
        return error_set_errno(err, -errno, "cannot make a seed");
    for (size_t i = 0; i < map->count; i++) {
        sent->first[i] = pages;
        pages += map->pages[i];
        /* Stays untouched, and so costs nothing, until a page is sent from a copy. */
        sent->hash[i] = calloc(map->pages[i], sizeof(uint64_t));
        if (!sent->hash[i]) {
            sent_free(sent);
            return error_set(err, -ENOMEM, "out of memory for hashes of %zu pages", map->pages[i]);
        }
    }
    while (slots * 2 * FERRY_PAGE_SIZE <= cache_bytes && slots < pages)
        slots *= 2;
    if (slots * FERRY_PAGE_SIZE > cache_bytes)
        return 0;
    sent->tags = calloc(slots, sizeof(uint64_t));
    sent->copies = mmap(NULL, slots * FERRY_PAGE_SIZE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (sent->copies == MAP_FAILED)
        sent->copies = NULL;
    sent->slots = slots;
    if (!sent->tags || !sent->copies) {
        sent_free(sent);
        return error_set(err, -ENOMEM, "out of memory for a cache of %zu pages", slots);
    }
    /* As guest memory itself: not for a core dump. */
    madvise(sent->copies, slots * FERRY_PAGE_SIZE, MADV_DONTDUMP);
    return 0;
}

void sent_free(struct sent *sent)
{
    for (size_t i = 0; i < FERRY_REGIONS_MAX; i++)
        free(sent->hash[i]);
    free(sent->tags);
    if (sent->copies)
        munmap(sent->copies, sent->slots * FERRY_PAGE_SIZE);
    *sent = (struct sent){0};
}

uint64_t sent_hash(const struct sent *sent, const uint8_t data[static FERRY_PAGE_SIZE])
{
    uint64_t hash = XXH3_64bits_withSeed(data, FERRY_PAGE_SIZE, sent->seed);

    return hash ? hash : 1;
}

bool sent_same(const struct sent *sent, size_t region, size_t page, uint64_t hash)
{
    return sent->hash[region][page] == hash;
}

void sent_record(struct sent *sent, size_t region, size_t page, uint64_t hash)
{
    sent->hash[region][page] = hash;
}

void sent_forget(struct sent *sent, size_t region, size_t page)
{
    size_t number = sent->first[region] + page;
    uint64_t *tag = sent->slots ? &sent->tags[number & (sent->slots - 1)] : NULL;

    if (sent->hash[region][page] == 0)
        return; /* then no copy of it is in the cache either */
    sent->hash[region][page] = 0;
    if (!tag)
        return;

    uint64_t found = __atomic_load_n(tag, __ATOMIC_RELAXED);

    /* Should another thread have the slot, it overwrites it. */
    if (found != TAG_TAKEN && (found & TAG_PAGE) == number + 1)
        __atomic_compare_exchange_n(tag, &found, 0, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

uint8_t *sent_take(struct sent *sent, size_t region, size_t page, uint32_t round, bool *hit)
{
    size_t number = sent->first[region] + page;
    size_t slot = number & (sent->slots - 1);
    uint64_t found;

    if (sent->slots == 0)
        return NULL;
    found = __atomic_load_n(&sent->tags[slot], __ATOMIC_RELAXED);
    *hit = (found & TAG_PAGE) == number + 1;
    if (found == TAG_TAKEN ||
        (!*hit && found != 0 && (uint32_t)(found >> TAG_ROUND_SHIFT) + KEEP_ROUNDS > round))
        return NULL;
    if (!__atomic_compare_exchange_n(&sent->tags[slot], &found, TAG_TAKEN, false, __ATOMIC_ACQUIRE,
                                     __ATOMIC_RELAXED))
        return NULL;
    return sent->copies + slot * FERRY_PAGE_SIZE;
}

void sent_put(struct sent *sent, size_t region, size_t page, uint32_t round)
{
    size_t number = sent->first[region] + page;
    uint64_t tag = (uint64_t)(number + 1) | (uint64_t)(round & 0xffffff) << TAG_ROUND_SHIFT;

    __atomic_store_n(&sent->tags[number & (sent->slots - 1)], tag, __ATOMIC_RELEASE);
}
