/*
 * libferry: moves a running guest from one process to another, over a network.
 *
 * The library knows nothing of CPUs, devices, hosts or disks. A virtual machine monitor describes its guest
 * through `struct ferry_guest_ops` (the guest seam), then runs one session a migration: a source where the
 * guest runs, a destination where the same guest was built but has not run. Each session is one blocking call
 * on a thread of the caller; the callbacks of the seam and of the observer are made on that thread unless
 * said otherwise.
 *
 *     source                                             destination
 *     ferry_source_run()                                 ferry_destination_run()
 *       hello, regions, options     ───────────────▶       checks them, answers
 *       dirty_start                                         (memory reserved before this)
 *       every page, then rounds     ═══════════════▶       pages placed            pre-copy
 *       pause, quiesce                                                              downtime begins
 *       last pages, save_state      ═══════════════▶       load_state
 *                                   ◀─── Restore-OK / Restore-Failure ───
 *       release_ownership
 *       GO                          ───────────────▶       acquire_ownership, resume
 *                                   ◀─── RUNNING ───                                downtime ends
 *
 * When both are processes of one machine the memory can be passed instead of copied (pass_memory,
 * memory_passed): the destination gets its descriptors by a Unix socket before the guest is paused, and there
 * are no rounds. The two then share it, and neither may write to it but while the guest is its own: the
 * destination not before its resume succeeds, the source not after quiesce, unless it takes the guest back.
 *
 * Until GO is sent any failure, on either side or of the network, leaves the source running as if nothing had
 * been asked. After GO was sent the source never runs the guest again unless retake_ownership says it may.
 *
 * Quick resume. The guest may start at the destination before all of its memory is there: instead of the last
 * pages their numbers are sent, and after RUNNING the source keeps its memory and serves pages until all are
 * there; only then both sessions end. A page that the guest touches comes first; the others come unasked.
 * When the connection is lost in that time the guest stands still at the destination, both sides keep
 * everything, and the source connects again: by itself for a set time, or when ferry_session_reconnect is
 * called.
 *
 * Units are in the names; sizes are bytes; durations nanoseconds of a monotonic clock. All structs passed in
 * are borrowed for the call or, for sessions, for the session's life. What says so may be called from any
 * thread, everything else from one.
 */
#ifndef FERRY_FERRY_H
#define FERRY_FERRY_H

#include <ferry/error.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FERRY_PAGE_SIZE        4096
#define FERRY_REGIONS_MAX      8
#define FERRY_NAME_SIZE        64
#define FERRY_ID_SIZE          37 /* migration id: a UUID as text, with its NUL */
#define FERRY_TOKEN_SIZE       32 /* bytes of the secret both ends were given by their agents */
#define FERRY_SECTION_SIZE_MAX (64u << 20)
#define FERRY_SECTIONS_MAX     256
#define FERRY_ROUNDS_MAX       64 /* rounds kept one by one in a report */
#define FERRY_STREAMS_MAX      16
#define FERRY_VCPUS_MAX        256 /* that are told apart when slowing them */

/* Transition states; numbers and names are those in the logs. 6 is unused. */
enum ferry_state {
    MIGRATE_VMX_NONE = 0,
    MIGRATE_TO_VMX_READY = 1,
    MIGRATE_TO_VMX_PRECOPY = 2,
    MIGRATE_TO_VMX_CHECKPT = 3,
    MIGRATE_TO_VMX_WAIT_HANDSHAKE = 4,
    MIGRATE_TO_VMX_FINISHED = 5,
    MIGRATE_FROM_VMX_INIT = 7,
    MIGRATE_FROM_VMX_WAITING = 8,
    MIGRATE_FROM_VMX_PRECOPY = 9,
    MIGRATE_FROM_VMX_CHECKPT = 10,
    MIGRATE_FROM_VMX_FINISHED = 11,
};

/* "MIGRATE_TO_VMX_PRECOPY"; "unknown" for other numbers. */
const char *ferry_state_name(enum ferry_state state);

