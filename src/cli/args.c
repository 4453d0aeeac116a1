#include "cli/args.h"

#include "base/error.h"
#include "cli/text.h"
#include "cli/units.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#define NAMES_MAX 32

/* What is being parsed, so that helpers need not take it all. */
struct parser {
    struct args *args;
    const struct option *tables[2];
    const struct operand *operands;
    int argc;
    char **argv;
    int index; /* the argument being read */
    struct ferry_error *err;
};

static const struct option *find_long(const struct option *options, const char *name, size_t length)
{
    for (; options && options->name; options++) {
        if (strlen(options->name) == length && memcmp(options->name, name, length) == 0)
            return options;
    }
    return NULL;
}

static const struct option *find_letter(const struct option *options, char letter)
{
    for (; options && options->name; options++) {
        if (options->letter == letter)
            return options;
    }
    return NULL;
}

const struct option *args_find_option(const struct option *options, const char *written)
{
    if (strncmp(written, "--", 2) == 0)
        return find_long(options, written + 2, strcspn(written + 2, "="));
    if (written[0] == '-' && written[1])
        return find_letter(options, written[1]);
    return NULL;
}

static int refuse_unknown(struct parser *parser, const char *name, size_t length)
{
    const char *names[NAMES_MAX];
    size_t count = 0;
    const char *closest;
    char word[64];

    for (size_t i = 0; i < 2; i++) {
        for (const struct option *option = parser->tables[i]; option && option->name; option++) {
            if (count < NAMES_MAX)
                names[count++] = option->name;
        }
    }
    length = length < sizeof(word) ? length : sizeof(word) - 1;
    memcpy(word, name, length);
    word[length] = '\0';
    closest = text_closest(word, names, count);
    if (closest)
        return error_set(parser->err, -EINVAL, "there is no option --%s; did you mean --%s?", word, closest);
    return error_set(parser->err, -EINVAL, "there is no option --%s", word);
}

static int check_choice(const char *what, const char *text, const char *const *choices,
                        struct ferry_error *err)
{
    char list[128] = "";

    for (size_t i = 0; choices[i]; i++) {
        if (strcmp(choices[i], text) == 0)
            return 0;
        if (i > 0)
            strncat(list, choices[i + 1] ? ", " : " or ", sizeof(list) - 1 - strlen(list));
        strncat(list, choices[i], sizeof(list) - 1 - strlen(list));
    }
    return error_set(err, -EINVAL, "%s is %s, not '%s'", what, list, text);
}

static int read_value(struct option_value *value, struct ferry_error *err)
{
    uint64_t hugepage;

    switch (value->option->kind) {
    case VALUE_SIZE:
        return units_parse_size(value->text, &value->number, err);
    case VALUE_MEMORY:
        return units_parse_memory(value->text, &value->number, &hugepage, err);
    case VALUE_RATE:
        return units_parse_rate(value->text, &value->number, err);
    case VALUE_DURATION:
        return units_parse_duration(value->text, &value->number, err);
    case VALUE_NUMBER:
        return units_parse_number(value->text, &value->number, err);
    case VALUE_CHOICE:
        return check_choice("its value", value->text, value->option->choices, err);
    default:
        if (!*value->text)
            return error_set(err, -EINVAL, "its value is empty");
        return 0;
    }
}

/* Text may be empty (--cmdline ""), everything else must be something. */
static int add_option(struct parser *parser, const struct option *option, const char *text)
{
    struct args *args = parser->args;
    struct option_value *value;
    int result;

    if (!option->repeats && args_has(args, option->name) && option->kind != VALUE_NONE)
        return error_set(parser->err, -EINVAL, "--%s is given twice", option->name);
    if (args->option_count == ARGS_OPTIONS_MAX)
        return error_set(parser->err, -EINVAL, "more than %d options", ARGS_OPTIONS_MAX);
    value = &args->options[args->option_count];
    *value = (struct option_value){.option = option, .text = text};
    if (option->kind != VALUE_NONE && !(option->kind == VALUE_TEXT && !*text)) {
        result = read_value(value, parser->err);
        if (result < 0)
            return error_prefix(parser->err, result, "--%s", option->name);
    }
    args->option_count++;
    return 0;
}

/* The value of an option: TEXT when it came with the option itself, else the next argument. */
static int add_with_value(struct parser *parser, const struct option *option, const char *text)
{
    if (option->kind == VALUE_NONE) {
        if (text)
            return error_set(parser->err, -EINVAL, "--%s takes no value", option->name);
        return add_option(parser, option, "");
    }
    if (!text && option->bare)
        text = option->bare;
    if (!text) {
        if (parser->index + 1 >= parser->argc)
            return error_set(parser->err, -EINVAL, "--%s needs a value: --%s %s", option->name, option->name,
                             option->value_name);
        text = parser->argv[++parser->index];
    }
    return add_option(parser, option, text);
}

