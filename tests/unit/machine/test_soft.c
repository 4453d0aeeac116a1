/* The built-in CPU as an accelerator: running, stopping, state, dirty pages, harts among each other. */
#include "soft_guest.h"

#include "base/bitmap.h"
#include "base/clock.h"

#include <errno.h>

#define RESULTS UINT64_C(0x80200000)

/* Runs PROGRAM on HARTS harts; it must switch itself off and not report a failure. */
static void run_to_end(const uint32_t *program, size_t size, unsigned harts)
{
    struct soft_guest guest;

    soft_guest_new(&guest, harts);
    soft_guest_boot(&guest, program, size, 0, 0);
    soft_guest_start(&guest);
    assert_int_equal(soft_guest_wait(&guest), ACCEL_EVENT_POWER_OFF);
    soft_guest_stop(&guest);
    soft_guest_free(&guest);
}

static void harts_that_fence_each_other_do_not_wait_for_ever(void **state)
{
    run_to_end(guest_fences, guest_fences_size, 2);
}

static void code_written_by_the_guest_is_run_after_a_fence(void **state)
{
    run_to_end(guest_patch, guest_patch_size, 2);
}

static void a_sleeping_hart_wakes_when_its_timer_is_due(void **state)
{
    run_to_end(guest_sleep, guest_sleep_size, 1);
}

static void a_stopped_hart_can_be_started_again(void **state)
{
    run_to_end(guest_stopping, guest_stopping_size, 2);
}

static void a_throttled_guest_still_ends(void **state)
{
    struct soft_guest guest;

    soft_guest_new(&guest, 1);
    soft_guest_boot(&guest, guest_sleep, guest_sleep_size, 0, 0);
    accel_soft.throttle(guest.accel, 99);
    soft_guest_start(&guest);
    assert_int_equal(soft_guest_wait(&guest), ACCEL_EVENT_POWER_OFF);
    soft_guest_stop(&guest);
    soft_guest_free(&guest);
}

static uint64_t dirtied(const struct soft_guest *guest, unsigned hart)
{
    uint64_t pages = 0;

    assert_true(accel_soft.vcpu_dirtied(guest->accel, hart, &pages));
    return pages;
}

/* Two harts that write as fast as they can, one of them slowed: who writes is seen, and slowed alone. */
static void one_slowed_hart_writes_less(void **state)
{
    size_t pages = SOFT_GUEST_MEMORY / MEMORY_PAGE_SIZE;
    uint64_t *dirty = bitmap_new(pages);
    struct ferry_error err = {0};
    struct soft_guest guest;
    uint64_t begin[2];

    assert_non_null(dirty);
    soft_guest_new(&guest, 2);
    soft_guest_boot(&guest, guest_writers, guest_writers_size, 0, 1);
    soft_guest_start(&guest);
    assert_ok(accel_soft.dirty_start(guest.accel, &err), err);
    while (dirtied(&guest, 0) == 0 || dirtied(&guest, 1) == 0)
        assert_ok(accel_soft.dirty_fetch(guest.accel, 0, dirty, &err), err);
    accel_soft.vcpu_throttle(guest.accel, 1, 99);
    for (unsigned i = 0; i < 2; i++)
        begin[i] = dirtied(&guest, i);
    while (dirtied(&guest, 0) - begin[0] < 200000)
        assert_ok(accel_soft.dirty_fetch(guest.accel, 0, dirty, &err), err);
    assert_true(dirtied(&guest, 1) - begin[1] < 100000);
    accel_soft.throttle(guest.accel, 0);
    begin[1] = dirtied(&guest, 1);
    while (dirtied(&guest, 1) - begin[1] < 50000)
        assert_ok(accel_soft.dirty_fetch(guest.accel, 0, dirty, &err), err);
    accel_soft.dirty_stop(guest.accel);
    soft_guest_stop(&guest);
    soft_guest_free(&guest);
    free(dirty);
}

static void check_results(struct soft_guest *guest, struct soft_guest *expected)
{
    for (uint64_t at = RESULTS; at < RESULTS + 32; at += 8)
        assert_int_equal(soft_guest_read(guest, at), soft_guest_read(expected, at));
    assert_memory_equal(memory_region(guest->memory, 0)->host_ptr,
                        memory_region(expected->memory, 0)->host_ptr, SOFT_GUEST_MEMORY);
}

