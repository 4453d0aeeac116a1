/* Each check lets pass what is right and refuses what is wrong, naming VM, host and feature. */
#include "unit.h"

#include "host/checks.h"
#include "host/definition.h"
#include "host/vms.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

struct fixture {
    struct unit_dir dir;
    struct config config;
    struct host host;
    json_t *definition;
    struct check_context context;
    json_t *results;
};

static json_t *make_definition(const char *disks, const char *nets)
{
    json_t *input = json_pack("{s:s, s:s, s:o, s:o}", "name", "web", "kernel", "/k", "disks",
                              json_loads(disks, 0, NULL), "nets", json_loads(nets, 0, NULL));
    json_t *made = NULL;
    struct ferry_error err;

    assert_ok(definition_normalise(input, &made, &err), err);
    json_decref(input);
    return made;
}

static int set_up(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));

    unit_dir_make(&fixture->dir);
    snprintf(fixture->config.name, sizeof(fixture->config.name), "b");
    fixture->host.config = &fixture->config;
    fixture->host.migration_enabled = true;
    snprintf(fixture->host.boot_id, sizeof(fixture->host.boot_id), "this-boot");
    pthread_mutex_init(&fixture->host.lock, NULL);
    fixture->definition = make_definition("[]", "[]");
    fixture->results = json_array();
    fixture->context = (struct check_context){.host = &fixture->host,
                                              .vm = "web",
                                              .definition = fixture->definition,
                                              .source = "a",
                                              .destination = "b",
                                              .protocol = HOST_PROTOCOL};
    *state = fixture;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *fixture = *state;

    json_decref(fixture->definition);
    json_decref(fixture->results);
    unit_dir_remove(&fixture->dir);
    free(fixture);
    return 0;
}

static void set_definition(struct fixture *fixture, const char *disks, const char *nets)
{
    json_decref(fixture->definition);
    fixture->definition = make_definition(disks, nets);
    fixture->context.definition = fixture->definition;
}

static void assert_refused(struct fixture *fixture, enum check_stage stage, int code, const char *word)
{
    struct ferry_error err = {0};

    assert_int_equal(checks_run(stage, &fixture->context, fixture->results, &err), code);
    assert_contains(err.text, "web");
    assert_contains(err.text, word);
}

static void assert_passes(struct fixture *fixture, enum check_stage stage)
{
    struct ferry_error err = {0};

    assert_ok(checks_run(stage, &fixture->context, fixture->results, &err), err);
}

static void plain_vm_may_arrive(void **state)
{
    assert_passes(*state, CHECK_DESTINATION);
}

static void other_protocol_is_refused(void **state)
{
    struct fixture *fixture = *state;

    fixture->context.protocol = HOST_PROTOCOL + 1;
    assert_refused(fixture, CHECK_DESTINATION, HOST_REFUSED, "protocol");
}

static void hosts_of_one_name_are_refused(void **state)
{
    struct fixture *fixture = *state;

    fixture->context.source = "b";
    assert_refused(fixture, CHECK_DESTINATION, HOST_REFUSED, "both hosts are called b");
    assert_refused(fixture, CHECK_SOURCE_LOCAL, HOST_CONFLICT, "host b already");
}

static void disabled_host_refuses(void **state)
{
    struct fixture *fixture = *state;

    fixture->host.migration_enabled = false;
    assert_refused(fixture, CHECK_DESTINATION, HOST_REFUSED, "ferry host enable");
}

static void taken_name_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct vm vm = {.name = "web", .definition = fixture->definition};

    fixture->host.vms = &vm;
    assert_refused(fixture, CHECK_DESTINATION, HOST_REFUSED, "of that name already");
    fixture->host.vms = NULL;
}

static void too_little_memory_is_refused_with_both_numbers(void **state)
{
    struct fixture *fixture = *state;

    fixture->config.memory_limit = 128 << 20;
    assert_refused(fixture, CHECK_DESTINATION, HOST_REFUSED, "256 MiB");
    fixture->config.memory_limit = 256 << 20;
    assert_passes(fixture, CHECK_DESTINATION);
}

/* A kernel's word for AVAILABLE huge pages of 2 MiB, and none of 1 GiB. */
static void set_hugepages(struct fixture *fixture, unsigned available)
{
    static const char *const names[] = {"free_hugepages", "nr_hugepages", "resv_hugepages",
                                        "surplus_hugepages", "nr_overcommit_hugepages"};
    char path[256];

    fixture->host.hugepages_directory = fixture->dir.path;
    snprintf(path, sizeof(path), "%s/hugepages-2048kB", fixture->dir.path);
    mkdir(path, 0700);
    for (size_t i = 0; i < 5; i++) {
        FILE *file;

        snprintf(path, sizeof(path), "%s/hugepages-2048kB/%s", fixture->dir.path, names[i]);
        file = fopen(path, "w");
        assert_non_null(file);
        fprintf(file, "%u\n", i < 2 ? available : 0);
        fclose(file);
    }
}

