/* Log files stay bounded, and no line is lost on the way. */
#include "unit.h"

#include "base/log.h"
#include "base/rotate.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

/* More than all lines of a test. */
#define TEXT_SIZE (1 << 20)

struct fixture {
    struct unit_dir dir;
    char path[128];
};

static int set_up(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));

    unit_dir_make(&fixture->dir);
    unit_path(&fixture->dir, "vm.log", fixture->path);
    *state = fixture;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *fixture = *state;

    unit_dir_remove(&fixture->dir);
    free(fixture);
    return 0;
}

static void write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

/* NUMBER 0: the file itself. */
static bool read_text(const struct fixture *fixture, unsigned number, char text[static TEXT_SIZE])
{
    char path[160];
    FILE *file;
    size_t size;

    if (number)
        snprintf(path, sizeof(path), "%s.%u", fixture->path, number);
    else
        snprintf(path, sizeof(path), "%s", fixture->path);
    file = fopen(path, "r");
    if (!file)
        return false;
    size = fread(text, 1, TEXT_SIZE - 1, file);
    fclose(file);
    text[size] = '\0';
    return true;
}

static void assert_text(const struct fixture *fixture, unsigned number, const char *wanted)
{
    static char text[TEXT_SIZE];

    assert_true(read_text(fixture, number, text));
    assert_string_equal(text, wanted);
}

static void older_files_are_numbered_and_the_oldest_goes(void **state)
{
    struct fixture *fixture = *state;
    static char text[TEXT_SIZE];
    struct ferry_error err;

    assert_ok(rotate_files(fixture->path, 5, &err), err);
    for (int i = 0; i < 7; i++) {
        snprintf(text, sizeof(text), "life %d", i);
        write_text(fixture->path, text);
        assert_ok(rotate_files(fixture->path, 5, &err), err);
    }
    assert_false(read_text(fixture, 0, text));
    assert_text(fixture, 1, "life 6");
    assert_text(fixture, 5, "life 2");
    write_text(fixture->path, "");
    assert_ok(rotate_files(fixture->path, 5, &err), err);
    assert_text(fixture, 0, "");
    assert_text(fixture, 1, "life 6");
    assert_int_equal(unlink(fixture->path), 0);
    assert_false(read_text(fixture, 6, text));
}

static void none_is_kept_when_none_is_wanted(void **state)
{
    struct fixture *fixture = *state;
    static char text[TEXT_SIZE];
    struct ferry_error err;

    write_text(fixture->path, "old");
    assert_ok(rotate_files(fixture->path, 0, &err), err);
    assert_false(read_text(fixture, 0, text));
    assert_false(read_text(fixture, 1, text));
    assert_ok(rotate_files(fixture->path, 0, &err), err);
}

static void descriptor_goes_on_in_the_new_file(void **state)
{
    struct fixture *fixture = *state;
    int fd = open(fixture->path, O_RDWR | O_APPEND | O_CREAT, 0600);
    struct ferry_error err;

    assert_int_equal(write(fd, "one\n", 4), 4);
    assert_ok(rotate_descriptor(fixture->path, 2, fd, &err), err);
    assert_int_equal(write(fd, "two\n", 4), 4);
    assert_text(fixture, 1, "one\n");
    assert_text(fixture, 0, "two\n");
    close(fd);
}

static void descriptor_goes_on_where_it_was_when_there_can_be_no_other(void **state)
{
    struct fixture *fixture = *state;
    int fd = open(fixture->path, O_RDWR | O_APPEND | O_CREAT, 0600);
    struct ferry_error err;
    char hindrance[160];

    snprintf(hindrance, sizeof(hindrance), "%s.1", fixture->path);
    assert_int_equal(mkdir(hindrance, 0700), 0);
    assert_int_equal(write(fd, "one\n", 4), 4);
    assert_true(rotate_descriptor(fixture->path, 1, fd, &err) < 0);
    assert_non_null(strstr(err.text, "vm.log"));
    assert_int_equal(write(fd, "two\n", 4), 4);
    assert_text(fixture, 0, "one\ntwo\n");
    close(fd);
    rmdir(hindrance);
}

struct rotation {
    const char *path;
    struct log *log;
    unsigned count;
};

static void rotate(void *opaque)
{
    struct rotation *rotation = opaque;
    struct ferry_error err;

    __atomic_fetch_add(&rotation->count, 1, __ATOMIC_RELAXED);
    assert_ok(rotate_descriptor(rotation->path, ROTATE_KEPT_MAX, log_descriptor(rotation->log), &err), err);
    log_set_size(rotation->log, 0);
}

static void each_file_ends_with_the_line_that_filled_it(void **state)
{
    struct fixture *fixture = *state;
    struct rotation rotation = {.path = fixture->path};
    static char text[TEXT_SIZE];
    struct ferry_error err;

    assert_ok(log_open_file(&rotation.log, fixture->path, LOG_LEVEL_INFO, &err), err);
    log_set_limit(rotation.log, 10000, rotate, &rotation);
    for (int i = 0; i < 1000; i++)
        log_info(rotation.log, "line %d", i);
    assert_true(rotation.count >= 3);
    for (unsigned number = 1; number <= rotation.count; number++) {
        assert_true(read_text(fixture, number, text));
        assert_true(strlen(text) > 10000 && strlen(text) < 10000 + 80);
    }
    assert_true(read_text(fixture, 0, text));
    assert_true(strlen(text) <= 10000 && strstr(text, " line 999\n"));
    log_close(rotation.log);
}

static void *write_lines(void *opaque)
{
    for (int i = 0; i < 500; i++)
        log_info((struct log *)opaque, "line of some length to fill files");
    return NULL;
}

static void log_of_several_threads_is_rotated_without_losing_a_line(void **state)
{
    struct fixture *fixture = *state;
    struct rotation rotation = {.path = fixture->path};
    static char text[TEXT_SIZE];
    struct ferry_error err;
    pthread_t threads[4];
    size_t lines = 0;

    assert_ok(log_open_file(&rotation.log, fixture->path, LOG_LEVEL_INFO, &err), err);
    log_set_limit(rotation.log, 10000, rotate, &rotation);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, write_lines, rotation.log), 0);
    for (size_t i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    for (unsigned number = 0; number <= rotation.count; number++) {
        assert_true(read_text(fixture, number, text));
        for (const char *c = text; *c; c++)
            lines += *c == '\n';
    }
    assert_int_equal(lines, 2000);
    assert_true(rotation.count > 0);
    assert_int_equal(log_dropped(rotation.log), 0);
    log_close(rotation.log);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(older_files_are_numbered_and_the_oldest_goes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(none_is_kept_when_none_is_wanted, set_up, tear_down),
        cmocka_unit_test_setup_teardown(descriptor_goes_on_in_the_new_file, set_up, tear_down),
        cmocka_unit_test_setup_teardown(descriptor_goes_on_where_it_was_when_there_can_be_no_other, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(each_file_ends_with_the_line_that_filled_it, set_up, tear_down),
        cmocka_unit_test_setup_teardown(log_of_several_threads_is_rotated_without_losing_a_line, set_up,
                                        tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
