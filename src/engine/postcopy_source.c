#include "engine/postcopy_source.h"

#include "base/bitmap.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/sock.h"

#include <errno.h>
#include <isa-l.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

/* Pages that a push thread sends at once; under a bandwidth limit, what that allows in so small a part of a
 * second. */
#define PUSH_PAGES WIRE_BATCH_PAGES_MAX
#define PUSH_PER_S 200
/* Whoever asks for one page after the other gets the next ones along, twice as many each time, from the first
 * to the last of these. Others would only wait longer for their next one. */
#define NEIGHBOURS_MIN 3
#define NEIGHBOURS_MAX 15
/* So many sequences, of vCPUs and devices, are followed at once. */
#define SEQUENCES 8
/* What may wait in the kernel for the path: a requested page must not queue behind more. */
#define PUSH_BUFFER_MIN (256 << 10)
#define PUSH_BUFFER_MAX (8 << 20)
/* Between two attempts to connect again. */
#define RETRY_FIRST_NS (100 * NS_PER_MS)
#define RETRY_LAST_NS  (2 * NS_PER_S)
#define PROGRESS_NS    (100 * NS_PER_MS)

/* Pages that were asked for in their order. */
struct sequence {
    uint8_t region;
    uint32_t next; /* page */
    uint32_t neighbours;
};

struct serve_stream {
    struct postcopy_source *postcopy;
    struct link link;
    struct thread thread;
    struct wire_run runs[WIRE_RUNS_MAX];
    struct iovec iov[2 + WIRE_RUNS_MAX]; /* the first two are for the frame */
    size_t run_count;
    int iov_count;
    uint32_t raw; /* pages */
    uint32_t zero;
    struct sequence sequences[SEQUENCES]; /* of the first stream; the newest one first */
};

struct postcopy_source {
    struct source *source;
    struct ferry_session *session;
    const struct page_map *map;
    struct page_set *set; /* atomic: pages that are missing there and not on their way */
    uint64_t cursor;      /* atomic: where pushing goes on; region << 32 | word */
    struct serve_stream *streams;
    size_t stream_count;

    pthread_mutex_t lock; /* guards the rest; a leaf */
    pthread_cond_t changed;
    bool push;
    bool attached;
    bool lost; /* a connection failed */
    bool done; /* FETCHED has come */
    struct ferry_error why;
    struct wire_fetched fetched;
};

/* ---- batches ---- */

static void batch_clear(struct serve_stream *stream)
{
    stream->run_count = 0;
    stream->iov_count = 2;
    stream->raw = 0;
    stream->zero = 0;
}

static void batch_add(struct serve_stream *stream, size_t region, size_t page)
{
    uint8_t *address = stream->postcopy->map->regions[region].host_ptr + page * FERRY_PAGE_SIZE;
    uint8_t kind = isal_zero_detect(address, FERRY_PAGE_SIZE) == 0 ? WIRE_PAGE_ZERO : WIRE_PAGE_RAW;
    struct wire_run *last = stream->run_count > 0 ? &stream->runs[stream->run_count - 1] : NULL;
    bool joins =
        last && last->region == region && last->kind == kind && (size_t)last->first + last->pages == page;

    if (kind == WIRE_PAGE_ZERO) {
        stream->zero++;
    } else {
        stream->raw++;
        if (joins)
            stream->iov[stream->iov_count - 1].iov_len += FERRY_PAGE_SIZE;
        else
            stream->iov[stream->iov_count++] = (struct iovec){address, FERRY_PAGE_SIZE};
    }
    if (joins)
        last->pages++;
    else
        stream->runs[stream->run_count++] =
            (struct wire_run){.region = (uint8_t)region, .kind = kind, .pages = 1, .first = (uint32_t)page};
}

