/* The console's log, history and clients. */
#include "unit.h"

#include "base/clock.h"
#include "base/sock.h"
#include "base/thread.h"
#include "vm/confine.h"
#include "vm/console.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

struct fixture {
    struct unit_dir dir;
    char log[128], socket[128];
    struct loop *loop;
    struct console *console;
    char typed[8192];
    size_t typed_size, room;
};

static void open_console(struct fixture *fixture)
{
    struct ferry_error err;

    assert_ok(console_new(&fixture->console, fixture->loop, NULL, fixture->log, fixture->socket, &err), err);
}

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    struct ferry_error err;

    unit_dir_make(&fixture->dir);
    unit_path(&fixture->dir, "console.log", fixture->log);
    unit_path(&fixture->dir, "console.sock", fixture->socket);
    assert_ok(loop_new(&fixture->loop, &err), err);
    open_console(fixture);
    *state = fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;

    console_free(fixture->console);
    loop_free(fixture->loop);
    unit_dir_remove(&fixture->dir);
    free(fixture);
    return 0;
}

static void stop_loop(void *opaque)
{
    loop_stop(opaque);
}

/* Lets the loop do what there is to do, and a few gathering periods more. */
static void run_loop(struct fixture *fixture)
{
    struct loop_timer *timer;
    struct ferry_error err;

    assert_ok(loop_timer_add(fixture->loop, stop_loop, fixture->loop, &timer, &err), err);
    loop_timer_arm(timer, 20 * NS_PER_MS);
    assert_ok(loop_run(fixture->loop, &err), err);
    loop_timer_remove(timer);
}

static char *read_log(struct fixture *fixture, size_t *size)
{
    int fd = open(fixture->log, O_RDONLY);
    struct stat status;
    char *text;

    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &status), 0);
    text = calloc(1, (size_t)status.st_size + 1);
    assert_int_equal(read(fd, text, (size_t)status.st_size), status.st_size);
    close(fd);
    *size = (size_t)status.st_size;
    return text;
}

static void assert_log(struct fixture *fixture, const char *expected)
{
    size_t size;
    char *text = read_log(fixture, &size);

    assert_string_equal(text, expected);
    free(text);
}

static void say(struct fixture *fixture, const char *text)
{
    console_output(fixture->console, text, strlen(text));
}

static void output_goes_to_the_log(void **state)
{
    struct fixture *fixture = *state;

    say(fixture, "hello ");
    say(fixture, "world\n");
    run_loop(fixture);
    assert_log(fixture, "hello world\n");
}

static void flush_needs_no_loop(void **state)
{
    struct fixture *fixture = *state;

    say(fixture, "hello\n");
    console_flush(fixture->console);
    assert_log(fixture, "hello\n");
}

static void earlier_log_is_kept_and_is_history(void **state)
{
    struct fixture *fixture = *state;
    struct buffer saved = BUFFER_INIT;

    say(fixture, "first life\n");
    console_free(fixture->console);
    open_console(fixture);
    say(fixture, "second life\n");
    console_save(fixture->console, &saved);
    console_flush(fixture->console);
    assert_log(fixture, "first life\nsecond life\n");
    assert_int_equal(saved.size, 4 + strlen("first life\nsecond life\n"));
    buffer_free(&saved);
}

static void history_moves_and_the_log_reads_on(void **state)
{
    struct fixture *fixture = *state;
    struct buffer saved = BUFFER_INIT;
    struct ferry_error err;
    struct reader in;

    say(fixture, "of another VM\n");
    console_flush(fixture->console);
    buffer_put_string(&saved, "boot\nline 1\nli");
    in = reader_init(saved.data, saved.size);
    assert_ok(console_load(fixture->console, 1, &in, &err), err);
    assert_log(fixture, "of another VM\n"); /* nothing changes before it runs here */
    say(fixture, "ne 2\n");
    console_flush(fixture->console);
    assert_log(fixture, "boot\nline 1\nline 2\n");
    buffer_free(&saved);
}

static void hostile_history_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct buffer saved = BUFFER_INIT;
    struct ferry_error err;
    struct reader in;

    buffer_put_u32(&saved, CONSOLE_HISTORY_SIZE + 1);
    in = reader_init(saved.data, saved.size);
    assert_int_equal(console_load(fixture->console, 1, &in, &err), -EINVAL);
    assert_contains(err.text, CONSOLE_SECTION);
    buffer_clear(&saved);
    buffer_put_u32(&saved, 100);
    buffer_put(&saved, "short", 5);
    in = reader_init(saved.data, saved.size);
    assert_int_equal(console_load(fixture->console, 1, &in, &err), -EINVAL);
    in = reader_init(saved.data, saved.size);
    assert_int_equal(console_load(fixture->console, 2, &in, &err), -EPROTONOSUPPORT);
    buffer_free(&saved);
}

