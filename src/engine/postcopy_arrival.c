#include "engine/postcopy_parts.h"

#include "base/error.h"
#include "engine/uffd.h"

#include <errno.h>
#include <isa-l.h>
#include <string.h>
#include <unistd.h>

/* Returns what it was. */
static bool clear_bit(struct page_set *set, size_t region, size_t page)
{
    uint64_t mask = UINT64_C(1) << page % 64;

    return __atomic_fetch_and(&set->bits[region][page / 64], ~mask, __ATOMIC_SEQ_CST) & mask;
}

/* ---- losing connections ---- */

void postcopy_release(struct postcopy *postcopy)
{
    bool watched = __atomic_load_n(&postcopy->watched, __ATOMIC_SEQ_CST);

    for (size_t i = 0; watched && i < postcopy->map->count; i++)
        uffd_forget(postcopy->uffd, postcopy->map->regions[i].host_ptr, postcopy->map->regions[i].size);
}

void postcopy_lose(struct postcopy *postcopy, int code, struct ferry_error *why)
{
    pthread_mutex_lock(&postcopy->lock);
    if (!postcopy->lost) {
        postcopy->lost = true;
        postcopy->why = *why;
        postcopy->why.code = code;
    }
    pthread_cond_broadcast(&postcopy->changed);
    pthread_mutex_unlock(&postcopy->lock);
    postcopy_wake(postcopy);
    /* Cancelled: there may be something left to say. */
    pthread_mutex_lock(&postcopy->send_lock);
    for (size_t i = 0; code != -ECANCELED && postcopy->attached && i < postcopy->stream_count; i++)
        channel_shutdown(&postcopy->streams[i].link.channel);
    pthread_mutex_unlock(&postcopy->send_lock);
    /* The session's thread may itself be waiting for a page. */
    if (session_fail_uncommitted(postcopy->session, FERRY_CAUSE_NETWORK, code, why))
        postcopy_release(postcopy);
}

/* ---- arriving pages ---- */

/* All of them must be missing: a page that is here may have been written by the guest. */
static int check_run(struct postcopy *postcopy, struct wire_run *run, struct ferry_error *err)
{
    const struct page_place *place = &postcopy->destination->place;
    size_t region = run->region < place->region_count ? place->region_of[run->region] : 0;

    if (run->region >= place->region_count || run->first >= postcopy->map->pages[region] ||
        run->pages > postcopy->map->pages[region] - run->first)
        return error_set(err, -EBADMSG, "PAGES frame for pages outside of memory (region %u, page %u)",
                         run->region, run->first);
    if (run->kind != WIRE_PAGE_RAW && run->kind != WIRE_PAGE_ZERO)
        return error_set(err, -EBADMSG, "PAGES frame of kind %u while fetching", run->kind);
    for (size_t i = 0; i < run->pages; i++) {
        if (!postcopy_test(&postcopy->missing, region, run->first + i))
            return error_set(err, -EBADMSG, "PAGES frame for a page that is here (region %u, page %zu)",
                             run->region, run->first + i);
    }
    run->region = (uint8_t)region;
    return 0;
}

/* Its content is complete: whoever waits may go on. */
static void finish_run(struct postcopy *postcopy, const struct wire_run *run)
{
    uint64_t placed = 0;

    for (size_t i = 0; i < run->pages; i++)
        placed += clear_bit(&postcopy->missing, run->region, run->first + i);
    uffd_map(postcopy->uffd, postcopy_address(postcopy, run->region, run->first),
             (size_t)run->pages * FERRY_PAGE_SIZE);
    for (size_t i = 0; i < run->pages; i++) {
        if (postcopy_test(&postcopy->requested, run->region, run->first + i))
            postcopy_pending_end(postcopy, run->region, run->first + i);
    }

    __atomic_fetch_sub(&postcopy->session->pages_left, placed, __ATOMIC_RELAXED);
    if (__atomic_sub_fetch(&postcopy->left, placed, __ATOMIC_ACQ_REL) == 0) {
        pthread_mutex_lock(&postcopy->lock);
        pthread_cond_broadcast(&postcopy->changed);
        pthread_mutex_unlock(&postcopy->lock);
    }
}

