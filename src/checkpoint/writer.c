#include "checkpoint/writer_parts.h"

#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#define QUIESCE_NS (10 * NS_PER_S)

/* Rounds end when so little was written that copying it takes about a millisecond, */
#define LAST_PAGES 1024
/* when they do not get any shorter, */
#define SHORTER_SHARE   0.8
#define SAME_LENGTH_MAX 2
/* or after so many. */
#define ROUNDS_MAX 20
/* At most so much is copied while the guest stands still; more is written then. */
#define COPY_PAGES_MAX ((256u << 20) / FERRY_PAGE_SIZE)
/* Written between the last look and the stop. */
#define COPY_PAGES_MORE 4096

void writer_log(const struct ferry_checkpoint_writer *writer, enum ferry_log_level level, const char *format,
                ...)
{
    char text[FERRY_ERROR_TEXT_SIZE];
    va_list arguments;

    if (!writer->observer.log)
        return;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    writer->observer.log(writer->observer.opaque, level, text);
}

int writer_fail(struct ferry_checkpoint_writer *writer, int code, const struct ferry_error *why)
{
    pthread_mutex_lock(&writer->lock);
    if (!writer->failure) {
        writer->failure = code;
        error_set(&writer->why, code, "%s", why->text);
    }
    pthread_mutex_unlock(&writer->lock);
    eventfd_write(writer->cancel_fd, 1);
    return code;
}

int writer_check(struct ferry_checkpoint_writer *writer, struct ferry_error *err)
{
    int result;

    pthread_mutex_lock(&writer->lock);
    result = writer->failure;
    if (result)
        error_set(err, result, "%s", writer->why.text);
    pthread_mutex_unlock(&writer->lock);
    return result;
}

static void set_step(struct ferry_checkpoint_writer *writer, enum writer_step step)
{
    pthread_mutex_lock(&writer->lock);
    writer->step = step;
    pthread_mutex_unlock(&writer->lock);
}

int ferry_checkpoint_cancel(struct ferry_checkpoint_writer *writer, struct ferry_error *err)
{
    struct ferry_error why;
    bool late;

    pthread_mutex_lock(&writer->lock);
    late = writer->step == WRITER_NAMED || writer->progress.outcome != FERRY_OUTCOME_NONE;
    writer->cancelled = writer->cancelled || (!late && !writer->failure);
    pthread_mutex_unlock(&writer->lock);
    if (late)
        return error_set(err, -EALREADY, "too late: checkpoint %s is written, or has failed", writer->path);
    error_set(&why, -ECANCELED, "cancelled");
    writer_fail(writer, -ECANCELED, &why);
    return 0;
}

void ferry_checkpoint_abort(struct ferry_checkpoint_writer *writer, const char *why_text)
{
    struct ferry_error why;
    bool counts;

    pthread_mutex_lock(&writer->lock);
    counts = writer->step < WRITER_TAKEN;
    pthread_mutex_unlock(&writer->lock);
    error_set(&why, -ECONNABORTED, "%s", why_text);
    if (counts)
        writer_fail(writer, -ECONNABORTED, &why);
}

void ferry_checkpoint_set_bandwidth(struct ferry_checkpoint_writer *writer, uint64_t bytes_per_s)
{
    __atomic_store_n(&writer->bandwidth, bytes_per_s, __ATOMIC_RELAXED);
}

void ferry_checkpoint_progress(struct ferry_checkpoint_writer *writer,
                               struct ferry_checkpoint_progress *progress)
{
    uint64_t left = __atomic_load_n(&writer->round_left, __ATOMIC_RELAXED) * FERRY_PAGE_SIZE;
    uint64_t now = clock_now_ns();

    pthread_mutex_lock(&writer->lock);
    *progress = writer->progress;
    progress->bytes = __atomic_load_n(&writer->output.bytes, __ATOMIC_RELAXED);
    progress->pages_written = __atomic_load_n(&writer->pages_written, __ATOMIC_RELAXED);
    progress->direct = __atomic_load_n(&writer->output.direct, __ATOMIC_RELAXED);
    if (progress->outcome == FERRY_OUTCOME_NONE) {
        uint64_t expected = writer->output.expected;

        progress->remaining_bytes = left;
        progress->total_ns = writer->start_ns ? now - writer->start_ns : 0;
        /* The first round is most of it; the others are not known. */
        if (progress->rounds == 0 && expected)
            progress->percent = left >= expected ? 0 : (unsigned)((expected - left) * 95 / expected);
        else
            progress->percent = progress->rounds ? 95 : 0;
    }
    pthread_mutex_unlock(&writer->lock);
    if (progress->total_ns)
        progress->bytes_per_s = (uint64_t)((double)progress->bytes * 1e9 / (double)progress->total_ns);
}

