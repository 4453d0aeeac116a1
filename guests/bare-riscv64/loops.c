/*
 * The CPU speed loops of common/loops.h, on bare metal with Sv39 on. Each is run for a fixed number of
 * iterations and prints
 *
 *     loop NAME iterations=N ticks=T rate=R checksum=C
 *
 * NAME is int, mem, fp, and int2 for the integer loop on two harts at once (with harts=2), whose rate is that
 * of both together. Ticks are rdtime's, the rate is iterations a second. The last line is LOOPS DONE.
 *
 * Boot arguments: int=N mem=N fp=N iterations (0 leaves the loop out), harts=1|2, paging=0|1.
 */
#include "../common/loops.h"
#include "console.h"
#include "csr.h"
#include "fdt.h"
#include "paging.h"
#include "sbi.h"

#include <stdbool.h>
#include <stddef.h>

static uint64_t buffer[LOOP_MEM_WORDS];
static uint8_t second_stack[16384] __attribute__((aligned(16)));

struct second {
    const struct paging *paging;
    uint64_t iterations, checksum;
    bool ready, go, done;
};

static uint64_t run_mem(uint64_t iterations)
{
    return loop_mem(iterations, buffer);
}

static void print(const char *name, uint64_t iterations, uint64_t ticks, uint64_t hz, uint64_t checksum)
{
    console_text("loop ");
    console_text(name);
    console_field("iterations", iterations);
    console_field("ticks", ticks);
    /* Iterations stay far below 2^64 / 10 MHz. */
    console_field("rate", ticks ? iterations * hz / ticks : 0);
    console_field_hex("checksum", checksum);
    console_char('\n');
}

static void run(const char *name, uint64_t (*loop)(uint64_t), uint64_t iterations, uint64_t hz)
{
    uint64_t start, checksum;

    if (!iterations)
        return;
    /* Once for the caches, the emulator's as well. */
    loop(iterations / 20);
    start = time_read();
    checksum = loop(iterations);
    print(name, iterations, time_read() - start, hz, checksum);
}

static void second_main(void *argument)
{
    struct second *second = argument;

    paging_use(second->paging);
    loop_int(second->iterations / 20);
    __atomic_store_n(&second->ready, true, __ATOMIC_RELEASE);
    while (!__atomic_load_n(&second->go, __ATOMIC_ACQUIRE))
        ;
    second->checksum = loop_int(second->iterations);
    __atomic_store_n(&second->done, true, __ATOMIC_RELEASE);
}

static void run_two(uint64_t hart, const struct paging *paging, uint64_t iterations, uint64_t hz)
{
    static struct second second;
    uint64_t start, checksum, ticks, other = 0;

    second = (struct second){.paging = paging, .iterations = iterations};
    /* Hart numbers need not follow each other; the other one is the first that starts. */
    while (other < 8 && (other == hart ||
                         hart_start(other, second_stack + sizeof(second_stack), second_main, &second) != 0))
        other++;
    if (other == 8) {
        console_text("loop int2: there is no second hart\n");
        return;
    }
    while (!__atomic_load_n(&second.ready, __ATOMIC_ACQUIRE))
        ;
    start = time_read();
    __atomic_store_n(&second.go, true, __ATOMIC_RELEASE);
    checksum = loop_int(iterations);
    while (!__atomic_load_n(&second.done, __ATOMIC_ACQUIRE))
        ;
    ticks = time_read() - start;
    print("int2", 2 * iterations, ticks, hz, checksum ^ second.checksum << 1);
}

void bare_main(uint64_t hart, const void *fdt)
{
    static struct paging paging;
    const struct paging *use = NULL;
    struct fdt_info info;
    uint64_t integer, memory, floating, harts;

    /* All of it now: the device tree is not mapped afterwards. */
    fdt_read(fdt, &info);
    integer = args_number(info.bootargs, "int", 50000000);
    memory = args_number(info.bootargs, "mem", 50000000);
    floating = args_number(info.bootargs, "fp", 20000000);
    harts = args_number(info.bootargs, "harts", 1);
    if (args_number(info.bootargs, "paging", 1)) {
        paging_init(&paging, PAGING_SV39);
        paging_map_identity(&paging, 0x80000000, 0x81000000, PTE_R | PTE_W | PTE_X | PTE_A | PTE_D);
        use = &paging;
        paging_use(use);
    }
    run("int", loop_int, integer, info.timebase_hz);
    run("mem", run_mem, memory, info.timebase_hz);
    run("fp", loop_fp, floating, info.timebase_hz);
    if (integer && harts == 2)
        run_two(hart, use, integer, info.timebase_hz);
    console_text("LOOPS DONE\n");
    machine_off();
}
