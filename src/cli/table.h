/*
 * Aligned columns of text.
 *
 *     struct table table = TABLE_INIT;
 *     table_column(&table, "NAME", TABLE_LEFT);
 *     table_column(&table, "MEMORY", TABLE_RIGHT);
 *     table_cell(&table, "web");
 *     table_cell(&table, "256 MiB");
 *     table_print(&table, stdout, bold);
 *     table_free(&table);
 *
 * Cells are filled row by row, left to right; they are copied and cleaned (text.h). table_cell shows an empty
 * text as "-", table_cell_format as nothing, and a column with a heading and nothing else is left out.
 * Columns are two spaces apart; no line ends in spaces. A table whose headings are all empty has no heading
 * line. Running out of memory ends the program with a sentence: there is nothing useful to go on with.
 */
#ifndef FERRY_CLI_TABLE_H
#define FERRY_CLI_TABLE_H

#include <stddef.h>
#include <stdio.h>

#define TABLE_COLUMNS_MAX 16

enum table_align { TABLE_LEFT = 1, TABLE_RIGHT };

struct table {
    struct {
        const char *heading; /* borrowed */
        enum table_align align;
        size_t width;
    } columns[TABLE_COLUMNS_MAX];
    size_t column_count;
    char **cells; /* owned, row by row */
    size_t cell_count;
    size_t capacity;
};

#define TABLE_INIT ((struct table){0})

void table_free(struct table *table);
void table_column(struct table *table, const char *heading, enum table_align align);
void table_cell(struct table *table, const char *text);
void table_cell_format(struct table *table, const char *format, ...) __attribute__((format(printf, 2, 3)));
size_t table_rows(const struct table *table);
/* BEFORE and AFTER enclose the heading line ("" or colour codes). */
void table_print(const struct table *table, FILE *out, const char *before, const char *after);

#endif