/* ---- making one ---- */

static int check_options(const struct ferry_checkpoint_options *options, struct ferry_error *err)
{
    if (options->kind != FERRY_CHECKPOINT_SNAPSHOT && options->kind != FERRY_CHECKPOINT_SUSPEND)
        return error_set(err, -EINVAL, "a checkpoint is a snapshot or a suspend");
    if (options->blob_count > FERRY_CHECKPOINT_BLOBS_MAX)
        return error_set(err, -E2BIG, "%zu blobs for a checkpoint, at most %d", options->blob_count,
                         FERRY_CHECKPOINT_BLOBS_MAX);
    for (size_t i = 0; i < options->blob_count; i++) {
        const struct ferry_checkpoint_blob *blob = &options->blobs[i];

        if (!blob->name[0] || strnlen(blob->name, sizeof(blob->name)) == sizeof(blob->name) ||
            blob->size > FERRY_CHECKPOINT_BLOB_SIZE_MAX)
            return error_set(err, -EINVAL, "blob %zu for a checkpoint has no name or is too large", i);
    }
    return 0;
}

int ferry_checkpoint_writer_new(struct ferry_checkpoint_writer **out,
                                const struct ferry_checkpoint_options *options,
                                const struct ferry_guest_ops *ops, void *guest,
                                const struct ferry_observer *observer, struct ferry_error *err)
{
    struct ferry_checkpoint_writer *writer;
    int result = check_options(options, err);

    if (result < 0)
        return result;
    writer = calloc(1, sizeof(*writer));
    if (!writer)
        return error_set(err, -ENOMEM, "out of memory for a checkpoint");
    writer->options = *options;
    if (options->blob_count)
        memcpy(writer->blobs, options->blobs, options->blob_count * sizeof(writer->blobs[0]));
    writer->options.blobs = writer->blobs;
    writer->options.path = writer->path;
    snprintf(writer->path, sizeof(writer->path), "%s", options->path);
    if (!writer->options.quiesce_timeout_ns)
        writer->options.quiesce_timeout_ns = QUIESCE_NS;
    writer->ops = ops;
    writer->guest = guest;
    if (observer)
        writer->observer = *observer;
    writer->bandwidth = options->bandwidth_limit;
    checkpoint_init(&writer->sections);
    pthread_mutex_init(&writer->lock, NULL);
    writer->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pace_init(&writer->pace, &writer->bandwidth, writer->cancel_fd);
    result = output_open(&writer->output, options->path, options->id, options->overwrite, err);
    if (result == 0 && writer->cancel_fd < 0)
        result = error_set_errno(err, -errno, "cannot make an eventfd for a checkpoint");
    if (result < 0) {
        ferry_checkpoint_writer_free(writer);
        return result;
    }
    *out = writer;
    return 0;
}

void ferry_checkpoint_writer_free(struct ferry_checkpoint_writer *writer)
{
    if (!writer)
        return;
    output_close(&writer->output);
    rounds_free(writer);
    page_set_free(&writer->set);
    checkpoint_free(&writer->sections);
    pace_destroy(&writer->pace);
    pthread_mutex_destroy(&writer->lock);
    if (writer->cancel_fd >= 0)
        close(writer->cancel_fd);
    free(writer);
}

/* ---- rounds ---- */

static int begin(struct ferry_checkpoint_writer *writer, struct ferry_error *err)
{
    int result = page_map_init(&writer->map, writer->ops, writer->guest, err);
    uint64_t pages;

    if (result == 0)
        result = page_set_init(&writer->set, &writer->map, err);
    if (result == 0)
        result = rounds_prepare(writer, err);
    if (result == 0)
        result = writer->ops->dirty_start(writer->guest, err);
    if (result < 0)
        return result;
    /* Looked at after tracking began: a hole filled from now on is in the next round. */
    pages = page_set_fill_present(&writer->set, &writer->map);
    if (writer->options.zstd) {
        result = rounds_fetch(writer, &pages, err);
        if (result < 0)
            writer->ops->dirty_stop(writer->guest);
    }
    pthread_mutex_lock(&writer->lock);
    writer->step = WRITER_COPY;
    writer->progress.memory_bytes = writer->map.total * FERRY_PAGE_SIZE;
    writer->output.expected = pages * FERRY_PAGE_SIZE;
    pthread_mutex_unlock(&writer->lock);
    return result;
}

