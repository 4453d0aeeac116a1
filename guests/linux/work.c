#include "work.h"

#include "../common/pattern.h"
#include "clock.h"
#include "options.h"
#include "registers.h"
#include "stream.h"
#include "ticker.h"
#include "writer.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static int work_options_read(const char *text, struct work_options *options)
{
    *options = (struct work_options){.processes = 1,
                                     .threads = 1,
                                     .memory = 16 << 20,
                                     .rate = 4 << 20,
                                     .registers = 1,
                                     .spins = 2000,
                                     .tcp_rate = 256 << 10,
                                     .tick_us = 1000,
                                     .interval_ms = 100};
    const struct option_rule rules[] = {
        {"procs", &options->processes, 1, WORK_WRITERS_MAX},
        {"threads", &options->threads, 1, WORK_WRITERS_MAX},
        {"mem", &options->memory, PATTERN_PAGE_SIZE, UINT64_C(1) << 40},
        {"rate", &options->rate, 0, UINT64_C(1) << 40},
        {"fp", &options->registers, 0, 1},
        {"spins", &options->spins, 1, UINT64_C(1) << 32},
        {"tcp", &options->tcp_rate, 0, UINT64_C(1) << 40},
        {"tick", &options->tick_us, 0, 1000000},
        {"interval", &options->interval_ms, 10, 60000},
        {"seconds", &options->seconds, 0, UINT64_C(1) << 32},
        {"once", &options->once, 0, 1},
    };
    uint64_t writers;

    if (options_read(text, rules, sizeof(rules) / sizeof(rules[0])) < 0)
        return -1;
    writers = options->processes * options->threads;
    if (writers > WORK_WRITERS_MAX || options->memory / writers / PATTERN_PAGE_SIZE < 1 ||
        options->memory / writers / PATTERN_PAGE_SIZE > PATTERN_PAGES_MAX) {
        printf("ferry-work: %" PRIu64 " writers cannot share %" PRIu64
               " bytes; at most %d, with 4 KiB to 64 GiB each\n",
               writers, options->memory, WORK_WRITERS_MAX);
        return -1;
    }
    return 0;
}

/* Body of worker process PROCESS; ends only in once mode, or by a failure. */
static int process_main(const struct work_options *options, struct work_counters *counters, uint32_t process,
                        int ready)
{
    uint32_t count = (uint32_t)(options->processes * options->threads);
    struct writer *writers = calloc(options->threads, sizeof(*writers));
    pthread_t *threads = calloc(options->threads, sizeof(*threads)), held;
    struct registers registers = {.spins = options->spins, .counters = counters};

    if (!writers || !threads)
        return 1;
    for (uint32_t i = 0; i < options->threads; i++) {
        writers[i] = (struct writer){.index = process * (uint32_t)options->threads + i,
                                     .count = count,
                                     .pages = (uint32_t)(options->memory / count / PATTERN_PAGE_SIZE),
                                     .rate = options->rate / count + (options->rate % count != 0),
                                     .once = options->once,
                                     .counters = counters};
        if (writer_prepare(&writers[i]) < 0)
            return 1;
    }
    close(ready);
    if (options->registers && !options->once && pthread_create(&held, NULL, registers_main, &registers) != 0)
        return 1;
    for (uint32_t i = 0; i < options->threads; i++) {
        if (pthread_create(&threads[i], NULL, writer_main, &writers[i]) != 0)
            return 1;
    }
    for (uint32_t i = 0; i < options->threads; i++)
        pthread_join(threads[i], NULL);
    return 0;
}

/* Starts the worker processes, and waits until all of them have filled their memory. */
static int processes_start(const struct work_options *options, struct work_counters *counters)
{
    int ready[2];
    char nothing;

    if (pipe(ready) < 0) {
        perror("ferry-work: pipe");
        return -1;
    }
    for (uint32_t i = 0; i < options->processes; i++) {
        pid_t child = fork();

        if (child < 0) {
            perror("ferry-work: fork");
            return -1;
        }
        if (child == 0) {
            int status;

            close(ready[0]);
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            status = process_main(options, counters, i, ready[1]);
            fflush(stdout);
            _exit(status);
        }
    }
    close(ready[1]);
    /* Nothing is written: the end of file comes when the last has closed its end. */
    while (read(ready[0], &nothing, 1) > 0)
        ;
    close(ready[0]);
    return 0;
}

