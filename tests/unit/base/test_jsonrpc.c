#include "unit.h"

#include "base/buffer.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/jsonrpc.h"
#include "base/sock.h"
#include "base/thread.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#define KEPT_MAX 2048

struct fixture {
    struct unit_dir dir;
    char path[128];
    struct ferry_error err;
    struct loop *loop;
    struct jsonrpc_server *server;
    struct thread thread;

    /* the loop thread's own */
    struct jsonrpc_request *kept[KEPT_MAX];
    size_t kept_count;
};

static void release_kept(struct fixture *fixture)
{
    while (fixture->kept_count > 0)
        jsonrpc_answer(fixture->kept[--fixture->kept_count], json_string("late"));
}

/*
 * echo: its params. fail: an error. keep: no answer until "release" is called. kept: how many are kept.
 * big {size}: that many bytes of text. tell {text}: a notification to subscribers. Others do not exist.
 */
static void handle(void *opaque, struct jsonrpc_request *request, const char *method, json_t *params)
{
    struct fixture *fixture = opaque;
    struct ferry_error err;
    char *text;
    size_t size;

    if (strcmp(method, "echo") == 0) {
        jsonrpc_answer(request, json_incref(params));
    } else if (strcmp(method, "fail") == 0) {
        error_set(&err, -EBUSY, "disk \xff.img is in use");
        jsonrpc_fail(request, &err);
    } else if (strcmp(method, "keep") == 0) {
        fixture->kept[fixture->kept_count++] = request;
    } else if (strcmp(method, "release") == 0) {
        release_kept(fixture);
        jsonrpc_answer(request, NULL);
    } else if (strcmp(method, "kept") == 0) {
        jsonrpc_answer(request, json_integer((json_int_t)fixture->kept_count));
    } else if (strcmp(method, "big") == 0) {
        size = (size_t)json_integer_value(json_object_get(params, "size"));
        text = malloc(size + 1);
        memset(text, 'x', size);
        jsonrpc_answer(request, json_stringn(text, size));
        free(text);
    } else if (strcmp(method, "tell") == 0) {
        jsonrpc_notify(fixture->server, "told", json_incref(params));
        jsonrpc_answer(request, NULL);
    } else {
        error_set(&err, -ENOSYS, "there is no method %s", method);
        jsonrpc_fail(request, &err);
    }
}

static void *serve(void *opaque)
{
    struct fixture *fixture = opaque;

    if (loop_run(fixture->loop, NULL))
        abort();
    return NULL;
}

static void stop_serving(struct fixture *fixture)
{
    loop_stop(fixture->loop);
    thread_join(&fixture->thread);
}

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    struct ferry_error *err = &fixture->err;
    int fd;

    *state = fixture;
    unit_dir_make(&fixture->dir);
    unit_path(&fixture->dir, "sock", fixture->path);
    fd = sock_listen(fixture->path, err);
    assert_true(fd >= 0);
    assert_ok(loop_new(&fixture->loop, err), *err);
    assert_ok(jsonrpc_server_new(&fixture->server, fixture->loop, fd, handle, fixture, err), *err);
    assert_ok(thread_start(&fixture->thread, THREAD_GENERAL, "server", serve, fixture, err), *err);
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;

    stop_serving(fixture);
    release_kept(fixture);
    jsonrpc_server_free(fixture->server);
    loop_free(fixture->loop);
    unit_dir_remove(&fixture->dir);
    free(fixture);
    return 0;
}

static uint64_t in_time(void)
{
    return clock_deadline(UNIT_DEADLINE_MS);
}

static struct jsonrpc_client *client_new(struct fixture *fixture, jsonrpc_listener *listener, void *opaque)
{
    struct jsonrpc_client *client;

    assert_ok(
        jsonrpc_client_connect(&client, fixture->path, "client", in_time(), listener, opaque, &fixture->err),
        fixture->err);
    return client;
}