static int batch_send(struct serve_stream *stream, struct ferry_error *err)
{
    struct ferry_session *session = stream->postcopy->session;
    uint32_t data = stream->raw * FERRY_PAGE_SIZE;
    struct buffer body = BUFFER_INIT;
    int result;

    if (stream->run_count == 0)
        return 0;
    wire_batch_encode(&body, stream->postcopy->source->round + 1, stream->runs, stream->run_count);
    result = link_send_data(&stream->link, WIRE_PAGES, &body, stream->iov, stream->iov_count, data, err);
    buffer_free(&body);
    pace_charge(&stream->postcopy->source->pace, data);
    session_count(&session->pages_raw, stream->raw);
    session_count(&session->pages_zero, stream->zero);
    __atomic_fetch_sub(&session->pages_left, stream->raw + stream->zero, __ATOMIC_RELAXED);
    batch_clear(stream);
    return result;
}

/* ---- serving and pushing ---- */

static void postcopy_lose(struct postcopy_source *postcopy, int code, struct ferry_error *why)
{
    pthread_mutex_lock(&postcopy->lock);
    if (!postcopy->lost) {
        postcopy->lost = true;
        postcopy->why = *why;
        postcopy->why.code = code;
    }
    for (size_t i = 0; postcopy->attached && i < postcopy->stream_count; i++)
        channel_shutdown(&postcopy->streams[i].link.channel);
    pthread_cond_broadcast(&postcopy->changed);
    pthread_mutex_unlock(&postcopy->lock);
    session_fail_uncommitted(postcopy->session, FERRY_CAUSE_NETWORK, code, why);
}

/* Takes those of the pages in MASK of a word that are still to be sent. */
static uint64_t claim(struct postcopy_source *postcopy, size_t region, size_t word, uint64_t mask)
{
    uint64_t *bits = &postcopy->set->bits[region][word];

    if (!(__atomic_load_n(bits, __ATOMIC_RELAXED) & mask))
        return 0;
    return __atomic_fetch_and(bits, ~mask, __ATOMIC_ACQ_REL) & mask;
}

static void batch_add_word(struct serve_stream *stream, size_t region, size_t word, uint64_t bits)
{
    for (; bits; bits &= bits - 1)
        batch_add(stream, region, word * 64 + (size_t)__builtin_ctzll(bits));
}

static bool goes_on(const struct sequence *sequence, const struct wire_page *page)
{
    return sequence->region == page->region && sequence->next > 0 && page->page >= sequence->next &&
           page->page - sequence->next <= 1;
}

/* How many pages are to go along with this one. */
static uint32_t follow_sequence(struct serve_stream *stream, const struct wire_page *page)
{
    struct sequence *sequences = stream->sequences;
    uint32_t neighbours = 0;
    size_t i = 0;

    while (i < SEQUENCES - 1 && !goes_on(&sequences[i], page))
        i++;
    if (goes_on(&sequences[i], page))
        neighbours = sequences[i].neighbours ? sequences[i].neighbours * 2 + 1 : NEIGHBOURS_MIN;
    if (neighbours > NEIGHBOURS_MAX)
        neighbours = NEIGHBOURS_MAX;
    memmove(&sequences[1], sequences, i * sizeof(*sequences));
    sequences[0] = (struct sequence){
        .region = page->region, .next = page->page + neighbours + 1, .neighbours = neighbours};
    return neighbours;
}

static int serve_request(struct serve_stream *stream, struct frame *frame, struct ferry_error *err)
{
    struct postcopy_source *postcopy = stream->postcopy;
    struct wire_page pages[WIRE_REQUEST_PAGES_MAX];
    size_t count = 0;
    int result = wire_request_decode(&frame->body, pages, &count, err);

    for (size_t i = 0; result == 0 && i < count; i++) {
        if (pages[i].region >= postcopy->map->count || pages[i].page >= postcopy->map->pages[pages[i].region])
            return error_set(err, -EBADMSG, "REQUEST frame for a page outside of memory");
        /* One that is taken is on its way. */
        if (claim(postcopy, pages[i].region, pages[i].page / 64, UINT64_C(1) << pages[i].page % 64))
            batch_add(stream, pages[i].region, pages[i].page);
    }
    if (result == 0)
        result = batch_send(stream, err);
    if (result < 0 || count == 0)
        return result;

    const struct wire_page *last = &pages[count - 1];
    uint64_t mask = (UINT64_C(2) << follow_sequence(stream, last)) - 1;

    __atomic_store_n(&postcopy->cursor, (uint64_t)last->region << 32 | last->page / 64, __ATOMIC_RELAXED);
    batch_add_word(stream, last->region, last->page / 64,
                   claim(postcopy, last->region, last->page / 64, mask << last->page % 64));
    return batch_send(stream, err);
}

