#include "cli/object.h"

#include "cli/memory.h"
#include "cli/text.h"

#include <stdlib.h>
#include <string.h>

json_t *object_get(const json_t *object, const char *key)
{
    json_t *value = json_object_get(object, key);
    const char *dot = strchr(key, '.');
    json_t *inner;

    if (value || !dot)
        return value;
    inner = json_object_getn(object, key, (size_t)(dot - key));
    return inner ? object_get(inner, dot + 1) : NULL;
}

const char *object_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(object_get(object, key));

    return text ? text : "";
}

uint64_t object_number(const json_t *object, const char *key)
{
    const json_t *value = object_get(object, key);

    if (json_is_integer(value) && json_integer_value(value) > 0)
        return (uint64_t)json_integer_value(value);
    if (json_is_real(value) && json_real_value(value) > 0 && json_real_value(value) < 1e18)
        return (uint64_t)json_real_value(value);
    return 0;
}

bool object_flag(const json_t *object, const char *key)
{
    return json_is_true(object_get(object, key));
}

static json_t *clean_text(const char *text)
{
    char *copy = memory_copy_text(text);
    json_t *clean;

    text_clean(copy);
    clean = json_string(copy);
    free(copy);
    return clean;
}

json_t *object_clean(json_t *value)
{
    json_t *clean, *inner;
    const char *key;
    size_t index;

    switch (json_typeof(value)) {
    case JSON_STRING:
        return clean_text(json_string_value(value));
    case JSON_ARRAY:
        clean = json_array();
        json_array_foreach(value, index, inner) json_array_append_new(clean, object_clean(inner));
        return clean;
    case JSON_OBJECT:
        clean = json_object();
        json_object_foreach(value, key, inner) json_object_set_new(clean, key, object_clean(inner));
        return clean;
    default:
        return json_incref(value);
    }
}
