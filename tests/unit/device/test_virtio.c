/*
 * The life of a virtio device whose requests end when the test says so.
 */
#include "guest.h"

#include "base/clock.h"
#include "device/virtio_mmio.h"

#include <errno.h>

struct slow_device {
    struct virtio virtio;
    struct virtio_state state;
    struct virtqueue_chain chain;
    uint16_t heads[16]; /* taken and not yet answered; under the virtio lock */
    unsigned count;
    bool may_end; /* likewise */
    unsigned drains;
    int drain_result;
};

static struct slow_device *from_virtio(struct virtio *virtio)
{
    return (struct slow_device *)((char *)virtio - offsetof(struct slow_device, virtio));
}

static void slow_reap(struct virtio *virtio)
{
    struct slow_device *slow = from_virtio(virtio);

    while (slow->may_end && slow->count)
        virtio_push(virtio, 0, slow->heads[--slow->count], NULL, 0, 0);
    virtio_signal(virtio, 0);
}

static void slow_process(struct virtio *virtio)
{
    struct slow_device *slow = from_virtio(virtio);

    while (slow->count < 16 && virtio_pop(virtio, 0, &slow->chain))
        slow->heads[slow->count++] = slow->chain.head;
    pthread_cond_broadcast(&virtio->changed);
    slow_reap(virtio);
}

static int slow_drain(struct virtio *virtio, struct ferry_error *err)
{
    struct slow_device *slow = from_virtio(virtio);

    slow->drains++;
    if (slow->drain_result < 0)
        *err = (struct ferry_error){.code = slow->drain_result, .text = "the last flush failed"};
    return slow->drain_result;
}

static const struct virtio_ops slow_ops = {
    .worker = THREAD_IO,
    .device_id = 42,
    .queue_count = 1,
    .queue_size = 16,
    .process = slow_process,
    .reap = slow_reap,
    .drain = slow_drain,
};

struct setup {
    struct guest *guest;
    struct driver driver;
    struct slow_device slow;
};

static int setup(void **state)
{
    struct setup *test = calloc(1, sizeof(*test));
    struct device_env env;
    struct ferry_error err = {0};

    test->guest = guest_new();
    env = guest_env(test->guest, &test->driver);
    assert_ok(virtio_init(&test->slow.virtio, &slow_ops, &test->slow.state, 0, NULL, 0, "slow0", &env, &err),
              err);
    assert_ok(virtio_mmio_add(&test->slow.virtio, &err), err);
    virtio_start(&test->slow.virtio);
    driver_begin(&test->driver, VIRTIO_F_EVENT_IDX);
    driver_add_queue(&test->driver, 0, 16);
    driver_ok(&test->driver);
    *state = test;
    return 0;
}

static void let_requests_end(struct setup *test, bool may_end)
{
    pthread_mutex_lock(&test->slow.virtio.lock);
    test->slow.may_end = may_end;
    pthread_mutex_unlock(&test->slow.virtio.lock);
    virtio_wake(&test->slow.virtio);
}

static int teardown(void **state)
{
    struct setup *test = *state;
    struct ferry_error err = {0};

    pthread_mutex_lock(&test->slow.virtio.lock);
    test->slow.drain_result = 0;
    pthread_mutex_unlock(&test->slow.virtio.lock);
    let_requests_end(test, true);
    assert_ok(virtio_quiesce(&test->slow.virtio, clock_deadline(GUEST_WAIT_MS), &err), err);
    virtio_destroy(&test->slow.virtio);
    guest_free(test->guest);
    free(test);
    return 0;
}

static void submit(struct setup *test)
{
    struct driver_buffer buffer = {guest_alloc(test->guest, 16, 16), 16, false};

    queue_submit(&test->driver.queues[0], &buffer, 1);
}

/* Waits for CONDITION under the virtio lock. */
static void wait_until(struct setup *test, bool (*condition)(struct setup *test, unsigned count),
                       unsigned count)
{
    uint64_t deadline = clock_deadline(GUEST_WAIT_MS);
    struct virtio *virtio = &test->slow.virtio;
    bool in_time = true;

    pthread_mutex_lock(&virtio->lock);
    while (!condition(test, count) && in_time)
        in_time = thread_cond_wait_until(&virtio->changed, &virtio->lock, deadline);
    pthread_mutex_unlock(&virtio->lock);
    assert_true(in_time);
}