static void long_log_is_cut_at_the_start_of_a_line(void **state)
{
    struct fixture *fixture = *state;
    size_t size, bytes = 0;
    unsigned lines = 0;
    char *text;
    char line[64];

    while (bytes < 3 * CONSOLE_LOG_SIZE) {
        snprintf(line, sizeof(line), "line %u of many\n", lines++);
        say(fixture, line);
        bytes += strlen(line);
    }
    console_flush(fixture->console);
    text = read_log(fixture, &size);
    assert_true(size <= CONSOLE_LOG_SIZE * 5 / 4);
    assert_true(size >= CONSOLE_LOG_SIZE - 64);
    assert_memory_equal(text, "line ", 5);
    assert_string_equal(text + size - strlen(line), line);
    free(text);
}

static void history_is_bounded(void **state)
{
    struct fixture *fixture = *state;
    struct buffer saved = BUFFER_INIT;
    char *text = malloc(2 * CONSOLE_HISTORY_SIZE);

    memset(text, 'a', 2 * CONSOLE_HISTORY_SIZE);
    text[2 * CONSOLE_HISTORY_SIZE - 1] = 'z';
    console_output(fixture->console, text, 2 * CONSOLE_HISTORY_SIZE);
    console_save(fixture->console, &saved);
    assert_int_equal(saved.size, 4 + CONSOLE_HISTORY_SIZE);
    assert_int_equal(saved.data[saved.size - 1], 'z');
    buffer_free(&saved);
    free(text);
}

#define WRITERS 4
#define LINES   20000

static void *writer_thread(void *argument)
{
    char line[32];

    for (int i = 0; i < LINES; i++) {
        snprintf(line, sizeof(line), "%07d\n", i);
        console_output(argument, line, 8);
    }
    return NULL;
}

/* The loop does not run at all: more than the history holds must still all reach the log. */
static void nothing_is_lost_when_nobody_keeps_up(void **state)
{
    struct fixture *fixture = *state;
    struct thread threads[WRITERS] = {0};
    unsigned long sum = 0;
    struct ferry_error err;
    size_t size;
    char *text;

    for (int i = 0; i < WRITERS; i++)
        assert_ok(thread_start(&threads[i], THREAD_GENERAL, "writer", writer_thread, fixture->console, &err),
                  err);
    for (int i = 0; i < WRITERS; i++)
        thread_join(&threads[i]);
    console_flush(fixture->console);
    text = read_log(fixture, &size);
    assert_int_equal(size, WRITERS * LINES * 8);
    for (size_t at = 0; at < size; at += 8)
        sum += strtoul(text + at, NULL, 10);
    assert_int_equal(sum, (unsigned long)WRITERS * LINES * (LINES - 1) / 2);
    free(text);
}

static int connect_client(struct fixture *fixture)
{
    struct ferry_error err;
    int fd = sock_connect(fixture->socket, clock_deadline(UNIT_DEADLINE_MS), -1, &err);

    if (fd < 0)
        fail_msg("%s", err.text);
    run_loop(fixture);
    return fd;
}

static void assert_received(int fd, const char *expected)
{
    char text[256] = "";
    ssize_t count = recv(fd, text, sizeof(text) - 1, MSG_DONTWAIT);

    if (expected[0]) {
        assert_int_equal(count, strlen(expected));
        assert_string_equal(text, expected);
    } else {
        assert_int_equal(count, -1);
    }
}

static void clients_get_what_comes_after_them(void **state)
{
    struct fixture *fixture = *state;
    struct buffer saved = BUFFER_INIT;
    struct ferry_error err;
    struct reader in;
    int first, second;

    say(fixture, "before\n");
    run_loop(fixture);
    first = connect_client(fixture);
    buffer_put_string(&saved, "history\n");
    in = reader_init(saved.data, saved.size);
    assert_ok(console_load(fixture->console, 1, &in, &err), err);
    run_loop(fixture);
    assert_received(first, "");
    say(fixture, "one\n");
    run_loop(fixture);
    second = connect_client(fixture);
    say(fixture, "two\n");
    run_loop(fixture);
    assert_received(first, "one\ntwo\n");
    assert_received(second, "two\n");
    close(first);
    close(second);
    run_loop(fixture);
    buffer_free(&saved);
}

static size_t take(void *opaque, const void *data, size_t size)
{
    struct fixture *fixture = opaque;

    if (size > fixture->room)
        size = fixture->room;
    memcpy(fixture->typed + fixture->typed_size, data, size);
    fixture->typed_size += size;
    fixture->room -= size;
    return size;
}

