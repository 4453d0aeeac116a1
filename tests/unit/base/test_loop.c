#include "unit.h"

#include "base/clock.h"
#include "base/loop.h"
#include "base/thread.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define WATCHES 4

struct fixture {
    struct loop *loop;
    struct loop_timer *guard; /* ends a loop that would hang */
    bool hung;
    struct ferry_error err;

    int fds[WATCHES]; /* eventfds, all readable */
    struct loop_watch *watches[WATCHES];
    int calls[WATCHES];
    int total;
    unsigned events;
    struct loop_timer *timers[2];
    int order[8];
};

static void on_hang(void *opaque)
{
    struct fixture *fixture = opaque;

    fixture->hung = true;
    loop_stop(fixture->loop);
}

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));

    *state = fixture;
    assert_ok(loop_new(&fixture->loop, &fixture->err), fixture->err);
    assert_ok(loop_timer_add(fixture->loop, on_hang, fixture, &fixture->guard, &fixture->err), fixture->err);
    loop_timer_arm(fixture->guard, UNIT_DEADLINE_MS * NS_PER_MS);
    for (int i = 0; i < WATCHES; i++) {
        fixture->fds[i] = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
        assert_true(fixture->fds[i] >= 0);
    }
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;

    loop_free(fixture->loop);
    for (int i = 0; i < WATCHES; i++)
        close(fixture->fds[i]);
    free(fixture);
    return 0;
}

static void run(struct fixture *fixture)
{
    assert_ok(loop_run(fixture->loop, &fixture->err), fixture->err);
    assert_false(fixture->hung);
}

static void stop(void *opaque)
{
    loop_stop(((struct fixture *)opaque)->loop);
}

static void watch_all(struct fixture *fixture, loop_watch_function *function)
{
    for (int i = 0; i < WATCHES; i++)
        assert_ok(loop_watch_add(fixture->loop, fixture->fds[i], LOOP_READ, function, fixture,
                                 &fixture->watches[i], &fixture->err),
                  fixture->err);
}

static void remove_every_watch(void *opaque, unsigned events)
{
    struct fixture *fixture = opaque;

    fixture->total++;
    for (int i = 0; i < WATCHES; i++) {
        loop_watch_remove(fixture->watches[i]);
        fixture->watches[i] = NULL;
    }
    loop_post(fixture->loop, stop, fixture);
}

static void callback_may_remove_itself_and_others(void **state)
{
    struct fixture *fixture = *state;

    watch_all(fixture, remove_every_watch);
    run(fixture);
    /* All were ready at once: the first to be called kept the others from being called. */
    assert_int_equal(fixture->total, 1);
}

static void replace_and_stop(void *opaque, unsigned events)
{
    struct fixture *fixture = opaque;

    loop_stop(fixture->loop);
}

static void remove_all_and_watch_again(void *opaque, unsigned events)
{
    struct fixture *fixture = opaque;

    fixture->total++;
    for (int i = 0; i < WATCHES; i++)
        loop_watch_remove(fixture->watches[i]);
    watch_all(fixture, replace_and_stop);
}

static void removed_descriptors_may_be_watched_again_at_once(void **state)
{
    struct fixture *fixture = *state;

    watch_all(fixture, remove_all_and_watch_again);
    run(fixture);
    assert_int_equal(fixture->total, 1);
}

static void note_events(void *opaque, unsigned events)
{
    struct fixture *fixture = opaque;

    fixture->events = events;
    loop_stop(fixture->loop);
}

static void events_are_what_was_asked_for_and_hangup(void **state)
{
    struct fixture *fixture = *state;
    struct loop_watch *watch;
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_ok(loop_watch_add(fixture->loop, pair[0], LOOP_WRITE, note_events, fixture, &watch, &fixture->err),
              fixture->err);
    run(fixture);
    assert_int_equal(fixture->events, LOOP_WRITE);
    assert_int_equal(write(pair[1], "x", 1), 1);
    assert_ok(loop_watch_set(watch, LOOP_READ, &fixture->err), fixture->err);
    run(fixture);
    assert_int_equal(fixture->events, LOOP_READ);
    assert_ok(loop_watch_set(watch, LOOP_READ | LOOP_WRITE, &fixture->err), fixture->err);
    run(fixture);
    assert_int_equal(fixture->events, LOOP_READ | LOOP_WRITE);
    assert_ok(loop_watch_set(watch, 0, &fixture->err), fixture->err);
    close(pair[1]);
    run(fixture);
    assert_int_equal(fixture->events, LOOP_HANGUP);
    loop_watch_remove(watch);
    close(pair[0]);
}

static void what_cannot_be_watched_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct loop_watch *watch;
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

    assert_int_equal(loop_watch_add(fixture->loop, fd, LOOP_READ, note_events, NULL, &watch, &fixture->err),
                     -EPERM);
    assert_null(watch);
    close(fd);
    assert_int_equal(loop_watch_add(fixture->loop, -1, LOOP_READ, note_events, NULL, &watch, &fixture->err),
                     -EBADF);
    loop_watch_remove(NULL);
    loop_timer_remove(NULL);
}

static void second_timer(void *opaque)
{
    struct fixture *fixture = opaque;

    fixture->order[fixture->total++] = 2;
    loop_stop(fixture->loop);
}

