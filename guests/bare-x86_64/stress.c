/*
 * The stress guest (common/stress.h) on x86-64, wholly in ring 3.
 *
 * All RAM behind the program is mapped in one piece at WORK_BASE, in pages of 2 MiB, whatever holes there are
 * between its parts. Time is the TSC; its frequency is measured against the PIT. While nothing is due it
 * spins: there are no interrupts to sleep until.
 */
#include "../common/stress.h"
#include "../common/console.h"
#include "port.h"
#include "pvh.h"
#include "smp.h"

#define WORK_BASE   (UINT64_C(1) << 39) /* the second entry of the root */
#define LARGE_PAGE  (UINT64_C(2) << 20)
#define TABLE_BYTES 4096
#define PTE_TABLE   0x07 /* present, writable, user */
#define PTE_LARGE   0xe7 /* the same, accessed, dirty, large */
#define IDENTITY    (UINT64_C(4) << 30)
#define GIB         (UINT64_C(1) << 30)

#define PIT_HZ        1193182
#define PIT_TICKS     59659  /* 50 ms */
#define PIT_ONE_SHOT2 0xb0   /* channel 2, both bytes, mode 0 */
#define SLEEP_ENABLE  0x2000 /* ACPI PM1 control: SLP_EN, with SLP_TYP 0 */

#define REGISTERS 16

#define START_WAIT_S 60 /* for another CPU; its first steps may be emulated, and the host busy */

extern char __image_end[];
extern uint64_t page_root[];

/* ---- memory ---- */

/* Tables are taken from the RAM behind the program, below 4 GiB, where they are mapped. */
struct mapper {
    uint64_t next_table;
    uint64_t *directories; /* of WORK_BASE's 512 GiB */
    uint64_t *directory;   /* the one being filled */
    uint64_t mapped;       /* bytes */
};

static uint64_t *table_new(struct mapper *mapper)
{
    uint64_t *table = (uint64_t *)mapper->next_table;

    for (unsigned i = 0; i < 512; i++)
        table[i] = 0;
    mapper->next_table += TABLE_BYTES;
    return table;
}

static void map_large(struct mapper *mapper, uint64_t addr)
{
    uint64_t index = mapper->mapped / LARGE_PAGE;

    if (index % 512 == 0) {
        mapper->directory = table_new(mapper);
        mapper->directories[index / 512] = (uint64_t)mapper->directory | PTE_TABLE;
    }
    mapper->directory[index % 512] = addr | PTE_LARGE;
    mapper->mapped += LARGE_PAGE;
}

static uint64_t round_up(uint64_t value, uint64_t to)
{
    return (value + to - 1) & ~(to - 1);
}

/* All RAM behind the program and its tables, but what is not a whole large page. */
static void map_memory(const struct pvh_start_info *info, struct mapper *mapper)
{
    const struct pvh_memory *map = (const struct pvh_memory *)info->memory_map;
    uint64_t total = 0, first;

    for (uint32_t i = 0; i < info->memory_map_entries; i++)
        total += map[i].type == PVH_MEMORY_RAM ? map[i].size : 0;
    mapper->next_table = round_up((uint64_t)__image_end, TABLE_BYTES);
    first = round_up(mapper->next_table + (total / GIB + 3) * TABLE_BYTES, LARGE_PAGE);
    mapper->directories = table_new(mapper);
    page_root[WORK_BASE >> 39] = (uint64_t)mapper->directories | PTE_TABLE;
    for (uint32_t i = 0; i < info->memory_map_entries; i++) {
        uint64_t start = round_up(map[i].addr, LARGE_PAGE), end = map[i].addr + map[i].size;

        if (map[i].type != PVH_MEMORY_RAM)
            continue;
        for (start = start < first ? first : start; start + LARGE_PAGE <= end && mapper->mapped < 512 * GIB;
             start += LARGE_PAGE)
            map_large(mapper, start);
    }
}

/* ---- time ---- */

static uint64_t now(void)
{
    uint32_t low, high;

    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
    return (uint64_t)high << 32 | low;
}

