#include "disk/copy.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#define PAGE 4096u

static void put_u32(uint8_t *out, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        out[i] = (uint8_t)(value >> (8 * i));
}

static void put_u64(uint8_t *out, uint64_t value)
{
    for (int i = 0; i < 8; i++)
        out[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get_le(const uint8_t *in, int bytes)
{
    uint64_t value = 0;

    for (int i = 0; i < bytes; i++)
        value |= (uint64_t)in[i] << (8 * i);
    return value;
}

static bool is_zero(const uint8_t *data, size_t size)
{
    return data[0] == 0 && memcmp(data, data + 1, size - 1) == 0;
}

/* Of the disk's bytes from AT on, those that belong to one block. */
static size_t block_length(uint64_t size, uint64_t at)
{
    return size - at < DISK_COPY_BLOCK ? (size_t)(size - at) : DISK_COPY_BLOCK;
}

static void take_checksum(XXH3_state_t *hash, uint64_t size, uint8_t out[static DISK_COPY_CHECKSUM])
{
    uint8_t last[8];
    XXH128_canonical_t canonical;

    put_u64(last, size);
    XXH3_128bits_update(hash, last, sizeof(last));
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(hash));
    memcpy(out, canonical.digest, DISK_COPY_CHECKSUM);
}

/* --- shape --- */

/* Of an open disk, but for `bytes`. */
static int look_at(struct disk_shape *shape, int fd, const char *path, struct ferry_error *err)
{
    struct stat status;
    off_t end;

    if (fstat(fd, &status) < 0)
        return error_set_errno(err, -errno, "cannot look at disk %s", path);
    if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode))
        return error_set(err, -EINVAL, "disk %s is neither a file nor a block device", path);
    end = lseek(fd, 0, SEEK_END);
    if (end < 0)
        return error_set_errno(err, -errno, "cannot tell how large disk %s is", path);
    *shape = (struct disk_shape){.size = (uint64_t)end, .mode = 0600};
    if (S_ISREG(status.st_mode)) {
        shape->mode = status.st_mode & 0777;
        shape->changed_ns = (uint64_t)status.st_mtim.tv_sec * NS_PER_S + (uint64_t)status.st_mtim.tv_nsec;
    }
    return 0;
}

/* The first range that is there at or after AT: [*from, *to). False: there is none. Who does not tell of
 * holes has none. */
static bool find_data(int fd, uint64_t size, uint64_t at, uint64_t *from, uint64_t *to)
{
    off_t data = lseek(fd, (off_t)at, SEEK_DATA);
    off_t hole;

    if (data < 0 && errno == ENXIO)
        return false;
    *from = data < 0 ? at : (uint64_t)data;
    hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
    *to = hole < 0 || (uint64_t)hole > size ? size : (uint64_t)hole;
    return *from < *to;
}

int disk_shape_read(struct disk_shape *shape, const char *path, struct ferry_error *err)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    uint64_t from, to;
    int result;

    if (fd < 0)
        return error_set_errno(err, -errno, "cannot read disk %s", path);
    result = look_at(shape, fd, path, err);
    for (uint64_t at = 0; result == 0 && at < shape->size && find_data(fd, shape->size, at, &from, &to);
         at = to)
        shape->bytes += to - from;
    return result;
}

/* --- reading --- */

struct disk_reader {
    int fd;
    char path[PATH_MAX];
    struct disk_shape shape;
    uint64_t at;      /* up to where the disk was looked at */
    uint64_t data_to; /* from there, up to where there is no hole */
    uint64_t done;
    bool ended;
    XXH3_state_t *hash;
    size_t frame_size; /* of what is in `frame`, and how much of it was taken */
    size_t frame_taken;
    uint8_t frame[DISK_COPY_HEADER + DISK_COPY_BLOCK];
};

