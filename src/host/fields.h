/*
 * Reads a JSON object whose members are described by a table: names, types, which must be there. Everything
 * that comes from outside (API callers, other hosts, files) is taken apart here.
 *
 *     const char *name = NULL;
 *     bool paused = false;
 *     const struct field fields[] = {
 *         {"name", FIELD_STRING, true, &name},
 *         {"paused", FIELD_BOOL, false, &paused},
 *     };
 *     result = fields_read(body, fields, 2, FIELDS_STRICT, "the request", err);
 */
#ifndef FERRY_HOST_FIELDS_H
#define FERRY_HOST_FIELDS_H

#include <ferry/error.h>

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum field_type {
    FIELD_STRING = 1, /* const char **, borrowed from the object */
    FIELD_BOOL,       /* bool * */
    FIELD_UINT,       /* uint64_t *, 0 to INT64_MAX */
    FIELD_OBJECT,     /* json_t **, borrowed */
    FIELD_ARRAY,      /* json_t **, borrowed */
};

struct field {
    const char *name;
    enum field_type type;
    bool required;
    void *out; /* left as it was when the member is absent; a JSON null counts as absent if not required */
};

enum fields_mode {
    FIELDS_STRICT = 1, /* unknown members are refused: requests */
    FIELDS_LOOSE,      /* unknown members are ignored: answers */
};

/* -EINVAL with a sentence that begins with WHAT and names the member. */
int fields_read(const json_t *object, const struct field *fields, size_t count, enum fields_mode mode,
                const char *what, struct ferry_error *err);

/*
 * Parses SIZE bytes from outside: refuses nesting deeper than FIELDS_DEPTH_MAX (jansson itself would recurse
 * 2048 levels), duplicate members, NUL in strings and anything after the value. NULL and err on failure.
 */
#define FIELDS_DEPTH_MAX 16
json_t *fields_parse(const char *text, size_t size, const char *what, struct ferry_error *err);

/* A JSON string of TEXT; bytes that are not UTF-8 become '?' (paths and what others said may hold any). */
json_t *fields_text(const char *text);

#endif