/* 1: FETCHED. */
static int serve_frame(struct serve_stream *stream, struct frame *frame, struct ferry_error *err)
{
    struct postcopy_source *postcopy = stream->postcopy;
    struct wire_fetched fetched;
    int result;

    switch (frame->type) {
    case WIRE_REQUEST:
        return serve_request(stream, frame, err);
    case WIRE_KEEPALIVE:
        return link_send(&stream->link, WIRE_KEEPALIVE, 0, NULL, err);
    case WIRE_FETCHED:
        result = wire_fetched_decode(&frame->body, &fetched, err);
        if (result < 0)
            return result;
        pthread_mutex_lock(&postcopy->lock);
        postcopy->fetched = fetched;
        postcopy->done = true;
        pthread_cond_broadcast(&postcopy->changed);
        pthread_mutex_unlock(&postcopy->lock);
        return 1;
    default:
        return error_set(err, -EBADMSG, "%s frame while fetching", wire_type_name((uint8_t)frame->type));
    }
}

/* Ends when the connection does, or with FETCHED. */
static void *serve_main(void *opaque)
{
    struct serve_stream *stream = opaque;
    struct postcopy_source *postcopy = stream->postcopy;
    uint64_t timeout_ns = postcopy->session->settings.peer_timeout_ns;
    struct ferry_error why = {0};
    struct frame frame;
    const uint8_t *data;
    bool held = false;
    int result = 0;

    while (result == 0) {
        /* Mostly nothing is there: to look first would be in vain. */
        if (!held)
            result = channel_await(&stream->link.channel, timeout_ns, &why);
        if (result == 0)
            result = link_take(&stream->link, &frame, &data, &why);
        held = result == 1 && link_holds_data(&stream->link);
        if (result == 1)
            result = serve_frame(stream, &frame, &why);
    }
    if (result < 0)
        postcopy_lose(postcopy, result, &why);
    return NULL;
}

/* The lowest COUNT bits that are set. */
static uint64_t lowest(uint64_t bits, size_t count)
{
    uint64_t rest = bits;

    for (; count > 0 && rest; count--)
        rest &= rest - 1;
    return bits & ~rest;
}

/* Takes up to MOST pages of the next word that has any, from the cursor on and round. False: there are none.
 */
static bool next_pages(struct postcopy_source *postcopy, size_t most, size_t *region, size_t *word,
                       uint64_t *bits)
{
    const struct page_map *map = postcopy->map;
    uint64_t cursor = __atomic_load_n(&postcopy->cursor, __ATOMIC_RELAXED);
    size_t r = (size_t)(cursor >> 32);
    size_t w = (size_t)(cursor & UINT32_MAX);

    for (size_t visited = 0; visited <= map->count; visited++) {
        for (size_t words = bitmap_words(map->pages[r]); w < words; w++) {
            uint64_t there = __atomic_load_n(&postcopy->set->bits[r][w], __ATOMIC_RELAXED);

            *bits = claim(postcopy, r, w, lowest(there, most));
            if (*bits) {
                *region = r;
                *word = w;
                /* Unless a request has moved it meanwhile. */
                __atomic_compare_exchange_n(&postcopy->cursor, &cursor, (uint64_t)r << 32 | w, false,
                                            __ATOMIC_RELAXED, __ATOMIC_RELAXED);
                return true;
            }
            if (there)
                w--; /* others were faster; look again */
        }
        r = (r + 1) % map->count;
        w = 0;
    }
    return false;
}

