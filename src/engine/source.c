#include "engine/source.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/sock.h"
#include "engine/channel_tls.h"
#include "engine/passed.h"
#include "engine/postcopy_source.h"
#include "engine/precopy.h"
#include "engine/switchover.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

/* How often progress is brought up to date while a round is sent. */
#define PERCENT_INTERVAL_MS 100

/* Pages left out of the rounds may take so much of the downtime's limit. */
#define POSTPONED_SHARE 0.25

/* Bytes that a page connection within a host may have on the way (the kernel takes twice as many). */
#define HOST_SOCKET_BUFFER (256 << 10)

static uint64_t connect_deadline(const struct ferry_session *session)
{
    return clock_now_ns() + session->settings.peer_timeout_ns;
}

static int source_failed(struct ferry_session *session, enum ferry_cause cause, int code,
                         struct ferry_error *err)
{
    /* Cancelled waits have the session's failure as their reason. */
    if (code == -ECANCELED && session_check(session, err) < 0)
        return session_check(session, NULL);
    return session_fail(session, cause, code, err);
}

static uint64_t source_features(const struct ferry_session *session)
{
    if (session->settings.pass_memory)
        return WIRE_FEATURE_MEMORY;
    return (WIRE_FEATURES_COPY | (session->settings.quick_resume ? WIRE_FEATURE_FETCH : 0)) &
           ~session->settings.features_unknown;
}

static uint64_t source_features_required(const struct ferry_session *session)
{
    if (session->settings.pass_memory)
        return WIRE_FEATURE_MEMORY;
    return session->settings.quick_resume == FERRY_QUICK_RESUME_NOW ? WIRE_FEATURE_FETCH : 0;
}

static void source_hello(const struct source *source, struct wire_hello *hello)
{
    const struct ferry_session *session = source->session;

    *hello = (struct wire_hello){
        .version_min = WIRE_VERSION_MIN,
        .version_max = WIRE_VERSION_MAX,
        .connection = WIRE_CONNECTION_CONTROL,
        .streams = (uint16_t)session->settings.streams,
        .page_size = FERRY_PAGE_SIZE,
        .features = source_features(session),
        .required = source_features_required(session),
    };
    memcpy(hello->migration_id, session->handover.migration_id, sizeof(hello->migration_id));
    memcpy(hello->token, session->settings.token, sizeof(hello->token));
    memcpy(hello->source, session->handover.source, sizeof(hello->source));
    memcpy(hello->destination, session->handover.destination, sizeof(hello->destination));
}

/* A connection to the destination, encrypted if the session is. */
static int source_dial(struct source *source, struct channel *channel, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    uint64_t timeout_ns = session->settings.peer_timeout_ns;
    int cancel_fd = source->watch_fd >= 0 ? source->watch_fd : session->stop_fd;
    int fd = sock_connect(session->settings.address, connect_deadline(session), cancel_fd, err);
    int result = 0;

    if (fd < 0)
        return fd;
    sock_tune(fd, (unsigned)(timeout_ns / NS_PER_MS), NULL);
    channel_init_socket(channel, fd, cancel_fd, timeout_ns);
    if (session->settings.credentials)
        result = channel_start_tls(channel, session->settings.credentials, session->handover.destination,
                                   timeout_ns, err);
    channel->cancel_fd = session->stop_fd;
    if (result < 0)
        channel_close(channel);
    return result;
}

static int source_connect(struct source *source, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    char local[SOCK_ADDRESS_SIZE] = "unknown";
    struct channel channel;
    int result = source_dial(source, &channel, err);

    if (result < 0)
        return source_failed(session, FERRY_CAUSE_NETWORK, result, err);
    sock_local_address(channel.fd, local, NULL);
    control_open(&source->control, session, &channel);
    if (session->settings.pass_memory) {
        result = passed_check_peer(session, channel.fd, err);
        if (result < 0)
            return result;
    }
    session_log(session, FERRY_LOG_INFO,
                "Migration %s set up: source ip %s, destination ip %s, destination VM process id %lld",
                session->handover.migration_id, local, session->settings.address,
                (long long)session->settings.destination_pid);
    if (source->control.link.channel.tls)
        session_log(session, FERRY_LOG_INFO, "Encrypted: %s, and %s is who its certificate says",
                    session->progress.encryption, session->handover.destination);
    return 0;
}

