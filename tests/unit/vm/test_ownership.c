/* Ownership: what the source, the destination and a third host may do in every state of the lock. */
#include "vm/ownership.h"

#include "base/clock.h"
#include "base/error.h"
#include "disk/vm_lock.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MIGRATION "1b4e28ba-2fa1-41d2-883f-0016d3cca427"

/* Stands for the locks on the disks' images: one VM at a time. */
struct images {
    const char **owner;
    const char *name;
    const char *refusal; /* NULL: none but a foreign owner's */
};

struct side {
    struct ownership *ownership;
    struct images images;
};

struct fixture {
    char directory[64];
    char disk[96];
    char lock[128];
    struct log *log;
    struct machine_config config;
    const char *images_owner;
    unsigned drops;      /* how often connections were lost */
    uint64_t generation; /* what the lock must say, for sides that are opened from now on; 0: anything */
    struct side a, b, c; /* source, destination, a third host */
};

static const struct ferry_handover handover = {.migration_id = MIGRATION, .source = "a", .destination = "b"};
static const struct ferry_handover handover_unheard = {
    .migration_id = MIGRATION, .source = "a", .destination = "b", .destination_never_ran = true};

static int acquire_images(void *opaque, struct ferry_error *err)
{
    struct images *images = opaque;

    if (images->refusal)
        return error_set(err, -EBUSY, "%s", images->refusal);
    if (*images->owner && *images->owner != images->name)
        return error_set(err, -EBUSY, "the image is in use");
    *images->owner = images->name;
    return 0;
}

static void release_images(void *opaque)
{
    struct images *images = opaque;

    if (*images->owner == images->name)
        *images->owner = NULL;
}

static void drop_connections(void *opaque)
{
    struct fixture *fixture = opaque;

    fixture->drops++;
}

static int make_next(struct fixture *fixture, struct side *side, const char *host, const char *lock_dir,
                     const char *former, struct ferry_error *err)
{
    struct ownership_options options = {
        .config = &fixture->config,
        .lock_dir = lock_dir,
        .generation = fixture->generation,
        .former = former,
        .host = host,
        .log = fixture->log,
        .images = &side->images,
        .acquire_images = acquire_images,
        .release_images = release_images,
        .migrating = fixture,
        .drop_connections = drop_connections,
    };

    side->images = (struct images){.owner = &fixture->images_owner, .name = host};
    return ownership_new(&side->ownership, &options, err);
}

static int make(struct fixture *fixture, struct side *side, const char *host, const char *lock_dir,
                struct ferry_error *err)
{
    return make_next(fixture, side, host, lock_dir, NULL, err);
}

static void end(struct side *side)
{
    if (side->ownership)
        release_images(&side->images);
    ownership_free(side->ownership);
    side->ownership = NULL;
}

static void open_sides(struct fixture *fixture, const char *lock_dir)
{
    assert_int_equal(make(fixture, &fixture->a, "a", lock_dir, NULL), 0);
    assert_int_equal(make(fixture, &fixture->b, "b", lock_dir, NULL), 0);
    assert_int_equal(make(fixture, &fixture->c, "c", lock_dir, NULL), 0);
}

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    int fd;

    assert_non_null(fixture);
    strcpy(fixture->directory, "/tmp/ferry-ownership-XXXXXX");
    assert_non_null(mkdtemp(fixture->directory));
    snprintf(fixture->disk, sizeof(fixture->disk), "%s/disk.raw", fixture->directory);
    snprintf(fixture->lock, sizeof(fixture->lock), "%s" VM_LOCK_SUFFIX, fixture->disk);
    fd = open(fixture->disk, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    close(fd);
    fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
    fixture->log = log_open_fd(fd, LOG_LEVEL_ERROR);
    fixture->config = (struct machine_config){.name = strdup("web"), .disk_count = 1};
    fixture->config.disks[0].path = strdup(fixture->disk);
    *state = fixture;
    return 0;
}

static int setup_open(void **state)
{
    setup(state);
    open_sides(*state, NULL);
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;
    char path[160];

    unsetenv("FERRY_FAULT");
    assert_int_equal(chdir("/"), 0);
    end(&fixture->a);
    end(&fixture->b);
    end(&fixture->c);
    log_close(fixture->log);
    machine_config_free(&fixture->config);
    unlink(fixture->disk);
    unlink(fixture->lock);
    snprintf(path, sizeof(path), "%s/web" VM_LOCK_SUFFIX, fixture->directory);
    unlink(path);
    rmdir(fixture->directory);
    free(fixture);
    return 0;
}

