#include "checkpoint/reader.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/thread.h"
#include "engine/pages.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* So many reads are under way at a time. */
#define WORKERS_MAX 4

/* All pages of a file: put into a guest's memory, or only looked at. */
struct sweep {
    const struct ferry_checkpoint *checkpoint;
    uint8_t *memory[FERRY_REGIONS_MAX]; /* NULL: only looked at */
    uint64_t span_next;                 /* atomic */
    uint64_t bytes;                     /* atomic */

    pthread_mutex_t lock; /* guards the rest */
    int failure;
    struct ferry_error why;
};

/* False: there are no more. */
static bool next_span(struct sweep *sweep, size_t *region, uint64_t *first, size_t *count)
{
    uint64_t span = __atomic_fetch_add(&sweep->span_next, 1, __ATOMIC_RELAXED);

    for (*region = 0; *region < sweep->checkpoint->directory.region_count; (*region)++) {
        uint64_t pages = checkpoint_region_pages(sweep->checkpoint, *region);
        uint64_t spans = (pages + CHECKPOINT_SPAN_PAGES - 1) / CHECKPOINT_SPAN_PAGES;

        if (span < spans) {
            *first = span * CHECKPOINT_SPAN_PAGES;
            *count =
                pages - *first < CHECKPOINT_SPAN_PAGES ? (size_t)(pages - *first) : CHECKPOINT_SPAN_PAGES;
            return true;
        }
        span -= spans;
    }
    return false;
}

static void sweep_fail(struct sweep *sweep, int code, const struct ferry_error *why)
{
    pthread_mutex_lock(&sweep->lock);
    if (!sweep->failure) {
        sweep->failure = code;
        sweep->why = *why;
    }
    pthread_mutex_unlock(&sweep->lock);
}

static bool sweep_failed(struct sweep *sweep)
{
    bool failed;

    pthread_mutex_lock(&sweep->lock);
    failed = sweep->failure;
    pthread_mutex_unlock(&sweep->lock);
    return failed;
}

static void *sweep_main(void *opaque)
{
    struct sweep *sweep = opaque;
    struct checkpoint_pages pages = {0};
    struct ferry_error err = {0};
    uint8_t *scratch = aligned_alloc(FERRY_PAGE_SIZE, CHECKPOINT_SPAN_SIZE);
    size_t region, count;
    uint64_t first;
    int result = checkpoint_pages_init(&pages, sweep->checkpoint, true, &err);

    if (result == 0 && !scratch)
        result = error_set(&err, -ENOMEM, "out of memory for reading a checkpoint");
    while (result == 0 && !sweep_failed(sweep) && next_span(sweep, &region, &first, &count)) {
        uint8_t *memory = sweep->memory[region];

        result = checkpoint_pages_read(&pages, region, first, count,
                                       memory ? memory + first * FERRY_PAGE_SIZE : scratch, &err);
    }
    __atomic_fetch_add(&sweep->bytes, pages.bytes, __ATOMIC_RELAXED);
    if (result < 0)
        sweep_fail(sweep, result, &err);
    checkpoint_pages_free(&pages);
    free(scratch);
    return NULL;
}

static int sweep_run(struct sweep *sweep, struct ferry_error *err)
{
    struct thread threads[WORKERS_MAX] = {0};
    struct ferry_error why = {0};
    int result = 0;

    pthread_mutex_init(&sweep->lock, NULL);
    for (size_t i = 0; i < WORKERS_MAX && result == 0; i++)
        result = thread_start(&threads[i], THREAD_MIGRATION, "ferry-ckpt", sweep_main, sweep, &why);
    if (result < 0)
        sweep_fail(sweep, result, &why);
    for (size_t i = 0; i < WORKERS_MAX; i++)
        thread_join(&threads[i]);
    pthread_mutex_destroy(&sweep->lock);
    return sweep->failure ? error_set(err, sweep->failure, "%s", sweep->why.text) : 0;
}