/* Compressed, nobody knows yet what places will be needed. */
static int make_room(struct ferry_checkpoint_writer *writer, struct ferry_error *err)
{
    int result = writer->options.zstd ? 0 : rounds_scan(writer, err);

    if (writer->options.zstd || result < 0)
        return result;
    pthread_mutex_lock(&writer->lock);
    writer->output.expected = page_set_count(&writer->set, &writer->map) * FERRY_PAGE_SIZE;
    pthread_mutex_unlock(&writer->lock);
    return rounds_allocate(writer, err);
}

/* Until little is left: *PAGES in the set. */
static int run_rounds(struct ferry_checkpoint_writer *writer, uint64_t *pages, struct ferry_error *err)
{
    uint64_t last = UINT64_MAX;
    unsigned same = 0;
    int result;

    writer->background = true;
    result = make_room(writer, err);
    if (result < 0)
        return result;
    for (unsigned rounds = 1;; rounds++) {
        uint64_t begin_ns = clock_now_ns();

        result = rounds_write(writer, err);
        if (result < 0)
            return result;
        page_set_clear(&writer->set, &writer->map);
        result = rounds_fetch(writer, pages, err);
        if (result < 0)
            return result;
        pthread_mutex_lock(&writer->lock);
        writer->progress.rounds = rounds;
        pthread_mutex_unlock(&writer->lock);
        writer_log(writer, FERRY_LOG_INFO,
                   "checkpoint: round %u took %.1f ms, %llu pages were written meanwhile", rounds,
                   (double)(clock_now_ns() - begin_ns) / NS_PER_MS, (unsigned long long)*pages);
        same = (double)*pages > SHORTER_SHARE * (double)last ? same + 1 : 0;
        if (*pages <= LAST_PAGES || same >= SAME_LENGTH_MAX || rounds >= ROUNDS_MAX)
            return 0;
        last = *pages;
    }
}

/* ---- the stop ---- */