static json_t *call(struct fixture *fixture, struct jsonrpc_client *client, const char *method,
                    json_t *params)
{
    json_t *result;

    assert_ok(jsonrpc_client_call(client, method, params, in_time(), &result, &fixture->err), fixture->err);
    return result;
}

static void assert_echoes(struct fixture *fixture, struct jsonrpc_client *client)
{
    json_t *result = call(fixture, client, "echo", json_pack("{s:i}", "n", 7));

    assert_int_equal(json_integer_value(json_object_get(result, "n")), 7);
    json_decref(result);
}

/* A new client is served: whatever went before, the server lives. */
static void assert_serves(struct fixture *fixture)
{
    struct jsonrpc_client *client = client_new(fixture, NULL, NULL);

    assert_echoes(fixture, client);
    jsonrpc_client_free(client);
}

/* Asks until that many requests are kept. */
static void wait_kept(struct fixture *fixture, struct jsonrpc_client *client, json_int_t wanted)
{
    json_int_t count;

    do {
        json_t *result = call(fixture, client, "kept", NULL);

        count = json_integer_value(result);
        json_decref(result);
    } while (count != wanted);
}

/* Raw connections: what no well-behaved client would send. */
static int raw_connect(struct fixture *fixture)
{
    int fd = sock_connect(fixture->path, in_time(), -1, &fixture->err);

    if (fd < 0)
        fail_msg("%s", fixture->err.text);
    return fd;
}

static void raw_send(struct fixture *fixture, int fd, const char *text)
{
    assert_ok(sock_write_full(fd, text, strlen(text), in_time(), -1, &fixture->err), fixture->err);
}

static json_t *raw_receive(struct fixture *fixture, int fd)
{
    struct buffer line = BUFFER_INIT;
    json_t *message;
    char byte;

    for (;;) {
        assert_ok(sock_read_full(fd, &byte, 1, in_time(), -1, &fixture->err), fixture->err);
        if (byte == '\n')
            break;
        buffer_put(&line, &byte, 1);
    }
    message = json_loadb((char *)line.data, line.size, 0, NULL);
    assert_non_null(message);
    assert_string_equal(json_string_value(json_object_get(message, "jsonrpc")), "2.0");
    buffer_free(&line);
    return message;
}

static void raw_expect_error(struct fixture *fixture, int fd, int code, const char *words)
{
    json_t *message = raw_receive(fixture, fd);
    const json_t *error = json_object_get(message, "error");

    assert_int_equal(json_integer_value(json_object_get(error, "code")), code);
    assert_contains(json_string_value(json_object_get(error, "message")), words);
    json_decref(message);
}

static void raw_expect_echo(struct fixture *fixture, int fd)
{
    json_t *message;

    raw_send(fixture, fd, "{\"jsonrpc\":\"2.0\",\"method\":\"echo\",\"params\":{\"a\":1},\"id\":\"x\"}\n");
    message = raw_receive(fixture, fd);
    assert_string_equal(json_string_value(json_object_get(message, "id")), "x");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(message, "result"), "a")), 1);
    json_decref(message);
}

static void raw_expect_closed(struct fixture *fixture, int fd)
{
    static char bytes[65536];
    ssize_t got;

    do {
        struct timeval patience = {.tv_sec = UNIT_DEADLINE_MS / 1000};

        assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)), 0);
        got = recv(fd, bytes, sizeof(bytes), 0);
    } while (got > 0);
    assert_true(got == 0 || errno == ECONNRESET);
}

static void call_returns_its_result(void **state)
{
    struct fixture *fixture = *state;
    struct jsonrpc_client *client = client_new(fixture, NULL, NULL);
    json_t *result;

    assert_echoes(fixture, client);
    result = call(fixture, client, "echo", NULL);
    assert_true(json_is_object(result));
    json_decref(result);
    assert_ok(jsonrpc_client_call(client, "echo", NULL, in_time(), NULL, &fixture->err), fixture->err);
    jsonrpc_client_free(client);
    jsonrpc_client_free(NULL);
}

