#include "engine/sender.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/sock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* The frame at hand, if there is something in it. */
static int send_frame(struct ferry_session *session, struct link *link, struct encoder *encoder,
                      struct buffer *body, struct ferry_error *err)
{
    struct page_counts counts;
    struct encoder_frame frame;
    uint64_t send_ns = 0;

    if (!encoder_empty(encoder)) {
        buffer_clear(body);
        encoder_finish(encoder, body, &frame);

        uint64_t begin = clock_now_ns();
        int result = link_send_data(link, frame.type, body, frame.iov, frame.iov_count, frame.data, err);

        if (result < 0)
            return result;
        send_ns = clock_now_ns() - begin;
    }
    counts = encoder_sent(encoder, send_ns);
    session_count_pages(session, &counts);
    __atomic_fetch_sub(&session->pages_left, page_counts_sum(&counts), __ATOMIC_RELAXED);
    /* A connection that never makes us wait would never see that the session ends. */
    return session_check(session, err);
}

/* Takes chunks until there are none. NEXT is shared by the threads of a round. */
static int send_chunks(const struct sender *sender, struct link *link, struct encoder *encoder,
                       uint32_t round, const struct page_set *set, uint64_t *next, struct ferry_error *err)
{
    struct buffer body = BUFFER_INIT;
    int result = 0;

    encoder_begin(encoder, round);
    while (result == 0) {
        uint64_t chunk = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);

        if (chunk >= sender->map->chunks)
            break;

        size_t first;
        size_t end;
        size_t region = page_map_chunk(sender->map, chunk, &first, &end);

        while (result == 0) {
            first = encoder_add(encoder, set, region, first, end);
            if (first == end)
                break;
            result = send_frame(sender->session, link, encoder, &body, err);
        }
    }
    if (result == 0)
        result = send_frame(sender->session, link, encoder, &body, err);
    buffer_free(&body);
    return result;
}

int sender_send_here(struct sender *sender, struct link *link, uint32_t round, const struct page_set *set,
                     struct ferry_error *err)
{
    uint64_t next = 0;

    /* Its thread has nothing to do. */
    return send_chunks(sender, link, &sender->streams[0].encoder, round, set, &next, err);
}

/* A byte on the link for a connection that has it to itself; 0: unknown. RATE is the path's, if the rate was
 * limited. */
static double frozen_link_ns(const struct sender *sender, size_t stream, bool limited, uint64_t rate)
{
    if (limited)
        return rate ? 1e9 / (double)rate : 0;
    /* Each connection saw its share of the link. */
    return sender->streams[stream].encoder.choice.link_ns / (double)sender->count;
}

void sender_freeze(struct sender *sender, bool limited)
{
    uint64_t rate = limited ? sender_path_rate(sender) : 0;

    for (size_t i = 0; i < sender->count; i++)
        encoder_freeze(&sender->streams[i].encoder, frozen_link_ns(sender, i, limited, rate));
}

void sender_foresee(const struct sender *sender, bool limited, struct policy_frozen *frozen)
{
    uint64_t rate = limited ? sender_path_rate(sender) : 0;
    double seen = 0;

    *frozen = (struct policy_frozen){0};
    for (size_t i = 0; i < sender->count; i++) {
        const struct encoder *encoder = &sender->streams[i].encoder;
        uint64_t page_bytes, page_ns;

        encoder_foresee(encoder, frozen_link_ns(sender, i, limited, rate), &page_bytes, &page_ns);
        if (page_bytes > frozen->page_bytes)
            frozen->page_bytes = page_bytes;
        if (page_ns > frozen->page_ns)
            frozen->page_ns = page_ns;
        if (encoder->choice.link_ns > 0)
            seen += 1e9 / encoder->choice.link_ns;
    }
    frozen->wire_bandwidth = limited ? rate : (uint64_t)seen;
}

static void stream_round(struct sender_stream *stream, uint32_t round, const struct page_set *set)
{
    struct sender *sender = stream->sender;
    struct ferry_session *session = sender->session;
    struct ferry_error err = {0};
    struct buffer body = BUFFER_INIT;

    /* Nobody waits for it, unless the guest is stopped. */
    thread_set_background(!pace_lifted(stream->link.pace));

    int result = send_chunks(sender, &stream->link, &stream->encoder, round, set, &sender->next_chunk, &err);

    if (result == 0) {
        wire_round_encode(&body, round);
        result = link_send(&stream->link, WIRE_FENCE, 0, &body, &err);
        buffer_free(&body);
    }
    if (result == -ENOMEM)
        session_fail(session, FERRY_CAUSE_MEMORY, result, &err);
    else if (result < 0 && result != -ECANCELED)
        session_fail_network(session, result, &err);
}

