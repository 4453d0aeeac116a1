/*
 * Memory that comes while the guest runs.
 *
 *     guest, devices ── touch a page ──▶ userfaultfd ──▶ "ferry-missing": reads its block, maps it
 *                                                    "ferry-fill" (some): block after block, in the
 * background
 *
 * A block (16 pages) is claimed by one thread, which reads it, compares it with the checksums, puts it into
 * the memory's file through a second mapping, then says that it is here, then maps it. So nothing is placed
 * twice, over what the guest has written since, and nothing is seen before it was found right. Who touches a
 * page of a block that another thread has claimed waits for that one; the fault thread is told of each such
 * block.
 */
#include "checkpoint/reader.h"

#include "base/bitmap.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/sparse.h"
#include "base/thread.h"
#include "engine/latency.h"
#include "engine/uffd.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILLERS 3
/* What a background thread claims at a time: longer, and who waits for one of its pages waits longer. */
#define PIECE_BLOCKS 8
#define PIECE_PAGES  (PIECE_BLOCKS * CHECKPOINT_BLOCK_PAGES)
#define FAULTS_MAX   16
/* Faults in blocks that others have claimed. When there are more, no more are taken until one is served. */
#define PENDING_MAX 256

struct pending {
    size_t region;
    uint64_t page;
    uint64_t since_ns;
};

/* A region of the guest, by the file's number. */
struct fill_region {
    uint8_t *memory;
    uint8_t *alias; /* a second mapping, which is not watched */
    int memfd;
    bool huge; /* the memfd has huge pages: the alias costs nothing */
    uint64_t pages;
    uint64_t blocks;
    uint64_t *claimed; /* one bit a block; atomic */
    uint64_t *here;    /* the same */
};

struct ferry_checkpoint_fill {
    struct ferry_checkpoint *checkpoint;
    const struct ferry_guest_ops *ops;
    void *guest;
    struct ferry_observer observer;
    ferry_checkpoint_filled *filled;
    void *opaque;
    struct fill_region regions[FERRY_REGIONS_MAX];
    size_t region_count;
    int uffd;
    int wake_fd;         /* eventfd; readable: a block that somebody waits for is here, or it ends */
    uint64_t piece_next; /* atomic: of all regions' pieces */
    uint64_t left;       /* atomic: blocks that are not here */
    uint64_t blocks;
    bool waiting; /* atomic: faults wait for blocks that others have claimed */
    uint64_t start_ns;
    struct thread fault_thread;
    struct thread fillers[FILLERS];
    struct pending pending[PENDING_MAX]; /* the fault thread's */
    size_t pending_count;

    pthread_mutex_t lock; /* guards the rest */
    bool quit;
    bool loaded; /* the guest's state, too: from now on it may run, and nobody may be let go of */
    bool complete;
    int failure;
    struct ferry_error why;
    struct latency latency;
    uint64_t total_ns;
};

static bool test_bit(const uint64_t *bits, uint64_t bit)
{
    return __atomic_load_n(&bits[bit / 64], __ATOMIC_SEQ_CST) >> bit % 64 & 1;
}

/* Returns whether it was clear. */
static bool set_bit(uint64_t *bits, uint64_t bit)
{
    uint64_t mask = UINT64_C(1) << bit % 64;

    return !(__atomic_fetch_or(&bits[bit / 64], mask, __ATOMIC_SEQ_CST) & mask);
}

/* ---- the end ---- */

static bool fill_ends(struct ferry_checkpoint_fill *fill)
{
    bool ends;

    pthread_mutex_lock(&fill->lock);
    ends = fill->quit || fill->failure || fill->complete;
    pthread_mutex_unlock(&fill->lock);
    return ends;
}

static void forget(struct ferry_checkpoint_fill *fill)
{
    for (size_t i = 0; i < fill->region_count; i++)
        uffd_forget(fill->uffd, fill->regions[i].memory, fill->regions[i].pages * FERRY_PAGE_SIZE);
}