/* Under a limit batches are short. */
static size_t push_most(const struct postcopy_source *postcopy)
{
    uint64_t limit = pace_limit(&postcopy->source->pace);
    uint64_t pages = limit / PUSH_PER_S / FERRY_PAGE_SIZE + 1;

    return limit && pages < PUSH_PAGES ? (size_t)pages : PUSH_PAGES;
}

/* Nobody's page waits for the pace: that is waited for before any is taken. False: the connection is lost. */
static bool await_pace(struct postcopy_source *postcopy)
{
    struct pace *pace = &postcopy->source->pace;
    bool lost = false;
    uint64_t now, at;

    while (!lost && (now = clock_now_ns()) < (at = pace_free_at(pace))) {
        pthread_mutex_lock(&postcopy->lock);
        /* Not longer: the limit may change. */
        if (!postcopy->lost)
            thread_cond_wait_until(&postcopy->changed, &postcopy->lock,
                                   at < now + PROGRESS_NS ? at : now + PROGRESS_NS);
        lost = postcopy->lost;
        pthread_mutex_unlock(&postcopy->lock);
    }
    return !lost;
}

static int push_batch(struct serve_stream *stream, bool *more, struct ferry_error *err)
{
    struct postcopy_source *postcopy = stream->postcopy;
    size_t most = push_most(postcopy);
    size_t taken = 0;

    *more = true;
    while (taken < most) {
        size_t region, word;
        uint64_t bits;

        *more = next_pages(postcopy, most - taken, &region, &word, &bits);
        if (!*more)
            break;
        batch_add_word(stream, region, word, bits);
        taken += (size_t)__builtin_popcountll(bits);
    }
    return batch_send(stream, err);
}

/* Ends when everything was sent, or the connection is lost. */
static void *push_main(void *opaque)
{
    struct serve_stream *stream = opaque;
    struct postcopy_source *postcopy = stream->postcopy;
    struct ferry_error why = {0};
    bool more;
    int result = 0;

    thread_set_background(true);
    pthread_mutex_lock(&postcopy->lock);
    while (!postcopy->push && !postcopy->lost)
        pthread_cond_wait(&postcopy->changed, &postcopy->lock);
    more = !postcopy->lost;
    pthread_mutex_unlock(&postcopy->lock);
    while (more && result == 0 && await_pace(postcopy))
        result = push_batch(stream, &more, &why);
    if (result < 0)
        postcopy_lose(postcopy, result, &why);
    return NULL;
}

/* ---- connections ---- */

static void postcopy_detach(struct postcopy_source *postcopy)
{
    struct ferry_error none = {0};

    pthread_mutex_lock(&postcopy->lock);
    if (!postcopy->lost)
        postcopy->why = none;
    postcopy->lost = true;
    postcopy->attached = false;
    pthread_cond_broadcast(&postcopy->changed);
    pthread_mutex_unlock(&postcopy->lock);
    for (size_t i = 0; i < postcopy->stream_count; i++) {
        struct serve_stream *stream = &postcopy->streams[i];

        if (stream->link.channel.fd < 0)
            continue;
        channel_shutdown(&stream->link.channel);
        thread_join(&stream->thread);
        session_remove_channel(postcopy->session, &stream->link.channel);
        link_close(&stream->link);
    }
}

/* A twentieth of a second's worth at most, and what the path holds at least. */
static void limit_queue(struct postcopy_source *postcopy, int fd)
{
    uint64_t path = postcopy->source->wire_bandwidth / 1000 * (postcopy->source->rtt_ns / NS_PER_US) / 1000;
    uint64_t size = 2 * path;
    int bytes;

    size = size < PUSH_BUFFER_MIN ? PUSH_BUFFER_MIN : size > PUSH_BUFFER_MAX ? PUSH_BUFFER_MAX : size;
    bytes = (int)size / 2; /* the kernel doubles it */
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
}

