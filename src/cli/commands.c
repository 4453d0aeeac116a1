#include "cli/command.h"

#include "base/error.h"
#include "cli/text.h"

#include <errno.h>
#include <string.h>

const struct command *const commands[] = {
    &command_run,         &command_list,
    &command_show,        &command_logs,
    &command_console,     &command_pause,
    &command_unpause,     &command_stop,
    &command_kill,        &command_rm,
    &command_runnable,    &command_migrate,
    &command_migrations,  &command_migrations_show,
    &command_cancel,      &command_recover,
    &command_host_show,   &command_host_list,
    &command_host_add,    &command_host_remove,
    &command_host_enable, &command_host_disable,
    &command_events,      &command_help,
    &command_complete,
};

const size_t command_count = sizeof(commands) / sizeof(commands[0]);

const struct option common_options[] = {
    {.name = "host",
     .kind = VALUE_FILE,
     .value_name = "WHERE",
     .help = "the ferryd to talk to: its state directory, its socket, a URL or ADDR:PORT (else $FERRY_HOST, "
             "else /run/ferry)"},
    {.name = "json", .help = "print the API's objects instead of text for people"},
    {.name = "verbose", .letter = 'v', .help = "say more"},
    {.name = "help", .letter = 'h', .help = "explain the command, with examples"},
    {.name = NULL},
};

const struct command *command_find(const char *name)
{
    for (size_t i = 0; i < command_count; i++) {
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i];
    }
    return NULL;
}

/* Whether NAME ("host add") is the first words; returns how many, else 0. */
static int match_words(const char *name, char *const *words, int count)
{
    const char *space = strchr(name, ' ');
    size_t length = space ? (size_t)(space - name) : strlen(name);

    if (count < 1 || strlen(words[0]) != length || memcmp(words[0], name, length) != 0)
        return 0;
    if (!space)
        return 1;
    return count >= 2 && strcmp(words[1], space + 1) == 0 ? 2 : 0;
}

const struct command *command_match(char *const *words, int count, int *used)
{
    const struct command *match = NULL;

    *used = 0;
    for (size_t i = 0; i < command_count; i++) {
        int matched = match_words(commands[i]->name, words, count);

        if (matched > *used) {
            *used = matched;
            match = commands[i];
        }
    }
    return match;
}

/* The second words of the commands that begin with FIRST. */
static size_t list_second_words(const char *first, const char **seconds)
{
    size_t count = 0;

    for (size_t i = 0; i < command_count; i++) {
        const char *space = strchr(commands[i]->name, ' ');

        if (space && commands[i]->group && strlen(first) == (size_t)(space - commands[i]->name) &&
            strncmp(commands[i]->name, first, strlen(first)) == 0)
            seconds[count++] = space + 1;
    }
    return count;
}

static int refuse_second(const char *first, const char *second, const char *const *seconds, size_t count,
                         struct ferry_error *err)
{
    const char *closest = second ? text_closest(second, seconds, count) : NULL;
    char list[128] = "";

    for (size_t i = 0; i < count; i++) {
        if (i > 0)
            strncat(list, i + 1 < count ? ", " : " or ", sizeof(list) - 1 - strlen(list));
        strncat(list, seconds[i], sizeof(list) - 1 - strlen(list));
    }
    if (closest)
        return error_set(err, -EINVAL, "there is no command '%s %s'; did you mean '%s %s'?", first, second,
                         first, closest);
    return error_set(err, -EINVAL, "after '%s' comes %s; see: ferry %s %s --help", first, list, first,
                     seconds[0]);
}

int command_refuse(char *const *words, int count, struct ferry_error *err)
{
    const char *names[64];
    size_t name_count = list_second_words(words[0], names);
    const char *closest;

    if (name_count > 0)
        return refuse_second(words[0], count > 1 ? words[1] : NULL, names, name_count, err);
    for (size_t i = 0; i < command_count; i++) {
        if (commands[i]->group)
            names[name_count++] = commands[i]->name;
    }
    closest = text_closest(words[0], names, name_count);
    if (closest)
        return error_set(err, -EINVAL, "there is no command '%s'; did you mean '%s'?", words[0], closest);
    return error_set(err, -EINVAL, "there is no command '%s'; ferry --help lists them", words[0]);
}
