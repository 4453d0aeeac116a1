#include "engine/session.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/thread.h"
#include "engine/channel_tls.h"
#include "engine/pages.h"
#include "engine/policy.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Measured on two cores over loopback: 2 are a quarter faster than 1, and cost an idle guest nothing; more
 * than there are cores are no faster. One core fills a link of a GB/s. */
#define DEFAULT_STREAMS_LEAST      2
#define DEFAULT_STREAMS_MOST       8
#define SLOW_LINK                  (UINT64_C(1) << 30)
#define DEFAULT_DOWNTIME_NS        (50 * NS_PER_MS)
#define DEFAULT_COPY_TIME_NS       (100 * NS_PER_S)
#define DEFAULT_DELTA_CACHE        (64u << 20)
#define DEFAULT_QUIESCE_TIMEOUT_NS (10 * NS_PER_S)
#define DEFAULT_PEER_TIMEOUT_NS    (10 * NS_PER_S)
#define DEFAULT_RECONNECT_NS       (300 * NS_PER_S)
/* Longer ones are as good as this; keeps sums of deadlines far from overflow. */
#define TIMEOUT_MAX_NS (24 * 3600 * NS_PER_S)

static uint64_t setting(uint64_t value, uint64_t otherwise)
{
    return value == 0 ? otherwise : value > TIMEOUT_MAX_NS ? TIMEOUT_MAX_NS : value;
}

static unsigned throttle_setting(const struct ferry_source_options *options,
                                 const struct ferry_guest_ops *ops)
{
    if (options->no_throttle || !ops->throttle)
        return 0;
    return options->throttle_max ? options->throttle_max : POLICY_THROTTLE_DEFAULT;
}

void fault_drop_connections(struct ferry_session *session)
{
    pthread_mutex_lock(&session->lock);
    for (size_t i = 0; i < session->channel_count; i++)
        channel_shutdown(session->channels[i]);
    pthread_mutex_unlock(&session->lock);
}

static void drop_connections(void *session)
{
    fault_drop_connections(session);
}

static int text_check(const char *text, size_t size, const char *what, struct ferry_error *err)
{
    size_t length = strnlen(text, size);

    if (length == 0 || length == size)
        return error_set(err, -EINVAL, "the migration's %s is missing or too long", what);
    return 0;
}

/* Descriptors come beside the bytes, not in them. */
static int encryption_check(const struct session_settings *settings, struct ferry_error *err)
{
    if (settings->credentials && settings->pass_memory)
        return error_set(err, -EINVAL, "memory is passed within a host, and not encrypted");
    return 0;
}

static int session_new(struct ferry_session **out, enum session_role role,
                       const struct ferry_handover *handover, const struct session_settings *settings,
                       const struct ferry_guest_ops *ops, void *guest, const struct ferry_observer *observer,
                       struct ferry_error *err)
{
    struct fault_plan faults = {0};
    int result = text_check(handover->migration_id, sizeof(handover->migration_id), "id", err);

    if (result == 0)
        result = text_check(handover->source, sizeof(handover->source), "source host", err);
    if (result == 0)
        result = text_check(handover->destination, sizeof(handover->destination), "destination host", err);
    if (result == 0)
        result = encryption_check(settings, err);
    if (result == 0)
        result = fault_plan_parse(&faults, getenv("FERRY_FAULT"), err);
    if (result < 0)
        return result;

    struct ferry_session *session = calloc(1, sizeof(*session));

    if (!session)
        return error_set(err, -ENOMEM, "out of memory for a migration");
    session->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (session->stop_fd < 0) {
        result = error_set_errno(err, -errno, "cannot make an eventfd for a migration");
        free(session);
        return result;
    }
    session->role = role;
    session->ops = ops;
    session->guest = guest;
    if (observer)
        session->observer = *observer;
    session->settings = *settings;
    credentials_ref(session->settings.credentials);
    session->handover = *handover;
    session->faults = faults;
    session->faults.drop = drop_connections;
    session->faults.opaque = session;
    session->start_ns = clock_now_ns();
    pthread_mutex_init(&session->lock, NULL);
    session->progress.phase = FERRY_PHASE_INIT;
    session->progress.state = role == SESSION_DESTINATION ? MIGRATE_FROM_VMX_INIT : MIGRATE_VMX_NONE;
    *out = session;
    return 0;
}

