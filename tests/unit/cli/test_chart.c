/* Bars are as long as their values say, whatever these are. */
#include "unit.h"

#include "cli/chart.h"

#include <stdlib.h>

struct drawing {
    char *text;
    size_t size;
    struct cli cli;
};

static void begin(struct drawing *drawing)
{
    *drawing = (struct drawing){0};
    drawing->cli.term = (struct term){.bold = "", .green = "", .yellow = "", .reset = ""};
    drawing->cli.out = open_memstream(&drawing->text, &drawing->size);
    assert_non_null(drawing->cli.out);
}

static void assert_drew(struct drawing *drawing, const char *wanted)
{
    fclose(drawing->cli.out);
    assert_string_equal(drawing->text, wanted);
    free(drawing->text);
}

static void bars_are_as_long_as_their_shares(void **state)
{
    struct drawing drawing;
    struct chart chart;

    (void)state;
    begin(&drawing);
    chart_begin(&chart, &drawing.cli, 3, 80 - 3 - 4 - 16);
    chart_bar(&chart, "a", CHART_FULL, CHART_MAIN, "all");
    chart_bar(&chart, "bcd", CHART_FULL / 2, CHART_OTHER, "half");
    chart_bar(&chart, "e\n", 1, CHART_MAIN, "least");
    chart_bar(&chart, "f", 0, CHART_MAIN, "none");
    assert_drew(&drawing, "a    ################  all\n"
                          "bcd  ========  half\n"
                          "e?   #  least\n"
                          "f    none\n");
}

static void blocks_have_eighths(void **state)
{
    struct drawing drawing;
    struct chart chart;

    (void)state;
    begin(&drawing);
    drawing.cli.term.is_terminal = drawing.cli.term.utf8 = true;
    chart_begin(&chart, &drawing.cli, 1, 80 - 1 - 4 - 16);
    chart_bar(&chart, "a", CHART_FULL * 11 / 128, CHART_MAIN, "");
    chart_bar(&chart, "b", CHART_FULL / 8, CHART_OTHER, "");
    assert_drew(&drawing, "a  █▍  \nb  ▒▒  \n");
}

static void a_bar_is_never_without_room(void **state)
{
    struct drawing drawing;
    struct chart chart;

    (void)state;
    begin(&drawing);
    chart_begin(&chart, &drawing.cli, 60, 60);
    assert_int_equal(chart.bar_width, 8);
    fclose(drawing.cli.out);
    free(drawing.text);
}

static void shares_follow_the_values(void **state)
{
    (void)state;
    assert_int_equal(chart_linear(0, 0), 0);
    assert_int_equal(chart_linear(1, 2), CHART_FULL / 2);
    assert_int_equal(chart_linear(3, 2), CHART_FULL);
    assert_int_equal(chart_log(0, 1000), 0);
    assert_int_equal(chart_log(255, 65535), CHART_FULL / 2);
    assert_int_equal(chart_log(UINT64_MAX, UINT64_MAX), CHART_FULL);
    for (uint64_t value = 1; value < UINT64_MAX / 3; value *= 3)
        assert_true(chart_log(value, UINT64_MAX) < chart_log(value * 3, UINT64_MAX));
}

static void many_rounds_are_put_together(void **state)
{
    struct drawing drawing;
    json_t *rounds = json_array();
    json_t *migration = json_pack("{s:o}", "rounds", rounds);
    size_t lines = 0;

    (void)state;
    for (int i = 1; i <= 100; i++)
        json_array_append_new(rounds, json_pack("{s:i, s:i}", "pages", 1000 - i, "dirtied_pages", i));
    begin(&drawing);
    chart_print_rounds(&drawing.cli, migration);
    fclose(drawing.cli.out);
    for (const char *c = drawing.text; *c; c++)
        lines += *c == '\n';
    assert_true(lines > 20 && lines <= 2 + 2 * 16);
    assert_non_null(strstr(drawing.text, "\nround 1-7  "));
    assert_non_null(strstr(drawing.text, "\nround 99-100  "));
    assert_non_null(strstr(drawing.text, "400 KiB changed meanwhile\n"));
    free(drawing.text);
    json_decref(migration);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bars_are_as_long_as_their_shares), cmocka_unit_test(blocks_have_eighths),
        cmocka_unit_test(a_bar_is_never_without_room),      cmocka_unit_test(shares_follow_the_values),
        cmocka_unit_test(many_rounds_are_put_together),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