static void failure_brings_words_and_errno(void **state)
{
    struct fixture *fixture = *state;
    struct jsonrpc_client *client = client_new(fixture, NULL, NULL);
    json_t *result;

    assert_int_equal(jsonrpc_client_call(client, "fail", NULL, in_time(), &result, &fixture->err), -EBUSY);
    assert_string_equal(fixture->err.text, "disk ?.img is in use");
    assert_null(result);
    assert_int_equal(jsonrpc_client_call(client, "fly", NULL, in_time(), NULL, &fixture->err), -ENOSYS);
    assert_string_equal(fixture->err.text, "there is no method fly");
    assert_int_equal(jsonrpc_client_call(client, "echo", json_array(), in_time(), NULL, &fixture->err),
                     -EINVAL);
    assert_echoes(fixture, client);
    jsonrpc_client_free(client);
}

static void garbage_gets_errors_and_the_connection_goes_on(void **state)
{
    static const struct {
        const char *line;
        int code;
        const char *words;
    } cases[] = {
        {"hello\n", -32700, "not JSON"},
        {"{\"jsonrpc\":\"2.0\",\"method\":\n", -32700, "not JSON"},
        {"{} {}\n", -32700, "not JSON"},
        {"\xff\xfe\x01\n", -32700, "not JSON"},
        {"{\"jsonrpc\":\"2.0\",\"method\":\"a\",\"method\":\"b\",\"id\":1}\n", -32700, "duplicate"},
        {"7\n", -32600, "object"},
        {"null\n", -32600, "object"},
        {"[]\n", -32600, "batches"},
        {"[{\"jsonrpc\":\"2.0\",\"method\":\"echo\",\"id\":1}]\n", -32600, "batches"},
        {"{}\n", -32600, "jsonrpc"},
        {"{\"jsonrpc\":2.0,\"method\":\"echo\",\"id\":1}\n", -32600, "jsonrpc"},
        {"{\"jsonrpc\":\"1.0\",\"method\":\"echo\",\"id\":1}\n", -32600, "jsonrpc"},
        {"{\"jsonrpc\":\"2.0\",\"id\":1}\n", -32600, "method"},
        {"{\"jsonrpc\":\"2.0\",\"method\":1,\"id\":1}\n", -32600, "method"},
        {"{\"jsonrpc\":\"2.0\",\"method\":\"echo\",\"id\":{}}\n", -32600, "id"},
        {"{\"jsonrpc\":\"2.0\",\"method\":\"echo\",\"id\":[1]}\n", -32600, "id"},
        {"{\"jsonrpc\":\"2.0\",\"method\":\"echo\",\"id\":true}\n", -32600, "id"},
        {"{\"jsonrpc\":\"2.0\",\"method\":\"echo\",\"params\":[1],\"id\":1}\n", -32602, "params"},
        {"{\"jsonrpc\":\"2.0\",\"method\":\"echo\",\"params\":null,\"id\":1}\n", -32602, "params"},
        {"{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"id\":1}\n", -32601, "nothing"},
        {"{\"jsonrpc\":\"2.0\",\"method\":\"fail\",\"id\":null}\n", JSONRPC_FAILED, "in use"},
    };
    struct fixture *fixture = *state;
    int fd = raw_connect(fixture);

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        raw_send(fixture, fd, cases[i].line);
        raw_expect_error(fixture, fd, cases[i].code, cases[i].words);
        raw_expect_echo(fixture, fd);
    }
    raw_send(fixture, fd, "\n\r\n  \n"); /* blank lines are nothing */
    raw_expect_echo(fixture, fd);
    close(fd);
}

static void deep_nesting_is_refused(void **state)
{
    struct fixture *fixture = *state;
    int fd = raw_connect(fixture);
    char *text = malloc(200001);

    memset(text, '[', 200000);
    text[200000] = '\0';
    raw_send(fixture, fd, text);
    raw_send(fixture, fd, "\n");
    raw_expect_error(fixture, fd, -32700, "not JSON");
    raw_expect_echo(fixture, fd);
    free(text);
    close(fd);
}

