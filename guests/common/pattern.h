/*
 * The self-checking pattern that guests fill memory with.
 *
 * Each page belongs to a writer, has a number and a generation, which goes up by one with every writing. From
 * the three a base is made by a one-to-one mapping of 64 bits, and word i of the page is base + i *
 * PATTERN_STEP. So no two contents of any pages agree in any word of the same place: a page that is stale,
 * lost, or another's is found with certainty, and the base of a wrong word tells where it came from.
 */
#ifndef GUEST_PATTERN_H
#define GUEST_PATTERN_H

#include <stdbool.h>
#include <stdint.h>

#define PATTERN_PAGE_SIZE 4096
#define PATTERN_WORDS     512
#define PATTERN_STEP      UINT64_C(0x9e3779b97f4a7c15)

/* Limits that make the mapping one-to-one. */
#define PATTERN_WRITERS_MAX 256
#define PATTERN_PAGES_MAX   (1 << 24)

/* Whose words they are. */
struct pattern_owner {
    uint32_t writer, page, generation;
};

static inline uint64_t pattern_base(struct pattern_owner owner)
{
    uint64_t z = (uint64_t)owner.writer << 56 | (uint64_t)owner.page << 32 | owner.generation;

    /* Odd multipliers and right shifts: every step can be undone. */
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static inline struct pattern_owner pattern_owner_of(uint64_t base)
{
    uint64_t z = base;

    z = (z ^ (z >> 31) ^ (z >> 62)) * UINT64_C(0x319642b2d24d8ec3);
    z = (z ^ (z >> 27) ^ (z >> 54)) * UINT64_C(0x96de1b173f119089);
    z = z ^ (z >> 30) ^ (z >> 60);
    return (struct pattern_owner){
        .writer = (uint32_t)(z >> 56), .page = (uint32_t)(z >> 32 & 0xffffff), .generation = (uint32_t)z};
}

static inline void pattern_fill(uint64_t *page, struct pattern_owner owner)
{
    uint64_t word = pattern_base(owner);

    for (unsigned i = 0; i < PATTERN_WORDS; i++, word += PATTERN_STEP)
        page[i] = word;
}

/* The index of the first word that is not as OWNER left it, or PATTERN_WORDS. */
static inline unsigned pattern_check(const uint64_t *page, struct pattern_owner owner)
{
    uint64_t word = pattern_base(owner);

    for (unsigned i = 0; i < PATTERN_WORDS; i++, word += PATTERN_STEP) {
        if (page[i] != word)
            return i;
    }
    return PATTERN_WORDS;
}

/* What a wrong word is likely to be. */
enum pattern_fault {
    PATTERN_FAULT_STALE, /* An older or newer content of the same page. */
    PATTERN_FAULT_MIXED, /* The content of another page of the same or another writer. */
    PATTERN_FAULT_ZERO,
    PATTERN_FAULT_OTHER,
    PATTERN_FAULT_COUNT,
};

static inline enum pattern_fault pattern_fault_of(uint64_t got, unsigned index, struct pattern_owner wanted,
                                                  uint32_t writers, uint32_t pages)
{
    struct pattern_owner found = pattern_owner_of(got - index * PATTERN_STEP);

    if (got == 0)
        return PATTERN_FAULT_ZERO;
    if (found.writer >= writers || found.page >= pages || found.generation > wanted.generation + 1000000)
        return PATTERN_FAULT_OTHER;
    return found.writer == wanted.writer && found.page == wanted.page ? PATTERN_FAULT_STALE
                                                                      : PATTERN_FAULT_MIXED;
}

static inline const char *pattern_fault_name(enum pattern_fault fault)
{
    static const char *const names[PATTERN_FAULT_COUNT] = {"stale", "mixed", "zero", "other"};

    return names[fault];
}

#endif
