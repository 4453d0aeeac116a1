#include "fdt.h"

#include <stddef.h>

#define FDT_MAGIC      0xd00dfeed
#define FDT_BEGIN_NODE 1
#define FDT_END_NODE   2
#define FDT_PROP       3
#define FDT_NOP        4

#define DEPTH_MAX 8

static uint32_t be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static uint64_t cells(const uint8_t *p, unsigned count)
{
    uint64_t value = 0;

    while (count-- > 0) {
        value = value << 32 | be32(p);
        p += 4;
    }
    return value;
}

static bool text_is(const char *a, const char *b)
{
    while (*a && *a == *b) {
        a++;
        b++;
    }
    return *a == *b;
}

static bool text_starts(const char *text, const char *prefix)
{
    while (*prefix && *text == *prefix) {
        text++;
        prefix++;
    }
    return !*prefix;
}

struct walk {
    struct fdt_info *info;
    const char *names[DEPTH_MAX]; /* Of the node being read and those above it; [0] is the root, "". */
    unsigned depth;
    unsigned address_cells, size_cells; /* The root's, which hold for memory nodes. */
};

static void property(struct walk *walk, const char *name, const uint8_t *data, uint32_t length)
{
    const char *node = walk->depth < DEPTH_MAX ? walk->names[walk->depth] : "";
    struct fdt_info *info = walk->info;

    if (walk->depth == 0) {
        if (text_is(name, "#address-cells") && length == 4)
            walk->address_cells = be32(data);
        else if (text_is(name, "#size-cells") && length == 4)
            walk->size_cells = be32(data);
    } else if (walk->depth == 1 && text_is(node, "chosen")) {
        if (text_is(name, "bootargs") && length > 0)
            info->bootargs = (const char *)data;
    } else if (walk->depth == 1 && text_starts(node, "memory")) {
        if (text_is(name, "reg") && !info->memory_size &&
            length >= 4 * (walk->address_cells + walk->size_cells)) {
            info->memory_start = cells(data, walk->address_cells);
            info->memory_size = cells(data + 4 * walk->address_cells, walk->size_cells);
        }
    } else if (text_is(name, "timebase-frequency") && (length == 4 || length == 8)) {
        info->timebase_hz = cells(data, length / 4);
    }
}

void fdt_read(const void *fdt, struct fdt_info *info)
{
    const uint8_t *base = fdt;
    struct walk walk = {.info = info, .address_cells = 2, .size_cells = 1};
    const uint8_t *p, *strings;
    bool root = false;

    *info = (struct fdt_info){.bootargs = "", .timebase_hz = 10000000, .harts = 0};
    if (be32(base) != FDT_MAGIC)
        return;
    p = base + be32(base + 8);
    strings = base + be32(base + 12);
    for (;;) {
        uint32_t token = be32(p), length;

        p += 4;
        if (token == FDT_BEGIN_NODE) {
            const char *name = (const char *)p;

            walk.depth += root;
            root = true;
            if (walk.depth < DEPTH_MAX)
                walk.names[walk.depth] = name;
            if (walk.depth == 2 && text_is(walk.names[1], "cpus") && text_starts(name, "cpu@"))
                info->harts++;
            while (*p++)
                ;
            p = base + (((size_t)(p - base) + 3) & ~(size_t)3);
        } else if (token == FDT_END_NODE) {
            if (walk.depth-- == 0)
                return;
        } else if (token == FDT_PROP) {
            length = be32(p);
            property(&walk, (const char *)strings + be32(p + 4), p + 8, length);
            p += 8 + ((length + 3) & ~3u);
        } else if (token != FDT_NOP) {
            return;
        }
    }
}
