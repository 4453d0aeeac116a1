/* The views as text: a line a migration, whatever is in its words; not more lines than there may be. */
#include "unit.h"

#include "host/migration_files.h"

static json_t *ended(const char *id, const char *error)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:i, s:b, s:s}", "id",
                     id, "vm", "web", "source", "a", "destination", "b", "side", "source", "kind", "hot",
                     "started", "2026-11-21T03:31:40.000+01:00", "ended", "2026-11-21T03:31:41.012+01:00",
                     "outcome", "failed", "cause", "network", "total_ns", (json_int_t)1012345678,
                     "downtime_ns", (json_int_t)2001000, "wire_bytes", (json_int_t)46200000, "round", 2,
                     "agreed", 0, "error", error);
}

static void assert_text(const json_t *list, enum store_view view, const json_t *statistics,
                        const char *wanted)
{
    char *text = migration_files_text(list, view, statistics);

    assert_non_null(text);
    assert_string_equal(text, wanted);
    free(text);
}

static void one_that_ended_is_a_line_of_keys_and_values(void **state)
{
    json_t *list = json_array();

    json_array_append_new(list, ended("1b4e", "no answer"));
    assert_text(
        list, STORE_VIEW_FAILED, NULL,
        "2026-11-21T03:31:41.012+01:00 id=1b4e vm=web from=a to=b side=source kind=hot outcome=failed "
        "cause=network started=2026-11-21T03:31:40.000+01:00 total_ms=1012.345 downtime_ms=2.001 "
        "rounds=2 sent_bytes=46200000 agreed=no error=\"no answer\"\n");
    json_decref(list);
}

static void words_of_others_stay_in_their_place(void **state)
{
    json_t *list = json_array();
    json_t *row = ended("1b4e", "b says \"no\"\n2026 id=x \033[1m");
    char *text;

    json_object_set_new(row, "vm", json_string("web from=c\n"));
    json_object_set_new(row, "cause", json_string(""));
    json_array_append_new(list, row);
    text = migration_files_text(list, STORE_VIEW_HISTORY, NULL);
    assert_non_null(strstr(text, " vm=web?from=c? from=a "));
    assert_non_null(strstr(text, " cause=- "));
    assert_non_null(strstr(text, " error=\"b says 'no'?2026 id=x ?[1m\"\n"));
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
    free(text);
    json_decref(list);
}

static void active_one_tells_how_far_it_is(void **state)
{
    json_t *list = json_pack(
        "[{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:n, s:s, s:i, s:s, s:i, s:i, s:i, s:i, s:i}]", "id", "1b4e",
        "vm", "web", "source", "a", "destination", "b", "side", "source", "kind", "hot", "started", "T",
        "ended", "state", "MIGRATE_TO_VMX_PRECOPY", "state_number", 2, "phase", "I/O Quiesce", "percent", 42,
        "queue", 0, "round", 3, "wire_bytes", 7, "remaining_bytes", 8);

    assert_text(list, STORE_VIEW_ACTIVE, NULL,
                "T id=1b4e vm=web from=a to=b side=source kind=hot state=MIGRATE_TO_VMX_PRECOPY(2) "
                "phase=\"I/O Quiesce\" percent=42 queue=0 rounds=3 sent_bytes=7 remaining_bytes=8\n");
    json_decref(list);
}

static void only_the_newest_are_kept_oldest_first(void **state)
{
    json_t *list = json_array();
    size_t lines = 0;
    char id[16];
    char *text;

    for (int i = MIGRATION_FILES_LINES + 5; i >= 1; i--) {
        snprintf(id, sizeof(id), "%d", i);
        json_array_append_new(list, ended(id, ""));
    }
    text = migration_files_text(list, STORE_VIEW_HISTORY, NULL);
    for (const char *c = text; *c; c++)
        lines += *c == '\n';
    assert_int_equal(lines, MIGRATION_FILES_LINES);
    assert_non_null(strstr(strchr(text, '='), "=6 "));
    assert_null(strstr(text, " id=5 "));
    snprintf(id, sizeof(id), " id=%d ", MIGRATION_FILES_LINES + 5);
    assert_non_null(strstr(text, id));
    free(text);
    json_decref(list);
}

static void statistics_come_first(void **state)
{
    json_t *statistics = json_pack("{s:{s:{s:i, s:i, s:i, s:i, s:{s:I, s:I}, s:n, s:{s:i}, s:i}}}", "kinds",
                                   "hot", "count", 4, "completed", 3, "failed", 1, "success_permille", 750,
                                   "total_ns", "median", (json_int_t)5000000, "p99", (json_int_t)6000000,
                                   "downtime_ns", "causes", "network", 1, "wire_bytes", 9);

    assert_text(NULL, STORE_VIEW_HISTORY, statistics,
                "# kind=hot count=4 completed=3 failed=1 cancelled=0 lost=0 unknown=0 success_percent=75.0 "
                "total_median_ms=5.000 total_p99_ms=6.000 sent_bytes=9\n");
    assert_text(NULL, STORE_VIEW_FAILED, statistics, "# kind=hot cause=network count=1\n");
    assert_text(NULL, STORE_VIEW_ACTIVE, NULL, "");
    json_decref(statistics);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_that_ended_is_a_line_of_keys_and_values),
        cmocka_unit_test(words_of_others_stay_in_their_place),
        cmocka_unit_test(active_one_tells_how_far_it_is),
        cmocka_unit_test(only_the_newest_are_kept_oldest_first),
        cmocka_unit_test(statistics_come_first),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
