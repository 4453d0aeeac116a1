#include "unit.h"

#include "base/cleanup.h"
#include "base/error.h"

#include <errno.h>
#include <fcntl.h>

static void set_fills_code_and_text(void **state)
{
    struct ferry_error err = {0};

    assert_int_equal(error_set(&err, -ENOENT, "kernel %s does not exist", "k"), -ENOENT);
    assert_int_equal(err.code, -ENOENT);
    assert_string_equal(err.text, "kernel k does not exist");
}

static void set_errno_appends_the_words(void **state)
{
    struct ferry_error err = {0};

    assert_int_equal(error_set_errno(&err, -EACCES, "cannot open %s", "x"), -EACCES);
    assert_string_equal(err.text, "cannot open x: Permission denied");
}

static void prefix_goes_before_and_keeps_the_code(void **state)
{
    struct ferry_error err = {0};

    error_set(&err, -ENOENT, "no kernel");
    assert_int_equal(error_prefix(&err, -EIO, "cannot start %s", "web"), -EIO);
    assert_int_equal(err.code, -ENOENT);
    assert_string_equal(err.text, "cannot start web: no kernel");
}

static void own_text_may_be_an_argument(void **state)
{
    struct ferry_error err = {0};

    error_set(&err, -ENOENT, "inner");
    error_set(&err, -EIO, "outer (%s)", err.text);
    assert_string_equal(err.text, "outer (inner)");
    error_prefix(&err, -EIO, "%s", err.text);
    assert_string_equal(err.text, "outer (inner): outer (inner)");
}

static void null_error_is_allowed(void **state)
{
    assert_int_equal(error_set(NULL, -1, "x"), -1);
    assert_int_equal(error_set_errno(NULL, -2, "x"), -2);
    assert_int_equal(error_prefix(NULL, -3, "x"), -3);
}

static void long_text_is_cut_off(void **state)
{
    struct ferry_error err = {0};
    char text[2 * FERRY_ERROR_TEXT_SIZE];

    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    error_set(&err, -EIO, "%s", text);
    assert_int_equal(strlen(err.text), FERRY_ERROR_TEXT_SIZE - 1);
    error_set_errno(&err, -EIO, "%s", text);
    assert_int_equal(strlen(err.text), FERRY_ERROR_TEXT_SIZE - 1);
    error_prefix(&err, -EIO, "%s", text);
    assert_int_equal(strlen(err.text), FERRY_ERROR_TEXT_SIZE - 1);
    error_set(&err, -EIO, "tail");
    for (size_t length = FERRY_ERROR_TEXT_SIZE - 8; length < FERRY_ERROR_TEXT_SIZE; length++) {
        error_set(&err, -EIO, "tail");
        error_prefix(&err, -EIO, "%.*s", (int)length, text);
        assert_in_range(strlen(err.text), length, FERRY_ERROR_TEXT_SIZE - 1);
    }
}

static int open_and_leave(bool take, int *kept)
{
    CLEANUP_CLOSE int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    CLEANUP_FREE char *text = strdup("x");
    int number = fd;

    assert_non_null(text);
    *kept = take ? TAKE_FD(fd) : -1;
    return number;
}

static void cleanup_closes_unless_taken(void **state)
{
    int kept;
    int fd = open_and_leave(false, &kept);

    assert_int_equal(fcntl(fd, F_GETFD), -1);
    fd = open_and_leave(true, &kept);
    assert_int_equal(kept, fd);
    assert_int_not_equal(fcntl(fd, F_GETFD), -1);
    close(kept);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(set_fills_code_and_text),
        cmocka_unit_test(set_errno_appends_the_words),
        cmocka_unit_test(prefix_goes_before_and_keeps_the_code),
        cmocka_unit_test(own_text_may_be_an_argument),
        cmocka_unit_test(null_error_is_allowed),
        cmocka_unit_test(long_text_is_cut_off),
        cmocka_unit_test(cleanup_closes_unless_taken),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
