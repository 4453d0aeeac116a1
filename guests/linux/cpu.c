#include "cpu.h"

#include "../common/loops.h"
#include "clock.h"
#include "options.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t run_mem(uint64_t iterations)
{
    static uint64_t buffer[LOOP_MEM_WORDS];

    return loop_mem(iterations, buffer);
}

static const struct {
    const char *name;
    uint64_t (*run)(uint64_t iterations);
} loops[] = {{"int", loop_int}, {"mem", run_mem}, {"fp", loop_fp}};

int cpu_run(const char *text)
{
    char *words = strdup(text), *rest = words, *name = words ? strsep(&rest, ",") : NULL;
    uint64_t iterations = 20000000, seconds = 0;
    const struct option_rule rules[] = {
        {"iterations", &iterations, 1, UINT64_C(1) << 40},
        {"seconds", &seconds, 0, 1000000},
    };
    int status = 2;

    if (!name || (rest && options_read(rest, rules, sizeof(rules) / sizeof(rules[0])) < 0)) {
        free(words);
        return status;
    }
    for (size_t i = 0; i < sizeof(loops) / sizeof(loops[0]); i++) {
        uint64_t start = clock_now(), elapsed;

        if (strcmp(name, loops[i].name) != 0)
            continue;
        do {
            uint64_t begin = clock_now(), checksum = loops[i].run(iterations);

            elapsed = clock_now() - begin;
            printf("loop %s iterations=%" PRIu64 " ns=%" PRIu64 " rate=%" PRIu64 " checksum=%016" PRIx64 "\n",
                   name, iterations, elapsed,
                   (uint64_t)((double)iterations * 1e9 / (double)(elapsed ? elapsed : 1)), checksum);
        } while (clock_now() - start < seconds * NS_PER_S);
        status = 0;
    }
    if (status)
        printf("ferry-work: there is no loop %s\n", name);
    free(words);
    return status;
}
