/*
 * Putting files into guest memory: kernels and initial RAM disks.
 *
 * Files are the administrator's, but may be anything: every offset and size in them is checked against the
 * file and against guest memory before it is used, and the file may change while it is read. What is written
 * is recorded as dirty, so that a guest may be loaded again while it is being moved.
 *
 *     loader_open -> loader_load_elf | loader_read ... -> loader_close
 */
#ifndef FERRY_MACHINE_LOADER_H
#define FERRY_MACHINE_LOADER_H

#include "bus/memory.h"

#include <ferry/error.h>

#include <stdbool.h>
#include <stdint.h>

struct loader_file {
    const char *what; /* "kernel", "initrd": for messages */
    const char *path; /* both borrowed */
    int fd;
    uint64_t size;
};

/* What a kernel occupies and where it begins. */
struct loader_image {
    uint64_t entry; /* guest physical address of the first instruction */
    uint64_t start; /* lowest and one past the highest guest physical address used, unfilled parts included */
    uint64_t end;
};

/* Regular, non-empty files only; otherwise a sentence that names WHAT and PATH. */
int loader_open(struct loader_file *file, const char *what, const char *path, struct ferry_error *err);
void loader_close(struct loader_file *file);

/* The first SIZE bytes of the file; what the file does not have is zero. */
int loader_peek(const struct loader_file *file, void *out, size_t size, struct ferry_error *err);
/* Copies [offset, offset + size) of the file to guest memory. -ENOSPC when it does not fit there. */
int loader_read(const struct loader_file *file, uint64_t offset, struct memory *memory, uint64_t guest_addr,
                uint64_t size, struct ferry_error *err);

bool loader_is_elf(const uint8_t head[static 4]);
/* Loads the segments of a static ELF64 little-endian kernel for ELF_MACHINE at their physical addresses. */
int loader_load_elf(const struct loader_file *file, struct memory *memory, uint16_t elf_machine,
                    struct loader_image *image, struct ferry_error *err);

/* The content of the ELF note of that name and type, at most *size bytes, whose number goes to *size. -ENOENT
 * when there is none. The file was loaded by loader_load_elf. */
int loader_find_note(const struct loader_file *file, const char *name, uint32_t type, void *out, size_t *size,
                     struct ferry_error *err);

/* -EINVAL "FILE is not a ... kernel", saying what it looks like instead where that is known. */
int loader_refuse_kernel(const struct loader_file *file, const uint8_t *head, size_t head_size,
                         const char *want, struct ferry_error *err);

#endif