struct totals {
    uint64_t verified, passes;
};

static struct totals totals_of(const struct work_options *options, struct work_counters *counters)
{
    struct totals totals = {.passes = UINT64_MAX};

    for (uint64_t i = 0; i < options->processes * options->threads; i++) {
        uint64_t passes = atomic_load(&counters->writers[i].passes);

        totals.verified += atomic_load(&counters->writers[i].verified);
        totals.passes = passes < totals.passes ? passes : totals.passes;
    }
    return totals;
}

static void print_milliseconds(const char *name, uint64_t ns)
{
    printf(" %s=%" PRIu64 ".%" PRIu64 "ms", name, ns / NS_PER_MS, ns / (NS_PER_MS / 10) % 10);
}

static void print_line(const struct work_options *options, struct work_counters *counters, uint64_t number,
                       uint64_t elapsed)
{
    struct totals totals = totals_of(options, counters);

    printf("work %" PRIu64 " verified=%" PRIu64 "M errors=%" PRIu64, number, totals.verified >> 20,
           atomic_load(&counters->errors));
    print_milliseconds("gap_max", atomic_load(&counters->gap_max));
    print_milliseconds("gap", atomic_exchange(&counters->gap, 0));
    printf(" t=%" PRIu64 ".%03" PRIu64 " pass=%" PRIu64 " fp=%" PRIu64 " tcp=%" PRIu64 " tcp_errors=%" PRIu64
           "\n",
           elapsed / NS_PER_S, elapsed / NS_PER_MS % 1000, totals.passes,
           atomic_load(&counters->register_checks), atomic_load(&counters->tcp_blocks),
           atomic_load(&counters->tcp_errors));
}

/* No process of the workload ends by itself while it goes on; one that did is an error. */
static void check_processes(struct work_counters *counters)
{
    int status;
    pid_t child;

    while ((child = waitpid(-1, &status, WNOHANG)) > 0) {
        printf("WORK ERROR process=%d status=%#x\n", (int)child, (unsigned)status);
        atomic_fetch_add(&counters->errors, 1);
    }
}

static void watch(const struct work_options *options, struct work_counters *counters)
{
    uint64_t start = clock_now(), due = start, now = start;

    for (uint64_t number = 1; options->seconds == 0 || now - start < options->seconds * NS_PER_S; number++) {
        due += options->interval_ms * NS_PER_MS;
        clock_sleep_until(due);
        now = clock_now();
        if (now > due + options->interval_ms * NS_PER_MS)
            due = now;
        check_processes(counters);
        print_line(options, counters, number, now - start);
    }
}

static int run_once(const struct work_options *options, struct work_counters *counters)
{
    int status, failed = 0;

    while (wait(&status) > 0)
        failed |= status;
    printf("work-once verified=%" PRIu64 "M errors=%" PRIu64 "%s\n",
           totals_of(options, counters).verified >> 20, atomic_load(&counters->errors),
           failed ? " incomplete" : "");
    return failed || atomic_load(&counters->errors) ? 1 : 0;
}

int work_run(const char *text)
{
    struct work_options options;
    struct work_counters *counters;
    struct ticker ticker;
    pthread_t thread;

    if (work_options_read(text, &options) < 0)
        return 2;
    counters = mmap(NULL, sizeof(*counters), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (counters == MAP_FAILED) {
        perror("ferry-work: memory");
        return 1;
    }
    printf("work begins threads=%" PRIu64 " procs=%" PRIu64 " mem=%" PRIu64 "M rate=%" PRIu64 "K\n",
           options.threads, options.processes, options.memory >> 20, options.rate >> 10);
    if (processes_start(&options, counters) < 0)
        return 1;
    if (options.once)
        return run_once(&options, counters);
    if (options.tcp_rate && stream_start(counters, options.tcp_rate) < 0)
        return 1;
    ticker = (struct ticker){.period_ns = options.tick_us * 1000, .counters = counters};
    if (options.tick_us && pthread_create(&thread, NULL, ticker_main, &ticker) != 0)
        return 1;
    watch(&options, counters);
    printf("work ends verified=%" PRIu64 "M errors=%" PRIu64 "\n",
           totals_of(&options, counters).verified >> 20, atomic_load(&counters->errors));
    /* The children follow: they asked for SIGKILL when this process ends. */
    return atomic_load(&counters->errors) ? 1 : 0;
}
