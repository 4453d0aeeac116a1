/*
 * State tables: a device's (or vCPU's) state described once, for saving, loading, validating and printing.
 *
 *     static const struct state_field uart_fields[] = {
 *         STATE_FIELD(struct uart, ier, STATE_U8, .max = 0x0f),
 *         STATE_ARRAY(struct uart, fifo, STATE_BYTES, .since = 2),
 *     };
 *     static const struct state_table uart_state = {"uart16550", 2, uart_fields, ARRAY_SIZE(uart_fields),
 * uart_validate};
 *
 * A section is a table's fields in order, little-endian, without padding: the table is the format. `version`
 * is the newest the code writes; a field with `since` above a section's version is not in it and keeps the
 * value the object has (its reset value). Loading checks every field's range into a scratch copy and then
 * calls `validate`, so an object is never left half-loaded; errors name section and field. Versions above the
 * table's are refused in words. What follows a section's last field is left in the reader: whoever was handed
 * the section as a whole checks that reader_left() is 0 afterwards.
 */
#ifndef FERRY_BUS_STATE_H
#define FERRY_BUS_STATE_H

#include "base/buffer.h"

#include <ferry/error.h>

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

enum state_type {
    STATE_U8 = 1,
    STATE_U16,
    STATE_U32,
    STATE_U64,
    STATE_BOOL,   /* C bool, one byte, 0 or 1 */
    STATE_BYTES,  /* `count` bytes */
    STATE_BUFFER, /* a struct buffer: u32 length (at most `max`, which must be given) and that many bytes */
};

struct state_field {
    const char *name;
    enum state_type type;
    size_t offset;  /* in the object */
    uint32_t count; /* array elements, or the length of STATE_BYTES; 0 means 1 */
    uint32_t since; /* first version that has it; 0 means 1 */
    uint64_t max;   /* largest value (for buffers: length) allowed; 0 means the type's own */
};

#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))
#define STATE_FIELD(type_, member, kind, ...)                                                                \
    {                                                                                                        \
        .name = #member, .type = (kind), .offset = offsetof(type_, member), ##__VA_ARGS__                    \
    }
#define STATE_ARRAY(type_, member, kind, ...)                                                                \
    {                                                                                                        \
        .name = #member, .type = (kind), .offset = offsetof(type_, member),                                  \
        .count = sizeof(((type_ *)0)->member) / sizeof(((type_ *)0)->member[0]), ##__VA_ARGS__               \
    }

struct state_table {
    const char *name; /* the kind of section: "hart", "uart16550", "virtio-blk" */
    uint32_t version; /* 1 or more */
    const struct state_field *fields;
    size_t field_count;
    size_t object_size; /* sizeof the object the offsets are in */
    /* Relations between fields; may be NULL. Sees a scratch copy of the object. */
    int (*validate)(const void *object, struct ferry_error *err);
};

void state_save(const struct state_table *table, const void *object, struct buffer *out);
/* SECTION names the section in errors ("virtio-blk0"). -EINVAL bad content, -EPROTONOSUPPORT version. */
int state_load(const struct state_table *table, const char *section, uint32_t version, void *object,
               struct reader *in, struct ferry_error *err);
/* The fields of a section by name, for people and tools; bytes and 64-bit values as hexadecimal text. Checks
 * every field's range, not `validate`. NULL on error. */
json_t *state_print(const struct state_table *table, const char *section, uint32_t version, struct reader *in,
                    struct ferry_error *err);

#endif
