#include "harness.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/sock.h"
#include "unit.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- witness ---- */

static void witness_look(struct witness *witness)
{
    struct ferry_progress *progress;

    if (!witness->session)
        return;
    progress = malloc(sizeof(*progress));
    ferry_session_progress(witness->session, progress);
    if (progress->phase == witness->percent_phase && progress->percent < witness->percent)
        witness->percent_fell = true;
    witness->percent_phase = progress->phase;
    witness->percent = progress->percent;
    free(progress);
}

static void witness_log(void *opaque, enum ferry_log_level level, const char *text)
{
    struct witness *witness = opaque;
    size_t used;

    pthread_mutex_lock(&witness->lock);
    used = strlen(witness->log);
    snprintf(witness->log + used, sizeof(witness->log) - used, "%s\n", text);
    witness_look(witness);
    pthread_mutex_unlock(&witness->lock);
}

static void witness_state(void *opaque, enum ferry_state state)
{
    struct witness *witness = opaque;

    pthread_mutex_lock(&witness->lock);
    if (witness->state_count < 32)
        witness->states[witness->state_count++] = state;
    pthread_mutex_unlock(&witness->lock);
}

static void witness_phase(void *opaque, enum ferry_phase phase)
{
    struct witness *witness = opaque;

    pthread_mutex_lock(&witness->lock);
    if (witness->phase_count < 16)
        witness->phases[witness->phase_count++] = phase;
    pthread_mutex_unlock(&witness->lock);
}

static void witness_round(void *opaque, unsigned number, const struct ferry_round *round)
{
    struct witness *witness = opaque;

    pthread_mutex_lock(&witness->lock);
    witness_look(witness);
    pthread_mutex_unlock(&witness->lock);
}

static struct ferry_observer witness_observer(struct witness *witness)
{
    return (struct ferry_observer){
        .opaque = witness,
        .log = witness_log,
        .state_changed = witness_state,
        .phase_changed = witness_phase,
        .round_done = witness_round,
    };
}

/* ---- proxy ---- */

struct pipe_pair {
    int a;
    int b;
};

#define PAIRS_MAX 32

/* Moves what is there; false when the pair is done or the budget is spent. */
static bool forward(struct proxy *proxy, int from, int to)
{
    uint8_t bytes[16384];
    uint64_t left = proxy->cut_after - proxy->forwarded;
    ssize_t n = read(from, bytes, left < sizeof(bytes) ? (size_t)left : sizeof(bytes));

    if (n <= 0)
        return false;
    if (proxy->needle[0] && memmem(bytes, (size_t)n, proxy->needle, NEEDLE_SIZE))
        proxy->found++;
    for (ssize_t done = 0; done < n;) {
        ssize_t m = send(to, bytes + done, (size_t)(n - done), MSG_NOSIGNAL);

        if (m < 0)
            return false;
        done += m;
    }
    proxy->forwarded += (uint64_t)n;
    return proxy->forwarded < proxy->cut_after;
}

static void *proxy_main(void *opaque)
{
    struct proxy *proxy = opaque;
    struct pipe_pair pairs[PAIRS_MAX];
    size_t count = 0;
    bool cut = proxy->cut_after == 0;

    for (;;) {
        struct pollfd polled[3 + 2 * PAIRS_MAX];
        eventfd_t value;

        polled[0] = (struct pollfd){.fd = proxy->stop_fd, .events = POLLIN};
        polled[1] = (struct pollfd){.fd = proxy->listen_fd, .events = POLLIN};
        for (size_t i = 0; i < count; i++) {
            polled[3 + 2 * i] = (struct pollfd){.fd = pairs[i].a, .events = POLLIN};
            polled[4 + 2 * i] = (struct pollfd){.fd = pairs[i].b, .events = POLLIN};
        }
        polled[2] = (struct pollfd){.fd = proxy->wake_fd, .events = POLLIN};
        poll(polled, 3 + 2 * count, -1);
        if (polled[0].revents)
            break;
        if (polled[2].revents)
            eventfd_read(proxy->wake_fd, &value);
        bool blocked = __atomic_load_n(&proxy->blocked, __ATOMIC_ACQUIRE);

        for (size_t i = count; i-- > 0 && !cut;) {
            bool alive = true;

            if (polled[3 + 2 * i].revents)
                alive = forward(proxy, pairs[i].a, pairs[i].b);
            if (alive && polled[4 + 2 * i].revents)
                alive = forward(proxy, pairs[i].b, pairs[i].a);
            if (!alive) {
                close(pairs[i].a);
                close(pairs[i].b);
                pairs[i] = pairs[--count];
                cut = proxy->forwarded >= proxy->cut_after;
            }
        }
        for (; (cut || blocked) && count > 0; count--) {
            close(pairs[count - 1].a);
            close(pairs[count - 1].b);
        }
        if (cut && proxy->mends > 0) {
            proxy->forwarded = 0;
            if (--proxy->mends == 0)
                proxy->cut_after = UINT64_MAX;
            cut = false;
        }
        if (polled[1].revents) {
            int a = sock_accept(proxy->listen_fd, clock_deadline(0), -1, NULL);
            int b =
                a < 0 || cut || blocked ? -1 : sock_connect(proxy->target, clock_deadline(5000), -1, NULL);

            if (b < 0 || count == PAIRS_MAX) {
                close(a);
                close(b);
            } else {
                sock_tune(a, 10000, NULL);
                sock_tune(b, 10000, NULL);
                pairs[count++] = (struct pipe_pair){a, b};
            }
        }
    }
    for (; count > 0; count--) {
        close(pairs[count - 1].a);
        close(pairs[count - 1].b);
    }
    return NULL;
}

