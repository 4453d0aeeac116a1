#include "engine/postcopy_serve.h"

#include "base/bitmap.h"
#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <string.h>

/* Pages that a push thread sends at once; under a bandwidth limit, what that allows in so small a part of a
 * second. */
#define PUSH_PAGES WIRE_BATCH_PAGES_MAX
#define PUSH_PER_S 200
/* Whoever asks for one page after the other gets the next ones along, twice as many each time, from the first
 * to the last of these. Others would only wait longer for their next one. */
#define NEIGHBOURS_MIN 3
#define NEIGHBOURS_MAX 15

_Static_assert(WIRE_REQUEST_PAGES_MAX <= WIRE_BATCH_PAGES_MAX && PUSH_PAGES <= WIRE_BATCH_PAGES_MAX &&
                   WIRE_BATCH_PAGES_MAX <= WIRE_RUNS_MAX,
               "a batch has room for whatever is sent at once");

static int batch_send(struct serve_stream *stream, struct ferry_error *err)
{
    struct ferry_session *session = stream->postcopy->session;
    struct page_batch *batch = &stream->batch;
    uint32_t data = batch->raw * FERRY_PAGE_SIZE;
    struct buffer body = BUFFER_INIT;
    int result;

    if (batch->count == 0)
        return 0;
    wire_batch_encode(&body, stream->postcopy->source->round + 1, batch->runs, batch->count);
    result = link_send_data(&stream->link, WIRE_PAGES, &body, batch->iov, batch->iov_count, data, err);
    buffer_free(&body);
    pace_charge(&stream->postcopy->source->pace, data);
    session_count(&session->pages_raw, batch->raw);
    session_count(&session->pages_zero, batch->zero);
    __atomic_fetch_sub(&session->pages_left, batch->raw + batch->zero, __ATOMIC_RELAXED);
    page_batch_clear(batch);
    return result;
}

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

/* There is room: a batch is begun for each request, and holds what is pushed at once. */
static void batch_add_word(struct serve_stream *stream, size_t region, size_t word, uint64_t bits)
{
    for (; bits; bits &= bits - 1)
        page_batch_add_page(&stream->batch, stream->postcopy->map, region,
                            word * 64 + (size_t)__builtin_ctzll(bits));
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

    while (i < SERVE_SEQUENCES - 1 && !goes_on(&sequences[i], page))
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
            page_batch_add_page(&stream->batch, postcopy->map, pages[i].region, pages[i].page);
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
void *postcopy_serve_main(void *opaque)
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
                                   at < now + POSTCOPY_PROGRESS_NS ? at : now + POSTCOPY_PROGRESS_NS);
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
void *postcopy_push_main(void *opaque)
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
