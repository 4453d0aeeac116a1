#include "machine/x86_64/linux_boot.h"

#include "base/error.h"
#include "machine/x86_64/layout.h"
#include "machine/x86_64/memory_map.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define MIB (UINT64_C(1) << 20)

/* The setup header, from 0x1f1 on; offsets are those of the file and of boot_params alike. */
#define HEADER             0x1f1
#define SETUP_SECTS        0x1f1
#define BOOT_FLAG          0x1fe
#define HEADER_LENGTH      0x201 /* of what follows 0x202 */
#define HEADER_MAGIC       0x202
#define VERSION            0x206
#define TYPE_OF_LOADER     0x210
#define LOAD_FLAGS         0x211
#define RAMDISK_IMAGE      0x218
#define RAMDISK_SIZE       0x21c
#define CMDLINE_ADDR       0x228
#define INITRD_ADDR_MAX    0x22c
#define XLOADFLAGS         0x236
#define CMDLINE_SIZE_MAX   0x238
#define PREFERRED_ADDRESS  0x258
#define INIT_SIZE          0x260
#define HEADER_END_MAX     0x290
#define VERSION_XLOADFLAGS 0x020c
#define LOADED_HIGH        0x01
#define XLF_KERNEL_64      0x01
#define LOADER_UNDEFINED   0xff

/* Other fields of boot_params. */
#define ACPI_RSDP_ADDR  0x070
#define E820_ENTRIES    0x1e8
#define E820_TABLE      0x2d0
#define E820_ENTRY_SIZE 20
#define PARAMS_SIZE     4096

#define SECTOR       512
#define ENTRY_64     0x200
#define CMDLINE_ROOM (LINUX_BOOT_PARAMS - LINUX_BOOT_CMDLINE)

#define PAGE_TABLE  0x03 /* present, writable */
#define PAGE_LARGE  0x83
#define LARGE_PAGE  (UINT64_C(2) << 20)
#define DIRECTORIES 4

static uint64_t get(const uint8_t *bytes, unsigned size)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

static void put(uint8_t *bytes, unsigned size, uint64_t value)
{
    for (unsigned i = 0; i < size; i++)
        bytes[i] = (uint8_t)(value >> (8 * i));
}

bool linux_boot_is_bzimage(const uint8_t head[static LINUX_BOOT_HEAD_SIZE])
{
    return get(head + BOOT_FLAG, 2) == 0xaa55 && memcmp(head + HEADER_MAGIC, "HdrS", 4) == 0;
}

static int refuse(const struct loader_file *file, const char *why, struct ferry_error *err)
{
    return error_set(err, -EINVAL, "%s %s cannot be started: %s", file->what, file->path, why);
}

int linux_boot_load(const struct loader_file *file, const uint8_t head[static LINUX_BOOT_HEAD_SIZE],
                    struct memory *memory, struct loader_image *image, struct ferry_error *err)
{
    uint64_t setup = (head[SETUP_SECTS] ? head[SETUP_SECTS] : 4) + 1;
    uint64_t start = get(head + PREFERRED_ADDRESS, 8), init_size = get(head + INIT_SIZE, 4), size;

    if (get(head + VERSION, 2) < VERSION_XLOADFLAGS)
        return refuse(file, "it is older than Linux 3.8", err);
    if (!(head[LOAD_FLAGS] & LOADED_HIGH) || !(head[XLOADFLAGS] & XLF_KERNEL_64))
        return refuse(file, "it has no entry for 64-bit loaders", err);
    if (file->size <= setup * SECTOR)
        return refuse(file, "it is cut short", err);
    size = file->size - setup * SECTOR;
    if (size <= ENTRY_64)
        return refuse(file, "it is cut short", err);
    if (init_size < size)
        init_size = size;
    if (start < X86_64_KERNEL_RAM || start % MEMORY_PAGE_SIZE)
        return refuse(file, "the address it wants to be at makes no sense", err);
    if (!memory_ptr(memory, start, init_size))
        return error_set(err, -ENOSPC,
                         "%s %s is too large: it needs %" PRIu64 " MiB, which the VM's memory of %" PRIu64
                         " MiB does not have at 0x%" PRIx64 "; give the VM more memory",
                         file->what, file->path, init_size / MIB + 1, memory_total(memory) / MIB, start);
    *image = (struct loader_image){.entry = start + ENTRY_64, .start = start, .end = start + init_size};
    return loader_read(file, setup * SECTOR, memory, start, size, err);
}

