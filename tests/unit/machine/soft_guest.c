#include "soft_guest.h"

#include "base/clock.h"

static void on_event(void *opaque, enum accel_event event, const char *why)
{
    struct soft_guest *guest = opaque;

    pthread_mutex_lock(&guest->lock);
    guest->event = event;
    pthread_cond_broadcast(&guest->changed);
    pthread_mutex_unlock(&guest->lock);
}

void soft_guest_new(struct soft_guest *guest, unsigned harts)
{
    struct accel_platform platform = {.opaque = guest, .event = on_event};
    struct accel_config config = {.vcpus = harts, .platform = &platform};
    struct ferry_error err = {0};

    *guest = (struct soft_guest){.harts = harts};
    pthread_mutex_init(&guest->lock, NULL);
    thread_cond_init(&guest->changed);
    assert_ok(memory_new(&guest->memory, &err), err);
    assert_ok(memory_add_region(guest->memory, "ram0", RISCV64_RAM_BASE, SOFT_GUEST_MEMORY, &err), err);
    assert_ok(mmio_bus_new(&guest->bus, &err), err);
    config.memory = guest->memory;
    config.bus = guest->bus;
    assert_ok(accel_soft.create(&guest->accel, &config, &err), err);
}

void soft_guest_free(struct soft_guest *guest)
{
    accel_soft.destroy(guest->accel);
    mmio_bus_free(guest->bus);
    memory_free(guest->memory);
    pthread_cond_destroy(&guest->changed);
    pthread_mutex_destroy(&guest->lock);
}

void soft_guest_boot(struct soft_guest *guest, const uint32_t *program, size_t size, uint64_t a0, uint64_t a1)
{
    struct accel_boot boot = {.entry = RISCV64_RAM_BASE, .arguments = {a0, a1}};
    struct ferry_error err = {0};

    assert_true(memory_write(guest->memory, RISCV64_RAM_BASE, program, size));
    assert_ok(accel_soft.reset(guest->accel, &boot, &err), err);
}

static void *hart_thread(void *argument)
{
    struct soft_guest *guest = argument;
    unsigned index = __atomic_fetch_add(&guest->next_index, 1, __ATOMIC_SEQ_CST);
    struct ferry_error err;
    bool parking = false;

    while (!parking) {
        (void)accel_soft.vcpu_run(guest->accel, index, &err);
        pthread_mutex_lock(&guest->lock);
        parking = guest->parking;
        pthread_mutex_unlock(&guest->lock);
    }
    return NULL;
}

void soft_guest_start(struct soft_guest *guest)
{
    struct ferry_error err = {0};

    guest->parking = false;
    guest->next_index = 0;
    accel_soft.clock_start(guest->accel);
    for (unsigned i = 0; i < guest->harts; i++)
        assert_ok(thread_start(&guest->threads[i], THREAD_GENERAL, "hart", hart_thread, guest, &err), err);
}

void soft_guest_stop(struct soft_guest *guest)
{
    pthread_mutex_lock(&guest->lock);
    guest->parking = true;
    pthread_mutex_unlock(&guest->lock);
    for (unsigned i = 0; i < guest->harts; i++)
        accel_soft.vcpu_kick(guest->accel, i);
    for (unsigned i = 0; i < guest->harts; i++)
        thread_join(&guest->threads[i]);
    accel_soft.clock_stop(guest->accel);
}

enum accel_event soft_guest_wait(struct soft_guest *guest)
{
    uint64_t deadline = clock_deadline(UNIT_DEADLINE_MS);
    enum accel_event event;
    bool in_time = true;

    pthread_mutex_lock(&guest->lock);
    while (!guest->event && in_time)
        in_time = thread_cond_wait_until(&guest->changed, &guest->lock, deadline);
    event = guest->event;
    pthread_mutex_unlock(&guest->lock);
    if (!event)
        fail_msg("the guest did not end");
    return event;
}

uint64_t soft_guest_read(struct soft_guest *guest, uint64_t addr)
{
    uint64_t value = 0;

    assert_true(memory_read(guest->memory, addr, &value, sizeof(value)));
    return value;
}

void soft_guest_move(struct soft_guest *from, struct soft_guest *to)
{
    struct accel_section sections[RISCV64_HARTS_MAX + 2];
    size_t count = sizeof(sections) / sizeof(sections[0]);
    struct ferry_error err = {0};

    accel_soft.sections(from->accel, sections, &count);
    assert_int_equal(count, from->harts + 2);
    memcpy(memory_region(to->memory, 0)->host_ptr, memory_region(from->memory, 0)->host_ptr,
           SOFT_GUEST_MEMORY);
    for (size_t i = 0; i < count; i++) {
        struct buffer saved = BUFFER_INIT;
        struct reader in;

        assert_ok(accel_soft.section_save(from->accel, sections[i].index, &saved, &err), err);
        in = reader_init(saved.data, saved.size);
        assert_ok(
            accel_soft.section_load(to->accel, sections[i].index, sections[i].table->version, &in, &err),
            err);
        assert_int_equal(reader_left(&in), 0);
        buffer_free(&saved);
    }
}
