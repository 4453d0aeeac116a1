#include "smp.h"

#define APIC_COMMAND_LOW  ((volatile uint32_t *)0xfee00300)
#define APIC_COMMAND_HIGH ((volatile uint32_t *)0xfee00310)
#define APIC_INIT         0x4500 /* assert, edge */
#define APIC_STARTUP      0x4600 /* and the page's number */
#define APIC_PENDING      0x1000
#define START_PAGE        0x8 /* at 32 KiB; nothing else is there when programs run */
#define STACK_SIZE        16384

extern const char second_start[], second_start_end[];

/* start.S knows where the members are. */
struct smp_start {
    uint64_t stack;
    void (*function)(void *);
    void *argument;
    uint32_t started;
};
_Static_assert(sizeof(struct smp_start) == 32, "start.S has these offsets");

extern struct smp_start smp_start;
struct smp_start smp_start;

static uint8_t stacks[SMP_CPUS_MAX][STACK_SIZE] __attribute__((aligned(16)));

static uint64_t now(void)
{
    uint32_t low, high;

    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
    return (uint64_t)high << 32 | low;
}

static void send(uint32_t apic, uint32_t command)
{
    *APIC_COMMAND_HIGH = apic << 24;
    *APIC_COMMAND_LOW = command;
    while (*APIC_COMMAND_LOW & APIC_PENDING)
        __builtin_ia32_pause();
}

bool smp_start_cpu(void (*function)(void *), void *argument, uint64_t wait)
{
    static uint32_t started = 1;
    char *page = (char *)(START_PAGE << 12);
    uint64_t begin = now();

    if (started == SMP_CPUS_MAX)
        return false;
    for (long i = 0; i < second_start_end - second_start; i++)
        page[i] = second_start[i];
    /* As at the entry of a function: the stack is 8 off a multiple of 16 after the call. */
    smp_start = (struct smp_start){
        .stack = (uint64_t)stacks[started] + STACK_SIZE, .function = function, .argument = argument};
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    send(started, APIC_INIT);
    send(started, APIC_STARTUP | START_PAGE);
    while (!__atomic_load_n(&smp_start.started, __ATOMIC_ACQUIRE)) {
        if (now() - begin > wait)
            return false;
        __builtin_ia32_pause();
    }
    started++;
    return true;
}