static void line_with_a_nul_is_refused(void **state)
{
    struct fixture *fixture = *state;
    int fd = raw_connect(fixture);

    assert_ok(sock_write_full(fd, "{}\0{}\n", 6, in_time(), -1, &fixture->err), fixture->err);
    raw_expect_error(fixture, fd, -32700, "not JSON");
    raw_expect_echo(fixture, fd);
    close(fd);
}

static void random_bytes_do_not_end_the_server(void **state)
{
    struct fixture *fixture = *state;
    static const char alphabet[] = "{}[]\",:\\ntrue0123e.-\n\n\xff \"jsonrpc\"\"method\"\"id\"";
    uint64_t seed = 0x5eed0004;

    print_message("seed 0x%llx\n", (unsigned long long)seed);
    for (int i = 0; i < 60; i++) {
        int fd = raw_connect(fixture);
        char bytes[4096];

        for (size_t j = 0; j < sizeof(bytes); j++)
            bytes[j] = alphabet[unit_random(&seed) % (sizeof(alphabet) - 1)];
        assert_ok(sock_write_full(fd, bytes, sizeof(bytes), in_time(), -1, &fixture->err), fixture->err);
        close(fd);
    }
    assert_serves(fixture);
}

static void oversized_line_gets_an_error_and_the_next_is_served(void **state)
{
    struct fixture *fixture = *state;
    int fd = raw_connect(fixture);
    char *text = malloc(3 * JSONRPC_LINE_MAX);

    memset(text, 'x', 3 * JSONRPC_LINE_MAX);
    for (size_t size = JSONRPC_LINE_MAX - 1; size <= 3 * JSONRPC_LINE_MAX; size += JSONRPC_LINE_MAX) {
        bool fits = size <= JSONRPC_LINE_MAX;

        text[size - 1] = '\n';
        assert_ok(sock_write_full(fd, text, size, in_time(), -1, &fixture->err), fixture->err);
        text[size - 1] = 'x';
        raw_expect_error(fixture, fd, fits ? -32700 : -32600, fits ? "not JSON" : "longer than");
        raw_expect_echo(fixture, fd);
    }
    free(text);
    close(fd);
}

static void line_of_exactly_the_most_is_served(void **state)
{
    struct fixture *fixture = *state;
    struct jsonrpc_client *client = client_new(fixture, NULL, NULL);
    int fd = raw_connect(fixture);
    static const char head[] = "{\"jsonrpc\":\"2.0\",\"method\":\"kept\",\"id\":1";
    char *text = malloc(JSONRPC_LINE_MAX + 2);

    for (int over = 0; over < 2; over++) {
        memset(text, ' ', JSONRPC_LINE_MAX + 2);
        memcpy(text, head, sizeof(head) - 1);
        text[JSONRPC_LINE_MAX - 1 + over] = '}';
        text[JSONRPC_LINE_MAX + over] = '\n';
        assert_ok(
            sock_write_full(fd, text, JSONRPC_LINE_MAX + 1 + (size_t)over, in_time(), -1, &fixture->err),
            fixture->err);
        if (over) {
            raw_expect_error(fixture, fd, -32600, "longer than");
        } else {
            json_t *message = raw_receive(fixture, fd);

            assert_true(json_is_integer(json_object_get(message, "result")));
            json_decref(message);
        }
    }
    memset(text, 'x', JSONRPC_LINE_MAX);
    assert_int_equal(jsonrpc_client_call(client, "echo", json_pack("{s:s#}", "t", text, JSONRPC_LINE_MAX),
                                         in_time(), NULL, &fixture->err),
                     -EMSGSIZE);
    assert_echoes(fixture, client);
    free(text);
    close(fd);
    jsonrpc_client_free(client);
}