static void give_hugepages(json_t *definition, json_int_t memory, json_int_t size)
{
    json_object_set_new(definition, "memory", json_integer(memory));
    json_object_set_new(definition, "hugepages", json_integer(size));
}

static void too_few_huge_pages_are_refused_with_both_numbers(void **state)
{
    struct fixture *fixture = *state;

    give_hugepages(fixture->definition, 64 << 20, 2 << 20);
    set_hugepages(fixture, 31);
    assert_refused(
        fixture, CHECK_DESTINATION, HOST_REFUSED,
        "needs 32 huge pages of 2 MiB, host b has 31 free; set more aside on that host: echo 32 >");
    set_hugepages(fixture, 32);
    assert_passes(fixture, CHECK_DESTINATION);
    /* the limit counts them, too */
    fixture->config.memory_limit = 63 << 20;
    assert_refused(fixture, CHECK_DESTINATION, HOST_REFUSED, "64 MiB");
    fixture->config.memory_limit = 0;
    give_hugepages(fixture->definition, 1 << 30, 1 << 30);
    assert_refused(fixture, CHECK_DESTINATION, HOST_REFUSED, "host b: there are no huge pages of 1 GiB");
}

static void memory_of_one_kind_is_not_promised_of_the_other(void **state)
{
    struct fixture *fixture = *state;
    json_t *other = make_definition("[]", "[]");
    struct vm vm = {.name = "other", .definition = other, .memory_promised = UINT64_C(1) << 44};

    set_hugepages(fixture, 40);
    fixture->host.vms = &vm;
    assert_refused(fixture, CHECK_DESTINATION, HOST_REFUSED, "host b has 0 MiB");
    give_hugepages(fixture->definition, 64 << 20, 2 << 20);
    assert_passes(fixture, CHECK_DESTINATION);
    give_hugepages(other, 20 << 20, 2 << 20);
    vm.memory_promised = 20 << 20;
    assert_refused(fixture, CHECK_DESTINATION, HOST_REFUSED, "host b has 30 free");
    vm.memory_promised = UINT64_C(1) << 44;
    json_object_del(fixture->definition, "hugepages");
    assert_passes(fixture, CHECK_DESTINATION);
    fixture->host.vms = NULL;
    json_decref(other);
}

static void huge_pages_do_not_go_by_quick_resume(void **state)
{
    struct fixture *fixture = *state;

    give_hugepages(fixture->definition, 64 << 20, 2 << 20);
    set_hugepages(fixture, 32);
    fixture->context.quick_resume = "now";
    assert_refused(fixture, CHECK_DESTINATION, HOST_REFUSED, "huge pages of 2 MiB");
    json_array_clear(fixture->results);
    fixture->context.quick_resume = "allowed";
    assert_passes(fixture, CHECK_DESTINATION);
    assert_int_equal(json_array_size(fixture->results), 1);
    assert_string_equal(json_string_value(json_object_get(json_array_get(fixture->results, 0), "severity")),
                        "warning");
}

static void missing_disk_is_refused(void **state)
{
    struct fixture *fixture = *state;

    set_definition(fixture, "[{\"path\": \"/nonexistent/disk\"}]", "[]");
    assert_refused(fixture, CHECK_DESTINATION, HOST_REFUSED, "/nonexistent/disk");
    set_definition(fixture, "[{\"path\": \"/dev\"}]", "[]");
    assert_refused(fixture, CHECK_DESTINATION, HOST_REFUSED, "neither a file nor a block device");
}

static void unknown_network_is_refused_and_user_network_warns(void **state)
{
    struct fixture *fixture = *state;

    set_definition(fixture, "[]", "[{\"backend\": \"lan\"}]");
    assert_refused(fixture, CHECK_DESTINATION, HOST_REFUSED, "no network \"lan\"");
    set_definition(fixture, "[]", "[{\"backend\": \"users\"}]");
    assert_refused(fixture, CHECK_DESTINATION, HOST_REFUSED, "users");
    json_array_clear(fixture->results);
    set_definition(fixture, "[]", "[{\"backend\": \"user,hostfwd=tcp:127.0.0.1:1-:22\"}]");
    assert_passes(fixture, CHECK_DESTINATION);
    assert_int_equal(json_array_size(fixture->results), 1);
    assert_string_equal(json_string_value(json_object_get(json_array_get(fixture->results, 0), "severity")),
                        "warning");
}

static void every_error_is_in_the_results(void **state)
{
    struct fixture *fixture = *state;

    fixture->context.protocol = 0;
    fixture->host.migration_enabled = false;
    assert_refused(fixture, CHECK_DESTINATION, HOST_REFUSED, "protocol");
    assert_int_equal(json_array_size(fixture->results), 2);
}

