/*
 * Random register accesses and random ring contents against all devices at once, with moves in between. What
 * must hold: nothing crashes, nothing is written outside what a driver may lose, and after a reset each
 * device works. The seed is fixed and printed; run under the sanitizers this is where they earn their keep.
 */
#include "guest.h"

#include "base/clock.h"
#include "device/goldfish_rtc.h"
#include "device/uart16550.h"
#include "device/virtio_blk.h"
#include "device/virtio_console.h"
#include "device/virtio_net.h"
#include "device/virtio_rng.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define SEED      UINT64_C(20261121)
#define DEVICES   6
#define VIRTIOS   4 /* the first four */
#define DISK_SIZE (1 << 20)

struct world {
    struct unit_dir dir;
    char disk[128];
    struct guest *guest;
    struct driver drivers[DEVICES];
    struct device *devices[DEVICES];
};

static void create_devices(struct world *world)
{
    const struct virtio_blk_options blk = {.path = world->disk, .engine = DISK_ENGINE_AUTO};
    const struct virtio_console_options console = {.opaque = NULL};
    const struct uart16550_options uart = {.opaque = NULL};
    struct virtio_net_options net = {.mac = {0x52, 0x54, 0, 0, 0, 1}};
    struct device_env env[DEVICES];
    struct ferry_error err = {0};

    for (unsigned i = 0; i < DEVICES; i++)
        env[i] = guest_env(world->guest, &world->drivers[i]);
    assert_ok(virtio_blk_create(&world->devices[0], &env[0], 0, &blk, &err), err);
    assert_ok(net_backend_new(&net.backend, "user", NULL, &err), err);
    assert_ok(virtio_net_create(&world->devices[1], &env[1], 0, &net, &err), err);
    assert_ok(virtio_console_create(&world->devices[2], &env[2], 0, &console, &err), err);
    assert_ok(virtio_rng_create(&world->devices[3], &env[3], 0, &err), err);
    assert_ok(uart16550_create(&world->devices[4], &env[4], 0, &uart, &err), err);
    assert_ok(goldfish_rtc_create(&world->devices[5], &env[5], 0, &err), err);
}

static int setup(void **state)
{
    struct world *world = calloc(1, sizeof(*world));
    int fd;

    unit_dir_make(&world->dir);
    fd = open(unit_path(&world->dir, "disk.img", world->disk), O_CREAT | O_RDWR, 0600);
    assert_int_equal(ftruncate(fd, DISK_SIZE), 0);
    close(fd);
    world->guest = guest_new();
    create_devices(world);
    *state = world;
    return 0;
}

static int teardown(void **state)
{
    struct world *world = *state;

    for (unsigned i = 0; i < DEVICES; i++)
        device_stop_and_destroy(world->devices[i]);
    guest_free(world->guest);
    unit_dir_remove(&world->dir);
    free(world);
    return 0;
}

static void start_all(struct world *world)
{
    for (unsigned i = 0; i < DEVICES; i++)
        device_start(world->devices[i]);
}

static void quiesce_all(struct world *world)
{
    for (unsigned i = 0; i < DEVICES; i++)
        device_quiesce(world->devices[i]);
}

/* The same VM in new devices on a copy of its memory. */
static void move_all(struct world *world)
{
    struct device *old[DEVICES];
    struct guest *guest = guest_clone(world->guest);
    struct guest *left = world->guest;

    memcpy(old, world->devices, sizeof(old));
    world->guest = guest;
    create_devices(world);
    for (unsigned i = 0; i < DEVICES; i++) {
        device_move(old[i], world->devices[i]);
        old[i]->ops->destroy(old[i]);
    }
    guest_free(left);
}

