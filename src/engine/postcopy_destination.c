#include "engine/postcopy_destination.h"

#include "base/bitmap.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/sock.h"
#include "engine/postcopy_parts.h"
#include "engine/uffd.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* How often progress is brought up to date. */
#define PROGRESS_NS (100 * NS_PER_MS)

/* ---- connections ---- */

/* Until the fault thread has let go of the first connection, which has failed, or is shut down. */
static void await_unserved(struct postcopy *postcopy)
{
    pthread_mutex_lock(&postcopy->lock);
    while (postcopy->served)
        pthread_cond_wait(&postcopy->changed, &postcopy->lock);
    pthread_mutex_unlock(&postcopy->lock);
}

static void postcopy_detach(struct postcopy *postcopy)
{
    pthread_mutex_lock(&postcopy->send_lock);
    postcopy->attached = false;
    pthread_mutex_unlock(&postcopy->send_lock);
    for (size_t i = 0; i < postcopy->stream_count; i++) {
        struct postcopy_stream *stream = &postcopy->streams[i];

        if (stream->link.channel.fd < 0)
            continue;
        channel_shutdown(&stream->link.channel);
        if (i == 0)
            await_unserved(postcopy);
        thread_join(&stream->thread);
        session_remove_channel(postcopy->session, &stream->link.channel);
        link_close(&stream->link);
    }
}

static void close_all(struct channel channels[static FERRY_STREAMS_MAX])
{
    for (size_t i = 0; i < FERRY_STREAMS_MAX; i++)
        channel_close(&channels[i]);
}

/* All connections of one attempt of the source's; WATCH_FD as gate_admit's. The channels are the caller's. */
static int admit(struct postcopy *postcopy, int watch_fd, uint64_t deadline,
                 struct channel channels[static FERRY_STREAMS_MAX], struct ferry_error *err)
{
    uint64_t timeout = postcopy->session->settings.peer_timeout_ns;
    uint64_t patience = deadline;
    size_t count = 0;

    for (size_t i = 0; i < FERRY_STREAMS_MAX; i++)
        channels[i] = (struct channel){.fd = -1};
    while (count < postcopy->stream_count) {
        struct wire_hello hello;
        struct channel channel;
        int result = gate_admit(&postcopy->destination->gate, watch_fd, patience, &hello, &channel, err);

        if (result < 0) {
            close_all(channels);
            if (result != -ETIMEDOUT || patience == deadline)
                return result;
            patience = deadline; /* that attempt came to nothing */
            count = 0;
            continue;
        }
        if (hello.connection != WIRE_CONNECTION_FETCH || hello.streams != postcopy->stream_count) {
            gate_turn_away(&postcopy->destination->gate, &channel, FERRY_CAUSE_NETWORK,
                           "this migration is under way already");
            continue;
        }
        if (channels[hello.index].fd >= 0)
            channel_close(&channels[hello.index]); /* of an attempt before */
        else
            count++;
        channels[hello.index] = channel;
        /* Once one is here the others are on their way. */
        patience = clock_now_ns() + timeout < deadline ? clock_now_ns() + timeout : deadline;
    }
    return 0;
}

/* What is missing here, for a source that does not know what has arrived. */
static void queue_missing(struct postcopy *postcopy)
{
    const struct page_map *map = postcopy->map;
    struct link *link = &postcopy->streams[0].link;
    struct buffer body = BUFFER_INIT;

    for (size_t region = 0; region < map->count; region++) {
        size_t words = bitmap_words(map->pages[region]);

        for (size_t word = 0; word < words; word += WIRE_MISSING_WORDS_MAX) {
            size_t count = words - word < WIRE_MISSING_WORDS_MAX ? words - word : WIRE_MISSING_WORDS_MAX;
            struct wire_missing missing = {.region = postcopy->number_of[region],
                                           .first = (uint32_t)(word * 64),
                                           .words = (uint32_t)count};

            /* Nobody clears bits now. */
            if (bitmap_count(postcopy->missing.bits[region] + word, count * 64) == 0)
                continue;
            buffer_clear(&body);
            wire_missing_encode(&body, &missing, postcopy->missing.bits[region] + word);
            link_queue(link, WIRE_MISSING, 0, &body);
        }
    }
    buffer_free(&body);
}