static void zero_run(struct postcopy *postcopy, const struct wire_run *run)
{
    for (size_t i = 0; i < run->pages; i++) {
        uint8_t *page = postcopy_alias(postcopy, run->region, run->first + i);

        if (isal_zero_detect(page, FERRY_PAGE_SIZE) != 0)
            memset(page, 0, FERRY_PAGE_SIZE);
    }
}

/* Their data lies one run's after the other's. Into small pages by writing the file: it is rarely worth while
 * to map one in the alias, which costs more than to copy it. */
static int copy_runs(struct postcopy *postcopy, const struct wire_run *runs, size_t count,
                     const uint8_t *data, struct ferry_error *err)
{
    for (size_t i = 0; i < count; i++) {
        const struct ferry_ram_region *region = &postcopy->map->regions[runs[i].region];
        size_t size = (size_t)runs[i].pages * FERRY_PAGE_SIZE;
        size_t done = 0;

        if (runs[i].kind != WIRE_PAGE_RAW)
            continue;
        if (postcopy->huge[runs[i].region]) {
            memcpy(postcopy_alias(postcopy, runs[i].region, runs[i].first), data, size);
            done = size;
        }
        while (done < size) {
            ssize_t n = pwrite(region->memfd, data + done, size - done,
                               (off_t)runs[i].first * FERRY_PAGE_SIZE + (off_t)done);

            if (n < 0 && errno != EINTR)
                return error_set_errno(err, -errno, "cannot write memory region %s", region->name);
            done += n > 0 ? (size_t)n : 0;
        }
        data += size;
    }
    return 0;
}

static int receive_runs(struct postcopy_stream *stream, size_t count, struct ferry_error *err)
{
    struct postcopy *postcopy = stream->postcopy;
    int iov_count = 0;

    for (size_t i = 0; i < count; i++) {
        struct wire_run *run = &stream->runs[i];

        if (run->kind == WIRE_PAGE_RAW)
            stream->iov[iov_count++] =
                (struct iovec){.iov_base = postcopy_alias(postcopy, run->region, run->first),
                               .iov_len = (size_t)run->pages * FERRY_PAGE_SIZE};
    }
    return link_receive_data(&stream->link, stream->iov, iov_count, err);
}

int postcopy_take_pages(struct postcopy_stream *stream, struct frame *frame, const uint8_t *data,
                        struct ferry_error *err)
{
    struct postcopy *postcopy = stream->postcopy;
    uint64_t zero = 0;
    uint32_t round;
    size_t count;
    int result = wire_batch_decode(&frame->body, frame->data, &round, stream->runs, &count, err);

    for (size_t i = 0; result == 0 && i < count; i++)
        result = check_run(postcopy, &stream->runs[i], err);
    if (result == 0 && data)
        result = copy_runs(postcopy, stream->runs, count, data, err);
    else if (result == 0)
        result = receive_runs(stream, count, err);
    if (result < 0)
        return result;
    for (size_t i = 0; i < count; i++) {
        if (stream->runs[i].kind == WIRE_PAGE_ZERO) {
            zero_run(postcopy, &stream->runs[i]);
            zero += stream->runs[i].pages;
        }
        finish_run(postcopy, &stream->runs[i]);
    }
    session_count(&postcopy->session->pages_raw, frame->data / FERRY_PAGE_SIZE);
    session_count(&postcopy->session->pages_zero, zero);
    return 0;
}

/* Silence is the first connection's to notice. */
void *postcopy_stream_main(void *opaque)
{
    struct postcopy_stream *stream = opaque;
    struct postcopy *postcopy = stream->postcopy;
    struct ferry_error why = {0};
    struct frame frame;
    int result;

    do {
        result = link_receive(&stream->link, &frame, CHANNEL_FOREVER, &why);
        if (result == 0 && frame.type == WIRE_PAGES)
            result = postcopy_take_pages(stream, &frame, NULL, &why);
        else if (result == 0 && frame.type != WIRE_KEEPALIVE)
            result =
                error_set(&why, -EBADMSG, "%s frame while fetching", wire_type_name((uint8_t)frame.type));
    } while (result == 0);
    postcopy_lose(postcopy, result, &why);
    return NULL;
}
