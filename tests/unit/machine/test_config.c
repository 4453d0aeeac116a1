#include "unit.h"

#include "machine/machine.h"

#include <errno.h>

#define MINIMAL "\"name\": \"web\", \"kernel\": \"/k\""

static json_t *parse(const char *text)
{
    json_error_t failure;
    json_t *json = json_loads(text, JSON_ALLOW_NUL, &failure);

    if (!json)
        fail_msg("%s: %s", text, failure.text);
    return json;
}

/* TEXT is refused, and the sentence contains all of PARTS (NULL ends them). */
static void assert_refused(const char *text, const char *const *parts)
{
    struct machine_config config = {0};
    struct ferry_error err = {0};
    json_t *json = parse(text);
    int result = machine_config_from_json(&config, json, &err);

    if (result != -EINVAL)
        fail_msg("%s: returned %d", text, result);
    for (; *parts; parts++)
        assert_contains(err.text, *parts);
    assert_null(config.name);
    json_decref(json);
}

static void defaults_fill_in_what_is_not_said(void **state)
{
    struct machine_config config;
    struct ferry_error err;
    json_t *json = parse("{" MINIMAL "}");

    assert_ok(machine_config_from_json(&config, json, &err), err);
    assert_string_equal(config.name, "web");
    assert_string_equal(config.machine, "riscv64");
    assert_int_equal(config.memory, 256 << 20);
    assert_int_equal(config.vcpus, 1);
    assert_string_equal(config.kernel, "/k");
    assert_null(config.initrd);
    assert_null(config.cmdline);
    assert_int_equal(config.disk_count, 0);
    assert_int_equal(config.net_count, 0);
    machine_config_free(&config);
    json_decref(json);
}

static void definition_survives_going_through_json(void **state)
{
    struct machine_config config, again;
    struct ferry_error err;
    json_t *first, *second;
    json_t *json = parse(
        "{" MINIMAL ", \"uuid\": \"1b4e28ba-2fa1-41d2-883f-0016D3CCA427\", \"memory\": 536870912, \"vcpus\": "
        "8, \"initrd\": \"/i\", \"cmdline\": \"a b\","
        "\"hugepages\": 2097152,"
        "\"disks\": [{\"path\": \"/d\"}, {\"path\": \"/e\", \"readonly\": true, \"direct\": true}],"
        "\"nets\": [{\"backend\": \"user\", \"mac\": \"52:54:00:AB:cd:0f\"}, {\"backend\": \"user\"}]}");

    assert_ok(machine_config_from_json(&config, json, &err), err);
    assert_int_equal(config.nets[0].mac[3], 0xab);
    assert_int_equal(config.uuid[15], 0x27);
    assert_int_equal(config.nets[1].mac[0], 0x52);
    assert_true(config.disks[1].readonly && config.disks[1].direct && !config.disks[0].readonly);
    assert_int_equal(config.hugepages, 2 << 20);
    first = machine_config_to_json(&config);
    assert_ok(machine_config_from_json(&again, first, &err), err);
    second = machine_config_to_json(&again);
    assert_true(json_equal(first, second));
    machine_config_free(&config);
    machine_config_free(&again);
    json_decref(first);
    json_decref(second);
    json_decref(json);
}

static void generated_uuids_differ(void **state)
{
    struct machine_config config, other;
    struct ferry_error err;
    json_t *json = parse("{" MINIMAL "}");

    assert_ok(machine_config_from_json(&config, json, &err), err);
    assert_ok(machine_config_from_json(&other, json, &err), err);
    assert_true(uuid_is_set(config.uuid));
    assert_memory_not_equal(config.uuid, other.uuid, UUID_SIZE);
    machine_config_free(&config);
    machine_config_free(&other);
    json_decref(json);
}

static void generated_macs_differ(void **state)
{
    struct machine_config config;
    struct ferry_error err;
    json_t *json = parse("{" MINIMAL ", \"nets\": [{\"backend\": \"user\"}, {\"backend\": \"user\"}]}");

    assert_ok(machine_config_from_json(&config, json, &err), err);
    assert_memory_not_equal(config.nets[0].mac, config.nets[1].mac, 6);
    machine_config_free(&config);
    json_decref(json);
}

