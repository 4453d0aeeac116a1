#include "host/definition.h"

#include "base/error.h"
#include "base/hugepages.h"
#include "base/uuid.h"
#include "cpu/baseline.h"
#include "host/config.h"
#include "host/fields.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/random.h>

#define HUGEPAGES_NOT_SAID UINT64_MAX

static int check_path(const char *path, const char *key, struct ferry_error *err)
{
    if (path[0] != '/')
        return error_set(err, -EINVAL, "\"%s\" of the definition must be an absolute path, not \"%.200s\"",
                         key, path);
    if (strlen(path) >= PATH_MAX)
        return error_set(err, -EINVAL, "\"%s\" of the definition is too long", key);
    return 0;
}

static int read_disk(const json_t *input, json_t *disks, struct ferry_error *err)
{
    const char *path = NULL;
    bool readonly = false;
    bool direct = false;
    const struct field fields[] = {
        {"path", FIELD_STRING, true, &path},
        {"readonly", FIELD_BOOL, false, &readonly},
        {"direct", FIELD_BOOL, false, &direct},
    };
    int result = fields_read(input, fields, 3, FIELDS_STRICT, "a disk of the definition", err);
    size_t i;
    json_t *other;

    if (result == 0)
        result = check_path(path, "path", err);
    if (result < 0)
        return result;
    json_array_foreach(disks, i, other)
    {
        if (strcmp(json_string_value(json_object_get(other, "path")), path) == 0)
            return error_set(err, -EINVAL, "disk %.200s is in the definition twice", path);
    }
    json_array_append_new(disks,
                          json_pack("{s:s, s:b, s:b}", "path", path, "readonly", readonly, "direct", direct));
    return 0;
}

/* Six two-digit hexadecimal numbers with colons; a unicast address. */
static bool mac_valid(const char *mac)
{
    static const char hex[] = "0123456789abcdefABCDEF";

    if (strlen(mac) != 17)
        return false;
    for (size_t i = 0; i < 17; i++) {
        if (i % 3 == 2 ? mac[i] != ':' : !strchr(hex, mac[i]))
            return false;
    }
    return !(strtoul(mac, NULL, 16) & 1);
}

static void mac_make(char mac[static 18])
{
    uint8_t random[3] = {0};

    if (getrandom(random, sizeof(random), 0) != sizeof(random))
        random[0] = 1;
    snprintf(mac, 18, "52:54:00:%02x:%02x:%02x", random[0], random[1], random[2]);
}

static int read_net(const json_t *input, json_t *nets, struct ferry_error *err)
{
    const char *backend = NULL;
    const char *mac = NULL;
    char made[18];
    const struct field fields[] = {
        {"backend", FIELD_STRING, true, &backend},
        {"mac", FIELD_STRING, false, &mac},
    };
    int result = fields_read(input, fields, 2, FIELDS_STRICT, "a network of the definition", err);

    if (result < 0)
        return result;
    if (!backend[0] || strlen(backend) > 1024)
        return error_set(err, -EINVAL, "\"backend\" of a network must be a network's name or \"user\"");
    if (mac && !mac_valid(mac))
        return error_set(err, -EINVAL, "\"mac\" of a network must look like 52:54:00:12:34:56, not \"%.32s\"",
                         mac);
    if (!mac) {
        mac_make(made);
        mac = made;
    }
    json_array_append_new(nets, json_pack("{s:s, s:s}", "backend", backend, "mac", mac));
    return 0;
}

static int read_list(const json_t *input, size_t limit, const char *what,
                     int (*read)(const json_t *, json_t *, struct ferry_error *), json_t *out,
                     struct ferry_error *err)
{
    size_t i;
    json_t *item;
    int result = 0;

    if (json_array_size(input) > limit)
        return error_set(err, -EINVAL, "the definition has more than %zu %s", limit, what);
    json_array_foreach((json_t *)input, i, item)
    {
        result = read(item, out, err);
        if (result < 0)
            return result;
    }
    return 0;
}

