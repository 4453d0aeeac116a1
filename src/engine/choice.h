/*
 * How a page connection sends pages: as they are, or encoded, and how. Pure: what batches took goes in, the
 * way to do the next one comes out; no clock, no threads, no pages. Each connection chooses for itself.
 *
 *     plain    straight from guest memory: nothing costs less
 *     staged   by a copy: what was sent is known, so pages that changed back are left out, and of those that
 *              changed a little only the changes go
 *     lz4, zstd  staged, and the batch compressed
 *
 * A page takes as long as encoding it, or as long as the link needs for its bytes, whichever is more: while
 * the link drains what was sent, the next batch is encoded.
 *
 *     time(way) = max(encode(way) + bytes(way) * copy, bytes(way) * link)
 *
 * encode and bytes are what batches and samples in that way took, wall time, so that busy cores count. LINK
 * is known only while sending waits for it; when it does not, the link is faster than anything here, and
 * plain is right. Whoever waits may be waiting for the destination's cores instead, and what is predicted may
 * not come true: a new way is kept only if pages really leave faster; else it is not tried again for a while,
 * longer each time.
 */
#ifndef FERRY_ENGINE_CHOICE_H
#define FERRY_ENGINE_CHOICE_H

#include <ferry/ferry.h>

#include <stdbool.h>
#include <stdint.h>

enum choice_way {
    CHOICE_PLAIN = 0,
    CHOICE_STAGED,
    CHOICE_LZ4,
    CHOICE_ZSTD,
    CHOICE_WAYS,
};

/* A batch, a sample, or the sum of some. */
struct choice_batch {
    uint64_t pages; /* that were not zero */
    uint64_t bytes; /* on the wire */
    uint64_t encode_ns;
    uint64_t send_ns; /* waiting included */
};

struct choice {
    bool adaptive;
    bool allowed[CHOICE_WAYS];
    enum choice_way way;           /* for the next batch */
    bool waiting;                  /* the link, or the other side, was waited for lately */
    double link_ns;                /* a byte; 0: unknown */
    double copy_ns;                /* a byte, into the socket when it need not wait */
    double encode_ns[CHOICE_WAYS]; /* a page; 0: unknown */
    double page_bytes[CHOICE_WAYS];
    unsigned sample_age; /* windows since compression was sampled */
    unsigned idle;       /* windows since the link was waited for */
    struct choice_batch window;
    /* A way on trial. */
    bool trial;
    bool again; /* its first window was too slow, but too short to tell */
    enum choice_way before;
    double before_ns;             /* a page took so long */
    unsigned banned[CHOICE_WAYS]; /* windows to go */
    unsigned ban[CHOICE_WAYS];    /* the last ban's length */
};

/* LZ4, ZSTD: the other side takes them. */
void choice_init(struct choice *choice, enum ferry_compress wish, bool lz4, bool zstd);
/* What a batch sent in choice->way took. Returns true when that changed choice->way. */
bool choice_note(struct choice *choice, const struct choice_batch *batch);
/* Some of the next batch should be compressed in both ways, only to see what that would do. */
bool choice_wants_sample(const struct choice *choice);
/* ENCODE_NS is compression alone. */
void choice_sample(struct choice *choice, enum choice_way way, const struct choice_batch *sample);
/* All was sampled. */
void choice_sampled(struct choice *choice);
/* The way for pages that are waited for, one after the other, on a link of so many nanoseconds a byte (0:
 * unknown). */
enum choice_way choice_for(const struct choice *choice, double link_ns);

/* What a page in WAY is on the wire, at least 1, by what is known: all of it when nothing is. */
uint64_t choice_page_bytes(const struct choice *choice, enum choice_way way);
/* To encode one, in ns; 0: unknown, or next to nothing. */
uint64_t choice_page_ns(const struct choice *choice, enum choice_way way);

const char *choice_way_name(enum choice_way way); /* "plain", … */

#endif