/* What an operator sees, each with percent complete. */
enum ferry_phase {
    FERRY_PHASE_INIT = 1, /* connect, checks, start the target */
    FERRY_PHASE_COPY,     /* track writes, copy all memory */
    FERRY_PHASE_QUIESCE,  /* finish outstanding I/O, queue new requests for the target */
    FERRY_PHASE_FROZEN,   /* vCPUs stopped; modified memory and state copied */
    FERRY_PHASE_FETCH,    /* quick resume only: it runs at the destination, missing pages are fetched */
};

const char *ferry_phase_name(enum ferry_phase phase); /* "Init", "Copy", "I/O Quiesce", "Frozen", "Fetch" */

struct ferry_ram_region {
    char name[FERRY_NAME_SIZE]; /* the same on both sides; unique */
    uint64_t guest_addr;
    uint64_t size; /* whole pages */
    uint8_t *host_ptr;
    int memfd; /* the memory's descriptor, offset 0; -1 when it has none (then holes cannot be skipped, and
                  there is no quick resume; nor with huge pages of hugetlbfs) */
};

/* Where save_state puts sections. */
struct ferry_sink;
int ferry_sink_section(struct ferry_sink *sink, const char *name, uint32_t version, const void *data,
                       size_t size, struct ferry_error *err);

struct ferry_section {
    char name[FERRY_NAME_SIZE];
    uint32_t version;
    const uint8_t *data;
    size_t size;
};

/* Which migration ownership passes in; both sides see the same values. */
struct ferry_handover {
    char migration_id[FERRY_ID_SIZE];
    char source[FERRY_NAME_SIZE]; /* host names, for messages and lock files */
    char destination[FERRY_NAME_SIZE];
    /* Only for retake_ownership: GO was never sent, or the destination said that it gave up. It has not run
     * the guest and never will, whatever an arbiter can or cannot tell. */
    bool destination_never_ran;
};

enum ferry_retake {
    FERRY_RETAKE_RESUME = 1, /* ownership is here again: the guest may run */
    FERRY_RETAKE_LOST,       /* the destination owns the guest: it must never run here */
    FERRY_RETAKE_UNKNOWN,    /* nobody can say: stay stopped, a person decides */
};

/* What an arbiter can tell of a guest that was handed over. */
enum ferry_elsewhere {
    FERRY_ELSEWHERE_UNKNOWN = 1, /* nobody can say, just now */
    FERRY_ELSEWHERE_OWNED,       /* the destination has it, and has started it */
    FERRY_ELSEWHERE_GONE,        /* it was started there, and the destination does not have it any more */
    FERRY_ELSEWHERE_NEVER_RAN,   /* it was not started there, and nobody has it */
};

/*
 * The guest seam: what a VMM does for libferry. All int functions return 0 or a negative errno with err
 * filled in. Functions marked [source] or [destination] are called on that side only; a VMM that does only
 * one may leave the other's NULL.
 */
struct ferry_guest_ops {
    /* Fills at most FERRY_REGIONS_MAX regions. Valid for the session's life. At the destination all of it
     * reads as zeros when the session starts: pages the source never touched are not sent. Where memory is to
     * be passed it need not be there yet. */
    int (*list_regions)(void *guest, struct ferry_ram_region *regions, size_t *count,
                        struct ferry_error *err);

    /*
     * [destination] The source passes the memory of region INDEX. On success FD is the guest's: the region's
     * memory is what is behind it from now on, at the same host_ptr, and the memory it had is dropped. FD was
     * checked to be of the region's size and not to shrink. May be NULL: memory cannot be passed here.
     */
    int (*adopt_memory)(void *guest, size_t index, int fd, struct ferry_error *err);

    /* [source] From dirty_start on every write to guest memory, by vCPUs and devices, is recorded. */
    int (*dirty_start)(void *guest, struct ferry_error *err);
    /* [source] ORs the region's dirty bits into bitmap (one bit a page) and clears them. A page written after
     * its bit was taken is in the next fetch. */
    int (*dirty_fetch)(void *guest, size_t region, uint64_t *bitmap, struct ferry_error *err);
    void (*dirty_stop)(void *guest);

