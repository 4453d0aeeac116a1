#include "unit.h"

#include "disk/image.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

struct setup {
    struct unit_dir dir;
    char path[128];
};

static void make_file(const char *path, off_t size)
{
    int fd = open(path, O_CREAT | O_RDWR | O_TRUNC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, size), 0);
    close(fd);
}

static int setup(void **state)
{
    struct setup *test = calloc(1, sizeof(*test));

    unit_dir_make(&test->dir);
    unit_path(&test->dir, "disk.img", test->path);
    make_file(test->path, 1 << 20);
    *state = test;
    return 0;
}

static int teardown(void **state)
{
    struct setup *test = *state;

    unit_dir_remove(&test->dir);
    free(test);
    return 0;
}

static void assert_refused(const char *path, bool readonly, int code, const char *words)
{
    struct ferry_error err = {0};
    struct image *image;

    assert_int_equal(image_open(&image, path, readonly, false, &err), code);
    assert_contains(err.text, path);
    assert_contains(err.text, words);
}

static void an_image_has_its_files_size(void **state)
{
    struct setup *test = *state;
    struct ferry_error err;
    struct image *image;

    assert_ok(image_open(&image, test->path, false, false, &err), err);
    assert_int_equal(image->size, 1 << 20);
    assert_int_equal(image->block_size, 512);
    assert_false(fcntl(image->fd, F_GETFL) & O_NONBLOCK);
    image_close(image);
}

static void what_is_no_image_is_refused_by_name(void **state)
{
    struct setup *test = *state;
    char path[128];

    assert_refused(unit_path(&test->dir, "missing", path), false, -ENOENT, "does not exist");
    assert_refused(test->dir.path, false, -EISDIR, "directory");
    assert_refused(test->dir.path, true, -EISDIR, "directory");
    make_file(unit_path(&test->dir, "empty", path), 0);
    assert_refused(path, false, -EINVAL, "empty");
    make_file(unit_path(&test->dir, "odd", path), 513);
    assert_refused(path, false, -EINVAL, "multiple of 512");
    assert_int_equal(mkfifo(unit_path(&test->dir, "pipe", path), 0600), 0);
    assert_refused(path, true, -EINVAL, "neither a file nor a block device");
    assert_refused("/dev/null", false, -EINVAL, "neither a file nor a block device");
}

static void an_unreadable_image_is_refused(void **state)
{
    struct setup *test = *state;
    pid_t child;
    int status;

    assert_int_equal(chmod(test->path, 0), 0);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) { /* root reads everything: as somebody else */
        struct ferry_error err = {0};
        struct image *image;
        int result;

        if (chmod(test->dir.path, 0755) < 0 || (geteuid() == 0 && setuid(65534) < 0))
            _exit(2);
        result = image_open(&image, test->path, true, false, &err);
        _exit(result == -EACCES && strstr(err.text, "cannot be read") ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void direct_images_have_a_block_size(void **state)
{
    struct setup *test = *state;
    struct ferry_error err = {0};
    struct image *image;
    int result = image_open(&image, test->path, false, true, &err);

    if (result == -EINVAL) { /* a temporary file system without direct I/O: said so */
        assert_contains(err.text, "direct");
        skip();
    }
    assert_ok(result, err);
    assert_true(image->block_size >= 512 && image->block_size <= 4096);
    image_close(image);
}

static void two_writers_exclude_each_other(void **state)
{
    struct setup *test = *state;
    struct ferry_error err = {0};
    struct image *a;
    struct image *b;

    /* Both may open: an arriving VM does so while the source still runs. */
    assert_ok(image_open(&a, test->path, false, false, &err), err);
    assert_ok(image_open(&b, test->path, false, false, &err), err);
    assert_ok(image_acquire(a, &err), err);
    assert_ok(image_acquire(a, &err), err);
    assert_int_equal(image_acquire(b, &err), -EBUSY);
    assert_contains(err.text, test->path);
    assert_contains(err.text, "in use by another VM");
    image_release(a);
    assert_ok(image_acquire(b, &err), err);
    assert_int_equal(image_acquire(a, &err), -EBUSY);
    image_close(b); /* closing releases */
    assert_ok(image_acquire(a, &err), err);
    image_close(a);
}

static void readers_share_and_exclude_a_writer(void **state)
{
    struct setup *test = *state;
    struct ferry_error err = {0};
    struct image *reader;
    struct image *other;
    struct image *writer;

    assert_ok(image_open(&reader, test->path, true, false, &err), err);
    assert_ok(image_open(&other, test->path, true, false, &err), err);
    assert_ok(image_open(&writer, test->path, false, false, &err), err);
    assert_ok(image_acquire(reader, &err), err);
    assert_ok(image_acquire(other, &err), err);
    assert_int_equal(image_acquire(writer, &err), -EBUSY);
    image_release(reader);
    image_release(other);
    assert_ok(image_acquire(writer, &err), err);
    assert_int_equal(image_acquire(reader, &err), -EBUSY);
    image_close(reader);
    image_close(other);
    image_close(writer);
}

static void a_lock_ends_with_its_process(void **state)
{
    struct setup *test = *state;
    struct ferry_error err = {0};
    struct image *image;
    int ready[2];
    pid_t child;
    char byte;

    assert_int_equal(pipe(ready), 0);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (image_open(&image, test->path, false, false, &err) == 0 && image_acquire(image, &err) == 0)
            (void)!write(ready[1], "x", 1);
        pause();
        _exit(0);
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    assert_ok(image_open(&image, test->path, false, false, &err), err);
    assert_int_equal(image_acquire(image, &err), -EBUSY);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_ok(image_acquire(image, &err), err);
    image_close(image);
    close(ready[0]);
    close(ready[1]);
}

static void an_image_that_changed_its_size_is_not_acquired(void **state)
{
    struct setup *test = *state;
    struct ferry_error err = {0};
    struct image *image;

    assert_ok(image_open(&image, test->path, false, false, &err), err);
    assert_int_equal(truncate(test->path, 1 << 19), 0);
    assert_int_equal(image_acquire(image, &err), -ESTALE);
    assert_contains(err.text, "changed its size");
    assert_false(image->locked);
    image_close(image);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(an_image_has_its_files_size),    CASE(what_is_no_image_is_refused_by_name),
        CASE(an_unreadable_image_is_refused), CASE(direct_images_have_a_block_size),
        CASE(two_writers_exclude_each_other), CASE(readers_share_and_exclude_a_writer),
        CASE(a_lock_ends_with_its_process),   CASE(an_image_that_changed_its_size_is_not_acquired),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
