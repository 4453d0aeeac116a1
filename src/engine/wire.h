/*
 * The migration protocol as bytes: frames and what is in them. Pure encoding and checking, no input or
 * output.
 *
 * Frame. Everything is little-endian. A frame is a header, a body, and, for PAGES only, raw page data:
 *
 *      0        1        2                 4                 8
 *      +--------+--------+-----------------+-----------------+
 *      |  type  | flags  |    reserved 0   |   body length   |
 *      +--------+--------+-----------------+-----------------+
 *      |        data length                |    sequence     |
 *      +-----------------+-----------------+-----------------+
 *      |        XXH3-64 of the body, seeded with XXH3-64     |
 *      |        of the header's first 16 bytes               |
 *      +-----------------------------------------------------+
 *      |  body (bounded by type, WIRE_BODY_MAX at most)      |
 *      |  data (PAGES only, WIRE_DATA_MAX at most)           |
 *
 * Sequence counts a connection's frames in one direction from 1. Page data is outside the checksum: the guest
 * may write a page while it is being sent (it is then sent again). What the network does to it is TCP's and
 * TLS's business; WIRE_END_VERIFY compares whole memories end to end.
 *
 * Connections. The source opens one control connection, then as many page connections as its HELLO said. Each
 * begins with HELLO, whose first fields (up to the token) have the same place in every version.
 *
 *     source                     control                          destination
 *       HELLO, REGIONS      ──────────────▶
 *                           ◀──────────────   WELCOME (version, features)      or ABORT
 *       START               ──────────────▶   answers WELCOME: a round trip
 *       PRESENT*            ──────────────▶   feature WIRE_FEATURE_PRESENT: one a region, what will be sent
 *                           ◀──────────────   PREPARED: memory is as ready as it will be
 *       ROUND_END           ──────────────▶   after the round's FENCE on every page connection
 *                           ◀──────────────   ROUND_DONE (all of it is placed)
 *       ... more rounds ...
 *       PAUSED              ──────────────▶
 *       PAGES*, SECTION*, END ────────────▶   the last pages here, or by page connections and one more FENCE
 *                           ◀──────────────   VERDICT: Restore-OK or Restore-Failure
 *       GO                  ──────────────▶
 *                           ◀──────────────   RUNNING, or NOT_RUNNING (not one instruction was executed)
 *
 *     Memory is passed, not copied (feature WIRE_FEATURE_MEMORY; both sides on one machine, the control
 *     connection a Unix socket, no page connections): no rounds and no PAGES, but before the guest is paused
 *
 *       MEMORY              ──────────────▶   with it come the descriptors of all REGIONS, in their order
 *                           ◀──────────────   MEMORY_TAKEN: they are mapped
 *
 *     Quick resume (feature WIRE_FEATURE_FETCH): FETCH before the guest is paused, answered by FETCH; the
 *     fetch connections are made, READY comes on the first of them; then MISSING* in the place of the last
 * pages, and END with WIRE_END_FETCH.
 *
 *       KEEPALIVE, ABORT: both ways at any time. An ABORT or NOT_RUNNING of the destination also means that
 * the guest was not and will not be run there.
 *
 * Signs of life. A side that is waited for says something on the control connection every 250 ms, KEEPALIVE
 * when there is nothing else: the destination from START to END and between the parts of loading, the source
 * during rounds, while outstanding I/O is finished (at most for the time it announced in START) and while it
 * computes a checksum. Neither does between VERDICT and RUNNING, where the lock decides.
 *
 *     source                  page connection                     destination
 *       HELLO, (PAGES*, FENCE)* ──────────▶   FENCE: everything before it is placed on all page connections
 *                                             before anything after it on any, so that an older copy of a
 * page never overwrites a newer one.
 *
 *     source                  fetch connections                   destination
 *       HELLO (on each)     ──────────────▶
 *                           ◀──────────────   MISSING* (only when made again), READY
 *                           ◀──────────────   REQUEST (first connection: pages that the guest waits for)
 *       PAGES               ──────────────▶   asked for on the first one, all others unasked on the rest.
 *                                             Each page is sent once; round is that of END plus one.
 *                           ◀──────────────   FETCHED: all are there; the source closes
 *       KEEPALIVE: both ways on the first one.
 *
 * Versions. HELLO names the lowest and highest version the source speaks; the destination picks the highest
 * both know and says so in WELCOME, or sends ABORT with the versions in words. A released version's frames
 * never change; a new frame, field or meaning is a new version, or a feature bit offered in HELLO and taken
 * in WELCOME. HELLO up to its token, ABORT, and the header are the same in all versions. Zero is no valid
 * type, sequence, version, kind or verdict.
 *
 * All decoders are given untrusted bytes: they return -EBADMSG with the reason, and read nothing outside.
 */
