/*
 * A channel: ordered bytes between the two sides of a migration, over whatever carries them.
 *
 * Reads and writes are whole: they end when everything was moved, with an error, or when `cancel_fd` becomes
 * readable (-ECANCELED). Time is bounded by progress: when not one byte moves for the timeout the answer is
 * -ETIMEDOUT. iovecs may point into guest memory; nothing is copied in between.
 *
 * Threads: one reader and one writer at a time, which may be different threads. channel_shutdown and the byte
 * counters may be used from any thread.
 */
#ifndef FERRY_ENGINE_CHANNEL_H
#define FERRY_ENGINE_CHANNEL_H

#include <ferry/error.h>

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#define CHANNEL_FOREVER         UINT64_MAX
#define CHANNEL_DESCRIPTORS_MAX 8

struct channel;
struct tls_stream;

/* What carries the bytes. readv and writev move something or return a negative errno with err filled in:
 * -EAGAIN (without words) when that would wait, which the channel then does on the descriptor; readv returns
 * 0 at the end. Who writes again after -EAGAIN writes the same bytes. */
struct channel_ops {
    const char *name;
    ssize_t (*readv)(struct channel *channel, const struct iovec *iov, int count, struct ferry_error *err);
    ssize_t (*writev)(struct channel *channel, const struct iovec *iov, int count, struct ferry_error *err);
    /* Whether readv would not be told to wait. NULL: the descriptor tells. */
    bool (*readable)(struct channel *channel);
    void (*shutdown)(struct channel *channel);
    void (*finish)(struct channel *channel);
    void (*close)(struct channel *channel);
};

struct channel {
    const struct channel_ops *ops;
    int fd;                 /* owned */
    int cancel_fd;          /* borrowed; -1 for none */
    uint64_t read_ns;       /* default time without progress, for channel_read */
    uint64_t write_ns;      /* the same for writes */
    uint64_t bytes_in;      /* atomic; use channel_bytes_in */
    uint64_t bytes_out;     /* atomic */
    struct tls_stream *tls; /* owned; NULL: in the clear (channel_tls.h) */

    int descriptors[CHANNEL_DESCRIPTORS_MAX]; /* that came with the bytes read so far, owned; the reader's */
    unsigned descriptor_count;
};

extern const struct channel_ops channel_socket_ops; /* TCP and Unix stream sockets */
extern const struct channel_ops channel_unix_ops;   /* Unix stream sockets that descriptors may come by */

/* Takes FD over (it becomes non-blocking). Cannot fail. */
void channel_init_socket(struct channel *channel, int fd, int cancel_fd, uint64_t timeout_ns);
/* Before anything was read: from now on descriptors may come by CHANNEL, a Unix socket. Until then, and by
 * other sockets, what comes is closed. */
void channel_accept_descriptors(struct channel *channel);
/* Closes it. A zeroed or closed channel is allowed when fd is -1. */
void channel_close(struct channel *channel);
/* Both directions end, waiting readers and writers included. */
void channel_shutdown(struct channel *channel);
/* Nothing more will be written: the peer reads what was, then the end. */
void channel_finish(struct channel *channel);

/* Fills all of iov (which is used up), waiting at most timeout_ns without progress. -EPIPE when the peer
 * closed the connection. */
int channel_readv(struct channel *channel, struct iovec *iov, int count, uint64_t timeout_ns,
                  struct ferry_error *err);
int channel_read(struct channel *channel, void *data, size_t size, uint64_t timeout_ns,
                 struct ferry_error *err);
int channel_writev(struct channel *channel, struct iovec *iov, int count, struct ferry_error *err);
/* Reads what is there, at least something, into data; returns its size. -EPIPE at the end. */
ssize_t channel_read_some(struct channel *channel, void *data, size_t size, uint64_t timeout_ns,
                          struct ferry_error *err);
/* Without waiting, for who polls the descriptor: bytes moved, -EAGAIN (without words) when there are none or
 * no room. Reading goes on as long as channel_holds_data says so, which the descriptor does not tell. */
ssize_t channel_read_ready(struct channel *channel, void *data, size_t size, struct ferry_error *err);
ssize_t channel_write_ready(struct channel *channel, const void *data, size_t size, struct ferry_error *err);
bool channel_holds_data(struct channel *channel);
/* Waits until there is something to read, or the end; looks at least once. -ETIMEDOUT after timeout_ns. */
int channel_await(struct channel *channel, uint64_t timeout_ns, struct ferry_error *err);
/* For the ops' own files: waits for EVENTS (poll's) on the descriptor. -ETIMEDOUT, -ECANCELED. */
int channel_wait(struct channel *channel, short events, uint64_t timeout_ns, struct ferry_error *err);

/* Writes SIZE bytes, at least one, by a Unix socket; copies of FDS (at most CHANNEL_DESCRIPTORS_MAX) arrive
 * no later than the first of them. */
int channel_pass(struct channel *channel, const void *data, size_t size, const int *fds, size_t count,
                 struct ferry_error *err);
/* The descriptors that have come so far; they are the caller's then. Returns their number. */
size_t channel_take_descriptors(struct channel *channel, int fds[static CHANNEL_DESCRIPTORS_MAX]);

uint64_t channel_bytes_in(const struct channel *channel);
uint64_t channel_bytes_out(const struct channel *channel);

#endif
