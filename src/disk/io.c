#include "disk/io.h"

#include "base/error.h"
#include "disk/io_engine.h"

#include <errno.h>
#include <stdlib.h>

struct disk_io {
    struct disk_ring *ring; /* NULL: threads do everything */
    struct disk_pool *pool;
};

bool disk_request_advance(struct disk_request *request, size_t bytes)
{
    request->offset += bytes;
    while (request->iov_count && bytes >= request->iov[0].iov_len) {
        bytes -= request->iov[0].iov_len;
        request->iov++;
        request->iov_count--;
    }
    if (!request->iov_count)
        return true;
    request->iov[0].iov_base = (char *)request->iov[0].iov_base + bytes;
    request->iov[0].iov_len -= bytes;
    return false;
}

int disk_io_new(struct disk_io **out, int fd, int event_fd, unsigned depth, enum disk_engine engine,
                struct ferry_error *err)
{
    struct disk_io *io = calloc(1, sizeof(*io));
    int result;

    if (!io)
        return error_set(err, -ENOMEM, "out of memory while setting up disk I/O");
    result = disk_pool_new(&io->pool, fd, event_fd, err);
    if (result == 0 && engine != DISK_ENGINE_THREADS) {
        result = disk_ring_new(&io->ring, fd, event_fd, depth, err);
        if (result < 0 && engine == DISK_ENGINE_AUTO)
            result = 0;
    }
    if (result < 0) {
        disk_io_free(io);
        return result;
    }
    *out = io;
    return 0;
}

void disk_io_free(struct disk_io *io)
{
    if (!io)
        return;
    disk_ring_free(io->ring);
    disk_pool_free(io->pool);
    free(io);
}

enum disk_engine disk_io_engine(const struct disk_io *io)
{
    return io->ring ? DISK_ENGINE_URING : DISK_ENGINE_THREADS;
}

void disk_io_submit(struct disk_io *io, struct disk_request *request)
{
    bool ranges = request->op == DISK_OP_DISCARD || request->op == DISK_OP_WRITE_ZEROES;

    request->result = -EINPROGRESS;
    request->next = NULL;
    if (io->ring && !ranges)
        disk_ring_submit(io->ring, request);
    else
        disk_pool_submit(io->pool, request);
}

void disk_io_flush_queue(struct disk_io *io)
{
    if (io->ring)
        disk_ring_flush_queue(io->ring);
}

struct disk_request *disk_io_reap(struct disk_io *io)
{
    struct disk_request *request = io->ring ? disk_ring_reap(io->ring) : NULL;

    return request ? request : disk_pool_reap(io->pool);
}
