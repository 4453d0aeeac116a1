/*
 * ferry __complete [WORD...]: what the last word (which may be empty) could become, for the shells'
 * completion (completions/). One candidate a line, "CANDIDATE<tab>what it is"; a line ":files" asks the shell
 * for file names. Quiet whatever happens: completion must not disturb the line being typed.
 */
#include "cli/command.h"

#include "cli/object.h"
#include "cli/units.h"

#include <stdlib.h>
#include <string.h>

#define TIMEOUT_MS 1000 /* who types does not wait longer for names */

struct completion {
    struct cli *cli;
    const char *word; /* being completed */
    size_t length;
};

static void offer(const struct completion *completion, const char *candidate, const char *what)
{
    if (strncmp(candidate, completion->word, completion->length) == 0)
        fprintf(completion->cli->out, "%s\t%s\n", candidate, what);
}

static void offer_objects(const struct completion *completion, const char *path, const char *key,
                          const char *what_key)
{
    struct cli *cli = completion->cli;
    json_t *list = NULL;
    const json_t *object;
    size_t index;

    if (client_open(&cli->client, cli_target(cli), false, TIMEOUT_MS, NULL) < 0)
        return;
    client_get(&cli->client, path, &list, NULL);
    json_array_foreach(list, index, object)
        offer(completion, object_text(object, key), object_text(object, what_key));
    json_decref(list);
    client_close(&cli->client);
}

/* The words that can follow words[0..count) in a command's name. Commands of one beginning are neighbours in
 * the table. */
static void offer_commands(const struct completion *completion, char *const *words, int count)
{
    char last[32] = "";

    for (size_t i = 0; i < command_count; i++) {
        const char *rest = commands[i]->group ? command_after(commands[i]->name, words, count) : NULL;
        char word[32];

        if (!rest || !*rest)
            continue;
        snprintf(word, sizeof(word), "%.*s", (int)strcspn(rest, " "), rest);
        if (strcmp(last, word) != 0)
            offer(completion, word, commands[i]->summary);
        memcpy(last, word, sizeof(last));
    }
}

/* What can follow the size that is there: "4G" -> "4G,hugepages". */
static void offer_memory(const struct completion *completion)
{
    static const char *const options[] = {"", "=1G"};
    int length = (int)strcspn(completion->word, ",");
    char size[UNITS_TEXT_SIZE];
    uint64_t bytes;

    snprintf(size, sizeof(size), "%.*s", length, completion->word);
    if (units_parse_size(size, &bytes, NULL) < 0)
        return;
    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
        char candidate[UNITS_TEXT_SIZE + 16];

        snprintf(candidate, sizeof(candidate), "%s,hugepages%s", size, options[i]);
        offer(completion, candidate, i ? "of 1 GiB" : "of 2 MiB that were set aside");
    }
}

static void offer_values(const struct completion *completion, enum value_kind kind,
                         const char *const *choices)
{
    switch (kind) {
    case VALUE_FILE:
        fputs(":files\n", completion->cli->out);
        break;
    case VALUE_VM:
        offer_objects(completion, "/v1/vms", "name", "state");
        break;
    case VALUE_HOST:
        offer_objects(completion, "/v1/hosts", "name", "address");
        break;
    case VALUE_MIGRATION:
        offer_objects(completion, "/v1/migrations", "id", "vm");
        break;
    case VALUE_COMMAND:
        offer_commands(completion, NULL, 0);
        break;
    case VALUE_MEMORY:
        offer_memory(completion);
        break;
    case VALUE_CHOICE:
        for (; *choices; choices++)
            offer(completion, *choices, "");
        break;
    default:
        break;
    }
}

static void offer_options(const struct completion *completion, const struct option *options)
{
    for (; options && options->name; options++) {
        char written[40];

        snprintf(written, sizeof(written), "--%s", options->name);
        offer(completion, written, options->help);
    }
}

static const struct option *find_option(const struct command *command, const char *written)
{
    const struct option *option = command ? args_find_option(command->options, written) : NULL;

    return option ? option : args_find_option(common_options, written);
}

/* What was typed before the word, as far as it matters. */
struct typed {
    const struct command *command;
    char *words[ARGS_WORDS_MAX]; /* of the command's name, whole or not */
    int word_count;
    const struct option *option; /* whose value the word is */
    size_t operands;
};

/* Takes note of --host, so that names are asked for at the right place. */
static void note_option(struct cli *cli, const struct option *option, const char *value)
{
    if (strcmp(option->name, "host") == 0 && cli->args.option_count < ARGS_OPTIONS_MAX)
        cli->args.options[cli->args.option_count++] = (struct option_value){.option = option, .text = value};
}

/* Whether WORD makes the words so far the name of another command. */
static bool is_longer(struct typed *typed, char *word)
{
    int used;

    typed->words[typed->word_count] = word;
    command_match(typed->words, typed->word_count + 1, &used);
    return used > typed->word_count;
}

static void read_typed(struct cli *cli, char **words, int count, struct typed *typed)
{
    for (int i = 0; i < count; i++) {
        const struct option *option = find_option(typed->command, words[i]);
        const char *equals = strchr(words[i], '=');
        int used;

        if (words[i][0] == '-') {
            if (option && option->kind != VALUE_NONE && !option->bare && !equals && i + 1 == count)
                typed->option = option;
            else if (option && option->kind != VALUE_NONE && !option->bare)
                note_option(cli, option, equals ? equals + 1 : words[++i]);
        } else if (typed->command) {
            typed->operands++;
        } else {
            typed->words[typed->word_count++] = words[i];
            typed->command = command_match(typed->words, typed->word_count, &used);
            /* "migrations" is a command and the first word of another. */
            if (typed->command && i + 1 < count && is_longer(typed, words[i + 1]))
                typed->command = NULL;
        }
    }
}

static void complete_operand(const struct completion *completion, struct typed *typed)
{
    const struct operand *operand = typed->command->operands;

    for (size_t i = 0; operand && operand->name && !operand->repeats && i < typed->operands; i++)
        operand++;
    if (operand && operand->name)
        offer_values(completion, operand->kind, operand->choices);
    if (typed->operands == 0)
        offer_commands(completion, typed->words, typed->word_count);
}

static int complete(struct cli *cli, struct ferry_error *err)
{
    struct completion completion = {.cli = cli, .word = ""};
    char *words[ARGS_WORDS_MAX];
    struct typed typed = {0};
    int count = (int)cli->args.operand_count;

    (void)err;
    for (int i = 0; i < count; i++)
        words[i] = (char *)cli->args.operands[i];
    if (count > 0)
        completion.word = words[--count];
    completion.length = strlen(completion.word);
    read_typed(cli, words, count, &typed);
    if (typed.option) {
        offer_values(&completion, typed.option->kind, typed.option->choices);
    } else if (completion.word[0] == '-') {
        offer_options(&completion, typed.command ? typed.command->options : NULL);
        offer_options(&completion, common_options);
    } else if (typed.command) {
        complete_operand(&completion, &typed);
    } else {
        offer_commands(&completion, typed.words, typed.word_count);
    }
    return 0;
}

const struct command command_complete = {
    .name = "__complete",
    .summary = "What the last word could become",
    .any_words = true,
    .run = complete,
};