static unsigned streams_setting(const struct ferry_source_options *options)
{
    unsigned cpus = thread_cpus();

    if (options->pass_memory)
        return 1;
    if (options->streams)
        return options->streams;
    if (cpus < DEFAULT_STREAMS_LEAST || (options->bandwidth_limit && options->bandwidth_limit <= SLOW_LINK))
        return DEFAULT_STREAMS_LEAST;
    return cpus < DEFAULT_STREAMS_MOST ? cpus : DEFAULT_STREAMS_MOST;
}

int ferry_source_new(struct ferry_session **out, const struct ferry_source_options *options,
                     const struct ferry_guest_ops *ops, void *guest, const struct ferry_observer *observer,
                     struct ferry_error *err)
{
    struct ferry_handover handover = {0};
    struct session_settings settings = {
        .credentials = options->credentials,
        .peer_timeout_ns = setting(options->peer_timeout_ns, DEFAULT_PEER_TIMEOUT_NS),
        .verify_memory = options->verify_memory || getenv("FERRY_VERIFY_MEMORY"),
        .destination_pid = options->destination_pid,
        .pass_memory = options->pass_memory,
        .streams = streams_setting(options),
        .compress = options->compress,
        .delta_cache = options->no_delta_cache ? 0 : setting(options->delta_cache, DEFAULT_DELTA_CACHE),
        .downtime_limit_ns = setting(options->downtime_limit_ns, DEFAULT_DOWNTIME_NS),
        .copy_time_limit_ns = setting(options->copy_time_limit_ns, DEFAULT_COPY_TIME_NS),
        .throttle_max = throttle_setting(options, ops),
        .known_state_bytes = options->known_state_bytes,
        .quiesce_timeout_ns = setting(options->quiesce_timeout_ns, DEFAULT_QUIESCE_TIMEOUT_NS),
        .quick_resume = options->quick_resume,
        .quick_resume_rounds = options->quick_resume_rounds,
        .reconnect_ns = setting(options->reconnect_ns, DEFAULT_RECONNECT_NS),
        .listen_fd = -1,
    };
    int result = text_check(options->address, sizeof(options->address), "destination address", err);

    if (result < 0)
        return result;
    if (settings.streams > FERRY_STREAMS_MAX)
        return error_set(err, -EINVAL, "%u page connections are too many, at most %d", settings.streams,
                         FERRY_STREAMS_MAX);
    if (options->compress < FERRY_COMPRESS_AUTO || options->compress > FERRY_COMPRESS_ZSTD)
        return error_set(err, -EINVAL, "unknown kind of compression %d", (int)options->compress);
    if (settings.throttle_max > POLICY_THROTTLE_MAX)
        return error_set(err, -EINVAL, "the vCPUs cannot be slowed by %u %%, at most by %d %%",
                         settings.throttle_max, POLICY_THROTTLE_MAX);
    if (!ops->list_regions || !ops->dirty_start || !ops->dirty_fetch || !ops->dirty_stop || !ops->pause ||
        !ops->quiesce || !ops->resume || !ops->save_state || !ops->release_ownership ||
        !ops->retake_ownership)
        return error_set(err, -EINVAL, "the guest lacks a function that a source needs");
    memcpy(settings.token, options->token, sizeof(settings.token));
    memcpy(settings.address, options->address, sizeof(settings.address));
    memcpy(settings.known_part_ns, options->known_part_ns, sizeof(settings.known_part_ns));
    memcpy(handover.migration_id, options->migration_id, sizeof(handover.migration_id));
    memcpy(handover.source, options->source, sizeof(handover.source));
    memcpy(handover.destination, options->destination, sizeof(handover.destination));
    result = session_new(out, SESSION_SOURCE, &handover, &settings, ops, guest, observer, err);
    if (result == 0)
        ferry_session_set_bandwidth(*out, options->bandwidth_limit);
    return result;
}

