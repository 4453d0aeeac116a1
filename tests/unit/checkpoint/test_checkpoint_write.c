/* Checkpoints of a guest that writes meanwhile: the file has what its memory was when it was stopped. */
#include "saving.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const uint64_t one_region[] = {32 * MIB};
/* The second ends in the middle of everything. */
static const uint64_t two_regions[] = {16 * MIB, 3 * MIB + 5 * FERRY_PAGE_SIZE};

static void snapshot_with(enum fake_pattern pattern, bool zstd, bool memfd)
{
    struct saving saving;
    struct ferry_error err = {0};
    uint64_t count;

    saving_init(&saving, two_regions, 2, memfd);
    fake_guest_fill(&saving.guest, 0, 100, 2000, 1);
    fake_guest_fill(&saving.guest, 1, 7, 761, 2);
    saving.options.zstd = zstd;
    saving.guest.pattern = pattern;
    saving.guest.pages_per_s = 20000;
    fake_guest_run(&saving.guest, true);
    assert_ok(saving_save(&saving, &err), err);
    assert_true(fake_guest_running(&saving.guest));
    assert_false(saving.guest.quiesced);
    assert_int_equal(saving.progress.outcome, FERRY_OUTCOME_COMPLETED);
    assert_true(saving.progress.stopped_ns > 0 && saving.progress.stopped_ns < saving.progress.total_ns);
    assert_int_equal(saving_files(&saving), 1);
    count = fake_guest_count(&saving.guest);
    while (fake_guest_count(&saving.guest) == count)
        sched_yield();
    saving_expect_restored(&saving);
    saving_free(&saving);
}

static void snapshot_of_a_writing_guest_is_its_memory_at_the_stop(void **state)
{
    snapshot_with(FAKE_PATTERN_RANDOM, false, true);
    snapshot_with(FAKE_PATTERN_MIXED, false, true);
    snapshot_with(FAKE_PATTERN_ZERO, false, false);
}

static void compressed_snapshot_is_its_memory_at_the_stop(void **state)
{
    snapshot_with(FAKE_PATTERN_RANDOM, true, true);
    snapshot_with(FAKE_PATTERN_MIXED, true, false);
    snapshot_with(FAKE_PATTERN_ZERO, true, true);
}

static void zero_pages_take_no_space(void **state)
{
    struct saving saving;
    struct ferry_error err = {0};
    struct stat status;

    saving_init(&saving, one_region, 1, true);
    /* There, and zero. */
    memset(saving.guest.regions[0].host_ptr, 0, 8 * MIB);
    fake_guest_fill(&saving.guest, 0, 5000, 10, 1);
    assert_ok(saving_save(&saving, &err), err);
    assert_int_equal(saving.progress.pages, 10);
    assert_int_equal(saving.progress.zero_pages, 32 * MIB / FERRY_PAGE_SIZE - 10);
    assert_int_equal(stat(saving.path, &status), 0);
    assert_true(status.st_blocks * 512 < 2 * (off_t)MIB);
    assert_false(fake_guest_running(&saving.guest)); /* it was not */
    saving_expect_restored(&saving);
    saving_free(&saving);
}

/* Filled before the first round, cleared when it is over. */
static void clear_pages(struct saving *saving)
{
    memset(saving->guest.regions[0].host_ptr, 0, 4 * MIB);
    for (size_t i = 0; i < 4 * MIB / FERRY_PAGE_SIZE / 64; i++)
        saving->guest.dirty[0][i] = UINT64_MAX;
}

static void page_that_became_zero_is_a_hole(void **state)
{
    for (int zstd = 0; zstd < 2; zstd++) {
        struct saving saving;
        struct ferry_error err = {0};
        struct stat status;

        saving_init(&saving, one_region, 1, true);
        fake_guest_fill(&saving.guest, 0, 0, 1024, 1);
        saving.options.zstd = zstd;
        saving.step = "pause";
        saving.on_step = clear_pages;
        assert_ok(saving_save(&saving, &err), err);
        assert_int_equal(saving.progress.pages, 0);
        assert_int_equal(stat(saving.path, &status), 0);
        assert_true(status.st_blocks * 512 < (off_t)MIB);
        saving_expect_restored(&saving);
        saving_free(&saving);
    }
}