static void refusals_name_key_and_value(void **state)
{
    static const struct {
        const char *text;
        const char *parts[4];
    } cases[] = {
        {"[]", {"definition", "[]"}},
        {"{\"kernel\": \"/k\"}", {"no name"}},
        {"{\"name\": \"web\"}", {"no kernel"}},
        {"{" MINIMAL ", \"memroy\": 1}", {"memroy"}},
        {"{" MINIMAL ", \"uuid\": \"1b4e28ba\"}", {"uuid", "1b4e28ba"}},
        {"{" MINIMAL ", \"uuid\": \"00000000-0000-0000-0000-000000000000\"}", {"uuid", "00000000"}},
        {"{\"name\": \"\", \"kernel\": \"/k\"}", {"name"}},
        {"{\"name\": \"-x\", \"kernel\": \"/k\"}", {"name", "-x"}},
        {"{\"name\": \"a/b\", \"kernel\": \"/k\"}", {"name", "a/b"}},
        {"{\"name\": \"a b\", \"kernel\": \"/k\"}", {"name", "a b"}},
        {"{\"name\": \"a\\u0000b\", \"kernel\": \"/k\"}", {"name"}},
        {"{\"name\": 7, \"kernel\": \"/k\"}", {"name", "7"}},
        {"{\"name\": \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\", \"kernel\": "
         "\"/k\"}",
         {"name"}},
        {"{\"name\": \"w\", \"kernel\": \"relative\"}", {"kernel", "relative", "absolute"}},
        {"{\"name\": \"w\", \"kernel\": \"\"}", {"kernel", "absolute"}},
        {"{\"name\": \"w\", \"kernel\": \"/a\\nb\"}", {"kernel"}},
        {"{" MINIMAL ", \"initrd\": true}", {"initrd", "true"}},
        {"{" MINIMAL ", \"machine\": \"vax\"}", {"machine", "vax", "riscv64"}},
        {"{" MINIMAL ", \"memory\": 0}", {"memory", "0"}},
        {"{" MINIMAL ", \"memory\": -1}", {"memory", "-1"}},
        {"{" MINIMAL ", \"memory\": 16777215}", {"memory", "16777215"}},
        {"{" MINIMAL ", \"memory\": 16777217}", {"memory", "16777217"}},
        {"{" MINIMAL ", \"memory\": 9223372036854775807}", {"memory", "9223372036854775807"}},
        {"{" MINIMAL ", \"memory\": 1.5}", {"memory", "1.5"}},
        {"{" MINIMAL ", \"memory\": \"256M\"}", {"memory", "256M"}},
        {"{" MINIMAL ", \"hugepages\": 0}", {"hugepages", "2097152", "1073741824"}},
        {"{" MINIMAL ", \"hugepages\": true}", {"hugepages", "true"}},
        {"{" MINIMAL ", \"hugepages\": 4096}", {"hugepages", "4096"}},
        {"{" MINIMAL ", \"hugepages\": 2097152, \"memory\": 34603008}", {"VM web", "33 MiB", "2 MiB"}},
        {"{" MINIMAL ", \"hugepages\": 1073741824}", {"VM web", "256 MiB", "1 GiB"}},
        {"{" MINIMAL ", \"vcpus\": 0}", {"vcpus", "0"}},
        {"{" MINIMAL ", \"vcpus\": 9}", {"vcpus", "9", "8"}},
        {"{" MINIMAL ", \"vcpus\": 65, \"machine\": \"x86_64\"}", {"vcpus", "65", "64"}},
        {"{" MINIMAL ", \"vcpus\": -3}", {"vcpus", "-3"}},
        {"{" MINIMAL ", \"cmdline\": \"a\\u0007\"}", {"cmdline"}},
        {"{" MINIMAL ", \"disks\": {}}", {"disks", "list"}},
        {"{" MINIMAL ", \"disks\": [{}]}", {"disk 0", "path"}},
        {"{" MINIMAL ", \"disks\": [{\"path\": \"d\"}]}", {"disk 0", "path", "absolute"}},
        {"{" MINIMAL ", \"disks\": [{\"path\": \"/d\", \"readonly\": 1}]}", {"disk 0", "readonly"}},
        {"{" MINIMAL ", \"disks\": [{\"path\": \"/d\"}, {\"path\": \"/d\"}]}", {"disk 1", "/d"}},
        {"{" MINIMAL ", \"disks\": [{\"path\": \"/d\", \"x\": 1}]}", {"disk 0", "\"x\""}},
        {"{" MINIMAL ", \"nets\": [{\"backend\": \"\"}]}", {"net 0", "backend"}},
        {"{" MINIMAL ", \"nets\": [{}]}", {"net 0", "backend"}},
        {"{" MINIMAL ", \"nets\": [{\"backend\": \"user\", \"mac\": \"52:54:00:12:34\"}]}", {"net 0", "mac"}},
        {"{" MINIMAL ", \"nets\": [{\"backend\": \"user\", \"mac\": \"53:54:00:12:34:56\"}]}",
         {"mac", "multicast"}},
        {"{" MINIMAL ", \"nets\": [{\"backend\": \"user\", \"mac\": \"52:54:00:12:34:5g\"}]}", {"mac", "5g"}},
        {"{" MINIMAL ", \"nets\": [{\"backend\": \"user\", \"mac\": \"52:54:00:12:34:56\"},"
         "{\"backend\": \"user\", \"mac\": \"52:54:00:12:34:56\"}]}",
         {"net 1", "mac"}},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_refused(cases[i].text, cases[i].parts);
}

static void too_many_devices_are_refused(void **state)
{
    struct machine_config config = {0};
    struct ferry_error err;
    json_t *json = parse("{" MINIMAL "}");
    json_t *disks = json_array(), *nets = json_array();

    for (int i = 0; i <= MACHINE_DISKS_MAX; i++)
        json_array_append_new(disks, json_pack("{s:o}", "path", json_sprintf("/disk%d", i)));
    for (int i = 0; i <= MACHINE_NETS_MAX; i++)
        json_array_append_new(nets, json_pack("{s:s}", "backend", "user"));
    json_object_set_new(json, "disks", disks);
    assert_int_equal(machine_config_from_json(&config, json, &err), -EINVAL);
    assert_contains(err.text, "9 entries");
    json_object_del(json, "disks");
    json_object_set_new(json, "nets", nets);
    assert_int_equal(machine_config_from_json(&config, json, &err), -EINVAL);
    assert_contains(err.text, "9 entries");
    json_decref(json);
}

static void long_command_line_is_refused_with_its_length(void **state)
{
    static const char *const parts[] = {"cmdline", "1024", "1023", NULL};
    char text[1200], line[1025];

    memset(line, 'x', 1024);
    line[1024] = '\0';
    snprintf(text, sizeof(text), "{" MINIMAL ", \"cmdline\": \"%s\"}", line);
    assert_refused(text, parts);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_fill_in_what_is_not_said),
        cmocka_unit_test(definition_survives_going_through_json),
        cmocka_unit_test(generated_uuids_differ),
        cmocka_unit_test(generated_macs_differ),
        cmocka_unit_test(refusals_name_key_and_value),
        cmocka_unit_test(too_many_devices_are_refused),
        cmocka_unit_test(long_command_line_is_refused_with_its_length),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