int ferry_checkpoint_verify(const struct ferry_checkpoint *checkpoint, struct ferry_error *err)
{
    struct sweep sweep = {.checkpoint = checkpoint};

    return sweep_run(&sweep, err);
}

/* ---- into a guest ---- */

int checkpoint_match(const struct ferry_checkpoint *checkpoint, const struct page_map *map,
                     size_t region_of[static FERRY_REGIONS_MAX], struct ferry_error *err)
{
    const struct checkpoint_directory *directory = &checkpoint->directory;

    if (map->count != directory->region_count)
        return error_set(err, -EINVAL, "checkpoint %s has %zu memory regions, the VM %zu", checkpoint->name,
                         directory->region_count, map->count);
    for (size_t i = 0; i < directory->region_count; i++) {
        const struct ferry_checkpoint_region *region = &directory->regions[i];
        size_t j = 0;

        while (j < map->count && strcmp(map->regions[j].name, region->name) != 0)
            j++;
        if (j == map->count)
            return error_set(err, -EINVAL, "checkpoint %s has a memory region %s, which the VM has not",
                             checkpoint->name, region->name);
        if (map->regions[j].size != region->size || map->regions[j].guest_addr != region->guest_addr)
            return error_set(
                err, -EINVAL,
                "memory region %s has %llu MiB at 0x%llx in checkpoint %s, and %llu MiB at 0x%llx "
                "in the VM",
                region->name, (unsigned long long)region->size >> 20, (unsigned long long)region->guest_addr,
                checkpoint->name, (unsigned long long)map->regions[j].size >> 20,
                (unsigned long long)map->regions[j].guest_addr);
        region_of[i] = j;
    }
    return 0;
}

int checkpoint_load_state(const struct ferry_checkpoint *checkpoint, const struct ferry_guest_ops *ops,
                          void *guest, struct ferry_error *err)
{
    for (size_t i = 0; i < checkpoint->section_count; i++) {
        int result = ops->load_section(guest, &checkpoint->sections[i], err);

        if (result < 0)
            return error_prefix(err, result, "checkpoint %s", checkpoint->name);
    }

    int result = ops->load_finish(guest, err);

    return result < 0 ? error_prefix(err, result, "checkpoint %s", checkpoint->name) : 0;
}

void checkpoint_log(const struct ferry_observer *observer, enum ferry_log_level level, const char *format,
                    ...)
{
    char text[FERRY_ERROR_TEXT_SIZE];
    va_list arguments;

    if (!observer || !observer->log)
        return;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    observer->log(observer->opaque, level, text);
}

int ferry_checkpoint_restore(const struct ferry_checkpoint *checkpoint, const struct ferry_guest_ops *ops,
                             void *guest, const struct ferry_observer *observer,
                             struct ferry_checkpoint_restored *report, struct ferry_error *err)
{
    struct sweep sweep = {.checkpoint = checkpoint};
    size_t region_of[FERRY_REGIONS_MAX];
    struct page_map map;
    uint64_t begin_ns = clock_now_ns(), took_ns;
    int result = page_map_init(&map, ops, guest, err);

    if (result == 0)
        result = checkpoint_match(checkpoint, &map, region_of, err);
    if (result < 0)
        return result;
    for (size_t i = 0; i < map.count; i++)
        sweep.memory[i] = map.regions[region_of[i]].host_ptr;
    result = sweep_run(&sweep, err);
    took_ns = clock_now_ns() - begin_ns;
    if (result == 0)
        result = checkpoint_load_state(checkpoint, ops, guest, err);
    if (result < 0)
        return result;
    if (report)
        *report = (struct ferry_checkpoint_restored){
            .bytes = sweep.bytes, .pages = checkpoint->info.pages, .total_ns = clock_now_ns() - begin_ns};
    checkpoint_log(observer, FERRY_LOG_INFO, "checkpoint: %llu MiB of memory were read from %s in %.1f ms",
                   (unsigned long long)sweep.bytes >> 20, checkpoint->name, (double)took_ns / NS_PER_MS);
    return 0;
}