static void fill_fail(struct ferry_checkpoint_fill *fill, int code, const struct ferry_error *why)
{
    bool first, loaded;

    pthread_mutex_lock(&fill->lock);
    first = !fill->failure && !fill->quit;
    loaded = fill->loaded;
    if (first) {
        fill->failure = code;
        fill->why = *why;
    }
    pthread_mutex_unlock(&fill->lock);
    if (!first)
        return;
    /* Whoever loads the guest's state may wait; nothing of it will ever run. */
    if (!loaded) {
        forget(fill);
        return;
    }
    if (fill->ops->hold)
        fill->ops->hold(fill->guest, true, why->text);
    checkpoint_log(&fill->observer, FERRY_LOG_ERROR,
                   "the guest stands still, its memory is not to be had: %s", why->text);
    eventfd_write(fill->wake_fd, 1);
    if (fill->filled)
        fill->filled(fill->opaque);
}

/* Nothing is missing: touching memory costs nothing any more. */
static void fill_complete(struct ferry_checkpoint_fill *fill)
{
    uint64_t median, most, count;

    forget(fill);
    pthread_mutex_lock(&fill->lock);
    fill->complete = true;
    fill->total_ns = clock_now_ns() - fill->start_ns;
    median = latency_quantile(&fill->latency, 500);
    most = fill->latency.max_ns;
    count = fill->latency.count;
    pthread_mutex_unlock(&fill->lock);
    checkpoint_log(
        &fill->observer, FERRY_LOG_INFO,
        "checkpoint: all memory is here after %.1f ms; %llu faults waited %.3f ms (median), at most %.3f "
        "ms",
        (double)fill->total_ns / NS_PER_MS, (unsigned long long)count, (double)median / NS_PER_MS,
        (double)most / NS_PER_MS);
    eventfd_write(fill->wake_fd, 1);
    if (fill->filled)
        fill->filled(fill->opaque);
}

/* ---- blocks into their places ---- */