/* What of memory will be sent. */
static int source_send_present(struct source *source, size_t region, struct ferry_error *err)
{
    struct wire_present present = {.region = (uint8_t)region};
    struct buffer body = BUFFER_INIT;
    uint8_t *bits = page_map_granules(&source->map, region, &present.size);

    if (!bits) {
        error_set(err, -ENOMEM, "out of memory for a bitmap of memory region %zu", region);
        return session_fail(source->session, FERRY_CAUSE_MEMORY, -ENOMEM, err);
    }
    present.bits = bits;
    wire_present_encode(&body, &present);
    free(bits);

    int result = control_send(&source->control, WIRE_PRESENT, 0, &body, err);

    buffer_free(&body);
    return result;
}

static int source_start(struct source *source, struct ferry_error *err)
{
    struct wire_start start = {.quiesce_timeout_ns = source->session->settings.quiesce_timeout_ns};
    struct buffer body = BUFFER_INIT;

    wire_start_encode(&body, &start);

    int result = control_send(&source->control, WIRE_START, 0, &body, err);

    buffer_free(&body);
    for (size_t i = 0; result == 0 && i < source->map.count && source->features & WIRE_FEATURE_PRESENT; i++)
        result = source_send_present(source, i, err);
    return result;
}

static void source_warn_compression(const struct source *source)
{
    static const uint64_t needed[] = {
        [FERRY_COMPRESS_LZ4] = WIRE_FEATURE_LZ4, [FERRY_COMPRESS_ZSTD] = WIRE_FEATURE_ZSTD};
    struct ferry_session *session = source->session;
    enum ferry_compress compress = session->settings.compress;

    if (compress >= FERRY_COMPRESS_LZ4 && !(source->features & needed[compress]) &&
        !session->settings.pass_memory)
        session_log(session, FERRY_LOG_WARN, "%s does not know %s: pages are sent uncompressed",
                    session->handover.destination, ferry_compress_name(compress));
}

/* HELLO and REGIONS, WELCOME, START. */
static int source_greet(struct source *source, struct ferry_error *err)
{
    struct control *control = &source->control;
    struct buffer body = BUFFER_INIT;
    struct wire_hello hello;
    struct wire_welcome welcome;
    struct frame frame;
    struct ferry_error why = {0};
    uint64_t sent = clock_now_ns();

    source_hello(source, &hello);
    wire_hello_encode(&body, &hello);
    link_queue(&control->link, WIRE_HELLO, 0, &body);
    buffer_clear(&body);
    wire_regions_encode(&body, source->map.regions, source->map.count);

    int result = control_send(control, WIRE_REGIONS, 0, &body, err);

    if (result == 0)
        result = control_expect(control, WIRE_WELCOME, &frame, err);
    if (result < 0)
        goto out;
    source->rtt_ns = clock_now_ns() - sent;
    result = wire_welcome_decode(&frame.body, &welcome, &why);
    if (result == 0 && (welcome.version < WIRE_VERSION_MIN || welcome.version > WIRE_VERSION_MAX ||
                        (welcome.features & ~hello.features) || (hello.required & ~welcome.features)))
        result = error_set(
            &why, -EBADMSG,
            "WELCOME frame with version %u, or features that were not offered, or without those that were "
            "required",
            welcome.version);
    if (result < 0) {
        result = control_refuse(control, result, &why);
        error_set(err, result, "%s", why.text);
        goto out;
    }
    source->features = welcome.features;
    if (hello.features & ~welcome.features & WIRE_FEATURE_FETCH)
        session_log(source->session, FERRY_LOG_WARN, "Quick resume is not possible at %s; its log says why",
                    source->session->handover.destination);
    source_warn_compression(source);
    result = source_start(source, err);

out:
    buffer_free(&body);
    return result;
}

int source_open_stream(struct source *source, enum wire_connection kind, unsigned index, unsigned count,
                       struct link *link, struct ferry_error *err)
{
    struct buffer body = BUFFER_INIT;
    struct wire_hello hello;
    struct channel channel;
    int result = source_dial(source, &channel, err);

    if (result < 0)
        return result;
    link_init_channel(link, &channel);
    source_hello(source, &hello);
    hello.connection = kind;
    hello.index = (uint16_t)index;
    hello.streams = (uint16_t)count;
    wire_hello_encode(&body, &hello);
    result = link_send(link, WIRE_HELLO, 0, &body, err);