/* FD is taken over. */
static int reader_new(struct disk_reader **out, int fd, const char *path, struct ferry_error *err)
{
    struct disk_reader *reader = calloc(1, sizeof(*reader));
    int result;

    if (!reader) {
        close(fd);
        return error_set(err, -ENOMEM, "out of memory");
    }
    reader->fd = fd;
    snprintf(reader->path, sizeof(reader->path), "%s", path);
    reader->hash = XXH3_createState();
    result = reader->hash ? look_at(&reader->shape, fd, path, err) : error_set(err, -ENOMEM, "out of memory");
    if (result < 0) {
        disk_reader_close(reader);
        return result;
    }
    XXH3_128bits_reset(reader->hash);
    posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    *out = reader;
    return 0;
}

int disk_reader_open(struct disk_reader **out, const char *path, struct ferry_error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return error_set_errno(err, -errno, "cannot read disk %s", path);
    return reader_new(out, fd, path, err);
}

void disk_reader_close(struct disk_reader *reader)
{
    if (!reader)
        return;
    close(reader->fd);
    XXH3_freeState(reader->hash);
    free(reader);
}

const struct disk_shape *disk_reader_shape(const struct disk_reader *reader)
{
    return &reader->shape;
}

uint64_t disk_reader_done(const struct disk_reader *reader)
{
    return reader->done;
}

static int read_block(struct disk_reader *reader, size_t length, struct ferry_error *err)
{
    uint8_t *data = reader->frame + DISK_COPY_HEADER;
    size_t done = 0;

    while (done < length) {
        ssize_t got = pread(reader->fd, data + done, length - done, (off_t)(reader->at + done));

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return error_set_errno(err, -errno, "cannot read disk %s", reader->path);
        if (got == 0)
            return error_set(err, -ESTALE, "disk %s became smaller while it was copied", reader->path);
        done += (size_t)got;
    }
    return 0;
}

/* Moves over a hole to the block in which there is data again, or to the end. */
static void skip_hole(struct disk_reader *reader)
{
    uint64_t from, to;

    if (reader->at < reader->data_to)
        return;
    if (!find_data(reader->fd, reader->shape.size, reader->at, &from, &to)) {
        reader->at = reader->shape.size;
        return;
    }
    if (from - from % DISK_COPY_BLOCK > reader->at)
        reader->at = from - from % DISK_COPY_BLOCK;
    reader->data_to = to;
}

static int check_unchanged(const struct disk_reader *reader, struct ferry_error *err)
{
    struct disk_shape now;
    int result = look_at(&now, reader->fd, reader->path, err);

    if (result == 0 && (now.size != reader->shape.size || now.changed_ns != reader->shape.changed_ns))
        result = error_set(err, -ESTALE, "somebody has written to disk %s while it was copied", reader->path);
    return result;
}

static void put_header(struct disk_reader *reader, uint64_t offset, size_t length)
{
    put_u64(reader->frame, offset);
    put_u32(reader->frame + 8, (uint32_t)length);
}

/* The next block that is not all zeros, or the end. */
static int next_frame(struct disk_reader *reader, struct ferry_error *err)
{
    const uint64_t size = reader->shape.size;
    int result = 0;

    reader->frame_taken = reader->frame_size = 0;
    for (skip_hole(reader); result == 0 && reader->at < size; skip_hole(reader)) {
        uint64_t offset = reader->at;
        size_t length = block_length(size, offset);

        result = read_block(reader, length, err);
        reader->at += length;
        reader->done += length;
        if (result < 0 || is_zero(reader->frame + DISK_COPY_HEADER, length))
            continue;
        put_header(reader, offset, length);
        reader->frame_size = DISK_COPY_HEADER + length;
        XXH3_128bits_update(reader->hash, reader->frame, reader->frame_size);
        return 0;
    }
    if (result == 0)
        result = check_unchanged(reader, err);
    if (result < 0)
        return result;
    put_header(reader, size, 0);
    take_checksum(reader->hash, size, reader->frame + DISK_COPY_HEADER);
    reader->frame_size = DISK_COPY_HEADER + DISK_COPY_CHECKSUM;
    reader->ended = true;
    return 0;
}

ssize_t disk_reader_read(struct disk_reader *reader, void *data, size_t size, struct ferry_error *err)
{
    size_t count;

    if (reader->frame_taken == reader->frame_size) {
        int result = reader->ended ? 0 : next_frame(reader, err);

        if (result < 0)
            return result;
    }
    count = reader->frame_size - reader->frame_taken;
    if (count > size)
        count = size;
    memcpy(data, reader->frame + reader->frame_taken, count);
    reader->frame_taken += count;
    return (ssize_t)count;
}

