#include "engine/switchover.h"

#include "base/clock.h"
#include "base/error.h"
#include "engine/postcopy_destination.h"
#include "engine/postcopy_source.h"

#include <errno.h>
#include <string.h>

/* A last round of up to so many pages goes by the control connection: one thread on either side, no fence to
 * wait for. */
#define LAST_PAGES_HERE 2048

/* Steps of the seam fail with the guest's words and a cause; cancelled ones with the session's. */
static int step_failed(struct ferry_session *session, enum ferry_cause cause, int code,
                       struct ferry_error *err)
{
    if (code == -ECANCELED && session_check(session, err) < 0)
        return session_check(session, NULL);
    return session_fail(session, cause, code, err);
}

/* Between the parts of work for which the peer waits. */
static int say_alive(void *control, struct ferry_error *err)
{
    return control_tick(control, err);
}

struct timeline {
    uint64_t begin_ns;
    uint64_t go_ns;   /* GO was sent */
    uint64_t mark_ns; /* end of the last part */
    uint64_t part_ns[FERRY_DOWNTIME_PARTS];
};

static void timeline_begin(struct timeline *timeline)
{
    *timeline = (struct timeline){.begin_ns = clock_now_ns()};
    timeline->mark_ns = timeline->begin_ns;
}

static void timeline_part(struct timeline *timeline, enum ferry_downtime_part part)
{
    uint64_t now = clock_now_ns();

    timeline->part_ns[part] += now - timeline->mark_ns;
    timeline->mark_ns = now;
}

/* The parts so far, and the rest as wire, so that their sum is the downtime. */
static void timeline_report(struct timeline *timeline, struct ferry_session *session, uint64_t end_ns)
{
    uint64_t total = end_ns - timeline->begin_ns;
    uint64_t left = total;

    /* The other side's clock may run a little faster. */
    for (int i = 0; i < FERRY_DOWNTIME_PARTS; i++) {
        if (i == FERRY_DOWNTIME_WIRE)
            continue;
        if (timeline->part_ns[i] > left)
            timeline->part_ns[i] = left;
        left -= timeline->part_ns[i];
    }
    timeline->part_ns[FERRY_DOWNTIME_WIRE] = left;
    pthread_mutex_lock(&session->lock);
    session->progress.downtime_ns = total;
    memcpy(session->progress.downtime_part_ns, timeline->part_ns, sizeof(timeline->part_ns));
    pthread_mutex_unlock(&session->lock);
}

/* ---- source ---- */

static int source_pause(struct source *source, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    struct buffer body = BUFFER_INIT;
    int result = session_fault(session, FAULT_SOURCE_BEFORE_PAUSE, err);

    if (result < 0)
        return result;
    result = session->ops->pause(session->guest, &source->was_running, err);
    if (result < 0)
        return step_failed(session, FERRY_CAUSE_INTERNAL, result, err);
    source->paused = true;
    /* At once: the destination counts from here how long the guest has stood still. */
    wire_paused_encode(&body, source->was_running);
    result = control_send(&source->control, WIRE_PAUSED, 0, &body, err);
    buffer_free(&body);
    return result < 0 ? result : session_fault(session, FAULT_SOURCE_AFTER_PAUSE, err);
}

static int source_quiesce(struct source *source, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    int result = session_fault(session, FAULT_SOURCE_BEFORE_QUIESCE, err);

    if (result < 0)
        return result;
    pulse_begin(&source->pulse, session->settings.quiesce_timeout_ns);
    result = session->ops->quiesce(session->guest, session->settings.quiesce_timeout_ns, err);
    pulse_end(&source->pulse);
    if (result < 0) {
        error_prefix(err, result, "the guest's outstanding I/O did not finish");
        return step_failed(session, FERRY_CAUSE_STORAGE, result, err);
    }
    return session_fault(session, FAULT_SOURCE_AFTER_QUIESCE, err);
}

