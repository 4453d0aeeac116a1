#include "base/sparse.h"

#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

/* Looked at by one call; a byte of its answer is of a page. */
#define LOOK_PAGES 2048

static bool next_by_file(const struct sparse *sparse, uint64_t at, uint64_t *from, uint64_t *to)
{
    off_t data = lseek(sparse->fd, (off_t)at, SEEK_DATA);
    off_t hole;

    if (data < 0 && errno == ENXIO)
        return false;
    if (data < 0)
        data = (off_t)at;
    if ((uint64_t)data >= sparse->size)
        return false;
    hole = lseek(sparse->fd, data, SEEK_HOLE);
    if (hole <= data || (uint64_t)hole > sparse->size)
        hole = (off_t)sparse->size;
    *from = (uint64_t)data;
    *to = (uint64_t)hole;
    return true;
}

/* The first page at or after AT that is there (or is not); the file's end when all are otherwise. */
static uint64_t find_by_mapping(const struct sparse *sparse, uint64_t at, bool there)
{
    uint64_t page_size = (uint64_t)sysconf(_SC_PAGESIZE);
    unsigned char pages[LOOK_PAGES];

    while (at < sparse->size) {
        uint64_t left = (sparse->size - at) / page_size;
        size_t count = left < LOOK_PAGES ? (size_t)left : LOOK_PAGES;

        if (count == 0 || mincore(sparse->mapped + at, count * page_size, pages) < 0)
            return there ? at : sparse->size;
        for (size_t i = 0; i < count; i++, at += page_size) {
            if ((pages[i] & 1) == there)
                return at;
        }
    }
    return sparse->size;
}

static bool next_by_mapping(const struct sparse *sparse, uint64_t at, uint64_t *from, uint64_t *to)
{
    *from = find_by_mapping(sparse, at, true);
    *to = find_by_mapping(sparse, *from, false);
    return *from < sparse->size;
}

bool sparse_next(const struct sparse *sparse, uint64_t at, uint64_t *from, uint64_t *to)
{
    if (at >= sparse->size)
        return false;
    if (sparse->fd < 0) {
        *from = at;
        *to = sparse->size;
        return true;
    }
    return sparse->by_mapping ? next_by_mapping(sparse, at, from, to) : next_by_file(sparse, at, from, to);
}