static void what_goes_along_is_found_again(void **state)
{
    struct saving saving;
    struct ferry_error err = {0};
    struct ferry_checkpoint *checkpoint;
    const struct ferry_checkpoint_info *info;
    uint64_t index[3];
    uint8_t page[FERRY_PAGE_SIZE];

    saving_init(&saving, two_regions, 2, true);
    fake_guest_fill(&saving.guest, 1, 600, 1, 3);
    saving.guest.extra_sections = 3;
    saving.guest.extra_size = 5000;
    saving.blob.data = "{\"name\": \"web\"}";
    saving.blob.size = 15;
    fake_guest_run(&saving.guest, true);
    assert_ok(saving_save(&saving, &err), err);
    assert_ok(ferry_checkpoint_open(&checkpoint, saving.path, &err), err);
    info = ferry_checkpoint_info(checkpoint);
    assert_string_equal(info->vm, "web");
    assert_string_equal(info->id, saving.options.id);
    assert_int_equal(strlen(info->uuid), 36);
    assert_true(info->was_running);
    assert_int_equal(info->kind, FERRY_CHECKPOINT_SNAPSHOT);
    assert_int_equal(info->memory_bytes, two_regions[0] + two_regions[1]);
    assert_int_equal(info->pages, 1);
    assert_int_equal(ferry_checkpoint_region_count(checkpoint), 2);
    assert_string_equal(ferry_checkpoint_region(checkpoint, 1)->name, "ram1");
    assert_int_equal(ferry_checkpoint_section_count(checkpoint), 4);
    assert_string_equal(ferry_checkpoint_section(checkpoint, 3)->name, "extra2");
    assert_int_equal(ferry_checkpoint_section(checkpoint, 3)->size, 5000);
    assert_int_equal(ferry_checkpoint_blob(checkpoint, "definition")->size, 15);
    assert_null(ferry_checkpoint_blob(checkpoint, "other"));
    assert_ok(ferry_checkpoint_index(checkpoint, 1, 599, 3, index, &err), err);
    assert_true(!index[0] && index[1] && !index[2]);
    assert_ok(ferry_checkpoint_page(checkpoint, 1, 600, page, &err), err);
    assert_memory_equal(page, saving.stopped[1] + 600 * FERRY_PAGE_SIZE, FERRY_PAGE_SIZE);
    assert_int_equal(ferry_checkpoint_page(checkpoint, 1, 773, page, &err), -EINVAL);
    assert_ok(ferry_checkpoint_verify(checkpoint, &err), err);
    ferry_checkpoint_close(checkpoint);
    saving_free(&saving);
}

/* ---- suspend ---- */

static void suspended_guest_stays_stopped(void **state)
{
    struct saving saving;
    struct ferry_error err = {0};

    saving_init(&saving, one_region, 1, true);
    saving.options.kind = FERRY_CHECKPOINT_SUSPEND;
    saving.guest.pattern = FAKE_PATTERN_RANDOM;
    saving.guest.pages_per_s = 20000;
    fake_guest_run(&saving.guest, true);
    assert_ok(saving_save(&saving, &err), err);
    assert_false(fake_guest_running(&saving.guest));
    assert_true(saving.guest.quiesced);
    assert_int_equal(fake_guest_count(&saving.guest), saving.count);
    saving_expect_restored(&saving);
    saving_free(&saving);
}

static void write_other(struct saving *saving)
{
    int fd = open(saving->path, O_WRONLY | O_CREAT | O_EXCL, 0600);

    close(fd);
}

static void failed_with(struct saving *saving, enum ferry_checkpoint_kind kind)
{
    struct ferry_error err = {0};
    unsigned files = saving_files(saving);
    uint64_t count;

    saving->options.kind = kind;
    saving->guest.pattern = FAKE_PATTERN_RANDOM;
    saving->guest.pages_per_s = 20000;
    fake_guest_run(&saving->guest, true);
    assert_true(saving_save(saving, &err) < 0);
    assert_int_equal(saving->progress.outcome, FERRY_OUTCOME_FAILED);
    assert_true(fake_guest_running(&saving->guest));
    assert_false(saving->guest.quiesced);
    assert_false(saving->guest.tracking);
    count = fake_guest_count(&saving->guest);
    while (fake_guest_count(&saving->guest) == count)
        sched_yield();
    assert_true(saving_files(saving) <= files + (saving->on_step == write_other));
}

