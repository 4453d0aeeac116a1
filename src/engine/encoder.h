/*
 * Puts frames of pages together for one connection (source): looks for zero pages, and does with the others
 * what the connection has chosen (choice.h): by their place in guest memory, or from a copy, as changes
 * against what was sent before (sent.h), compressed (codec.h).
 *
 *     encoder_begin(…, round);
 *     while (…) {
 *         first = encoder_add(…, first, end);      until the frame is full, or all pages are in
 *         encoder_finish(…, &frame);               the frame, ready to be sent
 *         send it
 *         encoder_sent(…, how long that took);     ready for the next
 *     }
 *
 * One thread's. While a page is in the frame nobody else may have it in another.
 */
#ifndef FERRY_ENGINE_ENCODER_H
#define FERRY_ENGINE_ENCODER_H

#include "engine/choice.h"
#include "engine/codec.h"
#include "engine/pages.h"
#include "engine/sent.h"

struct encoder {
    const struct page_map *map;
    struct sent *sent; /* NULL: nothing is kept */
    bool delta;        /* the other side takes changes */
    struct choice choice;
    struct codec codec;
    uint32_t round;

    enum choice_way way; /* of the frame being put together */
    struct page_batch batch;
    struct wire_encoded *encoded; /* owned; sizes of changes, and the frame's body */
    uint8_t *stage;               /* owned; copies, in the order of the runs */
    size_t staged;                /* bytes in it */
    size_t delta_bytes;           /* of these */
    uint8_t *packed;              /* owned; compressed */
    struct page_counts counts;    /* of the frame */
    uint64_t begin_ns;
    struct choice_batch took;
};

struct encoder_frame {
    enum wire_type type; /* PAGES or ENCODED */
    struct iovec *iov;   /* the first two are for the link */
    int iov_count;
    uint32_t data; /* bytes */
};

/* SENT may be NULL. FEATURES are those agreed on. */
void encoder_init(struct encoder *encoder, const struct page_map *map, struct sent *sent,
                  enum ferry_compress wish, uint64_t features);
void encoder_free(struct encoder *encoder); /* zeroed allowed */

/* A frame of ROUND begins. */
void encoder_begin(struct encoder *encoder, uint32_t round);
/* Adds those of pages [first, end) that are in SET until the frame is full. Returns the page to go on with;
 * END when all are in. */
size_t encoder_add(struct encoder *encoder, const struct page_set *set, size_t region, size_t first,
                   size_t end);
bool encoder_empty(const struct encoder *encoder);
/* BODY (cleared before) gets the frame's body. Valid until encoder_sent. */
void encoder_finish(struct encoder *encoder, struct buffer *body, struct encoder_frame *frame);
/* From now on pages are waited for, on a link of so many nanoseconds a byte (0: unknown). Between frames. */
void encoder_freeze(struct encoder *encoder, double link_ns);
/* What it would come to: bytes of a page on the wire (0: unknown) and the time to encode one. */
void encoder_foresee(const struct encoder *encoder, double link_ns, uint64_t *page_bytes, uint64_t *page_ns);
/* What became of the pages since the last time, sent or left out; a new frame begins. */
struct page_counts encoder_sent(struct encoder *encoder, uint64_t send_ns);

#endif
