#include "host/fields.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char *type_name(enum field_type type)
{
    switch (type) {
    case FIELD_STRING:
        return "a string";
    case FIELD_BOOL:
        return "true or false";
    case FIELD_UINT:
        return "a whole number, 0 or more";
    case FIELD_OBJECT:
        return "an object";
    case FIELD_ARRAY:
        return "a list";
    }
    return "something else";
}

static bool store_value(const struct field *field, json_t *value)
{
    switch (field->type) {
    case FIELD_STRING:
        if (!json_is_string(value))
            return false;
        *(const char **)field->out = json_string_value(value);
        return true;
    case FIELD_BOOL:
        if (!json_is_boolean(value))
            return false;
        *(bool *)field->out = json_is_true(value);
        return true;
    case FIELD_UINT:
        if (!json_is_integer(value) || json_integer_value(value) < 0)
            return false;
        *(uint64_t *)field->out = (uint64_t)json_integer_value(value);
        return true;
    case FIELD_OBJECT:
        if (!json_is_object(value))
            return false;
        *(json_t **)field->out = value;
        return true;
    case FIELD_ARRAY:
        if (!json_is_array(value))
            return false;
        *(json_t **)field->out = value;
        return true;
    }
    return false;
}

static bool known(const char *name, const struct field *fields, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(name, fields[i].name) == 0)
            return true;
    }
    return false;
}

int fields_read(const json_t *object, const struct field *fields, size_t count, enum fields_mode mode,
                const char *what, struct ferry_error *err)
{
    const char *name;
    json_t *value;

    if (!json_is_object(object))
        return error_set(err, -EINVAL, "%s is not a JSON object", what);
    json_object_foreach((json_t *)object, name, value)
    {
        if (mode == FIELDS_STRICT && !known(name, fields, count))
            return error_set(err, -EINVAL, "%s has an unknown key \"%.64s\"", what, name);
    }
    for (size_t i = 0; i < count; i++) {
        value = json_object_get(object, fields[i].name);
        if (!value || (json_is_null(value) && !fields[i].required)) {
            if (!fields[i].required)
                continue;
            return error_set(err, -EINVAL, "%s lacks \"%s\"", what, fields[i].name);
        }
        if (!store_value(&fields[i], value))
            return error_set(err, -EINVAL, "\"%s\" of %s must be %s", fields[i].name, what,
                             type_name(fields[i].type));
    }
    return 0;
}

/* Whether brackets nest no deeper than FIELDS_DEPTH_MAX; strings are skipped. */
static bool depth_allowed(const char *text, size_t size)
{
    unsigned depth = 0;
    bool in_string = false;

    for (size_t i = 0; i < size; i++) {
        char byte = text[i];

        if (in_string) {
            if (byte == '\\')
                i++;
            else if (byte == '"')
                in_string = false;
        } else if (byte == '"') {
            in_string = true;
        } else if (byte == '{' || byte == '[') {
            if (++depth > FIELDS_DEPTH_MAX)
                return false;
        } else if ((byte == '}' || byte == ']') && depth > 0) {
            depth--;
        }
    }
    return true;
}

json_t *fields_parse(const char *text, size_t size, const char *what, struct ferry_error *err)
{
    json_error_t error;
    json_t *value;

    if (!depth_allowed(text, size)) {
        error_set(err, -EINVAL, "%s is nested deeper than %d levels", what, FIELDS_DEPTH_MAX);
        return NULL;
    }
    value = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    if (!value)
        error_set(err, -EINVAL, "%s is not valid JSON: %s at line %d", what, error.text, error.line);
    return value;
}

json_t *fields_text(const char *text)
{
    json_t *value = json_string(text);
    char *copy;

    if (value)
        return value;
    copy = strdup(text);
    if (!copy)
        return NULL;
    for (char *byte = copy; *byte; byte++) {
        if (*byte & 0x80)
            *byte = '?';
    }
    value = json_string(copy);
    free(copy);
    return value;
}
