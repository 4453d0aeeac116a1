/*
 * Frames of pages as they arrive (destination): raw pages are read straight into guest memory, the others are
 * made of what came. One thread's.
 */
#ifndef FERRY_ENGINE_DECODER_H
#define FERRY_ENGINE_DECODER_H

#include "engine/codec.h"
#include "engine/link.h"
#include "engine/place.h"

struct decoder {
    uint64_t features; /* agreed on */
    struct codec codec;
    struct wire_run runs[WIRE_RUNS_MAX];
    struct iovec iov[WIRE_RUNS_MAX];
    struct wire_encoded *encoded; /* owned; these are made when the first ENCODED frame comes */
    uint8_t *packed;              /* owned */
    uint8_t *data;                /* owned */
};

void decoder_init(struct decoder *decoder, uint64_t features);
void decoder_free(struct decoder *decoder); /* zeroed allowed */

/* Places the pages of FRAME (PAGES or ENCODED) of *ROUND that came by LINK, its data being next. -EBADMSG for
 * what no peer should send. */
int decoder_place(struct decoder *decoder, struct page_place *place, struct link *link, struct frame *frame,
                  uint32_t *round, struct page_counts *counts, struct ferry_error *err);

#endif
