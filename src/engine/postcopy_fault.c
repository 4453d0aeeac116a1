#include "engine/postcopy_parts.h"

#include "base/clock.h"
#include "base/error.h"
#include "engine/uffd.h"

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>

/* A page that only lacks its mapping gets it together with its neighbours in so many pages. */
#define MAP_AROUND 64
/* Faults taken at once. */
#define FAULTS_MAX 16

/* Returns what it was. */
static bool set_bit(struct page_set *set, size_t region, size_t page)
{
    uint64_t mask = UINT64_C(1) << page % 64;

    return __atomic_fetch_or(&set->bits[region][page / 64], mask, __ATOMIC_SEQ_CST) & mask;
}

/* ---- saying something ---- */

void postcopy_wake(struct postcopy *postcopy)
{
    eventfd_write(postcopy->wake_fd, 1);
}

/* Under send_lock. Without waiting: who waits for the source to read must not keep pages from being read. */
static int send_ready(struct postcopy *postcopy, struct ferry_error *err)
{
    struct link *link = &postcopy->streams[0].link;
    int result = link_flush_ready(link, err);

    __atomic_store_n(&postcopy->unsent, result == 0 && link->out.size > 0, __ATOMIC_SEQ_CST);
    return result;
}

void postcopy_request(struct postcopy *postcopy, const struct wire_page *pages, size_t count)
{
    struct buffer body = BUFFER_INIT;
    struct ferry_error why = {0};
    int result = 0;

    wire_request_encode(&body, pages, count);
    pthread_mutex_lock(&postcopy->send_lock);
    if (postcopy->attached) {
        link_queue(&postcopy->streams[0].link, WIRE_REQUEST, 0, &body);
        result = send_ready(postcopy, &why);
        postcopy->sent_ns = clock_now_ns();
    }
    pthread_mutex_unlock(&postcopy->send_lock);
    buffer_free(&body);
    if (result < 0)
        postcopy_lose(postcopy, result, &why);
    else if (__atomic_load_n(&postcopy->unsent, __ATOMIC_SEQ_CST))
        postcopy_wake(postcopy);
}

/* What was left, or, when nothing was said for the interval, that we live. */
static int send_more(struct postcopy *postcopy, uint64_t interval_ns, struct ferry_error *err)
{
    int result = 0;

    pthread_mutex_lock(&postcopy->send_lock);
    if (postcopy->attached) {
        if (clock_now_ns() >= postcopy->sent_ns + interval_ns) {
            link_queue(&postcopy->streams[0].link, WIRE_KEEPALIVE, 0, NULL);
            postcopy->sent_ns = clock_now_ns();
        }
        result = send_ready(postcopy, err);
    }
    pthread_mutex_unlock(&postcopy->send_lock);
    return result;
}

/* ---- faults ---- */

/* The page is not missing: it never had a mapping, or it was taken along when others were taken away. */
static void map_valid(struct postcopy *postcopy, size_t region, size_t page)
{
    size_t first = page / MAP_AROUND * MAP_AROUND;
    size_t end =
        first + MAP_AROUND < postcopy->map->pages[region] ? first + MAP_AROUND : postcopy->map->pages[region];
    size_t from = page;
    size_t to = page + 1;

    /* A hole becomes a page of zeros. */
    (void)*(volatile uint8_t *)postcopy_alias(postcopy, region, page);
    uffd_map(postcopy->uffd, postcopy_address(postcopy, region, page), FERRY_PAGE_SIZE);
    while (from > first && !postcopy_test(&postcopy->missing, region, from - 1))
        from--;
    while (to < end && !postcopy_test(&postcopy->missing, region, to))
        to++;
    if (from < page)
        uffd_map(postcopy->uffd, postcopy_address(postcopy, region, from), (page - from) * FERRY_PAGE_SIZE);
    if (page + 1 < to)
        uffd_map(postcopy->uffd, postcopy_address(postcopy, region, page + 1),
                 (to - page - 1) * FERRY_PAGE_SIZE);
}

void postcopy_pending_add(struct postcopy *postcopy, size_t region, size_t page, uint64_t now)
{
    pthread_mutex_lock(&postcopy->lock);
    if (postcopy->pending_count < POSTCOPY_PENDING_MAX)
        postcopy->pending[postcopy->pending_count++] =
            (struct postcopy_pending){.region = region, .page = page, .since_ns = now};
    pthread_mutex_unlock(&postcopy->lock);
}

