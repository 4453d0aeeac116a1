#include "unit.h"

#include "base/log.h"
#include "base/thread.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

struct fixture {
    struct unit_dir dir;
    char path[128];
    struct log *log;
};

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    struct ferry_error err;

    unit_dir_make(&fixture->dir);
    unit_path(&fixture->dir, "log", fixture->path);
    *state = fixture;
    return log_open_file(&fixture->log, fixture->path, LOG_LEVEL_INFO, &err);
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;

    log_close(fixture->log);
    unit_dir_remove(&fixture->dir);
    free(fixture);
    return 0;
}

/* The whole file, NUL-terminated; free it. */
static char *slurp(const char *path)
{
    FILE *file = fopen(path, "re");
    char *text = NULL;
    size_t capacity = 0;

    assert_non_null(file);
    if (getdelim(&text, &capacity, '\0', file) < 0) {
        free(text);
        text = strdup("");
    }
    fclose(file);
    return text;
}

#define TIME_LENGTH (sizeof("2026-11-21T03:31:36.123+01:00 ") - 1)

static void line_has_time_level_and_text(void **state)
{
    struct fixture *fixture = *state;
    char *text;
    int parts[9];

    log_warn(fixture->log, "disk %s is slow", "a");
    text = slurp(fixture->path);
    assert_string_equal(text + TIME_LENGTH, "WARN  disk a is slow\n");
    assert_int_equal(sscanf(text, "%4d-%2d-%2dT%2d:%2d:%2d.%3d%3d:%2d ", &parts[0], &parts[1], &parts[2],
                            &parts[3], &parts[4], &parts[5], &parts[6], &parts[7], &parts[8]),
                     9);
    free(text);
}

static void below_the_threshold_nothing_is_written(void **state)
{
    struct fixture *fixture = *state;
    char *text;

    log_debug(fixture->log, "no");
    log_debug(NULL, "no");
    log_error(NULL, "no");
    log_info(fixture->log, "yes");
    log_error(fixture->log, "yes");
    text = slurp(fixture->path);
    assert_null(strstr(text, "no"));
    assert_contains(text, "INFO  yes\n");
    assert_contains(text, "ERROR yes\n");
    free(text);
}

static void scopes_add_their_tags(void **state)
{
    struct fixture *fixture = *state;
    struct log *vm = log_scope(fixture->log, "vm web");
    struct log *migration = log_scope(vm, "migration\n1b4e");
    char *text;

    log_info(vm, "one");
    log_info(migration, "two");
    log_info(fixture->log, "three");
    text = slurp(fixture->path);
    assert_contains(text, "INFO  [vm web] one\n");
    assert_contains(text, "INFO  [vm web] [migration?1b4e] two\n");
    assert_contains(text, "INFO  three\n");
    free(text);
    log_close(migration);
    log_close(vm);
    log_close(NULL);
}

static void control_characters_are_replaced(void **state)
{
    struct fixture *fixture = *state;
    char *text;

    log_info(fixture->log, "%s",
             "a\nb\rc\x1b[31md\x7f\te\xc2\x9b"
             "f\xc2\xa0 Gr\xc3\xbc\xc3\x9f"
             "e");
    text = slurp(fixture->path);
    assert_contains(text, "INFO  a?b?c?[31md??e??f\xc2\xa0 Gr\xc3\xbc\xc3\x9f"
                          "e\n");
    free(text);
}

static void long_lines_are_cut_off_at_a_character(void **state)
{
    struct fixture *fixture = *state;
    char words[9000];
    char *text;
    size_t length;

    for (size_t shift = 0; shift < 2; shift++) {
        assert_int_equal(truncate(fixture->path, 0), 0);
        memset(words, 'x', shift);
        for (size_t i = shift; i + 2 < sizeof(words); i += 2)
            memcpy(words + i, "\xc3\xbc", 3);
        log_info(fixture->log, "%s", words);
        text = slurp(fixture->path);
        length = strlen(text);
        assert_in_range(length, 4090, 4096);
        assert_int_equal(text[length - 1], '\n');
        assert_memory_equal(text + length - 3, "\xc3\xbc", 2);
        free(text);
    }
    log_info(fixture->log, "next");
    text = slurp(fixture->path);
    assert_contains(text, "INFO  next\n");
    free(text);
    assert_int_equal(log_dropped(fixture->log), 0);
}

#define THREADS 6
#define LINES   400

struct chatter {
    struct log *log;
    char letter;
};

static void *chatter_main(void *opaque)
{
    struct chatter *chatter = opaque;
    char words[200];

    memset(words, chatter->letter, sizeof(words) - 1);
    words[sizeof(words) - 1] = '\0';
    for (int i = 0; i < LINES; i++)
        log_info(chatter->log, "%d %s", i, words);
    return NULL;
}