static int parse_long(struct parser *parser, const char *name)
{
    size_t length = strcspn(name, "=");
    const struct option *option = NULL;

    for (size_t i = 0; i < 2 && !option; i++)
        option = find_long(parser->tables[i], name, length);
    if (!option)
        return refuse_unknown(parser, name, length);
    return add_with_value(parser, option, name[length] ? name + length + 1 : NULL);
}

/* "-f", "-vf", "-H VALUE", "-HVALUE". */
static int parse_letters(struct parser *parser, const char *letters)
{
    for (; *letters; letters++) {
        const struct option *option = NULL;
        int result;

        for (size_t i = 0; i < 2 && !option; i++)
            option = find_letter(parser->tables[i], *letters);
        if (!option)
            return error_set(parser->err, -EINVAL, "there is no option -%c", *letters);
        if (option->kind != VALUE_NONE)
            return add_with_value(parser, option, letters[1] ? letters + 1 : NULL);
        result = add_option(parser, option, "");
        if (result < 0)
            return result;
    }
    return 0;
}

static int add_operand(struct parser *parser, const char *text)
{
    struct args *args = parser->args;
    size_t wanted = 0;

    while (parser->operands && parser->operands[wanted].name)
        wanted++;
    assert(wanted <= ARGS_OPERANDS_MAX);
    if (wanted > 0 && parser->operands[wanted - 1].repeats)
        wanted = ARGS_WORDS_MAX;
    if (args->operand_count == wanted)
        return error_set(parser->err, -EINVAL, "'%s' is one argument too many", text);
    args->operands[args->operand_count++] = text;
    return 0;
}

int args_parse(struct args *args, const struct option *options, const struct option *common,
               const struct operand *operands, bool stop_at_operand, int argc, char **argv,
               struct ferry_error *err)
{
    struct parser parser = {
        .args = args,
        .tables = {options, common},
        .operands = operands,
        .argc = argc,
        .argv = argv,
        .err = err,
    };
    bool only_operands = false;

    for (; parser.index < argc; parser.index++) {
        const char *word = argv[parser.index];
        bool is_option = !only_operands && word[0] == '-' && word[1];
        int result = 0;

        if (!is_option && stop_at_operand)
            break;
        if (is_option && strcmp(word, "--") == 0)
            only_operands = true;
        else if (is_option && word[1] == '-')
            result = parse_long(&parser, word + 2);
        else if (is_option)
            result = parse_letters(&parser, word + 1);
        else
            result = add_operand(&parser, word);
        if (result < 0)
            return result;
    }
    return parser.index;
}

int args_check_operands(const struct args *args, const struct operand *operands, struct ferry_error *err)
{
    for (size_t i = 0; operands && operands[i].name; i++) {
        const char *text = args_operand(args, i);
        int result;

        if (!text && operands[i].optional)
            break;
        if (!text)
            return error_set(err, -EINVAL, "%s is missing", operands[i].name);
        if (!*text)
            return error_set(err, -EINVAL, "%s is empty", operands[i].name);
        if (operands[i].kind != VALUE_CHOICE)
            continue;
        result = check_choice(operands[i].name, text, operands[i].choices, err);
        if (result < 0)
            return result;
    }
    return 0;
}

static const struct option_value *find_value(const struct args *args, const char *name)
{
    for (size_t i = args->option_count; i-- > 0;) {
        if (strcmp(args->options[i].option->name, name) == 0)
            return &args->options[i];
    }
    return NULL;
}

bool args_has(const struct args *args, const char *option)
{
    return find_value(args, option) != NULL;
}

const char *args_text(const struct args *args, const char *option, const char *otherwise)
{
    const struct option_value *value = find_value(args, option);

    return value ? value->text : otherwise;
}

uint64_t args_number(const struct args *args, const char *option, uint64_t otherwise)
{
    const struct option_value *value = find_value(args, option);

    return value ? value->number : otherwise;
}

const char *args_text_at(const struct args *args, const char *option, size_t index)
{
    for (size_t i = 0; i < args->option_count; i++) {
        if (strcmp(args->options[i].option->name, option) == 0 && index-- == 0)
            return args->options[i].text;
    }
    return NULL;
}

const char *args_operand(const struct args *args, size_t index)
{
    return index < args->operand_count ? args->operands[index] : NULL;
}
