#include "machine/x86_64/pvh.h"

#include "base/buffer.h"
#include "base/error.h"
#include "machine/x86_64/memory_map.h"

#include <errno.h>
#include <string.h>

#define NOTE_NAME         "Xen"
#define NOTE_PHYS32_ENTRY 18 /* XEN_ELFNOTE_PHYS32_ENTRY */

#define START_INFO_MAGIC   0x336ec578
#define START_INFO_VERSION 1

int pvh_find_entry(const struct loader_file *file, uint64_t *entry, struct ferry_error *err)
{
    uint8_t value[8] = {0};
    size_t size = sizeof(value);
    int result = loader_find_note(file, NOTE_NAME, NOTE_PHYS32_ENTRY, value, &size, err);

    if (result == -ENOENT)
        return error_set(err, -EINVAL,
                         "%s %s cannot be started: it has no entry for the PVH boot protocol (a Linux kernel "
                         "needs CONFIG_PVH)",
                         file->what, file->path);
    if (result)
        return result;
    if (size != 4 && size != 8)
        return error_set(err, -EINVAL, "%s %s cannot be started: its PVH entry has %zu bytes", file->what,
                         file->path, size);
    *entry = 0;
    for (unsigned i = 0; i < 4; i++)
        *entry |= (uint64_t)value[i] << (8 * i);
    return 0;
}

static int write_at(struct memory *memory, uint64_t addr, struct buffer *buffer, struct ferry_error *err)
{
    bool written = !buffer_failed(buffer) && memory_write(memory, addr, buffer->data, buffer->size);

    buffer_free(buffer);
    return written ? 0 : error_set(err, -ENOSPC, "what the kernel is told does not fit into the VM's memory");
}

static int write_memory_map(struct memory *memory, size_t *count, struct ferry_error *err)
{
    struct memory_map_entry entries[MEMORY_MAP_MAX];
    struct buffer buffer = BUFFER_INIT;

    *count = memory_map_make(memory, entries);
    for (size_t i = 0; i < *count; i++) {
        buffer_put_u64(&buffer, entries[i].addr);
        buffer_put_u64(&buffer, entries[i].size);
        buffer_put_u32(&buffer, entries[i].type);
        buffer_put_u32(&buffer, 0);
    }
    return write_at(memory, PVH_MEMORY_MAP, &buffer, err);
}

/* One module, the initrd, right behind the structure. */
#define START_INFO_SIZE 56

static int write_start_info(struct memory *memory, const struct pvh_inputs *inputs, size_t map_count,
                            struct ferry_error *err)
{
    struct buffer buffer = BUFFER_INIT;
    bool module = inputs->initrd_size != 0;

    buffer_put_u32(&buffer, START_INFO_MAGIC);
    buffer_put_u32(&buffer, START_INFO_VERSION);
    buffer_put_u32(&buffer, 0); /* flags */
    buffer_put_u32(&buffer, module);
    buffer_put_u64(&buffer, module ? PVH_START_INFO + START_INFO_SIZE : 0);
    buffer_put_u64(&buffer, PVH_CMDLINE);
    buffer_put_u64(&buffer, inputs->rsdp);
    buffer_put_u64(&buffer, PVH_MEMORY_MAP);
    buffer_put_u32(&buffer, (uint32_t)map_count);
    buffer_put_u32(&buffer, 0);
    if (module) {
        buffer_put_u64(&buffer, inputs->initrd);
        buffer_put_u64(&buffer, inputs->initrd_size);
        buffer_put_u64(&buffer, 0); /* no command line of its own */
        buffer_put_u64(&buffer, 0);
    }
    return write_at(memory, PVH_START_INFO, &buffer, err);
}

int pvh_write(struct memory *memory, const struct pvh_inputs *inputs, struct ferry_error *err)
{
    const char *cmdline = inputs->cmdline ? inputs->cmdline : "";
    size_t map_count;
    int result;

    if (strlen(cmdline) >= PVH_CMDLINE_SIZE)
        return error_set(err, -EINVAL, "the kernel's command line is longer than %d characters",
                         PVH_CMDLINE_SIZE - 1);
    if (!memory_write(memory, PVH_CMDLINE, cmdline, strlen(cmdline) + 1))
        return error_set(err, -ENOSPC, "the command line does not fit into the VM's memory");
    result = write_memory_map(memory, &map_count, err);
    if (result)
        return result;
    return write_start_info(memory, inputs, map_count, err);
}
