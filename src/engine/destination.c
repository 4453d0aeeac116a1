#include "engine/destination.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/sock.h"
#include "base/sparse.h"
#include "engine/passed.h"
#include "engine/postcopy_destination.h"
#include "engine/switchover.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* How long the source is kept waiting until memory is faulted in. */
#define PREFAULT_WAIT_NS NS_PER_S

static int destination_failed(struct ferry_session *session, enum ferry_cause cause, int code,
                              struct ferry_error *err)
{
    if (code == -ECANCELED && session_check(session, err) < 0)
        return session_check(session, NULL);
    return session_fail(session, cause, code, err);
}

/* A frame that cannot be: the session's failure. */
static int destination_refuse(struct destination *destination, int code, const struct ferry_error *why,
                              struct ferry_error *err)
{
    struct ferry_error words = *why;

    code = control_refuse(&destination->control, code, &words);
    return error_set(err, code, "%s", words.text);
}

static uint64_t features_here(const struct ferry_session *session)
{
    if (session->settings.pass_memory)
        return WIRE_FEATURE_MEMORY;
    return (WIRE_FEATURES_COPY | WIRE_FEATURE_FETCH) & ~session->settings.features_unknown;
}

/* Is this a migration that can be taken here? */
static int hello_check(const struct ferry_session *session, const struct wire_hello *hello, uint64_t features,
                       enum ferry_cause *cause, struct ferry_error *err)
{
    *cause = FERRY_CAUSE_VERSION;
    if (hello->page_size != FERRY_PAGE_SIZE)
        return error_set(err, -EPROTONOSUPPORT, "the source's pages have %u bytes, this host's %d",
                         hello->page_size, FERRY_PAGE_SIZE);
    if (hello->required & ~features)
        return error_set(err, -EPROTONOSUPPORT,
                         "the source requires features (0x%llx) that this host does not have",
                         (unsigned long long)(hello->required & ~features));
    if (session->settings.pass_memory && !(hello->features & WIRE_FEATURE_MEMORY))
        return error_set(err, -EPROTONOSUPPORT,
                         "the source would copy memory; this process waits for it to be passed");
    *cause = FERRY_CAUSE_NETWORK;
    if (strcmp(hello->source, session->handover.source) != 0 ||
        strcmp(hello->destination, session->handover.destination) != 0)
        return error_set(err, -EINVAL, "a migration from %s to %s was expected, this one is from %s to %s",
                         session->handover.source, session->handover.destination, hello->source,
                         hello->destination);
    return 0;
}

static int destination_admit_control(struct destination *destination, struct wire_hello *hello,
                                     struct ferry_error *err)
{
    struct ferry_session *session = destination->session;
    uint64_t deadline = clock_now_ns() + session->settings.connect_timeout_ns;
    struct channel channel;

    for (;;) {
        int result = gate_admit(&destination->gate, -1, deadline, hello, &channel, err);

        if (result == -EPROTONOSUPPORT)
            return destination_failed(session, FERRY_CAUSE_VERSION, result, err);
        if (result < 0)
            return destination_failed(session, FERRY_CAUSE_NETWORK, result, err);
        if (hello->connection == WIRE_CONNECTION_CONTROL)
            break;
        gate_turn_away(&destination->gate, &channel, FERRY_CAUSE_NETWORK,
                       "a page connection came before the control connection");
    }
    control_open(&destination->control, session, &channel);
    destination->control.link.received = 1;
    destination->streams = hello->streams;
    if (!session->settings.pass_memory)
        return 0;
    channel_accept_descriptors(&destination->control.link.channel);
    return passed_check_peer(session, channel.fd, err);
}