static void request_in_pieces_is_put_together(void **state)
{
    static const char line[] = "{\"jsonrpc\":\"2.0\",\"method\":\"kept\",\"id\":1}\n";
    struct fixture *fixture = *state;
    int fd = raw_connect(fixture);

    for (size_t i = 0; i < sizeof(line) - 1; i++)
        assert_ok(sock_write_full(fd, line + i, 1, in_time(), -1, &fixture->err), fixture->err);
    json_decref(raw_receive(fixture, fd));
    /* and several in one piece */
    raw_send(
        fixture, fd,
        "{\"jsonrpc\":\"2.0\",\"method\":\"kept\",\"id\":1}\n{\"jsonrpc\":\"2.0\",\"method\":\"kept\",\"id\":"
        "2}\r\n"
        "{\"jsonrpc\":\"2.0\",\"method\":\"kept\"}\n{\"jsonrpc\":\"2.0\",\"method\":\"kept\",\"id\":3}\n");
    for (int id = 1; id <= 3; id++) {
        json_t *message = raw_receive(fixture, fd);

        assert_int_equal(json_integer_value(json_object_get(message, "id")), id);
        json_decref(message);
    }
    close(fd);
}

static void slow_reader_loses_its_connection_and_others_are_served(void **state)
{
    struct fixture *fixture = *state;
    int fd = raw_connect(fixture);

    /* 20 answers of 1 MiB, none of which is read: more than may wait */
    for (int i = 0; i < 20; i++)
        raw_send(fixture, fd,
                 "{\"jsonrpc\":\"2.0\",\"method\":\"big\",\"params\":{\"size\":1048576},\"id\":1}\n");
    assert_serves(fixture);
    raw_expect_closed(fixture, fd);
    assert_serves(fixture);
    close(fd);
}

static void answers_that_wait_arrive_once_they_are_read(void **state)
{
    struct fixture *fixture = *state;
    int fd = raw_connect(fixture);

    for (int i = 0; i < 5; i++)
        raw_send(fixture, fd,
                 "{\"jsonrpc\":\"2.0\",\"method\":\"big\",\"params\":{\"size\":200000},\"id\":1}\n");
    assert_serves(fixture);
    for (int i = 0; i < 5; i++) {
        json_t *message = raw_receive(fixture, fd);

        assert_int_equal(json_string_length(json_object_get(message, "result")), 200000);
        json_decref(message);
    }
    raw_expect_echo(fixture, fd);
    close(fd);
}

static void client_vanishing_mid_request_hurts_nobody(void **state)
{
    struct fixture *fixture = *state;
    struct jsonrpc_client *client = client_new(fixture, NULL, NULL);
    int fd = raw_connect(fixture);

    raw_send(fixture, fd,
             "{\"jsonrpc\":\"2.0\",\"method\":\"keep\",\"id\":1}\n"
             "{\"jsonrpc\":\"2.0\",\"method\":\"keep\",\"id\":2}\n");
    wait_kept(fixture, client, 2);
    close(fd);
    fd = raw_connect(fixture);
    raw_send(fixture, fd, "{\"jsonrpc\":\"2.0\",\"meth");
    close(fd);
    fd = raw_connect(fixture);
    raw_send(fixture, fd,
             "{\"jsonrpc\":\"2.0\",\"method\":\"big\",\"params\":{\"size\":4000000},\"id\":1}\n");
    close(fd);
    assert_serves(fixture);
    json_decref(call(fixture, client, "release", NULL));
    assert_echoes(fixture, client);
    jsonrpc_client_free(client);
}

static void last_words_of_a_client_are_heard(void **state)
{
    struct fixture *fixture = *state;
    struct jsonrpc_client *client = client_new(fixture, NULL, NULL);
    int fd = raw_connect(fixture);

    raw_send(fixture, fd, "{\"jsonrpc\":\"2.0\",\"method\":\"keep\"}\n");
    close(fd);
    wait_kept(fixture, client, 1);
    jsonrpc_client_free(client);
}

