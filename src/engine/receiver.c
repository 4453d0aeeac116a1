#include "engine/receiver.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/sock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

int receiver_place(struct ferry_session *session, struct page_place *place, struct link *link,
                   struct frame *frame, struct decoder *decoder, uint32_t *round, struct ferry_error *err)
{
    struct page_counts counts;
    int result = decoder_place(decoder, place, link, frame, round, &counts, err);

    if (result == 0)
        session_count_pages(session, &counts);
    return result;
}

/* Under the lock. */
static bool fence_passed(const struct receiver *receiver, uint32_t round)
{
    for (size_t i = 0; i < receiver->count; i++) {
        if (receiver->streams[i].fence < round)
            return false;
    }
    return true;
}

static int stream_fence(struct receiver_stream *stream, uint32_t round, struct ferry_error *err)
{
    struct receiver *receiver = stream->receiver;
    int result = 0;

    pthread_mutex_lock(&receiver->lock);
    if (round != stream->fence + 1) {
        result = error_set(err, -EBADMSG, "FENCE of round %u after that of round %u", round, stream->fence);
    } else {
        stream->fence = round;
        pthread_cond_broadcast(&receiver->changed);
        while (!receiver->failed && !receiver->finished && !fence_passed(receiver, round))
            pthread_cond_wait(&receiver->changed, &receiver->lock);
        if (receiver->failed)
            result = -ECANCELED;
    }
    pthread_mutex_unlock(&receiver->lock);
    return result;
}

static int stream_frame(struct receiver_stream *stream, struct ferry_error *err)
{
    struct receiver *receiver = stream->receiver;
    struct frame frame;
    uint32_t round;
    /* Silence is the control connection's to notice. */
    int result = link_receive(&stream->link, &frame, CHANNEL_FOREVER, err);

    if (result < 0)
        return result;
    switch (frame.type) {
    case WIRE_PAGES:
    case WIRE_ENCODED:
        result = receiver_place(receiver->session, receiver->place, &stream->link, &frame, &stream->decoder,
                                &round, err);
        /* fence is written by this thread only */
        if (result == 0 && round != stream->fence + 1)
            result = error_set(err, -EBADMSG, "PAGES of round %u in round %u", round, stream->fence + 1);
        return result;
    case WIRE_FENCE:
        result = wire_round_decode(&frame.body, &round, err);
        return result < 0 ? result : stream_fence(stream, round, err);
    case WIRE_KEEPALIVE:
        return 0;
    default:
        return error_set(err, -EBADMSG, "%s frame on a page connection", wire_type_name((uint8_t)frame.type));
    }
}

static void *stream_main(void *opaque)
{
    struct receiver_stream *stream = opaque;
    struct receiver *receiver = stream->receiver;
    bool is_within_host = sock_is_within_host(stream->link.channel.fd);
    struct thread_follow follow;
    struct ferry_error err = {0};
    int result;

    thread_set_background(true);
    thread_follow_init(&follow);
    do {
        /* The sender's core has the pages in its caches; another one would have to fetch them from there. */
        if (is_within_host)
            thread_follow(&follow, sock_incoming_cpu(stream->link.channel.fd));
        result = stream_frame(stream, &err);
        if (result == 0)
            result = session_check(receiver->session, &err);
    } while (result == 0);

    pthread_mutex_lock(&receiver->lock);

    bool finished = receiver->finished;

    receiver->failed = receiver->failed || !finished;
    pthread_cond_broadcast(&receiver->changed);
    pthread_mutex_unlock(&receiver->lock);
    if (finished || result == -ECANCELED)
        return NULL;
    if (result == -EBADMSG)
        session_fail(receiver->session, FERRY_CAUSE_NETWORK, result, &err);
    else if (result == -ENOMEM)
        session_fail(receiver->session, FERRY_CAUSE_MEMORY, result, &err);
    else
        session_fail_network(receiver->session, result, &err);
    return NULL;
}

int receiver_open(struct receiver *receiver, struct ferry_session *session, struct page_place *place,
                  struct link *links, size_t count, uint64_t features, struct ferry_error *err)
{
    *receiver = (struct receiver){.session = session, .place = place};
    pthread_mutex_init(&receiver->lock, NULL);
    thread_cond_init(&receiver->changed);
    receiver->streams = calloc(count, sizeof(*receiver->streams));
    if (!receiver->streams) {
        for (size_t i = 0; i < count; i++)
            link_close(&links[i]);
        return error_set(err, -ENOMEM, "out of memory for page connections");
    }
    receiver->count = count;
    for (size_t i = 0; i < count; i++) {
        receiver->streams[i].receiver = receiver;
        receiver->streams[i].link = links[i];
        decoder_init(&receiver->streams[i].decoder, features);
        session_add_channel(session, &receiver->streams[i].link.channel);
    }
    for (size_t i = 0; i < count; i++) {
        char name[32];

        snprintf(name, sizeof(name), "ferry-recv%zu", i);

        int result = thread_start(&receiver->streams[i].thread, THREAD_MIGRATION, name, stream_main,
                                  &receiver->streams[i], err);

        if (result < 0)
            return result;
    }
    return 0;
}

void receiver_close(struct receiver *receiver)
{
    if (!receiver->session)
        return;
    receiver_finish(receiver);
    for (size_t i = 0; i < receiver->count; i++) {
        struct receiver_stream *stream = &receiver->streams[i];

        channel_shutdown(&stream->link.channel);
        thread_join(&stream->thread);
        session_remove_channel(receiver->session, &stream->link.channel);
        link_close(&stream->link);
        decoder_free(&stream->decoder);
    }
    free(receiver->streams);
    pthread_cond_destroy(&receiver->changed);
    pthread_mutex_destroy(&receiver->lock);
    receiver->session = NULL;
}

int receiver_wait(struct receiver *receiver, uint32_t round, uint64_t timeout_ns, struct ferry_error *err)
{
    uint64_t deadline = clock_now_ns() + timeout_ns;
    int result = 0;

    pthread_mutex_lock(&receiver->lock);
    while (!receiver->failed && !fence_passed(receiver, round)) {
        if (!thread_cond_wait_until(&receiver->changed, &receiver->lock, deadline)) {
            result = error_set(err, -ETIMEDOUT, "the pages of round %u did not arrive", round);
            break;
        }
    }
    if (receiver->failed)
        result = -ECANCELED;
    pthread_mutex_unlock(&receiver->lock);
    return result;
}

void receiver_finish(struct receiver *receiver)
{
    pthread_mutex_lock(&receiver->lock);
    receiver->finished = true;
    pthread_cond_broadcast(&receiver->changed);
    pthread_mutex_unlock(&receiver->lock);
}