/* Waiters of pages that were asked for on a connection that is no more. */
static void ask_again(struct postcopy *postcopy)
{
    const struct page_map *map = postcopy->map;
    struct wire_page wanted[WIRE_REQUEST_PAGES_MAX];
    size_t count = 0;

    for (size_t region = 0; region < map->count; region++) {
        for (size_t word = 0; word < bitmap_words(map->pages[region]); word++) {
            uint64_t bits = __atomic_load_n(&postcopy->requested.bits[region][word], __ATOMIC_SEQ_CST) &
                            __atomic_load_n(&postcopy->missing.bits[region][word], __ATOMIC_SEQ_CST);

            for (; bits; bits &= bits - 1) {
                wanted[count++] =
                    (struct wire_page){.region = postcopy->number_of[region],
                                       .page = (uint32_t)(word * 64 + (size_t)__builtin_ctzll(bits))};
                if (count == WIRE_REQUEST_PAGES_MAX) {
                    postcopy_request(postcopy, wanted, count);
                    count = 0;
                }
            }
        }
    }
    if (count > 0)
        postcopy_request(postcopy, wanted, count);
}

/* READY, and then the connections work. Also on failure the channels are taken over. */
static int attach(struct postcopy *postcopy, const struct channel channels[static FERRY_STREAMS_MAX],
                  struct ferry_error *err)
{
    struct ferry_session *session = postcopy->session;
    uint64_t left = __atomic_load_n(&postcopy->left, __ATOMIC_ACQUIRE);
    struct buffer body = BUFFER_INIT;
    int result;

    pthread_mutex_lock(&postcopy->lock);
    postcopy->lost = false;
    pthread_mutex_unlock(&postcopy->lock);
    for (size_t i = 0; i < postcopy->stream_count; i++) {
        struct link *link = &postcopy->streams[i].link;

        sock_tune(channels[i].fd, (unsigned)(session->settings.peer_timeout_ns / NS_PER_MS), NULL);
        link_init_channel(link, &channels[i]);
        link->received = 1;
        session_add_channel(session, &link->channel);
    }
    if (left > 0)
        queue_missing(postcopy);
    wire_ready_encode(&body, left);
    link_queue(&postcopy->streams[0].link, WIRE_READY, 0, &body);
    buffer_free(&body);
    result = link_flush(&postcopy->streams[0].link, err);
    for (size_t i = 1; result == 0 && i < postcopy->stream_count; i++) {
        char name[32];

        snprintf(name, sizeof(name), "ferry-fetch%zu", i);
        result = thread_start(&postcopy->streams[i].thread, THREAD_MIGRATION, name, postcopy_stream_main,
                              &postcopy->streams[i], err);
    }
    if (result < 0) {
        postcopy_detach(postcopy);
        return result;
    }
    pthread_mutex_lock(&postcopy->send_lock);
    postcopy->attached = true;
    postcopy->sent_ns = clock_now_ns();
    __atomic_store_n(&postcopy->unsent, false, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&postcopy->send_lock);
    pthread_mutex_lock(&postcopy->lock);
    postcopy->served = true;
    pthread_mutex_unlock(&postcopy->lock);
    postcopy_wake(postcopy);
    ask_again(postcopy);
    return 0;
}

/* ---- beginning ---- */

static int map_aliases(struct postcopy *postcopy, struct ferry_error *err)
{
    for (size_t i = 0; i < postcopy->map->count; i++) {
        const struct ferry_ram_region *region = &postcopy->map->regions[i];
        struct stat status;
        void *alias;

        if (region->memfd < 0)
            return error_set(err, -EOPNOTSUPP,
                             "quick resume is not possible: memory region %s has no descriptor",
                             region->name);
        alias = mmap(NULL, region->size, PROT_READ | PROT_WRITE, MAP_SHARED, region->memfd, 0);
        if (alias == MAP_FAILED)
            return error_set_errno(err, -errno, "cannot map memory region %s once more", region->name);
        postcopy->alias[i] = alias;
        postcopy->huge[i] = fstat(region->memfd, &status) == 0 && status.st_blksize > FERRY_PAGE_SIZE;
    }
    return 0;
}