static void client_that_closed_its_writing_half_gets_its_answers(void **state)
{
    struct fixture *fixture = *state;
    struct jsonrpc_client *client = client_new(fixture, NULL, NULL);
    int fd = raw_connect(fixture);
    json_t *message;

    raw_send(fixture, fd, "{\"jsonrpc\":\"2.0\",\"method\":\"keep\",\"id\":1}\n");
    shutdown(fd, SHUT_WR);
    wait_kept(fixture, client, 1);
    json_decref(call(fixture, client, "release", NULL));
    message = raw_receive(fixture, fd);
    assert_string_equal(json_string_value(json_object_get(message, "result")), "late");
    json_decref(message);
    raw_expect_closed(fixture, fd);
    close(fd);
    jsonrpc_client_free(client);
}

struct late_call {
    struct fixture *fixture;
    struct jsonrpc_client *client;
    json_t *result;
    int status;
};

static void *late_call_main(void *opaque)
{
    struct late_call *late = opaque;

    late->status = jsonrpc_client_call(late->client, "keep", NULL, in_time(), &late->result, NULL);
    return NULL;
}

static void answers_may_come_later_and_in_any_order(void **state)
{
    enum { CALLS = 8 };
    struct fixture *fixture = *state;
    struct jsonrpc_client *client = client_new(fixture, NULL, NULL);
    struct late_call calls[CALLS];
    struct thread threads[CALLS];

    for (int i = 0; i < CALLS; i++) {
        calls[i] = (struct late_call){.fixture = fixture, .client = client};
        assert_ok(thread_start(&threads[i], THREAD_GENERAL, "late", late_call_main, &calls[i], &fixture->err),
                  fixture->err);
    }
    wait_kept(fixture, client, CALLS);
    assert_echoes(fixture, client); /* overtakes them */
    json_decref(call(fixture, client, "release", NULL));
    for (int i = 0; i < CALLS; i++) {
        thread_join(&threads[i]);
        assert_int_equal(calls[i].status, 0);
        assert_string_equal(json_string_value(calls[i].result), "late");
        json_decref(calls[i].result);
    }
    jsonrpc_client_free(client);
}

static void call_ends_at_its_deadline_and_the_connection_goes_on(void **state)
{
    struct fixture *fixture = *state;
    struct jsonrpc_client *client = client_new(fixture, NULL, NULL);

    assert_int_equal(jsonrpc_client_call(client, "keep", NULL, clock_deadline(10), NULL, &fixture->err),
                     -ETIMEDOUT);
    assert_contains(fixture->err.text, "keep");
    json_decref(call(fixture, client, "release", NULL)); /* the answer nobody waits for */
    assert_echoes(fixture, client);
    jsonrpc_client_free(client);
}

static void too_many_waiting_requests_are_refused(void **state)
{
    struct fixture *fixture = *state;
    int fd = raw_connect(fixture);

    for (int i = 0; i < JSONRPC_REQUESTS_MAX + 1; i++)
        raw_send(fixture, fd, "{\"jsonrpc\":\"2.0\",\"method\":\"keep\",\"id\":1}\n");
    raw_expect_error(fixture, fd, -32603, "too many");
    assert_serves(fixture);
    close(fd);
}

struct heard {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int told;
    int last;
    bool ended;
};

static void hear(void *opaque, const char *method, json_t *params)
{
    struct heard *heard = opaque;

    pthread_mutex_lock(&heard->lock);
    if (!method) {
        heard->ended = true;
    } else if (strcmp(method, "told") == 0) {
        heard->told++;
        heard->last = (int)json_integer_value(json_object_get(params, "n"));
    }
    pthread_cond_broadcast(&heard->changed);
    pthread_mutex_unlock(&heard->lock);
}

static void heard_init(struct heard *heard)
{
    *heard = (struct heard){.lock = PTHREAD_MUTEX_INITIALIZER};
    thread_cond_init(&heard->changed);
}