static int source_last_pages(struct source *source, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    uint64_t pages;
    uint64_t begin = clock_now_ns();
    uint64_t bytes = session_wire_bytes(session);
    int result = session_fault(session, FAULT_SOURCE_BEFORE_LAST_PAGES, err);

    if (result == 0)
        result = source_fetch_dirty(source, &pages, err);
    if (result < 0)
        return result;
    if (source->fetch) {
        result = postcopy_source_missing(source->postcopy, err);
        return result < 0 ? result : session_fault(session, FAULT_SOURCE_AFTER_LAST_PAGES, err);
    }
    if (pages > LAST_PAGES_HERE) {
        result = source_send_round(source, err);
    } else {
        result =
            sender_send_here(&source->sender, &source->control.link, source->round + 1, &source->set, err);
        if (result == -ENOMEM)
            session_fail(session, FERRY_CAUSE_MEMORY, result, err);
        else if (result < 0)
            result = control_refuse(&source->control, result, err);
    }
    if (result < 0)
        return result;

    struct ferry_round last = {
        .pages = pages,
        .bytes = session_wire_bytes(session) - bytes,
        .duration_ns = clock_now_ns() - begin,
    };

    pthread_mutex_lock(&session->lock);
    if (++session->progress.round <= FERRY_ROUNDS_MAX)
        session->progress.rounds[session->progress.round - 1] = last;
    pthread_mutex_unlock(&session->lock);
    return session_fault(session, FAULT_SOURCE_AFTER_LAST_PAGES, err);
}

/* Sections and END leave in one write. */
static int source_send_state(struct source *source, const struct checkpoint *checkpoint,
                             struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    struct link *link = &source->control.link;
    struct buffer body = BUFFER_INIT;
    struct wire_end end = {.sections = (uint32_t)checkpoint->count, .fence = source->round};
    uint64_t bytes = 0;
    uint8_t flags = source->fetch ? WIRE_END_FETCH : 0;

    for (size_t i = 0; i < checkpoint->count; i++) {
        bytes += checkpoint->sections[i].size;
        buffer_clear(&body);
        wire_section_encode(&body, &checkpoint->sections[i]);
        link_queue(link, WIRE_SECTION, 0, &body);
    }
    pthread_mutex_lock(&session->lock);
    session->progress.state_bytes = bytes;
    pthread_mutex_unlock(&session->lock);
    if (session->settings.verify_memory && !source->fetch) {
        int result = page_map_checksum(&source->map, say_alive, &source->control, &end.memory_checksum, err);

        if (result < 0) {
            buffer_free(&body);
            return step_failed(session, FERRY_CAUSE_MEMORY, result,
                               err); /* unless the session failed before */
        }
        flags |= WIRE_END_VERIFY;
    }
    buffer_clear(&body);
    wire_end_encode(&body, &end);

    int result = control_send(&source->control, WIRE_END, flags, &body, err);

    buffer_free(&body);
    return result;
}

static int source_save(struct source *source, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    struct checkpoint checkpoint;
    struct ferry_sink sink = {.checkpoint = &checkpoint};
    int result = session_fault(session, FAULT_SOURCE_BEFORE_STATE_SAVE, err);

    if (result < 0)
        return result;
    checkpoint_init(&checkpoint);
    result = session->ops->save_state(session->guest, &sink, err);
    if (result < 0) {
        error_prefix(err, result, "the guest's state cannot be saved");
        result = step_failed(session, FERRY_CAUSE_INTERNAL, result, err);
    } else {
        result = source_send_state(source, &checkpoint, err);
    }
    checkpoint_free(&checkpoint);
    return result < 0 ? result : session_fault(session, FAULT_SOURCE_AFTER_STATE_SAVE, err);
}