/* Memory is made ready, with the source's word for what it will hold, COUNT regions. */
static int destination_prepare(struct destination *destination, size_t count, struct ferry_error *err)
{
    struct ferry_session *session = destination->session;
    struct ferry_error why = {0};
    struct frame frame;
    int result = page_place_prepare(&destination->place, err);

    if (result < 0)
        return destination_failed(session, FERRY_CAUSE_MEMORY, result, err);
    if (!(destination->features & WIRE_FEATURE_PRESENT))
        return 0;
    prefault_init(&destination->prefault, session, &destination->place);
    for (size_t i = 0; i < count; i++) {
        struct wire_present present;

        result = control_expect(&destination->control, WIRE_PRESENT, &frame, err);
        if (result < 0)
            return result;
        result = wire_present_decode(&frame.body, &present, &why);
        if (result == 0)
            result = prefault_add(&destination->prefault, &present, &why);
        if (result < 0)
            return destination_refuse(destination, result, &why, err);
    }
    /* Within one host the source copies with the same cores, and what is touched just before it is filled is
     * in their caches. */
    if (!sock_is_within_host(destination->control.link.channel.fd))
        prefault_start(&destination->prefault);
    return 0;
}

/* The source waits for this before it tracks the guest's writes. Not for long: what is not faulted in by then
 * is meanwhile, and pages that come earlier are no harm. */
static int destination_prepared(struct destination *destination, struct ferry_error *err)
{
    uint64_t patience = destination->session->settings.peer_timeout_ns / 4;

    if (!(destination->features & WIRE_FEATURE_PRESENT))
        return 0;
    prefault_wait(&destination->prefault,
                  clock_now_ns() + (patience < PREFAULT_WAIT_NS ? patience : PREFAULT_WAIT_NS));
    return control_send(&destination->control, WIRE_PREPARED, 0, NULL, err);
}

/* Takes quick resume out of what is welcome when it is not possible; that is an error when it is required. */
static int destination_may_fetch(struct destination *destination, const struct wire_hello *hello,
                                 struct wire_welcome *welcome, struct ferry_error *err)
{
    struct ferry_session *session = destination->session;
    struct ferry_error why = {0};
    int result = 0;

    if (!(welcome->features & WIRE_FEATURE_FETCH))
        return 0;
    result = ferry_quick_resume_check(&why);
    for (size_t i = 0; result == 0 && i < destination->map.count; i++) {
        const struct ferry_ram_region *region = &destination->map.regions[i];

        if (region->memfd < 0)
            result =
                error_set(&why, -EOPNOTSUPP,
                          "quick resume is not possible: memory region %s has no descriptor", region->name);
        else if (sparse_huge_page_size(region->memfd))
            result =
                error_set(&why, -EOPNOTSUPP,
                          "quick resume is not possible with huge pages: memory region %s is of pages "
                          "of %llu KiB, and pages of 4 KiB are fetched",
                          region->name, (unsigned long long)(sparse_huge_page_size(region->memfd) >> 10));
    }
    if (result == 0)
        return 0;
    if (hello->required & WIRE_FEATURE_FETCH)
        return error_set(err, result, "%s", why.text);
    session_log(session, FERRY_LOG_WARN, "This migration goes without quick resume: %s", why.text);
    welcome->features &= ~WIRE_FEATURE_FETCH;
    return 0;
}

/* REGIONS come right after HELLO; WELCOME goes back, START comes. */
static int destination_greet(struct destination *destination, const struct wire_hello *hello,
                             struct ferry_error *err)
{
    struct ferry_session *session = destination->session;
    struct control *control = &destination->control;
    struct wire_region regions[FERRY_REGIONS_MAX];
    struct wire_welcome welcome = {.version = hello->version,
                                   .features = hello->features & features_here(session)};
    struct wire_start start;
    struct buffer body = BUFFER_INIT;
    struct frame frame;
    struct ferry_error why = {0};
    enum ferry_cause cause;
    size_t count;
    int result = control_expect(control, WIRE_REGIONS, &frame, err);

    if (result < 0)
        return result;
    result = wire_regions_decode(&frame.body, regions, &count, &why);
    if (result < 0)
        return destination_refuse(destination, result, &why, err);
    result = destination_may_fetch(destination, hello, &welcome, err);
    if (result < 0)
        return destination_failed(session, FERRY_CAUSE_MEMORY, result, err);
    result = hello_check(session, hello, welcome.features, &cause, err);
    if (result < 0)
        return destination_failed(session, cause, result, err);
    result = page_place_init(&destination->place, &destination->map, regions, count, err);
    if (result < 0)
        return destination_failed(session, FERRY_CAUSE_MEMORY, result, err);
    result = session_fault(session, FAULT_DESTINATION_BEFORE_WELCOME, err);
    if (result < 0)
        return result;