/* Waits for TOLD notifications, or for the end of the connection when TOLD is negative. */
static void heard_wait(struct heard *heard, int told)
{
    uint64_t deadline = in_time();
    bool waiting = true;

    pthread_mutex_lock(&heard->lock);
    while (waiting && (told < 0 ? !heard->ended : heard->told < told))
        waiting = thread_cond_wait_until(&heard->changed, &heard->lock, deadline);
    pthread_mutex_unlock(&heard->lock);
    assert_true(waiting);
}

static void notifications_go_to_those_who_subscribed(void **state)
{
    struct fixture *fixture = *state;
    struct heard heard;
    struct heard deaf;
    struct jsonrpc_client *subscriber;
    struct jsonrpc_client *other;

    heard_init(&heard);
    heard_init(&deaf);
    subscriber = client_new(fixture, hear, &heard);
    other = client_new(fixture, hear, &deaf);
    json_decref(call(fixture, subscriber, "subscribe", NULL));
    for (int i = 1; i <= 100; i++)
        json_decref(call(fixture, other, "tell", json_pack("{s:i}", "n", i)));
    heard_wait(&heard, 100);
    assert_int_equal(heard.last, 100);
    jsonrpc_client_free(subscriber);
    json_decref(call(fixture, other, "tell", json_pack("{s:i}", "n", 101)));
    jsonrpc_client_free(other);
    assert_int_equal(heard.told, 100);
    assert_false(heard.ended); /* it was the client who ended it */
    assert_int_equal(deaf.told, 0);
}

static void subscriber_that_does_not_read_is_dropped(void **state)
{
    struct fixture *fixture = *state;
    struct jsonrpc_client *client = client_new(fixture, NULL, NULL);
    int fd = raw_connect(fixture);
    char *text = malloc(500001);

    memset(text, 'x', 500000);
    text[500000] = '\0';
    raw_send(fixture, fd, "{\"jsonrpc\":\"2.0\",\"method\":\"subscribe\",\"id\":1}\n");
    json_decref(raw_receive(fixture, fd));
    for (int i = 0; i < 25; i++)
        json_decref(call(fixture, client, "tell", json_pack("{s:s}", "text", text)));
    raw_expect_closed(fixture, fd);
    free(text);
    close(fd);
    jsonrpc_client_free(client);
}

static void server_freed_first_lets_kept_requests_be_answered(void **state)
{
    struct fixture *fixture = *state;
    struct heard heard;
    struct jsonrpc_client *client;
    struct late_call late;
    struct thread thread;

    heard_init(&heard);
    client = client_new(fixture, hear, &heard);
    late = (struct late_call){.fixture = fixture, .client = client};
    assert_ok(thread_start(&thread, THREAD_GENERAL, "late", late_call_main, &late, &fixture->err),
              fixture->err);
    wait_kept(fixture, client, 1);
    stop_serving(fixture);
    jsonrpc_server_free(fixture->server);
    fixture->server = NULL;
    thread_join(&thread);
    assert_int_equal(late.status, -EPIPE);
    heard_wait(&heard, -1);
    assert_int_equal(jsonrpc_client_call(client, "echo", NULL, in_time(), NULL, &fixture->err), -EPIPE);
    release_kept(fixture);
    jsonrpc_client_free(client);
}

struct impostor {
    int listen_fd;
    const char *reply;
};

static void *impostor_main(void *opaque)
{
    struct impostor *impostor = opaque;
    int fd = sock_accept(impostor->listen_fd, in_time(), -1, NULL);
    char byte = 0;

    while (byte != '\n' && sock_read_full(fd, &byte, 1, in_time(), -1, NULL) == 0)
        ;
    sock_write_full(fd, impostor->reply, strlen(impostor->reply), in_time(), -1, NULL);
    shutdown(fd, SHUT_WR);
    while (sock_read_full(fd, &byte, 1, in_time(), -1, NULL) == 0)
        ;
    close(fd);
    return NULL;
}

