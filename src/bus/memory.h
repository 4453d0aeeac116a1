/*
 * Guest memory: what the guest sees as RAM, in one or more regions, and the record of which pages were
 * written.
 *
 * Each region is a file without a name (memory_file.h) mapped once, so that it can be handed to another
 * process or mapped lazily from a file. This is the one way in to guest memory: every access names a guest
 * physical address and a length and may be refused; the answer must be looked at. Accelerators may keep host
 * pointers they got from memory_region().
 *
 * Dirty tracking. Each region has a dirty bitmap, one bit a page of MEMORY_PAGE_SIZE. While `tracking` is on,
 * whoever writes guest memory sets the page's bit *after* writing (memory_write and memory_mark_dirty do; an
 * accelerator does it for the guest's own stores, in whatever way is cheapest for it, and merges it in when
 * the bitmap is fetched).
 *
 * Threads: regions are added before any vCPU or device runs and do not change afterwards. Accessors may be
 * used from any thread; concurrent accesses to the same bytes race exactly as they do on real hardware.
 */
#ifndef FERRY_BUS_MEMORY_H
#define FERRY_BUS_MEMORY_H

#include <ferry/error.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MEMORY_PAGE_SIZE   4096
#define MEMORY_PAGE_SHIFT  12
#define MEMORY_REGIONS_MAX 8

/* How an accelerator finds out which pages the guest writes, where it has a choice. */
enum memory_tracking {
    MEMORY_TRACKING_AUTO = 0, /* what is best on this host */
    MEMORY_TRACKING_RING,     /* a ring of each vCPU with the pages it wrote */
    MEMORY_TRACKING_LOG,      /* a bitmap for all of them */
};

struct memory_region {
    char name[16];       /* "ram0" */
    uint64_t guest_addr; /* page-aligned */
    uint64_t size;       /* bytes, whole pages */
    uint8_t *host_ptr;   /* mapped read-write, shared */
    int memfd;
    uint64_t huge_page_size; /* of the set aside pages it is of; 0: of ordinary ones */
    uint64_t *dirty;         /* one bit a page; access with bitmap_set_atomic / bitmap_take_words */
};

struct memory;

int memory_new(struct memory **out, struct ferry_error *err);
void memory_free(struct memory *memory); /* NULL allowed */

/* Regions that are added from now on are of huge pages that the administrator has set aside, of PAGE_SIZE
 * (hugepages_size_known). */
void memory_use_huge_pages(struct memory *memory, uint64_t page_size);
/* Adds RAM. Refuses overlaps, unaligned or zero sizes, and more than MEMORY_REGIONS_MAX regions. Takes no
 * memory yet. */
int memory_add_region(struct memory *memory, const char *name, uint64_t guest_addr, uint64_t size,
                      struct ferry_error *err);
/*
 * MEMFD, of the region's size, becomes the memory of a region that there is: at the same host_ptr, at once
 * whatever its size. Another process may have it mapped, too. What was there before is dropped. On success
 * MEMFD is the memory's. Before anything runs.
 */
int memory_adopt(struct memory *memory, size_t index, int memfd, struct ferry_error *err);
/* Has the kernel give every page away now, so that it cannot run out later. -ENOMEM in words, before anything
 * is allocated when the host has too little available. Huge pages are set aside for this memory, but not
 * cleared before they are touched; of these some may stay reserved after a failure, until memory_free. */
int memory_reserve(struct memory *memory, struct ferry_error *err);

size_t memory_region_count(const struct memory *memory);
/* NULL when there is no such region. */
const struct memory_region *memory_region(const struct memory *memory, size_t index);
uint64_t memory_total(const struct memory *memory); /* bytes */

/*
 * The host address of guest bytes [addr, addr + size), or NULL unless all of them lie in one region. For
 * reading, or for writing when memory_mark_dirty follows.
 */
void *memory_ptr(const struct memory *memory, uint64_t addr, uint64_t size)
    __attribute__((warn_unused_result));
bool memory_read(const struct memory *memory, uint64_t addr, void *out, size_t size)
    __attribute__((warn_unused_result));
bool memory_write(struct memory *memory, uint64_t addr, const void *data, size_t size)
    __attribute__((warn_unused_result));
/* Records a write done through memory_ptr, after it was done. Does nothing when tracking is off; what lies
 * outside all regions is ignored. */
void memory_mark_dirty(struct memory *memory, uint64_t addr, uint64_t size);

/* Switches tracking on (bitmaps start all clear) or off. Only the accelerator's dirty_start / dirty_stop call
 * this. */
void memory_set_tracking(struct memory *memory, bool on);
bool memory_tracking(const struct memory *memory);

#endif
