/*
 * The transport and what all virtio devices share, with the simplest device (rng) behind it.
 */
#include "guest.h"

#include "base/clock.h"
#include "device/virtio_rng.h"

#include <errno.h>
#include <string.h>

struct setup {
    struct guest *guest;
    struct driver driver;
    struct device *rng;
};

static int setup(void **state)
{
    struct setup *test = calloc(1, sizeof(*test));
    struct ferry_error err;
    struct device_env env;

    test->guest = guest_new();
    env = guest_env(test->guest, &test->driver);
    assert_ok(virtio_rng_create(&test->rng, &env, 0, &err), err);
    *state = test;
    return 0;
}

static int teardown(void **state)
{
    struct setup *test = *state;

    device_stop_and_destroy(test->rng);
    guest_free(test->guest);
    free(test);
    return 0;
}

static void begin(struct setup *test, uint64_t features)
{
    driver_begin(&test->driver, features);
    driver_add_queue(&test->driver, 0, 16);
    driver_ok(&test->driver);
}

/* Asks for SIZE random bytes and waits for them. */
static void assert_random_works(struct driver *driver, uint32_t size)
{
    struct driver_buffer buffer = {guest_alloc(driver->guest, size, 16), size, true};
    uint32_t written;

    queue_submit(&driver->queues[0], &buffer, 1);
    queue_wait_used(&driver->queues[0], NULL, &written);
    assert_int_equal(written, size);
}

/* Called with the guest's lock held. */
static bool line_is_high(void *opaque)
{
    struct driver *driver = opaque;

    return driver->guest->level[driver->line];
}

static void registers_name_the_device(void **state)
{
    struct setup *test = *state;

    assert_int_equal(driver_read(&test->driver, R_MAGIC), 0x74726976);
    assert_int_equal(driver_read(&test->driver, R_VERSION), 2);
    assert_int_equal(driver_read(&test->driver, R_DEVICE_ID), 4);
    assert_int_equal(driver_read(&test->driver, R_QUEUE_NUM_MAX), 64);
    driver_write(&test->driver, R_QUEUE_SEL, 1);
    assert_int_equal(driver_read(&test->driver, R_QUEUE_NUM_MAX), 0);
    assert_int_equal(driver_read(&test->driver, 0xb0), UINT32_MAX);
    assert_true(driver_device_features(&test->driver) & VIRTIO_F_VERSION_1);
    driver_write(&test->driver, R_DEVICE_FEATURES_SEL, 2);
    assert_int_equal(driver_read(&test->driver, R_DEVICE_FEATURES), 0);
}

static void try_features(struct driver *driver, uint64_t features)
{
    driver_write(driver, R_STATUS, 0);
    driver_write(driver, R_STATUS, 3);
    driver_write(driver, R_DRIVER_FEATURES_SEL, 0);
    driver_write(driver, R_DRIVER_FEATURES, (uint32_t)features);
    driver_write(driver, R_DRIVER_FEATURES_SEL, 1);
    driver_write(driver, R_DRIVER_FEATURES, (uint32_t)(features >> 32));
    driver_write(driver, R_STATUS, 3 | VIRTIO_STATUS_FEATURES_OK);
}

static void features_not_offered_are_not_ok(void **state)
{
    struct setup *test = *state;

    try_features(&test->driver, VIRTIO_F_VERSION_1 | 1);
    assert_int_equal(driver_read(&test->driver, R_STATUS), 3);
    try_features(&test->driver, VIRTIO_F_EVENT_IDX); /* a legacy driver */
    assert_int_equal(driver_read(&test->driver, R_STATUS), 3);
    try_features(&test->driver, VIRTIO_F_VERSION_1);
    assert_int_equal(driver_read(&test->driver, R_STATUS), 3 | VIRTIO_STATUS_FEATURES_OK);
}

static void a_driver_cannot_be_ok_before_its_features_are(void **state)
{
    struct setup *test = *state;

    driver_write(&test->driver, R_STATUS, 7);
    assert_int_equal(driver_read(&test->driver, R_STATUS), 3);
}

static void only_the_device_sets_needs_reset(void **state)
{
    struct setup *test = *state;

    driver_write(&test->driver, R_STATUS, VIRTIO_STATUS_NEEDS_RESET | 1);
    assert_int_equal(driver_read(&test->driver, R_STATUS), 1);
}