static void client_survives_a_server_that_talks_nonsense(void **state)
{
    static const struct {
        const char *reply;
        int status;
    } cases[] = {
        {"nonsense\n", -EPIPE},
        {"[1]\n", -EPIPE},
        {"", -EPIPE},
        {"{\"id\":1", -EPIPE},
        {"{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":1}\n", -EPIPE},
        {"{\"jsonrpc\":\"2.0\",\"id\":\"1\",\"result\":1}\n", -EPIPE},
        {"{\"jsonrpc\":\"2.0\",\"id\":1}\n", -EPROTO},
        {"{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":7}\n", -EPROTO},
        {"{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":1,\"message\":\"m\",\"data\":{\"errno\":-5}}}\n",
         -EPROTO},
        {"{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"message\":\"m\",\"data\":{\"errno\":99999999999}}}\n",
         -EPROTO},
        {"\n{\"jsonrpc\":\"2.0\",\"method\":\"x\"}\n{\"id\":1,\"result\":null}\n{\"id\":1,\"result\":2}\n",
         0},
    };
    struct fixture *fixture = *state;
    struct impostor impostor;
    struct thread thread;
    struct heard heard;
    char path[128];

    heard_init(&heard);
    unit_path(&fixture->dir, "impostor", path);
    impostor.listen_fd = sock_listen(path, &fixture->err);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct jsonrpc_client *client;

        impostor.reply = cases[i].reply;
        assert_ok(thread_start(&thread, THREAD_GENERAL, "impostor", impostor_main, &impostor, &fixture->err),
                  fixture->err);
        assert_ok(jsonrpc_client_connect(&client, path, "client", in_time(), hear, &heard, &fixture->err),
                  fixture->err);
        assert_int_equal(jsonrpc_client_call(client, "x", NULL, in_time(), NULL, &fixture->err),
                         cases[i].status);
        heard_wait(&heard, -1);
        jsonrpc_client_free(client);
        thread_join(&thread);
        heard.ended = false;
    }
    close(impostor.listen_fd);
}

static void connecting_to_nobody_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct jsonrpc_client *client;
    char path[128];

    unit_path(&fixture->dir, "nobody", path);
    assert_int_equal(jsonrpc_client_connect(&client, path, "client", in_time(), NULL, NULL, &fixture->err),
                     -ENOENT);
    assert_contains(fixture->err.text, path);
    assert_null(client);
}

#define RPC_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        RPC_TEST(call_returns_its_result),
        RPC_TEST(failure_brings_words_and_errno),
        RPC_TEST(garbage_gets_errors_and_the_connection_goes_on),
        RPC_TEST(deep_nesting_is_refused),
        RPC_TEST(line_with_a_nul_is_refused),
        RPC_TEST(random_bytes_do_not_end_the_server),
        RPC_TEST(oversized_line_gets_an_error_and_the_next_is_served),
        RPC_TEST(line_of_exactly_the_most_is_served),
        RPC_TEST(request_in_pieces_is_put_together),
        RPC_TEST(slow_reader_loses_its_connection_and_others_are_served),
        RPC_TEST(answers_that_wait_arrive_once_they_are_read),
        RPC_TEST(client_vanishing_mid_request_hurts_nobody),
        RPC_TEST(last_words_of_a_client_are_heard),
        RPC_TEST(client_that_closed_its_writing_half_gets_its_answers),
        RPC_TEST(answers_may_come_later_and_in_any_order),
        RPC_TEST(call_ends_at_its_deadline_and_the_connection_goes_on),
        RPC_TEST(too_many_waiting_requests_are_refused),
        RPC_TEST(notifications_go_to_those_who_subscribed),
        RPC_TEST(subscriber_that_does_not_read_is_dropped),
        RPC_TEST(server_freed_first_lets_kept_requests_be_answered),
        RPC_TEST(client_survives_a_server_that_talks_nonsense),
        RPC_TEST(connecting_to_nobody_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