static void rest(uint64_t until)
{
    while (now() < until)
        __builtin_ia32_pause();
}

/* Ticks of the TSC a second: PIT channel 2 counts down once, and its output tells when it is through. */
static uint64_t measure_hz(void)
{
    uint8_t system = port_in(PORT_SYSTEM) & 0xfc;
    uint64_t start;

    port_out(PORT_SYSTEM, system | 1);
    port_out(PORT_PIT_MODE, PIT_ONE_SHOT2);
    port_out(PORT_PIT_CHANNEL2, PIT_TICKS & 0xff);
    port_out(PORT_PIT_CHANNEL2, PIT_TICKS >> 8);
    start = now();
    while (!(port_in(PORT_SYSTEM) & 0x20))
        __builtin_ia32_pause();
    return (now() - start) * PIT_HZ / PIT_TICKS;
}

/* ---- the vector registers: the compiler does not use them, and they hold these values for ever ---- */

static uint64_t registers_want[REGISTERS][2] __attribute__((aligned(16)));

#define EACH_REGISTER(what)                                                                                  \
    what(0) what(1) what(2) what(3) what(4) what(5) what(6) what(7) what(8) what(9) what(10) what(11)        \
        what(12) what(13) what(14) what(15)
#define LOAD(n)  "movdqa 16*" #n "(%0), %%xmm" #n "\n"
#define STORE(n) "movdqa %%xmm" #n ", 16*" #n "(%0)\n"

static void begin(void)
{
    for (unsigned i = 0; i < REGISTERS; i++) {
        registers_want[i][0] = UINT64_C(0x9e3779b97f4a7c15) * (2 * i + 1);
        registers_want[i][1] = UINT64_C(0xbf58476d1ce4e5b9) * (2 * i + 3);
    }
    __asm__ volatile(EACH_REGISTER(LOAD)::"r"(registers_want) : "memory");
}

static bool registers_hold(void)
{
    uint64_t got[REGISTERS][2] __attribute__((aligned(16)));

    __asm__ volatile(EACH_REGISTER(STORE)::"r"(got) : "memory");
    for (unsigned i = 0; i < REGISTERS; i++)
        if (got[i][0] != registers_want[i][0] || got[i][1] != registers_want[i][1])
            return false;
    return true;
}

/* ---- CPUs and the end ---- */

static uint64_t start_wait;

static bool start_cpu(void (*function)(void *), void *argument)
{
    return smp_start_cpu(function, argument, start_wait);
}

/* A fault, with nothing to handle it: triple fault. */
static void lose(void)
{
    __asm__ volatile("ud2");
}

static void end(enum stress_end how)
{
    if (how == STRESS_END_OFF)
        port_out16(PORT_PM1A_CONTROL, SLEEP_ENABLE);
    else if (how == STRESS_END_REBOOT)
        port_out(PORT_I8042, 0xfe);
    else
        lose();
    for (;;)
        __builtin_ia32_pause();
}

void bare_main(const struct pvh_start_info *info);

void bare_main(const struct pvh_start_info *info)
{
    static char args[1024];
    struct mapper mapper = {0};
    struct stress_machine machine = {.args = args,
                                     .now = now,
                                     .rest = rest,
                                     .start_cpu = start_cpu,
                                     .begin = begin,
                                     .registers_hold = registers_hold,
                                     .lose = lose,
                                     .end = end};

    if (info->magic != PVH_MAGIC || info->version < 1 || info->memory_map >= IDENTITY) {
        console_text("stress: not started by the PVH protocol with a memory map\n");
        end(STRESS_END_OFF);
    }
    /* The command line may lie in memory that will be written. */
    for (unsigned i = 0; info->cmdline && i + 1 < sizeof(args) && ((const char *)info->cmdline)[i]; i++)
        args[i] = ((const char *)info->cmdline)[i];
    map_memory(info, &mapper);
    machine.memory = (uint8_t *)WORK_BASE;
    machine.memory_size = mapper.mapped;
    machine.hz = measure_hz();
    start_wait = machine.hz * START_WAIT_S;
    stress_main(&machine);
}
