/* What a ferryd reads from the ownership lock of a VM, and what it may write. */
#include "unit.h"

#include "host/definition.h"
#include "host/vm_owner.h"

#include <errno.h>
#include <unistd.h>

#define MIGRATION "1b4e28ba-2fa1-41d2-883f-0016d3cca427"
#define ANOTHER   "2b4e28ba-2fa1-41d2-883f-0016d3cca427"

struct fixture {
    struct unit_dir dir;
    struct config config;
    struct host host;
    struct vm vm;
    char path[128];
};

static int set_up(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    json_t *input = json_pack("{s:s, s:s}", "name", "web", "kernel", "/k");
    struct ferry_error err;

    unit_dir_make(&fixture->dir);
    snprintf(fixture->config.name, sizeof(fixture->config.name), "b");
    snprintf(fixture->config.lock_dir, sizeof(fixture->config.lock_dir), "%s", fixture->dir.path);
    fixture->host.config = &fixture->config;
    snprintf(fixture->vm.name, sizeof(fixture->vm.name), "web");
    assert_ok(definition_normalise(input, &fixture->vm.definition, &err), err);
    json_decref(input);
    unit_path(&fixture->dir, "web" VM_LOCK_SUFFIX, fixture->path);
    *state = fixture;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *fixture = *state;

    json_decref(fixture->vm.definition);
    unit_dir_remove(&fixture->dir);
    free(fixture);
    return 0;
}

/* A migration from a to b. */
static void write_lock(struct fixture *fixture, enum vm_lock_state state, const char *holder)
{
    struct vm_lock_record record = {.state = state, .generation = 7, .pid = 1};
    struct vm_lock *lock = NULL;
    struct ferry_error err;

    strcpy(record.vm, "web");
    strcpy(record.holder, holder);
    strcpy(record.source, "a");
    strcpy(record.destination, "b");
    strcpy(record.migration, MIGRATION);
    assert_ok(vm_lock_open(&lock, fixture->path, &err), err);
    assert_ok(vm_lock_take(lock, &err), err);
    assert_ok(vm_lock_write(lock, &record, &err), err);
    vm_lock_close(lock);
}

static enum vm_owner_word word(struct fixture *fixture, const char *migration)
{
    return vm_owner_of_migration(&fixture->host, &fixture->vm, migration);
}

static void each_record_has_its_meaning_for_its_migration_only(void **state)
{
    static const struct {
        enum vm_lock_state state;
        const char *holder;
        enum vm_owner_word word;
    } cases[] = {
        {VM_LOCK_HANDOVER, "a", VM_OWNER_GIVEN},
        {VM_LOCK_ACQUIRED, "b", VM_OWNER_GIVEN},
        {VM_LOCK_STARTED, "b", VM_OWNER_STARTED},
        {VM_LOCK_STARTED, "a", VM_OWNER_TAKEN_BACK},
        {VM_LOCK_HELD, "a", VM_OWNER_TAKEN_BACK},
        /* settled there by a person: it says nothing of what had run */
        {VM_LOCK_HELD, "b", VM_OWNER_SILENT},
    };
    struct fixture *fixture = *state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        write_lock(fixture, cases[i].state, cases[i].holder);
        assert_int_equal(word(fixture, MIGRATION), cases[i].word);
        assert_int_equal(word(fixture, ANOTHER), VM_OWNER_SILENT);
    }
}

static void no_lock_says_nothing_and_none_is_made(void **state)
{
    struct fixture *fixture = *state;
    struct vm_owner owner;
    struct ferry_error err;

    assert_int_equal(word(fixture, MIGRATION), VM_OWNER_SILENT);
    assert_ok(vm_owner_read(&fixture->host, &fixture->vm, &owner, &err), err);
    assert_string_equal(owner.path, "");
    assert_int_equal(access(fixture->path, F_OK), -1);
}

static void damaged_record_says_nothing(void **state)
{
    struct fixture *fixture = *state;
    FILE *file = fopen(fixture->path, "w");
    struct vm_owner owner;
    struct ferry_error err;

    fputs("nonsense", file);
    fclose(file);
    assert_int_equal(vm_owner_read(&fixture->host, &fixture->vm, &owner, &err), -EBADMSG);
    assert_int_equal(owner.record.state, VM_LOCK_NEW);
    assert_int_equal(word(fixture, MIGRATION), VM_OWNER_SILENT);
}

