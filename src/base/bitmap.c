#include "base/bitmap.h"

#include <stdlib.h>

#define WORD_BITS 64

uint64_t *bitmap_new(size_t bits)
{
    size_t words = bits / WORD_BITS + (bits % WORD_BITS != 0);

    return calloc(words ? words : 1, sizeof(uint64_t));
}

/* Bits [low, high) of a word; 0 <= low < high <= 64. */
static uint64_t word_mask(size_t low, size_t high)
{
    uint64_t below_high = high == WORD_BITS ? ~UINT64_C(0) : (UINT64_C(1) << high) - 1;

    return below_high & ~UINT64_C(0) << low;
}

static void change_range(uint64_t *map, size_t first, size_t count, bool set)
{
    while (count > 0) {
        size_t low = first % WORD_BITS;
        size_t here = WORD_BITS - low < count ? WORD_BITS - low : count;
        uint64_t mask = word_mask(low, low + here);

        if (set)
            map[first / WORD_BITS] |= mask;
        else
            map[first / WORD_BITS] &= ~mask;
        first += here;
        count -= here;
    }
}

void bitmap_set_range(uint64_t *map, size_t first, size_t count)
{
    change_range(map, first, count, true);
}

void bitmap_clear_range(uint64_t *map, size_t first, size_t count)
{
    change_range(map, first, count, false);
}

size_t bitmap_count(const uint64_t *map, size_t bits)
{
    size_t whole = bits / WORD_BITS;
    size_t count = 0;

    for (size_t i = 0; i < whole; i++)
        count += (size_t)__builtin_popcountll(map[i]);
    if (bits % WORD_BITS)
        count += (size_t)__builtin_popcountll(map[whole] & word_mask(0, bits % WORD_BITS));
    return count;
}

/* The first bit at or after FROM that is set once every word is exclusive-or'ed with FLIP. */
static size_t next_bit(const uint64_t *map, size_t bits, size_t from, uint64_t flip)
{
    size_t words = bitmap_words(bits);
    uint64_t word;

    if (from >= bits)
        return bits;
    word = (map[from / WORD_BITS] ^ flip) & ~UINT64_C(0) << (from % WORD_BITS);
    for (size_t i = from / WORD_BITS;;) {
        if (word) {
            size_t bit = i * WORD_BITS + (size_t)__builtin_ctzll(word);

            return bit < bits ? bit : bits;
        }
        if (++i == words)
            return bits;
        word = map[i] ^ flip;
    }
}

size_t bitmap_next_set(const uint64_t *map, size_t bits, size_t from)
{
    return next_bit(map, bits, from, 0);
}

size_t bitmap_next_clear(const uint64_t *map, size_t bits, size_t from)
{
    return next_bit(map, bits, from, ~UINT64_C(0));
}

size_t bitmap_take_words(uint64_t *from, uint64_t *into, size_t words)
{
    size_t taken = 0;

    for (size_t i = 0; i < words; i++) {
        uint64_t word;

        /* Most words are zero; a plain load leaves their cache lines shared. */
        if (!__atomic_load_n(&from[i], __ATOMIC_RELAXED))
            continue;
        word = __atomic_exchange_n(&from[i], 0, __ATOMIC_ACQ_REL);
        into[i] |= word;
        taken += (size_t)__builtin_popcountll(word);
    }
    return taken;
}
