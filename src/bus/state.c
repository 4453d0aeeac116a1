#include "bus/state.h"

#include "base/cleanup.h"
#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t field_count(const struct state_field *field)
{
    return field->count ? field->count : 1;
}

static bool field_present(const struct state_field *field, uint32_t version)
{
    return field->since <= version;
}

/* Bytes of one element of an integer or bool field, in the object and in a section alike. */
static size_t element_size(enum state_type type)
{
    switch (type) {
    case STATE_U8:
        return 1;
    case STATE_U16:
        return 2;
    case STATE_U32:
        return 4;
    case STATE_U64:
        return 8;
    case STATE_BOOL:
        return sizeof(bool);
    case STATE_BYTES:
    case STATE_BUFFER:
        break;
    }
    assert(!"a state field of no known type");
    return 1;
}

static uint64_t field_max(const struct state_field *field)
{
    if (field->type == STATE_BOOL)
        return 1;
    return field->max ? field->max
                      : UINT64_MAX; /* a value of the type's width cannot be above the type's own */
}

static uint64_t element_get(const struct state_field *field, const void *object, uint32_t index)
{
    size_t size = element_size(field->type);
    const uint8_t *at = (const uint8_t *)object + field->offset + index * size;
    uint16_t u16;
    uint32_t u32;
    uint64_t u64;

    switch (size) {
    case 1:
        return *at;
    case 2:
        memcpy(&u16, at, sizeof(u16));
        return u16;
    case 4:
        memcpy(&u32, at, sizeof(u32));
        return u32;
    default:
        memcpy(&u64, at, sizeof(u64));
        return u64;
    }
}

static void element_set(const struct state_field *field, void *object, uint32_t index, uint64_t value)
{
    size_t size = element_size(field->type);
    uint8_t *at = (uint8_t *)object + field->offset + index * size;
    uint16_t u16 = (uint16_t)value;
    uint32_t u32 = (uint32_t)value;

    switch (size) {
    case 1:
        *at = (uint8_t)value;
        break;
    case 2:
        memcpy(at, &u16, sizeof(u16));
        break;
    case 4:
        memcpy(at, &u32, sizeof(u32));
        break;
    default:
        memcpy(at, &value, sizeof(value));
        break;
    }
}

static struct buffer *buffer_at(const struct state_field *field, void *object, uint32_t index)
{
    return (struct buffer *)(void *)((uint8_t *)object + field->offset) + index;
}

static void put_element(struct buffer *out, enum state_type type, uint64_t value)
{
    switch (element_size(type)) {
    case 1:
        buffer_put_u8(out, (uint8_t)value);
        break;
    case 2:
        buffer_put_u16(out, (uint16_t)value);
        break;
    case 4:
        buffer_put_u32(out, (uint32_t)value);
        break;
    default:
        buffer_put_u64(out, value);
        break;
    }
}

static void save_buffer(const struct buffer *from, struct buffer *out)
{
    if (buffer_failed(from) || from->size > UINT32_MAX) {
        out->failed = true;
        return;
    }
    buffer_put_u32(out, (uint32_t)from->size);
    buffer_put(out, from->data, from->size);
}

void state_save(const struct state_table *table, const void *object, struct buffer *out)
{
    for (size_t i = 0; i < table->field_count; i++) {
        const struct state_field *field = &table->fields[i];

        if (field->type == STATE_BYTES) {
            buffer_put(out, (const uint8_t *)object + field->offset, field_count(field));
            continue;
        }
        for (uint32_t j = 0; j < field_count(field); j++) {
            if (field->type == STATE_BUFFER)
                save_buffer(buffer_at(field, (void *)object, j), out);
            else
                put_element(out, field->type, element_get(field, object, j));
        }
    }
}

/* "ring[3]" for an element of an array, else "ring". */
static const char *element_name(const struct state_field *field, uint32_t index, char *text, size_t size)
{
    if (field->count <= 1)
        return field->name;
    snprintf(text, size, "%s[%" PRIu32 "]", field->name, index);
    return text;
}

static int refuse_truncated(const char *section, const struct state_field *field, struct ferry_error *err)
{
    return error_set(err, -EINVAL, "state section %s ends inside field %s", section, field->name);
}

/* Reads and checks one integer or bool. */
static int read_element(const char *section, const struct state_field *field, uint32_t index,
                        struct reader *in, uint64_t *value, struct ferry_error *err)
{
    uint64_t max = field_max(field);
    char name[80];