static int await_ready(struct postcopy_source *postcopy, bool again, struct ferry_error *err)
{
    struct link *link = &postcopy->streams[0].link;
    struct wire_missing missing;
    struct wire_reason reason;
    struct frame frame;
    uint64_t left;
    uint64_t *bits = malloc(WIRE_MISSING_WORDS_MAX * sizeof(*bits));
    int result = bits ? 0 : error_set(err, -ENOMEM, "out of memory for a MISSING frame");

    while (result == 0) {
        result = link_receive(link, &frame, postcopy->session->settings.peer_timeout_ns, err);
        if (result < 0 || frame.type != WIRE_MISSING || !again)
            break;
        result = wire_missing_decode(&frame.body, &missing, bits, err);
        if (result < 0)
            break;

        size_t words =
            missing.region < postcopy->map->count ? bitmap_words(postcopy->map->pages[missing.region]) : 0;
        size_t first = missing.first / 64;

        if (first >= words || missing.words > words - first ||
            (first + missing.words == words && postcopy->map->pages[missing.region] % 64 &&
             bits[missing.words - 1] >> postcopy->map->pages[missing.region] % 64))
            result = error_set(err, -EBADMSG, "MISSING frame for pages outside of memory");
        else
            memcpy(&postcopy->set->bits[missing.region][first], bits, missing.words * sizeof(*bits));
    }
    free(bits);
    if (result < 0)
        return result;
    if (frame.type == WIRE_ABORT && wire_reason_decode(&frame.body, &reason, NULL) == 0)
        return error_set(err, -EREMOTEIO, "%s says: %.400s", postcopy->session->handover.destination,
                         reason.text);
    if (frame.type != WIRE_READY)
        return error_set(err, -EBADMSG, "%s frame where READY was expected",
                         wire_type_name((uint8_t)frame.type));
    result = wire_ready_decode(&frame.body, &left, err);
    if (result == 0 && left != (again ? page_set_count(postcopy->set, postcopy->map) : 0))
        result = error_set(err, -EBADMSG, "READY frame says that %llu pages are missing",
                           (unsigned long long)left);
    if (result == 0 && again)
        __atomic_store_n(&postcopy->session->pages_left, left, __ATOMIC_RELAXED);
    return result;
}

/* AGAIN: the guest runs there, and the destination says what it lacks. */
static int attach(struct postcopy_source *postcopy, bool again, struct ferry_error *err)
{
    int result = 0;

    if (again)
        page_set_clear(postcopy->set, postcopy->map);
    for (size_t i = 0; result == 0 && i < postcopy->stream_count; i++) {
        struct serve_stream *stream = &postcopy->streams[i];

        result = source_open_stream(postcopy->source, WIRE_CONNECTION_FETCH, (unsigned)i,
                                    (unsigned)postcopy->stream_count, &stream->link, err);
        if (result < 0) {
            stream->link.channel.fd = -1;
            break;
        }
        stream->link.pace = NULL; /* see await_pace */
        if (i > 0)
            limit_queue(postcopy, stream->link.channel.fd);
        session_add_channel(postcopy->session, &stream->link.channel);
        batch_clear(stream);
    }
    if (result == 0)
        result = await_ready(postcopy, again, err);
    if (result < 0) {
        postcopy_detach(postcopy);
        return result;
    }
    pthread_mutex_lock(&postcopy->lock);
    postcopy->lost = false;
    postcopy->attached = true;
    pthread_mutex_unlock(&postcopy->lock);
    for (size_t i = 0; result == 0 && i < postcopy->stream_count; i++) {
        char name[32];

        snprintf(name, sizeof(name), i == 0 ? "ferry-serve" : "ferry-push%zu", i);
        result = thread_start(&postcopy->streams[i].thread, name, i == 0 ? serve_main : push_main,
                              &postcopy->streams[i], err);
    }
    if (result < 0)
        postcopy_detach(postcopy);
    return result;
}

/* ---- up to RUNNING ---- */

static struct postcopy_source *postcopy_new(struct source *source)
{
    struct postcopy_source *postcopy = calloc(1, sizeof(*postcopy));
    size_t count = 1 + (size_t)source->session->settings.streams;

