/* Disks that move along: where they go, what stays, what is refused, and what of them is removed again. */
#include "unit.h"

#include "host/storage.h"
#include "host/storage_file.h"
#include "host/vm_directory.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

struct fixture {
    struct unit_dir dir;
    struct config config;
    struct host host;
    json_t *definition; /* at the source */
    json_t *there;      /* at the destination */
    json_t *cold;
    struct check_context context;
    struct storage_disks disks;
};

static int set_up(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));

    unit_dir_make(&fixture->dir);
    fixture->host.config = &fixture->config;
    snprintf(fixture->host.boot_id, sizeof(fixture->host.boot_id), "this-boot");
    fixture->context = (struct check_context){
        .host = &fixture->host, .vm = "web", .source = "a", .destination = "b", .storage = ""};
    *state = fixture;
    return 0;
}

static void forget(struct fixture *fixture)
{
    json_decref(fixture->definition);
    json_decref(fixture->there);
    json_decref(fixture->cold);
}

static int tear_down(void **state)
{
    struct fixture *fixture = *state;

    forget(fixture);
    unit_dir_remove(&fixture->dir);
    free(fixture);
    return 0;
}

static void make_file(const struct fixture *fixture, const char *name, off_t size)
{
    char path[128];
    int fd = open(unit_path(&fixture->dir, name, path), O_CREAT | O_RDWR, 0600);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, size), 0);
    close(fd);
}

/* A VM with the disks ONE, which it writes to, and TWO, which it does not (NULL: has not), names in the
 * directory; they go to DIRECTORY of it (NULL: to the same paths). */
static void plan(struct fixture *fixture, const char *one, const char *two, const char *directory)
{
    json_t *disks = json_array();
    char path[128], to[128];
    struct ferry_error err;
    json_t *input;

    forget(fixture);
    json_array_append_new(disks, json_pack("{s:s}", "path", unit_path(&fixture->dir, one, path)));
    if (two)
        json_array_append_new(
            disks, json_pack("{s:s, s:b}", "path", unit_path(&fixture->dir, two, path), "readonly", 1));
    input = json_pack("{s:s, s:s, s:o}", "name", "web", "kernel", "/k", "disks", disks);
    assert_ok(definition_normalise(input, &fixture->definition, &err), err);
    json_decref(input);
    if (directory)
        unit_path(&fixture->dir, directory, to);
    fixture->there = storage_definition(fixture->definition, directory ? to : "");
    fixture->cold = json_pack("{s:o}", "storage", storage_plan(&fixture->host, fixture->definition));
    fixture->context.cold = fixture->cold;
    fixture->context.definition = fixture->there;
    assert_ok(storage_read(&fixture->disks, &fixture->host, fixture->cold, fixture->there, &err), err);
}

static void assert_refused(int (*check)(const struct check_context *context, struct ferry_error *err),
                           const struct fixture *fixture, const char *words)
{
    struct ferry_error err = {0};

    assert_int_equal(check(&fixture->context, &err), HOST_REFUSED);
    assert_contains(err.text, "web");
    assert_contains(err.text, words);
}

static void disks_keep_their_paths_or_get_their_names_in_a_directory(void **state)
{
    struct fixture *fixture = *state;
    char path[128];
    struct ferry_error err;

    make_file(fixture, "disk", 5000);
    plan(fixture, "disk", NULL, NULL);
    assert_string_equal(fixture->disks.disk[0].to, unit_path(&fixture->dir, "disk", path));
    mkdir(unit_path(&fixture->dir, "store", path), 0700);
    plan(fixture, "disk", NULL, "store");
    assert_string_equal(fixture->disks.disk[0].to, unit_path(&fixture->dir, "store/disk", path));
    assert_string_equal(fixture->disks.disk[0].from, unit_path(&fixture->dir, "disk", path));
    assert_int_equal(fixture->disks.disk[0].shape.size, 5000);
    assert_int_equal(storage_bytes(&fixture->disks), 0);
    assert_ptr_equal(storage_lock_disk(&fixture->disks), &fixture->disks.disk[0]);
    assert_true(storage_moves_lock(fixture->cold, fixture->there));
    assert_ok(storage_check_place(&fixture->context, &err), err);
    assert_ok(storage_check_room(&fixture->context, &err), err);
}

