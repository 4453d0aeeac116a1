#include "engine/link.h"

#include "base/error.h"

#include <errno.h>
#include <string.h>

/* link_take asks the socket for so much at least. */
#define AHEAD_MIN (16u << 10)

void link_init(struct link *link, int fd, int cancel_fd, uint64_t timeout_ns)
{
    *link = (struct link){.out = BUFFER_INIT, .in = BUFFER_INIT, .ahead = BUFFER_INIT};
    channel_init_socket(&link->channel, fd, cancel_fd, timeout_ns);
}

void link_init_channel(struct link *link, const struct channel *channel)
{
    *link = (struct link){.channel = *channel, .out = BUFFER_INIT, .in = BUFFER_INIT, .ahead = BUFFER_INIT};
}

void link_close(struct link *link)
{
    channel_close(&link->channel);
    buffer_free(&link->out);
    buffer_free(&link->in);
    buffer_free(&link->ahead);
}

void link_queue(struct link *link, enum wire_type type, uint8_t flags, const struct buffer *body)
{
    link->sent++;
    wire_frame_put(&link->out, type, flags, link->sent, body ? body->data : NULL, body ? body->size : 0);
    if (body && buffer_failed(body))
        link->out.failed = true;
}

/* Writes SIZE bytes of *iov and drops them from its front. */
static int link_write_slice(struct link *link, struct iovec **iov, int *count, size_t size,
                            struct ferry_error *err)
{
    struct iovec *last = *iov;
    struct iovec rest;
    int result;

    for (; size > last->iov_len; last++)
        size -= last->iov_len;
    rest = (struct iovec){(uint8_t *)last->iov_base + size, last->iov_len - size};
    last->iov_len = size;
    result = channel_writev(&link->channel, *iov, (int)(last - *iov) + 1, err);
    *last = rest;
    *count -= (int)(last - *iov);
    *iov = last;
    return result;
}

/* All of iov (which is used up), as fast as the pace allows. */
static int link_write(struct link *link, struct iovec *iov, int count, struct ferry_error *err)
{
    size_t left = 0;
    int result = 0;

    if (!link->pace)
        return channel_writev(&link->channel, iov, count, err);
    for (int i = 0; i < count; i++)
        left += iov[i].iov_len;
    while (result == 0 && left > 0) {
        size_t size = 0;

        result = pace_take(link->pace, left, &size, err);
        if (result == 0)
            result = link_write_slice(link, &iov, &count, size, err);
        left -= size;
    }
    return result;
}

int link_flush(struct link *link, struct ferry_error *err)
{
    if (buffer_failed(&link->out))
        return error_set(err, -ENOMEM, "out of memory for a message to the other side");

    struct iovec iov = {.iov_base = link->out.data, .iov_len = link->out.size};
    int result = link_write(link, &iov, 1, err);

    buffer_clear(&link->out);
    return result;
}

int link_send(struct link *link, enum wire_type type, uint8_t flags, const struct buffer *body,
              struct ferry_error *err)
{
    link_queue(link, type, flags, body);
    return link_flush(link, err);
}

int link_pass(struct link *link, enum wire_type type, const struct buffer *body, const int *fds, size_t count,
              struct ferry_error *err)
{
    int result = link_flush(link, err);

    if (result < 0)
        return result;
    link_queue(link, type, 0, body);
    if (buffer_failed(&link->out))
        return error_set(err, -ENOMEM, "out of memory for a message to the other side");
    result = channel_pass(&link->channel, link->out.data, link->out.size, fds, count, err);
    buffer_clear(&link->out);
    return result;
}

int link_send_data(struct link *link, enum wire_type type, const struct buffer *body, struct iovec *iov,
                   int count, uint32_t data, struct ferry_error *err)
{
    if (buffer_failed(body) || buffer_failed(&link->out))
        return error_set(err, -ENOMEM, "out of memory for a message to the other side");

    struct wire_header header = {
        .type = (uint8_t)type, .length = (uint32_t)body->size, .data = data, .sequence = ++link->sent};
    uint8_t bytes[WIRE_HEADER_SIZE];

    wire_header_encode(bytes, &header, body->data);
    buffer_put(&link->out, bytes, sizeof(bytes));
    if (buffer_failed(&link->out))
        return error_set(err, -ENOMEM, "out of memory for a message to the other side");
    iov[0] = (struct iovec){.iov_base = link->out.data, .iov_len = link->out.size};
    iov[1] = (struct iovec){.iov_base = body->data, .iov_len = body->size};

    int result = link_write(link, iov, count, err);

    buffer_clear(&link->out);
    return result;
}