    /* [source] vCPUs stop; when it returns no guest instruction runs. *was_running tells the state before,
     * which is the state the guest will be in at the destination. On failure the guest is as it was. */
    int (*pause)(void *guest, bool *was_running, struct ferry_error *err);
    /* [source] Outstanding I/O finished and flushed, new requests stay queued in guest memory. */
    int (*quiesce)(void *guest, uint64_t timeout_ns, struct ferry_error *err);
    /* [source] Undoes pause and quiesce (resume only if it was running). [destination] starts the guest: RUN
     * false leaves it paused; on failure not one guest instruction was executed, and memory that was
     * passed is as it was. */
    int (*resume)(void *guest, bool run, struct ferry_error *err);

    /* [source] Paused and quiesced: calls ferry_sink_section for each section. */
    int (*save_state)(void *guest, struct ferry_sink *sink, struct ferry_error *err);
    /* [destination] One section, in the order they were saved, all memory being there; then load_finish once
     * after the last. Loading runs nothing and touches nothing outside the process. */
    int (*load_section)(void *guest, const struct ferry_section *section, struct ferry_error *err);
    int (*load_finish)(void *guest, struct ferry_error *err);
    /* [destination] Just before resume of a running guest: it stood still for this long. May be NULL. */
    void (*advance_clock)(void *guest, uint64_t nanoseconds);

    /* [source] Slow the vCPUs to (100 - percent) % of their speed. May be NULL. */
    void (*throttle)(void *guest, unsigned percent);
    /* [source] To slow only those that write: fills pages[i] with the number of pages vCPU i was the first to
     * write since each dirty_fetch, summed up from dirty_start on; returns the number of vCPUs, at most MAX,
     * 0 when that is not known. Then slows vCPU i by percent[i]. Both may be NULL. */
    size_t (*vcpu_writes)(void *guest, uint64_t *pages, size_t max);
    void (*throttle_vcpus)(void *guest, const unsigned *percent, size_t count);

    /* [source] After Restore-OK, before GO: give the guest to the destination. On failure the guest stays
     * here. */
    int (*release_ownership)(void *guest, const struct ferry_handover *handover, struct ferry_error *err);
    /* [destination] After GO: take it, or refuse. After success the guest is this side's alone. */
    int (*acquire_ownership)(void *guest, const struct ferry_handover *handover, struct ferry_error *err);
    /* [source] GO was sent, RUNNING did not come: may the guest run here again? */
    enum ferry_retake (*retake_ownership)(void *guest, const struct ferry_handover *handover,
                                          struct ferry_error *err);

    /* [destination] The guest runs: tell the network where it is now. May be NULL. */
    void (*announce)(void *guest);

    /* [source] Quick resume, the connection is lost: what has become of the guest? Changes nothing. NULL: as
     * if nobody could ever say. */
    enum ferry_elsewhere (*look_elsewhere)(void *guest, const struct ferry_handover *handover,
                                           struct ferry_error *err);
    /* [destination] Quick resume: the connection is lost (HOLD, and WHY), the guest must stand still; or it
     * is back. Must not wait for vCPUs, which may be waiting for pages themselves. NULL: those that touch
     * missing pages wait, others run on. */
    void (*hold)(void *guest, bool hold, const char *why);

    /* [destination] acquire_ownership succeeded, resume failed: nothing ran here, give the guest up so that
     * the source can take it back. NULL: it is not given up before this process ends. */
    void (*give_back_ownership)(void *guest, const struct ferry_handover *handover);
};

/* Where the downtime went. Their sum is the downtime. */
enum ferry_downtime_part {
    FERRY_DOWNTIME_PAUSE = 0,
    FERRY_DOWNTIME_QUIESCE,
    FERRY_DOWNTIME_LAST_PAGES,
    FERRY_DOWNTIME_STATE_SAVE,
    FERRY_DOWNTIME_WIRE, /* what is left: latency and waiting between the two sides */
    FERRY_DOWNTIME_STATE_LOAD,
    FERRY_DOWNTIME_LOCK, /* release at the source, acquire at the destination */
    FERRY_DOWNTIME_RESUME,
    FERRY_DOWNTIME_ANNOUNCE,
    FERRY_DOWNTIME_PARTS,
};

const char *ferry_downtime_part_name(enum ferry_downtime_part part); /* "pause", "quiesce", "last pages", … */

struct ferry_round {
    uint64_t pages; /* pages sent in it */
    uint64_t bytes; /* on the wire */
    uint64_t duration_ns;
    uint64_t dirtied_pages; /* found written at its end */
};