static struct vm_lock_record read_lock(struct fixture *fixture)
{
    struct vm_owner owner;
    struct ferry_error err;

    assert_ok(vm_owner_read(&fixture->host, &fixture->vm, &owner, &err), err);
    return owner.record;
}

static void move_under_way_is_settled_so_that_nobody_can_take_it(void **state)
{
    struct fixture *fixture = *state;
    struct vm_lock_record record;
    struct ferry_error err;

    write_lock(fixture, VM_LOCK_HANDOVER, "a");
    assert_ok(vm_owner_settle(&fixture->host, fixture->path, false, &err), err);
    record = read_lock(fixture);
    assert_int_equal(record.state, VM_LOCK_HELD);
    assert_int_equal(record.generation, 9);
    assert_string_equal(record.holder, "b");
}

static void suspended_guest_still_fits_the_lock_of_a_move_that_copied_its_disks(void **state)
{
    struct fixture *fixture = *state;
    struct vm_lock_record record;
    struct ferry_error err;

    write_lock(fixture, VM_LOCK_HANDOVER, "a");
    assert_ok(vm_owner_settle(&fixture->host, fixture->path, true, &err), err);
    record = read_lock(fixture);
    assert_int_equal(record.state, VM_LOCK_HELD);
    assert_int_equal(record.generation, 7);
}

static void lock_of_copied_disks_says_what_it_said_there(void **state)
{
    struct fixture *fixture = *state;
    struct vm_lock_record record;
    struct vm_lock *holder = NULL;
    struct ferry_error err;

    write_lock(fixture, VM_LOCK_HANDOVER, "b"); /* left by an earlier move away from here */
    assert_ok(vm_owner_carry(&fixture->host, fixture->vm.definition, 12, "a", &err), err);
    record = read_lock(fixture);
    assert_int_equal(record.state, VM_LOCK_HELD);
    assert_int_equal(record.generation, 12);
    assert_string_equal(record.holder, "a");
    assert_string_equal(record.destination, "");
    assert_ok(vm_lock_open(&holder, fixture->path, &err), err);
    assert_ok(vm_lock_take(holder, &err), err);
    assert_int_equal(vm_owner_carry(&fixture->host, fixture->vm.definition, 13, "a", &err), -EBUSY);
    vm_lock_close(holder);
}

static void what_has_run_is_left_as_it_is(void **state)
{
    struct fixture *fixture = *state;
    struct vm_lock_record record;
    struct ferry_error err;

    write_lock(fixture, VM_LOCK_STARTED, "a");
    assert_ok(vm_owner_settle(&fixture->host, fixture->path, false, &err), err);
    record = read_lock(fixture);
    assert_int_equal(record.state, VM_LOCK_STARTED);
    assert_int_equal(record.generation, 7);
    assert_string_equal(record.holder, "a");
}

static void lock_that_somebody_has_is_not_settled(void **state)
{
    struct fixture *fixture = *state;
    struct vm_lock *holder = NULL;
    struct ferry_error err;

    write_lock(fixture, VM_LOCK_ACQUIRED, "b");
    assert_ok(vm_lock_open(&holder, fixture->path, &err), err);
    assert_ok(vm_lock_take(holder, &err), err);
    assert_int_equal(vm_owner_settle(&fixture->host, fixture->path, false, &err), -EBUSY);
    assert_int_equal(read_lock(fixture).state, VM_LOCK_ACQUIRED);
    vm_lock_close(holder);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(each_record_has_its_meaning_for_its_migration_only),
        TEST(no_lock_says_nothing_and_none_is_made),
        TEST(damaged_record_says_nothing),
        TEST(move_under_way_is_settled_so_that_nobody_can_take_it),
        TEST(suspended_guest_still_fits_the_lock_of_a_move_that_copied_its_disks),
        TEST(lock_of_copied_disks_says_what_it_said_there),
        TEST(what_has_run_is_left_as_it_is),
        TEST(lock_that_somebody_has_is_not_settled),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
