#include "stress.h"

#include "args.h"
#include "console.h"
#include "pattern.h"

enum order { ORDER_SEQUENTIAL, ORDER_RANDOM, ORDER_HOT };

struct options {
    uint64_t memory, rate, cpus, interval_ms, seconds, once;
    enum order order;
};

/* What belongs to one hart. The counters are read by the first one. */
struct worker {
    uint64_t *pages;
    uint32_t *generation;
    uint32_t index, count, page_count;
    uint64_t rate;
    enum order order;
    const struct stress_machine *machine;

    uint64_t cursor, random, due;
    uint64_t verified, written, errors; /* Pages, pages, faults. */
    uint64_t registers;                 /* Times they were found as they were left. */
    bool lose, lost;                    /* It is to lose its trap handler; it has. */
} __attribute__((aligned(64)));

static struct worker workers[STRESS_CPUS_MAX];
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
    worker->due = worker->machine->now();
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
        if (now - worker->due > worker->machine->hz / 10)
            worker->due = now;
        worker->due += PATTERN_PAGE_SIZE * worker->machine->hz / worker->rate;
    }
    page = next_page(worker);
    page_verify(worker, page);
    worker->generation[page]++;
    pattern_fill(worker->pages + (uint64_t)page * PATTERN_WORDS, owner_of(worker, page));
    counter_add(&worker->written, 1);
    return true;
}

/* Until the worker's next page is due, 1 ms at most. */
static void worker_rest(const struct worker *worker, uint64_t now)
{
    uint64_t until = now + worker->machine->hz / 1000;

    worker->machine->rest(worker->rate && worker->due < until ? worker->due : until);
}

static void worker_lose(struct worker *worker)
{
    print_begin();
    console_text("hart of worker ");
    console_decimal(worker->index);
    console_text(" is lost\n");
    print_end();
    __atomic_store_n(&worker->lost, true, __ATOMIC_RELEASE);
    worker->machine->lose();
}

static void worker_look(struct worker *worker)
{
    if (__atomic_load_n(&worker->lose, __ATOMIC_RELAXED))
        worker_lose(worker);
}

static void worker_check_registers(struct worker *worker)
{
    if (!worker->machine->registers_hold)
        return;
    if (worker->machine->registers_hold()) {
        counter_add(&worker->registers, 1);
        return;
    }
    if (counter_read(&worker->errors) == 0) {
        print_begin();
        console_text("WORK ERROR registers of worker ");
        console_decimal(worker->index);
        console_text(" are not as they were left\n");
        print_end();
    }
    counter_add(&worker->errors, 1);
}

static void second_main(void *argument)
{
    struct worker *worker = argument;
    uint64_t checked = 0;

    worker->machine->begin();
    for (;;) {
        uint64_t now = worker->machine->now();

        worker_look(worker);
        if (now - checked > worker->machine->hz / 100) {
            worker_check_registers(worker);
            checked = now;
        }
        if (!worker_step(worker, now))
            worker_rest(worker, now);
    }
}

struct totals {
    uint64_t verified, errors, passes, registers;
};

static struct totals totals_of(const struct options *options)
{
    struct totals totals = {.passes = UINT64_MAX};