static void a_guest_moved_while_it_computes_goes_on_exactly(void **state)
{
    struct soft_guest whole, moved[2];
    unsigned here = 0, moves = 0;
    const uint64_t iterations = 2000000;

    soft_guest_new(&whole, 1);
    soft_guest_boot(&whole, guest_compute, guest_compute_size, iterations, 12345);
    soft_guest_start(&whole);
    assert_int_equal(soft_guest_wait(&whole), ACCEL_EVENT_POWER_OFF);
    soft_guest_stop(&whole);
    assert_true(soft_guest_read(&whole, RESULTS + 16) > iterations); /* instructions retired */

    soft_guest_new(&moved[0], 1);
    soft_guest_new(&moved[1], 1);
    soft_guest_boot(&moved[0], guest_compute, guest_compute_size, iterations, 12345);
    for (;;) {
        struct soft_guest *guest = &moved[here];
        bool in_time = true;

        soft_guest_start(guest);
        pthread_mutex_lock(&guest->lock);
        while (!guest->event && in_time)
            in_time = thread_cond_wait_until(&guest->changed, &guest->lock, clock_now_ns() + NS_PER_MS);
        pthread_mutex_unlock(&guest->lock);
        soft_guest_stop(guest);
        if (guest->event)
            break;
        soft_guest_move(guest, &moved[!here]);
        here = !here;
        moves++;
    }
    assert_true(moves > 0);
    check_results(&moved[here], &whole);
    soft_guest_free(&moved[0]);
    soft_guest_free(&moved[1]);
    soft_guest_free(&whole);
}

static void every_page_that_is_written_is_reported(void **state)
{
    const size_t pages = SOFT_GUEST_MEMORY >> MEMORY_PAGE_SHIFT;
    uint64_t *dirty = bitmap_new(pages);
    uint8_t *copy = malloc(SOFT_GUEST_MEMORY);
    struct ferry_error err = {0};
    struct soft_guest guest;
    const uint8_t *memory;
    size_t reported = 0;

    soft_guest_new(&guest, 2);
    memory = memory_region(guest.memory, 0)->host_ptr;
    soft_guest_boot(&guest, guest_writers, guest_writers_size, 0, 1);
    soft_guest_start(&guest);
    assert_ok(accel_soft.dirty_start(guest.accel, &err), err);
    memcpy(copy, memory, SOFT_GUEST_MEMORY);
    for (unsigned round = 0; round < 300 || reported < 1000; round++) {
        assert_ok(accel_soft.dirty_fetch(guest.accel, 0, dirty, &err), err);
        for (size_t i = 0; (i = bitmap_next_set(dirty, pages, i)) < pages; reported++) {
            memcpy(copy + i * MEMORY_PAGE_SIZE, memory + i * MEMORY_PAGE_SIZE, MEMORY_PAGE_SIZE);
            bitmap_clear(dirty, i);
        }
    }
    soft_guest_stop(&guest);
    assert_ok(accel_soft.dirty_fetch(guest.accel, 0, dirty, &err), err);
    for (size_t i = 0; i < pages; i++) {
        if (!bitmap_test(dirty, i) &&
            memcmp(copy + i * MEMORY_PAGE_SIZE, memory + i * MEMORY_PAGE_SIZE, MEMORY_PAGE_SIZE) != 0)
            fail_msg("page %zu was written and not reported", i);
    }
    accel_soft.dirty_stop(guest.accel);
    soft_guest_free(&guest);
    free(copy);
    free(dirty);
}

static void dirty_pages_of_a_region_that_is_not_there_are_refused(void **state)
{
    struct ferry_error err = {0};
    struct soft_guest guest;
    uint64_t word = 0;

    soft_guest_new(&guest, 1);
    assert_int_equal(accel_soft.dirty_fetch(guest.accel, 1, &word, &err), -EINVAL);
    soft_guest_free(&guest);
}

static void a_kick_before_running_is_not_lost(void **state)
{
    struct ferry_error err = {0};
    struct soft_guest guest;

    soft_guest_new(&guest, 2);
    soft_guest_boot(&guest, guest_writers, guest_writers_size, 0, 0);
    accel_soft.vcpu_kick(guest.accel, 0);
    accel_soft.vcpu_kick(guest.accel, 1);
    assert_int_equal(accel_soft.vcpu_run(guest.accel, 0, &err), ACCEL_EXIT_KICKED);
    assert_int_equal(accel_soft.vcpu_run(guest.accel, 1, &err), ACCEL_EXIT_KICKED); /* a stopped hart */
    soft_guest_free(&guest);
}