static struct vm_lock_record record_of(const struct fixture *fixture)
{
    struct vm_lock_record record;
    struct vm_lock *lock;

    assert_int_equal(vm_lock_open(&lock, fixture->lock, NULL), 0);
    assert_int_equal(vm_lock_read(lock, &record, NULL), 0);
    vm_lock_close(lock);
    return record;
}

static void assert_record(const struct fixture *fixture, enum vm_lock_state state, uint64_t generation,
                          const char *holder)
{
    struct vm_lock_record record = record_of(fixture);

    assert_string_equal(vm_lock_state_name(record.state), vm_lock_state_name(state));
    assert_int_equal(record.generation, generation);
    assert_string_equal(record.holder, holder);
}

static void assert_says(const struct ferry_error *err, const char *words)
{
    if (!strstr(err->text, words))
        fail_msg("\"%s\" does not say \"%s\"", err->text, words);
}

/* The record as a dead process left it. */
static void leave_record(const struct fixture *fixture, enum vm_lock_state state, uint64_t generation,
                         const char *holder, const char *migration)
{
    struct vm_lock_record record = {.state = state, .generation = generation, .pid = 1};
    struct vm_lock *lock;

    strcpy(record.vm, "web");
    strcpy(record.holder, holder);
    if (migration) {
        strcpy(record.source, "a");
        strcpy(record.destination, "b");
        strcpy(record.migration, migration);
    }
    assert_int_equal(vm_lock_open(&lock, fixture->lock, NULL), 0);
    assert_int_equal(vm_lock_take(lock, NULL), 0);
    assert_int_equal(vm_lock_write(lock, &record, NULL), 0);
    vm_lock_close(lock);
}

/* ---- cold start ---- */

static void cold_start_holds_the_lock_on_a_new_generation(void **state)
{
    struct fixture *fixture = *state;

    assert_int_equal(ownership_take(fixture->a.ownership, NULL), 0);
    assert_record(fixture, VM_LOCK_HELD, 1, "a");
    end(&fixture->a);
    assert_int_equal(ownership_take(fixture->b.ownership, NULL), 0);
    assert_record(fixture, VM_LOCK_HELD, 2, "b");
}

static void second_start_is_refused_naming_the_holder(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    assert_int_equal(ownership_take(fixture->a.ownership, NULL), 0);
    assert_int_equal(ownership_take(fixture->b.ownership, &err), -EBUSY);
    assert_says(&err, "web runs on host a");
    assert_record(fixture, VM_LOCK_HELD, 1, "a");
}

static void start_in_every_state_that_a_dead_owner_left(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    leave_record(fixture, VM_LOCK_STARTED, 4, "b", MIGRATION);
    assert_int_equal(ownership_take(fixture->c.ownership, NULL), 0);
    assert_record(fixture, VM_LOCK_HELD, 5, "c");
    assert_string_equal(record_of(fixture).migration, "");
    end(&fixture->c);
    for (enum vm_lock_state moving = VM_LOCK_HANDOVER; moving <= VM_LOCK_ACQUIRED; moving++) {
        leave_record(fixture, moving, 6, "a", MIGRATION);
        assert_int_equal(ownership_take(fixture->b.ownership, &err), -EBUSY);
        assert_says(&err, "web is being moved from a to b (migration " MIGRATION);
        assert_says(&err, "ferry recover web");
        assert_record(fixture, moving, 6, "a");
        /* Refused is not held. */
        assert_int_equal(ownership_take(fixture->a.ownership, &err), -EBUSY);
        assert_says(&err, "is being moved");
    }
}

static void saved_memory_goes_on_only_where_nobody_had_the_vm_since(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    fixture->generation = 4;
    leave_record(fixture, VM_LOCK_HELD, 4, "a", "");
    open_sides(fixture, NULL);
    assert_int_equal(ownership_take(fixture->b.ownership, NULL), 0);
    assert_record(fixture, VM_LOCK_HELD, 5, "b");
    assert_int_equal(ownership_take(fixture->c.ownership, &err), -EBUSY);
    end(&fixture->b);
    /* It is free again, and too late. */
    assert_int_equal(ownership_take(fixture->c.ownership, &err), -ESTALE);
    assert_says(&err, "host b has run web since (generation 5 of its lock, then 4)");
    assert_record(fixture, VM_LOCK_HELD, 5, "b");
    fixture->generation = 0;
}