static int check_numbers(const char *machine, uint64_t memory, uint64_t vcpus, struct ferry_error *err)
{
    unsigned most = strcmp(machine, "riscv64") == 0 ? DEFINITION_HARTS_MAX : DEFINITION_VCPUS_MAX;

    if (memory < DEFINITION_MEMORY_MIN || memory > DEFINITION_MEMORY_MAX || memory % (1 << 20))
        return error_set(err, -EINVAL,
                         "memory of %llu bytes is not possible: whole MiB, from 16 MiB to 16 TiB",
                         (unsigned long long)memory);
    if (vcpus < 1 || vcpus > most)
        return error_set(err, -EINVAL, "%llu vCPUs are not possible: a %s machine has 1 to %u",
                         (unsigned long long)vcpus, machine, most);
    return 0;
}

static int check_hugepages(const char *name, uint64_t memory, uint64_t hugepages, struct ferry_error *err)
{
    int result;

    if (!hugepages_size_known(hugepages))
        return error_set(err, -EINVAL,
                         "VM %s: \"hugepages\" of the definition are the bytes of a huge page, %llu or %llu, "
                         "not %llu",
                         name, (unsigned long long)HUGEPAGES_2M, (unsigned long long)HUGEPAGES_1G,
                         (unsigned long long)hugepages);
    result = hugepages_check_memory(memory, hugepages, err);
    return result < 0 ? error_prefix(err, result, "VM %s", name) : 0;
}

/* Whether there is such a baseline, the host finds out that starts the VM. */
static int check_cpu(const char *name, const char *machine, const char *cpu, struct ferry_error *err)
{
    struct cpu_request request;

    if (strcmp(machine, "x86_64") != 0)
        return error_set(err, -EINVAL, "VM %s: only the CPU of an x86_64 machine can be chosen, not of %s",
                         name, machine);
    if (cpu_request_parse(&request, cpu, err) < 0)
        return error_prefix(err, -EINVAL, "VM %s", name);
    return 0;
}

/* Given, or made; lower case in any case, so that it can be compared. */
static int read_uuid(const char *text, char uuid[static UUID_TEXT_SIZE], struct ferry_error *err)
{
    uint8_t bytes[UUID_SIZE];

    if (!text) {
        int result = uuid_make(bytes, err);

        if (result < 0)
            return result;
    } else if (!uuid_parse(text, bytes) || !uuid_is_set(bytes)) {
        return error_set(
            err, -EINVAL,
            "\"uuid\" of the definition must look like 1b4e28ba-2fa1-41d2-883f-0016d3cca427, not "
            "\"%.40s\"",
            text);
    }
    uuid_format(bytes, uuid);
    return 0;
}

/* What a definition says, borrowed from it; the lists are new. */
struct draft {
    char uuid[UUID_TEXT_SIZE];
    const char *name, *machine, *kernel, *initrd, *cmdline, *cpu;
    uint64_t memory, hugepages, vcpus;
    bool console_marks;
    json_t *disks, *nets;
};

static int check_name(const char *name, struct ferry_error *err)
{
    if (config_name_valid(name))
        return 0;
    return error_set(err, -EINVAL,
                     "\"%.80s\" is not a VM's name: 1 to 63 of letters, digits, '.', '_' and '-', "
                     "beginning with a letter or a digit",
                     name);
}

static int check_machine(const char *machine, struct ferry_error *err)
{
    if (strcmp(machine, "riscv64") == 0 || strcmp(machine, "x86_64") == 0)
        return 0;
    return error_set(err, -EINVAL, "there is no machine \"%.64s\"; there are riscv64 and x86_64", machine);
}

static int check_draft(const struct draft *draft, struct ferry_error *err)
{
    int result = check_name(draft->name, err);

    if (result == 0)
        result = check_machine(draft->machine, err);
    if (result == 0 && strlen(draft->cmdline) >= 2048)
        result = error_set(err, -EINVAL, "\"cmdline\" of the definition is longer than 2047 bytes");
    if (result == 0)
        result = check_numbers(draft->machine, draft->memory, draft->vcpus, err);
    if (result == 0 && draft->hugepages != HUGEPAGES_NOT_SAID)
        result = check_hugepages(draft->name, draft->memory, draft->hugepages, err);
    if (result == 0 && draft->cpu)
        result = check_cpu(draft->name, draft->machine, draft->cpu, err);
    if (result == 0)
        result = check_path(draft->kernel, "kernel", err);
    if (result == 0 && draft->initrd)
        result = check_path(draft->initrd, "initrd", err);
    return result;
}

