/* What the journal is told, by a socket that stands for it. */
#include "unit.h"

#include "host/journal.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

struct fixture {
    struct unit_dir dir;
    char path[128];
    int fd; /* the journal's */
    struct journal *journal;
    struct log *log;
};

static int set_up(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct ferry_error err;

    unit_dir_make(&fixture->dir);
    unit_path(&fixture->dir, "journal", fixture->path);
    snprintf(address.sun_path, sizeof(address.sun_path), "%.100s", fixture->path);
    fixture->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fixture->fd, (const struct sockaddr *)&address, sizeof(address)), 0);
    fixture->log = log_open_fd(-1, LOG_LEVEL_INFO);
    assert_ok(journal_open(&fixture->journal, fixture->path, "a", &err), err);
    log_set_listener(fixture->log, journal_listen, fixture->journal);
    *state = fixture;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *fixture = *state;

    log_close(fixture->log);
    journal_close(fixture->journal);
    close(fixture->fd);
    unit_dir_remove(&fixture->dir);
    free(fixture);
    return 0;
}

static void assert_told(struct fixture *fixture, const char *wanted)
{
    char text[8192];
    ssize_t size = recv(fixture->fd, text, sizeof(text) - 1, MSG_DONTWAIT);

    assert_true(size > 0);
    text[size] = '\0';
    assert_string_equal(text, wanted);
}

static void a_line_has_what_it_is_about_as_fields(void **state)
{
    struct fixture *fixture = *state;
    struct log_labels labels = {.vm = "web", .migration = "1b4e", .host = "b", .code = "VMS2432"};
    struct log *view = log_scope_labelled(fixture->log, "migration 1b4e", &labels);
    struct log *inner = log_scope(view, "more");

    log_info(view, "VM %s continued", "web");
    assert_told(fixture, "MESSAGE=VM web continued\nPRIORITY=6\nSYSLOG_IDENTIFIER=ferryd\nFERRY_HOST=b\n"
                         "FERRY_VM=web\nFERRY_MIGRATION_ID=1b4e\nFERRY_CODE=VMS2432\n");
    log_error(inner, "x");
    assert_told(fixture, "MESSAGE=x\nPRIORITY=3\nSYSLOG_IDENTIFIER=ferryd\nFERRY_HOST=b\n"
                         "FERRY_VM=web\nFERRY_MIGRATION_ID=1b4e\nFERRY_CODE=VMS2432\n");
    log_close(inner);
    log_close(view);
}

static void other_lines_are_of_this_host(void **state)
{
    struct fixture *fixture = *state;

    log_warn(fixture->log, "one\nFERRY_VM=other");
    assert_told(fixture, "MESSAGE=one?FERRY_VM=other\nPRIORITY=4\nSYSLOG_IDENTIFIER=ferryd\nFERRY_HOST=a\n");
}

static void a_label_cannot_make_fields(void **state)
{
    struct fixture *fixture = *state;
    struct log_labels labels = {.vm = "web\nPRIORITY=0"};
    struct log *view = log_scope_labelled(fixture->log, "vm", &labels);

    log_info(view, "x");
    assert_told(fixture, "MESSAGE=x\nPRIORITY=6\nSYSLOG_IDENTIFIER=ferryd\nFERRY_HOST=a\n");
    log_close(view);
}

static void nothing_waits_for_a_journal_that_reads_nothing(void **state)
{
    struct fixture *fixture = *state;

    for (int i = 0; i < 5000; i++)
        log_info(fixture->log, "line %d", i);
    assert_told(fixture, "MESSAGE=line 0\nPRIORITY=6\nSYSLOG_IDENTIFIER=ferryd\nFERRY_HOST=a\n");
}

static void a_journal_that_is_not_there_is_no_failure(void **state)
{
    struct journal *journal = NULL;
    struct log *log = log_open_fd(-1, LOG_LEVEL_INFO);
    struct ferry_error err;
    char path[300];

    (void)state;
    assert_ok(journal_open(&journal, "/nonexistent/socket", "a", &err), err);
    log_set_listener(log, journal_listen, journal);
    log_info(log, "x");
    log_close(log);
    journal_close(journal);
    memset(path, 'x', sizeof(path) - 1);
    path[sizeof(path) - 1] = '\0';
    assert_int_equal(journal_open(&journal, path, "a", &err), -ENAMETOOLONG);
}

static void stream_is_told_by_device_and_inode(void **state)
{
    struct fixture *fixture = *state;
    struct stat status;
    char text[64];

    assert_int_equal(fstat(fixture->fd, &status), 0);
    snprintf(text, sizeof(text), "%llu:%llu", (unsigned long long)status.st_dev,
             (unsigned long long)status.st_ino);
    assert_true(journal_is_stream(text, fixture->fd));
    strcat(text, "0");
    assert_false(journal_is_stream(text, fixture->fd));
    assert_false(journal_is_stream(NULL, fixture->fd));
    assert_false(journal_is_stream("", fixture->fd));
    assert_false(journal_is_stream("12", fixture->fd));
    assert_false(journal_is_stream("1:2x", fixture->fd));
    assert_false(journal_is_stream("1:2", -1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_line_has_what_it_is_about_as_fields, set_up, tear_down),
        cmocka_unit_test_setup_teardown(other_lines_are_of_this_host, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_label_cannot_make_fields, set_up, tear_down),
        cmocka_unit_test_setup_teardown(nothing_waits_for_a_journal_that_reads_nothing, set_up, tear_down),
        cmocka_unit_test(a_journal_that_is_not_there_is_no_failure),
        cmocka_unit_test_setup_teardown(stream_is_told_by_device_and_inode, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
