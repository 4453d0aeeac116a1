#include "bus/memory.h"

#include "base/bitmap.h"
#include "base/error.h"
#include "base/hugepages.h"
#include "bus/memory_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/membarrier.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)

struct memory {
    size_t count;
    bool tracking;           /* atomic */
    uint64_t huge_page_size; /* of all regions; 0: ordinary memory */
    struct memory_region regions[MEMORY_REGIONS_MAX];
};

static void membarrier(int command)
{
    /* Not on every kernel; without it the other threads' pending stores drain by themselves in nanoseconds.
     */
    (void)syscall(SYS_membarrier, command, 0, 0);
}

int memory_new(struct memory **out, struct ferry_error *err)
{
    *out = calloc(1, sizeof(**out));
    if (!*out)
        return error_set(err, -ENOMEM, "out of memory while setting up guest memory");
    membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED);
    return 0;
}

void memory_free(struct memory *memory)
{
    if (!memory)
        return;
    for (size_t i = 0; i < memory->count; i++) {
        struct memory_region *region = &memory->regions[i];

        munmap(region->host_ptr, region->size);
        close(region->memfd);
        free(region->dirty);
    }
    free(memory);
}

static int check_placement(const struct memory *memory, const char *name, uint64_t guest_addr, uint64_t size,
                           struct ferry_error *err)
{
    if (memory->count == MEMORY_REGIONS_MAX)
        return error_set(err, -ENOSPC, "memory region %s: there are %d regions already, the most allowed",
                         name, MEMORY_REGIONS_MAX);
    if (strlen(name) >= sizeof(memory->regions[0].name))
        return error_set(err, -EINVAL, "memory region %s: the name is longer than %zu characters", name,
                         sizeof(memory->regions[0].name) - 1);
    if (size == 0 || size % MEMORY_PAGE_SIZE || guest_addr % MEMORY_PAGE_SIZE)
        return error_set(err, -EINVAL,
                         "memory region %s: address 0x%" PRIx64 " and size 0x%" PRIx64
                         " must be whole pages of %d bytes, and not empty",
                         name, guest_addr, size, MEMORY_PAGE_SIZE);
    if (memory->huge_page_size && (size % memory->huge_page_size || guest_addr % memory->huge_page_size))
        return error_set(err, -EINVAL,
                         "memory region %s: %" PRIu64 " MiB at 0x%" PRIx64 " are not whole huge pages of %s",
                         name, size / MIB, guest_addr, hugepages_size_name(memory->huge_page_size));
    if (size > UINT64_MAX - guest_addr || size > INT64_MAX || size > SIZE_MAX)
        return error_set(err, -EINVAL, "memory region %s: 0x%" PRIx64 " bytes at 0x%" PRIx64 " are too many",
                         name, size, guest_addr);
    for (size_t i = 0; i < memory->count; i++) {
        const struct memory_region *other = &memory->regions[i];

        if (strcmp(other->name, name) == 0)
            return error_set(err, -EEXIST, "memory region %s: there is one of that name already", name);
        if (guest_addr < other->guest_addr + other->size && other->guest_addr < guest_addr + size)
            return error_set(err, -EEXIST, "memory region %s at 0x%" PRIx64 " overlaps %s at 0x%" PRIx64,
                             name, guest_addr, other->name, other->guest_addr);
    }
    return 0;
}

/* At ADDRESS, in the place of what is mapped there; NULL: anywhere. Reserves nothing, so that a process that
 * is to adopt memory takes none of its own. */
static int map_memfd(const struct memory_region *region, int memfd, void *address, uint8_t **out,
                     struct ferry_error *err)
{
    void *mapped = mmap(address, region->size, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_NORESERVE | (address ? MAP_FIXED : 0), memfd, 0);

    if (mapped == MAP_FAILED)
        return error_set_errno(err, -errno, "cannot map %" PRIu64 " MiB of guest memory %s",
                               region->size / MIB, region->name);
    /* A core dump is for Ferry's own state, and must not hold a guest's secrets. */
    madvise(mapped, region->size, MADV_DONTDUMP);
    *out = mapped;
    return 0;
}

/* Makes the file and maps it. On failure nothing is left behind. */
static int map_region(struct memory_region *region, struct ferry_error *err)
{
    char name[32];
    int result;

    snprintf(name, sizeof(name), "ferry-%s", region->name);
    region->memfd = memory_file_new(name, region->size, region->huge_page_size, err);
    if (region->memfd < 0)
        return region->memfd;
    result = map_memfd(region, region->memfd, NULL, &region->host_ptr, err);
    if (result)
        close(region->memfd);
    return result;
}

