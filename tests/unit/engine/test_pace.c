/* The token bucket: what several threads may send in any second, and how waiting ends. */
#include "engine/pace.h"

#include "base/clock.h"
#include "base/thread.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

#define THREADS  4
#define RATE     UINT64_C(50000000)
#define SPAN_NS  (5 * NS_PER_S / 2)
#define TAKE_MAX 20000

struct sent {
    uint64_t at_ns;
    size_t bytes;
};

struct taker {
    struct pace *pace;
    uint64_t end_ns;
    struct thread thread;
    struct sent sent[TAKE_MAX];
    size_t count;
    int result;
};

/* As page threads do it: frames of a mebibyte, and small ones. */
static void *take(void *opaque)
{
    struct taker *taker = opaque;

    while (taker->result == 0 && clock_now_ns() < taker->end_ns) {
        for (size_t left = taker->count % 3 ? 1 << 20 : 100; taker->result == 0 && left > 0;) {
            size_t taken = 0;

            taker->result = pace_take(taker->pace, left, &taken, NULL);
            left -= taken;
            if (taker->result == 0 && taker->count < TAKE_MAX)
                taker->sent[taker->count++] = (struct sent){clock_now_ns(), taken};
        }
    }
    return NULL;
}

static int by_time(const void *a, const void *b)
{
    const struct sent *x = a, *y = b;

    return x->at_ns < y->at_ns ? -1 : x->at_ns > y->at_ns;
}

/* The most in any second of ALL, which are in order. */
static uint64_t most_in_a_second(const struct sent *all, size_t count)
{
    uint64_t most = 0, sum = 0;
    size_t first = 0;

    for (size_t i = 0; i < count; i++) {
        sum += all[i].bytes;
        while (all[i].at_ns - all[first].at_ns >= NS_PER_S)
            sum -= all[first++].bytes;
        most = sum > most ? sum : most;
    }
    return most;
}

static void threads_together_keep_the_rate_over_any_second(void **state)
{
    struct taker *takers = calloc(THREADS, sizeof(*takers));
    struct sent *all = calloc(THREADS * TAKE_MAX, sizeof(*all));
    uint64_t limit = RATE, begin = clock_now_ns(), total = 0, most;
    struct pace pace;
    size_t count = 0;

    pace_init(&pace, &limit, -1);
    for (unsigned i = 0; i < THREADS; i++) {
        takers[i].pace = &pace;
        takers[i].end_ns = begin + SPAN_NS;
        assert_int_equal(thread_start(&takers[i].thread, THREAD_GENERAL, "taker", take, &takers[i], NULL), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        thread_join(&takers[i].thread);
        assert_int_equal(takers[i].result, 0);
        for (size_t j = 0; j < takers[i].count; j++)
            all[count++] = takers[i].sent[j];
    }
    qsort(all, count, sizeof(*all), by_time);
    for (size_t i = 0; i < count; i++)
        total += all[i].bytes;
    most = most_in_a_second(all, count);
    /* Threads that were not let run for a while send less, never more later. */
    assert_in_range(most, RATE / 2, RATE * 103 / 100);
    assert_true((double)total >= 0.5 * (double)RATE * (double)SPAN_NS / 1e9);
    pace_destroy(&pace);
    free(takers);
    free(all);
}

static uint64_t time_for(struct pace *pace, size_t bytes)
{
    uint64_t begin = clock_now_ns();

    while (bytes > 0) {
        size_t taken = 0;

        assert_int_equal(pace_take(pace, bytes, &taken, NULL), 0);
        assert_in_range(taken, 1, bytes);
        bytes -= taken;
    }
    return clock_now_ns() - begin;
}

static void no_limit_and_a_lifted_one_do_not_wait(void **state)
{
    uint64_t limit = 0;
    size_t taken = 0;
    struct pace pace;

    pace_init(&pace, &limit, -1);
    assert_int_equal(pace_take(&pace, SIZE_MAX, &taken, NULL), 0);
    assert_true(taken == SIZE_MAX);
    limit = 1000;
    assert_int_equal(pace_limit(&pace), 1000);
    pace_lift(&pace, true);
    assert_int_equal(pace_limit(&pace), 0);
    assert_int_equal(pace_take(&pace, 1 << 30, &taken, NULL), 0);
    assert_int_equal(taken, 1 << 30);
    pace_lift(&pace, false);
    assert_int_equal(pace_limit(&pace), 1000);
    pace_destroy(&pace);
}

static void changed_limit_counts_at_once(void **state)
{
    uint64_t limit = 10000000;
    struct pace pace;

    pace_init(&pace, &limit, -1);
    assert_true(time_for(&pace, 2000000) > 150 * NS_PER_MS);
    __atomic_store_n(&limit, 10000000000, __ATOMIC_RELAXED);
    assert_true(time_for(&pace, 20000000) < NS_PER_S);
    __atomic_store_n(&limit, 10000000, __ATOMIC_RELAXED);
    assert_true(time_for(&pace, 2000000) > 150 * NS_PER_MS);
    pace_destroy(&pace);
}

static void *cancel(void *opaque)
{
    eventfd_write(*(int *)opaque, 1);
    return NULL;
}

/* A byte a second: the second slice would take minutes. */
static void cancelling_ends_the_wait(void **state)
{
    int cancel_fd = eventfd(0, EFD_CLOEXEC);
    uint64_t limit = 1;
    size_t taken = 0;
    struct ferry_error err = {0};
    struct thread thread = {0};
    struct pace pace;

    pace_init(&pace, &limit, cancel_fd);
    assert_int_equal(pace_take(&pace, 4096, &taken, &err), 0);
    assert_int_equal(thread_start(&thread, THREAD_GENERAL, "cancel", cancel, &cancel_fd, NULL), 0);
    assert_int_equal(pace_take(&pace, 4096, &taken, &err), -ECANCELED);
    thread_join(&thread);
    pace_destroy(&pace);
    close(cancel_fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_together_keep_the_rate_over_any_second),
        cmocka_unit_test(no_limit_and_a_lifted_one_do_not_wait),
        cmocka_unit_test(changed_limit_counts_at_once),
        cmocka_unit_test(cancelling_ends_the_wait),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
