#include "cli/definition.h"

#include "base/error.h"
#include "base/hugepages.h"
#include "cli/memory.h"
#include "cli/units.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MEMORY_MIN (UINT64_C(1) << 20)
#define CPUS_MAX   255

struct builder {
    const struct args *args;
    bool local;
    json_t *definition;
    struct ferry_error *err;
};

bool definition_is_option(const char *name)
{
    static const char *const names[] = {"initrd", "cmdline", "machine", "memory",       "cpus",
                                        "cpu",    "disk",    "net",     "console-marks"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(names[i], name) == 0)
            return true;
    }
    return false;
}

/* The file must be there and be readable: the host would say so too, but later and less well. */
static int check_file(const char *what, const char *path, bool may_be_device, struct ferry_error *err)
{
    struct stat info;

    if (stat(path, &info) < 0) {
        int code = errno;

        if (code == ENOENT)
            return error_set(err, -ENOENT, "%s %s does not exist", what, path);
        return error_set_errno(err, -code, "%s %s cannot be looked at", what, path);
    }
    if (S_ISDIR(info.st_mode))
        return error_set(err, -EISDIR, "%s %s is a directory", what, path);
    if (!S_ISREG(info.st_mode) && !(may_be_device && S_ISBLK(info.st_mode)))
        return error_set(err, -EIO, "%s %s is not a file", what, path);
    if (access(path, R_OK) < 0)
        return error_set_errno(err, -errno, "%s %s cannot be read", what, path);
    return 0;
}

/* PATH as the host is to see it, in *absolute (owned by the caller). */
static int resolve_path(const struct builder *builder, const char *what, const char *path, bool may_be_device,
                        char **absolute)
{
    int result;

    *absolute = NULL;
    if (!builder->local && path[0] != '/')
        return error_set(builder->err, -EINVAL,
                         "%s %s is a file of the other machine: its path must begin with /", what, path);
    if (builder->local) {
        result = check_file(what, path, may_be_device, builder->err);
        if (result < 0)
            return result;
        *absolute = realpath(path, NULL);
        if (!*absolute)
            return error_set_errno(builder->err, -errno, "%s %s cannot be looked at", what, path);
        return 0;
    }
    *absolute = memory_copy_text(path);
    return 0;
}

static int add_text(struct builder *builder, json_t *object, const char *key, const char *text)
{
    if (json_object_set_new(object, key, json_string(text)) < 0)
        return error_set(builder->err, -EINVAL, "%s is not UTF-8 text", key);
    return 0;
}

static int add_file(struct builder *builder, const char *option)
{
    const char *path = args_text(builder->args, option, NULL);
    char *absolute;
    int result;

    if (!path)
        return 0;
    result = resolve_path(builder, option, path, false, &absolute);
    if (result == 0)
        result = add_text(builder, builder->definition, option, absolute);
    free(absolute);
    return result;
}

static int add_memory(struct builder *builder)
{
    const char *text = args_text(builder->args, "memory", "");
    int length = (int)strcspn(text, ","); /* of the size */
    uint64_t memory = 0, hugepage = 0;
    bool no_unit = strspn(text, "0123456789") == (size_t)length;
    int result = units_parse_memory(text, &memory, &hugepage, builder->err);

    if (result < 0)
        return error_prefix(builder->err, result, "--memory");
    if (memory > 0 && memory < MEMORY_MIN && no_unit)
        return error_set(builder->err, -EINVAL,
                         "run: memory of %.*s bytes is too little; did you mean %.*sM?", length, text, length,
                         text);
    if (memory < MEMORY_MIN)
        return error_set(builder->err, -EINVAL, "run: memory of %.*s is too little", length, text);
    if (memory % 4096)
        return error_set(builder->err, -EINVAL, "run: memory of %.*s is not a whole number of 4 KiB pages",
                         length, text);
    json_object_set_new(builder->definition, "memory", json_integer((json_int_t)memory));
    if (hugepage == 0)
        return 0;
    json_object_set_new(builder->definition, "hugepages", json_integer((json_int_t)hugepage));
    result = hugepages_check_memory(memory, hugepage, builder->err);
    return result < 0 ? error_prefix(builder->err, result, "VM %s", args_operand(builder->args, 0)) : 0;
}

static int add_cpus(struct builder *builder)
{
    uint64_t cpus = args_number(builder->args, "cpus", 0);

    if (cpus < 1 || cpus > CPUS_MAX)
        return error_set(builder->err, -EINVAL, "run: --cpus %s makes no sense; it is 1 or more",
                         args_text(builder->args, "cpus", ""));
    json_object_set_new(builder->definition, "vcpus", json_integer((json_int_t)cpus));
    return 0;
}

