#include "cli/command.h"

#include "base/error.h"
#include "cli/checkpoint_file.h"
#include "cli/object.h"
#include "cli/units.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define INDEX_BLOCK 4096 /* pages compared in one go */
#define RANGES_MAX  32   /* of pages that differ, shown of a region */

struct side {
    const char *file;
    struct ferry_checkpoint *checkpoint;
    json_t *described;
};

static int open_side(struct side *side, const char *file, struct ferry_error *err)
{
    json_t *described = NULL;
    int result;

    side->file = file;
    result = ferry_checkpoint_open(&side->checkpoint, file, err);
    if (result == 0)
        result = checkpoint_file_describe(side->checkpoint, file, &described, err);
    if (result == 0)
        side->described = object_clean(described);
    json_decref(described);
    return result == -EINVAL || result == -EPERM ? -EIO : result;
}

static void close_side(struct side *side)
{
    json_decref(side->described);
    ferry_checkpoint_close(side->checkpoint);
}

/* A difference at PATH; NULL: it is missing there. */
static void add(json_t *list, const char *path, const json_t *a, const json_t *b)
{
    json_array_append_new(list, json_pack("{s:s, s:O?, s:O?}", "what", path, "a", a, "b", b));
}

/* Objects member by member, arrays element by element. */
static void compare(json_t *list, const char *path, const json_t *a, const json_t *b)
{
    char below[256];
    const char *key;
    json_t *value;
    size_t i;

    if (a && b && json_equal(a, b))
        return;
    if (json_is_object(a) && json_is_object(b)) {
        json_object_foreach((json_t *)a, key, value)
        {
            snprintf(below, sizeof(below), "%s%s%s", path, path[0] ? "." : "", key);
            compare(list, below, value, json_object_get(b, key));
        }
        json_object_foreach((json_t *)b, key, value)
        {
            snprintf(below, sizeof(below), "%s%s%s", path, path[0] ? "." : "", key);
            if (!json_object_get(a, key))
                add(list, below, NULL, value);
        }
    } else if (json_is_array(a) && json_is_array(b) && json_array_size(a) == json_array_size(b)) {
        json_array_foreach((json_t *)a, i, value)
        {
            snprintf(below, sizeof(below), "%s[%zu]", path, i);
            compare(list, below, value, json_array_get(b, i));
        }
    } else {
        add(list, path, a, b);
    }
}

static const json_t *find_named(const json_t *list, const char *name)
{
    const json_t *object;
    size_t i;

    json_array_foreach(list, i, object)
    {
        if (strcmp(object_text(object, "name"), name) == 0)
            return object;
    }
    return NULL;
}

/* Their fields, where they are known; else only that they differ in version or size. */
static void compare_sections(json_t *list, const json_t *a, const json_t *b)
{
    static const char *const members[] = {"version", "size", "fields"};
    const json_t *section;
    size_t i;

    json_array_foreach(a, i, section)
    {
        const char *name = object_text(section, "name");
        const json_t *other = find_named(b, name);

        if (!other)
            add(list, name, section, NULL);
        for (size_t j = 0; other && j < sizeof(members) / sizeof(members[0]); j++) {
            char path[128];

            snprintf(path, sizeof(path), j < 2 ? "%s (%s)" : "%s", name, members[j]);
            compare(list, path, object_get(section, members[j]), object_get(other, members[j]));
        }
    }
    json_array_foreach(b, i, section)
    {
        if (!find_named(a, object_text(section, "name")))
            add(list, object_text(section, "name"), NULL, section);
    }
}

struct ranges {
    json_t *list;
    uint64_t begin, end; /* the one that goes on: pages; begin == end: none */
    uint64_t pages;      /* in all */
    uint64_t guest_addr;
};

static void end_range(struct ranges *ranges)
{
    uint64_t address = ranges->guest_addr + ranges->begin * FERRY_PAGE_SIZE;

    if (ranges->end > ranges->begin && json_array_size(ranges->list) < RANGES_MAX)
        json_array_append_new(ranges->list, json_pack("{s:I, s:I}", "guest_addr", (json_int_t)address,
                                                      "pages", (json_int_t)(ranges->end - ranges->begin)));
    ranges->begin = ranges->end = 0;
}

static void add_page(struct ranges *ranges, uint64_t page)
{
    if (ranges->end == ranges->begin || ranges->end != page) {
        end_range(ranges);
        ranges->begin = page;
    }
    ranges->end = page + 1;
    ranges->pages++;
}

/* The same region of both files. */
static int compare_pages(const struct side *a, const struct side *b, size_t region_a, size_t region_b,
                         struct ranges *ranges, struct ferry_error *err)
{
    uint64_t pages = ferry_checkpoint_region(a->checkpoint, region_a)->size / FERRY_PAGE_SIZE;
    uint64_t index_a[INDEX_BLOCK], index_b[INDEX_BLOCK];

    for (uint64_t first = 0; first < pages;) {
        size_t count = pages - first < INDEX_BLOCK ? (size_t)(pages - first) : INDEX_BLOCK;
        int result = ferry_checkpoint_index(a->checkpoint, region_a, first, count, index_a, err);

        if (result == 0)
            result = ferry_checkpoint_index(b->checkpoint, region_b, first, count, index_b, err);
        if (result < 0)
            return result;
        for (size_t i = 0; i < count; i++) {
            if (index_a[i] != index_b[i])
                add_page(ranges, first + i);
        }
        first += count;
    }
    end_range(ranges);
    return 0;
}