int ferry_destination_new(struct ferry_session **out, const struct ferry_destination_options *options,
                          const struct ferry_guest_ops *ops, void *guest,
                          const struct ferry_observer *observer, struct ferry_error *err)
{
    struct ferry_handover handover = {0};
    struct session_settings settings = {
        .credentials = options->credentials,
        .peer_timeout_ns = setting(options->peer_timeout_ns, DEFAULT_PEER_TIMEOUT_NS),
        .listen_fd = options->listen_fd,
        .pass_memory = options->memory_passed,
    };

    settings.connect_timeout_ns = setting(options->connect_timeout_ns, settings.peer_timeout_ns);

    if (!ops->list_regions || !ops->load_section || !ops->load_finish || !ops->resume ||
        !ops->acquire_ownership)
        return error_set(err, -EINVAL, "the guest lacks a function that a destination needs");
    if (options->memory_passed && !ops->adopt_memory)
        return error_set(err, -EINVAL, "the guest cannot take memory that is passed to it");
    memcpy(settings.token, options->token, sizeof(settings.token));
    memcpy(handover.migration_id, options->migration_id, sizeof(handover.migration_id));
    memcpy(handover.source, options->source, sizeof(handover.source));
    memcpy(handover.destination, options->destination, sizeof(handover.destination));
    return session_new(out, SESSION_DESTINATION, &handover, &settings, ops, guest, observer, err);
}

void ferry_session_set_bandwidth(struct ferry_session *session, uint64_t bytes_per_s)
{
    __atomic_store_n(&session->bandwidth_limit, bytes_per_s, __ATOMIC_RELAXED);
}

void ferry_session_free(struct ferry_session *session)
{
    if (!session)
        return;
    close(session->stop_fd);
    pthread_mutex_destroy(&session->lock);
    credentials_unref(session->settings.credentials);
    explicit_bzero(session->settings.token, sizeof(session->settings.token));
    free(session);
}

static void session_tell(struct ferry_session *session, const struct session_told *told)
{
    const struct ferry_observer *observer = &session->observer;

    if (told->level && observer->log)
        observer->log(observer->opaque, told->level, told->text);
    if (told->state_changed && observer->state_changed)
        observer->state_changed(observer->opaque, told->state);
    if (told->phase && observer->phase_changed)
        observer->phase_changed(observer->opaque, told->phase);
}

void session_hush(struct ferry_session *session)
{
    session->hushed = true;
}

void session_speak(struct ferry_session *session)
{
    session->hushed = false;
    for (size_t i = 0; i < session->held_count; i++)
        session_tell(session, &session->held[i]);
    session->held_count = 0;
}

/* Now, or later. What does not fit ends the silence: nothing is lost. */
static void session_tell_or_hold(struct ferry_session *session, const struct session_told *told)
{
    if (session->hushed && session->held_count == SESSION_HELD_MAX)
        session_speak(session);
    if (session->hushed)
        session->held[session->held_count++] = *told;
    else
        session_tell(session, told);
}

void session_log(struct ferry_session *session, enum ferry_log_level level, const char *format, ...)
{
    struct session_told told = {.level = level};
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(told.text, sizeof(told.text), format, arguments);
    va_end(arguments);
    session_tell_or_hold(session, &told);
}

void session_enter_state(struct ferry_session *session, enum ferry_state state)
{
    struct session_told told = {.level = FERRY_LOG_INFO, .state_changed = true, .state = state};

    pthread_mutex_lock(&session->lock);
    assert(state == session->progress.state ||
           state_may_follow(session->role, session->progress.state, state));
    session->progress.state = state;
    pthread_mutex_unlock(&session->lock);
    snprintf(told.text, sizeof(told.text), "%s (%d)", ferry_state_name(state), (int)state);
    session_tell_or_hold(session, &told);
}

void session_enter_phase(struct ferry_session *session, enum ferry_phase phase)
{
    struct session_told told = {.phase = phase};

    pthread_mutex_lock(&session->lock);
    assert(phase >= session->progress.phase);
    session->progress.phase = phase;
    session->progress.percent = 0;
    pthread_mutex_unlock(&session->lock);
    session_tell_or_hold(session, &told);
}