static void vm_that_does_not_run_cannot_leave(void **state)
{
    struct fixture *fixture = *state;
    struct vm_process process = {.pid = 1};
    struct vm vm = {.name = "web", .state = VM_STATE_STOPPED};

    fixture->context.source = "b";
    fixture->context.destination = "c";
    fixture->host.vms = &vm;
    assert_refused(fixture, CHECK_SOURCE_LOCAL, HOST_CONFLICT, "STOPPED");
    vm.process = &process;
    vm.state = VM_STATE_PAUSED;
    assert_passes(fixture, CHECK_SOURCE_LOCAL);
    fixture->host.vms = NULL;
}

static json_t *other_host(const char *name, int protocol, const char *migration, bool available)
{
    return json_pack("{s:s, s:i, s:s, s:[{s:s, s:b, s:s}]}", "name", name, "protocol", protocol, "migration",
                     migration, "machines", "machine", "riscv64", "available", available, "why", "no reason");
}

static void what_the_destination_says_of_itself_counts(void **state)
{
    static const struct {
        const char *name;
        int protocol;
        const char *migration;
        bool available;
        const char *word; /* NULL: passes */
    } cases[] = {
        {"b", HOST_PROTOCOL, "enabled", true, NULL},
        {"z", HOST_PROTOCOL, "enabled", true, "called \"z\""},
        {"b", HOST_PROTOCOL + 1, "enabled", true, "protocol"},
        {"b", HOST_PROTOCOL, "disabled", true, "disabled on host b"},
        {"b", HOST_PROTOCOL, "enabled", false, "no reason"},
    };
    struct fixture *fixture = *state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        json_t *there = other_host(cases[i].name, cases[i].protocol, cases[i].migration, cases[i].available);

        fixture->context.there = there;
        if (cases[i].word)
            assert_refused(fixture, CHECK_SOURCE_PEER, HOST_REFUSED, cases[i].word);
        else
            assert_passes(fixture, CHECK_SOURCE_PEER);
        json_decref(there);
    }
    fixture->context.there = json_object();
    assert_refused(fixture, CHECK_SOURCE_PEER, HOST_REFUSED, "remove and add it again");
    json_decref((json_t *)fixture->context.there);
}

static void disk_must_be_the_same_file_on_both(void **state)
{
    struct fixture *fixture = *state;
    char path[128];
    char disks[192];
    int fd = open(unit_path(&fixture->dir, "disk", path), O_CREAT | O_RDWR, 0600);
    json_t *described;
    json_t *answer;

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, 4096), 0);
    close(fd);
    snprintf(disks, sizeof(disks), "[{\"path\": \"%s\"}]", path);
    set_definition(fixture, disks, "[]");
    assert_passes(fixture, CHECK_DESTINATION);
    described = checks_describe_disks(fixture->definition);

    answer =
        json_pack("{s:s, s:O, s:{s:s}}", "boot_id", "this-boot", "disks", described, "lock", "place", "disk");
    fixture->context.there_answer = answer;
    assert_passes(fixture, CHECK_SOURCE_ANSWER);
    /* another machine numbers its devices as it likes */
    json_object_set_new(json_array_get(described, 0), "device", json_integer(12345));
    assert_refused(fixture, CHECK_SOURCE_ANSWER, HOST_REFUSED, "not the same file");
    json_object_set_new(answer, "boot_id", json_string("other-boot"));
    assert_passes(fixture, CHECK_SOURCE_ANSWER);
    json_object_set_new(json_array_get(described, 0), "inode", json_integer(1));
    assert_refused(fixture, CHECK_SOURCE_ANSWER, HOST_REFUSED, "not the same file");
    json_object_del(answer, "disks");
    assert_refused(fixture, CHECK_SOURCE_ANSWER, HOST_REFUSED, path);
    json_decref(answer);
    json_decref(described);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(plain_vm_may_arrive, set_up, tear_down),
        cmocka_unit_test_setup_teardown(other_protocol_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(hosts_of_one_name_are_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(disabled_host_refuses, set_up, tear_down),
        cmocka_unit_test_setup_teardown(taken_name_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(too_little_memory_is_refused_with_both_numbers, set_up, tear_down),
        cmocka_unit_test_setup_teardown(too_few_huge_pages_are_refused_with_both_numbers, set_up, tear_down),
        cmocka_unit_test_setup_teardown(memory_of_one_kind_is_not_promised_of_the_other, set_up, tear_down),
        cmocka_unit_test_setup_teardown(huge_pages_do_not_go_by_quick_resume, set_up, tear_down),
        cmocka_unit_test_setup_teardown(missing_disk_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(unknown_network_is_refused_and_user_network_warns, set_up, tear_down),
        cmocka_unit_test_setup_teardown(every_error_is_in_the_results, set_up, tear_down),
        cmocka_unit_test_setup_teardown(vm_that_does_not_run_cannot_leave, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_the_destination_says_of_itself_counts, set_up, tear_down),
        cmocka_unit_test_setup_teardown(disk_must_be_the_same_file_on_both, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
