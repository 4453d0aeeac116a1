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

static void print_cell(const struct table *table, FILE *out, size_t column, const char *text)
{
    size_t spare = table->columns[column].width - text_width(text);
    bool last = column + 1 == table->column_count;

    if (table->columns[column].align == TABLE_RIGHT)
        fprintf(out, "%*s%s", (int)spare, "", text);
    else
        fprintf(out, "%s%*s", text, last ? 0 : (int)spare, "");
    fputs(last ? "" : "  ", out);
}

void table_print(const struct table *table, FILE *out, const char *before, const char *after)
{
    bool headings = false;

    for (size_t i = 0; i < table->column_count; i++)
        headings |= *table->columns[i].heading != '\0';
    if (headings) {
        fputs(before, out);
        for (size_t i = 0; i < table->column_count; i++)
            print_cell(table, out, i, table->columns[i].heading);
        fprintf(out, "%s\n", after);
    }
    for (size_t i = 0; i < table_rows(table) * table->column_count; i++) {
        print_cell(table, out, i % table->column_count, table->cells[i]);
        if (i % table->column_count + 1 == table->column_count)
            fputc('\n', out);
    }
}