void session_set_percent(struct ferry_session *session, uint64_t done, uint64_t total)
{
    pthread_mutex_lock(&session->lock);
    session->progress.percent = state_percent(session->progress.percent, done, total);
    pthread_mutex_unlock(&session->lock);
}

static void wake(struct ferry_session *session)
{
    uint64_t one = 1;

    /* An eventfd takes this unless it is readable already. */
    while (write(session->stop_fd, &one, sizeof(one)) < 0 && errno == EINTR)
        continue;
}

/* Under the lock. */
static bool fail_locked(struct ferry_session *session, enum ferry_cause cause, const char *text, int code)
{
    if (session->cause != FERRY_CAUSE_NONE)
        return false;
    session->cause = cause == FERRY_CAUSE_NONE ? FERRY_CAUSE_INTERNAL : cause;
    session->failure.code = code;
    snprintf(session->failure.text, sizeof(session->failure.text), "%s", text);
    __atomic_store_n(&session->stopped, true, __ATOMIC_RELEASE);
    wake(session);
    return true;
}

int session_fail(struct ferry_session *session, enum ferry_cause cause, int code,
                 const struct ferry_error *err)
{
    pthread_mutex_lock(&session->lock);
    fail_locked(session, cause, err->text, code);
    pthread_mutex_unlock(&session->lock);
    return code;
}

bool session_fail_uncommitted(struct ferry_session *session, enum ferry_cause cause, int code,
                              const struct ferry_error *err)
{
    bool committed;

    pthread_mutex_lock(&session->lock);
    committed = session->committed;
    if (!committed)
        fail_locked(session, cause, err->text, code);
    pthread_mutex_unlock(&session->lock);
    return !committed;
}

int session_fail_network(struct ferry_session *session, int code, const struct ferry_error *err)
{
    pthread_mutex_lock(&session->lock);
    if (fail_locked(session, FERRY_CAUSE_NETWORK, err->text, code))
        session->local_network = true;
    pthread_mutex_unlock(&session->lock);
    return code;
}

int session_fail_by_peer(struct ferry_session *session, enum ferry_cause cause, const char *text,
                         struct ferry_error *err)
{
    const char *peer =
        session->role == SESSION_SOURCE ? session->handover.destination : session->handover.source;
    struct ferry_error said = {0};
    int code = cause == FERRY_CAUSE_CANCELLED ? -ECANCELED : -EREMOTEIO;

    error_set(&said, code, "%s says: %s", peer, text[0] ? text : "no reason given");
    pthread_mutex_lock(&session->lock);
    if (session->local_network)
        session->cause = FERRY_CAUSE_NONE;
    session->local_network = false;
    fail_locked(session, cause, said.text, code);
    pthread_mutex_unlock(&session->lock);
    return error_set(err, code, "%s", said.text);
}

int session_check(struct ferry_session *session, struct ferry_error *err)
{
    int code = 0;

    if (!__atomic_load_n(&session->stopped, __ATOMIC_ACQUIRE))
        return 0;
    pthread_mutex_lock(&session->lock);
    if (session->cause != FERRY_CAUSE_NONE)
        code = error_set(err, session->failure.code, "%s", session->failure.text);
    pthread_mutex_unlock(&session->lock);
    return code;
}

int session_commit(struct ferry_session *session, struct ferry_error *err)
{
    int code = 0;

    pthread_mutex_lock(&session->lock);
    if (session->cause != FERRY_CAUSE_NONE)
        code = error_set(err, session->failure.code, "%s", session->failure.text);
    else
        session->committed = true;
    pthread_mutex_unlock(&session->lock);
    return code;
}

int session_fault(struct ferry_session *session, enum fault_point point, struct ferry_error *err)
{
    struct ferry_error why = {0};
    int result = fault_hit(&session->faults, point, &why);

    if (result < 0) {
        session_fail(session, FERRY_CAUSE_INTERNAL, result, &why);
        error_set(err, result, "%s", why.text);
    }
    return result;
}

void session_add_channel(struct ferry_session *session, struct channel *channel)
{
    pthread_mutex_lock(&session->lock);
    assert(session->channel_count < SESSION_CHANNELS_MAX);
    session->channels[session->channel_count++] = channel;
    pthread_mutex_unlock(&session->lock);
}