static void failure_at_any_step_lets_the_guest_go_on(void **state)
{
    static const enum fake_step steps[] = {FAKE_STEP_DIRTY_START, FAKE_STEP_PAUSE, FAKE_STEP_QUIESCE,
                                           FAKE_STEP_SAVE};

    for (int kind = FERRY_CHECKPOINT_SNAPSHOT; kind <= FERRY_CHECKPOINT_SUSPEND; kind++) {
        for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
            struct saving saving;

            saving_init(&saving, one_region, 1, true);
            saving.guest.fail = steps[i];
            failed_with(&saving, (enum ferry_checkpoint_kind)kind);
            saving_free(&saving);
        }
    }
}

static void file_that_somebody_made_meanwhile_stays(void **state)
{
    struct saving saving;
    struct stat status;

    saving_init(&saving, one_region, 1, true);
    saving.step = "save";
    saving.on_step = write_other;
    failed_with(&saving, FERRY_CHECKPOINT_SUSPEND);
    assert_contains(saving.progress.error, "exists");
    assert_int_equal(stat(saving.path, &status), 0);
    assert_int_equal(status.st_size, 0);
    saving_free(&saving);
}

/* ---- files that are there ---- */

static void existing_file_is_replaced_only_when_asked_for(void **state)
{
    struct saving saving;
    struct ferry_error err = {0};

    saving_init(&saving, one_region, 1, true);
    assert_ok(saving_save(&saving, &err), err);
    assert_int_equal(saving_save(&saving, &err), -EEXIST);
    assert_contains(err.text, saving.path);
    fake_guest_fill(&saving.guest, 0, 0, 10, 1);
    saving.options.overwrite = true;
    assert_ok(saving_save(&saving, &err), err);
    assert_int_equal(saving_files(&saving), 1);
    saving_expect_restored(&saving);
    unlink(saving.path);
    assert_int_equal(mkdir(saving.path, 0700), 0);
    assert_int_equal(saving_save(&saving, &err), -EINVAL);
    saving.options.path = "/nowhere/at/all";
    assert_int_equal(saving_save(&saving, &err), -ENOENT);
    assert_contains(err.text, "/nowhere/at");
    saving_free(&saving);
}

/* ---- cancel ---- */

static void cancel(struct saving *saving)
{
    assert_int_equal(ferry_checkpoint_cancel(saving->writer, NULL), 0);
}

static void cancelled_checkpoint_leaves_nothing(void **state)
{
    static const char *const steps[] = {"dirty_start", "pause", "quiesce", "save"};

    for (int kind = FERRY_CHECKPOINT_SNAPSHOT; kind <= FERRY_CHECKPOINT_SUSPEND; kind++) {
        for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
            struct saving saving;
            struct ferry_error err = {0};

            saving_init(&saving, one_region, 1, true);
            fake_guest_fill(&saving.guest, 0, 0, 4000, 1);
            saving.options.kind = (enum ferry_checkpoint_kind)kind;
            saving.step = steps[i];
            saving.on_step = cancel;
            fake_guest_run(&saving.guest, true);
            assert_int_equal(saving_save(&saving, &err), -ECANCELED);
            assert_int_equal(saving.progress.outcome, FERRY_OUTCOME_CANCELLED);
            assert_int_equal(saving_files(&saving), 0);
            assert_true(fake_guest_running(&saving.guest));
            saving_free(&saving);
        }
    }
}

static void *cancel_soon(void *opaque)
{
    struct saving *saving = opaque;
    struct ferry_checkpoint_progress progress;

    do {
        sched_yield();
        ferry_checkpoint_progress(saving->writer, &progress);
    } while (progress.bytes == 0 && progress.outcome == FERRY_OUTCOME_NONE);
    ferry_checkpoint_cancel(saving->writer, NULL);
    return NULL;
}

static void start_cancelling(struct saving *saving)
{
    thread_start(&saving->helper, THREAD_GENERAL, "canceller", cancel_soon, saving, NULL);
}

static void cancel_ends_waiting_for_bandwidth(void **state)
{
    struct saving saving;
    struct ferry_error err = {0};

    saving_init(&saving, one_region, 1, true);
    fake_guest_fill(&saving.guest, 0, 0, 8000, 1);
    saving.options.bandwidth_limit = 2 * MIB; /* 15 s */
    saving.step = "dirty_start";
    saving.on_step = start_cancelling;
    assert_int_equal(saving_save(&saving, &err), -ECANCELED);
    assert_true(saving.progress.total_ns < UINT64_C(12000000000));
    assert_int_equal(saving_files(&saving), 0);
    saving_free(&saving);
}