static int source_await_verdict(struct source *source, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    struct frame frame;
    enum wire_verdict verdict;
    struct wire_reason reason;
    struct ferry_error why = {0};
    int result = session_fault(session, FAULT_SOURCE_BEFORE_VERDICT, err);

    if (result == 0)
        result = control_expect(&source->control, WIRE_VERDICT, &frame, err);
    if (result < 0)
        return result;
    result = wire_verdict_decode(&frame.body, &verdict, &reason, &why);
    if (result < 0) {
        result = control_refuse(&source->control, result, &why);
        return error_set(err, result, "%s", why.text);
    }
    session_log(session, FERRY_LOG_INFO, "%s said %s", session->handover.destination,
                verdict == WIRE_RESTORE_OK ? "Restore-OK" : "Restore-Failure");
    if (verdict == WIRE_RESTORE_FAILURE) {
        source->control.peer_ended = true;
        error_set(&why, 0, "Restore-Failure: %.480s", reason.text);
        return session_fail_by_peer(session, reason.cause, why.text, err);
    }
    return session_fault(session, FAULT_SOURCE_AFTER_VERDICT, err);
}

static int source_release(struct source *source, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    int result = session_fault(session, FAULT_SOURCE_BEFORE_RELEASE, err);

    if (result == 0)
        result = session_commit(session, err);
    if (result < 0)
        return result;
    source->control.link.channel.cancel_fd = -1;
    result = session->ops->release_ownership(session->guest, &session->handover, err);
    if (result < 0) {
        error_prefix(err, result, "the guest cannot be handed over");
        return step_failed(session, FERRY_CAUSE_LOCK, result, err);
    }
    source->handed_over = true;
    source->destination_out = true; /* GO was not sent yet */
    return session_fault(session, FAULT_SOURCE_AFTER_RELEASE, err);
}

static int source_go(struct source *source, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    int result = session_fault(session, FAULT_SOURCE_BEFORE_GO, err);

    if (result < 0)
        return result;

    uint64_t before = channel_bytes_out(&source->control.link.channel);

    result = control_send(&source->control, WIRE_GO, 0, NULL, err);
    /* Also when sending failed: what has left may arrive. */
    source->destination_out = channel_bytes_out(&source->control.link.channel) == before;
    return result < 0 ? result : session_fault(session, FAULT_SOURCE_AFTER_GO, err);
}

/* When the guest ran at the destination, by our clock: what GO and RUNNING took beside the destination's work
 * is the way there and back, half of it the way back. */
static uint64_t when_it_ran(const struct timeline *timeline, uint64_t since_go_ns, uint64_t received_ns)
{
    uint64_t both_ways = received_ns - timeline->go_ns;

    return since_go_ns < both_ways ? received_ns - (both_ways - since_go_ns) / 2 : received_ns;
}

static int source_await_running(struct source *source, struct timeline *timeline, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    struct frame frame;
    struct wire_running running;
    struct wire_reason reason;
    struct ferry_error why = {0};
    int result = session_fault(session, FAULT_SOURCE_BEFORE_RUNNING, err);

    if (result < 0)
        return result;
    result = control_receive(&source->control, &frame, err);

    uint64_t received = clock_now_ns();

    if (result < 0) {
        source->destination_out = source->control.peer_ended; /* it said ABORT */
        return result;
    }
    if (frame.type == WIRE_RUNNING)
        result = wire_running_decode(&frame.body, &running, &why);
    else if (frame.type == WIRE_NOT_RUNNING)
        result = wire_reason_decode(&frame.body, &reason, &why);
    else
        result = error_set(&why, -EBADMSG, "%s frame in answer to GO", wire_type_name((uint8_t)frame.type));
    if (result < 0) {
        result = control_refuse(&source->control, result, &why);
        return error_set(err, result, "%s", why.text);
    }
    if (frame.type == WIRE_NOT_RUNNING) {
        source->destination_out = true;
        source->control.peer_ended = true;
        return session_fail_by_peer(session, reason.cause, reason.text, err);
    }
    timeline->part_ns[FERRY_DOWNTIME_STATE_LOAD] = running.state_load_ns;
    timeline->part_ns[FERRY_DOWNTIME_LOCK] += running.lock_ns;
    timeline->part_ns[FERRY_DOWNTIME_RESUME] = running.resume_ns;
    timeline->part_ns[FERRY_DOWNTIME_ANNOUNCE] = running.announce_ns;
    timeline_report(timeline, session, when_it_ran(timeline, running.since_go_ns, received));
    return 0;
}

