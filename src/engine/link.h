/*
 * Frames over a channel: numbers and checks them (wire.h), and moves their bytes (channel.h).
 *
 * Receiving: link_receive gives the next frame with its body; a frame with data (PAGES) must be followed by
 * link_receive_data for exactly that many bytes. Sending: at once, or queued and flushed together so that
 * several frames leave in one write.
 *
 * Who polls the descriptor itself uses link_take and link_flush_ready, which never wait; what has come leaves
 * the socket in as few reads as can be. One that was begun with link_take is not for link_receive any more.
 *
 * Not thread-safe; sending and receiving may be on two threads.
 */
#ifndef FERRY_ENGINE_LINK_H
#define FERRY_ENGINE_LINK_H

#include "engine/channel.h"
#include "engine/pace.h"
#include "engine/wire.h"

struct link {
    struct channel channel;
    struct pace *pace;   /* what all that is sent is held to; borrowed; NULL: nothing */
    uint32_t sent;       /* sequence of the last frame sent */
    uint32_t received;   /* and received */
    struct buffer out;   /* queued frames */
    struct buffer in;    /* body of the frame received last */
    struct buffer ahead; /* link_take: what has come */
    size_t taken;        /* of that */
};

struct frame {
    enum wire_type type;
    uint8_t flags;
    uint32_t data;      /* bytes that follow */
    struct reader body; /* valid until the next link_receive */
};

/* Takes FD over. */
void link_init(struct link *link, int fd, int cancel_fd, uint64_t timeout_ns);
/* Takes *CHANNEL over, which is copied. */
void link_init_channel(struct link *link, const struct channel *channel);
/* Closes the channel and frees; a zeroed link with fd -1 is allowed. */
void link_close(struct link *link);

/* BODY may be NULL for none. */
void link_queue(struct link *link, enum wire_type type, uint8_t flags, const struct buffer *body);
int link_flush(struct link *link, struct ferry_error *err);
int link_send(struct link *link, enum wire_type type, uint8_t flags, const struct buffer *body,
              struct ferry_error *err);
/* A frame with BODY and copies of FDS (at most CHANNEL_DESCRIPTORS_MAX), by a Unix socket. They have come
 * when the other side has received the frame. */
int link_pass(struct link *link, enum wire_type type, const struct buffer *body, const int *fds, size_t count,
              struct ferry_error *err);
/* A PAGES frame: queued frames, header and body, then the data of IOV[2..count), in one go. IOV[0] and IOV[1]
 * are for the link's use. */
int link_send_data(struct link *link, enum wire_type type, const struct buffer *body, struct iovec *iov,
                   int count, uint32_t data, struct ferry_error *err);

/* Waits at most timeout_ns (CHANNEL_FOREVER: no limit) for the frame to begin; once begun, the channel's own
 * time limit holds. */
int link_receive(struct link *link, struct frame *frame, uint64_t timeout_ns, struct ferry_error *err);
int link_receive_data(struct link *link, struct iovec *iov, int count, struct ferry_error *err);

/* 1: the next frame, all of which is here; *data, the bytes after its body, is valid as long as that is.
 * 0: not all of it has come. */
int link_take(struct link *link, struct frame *frame, const uint8_t **data, struct ferry_error *err);
/* More may be there that the descriptor does not tell of: link_take comes before polling. */
bool link_holds_data(struct link *link);
/* Writes of what is queued what the socket takes; link->out.size is left. There must be no pace. */
int link_flush_ready(struct link *link, struct ferry_error *err);

#endif