/* Cuts ",WORD" off the end of spec; false when it does not end so. */
static bool cut_suffix(char *spec, const char *suffix)
{
    size_t length = strlen(spec), size = strlen(suffix);

    if (length <= size || strcmp(spec + length - size, suffix) != 0)
        return false;
    spec[length - size] = '\0';
    return true;
}

static int add_disk(struct builder *builder, json_t *disks, const char *text)
{
    char *spec = memory_copy_text(text), *absolute = NULL;
    json_t *disk = json_object();
    bool readonly = false, direct = false, cut = true;
    const char *comma;
    int result;

    while (cut) {
        bool is_readonly = cut_suffix(spec, ",readonly");
        bool is_direct = cut_suffix(spec, ",direct");

        readonly |= is_readonly;
        direct |= is_direct;
        cut = is_readonly || is_direct;
    }
    comma = strrchr(spec, ',');
    if (comma && !strchr(comma, '/') && access(spec, F_OK) < 0)
        result =
            error_set(builder->err, -EINVAL,
                      "run: --disk %s: there is no disk option '%s'; the options are readonly and direct",
                      text, comma + 1);
    else
        result = resolve_path(builder, "disk", spec, true, &absolute);
    if (result == 0)
        result = add_text(builder, disk, "path", absolute);
    json_object_set_new(disk, "readonly", json_boolean(readonly));
    json_object_set_new(disk, "direct", json_boolean(direct));
    json_array_append_new(disks, disk);
    free(absolute);
    free(spec);
    return result;
}

/* "user,mac=…,hostfwd=…": mac is a field of its own, the rest is the backend. */
static int add_net(struct builder *builder, json_t *nets, const char *text)
{
    char *spec = memory_copy_text(text), *backend = memory_copy_text("");
    json_t *net = json_object();
    char *rest = spec, *word;
    int result = 0;

    while (result == 0 && (word = strsep(&rest, ","))) {
        char *before = backend;

        if (strncmp(word, "mac=", 4) == 0) {
            result = add_text(builder, net, "mac", word + 4);
            continue;
        }
        backend = memory_format("%s%s%s", before, *before ? "," : "", word);
        free(before);
    }
    if (result == 0 && !*backend)
        result = error_set(builder->err, -EINVAL, "run: --net '%s' names no network", text);
    if (result == 0)
        result = add_text(builder, net, "backend", backend);
    json_array_append_new(nets, net);
    free(backend);
    free(spec);
    return result;
}

static int add_repeated(struct builder *builder, const char *option, const char *key,
                        int (*add)(struct builder *builder, json_t *list, const char *text))
{
    json_t *list = json_array();
    const char *text;
    int result = 0;

    for (size_t i = 0; result == 0 && (text = args_text_at(builder->args, option, i)); i++)
        result = add(builder, list, text);
    if (json_array_size(list) > 0)
        json_object_set(builder->definition, key, list);
    json_decref(list);
    return result;
}

int definition_make(const struct args *args, bool local, json_t **definition, struct ferry_error *err)
{
    struct builder builder = {.args = args, .local = local, .definition = json_object(), .err = err};
    int result = add_text(&builder, builder.definition, "name", args_operand(args, 0));

    if (result == 0 && args_has(args, "machine"))
        result = add_text(&builder, builder.definition, "machine", args_text(args, "machine", ""));
    if (result == 0 && args_has(args, "memory"))
        result = add_memory(&builder);
    if (result == 0 && args_has(args, "cpus"))
        result = add_cpus(&builder);
    if (result == 0)
        result = add_file(&builder, "kernel");
    if (result == 0)
        result = add_file(&builder, "initrd");
    if (result == 0 && args_has(args, "cpu"))
        result = add_text(&builder, builder.definition, "cpu", args_text(args, "cpu", ""));
    if (result == 0 && args_has(args, "cmdline"))
        result = add_text(&builder, builder.definition, "cmdline", args_text(args, "cmdline", ""));
    if (args_has(args, "console-marks"))
        json_object_set_new(builder.definition, "console_marks", json_true());
    if (result == 0)
        result = add_repeated(&builder, "disk", "disks", add_disk);
    if (result == 0)
        result = add_repeated(&builder, "net", "nets", add_net);
    if (result == 0)
        *definition = builder.definition;
    else
        json_decref(builder.definition);
    return result;
}
