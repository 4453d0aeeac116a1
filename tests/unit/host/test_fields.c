/* What comes from outside is taken apart by name and type, or refused naming what is wrong. */
#include "unit.h"

#include "host/fields.h"

#include <errno.h>

static json_t *parse(const char *text)
{
    struct ferry_error err = {0};
    json_t *value = fields_parse(text, strlen(text), "the text", &err);

    if (!value)
        fail_msg("%s", err.text);
    return value;
}

static void known_members_are_stored(void **state)
{
    json_t *object =
        parse("{\"name\": \"web\", \"paused\": true, \"memory\": 7, \"list\": [], \"more\": {}}");
    const char *name = NULL;
    bool paused = false;
    uint64_t memory = 0;
    json_t *list = NULL;
    json_t *more = NULL;
    const struct field fields[] = {
        {"name", FIELD_STRING, true, &name},   {"paused", FIELD_BOOL, true, &paused},
        {"memory", FIELD_UINT, true, &memory}, {"list", FIELD_ARRAY, true, &list},
        {"more", FIELD_OBJECT, true, &more},
    };
    struct ferry_error err;

    assert_ok(fields_read(object, fields, 5, FIELDS_STRICT, "it", &err), err);
    assert_string_equal(name, "web");
    assert_true(paused);
    assert_int_equal(memory, 7);
    assert_true(json_is_array(list));
    assert_true(json_is_object(more));
    json_decref(object);
}

static void unknown_member_is_refused_only_when_strict(void **state)
{
    json_t *object = parse("{\"name\": \"web\", \"colour\": 1}");
    const char *name = NULL;
    const struct field fields[] = {{"name", FIELD_STRING, true, &name}};
    struct ferry_error err;

    assert_int_equal(fields_read(object, fields, 1, FIELDS_STRICT, "it", &err), -EINVAL);
    assert_contains(err.text, "colour");
    assert_ok(fields_read(object, fields, 1, FIELDS_LOOSE, "it", &err), err);
    json_decref(object);
}

static void wrong_type_is_named(void **state)
{
    static const struct {
        const char *text;
        enum field_type type;
    } cases[] = {
        {"{\"x\": 1}", FIELD_STRING}, {"{\"x\": \"1\"}", FIELD_UINT},  {"{\"x\": -1}", FIELD_UINT},
        {"{\"x\": 1.5}", FIELD_UINT}, {"{\"x\": 0}", FIELD_BOOL},      {"{\"x\": []}", FIELD_OBJECT},
        {"{\"x\": {}}", FIELD_ARRAY}, {"{\"x\": null}", FIELD_STRING},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        json_t *object = parse(cases[i].text);
        uint64_t out[2] = {0};
        const struct field fields[] = {{"x", cases[i].type, true, out}};
        struct ferry_error err;

        assert_int_equal(fields_read(object, fields, 1, FIELDS_STRICT, "it", &err), -EINVAL);
        assert_contains(err.text, "\"x\"");
        assert_int_equal(out[0], 0);
        json_decref(object);
    }
}

static void absent_member_matters_only_when_required(void **state)
{
    json_t *object = parse("{\"y\": null}");
    uint64_t x = 5;
    bool y = true;
    const struct field required[] = {{"x", FIELD_UINT, true, &x}, {"y", FIELD_BOOL, false, &y}};
    const struct field optional[] = {{"x", FIELD_UINT, false, &x}, {"y", FIELD_BOOL, false, &y}};
    struct ferry_error err;

    assert_int_equal(fields_read(object, required, 2, FIELDS_STRICT, "it", &err), -EINVAL);
    assert_string_equal(err.text, "it lacks \"x\"");
    assert_ok(fields_read(object, optional, 2, FIELDS_STRICT, "it", &err), err);
    assert_int_equal(x, 5);
    assert_true(y);
    json_decref(object);
}

static void nesting_is_bounded(void **state)
{
    char text[4096] = "";
    struct ferry_error err;

    memset(text, '[', 2000);
    assert_null(fields_parse(text, 2000, "the body", &err));
    assert_contains(err.text, "nested deeper than 16");
    memset(text, '[', FIELDS_DEPTH_MAX);
    memset(text + FIELDS_DEPTH_MAX, ']', FIELDS_DEPTH_MAX);
    json_decref(fields_parse(text, 2 * FIELDS_DEPTH_MAX, "the body", &err));
    /* brackets in strings do not nest */
    json_decref(parse("[\"[[[[[[[[[[[[[[[[[[[[[[[[\\\"[[[[[[[[[[[[[[[[[[[[\"]"));
}

static void what_is_not_one_json_value_is_refused(void **state)
{
    static const char *const texts[] = {
        "", "{", "{} {}", "{\"a\": 1, \"a\": 2}", "\xff\xfe", "]", "\"\\u0000\"", "nul", "{\"a\"}"};
    struct ferry_error err;

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        json_t *value = fields_parse(texts[i], strlen(texts[i]), "the body", &err);

        if (value)
            fail_msg("%s was taken", texts[i]);
        assert_contains(err.text, "the body");
    }
}

static void text_that_is_not_utf8_is_made_printable(void **state)
{
    json_t *text = fields_text("caf\xe9 \xff");

    assert_string_equal(json_string_value(text), "caf? ?");
    json_decref(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_members_are_stored),
        cmocka_unit_test(unknown_member_is_refused_only_when_strict),
        cmocka_unit_test(wrong_type_is_named),
        cmocka_unit_test(absent_member_matters_only_when_required),
        cmocka_unit_test(nesting_is_bounded),
        cmocka_unit_test(what_is_not_one_json_value_is_refused),
        cmocka_unit_test(text_that_is_not_utf8_is_made_printable),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
