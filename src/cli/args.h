/*
 * Command line arguments by tables: a command says which options and operands it takes, args_parse reads
 * them, checks their values, and the command asks for them by name.
 *
 *     --option VALUE   --option=VALUE   -o VALUE   -oVALUE   --   (what follows are operands)
 *     --option         --option=VALUE   (one with a `bare` value)
 *
 * Options and operands may be mixed. Anything that is not in the table is refused with the closest name that
 * is. Values are borrowed from argv.
 */
#ifndef FERRY_CLI_ARGS_H
#define FERRY_CLI_ARGS_H

#include <ferry/error.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARGS_OPTIONS_MAX  32 /* given on one command line */
#define ARGS_OPERANDS_MAX 8
#define ARGS_WORDS_MAX    64 /* handed on unparsed */

/* What a value is: how it is checked, and what is offered when completing it. */
enum value_kind {
    VALUE_NONE = 0, /* an option that is a switch; the end of a table of operands */
    VALUE_TEXT,
    VALUE_FILE,
    VALUE_SIZE,
    VALUE_MEMORY, /* a size with ",hugepages" or not (units_parse_memory) */
    VALUE_RATE,
    VALUE_DURATION,
    VALUE_NUMBER,
    VALUE_CHOICE,
    VALUE_VM,
    VALUE_HOST,
    VALUE_MIGRATION,
    VALUE_COMMAND,
};

struct option {
    const char *name; /* without the dashes; NULL ends a table */
    char letter;      /* short form, or 0 */
    enum value_kind kind;
    const char *value_name;     /* "FILE" in the help */
    const char *const *choices; /* VALUE_CHOICE: ends with NULL */
    const char *bare;           /* its value when it is given without one; NULL: it needs one */
    bool repeats;
    const char *help;
};

struct operand {
    const char *name;
    enum value_kind kind;
    bool optional;
    bool repeats; /* the last one only: any number of them */
    const char *const *choices;
};

/* One option as given. */
struct option_value {
    const struct option *option;
    const char *text;
    uint64_t number; /* sizes in bytes, rates in bytes/s, durations in ns, numbers */
};

struct args {
    struct option_value options[ARGS_OPTIONS_MAX];
    size_t option_count;
    const char *operands[ARGS_WORDS_MAX];
    size_t operand_count;
};

/* Reads argv[0..argc) by the two tables of options (either may be NULL) and the operands' (ends with a NULL
 * name; NULL: takes none). With STOP_AT_OPERAND it ends at the first operand. Returns the number of arguments
 * read or -EINVAL. */
int args_parse(struct args *args, const struct option *options, const struct option *common,
               const struct operand *operands, bool stop_at_operand, int argc, char **argv,
               struct ferry_error *err);
/* -EINVAL unless the operands needed are there and valid choices. */
int args_check_operands(const struct args *args, const struct operand *operands, struct ferry_error *err);

bool args_has(const struct args *args, const char *option);
/* The last one given, else the default. */
const char *args_text(const struct args *args, const char *option, const char *otherwise);
uint64_t args_number(const struct args *args, const char *option, uint64_t otherwise);
/* The INDEX-th of a repeated option in the order given, NULL past the last. */
const char *args_text_at(const struct args *args, const char *option, size_t index);
/* Operand INDEX or NULL. */
const char *args_operand(const struct args *args, size_t index);

/* For completion: looks an option up by how it is written, "--name" or "-n" (what follows '=' is not looked
 * at). */
const struct option *args_find_option(const struct option *options, const char *written);

#endif