#ifndef FERRY_ENGINE_WIRE_H
#define FERRY_ENGINE_WIRE_H

#include "base/buffer.h"

#include <ferry/ferry.h>

#define WIRE_VERSION_MIN     1
#define WIRE_VERSION_MAX     1
#define WIRE_HEADER_SIZE     24
#define WIRE_RUNS_MAX        512 /* runs in one PAGES frame */
#define WIRE_BATCH_PAGES_MAX 256 /* raw pages in one PAGES frame */
#define WIRE_DATA_MAX        (WIRE_BATCH_PAGES_MAX * FERRY_PAGE_SIZE)
#define WIRE_BODY_MAX        (FERRY_SECTION_SIZE_MAX + 128)
#define WIRE_HELLO_MAX       512

enum wire_type {
    WIRE_HELLO = 1,
    WIRE_WELCOME = 2,
    WIRE_REGIONS = 3,
    WIRE_START = 4,
    WIRE_PAGES = 5,
    WIRE_FENCE = 6,
    WIRE_ROUND_END = 7,
    WIRE_ROUND_DONE = 8,
    WIRE_PAUSED = 9,
    WIRE_SECTION = 10,
    WIRE_END = 11,
    WIRE_VERDICT = 12,
    WIRE_GO = 13,
    WIRE_RUNNING = 14,
    WIRE_NOT_RUNNING = 15,
    WIRE_ABORT = 16,
    WIRE_KEEPALIVE = 17,
    WIRE_PRESENT = 18,
    WIRE_PREPARED = 19,
    WIRE_ENCODED = 20,
    WIRE_FETCH = 32,
    WIRE_READY = 33,
    WIRE_MISSING = 34,
    WIRE_REQUEST = 35,
    WIRE_FETCHED = 36,
    WIRE_MEMORY = 40,
    WIRE_MEMORY_TAKEN = 41,
};

#define WIRE_END_VERIFY 0x01 /* flag of END: the memory checksum is there and must be compared */
#define WIRE_END_FETCH  0x02 /* flag of END: pages are missing, the guest starts without them */

/* Features of HELLO and WELCOME. */
#define WIRE_FEATURE_PRESENT (UINT64_C(1) << 0) /* PRESENT and PREPARED */
#define WIRE_FEATURE_DELTA   (UINT64_C(1) << 1) /* ENCODED with delta pages */
#define WIRE_FEATURE_LZ4     (UINT64_C(1) << 2) /* ENCODED, compressed in these ways */
#define WIRE_FEATURE_ZSTD    (UINT64_C(1) << 3)
#define WIRE_FEATURE_FETCH   (UINT64_C(1) << 8)  /* quick resume */
#define WIRE_FEATURE_MEMORY  (UINT64_C(1) << 16) /* memory is passed */
/* How this version can copy memory. */
#define WIRE_FEATURES_COPY (WIRE_FEATURE_PRESENT | WIRE_FEATURE_DELTA | WIRE_FEATURE_LZ4 | WIRE_FEATURE_ZSTD)

const char *wire_type_name(uint8_t type); /* "HELLO"; "unknown" */

struct wire_header {
    uint8_t type;
    uint8_t flags;
    uint32_t length; /* of the body */
    uint32_t data;   /* bytes after the body */
    uint32_t sequence;
    uint64_t checksum;
};

/* Fills in the checksum and writes the header. */
void wire_header_encode(uint8_t out[static WIRE_HEADER_SIZE], struct wire_header *header, const void *body);
/* Refuses unknown types and flags, and lengths outside the type's bounds. */
int wire_header_decode(const uint8_t in[static WIRE_HEADER_SIZE], struct wire_header *header,
                       struct ferry_error *err);
/* Compares the checksum. IN is the header as it came. */
int wire_body_check(const uint8_t in[static WIRE_HEADER_SIZE], const struct wire_header *header,
                    const void *body, struct ferry_error *err);
/* Appends a whole frame without data to OUT. */
void wire_frame_put(struct buffer *out, enum wire_type type, uint8_t flags, uint32_t sequence,
                    const void *body, size_t size);

enum wire_connection {
    WIRE_CONNECTION_CONTROL = 1,
    WIRE_CONNECTION_PAGES = 2,
    WIRE_CONNECTION_FETCH = 3,
};