static uint32_t random_value(uint64_t *seed)
{
    switch (unit_random(seed) % 6) {
    case 0:
        return (uint32_t)unit_random(seed);
    case 1:
        return UINT32_MAX;
    case 2:
        return (uint32_t)(GUEST_RAM + unit_random(seed) % GUEST_RAM_SIZE) & ~UINT32_C(15);
    case 3:
        return UINT32_C(1) << unit_random(seed) % 32;
    default:
        return unit_random(seed) % 16;
    }
}

static void random_registers_never_hurt(void **state)
{
    static const uint16_t regs[] = {R_DEVICE_FEATURES_SEL,
                                    R_DRIVER_FEATURES,
                                    R_DRIVER_FEATURES_SEL,
                                    R_QUEUE_SEL,
                                    R_QUEUE_NUM,
                                    R_QUEUE_READY,
                                    R_QUEUE_NOTIFY,
                                    R_INTERRUPT_ACK,
                                    R_STATUS,
                                    R_QUEUE_DESC,
                                    R_QUEUE_DESC + 4,
                                    R_QUEUE_DRIVER,
                                    R_QUEUE_DRIVER + 4,
                                    R_QUEUE_DEVICE,
                                    R_QUEUE_DEVICE + 4,
                                    R_CONFIG,
                                    R_CONFIG_GENERATION};
    struct world *world = *state;
    uint64_t seed = SEED;

    print_message("seed %llu\n", (unsigned long long)seed);
    start_all(world);
    for (unsigned i = 0; i < 60000; i++) {
        struct driver *driver = &world->drivers[unit_random(&seed) % DEVICES];
        uint64_t reg =
            unit_random(&seed) % 3 ? regs[unit_random(&seed) % ARRAY_SIZE(regs)] : unit_random(&seed) % 0x100;
        unsigned size = unit_random(&seed) % 4 ? 4 : 1U << unit_random(&seed) % 4;
        uint64_t value;

        if (unit_random(&seed) % 3)
            (void)mmio_bus_write(world->guest->bus, driver->mmio + reg, size, random_value(&seed));
        else
            (void)mmio_bus_read(world->guest->bus, driver->mmio + reg, size, &value);
        if (i % 20000 == 19999) {
            quiesce_all(world);
            move_all(world);
            start_all(world);
        }
    }
    for (unsigned i = 0; i < VIRTIOS; i++)
        driver_begin(&world->drivers[i], 0);
}

/* A driver that sets up properly and then writes rubbish into its rings; mostly valid at first sight. */
static void scribble(struct driver_queue *queue, uint64_t *seed)
{
    struct guest *guest = queue->driver->guest;
    unsigned used = unit_random(seed) % 4;

    for (unsigned i = 0; i < queue->size; i++) {
        uint16_t flags = (uint16_t)(unit_random(seed) % 10 ? unit_random(seed) % 4 : unit_random(seed) % 8);
        uint32_t size = unit_random(seed) % 8 ? unit_random(seed) % 2048 : random_value(seed);
        uint64_t addr = GUEST_RAM + 0x400000 + unit_random(seed) % 0x3f0000;

        if (unit_random(seed) % 64 == 0)
            addr = unit_random(seed);
        queue_set_desc(queue, i, addr, flags & DESC_INDIRECT ? size & ~15U : size, flags,
                       (uint16_t)(unit_random(seed) % (queue->size + (unit_random(seed) % 64 == 0))));
    }
    /* Sectors and types that make sense to a disk, somewhere where headers may be taken from. */
    for (unsigned i = 0; i < 64; i++) {
        uint64_t header[2] = {unit_random(seed) % 16, unit_random(seed) % (DISK_SIZE / 512 + 8)};

        memcpy(guest_ptr(guest, GUEST_RAM + 0x400000 + unit_random(seed) % 0x3f0000, 16), header, 16);
    }
    for (unsigned i = 0; i <= used; i++)
        queue_offer(queue, (uint16_t)(unit_random(seed) % queue->size));
    if (unit_random(seed) % 200 == 0)
        queue->avail_idx += (uint16_t)unit_random(seed);
    queue_publish(queue);
    queue_notify(queue);
}

