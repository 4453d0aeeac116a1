/* The stress guest (common/stress.h) on riscv64: under Sv39, CPUs and the end of the machine by SBI. */
#include "../common/stress.h"
#include "console.h"
#include "csr.h"
#include "fdt.h"
#include "paging.h"
#include "sbi.h"

#define STACK_SIZE 8192

static struct paging paging;
static uint8_t stacks[STRESS_CPUS_MAX][STACK_SIZE] __attribute__((aligned(16)));
static uint64_t boot_hart, next_hart;
static unsigned started = 1;

static uint64_t now(void)
{
    return time_read();
}

/* Interrupts end wfi, but are not taken. */
static void rest(uint64_t until)
{
    timer_set(until);
    __asm__ volatile("wfi");
}

/* Hart numbers need not follow each other. */
static bool start_cpu(void (*function)(void *), void *argument)
{
    while (next_hart < 64 && started < STRESS_CPUS_MAX) {
        uint64_t hart = next_hart++;

        if (hart != boot_hart && hart_start(hart, stacks[started] + STACK_SIZE, function, argument) == 0) {
            started++;
            return true;
        }
    }
    return false;
}

static void begin(void)
{
    csr_write(sie, INTERRUPT_TIMER);
    paging_use(&paging);
}

/* Nothing is mapped at address 0: the handler's first instruction faults, which enters the handler, ... */
static void lose(void)
{
    csr_write(stvec, 0);
    __asm__ volatile("unimp");
}

static void end(enum stress_end how)
{
    machine_reset(how == STRESS_END_REBOOT ? RESET_REBOOT : RESET_OFF,
                  how == STRESS_END_FAILURE ? RESET_REASON_FAILURE : RESET_REASON_NONE);
}

extern char __image_start[], __image_end[];

void bare_main(uint64_t hart, const void *fdt)
{
    struct stress_machine machine = {
        .now = now, .rest = rest, .start_cpu = start_cpu, .begin = begin, .lose = lose, .end = end};
    struct fdt_info info;
    uint64_t memory_end;

    /* The tree is not looked at again, but for the arguments, before memory is written. */
    fdt_read(fdt, &info);
    if (info.memory_size == 0) {
        console_text("stress: the device tree names no memory\n");
        machine_off();
    }
    boot_hart = hart;
    memory_end = (info.memory_start + info.memory_size) & ~(PAGE_SIZE - 1);
    machine.args = info.bootargs;
    machine.hz = info.timebase_hz;
    machine.memory = (uint8_t *)__image_end;
    machine.memory_size = memory_end - (uint64_t)__image_end;
    paging_init(&paging, PAGING_SV39);
    paging_map_identity(&paging, (uint64_t)__image_start, (uint64_t)__image_end,
                        PTE_R | PTE_W | PTE_X | PTE_A | PTE_D);
    paging_map_identity(&paging, (uint64_t)__image_end, memory_end, PTE_R | PTE_W | PTE_A | PTE_D);
    paging_map_identity(&paging, CONSOLE_UART, CONSOLE_UART + PAGE_SIZE, PTE_R | PTE_W | PTE_A | PTE_D);
    paging_use(&paging);
    stress_main(&machine);
}
