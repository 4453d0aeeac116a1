/*
 * The bare-metal stress guest: harts that fill memory with the pattern of common/pattern.h at a settable
 * rate, verify it, and print a line of the same form as the Linux workload's every 100 ms:
 *
 *     work 12 verified=24M errors=0 gap_max=1.2ms gap=1.0ms t=1.200 pass=0
 *
 * It looks at rdtime after every page, and waits at most 1 ms when nothing is due; the gap is the largest
 * time between two looks, on the first hart.
 *
 * Boot arguments: mem=BYTES (default: all there is), rate=BYTES/s over all harts (0: as fast as possible;
 * default 20M), harts=N, order=seq|random|hot (hot: nine writes of ten go to the first tenth of the pages),
 * interval=MS, seconds=S (default 0: for ever), once=1 (fill, verify everything once, print a line and go
 * off).
 *
 * Looks at the console with every line and does what one typed character says: o goes off, r reboots, c
 * reports a failure, t takes the last hart's trap handler away and has it trap. From then on that hart does
 * nothing but fault; the first hart does its work, too.
 */
#include "../common/pattern.h"
#include "console.h"
#include "csr.h"
#include "fdt.h"
#include "paging.h"
#include "sbi.h"

#include <stddef.h>

#define HARTS_MAX  8
#define STACK_SIZE 8192

enum order { ORDER_SEQUENTIAL, ORDER_RANDOM, ORDER_HOT };

struct options {
    uint64_t memory, rate, harts, interval_ms, seconds, once;
    enum order order;
};

/* What belongs to one hart. The counters are read by the first one. */
struct worker {
    uint64_t *pages;
    uint32_t *generation;
    uint32_t index, count, page_count;
    uint64_t rate, hz;
    enum order order;
    const struct paging *paging;

    uint64_t cursor, random, due;
    uint64_t verified, written, errors; /* Pages, pages, faults. */
    bool lose, lost;                    /* It is to lose its trap handler; it has. */
} __attribute__((aligned(64)));

static struct worker workers[HARTS_MAX];
static uint8_t stacks[HARTS_MAX][STACK_SIZE] __attribute__((aligned(16)));
static uint32_t fault_kinds; /* Bits of enum pattern_fault that were printed. */
static uint32_t print_lock;