static void lines_of_many_threads_never_mix(void **state)
{
    struct fixture *fixture = *state;
    struct thread threads[THREADS];
    struct chatter chatters[THREADS];
    int next[THREADS] = {0};
    struct ferry_error err;
    char *text;
    char *rest;

    for (int i = 0; i < THREADS; i++) {
        chatters[i] = (struct chatter){fixture->log, (char)('a' + i)};
        assert_ok(thread_start(&threads[i], THREAD_GENERAL, "chatter", chatter_main, &chatters[i], &err),
                  err);
    }
    for (int i = 0; i < THREADS; i++)
        thread_join(&threads[i]);
    rest = text = slurp(fixture->path);
    for (int i = 0; i < THREADS * LINES; i++) {
        char *line = strsep(&rest, "\n");
        int number;
        char words[256];

        assert_non_null(line);
        assert_int_equal(sscanf(line + TIME_LENGTH, "INFO %d %255[a-z]", &number, words), 2);
        assert_int_equal(strlen(words), 199);
        assert_int_equal(strspn(words, (char[]){words[0], '\0'}), 199);
        assert_int_equal(number, next[words[0] - 'a']++);
    }
    assert_string_equal(rest, "");
    free(text);
}

static void full_disk_counts_dropped_lines(void **state)
{
    int fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
    struct log *log = log_open_fd(fd, LOG_LEVEL_INFO);
    struct log *scope = log_scope(log, "x");

    assert_true(fd >= 0);
    for (int i = 0; i < 3; i++)
        log_info(scope, "lost");
    log_debug(scope, "below the threshold: not lost");
    assert_int_equal(log_dropped(log), 3);
    assert_int_equal(log_dropped(scope), 3);
    log_close(scope);
    log_close(log);
    assert_int_equal(close(fd), 0); /* stayed the caller's */
}

static void line_after_a_torn_one_begins_anew(void **state)
{
    struct fixture *fixture = *state;
    struct rlimit before;
    struct rlimit small;
    char *text;

    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = TIME_LENGTH + 8;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    log_info(fixture->log, "torn apart");
    log_info(fixture->log, "lost");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(log_dropped(fixture->log), 2);
    log_info(fixture->log, "whole");
    log_info(fixture->log, "again");
    text = slurp(fixture->path);
    assert_memory_equal(text + TIME_LENGTH, "INFO  to\n", 9);
    assert_contains(text, "INFO  whole\n");
    assert_contains(text, "INFO  again\n");
    assert_null(strstr(text, "\n\n"));
    free(text);
}

struct heard {
    int count;
    enum log_level level;
    char tag[LOG_TAG_SIZE];
    char text[64];
    struct log *log;
};

static void hear(void *opaque, const struct log_line *line)
{
    struct heard *heard = opaque;

    heard->level = line->level;
    snprintf(heard->tag, sizeof(heard->tag), "%s", line->tag);
    snprintf(heard->text, sizeof(heard->text), "%s", line->text);
    if (heard->count++ == 0)
        log_info(heard->log, "from the listener");
}

static void listener_gets_lines_from_info_up(void **state)
{
    struct heard heard = {0};
    struct log *log = log_open_fd(-1, LOG_LEVEL_ERROR);
    struct log *scope = log_scope(log, "vm a");

    heard.log = log;
    log_set_listener(scope, hear, &heard);
    log_debug(scope, "no");
    assert_int_equal(heard.count, 0);
    log_info(scope, "x\ny");
    assert_int_equal(heard.count, 2);
    log_warn(scope, "x\ny");
    assert_int_equal(heard.count, 3);
    assert_int_equal(heard.level, LOG_LEVEL_WARN);
    assert_string_equal(heard.tag, "vm a");
    assert_string_equal(heard.text, "x?y");
    log_error(log, "root");
    assert_string_equal(heard.tag, "");
    log_set_listener(log, NULL, NULL);
    log_error(log, "root");
    assert_int_equal(heard.count, 4);
    log_close(scope);
    log_close(log);
}

static void file_is_appended_to_and_not_for_everybody(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;
    struct stat status;
    struct log *again;
    char *text;

    log_info(fixture->log, "first");
    assert_ok(log_open_file(&again, fixture->path, LOG_LEVEL_INFO, &err), err);
    log_info(again, "second");
    log_close(again);
    text = slurp(fixture->path);
    assert_contains(text, "first");
    assert_contains(text, "second");
    free(text);
    assert_int_equal(stat(fixture->path, &status), 0);
    assert_int_equal(status.st_mode & 0137, 0);
}

static void file_that_cannot_be_opened_is_named(void **state)
{
    struct ferry_error err;
    struct log *log;

    assert_int_equal(log_open_file(&log, "/nowhere/log", LOG_LEVEL_INFO, &err), -ENOENT);
    assert_contains(err.text, "/nowhere/log");
    assert_null(log);
}

#define LOG_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOG_TEST(line_has_time_level_and_text),
        LOG_TEST(below_the_threshold_nothing_is_written),
        LOG_TEST(scopes_add_their_tags),
        LOG_TEST(control_characters_are_replaced),
        LOG_TEST(long_lines_are_cut_off_at_a_character),
        LOG_TEST(lines_of_many_threads_never_mix),
        LOG_TEST(line_after_a_torn_one_begins_anew),
        LOG_TEST(file_is_appended_to_and_not_for_everybody),
        cmocka_unit_test(full_disk_counts_dropped_lines),
        cmocka_unit_test(listener_gets_lines_from_info_up),
        cmocka_unit_test(file_that_cannot_be_opened_is_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
