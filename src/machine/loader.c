#include "machine/loader.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "bus/state.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)
/* Real kernels have fewer than ten. */
#define ELF_SEGMENTS_MAX 64

int loader_open(struct loader_file *file, const char *what, const char *path, struct ferry_error *err)
{
    struct stat status;

    *file = (struct loader_file){.what = what, .path = path};
    /* Not blocking: the path may name a pipe nobody writes to. */
    file->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (file->fd < 0 && errno == ENOENT)
        return error_set(err, -ENOENT, "%s %s does not exist", what, path);
    if (file->fd < 0)
        return error_set_errno(err, -errno, "cannot open %s %s", what, path);
    if (fstat(file->fd, &status) < 0) {
        int result = error_set_errno(err, -errno, "cannot look at %s %s", what, path);

        loader_close(file);
        return result;
    }
    if (!S_ISREG(status.st_mode) || status.st_size == 0) {
        const char *is = S_ISREG(status.st_mode)   ? "empty"
                         : S_ISDIR(status.st_mode) ? "a directory"
                                                   : "not a regular file";

        loader_close(file);
        return error_set(err, S_ISDIR(status.st_mode) ? -EISDIR : -EINVAL, "%s %s is %s", what, path, is);
    }
    file->size = (uint64_t)status.st_size;
    return 0;
}

void loader_close(struct loader_file *file)
{
    if (file->fd >= 0)
        close(file->fd);
    file->fd = -1;
}

/* Reads until SIZE bytes or the file's end; returns the count or a negative errno. */
static ssize_t read_at(int fd, uint8_t *out, uint64_t size, uint64_t offset)
{
    uint64_t done = 0;

    while (done < size) {
        ssize_t count = pread(fd, out + done, size - done, (off_t)(offset + done));

        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return -errno;
        if (count == 0)
            break;
        done += (uint64_t)count;
    }
    return (ssize_t)done;
}

int loader_peek(const struct loader_file *file, void *out, size_t size, struct ferry_error *err)
{
    ssize_t count;

    memset(out, 0, size);
    count = read_at(file->fd, out, size, 0);
    if (count < 0)
        return error_set_errno(err, (int)count, "cannot read %s %s", file->what, file->path);
    return 0;
}

int loader_read(const struct loader_file *file, uint64_t offset, struct memory *memory, uint64_t guest_addr,
                uint64_t size, struct ferry_error *err)
{
    uint8_t *out;
    ssize_t count;

    if (size == 0)
        return 0;
    if (offset > file->size || size > file->size - offset)
        return error_set(err, -EINVAL, "%s %s is cut short: it says it has bytes beyond its end", file->what,
                         file->path);
    out = memory_ptr(memory, guest_addr, size);
    if (!out)
        return error_set(err, -ENOSPC,
                         "%s %s does not fit: %" PRIu64 " bytes at 0x%" PRIx64
                         " are not all in the VM's memory of %" PRIu64 " MiB",
                         file->what, file->path, size, guest_addr, memory_total(memory) / MIB);
    count = read_at(file->fd, out, size, offset);
    memory_mark_dirty(memory, guest_addr, size);
    if (count < 0)
        return error_set_errno(err, (int)count, "cannot read %s %s", file->what, file->path);
    if ((uint64_t)count < size)
        return error_set(err, -EIO, "%s %s became shorter while it was read", file->what, file->path);
    return 0;
}

bool loader_is_elf(const uint8_t head[static 4])
{
    return memcmp(head, ELFMAG, SELFMAG) == 0;
}

static int elf_refuse(const struct loader_file *file, const char *why, struct ferry_error *err)
{
    return error_set(err, -EINVAL, "%s %s cannot be loaded: %s", file->what, file->path, why);
}

static int elf_check_header(const struct loader_file *file, const Elf64_Ehdr *header, uint16_t elf_machine,
                            struct ferry_error *err)
{
    if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_ident[EI_DATA] != ELFDATA2LSB ||
        header->e_ident[EI_VERSION] != EV_CURRENT)
        return elf_refuse(file, "it is not a 64-bit little-endian ELF file", err);
    if (header->e_machine != elf_machine)
        return elf_refuse(file, "it is an ELF file for another kind of machine", err);
    if (header->e_type != ET_EXEC)
        return elf_refuse(file, "it is an ELF file but not a static executable", err);
    if (header->e_phentsize != sizeof(Elf64_Phdr) || header->e_phnum < 1 ||
        header->e_phnum > ELF_SEGMENTS_MAX)
        return elf_refuse(file, "its ELF program headers make no sense", err);
    /* Both factors are 16 bits, so only the sum can be too large. */
    if (header->e_phoff > file->size ||
        (uint64_t)header->e_phnum * sizeof(Elf64_Phdr) > file->size - header->e_phoff)
        return elf_refuse(file, "it is cut short", err);
    return 0;
}

