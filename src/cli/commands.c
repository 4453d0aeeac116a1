#include "cli/command.h"

#include "base/error.h"
#include "cli/text.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

const struct command *const commands[] = {
    &command_run,
    &command_list,
    &command_show,
    &command_logs,
    &command_console,
    &command_pause,
    &command_unpause,
    &command_stop,
    &command_kill,
    &command_rm,
    &command_runnable,
    &command_check,
    &command_migrate,
    &command_upgrade,
    &command_migrations,
    &command_migrations_show,
    &command_cancel,
    &command_recover,
    &command_snapshot,
    &command_suspend,
    &command_resume,
    &command_checkpoint_show,
    &command_checkpoint_diff,
    &command_host_show,
    &command_host_list,
    &command_host_add,
    &command_host_remove,
    &command_host_enable,
    &command_host_disable,
    &command_host_certs_init,
    &command_host_certs_issue,
    &command_host_certs_install,
    &command_cluster_baseline_show,
    &command_cluster_baseline_compute,
    &command_cluster_baseline_set,
    &command_events,
    &command_help,
    &command_complete,
};

const size_t command_count = sizeof(commands) / sizeof(commands[0]);

const struct option common_options[] = {
    {.name = "host",
     .kind = VALUE_FILE,
     .value_name = "WHERE",
     .help = "the ferryd to talk to: its state directory, its socket, a URL or ADDR:PORT (else $FERRY_HOST, "
             "else /run/ferry)"},
    {.name = "host-timeout",
     .kind = VALUE_DURATION,
     .value_name = "TIME",
     .help = "how long that ferryd may say nothing (else $FERRY_HOST_TIMEOUT, else 10s); one that is only "
             "slow is waited for"},
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

const char *command_after(const char *name, char *const *words, int count)
{
    for (int i = 0; i < count; i++) {
        size_t length = strcspn(name, " ");

        if (strlen(words[i]) != length || memcmp(words[i], name, length) != 0)
            return NULL;
        name += length;
        if (*name)
            name++;
        else if (i + 1 < count)
            return NULL;
    }
    return name;
}

static int count_words(const char *name)
{
    int count = 1;

    while ((name = strchr(name, ' '))) {
        name++;
        count++;
    }
    return count;
}

const struct command *command_match(char *const *words, int count, int *used)
{
    const struct command *match = NULL;

    *used = 0;
    for (size_t i = 0; i < command_count; i++) {
        int wanted = count_words(commands[i]->name);

        if (wanted > *used && wanted <= count && command_after(commands[i]->name, words, wanted)) {
            *used = wanted;
            match = commands[i];
        }
    }
    return match;
}

#define NEXT_MAX  64
#define WORD_SIZE 32

/* The words that can follow words[0..count) in a command's name, each once. */
static size_t list_next_words(char *const *words, int count, char next[NEXT_MAX][WORD_SIZE])
{
    size_t found = 0;

    for (size_t i = 0; i < command_count; i++) {
        const char *rest = commands[i]->group ? command_after(commands[i]->name, words, count) : NULL;
        size_t known = 0;

        if (!rest || !*rest || found == NEXT_MAX)
            continue;
        snprintf(next[found], WORD_SIZE, "%.*s", (int)strcspn(rest, " "), rest);
        while (strcmp(next[known], next[found]) != 0)
            known++;
        found += known == found;
    }
    return found;
}

/* After words[0..count), which begin a command's name, comes WORD (NULL: nothing), which does not go on with
 * it. */
static int refuse_next(char *const *words, int count, const char *word, struct ferry_error *err)
{
    char next[NEXT_MAX][WORD_SIZE];
    const char *names[NEXT_MAX];
    size_t found = list_next_words(words, count, next);
    const char *closest;
    char begun[128] = "";
    char list[256] = "";

    for (int i = 0; i < count; i++) {
        strncat(begun, i > 0 ? " " : "", sizeof(begun) - 1 - strlen(begun));
        strncat(begun, words[i], sizeof(begun) - 1 - strlen(begun));
    }
    for (size_t i = 0; i < found; i++) {
        names[i] = next[i];
        if (i > 0)
            strncat(list, i + 1 < found ? ", " : " or ", sizeof(list) - 1 - strlen(list));
        strncat(list, next[i], sizeof(list) - 1 - strlen(list));
    }
    closest = word ? text_closest(word, names, found) : NULL;
    if (closest)
        return error_set(err, -EINVAL, "there is no command '%s %s'; did you mean '%s %s'?", begun, word,
                         begun, closest);
    return error_set(err, -EINVAL, "after '%s' comes %s; see: ferry --help", begun, list);
}

int command_refuse(char *const *words, int count, struct ferry_error *err)
{
    char next[NEXT_MAX][WORD_SIZE];
    const char *names[64];
    size_t name_count = 0;
    const char *closest;
    int begun = 0;

    while (begun < count && list_next_words(words, begun + 1, next) > 0)
        begun++;
    if (begun > 0)
        return refuse_next(words, begun, begun < count ? words[begun] : NULL, err);
    for (size_t i = 0; i < command_count; i++) {
        if (commands[i]->group)
            names[name_count++] = commands[i]->name;
    }
    closest = text_closest(words[0], names, name_count);
    if (closest)
        return error_set(err, -EINVAL, "there is no command '%s'; did you mean '%s'?", words[0], closest);
    return error_set(err, -EINVAL, "there is no command '%s'; ferry --help lists them", words[0]);
}
