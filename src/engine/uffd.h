/*
 * userfaultfd for memory that is a shared mapping of a memfd: threads that touch a page without a mapping of
 * its own wait until uffd_map gives it one, in whatever way they touch it (their own loads and stores, system
 * calls, asynchronous I/O of the kernel's).
 *
 * A page is mapped as it stands in the memfd. Whoever fills it in does so through a second mapping of the
 * memfd, which is not watched; so arriving pages are received straight into place, and the memory stays
 * allocated all the time (minor faults, Linux 5.14). All functions are for any thread.
 */
#ifndef FERRY_ENGINE_UFFD_H
#define FERRY_ENGINE_UFFD_H

#include <ferry/error.h>

#include <stddef.h>
#include <stdint.h>

/* A descriptor, non-blocking, or a negative errno: -EPERM when the host does not let this process handle
 * faults of the kernel's, -ENOSYS when it cannot. */
int uffd_open(struct ferry_error *err);
int uffd_watch(int uffd, void *address, size_t size, struct ferry_error *err);
/* Ends watching; whoever waits goes on, with the pages as they stand. */
void uffd_forget(int uffd, void *address, size_t size);
/* Takes the mappings of pages away; what the memfd holds stays. */
int uffd_unmap(void *address, size_t size, struct ferry_error *err);
/* Maps the pages of a range that are not mapped and exist in the memfd, and wakes who waits for any of them.
 */
void uffd_map(int uffd, void *address, size_t size);
/* The addresses of up to COUNT new faults. 0: none are there. */
size_t uffd_faults(int uffd, uint64_t *addresses, size_t count);

#endif