static void resume_that_failed_leaves_the_lock_as_it_was(void **state)
{
    struct fixture *fixture = *state;

    fixture->generation = 4;
    leave_record(fixture, VM_LOCK_HELD, 4, "a", "");
    open_sides(fixture, NULL);
    assert_int_equal(ownership_take(fixture->b.ownership, NULL), 0);
    ownership_put_back(fixture->b.ownership);
    assert_record(fixture, VM_LOCK_HELD, 4, "a");
    assert_null(fixture->images_owner);
    assert_int_equal(ownership_take(fixture->c.ownership, NULL), 0);
}

static void without_a_lock_nothing_tells_who_had_the_vm_since(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    fixture->generation = 4;
    fixture->config.disk_count = 0;
    open_sides(fixture, NULL);
    assert_int_equal(ownership_take(fixture->a.ownership, &err), -ENOLCK);
    fixture->config.disk_count = 1;
}

static void garbage_in_the_lock_file_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;
    int fd = open(fixture->lock, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

    assert_int_equal(write(fd, "garbage", 7), 7);
    close(fd);
    assert_int_equal(ownership_take(fixture->a.ownership, &err), -EBADMSG);
    assert_says(&err, fixture->lock);
    assert_null(fixture->images_owner);
}

static void disk_in_use_by_another_vm_leaves_the_record_alone(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    fixture->images_owner = "somebody";
    assert_int_equal(ownership_take(fixture->a.ownership, &err), -EBUSY);
    assert_says(&err, "in use");
    assert_int_equal(record_of(fixture).state, VM_LOCK_NEW);
    fixture->images_owner = NULL;
    assert_int_equal(ownership_take(fixture->b.ownership, NULL), 0);
}