    switch (element_size(field->type)) {
    case 1:
        *value = reader_get_u8(in);
        break;
    case 2:
        *value = reader_get_u16(in);
        break;
    case 4:
        *value = reader_get_u32(in);
        break;
    default:
        *value = reader_get_u64(in);
        break;
    }
    if (reader_failed(in))
        return refuse_truncated(section, field, err);
    if (*value > max)
        return error_set(err, -EINVAL,
                         "state section %s: field %s is %" PRIu64 ", above its largest value %" PRIu64,
                         section, element_name(field, index, name, sizeof(name)), *value, max);
    return 0;
}

/* Reads and checks the length of a STATE_BUFFER, or takes that of a STATE_BYTES; *data is a view into IN. */
static int read_blob(const char *section, const struct state_field *field, uint32_t index, struct reader *in,
                     const uint8_t **data, size_t *size, struct ferry_error *err)
{
    char name[80];

    *size = field_count(field);
    if (field->type == STATE_BUFFER) {
        assert(field->max);
        *size = reader_get_u32(in);
        if (reader_failed(in))
            return refuse_truncated(section, field, err);
        if (*size > field->max)
            return error_set(err, -EINVAL,
                             "state section %s: field %s holds %zu bytes, above its largest length %" PRIu64,
                             section, element_name(field, index, name, sizeof(name)), *size, field->max);
    }
    *data = reader_view(in, *size);
    return *data ? 0 : refuse_truncated(section, field, err);
}

static int load_field(const char *section, const struct state_field *field, void *scratch, struct reader *in,
                      struct ferry_error *err)
{
    uint32_t elements = field->type == STATE_BYTES ? 1 : field_count(field);

    for (uint32_t i = 0; i < elements; i++) {
        const uint8_t *data;
        size_t size;
        uint64_t value;
        int result;

        if (field->type != STATE_BYTES && field->type != STATE_BUFFER) {
            result = read_element(section, field, i, in, &value, err);
            if (result)
                return result;
            element_set(field, scratch, i, value);
            continue;
        }
        result = read_blob(section, field, i, in, &data, &size, err);
        if (result)
            return result;
        if (field->type == STATE_BYTES) {
            memcpy((uint8_t *)scratch + field->offset, data, size);
            continue;
        }
        buffer_put(buffer_at(field, scratch, i), data, size);
        if (buffer_failed(buffer_at(field, scratch, i)))
            return error_set(err, -ENOMEM, "out of memory while loading field %s of state section %s",
                             field->name, section);
    }
    return 0;
}

static int check_version(const struct state_table *table, const char *section, uint32_t version,
                         struct ferry_error *err)
{
    if (version == 0)
        return error_set(err, -EPROTONOSUPPORT, "state section %s (%s) has version 0, which does not exist",
                         section, table->name);
    if (version > table->version)
        return error_set(err, -EPROTONOSUPPORT,
                         "state section %s (%s) has version %" PRIu32 ", this Ferry reads up to %" PRIu32
                         "; use a newer Ferry here",
                         section, table->name, version, table->version);
    return 0;
}

/* Makes the scratch's buffers its own (empty) instead of the object's. */
static void scratch_detach(const struct state_table *table, uint32_t version, void *scratch)
{
    for (size_t i = 0; i < table->field_count; i++) {
        const struct state_field *field = &table->fields[i];

        if (field->type != STATE_BUFFER || !field_present(field, version))
            continue;
        for (uint32_t j = 0; j < field_count(field); j++)
            *buffer_at(field, scratch, j) = BUFFER_INIT;
    }
}

/*
 * Exchanges the loaded fields of scratch and object. Only those: the rest of the object (locks, pointers) may
 * be in use. Afterwards the scratch holds the buffers to be freed.
 */
static void scratch_commit(const struct state_table *table, uint32_t version, void *scratch, void *object)
{
    for (size_t i = 0; i < table->field_count; i++) {
        const struct state_field *field = &table->fields[i];
        uint8_t *to = (uint8_t *)object + field->offset;
        const uint8_t *from = (const uint8_t *)scratch + field->offset;

        if (!field_present(field, version))
            continue;
        if (field->type == STATE_BYTES) {
            memcpy(to, from, field_count(field));
        } else if (field->type != STATE_BUFFER) {
            memcpy(to, from, field_count(field) * element_size(field->type));
        } else {
            for (uint32_t j = 0; j < field_count(field); j++) {
                struct buffer old = *buffer_at(field, object, j);

                *buffer_at(field, object, j) = *buffer_at(field, scratch, j);
                *buffer_at(field, scratch, j) = old;
            }
        }
    }
}

