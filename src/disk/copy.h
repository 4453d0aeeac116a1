/*
 * What is on a disk, as a stream of bytes on its way to another host, and made a file of there.
 *
 *     stream   block... end
 *     block    offset u64   length u32 (not 0)   data
 *     end      size u64     length u32 (0)       checksum (16 bytes)
 *
 * Integers are little-endian. Offsets ascend and are multiples of DISK_COPY_BLOCK; a block is that long, but
 * for the last one of a disk. A block of nothing but zeros is not sent, whether it was a hole or not, so that
 * holes stay holes; within a block that is sent, pages of zeros are not written. The checksum (XXH3-128, in
 * its canonical form) is that of all blocks, headers included, and of the size: whoever reads the finished
 * file the same way comes to the same one, and that is done before the file counts as whole.
 *
 * A stream that ends before its end, or breaks a rule, is refused. One owner thread each.
 */
#ifndef FERRY_DISK_COPY_H
#define FERRY_DISK_COPY_H

#include <ferry/error.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define DISK_COPY_BLOCK    (64u << 10) /* bytes */
#define DISK_COPY_HEADER   12u
#define DISK_COPY_CHECKSUM 16u

struct disk_shape {
    uint64_t size;       /* bytes, of the whole disk */
    uint64_t bytes;      /* of them, how many are there: not holes */
    mode_t mode;         /* permissions; 0600 for a block device */
    uint64_t changed_ns; /* real time of the last write; 0 for a block device */
};

/* Of the file or block device at PATH, which is readable. -EINVAL: it is neither. */
int disk_shape_read(struct disk_shape *shape, const char *path, struct ferry_error *err);

/* --- reading --- */

struct disk_reader;

int disk_reader_open(struct disk_reader **out, const char *path, struct ferry_error *err);
void disk_reader_close(struct disk_reader *reader);                           /* NULL allowed */
const struct disk_shape *disk_reader_shape(const struct disk_reader *reader); /* but for `bytes` */
/* The next bytes of the stream, at most SIZE (not 0); 0 at its end. -ESTALE: somebody has written to the disk
 * meanwhile. */
ssize_t disk_reader_read(struct disk_reader *reader, void *data, size_t size, struct ferry_error *err);
/* Bytes of the disk that were looked at so far, holes not counted. */
uint64_t disk_reader_done(const struct disk_reader *reader);

/* --- writing --- */

struct disk_writer;

/* A new file at PATH (-EEXIST) of SIZE bytes. */
int disk_writer_open(struct disk_writer **out, const char *path, uint64_t size, struct ferry_error *err);
void disk_writer_close(struct disk_writer *writer); /* NULL allowed; the file stays */
/* The next bytes of the stream, however it was cut up. -EPROTO: they make no sense. */
int disk_writer_write(struct disk_writer *writer, const void *data, size_t count, struct ferry_error *err);
/* Bytes of data that have come so far. */
uint64_t disk_writer_done(const struct disk_writer *writer);
/*
 * The stream has ended: the file is on storage, read back from there, and says what was sent; it has SHAPE's
 * mode and time. STOPPED (OPAQUE goes to it) is asked now and then: true ends it with -ECANCELED. -EPROTO:
 * the stream was cut short.
 */
int disk_writer_finish(struct disk_writer *writer, const struct disk_shape *shape,
                       bool (*stopped)(void *opaque), void *opaque, struct ferry_error *err);

#endif