/* Another VM whose first disk is this VM's second. */
static void refusal_of_an_image_names_its_holder(void **state)
{
    struct fixture *fixture = *state;
    struct side other = {0};
    struct ferry_error err;
    char second[128];
    char refusal[256];

    assert_int_equal(ownership_take(fixture->a.ownership, NULL), 0);
    snprintf(second, sizeof(second), "%s.other", fixture->disk);
    close(open(second, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    free(fixture->config.disks[0].path);
    fixture->config.disks[0].path = strdup(second);
    fixture->config.disks[1].path = strdup(fixture->disk);
    fixture->config.disk_count = 2;
    assert_int_equal(make(fixture, &other, "d", NULL, NULL), 0);
    snprintf(refusal, sizeof(refusal), "disk %s is in use by another VM", fixture->disk);
    other.images.refusal = refusal;
    assert_int_equal(ownership_take(other.ownership, &err), -EBUSY);
    assert_says(&err, refusal);
    assert_says(&err, "web runs on host a");
    end(&other);
    unlink(second);
    strcat(second, VM_LOCK_SUFFIX);
    unlink(second);
}

/* ---- a move ---- */

static void hand_over(struct fixture *fixture)
{
    assert_int_equal(ownership_take(fixture->a.ownership, NULL), 0);
    assert_int_equal(ownership_release(fixture->a.ownership, &handover, NULL), 0);
    assert_record(fixture, VM_LOCK_HANDOVER, 1, "a");
    assert_null(fixture->images_owner);
}

static void move_goes_by_handover_and_acquired_to_started(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    hand_over(fixture);
    assert_int_equal(ownership_take(fixture->c.ownership, &err), -EBUSY);
    assert_says(&err, "from a to b");
    assert_int_equal(ownership_acquire(fixture->b.ownership, &handover, NULL), 0);
    assert_record(fixture, VM_LOCK_STARTED, 2, "b");
    assert_string_equal(fixture->images_owner, "b");
    assert_int_equal(ownership_take(fixture->c.ownership, &err), -EBUSY);
    assert_says(&err, "runs on host b");
    /* And back again. */
    const struct ferry_handover back = {
        .migration_id = "2b4e28ba-2fa1-41d2-883f-0016d3cca427", .source = "b", .destination = "a"};

    assert_int_equal(ownership_release(fixture->b.ownership, &back, NULL), 0);
    assert_int_equal(ownership_acquire(fixture->a.ownership, &back, NULL), 0);
    assert_record(fixture, VM_LOCK_STARTED, 3, "a");
}

static void destination_refuses_what_is_not_handed_over_to_it(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_handover other = handover;
    struct ferry_error err;

    assert_int_equal(ownership_acquire(fixture->b.ownership, &handover, &err), -EBADMSG);
    assert_says(&err, "is empty");
    assert_int_equal(ownership_take(fixture->a.ownership, NULL), 0);
    assert_int_equal(ownership_acquire(fixture->b.ownership, &handover, &err), -EBUSY);
    assert_says(&err, "runs on host a");
    assert_int_equal(ownership_release(fixture->a.ownership, &handover, NULL), 0);
    strcpy(other.destination, "c");
    assert_int_equal(ownership_acquire(fixture->c.ownership, &other, &err), -EBUSY);
    strcpy(other.destination, "b");
    other.migration_id[0] = '9';
    assert_int_equal(ownership_acquire(fixture->b.ownership, &other, &err), -EBUSY);
    assert_record(fixture, VM_LOCK_HANDOVER, 1, "a");
    for (enum vm_lock_state wrong = VM_LOCK_HELD; wrong <= VM_LOCK_STARTED; wrong++) {
        if (wrong == VM_LOCK_HANDOVER)
            continue;
        leave_record(fixture, wrong, 9, "a", MIGRATION);
        assert_int_equal(ownership_acquire(fixture->b.ownership, &handover, &err), -EBUSY);
        assert_says(&err, vm_lock_state_name(wrong));
        assert_record(fixture, wrong, 9, "a");
        assert_null(fixture->images_owner);
    }
}

static void source_takes_back_what_was_not_started(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    hand_over(fixture);
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover, 0, NULL), FERRY_RETAKE_RESUME);
    assert_record(fixture, VM_LOCK_STARTED, 3, "a");
    assert_string_equal(fixture->images_owner, "a");
    /* The late destination. */
    assert_int_equal(ownership_acquire(fixture->b.ownership, &handover, &err), -EBUSY);
    end(&fixture->a);
    assert_int_equal(ownership_acquire(fixture->b.ownership, &handover, &err), -EBUSY);
    assert_says(&err, "started by host a, generation 3");
    /* It died after `acquired`. */
    leave_record(fixture, VM_LOCK_ACQUIRED, 8, "b", MIGRATION);
    assert_int_equal(ownership_retake(fixture->c.ownership, &handover, 0, NULL), FERRY_RETAKE_RESUME);
    assert_record(fixture, VM_LOCK_STARTED, 10, "c");
}

static void handover_that_nobody_was_told_of_becomes_held_again(void **state)
{
    struct fixture *fixture = *state;

    hand_over(fixture);
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover_unheard, 0, NULL), FERRY_RETAKE_RESUME);
    assert_record(fixture, VM_LOCK_HELD, 3, "a");
}

static void source_never_runs_what_the_destination_started(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    hand_over(fixture);
    assert_int_equal(ownership_acquire(fixture->b.ownership, &handover, NULL), 0);
    /* It lives: known at once, whatever the time given. */
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover, 3600 * NS_PER_S, &err),
                     FERRY_RETAKE_LOST);
    assert_says(&err, "runs on host b");
    /* It is dead. */
    end(&fixture->b);
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover, 0, &err), FERRY_RETAKE_LOST);
    assert_says(&err, "was started on host b");
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover_unheard, 0, &err), FERRY_RETAKE_LOST);
    assert_null(fixture->images_owner);
    /* Nor what a third host started since; and the lock is not kept. */
    assert_int_equal(ownership_take(fixture->c.ownership, NULL), 0);
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover, 0, &err), FERRY_RETAKE_LOST);
    assert_says(&err, "host c");
}