    destination->features = welcome.features;
    decoder_init(&destination->decoder, welcome.features);

    uint64_t sent = clock_now_ns();

    wire_welcome_encode(&body, &welcome);
    result = control_send(control, WIRE_WELCOME, 0, &body, err);
    buffer_free(&body);
    if (result == 0)
        result = control_expect(control, WIRE_START, &frame, err);
    if (result < 0)
        return result;
    destination->rtt_ns = clock_now_ns() - sent;
    /* On a busy host that is mostly the time until the source was run, and the guest's clock is set by it. */
    uint64_t shortest_ns = sock_shortest_rtt_ns(control->link.channel.fd);

    if (shortest_ns < destination->rtt_ns)
        destination->rtt_ns = shortest_ns;
    result = wire_start_decode(&frame.body, &start, &why);
    if (result < 0)
        return destination_refuse(destination, result, &why, err);
    /* Bounded: the peer must not make us wait for ever. */
    destination->quiesce_timeout_ns =
        start.quiesce_timeout_ns < 3600 * NS_PER_S ? start.quiesce_timeout_ns : 3600 * NS_PER_S;
    result = session->settings.pass_memory ? 0 : destination_prepare(destination, count, err);
    return result < 0 ? result : session_fault(session, FAULT_DESTINATION_AFTER_WELCOME, err);
}

/* The source ended the control connection while page connections are awaited. Before its last word there may
 * be frames that it sent in good faith: connections do not wait for each other. */
static int destination_hear(struct destination *destination, struct ferry_error *err)
{
    struct frame frame;
    struct ferry_error why = {0};
    int result;

    do
        result = control_receive(&destination->control, &frame, err);
    while (result == 0 && frame.data == 0);
    if (result < 0)
        return result;
    error_set(&why, -EBADMSG, "PAGES frame before the page connections");
    return destination_refuse(destination, -EBADMSG, &why, err);
}

static int destination_admit_streams(struct destination *destination, struct ferry_error *err)
{
    struct ferry_session *session = destination->session;
    struct link links[FERRY_STREAMS_MAX];
    bool there[FERRY_STREAMS_MAX] = {false};
    uint64_t deadline = clock_now_ns() + session->settings.peer_timeout_ns;
    int result = 0;

    for (unsigned left = destination->streams; left > 0;) {
        struct wire_hello hello;
        struct channel channel;

        result = gate_admit(&destination->gate, destination->control.link.channel.fd, deadline, &hello,
                            &channel, err);
        if (result == -ENOTCONN) {
            result = destination_hear(destination, err);
            break;
        }
        if (result < 0) {
            result = destination_failed(session, FERRY_CAUSE_NETWORK, result, err);
            break;
        }
        if (hello.connection != WIRE_CONNECTION_PAGES || hello.streams != destination->streams ||
            there[hello.index]) {
            gate_turn_away(&destination->gate, &channel, FERRY_CAUSE_NETWORK,
                           "this migration is under way already");
            continue;
        }
        there[hello.index] = true;
        sock_tune(channel.fd, (unsigned)(session->settings.peer_timeout_ns / NS_PER_MS), NULL);
        link_init_channel(&links[hello.index], &channel);
        links[hello.index].received = 1;
        left--;
    }
    if (result < 0) {
        for (unsigned i = 0; i < destination->streams; i++) {
            if (there[i])
                link_close(&links[i]);
        }
        return result;
    }
    result = receiver_open(&destination->receiver, session, &destination->place, links, destination->streams,
                           destination->features, err);
    return result < 0 ? destination_failed(session, FERRY_CAUSE_MEMORY, result, err) : 0;
}