/* --- writing --- */

struct disk_writer {
    int fd;
    char path[PATH_MAX];
    uint64_t size;
    uint64_t at; /* the lowest offset that the next block may have */
    uint64_t done;
    bool ended;
    XXH3_state_t *hash;
    uint8_t checksum[DISK_COPY_CHECKSUM];
    size_t frame_size; /* bytes in `frame`, of the block or the end that is arriving */
    uint8_t frame[DISK_COPY_HEADER + DISK_COPY_BLOCK];
};

int disk_writer_open(struct disk_writer **out, const char *path, uint64_t size, struct ferry_error *err)
{
    struct disk_writer *writer = calloc(1, sizeof(*writer));
    int result = 0;

    if (!writer)
        return error_set(err, -ENOMEM, "out of memory");
    writer->size = size;
    snprintf(writer->path, sizeof(writer->path), "%s", path);
    writer->hash = XXH3_createState();
    writer->fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (writer->fd < 0)
        result = error_set_errno(err, -errno, "cannot make %s", path);
    else if (!writer->hash)
        result = error_set(err, -ENOMEM, "out of memory");
    else if (size > INT64_MAX || ftruncate(writer->fd, (off_t)size) < 0)
        result = error_set_errno(err, size > INT64_MAX ? -EFBIG : -errno, "cannot make %s", path);
    if (result < 0) {
        disk_writer_close(writer);
        return result;
    }
    XXH3_128bits_reset(writer->hash);
    *out = writer;
    return 0;
}

void disk_writer_close(struct disk_writer *writer)
{
    if (!writer)
        return;
    if (writer->fd >= 0)
        close(writer->fd);
    XXH3_freeState(writer->hash);
    free(writer);
}

uint64_t disk_writer_done(const struct disk_writer *writer)
{
    return writer->done;
}

static int makes_no_sense(const struct disk_writer *writer, struct ferry_error *err)
{
    return error_set(err, -EPROTO, "what comes for %s is no disk", writer->path);
}

static int write_bytes(const struct disk_writer *writer, const uint8_t *data, size_t count, uint64_t offset,
                       struct ferry_error *err)
{
    while (count > 0) {
        ssize_t put = pwrite(writer->fd, data, count, (off_t)offset);

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return error_set_errno(err, -errno, "cannot write %s", writer->path);
        data += put;
        count -= (size_t)put;
        offset += (uint64_t)put;
    }
    return 0;
}

/* The pages that are not all zeros, each run of them at once. */
static int write_block(const struct disk_writer *writer, const uint8_t *data, size_t length, uint64_t offset,
                       struct ferry_error *err)
{
    size_t begin = 0; /* of the run */
    int result = 0;

    for (size_t at = 0; result == 0 && at < length; at += PAGE) {
        size_t page = length - at < PAGE ? length - at : PAGE;

        if (!is_zero(data + at, page))
            continue;
        result = write_bytes(writer, data + begin, at - begin, offset + begin, err);
        begin = at + page;
    }
    if (result == 0 && begin < length)
        result = write_bytes(writer, data + begin, length - begin, offset + begin, err);
    return result;
}

/* All of a block or of the end is in `frame`. */
static int take_frame(struct disk_writer *writer, struct ferry_error *err)
{
    uint64_t offset = get_le(writer->frame, 8);
    size_t length = (size_t)get_le(writer->frame + 8, 4);
    const uint8_t *data = writer->frame + DISK_COPY_HEADER;
    int result;

    writer->frame_size = 0;
    if (length == 0) {
        take_checksum(writer->hash, writer->size, writer->checksum);
        writer->ended = true;
        if (memcmp(writer->checksum, data, DISK_COPY_CHECKSUM) != 0)
            return error_set(err, -EBADMSG, "what came for %s is not what was sent: the checksum differs",
                             writer->path);
        return 0;
    }
    XXH3_128bits_update(writer->hash, writer->frame, DISK_COPY_HEADER + length);
    result = write_block(writer, data, length, offset, err);
    writer->at = offset + length;
    writer->done += length;
    return result;
}

