/*
 * What of a mapped file is there. The rest, its holes, reads as zeros; reading that through the mapping would
 * allocate it.
 *
 *     sparse_look(&sparse, fd, mapped, size);
 *     for (at = 0; sparse_next(&sparse, at, &from, &to); at = to)
 *         ...
 *     sparse_free(&sparse);
 *
 * hugetlbfs does not say where its files have holes. There it is what the mapping has no page for (mincore),
 * if the mapping has as many pages as the file. When it has not (somebody else has touched some), all of the
 * file is there.
 *
 * The answer is of the moment: what is written meanwhile may be in it or not. Thread-safe, but that the
 * file's position changes.
 */
#ifndef FERRY_BASE_SPARSE_H
#define FERRY_BASE_SPARSE_H

#include <stdbool.h>
#include <stdint.h>

struct sparse {
    int fd;
    uint64_t size;
    bool unknown;       /* all is there */
    uint64_t page_size; /* hugetlbfs, else 0: the size of its pages, */
    uint8_t *pages;     /* and one byte for each that is not 0 when it is there */
};

/* SIZE bytes of FD are mapped at MAPPED, from its beginning, whole pages; FD -1: nothing is known of holes.
 */
void sparse_look(struct sparse *sparse, int fd, uint8_t *mapped, uint64_t size);
/* The first range that is there at or after AT, not empty: [*from, *to), within size. False when there is
 * none. Where nobody can tell, all that is left is there. */
bool sparse_next(const struct sparse *sparse, uint64_t at, uint64_t *from, uint64_t *to);
void sparse_free(struct sparse *sparse);

/* The size of FD's pages when it is a file of hugetlbfs, else 0. */
uint64_t sparse_huge_page_size(int fd);

#endif