static int put(const struct fill_region *region, uint64_t page, const uint8_t *data, size_t size,
               struct ferry_error *err)
{
    /* It is rarely worth while to map a small page in the alias, which costs more than to copy it. */
    if (region->huge) {
        memcpy(region->alias + page * FERRY_PAGE_SIZE, data, size);
        return 0;
    }
    for (size_t done = 0; done < size;) {
        ssize_t n = pwrite(region->memfd, data + done, size - done, (off_t)(page * FERRY_PAGE_SIZE + done));

        if (n < 0 && errno != EINTR)
            return error_set_errno(err, -errno, "cannot write guest memory");
        done += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

/* Calls put for what of [first, first + count) is not zero; then says that the blocks are here, and maps
 * them. */
static int place(struct ferry_checkpoint_fill *fill, const struct checkpoint_pages *pages, size_t number,
                 uint64_t first, size_t count, const uint8_t *data, struct ferry_error *err)
{
    struct fill_region *region = &fill->regions[number];
    const uint64_t *hashes = pages->span.hashes + (first - pages->span.first);
    uint64_t blocks = (count + CHECKPOINT_BLOCK_PAGES - 1) / CHECKPOINT_BLOCK_PAGES;
    int result = 0;

    for (int pass = 0; pass < 2 && result == 0; pass++) {
        for (size_t from = 0, to; from < count && result == 0; from = to + 1) {
            for (to = from; to < count && hashes[to];)
                to++;
            if (to == from)
                continue;
            if (pass == 0)
                result = put(region, first + from, data + from * FERRY_PAGE_SIZE,
                             (to - from) * FERRY_PAGE_SIZE, err);
            else
                uffd_map(fill->uffd, region->memory + (first + from) * FERRY_PAGE_SIZE,
                         (to - from) * FERRY_PAGE_SIZE);
        }
        for (uint64_t i = 0; pass == 0 && result == 0 && i < blocks; i++)
            set_bit(region->here, first / CHECKPOINT_BLOCK_PAGES + i);
    }
    if (result < 0)
        return result;
    if (__atomic_load_n(&fill->waiting, __ATOMIC_SEQ_CST))
        eventfd_write(fill->wake_fd, 1);
    if (__atomic_sub_fetch(&fill->left, blocks, __ATOMIC_ACQ_REL) == 0)
        fill_complete(fill);
    return 0;
}

/* Pages [first, first + count), whole blocks that this thread has claimed, of one span. */
static int bring(struct ferry_checkpoint_fill *fill, struct checkpoint_pages *pages, size_t region,
                 uint64_t first, size_t count, uint8_t *scratch, struct ferry_error *err)
{
    int result = checkpoint_pages_read(pages, region, first, count, scratch, err);

    return result ? result : place(fill, pages, region, first, count, scratch, err);
}

/* ---- faults ---- */

/* The page is here, but has no mapping: one of zeros, which becomes one, or one that lost it. */
static void map_page(struct ferry_checkpoint_fill *fill, size_t region, uint64_t page)
{
    const struct fill_region *at = &fill->regions[region];

    (void)*(volatile uint8_t *)(at->alias + page * FERRY_PAGE_SIZE);
    uffd_map(fill->uffd, at->memory + page * FERRY_PAGE_SIZE, FERRY_PAGE_SIZE);
}

static void fault_done(struct ferry_checkpoint_fill *fill, uint64_t since_ns)
{
    pthread_mutex_lock(&fill->lock);
    latency_add(&fill->latency, clock_now_ns() - since_ns);
    pthread_mutex_unlock(&fill->lock);
}

static int take_fault(struct ferry_checkpoint_fill *fill, struct checkpoint_pages *pages, uint64_t address,
                      uint8_t *scratch, struct ferry_error *err)
{
    uint64_t now = clock_now_ns(), page, block;
    size_t number = 0;
    int result;

    while (number < fill->region_count &&
           address - (uintptr_t)fill->regions[number].memory >= fill->regions[number].pages * FERRY_PAGE_SIZE)
        number++;
    if (number == fill->region_count)
        return 0;

    struct fill_region *region = &fill->regions[number];

    page = (address - (uintptr_t)region->memory) / FERRY_PAGE_SIZE;
    block = page / CHECKPOINT_BLOCK_PAGES;
    if (set_bit(region->claimed, block)) {
        uint64_t first = block * CHECKPOINT_BLOCK_PAGES;
        size_t count = region->pages - first < CHECKPOINT_BLOCK_PAGES ? (size_t)(region->pages - first)
                                                                      : CHECKPOINT_BLOCK_PAGES;

        result = bring(fill, pages, number, first, count, scratch, err);
        if (result < 0)
            return result;
    } else if (!test_bit(region->here, block)) {
        fill->pending[fill->pending_count++] = (struct pending){number, page, now};
        return 0;
    }
    /* Also when it is mapped already: that wakes. */
    map_page(fill, number, page);
    fault_done(fill, now);
    return 0;
}

/* Those whose blocks are here. */
static void serve_pending(struct ferry_checkpoint_fill *fill)
{
    for (size_t i = 0; i < fill->pending_count;) {
        struct pending *pending = &fill->pending[i];

        if (!test_bit(fill->regions[pending->region].here, pending->page / CHECKPOINT_BLOCK_PAGES)) {
            i++;
            continue;
        }
        map_page(fill, pending->region, pending->page);
        fault_done(fill, pending->since_ns);
        *pending = fill->pending[--fill->pending_count];
    }
}

static int take_faults(struct ferry_checkpoint_fill *fill, struct checkpoint_pages *pages, uint8_t *scratch,
                       struct ferry_error *err)
{
    uint64_t addresses[FAULTS_MAX];
    int result = 0;

    while (result == 0 && fill->pending_count + FAULTS_MAX <= PENDING_MAX) {
        size_t count = uffd_faults(fill->uffd, addresses, FAULTS_MAX);

        for (size_t i = 0; i < count && result == 0; i++)
            result = take_fault(fill, pages, addresses[i], scratch, err);
        if (count < FAULTS_MAX)
            break;
    }
    return result;
}

static void *fault_main(void *opaque)
{
    struct ferry_checkpoint_fill *fill = opaque;
    struct checkpoint_pages pages = {0};
    struct ferry_error err = {0};
    uint8_t *scratch = aligned_alloc(FERRY_PAGE_SIZE, CHECKPOINT_BLOCK_SIZE);
    int result = checkpoint_pages_init(&pages, fill->checkpoint, true, &err);

    if (result == 0 && !scratch)
        result = error_set(&err, -ENOMEM, "out of memory for reading a checkpoint");
    while (result == 0 && !fill_ends(fill)) {
        bool room = fill->pending_count + FAULTS_MAX <= PENDING_MAX;
        struct pollfd polled[2] = {{.fd = fill->wake_fd, .events = POLLIN},
                                   {.fd = room ? fill->uffd : -1, .events = POLLIN}};
        eventfd_t value;

        /* Said before they are looked at: who places one afterwards sees it, and wakes. */
        __atomic_store_n(&fill->waiting, fill->pending_count > 0, __ATOMIC_SEQ_CST);
        serve_pending(fill);
        poll(polled, 2, -1);
        if (polled[0].revents)
            eventfd_read(fill->wake_fd, &value);
        result = take_faults(fill, &pages, scratch, &err);
    }
    if (result < 0)
        fill_fail(fill, result, &err);
    checkpoint_pages_free(&pages);
    free(scratch);
    return NULL;
}

/* ---- in the background ---- */

/* False: there are no more. */
static bool next_piece(struct ferry_checkpoint_fill *fill, size_t *region, uint64_t *first)
{
    uint64_t piece = __atomic_fetch_add(&fill->piece_next, 1, __ATOMIC_RELAXED);

    for (*region = 0; *region < fill->region_count; (*region)++) {
        uint64_t pieces = (fill->regions[*region].pages + PIECE_PAGES - 1) / PIECE_PAGES;

        if (piece < pieces) {
            *first = piece * PIECE_PAGES;
            return true;
        }
        piece -= pieces;
    }
    return false;
}

/* What of a piece nobody has claimed, as long stretches as there are. */
static int fill_piece(struct ferry_checkpoint_fill *fill, struct checkpoint_pages *pages, size_t number,
                      uint64_t first, uint8_t *scratch, struct ferry_error *err)
{
    struct fill_region *region = &fill->regions[number];
    uint64_t block = first / CHECKPOINT_BLOCK_PAGES;
    uint64_t end = block + PIECE_BLOCKS < region->blocks ? block + PIECE_BLOCKS : region->blocks;
    int result = 0;

    while (block < end && result == 0) {
        uint64_t from = block, page, last;

        while (block < end && set_bit(region->claimed, block))
            block++;
        page = from * CHECKPOINT_BLOCK_PAGES;
        last =
            block * CHECKPOINT_BLOCK_PAGES < region->pages ? block * CHECKPOINT_BLOCK_PAGES : region->pages;
        if (block > from)
            result = bring(fill, pages, number, page, (size_t)(last - page), scratch, err);
        else
            block++;
    }
    return result;
}

static void *filler_main(void *opaque)
{
    struct ferry_checkpoint_fill *fill = opaque;
    struct checkpoint_pages pages = {0};
    struct ferry_error err = {0};
    uint8_t *scratch = aligned_alloc(FERRY_PAGE_SIZE, PIECE_PAGES * FERRY_PAGE_SIZE);
    uint64_t first;
    size_t region;
    int result = checkpoint_pages_init(&pages, fill->checkpoint, true, &err);

    thread_set_background(true);
    if (result == 0 && !scratch)
        result = error_set(&err, -ENOMEM, "out of memory for reading a checkpoint");
    while (result == 0 && !fill_ends(fill) && next_piece(fill, &region, &first))
        result = fill_piece(fill, &pages, region, first, scratch, &err);
    if (result < 0)
        fill_fail(fill, result, &err);
    checkpoint_pages_free(&pages);
    free(scratch);
    return NULL;
}

/* ---- beginning ---- */

static int prepare_region(struct ferry_checkpoint_fill *fill, struct fill_region *region,
                          const struct ferry_ram_region *ram, struct ferry_error *err)
{
    struct stat status;
    void *alias;

    if (ram->memfd < 0 || sparse_huge_page_size(ram->memfd))
        return error_set(err, -EOPNOTSUPP, "memory region %s is of huge pages, or has no descriptor",
                         ram->name);
    region->pages = ram->size / FERRY_PAGE_SIZE;
    region->blocks = (region->pages + CHECKPOINT_BLOCK_PAGES - 1) / CHECKPOINT_BLOCK_PAGES;
    region->memory = ram->host_ptr;
    region->memfd = ram->memfd;
    region->huge = fstat(ram->memfd, &status) == 0 && status.st_blksize > FERRY_PAGE_SIZE;
    region->claimed = bitmap_new(region->blocks);
    region->here = bitmap_new(region->blocks);
    if (!region->claimed || !region->here)
        return error_set(err, -ENOMEM, "out of memory for restoring a checkpoint");
    alias = mmap(NULL, ram->size, PROT_READ | PROT_WRITE, MAP_SHARED, ram->memfd, 0);
    if (alias == MAP_FAILED)
        return error_set_errno(err, -errno, "cannot map memory region %s once more", ram->name);
    region->alias = alias;
    fill->blocks += region->blocks;
    return 0;
}

static int watch(struct ferry_checkpoint_fill *fill, struct ferry_error *err)
{
    int result = 0;

    for (size_t i = 0; i < fill->region_count && result == 0; i++) {
        struct fill_region *region = &fill->regions[i];

        result = uffd_watch(fill->uffd, region->memory, region->pages * FERRY_PAGE_SIZE, err);
        if (result == 0)
            result = uffd_unmap(region->memory, region->pages * FERRY_PAGE_SIZE, err);
    }
    return result;
}

static int make(struct ferry_checkpoint_fill *fill, const struct page_map *map,
                const size_t region_of[static FERRY_REGIONS_MAX], struct ferry_error *err)
{
    int result = 0;

    fill->uffd = uffd_open(err);
    if (fill->uffd < 0)
        return fill->uffd;
    fill->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fill->wake_fd < 0)
        return error_set_errno(err, -errno, "cannot make an eventfd for restoring a checkpoint");
    for (size_t i = 0; i < map->count && result == 0; i++) {
        fill->region_count = i + 1;
        result = prepare_region(fill, &fill->regions[i], &map->regions[region_of[i]], err);
    }
    fill->left = fill->blocks;
    return result;
}

/* What it has touched was right, and the guest may run. */
static int finish_loading(struct ferry_checkpoint_fill *fill, int result, struct ferry_error *err)
{
    pthread_mutex_lock(&fill->lock);
    if (fill->failure)
        result = error_set(err, fill->failure, "%s", fill->why.text);
    fill->loaded = result == 0;
    pthread_mutex_unlock(&fill->lock);
    return result;
}

static int start(struct ferry_checkpoint_fill *fill, struct ferry_error *err)
{
    int result = watch(fill, err);

    if (result == 0)
        result = thread_start(&fill->fault_thread, THREAD_MIGRATION, "ferry-missing", fault_main, fill, err);
    if (result == 0)
        result =
            finish_loading(fill, checkpoint_load_state(fill->checkpoint, fill->ops, fill->guest, err), err);
    /* Last: until then only what loading has touched was worth reading. */
    for (size_t i = 0; i < FILLERS && result == 0; i++)
        result = thread_start(&fill->fillers[i], THREAD_MIGRATION, "ferry-fill", filler_main, fill, err);
    return result;
}

int ferry_checkpoint_fill_start(struct ferry_checkpoint_fill **out, struct ferry_checkpoint *checkpoint,
                                const struct ferry_guest_ops *ops, void *guest,
                                const struct ferry_observer *observer, ferry_checkpoint_filled *filled,
                                void *opaque, struct ferry_error *err)
{
    struct ferry_checkpoint_fill *fill = calloc(1, sizeof(*fill));
    size_t region_of[FERRY_REGIONS_MAX];
    struct page_map map;
    int result;

    if (!fill)
        return error_set(err, -ENOMEM, "out of memory for restoring a checkpoint");
    *fill = (struct ferry_checkpoint_fill){.checkpoint = checkpoint,
                                           .ops = ops,
                                           .guest = guest,
                                           .filled = filled,
                                           .opaque = opaque,
                                           .uffd = -1,
                                           .wake_fd = -1,
                                           .start_ns = clock_now_ns()};
    if (observer)
        fill->observer = *observer;
    pthread_mutex_init(&fill->lock, NULL);
    result = page_map_init(&map, ops, guest, err);
    if (result == 0)
        result = checkpoint_match(checkpoint, &map, region_of, err);
    if (result == 0)
        result = make(fill, &map, region_of, err);
    if (result == 0)
        result = start(fill, err);
    if (result < 0) {
        fill->checkpoint = NULL; /* still the caller's */
        ferry_checkpoint_fill_free(fill);
        return result;
    }
    *out = fill;
    return 0;
}

void ferry_checkpoint_fill_progress(struct ferry_checkpoint_fill *fill,
                                    struct ferry_checkpoint_fill_progress *progress)
{
    *progress = (struct ferry_checkpoint_fill_progress){
        .memory_bytes = fill->blocks * CHECKPOINT_BLOCK_SIZE,
        .missing_bytes = __atomic_load_n(&fill->left, __ATOMIC_RELAXED) * CHECKPOINT_BLOCK_SIZE,
    };
    pthread_mutex_lock(&fill->lock);
    progress->complete = fill->complete;
    progress->failed = fill->failure;
    if (fill->failure)
        memcpy(progress->error, fill->why.text, sizeof(progress->error));
    progress->faults = fill->latency.count;
    progress->fault_median_ns = latency_quantile(&fill->latency, 500);
    progress->fault_p99_ns = latency_quantile(&fill->latency, 990);
    progress->fault_max_ns = fill->latency.max_ns;
    progress->total_ns = fill->complete ? fill->total_ns : clock_now_ns() - fill->start_ns;
    pthread_mutex_unlock(&fill->lock);
}

void ferry_checkpoint_fill_free(struct ferry_checkpoint_fill *fill)
{
    if (!fill)
        return;
    pthread_mutex_lock(&fill->lock);
    fill->quit = true;
    pthread_mutex_unlock(&fill->lock);
    if (fill->wake_fd >= 0)
        eventfd_write(fill->wake_fd, 1);
    thread_join(&fill->fault_thread);
    for (size_t i = 0; i < FILLERS; i++)
        thread_join(&fill->fillers[i]);
    /* Closed it would let go of who waits. */
    if (fill->uffd >= 0 && (fill->complete || !fill->checkpoint))
        close(fill->uffd);
    if (fill->wake_fd >= 0)
        close(fill->wake_fd);
    for (size_t i = 0; i < fill->region_count; i++) {
        if (fill->regions[i].alias)
            munmap(fill->regions[i].alias, fill->regions[i].pages * FERRY_PAGE_SIZE);
        free(fill->regions[i].claimed);
        free(fill->regions[i].here);
    }
    ferry_checkpoint_close(fill->checkpoint);
    pthread_mutex_destroy(&fill->lock);
    free(fill);
}
