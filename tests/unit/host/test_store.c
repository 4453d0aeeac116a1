/* Records come back as they were written; a file that is not ours is refused in a sentence. */
#include "unit.h"

#include "host/store.h"

#include <errno.h>
#include <sqlite3.h>

struct fixture {
    struct unit_dir dir;
    char path[128];
    struct store *store;
};

static int set_up(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    struct ferry_error err;

    unit_dir_make(&fixture->dir);
    unit_path(&fixture->dir, "ferryd.db", fixture->path);
    *state = fixture;
    return store_open_sqlite(&fixture->store, fixture->path, &err);
}

static int tear_down(void **state)
{
    struct fixture *fixture = *state;

    store_close(fixture->store);
    unit_dir_remove(&fixture->dir);
    free(fixture);
    return 0;
}

static void reopen(struct fixture *fixture)
{
    struct ferry_error err;

    store_close(fixture->store);
    fixture->store = NULL;
    assert_ok(store_open_sqlite(&fixture->store, fixture->path, &err), err);
}

static void settings_survive(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;
    char *value = NULL;

    assert_ok(fixture->store->ops->setting_get(fixture->store, "migration", &value, &err), err);
    assert_null(value);
    assert_ok(fixture->store->ops->setting_put(fixture->store, "migration", "disabled", &err), err);
    reopen(fixture);
    assert_ok(fixture->store->ops->setting_get(fixture->store, "migration", &value, &err), err);
    assert_string_equal(value, "disabled");
    free(value);
}

static void hosts_survive_and_can_go(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;
    json_t *hosts = NULL;

    assert_ok(fixture->store->ops->host_put(fixture->store, "b", "127.0.0.1:2", &err), err);
    assert_ok(fixture->store->ops->host_put(fixture->store, "a", "127.0.0.1:1", &err), err);
    reopen(fixture);
    assert_ok(fixture->store->ops->host_list(fixture->store, &hosts, &err), err);
    assert_int_equal(json_array_size(hosts), 2);
    assert_string_equal(json_string_value(json_object_get(json_array_get(hosts, 0), "name")), "a");
    json_decref(hosts);
    assert_ok(fixture->store->ops->host_delete(fixture->store, "a", &err), err);
    assert_ok(fixture->store->ops->host_list(fixture->store, &hosts, &err), err);
    assert_int_equal(json_array_size(hosts), 1);
    json_decref(hosts);
}

static void put_migration(struct store *store, const char *id, const char *outcome, uint64_t started,
                          uint64_t ended)
{
    json_t *object =
        json_pack("{s:s, s:s, s:I}", "id", id, "outcome", outcome, "started_ns", (json_int_t)started);
    const struct store_migration row = {.id = id,
                                        .vm = "web",
                                        .outcome = outcome,
                                        .started_ns = started,
                                        .ended_ns = ended,
                                        .object = object};
    struct ferry_error err;

    assert_ok(store->ops->migration_put(store, &row, &err), err);
    json_decref(object);
}

static void assert_ids(struct store *store, enum store_view view, const char *wanted)
{
    char ids[256] = "";
    struct ferry_error err;
    json_t *rows = NULL;
    json_t *row;
    size_t i;

    assert_ok(store->ops->migration_list(store, view, 100, &rows, &err), err);
    json_array_foreach(rows, i, row)
    {
        strcat(ids, json_string_value(json_object_get(row, "id")));
        strcat(ids, " ");
    }
    json_decref(rows);
    assert_string_equal(ids, wanted);
}

static void migrations_are_listed_newest_first_in_their_views(void **state)
{
    struct fixture *fixture = *state;

    put_migration(fixture->store, "aa1", "completed", 1, 2);
    put_migration(fixture->store, "aa2", "failed", 3, 4);
    put_migration(fixture->store, "bb3", "none", 5, 0);
    reopen(fixture);
    assert_ids(fixture->store, STORE_VIEW_ALL, "bb3 aa2 aa1 ");
    assert_ids(fixture->store, STORE_VIEW_ACTIVE, "bb3 ");
    assert_ids(fixture->store, STORE_VIEW_HISTORY, "aa2 aa1 ");
    assert_ids(fixture->store, STORE_VIEW_FAILED, "aa2 ");
    put_migration(fixture->store, "bb3", "cancelled", 5, 6);
    assert_ids(fixture->store, STORE_VIEW_ACTIVE, "");
    assert_ids(fixture->store, STORE_VIEW_FAILED, "bb3 aa2 ");
}

