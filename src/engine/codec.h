/*
 * Compression of page data, one block at a time: a table of the libraries that do it, and what they need kept
 * between blocks. A codec is one thread's.
 */
#ifndef FERRY_ENGINE_CODEC_H
#define FERRY_ENGINE_CODEC_H

#include "engine/pages.h"

struct codec {
    void *state[WIRE_COMPRESSIONS]; /* owned; made when first used */
    void *undo[WIRE_COMPRESSIONS];
};

/* "lz4", "zstd"; "none". */
const char *codec_name(enum wire_compression kind);
/* The feature that both sides must have; 0 for none at all. */
uint64_t codec_feature(enum wire_compression kind);

/* A frame's DATA bytes on the wire are SIZE bytes of pages and changes, DELTA_BYTES of them changes. COUNTS
 * has its pages, those with all their bytes as raw: completes it. In a compressed block each gets its share.
 */
void codec_count(enum wire_compression kind, size_t size, uint32_t data, size_t delta_bytes,
                 struct page_counts *counts);

/* A zeroed codec is ready for use. */
void codec_free(struct codec *codec);
/* Returns the size of the compressed block, or 0 when it does not fit in ROOM or there is no memory. IN must
 * not change meanwhile. */
size_t codec_compress(struct codec *codec, enum wire_compression kind, const uint8_t *in, size_t size,
                      uint8_t *out, size_t room);
/* The block must be SIZE bytes when it is decompressed: -EBADMSG otherwise. */
int codec_decompress(struct codec *codec, enum wire_compression kind, const uint8_t *in, size_t in_size,
                     uint8_t *out, size_t size, struct ferry_error *err);

#endif