/* Waits for a round's fence; the source must not take our silence for death meanwhile. */
static int destination_wait_round(struct destination *destination, uint32_t round, struct ferry_error *err)
{
    struct ferry_session *session = destination->session;
    uint64_t timeout = session->settings.peer_timeout_ns;
    uint64_t interval = control_interval_ns(&destination->control);
    uint64_t moved_ns = clock_now_ns();
    uint64_t moved = session_wire_bytes(session);

    for (;;) {
        int result = receiver_wait(&destination->receiver, round, interval, err);
        uint64_t bytes = session_wire_bytes(session);
        uint64_t now = clock_now_ns();

        if (result == 0)
            return 0;
        if (bytes != moved) {
            moved = bytes;
            moved_ns = now;
        }
        if (result != -ETIMEDOUT || now - moved_ns >= timeout)
            return destination_failed(session, FERRY_CAUSE_NETWORK, result, err);
        result = control_tick(&destination->control, err);
        if (result < 0)
            return result;
    }
}

static uint64_t pages_placed(struct ferry_session *session)
{
    uint64_t pages = __atomic_load_n(&session->pages_raw, __ATOMIC_RELAXED) +
                     __atomic_load_n(&session->pages_zero, __ATOMIC_RELAXED);

    for (size_t i = 0; i < FERRY_ENCODINGS; i++)
        pages += __atomic_load_n(&session->encoded[i].pages, __ATOMIC_RELAXED);
    return pages;
}

static void destination_record_round(struct destination *destination)
{
    struct ferry_session *session = destination->session;
    uint64_t now = clock_now_ns();
    uint64_t pages = pages_placed(session);
    uint64_t bytes = session_wire_bytes(session);
    struct ferry_round round = {
        .pages = pages - destination->round_pages,
        .bytes = bytes - destination->round_bytes,
        .duration_ns = now - destination->round_ns,
    };

    destination->round_pages = pages;
    destination->round_bytes = bytes;
    destination->round_ns = now;

    pthread_mutex_lock(&session->lock);

    unsigned number = ++session->progress.round;

    if (number <= FERRY_ROUNDS_MAX)
        session->progress.rounds[number - 1] = round;
    pthread_mutex_unlock(&session->lock);
    session_set_percent(session, pages, destination->map.total + 1);
    if (session->observer.round_done)
        session->observer.round_done(session->observer.opaque, number, &round);
}

static int destination_round_end(struct destination *destination, struct frame *frame,
                                 struct ferry_error *err)
{
    struct ferry_error why = {0};
    struct buffer body = BUFFER_INIT;
    uint32_t round;
    int result = wire_round_decode(&frame->body, &round, &why);

    if (result == 0 && round != destination->round + 1)
        result = error_set(&why, -EBADMSG, "ROUND_END of round %u after that of round %u", round,
                           destination->round);
    if (result < 0)
        return destination_refuse(destination, result, &why, err);
    result = destination_wait_round(destination, round, err);
    if (result < 0)
        return result;
    destination->round = round;
    destination_record_round(destination);
    if (destination->paused)
        return 0; /* the last round: END follows, and the verdict is the answer */
    wire_round_encode(&body, round);
    result = control_send(&destination->control, WIRE_ROUND_DONE, 0, &body, err);
    buffer_free(&body);
    return result;
}

static int destination_paused(struct destination *destination, struct frame *frame, struct ferry_error *err)
{
    struct ferry_error why = {0};

    destination->paused_at_ns = clock_now_ns();

    int result = wire_paused_decode(&frame->body, &destination->was_running, &why);

    if (result == 0 && destination->paused)
        result = error_set(&why, -EBADMSG, "PAUSED frame after PAUSED");
    if (result < 0)
        return destination_refuse(destination, result, &why, err);
    destination->paused = true;
    control_excuse(&destination->control,
                   destination->quiesce_timeout_ns + destination->session->settings.peer_timeout_ns);
    session_hush(destination->session);
    session_set_percent(destination->session, 1, 1);
    session_enter_phase(destination->session, FERRY_PHASE_FROZEN);
    return 0;
}