/* How long what begins with the header in `frame` is; 0: it makes no sense. */
static size_t frame_length(const struct disk_writer *writer)
{
    uint64_t offset = get_le(writer->frame, 8);
    uint64_t length = get_le(writer->frame + 8, 4);

    if (length == 0)
        return offset == writer->size ? DISK_COPY_HEADER + DISK_COPY_CHECKSUM : 0;
    if (offset % DISK_COPY_BLOCK || offset < writer->at || offset >= writer->size ||
        length != block_length(writer->size, offset))
        return 0;
    return DISK_COPY_HEADER + (size_t)length;
}

int disk_writer_write(struct disk_writer *writer, const void *data, size_t count, struct ferry_error *err)
{
    const uint8_t *bytes = data;
    int result = 0;

    while (result == 0 && count > 0) {
        size_t whole = writer->frame_size < DISK_COPY_HEADER ? DISK_COPY_HEADER : frame_length(writer);
        size_t part;

        if (writer->ended || whole == 0)
            return makes_no_sense(writer, err);
        part = whole - writer->frame_size < count ? whole - writer->frame_size : count;
        memcpy(writer->frame + writer->frame_size, bytes, part);
        writer->frame_size += part;
        bytes += part;
        count -= part;
        if (writer->frame_size == whole && whole > DISK_COPY_HEADER)
            result = take_frame(writer, err);
    }
    return result;
}

/* What is on storage now, as whoever reads the disk next finds it. */
static int read_back(const struct disk_writer *writer, bool (*stopped)(void *opaque), void *opaque,
                     struct ferry_error *err)
{
    struct disk_reader *reader = NULL;
    int fd = open(writer->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    ssize_t got;
    int result;

    if (fd < 0)
        return error_set_errno(err, -errno, "cannot read %s", writer->path);
    /* Or it would come from memory. */
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    result = reader_new(&reader, fd, writer->path, err);
    while (result == 0 && !reader->ended) {
        uint8_t scratch[1]; /* the frame is looked at in its place */

        reader->frame_taken = reader->frame_size;
        got = disk_reader_read(reader, scratch, sizeof(scratch), err);
        if (got < 0)
            result = (int)got;
        else if (stopped(opaque))
            result = error_set(err, -ECANCELED, "it was cancelled");
    }
    if (result == 0 && memcmp(reader->frame + DISK_COPY_HEADER, writer->checksum, DISK_COPY_CHECKSUM) != 0)
        result = error_set(err, -EIO, "what was written to %s is not what is there: the checksum differs",
                           writer->path);
    disk_reader_close(reader);
    return result;
}

static int set_shape(const struct disk_writer *writer, const struct disk_shape *shape,
                     struct ferry_error *err)
{
    const struct timespec time = {.tv_sec = (time_t)(shape->changed_ns / NS_PER_S),
                                  .tv_nsec = (long)(shape->changed_ns % NS_PER_S)};

    /* Owner and reader is whoever runs the VM here, whatever the mode was. */
    if (fchmod(writer->fd, (shape->mode & 0777) | 0600) < 0)
        return error_set_errno(err, -errno, "cannot set the mode of %s", writer->path);
    if (shape->changed_ns && futimens(writer->fd, (const struct timespec[2]){time, time}) < 0)
        return error_set_errno(err, -errno, "cannot set the time of %s", writer->path);
    return 0;
}

int disk_writer_finish(struct disk_writer *writer, const struct disk_shape *shape,
                       bool (*stopped)(void *opaque), void *opaque, struct ferry_error *err)
{
    int result;

    if (!writer->ended)
        return error_set(err, -EPROTO, "only a part of what belongs into %s has come", writer->path);
    if (fsync(writer->fd) < 0)
        return error_set_errno(err, -errno, "cannot write %s", writer->path);
    result = read_back(writer, stopped, opaque, err);
    if (result == 0)
        result = set_shape(writer, shape, err);
    if (result == 0 && fsync(writer->fd) < 0)
        result = error_set_errno(err, -errno, "cannot write %s", writer->path);
    return result;
}
