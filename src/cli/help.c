#include "cli/command.h"

#include "cli/memory.h"
#include "cli/text.h"

#include <stdlib.h>
#include <string.h>

#define HELP_WIDTH   80
#define OPTION_WIDTH 26

/* Prints words of TEXT wrapped; the first line begins at column AT, later ones at INDENT. */
static void print_wrapped(FILE *out, const char *text, size_t at, size_t indent)
{
    size_t column = at;
    bool first = true;

    while (*text) {
        size_t length = strcspn(text, " \n");

        if (*text == '\n') {
            fprintf(out, "\n%*s", (int)indent, "");
            column = indent;
            first = true;
            text++;
            continue;
        }
        if (!first && column + 1 + length > HELP_WIDTH) {
            fprintf(out, "\n%*s", (int)indent, "");
            column = indent;
            first = true;
        }
        column += (size_t)fprintf(out, "%s%.*s", first ? "" : " ", (int)length, text);
        first = false;
        text += length;
        while (*text == ' ')
            text++;
    }
    fputc('\n', out);
}

/* A piece of the synopsis; spaces inside it must not be broken at, so they are printed as a whole. */
static size_t print_piece(FILE *out, const char *piece, size_t column, size_t indent)
{
    size_t width = text_width(piece);

    if (column + 1 + width > HELP_WIDTH) {
        fprintf(out, "\n%*s%s", (int)indent, "", piece);
        return indent + width;
    }
    fprintf(out, " %s", piece);
    return column + 1 + width;
}

void command_print_synopsis(FILE *out, const struct command *command, size_t indent)
{
    size_t column = indent;

    column += (size_t)fprintf(out, "ferry %s", command->name);
    indent = column + 1;
    for (const struct operand *operand = command->operands; operand && operand->name; operand++) {
        char *piece = memory_format(operand->optional ? "[%s%s]" : "%s%s", operand->name,
                                    operand->repeats ? "..." : "");

        column = print_piece(out, piece, column, indent);
        free(piece);
    }
    for (const struct option *option = command->options; option && option->name; option++) {
        char *piece;

        if (option->kind == VALUE_NONE && option->letter)
            piece = memory_format("[-%c]", option->letter);
        else if (option->kind == VALUE_NONE)
            piece = memory_format("[--%s]", option->name);
        else if (option->bare)
            piece = memory_format("[--%s[=%s]]", option->name, option->value_name);
        else
            piece =
                memory_format("[--%s %s]%s", option->name, option->value_name, option->repeats ? "..." : "");
        column = print_piece(out, piece, column, indent);
        free(piece);
    }
    fputc('\n', out);
}

static void print_options(FILE *out, const struct option *options)
{
    for (; options && options->name; options++) {
        char letter[8] = "";
        char *written;

        if (options->letter)
            snprintf(letter, sizeof(letter), "-%c, ", options->letter);
        if (options->bare)
            written = memory_format("  %s--%s[=%s]", letter, options->name, options->value_name);
        else
            written =
                memory_format("  %s--%s%s%s", letter, options->name, options->kind == VALUE_NONE ? "" : " ",
                              options->kind == VALUE_NONE ? "" : options->value_name);
        if (text_width(written) + 2 > OPTION_WIDTH)
            fprintf(out, "%s\n%*s", written, OPTION_WIDTH, "");
        else
            fprintf(out, "%-*s", OPTION_WIDTH, written);
        print_wrapped(out, options->help, OPTION_WIDTH, OPTION_WIDTH);
        free(written);
    }
}

void command_print_help(FILE *out, const struct command *command)
{
    fputs("usage: ", out);
    command_print_synopsis(out, command, strlen("usage: "));
    fputc('\n', out);
    print_wrapped(out, command->summary, 0, 0);
    if (command->text) {
        fputc('\n', out);
        print_wrapped(out, command->text, 0, 0);
    }
    if (command->options && command->options->name) {
        fputs("\nOptions:\n", out);
        print_options(out, command->options);
    }
    fputs("\nOptions of every command:\n", out);
    print_options(out, common_options);
    fputs("\nExamples:\n", out);
    for (const struct example *example = command->examples; example && example->command; example++) {
        fprintf(out, "  %s\n      ", example->command);
        print_wrapped(out, example->what, 6, 6);
    }
}

void command_print_overview(FILE *out)
{
    const char *group = "";

    fputs("usage: ferry [--host WHERE] [--json] COMMAND ...\n\n"
          "Runs Linux virtual machines and moves them between hosts while they run.\n",
          out);
    for (size_t i = 0; i < command_count; i++) {
        const struct command *command = commands[i];

        if (!command->group)
            continue;
        if (strcmp(group, command->group) != 0) {
            group = command->group;
            fprintf(out, "\n%s:\n", group);
        }
        fprintf(out, "  %-20s%s\n", command->name, command->summary);
    }
    fputs("\nOptions of every command:\n", out);
    print_options(out, common_options);
    fputs("\nExit status: 0 done, 1 failed, 2 bad usage, 3 refused by a check.\n"
          "ferry COMMAND --help explains a command and shows examples; man ferry has it all.\n",
          out);
}