static void requests_are_served_with_every_queue_feature(void **state)
{
    static const uint64_t features[] = {0, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC,
                                        VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC};
    struct setup *test = *state;

    device_start(test->rng);
    for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
        begin(test, features[i]);
        for (unsigned j = 0; j < 50; j++)
            assert_random_works(&test->driver, 1 + j * 80);
        if (features[i] & VIRTIO_F_INDIRECT_DESC) {
            struct driver_buffer buffers[2] = {{GUEST_RAM, 10, true}, {GUEST_RAM + 100, 20, true}};
            uint32_t written;

            queue_offer(&test->driver.queues[0], queue_chain_indirect(&test->driver.queues[0], buffers, 2));
            queue_publish(&test->driver.queues[0]);
            queue_notify(&test->driver.queues[0]);
            queue_wait_used(&test->driver.queues[0], NULL, &written);
            assert_int_equal(written, 30);
        }
    }
}

static void the_interrupt_line_follows_the_acknowledgement(void **state)
{
    struct setup *test = *state;
    struct driver_buffer buffer = {GUEST_RAM + 0x100000, 64, true};

    device_start(test->rng);
    begin(test, 0);
    queue_submit(&test->driver.queues[0], &buffer, 1);
    /* The entry is visible before the interrupt is raised. */
    guest_wait(test->guest, line_is_high, &test->driver);
    device_quiesce(test->rng);
    assert_int_equal(driver_read(&test->driver, R_INTERRUPT_STATUS), 1);
    driver_write(&test->driver, R_INTERRUPT_ACK, 1);
    assert_false(guest_level(test->guest, 0));
    assert_int_equal(driver_read(&test->driver, R_INTERRUPT_STATUS), 0);
}

static void a_reset_forgets_everything(void **state)
{
    struct setup *test = *state;

    device_start(test->rng);
    begin(test, VIRTIO_F_EVENT_IDX);
    assert_random_works(&test->driver, 8);
    driver_write(&test->driver, R_STATUS, 0);
    assert_int_equal(driver_read(&test->driver, R_STATUS), 0);
    assert_int_equal(driver_read(&test->driver, R_INTERRUPT_STATUS), 0);
    assert_int_equal(driver_read(&test->driver, R_QUEUE_READY), 0);
    assert_false(guest_level(test->guest, 0));
    begin(test, 0);
    assert_random_works(&test->driver, 8);
}

static void a_violation_stops_one_device_until_its_reset(void **state)
{
    struct setup *test = *state;
    struct ferry_error err;
    struct driver other_driver;
    struct device_env env = guest_env(test->guest, &other_driver);
    struct device *other;

    assert_ok(virtio_rng_create(&other, &env, 1, &err), err);
    device_start(test->rng);
    device_start(other);
    begin(test, 0);
    driver_begin(&other_driver, 0);
    driver_add_queue(&other_driver, 0, 8);
    driver_ok(&other_driver);

    test->driver.queues[0].avail_idx = 17; /* jumps by more than 16 */
    queue_publish(&test->driver.queues[0]);
    queue_notify(&test->driver.queues[0]);
    driver_wait_needs_reset(&test->driver);
    assert_int_equal(driver_read(&test->driver, R_INTERRUPT_STATUS), VIRTIO_INTERRUPT_CONFIG);

    assert_random_works(&other_driver, 100);
    begin(test, 0);
    assert_random_works(&test->driver, 100);
    device_stop_and_destroy(other);
}

static void a_request_without_room_is_a_violation(void **state)
{
    struct setup *test = *state;
    struct driver_buffer buffer = {GUEST_RAM, 64, false};

    device_start(test->rng);
    begin(test, 0);
    queue_submit(&test->driver.queues[0], &buffer, 1);
    driver_wait_needs_reset(&test->driver);
}

static void queue_sizes_not_offered_are_a_violation(void **state)
{
    static const uint32_t sizes[] = {0, 3, 65, 128, 0x8000, UINT32_MAX};
    struct setup *test = *state;

    device_start(test->rng);
    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        driver_begin(&test->driver, 0);
        driver_write(&test->driver, R_QUEUE_SEL, 0);
        driver_write(&test->driver, R_QUEUE_NUM, sizes[i]);
        assert_true(driver_needs_reset(&test->driver));
    }
}