    if (!postcopy)
        return NULL;
    if (count > FERRY_STREAMS_MAX)
        count = FERRY_STREAMS_MAX;
    postcopy->streams = calloc(count, sizeof(*postcopy->streams));
    if (!postcopy->streams) {
        free(postcopy);
        return NULL;
    }
    postcopy->source = source;
    postcopy->session = source->session;
    postcopy->map = &source->map;
    postcopy->set = &source->set;
    postcopy->stream_count = count;
    for (size_t i = 0; i < count; i++) {
        postcopy->streams[i].postcopy = postcopy;
        postcopy->streams[i].link.channel.fd = -1;
    }
    pthread_mutex_init(&postcopy->lock, NULL);
    thread_cond_init(&postcopy->changed);
    return postcopy;
}

int postcopy_source_begin(struct postcopy_source **out, struct source *source, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    struct postcopy_source *postcopy = postcopy_new(source);
    struct buffer body = BUFFER_INIT;
    struct frame frame;
    int result;

    *out = postcopy;
    if (!postcopy) {
        error_set(err, -ENOMEM, "out of memory for quick resume");
        return session_fail(session, FERRY_CAUSE_MEMORY, -ENOMEM, err);
    }
    wire_fetch_encode(&body, (uint16_t)postcopy->stream_count);
    result = control_send(&source->control, WIRE_FETCH, 0, &body, err);
    buffer_free(&body);
    if (result == 0)
        result = control_expect(&source->control, WIRE_FETCH, &frame, err);
    if (result < 0)
        return result;
    result = attach(postcopy, false, err);
    if (result == -ECANCELED && session_check(session, err) < 0)
        return session_check(session, NULL);
    return result < 0 ? session_fail_network(session, result, err) : 0;
}

int postcopy_source_missing(struct postcopy_source *postcopy, struct ferry_error *err)
{
    struct ferry_session *session = postcopy->session;
    const struct page_map *map = postcopy->map;
    struct link *link = &postcopy->source->control.link;
    struct buffer body = BUFFER_INIT;
    uint64_t missing = page_set_count(postcopy->set, map);

    for (size_t region = 0; region < map->count; region++) {
        size_t words = bitmap_words(map->pages[region]);

        for (size_t word = 0; word < words; word += WIRE_MISSING_WORDS_MAX) {
            size_t count = words - word < WIRE_MISSING_WORDS_MAX ? words - word : WIRE_MISSING_WORDS_MAX;
            struct wire_missing part = {
                .region = (uint8_t)region, .first = (uint32_t)(word * 64), .words = (uint32_t)count};

            if (bitmap_count(postcopy->set->bits[region] + word, count * 64) == 0)
                continue;
            buffer_clear(&body);
            wire_missing_encode(&body, &part, postcopy->set->bits[region] + word);
            link_queue(link, WIRE_MISSING, 0, &body);
        }
    }
    buffer_free(&body);
    pthread_mutex_lock(&session->lock);
    session->progress.fetch.used = true;
    session->progress.fetch.missing_pages = missing;
    pthread_mutex_unlock(&session->lock);
    /* They leave together with the state. */
    return 0;
}

void postcopy_source_push(struct postcopy_source *postcopy)
{
    /* It does not wait for this any more. */
    pace_lift(&postcopy->source->pace, false);
    pthread_mutex_lock(&postcopy->lock);
    postcopy->push = true;
    pthread_cond_broadcast(&postcopy->changed);
    pthread_mutex_unlock(&postcopy->lock);
}

/* ---- after RUNNING ---- */

static void set_running(struct postcopy_source *postcopy, bool running, bool sure)
{
    struct ferry_session *session = postcopy->session;

    pthread_mutex_lock(&session->lock);
    session->progress.fetch.running = running;
    session->progress.fetch.disconnected = false;
    session->seen_running = session->seen_running || sure;
    pthread_mutex_unlock(&session->lock);
}

static void record_fetched(struct postcopy_source *postcopy)
{
    struct ferry_session *session = postcopy->session;
    struct ferry_fetch_progress *fetch = &session->progress.fetch;

    pthread_mutex_lock(&session->lock);
    fetch->faults = postcopy->fetched.faults;
    fetch->fault_median_ns = postcopy->fetched.median_ns;
    fetch->fault_p99_ns = postcopy->fetched.p99_ns;
    fetch->fault_max_ns = postcopy->fetched.max_ns;
    fetch->duration_ns = postcopy->fetched.duration_ns;
    fetch->paused_ns = postcopy->fetched.paused_ns;
    pthread_mutex_unlock(&session->lock);
}