static int copy_prepare(struct writer_copy *copy, uint64_t pages, uint64_t *room)
{
    void *data;

    *room = pages + pages / 2 + COPY_PAGES_MORE;
    if (*room > COPY_PAGES_MAX)
        *room = COPY_PAGES_MAX;
    /* What is not there yet would be had while the guest stands still. */
    data = mmap(NULL, *room * FERRY_PAGE_SIZE, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (data == MAP_FAILED)
        return -ENOMEM;
    copy->data = data;
    return 0;
}

struct stop {
    bool was_running;
    uint64_t begin_ns;
    uint64_t stopped_realtime_ns;
    uint64_t room; /* pages that may be copied; 0: none */
    struct writer_copy copy;
};

/* Adds what has passed since *AT to a part of the time. */
static void part_done(uint64_t *part, uint64_t *at)
{
    uint64_t now = clock_now_ns();

    *part = now - *at;
    *at = now;
}

/* The guest stands still: state, and what of its memory is not in the file. */
static int take(struct ferry_checkpoint_writer *writer, struct stop *stop, struct ferry_error *err)
{
    struct ferry_checkpoint_progress times = {0};
    struct ferry_sink sink = {.checkpoint = &writer->sections};
    uint64_t at = clock_now_ns(), pages = 0;
    int result = writer->ops->quiesce(writer->guest, writer->options.quiesce_timeout_ns, err);

    part_done(&times.quiesce_ns, &at);
    if (result == 0)
        result = rounds_fetch(writer, &pages, err);
    if (result == 0 && pages <= stop->room)
        rounds_copy(writer, &stop->copy);
    else if (result == 0)
        result = rounds_write(writer, err);
    part_done(&times.copy_ns, &at);
    if (result == 0)
        result = writer->ops->save_state(writer->guest, &sink, err);
    part_done(&times.state_ns, &at);
    pthread_mutex_lock(&writer->lock);
    writer->progress.last_pages = pages;
    writer->progress.quiesce_ns = times.quiesce_ns;
    writer->progress.copy_ns = times.copy_ns;
    writer->progress.state_ns = times.state_ns;
    pthread_mutex_unlock(&writer->lock);
    return result;
}

static int let_go(struct ferry_checkpoint_writer *writer, const struct stop *stop, struct ferry_error *err)
{
    uint64_t at = clock_now_ns();
    int result = writer->ops->resume(writer->guest, stop->was_running, err);
    uint64_t now = clock_now_ns();

    pthread_mutex_lock(&writer->lock);
    writer->progress.resume_ns = now - at;
    writer->progress.stopped_ns = now - stop->begin_ns;
    pthread_mutex_unlock(&writer->lock);
    return result;
}

/* 0: what goes into the file is taken; the guest goes on, unless it is to be suspended. */
static int stop_guest(struct ferry_checkpoint_writer *writer, struct stop *stop, struct ferry_error *err)
{
    bool suspend = writer->options.kind == FERRY_CHECKPOINT_SUSPEND;
    struct ferry_error why = {0};
    int result;

    pace_lift(&writer->pace, true);
    writer->background = false;
    stop->begin_ns = clock_now_ns();
    result = writer->ops->pause(writer->guest, &stop->was_running, err);
    if (result < 0)
        return result;
    stop->stopped_realtime_ns = clock_realtime_ns();
    pthread_mutex_lock(&writer->lock);
    writer->progress.pause_ns = clock_now_ns() - stop->begin_ns;
    pthread_mutex_unlock(&writer->lock);
    result = take(writer, stop, err);
    if (result == 0)
        set_step(writer, WRITER_TAKEN);
    if (result == 0 && suspend)
        return 0;
    if (let_go(writer, stop, &why) < 0)
        writer_log(writer, FERRY_LOG_ERROR, "checkpoint: the guest cannot go on: %s", why.text);
    pace_lift(&writer->pace, false);
    writer->background = true;
    return result;
}

/* ---- what is around the RAM ---- */

static int write_digests(struct ferry_checkpoint_writer *writer, struct checkpoint_header *header,
                         uint64_t *at, struct ferry_error *err)
{
    struct buffer digests = BUFFER_INIT;
    int result = 0;

    for (size_t i = 0; i < writer->map.count && result == 0; i++) {
        const struct writer_region *region = &writer->regions[i];

        for (size_t offset = 0; offset < region->index_size; offset += FERRY_PAGE_SIZE)
            buffer_put_u64(&digests, XXH3_64bits(region->index + offset, FERRY_PAGE_SIZE));
        result = output_write(&writer->output, region->index, region->index_size, region->index_offset, err);
    }
    if (result == 0 && buffer_failed(&digests))
        result = error_set(err, -ENOMEM, "out of memory for a checkpoint");
    header->digests.offset = *at;
    header->digests.size = digests.size;
    if (result == 0) {
        checkpoint_hash(&header->digests.hash, digests.data, digests.size);
        result = output_write(&writer->output, digests.data, digests.size, *at, err);
    }
    *at = checkpoint_align(*at + digests.size, FERRY_PAGE_SIZE);
    buffer_free(&digests);
    return result;
}

static int write_part(struct ferry_checkpoint_writer *writer, struct checkpoint_directory *directory,
                      enum checkpoint_part_type type, const struct ferry_section *section, uint64_t *at,
                      struct ferry_error *err)
{
    struct checkpoint_part *part = &directory->parts[directory->part_count++];

    part->type = type;
    memcpy(part->name, section->name, sizeof(part->name));
    part->version = section->version;
    part->extent.offset = *at;
    part->extent.size = section->size;
    checkpoint_hash(&part->extent.hash, section->data, section->size);
    *at = checkpoint_align(*at + section->size, FERRY_PAGE_SIZE);
    return output_write(&writer->output, section->data, section->size, part->extent.offset, err);
}

static int write_parts(struct ferry_checkpoint_writer *writer, struct checkpoint_directory *directory,
                       uint64_t *at, struct ferry_error *err)
{
    const struct ferry_checkpoint_options *options = &writer->options;
    int result = 0;

    directory->parts = calloc(CHECKPOINT_PARTS_MAX, sizeof(*directory->parts));
    if (!directory->parts)
        return error_set(err, -ENOMEM, "out of memory for a checkpoint");
    for (size_t i = 0; i < options->blob_count && result == 0; i++) {
        struct ferry_section section = {.data = options->blobs[i].data, .size = options->blobs[i].size};

        memcpy(section.name, options->blobs[i].name, sizeof(section.name));
        result = write_part(writer, directory, CHECKPOINT_PART_BLOB, &section, at, err);
    }
    for (size_t i = 0; i < writer->sections.count && result == 0; i++)
        result =
            write_part(writer, directory, CHECKPOINT_PART_SECTION, &writer->sections.sections[i], at, err);
    return result;
}

static void fill_header(const struct ferry_checkpoint_writer *writer, const struct stop *stop,
                        struct checkpoint_header *header)
{
    header->version = FERRY_CHECKPOINT_VERSION;
    header->kind = writer->options.kind;
    header->features = writer->options.zstd ? CHECKPOINT_FEATURE_ZSTD : 0;
    memcpy(header->id, writer->options.id, sizeof(header->id));
    memcpy(header->vm, writer->options.vm, sizeof(header->vm));
    header->stopped_realtime_ns = stop->stopped_realtime_ns;
    header->was_running = stop->was_running;
    if (getrandom(header->uuid, sizeof(header->uuid), 0) != sizeof(header->uuid))
        memcpy(header->uuid, &stop->stopped_realtime_ns, sizeof(stop->stopped_realtime_ns));
    header->uuid[6] = (header->uuid[6] & 0x0f) | 0x40;
    header->uuid[8] = (header->uuid[8] & 0x3f) | 0x80;
}

static int write_directory(struct ferry_checkpoint_writer *writer, struct checkpoint_header *header,
                           struct checkpoint_directory *directory, uint64_t *at, struct ferry_error *err)
{
    struct buffer buffer = BUFFER_INIT;
    int result;

    directory->region_count = writer->map.count;
    for (size_t i = 0; i < writer->map.count; i++) {
        struct ferry_checkpoint_region *region = &directory->regions[i];

        memcpy(region->name, writer->map.regions[i].name, sizeof(region->name));
        region->guest_addr = writer->map.regions[i].guest_addr;
        region->size = writer->map.regions[i].size;
        region->file_offset = writer->regions[i].file_offset;
        directory->index_offset[i] = writer->regions[i].index_offset;
    }
    checkpoint_directory_encode(&buffer, directory);
    result = buffer_failed(&buffer) ? error_set(err, -ENOMEM, "out of memory for a checkpoint") : 0;
    header->directory.offset = *at;
    header->directory.size = buffer.size;
    if (result == 0) {
        checkpoint_hash(&header->directory.hash, buffer.data, buffer.size);
        result = output_write(&writer->output, buffer.data, buffer.size, *at, err);
    }
    *at = checkpoint_align(*at + buffer.size, FERRY_PAGE_SIZE);
    buffer_free(&buffer);
    return result;
}

/* All is on the disk before the file has its name; and where it has another until then, everything but the
 * header, which makes a checkpoint of it, before that is written. */
static int complete(struct ferry_checkpoint_writer *writer, const struct stop *stop, struct ferry_error *err)
{
    struct checkpoint_directory directory = {0};
    struct checkpoint_header header = {0};
    uint8_t *page = aligned_alloc(FERRY_PAGE_SIZE, CHECKPOINT_HEADER_SIZE);
    uint64_t at = writer->memory_end, zero;
    int result = page ? 0 : error_set(err, -ENOMEM, "out of memory for a checkpoint");

    fill_header(writer, stop, &header);
    rounds_count(writer, &header.pages, &zero);
    if (result == 0)
        result = write_digests(writer, &header, &at, err);
    if (result == 0)
        result = write_parts(writer, &directory, &at, err);
    if (result == 0)
        result = write_directory(writer, &header, &directory, &at, err);
    header.file_size = at;
    if (result == 0)
        result = output_resize(&writer->output, at, err);
    if (result == 0 && writer->output.partial[0])
        result = output_sync(&writer->output, err);
    if (result == 0) {
        checkpoint_header_encode(page, &header);
        result = output_write(&writer->output, page, CHECKPOINT_HEADER_SIZE, 0, err);
    }
    if (result == 0)
        result = output_sync(&writer->output, err);
    checkpoint_directory_free(&directory);
    free(page);
    pthread_mutex_lock(&writer->lock);
    writer->progress.pages = header.pages;
    writer->progress.zero_pages = zero;
    writer->progress.file_bytes = output_allocated(&writer->output);
    pthread_mutex_unlock(&writer->lock);
    return result;
}

/* From here on nobody can cancel it. */
static int publish(struct ferry_checkpoint_writer *writer, struct ferry_error *err)
{
    int result = writer_check(writer, err);

    if (result < 0)
        return result;
    pthread_mutex_lock(&writer->lock);
    result = writer->failure;
    if (result)
        error_set(err, result, "%s", writer->why.text);
    else
        writer->step = WRITER_NAMED;
    pthread_mutex_unlock(&writer->lock);
    return result ? result : output_publish(&writer->output, err);
}

static int finish(struct ferry_checkpoint_writer *writer, const struct stop *stop, struct ferry_error *err)
{
    int result = 0;

    if (stop->copy.pages > 0)
        result = rounds_write_copy(writer, &stop->copy, err);
    if (result == 0)
        result = complete(writer, stop, err);
    return result ? result : publish(writer, err);
}

/* ---- the whole ---- */

static int run(struct ferry_checkpoint_writer *writer, struct ferry_error *err)
{
    bool suspend = writer->options.kind == FERRY_CHECKPOINT_SUSPEND;
    struct stop stop = {0};
    struct ferry_error why = {0};
    uint64_t pages = 0;
    int result = run_rounds(writer, &pages, err);

    /* What a suspended guest wrote last needs no copy; without memory for one a snapshot does without, too.
     */
    if (result == 0 && !suspend && copy_prepare(&stop.copy, pages, &stop.room) < 0)
        stop.room = 0;
    if (result == 0)
        result = stop_guest(writer, &stop, err);
    writer->ops->dirty_stop(writer->guest);
    if (result == 0) {
        result = finish(writer, &stop, err);
        if (result < 0 && suspend && let_go(writer, &stop, &why) < 0)
            writer_log(writer, FERRY_LOG_ERROR, "checkpoint: the guest cannot go on: %s", why.text);
        else if (result == 0 && suspend)
            writer->progress.stopped_ns = clock_now_ns() - stop.begin_ns;
    }
    if (stop.copy.data)
        munmap(stop.copy.data, stop.room * FERRY_PAGE_SIZE);
    return result;
}

static void report(struct ferry_checkpoint_writer *writer, int result, const struct ferry_error *err)
{
    struct ferry_checkpoint_progress *progress = &writer->progress;

    pthread_mutex_lock(&writer->lock);
    progress->total_ns = clock_now_ns() - writer->start_ns;
    progress->percent = result == 0 ? 100 : progress->percent;
    progress->direct = writer->output.direct;
    progress->outcome = result == 0         ? FERRY_OUTCOME_COMPLETED
                        : writer->cancelled ? FERRY_OUTCOME_CANCELLED
                                            : FERRY_OUTCOME_FAILED;
    if (result < 0)
        snprintf(progress->error, sizeof(progress->error), "%s", err->text);
    pthread_mutex_unlock(&writer->lock);
    if (result < 0) {
        writer_log(writer, FERRY_LOG_WARN, "checkpoint: %s", err->text);
        return;
    }
    writer_log(writer, FERRY_LOG_INFO,
               "checkpoint: %s is complete: %llu MiB written %s in %.1f s, the guest was stopped for %.1f ms "
               "(%llu last pages)",
               writer->path,
               (unsigned long long)__atomic_load_n(&writer->output.bytes, __ATOMIC_RELAXED) >> 20,
               progress->direct ? "directly"
                                : "through the page cache, which this file system does not let be passed by",
               (double)progress->total_ns / NS_PER_S, (double)progress->stopped_ns / NS_PER_MS,
               (unsigned long long)progress->last_pages);
}

int ferry_checkpoint_write(struct ferry_checkpoint_writer *writer, struct ferry_error *err)
{
    struct ferry_error why = {0};
    int result;

    pthread_mutex_lock(&writer->lock);
    writer->start_ns = clock_now_ns();
    pthread_mutex_unlock(&writer->lock);
    result = writer_check(writer, &why);
    if (result == 0)
        result = begin(writer, &why);
    if (result == 0)
        result = run(writer, &why);
    /* What is there of it goes now, not when somebody frees the writer. */
    output_close(&writer->output);
    report(writer, result, &why);
    if (result < 0)
        error_set(err, result, "%s", why.text);
    return result;
}
