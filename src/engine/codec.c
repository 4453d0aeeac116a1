#include "engine/codec.h"

#include "base/error.h"

#include <errno.h>
#include <limits.h>
#include <lz4.h>
#include <stdlib.h>
#include <zstd.h>

/* Pages are compressed while others wait for them: speed counts for more than the last percent. */
#define ZSTD_LEVEL 1

struct codec_kind {
    const char *name;
    uint64_t feature;
    enum ferry_encoding encoding; /* of the pages */
    void *(*make)(void);
    void (*free)(void *state);
    size_t (*compress)(void *state, const uint8_t *in, size_t size, uint8_t *out, size_t room); /* 0: not */
    void *(*make_undo)(void); /* NULL: needs nothing */
    void (*free_undo)(void *state);
    /* Returns the size; SIZE_MAX for what is no block or does not fit. */
    size_t (*decompress)(void *state, const uint8_t *in, size_t size, uint8_t *out, size_t room);
};

static void *lz4_make(void)
{
    return malloc((size_t)LZ4_sizeofState());
}

static size_t lz4_compress(void *state, const uint8_t *in, size_t size, uint8_t *out, size_t room)
{
    int n = LZ4_compress_fast_extState(state, (const char *)in, (char *)out, (int)size, (int)room, 1);

    return n > 0 ? (size_t)n : 0;
}

static size_t lz4_decompress(void *state, const uint8_t *in, size_t size, uint8_t *out, size_t room)
{
    int n = LZ4_decompress_safe((const char *)in, (char *)out, (int)size, (int)room);

    return n >= 0 ? (size_t)n : SIZE_MAX;
}

static void *zstd_make(void)
{
    return ZSTD_createCCtx();
}

static void zstd_free(void *state)
{
    ZSTD_freeCCtx(state);
}

static size_t zstd_compress(void *state, const uint8_t *in, size_t size, uint8_t *out, size_t room)
{
    size_t n = ZSTD_compressCCtx(state, out, room, in, size, ZSTD_LEVEL);

    return ZSTD_isError(n) ? 0 : n;
}

static void *zstd_make_undo(void)
{
    return ZSTD_createDCtx();
}

static void zstd_free_undo(void *state)
{
    ZSTD_freeDCtx(state);
}

static size_t zstd_decompress(void *state, const uint8_t *in, size_t size, uint8_t *out, size_t room)
{
    size_t n = ZSTD_decompressDCtx(state, out, room, in, size);

    return ZSTD_isError(n) ? SIZE_MAX : n;
}

static const struct codec_kind codec_kinds[WIRE_COMPRESSIONS] = {
    [WIRE_COMPRESSION_NONE] = {.name = "none"},
    [WIRE_COMPRESSION_LZ4] = {.name = "lz4",
                              .feature = WIRE_FEATURE_LZ4,
                              .encoding = FERRY_ENCODING_LZ4,
                              .make = lz4_make,
                              .free = free,
                              .compress = lz4_compress,
                              .decompress = lz4_decompress},
    [WIRE_COMPRESSION_ZSTD] = {.name = "zstd",
                               .feature = WIRE_FEATURE_ZSTD,
                               .encoding = FERRY_ENCODING_ZSTD,
                               .make = zstd_make,
                               .free = zstd_free,
                               .compress = zstd_compress,
                               .make_undo = zstd_make_undo,
                               .free_undo = zstd_free_undo,
                               .decompress = zstd_decompress},
};

const char *codec_name(enum wire_compression kind)
{
    return codec_kinds[kind].name;
}

uint64_t codec_feature(enum wire_compression kind)
{
    return codec_kinds[kind].feature;
}

void codec_count(enum wire_compression kind, size_t size, uint32_t data, size_t delta_bytes,
                 struct page_counts *counts)
{
    struct ferry_encoded *encoded = counts->encoded;

    encoded[FERRY_ENCODING_DELTA].bytes = delta_bytes;
    if (kind == WIRE_COMPRESSION_NONE)
        return;
    encoded[FERRY_ENCODING_DELTA].bytes = delta_bytes * data / size;
    encoded[codec_kinds[kind].encoding] =
        (struct ferry_encoded){counts->raw, data - encoded[FERRY_ENCODING_DELTA].bytes};
    counts->raw = 0;
}

void codec_free(struct codec *codec)
{
    for (size_t i = 0; i < WIRE_COMPRESSIONS; i++) {
        if (codec->state[i])
            codec_kinds[i].free(codec->state[i]);
        if (codec->undo[i])
            codec_kinds[i].free_undo(codec->undo[i]);
    }
    *codec = (struct codec){0};
}

size_t codec_compress(struct codec *codec, enum wire_compression kind, const uint8_t *in, size_t size,
                      uint8_t *out, size_t room)
{
    void **state = &codec->state[kind];

    if (!*state)
        *state = codec_kinds[kind].make();
    return *state && size <= INT_MAX ? codec_kinds[kind].compress(*state, in, size, out, room) : 0;
}

int codec_decompress(struct codec *codec, enum wire_compression kind, const uint8_t *in, size_t in_size,
                     uint8_t *out, size_t size, struct ferry_error *err)
{
    const struct codec_kind *table = &codec_kinds[kind];
    void **undo = &codec->undo[kind];

    if (table->make_undo && !*undo)
        *undo = table->make_undo();
    if (table->make_undo && !*undo)
        return error_set(err, -ENOMEM, "out of memory for decompressing pages");
    if (in_size > INT_MAX || size > INT_MAX || table->decompress(*undo, in, in_size, out, size) != size)
        return error_set(err, -EBADMSG, "%s block that is not %zu bytes of pages", table->name, size);
    return 0;
}
