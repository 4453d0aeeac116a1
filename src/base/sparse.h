/*
 * What of a mapped file is there. The rest, its holes, reads as zeros; reading that through the mapping would
 * allocate it.
 *
 *     for (at = 0; sparse_next(&sparse, at, &from, &to); at = to)
 *
 * The answer is of the moment: what is written meanwhile may be in it or not. Thread-safe, but that the
 * file's position changes.
 */
#ifndef FERRY_BASE_SPARSE_H
#define FERRY_BASE_SPARSE_H

#include <stdbool.h>
#include <stdint.h>

struct sparse {
    int fd;          /* -1: nothing is known of holes, all of it is there */
    uint8_t *mapped; /* the whole file, from its beginning; page-aligned */
    uint64_t size;   /* bytes, whole pages */
    /* hugetlbfs does not say where its files have holes. Then: what has no page in the mapping (mincore).
     * Only right when nobody ever wrote by another way. */
    bool by_mapping;
};

/* The first range that is there at or after AT, not empty: [*from, *to), within size. False when there is
 * none. Where the file system cannot tell, all that is left is there. */
bool sparse_next(const struct sparse *sparse, uint64_t at, uint64_t *from, uint64_t *to);

#endif