static void disk_that_is_shared_or_there_is_refused(void **state)
{
    struct fixture *fixture = *state;
    char path[128];

    make_file(fixture, "disk", 5000);
    plan(fixture, "disk", NULL, NULL);
    assert_refused(storage_check_place, fixture, "as the same file");
    mkdir(unit_path(&fixture->dir, "store", path), 0700);
    make_file(fixture, "store/disk", 5000);
    plan(fixture, "disk", NULL, "store");
    assert_refused(storage_check_place, fixture, "never overwritten");
    plan(fixture, "disk", NULL, "nowhere");
    assert_refused(storage_check_place, fixture, "no directory");
}

static void read_only_disk_that_both_reach_stays(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    make_file(fixture, "disk", 5000);
    make_file(fixture, "iso", 5000);
    plan(fixture, "disk", "iso", NULL);
    assert_false(fixture->disks.disk[0].stays);
    assert_true(fixture->disks.disk[1].stays);
    assert_refused(storage_check_shared, fixture, "iso");
    /* Of another machine, and another file. */
    json_object_set_new(json_object_get(fixture->cold, "storage"), "boot_id", json_string("other"));
    json_object_set_new(
        json_array_get(json_object_get(json_object_get(fixture->cold, "storage"), "disks"), 1), "inode",
        json_integer(1));
    assert_ok(storage_read(&fixture->disks, &fixture->host, fixture->cold, fixture->there, &err), err);
    assert_false(fixture->disks.disk[1].stays);
}

static void what_does_not_fit_is_refused_with_numbers(void **state)
{
    struct fixture *fixture = *state;
    char path[128];

    make_file(fixture, "disk", 5000);
    mkdir(unit_path(&fixture->dir, "store", path), 0700);
    plan(fixture, "disk", NULL, "store");
    json_object_set_new(
        json_array_get(json_object_get(json_object_get(fixture->cold, "storage"), "disks"), 0), "bytes",
        json_integer((json_int_t)1 << 60));
    assert_refused(storage_check_room, fixture, "need 1099511627776 MiB");
}

static void source_refuses_what_it_cannot_send(void **state)
{
    struct fixture *fixture = *state;
    char path[128];

    make_file(fixture, "disk", 5000);
    mkdir(unit_path(&fixture->dir, "other", path), 0700);
    make_file(fixture, "other/disk", 5000);
    plan(fixture, "disk", "other/disk", NULL);
    fixture->context.definition = fixture->definition;
    fixture->context.storage = "/store";
    assert_refused(storage_check_source, fixture, "two of them would be /store/disk");
    plan(fixture, "nothing", NULL, NULL);
    fixture->context.definition = fixture->definition;
    assert_refused(storage_check_source, fixture, "No such file");
}

static void destination_that_knows_nothing_of_it_is_refused(void **state)
{
    struct fixture *fixture = *state;
    json_t *answer = json_object();
    struct ferry_error err;

    make_file(fixture, "disk", 5000);
    plan(fixture, "disk", NULL, NULL);
    fixture->context.there_answer = answer;
    assert_refused(storage_check_known, fixture, "same version");
    json_object_set_new(answer, "storage", json_object());
    assert_ok(storage_check_known(&fixture->context, &err), err);
    json_decref(answer);
}

#define SAVE "0f8b1a52-54a1-4b1b-9d0f-0d2a6f8e7c11"

/* A VM whose guest is in the file NAME, which is no checkpoint, so that this host has it not. */
static void suspend(struct fixture *fixture, const char *name, const char *id)
{
    char path[128];

    snprintf(fixture->config.state_dir, sizeof(fixture->config.state_dir), "%s", fixture->dir.path);
    unit_path(&fixture->dir, name, path);
    json_object_update_new(fixture->cold,
                           json_pack("{s:s, s:s, s:s, s:o}", "state", "suspended", "file", path, "checkpoint",
                                     id, "shape", storage_file_shape(path)));
}