static int destination_section(struct destination *destination, struct frame *frame, struct ferry_error *err)
{
    struct ferry_section section;
    struct ferry_error why = {0};
    int result = wire_section_decode(&frame->body, &section, &why);

    if (result == 0)
        result = checkpoint_add(&destination->checkpoint, &section, &why);
    if (result == -ENOMEM) {
        error_set(err, result, "%s", why.text);
        return destination_failed(destination->session, FERRY_CAUSE_MEMORY, result, err);
    }
    return result < 0 ? destination_refuse(destination, -EBADMSG, &why, err) : 0;
}

static int destination_pages(struct destination *destination, struct frame *frame, struct ferry_error *err)
{
    struct ferry_error why = {0};
    uint32_t round;
    int result = receiver_place(destination->session, &destination->place, &destination->control.link, frame,
                                &destination->decoder, &round, &why);

    if (result == 0 && round != destination->round + 1)
        result = error_set(&why, -EBADMSG, "PAGES of round %u in round %u", round, destination->round + 1);
    return result < 0 ? destination_refuse(destination, result, &why, err) : 0;
}

static int destination_fetch(struct destination *destination, struct frame *frame, struct ferry_error *err)
{
    struct ferry_error why = {0};
    uint16_t connections;
    int result = wire_fetch_decode(&frame->body, &connections, &why);

    if (result == 0 && !(destination->features & WIRE_FEATURE_FETCH))
        result = error_set(&why, -EBADMSG, "FETCH frame without quick resume");
    if (result < 0)
        return destination_refuse(destination, result, &why, err);
    return postcopy_begin(&destination->postcopy, destination, connections, err);
}

static int destination_missing(struct destination *destination, struct frame *frame, struct ferry_error *err)
{
    struct ferry_error why = {0};
    int result = postcopy_add(destination->postcopy, frame, &why);

    if (result == -ENOMEM) {
        error_set(err, result, "%s", why.text);
        return destination_failed(destination->session, FERRY_CAUSE_MEMORY, result, err);
    }
    return result < 0 ? destination_refuse(destination, result, &why, err) : 0;
}

static int destination_frame(struct destination *destination, struct frame *frame, struct ferry_error *err)
{
    struct ferry_error why = {0};
    bool paused = destination->paused;
    bool copied = !destination->session->settings.pass_memory;

    if (frame->type == WIRE_ROUND_END && copied)
        return destination_round_end(destination, frame, err);
    if (frame->type == WIRE_PAUSED)
        return destination_paused(destination, frame, err);
    if (frame->type == WIRE_FETCH && !paused && copied && !destination->postcopy)
        return destination_fetch(destination, frame, err);
    if (frame->type == WIRE_MISSING && paused && destination->postcopy)
        return destination_missing(destination, frame, err);
    if ((frame->type == WIRE_PAGES || frame->type == WIRE_ENCODED) && paused && copied &&
        !destination->postcopy)
        return destination_pages(destination, frame, err);
    if (frame->type == WIRE_SECTION && paused)
        return destination_section(destination, frame, err);
    error_set(&why, -EBADMSG, "%s frame %s", wire_type_name((uint8_t)frame->type),
              paused ? "after the guest was paused" : "during pre-copy");
    return destination_refuse(destination, -EBADMSG, &why, err);
}

/* Everything up to END. */
static int destination_receive(struct destination *destination, struct wire_end *end, bool *verify,
                               struct ferry_error *err)
{
    struct ferry_session *session = destination->session;
    struct ferry_error why = {0};
    struct frame frame;
    int result;

    destination->round_ns = clock_now_ns();
    destination->round_bytes = session_wire_bytes(session);
    for (;;) {
        result = control_await(&destination->control, &frame, err);
        if (result < 0)
            return result;
        if (frame.type == WIRE_END && destination->paused)
            break;
        result = destination_frame(destination, &frame, err);
        if (result < 0)
            return result;
    }
    *verify = frame.flags & WIRE_END_VERIFY;
    result = wire_end_decode(&frame.body, end, &why);
    if (result == 0 && !(frame.flags & WIRE_END_FETCH) != !destination->postcopy)
        result = error_set(&why, -EBADMSG, "END frame that does not go with FETCH");
    if (result == 0 && (end->sections != destination->checkpoint.count || end->fence != destination->round))
        result =
            error_set(&why, -EBADMSG, "END frame says %u sections and round %u, but %zu came, and round %u",
                      end->sections, end->fence, destination->checkpoint.count, destination->round);
    if (result < 0)
        return destination_refuse(destination, result, &why, err);
    if (!session->settings.pass_memory)
        receiver_finish(&destination->receiver);
    return session_check(session, err);
}