static void a_ring_outside_memory_is_a_violation(void **state)
{
    struct setup *test = *state;

    device_start(test->rng);
    driver_begin(&test->driver, 0);
    driver_write64(&test->driver, R_QUEUE_DESC, GUEST_RAM);
    driver_write64(&test->driver, R_QUEUE_DRIVER, UINT64_MAX - 1);
    driver_write64(&test->driver, R_QUEUE_DEVICE, GUEST_RAM);
    driver_write(&test->driver, R_QUEUE_READY, 1);
    driver_ok(&test->driver);
    driver_wait_needs_reset(&test->driver);
}

static void a_disabled_queue_is_left_alone(void **state)
{
    struct setup *test = *state;
    struct driver_buffer buffer = {GUEST_RAM + 0x100000, 64, true};

    device_start(test->rng);
    begin(test, 0);
    assert_random_works(&test->driver, 8);
    driver_write(&test->driver, R_QUEUE_READY, 0);
    assert_int_equal(driver_read(&test->driver, R_QUEUE_READY), 0);
    queue_submit(&test->driver.queues[0], &buffer, 1);
    device_quiesce(test->rng);
    assert_int_equal(queue_used_idx(&test->driver.queues[0]), 1);
}

static void accesses_of_other_widths_do_nothing(void **state)
{
    struct setup *test = *state;
    uint64_t value = 1;

    assert_true(mmio_bus_read(test->guest->bus, test->driver.mmio, 1, &value));
    assert_int_equal(value, 0);
    assert_true(mmio_bus_read(test->guest->bus, test->driver.mmio, 8, &value));
    assert_int_equal(value, 0);
    assert_true(mmio_bus_write(test->guest->bus, test->driver.mmio + R_STATUS, 1, 1));
    assert_true(mmio_bus_write(test->guest->bus, test->driver.mmio + R_STATUS, 2, 1));
    assert_int_equal(driver_read(&test->driver, R_STATUS), 0);
    assert_true(mmio_bus_read(test->guest->bus, test->driver.mmio + R_CONFIG, 8, &value));
    assert_int_equal(value, 0);
}

static void what_was_offered_while_quiesced_is_served_after_start(void **state)
{
    struct setup *test = *state;
    struct driver_buffer buffer = {GUEST_RAM + 0x100000, 64, true};
    uint32_t written;

    device_start(test->rng);
    begin(test, VIRTIO_F_EVENT_IDX);
    assert_random_works(&test->driver, 8);
    device_quiesce(test->rng);
    queue_offer(&test->driver.queues[0], queue_chain(&test->driver.queues[0], &buffer, 1));
    queue_publish(&test->driver.queues[0]); /* and no notification */
    device_start(test->rng);
    queue_wait_used(&test->driver.queues[0], NULL, &written);
    assert_int_equal(written, 64);
}

static void a_moved_device_serves_what_it_finds(void **state)
{
    struct setup *test = *state;
    struct driver_buffer buffer = {GUEST_RAM + 0x100000, 64, true};
    struct guest *guest;
    struct driver driver;
    struct driver moved;
    struct device *rng;
    struct ferry_error err;
    struct device_env env;
    uint32_t written;

    device_start(test->rng);
    begin(test, VIRTIO_F_EVENT_IDX);
    for (unsigned i = 0; i < 5; i++)
        assert_random_works(&test->driver, 8);
    device_quiesce(test->rng);
    queue_offer(&test->driver.queues[0], queue_chain(&test->driver.queues[0], &buffer, 1));
    queue_publish(&test->driver.queues[0]);

    guest = guest_clone(test->guest);
    env = guest_env(guest, &driver);
    moved = driver_moved(&test->driver, guest);
    moved.queues[0].driver = &moved;
    assert_ok(virtio_rng_create(&rng, &env, 0, &err), err);
    device_move(test->rng, rng);
    device_start(rng);
    queue_wait_used(&moved.queues[0], NULL, &written);
    assert_int_equal(written, 64);
    assert_random_works(&moved, 33);
    device_stop_and_destroy(rng);
    guest_free(guest);
}