static int source_hand_over(struct source *source, struct timeline *timeline, struct ferry_error *err)
{
    int result = source_await_verdict(source, err);

    timeline->mark_ns = clock_now_ns();
    if (result == 0 && source->fetch)
        postcopy_source_push(source->postcopy);
    if (result == 0)
        result = source_release(source, err);
    timeline_part(timeline, FERRY_DOWNTIME_LOCK);
    timeline->go_ns = timeline->mark_ns;
    if (result == 0)
        result = source_go(source, err);
    if (result == 0)
        result = source_await_running(source, timeline, err);
    return result;
}

int switchover_source(struct source *source, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    struct timeline timeline;
    struct ferry_error ignored = {0};

    session_enter_state(session, MIGRATE_TO_VMX_CHECKPT);
    session_enter_phase(session, FERRY_PHASE_QUIESCE);
    session_hush(session);
    timeline_begin(&timeline);

    int result = source_pause(source, err);

    timeline_part(&timeline, FERRY_DOWNTIME_PAUSE);
    if (result == 0)
        result = source_quiesce(source, err);
    timeline_part(&timeline, FERRY_DOWNTIME_QUIESCE);
    if (result < 0)
        return result;
    session_set_percent(session, 1, 1);
    session_enter_phase(session, FERRY_PHASE_FROZEN);
    /* The limit spares others while a move takes its time. Now the guest waits. */
    if (!session->settings.pass_memory)
        sender_freeze(&source->sender, pace_limit(&source->pace) > 0);
    pace_lift(&source->pace, true);
    if (!session->settings.pass_memory)
        result = source_last_pages(source, err);
    timeline_part(&timeline, FERRY_DOWNTIME_LAST_PAGES);
    session_set_percent(session, 1, 3);
    if (result == 0)
        result = source_save(source, err);
    timeline_part(&timeline, FERRY_DOWNTIME_STATE_SAVE);
    session_set_percent(session, 2, 3);
    if (result < 0)
        return result;
    session_enter_state(session, MIGRATE_TO_VMX_WAIT_HANDSHAKE);
    /* The destination is busy loading: time to speak. */
    session_speak(session);
    session_hush(session);
    result = source_hand_over(source, &timeline, err);
    if (result < 0)
        return result;
    session_speak(session);
    session_set_percent(session, 1, 1);
    session_log(session, FERRY_LOG_INFO, "The guest runs at %s; downtime %.3f ms",
                session->handover.destination, (double)session->progress.downtime_ns / NS_PER_MS);
    /* It runs there whatever a fault point says. */
    session_fault(session, FAULT_SOURCE_AFTER_RUNNING, &ignored);
    return 0;
}

enum ferry_outcome switchover_retake(struct source *source)
{
    struct ferry_session *session = source->session;
    struct ferry_handover handover = session->handover;
    struct ferry_error why = {0};

    handover.destination_never_ran = source->destination_out;

    switch (session->ops->retake_ownership(session->guest, &handover, &why)) {
    case FERRY_RETAKE_RESUME:
        session_log(session, FERRY_LOG_WARN, "%s did not take the guest over; it was taken back",
                    handover.destination);
        return FERRY_OUTCOME_FAILED;
    case FERRY_RETAKE_LOST:
        session_log(session, FERRY_LOG_ERROR,
                    "%s owns the guest but did not say that it runs; not runnable here: %s",
                    handover.destination, why.text);
        return FERRY_OUTCOME_LOST;
    case FERRY_RETAKE_UNKNOWN:
        break;
    }
    session_log(
        session, FERRY_LOG_ERROR,
        "Nobody can say whether the guest runs at %s; it stays stopped here until somebody decides: %s",
        handover.destination, why.text);
    return FERRY_OUTCOME_UNKNOWN;
}

/* ---- destination ---- */

static int destination_verify(struct destination *destination, uint64_t expected, struct ferry_error *err)
{
    uint64_t checksum;
    int result = page_map_checksum(&destination->map, say_alive, &destination->control, &checksum, err);

    if (result < 0)
        return result;
    if (checksum != expected)
        return error_set(err, -EIO, "memory differs from the source's (checksum %016llx, must be %016llx)",
                         (unsigned long long)checksum, (unsigned long long)expected);
    return 0;
}