/* ---- migration ---- */

void migration_init(struct migration *m, const uint64_t *sizes, size_t count, bool memfd)
{
    memset(m, 0, sizeof(*m));
    pthread_mutex_init(&m->source_witness.lock, NULL);
    pthread_mutex_init(&m->destination_witness.lock, NULL);
    fake_owner_init(&m->owner);
    m->source_ops = fake_guest_ops;
    assert_int_equal(fake_guest_init(&m->source, &m->owner, sizes, count, memfd, NULL), 0);
    assert_int_equal(fake_guest_init(&m->destination, &m->owner, sizes, count, memfd, NULL), 0);
    m->destination.arriving = true;
    fake_guest_run(&m->source, true);

    strcpy(m->source_options.migration_id, "3f1c9a52-0000-4000-8000-00000000feed");
    strcpy(m->source_options.source, "alpha");
    strcpy(m->source_options.destination, "beta");
    m->source_options.destination_pid = 4711;
    memset(m->source_options.token, 0xa5, FERRY_TOKEN_SIZE);
    m->source_options.peer_timeout_ns = 20 * NS_PER_S;
    memcpy(m->destination_options.migration_id, m->source_options.migration_id, FERRY_ID_SIZE);
    memcpy(m->destination_options.token, m->source_options.token, FERRY_TOKEN_SIZE);
    strcpy(m->destination_options.source, "alpha");
    strcpy(m->destination_options.destination, "beta");
    m->destination_options.peer_timeout_ns = 20 * NS_PER_S;
    m->destination_options.listen_fd = sock_listen("127.0.0.1:0", NULL);
    assert_true(m->destination_options.listen_fd >= 0);
    assert_int_equal(sock_local_address(m->destination_options.listen_fd, m->source_options.address, NULL),
                     0);
    if (getenv("UNIT_TLS"))
        migration_encrypt(m);
}

void migration_encrypt(struct migration *m)
{
    m->certificates = calloc(1, sizeof(*m->certificates));
    certificates_make(m->certificates);
    m->source_options.credentials = certificates_issue(m->certificates, m->source_options.source);
    m->destination_options.credentials =
        certificates_issue(m->certificates, m->destination_options.destination);
}

void migration_use_two_addresses(struct migration *m)
{
    close(m->destination_options.listen_fd);
    m->destination_options.listen_fd = sock_listen("127.0.0.2:0", NULL);
    assert_true(m->destination_options.listen_fd >= 0);
    assert_int_equal(sock_local_address(m->destination_options.listen_fd, m->source_options.address, NULL),
                     0);
}

void migration_use_unix_socket(struct migration *m)
{
    static unsigned number; /* each test has a directory; and one thread that calls this */

    close(m->destination_options.listen_fd);
    snprintf(m->socket_path, sizeof(m->socket_path), "./socket-%u", number++);
    m->destination_options.listen_fd = sock_listen(m->socket_path, NULL);
    assert_true(m->destination_options.listen_fd >= 0);
    strcpy(m->source_options.address, m->socket_path);
}

