#include "machine/machine.h"

#include "base/error.h"
#include "base/hugepages.h"
#include "base/uuid.h"
#include "bus/state.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define MIB              (UINT64_C(1) << 20)
#define MEMORY_MIN       (16 * MIB)
#define MEMORY_MAX       (UINT64_C(1) << 40)
#define MEMORY_DEFAULT   (256 * MIB)
#define NAME_MAX_SIZE    63
#define CMDLINE_MAX_SIZE 1023 /* Linux: COMMAND_LINE_SIZE of riscv, without its NUL */
#define BACKEND_MAX_SIZE 1023
#define CPU_MAX_SIZE     1023

/* One key of a JSON object: how its value gets into the configuration. */
struct config_key {
    const char *name;
    int (*parse)(void *object, const char *where, const json_t *value, struct ferry_error *err);
};

/* What VALUE looks like in a message: its JSON text, cut when long. */
static const char *config_show(const json_t *value, char text[static 64])
{
    char *dump = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_SORT_KEYS);

    snprintf(text, 64, "%.56s%s", dump ? dump : "?", dump && strlen(dump) > 56 ? "..." : "");
    free(dump);
    return text;
}

static int config_refuse(struct ferry_error *err, const char *where, const json_t *value, const char *want)
{
    char text[64];

    return error_set(err, -EINVAL, "%s is %s; it must be %s", where, config_show(value, text), want);
}

/* Control characters would let a definition write lines of its own into logs and device trees. */
static bool text_is_plain(const char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            return false;
    return true;
}

static int parse_text(char **out, const char *where, const json_t *value, size_t size_max, const char *want,
                      struct ferry_error *err)
{
    const char *text = json_string_value(value);
    char *copy;

    if (!text || json_string_length(value) != strlen(text) || !text_is_plain(text))
        return config_refuse(err, where, value, want);
    if (strlen(text) > size_max)
        return error_set(err, -EINVAL, "%s is %zu characters long; at most %zu are possible", where,
                         strlen(text), size_max);
    copy = strdup(text);
    if (!copy)
        return error_set(err, -ENOMEM, "out of memory while reading the VM definition");
    free(*out);
    *out = copy;
    return 0;
}

static int parse_path(char **out, const char *where, const json_t *value, struct ferry_error *err)
{
    const char *text = json_string_value(value);

    if (!text || text[0] != '/')
        return config_refuse(err, where, value, "an absolute path");
    return parse_text(out, where, value, PATH_MAX - 1, "an absolute path without control characters", err);
}

static int parse_bool(bool *out, const char *where, const json_t *value, struct ferry_error *err)
{
    if (!json_is_boolean(value))
        return config_refuse(err, where, value, "true or false");
    *out = json_is_true(value);
    return 0;
}

/* Calls the parser of each member of VALUE; a member without one is refused. */
static int parse_object(void *object, const struct config_key *keys, size_t key_count, const char *where,
                        const json_t *value, struct ferry_error *err)
{
    const char *name;
    json_t *member;

    if (!json_is_object(value))
        return config_refuse(err, where, value, "a JSON object");
    json_object_foreach((json_t *)value, name, member)
    {
        size_t i = 0;
        int result;

        while (i < key_count && strcmp(keys[i].name, name) != 0)
            i++;
        if (i == key_count)
            return error_set(err, -EINVAL, "%s has no key \"%.40s\"", where, name);
        result = keys[i].parse(object, name, member, err);
        if (result)
            return result;
    }
    return 0;
}