struct wire_hello {
    uint16_t version_min;
    uint16_t version_max;
    char migration_id[FERRY_ID_SIZE];
    uint8_t token[FERRY_TOKEN_SIZE];
    /* From here on only when `version` is not 0. */
    enum wire_connection connection;
    uint16_t index;   /* of a page or fetch connection, from 0 */
    uint16_t streams; /* such connections in all, 1 to FERRY_STREAMS_MAX */
    uint32_t page_size;
    uint64_t features; /* offered */
    uint64_t required; /* of those, not to be done without */
    char source[FERRY_NAME_SIZE];
    char destination[FERRY_NAME_SIZE];

    uint16_t version; /* decoded: the highest both know, 0 when there is none */
};

void wire_hello_encode(struct buffer *out, const struct wire_hello *hello);
int wire_hello_decode(struct reader *in, struct wire_hello *hello, struct ferry_error *err);

struct wire_welcome {
    uint16_t version;
    uint64_t features; /* taken */
};

void wire_welcome_encode(struct buffer *out, const struct wire_welcome *welcome);
int wire_welcome_decode(struct reader *in, struct wire_welcome *welcome, struct ferry_error *err);

struct wire_region {
    char name[FERRY_NAME_SIZE];
    uint64_t guest_addr;
    uint64_t size;
};

void wire_regions_encode(struct buffer *out, const struct ferry_ram_region *regions, size_t count);
/* *count is at most FERRY_REGIONS_MAX, sizes are whole pages and not zero. */
int wire_regions_decode(struct reader *in, struct wire_region regions[static FERRY_REGIONS_MAX],
                        size_t *count, struct ferry_error *err);

struct wire_start {
    uint64_t quiesce_timeout_ns; /* how long the source may need between PAUSED and END */
};

void wire_start_encode(struct buffer *out, const struct wire_start *start);
int wire_start_decode(struct reader *in, struct wire_start *start, struct ferry_error *err);

/* MEMORY: how many descriptors come with it, 1 to FERRY_REGIONS_MAX. */
void wire_memory_encode(struct buffer *out, size_t count);
int wire_memory_decode(struct reader *in, size_t *count, struct ferry_error *err);

/* Which memory of a region will be sent at first, one bit a granule of WIRE_GRANULE_PAGES pages. A hint: what
 * is said may be wrong and costs time only. */
#define WIRE_GRANULE_PAGES 16

struct wire_present {
    uint8_t region;      /* index in REGIONS */
    const uint8_t *bits; /* granule i is bit i % 8 of byte i / 8; decoded: points into the reader's bytes */
    size_t size;
};

void wire_present_encode(struct buffer *out, const struct wire_present *present);
int wire_present_decode(struct reader *in, struct wire_present *present, struct ferry_error *err);

enum wire_page_kind {
    WIRE_PAGE_RAW = 1,   /* PAGES × FERRY_PAGE_SIZE bytes of data */
    WIRE_PAGE_ZERO = 2,  /* no data */
    WIRE_PAGE_DELTA = 3, /* ENCODED only: what changed (delta.h) since the page was sent last */
};

/* Pages [first, first + pages) of a region, all of one kind; their data follows in the order of the runs. */
struct wire_run {
    uint8_t region; /* index in REGIONS */
    uint8_t kind;
    uint16_t pages;
    uint32_t first;
};

void wire_batch_encode(struct buffer *out, uint32_t round, const struct wire_run *runs, size_t count);
/* Checks counts and kinds and that the raw runs add up to DATA bytes; regions are the caller's to check. */
int wire_batch_decode(struct reader *in, uint32_t data, uint32_t *round,
                      struct wire_run runs[static WIRE_RUNS_MAX], size_t *count, struct ferry_error *err);

/*
 * ENCODED: as PAGES, and it may have delta pages, and its data may be compressed as one block.
 *
 *     round u32 | runs u16 | compression u8 | reserved 0 | runs … | u16 a delta page: its bytes in the data
 */
enum wire_compression {
    WIRE_COMPRESSION_NONE = 1,
    WIRE_COMPRESSION_LZ4 = 2,
    WIRE_COMPRESSION_ZSTD = 3,
};

#define WIRE_COMPRESSIONS 4 /* for arrays by compression */

struct wire_encoded {
    uint32_t round;
    enum wire_compression compression;
    size_t count;
    size_t delta_count;
    uint32_t size; /* decoded: bytes of data before compression, WIRE_DATA_MAX at most */
    struct wire_run runs[WIRE_RUNS_MAX];
    uint16_t deltas[WIRE_BATCH_PAGES_MAX]; /* sizes, 1 to FERRY_PAGE_SIZE */
};