static int compare_memory(const struct side *a, const struct side *b, json_t *memory, json_t *list,
                          struct ferry_error *err)
{
    for (size_t i = 0; i < ferry_checkpoint_region_count(a->checkpoint); i++) {
        const struct ferry_checkpoint_region *region = ferry_checkpoint_region(a->checkpoint, i);
        struct ranges ranges = {.guest_addr = region->guest_addr};
        size_t other = 0;
        int result;

        while (other < ferry_checkpoint_region_count(b->checkpoint) &&
               strcmp(ferry_checkpoint_region(b->checkpoint, other)->name, region->name) != 0)
            other++;
        if (other == ferry_checkpoint_region_count(b->checkpoint) ||
            ferry_checkpoint_region(b->checkpoint, other)->size != region->size ||
            ferry_checkpoint_region(b->checkpoint, other)->guest_addr != region->guest_addr) {
            char path[FERRY_NAME_SIZE + 16];

            snprintf(path, sizeof(path), "memory %s", region->name);
            add(list, path, find_named(object_get(a->described, "regions"), region->name),
                find_named(object_get(b->described, "regions"), region->name));
            continue;
        }
        ranges.list = json_array();
        result = compare_pages(a, b, i, other, &ranges, err);
        if (result < 0 || ranges.pages == 0)
            json_decref(ranges.list);
        else
            json_array_append_new(memory, json_pack("{s:s, s:I, s:o}", "region", region->name, "pages",
                                                    (json_int_t)ranges.pages, "ranges", ranges.list));
        if (result < 0)
            return result;
    }
    return 0;
}

static char *short_text(const json_t *value, char text[static 41])
{
    char *dumped = NULL;
    const char *whole = json_string_value(value); /* NULL: it is no string, or not there */

    if (!whole && value && !json_is_null(value))
        whole = dumped = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    if (!whole)
        whole = "(none)";
    snprintf(text, 41, strlen(whole) > 40 ? "%.37s..." : "%s", whole);
    free(dumped);
    return text;
}

static void print(struct cli *cli, const json_t *diff)
{
    const json_t *row, *range;
    size_t i, j;

    json_array_foreach(object_get(diff, "differences"), i, row)
    {
        char a[41], b[41];

        fprintf(cli->out, "%-32s %s -> %s\n", object_text(row, "what"), short_text(object_get(row, "a"), a),
                short_text(object_get(row, "b"), b));
    }
    json_array_foreach(object_get(diff, "memory"), i, row)
    {
        uint64_t shown = 0, pages = object_number(row, "pages");
        char size[UNITS_TEXT_SIZE];

        fprintf(cli->out, "memory %s: %llu pages differ (%s)\n", object_text(row, "region"),
                (unsigned long long)pages, units_format_size(pages * FERRY_PAGE_SIZE, size));
        json_array_foreach(object_get(row, "ranges"), j, range)
        {
            fprintf(cli->out, "  0x%llx %llu\n", (unsigned long long)object_number(range, "guest_addr"),
                    (unsigned long long)object_number(range, "pages"));
            shown += object_number(range, "pages");
        }
        if (shown < pages)
            fprintf(cli->out, "  and %llu more pages\n", (unsigned long long)(pages - shown));
    }
}

static int diff(struct cli *cli, struct ferry_error *err)
{
    struct side a = {0}, b = {0};
    json_t *differences = json_array();
    json_t *memory = json_array();
    json_t *all;
    int result = open_side(&a, args_operand(&cli->args, 0), err);

    if (result == 0)
        result = open_side(&b, args_operand(&cli->args, 1), err);
    if (result == 0) {
        compare(differences, "definition", object_get(a.described, "definition"),
                object_get(b.described, "definition"));
        compare_sections(differences, object_get(a.described, "sections"),
                         object_get(b.described, "sections"));
        result = compare_memory(&a, &b, memory, differences, err);
    }
    if (result == 0) {
        all = cli_pack("{s:O, s:O}", "differences", differences, "memory", memory);
        if (cli->json)
            cli_print_json(cli, all);
        else
            print(cli, all);
        if (json_array_size(differences) + json_array_size(memory) > 0)
            cli->exit_status = EXIT_STATUS_FAILED;
        json_decref(all);
    }
    json_decref(differences);
    json_decref(memory);
    close_side(&a);
    close_side(&b);
    return result == -EINVAL || result == -EPERM ? -EIO : result;
}

const struct command command_checkpoint_diff = {
    .name = "checkpoint diff",
    .group = "Checkpoints",
    .summary = "Tell what is different in two checkpoint files",
    .text =
        "Definition, the state of each vCPU and device field by field, and which pages of memory differ, by "
        "their checksums. The exit status is 0 when the guests in both are the same, 1 when not.",
    .operands =
        (const struct operand[]){
            {.name = "A", .kind = VALUE_FILE},
            {.name = "B", .kind = VALUE_FILE},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry checkpoint diff monday.ckpt tuesday.ckpt", "what the guest has changed in between"},
            {NULL, NULL},
        },
    .run = diff,
};
