#include "engine/postcopy_parts.h"

#include "base/clock.h"
#include "base/error.h"
#include "engine/uffd.h"

#include <errno.h>
#include <isa-l.h>
#include <poll.h>
#include <string.h>

/* A page that only lacks its mapping gets it together with its neighbours in so many pages. */
#define MAP_AROUND 64

static bool test_bit(const struct page_set *set, size_t region, size_t page)
{
    return __atomic_load_n(&set->bits[region][page / 64], __ATOMIC_SEQ_CST) >> page % 64 & 1;
}

/* Returns what it was. */
static bool set_bit(struct page_set *set, size_t region, size_t page)
{
    uint64_t mask = UINT64_C(1) << page % 64;

    return __atomic_fetch_or(&set->bits[region][page / 64], mask, __ATOMIC_SEQ_CST) & mask;
}

static bool clear_bit(struct page_set *set, size_t region, size_t page)
{
    uint64_t mask = UINT64_C(1) << page % 64;

    return __atomic_fetch_and(&set->bits[region][page / 64], ~mask, __ATOMIC_SEQ_CST) & mask;
}

static uint8_t *page_address(const struct postcopy *postcopy, size_t region, size_t page)
{
    return postcopy->map->regions[region].host_ptr + page * FERRY_PAGE_SIZE;
}

static uint8_t *page_alias(const struct postcopy *postcopy, size_t region, size_t page)
{
    return postcopy->alias[region] + page * FERRY_PAGE_SIZE;
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
    /* Cancelled: there may be something left to say. */
    pthread_mutex_lock(&postcopy->send_lock);
    for (size_t i = 0; code != -ECANCELED && postcopy->attached && i < postcopy->stream_count; i++)
        channel_shutdown(&postcopy->streams[i].link.channel);
    pthread_mutex_unlock(&postcopy->send_lock);
    /* The session's thread may itself be waiting for a page. */
    if (session_fail_uncommitted(postcopy->session, FERRY_CAUSE_NETWORK, code, why))
        postcopy_release(postcopy);
}

/* ---- faults ---- */

void postcopy_request(struct postcopy *postcopy, const struct wire_page *pages, size_t count)
{
    struct buffer body = BUFFER_INIT;
    struct ferry_error why = {0};
    int result = 0;

    wire_request_encode(&body, pages, count);
    pthread_mutex_lock(&postcopy->send_lock);
    if (postcopy->attached) {
        result = link_send(&postcopy->streams[0].link, WIRE_REQUEST, 0, &body, &why);
        postcopy->sent_ns = clock_now_ns();
    }
    pthread_mutex_unlock(&postcopy->send_lock);
    buffer_free(&body);
    if (result < 0)
        postcopy_lose(postcopy, result, &why);
}

static void send_keepalive(struct postcopy *postcopy, uint64_t interval_ns)
{
    struct ferry_error why = {0};
    int result = 0;

    pthread_mutex_lock(&postcopy->send_lock);
    if (postcopy->attached && clock_now_ns() >= postcopy->sent_ns + interval_ns) {
        result = link_send(&postcopy->streams[0].link, WIRE_KEEPALIVE, 0, NULL, &why);
        postcopy->sent_ns = clock_now_ns();
    }
    pthread_mutex_unlock(&postcopy->send_lock);
    if (result < 0)
        postcopy_lose(postcopy, result, &why);
}

/* The page is not missing: it never had a mapping, or it was taken along when others were taken away. */
static void map_valid(struct postcopy *postcopy, size_t region, size_t page)
{
    size_t first = page / MAP_AROUND * MAP_AROUND;
    size_t end =
        first + MAP_AROUND < postcopy->map->pages[region] ? first + MAP_AROUND : postcopy->map->pages[region];
    size_t from = page;
    size_t to = page + 1;

    /* A hole becomes a page of zeros. */
    (void)*(volatile uint8_t *)page_alias(postcopy, region, page);
    uffd_map(postcopy->uffd, page_address(postcopy, region, page), FERRY_PAGE_SIZE);
    while (from > first && !test_bit(&postcopy->missing, region, from - 1))
        from--;
    while (to < end && !test_bit(&postcopy->missing, region, to))
        to++;
    if (from < page)
        uffd_map(postcopy->uffd, page_address(postcopy, region, from), (page - from) * FERRY_PAGE_SIZE);
    if (page + 1 < to)
        uffd_map(postcopy->uffd, page_address(postcopy, region, page + 1), (to - page - 1) * FERRY_PAGE_SIZE);
}

static void pending_add(struct postcopy *postcopy, size_t region, size_t page, uint64_t now)
{
    pthread_mutex_lock(&postcopy->lock);
    if (postcopy->pending_count < POSTCOPY_PENDING_MAX)
        postcopy->pending[postcopy->pending_count++] =
            (struct postcopy_pending){.region = region, .page = page, .since_ns = now};
    pthread_mutex_unlock(&postcopy->lock);
}

/* COUNT: its time is one of a fault served. */
static void pending_end(struct postcopy *postcopy, size_t region, size_t page, bool count)
{
    uint64_t now = clock_now_ns();

    pthread_mutex_lock(&postcopy->lock);
    for (size_t i = 0; i < postcopy->pending_count; i++) {
        struct postcopy_pending *pending = &postcopy->pending[i];

        if (pending->region != region || pending->page != page)
            continue;
        if (count)
            latency_add(&postcopy->latency, now - pending->since_ns);
        *pending = postcopy->pending[--postcopy->pending_count];
        break;
    }
    pthread_mutex_unlock(&postcopy->lock);
}