int link_flush_ready(struct link *link, struct ferry_error *err)
{
    struct buffer *out = &link->out;
    ssize_t n;

    if (buffer_failed(out))
        return error_set(err, -ENOMEM, "out of memory for a message to the other side");
    while (out->size > 0) {
        n = channel_write_ready(&link->channel, out->data, out->size, err);
        if (n < 0)
            return n == -EAGAIN ? 0 : (int)n;
        memmove(out->data, out->data + n, out->size - (size_t)n);
        out->size -= (size_t)n;
    }
    return 0;
}

static int check_header(const struct link *link, const uint8_t bytes[static WIRE_HEADER_SIZE],
                        struct wire_header *header, struct ferry_error *err)
{
    int result = wire_header_decode(bytes, header, err);

    if (result < 0)
        return result;
    if (header->sequence != link->received + 1)
        return error_set(err, -EBADMSG, "%s frame has number %u, expected %u", wire_type_name(header->type),
                         header->sequence, link->received + 1);
    return 0;
}

int link_receive(struct link *link, struct frame *frame, uint64_t timeout_ns, struct ferry_error *err)
{
    uint8_t bytes[WIRE_HEADER_SIZE];
    struct wire_header header;
    int result = channel_read(&link->channel, bytes, sizeof(bytes), timeout_ns, err);

    if (result == 0)
        result = check_header(link, bytes, &header, err);
    if (result < 0)
        return result;
    link->received = header.sequence;

    buffer_clear(&link->in);
    if (!buffer_reserve(&link->in, header.length))
        return error_set(err, -ENOMEM, "out of memory for a %s frame of %u bytes",
                         wire_type_name(header.type), header.length);
    result = channel_read(&link->channel, link->in.data, header.length, link->channel.read_ns, err);
    if (result < 0)
        return result;
    result = wire_body_check(bytes, &header, link->in.data, err);
    if (result < 0)
        return result;
    link->in.size = header.length;

    *frame = (struct frame){
        .type = header.type,
        .flags = header.flags,
        .data = header.data,
        .body = reader_init(link->in.data, header.length),
    };
    return 0;
}

int link_receive_data(struct link *link, struct iovec *iov, int count, struct ferry_error *err)
{
    return channel_readv(&link->channel, iov, count, link->channel.read_ns, err);
}

/* At least SIZE bytes that were not taken, which then begin at link->taken. 0: they have not come. */
static int read_ahead(struct link *link, size_t size, struct ferry_error *err)
{
    struct buffer *ahead = &link->ahead;

    while (ahead->size - link->taken < size) {
        size_t room = size - (ahead->size - link->taken);
        ssize_t n;

        if (link->taken > 0) {
            memmove(ahead->data, ahead->data + link->taken, ahead->size - link->taken);
            ahead->size -= link->taken;
            link->taken = 0;
        }
        if (!buffer_reserve(ahead, room > AHEAD_MIN ? room : AHEAD_MIN))
            return error_set(err, -ENOMEM, "out of memory for %zu bytes from the other side", size);
        n = channel_read_ready(&link->channel, ahead->data + ahead->size, ahead->capacity - ahead->size, err);
        if (n < 0)
            return n == -EAGAIN ? 0 : (int)n;
        ahead->size += (size_t)n;
    }
    return 1;
}

int link_take(struct link *link, struct frame *frame, const uint8_t **data, struct ferry_error *err)
{
    struct wire_header header;
    const uint8_t *bytes;
    int result = read_ahead(link, WIRE_HEADER_SIZE, err);

    if (result <= 0)
        return result;
    result = check_header(link, link->ahead.data + link->taken, &header, err);
    if (result == 0)
        result = read_ahead(link, WIRE_HEADER_SIZE + (size_t)header.length + header.data, err);
    if (result <= 0)
        return result;
    bytes = link->ahead.data + link->taken;
    result = wire_body_check(bytes, &header, bytes + WIRE_HEADER_SIZE, err);
    if (result < 0)
        return result;
    link->received = header.sequence;
    link->taken += WIRE_HEADER_SIZE + (size_t)header.length + header.data;
    *frame = (struct frame){
        .type = header.type,
        .flags = header.flags,
        .data = header.data,
        .body = reader_init(bytes + WIRE_HEADER_SIZE, header.length),
    };
    *data = bytes + WIRE_HEADER_SIZE + header.length;
    return 1;
}

bool link_holds_data(struct link *link)
{
    return link->ahead.size > link->taken || channel_holds_data(&link->channel);
}