static void *stream_main(void *opaque)
{
    struct sender_stream *stream = opaque;
    struct sender *sender = stream->sender;
    uint32_t done = 0;

    pthread_mutex_lock(&sender->lock);
    for (;;) {
        while (!sender->quit && sender->round == done)
            pthread_cond_wait(&sender->begin, &sender->lock);
        if (sender->quit)
            break;
        done = sender->round;

        const struct page_set *set = sender->set;

        pthread_mutex_unlock(&sender->lock);
        stream_round(stream, done, set);
        pthread_mutex_lock(&sender->lock);
        if (--sender->busy == 0)
            eventfd_write(sender->done_fd, 1);
    }
    pthread_mutex_unlock(&sender->lock);
    return NULL;
}

int sender_open(struct sender *sender, struct ferry_session *session, const struct page_map *map,
                struct pace *pace, struct link *links, size_t count, uint64_t features,
                struct ferry_error *err)
{
    enum ferry_compress compress = session->settings.compress;

    *sender = (struct sender){.session = session, .map = map, .done_fd = -1};
    pthread_mutex_init(&sender->lock, NULL);
    pthread_cond_init(&sender->begin, NULL);
    sender->streams = calloc(count, sizeof(*sender->streams));
    sender->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!sender->streams || sender->done_fd < 0 ||
        (compress != FERRY_COMPRESS_OFF &&
         sent_init(&sender->sent, map, session->settings.delta_cache, err) < 0)) {
        for (size_t i = 0; i < count; i++)
            link_close(&links[i]);
        return error_set(err, -ENOMEM, "out of memory for page connections");
    }
    sender->count = count;
    for (size_t i = 0; i < count; i++) {
        sender->streams[i].sender = sender;
        sender->streams[i].link = links[i];
        sender->streams[i].link.pace = pace;
        encoder_init(&sender->streams[i].encoder, map, compress == FERRY_COMPRESS_OFF ? NULL : &sender->sent,
                     compress, features);
        session_add_channel(session, &sender->streams[i].link.channel);
    }
    for (size_t i = 0; i < count; i++) {
        char name[32];

        snprintf(name, sizeof(name), "ferry-send%zu", i);

        int result = thread_start(&sender->streams[i].thread, THREAD_MIGRATION, name, stream_main,
                                  &sender->streams[i], err);

        if (result < 0)
            return result;
    }
    return 0;
}

void sender_close(struct sender *sender)
{
    if (!sender->session)
        return;
    pthread_mutex_lock(&sender->lock);
    sender->quit = true;
    pthread_cond_broadcast(&sender->begin);
    pthread_mutex_unlock(&sender->lock);
    for (size_t i = 0; i < sender->count; i++) {
        struct sender_stream *stream = &sender->streams[i];

        channel_shutdown(&stream->link.channel);
        thread_join(&stream->thread);
        session_remove_channel(sender->session, &stream->link.channel);
        link_close(&stream->link);
        encoder_free(&stream->encoder);
    }
    free(sender->streams);
    sent_free(&sender->sent);
    if (sender->done_fd >= 0)
        close(sender->done_fd);
    pthread_cond_destroy(&sender->begin);
    pthread_mutex_destroy(&sender->lock);
    sender->session = NULL;
}

void sender_begin(struct sender *sender, uint32_t round, const struct page_set *set)
{
    pthread_mutex_lock(&sender->lock);
    sender->round = round;
    sender->set = set;
    sender->busy = sender->count;
    __atomic_store_n(&sender->next_chunk, 0, __ATOMIC_RELAXED);
    pthread_cond_broadcast(&sender->begin);
    pthread_mutex_unlock(&sender->lock);
}

void sender_end(struct sender *sender)
{
    eventfd_t value;

    eventfd_read(sender->done_fd, &value);
}

uint64_t sender_path_rate(const struct sender *sender)
{
    uint64_t rate = 0;

    for (size_t i = 0; i < sender->count; i++) {
        uint64_t seen = sock_delivery_rate(sender->streams[i].link.channel.fd);

        if (seen > rate)
            rate = seen;
    }
    return rate;
}