void migration_pass_memory(struct migration *m)
{
    migration_use_unix_socket(m);
    m->source_options.pass_memory = m->destination_options.memory_passed = true;
}

void migration_cut_after(struct migration *m, uint64_t bytes)
{
    struct proxy *proxy = &m->proxy;

    proxy->cut_after = bytes;
    memcpy(proxy->target, m->source_options.address, sizeof(proxy->target));
    proxy->listen_fd = sock_listen("127.0.0.1:0", NULL);
    proxy->stop_fd = eventfd(0, EFD_CLOEXEC);
    proxy->wake_fd = eventfd(0, EFD_CLOEXEC);
    assert_true(proxy->listen_fd >= 0 && proxy->stop_fd >= 0 && proxy->wake_fd >= 0);
    assert_int_equal(sock_local_address(proxy->listen_fd, m->source_options.address, NULL), 0);
    assert_int_equal(thread_start(&proxy->thread, THREAD_GENERAL, "proxy", proxy_main, proxy, NULL), 0);
    m->proxied = true;
}

void migration_cut_often(struct migration *m, uint64_t bytes, unsigned cuts)
{
    m->proxy.mends = cuts;
    migration_cut_after(m, bytes);
}

void migration_block(struct migration *m, bool blocked)
{
    __atomic_store_n(&m->proxy.blocked, blocked, __ATOMIC_RELEASE);
    eventfd_write(m->proxy.wake_fd, 1);
}

void migration_create(struct migration *m)
{
    struct ferry_observer observer = witness_observer(&m->source_witness);
    struct ferry_error err = {0};

    if (ferry_source_new(&m->from, &m->source_options, &m->source_ops, &m->source, &observer, &err) < 0)
        fail_msg("%s", err.text);
    m->source_witness.session = m->from;
    observer = witness_observer(&m->destination_witness);
    if (ferry_destination_new(&m->to, &m->destination_options, &fake_guest_ops, &m->destination, &observer,
                              &err) < 0)
        fail_msg("%s", err.text);
    m->destination_witness.session = m->to;
}

static void *destination_main(void *opaque)
{
    struct migration *m = opaque;

    m->destination_result = ferry_session_run(m->to, &m->destination_error);
    if (m->destination_exits) {
        close(m->destination_options.listen_fd);
        m->destination_options.listen_fd = -1;
    }
    return NULL;
}

void migration_start_destination(struct migration *m)
{
    assert_int_equal(
        thread_start(&m->destination_thread, THREAD_GENERAL, "destination", destination_main, m, NULL), 0);
}

void migration_join_destination(struct migration *m)
{
    thread_join(&m->destination_thread);
    ferry_session_progress(m->to, &m->destination_progress);
}

void migration_run(struct migration *m)
{
    if (!m->from)
        migration_create(m);
    migration_start_destination(m);
    m->source_result = ferry_session_run(m->from, &m->source_error);
    ferry_session_progress(m->from, &m->source_progress);
    /* A source that gave up before it reached the destination leaves that waiting. */
    if (m->source_result < 0) {
        struct ferry_progress *progress = malloc(sizeof(*progress));

        ferry_session_progress(m->to, progress);
        if (progress->state <= MIGRATE_FROM_VMX_WAITING)
            ferry_session_cancel(m->to, NULL);
        free(progress);
    }
    migration_join_destination(m);
}

void migration_free(struct migration *m)
{
    ferry_session_free(m->from);
    ferry_session_free(m->to);
    if (m->proxied) {
        eventfd_write(m->proxy.stop_fd, 1);
        thread_join(&m->proxy.thread);
        close(m->proxy.listen_fd);
        close(m->proxy.stop_fd);
        close(m->proxy.wake_fd);
    }
    close(m->destination_options.listen_fd);
    if (m->socket_path[0])
        unlink(m->socket_path);
    credentials_unref(m->source_options.credentials);
    credentials_unref(m->destination_options.credentials);
    if (m->certificates)
        certificates_remove(m->certificates);
    free(m->certificates);
    fake_guest_destroy(&m->source);
    fake_guest_destroy(&m->destination);
    fake_owner_destroy(&m->owner);
    pthread_mutex_destroy(&m->source_witness.lock);
    pthread_mutex_destroy(&m->destination_witness.lock);
}

void assert_counts(struct fake_guest *guest)
{
    uint64_t before = fake_guest_count(guest);
    uint64_t deadline = clock_deadline(20000);

    while (fake_guest_count(guest) == before && clock_now_ns() < deadline)
        poll(NULL, 0, 1);
    assert_true(fake_guest_count(guest) > before);
}