static bool hold(struct soft_guest *guest)
{
    uint64_t deadline = clock_deadline(UNIT_DEADLINE_MS);
    struct timespec moment = {.tv_nsec = 100000};

    while (!accel_soft.vcpu_hold(guest->accel, 0)) {
        if (clock_now_ns() > deadline)
            return false;
        nanosleep(&moment, NULL);
    }
    return true;
}

static void a_sleeping_hart_can_be_held_saved_and_let_go(void **state)
{
    struct soft_guest here, there;

    soft_guest_new(&here, 1);
    soft_guest_new(&there, 1);
    soft_guest_boot(&here, guest_idle, guest_idle_size, RESULTS, 0);
    soft_guest_start(&here);
    assert_true(hold(&here));
    accel_soft.irq_set(here.accel, 1, true);
    accel_soft.vcpu_kick(here.accel, 0);
    soft_guest_move(&here, &there);

    soft_guest_start(&there);
    assert_int_equal(soft_guest_wait(&there), ACCEL_EVENT_POWER_OFF);
    soft_guest_stop(&there);
    assert_int_equal(soft_guest_read(&there, RESULTS), 7);
    assert_int_equal(soft_guest_read(&here, RESULTS), 0); /* it slept on all the time */

    accel_soft.vcpu_release(here.accel, 0);
    assert_int_equal(soft_guest_wait(&here), ACCEL_EVENT_POWER_OFF);
    soft_guest_stop(&here);
    assert_int_equal(soft_guest_read(&here, RESULTS), 7);
    soft_guest_free(&there);
    soft_guest_free(&here);
}

static void a_held_hart_can_be_reset(void **state)
{
    struct soft_guest guest;

    soft_guest_new(&guest, 1);
    soft_guest_boot(&guest, guest_idle, guest_idle_size, RESULTS, 0);
    soft_guest_start(&guest);
    assert_true(hold(&guest));
    soft_guest_boot(&guest, guest_idle + 1, guest_idle_size - 4, RESULTS + 8, 0);
    accel_soft.vcpu_release(guest.accel, 0);
    assert_int_equal(soft_guest_wait(&guest), ACCEL_EVENT_POWER_OFF);
    soft_guest_stop(&guest);
    assert_int_equal(soft_guest_read(&guest, RESULTS), 0);
    assert_int_equal(soft_guest_read(&guest, RESULTS + 8), 7);
    soft_guest_free(&guest);
}

static void a_running_hart_cannot_be_held(void **state)
{
    struct soft_guest guest;

    soft_guest_new(&guest, 1);
    soft_guest_boot(&guest, guest_compute, guest_compute_size, UINT64_C(1) << 40, 1);
    assert_false(accel_soft.vcpu_hold(guest.accel, 0));
    soft_guest_start(&guest);
    assert_false(accel_soft.vcpu_hold(guest.accel, 0));
    soft_guest_stop(&guest);
    soft_guest_free(&guest);
}

static uint64_t clock_of(struct soft_guest *guest)
{
    struct accel_section sections[3];
    struct buffer saved = BUFFER_INIT;
    struct ferry_error err = {0};
    struct reader in;
    size_t count = 3;
    uint64_t value;

    accel_soft.sections(guest->accel, sections, &count);
    assert_string_equal(sections[2].name, "clock");
    assert_ok(accel_soft.section_save(guest->accel, sections[2].index, &saved, &err), err);
    in = reader_init(saved.data, saved.size);
    value = reader_get_u64(&in);
    buffer_free(&saved);
    return value;
}

static void run_a_moment(struct soft_guest *guest)
{
    pthread_mutex_lock(&guest->lock);
    (void)thread_cond_wait_until(&guest->changed, &guest->lock, clock_now_ns() + NS_PER_MS);
    pthread_mutex_unlock(&guest->lock);
}

/* pc and scause of hart 0. */
static void read_trap(struct soft_guest *guest, uint64_t *pc, uint64_t *cause)
{
    struct buffer saved = BUFFER_INIT;
    struct ferry_error err = {0};

    assert_ok(accel_soft.section_save(guest->accel, 0, &saved, &err), err);
    memcpy(pc, saved.data, 8);
    memcpy(cause, saved.data + 8 + 32 * 8 + 32 * 8 + 8 + 4 + 48, 8);
    buffer_free(&saved);
}

