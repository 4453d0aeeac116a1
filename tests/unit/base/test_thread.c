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

struct went {
    struct thread_follow follow;
    int cpu; /* to go to */
    int there;
    bool alone; /* it runs nowhere else */
};

static void *go_there(void *opaque)
{
    struct went *went = opaque;
    cpu_set_t now;

    thread_follow(&went->follow, went->cpu);
    went->there = sched_getcpu();
    sched_getaffinity(0, sizeof(now), &now);
    went->alone = CPU_COUNT(&now) == 1 && CPU_ISSET(went->cpu < 0 ? 0 : went->cpu, &now);
    return NULL;
}

static void follow_goes_to_each_allowed_cpu_and_no_other(void **state)
{
    struct thread_follow mine;

    thread_follow_init(&mine);
    assert_true(CPU_COUNT(&mine.allowed) > 0);
    for (int cpu = -1; cpu <= CPU_SETSIZE; cpu++) {
        bool allowed = cpu >= 0 && cpu < CPU_SETSIZE && CPU_ISSET(cpu, &mine.allowed);
        struct went went = {.follow = mine, .cpu = cpu};
        struct thread thread;
        struct ferry_error err;

        if (!allowed && cpu > 8 && cpu < CPU_SETSIZE) /* a thread each would take long */
            continue;
        assert_ok(thread_start(&thread, THREAD_GENERAL, "t", go_there, &went, &err), err);
        thread_join(&thread);
        assert_int_equal(went.follow.cpu, allowed ? cpu : -1);
        if (allowed)
            assert_true(went.alone && went.there == cpu);
    }
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
        cmocka_unit_test(follow_goes_to_each_allowed_cpu_and_no_other),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
