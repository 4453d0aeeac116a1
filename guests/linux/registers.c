#include "registers.h"

#include "work.h"

#include <inttypes.h>
#include <stdio.h>

static void report(struct work_counters *counters, const char *name, int number, uint64_t expected,
                   uint64_t got)
{
    char digits[12] = "";

    if (atomic_fetch_add(&counters->errors, 1) != 0)
        return;
    if (number >= 0)
        snprintf(digits, sizeof(digits), "%d", number);
    printf("WORK ERROR register=%s%s expected=%016" PRIx64 " got=%016" PRIx64 "\n", name, digits, expected,
           got);
}

void *registers_main(void *argument)
{
    struct registers *registers = argument;
    struct work_counters *counters = registers->counters;
    const struct register_set *set = register_set_of_this_cpu();
    const struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};
    uint64_t in[REGISTERS_WORDS_MAX], out[REGISTERS_WORDS_MAX], value = 0x0123456789abcdef;
    unsigned words = set->count * set->words;

    for (uint64_t round = 0;; round++) {
        uint64_t control = set->control(round), got;

        for (unsigned i = 0; i < words; i++)
            in[i] = value = value * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        got = registers_hold(set, in, out, control, registers->spins, &pause);
        for (unsigned i = 0; i < words; i++)
            if (in[i] != out[i])
                report(counters, set->name, (int)(i / set->words), in[i], out[i]);
        if (got != control)
            report(counters, set->control_name, -1, control, got);
        atomic_fetch_add(&counters->register_checks, 1);
    }
    return NULL;
}