/* No page has a mapping any more, missing or not: that takes a while, and the guest still runs at the source.
 */
static int watch(struct postcopy *postcopy, struct ferry_error *err)
{
    int result = 0;

    /* It would be the first to wait. */
    prefault_close(&postcopy->destination->prefault);
    for (size_t i = 0; result == 0 && i < postcopy->map->count; i++) {
        const struct ferry_ram_region *region = &postcopy->map->regions[i];

        result = uffd_watch(postcopy->uffd, region->host_ptr, region->size, err);
        if (result == 0)
            result = uffd_unmap(region->host_ptr, region->size, err);
    }
    __atomic_store_n(&postcopy->watched, true, __ATOMIC_SEQ_CST);
    return result;
}

static int postcopy_make(struct postcopy *postcopy, struct ferry_error *err)
{
    int result = 0;

    postcopy->uffd = uffd_open(err);
    if (postcopy->uffd < 0)
        return postcopy->uffd;
    postcopy->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (postcopy->wake_fd < 0)
        return error_set_errno(err, -errno, "cannot make an eventfd for a migration");
    result = map_aliases(postcopy, err);
    if (result == 0)
        result = page_set_init(&postcopy->missing, postcopy->map, err);
    if (result == 0)
        result = page_set_init(&postcopy->requested, postcopy->map, err);
    if (result == 0)
        result = watch(postcopy, err);
    if (result == 0)
        result = thread_start(&postcopy->fault_thread, THREAD_MIGRATION, "ferry-missing", postcopy_fault_main,
                              postcopy, err);
    return result;
}

static struct postcopy *postcopy_new(struct destination *destination, uint16_t connections)
{
    struct postcopy *postcopy = calloc(1, sizeof(*postcopy));
    struct postcopy_stream *streams = calloc(connections, sizeof(*streams));

    if (!postcopy || !streams) {
        free(postcopy);
        free(streams);
        return NULL;
    }
    postcopy->destination = destination;
    postcopy->session = destination->session;
    postcopy->map = &destination->map;
    for (size_t i = 0; i < destination->place.region_count; i++)
        postcopy->number_of[destination->place.region_of[i]] = (uint8_t)i;
    postcopy->uffd = postcopy->wake_fd = -1;
    postcopy->streams = streams;
    postcopy->stream_count = connections;
    for (size_t i = 0; i < connections; i++) {
        streams[i].postcopy = postcopy;
        streams[i].link.channel.fd = -1;
    }
    pthread_mutex_init(&postcopy->send_lock, NULL);
    pthread_mutex_init(&postcopy->lock, NULL);
    thread_cond_init(&postcopy->changed);
    return postcopy;
}

int postcopy_begin(struct postcopy **out, struct destination *destination, uint16_t connections,
                   struct ferry_error *err)
{
    struct ferry_session *session = destination->session;
    struct postcopy *postcopy = postcopy_new(destination, connections);
    struct buffer body = BUFFER_INIT;
    struct channel channels[FERRY_STREAMS_MAX];
    int result = postcopy ? 0 : error_set(err, -ENOMEM, "out of memory for quick resume");

    *out = postcopy;
    if (result == 0)
        result = postcopy_make(postcopy, err);
    if (result < 0)
        return session_fail(session, FERRY_CAUSE_MEMORY, result, err);
    wire_fetch_encode(&body, connections);
    result = control_send(&destination->control, WIRE_FETCH, 0, &body, err);
    buffer_free(&body);
    if (result < 0)
        return result;
    result = admit(postcopy, destination->control.link.channel.fd,
                   clock_now_ns() + session->settings.peer_timeout_ns, channels, err);
    if (result == 0)
        result = attach(postcopy, channels, err);
    if (result == -ECANCELED && session_check(session, err) < 0)
        return session_check(session, NULL);
    return result < 0 ? session_fail_network(session, result, err) : 0;
}