static uint64_t counter_read(const uint64_t *counter)
{
    return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

static void counter_add(uint64_t *counter, uint64_t value)
{
    __atomic_store_n(counter, *counter + value, __ATOMIC_RELAXED);
}

static void print_begin(void)
{
    while (__atomic_exchange_n(&print_lock, 1, __ATOMIC_ACQUIRE))
        ;
}

static void print_end(void)
{
    __atomic_store_n(&print_lock, 0, __ATOMIC_RELEASE);
}

static struct pattern_owner owner_of(const struct worker *worker, uint32_t page)
{
    return (struct pattern_owner){
        .writer = worker->index, .page = page, .generation = worker->generation[page]};
}

static void report(struct worker *worker, uint32_t page, unsigned index)
{
    struct pattern_owner wanted = owner_of(worker, page);
    uint64_t got = worker->pages[(uint64_t)page * PATTERN_WORDS + index];
    enum pattern_fault fault = pattern_fault_of(got, index, wanted, worker->count, worker->page_count);

    counter_add(&worker->errors, 1);
    if (__atomic_fetch_or(&fault_kinds, 1u << fault, __ATOMIC_RELAXED) & 1u << fault)
        return;
    print_begin();
    console_text("WORK ERROR page=");
    console_decimal(wanted.writer);
    console_char(':');
    console_decimal(page);
    console_field("word", index);
    console_field("generation", wanted.generation);
    console_field_hex("expected", pattern_base(wanted) + index * PATTERN_STEP);
    console_field_hex("got", got);
    console_text(" kind=");
    console_text(pattern_fault_name(fault));
    console_char('\n');
    print_end();
}

static void page_verify(struct worker *worker, uint32_t page)
{
    unsigned wrong = pattern_check(worker->pages + (uint64_t)page * PATTERN_WORDS, owner_of(worker, page));

    if (wrong < PATTERN_WORDS)
        report(worker, page, wrong);
    counter_add(&worker->verified, 1);
}

static uint32_t next_page(struct worker *worker)
{
    uint32_t range = worker->page_count;

    if (worker->order == ORDER_SEQUENTIAL)
        return (uint32_t)(worker->cursor++ % range);
    worker->random = worker->random * UINT64_C(6364136223846793005) + 1442695040888963407;
    if (worker->order == ORDER_HOT && worker->cursor++ % 10 != 0)
        range = range / 10 + 1;
    return (uint32_t)((worker->random >> 33) % range);
}

static void worker_fill(struct worker *worker)
{
    for (uint32_t page = 0; page < worker->page_count; page++) {
        worker->generation[page] = 1;
        pattern_fill(worker->pages + (uint64_t)page * PATTERN_WORDS, owner_of(worker, page));
    }
    worker->due = time_read();
    worker->random = worker->index;
}

/* Verifies and rewrites one page when one is due; false when none is. */
static bool worker_step(struct worker *worker, uint64_t now)
{
    uint32_t page;

    if (worker->rate) {
        if (now < worker->due)
            return false;
        /* After standing still for over 100 ms the rest of the debt is forgotten. */
        if (now - worker->due > worker->hz / 10)
            worker->due = now;
        worker->due += PATTERN_PAGE_SIZE * worker->hz / worker->rate;
    }
    page = next_page(worker);
    page_verify(worker, page);
    worker->generation[page]++;
    pattern_fill(worker->pages + (uint64_t)page * PATTERN_WORDS, owner_of(worker, page));
    counter_add(&worker->written, 1);
    return true;
}

/* Sleeps until the worker's next page is due, 1 ms at most. Interrupts end wfi, but are not taken. */
static void worker_rest(const struct worker *worker, uint64_t now)
{
    uint64_t until = now + worker->hz / 1000;

    timer_set(worker->rate && worker->due < until ? worker->due : until);
    __asm__ volatile("wfi");
}

/* Nothing is mapped at address 0: the handler's first instruction faults, which enters the handler, ... */
static void worker_lose(struct worker *worker)
{
    print_begin();
    console_text("hart of worker ");
    console_decimal(worker->index);
    console_text(" is lost\n");
    print_end();
    __atomic_store_n(&worker->lost, true, __ATOMIC_RELEASE);
    csr_write(stvec, 0);
    __asm__ volatile("unimp");
}

static void worker_look(struct worker *worker)
{
    if (__atomic_load_n(&worker->lose, __ATOMIC_RELAXED))
        worker_lose(worker);
}

static void second_main(void *argument)
{
    struct worker *worker = argument;

    csr_write(sie, INTERRUPT_TIMER);
    paging_use(worker->paging);
    for (;;) {
        uint64_t now = time_read();

        worker_look(worker);
        if (!worker_step(worker, now))
            worker_rest(worker, now);
    }
}

struct totals {
    uint64_t verified, errors, passes;
};

static struct totals totals_of(const struct options *options)
{
    struct totals totals = {.passes = UINT64_MAX};

    for (unsigned i = 0; i < options->harts; i++) {
        uint64_t passes = counter_read(&workers[i].written) / workers[i].page_count;

        totals.verified += counter_read(&workers[i].verified);
        totals.errors += counter_read(&workers[i].errors);
        totals.passes = passes < totals.passes ? passes : totals.passes;
    }
    return totals;
}

static void print_milliseconds(const char *name, uint64_t ticks, uint64_t hz)
{
    uint64_t tenths = ticks * 10000 / hz;

    console_field(name, tenths / 10);
    console_char('.');
    console_decimal(tenths % 10);
    console_text("ms");
}

struct gaps {
    uint64_t last, now, max; /* When it was last looked; the largest since the last line, and ever. Ticks. */
};

static void gaps_look(struct gaps *gaps, uint64_t now)
{
    uint64_t gap = now - gaps->last;

    gaps->last = now;
    gaps->now = gap > gaps->now ? gap : gaps->now;
    gaps->max = gap > gaps->max ? gap : gaps->max;
}

static void print_line(const struct options *options, struct gaps *gaps, uint64_t number, uint64_t elapsed,
                       uint64_t hz)
{
    struct totals totals = totals_of(options);

    print_begin();
    console_text("work ");
    console_decimal(number);
    console_field("verified", totals.verified * PATTERN_PAGE_SIZE >> 20);
    console_char('M');
    console_field("errors", totals.errors);
    print_milliseconds("gap_max", gaps->max, hz);
    print_milliseconds("gap", gaps->now, hz);
    console_text(" t=");
    console_thousandths(elapsed * 1000 / hz);
    console_field("pass", totals.passes);
    console_char('\n');
    print_end();
    gaps->now = 0;
}

static void obey(char typed, struct worker *last)
{
    switch (typed) {
    case 'o':
        machine_off();
    case 'r':
        machine_reset(RESET_REBOOT, RESET_REASON_NONE);
    case 'c':
        machine_reset(RESET_OFF, RESET_REASON_FAILURE);
    case 't':
        __atomic_store_n(&last->lose, true, __ATOMIC_RELAXED);
    }
}

/* The first hart: works like the others, and prints. */
static void first_main(const struct options *options, uint64_t hz)
{
    uint64_t interval = options->interval_ms * hz / 1000, start = time_read(), line = start + interval,
             number = 0;
    struct gaps gaps = {.last = start};
    struct worker *last = &workers[options->harts - 1];

    csr_write(sie, INTERRUPT_TIMER);
    for (;;) {
        uint64_t now = time_read();
        bool idle;

        gaps_look(&gaps, now);
        if (now >= line) {
            print_line(options, &gaps, ++number, now - start, hz);
            obey(console_typed(), last);
            line = now - line > interval ? now + interval : line + interval;
            if (options->seconds && now - start >= options->seconds * hz)
                return;
        }
        worker_look(&workers[0]);
        idle = !worker_step(&workers[0], now);
        if (__atomic_load_n(&last->lost, __ATOMIC_ACQUIRE) && worker_step(last, now))
            idle = false;
        if (idle)
            worker_rest(&workers[0], now);
    }
}

static void run_once(const struct options *options)
{
    struct totals totals;

    for (unsigned i = 0; i < options->harts; i++) {
        for (uint32_t page = 0; page < workers[i].page_count; page++)
            page_verify(&workers[i], page);
    }
    totals = totals_of(options);
    console_text("work-once");
    console_field("verified", totals.verified * PATTERN_PAGE_SIZE >> 20);
    console_char('M');
    console_field("errors", totals.errors);
    console_char('\n');
}

static void options_read(struct options *options, const char *args)
{
    options->memory = args_number(args, "mem", UINT64_MAX);
    options->rate = args_number(args, "rate", 20 << 20);
    options->harts = args_number(args, "harts", 1);
    options->interval_ms = args_number(args, "interval", 100);
    options->seconds = args_number(args, "seconds", 0);
    options->once = args_number(args, "once", 0);
    options->order = args_is(args, "order", "random") ? ORDER_RANDOM
                     : args_is(args, "order", "hot")  ? ORDER_HOT
                                                      : ORDER_SEQUENTIAL;
    if (options->harts < 1 || options->harts > HARTS_MAX)
        options->harts = 1;
}

extern char __image_start[], __image_end[];

/* Shares what memory there is beyond the program out: pages first, then the generations of all of them. */
static void workers_prepare(const struct options *options, const struct fdt_info *info,
                            const struct paging *paging)
{
    uint64_t start = (uint64_t)__image_end, end = info->memory_start + info->memory_size;
    uint64_t pages = (end - start) / (PATTERN_PAGE_SIZE + sizeof(uint32_t)), each;
    uint32_t *generation;

    if (pages > options->memory / PATTERN_PAGE_SIZE)
        pages = options->memory / PATTERN_PAGE_SIZE;
    each = pages / options->harts;
    each = each < PATTERN_PAGES_MAX ? each : PATTERN_PAGES_MAX;
    if (each == 0) {
        console_text("stress: too little memory\n");
        machine_off();
    }
    generation = (uint32_t *)(start + each * options->harts * PATTERN_PAGE_SIZE);
    for (unsigned i = 0; i < options->harts; i++) {
        workers[i] = (struct worker){.pages = (uint64_t *)(start + i * each * PATTERN_PAGE_SIZE),
                                     .generation = generation + i * each,
                                     .index = i,
                                     .count = (uint32_t)options->harts,
                                     .page_count = (uint32_t)each,
                                     .rate = options->rate / options->harts,
                                     .hz = info->timebase_hz,
                                     .order = options->order,
                                     .paging = paging};
        worker_fill(&workers[i]);
    }
    console_text("work begins");
    console_field("harts", options->harts);
    console_field("mem", each * options->harts * PATTERN_PAGE_SIZE >> 20);
    console_text("M");
    console_field("rate", options->rate >> 10);
    console_text("K\n");
}

static void harts_start(const struct options *options, uint64_t self)
{
    unsigned started = 1;

    for (uint64_t hart = 0; hart < 64 && started < options->harts; hart++) {
        if (hart != self &&
            hart_start(hart, stacks[started] + STACK_SIZE, second_main, &workers[started]) == 0)
            started++;
    }
    if (started < options->harts) {
        console_text("stress: fewer harts than asked for\n");
        machine_off();
    }
}

void bare_main(uint64_t hart, const void *fdt)
{
    static struct paging paging;
    struct options options;
    struct fdt_info info;

    /* The tree is not looked at again: it may lie in memory that is written from here on. */
    fdt_read(fdt, &info);
    options_read(&options, info.bootargs);
    if (info.memory_size == 0) {
        console_text("stress: the device tree names no memory\n");
        machine_off();
    }
    paging_init(&paging, PAGING_SV39);
    paging_map_identity(&paging, (uint64_t)__image_start, (uint64_t)__image_end,
                        PTE_R | PTE_W | PTE_X | PTE_A | PTE_D);
    paging_map_identity(&paging, (uint64_t)__image_end,
                        (info.memory_start + info.memory_size) & ~(PAGE_SIZE - 1),
                        PTE_R | PTE_W | PTE_A | PTE_D);
    paging_map_identity(&paging, CONSOLE_UART, CONSOLE_UART + PAGE_SIZE, PTE_R | PTE_W | PTE_A | PTE_D);
    paging_use(&paging);
    workers_prepare(&options, &info, &paging);
    if (options.once) {
        run_once(&options);
    } else {
        harts_start(&options, hart);
        first_main(&options, info.timebase_hz);
        console_text("work ends\n");
    }
    machine_off();
}
