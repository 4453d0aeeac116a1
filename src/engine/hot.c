#include "engine/hot.h"

#include "base/bitmap.h"

int hot_init(struct hot *hot, const struct page_map *map, struct ferry_error *err)
{
    int result;

    *hot = (struct hot){.map = map};
    result = page_set_init(&hot->fresh, map, err);
    if (result == 0)
        result = page_set_init(&hot->before, map, err);
    if (result == 0)
        result = page_set_init(&hot->later, map, err);
    if (result < 0)
        hot_free(hot);
    return result;
}

void hot_free(struct hot *hot)
{
    page_set_free(&hot->fresh);
    page_set_free(&hot->before);
    page_set_free(&hot->later);
}

void hot_gather(struct hot *hot, struct page_set *set)
{
    for (size_t region = 0; region < hot->map->count; region++) {
        for (size_t i = 0; i < bitmap_words(hot->map->pages[region]); i++)
            set->bits[region][i] |= hot->fresh.bits[region][i] | hot->later.bits[region][i];
    }
    page_set_clear(&hot->later, hot->map);
}

/* The lowest COUNT bits of WORD. */
static uint64_t lowest(uint64_t word, uint64_t count)
{
    uint64_t bits = 0;

    for (; count > 0 && word != 0; count--) {
        bits |= word & -word;
        word &= word - 1;
    }
    return bits;
}

uint64_t hot_leave_out(struct hot *hot, struct page_set *set, uint64_t limit)
{
    struct page_set swap = hot->before;
    uint64_t left = limit;

    for (size_t region = 0; region < hot->map->count && left > 0; region++) {
        for (size_t i = 0; i < bitmap_words(hot->map->pages[region]) && left > 0; i++) {
            uint64_t bits = lowest(hot->fresh.bits[region][i] & hot->before.bits[region][i], left);

            hot->later.bits[region][i] |= bits;
            set->bits[region][i] &= ~bits;
            left -= (uint64_t)__builtin_popcountll(bits);
        }
    }
    hot->before = hot->fresh;
    hot->fresh = swap;
    page_set_clear(&hot->fresh, hot->map);
    return limit - left;
}