int postcopy_add(struct postcopy *postcopy, struct frame *frame, struct ferry_error *err)
{
    const struct page_place *place = &postcopy->destination->place;
    uint64_t *bits = malloc(WIRE_MISSING_WORDS_MAX * sizeof(*bits));
    struct wire_missing missing;
    int result = bits ? wire_missing_decode(&frame->body, &missing, bits, err)
                      : error_set(err, -ENOMEM, "out of memory for a MISSING frame");

    if (result == 0) {
        size_t region = missing.region < place->region_count ? place->region_of[missing.region] : 0;
        size_t first = missing.first / 64;
        size_t words = bitmap_words(postcopy->map->pages[region]);
        size_t tail = postcopy->map->pages[region] % 64;

        if (missing.region >= place->region_count || first >= words || missing.words > words - first ||
            (tail && first + missing.words == words && bits[missing.words - 1] >> tail))
            result = error_set(err, -EBADMSG, "MISSING frame for pages outside of memory");
        for (size_t i = 0; result == 0 && i < missing.words; i++)
            __atomic_fetch_or(&postcopy->missing.bits[region][first + i], bits[i], __ATOMIC_RELAXED);
    }
    free(bits);
    return result;
}

int postcopy_prepare(struct postcopy *postcopy, struct ferry_error *err)
{
    struct ferry_session *session = postcopy->session;
    uint64_t left = page_set_count(&postcopy->missing, postcopy->map);

    __atomic_store_n(&postcopy->left, left, __ATOMIC_RELEASE);
    __atomic_store_n(&session->pages_left, left, __ATOMIC_RELAXED);
    pthread_mutex_lock(&session->lock);
    session->progress.fetch.used = true;
    session->progress.fetch.missing_pages = left;
    pthread_mutex_unlock(&session->lock);
    /* A connection that was lost has let go of whoever waits: from then on nobody may touch memory. */
    return session_check(session, err);
}

/* ---- fetching ---- */

static void report(struct postcopy *postcopy, uint64_t begin_ns, struct wire_fetched *fetched)
{
    struct ferry_session *session = postcopy->session;

    pthread_mutex_lock(&postcopy->lock);
    *fetched = (struct wire_fetched){
        .faults = postcopy->latency.count,
        .median_ns = latency_quantile(&postcopy->latency, 500),
        .p99_ns = latency_quantile(&postcopy->latency, 990),
        .max_ns = postcopy->latency.max_ns,
        .duration_ns = clock_now_ns() - begin_ns,
    };
    pthread_mutex_unlock(&postcopy->lock);
    pthread_mutex_lock(&session->lock);

    struct ferry_fetch_progress *fetch = &session->progress.fetch;

    fetched->paused_ns = fetch->paused_ns;
    fetch->faults = fetched->faults;
    fetch->fault_median_ns = fetched->median_ns;
    fetch->fault_p99_ns = fetched->p99_ns;
    fetch->fault_max_ns = fetched->max_ns;
    fetch->duration_ns = fetched->duration_ns;
    pthread_mutex_unlock(&session->lock);
}

static void set_percent(struct postcopy *postcopy)
{
    uint64_t all = postcopy->session->progress.fetch.missing_pages;
    uint64_t left = __atomic_load_n(&postcopy->left, __ATOMIC_RELAXED);

    session_set_percent(postcopy->session, all - left, all);
}

/* Until all is there (true), or the connection is lost. */
static bool await_pages(struct postcopy *postcopy, uint64_t begin_ns)
{
    bool done, lost;

    do {
        struct wire_fetched fetched;

        pthread_mutex_lock(&postcopy->lock);
        done = __atomic_load_n(&postcopy->left, __ATOMIC_ACQUIRE) == 0;
        lost = postcopy->lost;
        if (!done && !lost)
            thread_cond_wait_until(&postcopy->changed, &postcopy->lock, clock_now_ns() + PROGRESS_NS);
        pthread_mutex_unlock(&postcopy->lock);
        set_percent(postcopy);
        report(postcopy, begin_ns, &fetched);
    } while (!done && !lost);
    return done;
}

/* What somebody has said of the end; 0: nothing, and whatever else has stopped the waiting is over. */
static enum ferry_fetch_end fetch_end(struct postcopy *postcopy, struct ferry_error *err)
{
    struct ferry_session *session = postcopy->session;
    eventfd_t value;

    pthread_mutex_lock(&session->lock);