/* A trap handler that cannot be fetched is entered again and again: the hart looks stuck, but is not. */
static void a_hart_lost_in_its_trap_handler_can_be_stopped_and_moved(void **state)
{
    static const uint32_t program[] = {0x10501073 /* csrw stvec, zero */, 0 /* illegal */};
    struct soft_guest guests[2];
    uint64_t pc, cause;

    soft_guest_new(&guests[0], 1);
    soft_guest_new(&guests[1], 1);
    soft_guest_boot(&guests[0], program, sizeof(program), 0, 0);
    for (unsigned i = 0; i < 2; i++) {
        do {
            soft_guest_start(&guests[i]);
            run_a_moment(&guests[i]);
            soft_guest_stop(&guests[i]);
            read_trap(&guests[i], &pc, &cause);
        } while (pc != 0);
        assert_int_equal(cause, 1); /* instruction access fault */
        assert_int_equal(guests[i].event, 0);
        if (i == 0)
            soft_guest_move(&guests[0], &guests[1]);
    }
    soft_guest_free(&guests[0]);
    soft_guest_free(&guests[1]);
}

static void the_clock_stands_still_while_stopped_and_can_be_advanced(void **state)
{
    struct soft_guest guest;
    uint64_t before;

    soft_guest_new(&guest, 1);
    accel_soft.clock_start(guest.accel);
    accel_soft.clock_stop(guest.accel);
    before = clock_of(&guest);
    assert_int_equal(clock_of(&guest), before);
    accel_soft.clock_advance(guest.accel, 5 * NS_PER_S);
    assert_int_equal(clock_of(&guest), before + 5 * NS_PER_S);
    soft_guest_free(&guest);
}

/* Loads hart0 with one field of its section changed; the error must name the field. */
static void refuse(struct soft_guest *guest, size_t offset, unsigned size, uint64_t value, const char *field)
{
    struct buffer saved = BUFFER_INIT;
    struct ferry_error err = {0};
    struct reader in;

    assert_ok(accel_soft.section_save(guest->accel, 0, &saved, &err), err);
    memcpy(saved.data + offset, &value, size);
    in = reader_init(saved.data, saved.size);
    assert_int_equal(accel_soft.section_load(guest->accel, 0, 1, &in, &err), -EINVAL);
    assert_contains(err.text, "hart0");
    assert_contains(err.text, field);
    buffer_free(&saved);
}

static void impossible_registers_are_refused_by_name(void **state)
{
    const size_t after_registers = 8 + 32 * 8 + 32 * 8 + 8, csrs = after_registers + 4;
    struct soft_guest guest;

    soft_guest_new(&guest, 1);
    refuse(&guest, 0, 8, 0x80000001, "pc");
    refuse(&guest, 8, 8, 1, "x");
    refuse(&guest, after_registers, 1, 3, "privilege");
    refuse(&guest, after_registers + 1, 1, 8, "frm");
    refuse(&guest, after_registers + 2, 1, 32, "fflags");
    refuse(&guest, after_registers + 3, 1, 3, "hsm");
    refuse(&guest, csrs, 8, UINT64_C(1) << 63, "sstatus");
    refuse(&guest, csrs + 8, 8, 1, "sie");
    refuse(&guest, csrs + 24, 8, 2, "stvec");
    refuse(&guest, csrs + 40, 8, 1, "sepc");
    refuse(&guest, csrs + 64, 8, UINT64_C(10) << 60, "satp");
    soft_guest_free(&guest);
}

/* Machine code that looks like instructions more often than chance would have it. */
static uint32_t random_instruction(uint64_t *seed)
{
    static const uint8_t opcodes[] = {0x03, 0x07, 0x0f, 0x13, 0x17, 0x1b, 0x23, 0x27, 0x2f, 0x33, 0x37, 0x3b,
                                      0x43, 0x47, 0x4b, 0x4f, 0x53, 0x63, 0x63, 0x67, 0x6f, 0x73, 0x73};
    uint64_t random = unit_random(seed);

    if (random >> 60 < 10)
        return (uint32_t)(random & ~UINT64_C(0x7f)) | opcodes[(random >> 40) % sizeof(opcodes)];
    return (uint32_t)random;
}