void wire_encoded_encode(struct buffer *out, const struct wire_encoded *encoded);
/* Checks everything but the regions and whether what it uses was agreed on. DATA is at most size, and less
 * when compressed. */
int wire_encoded_decode(struct reader *in, uint32_t data, struct wire_encoded *encoded,
                        struct ferry_error *err);

/* FENCE, ROUND_END, ROUND_DONE: the round's number. */
void wire_round_encode(struct buffer *out, uint32_t round);
int wire_round_decode(struct reader *in, uint32_t *round, struct ferry_error *err);

void wire_paused_encode(struct buffer *out, bool was_running);
int wire_paused_decode(struct reader *in, bool *was_running, struct ferry_error *err);

void wire_section_encode(struct buffer *out, const struct ferry_section *section);
/* section->data points into the reader's bytes. */
int wire_section_decode(struct reader *in, struct ferry_section *section, struct ferry_error *err);

struct wire_end {
    uint32_t sections;
    uint32_t fence; /* the last round sent by page connections */
    uint64_t memory_checksum;
};

void wire_end_encode(struct buffer *out, const struct wire_end *end);
int wire_end_decode(struct reader *in, struct wire_end *end, struct ferry_error *err);

/* ABORT and NOT_RUNNING; also the reason in a VERDICT. Decoded text has control characters replaced. */
struct wire_reason {
    enum ferry_cause cause;
    char text[FERRY_ERROR_TEXT_SIZE];
};

void wire_reason_encode(struct buffer *out, const struct wire_reason *reason);
int wire_reason_decode(struct reader *in, struct wire_reason *reason, struct ferry_error *err);

enum wire_verdict {
    WIRE_RESTORE_OK = 1,
    WIRE_RESTORE_FAILURE = 2,
};

void wire_verdict_encode(struct buffer *out, enum wire_verdict verdict, const struct wire_reason *reason);
int wire_verdict_decode(struct reader *in, enum wire_verdict *verdict, struct wire_reason *reason,
                        struct ferry_error *err);

/* How long the destination's steps took. */
struct wire_running {
    uint64_t since_go_ns; /* from GO's arrival until this frame is sent */
    uint64_t state_load_ns;
    uint64_t lock_ns;
    uint64_t resume_ns;
    uint64_t announce_ns;
};

void wire_running_encode(struct buffer *out, const struct wire_running *running);
int wire_running_decode(struct reader *in, struct wire_running *running, struct ferry_error *err);

/* FETCH: how many fetch connections the source makes, 2 to FERRY_STREAMS_MAX. */
void wire_fetch_encode(struct buffer *out, uint16_t connections);
int wire_fetch_decode(struct reader *in, uint16_t *connections, struct ferry_error *err);

/* READY: how many pages are missing; 0 while the guest is still at the source. */
void wire_ready_encode(struct buffer *out, uint64_t missing);
int wire_ready_decode(struct reader *in, uint64_t *missing, struct ferry_error *err);

/* Pages of a region that are missing: bit i of word w is page first + 64 * w + i. */
struct wire_missing {
    uint8_t region; /* index in REGIONS */
    uint32_t first; /* a multiple of 64 */
    uint32_t words; /* 1 to WIRE_MISSING_WORDS_MAX */
};

#define WIRE_MISSING_WORDS_MAX 8192

void wire_missing_encode(struct buffer *out, const struct wire_missing *missing, const uint64_t *bits);
/* *BITS gets room for WIRE_MISSING_WORDS_MAX words. */
int wire_missing_decode(struct reader *in, struct wire_missing *missing, uint64_t *bits,
                        struct ferry_error *err);

struct wire_page {
    uint8_t region; /* index in REGIONS */
    uint32_t page;
};

#define WIRE_REQUEST_PAGES_MAX 64

void wire_request_encode(struct buffer *out, const struct wire_page *pages, size_t count);
int wire_request_decode(struct reader *in, struct wire_page pages[static WIRE_REQUEST_PAGES_MAX],
                        size_t *count, struct ferry_error *err);

/* What fetching was like: pages the guest waited for, and how long (from the fault's arrival until the page
 * was in its place). */
struct wire_fetched {
    uint64_t faults;
    uint64_t median_ns;
    uint64_t p99_ns;
    uint64_t max_ns;
    uint64_t duration_ns; /* from the guest's start until all pages were there */
    uint64_t paused_ns;   /* of that, without a connection */
};

void wire_fetched_encode(struct buffer *out, const struct wire_fetched *fetched);
int wire_fetched_decode(struct reader *in, struct wire_fetched *fetched, struct ferry_error *err);

#endif