static int read_draft(const json_t *input, struct draft *draft, struct ferry_error *err)
{
    const char *uuid = NULL;
    json_t *disks = NULL;
    json_t *nets = NULL;
    const struct field fields[] = {
        {"name", FIELD_STRING, true, &draft->name},
        {"uuid", FIELD_STRING, false, &uuid},
        {"machine", FIELD_STRING, false, &draft->machine},
        {"memory", FIELD_UINT, false, &draft->memory},
        {"vcpus", FIELD_UINT, false, &draft->vcpus},
        {"kernel", FIELD_STRING, true, &draft->kernel},
        {"initrd", FIELD_STRING, false, &draft->initrd},
        {"cmdline", FIELD_STRING, false, &draft->cmdline},
        {"disks", FIELD_ARRAY, false, &disks},
        {"nets", FIELD_ARRAY, false, &nets},
        {"cpu", FIELD_STRING, false, &draft->cpu},
        {"hugepages", FIELD_UINT, false, &draft->hugepages},
        {"console_marks", FIELD_BOOL, false, &draft->console_marks},
    };
    int result =
        fields_read(input, fields, sizeof(fields) / sizeof(fields[0]), FIELDS_STRICT, "the definition", err);

    if (result == 0)
        result = check_draft(draft, err);
    if (result == 0)
        result = read_uuid(uuid, draft->uuid, err);
    if (result == 0)
        result = read_list(disks, DEFINITION_DISKS_MAX, "disks", read_disk, draft->disks, err);
    if (result == 0)
        result = read_list(nets, DEFINITION_NETS_MAX, "networks", read_net, draft->nets, err);
    return result;
}

/* What was not said is left out where older hosts do not know it. */
static json_t *make(const struct draft *draft)
{
    json_t *made = json_pack("{s:s, s:s, s:s, s:I, s:I, s:s, s:s, s:O, s:O}", "name", draft->name, "uuid",
                             draft->uuid, "machine", draft->machine, "memory", (json_int_t)draft->memory,
                             "vcpus", (json_int_t)draft->vcpus, "kernel", draft->kernel, "cmdline",
                             draft->cmdline, "disks", draft->disks, "nets", draft->nets);

    if (made && draft->cpu)
        json_object_set_new(made, "cpu", json_string(draft->cpu));
    if (made && draft->initrd)
        json_object_set_new(made, "initrd", json_string(draft->initrd));
    if (made && draft->hugepages != HUGEPAGES_NOT_SAID)
        json_object_set_new(made, "hugepages", json_integer((json_int_t)draft->hugepages));
    if (made && draft->console_marks)
        json_object_set_new(made, "console_marks", json_true());
    return made;
}

int definition_normalise(const json_t *input, json_t **out, struct ferry_error *err)
{
    struct draft draft = {
        .machine = "riscv64",
        .cmdline = "",
        .memory = DEFINITION_MEMORY_DEFAULT,
        .hugepages = HUGEPAGES_NOT_SAID,
        .vcpus = 1,
        .disks = json_array(),
        .nets = json_array(),
    };
    int result = read_draft(input, &draft, err);

    *out = result == 0 ? make(&draft) : NULL;
    if (result == 0 && !*out)
        result = error_set(err, -ENOMEM, "out of memory");
    json_decref(draft.disks);
    json_decref(draft.nets);
    return result;
}

const char *definition_name(const json_t *definition)
{
    return json_string_value(json_object_get(definition, "name"));
}

const char *definition_uuid(const json_t *definition)
{
    return json_string_value(json_object_get(definition, "uuid"));
}

const char *definition_machine(const json_t *definition)
{
    return json_string_value(json_object_get(definition, "machine"));
}

uint64_t definition_memory(const json_t *definition)
{
    return (uint64_t)json_integer_value(json_object_get(definition, "memory"));
}

uint64_t definition_hugepages(const json_t *definition)
{
    return (uint64_t)json_integer_value(json_object_get(definition, "hugepages"));
}

json_t *definition_disks(const json_t *definition)
{
    return json_object_get(definition, "disks");
}

json_t *definition_nets(const json_t *definition)
{
    return json_object_get(definition, "nets");
}

const char *definition_cpu(const json_t *definition)
{
    return json_string_value(json_object_get(definition, "cpu"));
}

const char *definition_kernel(const json_t *definition)
{
    return json_string_value(json_object_get(definition, "kernel"));
}