enum ferry_outcome {
    FERRY_OUTCOME_NONE = 0,  /* not ended */
    FERRY_OUTCOME_COMPLETED, /* the guest is at the destination */
    FERRY_OUTCOME_FAILED,    /* the guest is where it was, as it was; destination: nothing ran here */
    FERRY_OUTCOME_CANCELLED, /* as failed, because somebody asked */
    FERRY_OUTCOME_UNKNOWN,   /* source only: GO was sent and nobody can say; the guest stays stopped here */
    FERRY_OUTCOME_LOST, /* source: the destination owns the guest but did not say RUNNING, or has died with
                           it. Destination: the guest ran here, and pages it needs are gone with the
                           source; it can never run on */
};

const char *ferry_outcome_name(enum ferry_outcome outcome); /* "completed", "failed", … */

/* Cause of a failure, for records (class) beside the words. */
enum ferry_cause {
    FERRY_CAUSE_NONE = 0,
    FERRY_CAUSE_NETWORK, /* slow, gone, or not who was expected */
    FERRY_CAUSE_STORAGE,
    FERRY_CAUSE_VERSION,
    FERRY_CAUSE_CPU,
    FERRY_CAUSE_MEMORY,
    FERRY_CAUSE_LOCK,
    FERRY_CAUSE_CONVERGENCE,
    FERRY_CAUSE_CANCELLED,
    FERRY_CAUSE_GUEST, /* the guest rebooted, powered off or crashed meanwhile */
    FERRY_CAUSE_INTERNAL,
};

const char *ferry_cause_name(enum ferry_cause cause);

/* Of quick resume. */
struct ferry_fetch_progress {
    bool used;              /* the guest was, or is being, stopped with pages missing */
    bool running;           /* it runs at the destination and pages are still missing there */
    bool disconnected;      /* in that time: there is no connection, the guest stands still */
    uint64_t missing_pages; /* when it was stopped */
    /* Pages it had to wait for, and how long: from the fault's arrival until the page was in its place. The
     * source knows these at the end only. */
    uint64_t faults;
    uint64_t fault_median_ns;
    uint64_t fault_p99_ns;
    uint64_t fault_max_ns;
    uint64_t duration_ns; /* from the guest's start until all pages were there */
    unsigned reconnects;  /* connections lost and made again */
    uint64_t paused_ns;   /* without a connection */
};

/* What is done to pages that are not zero so that they take less than a page of the link. */
enum ferry_encoding {
    FERRY_ENCODING_UNCHANGED = 0, /* written, but with what they held when they were sent last: not sent.
                                     The source knows these */
    FERRY_ENCODING_DELTA,         /* only what changed since they were sent last */
    FERRY_ENCODING_LZ4,
    FERRY_ENCODING_ZSTD,
    FERRY_ENCODINGS,
};

const char *ferry_encoding_name(enum ferry_encoding encoding); /* "unchanged", "delta", "lz4", "zstd" */

struct ferry_encoded {
    uint64_t pages;
    uint64_t bytes; /* of them on the wire, without headers */
};

#define FERRY_ENCRYPTION_SIZE 96

/* A snapshot of a session, and at its end the report. */
struct ferry_progress {
    enum ferry_state state;
    enum ferry_phase phase;
    unsigned percent; /* of the phase; never goes back within a phase */
    enum ferry_outcome outcome;
    enum ferry_cause cause;
    char error[FERRY_ERROR_TEXT_SIZE]; /* empty when there is none */

    char encryption[FERRY_ENCRYPTION_SIZE]; /* "TLSv1.3 with …"; empty: none, or not connected yet */