    for (unsigned i = 0; i < options->cpus; i++) {
        uint64_t passes = counter_read(&workers[i].written) / workers[i].page_count;

        totals.verified += counter_read(&workers[i].verified);
        totals.errors += counter_read(&workers[i].errors);
        totals.registers += counter_read(&workers[i].registers);
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

static void print_line(const struct options *options, struct gaps *gaps, uint64_t number, uint64_t elapsed)
{
    const struct stress_machine *machine = workers[0].machine;
    struct totals totals = totals_of(options);

    print_begin();
    console_text("work ");
    console_decimal(number);
    console_field("verified", totals.verified * PATTERN_PAGE_SIZE >> 20);
    console_char('M');
    console_field("errors", totals.errors);
    print_milliseconds("gap_max", gaps->max, machine->hz);
    print_milliseconds("gap", gaps->now, machine->hz);
    console_text(" t=");
    console_thousandths(elapsed * 1000 / machine->hz);
    console_field("pass", totals.passes);
    if (machine->registers_hold)
        console_field("fp", totals.registers);
    console_char('\n');
    print_end();
    gaps->now = 0;
}

static void end(const struct stress_machine *machine, enum stress_end how)
{
    console_flush();
    machine->end(how);
}

static void obey(char typed, struct worker *last)
{
    switch (typed) {
    case 'o':
        end(last->machine, STRESS_END_OFF);
        break;
    case 'r':
        end(last->machine, STRESS_END_REBOOT);
        break;
    case 'c':
        end(last->machine, STRESS_END_FAILURE);
        break;
    case 't':
        __atomic_store_n(&last->lose, true, __ATOMIC_RELAXED);
        break;
    }
}

/* The first CPU: works like the others, and prints. */
static void first_main(const struct stress_machine *machine, const struct options *options)
{
    uint64_t hz = machine->hz, interval = options->interval_ms * hz / 1000;
    uint64_t start = machine->now(), line = start + interval, number = 0;
    struct gaps gaps = {.last = start};
    struct worker *last = &workers[options->cpus - 1];

    machine->begin();
    for (;;) {
        uint64_t now = machine->now();
        bool idle;

        gaps_look(&gaps, now);
        if (now >= line) {
            worker_check_registers(&workers[0]);
            print_line(options, &gaps, ++number, now - start);
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

    for (unsigned i = 0; i < options->cpus; i++) {
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
    options->cpus = args_number(args, "harts", args_number(args, "cpus", 1));
    options->interval_ms = args_number(args, "interval", 100);
    options->seconds = args_number(args, "seconds", 0);
    options->once = args_number(args, "once", 0);
    options->order = args_is(args, "order", "random") ? ORDER_RANDOM
                     : args_is(args, "order", "hot")  ? ORDER_HOT
                                                      : ORDER_SEQUENTIAL;
    if (options->cpus < 1 || options->cpus > STRESS_CPUS_MAX)
        options->cpus = 1;
}

/* Shares the memory out: pages first, then the generations of all of them. */
static void workers_prepare(const struct stress_machine *machine, const struct options *options)
{
    uint64_t pages = machine->memory_size / (PATTERN_PAGE_SIZE + sizeof(uint32_t)), each;
    uint32_t *generation;

    if (pages > options->memory / PATTERN_PAGE_SIZE)
        pages = options->memory / PATTERN_PAGE_SIZE;
    each = pages / options->cpus;
    each = each < PATTERN_PAGES_MAX ? each : PATTERN_PAGES_MAX;
    if (each == 0) {
        console_text("stress: too little memory\n");
        end(machine, STRESS_END_OFF);
    }
    generation = (uint32_t *)(machine->memory + each * options->cpus * PATTERN_PAGE_SIZE);
    for (unsigned i = 0; i < options->cpus; i++) {
        workers[i] = (struct worker){.pages = (uint64_t *)(machine->memory + i * each * PATTERN_PAGE_SIZE),
                                     .generation = generation + i * each,
                                     .index = i,
                                     .count = (uint32_t)options->cpus,
                                     .page_count = (uint32_t)each,
                                     .rate = options->rate / options->cpus,
                                     .order = options->order,
                                     .machine = machine};
        worker_fill(&workers[i]);
    }
    console_text("work begins");
    console_field("harts", options->cpus);
    console_field("mem", each * options->cpus * PATTERN_PAGE_SIZE >> 20);
    console_text("M");
    console_field("rate", options->rate >> 10);
    console_text("K\n");
}

static void cpus_start(const struct stress_machine *machine, const struct options *options)
{
    for (unsigned i = 1; i < options->cpus; i++) {
        if (!machine->start_cpu(second_main, &workers[i])) {
            console_text("stress: fewer CPUs than asked for\n");
            end(machine, STRESS_END_OFF);
        }
    }
}

void stress_main(const struct stress_machine *machine)
{
    struct options options;

    options_read(&options, machine->args);
    workers_prepare(machine, &options);
    if (options.once) {
        run_once(&options);
    } else {
        cpus_start(machine, &options);
        first_main(machine, &options);
        console_text("work ends\n");
    }
    end(machine, STRESS_END_OFF);
}