static uint64_t channel_bytes(const struct ferry_session *session, const struct channel *channel)
{
    return session->role == SESSION_SOURCE ? channel_bytes_out(channel) : channel_bytes_in(channel);
}

void session_note_encryption(struct ferry_session *session, const struct channel *channel)
{
    char text[TLS_STREAM_TEXT_SIZE];

    channel_describe_encryption(channel, text);
    pthread_mutex_lock(&session->lock);
    snprintf(session->progress.encryption, sizeof(session->progress.encryption), "%s", text);
    pthread_mutex_unlock(&session->lock);
}

void session_remove_channel(struct ferry_session *session, struct channel *channel)
{
    pthread_mutex_lock(&session->lock);
    for (size_t i = 0; i < session->channel_count; i++) {
        if (session->channels[i] == channel) {
            session->closed_bytes += channel_bytes(session, channel);
            session->channels[i] = session->channels[--session->channel_count];
            break;
        }
    }
    pthread_mutex_unlock(&session->lock);
}

/* Under the lock. */
static uint64_t wire_bytes_locked(const struct ferry_session *session)
{
    uint64_t bytes = session->closed_bytes;

    for (size_t i = 0; i < session->channel_count; i++)
        bytes += channel_bytes(session, session->channels[i]);
    return bytes;
}

uint64_t session_wire_bytes(struct ferry_session *session)
{
    pthread_mutex_lock(&session->lock);

    uint64_t bytes = wire_bytes_locked(session);

    pthread_mutex_unlock(&session->lock);
    return bytes;
}

static int end_session(struct ferry_session *session, enum ferry_outcome outcome, int result,
                       struct ferry_error *err)
{
    pthread_mutex_lock(&session->lock);
    if (result < 0) {
        /* A path that failed without saying so is recorded here, so that no failure is without words. */
        fail_locked(session, FERRY_CAUSE_INTERNAL, err ? err->text : "failed", result);
        result = error_set(err, session->failure.code, "%s", session->failure.text);
        if (outcome == FERRY_OUTCOME_FAILED && session->cause == FERRY_CAUSE_CANCELLED)
            outcome = FERRY_OUTCOME_CANCELLED;
        session->progress.cause = session->cause;
        memcpy(session->progress.error, session->failure.text, sizeof(session->progress.error));
    }
    session->ended = true;
    session->progress.outcome = outcome;
    session->progress.total_ns = clock_now_ns() - session->start_ns;
    session->progress.wire_bytes = wire_bytes_locked(session);
    pthread_mutex_unlock(&session->lock);

    session_speak(session);
    if (result < 0)
        session_log(session, FERRY_LOG_ERROR, "Migration %s %s (%s): %s", session->handover.migration_id,
                    ferry_outcome_name(outcome), ferry_cause_name(session->cause), session->failure.text);
    session_enter_state(session, session->role == SESSION_SOURCE ? MIGRATE_TO_VMX_FINISHED
                                                                 : MIGRATE_FROM_VMX_FINISHED);
    session_enter_state(session, MIGRATE_VMX_NONE);
    return result;
}

int ferry_session_run(struct ferry_session *session, struct ferry_error *err)
{
    enum ferry_outcome outcome = FERRY_OUTCOME_FAILED;
    struct ferry_error why = {0};
    bool again;

    pthread_mutex_lock(&session->lock);
    again = session->running;
    session->running = true;
    pthread_mutex_unlock(&session->lock);
    if (again)
        return error_set(err, -EALREADY, "this migration was run before");

    session_enter_state(session,
                        session->role == SESSION_SOURCE ? MIGRATE_TO_VMX_READY : MIGRATE_FROM_VMX_INIT);

    int result = session->role == SESSION_SOURCE ? source_run(session, &outcome, &why)
                                                 : destination_run(session, &outcome, &why);

    result = end_session(session, outcome, result, &why);
    if (result < 0)
        error_set(err, result, "%s", why.text);
    return result;
}