static void first_timer(void *opaque)
{
    struct fixture *fixture = opaque;

    fixture->order[fixture->total++] = 1;
    loop_timer_remove(fixture->timers[0]); /* itself */
    fixture->timers[0] = NULL;
    loop_timer_arm(fixture->timers[1], 0);
}

static void timers_fire_once_when_armed(void **state)
{
    struct fixture *fixture = *state;

    assert_ok(loop_timer_add(fixture->loop, first_timer, fixture, &fixture->timers[0], &fixture->err),
              fixture->err);
    assert_ok(loop_timer_add(fixture->loop, second_timer, fixture, &fixture->timers[1], &fixture->err),
              fixture->err);
    loop_timer_arm(fixture->timers[0], NS_PER_MS);
    run(fixture);
    assert_int_equal(fixture->total, 2);
    assert_int_equal(fixture->order[0], 1);
    /* one-shot: now only the post ends the loop */
    loop_post(fixture->loop, stop, fixture);
    run(fixture);
    assert_int_equal(fixture->total, 2);
}

static void disarm_the_other(void *opaque)
{
    struct fixture *fixture = opaque;

    fixture->total++;
    loop_timer_disarm(fixture->timers[0]);
    loop_timer_disarm(fixture->timers[1]);
    loop_post(fixture->loop, stop, fixture);
}

static void disarmed_timer_does_not_fire_even_when_both_were_due(void **state)
{
    struct fixture *fixture = *state;
    uint64_t due;

    for (int i = 0; i < 2; i++) {
        assert_ok(
            loop_timer_add(fixture->loop, disarm_the_other, fixture, &fixture->timers[i], &fixture->err),
            fixture->err);
        loop_timer_arm(fixture->timers[i], 0);
    }
    /* both are due by the time the loop looks */
    due = clock_now_ns() + NS_PER_MS;
    while (clock_now_ns() < due)
        ;
    run(fixture);
    assert_int_equal(fixture->total, 1);
}

#define POSTERS 4
#define POSTS   500

struct posted {
    struct poster *poster;
    int number;
};

struct poster {
    struct fixture *fixture;
    struct posted posts[POSTS];
    int next;
    bool disorder;
};

static void receive(void *opaque)
{
    struct posted *posted = opaque;
    struct poster *poster = posted->poster;

    poster->disorder = poster->disorder || posted->number != poster->next;
    poster->next++;
    if (++poster->fixture->total == POSTERS * POSTS)
        loop_stop(poster->fixture->loop);
}

static void *poster_main(void *opaque)
{
    struct poster *poster = opaque;

    for (int i = 0; i < POSTS; i++) {
        poster->posts[i] = (struct posted){poster, i};
        if (loop_post(poster->fixture->loop, receive, &poster->posts[i]))
            abort();
    }
    return NULL;
}

static void posts_of_any_thread_run_in_order(void **state)
{
    struct fixture *fixture = *state;
    struct poster *posters = calloc(POSTERS, sizeof(*posters));
    struct thread threads[POSTERS];

    assert_non_null(posters);
    for (int i = 0; i < POSTERS; i++) {
        posters[i].fixture = fixture;
        assert_ok(
            thread_start(&threads[i], THREAD_GENERAL, "poster", poster_main, &posters[i], &fixture->err),
            fixture->err);
    }
    run(fixture);
    for (int i = 0; i < POSTERS; i++) {
        thread_join(&threads[i]);
        assert_false(posters[i].disorder);
        assert_int_equal(posters[i].next, POSTS);
    }
    free(posters);
}

static void *stopper_main(void *opaque)
{
    stop(opaque);
    return NULL;
}

static void stop_counts_from_any_thread_and_before_the_run(void **state)
{
    struct fixture *fixture = *state;
    struct thread thread;

    for (int i = 0; i < 50; i++) {
        assert_ok(thread_start(&thread, THREAD_GENERAL, "stopper", stopper_main, fixture, &fixture->err),
                  fixture->err);
        run(fixture);
        thread_join(&thread);
    }
}

static void never(void *opaque)
{
    abort();
}

static void never_watch(void *opaque, unsigned events)
{
    abort();
}

static void free_takes_what_is_still_there(void **state)
{
    struct fixture *fixture = *state;

    watch_all(fixture, never_watch);
    loop_watch_remove(fixture->watches[1]);
    assert_ok(loop_timer_add(fixture->loop, never, fixture, &fixture->timers[0], &fixture->err),
              fixture->err);
    loop_timer_arm(fixture->timers[0], 0);
    assert_int_equal(loop_post(fixture->loop, never, fixture), 0);
    loop_free(NULL);
}

#define LOOP_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(callback_may_remove_itself_and_others),
        LOOP_TEST(removed_descriptors_may_be_watched_again_at_once),
        LOOP_TEST(events_are_what_was_asked_for_and_hangup),
        LOOP_TEST(what_cannot_be_watched_is_refused),
        LOOP_TEST(timers_fire_once_when_armed),
        LOOP_TEST(disarmed_timer_does_not_fire_even_when_both_were_due),
        LOOP_TEST(posts_of_any_thread_run_in_order),
        LOOP_TEST(stop_counts_from_any_thread_and_before_the_run),
        LOOP_TEST(free_takes_what_is_still_there),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
