#include "cli/command.h"

#include "base/error.h"
#include "cli/checkpoint_file.h"
#include "cli/fields.h"
#include "cli/object.h"
#include "cli/units.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void print_head(struct cli *cli, const json_t *checkpoint)
{
    struct fields fields;
    char memory[UNITS_TEXT_SIZE], used[UNITS_TEXT_SIZE];
    const json_t *damage = object_get(checkpoint, "damage");

    fields_begin(&fields, cli);
    fields_text(&fields, "file", object_text(checkpoint, "file"));
    fields_format(&fields, "kind", "%s, format version %llu", object_text(checkpoint, "kind"),
                  (unsigned long long)object_number(checkpoint, "version"));
    fields_text(&fields, "VM", object_text(checkpoint, "vm"));
    fields_text(&fields, "host", object_text(checkpoint, "host"));
    fields_text(&fields, "id", object_text(checkpoint, "id"));
    fields_time(&fields, "stopped", object_text(checkpoint, "stopped"));
    fields_text(&fields, "was running", object_flag(checkpoint, "was_running") ? "yes" : "no: it was paused");
    fields_text(&fields, "machine", object_text(checkpoint, "definition.machine"));
    if (object_number(checkpoint, "definition.vcpus"))
        fields_format(&fields, "vCPUs", "%llu",
                      (unsigned long long)object_number(checkpoint, "definition.vcpus"));
    units_format_size(object_number(checkpoint, "memory_bytes"), memory);
    units_format_size(object_number(checkpoint, "pages") * FERRY_PAGE_SIZE, used);
    fields_format(&fields, "memory", "%s, %s of it not zeros", memory, used);
    fields_text(&fields, "kernel", object_text(checkpoint, "definition.kernel"));
    fields_text(&fields, "command line", object_text(checkpoint, "definition.cmdline"));
    fields_text(
        &fields, "compressed",
        strcmp(object_text(checkpoint, "compress"), "off") == 0 ? "no" : object_text(checkpoint, "compress"));
    fields_size(&fields, "size", object_number(checkpoint, "file_size"));
    if (damage && !json_is_null(damage))
        fields_text(&fields, "intact",
                    json_string_length(damage) ? json_string_value(damage)
                                               : "yes: all of it was read and is right");
    fields_end(&fields);
}

/* A row of a region's 64 parts: the fuller, the denser. */
static void print_regions(struct cli *cli, const json_t *checkpoint)
{
    static const char shades[] = " .:+#";
    const json_t *region, *part;
    size_t i, j;

    json_array_foreach(object_get(checkpoint, "regions"), i, region)
    {
        char size[UNITS_TEXT_SIZE], used[UNITS_TEXT_SIZE];
        char map[CHECKPOINT_MAP_CELLS + 1] = "";

        json_array_foreach(object_get(region, "map"), j, part)
        {
            json_int_t percent = json_integer_value(part);

            if (j < CHECKPOINT_MAP_CELLS)
                map[j] = shades[percent <= 0 ? 0 : percent >= 100 ? 4 : 1 + percent * 3 / 100];
        }
        units_format_size(object_number(region, "size"), size);
        units_format_size(object_number(region, "pages") * FERRY_PAGE_SIZE, used);
        fprintf(cli->out, "\n%s%s%s at 0x%llx: %s, %s not zeros\n|%s|\n", cli->term.bold,
                object_text(region, "name"), cli->term.reset,
                (unsigned long long)object_number(region, "guest_addr"), size, used, map);
    }
}

static void print_field(struct cli *cli, const char *name, const json_t *value)
{
    char *text = json_is_string(value) ? NULL : json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    const char *shown = text ? text : json_string_value(value);
    size_t length = shown ? strlen(shown) : 0;

    if (cli->verbose || length <= 72)
        fprintf(cli->out, "  %-28s %s\n", name, shown ? shown : "?");
    else
        fprintf(cli->out, "  %-28s %.60s... (%zu characters; -v shows all)\n", name, shown, length);
    free(text);
}

static void print_sections(struct cli *cli, const json_t *checkpoint)
{
    const json_t *section;
    size_t i;

    json_array_foreach(object_get(checkpoint, "sections"), i, section)
    {
        const char *name;
        json_t *value;

        fprintf(cli->out, "\n%s%s%s version %llu, %llu bytes\n", cli->term.bold, object_text(section, "name"),
                cli->term.reset, (unsigned long long)object_number(section, "version"),
                (unsigned long long)object_number(section, "size"));
        if (*object_text(section, "why"))
            fprintf(cli->out, "  (%s)\n", object_text(section, "why"));
        json_object_foreach(object_get(section, "fields"), name, value) print_field(cli, name, value);
    }
}

static int show(struct cli *cli, struct ferry_error *err)
{
    const char *file = args_operand(&cli->args, 0);
    struct ferry_checkpoint *checkpoint = NULL;
    struct ferry_error damage = {0};
    json_t *described = NULL;
    json_t *clean;
    bool verified = !args_has(&cli->args, "no-verify");
    int result = ferry_checkpoint_open(&checkpoint, file, err);

    if (result == 0)
        result = checkpoint_file_describe(checkpoint, file, &described, err);
    if (result < 0) {
        ferry_checkpoint_close(checkpoint);
        return result == -EINVAL || result == -EPERM ? -EIO : result;
    }
    if (verified && ferry_checkpoint_verify(checkpoint, &damage) < 0)
        cli->exit_status = EXIT_STATUS_FAILED;
    json_object_set_new(described, "damage", verified ? json_string(damage.text) : json_null());
    clean = object_clean(described);
    if (cli->json) {
        cli_print_json(cli, clean);
    } else {
        print_head(cli, clean);
        print_regions(cli, clean);
        print_sections(cli, clean);
    }
    if (damage.text[0])
        fprintf(stderr, "ferry: %s\n", damage.text);
    json_decref(clean);
    json_decref(described);
    ferry_checkpoint_close(checkpoint);
    return 0;
}

const struct command command_checkpoint_show = {
    .name = "checkpoint show",
    .group = "Checkpoints",
    .summary = "Show what is in a checkpoint file, and whether it is intact",
    .text =
        "Reads the file itself, so it must be on this machine; no host is needed. Shown are whose it is, a "
        "map "
        "of each region of memory in 64 parts (the denser, the more of it is in use), and the state of each "
        "vCPU and device, field by field. All of the file is read and compared with its checksums; damage is "
        "named, and the exit status is 1 then.",
    .options =
        (const struct option[]){
            {.name = "no-verify", .help = "do not read all of the memory to see whether it is right"},
            {.name = NULL},
        },
    .operands =
        (const struct operand[]){
            {.name = "FILE", .kind = VALUE_FILE},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry checkpoint show web.ckpt", "all about it"},
            {"ferry checkpoint show web.ckpt --json | jq '.sections[] | select(.name == \"hart0\") | "
             ".fields.pc'",
             "one field, for scripts"},
            {NULL, NULL},
        },
    .run = show,
};
