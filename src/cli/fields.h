/*
 * One object as a block of "name  value" lines, aligned. A value that is empty is left out.
 */
#ifndef FERRY_CLI_FIELDS_H
#define FERRY_CLI_FIELDS_H

#include "cli/command.h"
#include "cli/table.h"

struct fields {
    struct cli *cli;
    struct table table;
};

void fields_begin(struct fields *fields, struct cli *cli);
void fields_text(struct fields *fields, const char *name, const char *value);
void fields_format(struct fields *fields, const char *name, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void fields_size(struct fields *fields, const char *name, uint64_t bytes);
void fields_time(struct fields *fields, const char *name, const char *rfc3339); /* with how long ago */
/* Prints and frees. */
void fields_end(struct fields *fields);

#endif