    uint64_t memory_bytes;    /* guest RAM */
    uint64_t remaining_bytes; /* still to send */
    uint64_t wire_bytes;      /* sent (source) or received (destination), headers included */
    /* Pages by how they were sent (source) or received (destination), in all rounds together. */
    uint64_t pages_raw;
    uint64_t pages_zero; /* sent as "this page is zero" */
    struct ferry_encoded encoded[FERRY_ENCODINGS];
    uint64_t pages_postponed;       /* source: left out of a round, because they are written in every round */
    uint64_t pages_skipped;         /* holes that were never touched */
    uint64_t bandwidth_bytes_per_s; /* measured, on the wire; 0 when unknown */
    uint64_t copy_bytes_per_s;      /* measured, of guest memory that this copies; 0 when unknown */
    uint64_t dirty_bytes_per_s;     /* measured, of guest memory; 0 when unknown */
    unsigned throttle_percent;      /* the vCPUs are slowed by so much now */
    unsigned throttle_percent_most; /* and were at most */
    uint64_t state_bytes;           /* the guest's state beside memory; 0 until it is saved */

    unsigned round;                              /* rounds done */
    struct ferry_round rounds[FERRY_ROUNDS_MAX]; /* the first FERRY_ROUNDS_MAX */

    uint64_t total_ns;    /* session start to now or to its end */
    uint64_t setup_ns;    /* session start to first page */
    uint64_t prepare_ns;  /* source: of it, waiting until memory is ready at the destination */
    uint64_t downtime_ns; /* source: pause begins until the guest runs and is announced there; 0 before */
    uint64_t downtime_part_ns[FERRY_DOWNTIME_PARTS];

    struct ferry_fetch_progress fetch;
};

enum ferry_log_level {
    FERRY_LOG_DEBUG = 1,
    FERRY_LOG_INFO,
    FERRY_LOG_WARN,
    FERRY_LOG_ERROR,
};

/* What the session tells while it runs; any may be NULL. Must return quickly. */
struct ferry_observer {
    void *opaque;
    void (*log)(void *opaque, enum ferry_log_level level, const char *text);
    void (*state_changed)(void *opaque, enum ferry_state state);
    void (*phase_changed)(void *opaque, enum ferry_phase phase);
    void (*round_done)(void *opaque, unsigned number, const struct ferry_round *round);
};

/* May the guest start before all of its memory is there? */
enum ferry_quick_resume {
    FERRY_QUICK_RESUME_OFF = 0,
    FERRY_QUICK_RESUME_ALLOWED, /* when rounds do not converge */
    FERRY_QUICK_RESUME_NOW, /* in any case: after quick_resume_rounds rounds, or when no more are needed */
};

/*
 * Who this side is for encrypted migrations (TLS 1.3): a key, its certificate and the CA that both sides
 * trust, read from one PEM file, as `ferry host certs` makes them. Each side accepts the other only when its
 * certificate is of that CA, valid now, and that of the host named in the options. 0, or a negative errno.
 */
struct ferry_credentials;
int ferry_credentials_load(struct ferry_credentials **out, const char *path, struct ferry_error *err);
/* Sessions made with them keep what they need. NULL allowed. */
void ferry_credentials_free(struct ferry_credentials *credentials);
/* What is done to pages before they are sent, beside leaving zeros out. */
enum ferry_compress {
    FERRY_COMPRESS_AUTO = 0, /* what the link and the CPUs can take just now; nothing on a fast link */
    FERRY_COMPRESS_OFF,      /* nothing */
    FERRY_COMPRESS_LZ4,      /* changes against what was sent before, and lz4, always */
    FERRY_COMPRESS_ZSTD,     /* the same with zstd */
};

const char *ferry_compress_name(enum ferry_compress compress); /* "auto", "off", "lz4", "zstd" */
int ferry_compress_parse(const char *name, enum ferry_compress *compress, struct ferry_error *err);

