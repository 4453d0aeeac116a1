#include "base/buffer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define CAPACITY_FIRST 256

void buffer_free(struct buffer *buffer)
{
    free(buffer->data);
    *buffer = BUFFER_INIT;
}

void buffer_clear(struct buffer *buffer)
{
    buffer->size = 0;
    buffer->failed = false;
}

bool buffer_failed(const struct buffer *buffer)
{
    return buffer->failed;
}

bool buffer_reserve(struct buffer *buffer, size_t extra)
{
    size_t needed;
    size_t capacity;
    uint8_t *data;

    if (buffer->failed)
        return false;
    if (extra <= buffer->capacity - buffer->size)
        return true;
    if (__builtin_add_overflow(buffer->size, extra, &needed)) {
        buffer->failed = true;
        return false;
    }
    capacity = buffer->capacity > SIZE_MAX / 2 ? needed : buffer->capacity * 2;
    if (capacity < CAPACITY_FIRST)
        capacity = CAPACITY_FIRST;
    if (capacity < needed)
        capacity = needed;
    data = realloc(buffer->data, capacity);
    if (!data) {
        buffer->failed = true;
        return false;
    }
    buffer->data = data;
    buffer->capacity = capacity;
    return true;
}

void buffer_put(struct buffer *buffer, const void *data, size_t size)
{
    if (!buffer_reserve(buffer, size) || size == 0)
        return;
    memcpy(buffer->data + buffer->size, data, size);
    buffer->size += size;
}

static void store_little_endian(uint8_t *to, uint64_t value, size_t size)
{
    for (size_t i = 0; i < size; i++)
        to[i] = (uint8_t)(value >> 8 * i);
}

static void put_integer(struct buffer *buffer, uint64_t value, size_t size)
{
    uint8_t bytes[8];

    store_little_endian(bytes, value, size);
    buffer_put(buffer, bytes, size);
}

void buffer_put_u8(struct buffer *buffer, uint8_t value)
{
    put_integer(buffer, value, 1);
}

void buffer_put_u16(struct buffer *buffer, uint16_t value)
{
    put_integer(buffer, value, 2);
}

void buffer_put_u32(struct buffer *buffer, uint32_t value)
{
    put_integer(buffer, value, 4);
}

void buffer_put_u64(struct buffer *buffer, uint64_t value)
{
    put_integer(buffer, value, 8);
}

void buffer_put_string(struct buffer *buffer, const char *text)
{
    size_t size = strlen(text);

    if (size > UINT32_MAX) {
        buffer->failed = true;
        return;
    }
    buffer_put_u32(buffer, (uint32_t)size);
    buffer_put(buffer, text, size);
}

void buffer_set_u32(struct buffer *buffer, size_t offset, uint32_t value)
{
    if (buffer->failed)
        return;
    assert(buffer->size >= 4 && offset <= buffer->size - 4);
    store_little_endian(buffer->data + offset, value, 4);
}

struct reader reader_init(const void *data, size_t size)
{
    return (struct reader){.data = data, .size = size};
}

bool reader_failed(const struct reader *reader)
{
    return reader->failed;
}

size_t reader_left(const struct reader *reader)
{
    return reader->failed ? 0 : reader->size - reader->position;
}

const uint8_t *reader_view(struct reader *reader, size_t size)
{
    static const uint8_t nothing[1];
    const uint8_t *view;

    if (reader->failed || size > reader->size - reader->position) {
        reader->failed = true;
        return NULL;
    }
    if (!reader->data)
        return nothing;
    view = reader->data + reader->position;
    reader->position += size;
    return view;
}

static uint64_t get_integer(struct reader *reader, size_t size)
{
    const uint8_t *bytes = reader_view(reader, size);
    uint64_t value = 0;

    if (!bytes)
        return 0;
    for (size_t i = 0; i < size; i++)
        value |= (uint64_t)bytes[i] << 8 * i;
    return value;
}

uint8_t reader_get_u8(struct reader *reader)
{
    return (uint8_t)get_integer(reader, 1);
}

uint16_t reader_get_u16(struct reader *reader)
{
    return (uint16_t)get_integer(reader, 2);
}

uint32_t reader_get_u32(struct reader *reader)
{
    return (uint32_t)get_integer(reader, 4);
}

uint64_t reader_get_u64(struct reader *reader)
{
    return get_integer(reader, 8);
}

void reader_get(struct reader *reader, void *out, size_t size)
{
    const uint8_t *bytes;

    if (size == 0)
        return;
    bytes = reader_view(reader, size);
    if (bytes)
        memcpy(out, bytes, size);
    else
        memset(out, 0, size);
}

void reader_get_string(struct reader *reader, char *out, size_t out_size)
{
    uint32_t size = reader_get_u32(reader);
    const uint8_t *bytes;

    assert(out_size > 0);
    out[0] = '\0';
    if (size > out_size - 1) {
        reader->failed = true;
        return;
    }
    bytes = reader_view(reader, size);
    if (!bytes)
        return;
    if (memchr(bytes, 0, size)) {
        reader->failed = true;
        return;
    }
    memcpy(out, bytes, size);
    out[size] = '\0';
}
