/* A definition is either complete and sound, or refused naming the key. */
#include "unit.h"

#include "host/definition.h"

#include <errno.h>

static int normalise(const char *text, json_t **out, struct ferry_error *err)
{
    json_t *input = json_loads(text, 0, NULL);
    int result;

    assert_non_null(input);
    result = definition_normalise(input, out, err);
    json_decref(input);
    return result;
}

static void defaults_are_filled_in(void **state)
{
    struct ferry_error err;
    json_t *made;

    assert_ok(normalise("{\"name\": \"web\", \"kernel\": \"/k\", \"nets\": [{\"backend\": \"user\"}]}", &made,
                        &err),
              err);
    assert_string_equal(definition_name(made), "web");
    assert_string_equal(definition_machine(made), "riscv64");
    assert_int_equal(definition_memory(made), 256 << 20);
    assert_int_equal(json_integer_value(json_object_get(made, "vcpus")), 1);
    assert_null(json_object_get(made, "initrd"));
    assert_int_equal(json_array_size(definition_disks(made)), 0);
    json_decref(made);
}

static void every_vm_has_a_uuid_of_its_own_or_the_one_given(void **state)
{
    struct ferry_error err;
    json_t *made, *other, *again;

    assert_ok(normalise("{\"name\": \"web\", \"kernel\": \"/k\"}", &made, &err), err);
    assert_ok(normalise("{\"name\": \"web\", \"kernel\": \"/k\"}", &other, &err), err);
    assert_int_equal(strlen(definition_uuid(made)), 36);
    assert_string_not_equal(definition_uuid(made), definition_uuid(other));
    assert_ok(definition_normalise(made, &again, &err), err);
    assert_true(json_equal(made, again));
    json_decref(made);
    json_decref(other);
    json_decref(again);
    assert_ok(
        normalise(
            "{\"name\": \"web\", \"kernel\": \"/k\", \"uuid\": \"1B4E28BA-2fa1-41d2-883f-0016d3cca427\"}",
            &made, &err),
        err);
    assert_string_equal(definition_uuid(made), "1b4e28ba-2fa1-41d2-883f-0016d3cca427");
    json_decref(made);
}

static void huge_pages_are_kept_and_not_made_up(void **state)
{
    struct ferry_error err;
    json_t *made;

    assert_ok(normalise("{\"name\": \"web\", \"kernel\": \"/k\", \"hugepages\": 2097152}", &made, &err), err);
    assert_int_equal(definition_hugepages(made), 2 << 20);
    json_decref(made);
    assert_ok(normalise("{\"name\": \"web\", \"kernel\": \"/k\"}", &made, &err), err);
    assert_int_equal(definition_hugepages(made), 0);
    assert_null(json_object_get(made, "hugepages")); /* which older hosts do not know */
    json_decref(made);
}

static void console_marks_are_kept_and_not_made_up(void **state)
{
    struct ferry_error err;
    json_t *made;

    assert_ok(normalise("{\"name\": \"web\", \"kernel\": \"/k\", \"console_marks\": true}", &made, &err),
              err);
    assert_true(json_is_true(json_object_get(made, "console_marks")));
    json_decref(made);
    assert_ok(normalise("{\"name\": \"web\", \"kernel\": \"/k\", \"console_marks\": false}", &made, &err),
              err);
    assert_null(json_object_get(made, "console_marks")); /* which older hosts do not know */
    json_decref(made);
    assert_int_equal(normalise("{\"name\": \"web\", \"kernel\": \"/k\", \"console_marks\": 1}", &made, &err),
                     -EINVAL);
    assert_non_null(strstr(err.text, "console_marks"));
}

static void mac_is_made_once_and_then_kept(void **state)
{
    struct ferry_error err;
    json_t *made;
    json_t *again;
    const char *mac;

    assert_ok(normalise("{\"name\": \"web\", \"kernel\": \"/k\", \"nets\": [{\"backend\": \"user\"}]}", &made,
                        &err),
              err);
    mac = json_string_value(json_object_get(json_array_get(definition_nets(made), 0), "mac"));
    assert_memory_equal(mac, "52:54:00:", 9);
    assert_int_equal(strlen(mac), 17);
    assert_ok(definition_normalise(made, &again, &err), err);
    assert_true(json_equal(made, again));
    json_decref(made);
    json_decref(again);
}

static void nonsense_is_refused_by_name(void **state)
{
    static const struct {
        const char *text;
        const char *word;
    } cases[] = {
        {"{\"kernel\": \"/k\"}", "name"},
        {"{\"name\": \"web\"}", "kernel"},
        {"{\"name\": \"../web\", \"kernel\": \"/k\"}", "../web"},
        {"{\"name\": \"\", \"kernel\": \"/k\"}", "name"},
        {"{\"name\": \"-x\", \"kernel\": \"/k\"}", "-x"},
        {"{\"name\": \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\", \"kernel\": "
         "\"/k\"}",
         "name"},
        {"{\"name\": \"web\", \"kernel\": \"k\"}", "kernel"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"initrd\": \"i\"}", "initrd"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"colour\": \"red\"}", "colour"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"uuid\": \"1b4e28ba\"}", "uuid"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"uuid\": \"ffffffff-ffff-ffff-ffff-ffffffffffff\"}",
         "uuid"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"memory\": 0}", "memory"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"memory\": -1}", "memory"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"memory\": 16777217}", "memory"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"memory\": 9223372036854775807}", "memory"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"memory\": \"256M\"}", "memory"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"hugepages\": 0}", "2097152 or 1073741824, not 0"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"hugepages\": true}", "hugepages"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"hugepages\": 1073741824}", "VM web: memory of 256 MiB"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"hugepages\": 2097152, \"memory\": 34603008}",
         "VM web: memory of 33 MiB"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"vcpus\": 0}", "vCPU"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"vcpus\": 9}", "vCPU"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"vcpus\": 65, \"machine\": \"x86_64\"}",
         "x86_64 machine has 1 to 64"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"machine\": \"vax\"}", "vax"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"disks\": {}}", "disks"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"disks\": [{}]}", "path"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"disks\": [{\"path\": \"d\"}]}", "path"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"disks\": [{\"path\": \"/d\"}, {\"path\": \"/d\"}]}",
         "twice"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"disks\": [{\"path\": \"/d\", \"rw\": true}]}", "rw"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"nets\": [{\"backend\": \"user\", \"mac\": \"1:2\"}]}",
         "mac"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"nets\": [{\"backend\": \"user\", \"mac\": "
         "\"01:00:00:00:00:01\"}]}",
         "mac"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"nets\": [{\"backend\": \"\"}]}", "backend"},
        {"{\"name\": \"web\", \"kernel\": \"/k\", \"nets\": "
         "[{},{},{},{},{},{},{},{},{}]}",
         "networks"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct ferry_error err = {0};
        json_t *made = NULL;

        if (normalise(cases[i].text, &made, &err) != -EINVAL)
            fail_msg("%s was taken", cases[i].text);
        assert_contains(err.text, cases[i].word);
        assert_null(made);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_filled_in),
        cmocka_unit_test(huge_pages_are_kept_and_not_made_up),
        cmocka_unit_test(every_vm_has_a_uuid_of_its_own_or_the_one_given),
        cmocka_unit_test(console_marks_are_kept_and_not_made_up),
        cmocka_unit_test(mac_is_made_once_and_then_kept),
        cmocka_unit_test(nonsense_is_refused_by_name),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
