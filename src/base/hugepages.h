/*
 * The huge pages that an administrator has set aside (Documentation/admin-guide/mm/hugetlbpage.rst): their
 * sizes, and how many of a size there are to be had. Nothing to do with transparent huge pages.
 *
 *     echo 512 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages
 *
 * Sizes are in bytes. Thread-safe.
 */
#ifndef FERRY_BASE_HUGEPAGES_H
#define FERRY_BASE_HUGEPAGES_H

#include <ferry/error.h>

#include <stdbool.h>
#include <stdint.h>

#define HUGEPAGES_2M        (UINT64_C(2) << 20)
#define HUGEPAGES_1G        (UINT64_C(1) << 30)
#define HUGEPAGES_DIRECTORY "/sys/kernel/mm/hugepages"

/* How many there are of a size. */
struct hugepages {
    uint64_t total;     /* the pool, pages lent to it included */
    uint64_t available; /* what may still be reserved: free, not promised to anybody, or lent on demand
                           (nr_overcommit_hugepages) */
};

/* The sizes that can be asked for: 2 MiB and 1 GiB. */
bool hugepages_size_known(uint64_t page_size);
/* "2 MiB" or "1 GiB"; static. */
const char *hugepages_size_name(uint64_t page_size);

/* -EINVAL in words when guest memory of so many bytes is not whole pages. */
int hugepages_check_memory(uint64_t memory, uint64_t page_size, struct ferry_error *err);

/* -ENOENT in words when the host has no pages of that size. DIRECTORY: NULL, but for tests, which have one of
 * their own in the place of HUGEPAGES_DIRECTORY. */
int hugepages_read(const char *directory, uint64_t page_size, struct hugepages *pages,
                   struct ferry_error *err);
/* What the administrator types for WANTED to be available: "echo 640 > /sys/…". */
#define HUGEPAGES_ADVICE_SIZE 160
char *hugepages_advice(uint64_t page_size, const struct hugepages *pages, uint64_t wanted,
                       char text[static HUGEPAGES_ADVICE_SIZE]);

#endif
