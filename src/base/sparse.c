#include "base/sparse.h"

#include <errno.h>
#include <linux/magic.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

/* A guest that runs may touch its next page while the others are being counted. */
#define LOOKS 8

uint64_t sparse_huge_page_size(int fd)
{
    struct statfs status;

    if (fd < 0 || fstatfs(fd, &status) < 0 || status.f_type != HUGETLBFS_MAGIC)
        return 0;
    return (uint64_t)status.f_bsize;
}

/*
 * Notes what the mapping has, and whether that is all that the file has. The file is asked second: it only
 * grows, and what is mapped is in it, so when the numbers are the same the pages are.
 */
static bool look_at_mapping(struct sparse *sparse, uint8_t *mapped)
{
    uint64_t found = 0;
    struct stat status;

    for (uint64_t i = 0; i < sparse->size / sparse->page_size; i++) {
        /* One small page tells of the huge one it is in. */
        if (mincore(mapped + i * sparse->page_size, 1, &sparse->pages[i]) < 0)
            return false;
        sparse->pages[i] &= 1;
        found += sparse->pages[i];
    }
    return fstat(sparse->fd, &status) == 0 && (uint64_t)status.st_blocks * 512 == found * sparse->page_size;
}

void sparse_look(struct sparse *sparse, int fd, uint8_t *mapped, uint64_t size)
{
    *sparse =
        (struct sparse){.fd = fd, .size = size, .unknown = fd < 0, .page_size = sparse_huge_page_size(fd)};
    if (!sparse->page_size)
        return;
    sparse->unknown = true;
    if (size % sparse->page_size == 0)
        sparse->pages = calloc(size / sparse->page_size, 1);
    for (int i = 0; i < LOOKS && sparse->pages && sparse->unknown; i++)
        sparse->unknown = !look_at_mapping(sparse, mapped);
}

void sparse_free(struct sparse *sparse)
{
    free(sparse->pages);
    sparse->pages = NULL;
    sparse->unknown = true;
}

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

static bool next_by_pages(const struct sparse *sparse, uint64_t at, uint64_t *from, uint64_t *to)
{
    uint64_t count = sparse->size / sparse->page_size;
    uint64_t first = at / sparse->page_size;
    uint64_t end;

    while (first < count && !sparse->pages[first])
        first++;
    for (end = first; end < count && sparse->pages[end];)
        end++;
    *from = first * sparse->page_size > at ? first * sparse->page_size : at;
    *to = end * sparse->page_size;
    return first < count;
}

bool sparse_next(const struct sparse *sparse, uint64_t at, uint64_t *from, uint64_t *to)
{
    if (at >= sparse->size)
        return false;
    if (sparse->unknown) {
        *from = at;
        *to = sparse->size;
        return true;
    }
    return sparse->pages ? next_by_pages(sparse, at, from, to) : next_by_file(sparse, at, from, to);
}