static bool has_taken(struct setup *test, unsigned count)
{
    return test->slow.count >= count;
}

static bool is_resetting(struct setup *test, unsigned count)
{
    return test->slow.virtio.resetting;
}

static void wait_taken(struct setup *test, unsigned count)
{
    wait_until(test, has_taken, count);
}

static void quiesce_times_out_and_the_device_goes_on(void **state)
{
    struct setup *test = *state;
    struct ferry_error err = {0};

    submit(test);
    wait_taken(test, 1);
    assert_int_equal(virtio_quiesce(&test->slow.virtio, clock_deadline(20), &err), -ETIMEDOUT);
    assert_contains(err.text, "slow0");
    submit(test); /* it takes new ones as before */
    wait_taken(test, 2);
    let_requests_end(test, true);
    for (unsigned i = 0; i < 2; i++)
        queue_wait_used(&test->driver.queues[0], NULL, NULL);
    assert_ok(virtio_quiesce(&test->slow.virtio, clock_deadline(GUEST_WAIT_MS), &err), err);
}

static void a_deadline_that_has_passed_is_enough_when_nothing_is_outstanding(void **state)
{
    struct setup *test = *state;
    struct ferry_error err = {0};

    assert_ok(virtio_quiesce(&test->slow.virtio, clock_deadline(GUEST_WAIT_MS), &err), err);
    assert_ok(virtio_quiesce(&test->slow.virtio, 0, &err), err); /* it is quiesced already */
    assert_int_equal(test->slow.drains, 1);
}

static void new_requests_stay_in_the_ring_while_draining(void **state)
{
    struct setup *test = *state;
    struct ferry_error err = {0};

    submit(test);
    wait_taken(test, 1);
    let_requests_end(test, true);
    assert_ok(virtio_quiesce(&test->slow.virtio, clock_deadline(GUEST_WAIT_MS), &err), err);
    submit(test);
    assert_int_equal(test->slow.state.queues[0].next_avail, 1);
    assert_int_equal(test->slow.state.queues[0].next_used, 1);
    virtio_start(&test->slow.virtio);
    for (unsigned i = 0; i < 2; i++)
        queue_wait_used(&test->driver.queues[0], NULL, NULL);
}

static void a_failed_drain_fails_the_quiesce_and_the_device_goes_on(void **state)
{
    struct setup *test = *state;
    struct ferry_error err = {0};

    pthread_mutex_lock(&test->slow.virtio.lock);
    test->slow.drain_result = -EIO;
    pthread_mutex_unlock(&test->slow.virtio.lock);
    assert_int_equal(virtio_quiesce(&test->slow.virtio, clock_deadline(GUEST_WAIT_MS), &err), -EIO);
    assert_contains(err.text, "the last flush failed");
    let_requests_end(test, true);
    submit(test);
    queue_wait_used(&test->driver.queues[0], NULL, NULL);
}

static void *reset_main(void *opaque)
{
    driver_write(opaque, R_STATUS, 0);
    return NULL;
}

static void a_reset_waits_for_what_is_outstanding(void **state)
{
    struct setup *test = *state;
    struct ferry_error err = {0};
    struct thread vcpu = {0};
    uint16_t used = queue_used_idx(&test->driver.queues[0]);

    submit(test);
    wait_taken(test, 1);
    assert_ok(thread_start(&vcpu, THREAD_GENERAL, "vcpu", reset_main, &test->driver, &err), err);
    wait_until(test, is_resetting, 0);
    assert_true(driver_read(&test->driver, R_STATUS) & VIRTIO_STATUS_DRIVER_OK); /* not over yet */
    let_requests_end(test, true);
    thread_join(&vcpu);
    assert_int_equal(driver_read(&test->driver, R_STATUS), 0);
    assert_int_equal(queue_used_idx(&test->driver.queues[0]), used); /* not reported */
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(quiesce_times_out_and_the_device_goes_on),
        CASE(a_deadline_that_has_passed_is_enough_when_nothing_is_outstanding),
        CASE(new_requests_stay_in_the_ring_while_draining),
        CASE(a_failed_drain_fails_the_quiesce_and_the_device_goes_on),
        CASE(a_reset_waits_for_what_is_outstanding),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