static void lock_that_is_not_to_be_had_in_time_leaves_it_unknown(void **state)
{
    struct fixture *fixture = *state;
    struct vm_lock *lock;
    struct ferry_error err;

    hand_over(fixture);
    assert_int_equal(vm_lock_open(&lock, fixture->lock, NULL), 0);
    assert_int_equal(vm_lock_take(lock, NULL), 0); /* a destination that hangs before `acquired` */
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover, 30 * NS_PER_MS, &err),
                     FERRY_RETAKE_UNKNOWN);
    assert_says(&err, "could not be had");
    ownership_interrupt(fixture->a.ownership);
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover, 3600 * NS_PER_S, &err),
                     FERRY_RETAKE_UNKNOWN);
    vm_lock_close(lock);
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover, 0, NULL), FERRY_RETAKE_RESUME);
}

static void record_of_another_move_or_none_is_unknown(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    leave_record(fixture, VM_LOCK_HANDOVER, 4, "a", "2b4e28ba-2fa1-41d2-883f-0016d3cca427");
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover, 0, &err), FERRY_RETAKE_UNKNOWN);
    unlink(fixture->lock);
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover, 0, &err), FERRY_RETAKE_UNKNOWN);
    assert_says(&err, "says nothing of this move");
    /* What was refused is not held. */
    assert_int_equal(ownership_take(fixture->b.ownership, NULL), 0);
}

static void images_that_are_gone_make_the_destination_refuse_and_the_source_go_on(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    hand_over(fixture);
    fixture->b.images.refusal = "the image is in use";
    assert_int_equal(ownership_acquire(fixture->b.ownership, &handover, &err), -EBUSY);
    assert_record(fixture, VM_LOCK_ACQUIRED, 2, "b");
    fixture->a.images.refusal = "the image is in use";
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover_unheard, 0, &err),
                     FERRY_RETAKE_UNKNOWN);
    fixture->a.images.refusal = NULL;
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover_unheard, 0, NULL), FERRY_RETAKE_RESUME);
    assert_record(fixture, VM_LOCK_HELD, 4, "a");
}

static void destination_that_cannot_resume_gives_back(void **state)
{
    struct fixture *fixture = *state;

    hand_over(fixture);
    assert_int_equal(ownership_acquire(fixture->b.ownership, &handover, NULL), 0);
    ownership_give_back(fixture->b.ownership, &handover);
    assert_record(fixture, VM_LOCK_ACQUIRED, 2, "b");
    assert_null(fixture->images_owner);
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover, 0, NULL), FERRY_RETAKE_RESUME);
}

static void reopen_with_fault(struct fixture *fixture, struct side *side, const char *host, const char *fault)
{
    end(side);
    setenv("FERRY_FAULT", fault, 1);
    assert_int_equal(make(fixture, side, host, NULL, NULL), 0);
    unsetenv("FERRY_FAULT");
}

static void error_at_any_step_leaves_one_owner(void **state)
{
    static const char *const source[] = {"source-before-handover:error", "source-after-handover:error"};
    static const char *const destination[] = {
        "destination-before-acquired:error", "destination-after-acquired:error",
        "destination-before-started:error", "destination-after-started:error"};
    struct fixture *fixture = *state;
    uint64_t generation = 0;

#ifndef FERRY_FAULT_POINTS
    skip();
#endif
    for (size_t i = 0; i < sizeof(source) / sizeof(source[0]); i++) {
        reopen_with_fault(fixture, &fixture->a, "a", source[i]);
        assert_int_equal(ownership_take(fixture->a.ownership, NULL), 0);
        assert_int_equal(ownership_release(fixture->a.ownership, &handover, NULL), -EIO);
        assert_record(fixture, VM_LOCK_HELD, ++generation, "a");
        assert_string_equal(fixture->images_owner, "a");
        assert_int_equal(ownership_acquire(fixture->b.ownership, &handover, NULL), -EBUSY);
    }
    for (size_t i = 0; i < sizeof(destination) / sizeof(destination[0]); i++) {
        reopen_with_fault(fixture, &fixture->b, "b", destination[i]);
        end(&fixture->a);
        assert_int_equal(make(fixture, &fixture->a, "a", NULL, NULL), 0);
        assert_int_equal(ownership_take(fixture->a.ownership, NULL), 0);
        assert_int_equal(ownership_release(fixture->a.ownership, &handover, NULL), 0);
        assert_int_equal(ownership_acquire(fixture->b.ownership, &handover, NULL), -EIO);
        assert_null(fixture->images_owner);
        assert_int_equal(ownership_retake(fixture->a.ownership, &handover, 0, NULL), FERRY_RETAKE_RESUME);
        assert_string_equal(fixture->images_owner, "a");
        end(&fixture->a);
    }
}