static bool name_is_good(const char *name)
{
    static const char first[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    size_t size = strlen(name);

    if (size < 1 || size > NAME_MAX_SIZE || !strchr(first, name[0]))
        return false;
    for (size_t i = 1; i < size; i++)
        if (!strchr(first, name[i]) && !strchr("._-", name[i]))
            return false;
    return true;
}

static int parse_name(void *object, const char *where, const json_t *value, struct ferry_error *err)
{
    static const char want[] =
        "1 to 63 letters, digits, dots, dashes or underscores, beginning with a letter or digit";
    struct machine_config *config = object;
    const char *text = json_string_value(value);

    if (!text || json_string_length(value) != strlen(text) || !name_is_good(text))
        return config_refuse(err, where, value, want);
    return parse_text(&config->name, where, value, NAME_MAX_SIZE, want, err);
}

static int parse_uuid(void *object, const char *where, const json_t *value, struct ferry_error *err)
{
    struct machine_config *config = object;
    const char *text = json_string_value(value);

    if (!text || !uuid_parse(text, config->uuid) || !uuid_is_set(config->uuid))
        return config_refuse(err, where, value, "a UUID such as \"1b4e28ba-2fa1-41d2-883f-0016d3cca427\"");
    return 0;
}

static int parse_machine(void *object, const char *where, const json_t *value, struct ferry_error *err)
{
    struct machine_config *config = object;
    const char *text = json_string_value(value);

    if (!text || (strcmp(text, "riscv64") != 0 && strcmp(text, "x86_64") != 0))
        return config_refuse(err, where, value, "\"riscv64\" or \"x86_64\"");
    return parse_text(&config->machine, where, value, 16, "", err);
}

static int parse_memory(void *object, const char *where, const json_t *value, struct ferry_error *err)
{
    struct machine_config *config = object;
    json_int_t bytes = json_integer_value(value);

    if (!json_is_integer(value) || bytes < (json_int_t)MEMORY_MIN || bytes > (json_int_t)MEMORY_MAX ||
        bytes % (json_int_t)MIB)
        return config_refuse(err, where, value, "a number of bytes, whole MiB, from 16 MiB to 1 TiB");
    config->memory = (uint64_t)bytes;
    return 0;
}

static int parse_hugepages(void *object, const char *where, const json_t *value, struct ferry_error *err)
{
    struct machine_config *config = object;
    json_int_t bytes = json_integer_value(value);

    if (!json_is_integer(value) || bytes < 0 || !hugepages_size_known((uint64_t)bytes))
        return config_refuse(err, where, value, "the bytes of a huge page, 2097152 or 1073741824");
    config->hugepages = (uint64_t)bytes;
    return 0;
}

static int parse_vcpus(void *object, const char *where, const json_t *value, struct ferry_error *err)
{
    struct machine_config *config = object;
    json_int_t count = json_integer_value(value);

    if (!json_is_integer(value) || count < 1 || count > MACHINE_VCPUS_MAX)
        return config_refuse(err, where, value, "a whole number from 1 to 64");
    config->vcpus = (unsigned)count;
    return 0;
}

static int parse_kernel(void *object, const char *where, const json_t *value, struct ferry_error *err)
{
    return parse_path(&((struct machine_config *)object)->kernel, where, value, err);
}

static int parse_initrd(void *object, const char *where, const json_t *value, struct ferry_error *err)
{
    if (json_is_null(value))
        return 0;
    return parse_path(&((struct machine_config *)object)->initrd, where, value, err);
}

static int parse_cmdline(void *object, const char *where, const json_t *value, struct ferry_error *err)
{
    if (json_is_null(value))
        return 0;
    return parse_text(&((struct machine_config *)object)->cmdline, where, value, CMDLINE_MAX_SIZE,
                      "text without control characters", err);
}

static int parse_disk_path(void *object, const char *where, const json_t *value, struct ferry_error *err)
{
    return parse_path(&((struct machine_disk_config *)object)->path, where, value, err);
}

static int parse_disk_readonly(void *object, const char *where, const json_t *value, struct ferry_error *err)
{
    return parse_bool(&((struct machine_disk_config *)object)->readonly, where, value, err);
}

static int parse_disk_direct(void *object, const char *where, const json_t *value, struct ferry_error *err)
{
    return parse_bool(&((struct machine_disk_config *)object)->direct, where, value, err);
}

static int parse_disk(struct machine_config *config, const char *where, const json_t *value,
                      struct ferry_error *err)
{
    static const struct config_key keys[] = {
        {"path", parse_disk_path},
        {"readonly", parse_disk_readonly},
        {"direct", parse_disk_direct},
    };
    struct machine_disk_config *disk = &config->disks[config->disk_count];
    int result = parse_object(disk, keys, ARRAY_SIZE(keys), where, value, err);

    /* Counted first, so that what was parsed is freed with the rest. */
    config->disk_count++;
    if (result)
        return error_prefix(err, result, "%s", where);
    if (!disk->path)
        return error_set(err, -EINVAL, "%s has no path", where);
    for (unsigned i = 0; i + 1 < config->disk_count; i++)
        if (strcmp(config->disks[i].path, disk->path) == 0)
            return error_set(err, -EINVAL, "%s: %s is a disk of this VM already", where, disk->path);
    return 0;
}

static int parse_disks(void *object, const char *where, const json_t *value, struct ferry_error *err)
{
    struct machine_config *config = object;
    size_t index;
    json_t *item;

    if (!json_is_array(value))
        return config_refuse(err, where, value, "a list");
    if (json_array_size(value) > MACHINE_DISKS_MAX)
        return error_set(err, -EINVAL, "disks has %zu entries; a VM has at most %d disks",
                         json_array_size(value), MACHINE_DISKS_MAX);
    json_array_foreach((json_t *)value, index, item)
    {
        char name[32];
        int result;

        snprintf(name, sizeof(name), "disk %zu", index);
        result = parse_disk(config, name, item, err);
        if (result)
            return result;
    }
    return 0;
}

static int parse_net_backend(void *object, const char *where, const json_t *value, struct ferry_error *err)
{
    struct machine_net_config *net = object;
    static const char want[] = "text such as \"user\" or \"user,hostfwd=tcp:127.0.0.1:2222-:22\"";
    int result = parse_text(&net->backend, where, value, BACKEND_MAX_SIZE, want, err);

    if (result)
        return result;
    if (!net->backend[0])
        return config_refuse(err, where, value, want);
    return 0;
}

/* "52:54:00:12:34:56", two hexadecimal digits each. */
static bool mac_parse(const char *text, uint8_t mac[static 6])
{
    static const char digits[] = "0123456789abcdef0123456789ABCDEF";

    if (strlen(text) != 17)
        return false;
    for (unsigned i = 0; i < 6; i++) {
        const char *high = strchr(digits, text[i * 3]);
        const char *low = strchr(digits, text[i * 3 + 1]);

        if (!high || !low || (i < 5 && text[i * 3 + 2] != ':'))
            return false;
        mac[i] = (uint8_t)((high - digits) % 16 << 4 | (low - digits) % 16);
    }
    return true;
}

static const uint8_t mac_none[6];

static int parse_net_mac(void *object, const char *where, const json_t *value, struct ferry_error *err)
{
    struct machine_net_config *net = object;
    const char *text = json_string_value(value);

    if (json_is_null(value))
        return 0;
    if (!text || !mac_parse(text, net->mac))
        return config_refuse(err, where, value, "an Ethernet address such as \"52:54:00:12:34:56\"");
    if (net->mac[0] & 1 || memcmp(net->mac, mac_none, 6) == 0)
        return config_refuse(err, where, value, "an address for one card, not a multicast or all-zero one");
    return 0;
}

static int parse_net(struct machine_config *config, const char *where, const json_t *value,
                     struct ferry_error *err)
{
    static const struct config_key keys[] = {
        {"backend", parse_net_backend},
        {"mac", parse_net_mac},
    };
    struct machine_net_config *net = &config->nets[config->net_count];
    int result = parse_object(net, keys, ARRAY_SIZE(keys), where, value, err);

    config->net_count++;
    if (result)
        return error_prefix(err, result, "%s", where);
    if (!net->backend)
        return error_set(err, -EINVAL, "%s has no backend", where);
    for (unsigned i = 0; i + 1 < config->net_count; i++)
        if (memcmp(net->mac, mac_none, 6) != 0 && memcmp(config->nets[i].mac, net->mac, 6) == 0)
            return error_set(err, -EINVAL, "%s: its mac is that of net %u already", where, i);
    return 0;
}

static int parse_nets(void *object, const char *where, const json_t *value, struct ferry_error *err)
{
    struct machine_config *config = object;
    size_t index;
    json_t *item;

    if (!json_is_array(value))
        return config_refuse(err, where, value, "a list");
    if (json_array_size(value) > MACHINE_NETS_MAX)
        return error_set(err, -EINVAL, "nets has %zu entries; a VM has at most %d network cards",
                         json_array_size(value), MACHINE_NETS_MAX);
    json_array_foreach((json_t *)value, index, item)
    {
        char name[32];
        int result;

        snprintf(name, sizeof(name), "net %zu", index);
        result = parse_net(config, name, item, err);
        if (result)
            return result;
    }
    return 0;
}

static int parse_cpu(void *object, const char *where, const json_t *value, struct ferry_error *err)
{
    struct machine_config *config = object;

    return parse_text(&config->cpu, where, value, CPU_MAX_SIZE, "a baseline and features to leave out", err);
}

static int parse_console_marks(void *object, const char *where, const json_t *value, struct ferry_error *err)
{
    struct machine_config *config = object;

    return parse_bool(&config->console_marks, where, value, err);
}

static const struct config_key config_keys[] = {
    {"name", parse_name},
    {"uuid", parse_uuid},
    {"machine", parse_machine},
    {"memory", parse_memory},
    {"hugepages", parse_hugepages},
    {"vcpus", parse_vcpus},
    {"kernel", parse_kernel},
    {"initrd", parse_initrd},
    {"cmdline", parse_cmdline},
    {"disks", parse_disks},
    {"nets", parse_nets},
    {"cpu", parse_cpu},
    {"console_marks", parse_console_marks},
};

/* 52:54:00 is a prefix in the locally administered range; the rest is random. */
static int fill_macs(struct machine_config *config, struct ferry_error *err)
{
    for (unsigned i = 0; i < config->net_count; i++) {
        uint8_t *mac = config->nets[i].mac;

        if (memcmp(mac, mac_none, 6) != 0)
            continue;
        if (getrandom(mac + 3, 3, 0) != 3)
            return error_set_errno(err, -errno, "no random numbers for the mac of net %u", i);
        mac[0] = 0x52;
        mac[1] = 0x54;
    }
    return 0;
}

int machine_config_from_json(struct machine_config *config, const json_t *json, struct ferry_error *err)
{
    struct machine_config parsed = {.memory = MEMORY_DEFAULT, .vcpus = 1};
    int result = parse_object(&parsed, config_keys, ARRAY_SIZE(config_keys), "the VM definition", json, err);

    if (!result && !parsed.machine) {
        parsed.machine = strdup("riscv64");
        if (!parsed.machine)
            result = error_set(err, -ENOMEM, "out of memory while reading the VM definition");
    }
    if (!result && strcmp(parsed.machine, "riscv64") == 0 && parsed.vcpus > MACHINE_VCPUS_MAX_RISCV64)
        result = error_set(err, -EINVAL, "vcpus is %u; a riscv64 machine has 1 to %d", parsed.vcpus,
                           MACHINE_VCPUS_MAX_RISCV64);
    if (!result && (!parsed.name || !parsed.kernel))
        result = error_set(err, -EINVAL, "the VM definition has no %s", parsed.name ? "kernel" : "name");
    if (!result && parsed.hugepages) {
        result = hugepages_check_memory(parsed.memory, parsed.hugepages, err);
        if (result)
            error_prefix(err, result, "VM %s", parsed.name);
    }
    if (!result && !uuid_is_set(parsed.uuid))
        result = uuid_make(parsed.uuid, err);
    if (!result)
        result = fill_macs(&parsed, err);
    if (result) {
        machine_config_free(&parsed);
        return result;
    }
    *config = parsed;
    return 0;
}

/* What is absent is left out: an older Ferry does not know all keys. "s*" does that for text, "o*" for the
 * rest. */
json_t *machine_config_to_json(const struct machine_config *config)
{
    json_t *disks = json_array();
    json_t *nets = json_array();
    json_t *hugepages = config->hugepages ? json_integer((json_int_t)config->hugepages) : NULL;
    char uuid[UUID_TEXT_SIZE];

    for (unsigned i = 0; i < config->disk_count; i++) {
        const struct machine_disk_config *disk = &config->disks[i];

        json_array_append_new(disks, json_pack("{s:s, s:b, s:b}", "path", disk->path, "readonly",
                                               disk->readonly, "direct", disk->direct));
    }
    for (unsigned i = 0; i < config->net_count; i++) {
        const struct machine_net_config *net = &config->nets[i];
        const uint8_t *mac = net->mac;
        char text[18];

        snprintf(text, sizeof(text), "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4],
                 mac[5]);
        json_array_append_new(nets, json_pack("{s:s, s:s}", "backend", net->backend, "mac", text));
    }
    return json_pack("{s:s, s:s*, s:s, s:I, s:o*, s:i, s:s*, s:s*, s:s*, s:s*, s:o, s:o, s:o*}", "name",
                     config->name, "uuid", uuid_is_set(config->uuid) ? uuid_format(config->uuid, uuid) : NULL,
                     "machine", config->machine, "memory", (json_int_t)config->memory, "hugepages", hugepages,
                     "vcpus", (int)config->vcpus, "kernel", config->kernel, "initrd", config->initrd,
                     "cmdline", config->cmdline, "cpu", config->cpu, "disks", disks, "nets", nets,
                     "console_marks", config->console_marks ? json_true() : NULL);
}

void machine_config_free(struct machine_config *config)
{
    free(config->name);
    free(config->machine);
    free(config->kernel);
    free(config->initrd);
    free(config->cmdline);
    free(config->cpu);
    for (unsigned i = 0; i < config->disk_count; i++)
        free(config->disks[i].path);
    for (unsigned i = 0; i < config->net_count; i++)
        free(config->nets[i].backend);
    *config = (struct machine_config){0};
}
