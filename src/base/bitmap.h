/*
 * Bitmaps of 64-bit words, bit i in word i / 64. Used for dirty pages: one bit a page.
 *
 * bitmap_set_atomic and bitmap_take_words may run on different threads at once: a bit set while it is being
 * taken is either in what was taken or still there afterwards, never lost. The others need one owner.
 */
#ifndef FERRY_BASE_BITMAP_H
#define FERRY_BASE_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline size_t bitmap_words(size_t bits)
{
    return (bits + 63) / 64;
}

static inline bool bitmap_test(const uint64_t *map, size_t bit)
{
    return map[bit / 64] >> (bit % 64) & 1;
}

static inline void bitmap_set(uint64_t *map, size_t bit)
{
    map[bit / 64] |= UINT64_C(1) << (bit % 64);
}

static inline void bitmap_clear(uint64_t *map, size_t bit)
{
    map[bit / 64] &= ~(UINT64_C(1) << (bit % 64));
}

/*
 * Sets the bit; release order, so that whoever takes it sees what was written to the page before. The
 * read-modify-write is unconditional: were it skipped when the bit looks set already, that look could
 * overtake the page's store, and a taker in between would clear the bit and read the old page. Returns
 * whether it was clear.
 */
static inline bool bitmap_set_atomic(uint64_t *map, size_t bit)
{
    uint64_t mask = UINT64_C(1) << (bit % 64);

    return !(__atomic_fetch_or(&map[bit / 64], mask, __ATOMIC_ACQ_REL) & mask);
}

/* NULL when out of memory; all zero; free() it. */
uint64_t *bitmap_new(size_t bits);
/* Sets bits [first, first + count). */
void bitmap_set_range(uint64_t *map, size_t first, size_t count);
void bitmap_clear_range(uint64_t *map, size_t first, size_t count);
size_t bitmap_count(const uint64_t *map, size_t bits);
/* First set (clear) bit at or after FROM, or BITS when there is none. */
size_t bitmap_next_set(const uint64_t *map, size_t bits, size_t from);
size_t bitmap_next_clear(const uint64_t *map, size_t bits, size_t from);
/* For each word: into[i] |= exchange(from[i], 0). Returns the number of bits taken. */
size_t bitmap_take_words(uint64_t *from, uint64_t *into, size_t words);

#endif