static void set_up(struct driver *driver, uint64_t *seed)
{
    uint64_t features = driver_device_features(driver);

    driver->guest->next_ram = GUEST_RAM; /* rings are made anew; nobody uses the old ones after a reset */
    driver_begin(driver, unit_random(seed) % 2 ? features : features & unit_random(seed));
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++) {
        driver_write(driver, R_QUEUE_SEL, i);
        if (driver_read(driver, R_QUEUE_NUM_MAX))
            driver_add_queue(driver, i, 8U << unit_random(seed) % 3);
    }
    driver_ok(driver);
}

static void random_rings_never_hurt(void **state)
{
    struct world *world = *state;
    uint64_t seed = SEED;

#ifdef __SANITIZE_THREAD__
    skip(); /* this driver races the device for its rings on purpose */
#endif

    print_message("seed %llu\n", (unsigned long long)seed);
    for (unsigned round = 0; round < 60; round++) {
        struct driver *driver = &world->drivers[round % VIRTIOS];

        /* One device at a time: they would scribble over each other's rings, and tests want a cause. */
        device_start(world->devices[round % VIRTIOS]);
        set_up(driver, &seed);
        for (unsigned i = 0; i < 50; i++) {
            unsigned index = unit_random(&seed) % VIRTIO_QUEUES_MAX;

            if (driver->queues[index].size)
                scribble(&driver->queues[index], &seed);
            if (driver_needs_reset(driver))
                set_up(driver, &seed);
        }
        device_quiesce(world->devices[round % VIRTIOS]);
        if (round % 16 == 15)
            move_all(world);
    }
}

static void after_all_that_a_disk_still_works(void **state)
{
    struct world *world = *state;
    struct driver *driver = &world->drivers[0];
    const uint64_t header[2] = {1, 0}; /* write sector 0 */
    struct driver_buffer buffers[3] = {{0, 16, false}, {0, 512, false}, {0, 1, true}};

    random_rings_never_hurt(state);
    device_start(world->devices[0]);
    driver->guest->next_ram = GUEST_RAM;
    driver_begin(driver, 0);
    driver_add_queue(driver, 0, 16);
    driver_ok(driver);
    buffers[0].addr = guest_put(world->guest, header, sizeof(header));
    buffers[1].addr = guest_alloc(world->guest, 512, 512);
    buffers[2].addr = guest_put(world->guest, "x", 1);
    queue_submit(&driver->queues[0], buffers, 3);
    queue_wait_used(&driver->queues[0], NULL, NULL);
    assert_int_equal(*(uint8_t *)guest_ptr(world->guest, buffers[2].addr, 1), 0);
}

/* Sections with bytes changed: refused, or harmless. */
static void random_state_never_hurts(void **state)
{
    struct world *world = *state;
    uint64_t seed = SEED;
    unsigned refused = 0;

    print_message("seed %llu\n", (unsigned long long)seed);
    for (unsigned round = 0; round < 600; round++) {
        struct device *device = world->devices[round % DEVICES];
        struct buffer section = BUFFER_INIT;
        struct ferry_error err = {0};
        struct reader reader;

        device->ops->save(device, &section);
        for (unsigned i = 0; i < 1 + round % 4; i++)
            section.data[unit_random(&seed) % section.size] = (uint8_t)unit_random(&seed);
        if (unit_random(&seed) % 8 == 0)
            section.size = unit_random(&seed) % section.size;
        reader = reader_init(section.data, section.size);
        if (device->ops->load(device, 1, &reader, &err) < 0) {
            refused++;
            assert_contains(err.text, device->name);
        }
        buffer_free(&section);
        device_start(device);
        device_quiesce(device);
    }
    assert_true(refused > 50);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(random_registers_never_hurt),
        CASE(random_rings_never_hurt),
        CASE(after_all_that_a_disk_still_works),
        CASE(random_state_never_hurts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