static void lost_connections_change_no_step(void **state)
{
    static const char source[] = "source-before-handover:drop,source-after-handover:drop,"
                                 "source-before-retake:drop,source-after-retake:drop";
    static const char destination[] = "destination-before-acquired:drop,destination-after-acquired:drop,"
                                      "destination-before-started:drop,destination-after-started:drop";
    struct fixture *fixture = *state;

#ifndef FERRY_FAULT_POINTS
    skip();
#endif
    reopen_with_fault(fixture, &fixture->a, "a", source);
    reopen_with_fault(fixture, &fixture->b, "b", destination);
    hand_over(fixture);
    assert_int_equal(fixture->drops, 2);
    assert_int_equal(ownership_acquire(fixture->b.ownership, &handover, NULL), 0);
    assert_int_equal(fixture->drops, 6);
    assert_record(fixture, VM_LOCK_STARTED, 2, "b");
    ownership_give_back(fixture->b.ownership, &handover);
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover, 0, NULL), FERRY_RETAKE_RESUME);
    assert_int_equal(fixture->drops, 8);
}

/* ---- places ---- */

static void vm_without_a_writable_disk_has_its_lock_in_the_lock_directory(void **state)
{
    struct fixture *fixture = *state;
    char path[160];

    fixture->config.disks[0].readonly = true;
    open_sides(fixture, fixture->directory);
    snprintf(path, sizeof(path), "%s/web" VM_LOCK_SUFFIX, fixture->directory);
    assert_string_equal(ownership_path(fixture->a.ownership), path);
    assert_int_equal(ownership_take(fixture->a.ownership, NULL), 0);
    assert_int_equal(ownership_take(fixture->b.ownership, NULL), -EBUSY);
    assert_int_equal(access(fixture->lock, F_OK), -1);
}

static void with_nothing_shared_only_the_destinations_word_counts(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    fixture->config.disks[0].readonly = true;
    open_sides(fixture, NULL);
    assert_null(ownership_path(fixture->a.ownership));
    assert_int_equal(ownership_take(fixture->a.ownership, NULL), 0);
    assert_int_equal(ownership_release(fixture->a.ownership, &handover, NULL), 0);
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover, 3600 * NS_PER_S, &err),
                     FERRY_RETAKE_UNKNOWN);
    assert_says(&err, "no lock on shared storage");
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover_unheard, 0, NULL), FERRY_RETAKE_RESUME);
}

static void lock_directory_that_is_not_there_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    fixture->config.disks[0].readonly = true;
    assert_int_equal(make(fixture, &fixture->a, "a", "/tmp/ferry-no-such-directory", &err), -ENOENT);
    assert_says(&err, "/tmp/ferry-no-such-directory/web" VM_LOCK_SUFFIX);
}

/* A removed file's lock excludes nobody: the one that is there counts. */
static void lock_is_taken_on_the_file_that_is_there(void **state)
{
    struct fixture *fixture = *state;

    unlink(fixture->lock);
    assert_int_equal(ownership_take(fixture->a.ownership, NULL), 0);
    assert_int_equal(ownership_take(fixture->b.ownership, NULL), -EBUSY);
    assert_record(fixture, VM_LOCK_HELD, 1, "a");
}

/* ---- two processes of one host ---- */

static const struct ferry_handover handover_on = {
    .migration_id = MIGRATION, .source = "a", .destination = "a"};

/* a and b are processes of host a, with nothing that other hosts see; a's directory is the current one. */
static void open_processes(struct fixture *fixture)
{
    fixture->config.disks[0].readonly = true;
    assert_int_equal(chdir(fixture->directory), 0);
    assert_int_equal(make(fixture, &fixture->a, "a", NULL, NULL), 0);
    assert_int_equal(make_next(fixture, &fixture->b, "a", NULL, fixture->directory, NULL), 0);
    fixture->b.images.name = "the next";
    snprintf(fixture->lock, sizeof(fixture->lock), "%s/web" VM_LOCK_SUFFIX, fixture->directory);
    assert_null(ownership_path(fixture->a.ownership));
    assert_int_equal(ownership_take(fixture->a.ownership, NULL), 0);
    assert_int_equal(access(fixture->lock, F_OK), -1);
}