void memory_use_huge_pages(struct memory *memory, uint64_t page_size)
{
    memory->huge_page_size = page_size;
}

int memory_add_region(struct memory *memory, const char *name, uint64_t guest_addr, uint64_t size,
                      struct ferry_error *err)
{
    struct memory_region *region = &memory->regions[memory->count];
    int result = check_placement(memory, name, guest_addr, size, err);

    if (result)
        return result;
    *region = (struct memory_region){
        .guest_addr = guest_addr, .size = size, .huge_page_size = memory->huge_page_size};
    memcpy(region->name, name, strlen(name));
    region->dirty = bitmap_new(size >> MEMORY_PAGE_SHIFT);
    if (!region->dirty)
        return error_set(err, -ENOMEM, "out of memory for the dirty bitmap of guest memory %s", name);
    result = map_region(region, err);
    if (result) {
        free(region->dirty);
        return result;
    }
    memory->count++;
    return 0;
}

int memory_adopt(struct memory *memory, size_t index, int memfd, struct ferry_error *err)
{
    struct memory_region *region = &memory->regions[index];
    int result = map_memfd(region, memfd, region->host_ptr, &region->host_ptr, err);

    if (result)
        return result;
    close(region->memfd);
    region->memfd = memfd;
    return 0;
}

/* Bytes the host can still give away without swapping, UINT64_MAX when it does not say. */
static uint64_t host_available(void)
{
    FILE *file = fopen("/proc/meminfo", "re");
    uint64_t available = UINT64_MAX;
    char line[128];

    if (!file)
        return available;
    while (fgets(line, sizeof(line), file)) {
        static const char key[] = "MemAvailable:";

        if (strncmp(line, key, sizeof(key) - 1) == 0) {
            available = strtoull(line + sizeof(key) - 1, NULL, 10) * 1024;
            break;
        }
    }
    fclose(file);
    return available;
}

/* Bytes of the region's memfd that the kernel has allocated already. */
static uint64_t allocated(const struct memory_region *region)
{
    struct stat status;

    return fstat(region->memfd, &status) == 0 ? (uint64_t)status.st_blocks * 512 : 0;
}

/* Asked before, because an allocation that goes too far may wake the OOM killer instead of failing. */
static int check_available(const struct memory *memory, struct ferry_error *err)
{
    uint64_t needed = memory_total(memory);
    uint64_t available = host_available();

    for (size_t i = 0; i < memory->count; i++) {
        uint64_t there = allocated(&memory->regions[i]);

        needed -= there < memory->regions[i].size ? there : memory->regions[i].size;
    }
    if (needed <= available)
        return 0;
    return error_set(err, -ENOMEM,
                     "not enough memory: the guest needs %" PRIu64 " MiB more, the host has %" PRIu64
                     " MiB available; give the guest less or free some",
                     needed / MIB, available / MIB);
}

static int reserve_region(const struct memory_region *region, struct ferry_error *err)
{
    int result;

    do
        result = fallocate(region->memfd, 0, 0, (off_t)region->size) < 0 ? -errno : 0;
    while (result == -EINTR);
    if (result == -ENOMEM || result == -ENOSPC)
        return error_set(err, -ENOMEM,
                         "not enough memory: the host cannot give %" PRIu64 " MiB to guest memory %s",
                         region->size / MIB, region->name);
    if (result)
        return error_set_errno(err, result, "cannot reserve %" PRIu64 " MiB for guest memory %s",
                               region->size / MIB, region->name);
    return 0;
}

/* HAD pages were free before this memory took any of them. */
static int refuse_huge_pages(const struct memory *memory, const struct hugepages *pages, uint64_t had,
                             struct ferry_error *err)
{
    struct hugepages before = {.total = pages->total, .available = had};
    uint64_t needed = memory_total(memory) / memory->huge_page_size;
    char advice[HUGEPAGES_ADVICE_SIZE];

    return error_set(err, -ENOMEM,
                     "not enough huge pages: the guest needs %" PRIu64 " of %s, %" PRIu64
                     " are free; set more aside: %s",
                     needed, hugepages_size_name(memory->huge_page_size), had,
                     hugepages_advice(memory->huge_page_size, &before, needed, advice));
}

/*
 * A mapping for which the kernel accounts (hugetlbfs_reserv.rst) reserves the file's pages until the file is
 * gone, not only until it is unmapped. To allocate them would mean to clear all of them, one after another:
 * seconds, for many GiB. That is left to whoever touches them first.
 */
