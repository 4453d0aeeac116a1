#include "engine/delta.h"

#include "base/buffer.h"
#include "base/error.h"

#include <errno.h>
#include <string.h>

#define WORD       sizeof(uint64_t)
#define NUMBER_MAX 2 /* bytes */

static uint64_t difference(const uint8_t *a, const uint8_t *b)
{
    uint64_t x, y;

    memcpy(&x, a, WORD);
    memcpy(&y, b, WORD);
    return x ^ y;
}

/* The first word that differs (or does not) at or after FROM, or the page's size. */
static size_t next_word(const uint8_t *older, const uint8_t *newer, size_t from, bool differs)
{
    while (from < FERRY_PAGE_SIZE && (difference(older + from, newer + from) != 0) != differs)
        from += WORD;
    return from;
}

static uint8_t *put_number(uint8_t *out, size_t value)
{
    if (value >= 0x80)
        *out++ = (uint8_t)(value | 0x80);
    *out++ = (uint8_t)(value < 0x80 ? value : value >> 7);
    return out;
}

size_t delta_encode(const uint8_t older[static FERRY_PAGE_SIZE], const uint8_t newer[static FERRY_PAGE_SIZE],
                    uint8_t *out, size_t room)
{
    uint8_t *at = out;
    size_t done = 0;

    for (size_t first = next_word(older, newer, 0, true); first < FERRY_PAGE_SIZE;) {
        size_t end = next_word(older, newer, first, false);
        size_t next = next_word(older, newer, end, true);

        /* To the byte; little-endian, so the first byte is the lowest. */
        size_t begin = first + (size_t)__builtin_ctzll(difference(older + first, newer + first)) / 8;
        size_t last = end - WORD;

        last += WORD - (size_t)__builtin_clzll(difference(older + last, newer + last)) / 8;
        if (room - (size_t)(at - out) < 2 * NUMBER_MAX + (last - begin))
            return SIZE_MAX;
        at = put_number(at, begin - done);
        at = put_number(at, last - begin);
        memcpy(at, newer + begin, last - begin);
        at += last - begin;
        done = last;
        first = next;
    }
    return (size_t)(at - out);
}

/* SIZE_MAX when there is none. */
static size_t get_number(struct reader *in)
{
    uint8_t low = reader_get_u8(in);
    uint8_t high = low & 0x80 ? reader_get_u8(in) : 0;

    return reader_failed(in) || high & 0x80 ? SIZE_MAX : (size_t)(low & 0x7f) | (size_t)high << 7;
}

int delta_apply(uint8_t page[static FERRY_PAGE_SIZE], const uint8_t *delta, size_t size,
                struct ferry_error *err)
{
    struct reader in = reader_init(delta, size);
    size_t at = 0;

    while (reader_left(&in) > 0) {
        size_t skip = get_number(&in);
        size_t count = get_number(&in);

        if (skip > FERRY_PAGE_SIZE - at || count == 0 || count > FERRY_PAGE_SIZE - at - skip ||
            count > reader_left(&in))
            return error_set(err, -EBADMSG, "a page's changes do not fit the page");
        at += skip;
        reader_get(&in, page + at, count);
        at += count;
    }
    return 0;
}