    enum ferry_fetch_end how = session->fetch_end;

    if (how)
        error_set(err, -ECONNABORTED, "%s", session->fetch_end_why);
    else
        eventfd_read(session->stop_fd, &value);
    pthread_mutex_unlock(&session->lock);
    return how;
}

static void set_disconnected(struct postcopy *postcopy, bool disconnected, uint64_t since_ns)
{
    struct ferry_session *session = postcopy->session;

    pthread_mutex_lock(&session->lock);
    session->progress.fetch.disconnected = disconnected;
    if (!disconnected) {
        session->progress.fetch.reconnects++;
        session->progress.fetch.paused_ns += clock_now_ns() - since_ns;
    }
    pthread_mutex_unlock(&session->lock);
}

/* The guest stands still until the source is here again. False: somebody has ended that. */
static bool reconnect(struct postcopy *postcopy)
{
    struct ferry_session *session = postcopy->session;
    struct ferry_error why;
    struct ferry_error err = {0};
    char text[FERRY_ERROR_TEXT_SIZE];
    uint64_t since = clock_now_ns();
    struct channel channels[FERRY_STREAMS_MAX];
    int result;

    if (fetch_end(postcopy, &err))
        return false;
    postcopy_detach(postcopy);
    pthread_mutex_lock(&postcopy->lock);
    why = postcopy->why;
    pthread_mutex_unlock(&postcopy->lock);
    snprintf(text, sizeof(text),
             "the connection to host %.63s, which has %llu MiB of its memory, is lost (%.300s)",
             session->handover.source,
             (unsigned long long)(__atomic_load_n(&postcopy->left, __ATOMIC_RELAXED) * FERRY_PAGE_SIZE /
                                  (1u << 20)),
             why.text);
    set_disconnected(postcopy, true, 0);
    if (session->ops->hold)
        session->ops->hold(session->guest, true, text);
    session_log(session, FERRY_LOG_WARN, "The guest is paused: %s", text);
    for (;;) {
        result = admit(postcopy, -1, UINT64_MAX, channels, &err);
        if (result == 0)
            result = attach(postcopy, channels, &err);
        if (result == 0)
            break;
        if (fetch_end(postcopy, &err))
            return false;
        if (result != -ECANCELED)
            session_log(session, FERRY_LOG_WARN, "The connection could not be made again: %s", err.text);
    }
    set_disconnected(postcopy, false, since);
    session_log(session, FERRY_LOG_INFO, "The connection to %s is back after %.1f s; the guest goes on",
                session->handover.source, (double)(clock_now_ns() - since) / NS_PER_S);
    if (session->ops->hold)
        session->ops->hold(session->guest, false, "");
    return true;
}

/* Reads, in the place of the fault thread, what still comes, until the source closes. */
static bool hear_close(struct postcopy *postcopy)
{
    struct channel *channel = &postcopy->streams[0].link.channel;
    uint64_t deadline = clock_now_ns() + postcopy->session->settings.peer_timeout_ns;
    uint8_t byte;
    int result = 0;

    await_unserved(postcopy);
    channel->cancel_fd = -1;
    while (result == 0 && clock_now_ns() < deadline)
        result = channel_read(channel, &byte, 1, deadline - clock_now_ns(), NULL);
    return result == -EPIPE;
}

/* Tells the source, and waits until it has heard: it closes the connections then. */
static bool tell_fetched(struct postcopy *postcopy, const struct wire_fetched *fetched)
{
    struct buffer body = BUFFER_INIT;
    struct ferry_error why = {0};
    uint64_t deadline = clock_now_ns() + postcopy->session->settings.peer_timeout_ns;
    bool heard, cancelled;
    int result;

    wire_fetched_encode(&body, fetched);
    pthread_mutex_lock(&postcopy->send_lock);
    result =
        postcopy->attached ? link_send(&postcopy->streams[0].link, WIRE_FETCHED, 0, &body, &why) : -EPIPE;
    pthread_mutex_unlock(&postcopy->send_lock);
    buffer_free(&body);
    pthread_mutex_lock(&postcopy->lock);
    while (result == 0 && !postcopy->lost &&
           thread_cond_wait_until(&postcopy->changed, &postcopy->lock, deadline))
        continue;
    heard = result == 0 && postcopy->lost && postcopy->why.code == -EPIPE;
    cancelled = postcopy->lost && postcopy->why.code == -ECANCELED;
    pthread_mutex_unlock(&postcopy->lock);
    if (result == 0 && cancelled)
        heard = hear_close(postcopy);
    postcopy_detach(postcopy);
    return heard;
}