static void file_of_a_suspended_guest_is_copied_after_the_disks(void **state)
{
    struct fixture *fixture = *state;
    struct storage_disks *disks = &fixture->disks;
    char path[128];
    struct ferry_error err;
    int fd;

    make_file(fixture, "disk", 5000);
    make_file(fixture, "guest", 1 << 20);
    fd = open(unit_path(&fixture->dir, "guest", path), O_WRONLY);
    assert_int_equal(pwrite(fd, "data", 4, 0), 4);
    close(fd);
    plan(fixture, "disk", NULL, NULL);
    suspend(fixture, "guest", SAVE);
    assert_ok(storage_read_all(disks, &fixture->host, fixture->cold, fixture->there, &err), err);
    assert_int_equal(disks->count, 1);
    assert_int_equal(disks->parts, 2);
    assert_string_equal(disks->disk[1].from, path);
    assert_string_equal(disks->disk[1].to, unit_path(&fixture->dir, "web-" SAVE ".ckpt", path));
    assert_string_equal(disks->file, path);
    assert_int_equal(disks->disk[1].shape.size, 1 << 20);
    assert_in_range(storage_bytes(disks), 4, 1 << 16);
    assert_ptr_equal(storage_lock_disk(disks), &disks->disk[0]);
    assert_int_equal(storage_file_check_copied(&fixture->context, &err), HOST_REFUSED);
    assert_ok(storage_file_check(&fixture->context, &err), err);
    /* Without the disks. */
    json_object_del(fixture->cold, "storage");
    assert_ok(storage_read_all(disks, &fixture->host, fixture->cold, fixture->there, &err), err);
    assert_int_equal(disks->count, 0);
    assert_int_equal(disks->parts, 1);
    assert_null(storage_lock_disk(disks));
    assert_false(storage_moves_lock(fixture->cold, fixture->there));
    json_object_set_new(json_object_get(fixture->cold, "shape"), "bytes", json_integer((json_int_t)1 << 60));
    assert_refused(storage_check_room, fixture, "its file: it needs 1099511627776 MiB");
}

static void file_that_is_nowhere_or_makes_no_sense_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    make_file(fixture, "disk", 5000);
    plan(fixture, "disk", NULL, NULL);
    suspend(fixture, "nothing", SAVE);
    assert_refused(storage_file_check, fixture, "neither on host a nor on host b");
    fixture->context.there_answer = NULL;
    assert_refused(storage_check_known, fixture, "same version");
    suspend(fixture, "disk", "../../etc/passwd");
    assert_true(storage_file_check(&fixture->context, &err) < 0);
    assert_contains(err.text, "UUID");
    /* As from a ferryd that would give the VM at once. */
    suspend(fixture, "disk", SAVE);
    json_object_del(fixture->cold, "shape");
    assert_true(storage_file_check(&fixture->context, &err) < 0);
    assert_contains(err.text, "shape");
}

static void plan_that_makes_no_sense_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    make_file(fixture, "disk", 5000);
    plan(fixture, "disk", NULL, NULL);
    json_array_clear(json_object_get(json_object_get(fixture->cold, "storage"), "disks"));
    assert_int_equal(storage_read(&fixture->disks, &fixture->host, fixture->cold, fixture->there, &err),
                     HOST_USAGE);
    assert_int_equal(storage_read(&fixture->disks, &fixture->host, NULL, fixture->there, &err), -ENOENT);
}

static void only_files_of_ours_are_removed(void **state)
{
    struct fixture *fixture = *state;
    const char *const names[] = {"one.partial",      "one",           "two.partial", "two", "three",
                                 "three.ferry-lock", "one.ferry-lock"};
    char path[8][128];
    struct stat status;
    json_t *disks;

    for (size_t i = 0; i < 7; i++) {
        make_file(fixture, names[i], 100);
        unit_path(&fixture->dir, names[i], path[i]);
    }
    /* One was not named yet, of two there is somebody else's, three is ours, under its name already. */
    assert_int_equal(stat(path[4], &status), 0);
    disks = json_pack("[{s:s, s:s}, {s:s, s:s, s:I, s:I}, {s:s, s:s, s:I, s:I}]", "partial", path[0], "path",
                      path[1], "partial", path[2], "path", path[3], "device", (json_int_t)status.st_dev,
                      "inode", (json_int_t)1, "partial", "/nothing", "path", path[4], "device",
                      (json_int_t)status.st_dev, "inode", (json_int_t)status.st_ino);
    vm_directory_drop_disks_of(disks);
    json_decref(disks);
    for (size_t i = 0; i < 7; i++)
        assert_int_equal(access(path[i], F_OK), i == 1 || i == 3 || i == 6 ? 0 : -1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(disks_keep_their_paths_or_get_their_names_in_a_directory),
        TEST(disk_that_is_shared_or_there_is_refused),
        TEST(read_only_disk_that_both_reach_stays),
        TEST(what_does_not_fit_is_refused_with_numbers),
        TEST(source_refuses_what_it_cannot_send),
        TEST(destination_that_knows_nothing_of_it_is_refused),
        TEST(file_of_a_suspended_guest_is_copied_after_the_disks),
        TEST(file_that_is_nowhere_or_makes_no_sense_is_refused),
        TEST(plan_that_makes_no_sense_is_refused),
        TEST(only_files_of_ours_are_removed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
