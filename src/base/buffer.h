/*
 * Bytes being written (`struct buffer`) and bytes being read (`struct reader`).
 *
 * All integers are little-endian. The buffer grows as needed; when memory runs out it becomes "failed",
 * further writes do nothing, and buffer_failed() tells at the end: one check instead of one a call. The
 * reader never reads past its end; a short read sets "failed", returns zeros, and reader_failed() tells.
 * Neither is thread-safe.
 */
#ifndef FERRY_BASE_BUFFER_H
#define FERRY_BASE_BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buffer {
    uint8_t *data; /* owned */
    size_t size;   /* bytes used */
    size_t capacity;
    bool failed;
};

#define BUFFER_INIT ((struct buffer){0})

void buffer_free(struct buffer *buffer);
void buffer_clear(struct buffer *buffer); /* size 0, memory kept, failed reset */
bool buffer_failed(const struct buffer *buffer);
bool buffer_reserve(struct buffer *buffer,
                    size_t extra); /* room for extra bytes; false (and failed) if not */
void buffer_put(struct buffer *buffer, const void *data, size_t size);
void buffer_put_u8(struct buffer *buffer, uint8_t value);
void buffer_put_u16(struct buffer *buffer, uint16_t value);
void buffer_put_u32(struct buffer *buffer, uint32_t value);
void buffer_put_u64(struct buffer *buffer, uint64_t value);
/* u32 length and the bytes, no NUL. */
void buffer_put_string(struct buffer *buffer, const char *text);
/* Overwrites 4 bytes already written at OFFSET (a length known only later). */
void buffer_set_u32(struct buffer *buffer, size_t offset, uint32_t value);

struct reader {
    const uint8_t *data; /* borrowed */
    size_t size;
    size_t position;
    bool failed;
};

struct reader reader_init(const void *data, size_t size);
bool reader_failed(const struct reader *reader);
size_t reader_left(const struct reader *reader);
uint8_t reader_get_u8(struct reader *reader);
uint16_t reader_get_u16(struct reader *reader);
uint32_t reader_get_u32(struct reader *reader);
uint64_t reader_get_u64(struct reader *reader);
void reader_get(struct reader *reader, void *out, size_t size);
/* A view of SIZE bytes inside the data; NULL and failed when there are not that many. */
const uint8_t *reader_view(struct reader *reader, size_t size);
/* u32 length + bytes into out[out_size], NUL-terminated; failed when longer than out_size - 1 or holding a
 * NUL. */
void reader_get_string(struct reader *reader, char *out, size_t out_size);

#endif