/* All is here. A source that was not told would wait for ever: it may come once more. */
static void say_goodbye(struct postcopy *postcopy, const struct wire_fetched *fetched)
{
    struct ferry_session *session = postcopy->session;
    struct ferry_error err = {0};
    struct channel channels[FERRY_STREAMS_MAX];

    if (tell_fetched(postcopy, fetched))
        return;
    if (admit(postcopy, -1, clock_now_ns() + session->settings.peer_timeout_ns, channels, &err) == 0 &&
        attach(postcopy, channels, &err) == 0 && tell_fetched(postcopy, fetched))
        return;
    session_log(session, FERRY_LOG_WARN, "All memory is here, but %s could not be told",
                session->handover.source);
}

/* Nothing is missing: touching memory costs nothing any more. */
static void end_watching(struct postcopy *postcopy)
{
    postcopy_release(postcopy);
    __atomic_store_n(&postcopy->watched, false, __ATOMIC_SEQ_CST);
}

enum ferry_outcome postcopy_fetch(struct postcopy *postcopy, struct ferry_error *err)
{
    struct ferry_session *session = postcopy->session;
    uint64_t begin = clock_now_ns();
    struct wire_fetched fetched;
    enum ferry_fetch_end how = 0;

    session_enter_phase(session, FERRY_PHASE_FETCH);
    while (!await_pages(postcopy, begin)) {
        if (!reconnect(postcopy)) {
            how = fetch_end(postcopy, err);
            break;
        }
    }
    report(postcopy, begin, &fetched);
    pthread_mutex_lock(&session->lock);
    session->progress.fetch.running = false;
    pthread_mutex_unlock(&session->lock);
    if (how == FERRY_FETCH_LOST)
        return FERRY_OUTCOME_LOST;
    if (!how) {
        end_watching(postcopy);
        session_set_percent(session, 1, 1);
        session_log(
            session, FERRY_LOG_INFO,
            "All memory is here after %.1f ms; %llu faults waited %.3f ms (median), %.3f ms (99 %%), at most "
            "%.3f ms",
            (double)fetched.duration_ns / NS_PER_MS, (unsigned long long)fetched.faults,
            (double)fetched.median_ns / NS_PER_MS, (double)fetched.p99_ns / NS_PER_MS,
            (double)fetched.max_ns / NS_PER_MS);
    }
    say_goodbye(postcopy, &fetched);
    return FERRY_OUTCOME_COMPLETED;
}

void postcopy_free(struct postcopy *postcopy)
{
    bool torn;

    if (!postcopy)
        return;
    postcopy_detach(postcopy);
    if (postcopy->fault_thread.started) {
        pthread_mutex_lock(&postcopy->lock);
        postcopy->quit = true;
        pthread_mutex_unlock(&postcopy->lock);
        postcopy_wake(postcopy);
        thread_join(&postcopy->fault_thread);
    }
    torn = postcopy->session->committed && postcopy->destination->ran &&
           __atomic_load_n(&postcopy->left, __ATOMIC_ACQUIRE) > 0;
    if (!torn) {
        postcopy_release(postcopy);
        if (postcopy->uffd >= 0)
            close(postcopy->uffd);
    }
    for (size_t i = 0; i < postcopy->map->count; i++) {
        if (postcopy->alias[i])
            munmap(postcopy->alias[i], postcopy->map->regions[i].size);
    }
    if (postcopy->wake_fd >= 0)
        close(postcopy->wake_fd);
    page_set_free(&postcopy->missing);
    page_set_free(&postcopy->requested);
    pthread_cond_destroy(&postcopy->changed);
    pthread_mutex_destroy(&postcopy->lock);
    pthread_mutex_destroy(&postcopy->send_lock);
    free(postcopy->streams);
    free(postcopy);
}