static void put_agreed(struct store *store, const char *id, uint64_t ended, const char *agreed)
{
    json_t *object = json_pack("{s:s}", "id", id);
    const struct store_migration row = {
        .id = id, .vm = "web", .outcome = "failed", .started_ns = 1, .ended_ns = ended, .object = object};
    struct ferry_error err;

    if (agreed)
        json_object_set_new(object, "agreed", json_boolean(strcmp(agreed, "yes") == 0));
    assert_ok(store->ops->migration_put(store, &row, &err), err);
    json_decref(object);
}

static void records_that_the_other_host_may_tell_otherwise_are_listed(void **state)
{
    struct fixture *fixture = *state;

    put_agreed(fixture->store, "aa1", 2, "yes");
    put_agreed(fixture->store, "aa2", 2, "no");
    put_agreed(fixture->store, "aa3", 0, "no");
    put_agreed(fixture->store, "aa4", 2, NULL); /* an older Ferry's */
    reopen(fixture);
    assert_ids(fixture->store, STORE_VIEW_OPEN, "aa2 ");
    put_agreed(fixture->store, "aa2", 2, "yes");
    assert_ids(fixture->store, STORE_VIEW_OPEN, "");
}

static void migration_is_found_by_prefix(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    struct ferry_error err;
    json_t *rows = NULL;

    put_migration(store, "aa1", "completed", 1, 2);
    put_migration(store, "aa2", "failed", 3, 4);
    assert_ok(store->ops->migration_find(store, "aa2", &rows, &err), err);
    assert_int_equal(json_array_size(rows), 1);
    json_decref(rows);
    assert_ok(store->ops->migration_find(store, "aa", &rows, &err), err);
    assert_int_equal(json_array_size(rows), 2);
    json_decref(rows);
    assert_ok(store->ops->migration_find(store, "%", &rows, &err), err);
    assert_int_equal(json_array_size(rows), 0);
    json_decref(rows);
}

static void lines_keep_their_order(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    struct ferry_error err;
    json_t *lines = NULL;

    for (uint64_t i = 0; i < 3; i++) {
        const struct store_line line = {.migration = i == 1 ? "other" : "aa1",
                                        .time_ns = 10 - i,
                                        .level = "info",
                                        .host = "a",
                                        .text = i == 0 ? "one" : "two"};

        assert_ok(store->ops->line_put(store, &line, &err), err);
    }
    assert_ok(store->ops->line_list(store, "aa1", &lines, &err), err);
    assert_int_equal(json_array_size(lines), 2);
    assert_string_equal(json_string_value(json_object_get(json_array_get(lines, 0), "text")), "one");
    assert_int_equal(json_integer_value(json_object_get(json_array_get(lines, 1), "time_ns")), 8);
    json_decref(lines);
}

static void events_come_back_whole_from_a_number_on(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    struct ferry_error err;
    json_t *events = NULL;
    uint64_t last = 99;

    assert_ok(store->ops->event_last(store, &last, &err), err);
    assert_int_equal(last, 0);
    for (int i = 1; i <= 5; i++) {
        json_t *event = json_pack("{s:i, s:s, s:s, s:s, s:s, s:s?, s:n, s:s}", "number", i, "time", "t",
                                  "host", "a", "code", "VMS2450", "level", "info", "vm",
                                  i == 5 ? "web" : NULL, "migration", "text", "words");

        assert_ok(store->ops->event_put(store, event, &err), err);
        json_decref(event);
    }
    reopen(fixture);
    store = fixture->store;
    assert_ok(store->ops->event_last(store, &last, &err), err);
    assert_int_equal(last, 5);
    assert_ok(store->ops->event_list(store, 3, 10, &events, &err), err);
    assert_int_equal(json_array_size(events), 2);
    assert_true(json_is_null(json_object_get(json_array_get(events, 0), "vm")));
    assert_string_equal(json_string_value(json_object_get(json_array_get(events, 1), "vm")), "web");
    json_decref(events);
    assert_ok(store->ops->event_list(store, 0, 2, &events, &err), err);
    assert_int_equal(json_array_size(events), 2);
    json_decref(events);
    assert_ok(store->ops->event_list(store, UINT64_MAX, 2, &events, &err), err);
    assert_int_equal(json_array_size(events), 0);
    json_decref(events);
}

static void put_event(struct store *store, int number, const char *migration)
{
    struct ferry_error err;
    json_t *event =
        json_pack("{s:i, s:s, s:s, s:s, s:s, s:n, s:s?, s:s}", "number", number, "time", "t", "host", "a",
                  "code", "VMS2450", "level", "info", "vm", "migration", migration, "text", "w");

    assert_ok(store->ops->event_put(store, event, &err), err);
    json_decref(event);
}