static void scratch_free(const struct state_table *table, uint32_t version, void *scratch)
{
    for (size_t i = 0; i < table->field_count; i++) {
        const struct state_field *field = &table->fields[i];

        if (field->type != STATE_BUFFER || !field_present(field, version))
            continue;
        for (uint32_t j = 0; j < field_count(field); j++)
            buffer_free(buffer_at(field, scratch, j));
    }
    free(scratch);
}

int state_load(const struct state_table *table, const char *section, uint32_t version, void *object,
               struct reader *in, struct ferry_error *err)
{
    int result = check_version(table, section, version, err);
    void *scratch;

    if (result)
        return result;
    scratch = malloc(table->object_size);
    if (!scratch)
        return error_set(err, -ENOMEM, "out of memory while loading state section %s", section);
    memcpy(scratch, object, table->object_size);
    scratch_detach(table, version, scratch);

    for (size_t i = 0; i < table->field_count && !result; i++) {
        if (field_present(&table->fields[i], version))
            result = load_field(section, &table->fields[i], scratch, in, err);
    }
    if (!result && table->validate) {
        result = table->validate(scratch, err);
        if (result)
            error_prefix(err, result, "state section %s", section);
    }
    if (!result)
        scratch_commit(table, version, scratch, object);
    scratch_free(table, version, scratch);
    return result;
}

static json_t *hex_string(const uint8_t *data, size_t size)
{
    static const char digits[] = "0123456789abcdef";
    CLEANUP_FREE char *text = malloc(size * 2 + 1);

    if (!text)
        return NULL;
    for (size_t i = 0; i < size; i++) {
        text[2 * i] = digits[data[i] >> 4];
        text[2 * i + 1] = digits[data[i] & 15];
    }
    text[2 * size] = '\0';
    return json_string(text);
}

/* One element as JSON. A 64-bit value is text in hexadecimal: it may not fit a JSON reader's integer. */
static int print_element(const char *section, const struct state_field *field, uint32_t index,
                         struct reader *in, json_t **out, struct ferry_error *err)
{
    const uint8_t *data;
    char text[24];
    size_t size;
    uint64_t value;
    int result;

    if (field->type == STATE_BYTES || field->type == STATE_BUFFER) {
        result = read_blob(section, field, index, in, &data, &size, err);
        if (result)
            return result;
        *out = hex_string(data, size);
    } else {
        result = read_element(section, field, index, in, &value, err);
        if (result)
            return result;
        snprintf(text, sizeof(text), "0x%" PRIx64, value);
        if (field->type == STATE_BOOL)
            *out = json_boolean(value);
        else if (field->type == STATE_U64)
            *out = json_string(text);
        else
            *out = json_integer((json_int_t)value);
    }
    return *out ? 0 : error_set(err, -ENOMEM, "out of memory while printing state section %s", section);
}

static int print_field(const char *section, const struct state_field *field, struct reader *in,
                       json_t *fields, struct ferry_error *err)
{
    uint32_t elements = field->type == STATE_BYTES ? 1 : field_count(field);
    json_t *element = NULL;
    json_t *array;
    int result;

    if (elements == 1) {
        result = print_element(section, field, 0, in, &element, err);
        if (result)
            return result;
    } else {
        array = json_array();
        for (uint32_t i = 0; i < elements; i++) {
            result = print_element(section, field, i, in, &element, err);
            if (result) {
                json_decref(array);
                return result;
            }
            json_array_append_new(array, element);
        }
        element = array;
    }
    if (json_object_set_new(fields, field->name, element) < 0)
        return error_set(err, -ENOMEM, "out of memory while printing state section %s", section);
    return 0;
}

json_t *state_print(const struct state_table *table, const char *section, uint32_t version, struct reader *in,
                    struct ferry_error *err)
{
    json_t *fields;

    if (check_version(table, section, version, err))
        return NULL;
    fields = json_object();
    for (size_t i = 0; i < table->field_count; i++) {
        if (field_present(&table->fields[i], version) &&
            print_field(section, &table->fields[i], in, fields, err)) {
            json_decref(fields);
            return NULL;
        }
    }
    return fields;
}
