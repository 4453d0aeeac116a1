#include "engine/postcopy_serve.h"

#include "base/bitmap.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/sock.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

/* What may wait in the kernel for the path: a requested page must not queue behind more. */
#define PUSH_BUFFER_MIN (256 << 10)
#define PUSH_BUFFER_MAX (8 << 20)
/* Between two attempts to connect again. */
#define RETRY_FIRST_NS (100 * NS_PER_MS)
#define RETRY_LAST_NS  (2 * NS_PER_S)

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
        page_batch_clear(&stream->batch);
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
        result = thread_start(&postcopy->streams[i].thread, THREAD_MIGRATION, name,
                              i == 0 ? postcopy_serve_main : postcopy_push_main, &postcopy->streams[i], err);
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
            thread_cond_wait_until(&postcopy->changed, &postcopy->lock,
                                   clock_now_ns() + POSTCOPY_PROGRESS_NS);
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