/* Until the destination has all (true), or the connection is lost. */
static bool await_fetched(struct postcopy_source *postcopy)
{
    struct ferry_session *session = postcopy->session;
    bool done, lost;

    do {
        uint64_t all = session->progress.fetch.missing_pages;
        uint64_t left = __atomic_load_n(&session->pages_left, __ATOMIC_RELAXED);

        session_set_percent(session, all - (left < all ? left : all), all + 1);
        pthread_mutex_lock(&postcopy->lock);
        if (!postcopy->done && !postcopy->lost)
            thread_cond_wait_until(&postcopy->changed, &postcopy->lock, clock_now_ns() + PROGRESS_NS);
        done = postcopy->done;
        lost = postcopy->lost;
        pthread_mutex_unlock(&postcopy->lock);
    } while (!done && !lost);
    return done;
}

/* What somebody has said meanwhile. *AGAIN: that it should be tried now. */
static enum ferry_fetch_end take_word(struct postcopy_source *postcopy, bool *again, struct ferry_error *err)
{
    struct ferry_session *session = postcopy->session;
    enum ferry_fetch_end how;
    eventfd_t value;

    pthread_mutex_lock(&session->lock);
    how = session->fetch_end;
    *again = session->reconnect;
    session->reconnect = false;
    if (how)
        error_set(err, -ECONNABORTED, "%s", session->fetch_end_why);
    session->fetch_end = 0;
    eventfd_read(session->stop_fd, &value);
    pthread_mutex_unlock(&session->lock);
    return how;
}

/* Takes the guest back, which never ran there. */
static bool take_back(struct postcopy_source *postcopy, bool never_ran, struct ferry_error *err)
{
    struct ferry_session *session = postcopy->session;
    struct ferry_handover handover = session->handover;
    struct ferry_error why = {0};

    handover.destination_never_ran = never_ran;
    if (session->ops->retake_ownership(session->guest, &handover, &why) == FERRY_RETAKE_RESUME) {
        error_set(err, -EREMOTEIO, "%s did not take the guest over; it was taken back", handover.destination);
        return true;
    }
    session_log(session, FERRY_LOG_WARN, "The guest cannot be taken back: %s", why.text);
    return false;
}

/* What is known of the guest while there is no connection. 0: it may need what is here. */
static enum ferry_outcome look_elsewhere(struct postcopy_source *postcopy, struct ferry_error *err)
{
    struct ferry_session *session = postcopy->session;
    const char *destination = session->handover.destination;
    struct ferry_error why = {0};
    enum ferry_elsewhere where = FERRY_ELSEWHERE_UNKNOWN;

    if (session->ops->look_elsewhere)
        where = session->ops->look_elsewhere(session->guest, &session->handover, &why);
    if (where == FERRY_ELSEWHERE_GONE) {
        error_set(err, -EHOSTDOWN,
                  "the guest is lost: it ran on %s, which has died or given it up before all of its memory "
                  "was there "
                  "(%.300s); start it anew from its disks",
                  destination, why.text);
        return FERRY_OUTCOME_LOST;
    }
    if (where == FERRY_ELSEWHERE_NEVER_RAN && !session->seen_running && take_back(postcopy, false, err))
        return FERRY_OUTCOME_FAILED;
    return FERRY_OUTCOME_NONE;
}

static void set_disconnected(struct postcopy_source *postcopy, bool disconnected, uint64_t since_ns)
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

static enum ferry_outcome outcome_of(struct postcopy_source *postcopy, enum ferry_fetch_end how,
                                     struct ferry_error *err)
{
    switch (how) {
    case FERRY_FETCH_COMPLETED:
    case FERRY_FETCH_GUEST_ENDED:
        return FERRY_OUTCOME_COMPLETED;
    case FERRY_FETCH_LOST:
        return FERRY_OUTCOME_LOST;
    case FERRY_FETCH_STAYED:
        return take_back(postcopy, true, err) ? FERRY_OUTCOME_FAILED : FERRY_OUTCOME_NONE;
    }
    return FERRY_OUTCOME_NONE;
}

