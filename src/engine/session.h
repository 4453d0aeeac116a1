/*
 * The life of a session: settings, states and phases, how it fails or is cancelled, and the snapshot that any
 * thread may take. What the two sides do is in source.c and destination.c.
 *
 * Ending. The first failure wins (session_fail): it is recorded and stop_fd becomes readable for good, which
 * ends every wait of every thread of the session with -ECANCELED. session_commit is the point of no return:
 * it succeeds only if nothing has failed, and from then on cancel and abort are refused. The source commits
 * before it releases ownership, the destination when GO has come. From then on stop_fd becomes readable only
 * to end or hurry fetching (ferry_session_end_fetch, ferry_session_reconnect).
 *
 * Locks: `lock` guards what is marked so. It is a leaf: nothing is called while it is held.
 */
#ifndef FERRY_ENGINE_SESSION_H
#define FERRY_ENGINE_SESSION_H

#include "engine/channel.h"
#include "engine/fault.h"
#include "engine/state.h"

#include <ferry/ferry.h>

#include <pthread.h>

#define SESSION_CHANNELS_MAX (1 + FERRY_STREAMS_MAX)

struct session_settings {
    uint8_t token[FERRY_TOKEN_SIZE];
    struct ferry_credentials *credentials; /* a reference; NULL: in the clear */
    uint64_t peer_timeout_ns;
    bool verify_memory;

    /* Source. */
    char address[128];
    int64_t destination_pid;
    bool pass_memory; /* on either side: memory is passed, not copied */
    unsigned streams;
    enum ferry_compress compress;
    uint64_t delta_cache;      /* bytes */
    uint64_t features_unknown; /* this side does as if it did not know them, like an older version: tests */
    uint64_t downtime_limit_ns;
    uint64_t copy_time_limit_ns;
    unsigned throttle_max; /* per cent; 0: never */
    uint64_t known_part_ns[FERRY_DOWNTIME_PARTS];
    uint64_t known_state_bytes;
    uint64_t quiesce_timeout_ns;
    enum ferry_quick_resume quick_resume;
    unsigned quick_resume_rounds;
    uint64_t reconnect_ns;

    /* Destination. */
    int listen_fd;
    uint64_t connect_timeout_ns;
};

#define SESSION_HELD_MAX 8

/* Something to tell the observer: a state, a phase, or a line. */
struct session_told {
    bool state_changed;
    enum ferry_state state;
    enum ferry_phase phase;     /* 0: not changed */
    enum ferry_log_level level; /* 0: no line */
    char text[FERRY_ERROR_TEXT_SIZE + 128];
};

struct ferry_session {
    enum session_role role;
    const struct ferry_guest_ops *ops;
    void *guest;
    struct ferry_observer observer;
    struct session_settings settings;
    struct ferry_handover handover;
    struct fault_plan faults;
    int stop_fd; /* eventfd, readable when the session must end */
    uint64_t start_ns;
    uint64_t bandwidth_limit; /* bytes/s; 0: none; atomic */

    /* What the observer is not told yet, in order; session thread only. */
    bool hushed;
    struct session_told held[SESSION_HELD_MAX];
    size_t held_count;

    /* Counted by page threads; atomic. */
    uint64_t pages_raw;
    uint64_t pages_zero;
    struct ferry_encoded encoded[FERRY_ENCODINGS];
    uint64_t pages_postponed;
    uint64_t pages_left; /* of the round */

    bool stopped; /* a failure was recorded; atomic, so that page threads may look without the lock */

    pthread_mutex_t lock; /* guards the rest */
    struct ferry_progress progress;
    enum ferry_cause cause; /* of the failure; FERRY_CAUSE_NONE while there is none */
    bool local_network;     /* the failure is only that the network failed here: the peer may know better */
    struct ferry_error failure;
    bool running;
    bool committed;
    bool ended;
    enum ferry_fetch_end fetch_end; /* 0: go on */
    char fetch_end_why[FERRY_ERROR_TEXT_SIZE];
    bool reconnect;    /* somebody asked for it */
    bool seen_running; /* source: the destination said, in whatever way, that it runs the guest */
    struct channel *channels[SESSION_CHANNELS_MAX]; /* open ones, for byte counts and fault points */
    size_t channel_count;
    uint64_t closed_bytes; /* counts of channels that are closed */
};

void session_log(struct ferry_session *session, enum ferry_log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Session thread. Asserts that the transition is legal. While the guest stands still the observer must not
 * cost it time: from session_hush on it is told nothing, until session_speak tells it all that was held back.
 */
void session_enter_state(struct ferry_session *session, enum ferry_state state);
void session_enter_phase(struct ferry_session *session, enum ferry_phase phase);
void session_hush(struct ferry_session *session);
void session_speak(struct ferry_session *session);
void session_set_percent(struct ferry_session *session, uint64_t done, uint64_t total);

/* Records the failure unless there is one, and stops the session's waits. Any thread. Returns code. */
int session_fail(struct ferry_session *session, enum ferry_cause cause, int code,
                 const struct ferry_error *err);
/* As session_fail with cause network for a failure of our own end of the connection: what the peer says about
 * it replaces it (session_fail_by_peer). */
int session_fail_network(struct ferry_session *session, int code, const struct ferry_error *err);
int session_fail_by_peer(struct ferry_session *session, enum ferry_cause cause, const char *text,
                         struct ferry_error *err);
/* As session_fail, unless the session is committed. False: it is, and nothing was recorded. */
bool session_fail_uncommitted(struct ferry_session *session, enum ferry_cause cause, int code,
                              const struct ferry_error *err);
/* 0, or the failure's code with err filled in. Any thread. */
int session_check(struct ferry_session *session, struct ferry_error *err);
int session_commit(struct ferry_session *session, struct ferry_error *err);

/* 0 or -EIO (recorded as failure with cause internal). */
int session_fault(struct ferry_session *session, enum fault_point point, struct ferry_error *err);

/* An open channel of the session; removed before it is closed. */
void session_add_channel(struct ferry_session *session, struct channel *channel);
void session_remove_channel(struct ferry_session *session, struct channel *channel);
uint64_t session_wire_bytes(struct ferry_session *session);
/* How CHANNEL is encrypted, for the report. */
void session_note_encryption(struct ferry_session *session, const struct channel *channel);

static inline void session_count(uint64_t *counter, uint64_t by)
{
    __atomic_fetch_add(counter, by, __ATOMIC_RELAXED);
}

struct page_counts;
void session_count_pages(struct ferry_session *session, const struct page_counts *counts);

/* The two sides; each returns 0 when completed, otherwise a failure is recorded. *outcome is what became of
 * the guest. */
int source_run(struct ferry_session *session, enum ferry_outcome *outcome, struct ferry_error *err);
int destination_run(struct ferry_session *session, enum ferry_outcome *outcome, struct ferry_error *err);

#endif
