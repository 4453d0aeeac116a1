/*
 * The io_uring engine. One thread uses the ring, so there is no lock.
 */
#include "disk/io_engine.h"

#include "base/error.h"

#include <errno.h>
#include <liburing.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

struct disk_ring {
    struct io_uring uring;
    int fd;
    int event_fd;
    struct disk_request *refused; /* could not be queued; wait to be reaped */
};

/* Not every liburing exports these. */
static int register_with(const struct disk_ring *ring, unsigned what, void *argument, unsigned count)
{
    return syscall(SYS_io_uring_register, ring->uring.ring_fd, what, argument, count) < 0 ? -errno : 0;
}

/* For good, whoever gets hold of the ring: no other operations than those of `prepare`. System call filters
 * do not see what a ring does. */
static int restrict_ring(struct disk_ring *ring)
{
    static const uint8_t operations[] = {IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC};
    struct io_uring_restriction allowed[sizeof(operations)] = {0};
    int result;

    for (size_t i = 0; i < sizeof(operations); i++) {
        allowed[i].opcode = IORING_RESTRICTION_SQE_OP;
        allowed[i].sqe_op = operations[i];
    }
    result = register_with(ring, IORING_REGISTER_RESTRICTIONS, allowed, sizeof(operations));
    return result < 0 ? result : register_with(ring, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
}

int disk_ring_new(struct disk_ring **out, int fd, int event_fd, unsigned depth, struct ferry_error *err)
{
    struct disk_ring *ring = calloc(1, sizeof(*ring));
    int result;

    if (!ring)
        return error_set(err, -ENOMEM, "out of memory while setting up disk I/O");
    ring->fd = fd;
    ring->event_fd = event_fd;
    result = io_uring_queue_init(depth, &ring->uring, IORING_SETUP_R_DISABLED);
    if (result < 0) {
        free(ring);
        return error_set_errno(err, result, "the kernel offers no io_uring");
    }
    result = io_uring_register_eventfd(&ring->uring, event_fd);
    if (result < 0) {
        disk_ring_free(ring);
        return error_set_errno(err, result, "io_uring cannot signal an eventfd");
    }
    result = restrict_ring(ring);
    if (result < 0) {
        disk_ring_free(ring);
        return error_set_errno(err, result, "io_uring cannot be restricted to what a disk needs");
    }
    *out = ring;
    return 0;
}

void disk_ring_free(struct disk_ring *ring)
{
    if (!ring)
        return;
    io_uring_queue_exit(&ring->uring);
    free(ring);
}

static void prepare(struct disk_ring *ring, struct io_uring_sqe *sqe, struct disk_request *request)
{
    switch (request->op) {
    case DISK_OP_READ:
        io_uring_prep_readv(sqe, ring->fd, request->iov, request->iov_count, request->offset);
        break;
    case DISK_OP_WRITE:
        io_uring_prep_writev2(sqe, ring->fd, request->iov, request->iov_count, request->offset,
                              request->durable ? RWF_DSYNC : 0);
        break;
    default:
        io_uring_prep_fsync(sqe, ring->fd, IORING_FSYNC_DATASYNC);
        break;
    }
    io_uring_sqe_set_data(sqe, request);
}

void disk_ring_submit(struct disk_ring *ring, struct disk_request *request)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);

    if (!sqe) {
        disk_ring_flush_queue(ring);
        sqe = io_uring_get_sqe(&ring->uring);
    }
    if (sqe) {
        prepare(ring, sqe, request);
        return;
    }
    request->result = -EAGAIN;
    request->next = ring->refused;
    ring->refused = request;
    (void)eventfd_write(ring->event_fd, 1);
}

void disk_ring_flush_queue(struct disk_ring *ring)
{
    int result;

    if (!io_uring_sq_ready(&ring->uring))
        return;
    do
        result = io_uring_submit(&ring->uring);
    while (result == -EINTR);
    /* Short of memory, or only a part taken: the rest stays in the queue; have the owner come back for it. */
    if (io_uring_sq_ready(&ring->uring))
        (void)eventfd_write(ring->event_fd, 1);
}

/* Looks at one completion. True when the request is finished; else the rest of it was queued again. */
static bool complete(struct disk_ring *ring, struct disk_request *request, int result)
{
    bool transfer = request->op == DISK_OP_READ || request->op == DISK_OP_WRITE;

    if (result == -EINTR || result == -EAGAIN || (transfer && result > 0)) {
        if (result > 0 && disk_request_advance(request, (size_t)result)) {
            request->result = 0;
            return true;
        }
        disk_ring_submit(ring, request);
        disk_ring_flush_queue(ring);
        return false;
    }
    /* A transfer of nothing: the file ends where the disk does not. */
    request->result = transfer && result == 0 ? -EIO : result;
    return true;
}

struct disk_request *disk_ring_reap(struct disk_ring *ring)
{
    struct disk_request *request = ring->refused;
    struct io_uring_cqe *cqe;

    if (request) {
        ring->refused = request->next;
        return request;
    }
    while (io_uring_peek_cqe(&ring->uring, &cqe) == 0) {
        int result = cqe->res;

        request = io_uring_cqe_get_data(cqe);
        io_uring_cqe_seen(&ring->uring, cqe);
        if (complete(ring, request, result))
            return request;
    }
    return NULL;
}
