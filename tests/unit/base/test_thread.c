#include "unit.h"

#include "base/clock.h"
#include "base/thread.h"

#include <signal.h>

struct seen {
    char name[16];
    sigset_t blocked;
};

static void *look_around(void *opaque)
{
    struct seen *seen = opaque;

    pthread_getname_np(pthread_self(), seen->name, sizeof(seen->name));
    pthread_sigmask(SIG_BLOCK, NULL, &seen->blocked);
    return NULL;
}

static void name_is_cut_to_what_linux_takes(void **state)
{
    struct seen seen;
    struct thread thread;
    struct ferry_error err;

    assert_ok(thread_start(&thread, THREAD_GENERAL, "a-rather-long-name", look_around, &seen, &err), err);
    thread_join(&thread);
    assert_string_equal(seen.name, "a-rather-long-n");
}

static void signals_are_blocked_but_for_faults(void **state)
{
    struct seen seen;
    struct thread thread;
    struct ferry_error err;
    sigset_t mine;

    assert_ok(thread_start(&thread, THREAD_GENERAL, "t", look_around, &seen, &err), err);
    thread_join(&thread);
    assert_true(sigismember(&seen.blocked, SIGTERM));
    assert_true(sigismember(&seen.blocked, SIGINT));
    assert_true(sigismember(&seen.blocked, SIGUSR1));
    assert_false(sigismember(&seen.blocked, SIGSEGV));
    assert_false(sigismember(&seen.blocked, SIGBUS));
    pthread_sigmask(SIG_BLOCK, NULL, &mine);
    assert_false(sigismember(&mine, SIGTERM));
}

static bool pipe_is_pending(void)
{
    sigset_t pending;

    sigpending(&pending);
    return sigismember(&pending, SIGPIPE) == 1;
}

static void muted_sigpipe_is_lost_and_an_earlier_one_is_not(void **state)
{
    struct thread_mute mute;
    sigset_t pipe;
    int number;

    thread_mute_begin(&mute);
    pthread_kill(pthread_self(), SIGPIPE); /* would end the test */
    assert_true(pipe_is_pending());
    thread_mute_end(&mute);
    assert_false(pipe_is_pending());

    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe, NULL);
    pthread_kill(pthread_self(), SIGPIPE);
    thread_mute_begin(&mute);
    thread_mute_end(&mute);
    assert_true(pipe_is_pending());
    sigwait(&pipe, &number);
    pthread_sigmask(SIG_UNBLOCK, &pipe, NULL);
}

static void join_of_no_thread_does_nothing(void **state)
{
    struct seen seen;
    struct thread thread = {0};
    struct ferry_error err;

    thread_join(&thread);
    assert_ok(thread_start(&thread, THREAD_GENERAL, "t", look_around, &seen, &err), err);
    thread_join(&thread);
    assert_false(thread.started);
    thread_join(&thread);
}

static void wait_ends_at_the_deadline(void **state)
{
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t condition;
    uint64_t deadline;

    thread_cond_init(&condition);
    pthread_mutex_lock(&mutex);
    assert_false(thread_cond_wait_until(&condition, &mutex, 0));
    deadline = clock_deadline(20);
    while (thread_cond_wait_until(&condition, &mutex, deadline))
        ;
    assert_true(clock_now_ns() >= deadline);
    pthread_mutex_unlock(&mutex);
    pthread_cond_destroy(&condition);
}

struct signalled {
    pthread_mutex_t mutex;
    pthread_cond_t condition;
    bool ready;
};

static void *make_ready(void *opaque)
{
    struct signalled *signalled = opaque;

    pthread_mutex_lock(&signalled->mutex);
    signalled->ready = true;
    pthread_cond_signal(&signalled->condition);
    pthread_mutex_unlock(&signalled->mutex);
    return NULL;
}

static void wait_ends_when_signalled(void **state)
{
    struct signalled signalled = {.mutex = PTHREAD_MUTEX_INITIALIZER};
    struct thread thread;
    struct ferry_error err;

    thread_cond_init(&signalled.condition);
    pthread_mutex_lock(&signalled.mutex);
    assert_ok(thread_start(&thread, THREAD_GENERAL, "t", make_ready, &signalled, &err), err);
    while (!signalled.ready)
        assert_true(thread_cond_wait_until(&signalled.condition, &signalled.mutex, UINT64_MAX));
    pthread_mutex_unlock(&signalled.mutex);
    thread_join(&thread);
    pthread_cond_destroy(&signalled.condition);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(name_is_cut_to_what_linux_takes),
        cmocka_unit_test(signals_are_blocked_but_for_faults),
        cmocka_unit_test(muted_sigpipe_is_lost_and_an_earlier_one_is_not),
        cmocka_unit_test(join_of_no_thread_does_nothing),
        cmocka_unit_test(wait_ends_at_the_deadline),
        cmocka_unit_test(wait_ends_when_signalled),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