static void an_interrupt_not_yet_seen_moves_too(void **state)
{
    struct setup *test = *state;
    struct driver_buffer buffer = {GUEST_RAM + 0x100000, 64, true};
    struct guest *guest = guest_new();
    struct driver moved;
    struct device *rng;
    struct ferry_error err;
    struct device_env env = guest_env(guest, &moved);

    device_start(test->rng);
    begin(test, 0);
    queue_submit(&test->driver.queues[0], &buffer, 1);
    guest_wait(test->guest, line_is_high, &test->driver);
    device_quiesce(test->rng);
    assert_ok(virtio_rng_create(&rng, &env, 0, &err), err);
    device_move(test->rng, rng);
    assert_false(guest_level(guest, moved.line)); /* not before start */
    device_start(rng);
    assert_true(guest_level(guest, moved.line));
    device_stop_and_destroy(rng);
    guest_free(guest);
}

static int load_bytes(struct device *device, const uint8_t *data, size_t size, uint32_t version,
                      struct ferry_error *err)
{
    struct reader reader = reader_init(data, size);

    return device->ops->load(device, version, &reader, err);
}

static void bad_state_is_refused_by_name(void **state)
{
    struct setup *test = *state;
    struct buffer section = BUFFER_INIT;
    struct ferry_error err = {0};

    begin(test, 0);
    test->rng->ops->save(test->rng, &section);
    assert_int_equal(load_bytes(test->rng, section.data, section.size, 2, &err), -EPROTONOSUPPORT);
    assert_non_null(strstr(err.text, "virtio-rng0"));
    for (size_t size = 0; size < section.size; size++)
        assert_int_equal(load_bytes(test->rng, section.data, size, 1, &err), -EINVAL);

    section.data[3] = 1; /* status above its largest value */
    assert_int_equal(load_bytes(test->rng, section.data, section.size, 1, &err), -EINVAL);
    assert_non_null(strstr(err.text, "status"));
    section.data[3] = 0;

    section.data[12] ^= 1; /* driver_features: bit 0, which rng does not offer */
    assert_int_equal(load_bytes(test->rng, section.data, section.size, 1, &err), -EINVAL);
    assert_non_null(strstr(err.text, "virtio-rng0"));
    assert_non_null(strstr(err.text, "driver_features"));
    section.data[12] ^= 1;

    section.data[0] = VIRTIO_STATUS_DRIVER_OK;
    assert_int_equal(load_bytes(test->rng, section.data, section.size, 1, &err), -EINVAL);
    assert_non_null(strstr(err.text, "status"));
    buffer_free(&section);
}

static void damaged_state_never_hurts(void **state)
{
    struct setup *test = *state;
    struct buffer section = BUFFER_INIT;
    struct ferry_error err = {0};
    uint64_t seed = 4711;

    print_message("seed %u\n", 4711);
    begin(test, VIRTIO_F_EVENT_IDX);
    test->rng->ops->save(test->rng, &section);
    for (unsigned round = 0; round < 2000; round++) {
        uint8_t copy[512];

        assert_true(section.size <= sizeof(copy));
        memcpy(copy, section.data, section.size);
        for (unsigned i = 0; i < 1 + round % 3; i++)
            copy[unit_random(&seed) % section.size] = (uint8_t)unit_random(&seed);
        (void)load_bytes(test->rng, copy, section.size, 1, &err);
        device_start(test->rng);
        device_quiesce(test->rng);
    }
    buffer_free(&section);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(registers_name_the_device),
        CASE(features_not_offered_are_not_ok),
        CASE(a_driver_cannot_be_ok_before_its_features_are),
        CASE(only_the_device_sets_needs_reset),
        CASE(requests_are_served_with_every_queue_feature),
        CASE(the_interrupt_line_follows_the_acknowledgement),
        CASE(a_reset_forgets_everything),
        CASE(a_violation_stops_one_device_until_its_reset),
        CASE(a_request_without_room_is_a_violation),
        CASE(queue_sizes_not_offered_are_a_violation),
        CASE(a_ring_outside_memory_is_a_violation),
        CASE(a_disabled_queue_is_left_alone),
        CASE(accesses_of_other_widths_do_nothing),
        CASE(what_was_offered_while_quiesced_is_served_after_start),
        CASE(a_moved_device_serves_what_it_finds),
        CASE(an_interrupt_not_yet_seen_moves_too),
        CASE(bad_state_is_refused_by_name),
        CASE(damaged_state_never_hurts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
