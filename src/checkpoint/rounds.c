#include "checkpoint/writer_parts.h"

#include "base/bitmap.h"
#include "base/error.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <zstd.h>

/* So many writes are under way at a time. */
#define WORKERS_MAX 4
/* Of a limited rate. */
#define PIECES_PER_S 20
/* The fastest level: a disk is not slow enough for more. */
#define ZSTD_LEVEL 1

struct worker {
    struct ferry_checkpoint_writer *writer;
    struct thread thread;
    /* Only for compression. */
    ZSTD_CCtx *context;
    uint8_t *plain;  /* a copy of a block, which does not change */
    uint8_t *packed; /* whole pages */
};

static uint64_t *hashes_of(const struct ferry_checkpoint_writer *writer, size_t region)
{
    return (uint64_t *)writer->regions[region].index;
}

static uint32_t *lengths_of(const struct ferry_checkpoint_writer *writer, size_t region)
{
    return (uint32_t *)(writer->regions[region].index +
                        checkpoint_index_hashes_size(writer->map.pages[region]));
}

/* ---- layout ---- */

int rounds_prepare(struct ferry_checkpoint_writer *writer, struct ferry_error *err)
{
    const struct page_map *map = &writer->map;
    uint64_t at = CHECKPOINT_RAM_ALIGN;

    for (size_t i = 0; i < map->count; i++) {
        writer->regions[i].file_offset = at;
        at = checkpoint_align(at + map->regions[i].size, CHECKPOINT_RAM_ALIGN);
    }
    at = writer->regions[map->count - 1].file_offset + map->regions[map->count - 1].size;
    for (size_t i = 0; i < map->count; i++) {
        struct writer_region *region = &writer->regions[i];
        void *index;

        region->index_offset = at;
        region->index_size = (size_t)checkpoint_index_size(map->pages[i], writer->options.zstd);
        index = mmap(NULL, region->index_size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (index == MAP_FAILED)
            return error_set(err, -ENOMEM, "out of memory for the index of a checkpoint");
        region->index = index;
        at += region->index_size;
    }
    writer->memory_end = at;
    return output_resize(&writer->output, at, err);
}

void rounds_free(struct ferry_checkpoint_writer *writer)
{
    for (size_t i = 0; i < writer->map.count; i++) {
        if (writer->regions[i].index)
            munmap(writer->regions[i].index, writer->regions[i].index_size);
    }
}

void rounds_count(const struct ferry_checkpoint_writer *writer, uint64_t *pages, uint64_t *zero)
{
    *pages = 0;
    for (size_t i = 0; i < writer->map.count; i++) {
        const uint64_t *hashes = hashes_of(writer, i);

        for (size_t page = 0; page < writer->map.pages[i]; page++)
            *pages += hashes[page] != 0;
    }
    *zero = writer->map.total - *pages;
}

/* ---- what is to be written ---- */

/* Only whole blocks can be compressed. */
static void widen_to_blocks(struct ferry_checkpoint_writer *writer)
{
    const uint64_t block = (UINT64_C(1) << CHECKPOINT_BLOCK_PAGES) - 1;

    for (size_t i = 0; i < writer->map.count; i++) {
        uint64_t *bits = writer->set.bits[i];
        size_t words = bitmap_words(writer->map.pages[i]);
        size_t tail = writer->map.pages[i] % 64;

        for (size_t word = 0; word < words; word++) {
            for (unsigned shift = 0; bits[word] && shift < 64; shift += CHECKPOINT_BLOCK_PAGES) {
                if (bits[word] >> shift & block)
                    bits[word] |= block << shift;
            }
        }
        if (tail)
            bits[words - 1] &= (UINT64_C(1) << tail) - 1;
    }
}

int rounds_fetch(struct ferry_checkpoint_writer *writer, uint64_t *pages, struct ferry_error *err)
{
    for (size_t i = 0; i < writer->map.count; i++) {
        int result = writer->ops->dirty_fetch(writer->guest, i, writer->set.bits[i], err);

        if (result < 0)
            return result;
    }
    if (writer->options.zstd)
        widen_to_blocks(writer);
    *pages = page_set_count(&writer->set, &writer->map);
    return 0;
}

/* ---- one range of pages ---- */

/* With a limit in pieces that do not take long, so that all workers get their turn. */
static size_t piece_of(const struct ferry_checkpoint_writer *writer, size_t size)
{
    uint64_t piece = pace_limit(&writer->pace) / PIECES_PER_S / FERRY_PAGE_SIZE * FERRY_PAGE_SIZE;

    if (piece < FERRY_PAGE_SIZE)
        piece = pace_limit(&writer->pace) ? FERRY_PAGE_SIZE : size;
    return piece < size ? (size_t)piece : size;
}

static int write_paced(struct worker *worker, const uint8_t *data, size_t size, uint64_t offset,
                       struct ferry_error *err)
{
    struct ferry_checkpoint_writer *writer = worker->writer;
    int result = 0;

    while (size > 0 && result == 0) {
        size_t piece = piece_of(writer, size);

        for (size_t paid = 0, taken; paid < piece; paid += taken) {
            if (pace_take(&writer->pace, piece - paid, &taken, err) < 0)
                return writer_check(writer, err) < 0 ? writer_check(writer, NULL) : -EINTR;
        }
        result = output_write(&writer->output, data, piece, offset, err);
        data += piece;
        offset += piece;
        size -= piece;
    }
    return result;
}

static int write_plain(struct worker *worker, size_t region, size_t first, size_t count, const uint8_t *data,
                       struct ferry_error *err)
{
    struct ferry_checkpoint_writer *writer = worker->writer;
    uint64_t offset = writer->regions[region].file_offset + first * FERRY_PAGE_SIZE;
    uint64_t *hashes = hashes_of(writer, region) + first;
    size_t run = 0; /* pages before this one that are not written yet */
    int result = 0;

    for (size_t i = 0; i <= count && result == 0; i++) {
        const uint8_t *page = data + i * FERRY_PAGE_SIZE;
        bool zero = i < count && page_is_zero(page);

        if (i < count && !zero) {
            hashes[i] = htole64(checkpoint_page_hash(page));
            run++;
            continue;
        }
        if (run > 0)
            result = write_paced(worker, page - run * FERRY_PAGE_SIZE, run * FERRY_PAGE_SIZE,
                                 offset + (i - run) * FERRY_PAGE_SIZE, err);
        run = 0;
        if (i < count && hashes[i]) {
            output_punch(&writer->output, offset + i * FERRY_PAGE_SIZE, FERRY_PAGE_SIZE);
            hashes[i] = 0;
        }
    }
    return result;
}

static int write_block(struct worker *worker, size_t region, size_t first, size_t count, const uint8_t *data,
                       struct ferry_error *err)
{
    struct ferry_checkpoint_writer *writer = worker->writer;
    uint64_t offset = writer->regions[region].file_offset + first * FERRY_PAGE_SIZE;
    uint64_t *hashes = hashes_of(writer, region) + first;
    uint32_t *length = lengths_of(writer, region) + first / CHECKPOINT_BLOCK_PAGES;
    size_t size = count * FERRY_PAGE_SIZE, packed = 0;
    size_t was = (size_t)checkpoint_align(le32toh(*length), FERRY_PAGE_SIZE), now;
    const uint8_t *out = worker->plain;
    bool empty = true;

    memcpy(worker->plain, data, size);
    for (size_t i = 0; i < count; i++) {
        const uint8_t *page = worker->plain + i * FERRY_PAGE_SIZE;

        hashes[i] = page_is_zero(page) ? 0 : htole64(checkpoint_page_hash(page));
        empty = empty && hashes[i] == 0;
    }
    if (!empty) {
        packed = ZSTD_compressCCtx(worker->context, worker->packed, size, worker->plain, size, ZSTD_LEVEL);
        if (ZSTD_isError(packed) || checkpoint_align(packed, FERRY_PAGE_SIZE) >= size) {
            packed = size;
        } else {
            out = worker->packed;
            memset(worker->packed + packed, 0, (size_t)checkpoint_align(packed, FERRY_PAGE_SIZE) - packed);
        }
    }
    *length = htole32((uint32_t)packed);
    now = (size_t)checkpoint_align(packed, FERRY_PAGE_SIZE);
    if (was > now)
        output_punch(&writer->output, offset + now, was - now);
    return now ? write_paced(worker, out, now, offset, err) : 0;
}

static int write_range(struct worker *worker, size_t region, size_t first, size_t count, const uint8_t *data,
                       struct ferry_error *err)
{
    int result = 0;

    if (!worker->writer->options.zstd)
        return write_plain(worker, region, first, count, data, err);
    for (size_t at = 0; at < count && result == 0; at += CHECKPOINT_BLOCK_PAGES) {
        size_t block = count - at < CHECKPOINT_BLOCK_PAGES ? count - at : CHECKPOINT_BLOCK_PAGES;

        result = write_block(worker, region, first + at, block, data + at * FERRY_PAGE_SIZE, err);
    }
    return result;
}

/* ---- workers ---- */

/* Takes pages of zeros out of the set. Whole words of it: no other thread has to do with them. */
static void scan_span(struct ferry_checkpoint_writer *writer, size_t region, size_t first, size_t end)
{
    uint64_t *bits = writer->set.bits[region];
    const uint8_t *memory = writer->map.regions[region].host_ptr;

    for (size_t page = bitmap_next_set(bits, end, first); page < end;
         page = bitmap_next_set(bits, end, page + 1)) {
        __builtin_prefetch(memory + (page + PAGES_LOOK_AHEAD) * FERRY_PAGE_SIZE);
        if (page_is_zero(memory + page * FERRY_PAGE_SIZE))
            bitmap_clear(bits, page);
    }
}

static int worker_init(struct worker *worker, struct ferry_checkpoint_writer *writer, struct ferry_error *err)
{
    *worker = (struct worker){.writer = writer};
    if (!writer->options.zstd)
        return 0;
    worker->context = ZSTD_createCCtx();
    worker->plain = aligned_alloc(FERRY_PAGE_SIZE, CHECKPOINT_BLOCK_SIZE);
    worker->packed = aligned_alloc(FERRY_PAGE_SIZE, CHECKPOINT_BLOCK_SIZE);
    if (!worker->context || !worker->plain || !worker->packed)
        return error_set(err, -ENOMEM, "out of memory for compressing a checkpoint");
    return 0;
}

static void worker_free(struct worker *worker)
{
    ZSTD_freeCCtx(worker->context);
    free(worker->plain);
    free(worker->packed);
}

/* Of the region, what of the set is in [first, end). */
static int write_span(struct worker *worker, size_t region, size_t first, size_t end, struct ferry_error *err)
{
    struct ferry_checkpoint_writer *writer = worker->writer;
    const uint64_t *bits = writer->set.bits[region];
    int result = 0;

    for (size_t from = bitmap_next_set(bits, end, first); from < end && result == 0;) {
        size_t to = bitmap_next_clear(bits, end, from);

        result = write_range(worker, region, from, to - from,
                             writer->map.regions[region].host_ptr + from * FERRY_PAGE_SIZE, err);
        __atomic_fetch_sub(&writer->round_left, to - from, __ATOMIC_RELAXED);
        __atomic_fetch_add(&writer->pages_written, to - from, __ATOMIC_RELAXED);
        from = bitmap_next_set(bits, end, to);
    }
    return result;
}

/* False: there are no more. */
static bool next_span(struct ferry_checkpoint_writer *writer, size_t *region, size_t *first, size_t *end)
{
    uint64_t span = __atomic_fetch_add(&writer->span_next, 1, __ATOMIC_RELAXED);

    for (*region = 0; *region < writer->map.count; (*region)++) {
        size_t pages = writer->map.pages[*region];
        uint64_t spans = (pages + CHECKPOINT_SPAN_PAGES - 1) / CHECKPOINT_SPAN_PAGES;

        if (span < spans) {
            *first = (size_t)span * CHECKPOINT_SPAN_PAGES;
            *end = pages - *first < CHECKPOINT_SPAN_PAGES ? pages : *first + CHECKPOINT_SPAN_PAGES;
            return true;
        }
        span -= spans;
    }
    return false;
}

static void *worker_main(void *opaque)
{
    struct worker *worker = opaque;
    struct ferry_checkpoint_writer *writer = worker->writer;
    struct ferry_error err = {0};
    size_t region, first, end;
    int result = 0;

    if (writer->background)
        thread_set_background(true);
    while (result == 0 && next_span(writer, &region, &first, &end)) {
        result = writer_check(writer, &err);
        if (result == 0 && writer->scanning)
            scan_span(writer, region, first, end);
        else if (result == 0)
            result = write_span(worker, region, first, end, &err);
    }
    if (result < 0)
        writer_fail(writer, result, &err);
    return NULL;
}

int rounds_write(struct ferry_checkpoint_writer *writer, struct ferry_error *err)
{
    struct worker workers[WORKERS_MAX];
    size_t count = 0;
    int result = 0;

    __atomic_store_n(&writer->span_next, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&writer->round_left, page_set_count(&writer->set, &writer->map), __ATOMIC_RELAXED);
    while (count < WORKERS_MAX && result == 0) {
        result = worker_init(&workers[count], writer, err);
        if (result == 0)
            result = thread_start(&workers[count].thread, THREAD_MIGRATION, "ferry-ckpt", worker_main,
                                  &workers[count], err);
        count++;
    }
    if (result < 0)
        writer_fail(writer, result, err);
    for (size_t i = 0; i < count; i++) {
        thread_join(&workers[i].thread);
        worker_free(&workers[i]);
    }
    return writer_check(writer, err);
}

int rounds_scan(struct ferry_checkpoint_writer *writer, struct ferry_error *err)
{
    int result;

    writer->scanning = true;
    result = rounds_write(writer, err);
    writer->scanning = false;
    return result;
}

int rounds_allocate(struct ferry_checkpoint_writer *writer, struct ferry_error *err)
{
    int result = 0;

    for (size_t i = 0; i < writer->map.count && result == 0; i++) {
        const uint64_t *bits = writer->set.bits[i];
        size_t pages = writer->map.pages[i], to;

        for (size_t from = bitmap_next_set(bits, pages, 0); from < pages && result == 0;) {
            size_t next = from;

            /* Over small gaps, which are not worth a hole. */
            do {
                to = bitmap_next_clear(bits, pages, next);
                next = bitmap_next_set(bits, pages, to);
            } while (next < pages && next - to < CHECKPOINT_BLOCK_PAGES);
            result = output_allocate(&writer->output, writer->regions[i].file_offset + from * FERRY_PAGE_SIZE,
                                     (to - from) * FERRY_PAGE_SIZE, err);
            from = next;
        }
    }
    return result;
}

/* ---- pages that were copied ---- */

void rounds_copy(const struct ferry_checkpoint_writer *writer, struct writer_copy *copy)
{
    copy->pages = 0;
    for (size_t i = 0; i < writer->map.count; i++) {
        const uint64_t *bits = writer->set.bits[i];
        size_t pages = writer->map.pages[i];

        for (size_t from = bitmap_next_set(bits, pages, 0); from < pages;) {
            size_t to = bitmap_next_clear(bits, pages, from);

            memcpy(copy->data + copy->pages * FERRY_PAGE_SIZE,
                   writer->map.regions[i].host_ptr + from * FERRY_PAGE_SIZE, (to - from) * FERRY_PAGE_SIZE);
            copy->pages += to - from;
            from = bitmap_next_set(bits, pages, to);
        }
    }
}

int rounds_write_copy(struct ferry_checkpoint_writer *writer, const struct writer_copy *copy,
                      struct ferry_error *err)
{
    const uint8_t *data = copy->data;
    struct worker worker;
    int result = worker_init(&worker, writer, err);

    for (size_t i = 0; i < writer->map.count; i++) {
        const uint64_t *bits = writer->set.bits[i];
        size_t pages = writer->map.pages[i];

        for (size_t from = bitmap_next_set(bits, pages, 0); from < pages && result == 0;) {
            size_t to = bitmap_next_clear(bits, pages, from);

            result = write_range(&worker, i, from, to - from, data, err);
            data += (to - from) * FERRY_PAGE_SIZE;
            __atomic_fetch_add(&writer->pages_written, to - from, __ATOMIC_RELAXED);
            if (result == 0)
                result = writer_check(writer, err);
            from = bitmap_next_set(bits, pages, to);
        }
    }
    worker_free(&worker);
    return result;
}