static int destination_load(struct destination *destination, struct ferry_error *err)
{
    struct ferry_session *session = destination->session;
    int result;

    for (size_t i = 0; i < destination->checkpoint.count; i++) {
        result = session->ops->load_section(session->guest, &destination->checkpoint.sections[i], err);
        if (result < 0)
            return error_prefix(err, result, "section %s", destination->checkpoint.sections[i].name);
        result = control_tick(&destination->control, err);
        if (result < 0)
            return result;
    }
    return session->ops->load_finish(session->guest, err);
}

static enum ferry_cause load_cause(int code)
{
    switch (code) {
    case -EPROTONOSUPPORT:
        return FERRY_CAUSE_VERSION;
    case -ENOMEM:
        return FERRY_CAUSE_MEMORY;
    default:
        return FERRY_CAUSE_INTERNAL;
    }
}

static int destination_send_verdict(struct destination *destination, enum wire_verdict verdict,
                                    const struct wire_reason *reason, struct ferry_error *err)
{
    struct buffer body = BUFFER_INIT;

    wire_verdict_encode(&body, verdict, reason);

    int result = control_send(&destination->control, WIRE_VERDICT, 0, &body, err);

    buffer_free(&body);
    return result;
}

/* Restore-OK, or Restore-Failure with the reason. */
static int destination_restore(struct destination *destination, const struct wire_end *end, bool verify,
                               struct wire_running *running, struct ferry_error *err)
{
    struct ferry_session *session = destination->session;
    struct wire_reason reason = {.cause = FERRY_CAUSE_NONE};
    struct ferry_error why = {0};
    uint64_t begin = clock_now_ns();
    int result = session_fault(session, FAULT_DESTINATION_BEFORE_LOAD, err);

    if (result < 0)
        return result;
    if (destination->postcopy)
        result = postcopy_prepare(destination->postcopy, &why);
    else if (verify)
        result = destination_verify(destination, end->memory_checksum, &why);
    if (result == 0)
        result = destination_load(destination, &why);
    /* Should pages that it read never have come, it loaded nonsense. */
    if (result == 0 && destination->postcopy && session_check(session, err) < 0)
        return session_check(session, NULL);
    running->state_load_ns = clock_now_ns() - begin;
    if (result < 0) {
        reason.cause = load_cause(result);
        memcpy(reason.text, why.text, sizeof(reason.text));
        if (destination_send_verdict(destination, WIRE_RESTORE_FAILURE, &reason, NULL) == 0)
            destination->control.peer_ended = true; /* all is said */
        error_prefix(&why, result, "Restore-Failure");
        error_set(err, result, "%s", why.text);
        return session_fail(session, reason.cause, result, &why);
    }
    result = session_fault(session, FAULT_DESTINATION_AFTER_LOAD, err);
    if (result == 0)
        result = session_fault(session, FAULT_DESTINATION_BEFORE_VERDICT, err);
    if (result == 0)
        result = destination_send_verdict(destination, WIRE_RESTORE_OK, &reason, err);
    return result < 0 ? result : session_fault(session, FAULT_DESTINATION_AFTER_VERDICT, err);
}

static int destination_await_go(struct destination *destination, struct ferry_error *err)
{
    struct ferry_session *session = destination->session;
    struct frame frame;
    int result = control_expect(&destination->control, WIRE_GO, &frame, err);

    destination->go_ns = clock_now_ns();
    if (result == 0)
        result = session_commit(session, err);
    if (result == 0)
        destination->control.link.channel.cancel_fd = -1;
    return result;
}

static int destination_acquire(struct destination *destination, struct wire_running *running,
                               struct ferry_error *err)
{
    struct ferry_session *session = destination->session;
    uint64_t begin = clock_now_ns();
    int result = session_fault(session, FAULT_DESTINATION_BEFORE_ACQUIRE, err);

