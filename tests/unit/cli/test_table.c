#include "unit.h"

#include "cli/table.h"

#include <locale.h>
#include <stdlib.h>

static void assert_prints(const struct table *table, const char *wanted)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);

    assert_non_null(out);
    table_print(table, out, "<", ">");
    fclose(out);
    assert_string_equal(text, wanted);
    free(text);
}

static void columns_align_left_and_right(void **state)
{
    struct table table = TABLE_INIT;

    (void)state;
    table_column(&table, "NAME", TABLE_LEFT);
    table_column(&table, "MEMORY", TABLE_RIGHT);
    table_column(&table, "WHY", TABLE_LEFT);
    table_cell(&table, "web");
    table_cell(&table, "1 GiB");
    table_cell_format(&table, "%s", "");
    table_cell(&table, "日本");
    table_cell(&table, "256 MiB");
    table_cell(&table, "x\ny");
    assert_int_equal(table_rows(&table), 2);
    assert_prints(&table, "<NAME   MEMORY  WHY>\n"
                          "web     1 GiB\n"
                          "日本  256 MiB  x?y\n");
    table_free(&table);
}

static void a_column_with_nothing_in_it_is_left_out(void **state)
{
    struct table table = TABLE_INIT;

    (void)state;
    table_column(&table, "NAME", TABLE_LEFT);
    table_column(&table, "WHY", TABLE_LEFT);
    table_column(&table, "SIZE", TABLE_RIGHT);
    table_cell(&table, "web");
    table_cell_format(&table, "%s", "");
    table_cell(&table, "");
    assert_prints(&table, "<NAME  SIZE>\n"
                          "web      -\n");
    table_free(&table);
}

static void a_table_without_headings_has_no_heading_line(void **state)
{
    struct table table = TABLE_INIT;

    (void)state;
    table_column(&table, "", TABLE_LEFT);
    table_column(&table, "", TABLE_LEFT);
    table_cell(&table, "state");
    table_cell(&table, "");
    assert_prints(&table, "state  -\n");
    table_free(&table);
}

static void a_table_grows(void **state)
{
    struct table table = TABLE_INIT;

    (void)state;
    table_column(&table, "N", TABLE_RIGHT);
    for (int i = 0; i < 1000; i++)
        table_cell_format(&table, "%d", i);
    assert_int_equal(table_rows(&table), 1000);
    table_free(&table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(columns_align_left_and_right),
        cmocka_unit_test(a_column_with_nothing_in_it_is_left_out),
        cmocka_unit_test(a_table_without_headings_has_no_heading_line),
        cmocka_unit_test(a_table_grows),
    };

    setlocale(LC_CTYPE, "C.UTF-8");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
