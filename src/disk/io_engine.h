/*
 * Between io.c and its engines; nobody else includes this.
 */
#ifndef FERRY_DISK_IO_ENGINE_H
#define FERRY_DISK_IO_ENGINE_H

#include "disk/io.h"

struct disk_pool; /* io_threads.c */
struct disk_ring; /* io_uring.c */

/* Threads are started as requests come, up to a few; they end in free. */
int disk_pool_new(struct disk_pool **out, int fd, int event_fd, struct ferry_error *err);
void disk_pool_free(struct disk_pool *pool);
void disk_pool_submit(struct disk_pool *pool, struct disk_request *request);
struct disk_request *disk_pool_reap(struct disk_pool *pool);

/* -ENOSYS, -EPERM and the like where the kernel offers no io_uring. */
int disk_ring_new(struct disk_ring **out, int fd, int event_fd, unsigned depth, struct ferry_error *err);
void disk_ring_free(struct disk_ring *ring);
void disk_ring_submit(struct disk_ring *ring, struct disk_request *request);
void disk_ring_flush_queue(struct disk_ring *ring);
struct disk_request *disk_ring_reap(struct disk_ring *ring);

/* Takes BYTES off the front of what a read or write has still to do. True when nothing is left. */
bool disk_request_advance(struct disk_request *request, size_t bytes);

#endif