/* Random registers; addresses that are in memory, or nearly. */
static void scramble(struct soft_guest *guest, uint64_t *seed)
{
    struct buffer saved = BUFFER_INIT;
    struct ferry_error err = {0};
    uint8_t *memory = memory_region(guest->memory, 0)->host_ptr;
    struct reader in;
    uint64_t value;

    for (unsigned i = 0; i < 4096; i++) {
        uint32_t word = random_instruction(seed);

        memcpy(memory + (unit_random(seed) % (SOFT_GUEST_MEMORY / 4)) * 4, &word, 4);
    }
    assert_ok(accel_soft.section_save(guest->accel, 0, &saved, &err), err);
    value = RISCV64_RAM_BASE + unit_random(seed) % SOFT_GUEST_MEMORY / 2 * 2;
    memcpy(saved.data, &value, 8);
    for (unsigned i = 1; i < 32; i++) {
        value = RISCV64_RAM_BASE - 4096 + unit_random(seed) % (SOFT_GUEST_MEMORY + 8192);
        memcpy(saved.data + 8 + 8 * i, &value, 8);
    }
    value = RISCV64_RAM_BASE + unit_random(seed) % SOFT_GUEST_MEMORY / 4 * 4 + (unit_random(seed) & 1);
    memcpy(saved.data + 8 + 512 + 8 + 4 + 24, &value, 8); /* stvec */
    value = unit_random(seed) % 3 ? 0 : (8 + unit_random(seed) % 2) << 60 | (RISCV64_RAM_BASE >> 12);
    memcpy(saved.data + 8 + 512 + 8 + 4 + 64, &value, 8); /* satp */
    saved.data[8 + 512 + 8] = unit_random(seed) & 1;      /* privilege */
    saved.data[8 + 512 + 8 + 3] = 0;                      /* hsm: started */
    in = reader_init(saved.data, saved.size);
    assert_ok(accel_soft.section_load(guest->accel, 0, 1, &in, &err), err);
    buffer_free(&saved);
}

static uint64_t retired(struct soft_guest *guest)
{
    struct buffer saved = BUFFER_INIT;
    struct ferry_error err = {0};
    uint64_t value;

    assert_ok(accel_soft.section_save(guest->accel, 0, &saved, &err), err);
    memcpy(&value, saved.data + 8 + 512, 8);
    buffer_free(&saved);
    return value;
}

static void random_programs_do_no_harm(void **state)
{
    struct accel_boot boot = {.entry = RISCV64_RAM_BASE};
    struct ferry_error err = {0};
    struct soft_guest guest;
    uint64_t seed = 20, steps = 0;
    uint32_t *memory;

    soft_guest_new(&guest, 2);
    memory = (uint32_t *)(void *)memory_region(guest.memory, 0)->host_ptr;
    for (size_t i = 0; i < SOFT_GUEST_MEMORY / 4; i++)
        memory[i] = random_instruction(&seed);
    for (unsigned i = 0; i < 300; i++) {
        assert_ok(accel_soft.reset(guest.accel, &boot, &err), err);
        scramble(&guest, &seed);
        soft_guest_start(&guest);
        run_a_moment(&guest);
        soft_guest_stop(&guest);
        steps += retired(&guest);
    }
    print_message("%llu instructions\n", (unsigned long long)steps);
    assert_true(steps > 0);
    soft_guest_free(&guest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(harts_that_fence_each_other_do_not_wait_for_ever),
        cmocka_unit_test(code_written_by_the_guest_is_run_after_a_fence),
        cmocka_unit_test(a_sleeping_hart_can_be_held_saved_and_let_go),
        cmocka_unit_test(a_held_hart_can_be_reset),
        cmocka_unit_test(a_running_hart_cannot_be_held),
        cmocka_unit_test(a_sleeping_hart_wakes_when_its_timer_is_due),
        cmocka_unit_test(a_stopped_hart_can_be_started_again),
        cmocka_unit_test(a_throttled_guest_still_ends),
        cmocka_unit_test(one_slowed_hart_writes_less),
        cmocka_unit_test(a_guest_moved_while_it_computes_goes_on_exactly),
        cmocka_unit_test(every_page_that_is_written_is_reported),
        cmocka_unit_test(dirty_pages_of_a_region_that_is_not_there_are_refused),
        cmocka_unit_test(a_kick_before_running_is_not_lost),
        cmocka_unit_test(a_hart_lost_in_its_trap_handler_can_be_stopped_and_moved),
        cmocka_unit_test(the_clock_stands_still_while_stopped_and_can_be_advanced),
        cmocka_unit_test(impossible_registers_are_refused_by_name),
        cmocka_unit_test(random_programs_do_no_harm),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
