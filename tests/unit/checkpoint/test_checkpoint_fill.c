/* Memory that comes while the guest runs: it is what was saved, what the guest has written since stays, and
 * what is damaged is seen by nobody. */
#include "saving.h"

#include "base/clock.h"
#include "checkpoint/format.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

static const uint64_t sizes[] = {24 * MIB, 3 * MIB + 5 * FERRY_PAGE_SIZE};

struct filling {
    struct saving saving;
    struct fake_guest guest;
    struct ferry_guest_ops ops;
    struct ferry_checkpoint_fill *fill;
    pthread_mutex_t lock; /* guards the next */
    pthread_cond_t changed;
    unsigned filled;
};

static void on_filled(void *opaque)
{
    struct filling *filling = opaque;

    pthread_mutex_lock(&filling->lock);
    filling->filled++;
    pthread_cond_broadcast(&filling->changed);
    pthread_mutex_unlock(&filling->lock);
}

static void filling_init(struct filling *filling, bool zstd)
{
    struct ferry_error err = {0};

    *filling = (struct filling){.ops = fake_guest_ops};
    pthread_mutex_init(&filling->lock, NULL);
    thread_cond_init(&filling->changed);
    saving_init(&filling->saving, sizes, 2, true);
    fake_guest_fill(&filling->saving.guest, 0, 0, 3000, 1);
    fake_guest_fill(&filling->saving.guest, 0, 5000, 700, 2);
    fake_guest_fill(&filling->saving.guest, 1, 3, 770, 3);
    filling->saving.options.zstd = zstd;
    assert_ok(saving_save(&filling->saving, &err), err);
    assert_ok(fake_guest_init(&filling->guest, NULL, sizes, 2, true, &err), err);
    filling->guest.arriving = true;
}

static int filling_start(struct filling *filling, struct ferry_error *err)
{
    struct ferry_checkpoint *checkpoint;
    int result = ferry_checkpoint_open(&checkpoint, filling->saving.path, err);

    assert_int_equal(result, 0);
    result = ferry_checkpoint_fill_start(&filling->fill, checkpoint, &filling->ops, &filling->guest, NULL,
                                         on_filled, filling, err);
    if (result < 0)
        ferry_checkpoint_close(checkpoint);
    return result;
}

static void filling_await(struct filling *filling)
{
    uint64_t deadline = clock_deadline(UNIT_DEADLINE_MS);

    pthread_mutex_lock(&filling->lock);
    while (!filling->filled && thread_cond_wait_until(&filling->changed, &filling->lock, deadline))
        continue;
    assert_int_equal(filling->filled, 1);
    pthread_mutex_unlock(&filling->lock);
}

static void filling_free(struct filling *filling)
{
    ferry_checkpoint_fill_free(filling->fill);
    fake_guest_destroy(&filling->guest);
    saving_free(&filling->saving);
    pthread_cond_destroy(&filling->changed);
    pthread_mutex_destroy(&filling->lock);
}

/* A bit of the file. */
static void flip(struct filling *filling, uint64_t offset)
{
    int fd = open(filling->saving.path, O_RDWR);
    uint8_t byte;

    assert_int_equal(pread(fd, &byte, 1, (off_t)offset), 1);
    byte ^= 4;
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)offset), 1);
    close(fd);
}

static void memory_that_is_touched_is_what_was_saved(void **state)
{
    for (int zstd = 0; zstd < 2; zstd++) {
        struct ferry_checkpoint_fill_progress progress;
        struct ferry_error err = {0};
        struct filling filling;

        filling_init(&filling, zstd);
        assert_ok(filling_start(&filling, &err), err);
        assert_true(filling.guest.loaded);
        /* From the end, so that the background does not always come first. */
        for (size_t i = 2; i-- > 0;) {
            for (uint64_t page = sizes[i] / FERRY_PAGE_SIZE; page-- > 0;)
                assert_memory_equal(filling.guest.regions[i].host_ptr + page * FERRY_PAGE_SIZE,
                                    filling.saving.stopped[i] + page * FERRY_PAGE_SIZE, FERRY_PAGE_SIZE);
        }
        filling_await(&filling);
        ferry_checkpoint_fill_progress(filling.fill, &progress);
        assert_true(progress.complete && !progress.failed);
        assert_int_equal(progress.missing_bytes, 0);
        assert_int_equal(fake_guest_count(&filling.guest), filling.saving.count);
        filling_free(&filling);
    }
}

static void what_the_guest_writes_meanwhile_stays(void **state)
{
    for (int zstd = 0; zstd < 2; zstd++) {
        struct ferry_error err = {0};
        struct filling filling;

        filling_init(&filling, zstd);
        assert_ok(filling_start(&filling, &err), err);
        /* The same that the saved guest does now. */
        filling.guest.pattern = filling.saving.guest.pattern = FAKE_PATTERN_MIXED;
        fake_guest_step(&filling.guest, 20000);
        filling.guest.pattern = filling.saving.guest.pattern = FAKE_PATTERN_RANDOM;
        fake_guest_step(&filling.guest, 20000);
        filling_await(&filling);
        filling.saving.guest.pattern = FAKE_PATTERN_MIXED;
        fake_guest_step(&filling.saving.guest, 20000);
        filling.saving.guest.pattern = FAKE_PATTERN_RANDOM;
        fake_guest_step(&filling.saving.guest, 20000);
        for (size_t i = 0; i < 2; i++)
            assert_memory_equal(filling.guest.regions[i].host_ptr, filling.saving.guest.regions[i].host_ptr,
                                sizes[i]);
        filling_free(&filling);
    }
}

