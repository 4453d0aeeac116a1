#include "options.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A number with an optional unit up to the end of TEXT. */
static bool number_read(const char *text, uint64_t *value)
{
    static const char units[] = "KMG";
    const char *unit;
    char *end;

    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    *value = strtoull(text, &end, 10);
    if (errno)
        return false;
    if (*end && (unit = strchr(units, *end))) {
        unsigned shift = 10 * (unsigned)(unit - units + 1);

        if (*value > UINT64_MAX >> shift)
            return false;
        *value <<= shift;
        end++;
    }
    return *end == '\0';
}

static bool word_read(char *word, const struct option_rule *rules, size_t count)
{
    char *equals = strchr(word, '=');

    if (!equals)
        return false;
    for (size_t i = 0; i < count; i++) {
        uint64_t value;

        if (strlen(rules[i].name) != (size_t)(equals - word) ||
            strncmp(rules[i].name, word, (size_t)(equals - word)) != 0)
            continue;
        if (!number_read(equals + 1, &value) || value < rules[i].minimum || value > rules[i].maximum)
            return false;
        *rules[i].value = value;
        return true;
    }
    return false;
}

int options_read(const char *text, const struct option_rule *rules, size_t count)
{
    char *copy = strdup(text), *rest = copy, *word;
    int result = copy ? 0 : -1;

    while (result == 0 && (word = strsep(&rest, ","))) {
        if (*word && !word_read(word, rules, count)) {
            printf("ferry-work: cannot take the option %s\n", word);
            result = -1;
        }
    }
    free(copy);
    return result;
}
