/* The machine's verbs, with vCPUs that only count. */
#include "unit.h"

#include "base/bitmap.h"
#include "base/clock.h"
#include "base/thread.h"
#include "fake_accel.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#define VCPUS 3

struct fixture {
    struct unit_dir dir;
    char kernel[128];
    struct machine_config config;
    struct machine_callbacks callbacks;
    struct machine *machine;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum machine_event event;
    unsigned events;
    unsigned inside_at_event;
    char why[128];
};

static void on_event(void *opaque, enum machine_event event, const char *why)
{
    struct fixture *fixture = opaque;

    pthread_mutex_lock(&fixture->lock);
    fixture->event = event;
    fixture->events++;
    fixture->inside_at_event = __atomic_load_n(&fake.inside, __ATOMIC_ACQUIRE);
    snprintf(fixture->why, sizeof(fixture->why), "%s", why);
    pthread_cond_broadcast(&fixture->changed);
    pthread_mutex_unlock(&fixture->lock);
}

static void write_kernel(const char *path)
{
    uint8_t header[64] = {0};
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    header[10] = 0x20; /* text_offset 0x200000 */
    memcpy(header + 0x38, "RSC\x05", 4);
    assert_int_equal(write(fd, header, sizeof(header)), sizeof(header));
    close(fd);
}

static void new_machine(struct fixture *fixture, struct machine **out)
{
    struct ferry_error err;

    assert_ok(machine_new_on(out, &board_fake, &fixture->config, NULL, &fixture->callbacks, &err), err);
}

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));

    unit_dir_make(&fixture->dir);
    unit_path(&fixture->dir, "kernel", fixture->kernel);
    write_kernel(fixture->kernel);
    pthread_mutex_init(&fixture->lock, NULL);
    thread_cond_init(&fixture->changed);
    fixture->callbacks = (struct machine_callbacks){.opaque = fixture, .event = on_event};
    fixture->config = (struct machine_config){
        .name = "t", .machine = "riscv64", .memory = 16 << 20, .vcpus = VCPUS, .kernel = fixture->kernel};
    new_machine(fixture, &fixture->machine);
    *state = fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;

    machine_free(fixture->machine);
    pthread_cond_destroy(&fixture->changed);
    pthread_mutex_destroy(&fixture->lock);
    unit_dir_remove(&fixture->dir);
    free(fixture);
    return 0;
}

static uint64_t all_steps(void)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < VCPUS; i++)
        sum += __atomic_load_n(&fake.steps[i], __ATOMIC_ACQUIRE);
    return sum;
}

static void wait_for_steps(unsigned vcpu, uint64_t count)
{
    uint64_t deadline = clock_deadline(UNIT_DEADLINE_MS);

    while (__atomic_load_n(&fake.steps[vcpu], __ATOMIC_ACQUIRE) < count) {
        assert_true(clock_now_ns() < deadline);
        sched_yield();
    }
}

static void wait_for_event(struct fixture *fixture, enum machine_event event)
{
    uint64_t deadline = clock_deadline(UNIT_DEADLINE_MS);

    pthread_mutex_lock(&fixture->lock);
    while (!fixture->events && clock_now_ns() < deadline)
        thread_cond_wait_until(&fixture->changed, &fixture->lock, deadline);
    pthread_mutex_unlock(&fixture->lock);
    assert_int_equal(fixture->events, 1);
    assert_int_equal(fixture->event, event);
}

static void run(struct fixture *fixture)
{
    struct ferry_error err;

    assert_ok(machine_resume(fixture->machine, &err), err);
    for (unsigned i = 0; i < VCPUS; i++)
        wait_for_steps(i, __atomic_load_n(&fake.steps[i], __ATOMIC_ACQUIRE) + 1);
}

static void nothing_runs_before_resume_and_after_pause(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    assert_ok(machine_boot(fixture->machine, &err), err);
    assert_int_equal(all_steps(), 0);
    assert_false(machine_running(fixture->machine));
    for (int i = 0; i < 50; i++) {
        uint64_t steps;

        run(fixture);
        assert_true(machine_running(fixture->machine));
        assert_true(fake.clock_running);
        assert_ok(machine_pause(fixture->machine, &err), err);
        assert_int_equal(fake.inside, 0);
        steps = all_steps();
        assert_false(machine_running(fixture->machine));
        assert_false(fake.clock_running);
        sched_yield();
        assert_int_equal(all_steps(), steps);
    }
}

static void pause_and_resume_may_be_repeated(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    assert_ok(machine_pause(fixture->machine, &err), err);
    assert_ok(machine_boot(fixture->machine, &err), err);
    run(fixture);
    assert_ok(machine_resume(fixture->machine, &err), err);
    assert_ok(machine_pause(fixture->machine, &err), err);
    assert_ok(machine_pause(fixture->machine, &err), err);
    assert_ok(machine_quiesce(fixture->machine, clock_deadline(UNIT_DEADLINE_MS), &err), err);
    assert_ok(machine_quiesce(fixture->machine, clock_deadline(UNIT_DEADLINE_MS), &err), err);
    run(fixture);
}