static void processes_of_one_host_always_have_a_lock(void **state)
{
    struct fixture *fixture = *state;

    open_processes(fixture);
    assert_int_equal(ownership_release(fixture->a.ownership, &handover_on, NULL), 0);
    assert_record(fixture, VM_LOCK_HANDOVER, 1, "a");
    assert_int_equal(ownership_acquire(fixture->b.ownership, &handover_on, NULL), 0);
    assert_record(fixture, VM_LOCK_STARTED, 2, "a");
    assert_string_equal(fixture->images_owner, "the next");
    /* The source learns from it that the VM runs there, and when that process is gone that it ran. */
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover_on, 0, NULL), FERRY_RETAKE_LOST);
    end(&fixture->b);
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover_on, 0, NULL), FERRY_RETAKE_LOST);
}

static void process_that_did_not_start_it_leaves_it_to_the_one_before(void **state)
{
    struct fixture *fixture = *state;

    open_processes(fixture);
    assert_int_equal(ownership_release(fixture->a.ownership, &handover_on, NULL), 0);
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover_on, 0, NULL), FERRY_RETAKE_RESUME);
    assert_record(fixture, VM_LOCK_STARTED, 3, "a");
    assert_int_equal(ownership_acquire(fixture->b.ownership, &handover_on, NULL), -EBUSY);
    assert_string_equal(fixture->images_owner, "a");
    /* Another try has a lock of its own: who is late for the first one does not find it. */
    assert_int_equal(ownership_release(fixture->a.ownership, &handover_on, NULL), 0);
    assert_record(fixture, VM_LOCK_HANDOVER, 1, "a");
    assert_int_equal(ownership_acquire(fixture->b.ownership, &handover_on, NULL), 0);
    ownership_give_back(fixture->b.ownership, &handover_on);
    assert_record(fixture, VM_LOCK_ACQUIRED, 2, "a");
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover_on, 0, NULL), FERRY_RETAKE_RESUME);
}

/* What the two had for themselves tells another host nothing. */
static void lock_of_a_host_does_not_decide_about_another(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    open_processes(fixture);
    assert_int_equal(ownership_release(fixture->a.ownership, &handover_on, NULL), 0);
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover_on, 0, NULL), FERRY_RETAKE_RESUME);
    assert_int_equal(ownership_release(fixture->a.ownership, &handover, NULL), 0);
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover, 3600 * NS_PER_S, &err),
                     FERRY_RETAKE_UNKNOWN);
    assert_says(&err, "no lock on shared storage");
}

/* From process to process: each has the next one's lock in its own directory. */
static void process_that_arrived_can_pass_it_on(void **state)
{
    struct fixture *fixture = *state;
    char directory[96], path[160];

    open_processes(fixture);
    assert_int_equal(ownership_release(fixture->a.ownership, &handover_on, NULL), 0);
    assert_int_equal(ownership_acquire(fixture->b.ownership, &handover_on, NULL), 0);
    end(&fixture->a);
    snprintf(directory, sizeof(directory), "%s/second", fixture->directory);
    assert_int_equal(mkdir(directory, 0700), 0);
    assert_int_equal(chdir(directory), 0);
    assert_int_equal(make_next(fixture, &fixture->c, "a", NULL, directory, NULL), 0);
    fixture->c.images.name = "the third";
    assert_int_equal(ownership_release(fixture->b.ownership, &handover_on, NULL), 0);
    assert_int_equal(ownership_acquire(fixture->c.ownership, &handover_on, NULL), 0);
    assert_string_equal(fixture->images_owner, "the third");
    snprintf(path, sizeof(path), "%s/web" VM_LOCK_SUFFIX, directory);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(directory), 0);
}

static void with_a_lock_on_shared_storage_that_one_decides(void **state)
{
    struct fixture *fixture = *state;

    assert_int_equal(make(fixture, &fixture->a, "a", NULL, NULL), 0);
    assert_int_equal(make_next(fixture, &fixture->b, "a", NULL, "/nowhere", NULL), 0);
    fixture->b.images.name = "the next";
    assert_int_equal(ownership_take(fixture->a.ownership, NULL), 0);
    assert_int_equal(ownership_release(fixture->a.ownership, &handover_on, NULL), 0);
    assert_int_equal(ownership_acquire(fixture->b.ownership, &handover_on, NULL), 0);
    assert_record(fixture, VM_LOCK_STARTED, 2, "a");
    assert_int_equal(ownership_retake(fixture->a.ownership, &handover_on, 0, NULL), FERRY_RETAKE_LOST);
}

