/*
 * The files that hold guest memory: in no directory, gone with the last who has them open or mapped.
 *
 * They are of a tmpfs of Ferry's own that is mounted nowhere and gives huge pages where the whole page is
 * within the file (Documentation/admin-guide/mm/transhuge.rst, `huge=within_size`): an arriving VM's memory
 * is had for a tenth of the time, and the guest runs with fewer TLB misses. The host's setting for shared
 * memory, which is `never` unless somebody changes it, is left alone. Where mounting is not allowed, or
 * there are no huge pages, they are memfds.
 *
 * When a VM is to have the huge pages that the administrator has set aside (base/hugepages.h), they are
 * memfds of these.
 */
#ifndef FERRY_BUS_MEMORY_FILE_H
#define FERRY_BUS_MEMORY_FILE_H

#include <ferry/error.h>

#include <stdint.h>

/* A file of SIZE bytes, all zero, none of it allocated; NAME is for /proc. With PAGE_SIZE, which is known
 * (hugepages_size_known), it is of set aside pages of that size, else 0. Returns its descriptor, the
 * caller's. */
int memory_file_new(const char *name, uint64_t size, uint64_t page_size, struct ferry_error *err);

#endif