static int reserve_huge_pages(const struct memory *memory, struct ferry_error *err)
{
    uint64_t done = 0;

    for (size_t i = 0; i < memory->count; i++) {
        const struct memory_region *region = &memory->regions[i];
        void *mapped = mmap(NULL, region->size, PROT_READ | PROT_WRITE, MAP_SHARED, region->memfd, 0);
        struct hugepages pages;
        int code = errno;

        if (mapped != MAP_FAILED) {
            munmap(mapped, region->size);
            done += region->size / memory->huge_page_size;
            continue;
        }
        if (code == ENOMEM && hugepages_read(NULL, memory->huge_page_size, &pages, NULL) == 0)
            return refuse_huge_pages(memory, &pages, pages.available + done, err);
        return error_set_errno(err, -code, "cannot reserve %" PRIu64 " MiB of huge pages for guest memory %s",
                               region->size / MIB, region->name);
    }
    return 0;
}

int memory_reserve(struct memory *memory, struct ferry_error *err)
{
    int result;

    if (memory->huge_page_size)
        return reserve_huge_pages(memory, err);
    result = check_available(memory, err);
    for (size_t i = 0; i < memory->count && !result; i++)
        result = reserve_region(&memory->regions[i], err);
    return result;
}

size_t memory_region_count(const struct memory *memory)
{
    return memory->count;
}

const struct memory_region *memory_region(const struct memory *memory, size_t index)
{
    return index < memory->count ? &memory->regions[index] : NULL;
}

uint64_t memory_total(const struct memory *memory)
{
    uint64_t total = 0;

    for (size_t i = 0; i < memory->count; i++)
        total += memory->regions[i].size;
    return total;
}

void *memory_ptr(const struct memory *memory, uint64_t addr, uint64_t size)
{
    for (size_t i = 0; i < memory->count; i++) {
        const struct memory_region *region = &memory->regions[i];
        uint64_t offset = addr - region->guest_addr; /* wraps to something huge when addr is below */

        if (offset < region->size)
            return size <= region->size - offset ? region->host_ptr + offset : NULL;
    }
    return NULL;
}

bool memory_read(const struct memory *memory, uint64_t addr, void *out, size_t size)
{
    const void *from = memory_ptr(memory, addr, size);

    if (!from)
        return false;
    if (size)
        memcpy(out, from, size);
    return true;
}

bool memory_write(struct memory *memory, uint64_t addr, const void *data, size_t size)
{
    void *to = memory_ptr(memory, addr, size);

    if (!to)
        return false;
    if (size)
        memcpy(to, data, size);
    memory_mark_dirty(memory, addr, size);
    return true;
}

void memory_mark_dirty(struct memory *memory, uint64_t addr, uint64_t size)
{
    uint64_t last;

    if (size == 0 || !memory_tracking(memory))
        return;
    if (__builtin_add_overflow(addr, size - 1, &last))
        last = UINT64_MAX;
    for (size_t i = 0; i < memory->count; i++) {
        struct memory_region *region = &memory->regions[i];
        uint64_t region_last = region->guest_addr + (region->size - 1);
        uint64_t from = addr > region->guest_addr ? addr : region->guest_addr;
        uint64_t to = last < region_last ? last : region_last;

        if (from > to)
            continue;
        for (uint64_t page = (from - region->guest_addr) >> MEMORY_PAGE_SHIFT;
             page <= (to - region->guest_addr) >> MEMORY_PAGE_SHIFT; page++)
            bitmap_set_atomic(region->dirty, page);
    }
}

void memory_set_tracking(struct memory *memory, bool on)
{
    if (on && !memory_tracking(memory)) {
        for (size_t i = 0; i < memory->count; i++) {
            struct memory_region *region = &memory->regions[i];
            size_t words = bitmap_words(region->size >> MEMORY_PAGE_SHIFT);

            for (size_t word = 0; word < words; word++)
                __atomic_store_n(&region->dirty[word], 0, __ATOMIC_RELAXED);
        }
    }
    __atomic_store_n(&memory->tracking, on, __ATOMIC_SEQ_CST);
    /*
     * A device thread that stored to a page and then saw tracking still off must have its store visible to
     * whoever copies the page from now on. The barrier is paid for here, once, not in every mark.
     */
    if (on)
        membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED);
}

bool memory_tracking(const struct memory *memory)
{
    return __atomic_load_n(&memory->tracking, __ATOMIC_ACQUIRE);
}