    buffer_free(&body);
    if (result < 0)
        link_close(link);
    return result;
}

/* The destination said something while pages are sent or their connections opened: only an ABORT makes sense.
 */
static int source_hear(struct source *source, struct ferry_error *err)
{
    struct frame frame;
    struct ferry_error why = {0};
    struct channel *channel = &source->control.link.channel;

    /* A KEEPALIVE must not make us wait for a frame after it. */
    while (channel_await(channel, 0, NULL) == 0) {
        int result = link_receive(&source->control.link, &frame, channel->read_ns, &why);
        struct wire_reason reason;

        if (result == 0 && frame.type == WIRE_KEEPALIVE)
            continue;
        if (result == 0 && frame.type == WIRE_ABORT)
            result = wire_reason_decode(&frame.body, &reason, &why);
        else if (result == 0)
            result = error_set(&why, -EBADMSG, "%s frame while pages are sent",
                               wire_type_name((uint8_t)frame.type));
        if (result == 0) {
            source->control.peer_ended = true;
            return session_fail_by_peer(source->session, reason.cause, reason.text, err);
        }
        result = control_refuse(&source->control, result, &why);
        return error_set(err, result, "%s", why.text);
    }
    return 0;
}

/* Within a host nothing is ever under way: what the socket holds only falls out of the cores' caches before
 * it is read. */
static void source_keep_in_cache(int fd)
{
    int bytes = HOST_SOCKET_BUFFER;

    if (sock_is_within_host(fd))
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
}

/* Until the destination takes a connection it may find that it cannot go on, and say so by the control
 * connection: then nobody will ever answer on this one. */
static int source_open_page_stream(struct source *source, unsigned index, struct link *link,
                                   struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    uint64_t deadline = connect_deadline(session);
    int result;

    do {
        result = source_hear(source, err);
        if (result < 0)
            return result;
        result =
            source_open_stream(source, WIRE_CONNECTION_PAGES, index, session->settings.streams, link, err);
    } while (result == -ECANCELED && session_check(session, NULL) == 0 && clock_now_ns() < deadline);
    if (result == -ECANCELED)
        return source_failed(session, FERRY_CAUSE_NETWORK, result, err);
    if (result < 0)
        return session_fail_network(session, result, err);
    source_keep_in_cache(link->channel.fd);
    return 0;
}

static int source_watch(struct source *source, struct ferry_error *err)
{
    const int fds[] = {source->session->stop_fd, source->control.link.channel.fd};
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP};

    source->watch_fd = epoll_create1(EPOLL_CLOEXEC);
    for (size_t i = 0; i < 2; i++) {
        if (source->watch_fd < 0 || epoll_ctl(source->watch_fd, EPOLL_CTL_ADD, fds[i], &event) < 0)
            return source_failed(source->session, FERRY_CAUSE_INTERNAL,
                                 error_set_errno(err, -errno, "cannot watch connections"), err);
    }
    return 0;
}

static void source_unwatch(struct source *source)
{
    if (source->watch_fd >= 0)
        close(source->watch_fd);
    source->watch_fd = -1;
}

static int source_open_streams(struct source *source, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    struct link links[FERRY_STREAMS_MAX];
    unsigned count = session->settings.streams;
    unsigned opened = 0;
    int result = source_watch(source, err);

    while (result == 0 && opened < count) {
        result = source_open_page_stream(source, opened, &links[opened], err);
        opened += result == 0;
    }
    source_unwatch(source);
    if (result < 0) {
        while (opened-- > 0)
            link_close(&links[opened]);
        return result;
    }
    result = sender_open(&source->sender, session, &source->map, &source->pace, links, count,
                         source->features, err);
    return result < 0 ? source_failed(session, FERRY_CAUSE_MEMORY, result, err) : 0;
}

static int source_await_prepared(struct source *source, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    uint64_t begin = clock_now_ns();
    struct frame frame;
    int result = control_expect(&source->control, WIRE_PREPARED, &frame, err);

    pthread_mutex_lock(&session->lock);
    session->progress.prepare_ns = clock_now_ns() - begin;
    pthread_mutex_unlock(&session->lock);
    return result;
}