    if (result < 0)
        return result;
    result = session->ops->acquire_ownership(session->guest, &session->handover, err);
    running->lock_ns = clock_now_ns() - begin;
    if (result < 0) {
        error_prefix(err, result, "the guest cannot be taken over");
        return step_failed(session, FERRY_CAUSE_LOCK, result, err);
    }
    destination->acquired = true;
    return session_fault(session, FAULT_DESTINATION_AFTER_ACQUIRE, err);
}

static int destination_resume(struct destination *destination, struct wire_running *running,
                              struct ferry_error *err)
{
    struct ferry_session *session = destination->session;
    uint64_t begin = clock_now_ns();
    int result = session_fault(session, FAULT_DESTINATION_BEFORE_RESUME, err);

    if (result < 0)
        return result;
    if (destination->was_running && session->ops->advance_clock)
        session->ops->advance_clock(session->guest,
                                    clock_now_ns() - destination->paused_at_ns + destination->rtt_ns / 2);
    result = session->ops->resume(session->guest, destination->was_running, err);
    running->resume_ns = clock_now_ns() - begin;
    if (result < 0) {
        error_prefix(err, result, "the guest cannot be resumed");
        return step_failed(session, FERRY_CAUSE_INTERNAL, result, err);
    }
    destination->ran = true;
    pthread_mutex_lock(&session->lock);
    session->progress.fetch.running = destination->postcopy != NULL;
    pthread_mutex_unlock(&session->lock);
    return 0;
}

/* The guest runs here. Nothing that fails from now on changes that. */
static void destination_tell(struct destination *destination, struct wire_running *running)
{
    struct ferry_session *session = destination->session;
    struct buffer body = BUFFER_INIT;
    struct ferry_error why = {0};
    uint64_t begin = clock_now_ns();
    struct timeline timeline = {.begin_ns = destination->paused_at_ns - destination->rtt_ns / 2};

    session_fault(session, FAULT_DESTINATION_AFTER_RESUME, &why);
    session_fault(session, FAULT_DESTINATION_BEFORE_ANNOUNCE, &why);
    if (session->ops->announce)
        session->ops->announce(session->guest);
    running->announce_ns = clock_now_ns() - begin;
    session_fault(session, FAULT_DESTINATION_AFTER_ANNOUNCE, &why);
    session_fault(session, FAULT_DESTINATION_BEFORE_RUNNING, &why);
    running->since_go_ns = clock_now_ns() - destination->go_ns;
    wire_running_encode(&body, running);
    if (link_send(&destination->control.link, WIRE_RUNNING, 0, &body, &why) < 0)
        session_log(session, FERRY_LOG_WARN, "The guest runs here, but %s could not be told: %s",
                    session->handover.source, why.text);
    buffer_free(&body);
    timeline.part_ns[FERRY_DOWNTIME_STATE_LOAD] = running->state_load_ns;
    timeline.part_ns[FERRY_DOWNTIME_LOCK] = running->lock_ns;
    timeline.part_ns[FERRY_DOWNTIME_RESUME] = running->resume_ns;
    timeline.part_ns[FERRY_DOWNTIME_ANNOUNCE] = running->announce_ns;
    timeline_report(&timeline, session, clock_now_ns());
    session_fault(session, FAULT_DESTINATION_AFTER_RUNNING, &why);
}

int switchover_destination(struct destination *destination, const struct wire_end *end, bool verify,
                           struct ferry_error *err)
{
    struct ferry_session *session = destination->session;
    struct wire_running running = {0};
    int result = destination_restore(destination, end, verify, &running, err);

    if (result == 0)
        result = destination_await_go(destination, err);
    if (result == 0)
        result = destination_acquire(destination, &running, err);
    if (result == 0)
        result = destination_resume(destination, &running, err);
    if (result < 0)
        return result;
    destination_tell(destination, &running);
    session_speak(session);
    session_set_percent(session, 1, 1);
    session_log(session, FERRY_LOG_INFO, "The guest %s here",
                destination->was_running ? "runs" : "is here, paused as it was,");
    return 0;
}