static int elf_load_segment(const struct loader_file *file, struct memory *memory, const Elf64_Phdr *segment,
                            struct ferry_error *err)
{
    uint8_t *rest;
    int result;

    if (segment->p_filesz > segment->p_memsz)
        return elf_refuse(file, "an ELF segment is larger in the file than in memory", err);
    if (!memory_ptr(memory, segment->p_paddr, segment->p_memsz))
        return error_set(err, -ENOSPC,
                         "%s %s does not fit: its segment of %" PRIu64 " bytes at 0x%" PRIx64
                         " is not in the VM's memory of %" PRIu64 " MiB",
                         file->what, file->path, segment->p_memsz, segment->p_paddr,
                         memory_total(memory) / MIB);
    result = loader_read(file, segment->p_offset, memory, segment->p_paddr, segment->p_filesz, err);
    if (result || segment->p_memsz == segment->p_filesz)
        return result;
    rest = memory_ptr(memory, segment->p_paddr + segment->p_filesz, segment->p_memsz - segment->p_filesz);
    if (!rest)
        return elf_refuse(file, "an ELF segment does not fit", err);
    memset(rest, 0, segment->p_memsz - segment->p_filesz);
    memory_mark_dirty(memory, segment->p_paddr + segment->p_filesz, segment->p_memsz - segment->p_filesz);
    return 0;
}

/* e_entry is a virtual address when the kernel is linked to one; the CPU starts at physical addresses. */
static int elf_find_entry(const struct loader_file *file, const Elf64_Phdr *segments, unsigned count,
                          uint64_t entry, uint64_t *physical, struct ferry_error *err)
{
    for (unsigned i = 0; i < count; i++) {
        const Elf64_Phdr *segment = &segments[i];

        if (segment->p_type == PT_LOAD && segment->p_flags & PF_X && entry >= segment->p_vaddr &&
            entry - segment->p_vaddr < segment->p_memsz) {
            *physical = segment->p_paddr + (entry - segment->p_vaddr);
            return 0;
        }
    }
    return elf_refuse(file, "its entry point is in none of its executable segments", err);
}

/* Reads and checks the header and program headers. */
static int elf_read_headers(const struct loader_file *file, uint16_t elf_machine, Elf64_Ehdr *header,
                            Elf64_Phdr segments[static ELF_SEGMENTS_MAX], struct ferry_error *err)
{
    ssize_t count;
    int result = loader_peek(file, header, sizeof(*header), err);

    if (result)
        return result;
    result = elf_check_header(file, header, elf_machine, err);
    if (result)
        return result;
    count = read_at(file->fd, (uint8_t *)segments, header->e_phnum * sizeof(segments[0]), header->e_phoff);
    if (count != (ssize_t)(header->e_phnum * sizeof(segments[0])))
        return elf_refuse(file, "its program headers cannot be read", err);
    return 0;
}

int loader_load_elf(const struct loader_file *file, struct memory *memory, uint16_t elf_machine,
                    struct loader_image *image, struct ferry_error *err)
{
    Elf64_Ehdr header;
    Elf64_Phdr segments[ELF_SEGMENTS_MAX];
    struct loader_image loaded = {.start = UINT64_MAX};
    int result = elf_read_headers(file, elf_machine, &header, segments, err);

    if (result)
        return result;
    for (unsigned i = 0; i < header.e_phnum; i++) {
        const Elf64_Phdr *segment = &segments[i];

        if (segment->p_type != PT_LOAD || segment->p_memsz == 0)
            continue;
        result = elf_load_segment(file, memory, segment, err);
        if (result)
            return result;
        if (segment->p_paddr < loaded.start)
            loaded.start = segment->p_paddr;
        if (segment->p_paddr + segment->p_memsz > loaded.end)
            loaded.end = segment->p_paddr + segment->p_memsz;
    }
    if (loaded.end == 0)
        return elf_refuse(file, "it has nothing to load", err);
    result = elf_find_entry(file, segments, header.e_phnum, header.e_entry, &loaded.entry, err);
    if (result)
        return result;
    *image = loaded;
    return 0;
}

