#include "engine/prefault.h"

#include "base/bitmap.h"
#include "base/error.h"
#include "base/sparse.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define GRANULES_PER_CHUNK (PAGES_CHUNK / WIRE_GRANULE_PAGES)
#define GRANULE_SIZE       ((size_t)WIRE_GRANULE_PAGES * FERRY_PAGE_SIZE)

void prefault_init(struct prefault *prefault, struct ferry_session *session, struct page_place *place)
{
    *prefault = (struct prefault){.session = session, .place = place};
    pthread_mutex_init(&prefault->lock, NULL);
    thread_cond_init(&prefault->changed);
}

/* Or will say so when there are none left, as hugetlbfs does, instead of waking the OOM killer. */
static bool region_reserved(const struct ferry_ram_region *region)
{
    struct stat status;

    if (sparse_huge_page_size(region->memfd))
        return true;
    return region->memfd >= 0 && fstat(region->memfd, &status) == 0 &&
           (uint64_t)status.st_blocks * 512 >= region->size;
}

int prefault_add(struct prefault *prefault, const struct wire_present *present, struct ferry_error *err)
{
    const struct page_place *place = prefault->place;

    if (present->region >= place->region_count)
        return error_set(err, -EBADMSG, "PRESENT frame for region %u", present->region);

    size_t region = place->region_of[present->region];
    size_t granules = (place->map->pages[region] + WIRE_GRANULE_PAGES - 1) / WIRE_GRANULE_PAGES;

    if (present->size != (granules + 7) / 8)
        return error_set(err, -EBADMSG, "PRESENT frame with %zu bytes for region %u, must be %zu",
                         present->size, present->region, (granules + 7) / 8);
    if (prefault->present[region])
        return error_set(err, -EBADMSG, "PRESENT frame for region %u came twice", present->region);
    prefault->present[region] = bitmap_new(granules);
    if (!prefault->present[region])
        return error_set(err, -ENOMEM, "out of memory for a bitmap of %zu bits", granules);
    if (!region_reserved(&place->map->regions[region]))
        return 0;
    for (size_t i = 0; i < granules; i++) {
        if (present->bits[i / 8] >> i % 8 & 1) {
            bitmap_set(prefault->present[region], i);
            prefault->granules++;
        }
    }
    return 0;
}

/* Granules [first, end) of a region, END being at most all there are. */
static void fault_in_granules(const struct prefault *prefault, size_t region, size_t first, size_t end)
{
    const struct ferry_ram_region *memory = &prefault->place->map->regions[region];
    const uint64_t *present = prefault->present[region];

    for (first = bitmap_next_set(present, end, first); first < end;) {
        size_t gap = bitmap_next_clear(present, end, first);
        size_t offset = first * GRANULE_SIZE;
        size_t size = (gap - first) * GRANULE_SIZE;

        if (size > memory->size - offset)
            size = memory->size - offset;
        madvise(memory->host_ptr + offset, size, MADV_POPULATE_WRITE);
        first = bitmap_next_set(present, end, gap);
    }
}

static void *prefault_main(void *opaque)
{
    struct prefault *prefault = opaque;
    const struct page_map *map = prefault->place->map;

    while (!__atomic_load_n(&prefault->stop, __ATOMIC_RELAXED) &&
           session_check(prefault->session, NULL) == 0) {
        uint64_t chunk = __atomic_fetch_add(&prefault->next, 1, __ATOMIC_RELAXED);
        size_t first, end;

        if (chunk >= map->chunks)
            break;

        size_t region = page_map_chunk(map, chunk, &first, &end);
        size_t granule = first / WIRE_GRANULE_PAGES;
        size_t granules = (end + WIRE_GRANULE_PAGES - 1) / WIRE_GRANULE_PAGES;

        if (prefault->present[region] &&
            bitmap_next_set(prefault->present[region], granules, granule) < granules &&
            page_place_claim(prefault->place, region, first / PAGES_CHUNK))
            fault_in_granules(prefault, region, granule, granules);
    }
    pthread_mutex_lock(&prefault->lock);
    prefault->busy--;
    pthread_cond_broadcast(&prefault->changed);
    pthread_mutex_unlock(&prefault->lock);
    return NULL;
}

void prefault_start(struct prefault *prefault)
{
    size_t wanted = thread_cpus();

    /* A thread for less than some MiB is not worth its start. */
    if (wanted > prefault->granules / (4 * GRANULES_PER_CHUNK) + 1)
        wanted = prefault->granules / (4 * GRANULES_PER_CHUNK) + 1;
    if (wanted > PREFAULT_THREADS_MAX)
        wanted = PREFAULT_THREADS_MAX;
    for (size_t i = 0; i < wanted && prefault->granules > 0; i++) {
        char name[32];

        snprintf(name, sizeof(name), "ferry-fault%zu", i);
        pthread_mutex_lock(&prefault->lock);
        prefault->busy++;
        pthread_mutex_unlock(&prefault->lock);
        if (thread_start(&prefault->threads[i], THREAD_MIGRATION, name, prefault_main, prefault, NULL) < 0) {
            pthread_mutex_lock(&prefault->lock);
            prefault->busy--;
            pthread_mutex_unlock(&prefault->lock);
            break;
        }
    }
}

bool prefault_wait(struct prefault *prefault, uint64_t deadline_ns)
{
    bool in_time = true;

    pthread_mutex_lock(&prefault->lock);
    while (in_time && prefault->busy > 0)
        in_time = thread_cond_wait_until(&prefault->changed, &prefault->lock, deadline_ns);
    in_time = prefault->busy == 0;
    pthread_mutex_unlock(&prefault->lock);
    return in_time;
}

void prefault_close(struct prefault *prefault)
{
    if (!prefault->session)
        return;
    __atomic_store_n(&prefault->stop, true, __ATOMIC_RELAXED);
    for (size_t i = 0; i < PREFAULT_THREADS_MAX; i++)
        thread_join(&prefault->threads[i]);
    for (size_t i = 0; i < FERRY_REGIONS_MAX; i++)
        free(prefault->present[i]);
    pthread_cond_destroy(&prefault->changed);
    pthread_mutex_destroy(&prefault->lock);
    prefault->session = NULL;
}