void migration_assert_completed(struct migration *m)
{
    if (m->source_result < 0)
        fail_msg("source: %s", m->source_error.text);
    if (m->destination_result < 0)
        fail_msg("destination: %s", m->destination_error.text);
    assert_int_equal(m->source_progress.outcome, FERRY_OUTCOME_COMPLETED);
    assert_int_equal(m->destination_progress.outcome, FERRY_OUTCOME_COMPLETED);
    assert_true(m->destination.loaded);
    assert_false(fake_guest_running(&m->source));
    assert_int_equal(m->owner.running_max <= 1, 1);
    assert_ptr_equal(m->owner.holder, &m->destination);
    /* The arrived vCPU writes nothing unless it is told to. */
    for (size_t i = 0; i < m->source.region_count; i++)
        assert_int_equal(memcmp(m->source.regions[i].host_ptr, m->destination.regions[i].host_ptr,
                                m->source.regions[i].size),
                         0);
    assert_int_equal(m->source.random, m->destination.random);
    assert_false(m->source_witness.percent_fell);
    assert_false(m->destination_witness.percent_fell);
}

void migration_assert_one(struct migration *m, bool running)
{
    bool here = fake_guest_running(&m->source);
    bool there = fake_guest_running(&m->destination);
    enum ferry_outcome source = m->source_progress.outcome;
    enum ferry_outcome destination = m->destination_progress.outcome;

    assert_true(m->owner.running_max <= 1);
    assert_false(here && there);
    if (destination == FERRY_OUTCOME_COMPLETED) {
        assert_true(source == FERRY_OUTCOME_COMPLETED || source == FERRY_OUTCOME_LOST ||
                    source == FERRY_OUTCOME_UNKNOWN);
        assert_ptr_equal(m->owner.holder, &m->destination);
        assert_int_equal(there, running);
    } else if (source == FERRY_OUTCOME_UNKNOWN) {
        assert_false(here || there);
    } else {
        assert_true(source == FERRY_OUTCOME_FAILED || source == FERRY_OUTCOME_CANCELLED);
        assert_ptr_equal(m->owner.holder, &m->source);
        assert_int_equal(here, running);
        assert_false(m->source.quiesced);
        assert_false(m->source.tracking);
        if (running)
            assert_counts(&m->source);
    }
    assert_int_equal(m->source_progress.state, MIGRATE_VMX_NONE);
    assert_int_equal(m->destination_progress.state, MIGRATE_VMX_NONE);
}

/* ---- tests apart ---- */

/* Below what the whole program may take, so that the others still get their turn. */
#define TEST_LIMIT_S 150

static void run_child(const struct CMUnitTest *test, const char *directory, CMFixtureFunction group_setup,
                      CMFixtureFunction group_teardown)
{
    const struct CMUnitTest tests[] = {*test};

    /* What was said before the end is seen whatever the end is. */
    setvbuf(stdout, NULL, _IOLBF, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(TEST_LIMIT_S);
    if (chdir(directory) < 0)
        exit(1);
    exit(cmocka_run_group_tests_name(test->name, tests, group_setup, group_teardown));
}

static bool run_apart(const struct CMUnitTest *test, CMFixtureFunction group_setup,
                      CMFixtureFunction group_teardown)
{
    struct unit_dir directory;
    int status = -1;
    pid_t pid;

    unit_dir_make(&directory);
    fflush(NULL);
    pid = fork();
    if (pid == 0)
        run_child(test, directory.path, group_setup, group_teardown);
    if (pid > 0 && waitpid(pid, &status, 0) != pid)
        status = -1;
    unit_dir_remove(&directory);
    if (status != -1 && WIFSIGNALED(status))
        printf("%s ended by signal %d%s\n", test->name, WTERMSIG(status),
               WTERMSIG(status) == SIGALRM ? ": it took too long" : "");
    return status == 0;
}

int run_each_apart(const struct CMUnitTest *tests, size_t count, CMFixtureFunction group_setup,
                   CMFixtureFunction group_teardown)
{
    int failed = 0;

    for (size_t i = 0; i < count; i++) {
        if (run_apart(&tests[i], group_setup, group_teardown))
            continue;
        printf("%s FAILED\n", tests[i].name);
        failed++;
    }
    return failed;
}
