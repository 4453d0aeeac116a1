/*
 * Asynchronous I/O on one descriptor: requests in, finished requests out, an eventfd that says when to look.
 *
 * Two engines behind one face: io_uring, and a pool of threads where the kernel offers no io_uring (or a test
 * asks for it). Discard and write-zeroes always run on pool threads, which are started when first needed.
 *
 * One owner thread calls every function here. A submitted request and the memory it points to belong to the
 * engine until disk_io_reap gives the request back. Requests may finish in any order.
 */
#ifndef FERRY_DISK_IO_H
#define FERRY_DISK_IO_H

#include <ferry/error.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum disk_engine {
    DISK_ENGINE_AUTO = 0, /* io_uring where the kernel has it, else threads */
    DISK_ENGINE_URING,
    DISK_ENGINE_THREADS,
};

enum disk_op {
    DISK_OP_READ = 1,
    DISK_OP_WRITE,
    DISK_OP_FLUSH, /* fdatasync: what was finished before this was submitted is on the disk when it ends */
    DISK_OP_DISCARD,
    DISK_OP_WRITE_ZEROES,
};

struct disk_range {
    uint64_t offset; /* bytes */
    uint64_t length;
    bool unmap; /* write-zeroes: may punch a hole */
};

struct disk_request {
    enum disk_op op;
    /* read, write; changed by the engine as parts of it finish */
    uint64_t offset;
    struct iovec *iov;
    unsigned iov_count;
    bool durable; /* write: on the disk before it counts as finished (RWF_DSYNC) */
    /* discard, write-zeroes */
    const struct disk_range *ranges;
    unsigned range_count;
    int result;                /* set when reaped: 0 or a negative errno; -EIO for reads past the end */
    struct disk_request *next; /* the engine's */
};

struct disk_io;

/*
 * FD and EVENT_FD are borrowed; EVENT_FD (an eventfd) becomes readable when something may be reaped. DEPTH is
 * the most requests ever in flight. A forced engine that the kernel lacks is an error.
 */
int disk_io_new(struct disk_io **out, int fd, int event_fd, unsigned depth, enum disk_engine engine,
                struct ferry_error *err);
/* Nothing may be in flight. NULL allowed. */
void disk_io_free(struct disk_io *io);
enum disk_engine disk_io_engine(const struct disk_io *io); /* never AUTO */

/* Never fails: what cannot be submitted comes back from reap with its error. */
void disk_io_submit(struct disk_io *io, struct disk_request *request);
/* Hands what was submitted to the kernel; submit alone may keep it. May block as write(2) may. */
void disk_io_flush_queue(struct disk_io *io);
/* A finished request, or NULL when there is none now. */
struct disk_request *disk_io_reap(struct disk_io *io);

#endif