struct ferry_source_options {
    char migration_id[FERRY_ID_SIZE];
    uint8_t token[FERRY_TOKEN_SIZE];
    char source[FERRY_NAME_SIZE]; /* host names */
    char destination[FERRY_NAME_SIZE];
    char address[128];                     /* where the destination listens, "ADDR:PORT" */
    struct ferry_credentials *credentials; /* NULL: in the clear */
    int64_t destination_pid;               /* the destination's VM process, for the log */
    bool pass_memory; /* `address` is a Unix socket's; every region must have a memfd that is
                         sealed against shrinking */
    unsigned streams; /* page connections, at most FERRY_STREAMS_MAX; 0: one a CPU, 2 to 8, or 2
                         when the bandwidth limit is at most 1 GiB/s */
    enum ferry_compress compress;
    uint64_t delta_cache;        /* bytes: at most so many of the pages sent are kept, so that of those that
                                    change a little only the changes go; 0: default 64 MiB */
    bool no_delta_cache;         /* none are kept */
    uint64_t downtime_limit_ns;  /* 0: default 50 ms */
    uint64_t bandwidth_limit;    /* bytes/s, while the guest runs; 0: none */
    uint64_t copy_time_limit_ns; /* estimated remaining copy time above which a diverging migration aborts; 0:
                                    100 s */
    bool no_throttle;            /* never slow the vCPUs */
    unsigned throttle_max;       /* per cent they may be slowed by at most, up to 99; 0: that much */
    uint64_t quiesce_timeout_ns; /* 0: default 10 s */
    uint64_t peer_timeout_ns;    /* a silent peer is given up after this; 0: default 10 s */
    bool verify_memory;          /* compare a checksum of all memory before Restore-OK; costs downtime. Not
                                    with quick resume */
    enum ferry_quick_resume quick_resume;
    unsigned quick_resume_rounds; /* with NOW; 0: before the first */
    uint64_t reconnect_ns; /* how long a lost connection is tried again without being told to; 0: default
                              300 s */
    /* What is known from earlier moves, for predicting the downtime; 0: unknown, a cautious guess is used. */
    uint64_t known_part_ns[FERRY_DOWNTIME_PARTS]; /* "last pages" and "wire" are not looked at */
    uint64_t known_state_bytes;
};

struct ferry_destination_options {
    char migration_id[FERRY_ID_SIZE];
    uint8_t token[FERRY_TOKEN_SIZE];
    char source[FERRY_NAME_SIZE];
    char destination[FERRY_NAME_SIZE];
    int listen_fd;                         /* listening socket; stays the caller's */
    struct ferry_credentials *credentials; /* NULL: in the clear, and encrypted connections are refused;
                                              else only encrypted ones are accepted */
    bool memory_passed;                    /* expected; listen_fd is a Unix socket's */
    uint64_t connect_timeout_ns;           /* how long to wait for the source to come; 0: peer_timeout_ns */
    uint64_t peer_timeout_ns;              /* a silent source is given up after this; 0: default 10 s */
};

struct ferry_session;

/* Options and observer are copied. */
int ferry_source_new(struct ferry_session **out, const struct ferry_source_options *options,
                     const struct ferry_guest_ops *ops, void *guest, const struct ferry_observer *observer,
                     struct ferry_error *err);
int ferry_destination_new(struct ferry_session **out, const struct ferry_destination_options *options,
                          const struct ferry_guest_ops *ops, void *guest,
                          const struct ferry_observer *observer, struct ferry_error *err);

/* Runs the whole migration on the calling thread (and threads of its own). 0 when completed; otherwise
 * the error, and ferry_session_progress tells the outcome: what it means for the guest. */
int ferry_session_run(struct ferry_session *session, struct ferry_error *err);

/* Any thread. 0: it will end as cancelled. -EALREADY: too late, GO was sent (or it has ended). */
int ferry_session_cancel(struct ferry_session *session, struct ferry_error *err);

/* Any thread: from now on the source sends no faster; 0: no limit. As options.bandwidth_limit. */
void ferry_session_set_bandwidth(struct ferry_session *session, uint64_t bytes_per_s);

/* The guest was reset, powered off or crashed during the move: ends it as failed (cause guest) with WHY if
 * that is still possible. Any thread. */
void ferry_session_abort(struct ferry_session *session, enum ferry_cause cause, const char *why);

/* Quick resume, source: tries to connect again now, and anew for the set time. Any thread. -EALREADY: it is
 * connected, or there is nothing to connect for. */
int ferry_session_reconnect(struct ferry_session *session, struct ferry_error *err);

/* What somebody who knows says about a guest of which pages are missing at the destination. */
enum ferry_fetch_end {
    FERRY_FETCH_COMPLETED = 1, /* source: the destination needs nothing any more */
    FERRY_FETCH_GUEST_ENDED,   /* destination: the guest is over; the source is told */
    FERRY_FETCH_LOST,          /* the other side is gone for good */
    FERRY_FETCH_STAYED,        /* source: RUNNING did not come, and not one instruction was executed there */
};

