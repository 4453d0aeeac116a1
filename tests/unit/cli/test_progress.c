#include "unit.h"

#include "cli/progress.h"

#include <stdlib.h>
#include <string.h>

struct screen {
    struct term term;
    struct progress progress;
    FILE *out;
    char *text;
    size_t size;
};

static void screen_open(struct screen *screen, bool is_terminal)
{
    *screen = (struct screen){
        .term = {.is_terminal = is_terminal,
                 .bold = "",
                 .dim = "",
                 .red = "",
                 .green = "",
                 .yellow = "",
                 .reset = ""},
    };
    screen->out = open_memstream(&screen->text, &screen->size);
    assert_non_null(screen->out);
    progress_init(&screen->progress, &screen->term, screen->out);
}

static void screen_close(struct screen *screen)
{
    fclose(screen->out);
    free(screen->text);
}

static void show(struct screen *screen, const char *phase, int percent, const char *outcome, int rounds)
{
    json_t *list = json_array();
    json_t *migration;

    for (int i = 0; i < rounds; i++)
        json_array_append_new(list, json_pack("{s:i, s:i, s:i, s:i}", "pages", 10, "bytes", 40960,
                                              "duration_ns", 1000000, "dirtied_pages", 2));
    migration = json_pack("{s:s, s:i, s:s, s:s, s:i, s:o}", "phase", phase, "percent", percent, "outcome",
                          outcome, "vm", "web", "round", rounds, "rounds", list);
    progress_show(&screen->progress, migration);
    json_decref(migration);
}

static void every_phase_and_round_is_told_once(void **state)
{
    struct screen screen;

    (void)state;
    screen_open(&screen, false);
    show(&screen, "Init", 0, "none", 0);
    show(&screen, "Copy", 10, "none", 0);
    show(&screen, "Copy", 50, "none", 1);
    show(&screen, "Copy", 60, "none", 1);
    show(&screen, "Frozen", 100, "completed", 1);
    assert_string_equal(screen.text, "Init\nCopy\n"
                                     "  round 1: 10 pages, 40 KiB in 1 ms (39.1 MiB/s), 2 pages "
                                     "changed meanwhile\n"
                                     "I/O Quiesce\nFrozen\n");
    screen_close(&screen);
}

static void show_fetch(struct screen *screen, bool disconnected, const char *outcome)
{
    json_t *migration =
        json_pack("{s:s, s:i, s:s, s:s, s:s, s:i, s:i, s:[], s:{s:b, s:i}}", "phase", "Fetch", "percent", 50,
                  "outcome", outcome, "vm", "web", "destination", "b", "remaining_bytes", 3 << 20, "round", 0,
                  "rounds", "quick_resume", "disconnected", disconnected, "faults", 7);

    progress_show(&screen->progress, migration);
    json_decref(migration);
}

static void quick_resume_has_a_phase_of_its_own(void **state)
{
    struct screen screen;

    (void)state;
    screen_open(&screen, false);
    show(&screen, "Frozen", 100, "none", 0);
    show_fetch(&screen, false, "none");
    show_fetch(&screen, true, "none");
    show_fetch(&screen, true, "none");
    show_fetch(&screen, false, "none");
    show_fetch(&screen, false, "completed");
    assert_string_equal(screen.text, "Init\nCopy\nI/O Quiesce\nFrozen\nFetch\n"
                                     "No connection to b: web stands still there, nothing is lost\n"
                                     "Connected again\n");
    screen_close(&screen);
    screen_open(&screen, true);
    show(&screen, "Frozen", 100, "none", 0);
    show_fetch(&screen, true, "none");
    show_fetch(&screen, false, "none");
    show_fetch(&screen, false, "completed");
    assert_non_null(strstr(screen.text, "\033[4A"));
    assert_non_null(strstr(screen.text, "\033[5A"));
    assert_non_null(strstr(screen.text, "50 %  3 MiB left  cut off: it stands still"));
    assert_non_null(strstr(screen.text, "50 %  3 MiB left  7 page faults"));
    screen_close(&screen);
}

static void a_migration_seen_only_at_its_end_is_told_in_order(void **state)
{
    struct screen screen;

    (void)state;
    screen_open(&screen, false);
    show(&screen, "Frozen", 100, "completed", 2);
    assert_ptr_equal(strstr(screen.text, "Init\nCopy\n  round 1"), screen.text);
    assert_non_null(strstr(screen.text, "I/O Quiesce\nFrozen\n  round 2"));
    screen_close(&screen);
}

static void a_failed_migration_tells_no_phase_it_did_not_reach(void **state)
{
    struct screen screen;

    (void)state;
    screen_open(&screen, false);
    show(&screen, "Copy", 30, "failed", 0);
    assert_string_equal(screen.text, "Init\nCopy\n");
    screen_close(&screen);
}

static void a_phase_from_a_newer_host_is_survived(void **state)
{
    struct screen screen;

    (void)state;
    screen_open(&screen, true);
    show(&screen, "Teleport", 30, "none", 0);
    show(&screen, "Copy", 400000, "none", 0);
    assert_non_null(strstr(screen.text, "100 %"));
    screen_close(&screen);
}

static void a_terminal_is_redrawn_in_place(void **state)
{
    struct screen screen;
    const char *again;

    (void)state;
    screen_open(&screen, true);
    show(&screen, "Copy", 50, "none", 0);
    assert_null(strstr(screen.text, "\033[4A"));
    assert_non_null(strstr(screen.text, "Copy        ########........  50 %"));
    show(&screen, "Copy", 75, "failed", 0);
    again = strstr(screen.text, "\033[4A");
    assert_non_null(again);
    assert_non_null(strstr(again, "############....  75 %  failed"));
    screen_close(&screen);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_phase_and_round_is_told_once),
        cmocka_unit_test(quick_resume_has_a_phase_of_its_own),
        cmocka_unit_test(a_migration_seen_only_at_its_end_is_told_in_order),
        cmocka_unit_test(a_failed_migration_tells_no_phase_it_did_not_reach),
        cmocka_unit_test(a_phase_from_a_newer_host_is_survived),
        cmocka_unit_test(a_terminal_is_redrawn_in_place),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
