#include "vm/params.h"

#include "base/error.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

int params_only(const json_t *params, const char *const *names, struct ferry_error *err)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)params, name, value)
    {
        size_t i = 0;

        while (names[i] && strcmp(names[i], name) != 0)
            i++;
        if (!names[i])
            return error_set(err, -EINVAL, "there is no parameter \"%.40s\"", name);
    }
    return 0;
}

int params_text(const json_t *params, const char *name, char *out, size_t size, struct ferry_error *err)
{
    const json_t *value = json_object_get(params, name);
    const char *text = json_string_value(value);
    size_t length = json_string_length(value);

    if (!text)
        return error_set(err, -EINVAL, "parameter \"%s\" is missing or not text", name);
    if (length < 1 || length >= size)
        return error_set(err, -EINVAL, "parameter \"%s\" must have 1 to %zu characters", name, size - 1);
    for (size_t i = 0; i < length; i++)
        if (text[i] <= ' ' || text[i] > '~')
            return error_set(err, -EINVAL, "parameter \"%s\" has a character that cannot be in it", name);
    memcpy(out, text, length + 1);
    return 0;
}

int params_hex(const json_t *params, const char *name, uint8_t *out, size_t size, struct ferry_error *err)
{
    static const char digits[] = "0123456789abcdef0123456789ABCDEF";
    const json_t *value = json_object_get(params, name);
    const char *text = json_string_value(value);

    if (!text || json_string_length(value) != 2 * size)
        return error_set(err, -EINVAL, "parameter \"%s\" must be %zu hexadecimal digits", name, 2 * size);
    for (size_t i = 0; i < size; i++) {
        const char *high = text[2 * i] ? strchr(digits, text[2 * i]) : NULL;
        const char *low = text[2 * i + 1] ? strchr(digits, text[2 * i + 1]) : NULL;

        if (!high || !low)
            return error_set(err, -EINVAL, "parameter \"%s\" must be %zu hexadecimal digits", name, 2 * size);
        out[i] = (uint8_t)((high - digits) % 16 << 4 | (low - digits) % 16);
    }
    return 0;
}

int params_number(const json_t *params, const char *name, uint64_t max, uint64_t *out,
                  struct ferry_error *err)
{
    const json_t *value = json_object_get(params, name);

    if (!value || json_is_null(value))
        return 0;
    if (!json_is_integer(value) || json_integer_value(value) < 0 || (uint64_t)json_integer_value(value) > max)
        return error_set(err, -EINVAL, "parameter \"%s\" must be a whole number from 0 to %" PRIu64, name,
                         max);
    *out = (uint64_t)json_integer_value(value);
    return 0;
}