static enum ferry_elsewhere look(struct side *side)
{
    struct ferry_error err = {0};
    enum ferry_elsewhere where = ownership_look(side->ownership, &handover, &err);

    if (where != FERRY_ELSEWHERE_OWNED)
        assert_true(err.text[0] != '\0');
    return where;
}

/* Quick resume: a source looks at every state of the hand-over, and changes nothing. */
static void source_sees_what_became_of_the_guest(void **state)
{
    struct fixture *fixture = *state;

    assert_int_equal(ownership_take(fixture->a.ownership, NULL), 0);
    assert_int_equal(ownership_release(fixture->a.ownership, &handover, NULL), 0);
    assert_int_equal(look(&fixture->a), FERRY_ELSEWHERE_NEVER_RAN);
    assert_record(fixture, VM_LOCK_HANDOVER, 1, "a");
    assert_int_equal(ownership_acquire(fixture->b.ownership, &handover, NULL), 0);
    assert_int_equal(look(&fixture->a), FERRY_ELSEWHERE_OWNED);
    ownership_give_back(fixture->b.ownership, &handover);
    assert_int_equal(look(&fixture->a), FERRY_ELSEWHERE_NEVER_RAN);
    leave_record(fixture, VM_LOCK_STARTED, 2, "b", MIGRATION);
    assert_int_equal(look(&fixture->a), FERRY_ELSEWHERE_GONE);
    assert_record(fixture, VM_LOCK_STARTED, 2, "b");
    /* A third host started it anew. */
    assert_int_equal(ownership_take(fixture->c.ownership, NULL), 0);
    assert_int_equal(look(&fixture->a), FERRY_ELSEWHERE_GONE);
}

#define TEST(name)        cmocka_unit_test_setup_teardown(name, setup_open, teardown)
#define TEST_CLOSED(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(cold_start_holds_the_lock_on_a_new_generation),
        TEST(second_start_is_refused_naming_the_holder),
        TEST(start_in_every_state_that_a_dead_owner_left),
        TEST_CLOSED(saved_memory_goes_on_only_where_nobody_had_the_vm_since),
        TEST_CLOSED(resume_that_failed_leaves_the_lock_as_it_was),
        TEST_CLOSED(without_a_lock_nothing_tells_who_had_the_vm_since),
        TEST(garbage_in_the_lock_file_is_refused),
        TEST(disk_in_use_by_another_vm_leaves_the_record_alone),
        TEST(refusal_of_an_image_names_its_holder),
        TEST(move_goes_by_handover_and_acquired_to_started),
        TEST(destination_refuses_what_is_not_handed_over_to_it),
        TEST(source_takes_back_what_was_not_started),
        TEST(handover_that_nobody_was_told_of_becomes_held_again),
        TEST(source_never_runs_what_the_destination_started),
        TEST(lock_that_is_not_to_be_had_in_time_leaves_it_unknown),
        TEST(record_of_another_move_or_none_is_unknown),
        TEST(images_that_are_gone_make_the_destination_refuse_and_the_source_go_on),
        TEST(destination_that_cannot_resume_gives_back),
        TEST(error_at_any_step_leaves_one_owner),
        TEST(lost_connections_change_no_step),
        TEST_CLOSED(vm_without_a_writable_disk_has_its_lock_in_the_lock_directory),
        TEST_CLOSED(with_nothing_shared_only_the_destinations_word_counts),
        TEST_CLOSED(lock_directory_that_is_not_there_is_refused),
        TEST(lock_is_taken_on_the_file_that_is_there),
        TEST(source_sees_what_became_of_the_guest),
        TEST_CLOSED(processes_of_one_host_always_have_a_lock),
        TEST_CLOSED(process_that_did_not_start_it_leaves_it_to_the_one_before),
        TEST_CLOSED(lock_of_a_host_does_not_decide_about_another),
        TEST_CLOSED(process_that_arrived_can_pass_it_on),
        TEST_CLOSED(with_a_lock_on_shared_storage_that_one_decides),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