void postcopy_pending_end(struct postcopy *postcopy, size_t region, size_t page)
{
    uint64_t now = clock_now_ns();

    pthread_mutex_lock(&postcopy->lock);
    for (size_t i = 0; i < postcopy->pending_count; i++) {
        struct postcopy_pending *pending = &postcopy->pending[i];

        if (pending->region != region || pending->page != page)
            continue;
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

    if (!postcopy_test(&postcopy->missing, region, page)) {
        map_valid(postcopy, region, page);
        return false;
    }
    if (set_bit(&postcopy->requested, region, page))
        return false;
    postcopy_pending_add(postcopy, region, page, now);
    /* It may have been placed, and the one who did so not have seen the request. */
    if (!postcopy_test(&postcopy->missing, region, page)) {
        postcopy_pending_end(postcopy, region, page);
        map_valid(postcopy, region, page);
        return false;
    }
    *wanted = (struct wire_page){.region = postcopy->number_of[region], .page = (uint32_t)page};
    return true;
}

/* Returns whether any page was asked for. */
static bool take_faults(struct postcopy *postcopy)
{
    struct wire_page wanted[FAULTS_MAX];
    uint64_t addresses[FAULTS_MAX];
    bool asked = false;
    size_t count;

    do {
        uint64_t now = clock_now_ns();
        size_t found = 0;

        count = uffd_faults(postcopy->uffd, addresses, FAULTS_MAX);
        for (size_t i = 0; i < count; i++)
            found += take_fault(postcopy, addresses[i], now, &wanted[found]);
        if (found > 0)
            postcopy_request(postcopy, wanted, found);
        asked = asked || found > 0;
    } while (count == FAULTS_MAX);
    return asked;
}

/* ---- the first connection ---- */

/* What has come by it. */
static int receive(struct postcopy *postcopy, uint64_t *heard_ns, struct ferry_error *err)
{
    struct postcopy_stream *stream = &postcopy->streams[0];
    const uint8_t *data;
    struct frame frame;
    int result;

    do {
        result = link_take(&stream->link, &frame, &data, err);
        if (result == 1)
            *heard_ns = clock_now_ns();
        if (result == 1 && frame.type == WIRE_PAGES)
            result = postcopy_take_pages(stream, &frame, data, err);
        else if (result == 1 && frame.type != WIRE_KEEPALIVE)
            result = error_set(err, -EBADMSG, "%s frame while fetching", wire_type_name((uint8_t)frame.type));
        else if (result == 0)
            return 0;
    } while (result >= 0 && link_holds_data(&stream->link));
    return result < 0 ? result : 0;
}

/* After wake_fd. False: quit. *HEARD_NS is 0 while it does not have the connection. */
static bool look_anew(struct postcopy *postcopy, uint64_t *heard_ns)
{
    eventfd_t value;
    bool quit;

    eventfd_read(postcopy->wake_fd, &value);
    pthread_mutex_lock(&postcopy->lock);
    quit = postcopy->quit;
    if (quit || postcopy->lost)
        postcopy->served = false;
    if (!postcopy->served)
        *heard_ns = 0;
    else if (*heard_ns == 0)
        *heard_ns = clock_now_ns();
    pthread_cond_broadcast(&postcopy->changed);
    pthread_mutex_unlock(&postcopy->lock);
    return !quit;
}

/* Says what there is, and hears it if it was worth to LOOK. */
static void serve(struct postcopy *postcopy, uint64_t interval_ns, bool look, uint64_t *heard_ns)
{
    uint64_t timeout_ns = postcopy->session->settings.peer_timeout_ns;
    struct ferry_error why = {0};
    int result = look ? receive(postcopy, heard_ns, &why) : 0;

    if (result == 0)
        result = send_more(postcopy, interval_ns, &why);
    if (result == 0 && clock_now_ns() > *heard_ns + timeout_ns)
        result = error_set(&why, -ETIMEDOUT, "the other side was silent for %.1f s",
                           (double)timeout_ns / NS_PER_S);
    /* That wakes, too. */
    if (result < 0)
        postcopy_lose(postcopy, result, &why);
}

void *postcopy_fault_main(void *opaque)
{
    struct postcopy *postcopy = opaque;
    uint64_t interval_ns = control_interval_ns(&postcopy->destination->control);
    uint64_t heard_ns = 0;

    for (;;) {
        bool unsent = __atomic_load_n(&postcopy->unsent, __ATOMIC_SEQ_CST);
        struct pollfd polled[3] = {
            {.fd = postcopy->wake_fd, .events = POLLIN},
            /* As long as requests cannot be sent, none are made. */
            {.fd = heard_ns && unsent ? -1 : postcopy->uffd, .events = POLLIN},
            {.fd = heard_ns ? postcopy->streams[0].link.channel.fd : -1,
             .events = unsent ? POLLIN | POLLOUT : POLLIN},
        };
        bool look;

        poll(polled, 3, (int)(interval_ns / NS_PER_MS) + 1);
        if (polled[0].revents && !look_anew(postcopy, &heard_ns))
            return NULL;
        look = polled[0].revents || polled[2].revents;
        /* The answer may be there already. */
        if (polled[1].revents && take_faults(postcopy))
            look = true;
        if (heard_ns)
            serve(postcopy, interval_ns, look, &heard_ns);
    }
}