/* A note segment larger than this is not looked at: real ones have some hundred bytes. */
#define ELF_NOTES_MAX 65536

static uint32_t note_u32(const uint8_t *bytes)
{
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

/* One past a field of SIZE bytes at OFFSET, which are padded to 4; ELF_NOTES_MAX + 1 when there are not so
 * many. */
static size_t note_skip(size_t offset, uint32_t size, size_t end)
{
    uint64_t padded = ((uint64_t)size + 3) & ~UINT64_C(3);

    return padded <= end - offset ? offset + (size_t)padded : ELF_NOTES_MAX + 1;
}

/* The note's content in NOTES, or NULL. */
static const uint8_t *note_find(const uint8_t *notes, size_t end, const char *name, uint32_t type,
                                size_t *size)
{
    size_t offset = 0;

    while (offset <= end && end - offset >= 12) {
        uint32_t name_size = note_u32(notes + offset), content_size = note_u32(notes + offset + 4);
        size_t content = note_skip(offset + 12, name_size, end);
        size_t next = content <= end ? note_skip(content, content_size, end) : ELF_NOTES_MAX + 1;

        if (next > end)
            return NULL;
        if (note_u32(notes + offset + 8) == type && name_size == strlen(name) + 1 &&
            memcmp(notes + offset + 12, name, name_size) == 0) {
            *size = content_size;
            return notes + content;
        }
        offset = next;
    }
    return NULL;
}

int loader_find_note(const struct loader_file *file, const char *name, uint32_t type, void *out, size_t *size,
                     struct ferry_error *err)
{
    Elf64_Ehdr header;
    Elf64_Phdr segments[ELF_SEGMENTS_MAX];
    CLEANUP_FREE uint8_t *notes = malloc(ELF_NOTES_MAX);
    int result = loader_peek(file, &header, sizeof(header), err);

    if (!notes)
        return error_set(err, -ENOMEM, "out of memory while reading %s %s", file->what, file->path);
    if (!result)
        result = elf_read_headers(file, header.e_machine, &header, segments, err);
    for (unsigned i = 0; !result && i < header.e_phnum; i++) {
        const uint8_t *found;
        size_t found_size;
        ssize_t count;

        if (segments[i].p_type != PT_NOTE || segments[i].p_filesz > ELF_NOTES_MAX ||
            segments[i].p_offset > file->size)
            continue;
        count = read_at(file->fd, notes, segments[i].p_filesz, segments[i].p_offset);
        found = count > 0 ? note_find(notes, (size_t)count, name, type, &found_size) : NULL;
        if (!found)
            continue;
        *size = found_size < *size ? found_size : *size;
        memcpy(out, found, *size);
        return 0;
    }
    return result
               ? result
               : error_set(err, -ENOENT, "%s %s has no ELF note %s %u", file->what, file->path, name, type);
}

int loader_refuse_kernel(const struct loader_file *file, const uint8_t *head, size_t head_size,
                         const char *want, struct ferry_error *err)
{
    static const struct {
        const char *magic;
        size_t size;
        const char *is;
    } known[] = {
        {"\x1f\x8b", 2, "it is compressed with gzip; unpack it first"},
        {"\x28\xb5\x2f\xfd", 4, "it is compressed with zstd; unpack it first"},
        {"\xfd\x37zXZ", 5, "it is compressed with xz; unpack it first"},
        {"BZh", 3, "it is compressed with bzip2; unpack it first"},
        {"MZ", 2, "it is an EFI program for another kind of machine"},
        {"070701", 6, "it is a cpio archive, as initial RAM disks are"},
        {"#!", 2, "it is a script"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(known); i++)
        if (head_size >= known[i].size && memcmp(head, known[i].magic, known[i].size) == 0)
            return error_set(err, -EINVAL, "%s %s is not %s: %s", file->what, file->path, want, known[i].is);
    return error_set(err, -EINVAL, "%s %s is not %s", file->what, file->path, want);
}