static void several_touch_the_same_pages_at_once(void **state)
{
    struct ferry_error err = {0};
    struct filling filling;

    filling_init(&filling, false);
    assert_ok(filling_start(&filling, &err), err);
    filling.guest.pattern = FAKE_PATTERN_SAME;
    filling.guest.arriving = false;
    fake_guest_run(&filling.guest, true); /* writes what is there already */
    for (size_t i = 0; i < 2; i++) {
        for (uint64_t offset = sizes[i]; offset > 0; offset -= FERRY_PAGE_SIZE)
            assert_memory_equal(filling.guest.regions[i].host_ptr + offset - FERRY_PAGE_SIZE,
                                filling.saving.stopped[i] + offset - FERRY_PAGE_SIZE, FERRY_PAGE_SIZE);
    }
    fake_guest_run(&filling.guest, false);
    filling_await(&filling);
    filling_free(&filling);
}

static void damaged_page_holds_the_guest_and_is_named(void **state)
{
    struct ferry_checkpoint_fill_progress progress;
    struct ferry_error err = {0};
    struct filling filling;

    filling_init(&filling, false);
    flip(&filling, CHECKPOINT_RAM_ALIGN + 5300 * FERRY_PAGE_SIZE + 17);
    assert_ok(filling_start(&filling, &err), err);
    filling_await(&filling);
    ferry_checkpoint_fill_progress(filling.fill, &progress);
    assert_true(progress.failed && !progress.complete);
    assert_contains(progress.error, "page 5300 of memory region ram0 is damaged");
    assert_contains(progress.error, filling.saving.path);
    pthread_mutex_lock(&filling.guest.lock);
    assert_true(filling.guest.held);
    assert_contains(filling.guest.held_why, "page 5300");
    pthread_mutex_unlock(&filling.guest.lock);
    filling_free(&filling);
}

static void damaged_index_is_found_as_well(void **state)
{
    struct ferry_checkpoint_fill_progress progress;
    struct ferry_error err = {0};
    struct filling filling;

    filling_init(&filling, true);
    /* Behind the RAM: the index of the first region. */
    flip(&filling, CHECKPOINT_RAM_ALIGN + 27 * MIB + 5 * FERRY_PAGE_SIZE + 8 * 2000);
    assert_ok(filling_start(&filling, &err), err);
    filling_await(&filling);
    ferry_checkpoint_fill_progress(filling.fill, &progress);
    assert_true(progress.failed);
    assert_contains(progress.error, "the index of memory region ram0 is damaged");
    filling_free(&filling);
}

/* What a device may do when its state is loaded. */
static int load_touching(void *opaque, const struct ferry_section *section, struct ferry_error *err)
{
    struct fake_guest *guest = opaque;

    (void)*(volatile uint8_t *)(guest->regions[0].host_ptr + 2000 * FERRY_PAGE_SIZE);
    return fake_guest_ops.load_section(opaque, section, err);
}

static void damage_that_loading_meets_fails_the_start(void **state)
{
    struct ferry_error err = {0};
    struct filling filling;

    filling_init(&filling, false);
    filling.ops.load_section = load_touching;
    flip(&filling, CHECKPOINT_RAM_ALIGN + 2000 * FERRY_PAGE_SIZE);
    assert_int_equal(filling_start(&filling, &err), -EBADMSG);
    assert_contains(err.text, "page 2000");
    assert_int_equal(filling.guest.holds, 0);
    assert_int_equal(filling.filled, 0);
    filling_free(&filling);
}

static void memory_without_a_descriptor_is_left_to_others(void **state)
{
    struct ferry_error err = {0};
    struct filling filling;

    filling_init(&filling, false);
    fake_guest_destroy(&filling.guest);
    assert_ok(fake_guest_init(&filling.guest, NULL, sizes, 2, false, &err), err);
    filling.guest.arriving = true;
    assert_int_equal(filling_start(&filling, &err), -EOPNOTSUPP);
    assert_false(filling.guest.loaded);
    filling_free(&filling);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_that_is_touched_is_what_was_saved),
        cmocka_unit_test(what_the_guest_writes_meanwhile_stays),
        cmocka_unit_test(several_touch_the_same_pages_at_once),
        cmocka_unit_test(damaged_page_holds_the_guest_and_is_named),
        cmocka_unit_test(damaged_index_is_found_as_well),
        cmocka_unit_test(damage_that_loading_meets_fails_the_start),
        cmocka_unit_test(memory_without_a_descriptor_is_left_to_others),
    };
    struct ferry_error err = {0};

    if (ferry_quick_resume_check(&err) < 0) {
        printf("%s\n", err.text);
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