static void pause_until(struct postcopy_source *postcopy, uint64_t deadline)
{
    struct pollfd polled = {.fd = postcopy->session->stop_fd, .events = POLLIN};

    poll(&polled, 1, clock_left_ms(deadline));
}

/* NONE: it is connected again. */
static enum ferry_outcome reconnect(struct postcopy_source *postcopy, struct ferry_error *err)
{
    struct ferry_session *session = postcopy->session;
    uint64_t begin = clock_now_ns();
    uint64_t give_up = begin + session->settings.reconnect_ns;
    uint64_t interval = RETRY_FIRST_NS;
    bool trying = true;

    for (;;) {
        struct ferry_error why = {0};
        bool again;
        enum ferry_fetch_end how = take_word(postcopy, &again, err);
        enum ferry_outcome outcome = how ? outcome_of(postcopy, how, err) : look_elsewhere(postcopy, err);

        if (outcome)
            return outcome;
        if (again) {
            give_up = clock_now_ns() + session->settings.reconnect_ns;
            interval = RETRY_FIRST_NS;
            trying = true;
        }
        if (trying && attach(postcopy, true, &why) == 0) {
            set_running(postcopy, true, true);
            set_disconnected(postcopy, false, begin);
            session_log(session, FERRY_LOG_INFO, "Connected to %s again after %.1f s",
                        session->handover.destination, (double)(clock_now_ns() - begin) / NS_PER_S);
            return FERRY_OUTCOME_NONE;
        }
        if (trying && clock_now_ns() >= give_up) {
            trying = false;
            session_log(
                session, FERRY_LOG_ERROR,
                "No connection to %s for %.0f s (%s): not tried any more until somebody asks for it; the "
                "memory is kept",
                session->handover.destination, (double)(clock_now_ns() - begin) / NS_PER_S, why.text);
        }
        pause_until(postcopy, clock_now_ns() + interval);
        interval = interval * 2 < RETRY_LAST_NS ? interval * 2 : RETRY_LAST_NS;
    }
}

enum ferry_outcome postcopy_source_serve(struct postcopy_source *postcopy, bool sure, struct ferry_error *err)
{
    struct ferry_session *session = postcopy->session;
    enum ferry_outcome outcome = FERRY_OUTCOME_NONE;

    session_speak(session);
    set_running(postcopy, true, sure);
    session_enter_phase(session, FERRY_PHASE_FETCH);
    postcopy_source_push(postcopy);
    while (outcome == FERRY_OUTCOME_NONE) {
        struct ferry_error why;

        if (await_fetched(postcopy)) {
            outcome = FERRY_OUTCOME_COMPLETED;
            record_fetched(postcopy);
            break;
        }
        postcopy_detach(postcopy);
        pthread_mutex_lock(&postcopy->lock);
        why = postcopy->why;
        pthread_mutex_unlock(&postcopy->lock);
        set_disconnected(postcopy, true, 0);
        if (why.code != -ECANCELED)
            session_log(session, FERRY_LOG_WARN,
                        "The connection to %s, where the guest needs what is still here, is lost (%s); "
                        "trying to make "
                        "it again for %.0f s",
                        session->handover.destination, why.text,
                        (double)session->settings.reconnect_ns / NS_PER_S);
        outcome = reconnect(postcopy, err);
    }
    set_running(postcopy, false, false);
    if (outcome == FERRY_OUTCOME_COMPLETED)
        session_set_percent(session, 1, 1);
    return outcome;
}

void postcopy_source_free(struct postcopy_source *postcopy)
{
    if (!postcopy)
        return;
    postcopy_detach(postcopy);
    pthread_cond_destroy(&postcopy->changed);
    pthread_mutex_destroy(&postcopy->lock);
    free(postcopy->streams);
    free(postcopy);
}