static int destination_begin(struct destination *destination, struct ferry_error *err)
{
    struct ferry_session *session = destination->session;
    char address[SOCK_ADDRESS_SIZE] = "unknown";
    struct wire_hello hello;
    int result = page_map_init(&destination->map, session->ops, session->guest, err);

    if (result < 0)
        return destination_failed(session, FERRY_CAUSE_MEMORY, result, err);
    pthread_mutex_lock(&session->lock);
    session->progress.memory_bytes = destination->map.total * FERRY_PAGE_SIZE;
    pthread_mutex_unlock(&session->lock);
    session_enter_state(session, MIGRATE_FROM_VMX_WAITING);
    result = destination_admit_control(destination, &hello, err);
    if (result < 0)
        return result;
    sock_peer_address(destination->control.link.channel.fd, address, NULL);
    session_log(session, FERRY_LOG_INFO,
                "Migration %s from %s (source ip %s): protocol version %u, %u page connections",
                session->handover.migration_id, session->handover.source, address, hello.version,
                destination->streams);
    if (destination->control.link.channel.tls)
        session_log(session, FERRY_LOG_INFO, "Encrypted: %s, and %s is who its certificate says",
                    session->progress.encryption, session->handover.source);
    result = destination_greet(destination, &hello, err);
    if (result == 0)
        result = session->settings.pass_memory ? passed_take(destination, err)
                                               : destination_admit_streams(destination, err);
    if (result == 0)
        result = destination_prepared(destination, err);
    return result;
}

int destination_run(struct ferry_session *session, enum ferry_outcome *outcome, struct ferry_error *err)
{
    struct destination *destination = calloc(1, sizeof(*destination));
    struct wire_end end;
    bool verify = false;

    if (!destination) {
        error_set(err, -ENOMEM, "out of memory for a migration");
        return session_fail(session, FERRY_CAUSE_MEMORY, -ENOMEM, err);
    }
    destination->session = session;
    gate_init(&destination->gate, session);
    checkpoint_init(&destination->checkpoint);

    int result = session_check(session, err);

    if (result == 0)
        result = destination_begin(destination, err);
    gate_close(&destination->gate);
    if (result == 0) {
        session_enter_state(session, MIGRATE_FROM_VMX_PRECOPY);
        session_enter_phase(session, FERRY_PHASE_COPY);
        result = destination_receive(destination, &end, &verify, err);
    }
    if (result == 0) {
        session_enter_state(session, MIGRATE_FROM_VMX_CHECKPT);
        result = switchover_destination(destination, &end, verify, err);
    }
    if (result == 0) {
        *outcome = FERRY_OUTCOME_COMPLETED;
        if (destination->postcopy)
            *outcome = postcopy_fetch(destination->postcopy, err);
        if (*outcome != FERRY_OUTCOME_COMPLETED)
            result = session_fail(session, FERRY_CAUSE_NETWORK, err->code, err);
    } else {
        if (destination->acquired && session->ops->give_back_ownership) {
            session->ops->give_back_ownership(session->guest, &session->handover);
            destination->acquired = false;
        }
        /* While the guest is still ours the source must not be told that it may take it. */
        if (!destination->acquired)
            control_end_failed(&destination->control, session->committed ? WIRE_NOT_RUNNING : WIRE_ABORT);
    }
    postcopy_free(destination->postcopy);
    gate_close(&destination->gate);
    receiver_close(&destination->receiver);
    control_close(&destination->control);
    prefault_close(&destination->prefault);
    decoder_free(&destination->decoder);
    page_place_free(&destination->place);
    checkpoint_free(&destination->checkpoint);
    free(destination);
    return result;
}