static void pause_right_after_resume_stops_everything(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    for (int i = 0; i < 100; i++) {
        assert_ok(machine_resume(fixture->machine, &err), err);
        assert_ok(machine_pause(fixture->machine, &err), err);
        assert_int_equal(__atomic_load_n(&fake.inside, __ATOMIC_ACQUIRE), 0);
    }
}

static void event_comes_when_no_vcpu_runs_any_more(void **state)
{
    struct fixture *fixture = *state;

    run(fixture);
    __atomic_store_n(&fake.event_vcpu, 1, __ATOMIC_RELEASE);
    __atomic_store_n(&fake.event, ACCEL_EVENT_POWER_OFF, __ATOMIC_RELEASE);
    wait_for_event(fixture, MACHINE_EVENT_POWER_OFF);
    assert_int_equal(fixture->inside_at_event, 0);
    assert_false(machine_running(fixture->machine));
    assert_string_equal(fixture->why, "fake");
}

static void event_that_meets_a_pause_is_not_lost(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    for (int i = 0; i < 50; i++) {
        fixture->events = 0;
        run(fixture);
        __atomic_store_n(&fake.event, ACCEL_EVENT_CRASH, __ATOMIC_RELEASE);
        assert_ok(machine_pause(fixture->machine, &err), err);
        /* Either the vCPU had no time for it, or it was delivered before pause returned. */
        assert_int_equal(fixture->events, __atomic_exchange_n(&fake.event, 0, __ATOMIC_ACQ_REL) ? 0 : 1);
    }
}

static void failing_accelerator_is_an_event_with_its_words(void **state)
{
    struct fixture *fixture = *state;

    run(fixture);
    __atomic_store_n(&fake.event, -1, __ATOMIC_RELEASE);
    wait_for_event(fixture, MACHINE_EVENT_ERROR);
    assert_string_equal(fixture->why, "the fake broke");
}

static void reset_boots_again(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    assert_ok(machine_boot(fixture->machine, &err), err);
    run(fixture);
    __atomic_store_n(&fake.event, ACCEL_EVENT_RESET, __ATOMIC_RELEASE);
    wait_for_event(fixture, MACHINE_EVENT_RESET);
    assert_ok(machine_reset(fixture->machine, &err), err);
    assert_int_equal(fake.resets, 2);
    run(fixture);
    unlink(fixture->kernel);
    assert_int_equal(machine_reset(fixture->machine, &err), -ENOENT);
    assert_contains(err.text, fixture->kernel);
}

static void reset_is_recorded_by_dirty_tracking(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;
    uint64_t bitmap[64] = {0};

    assert_ok(machine_boot(fixture->machine, &err), err);
    assert_ok(machine_dirty_start(fixture->machine, &err), err);
    assert_ok(machine_reset(fixture->machine, &err), err);
    assert_ok(machine_dirty_fetch(fixture->machine, 0, bitmap, &err), err);
    assert_true(bitmap_test(bitmap, 0x200000 / 4096));
    assert_true(bitmap_test(bitmap, ((16 << 20) - 0x10000) / 4096));
    assert_int_equal(machine_dirty_fetch(fixture->machine, 1, bitmap, &err), -EINVAL);
    machine_dirty_stop(fixture->machine);
}

/* Saved sections, to be loaded elsewhere. */
struct sections {
    unsigned count;
    struct {
        char name[64];
        uint32_t version;
        uint8_t *data;
        size_t size;
    } section[64];
};

static int collect(void *opaque, const char *name, uint32_t version, const void *data, size_t size,
                   struct ferry_error *err)
{
    struct sections *sections = opaque;
    unsigned i = sections->count++;

    snprintf(sections->section[i].name, sizeof(sections->section[i].name), "%s", name);
    sections->section[i].version = version;
    sections->section[i].data = malloc(size + 1);
    memcpy(sections->section[i].data, data, size);
    sections->section[i].size = size;
    return 0;
}

static void sections_free(struct sections *sections)
{
    while (sections->count)
        free(sections->section[--sections->count].data);
}

static int load(struct machine *machine, const struct sections *sections, unsigned i, struct ferry_error *err)
{
    return machine_load_section(machine, sections->section[i].name, sections->section[i].version,
                                sections->section[i].data, sections->section[i].size, err);
}

static void save(struct machine *machine, struct sections *sections)
{
    struct ferry_error err;

    assert_ok(machine_pause(machine, &err), err);
    assert_ok(machine_quiesce(machine, clock_deadline(UNIT_DEADLINE_MS), &err), err);
    assert_ok(machine_save(machine, collect, sections, &err), err);
}