int ferry_session_cancel(struct ferry_session *session, struct ferry_error *err)
{
    int result = 0;

    pthread_mutex_lock(&session->lock);
    if (session->ended)
        result = error_set(err, -EALREADY, "too late to cancel: the migration has ended");
    else if (session->progress.fetch.running)
        result =
            error_set(err, -EALREADY,
                      "too late to cancel: the guest runs on %s, and needs what of its memory is still on %s",
                      session->handover.destination, session->handover.source);
    else if (session->committed)
        result = error_set(err, -EALREADY, "too late to cancel: the guest is being handed over");
    else if (session->cause != FERRY_CAUSE_NONE && session->cause != FERRY_CAUSE_CANCELLED)
        result = error_set(err, -EALREADY, "too late to cancel: the migration is failing (%.400s)",
                           session->failure.text);
    else
        fail_locked(session, FERRY_CAUSE_CANCELLED, "the migration was cancelled", -ECANCELED);
    pthread_mutex_unlock(&session->lock);
    return result;
}

void ferry_session_abort(struct ferry_session *session, enum ferry_cause cause, const char *why)
{
    pthread_mutex_lock(&session->lock);
    if (!session->ended && !session->committed)
        fail_locked(session, cause, why, -ECANCELED);
    pthread_mutex_unlock(&session->lock);
}

int ferry_session_reconnect(struct ferry_session *session, struct ferry_error *err)
{
    int result = 0;

    pthread_mutex_lock(&session->lock);
    if (session->ended || !session->progress.fetch.running || !session->progress.fetch.disconnected ||
        session->role != SESSION_SOURCE) {
        result = error_set(err, -EALREADY, "there is no connection to be made again");
    } else {
        session->reconnect = true;
        wake(session);
    }
    pthread_mutex_unlock(&session->lock);
    return result;
}

int ferry_session_end_fetch(struct ferry_session *session, enum ferry_fetch_end how, const char *why,
                            struct ferry_error *err)
{
    int result = 0;

    pthread_mutex_lock(&session->lock);
    if (session->ended || !session->progress.fetch.running) {
        result = error_set(err, -EALREADY, "no memory is being fetched");
    } else if (how == FERRY_FETCH_STAYED && session->seen_running) {
        result = error_set(err, -EPERM, "the guest has run on %s: the memory here is out of date",
                           session->handover.destination);
    } else if (!session->fetch_end) {
        session->fetch_end = how;
        snprintf(session->fetch_end_why, sizeof(session->fetch_end_why), "%s", why);
        wake(session);
    }
    pthread_mutex_unlock(&session->lock);
    return result;
}

void session_count_pages(struct ferry_session *session, const struct page_counts *counts)
{
    session_count(&session->pages_raw, counts->raw);
    session_count(&session->pages_zero, counts->zero);
    for (size_t i = 0; i < FERRY_ENCODINGS; i++) {
        session_count(&session->encoded[i].pages, counts->encoded[i].pages);
        session_count(&session->encoded[i].bytes, counts->encoded[i].bytes);
    }
}

void ferry_session_progress(struct ferry_session *session, struct ferry_progress *progress)
{
    pthread_mutex_lock(&session->lock);
    *progress = session->progress;
    if (!session->ended) {
        progress->total_ns = clock_now_ns() - session->start_ns;
        progress->wire_bytes = wire_bytes_locked(session);
    }
    progress->pages_raw = __atomic_load_n(&session->pages_raw, __ATOMIC_RELAXED);
    progress->pages_zero = __atomic_load_n(&session->pages_zero, __ATOMIC_RELAXED);
    for (size_t i = 0; i < FERRY_ENCODINGS; i++) {
        progress->encoded[i].pages = __atomic_load_n(&session->encoded[i].pages, __ATOMIC_RELAXED);
        progress->encoded[i].bytes = __atomic_load_n(&session->encoded[i].bytes, __ATOMIC_RELAXED);
    }
    progress->pages_postponed = __atomic_load_n(&session->pages_postponed, __ATOMIC_RELAXED);
    progress->remaining_bytes = __atomic_load_n(&session->pages_left, __ATOMIC_RELAXED) * FERRY_PAGE_SIZE;
    pthread_mutex_unlock(&session->lock);
}