/* True when the page must be asked for: it is in *WANTED. */
static bool take_fault(struct postcopy *postcopy, uint64_t address, uint64_t now, struct wire_page *wanted)
{
    const struct page_map *map = postcopy->map;
    size_t region = 0;

    while (region < map->count &&
           address - (uintptr_t)map->regions[region].host_ptr >= map->regions[region].size)
        region++;
    if (region == map->count)
        return false;

    size_t page = (address - (uintptr_t)map->regions[region].host_ptr) / FERRY_PAGE_SIZE;

    if (!test_bit(&postcopy->missing, region, page)) {
        map_valid(postcopy, region, page);
        return false;
    }
    if (set_bit(&postcopy->requested, region, page))
        return false;
    pending_add(postcopy, region, page, now);
    /* It may have been placed, and the one who did so not have seen the request. */
    if (!test_bit(&postcopy->missing, region, page)) {
        pending_end(postcopy, region, page, true);
        map_valid(postcopy, region, page);
        return false;
    }
    *wanted = (struct wire_page){.region = postcopy->number_of[region], .page = (uint32_t)page};
    return true;
}

static void take_faults(struct postcopy *postcopy)
{
    struct wire_page wanted[16];
    uint64_t addresses[16];
    size_t count;

    do {
        uint64_t now = clock_now_ns();
        size_t found = 0;

        count = uffd_faults(postcopy->uffd, addresses, 16);
        for (size_t i = 0; i < count; i++)
            found += take_fault(postcopy, addresses[i], now, &wanted[found]);
        if (found > 0)
            postcopy_request(postcopy, wanted, found);
    } while (count == 16);
}

/* Ends when quit_fd is readable. */
void *postcopy_fault_main(void *opaque)
{
    struct postcopy *postcopy = opaque;
    uint64_t interval_ns = control_interval_ns(&postcopy->destination->control);

    for (;;) {
        struct pollfd polled[2] = {
            {.fd = postcopy->uffd, .events = POLLIN},
            {.fd = postcopy->quit_fd, .events = POLLIN},
        };

        poll(polled, 2, (int)(interval_ns / NS_PER_MS) + 1);
        if (polled[1].revents)
            return NULL;
        if (polled[0].revents)
            take_faults(postcopy);
        send_keepalive(postcopy, interval_ns);
    }
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
        if (!test_bit(&postcopy->missing, region, run->first + i))
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
    uffd_map(postcopy->uffd, page_address(postcopy, run->region, run->first),
             (size_t)run->pages * FERRY_PAGE_SIZE);
    for (size_t i = 0; i < run->pages; i++) {
        if (test_bit(&postcopy->requested, run->region, run->first + i))
            pending_end(postcopy, run->region, run->first + i, true);
    }

    uint64_t left = __atomic_sub_fetch(&postcopy->left, placed, __ATOMIC_ACQ_REL);

    __atomic_store_n(&postcopy->session->pages_left, left, __ATOMIC_RELAXED);
    if (left == 0) {
        pthread_mutex_lock(&postcopy->lock);
        pthread_cond_broadcast(&postcopy->changed);
        pthread_mutex_unlock(&postcopy->lock);
    }
}

static void zero_run(struct postcopy *postcopy, const struct wire_run *run)
{
    for (size_t i = 0; i < run->pages; i++) {
        uint8_t *page = page_alias(postcopy, run->region, run->first + i);

        if (isal_zero_detect(page, FERRY_PAGE_SIZE) != 0)
            memset(page, 0, FERRY_PAGE_SIZE);
    }
}

static int take_pages(struct postcopy_stream *stream, struct frame *frame, struct ferry_error *err)
{
    struct postcopy *postcopy = stream->postcopy;
    uint64_t zero = 0;
    uint32_t round;
    size_t count;
    int iov_count = 0;
    int result = wire_batch_decode(&frame->body, frame->data, &round, stream->runs, &count, err);

    for (size_t i = 0; result == 0 && i < count; i++) {
        struct wire_run *run = &stream->runs[i];

        result = check_run(postcopy, run, err);
        if (result == 0 && run->kind == WIRE_PAGE_RAW)
            stream->iov[iov_count++] =
                (struct iovec){.iov_base = page_alias(postcopy, run->region, run->first),
                               .iov_len = (size_t)run->pages * FERRY_PAGE_SIZE};
    }
    if (result == 0)
        result = link_receive_data(&stream->link, stream->iov, iov_count, err);
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

/* Ends when its connection does. Silence is the first connection's to notice. */
void *postcopy_stream_main(void *opaque)
{
    struct postcopy_stream *stream = opaque;
    struct postcopy *postcopy = stream->postcopy;
    uint64_t timeout =
        stream == &postcopy->streams[0] ? postcopy->session->settings.peer_timeout_ns : CHANNEL_FOREVER;
    struct ferry_error why = {0};
    struct frame frame;
    int result;

    do {
        /* Of the first one mostly nothing is there: to look would be in vain. */
        result = stream == &postcopy->streams[0] ? channel_await(&stream->link.channel, timeout, &why) : 0;
        if (result == 0)
            result = link_receive(&stream->link, &frame, timeout, &why);
        if (result == 0 && frame.type == WIRE_PAGES)
            result = take_pages(stream, &frame, &why);
        else if (result == 0 && frame.type != WIRE_KEEPALIVE)
            result =
                error_set(&why, -EBADMSG, "%s frame while fetching", wire_type_name((uint8_t)frame.type));
    } while (result == 0);
    postcopy_lose(postcopy, result, &why);
    return NULL;
}
