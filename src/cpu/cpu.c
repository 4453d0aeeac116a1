#include "cpu/cpu.h"

#include "base/error.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LEAVES_MAX 256
#define LEAF_BRAND 0x80000002

static const uint32_t *find(const struct cpu_leaf *leaves, size_t count, uint32_t leaf, uint32_t subleaf)
{
    for (size_t i = 0; i < count; i++) {
        if (leaves[i].leaf == leaf && leaves[i].subleaf == subleaf)
            return leaves[i].value;
    }
    return NULL;
}

/* Texts go into JSON and onto terminals. */
static void make_printable(char *text)
{
    size_t length = strlen(text);

    for (size_t i = 0; i < length; i++) {
        if (text[i] < ' ' || text[i] > '~')
            text[i] = '?';
    }
    while (length > 0 && text[length - 1] == ' ')
        text[--length] = '\0';
    memmove(text, text + strspn(text, " "), length - strspn(text, " ") + 1);
}

struct cpu_leaf cpu_leaf_of_msr(uint32_t msr, uint64_t value)
{
    return (struct cpu_leaf){
        .leaf = msr,
        .subleaf = CPU_MSR,
        .value = {[CPU_EAX] = (uint32_t)value, [CPU_EDX] = (uint32_t)(value >> 32)},
    };
}

void cpu_from_leaves(struct cpu *cpu, const struct cpu_leaf *leaves, size_t count)
{
    const uint32_t *value = find(leaves, count, 0, 0);

    memset(cpu, 0, sizeof(*cpu));
    if (value) {
        memcpy(cpu->vendor, &value[CPU_EBX], 4);
        memcpy(cpu->vendor + 4, &value[CPU_EDX], 4);
        memcpy(cpu->vendor + 8, &value[CPU_ECX], 4);
        make_printable(cpu->vendor);
    }
    for (uint32_t i = 0; i < 3; i++) {
        value = find(leaves, count, LEAF_BRAND + i, 0);
        if (value)
            memcpy(cpu->model + 16 * (size_t)i, value, 16);
    }
    make_printable(cpu->model);
    for (unsigned i = 0; i < CPU_WORDS; i++) {
        value = find(leaves, count, cpu_words[i].leaf, cpu_words[i].subleaf);
        if (value)
            cpu->features.words[i] = value[cpu_words[i].reg] & cpu_features_possible(i);
    }
    for (unsigned i = 0; i < CPU_WORDS; i++) {
        if (cpu_words[i].subleaf == CPU_MSR && !cpu_features_has(&cpu->features, "arch_capabilities"))
            cpu->features.words[i] = 0;
    }
}

/* Six hexadecimal numbers. */
static bool parse_line(const char *line, struct cpu_leaf *leaf)
{
    uint32_t numbers[6];

    for (size_t i = 0; i < 6; i++) {
        char *end;
        unsigned long number = strtoul(line, &end, 16);

        if (end == line || number > UINT32_MAX)
            return false;
        numbers[i] = (uint32_t)number;
        line = end;
    }
    leaf->leaf = numbers[0];
    leaf->subleaf = numbers[1];
    memcpy(leaf->value, &numbers[2], sizeof(leaf->value));
    return line[strspn(line, " \t\n")] == '\0';
}

int cpu_from_file(struct cpu *cpu, const char *path, struct ferry_error *err)
{
    struct cpu_leaf leaves[LEAVES_MAX];
    FILE *file = fopen(path, "re");
    size_t count = 0;
    char line[256];
    int result = 0;

    if (!file)
        return error_set_errno(err, -errno, "cannot open %s", path);
    for (unsigned number = 1; !result && fgets(line, sizeof(line), file); number++) {
        struct cpu_leaf *leaf = &leaves[count];

        if (line[0] == '#' || line[strspn(line, " \t\n")] == '\0')
            continue;
        if (count == LEAVES_MAX)
            result = error_set(err, -EINVAL, "%s has more than %d lines of CPUID", path, LEAVES_MAX);
        else if (!parse_line(line, leaf))
            result = error_set(err, -EINVAL, "%s line %u is not LEAF SUBLEAF EAX EBX ECX EDX", path, number);
        else
            count++;
    }
    fclose(file);
    if (!result)
        cpu_from_leaves(cpu, leaves, count);
    return result;
}
