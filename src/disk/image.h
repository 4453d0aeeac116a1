/*
 * A raw disk image: a regular file or a block device, opened once, with exclusive access taken separately.
 *
 * Opening does not lock, so that an arriving VM can open its disks at set-up while the source still runs;
 * image_acquire takes an open-file-description lock on the image itself (a write lock for a writable disk, a
 * read lock for a read-only one) at switchover, image_release drops it. The kernel drops it too when the
 * process dies. Not thread-safe: one owner; the descriptor may be used for I/O by anyone meanwhile.
 */
#ifndef FERRY_DISK_IMAGE_H
#define FERRY_DISK_IMAGE_H

#include <ferry/error.h>

#include <stdbool.h>
#include <stdint.h>

#define IMAGE_SECTOR_SIZE 512

struct image {
    char *path; /* owned */
    int fd;
    uint64_t size; /* bytes, a multiple of block_size */
    bool readonly;
    bool direct;         /* opened with O_DIRECT: offsets, lengths and buffers in multiples of block_size */
    uint32_t block_size; /* 512, or what direct I/O needs here (up to 4096) */
    bool locked;
};

/*
 * Opens PATH. Missing, a directory or another thing that is no disk, not readable or writable, empty, a size
 * that is no multiple of 512, direct I/O where the file system has none: a sentence naming the path.
 */
int image_open(struct image **out, const char *path, bool readonly, bool direct, struct ferry_error *err);
void image_close(struct image *image); /* releases too; NULL allowed */

/* -EBUSY when another VM has it; -ESTALE when its size is no longer what it was when opened. Idempotent. */
int image_acquire(struct image *image, struct ferry_error *err);
void image_release(struct image *image);

#endif
