#include "guest.h"

#include "device/vmgenid.h"

#include <errno.h>

struct setup {
    struct guest *guest;
    struct driver driver; /* for its address and line */
    struct device *vmgenid;
};

static struct device *create(struct guest *guest, struct driver *driver)
{
    struct device_env env = guest_env(guest, driver);
    struct ferry_error err = {0};
    struct device *vmgenid;

    assert_ok(vmgenid_create(&vmgenid, &env, 0, &err), err);
    return vmgenid;
}

static int setup(void **state)
{
    struct setup *test = calloc(1, sizeof(*test));

    test->guest = guest_new();
    test->vmgenid = create(test->guest, &test->driver);
    device_start(test->vmgenid);
    *state = test;
    return 0;
}

static int teardown(void **state)
{
    struct setup *test = *state;

    device_stop_and_destroy(test->vmgenid);
    guest_free(test->guest);
    free(test);
    return 0;
}

/* By accesses of SIZE bytes. */
static void read_id(struct driver *driver, unsigned size, uint8_t id[static VMGENID_SIZE])
{
    for (unsigned at = 0; at < VMGENID_SIZE; at += size) {
        uint64_t value;

        assert_true(mmio_bus_read(driver->guest->bus, driver->mmio + at, size, &value));
        memcpy(id + at, &value, size);
    }
}

static void renew(struct device *vmgenid)
{
    struct ferry_error err;

    device_quiesce(vmgenid);
    assert_ok(vmgenid_renew(vmgenid, &err), err);
    device_start(vmgenid);
}

static void id_is_the_same_whatever_the_width(void **state)
{
    struct setup *test = *state;
    uint8_t id[VMGENID_SIZE], again[VMGENID_SIZE];
    const uint8_t zeros[VMGENID_SIZE] = {0};
    uint64_t value;

    read_id(&test->driver, 8, id);
    assert_memory_not_equal(id, zeros, sizeof(id));
    for (unsigned size = 1; size < 8; size *= 2) {
        read_id(&test->driver, size, again);
        assert_memory_equal(id, again, sizeof(id));
    }
    assert_true(mmio_bus_read(test->guest->bus, test->driver.mmio + VMGENID_SIZE, 8, &value));
    assert_int_equal(value, 0);
    assert_true(mmio_bus_read(test->guest->bus, test->driver.mmio + VMGENID_MMIO_SIZE - 1, 1, &value));
    assert_true(mmio_bus_write(test->guest->bus, test->driver.mmio, 8, 1));
    read_id(&test->driver, 8, again);
    assert_memory_equal(id, again, sizeof(id));
}

static void two_machines_have_different_ones(void **state)
{
    struct setup *test = *state;
    struct guest *guest = guest_new();
    struct driver driver;
    struct device *other = create(guest, &driver);
    uint8_t id[VMGENID_SIZE], its[VMGENID_SIZE];

    read_id(&test->driver, 8, id);
    read_id(&driver, 8, its);
    assert_memory_not_equal(id, its, sizeof(id));
    other->ops->destroy(other);
    guest_free(guest);
}

static void change_is_told_until_it_was_read(void **state)
{
    struct setup *test = *state;
    uint8_t id[VMGENID_SIZE], changed[VMGENID_SIZE];
    uint64_t value;

    read_id(&test->driver, 8, id);
    assert_false(guest_level(test->guest, test->driver.line));
    renew(test->vmgenid);
    assert_true(guest_level(test->guest, test->driver.line));
    assert_true(mmio_bus_read(test->guest->bus, test->driver.mmio, 8, &value));
    assert_true(guest_level(test->guest, test->driver.line));
    read_id(&test->driver, 8, changed);
    assert_memory_not_equal(id, changed, sizeof(id));
    assert_false(guest_level(test->guest, test->driver.line));
    /* What ACPI's event reads. */
    renew(test->vmgenid);
    assert_true(mmio_bus_read(test->guest->bus, test->driver.mmio + 12, 4, &value));
    assert_false(guest_level(test->guest, test->driver.line));
}

static void id_and_what_is_untold_move(void **state)
{
    struct setup *test = *state;
    struct guest *guest = guest_new();
    struct driver driver;
    struct device *vmgenid = create(guest, &driver);
    uint8_t id[VMGENID_SIZE], moved[VMGENID_SIZE];

    renew(test->vmgenid);
    device_quiesce(test->vmgenid);
    device_move(test->vmgenid, vmgenid);
    device_start(vmgenid);
    assert_true(guest_level(guest, driver.line));
    read_id(&driver, 8, moved);
    assert_false(guest_level(guest, driver.line));
    read_id(&test->driver, 8, id);
    assert_memory_equal(id, moved, sizeof(id));
    device_stop_and_destroy(vmgenid);
    guest_free(guest);
}

static void reboot_keeps_it_and_tells_nothing(void **state)
{
    struct setup *test = *state;
    uint8_t id[VMGENID_SIZE], after[VMGENID_SIZE];

    renew(test->vmgenid);
    read_id(&test->driver, 4, id);
    renew(test->vmgenid);
    device_quiesce(test->vmgenid);
    test->vmgenid->ops->reset(test->vmgenid);
    device_start(test->vmgenid);
    assert_false(guest_level(test->guest, test->driver.line));
    read_id(&test->driver, 4, after);
    assert_memory_not_equal(id, after, sizeof(id));
    device_quiesce(test->vmgenid);
    test->vmgenid->ops->reset(test->vmgenid);
    device_start(test->vmgenid);
    read_id(&test->driver, 4, id);
    assert_memory_equal(id, after, sizeof(id));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(id_is_the_same_whatever_the_width, setup, teardown),
        cmocka_unit_test_setup_teardown(two_machines_have_different_ones, setup, teardown),
        cmocka_unit_test_setup_teardown(change_is_told_until_it_was_read, setup, teardown),
        cmocka_unit_test_setup_teardown(id_and_what_is_untold_move, setup, teardown),
        cmocka_unit_test_setup_teardown(reboot_keeps_it_and_tells_nothing, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