static void input_waits_for_room_and_survives_its_client(void **state)
{
    struct fixture *fixture = *state;
    char text[6000];
    int fd = connect_client(fixture);

    for (size_t i = 0; i < sizeof(text); i++)
        text[i] = (char)('a' + i % 23);
    console_set_sink(fixture->console, take, fixture);
    assert_int_equal(write(fd, text, sizeof(text)), sizeof(text));
    close(fd);
    run_loop(fixture);
    assert_int_equal(fixture->typed_size, 0);
    while (fixture->typed_size < sizeof(text)) {
        size_t before = fixture->typed_size;

        fixture->room = 100;
        console_input_ready(fixture->console);
        run_loop(fixture);
        assert_true(fixture->typed_size > before);
    }
    assert_memory_equal(fixture->typed, text, sizeof(text));
}

/* That it is gone is found when output is sent to it, before it is looked at for input. */
static void input_of_a_client_that_left_at_once_is_taken_while_the_guest_talks(void **state)
{
    struct fixture *fixture = *state;
    int fd = connect_client(fixture);

    console_set_sink(fixture->console, take, fixture);
    fixture->room = 10;
    say(fixture, "talk\n");
    assert_int_equal(write(fd, "r", 1), 1);
    close(fd);
    run_loop(fixture);
    assert_int_equal(fixture->typed_size, 1);
    assert_int_equal(fixture->typed[0], 'r');
}

static void too_many_clients_are_turned_away(void **state)
{
    struct fixture *fixture = *state;
    int fds[CONSOLE_CLIENTS_MAX + 1];
    char byte;

    for (int i = 0; i <= CONSOLE_CLIENTS_MAX; i++)
        fds[i] = connect_client(fixture);
    assert_int_equal(recv(fds[CONSOLE_CLIENTS_MAX], &byte, 1, MSG_DONTWAIT), 0);
    say(fixture, "still there\n");
    run_loop(fixture);
    assert_received(fds[0], "still there\n");
    for (int i = 0; i <= CONSOLE_CLIENTS_MAX; i++)
        close(fds[i]);
}

static void log_that_cannot_be_written_stops_nothing(void **state)
{
    struct fixture *fixture = *state;
    int fd;

    console_free(fixture->console);
    unlink(fixture->log);
    assert_int_equal(symlink("/dev/full", fixture->log), 0);
    open_console(fixture);
    fd = connect_client(fixture);
    say(fixture, "lost to the log\n");
    run_loop(fixture);
    assert_received(fd, "lost to the log\n");
    close(fd);
}

/* --- in a thread that may only write --- */

#define MUCH (2 * CONSOLE_LOG_SIZE + 12345)

static void *say_much(void *opaque)
{
    struct fixture *fixture = opaque;
    char line[100];

    memset(line, 'x', sizeof(line));
    line[sizeof(line) - 1] = '\n';
    for (size_t said = 0; said < MUCH; said += sizeof(line))
        console_output(fixture->console, line, sizeof(line));
    return NULL;
}

/* In a child. Of a guest that has just arrived with as much history as there can be, and before the loop
 * runs. */
static int say_much_confined(struct fixture *fixture, enum thread_kind kind)
{
    char *history = malloc(CONSOLE_HISTORY_SIZE);
    struct buffer saved = BUFFER_INIT;
    struct confine *confine;
    struct thread thread;
    struct ferry_error err;
    struct reader in;

    memset(history, 'h', CONSOLE_HISTORY_SIZE);
    console_output(fixture->console, history, CONSOLE_HISTORY_SIZE);
    console_save(fixture->console, &saved);
    in = reader_init(saved.data, saved.size);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (console_load(fixture->console, console_state.version, &in, &err) < 0 ||
        confine_new(&confine, CONFINE_ON, &err) < 0 ||
        thread_start(&thread, kind, "much", say_much, fixture, &err) < 0)
        return 2;
    thread_join(&thread);
    return 0;
}

static void thread_that_may_only_write_says_more_than_there_is_room_for(void **state)
{
    static const enum thread_kind kinds[] = {THREAD_VCPU, THREAD_IO};
    struct fixture *fixture = *state;

    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        int status;
        pid_t child = fork();

        assert_true(child >= 0);
        if (child == 0)
            _exit(say_much_confined(fixture, kinds[i]));
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        TEST(output_goes_to_the_log),
        TEST(flush_needs_no_loop),
        TEST(earlier_log_is_kept_and_is_history),
        TEST(history_moves_and_the_log_reads_on),
        TEST(hostile_history_is_refused),
        TEST(long_log_is_cut_at_the_start_of_a_line),
        TEST(history_is_bounded),
        TEST(nothing_is_lost_when_nobody_keeps_up),
        TEST(clients_get_what_comes_after_them),
        TEST(input_waits_for_room_and_survives_its_client),
        TEST(input_of_a_client_that_left_at_once_is_taken_while_the_guest_talks),
        TEST(too_many_clients_are_turned_away),
        TEST(log_that_cannot_be_written_stops_nothing),
        TEST(thread_that_may_only_write_says_more_than_there_is_room_for),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