uint64_t linux_boot_initrd_end(const uint8_t head[static LINUX_BOOT_HEAD_SIZE])
{
    return get(head + INITRD_ADDR_MAX, 4) + 1;
}

static void put_memory_map(uint8_t *params, const struct memory *memory)
{
    struct memory_map_entry entries[MEMORY_MAP_MAX];
    size_t count = memory_map_make(memory, entries);

    params[E820_ENTRIES] = (uint8_t)count;
    for (size_t i = 0; i < count; i++) {
        uint8_t *entry = params + E820_TABLE + i * E820_ENTRY_SIZE;

        put(entry, 8, entries[i].addr);
        put(entry + 8, 8, entries[i].size);
        put(entry + 16, 4, entries[i].type);
    }
}

/* The kernel's own header, and what a loader has to say beside it; all else is zero. */
static void make_params(uint8_t params[static PARAMS_SIZE], const uint8_t *head, const struct memory *memory,
                        const struct linux_boot_inputs *inputs)
{
    size_t header_end = HEADER_MAGIC + (size_t)head[HEADER_LENGTH];

    if (header_end > HEADER_END_MAX)
        header_end = HEADER_END_MAX;
    memcpy(params + HEADER, head + HEADER, header_end - HEADER);
    params[TYPE_OF_LOADER] = LOADER_UNDEFINED;
    put(params + CMDLINE_ADDR, 4, LINUX_BOOT_CMDLINE);
    put(params + RAMDISK_IMAGE, 4, inputs->initrd_size ? inputs->initrd : 0);
    put(params + RAMDISK_SIZE, 4, inputs->initrd_size);
    put(params + ACPI_RSDP_ADDR, 8, inputs->rsdp);
    put_memory_map(params, memory);
}

static bool write_page_tables(struct memory *memory)
{
    uint64_t pointers = LINUX_BOOT_PAGE_TABLES + MEMORY_PAGE_SIZE;
    uint8_t table[MEMORY_PAGE_SIZE] = {0};
    bool written;

    put(table, 8, pointers | PAGE_TABLE);
    written = memory_write(memory, LINUX_BOOT_PAGE_TABLES, table, sizeof(table));
    for (unsigned i = 0; i < DIRECTORIES; i++)
        put(table + i * 8, 8, (pointers + (i + 1) * MEMORY_PAGE_SIZE) | PAGE_TABLE);
    written = written && memory_write(memory, pointers, table, sizeof(table));
    for (unsigned i = 0; i < DIRECTORIES; i++) {
        for (unsigned j = 0; j < 512; j++)
            put(table + j * 8, 8, (i * 512 + j) * LARGE_PAGE | PAGE_LARGE);
        written =
            written && memory_write(memory, pointers + (i + 1) * MEMORY_PAGE_SIZE, table, sizeof(table));
    }
    return written;
}

/* Flat, as the boot vCPU's registers have them loaded already. */
static bool write_gdt(struct memory *memory)
{
    uint8_t gdt[LINUX_BOOT_GDT_SIZE] = {0};

    put(gdt + LINUX_BOOT_CODE, 8, UINT64_C(0x00af9b000000ffff));
    put(gdt + LINUX_BOOT_DATA, 8, UINT64_C(0x00cf93000000ffff));
    return memory_write(memory, LINUX_BOOT_GDT, gdt, sizeof(gdt));
}

int linux_boot_write(struct memory *memory, const uint8_t head[static LINUX_BOOT_HEAD_SIZE],
                     const struct linux_boot_inputs *inputs, struct ferry_error *err)
{
    const char *cmdline = inputs->cmdline ? inputs->cmdline : "";
    uint64_t most = get(head + CMDLINE_SIZE_MAX, 4);
    uint8_t params[PARAMS_SIZE] = {0};

    if (strlen(cmdline) > most || strlen(cmdline) >= CMDLINE_ROOM)
        return error_set(err, -EINVAL, "the command line has %zu characters; this kernel takes %" PRIu64,
                         strlen(cmdline), most);
    make_params(params, head, memory, inputs);
    if (!memory_write(memory, LINUX_BOOT_CMDLINE, cmdline, strlen(cmdline) + 1) ||
        !memory_write(memory, LINUX_BOOT_PARAMS, params, sizeof(params)) || !write_page_tables(memory) ||
        !write_gdt(memory))
        return error_set(err, -ENOSPC, "what the kernel is told does not fit into the VM's memory");
    return 0;
}
