#include "engine/checkpoint.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void checkpoint_init(struct checkpoint *checkpoint)
{
    *checkpoint = (struct checkpoint){0};
}

void checkpoint_free(struct checkpoint *checkpoint)
{
    for (size_t i = 0; i < checkpoint->count; i++)
        free((void *)checkpoint->sections[i].data);
    free(checkpoint->sections);
    checkpoint_init(checkpoint);
}

static int checkpoint_check(const struct checkpoint *checkpoint, const struct ferry_section *section,
                            struct ferry_error *err)
{
    if (section->name[0] == '\0' || section->version == 0)
        return error_set(err, -EINVAL, "section '%s' has no name or version 0", section->name);
    if (section->size > FERRY_SECTION_SIZE_MAX)
        return error_set(err, -E2BIG, "section %s is %zu bytes, at most %u", section->name, section->size,
                         FERRY_SECTION_SIZE_MAX);
    if (section->size > CHECKPOINT_SIZE_MAX - checkpoint->size || checkpoint->count == FERRY_SECTIONS_MAX)
        return error_set(err, -E2BIG, "section %s is too much: at most %d sections and %zu bytes in all",
                         section->name, FERRY_SECTIONS_MAX, CHECKPOINT_SIZE_MAX);
    if (checkpoint_find(checkpoint, section->name))
        return error_set(err, -EEXIST, "section %s is there twice", section->name);
    return 0;
}

int checkpoint_add(struct checkpoint *checkpoint, const struct ferry_section *section,
                   struct ferry_error *err)
{
    int result = checkpoint_check(checkpoint, section, err);

    if (result < 0)
        return result;

    struct ferry_section *sections =
        realloc(checkpoint->sections, (checkpoint->count + 1) * sizeof(*sections));
    uint8_t *data = malloc(section->size > 0 ? section->size : 1);

    if (sections)
        checkpoint->sections = sections;
    if (!sections || !data) {
        free(data);
        return error_set(err, -ENOMEM, "out of memory for section %s", section->name);
    }
    if (section->size > 0)
        memcpy(data, section->data, section->size);
    sections[checkpoint->count] = *section;
    sections[checkpoint->count].data = data;
    checkpoint->count++;
    checkpoint->size += section->size;
    return 0;
}

const struct ferry_section *checkpoint_find(const struct checkpoint *checkpoint, const char *name)
{
    for (size_t i = 0; i < checkpoint->count; i++) {
        if (strcmp(checkpoint->sections[i].name, name) == 0)
            return &checkpoint->sections[i];
    }
    return NULL;
}

int ferry_sink_section(struct ferry_sink *sink, const char *name, uint32_t version, const void *data,
                       size_t size, struct ferry_error *err)
{
    struct ferry_section section = {.version = version, .data = data, .size = size};

    size_t length = strlen(name);

    if (length >= sizeof(section.name))
        return error_set(err, -EINVAL, "section name %s is too long", name);
    memcpy(section.name, name, length + 1);
    return checkpoint_add(sink->checkpoint, &section, err);
}
