#include "cli/table.h"

#include "cli/memory.h"
#include "cli/text.h"

#include <assert.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

void table_free(struct table *table)
{
    for (size_t i = 0; i < table->cell_count; i++)
        free(table->cells[i]);
    free(table->cells);
    *table = TABLE_INIT;
}

void table_column(struct table *table, const char *heading, enum table_align align)
{
    assert(table->column_count < TABLE_COLUMNS_MAX && table->cell_count == 0);
    table->columns[table->column_count].heading = heading;
    table->columns[table->column_count].align = align;
    table->columns[table->column_count].width = text_width(heading);
    table->column_count++;
}

/* Takes TEXT, which was allocated. */
static void add_cell(struct table *table, char *text)
{
    size_t width, column;

    assert(table->column_count > 0);
    if (table->cell_count == table->capacity) {
        table->capacity = table->capacity ? table->capacity * 2 : 64;
        table->cells = memory_resize(table->cells, table->capacity * sizeof(*table->cells));
    }
    text_clean(text);
    column = table->cell_count % table->column_count;
    width = text_width(text);
    if (width > table->columns[column].width)
        table->columns[column].width = width;
    table->cells[table->cell_count++] = text;
}

void table_cell(struct table *table, const char *text)
{
    add_cell(table, memory_copy_text(*text ? text : "-"));
}

void table_cell_format(struct table *table, const char *format, ...)
{
    va_list args;
    char *text;

    va_start(args, format);
    text = memory_format_list(format, args);
    va_end(args);
    add_cell(table, text);
}

size_t table_rows(const struct table *table)
{
    return table->column_count ? table->cell_count / table->column_count : 0;
}

/* A column whose heading is all there is in it is left out: nothing to tell. */
static bool is_shown(const struct table *table, size_t column)
{
    if (!*table->columns[column].heading)
        return true;
    for (size_t i = column; i < table->cell_count; i += table->column_count) {
        if (*table->cells[i])
            return true;
    }
    return table->cell_count == 0;
}

/* Prints one cell; *owed are the spaces before it, which nothing follows at the end of a line. */
static void print_cell(const struct table *table, FILE *out, size_t column, const char *text, size_t *owed)
{
    size_t spare = table->columns[column].width - text_width(text);
    size_t before = table->columns[column].align == TABLE_RIGHT ? spare : 0;

    if (*text) {
        fprintf(out, "%*s%s", (int)(*owed + before), "", text);
        *owed = 2 + spare - before;
    } else {
        *owed += 2 + spare;
    }
}

static void print_row(const struct table *table, FILE *out, char *const *cells)
{
    size_t owed = 0;

    for (size_t i = 0; i < table->column_count; i++) {
        if (is_shown(table, i))
            print_cell(table, out, i, cells ? cells[i] : table->columns[i].heading, &owed);
    }
}

void table_print(const struct table *table, FILE *out, const char *before, const char *after)
{
    bool headings = false;

    for (size_t i = 0; i < table->column_count; i++)
        headings |= *table->columns[i].heading != '\0';
    if (headings) {
        fputs(before, out);
        print_row(table, out, NULL);
        fprintf(out, "%s\n", after);
    }
    for (size_t row = 0; row < table_rows(table); row++) {
        print_row(table, out, table->cells + row * table->column_count);
        fputc('\n', out);
    }
}