static void events_of_one_migration_come_in_their_order(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;
    json_t *events = NULL;

    put_event(fixture->store, 1, "aa1");
    put_event(fixture->store, 2, "aa2");
    put_event(fixture->store, 3, NULL);
    put_event(fixture->store, 4, "aa1");
    assert_ok(fixture->store->ops->event_list_of(fixture->store, "aa1", 10, &events, &err), err);
    assert_int_equal(json_array_size(events), 2);
    assert_int_equal(json_integer_value(json_object_get(json_array_get(events, 1), "number")), 4);
    json_decref(events);
}

static void numbers_are_those_of_migrations_that_have_ended(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;
    json_t *object = json_pack("{s:s, s:s, s:I, s:I}", "kind", "hot", "cause", "network", "total_ns",
                               (json_int_t)5000000000, "wire_bytes", (json_int_t)7);
    struct store_migration row = {
        .id = "aa1", .vm = "web", .outcome = "failed", .started_ns = 1, .ended_ns = 2, .object = object};
    json_t *rows = NULL;

    assert_ok(fixture->store->ops->migration_put(fixture->store, &row, &err), err);
    row.id = "aa2";
    row.ended_ns = 0;
    assert_ok(fixture->store->ops->migration_put(fixture->store, &row, &err), err);
    json_decref(object);
    assert_ok(fixture->store->ops->migration_numbers(fixture->store, 10, &rows, &err), err);
    assert_int_equal(json_array_size(rows), 1);
    object = json_pack("{s:s, s:s, s:s, s:I, s:n, s:i}", "kind", "hot", "outcome", "failed", "cause",
                       "network", "total_ns", (json_int_t)5000000000, "downtime_ns", "wire_bytes", 7);
    assert_true(json_equal(json_array_get(rows, 0), object));
    json_decref(object);
    json_decref(rows);
}

static void run_sql(const char *path, const char *sql)
{
    sqlite3 *db = NULL;

    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
}

static void newer_database_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    store_close(fixture->store);
    fixture->store = NULL;
    run_sql(fixture->path, "PRAGMA user_version = 7");
    assert_int_equal(store_open_sqlite(&fixture->store, fixture->path, &err), -EPROTONOSUPPORT);
    assert_null(fixture->store);
    assert_contains(err.text, fixture->path);
    assert_contains(err.text, "newer Ferry");
}

static void file_that_is_no_database_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = NULL;
    struct ferry_error err;
    char path[128];
    FILE *file = fopen(unit_path(&fixture->dir, "garbage", path), "w");

    for (int i = 0; i < 4096; i++)
        fputs("garbage ", file);
    fclose(file);
    assert_int_equal(store_open_sqlite(&store, path, &err), -EBADMSG);
    assert_contains(err.text, path);
    assert_contains(err.text, "move it away");
    assert_null(store);
}

static void database_of_something_else_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = NULL;
    struct ferry_error err;
    char path[128];

    run_sql(unit_path(&fixture->dir, "other", path), "CREATE TABLE recipes (cake TEXT)");
    assert_int_equal(store_open_sqlite(&store, path, &err), -EBADMSG);
    assert_contains(err.text, "not one of Ferry's");
}

static void place_that_cannot_be_written_is_refused(void **state)
{
    struct store *store = NULL;
    struct ferry_error err;

    assert_int_equal(store_open_sqlite(&store, "/nonexistent/ferryd.db", &err), -EACCES);
    assert_contains(err.text, "/nonexistent/ferryd.db");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(settings_survive, set_up, tear_down),
        cmocka_unit_test_setup_teardown(hosts_survive_and_can_go, set_up, tear_down),
        cmocka_unit_test_setup_teardown(migrations_are_listed_newest_first_in_their_views, set_up, tear_down),
        cmocka_unit_test_setup_teardown(records_that_the_other_host_may_tell_otherwise_are_listed, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(migration_is_found_by_prefix, set_up, tear_down),
        cmocka_unit_test_setup_teardown(lines_keep_their_order, set_up, tear_down),
        cmocka_unit_test_setup_teardown(events_come_back_whole_from_a_number_on, set_up, tear_down),
        cmocka_unit_test_setup_teardown(events_of_one_migration_come_in_their_order, set_up, tear_down),
        cmocka_unit_test_setup_teardown(numbers_are_those_of_migrations_that_have_ended, set_up, tear_down),
        cmocka_unit_test_setup_teardown(newer_database_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(file_that_is_no_database_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(database_of_something_else_is_refused, set_up, tear_down),
        cmocka_unit_test(place_that_cannot_be_written_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