static int source_begin(struct source *source, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    int result = page_map_init(&source->map, session->ops, session->guest, err);

    if (result == 0)
        result = page_set_init(&source->set, &source->map, err);
    if (result == 0)
        result = hot_init(&source->hot, &source->map, err);
    if (result < 0)
        return source_failed(session, FERRY_CAUSE_MEMORY, result, err);
    result = session_fault(session, FAULT_SOURCE_BEFORE_CONNECT, err);
    if (result == 0)
        result = source_connect(source, err);
    if (result == 0)
        result = session_fault(session, FAULT_SOURCE_AFTER_CONNECT, err);
    if (result == 0) {
        result = pulse_open(&source->pulse, &source->control, err);
        if (result < 0)
            return source_failed(session, FERRY_CAUSE_MEMORY, result, err);
    }
    if (result == 0)
        result = source_greet(source, err);
    if (result == 0)
        result = session->settings.pass_memory ? passed_send(source, err) : source_open_streams(source, err);
    if (result == 0 && source->features & WIRE_FEATURE_PRESENT)
        result = source_await_prepared(source, err);
    return result;
}

static int source_wait_round(struct source *source, uint64_t pages, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    uint64_t interval_ms = control_interval_ns(&source->control) / NS_PER_MS;
    uint64_t look_ms = interval_ms < PERCENT_INTERVAL_MS ? interval_ms + 1 : PERCENT_INTERVAL_MS;
    uint64_t heard_ns = clock_now_ns();
    bool done = false;
    int result = 0;

    while (result == 0 && !done) {
        struct pollfd polled[3] = {
            {.fd = source->sender.done_fd, .events = POLLIN},
            {.fd = source->control.link.channel.fd, .events = POLLIN},
            {.fd = session->stop_fd, .events = POLLIN},
        };
        int n = poll(polled, 3, (int)look_ms);
        uint64_t now = clock_now_ns();
        uint64_t left = __atomic_load_n(&session->pages_left, __ATOMIC_RELAXED);

        session_set_percent(session, pages - (left < pages ? left : pages), pages + pages / 64 + 1);
        done = polled[0].revents != 0;
        if (polled[2].revents)
            break;
        if (n > 0 && polled[1].revents) {
            result = source_hear(source, err);
            heard_ns = now;
        } else if (now - heard_ns >= session->settings.peer_timeout_ns) {
            /* What the page connections carry may be only on its way into a buffer. */
            result = control_silent(&source->control, err);
        }
        if (result == 0)
            result = control_tick(&source->control, err);
    }
    /* The page threads use the set until they have ended; a failure makes them end at once. */
    while (!done) {
        struct pollfd polled = {.fd = source->sender.done_fd, .events = POLLIN};

        done = poll(&polled, 1, -1) > 0;
    }
    sender_end(&source->sender);
    if (result == 0)
        result = session_check(session, err);
    return result;
}

/* What the guest will hardly notice when it is sent while it stands still. */
static uint64_t postponed_most(const struct source *source)
{
    double seconds = (double)source->session->settings.downtime_limit_ns / (double)NS_PER_S;

    return (uint64_t)((double)source->frozen_bandwidth * seconds * POSTPONED_SHARE / FERRY_PAGE_SIZE);
}

int source_send_round(struct source *source, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    struct buffer body = BUFFER_INIT;
    uint64_t pages;

    if (!source->paused)
        session_count(&session->pages_postponed,
                      hot_leave_out(&source->hot, &source->set, postponed_most(source)));
    pages = page_set_count(&source->set, &source->map);
    source->round_pages = pages;
    __atomic_store_n(&session->pages_left, pages, __ATOMIC_RELAXED);
    source->round++;
    sender_begin(&source->sender, source->round, &source->set);

    int result = source_wait_round(source, pages, err);

    if (result == 0) {
        wire_round_encode(&body, source->round);
        result = control_send(&source->control, WIRE_ROUND_END, 0, &body, err);
    }
    buffer_free(&body);
    return result;
}

int source_fetch_dirty(struct source *source, uint64_t *found, struct ferry_error *err)
{
    struct ferry_session *session = source->session;

    for (size_t i = 0; i < source->map.count; i++) {
        int result = session->ops->dirty_fetch(session->guest, i, source->hot.fresh.bits[i], err);

        if (result < 0)
            return source_failed(session, FERRY_CAUSE_INTERNAL, result, err);
    }
    hot_gather(&source->hot, &source->set);
    *found = page_set_count(&source->set, &source->map);
    __atomic_store_n(&session->pages_left, *found, __ATOMIC_RELAXED);
    return 0;
}

