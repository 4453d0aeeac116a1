/*
 * The file that a checkpoint is written to: beside its place and without a name of its own where the file
 * system can do that (O_TMPFILE), else as NAME.partial-ID; it gets its name when all of it is on the disk.
 *
 *     output_open ──▶ output_write ... ──▶ output_publish | output_close
 *
 * output_write and output_punch are for any thread; the others for one.
 */
#ifndef FERRY_CHECKPOINT_OUTPUT_H
#define FERRY_CHECKPOINT_OUTPUT_H

#include <ferry/error.h>

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct output {
    char path[PATH_MAX]; /* as it was given, for messages */
    char name[NAME_MAX + 1];
    char id[9];
    char partial[NAME_MAX + 1]; /* its name until then; empty: it has none */
    bool overwrite;
    int directory_fd;
    int fd;
    int direct_fd;     /* past the page cache; -1: the file system cannot */
    bool direct;       /* atomic: that is used; false from the moment on when it turns out that it cannot */
    uint64_t bytes;    /* atomic: written */
    uint64_t expected; /* bytes that are to be written, as far as that is known; for messages */
};

/* ID: letters and digits, for a name that nobody else uses. -EEXIST when the file is there and is not to be
 * replaced. */
int output_open(struct output *output, const char *path, const char *id, bool overwrite,
                struct ferry_error *err);
/* Whole pages at whole pages go past the page cache, from memory at whole pages. */
int output_write(struct output *output, const void *data, size_t size, uint64_t offset,
                 struct ferry_error *err);
/* Has these bytes given by the disk, where it does that; -ENOSPC in words. */
int output_allocate(struct output *output, uint64_t offset, uint64_t size, struct ferry_error *err);
/* Makes a hole of what may have been written; what cannot be one stays, and is not read. */
void output_punch(struct output *output, uint64_t offset, uint64_t size);
int output_resize(struct output *output, uint64_t size, struct ferry_error *err);
int output_sync(struct output *output, struct ferry_error *err);
/* Bytes that it takes of the disk. */
uint64_t output_allocated(const struct output *output);
/* It is complete and synchronised: gives it its name, for good. On failure it has none. */
int output_publish(struct output *output, struct ferry_error *err);
/* What was not published is gone. */
void output_close(struct output *output);

#endif
