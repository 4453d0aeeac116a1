#include "cli/checkpoint_file.h"

#include "base/clock.h"
#include "base/error.h"
#include "cli/object.h"
#include "vm/sections.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define INDEX_BLOCK 4096 /* pages looked at in one go */

/* What ferryd put in, or ferry-vm's caller: any JSON. NULL: none. New reference. */
static json_t *read_definition(const struct ferry_checkpoint *checkpoint)
{
    const struct ferry_checkpoint_blob *blob = ferry_checkpoint_blob(checkpoint, "definition");

    return blob ? json_loadb(blob->data, blob->size, JSON_REJECT_DUPLICATES, NULL) : NULL;
}

/* How full each 64th is, and how many pages are not zeros. */
static int read_map(const struct ferry_checkpoint *checkpoint, size_t number, json_t *map, uint64_t *used,
                    struct ferry_error *err)
{
    uint64_t pages = ferry_checkpoint_region(checkpoint, number)->size / FERRY_PAGE_SIZE;
    uint64_t in_cell[CHECKPOINT_MAP_CELLS] = {0};
    uint64_t index[INDEX_BLOCK];

    *used = 0;
    for (uint64_t first = 0; first < pages;) {
        size_t count = pages - first < INDEX_BLOCK ? (size_t)(pages - first) : INDEX_BLOCK;
        int result = ferry_checkpoint_index(checkpoint, number, first, count, index, err);

        if (result < 0)
            return result;
        for (size_t i = 0; i < count; i++) {
            in_cell[(first + i) * CHECKPOINT_MAP_CELLS / pages] += index[i] != 0;
            *used += index[i] != 0;
        }
        first += count;
    }
    for (uint64_t cell = 0; cell < CHECKPOINT_MAP_CELLS; cell++) {
        uint64_t begin = (cell * pages + CHECKPOINT_MAP_CELLS - 1) / CHECKPOINT_MAP_CELLS;
        uint64_t end = ((cell + 1) * pages + CHECKPOINT_MAP_CELLS - 1) / CHECKPOINT_MAP_CELLS;
        uint64_t size = end - begin;

        /* One page is more than nothing. */
        json_array_append_new(map,
                              json_integer(size ? (json_int_t)((in_cell[cell] * 100 + size - 1) / size) : 0));
    }
    return 0;
}

static int describe_regions(const struct ferry_checkpoint *checkpoint, json_t *list, struct ferry_error *err)
{
    for (size_t i = 0; i < ferry_checkpoint_region_count(checkpoint); i++) {
        const struct ferry_checkpoint_region *region = ferry_checkpoint_region(checkpoint, i);
        json_t *map = json_array();
        uint64_t used;
        int result = read_map(checkpoint, i, map, &used, err);

        if (result < 0) {
            json_decref(map);
            return result;
        }
        json_array_append_new(
            list, json_pack("{s:s, s:I, s:I, s:I, s:I, s:o}", "name", region->name, "guest_addr",
                            (json_int_t)region->guest_addr, "size", (json_int_t)region->size, "file_offset",
                            (json_int_t)region->file_offset, "pages", (json_int_t)used, "map", map));
    }
    return 0;
}

static json_t *describe_section(const struct ferry_section *section, const char *machine)
{
    const struct state_table *table = section_table(machine, section->name);
    struct ferry_error err = {0};
    struct reader in;
    json_t *fields = NULL;

    in = reader_init(section->data, section->size);
    if (!table)
        error_set(&err, -ENOENT, "this ferry knows no such section of a machine %s",
                  machine[0] ? machine : "?");
    else
        fields = state_print(table, section->name, section->version, &in, &err);
    return json_pack("{s:s, s:i, s:I, s:o, s:s}", "name", section->name, "version", (int)section->version,
                     "size", (json_int_t)section->size, "fields", fields ? fields : json_null(), "why",
                     fields ? "" : err.text);
}

int checkpoint_file_describe(const struct ferry_checkpoint *checkpoint, const char *file, json_t **out,
                             struct ferry_error *err)
{
    const struct ferry_checkpoint_info *info = ferry_checkpoint_info(checkpoint);
    json_t *said = read_definition(checkpoint);
    json_t *definition = json_object_get(said, "definition");
    json_t *sections = json_array();
    json_t *regions = json_array();
    char stopped[CLOCK_TEXT_SIZE];
    int result = describe_regions(checkpoint, regions, err);

    for (size_t i = 0; i < ferry_checkpoint_section_count(checkpoint); i++)
        json_array_append_new(sections, describe_section(ferry_checkpoint_section(checkpoint, i),
                                                         object_text(definition, "machine")));
    *out = json_pack("{s:s, s:i, s:s, s:s, s:s, s:s, s:s, s:b, s:s, s:I, s:I, s:I, s:s, s:O?, s:o, s:o}",
                     "file", file, "version", (int)info->version, "kind",
                     ferry_checkpoint_kind_name(info->kind), "id", info->id, "uuid", info->uuid, "vm",
                     info->vm, "stopped", clock_format(info->stopped_realtime_ns, stopped), "was_running",
                     info->was_running, "compress", info->zstd ? "zstd" : "off", "file_size",
                     (json_int_t)info->file_size, "memory_bytes", (json_int_t)info->memory_bytes, "pages",
                     (json_int_t)info->pages, "host", object_text(said, "host"), "definition",
                     definition ? definition : said, "regions", regions, "sections", sections);
    json_decref(said);
    if (result == 0 && !*out)
        result = error_set(err, -EIO, "%s: what it holds is not text", file);
    if (result < 0) {
        json_decref(*out);
        *out = NULL;
    }
    return result;
}
