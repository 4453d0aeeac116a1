#include "cpu/baseline.h"

#include "base/error.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const char cpu_baselines_text[]; /* made from data/cpu-baselines.json */

static const struct cpu_generation *find(const struct cpu_generations *generations, const char *name)
{
    for (size_t i = 0; i < generations->count; i++) {
        if (strcmp(generations->list[i].name, name) == 0)
            return &generations->list[i];
    }
    return NULL;
}

/* Adds the next one to GENERATIONS, which has room for it. */
static int parse_generation(struct cpu_generations *generations, const json_t *json, struct ferry_error *err)
{
    struct cpu_generation *generation = &generations->list[generations->count];
    const char *name = json_string_value(json_object_get(json, "name"));
    const char *vendor = json_string_value(json_object_get(json, "vendor"));
    const char *extends = json_string_value(json_object_get(json, "extends"));
    const struct cpu_generation *base = extends ? find(generations, extends) : NULL;
    int result;

    if (!name || !*name || strlen(name) >= sizeof(generation->name) || strpbrk(name, ", "))
        return error_set(err, -EINVAL, "CPU baselines: number %zu has no usable name",
                         generations->count + 1);
    if (find(generations, name))
        return error_set(err, -EINVAL, "CPU baselines: %s is there twice", name);
    if (vendor && strlen(vendor) != CPU_VENDOR_SIZE - 1)
        return error_set(err, -EINVAL, "CPU baselines: %s: \"%.40s\" is not a vendor", name, vendor);
    if (extends && !base)
        return error_set(err, -EINVAL, "CPU baselines: %s extends %.40s, which is not before it", name,
                         extends);
    result = cpu_features_from_json(&generation->features, json_object_get(json, "features"), name, err);
    if (result)
        return error_prefix(err, result, "CPU baselines");
    snprintf(generation->name, sizeof(generation->name), "%s", name);
    snprintf(generation->vendor, sizeof(generation->vendor), "%s", vendor ? vendor : "");
    if (base)
        generation->features = cpu_features_or(&generation->features, &base->features);
    generations->count++;
    return 0;
}

int cpu_generations_parse(struct cpu_generations **out, const char *text, struct ferry_error *err)
{
    json_error_t where;
    json_t *json = json_loads(text, JSON_REJECT_DUPLICATES, &where);
    const json_t *list = json_object_get(json, "generations");
    struct cpu_generations *generations =
        calloc(1, sizeof(*generations) + json_array_size(list) * sizeof(generations->list[0]));
    json_t *item;
    size_t i;
    int result = 0;

    if (!generations)
        result = error_set(err, -ENOMEM, "out of memory for CPU baselines");
    else if (!json)
        result = error_set(err, -EINVAL, "CPU baselines: line %d: %s", where.line, where.text);
    else if (json_array_size(list) == 0)
        result = error_set(err, -EINVAL, "CPU baselines: there are no generations");
    if (!result)
        result = cpu_features_from_json(&generations->always, json_object_get(json, "always"),
                                        "CPU baselines: always", err);
    json_array_foreach(list, i, item)
    {
        if (!result)
            result = parse_generation(generations, item, err);
    }
    json_decref(json);
    if (result)
        free(generations);
    else
        *out = generations;
    return result;
}

int cpu_generations_load(struct cpu_generations **out, struct ferry_error *err)
{
    return cpu_generations_parse(out, cpu_baselines_text, err);
}

const struct cpu_generation *cpu_generation_find(const struct cpu_generations *generations, const char *name,
                                                 struct ferry_error *err)
{
    const struct cpu_generation *found = find(generations, name);
    char names[FERRY_ERROR_TEXT_SIZE / 2];
    size_t length = 0;

    for (size_t i = 0; i < generations->count && length < sizeof(names); i++)
        length += (size_t)snprintf(names + length, sizeof(names) - length, "%s%s", i ? ", " : "",
                                   generations->list[i].name);
    if (!found)
        error_set(err, -EINVAL, "there is no CPU baseline \"%.40s\"; there are %s", name, names);
    return found;
}

const struct cpu_generation *cpu_generation_best(const struct cpu_generations *generations,
                                                 const char *vendor, const struct cpu_features *features)
{
    const struct cpu_generation *best = NULL;

    for (size_t i = 0; i < generations->count; i++) {
        const struct cpu_generation *generation = &generations->list[i];
        struct cpu_features lacking = cpu_features_without(&generation->features, features);

        if (generation->vendor[0] && strcmp(generation->vendor, vendor) != 0)
            continue;
        if (cpu_features_empty(&lacking) &&
            (!best || cpu_features_count(&generation->features) > cpu_features_count(&best->features)))
            best = generation;
    }
    return best;
}

int cpu_request_parse(struct cpu_request *request, const char *text, struct ferry_error *err)
{
    *request = (struct cpu_request){0};
    if (!*text)
        return error_set(err, -EINVAL,
                         "the CPU of a VM is a baseline and features to leave out, like x86-64-v3,-avx2");
    for (bool first = true; *text; first = false) {
        size_t length = strcspn(text, ",");
        char word[CPU_FEATURE_NAME_SIZE + 1];
        int result;

        if (length == 0 || length >= sizeof(word) || (!first && text[0] != '-') ||
            (text[length] == ',' && !text[length + 1]))
            return error_set(
                err, -EINVAL,
                "\"%.60s\" in the CPU of a VM: a baseline comes first, then features to leave out, like "
                "x86-64-v3,-avx2",
                text);
        snprintf(word, sizeof(word), "%.*s", (int)length, text);
        if (word[0] == '-') {
            result = cpu_features_add(&request->without, word + 1, err);
            if (result)
                return result;
        } else if (strcmp(word, "host") != 0) {
            if (length >= sizeof(request->generation))
                return error_set(err, -EINVAL, "there is no CPU baseline \"%s\"", word);
            memcpy(request->generation, word, length + 1);
        }
        text += length + (text[length] == ',');
    }
    return 0;
}
