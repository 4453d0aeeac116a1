/* The VM's files, and parameters of requests. */
#include "unit.h"

#include "vm/files.h"
#include "vm/params.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

static char former[4096];

static int setup(void **state)
{
    struct unit_dir *dir = calloc(1, sizeof(*dir));

    unit_dir_make(dir);
    assert_non_null(getcwd(former, sizeof(former)));
    assert_int_equal(chdir(dir->path), 0);
    *state = dir;
    return 0;
}

static int teardown(void **state)
{
    assert_int_equal(chdir(former), 0);
    unit_dir_remove(*state);
    free(*state);
    return 0;
}

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void assert_file(const char *path, const char *expected)
{
    char text[4096] = "";
    FILE *file = fopen(path, "r");

    if (!file)
        fail_msg("%s does not exist", path);
    assert_true(fread(text, 1, sizeof(text) - 1, file) < sizeof(text) - 1);
    fclose(file);
    assert_string_equal(text, expected);
}

static void history_comes_before_and_appending_goes_on(void **state)
{
    struct ferry_error err;
    int fd = open("vm.log", O_RDWR | O_APPEND | O_CREAT, 0600);

    assert_int_equal(write(fd, "here 1\n", 7), 7);
    assert_ok(files_put_before("vm.log", fd, "there 1\nthere 2\n", 16, &err), err);
    assert_int_equal(write(fd, "here 2\n", 7), 7);
    assert_file("vm.log", "there 1\nthere 2\nhere 1\nhere 2\n");
    assert_int_equal(access("vm.log.new", F_OK), -1);
    close(fd);
}

static void end_of_a_file_begins_with_a_whole_line(void **state)
{
    struct buffer out = BUFFER_INIT;
    int fd = open("vm.log", O_RDWR | O_CREAT, 0600);

    files_read_end(fd, 10, &out);
    assert_int_equal(out.size, 0);
    assert_int_equal(write(fd, "one\ntwo\nthree\n", 14), 14);
    files_read_end(fd, 100, &out);
    assert_int_equal(out.size, 14);
    buffer_clear(&out);
    files_read_end(fd, 9, &out);
    assert_int_equal(out.size, 6);
    assert_memory_equal(out.data, "three\n", 6);
    buffer_free(&out);
    close(fd);
}

static void json_is_replaced_whole(void **state)
{
    struct ferry_error err;
    json_t *json = json_pack("{s:i}", "a", 1);

    write_file("exit.json", "old and longer than the new one");
    assert_ok(files_write_json("exit.json", json, &err), err);
    assert_file("exit.json", "{\"a\":1}");
    assert_int_equal(access("exit.json.new", F_OK), -1);
    assert_true(files_write_json("no/such/place", json, &err) < 0);
    assert_contains(err.text, "no/such/place");
    json_decref(json);
}

static void definitions_that_are_none_are_refused_by_name(void **state)
{
    struct machine_config config;
    struct ferry_error err;

    assert_int_equal(files_read_definition("d.json", &config, &err), -ENOENT);
    assert_contains(err.text, "d.json");
    write_file("d.json", "{");
    assert_int_equal(files_read_definition("d.json", &config, &err), -EINVAL);
    assert_contains(err.text, "not JSON");
    write_file("d.json", "{\"name\": \"a\", \"name\": \"b\", \"kernel\": \"/k\"}");
    assert_int_equal(files_read_definition("d.json", &config, &err), -EINVAL);
    write_file("d.json", "{\"name\": \"a\"}");
    assert_int_equal(files_read_definition("d.json", &config, &err), -EINVAL);
    assert_contains(err.text, "kernel");
    assert_int_equal(truncate("d.json", FILES_DEFINITION_MAX + 1), 0);
    assert_int_equal(files_read_definition("d.json", &config, &err), -EINVAL);
    assert_contains(err.text, "1 MiB");
    assert_int_equal(files_read_definition(".", &config, &err), -EINVAL);
}

static void ready_is_one_line(void **state)
{
    struct ferry_error err = {.code = -ENOMEM, .text = "no \"room\""};
    char text[128] = "";
    int fds[2];

    files_tell_ready(-1, NULL);
    assert_int_equal(pipe(fds), 0);
    files_tell_ready(fds[1], &err);
    assert_true(read(fds[0], text, sizeof(text) - 1) > 0);
    assert_string_equal(text, "{\"error\":\"no \\\"room\\\"\",\"errno\":12}\n");
    assert_int_equal(read(fds[0], text, 1), 0);
    close(fds[0]);
}

static void parameters_are_checked(void **state)
{
    static const char *const names[] = {"id", "n", NULL};
    json_t *params = json_pack("{s:s, s:i, s:s, s:s}", "id", "ab12", "n", 7, "bad", "a b", "hex", "00fF");
    struct ferry_error err;
    char text[5];
    uint8_t bytes[2];
    uint64_t number = 1;

    assert_int_equal(params_only(params, names, &err), -EINVAL);
    assert_ok(params_text(params, "id", text, sizeof(text), &err), err);
    assert_string_equal(text, "ab12");
    assert_int_equal(params_text(params, "id", text, 4, &err), -EINVAL);
    assert_int_equal(params_text(params, "n", text, sizeof(text), &err), -EINVAL);
    assert_int_equal(params_text(params, "none", text, sizeof(text), &err), -EINVAL);
    assert_int_equal(params_text(params, "bad", text, sizeof(text), &err), -EINVAL);
    assert_contains(err.text, "bad");
    assert_ok(params_hex(params, "hex", bytes, 2, &err), err);
    assert_int_equal(bytes[1], 0xff);
    assert_int_equal(params_hex(params, "hex", bytes, 1, &err), -EINVAL);
    assert_int_equal(params_hex(params, "bad", bytes, 2, &err), -EINVAL);
    assert_ok(params_number(params, "none", 10, &number, &err), err);
    assert_int_equal(number, 1);
    assert_ok(params_number(params, "n", 7, &number, &err), err);
    assert_int_equal(number, 7);
    assert_int_equal(params_number(params, "n", 6, &number, &err), -EINVAL);
    assert_int_equal(params_number(params, "id", 6, &number, &err), -EINVAL);
    json_decref(params);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        TEST(history_comes_before_and_appending_goes_on),
        TEST(end_of_a_file_begins_with_a_whole_line),
        TEST(json_is_replaced_whole),
        TEST(definitions_that_are_none_are_refused_by_name),
        TEST(ready_is_one_line),
        TEST(parameters_are_checked),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