static void state_moves_to_another_machine(void **state)
{
    struct fixture *fixture = *state;
    struct sections first = {0}, second = {0};
    struct machine *other;
    struct ferry_error err;

    assert_ok(machine_boot(fixture->machine, &err), err);
    run(fixture);
    save(fixture->machine, &first);
    assert_string_equal(first.section[0].name, "hart0");
    assert_string_equal(first.section[VCPUS].name, "uart0");
    new_machine(fixture, &other);
    for (unsigned i = 0; i < first.count; i++)
        assert_ok(load(other, &first, i, &err), err);
    assert_ok(machine_load_finish(other, &err), err);
    save(other, &second);
    assert_int_equal(first.count, second.count);
    for (unsigned i = 0; i < first.count; i++) {
        assert_string_equal(first.section[i].name, second.section[i].name);
        assert_int_equal(first.section[i].size, second.section[i].size);
        assert_memory_equal(first.section[i].data, second.section[i].data, first.section[i].size);
    }
    assert_ok(machine_resume(other, &err), err);
    wait_for_steps(0, 1);
    machine_free(other);
    sections_free(&first);
    sections_free(&second);
}

static void guest_of_before_there_was_a_device_comes_without_it(void **state)
{
    struct fixture *fixture = *state;
    struct sections sections = {0};
    struct machine *other;
    struct ferry_error err;
    unsigned left_out = 0;

    save(fixture->machine, &sections);
    new_machine(fixture, &other);
    for (unsigned i = 0; i < sections.count; i++) {
        if (strcmp(sections.section[i].name, "vmgenid0") == 0)
            left_out++;
        else
            assert_ok(load(other, &sections, i, &err), err);
    }
    assert_int_equal(left_out, 1);
    assert_ok(machine_load_finish(other, &err), err);
    assert_ok(machine_resume(other, &err), err);
    wait_for_steps(0, 1);
    machine_free(other);
    sections_free(&sections);
}

static void sections_that_do_not_belong_are_refused_by_name(void **state)
{
    struct fixture *fixture = *state;
    struct sections sections = {0};
    struct machine *other;
    struct ferry_error err;

    save(fixture->machine, &sections);
    new_machine(fixture, &other);
    assert_int_equal(machine_load_section(other, "virtio-blk0", 1, "", 0, &err), -ENOENT);
    assert_contains(err.text, "virtio-blk0");
    assert_ok(load(other, &sections, 0, &err), err);
    assert_int_equal(load(other, &sections, 0, &err), -EEXIST);
    assert_contains(err.text, "hart0");
    assert_int_equal(machine_load_finish(other, &err), -ENOENT);
    assert_contains(err.text, "hart1");
    /* one byte more, one less, a newer version */
    sections.section[1].size++;
    assert_int_equal(load(other, &sections, 1, &err), -EINVAL);
    assert_contains(err.text, "hart1");
    sections.section[1].size -= 2;
    assert_int_equal(load(other, &sections, 1, &err), -EINVAL);
    sections.section[1].size++;
    sections.section[1].version = 2;
    assert_int_equal(load(other, &sections, 1, &err), -EPROTONOSUPPORT);
    assert_contains(err.text, "hart1");
    machine_free(other);
    sections_free(&sections);
}

static void machine_of_another_type_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;
    struct machine *machine;

    fixture->config.machine = "vax";
    assert_int_equal(machine_new(&machine, &fixture->config, NULL, &fixture->callbacks, &err), -EOPNOTSUPP);
    assert_contains(err.text, "vax");
}

static void network_of_unknown_kind_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;
    struct machine *machine;

    fixture->config.net_count = 1;
    fixture->config.nets[0] = (struct machine_net_config){.backend = "carrier-pigeon", .mac = {2}};
    assert_int_equal(machine_new_on(&machine, &board_fake, &fixture->config, NULL, &fixture->callbacks, &err),
                     -EINVAL);
    assert_contains(err.text, "carrier-pigeon");
    fixture->config.net_count = 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        TEST(nothing_runs_before_resume_and_after_pause),
        TEST(pause_and_resume_may_be_repeated),
        TEST(pause_right_after_resume_stops_everything),
        TEST(event_comes_when_no_vcpu_runs_any_more),
        TEST(event_that_meets_a_pause_is_not_lost),
        TEST(failing_accelerator_is_an_event_with_its_words),
        TEST(reset_boots_again),
        TEST(reset_is_recorded_by_dirty_tracking),
        TEST(state_moves_to_another_machine),
        TEST(guest_of_before_there_was_a_device_comes_without_it),
        TEST(sections_that_do_not_belong_are_refused_by_name),
        TEST(machine_of_another_type_is_refused),
        TEST(network_of_unknown_kind_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
