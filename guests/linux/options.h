/* Words of the form "name=value,name=value", as the kernel's command line hands them to the workload. */
#ifndef FERRY_GUEST_OPTIONS_H
#define FERRY_GUEST_OPTIONS_H

#include <stddef.h>
#include <stdint.h>

struct option_rule {
    const char *name;
    uint64_t *value; /* Where it goes; keeps its default when the word is not there. */
    uint64_t minimum, maximum;
};

/*
 * Reads TEXT by RULES; K, M and G (1024s) may follow a number. Returns 0, or -1 after printing a line that
 * names the word it cannot take.
 */
int options_read(const char *text, const struct option_rule *rules, size_t count);

#endif