/* ---- no space ---- */

static void full_disk_leaves_the_guest_running_and_no_file(void **state)
{
    struct rlimit limit, small = {.rlim_cur = 12 * MIB};
    struct saving saving;

    signal(SIGXFSZ, SIG_IGN);
    saving_init(&saving, one_region, 1, true);
    fake_guest_fill(&saving.guest, 0, 0, 8000, 1);
    getrlimit(RLIMIT_FSIZE, &limit);
    small.rlim_max = limit.rlim_max;
    setrlimit(RLIMIT_FSIZE, &small);
    failed_with(&saving, FERRY_CHECKPOINT_SUSPEND);
    setrlimit(RLIMIT_FSIZE, &limit);
    assert_contains(saving.progress.error, saving.path);
    assert_int_equal(saving_files(&saving), 0);
    saving_free(&saving);
}

static bool write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);
    bool good = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

    if (fd >= 0)
        close(fd);
    return good;
}

/* Mounts that nobody else sees. */
static bool have_own_mounts(void)
{
    char map[32];

    if (geteuid() == 0)
        return unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
    snprintf(map, sizeof(map), "0 %u 1", geteuid());
    return unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0 && write_text("/proc/self/uid_map", map);
}

/* In a child, which has mounts of its own. 77: not allowed here. */
static int save_on_small_disk(enum ferry_checkpoint_kind kind)
{
    struct saving saving;
    struct ferry_error err = {0};
    int status = 0;

    if (!have_own_mounts())
        return 77;
    saving_init(&saving, one_region, 1, true);
    if (mount("none", saving.dir.path, "tmpfs", 0, "size=8m") < 0)
        return 77;
    saving.options.kind = kind;
    fake_guest_fill(&saving.guest, 0, 0, 8000, 1);
    fake_guest_run(&saving.guest, true);
    if (saving_save(&saving, &err) != -ENOSPC || !strstr(err.text, "no space left for checkpoint /tmp/") ||
        !fake_guest_running(&saving.guest) || saving_files(&saving) != 0)
        status = 1;
    umount2(saving.dir.path, MNT_DETACH);
    saving_free(&saving);
    return status;
}

static void full_file_system_is_said_in_words(void **state)
{
    for (int kind = FERRY_CHECKPOINT_SNAPSHOT; kind <= FERRY_CHECKPOINT_SUSPEND; kind++) {
        pid_t child = fork();
        int status;

        assert_true(child >= 0);
        if (child == 0)
            _exit(save_on_small_disk((enum ferry_checkpoint_kind)kind));
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFEXITED(status));
        if (WEXITSTATUS(status) == 77)
            skip();
        assert_int_equal(WEXITSTATUS(status), 0);
    }
}

static void other_guest_is_refused_by_name(void **state)
{
    struct saving saving;
    struct ferry_error err = {0};

    saving_init(&saving, two_regions, 2, true);
    assert_ok(saving_save(&saving, &err), err);
    saving.sizes[1] = 4 * MIB;
    assert_int_equal(saving_restore(&saving, saving.path, &err), -EINVAL);
    assert_contains(err.text, "ram1");
    saving.region_count = 1;
    assert_int_equal(saving_restore(&saving, saving.path, &err), -EINVAL);
    assert_contains(err.text, "2 memory regions");
    saving.region_count = 2;
    saving_free(&saving);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(snapshot_of_a_writing_guest_is_its_memory_at_the_stop),
        cmocka_unit_test(compressed_snapshot_is_its_memory_at_the_stop),
        cmocka_unit_test(zero_pages_take_no_space),
        cmocka_unit_test(page_that_became_zero_is_a_hole),
        cmocka_unit_test(what_goes_along_is_found_again),
        cmocka_unit_test(suspended_guest_stays_stopped),
        cmocka_unit_test(failure_at_any_step_lets_the_guest_go_on),
        cmocka_unit_test(file_that_somebody_made_meanwhile_stays),
        cmocka_unit_test(existing_file_is_replaced_only_when_asked_for),
        cmocka_unit_test(cancelled_checkpoint_leaves_nothing),
        cmocka_unit_test(cancel_ends_waiting_for_bandwidth),
        cmocka_unit_test(full_disk_leaves_the_guest_running_and_no_file),
        cmocka_unit_test(full_file_system_is_said_in_words),
        cmocka_unit_test(other_guest_is_refused_by_name),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