/*
 * Ends fetching, and so the session: as completed, as lost (with WHY), or (STAYED), if retake_ownership
 * allows, as failed with the guest here. At the destination missing pages stay missing: whoever touches one
 * waits until the process ends. Any thread. -EALREADY: nothing is being fetched. -EPERM: STAYED, but the
 * guest ran there.
 */
int ferry_session_end_fetch(struct ferry_session *session, enum ferry_fetch_end how, const char *why,
                            struct ferry_error *err);

/* Does this host let this process do quick resume as a destination? -EPERM, -ENOSYS in words. */
int ferry_quick_resume_check(struct ferry_error *err);

/* Any thread: a consistent copy. */
void ferry_session_progress(struct ferry_session *session, struct ferry_progress *progress);

/* After run has returned (or was never called). NULL allowed. */
void ferry_session_free(struct ferry_session *session);

/*
 * Measures the way between two hosts: a session like any other, one end on each, that moves SIZE bytes made
 * up for it (whole pages, at most FERRY_PROBE_SIZE_MAX). They are in MEMFD, an empty file of that size such
 * as holds guests' memory, which stays the caller's; -1: in one of its own. Blocks until it is over;
 * report->rounds[0] tells what the way carried, report->prepare_ns how long such memory takes to be ready,
 * report->downtime_part_ns what a switchover takes without a guest's part in it. Any thread.
 */
#define FERRY_PROBE_SIZE_MAX (256u << 20)
int ferry_probe_send(const struct ferry_source_options *options, int memfd, uint64_t size,
                     struct ferry_progress *report, struct ferry_error *err);
int ferry_probe_receive(const struct ferry_destination_options *options, int memfd, uint64_t size,
                        struct ferry_error *err);

/* What compressing some of a guest's pages came to, by encoding; 0: not known. */
struct ferry_compressibility {
    uint64_t page_bytes[FERRY_ENCODINGS]; /* of a page that is not zero */
    uint64_t page_ns[FERRY_ENCODINGS];    /* on one core */
};

/* Compresses COUNT pages, at most 256, as a frame of them would be. Takes some milliseconds. */
void ferry_compressibility_measure(const uint8_t *const *pages, size_t count,
                                   struct ferry_compressibility *result);

/* What is known before a migration; 0 for an option is its default, as in struct ferry_source_options. */
struct ferry_forecast_input {
    uint64_t memory_bytes;      /* to send in the first round */
    uint64_t dirty_bytes_per_s; /* how fast the guest writes pages that it had not written yet */
    uint64_t working_set_bytes; /* what it writes at most, again and again */
    uint64_t bandwidth_bytes_per_s;
    uint64_t setup_ns;
    uint64_t part_ns[FERRY_DOWNTIME_PARTS]; /* of the downtime, whatever remains to be sent */
    uint64_t state_bytes;
    uint64_t bandwidth_limit;
    uint64_t downtime_limit_ns;
    uint64_t copy_time_limit_ns;
    bool no_throttle;
    unsigned throttle_max; /* per cent */
    bool quick_resume;
    enum ferry_compress compress;
    struct ferry_compressibility compressibility;
    unsigned streams; /* 0: those of a slow link, which are what counts */
};

enum ferry_forecast_end {
    FERRY_FORECAST_NONE = 0, /* no end in sight */
    FERRY_FORECAST_STOP,
    FERRY_FORECAST_QUICK_RESUME,
    FERRY_FORECAST_ABORT,
};

struct ferry_forecast {
    enum ferry_forecast_end end;
    bool converges;               /* it stops within the downtime limit, or as near to it as it can be */
    unsigned rounds;              /* without the frozen one */
    uint64_t bytes;               /* to be sent, the frozen round's included */
    enum ferry_compress compress; /* what will be done to most pages: off, lz4 or zstd */
    uint64_t total_ns;
    uint64_t downtime_ns;
    unsigned throttle; /* the most that will be asked of the vCPUs, per cent */
};

/* How a migration would go: the decisions it would make, on these numbers. Pure. */
void ferry_forecast(const struct ferry_forecast_input *input, struct ferry_forecast *forecast);

#ifdef __cplusplus
}
#endif

#endif