/* RUNNING did not come, and the destination may need what is here: nothing is given up before it is known. */
static enum ferry_outcome source_settle(struct source *source, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    struct ferry_handover handover = session->handover;
    struct ferry_error why = {0};

    session_speak(session);
    handover.destination_never_ran = source->destination_out;
    if (session->ops->retake_ownership(session->guest, &handover, &why) == FERRY_RETAKE_RESUME) {
        session_log(session, FERRY_LOG_WARN, "%s did not take the guest over; it was taken back",
                    handover.destination);
        return FERRY_OUTCOME_FAILED;
    }
    session_log(session, FERRY_LOG_WARN,
                "%s did not say that the guest runs there; its memory is kept for it: %s",
                handover.destination, why.text);
    return postcopy_source_serve(source->postcopy, false, err);
}

/* After a failure: the guest is put back as it was, or what retake_ownership says. */
static enum ferry_outcome source_restore(struct source *source, enum ferry_outcome outcome)
{
    struct ferry_session *session = source->session;
    struct ferry_error why = {0};

    throttle_end(&source->throttle);
    if (source->handed_over && outcome == FERRY_OUTCOME_NONE)
        outcome = switchover_retake(source);
    else if (outcome == FERRY_OUTCOME_NONE)
        outcome = FERRY_OUTCOME_FAILED;
    if (outcome == FERRY_OUTCOME_FAILED && source->paused) {
        if (session->ops->resume(session->guest, source->was_running, &why) < 0)
            session_log(session, FERRY_LOG_ERROR, "Cannot resume the guest after the failed migration: %s",
                        why.text);
        else
            session_log(session, FERRY_LOG_INFO, "The guest goes on here%s",
                        source->was_running ? "" : ", paused as it was");
    }
    if (source->dirty_tracking) /* takes a while: not before the guest runs */
        session->ops->dirty_stop(session->guest);
    return outcome;
}

/* Quick resume, from the switchover's RESULT on. *OUTCOME stays NONE when source_restore is to find it. */
static int source_fetch(struct source *source, int result, enum ferry_outcome *outcome,
                        struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    struct ferry_error why = {0};

    if (result == 0)
        *outcome = postcopy_source_serve(source->postcopy, true, &why);
    else if (source->handed_over && source->postcopy)
        *outcome = source_settle(source, &why);
    postcopy_source_free(source->postcopy);
    source->postcopy = NULL;
    if (*outcome == FERRY_OUTCOME_COMPLETED)
        return 0;
    if (result < 0)
        return result; /* that is the reason */
    error_set(err, why.code, "%s", why.text);
    return session_fail(session, FERRY_CAUSE_NETWORK, why.code, &why);
}

int source_run(struct ferry_session *session, enum ferry_outcome *outcome, struct ferry_error *err)
{
    struct source *source = calloc(1, sizeof(*source));

    if (!source) {
        error_set(err, -ENOMEM, "out of memory for a migration");
        return session_fail(session, FERRY_CAUSE_MEMORY, -ENOMEM, err);
    }
    source->session = session;
    source->watch_fd = -1;
    *outcome = FERRY_OUTCOME_NONE;
    pace_init(&source->pace, &session->bandwidth_limit, session->stop_fd);

    int result = session_check(session, err);

    if (result == 0)
        result = source_begin(source, err);
    if (result == 0)
        result = session->settings.pass_memory ? passed_run(source, err) : precopy_run(source, err);
    if (result == 0 && source->fetch)
        result = postcopy_source_begin(&source->postcopy, source, err);
    if (result == 0)
        result = switchover_source(source, err);
    if (source->fetch)
        result = source_fetch(source, result, outcome, err);
    else if (result == 0)
        *outcome = FERRY_OUTCOME_COMPLETED;
    if (result == 0) {
        throttle_end(&source->throttle);
        if (source->dirty_tracking)
            session->ops->dirty_stop(session->guest);
    } else {
        *outcome = source_restore(source, *outcome); /* first: the guest waits */
        /* After GO there is nothing to say: the destination acts on that, or on the lock. */
        if (!source->handed_over || source->destination_out)
            control_end_failed(&source->control, WIRE_ABORT);
    }
    sender_close(&source->sender);
    pulse_close(&source->pulse);
    control_close(&source->control);
    page_set_free(&source->set);
    hot_free(&source->hot);
    pace_destroy(&source->pace);
    free(source);
    return result;
}
