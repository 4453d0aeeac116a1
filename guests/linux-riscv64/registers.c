#include "registers.h"

#include "work.h"

#include <inttypes.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>

#define REGISTERS 32

/*
 * Loads f0 to f31 and fcsr, counts SPINS down, sleeps, counts again, and stores the registers. The system
 * call is made in here, as between two pieces of C the compiler may use the registers itself.
 */
static uint64_t registers_hold(const uint64_t *in, uint64_t *out, uint64_t fcsr, uint64_t spins,
                               const struct timespec *pause)
{
    uint64_t left;

#define EACH(op, base)                                                                                       \
    op " f0, 0(" base ")\n" op " f1, 8(" base ")\n" op " f2, 16(" base ")\n" op " f3, 24(" base ")\n" op     \
       " f4, 32(" base ")\n" op " f5, 40(" base ")\n" op " f6, 48(" base ")\n" op " f7, 56(" base ")\n" op   \
       " f8, 64(" base ")\n" op " f9, 72(" base ")\n" op " f10, 80(" base ")\n" op " f11, 88(" base ")\n" op \
       " f12, 96(" base ")\n" op " f13, 104(" base ")\n" op " f14, 112(" base ")\n" op " f15, 120(" base     \
       ")\n" op " f16, 128(" base ")\n" op " f17, 136(" base ")\n" op " f18, 144(" base ")\n" op             \
       " f19, 152(" base ")\n" op " f20, 160(" base ")\n" op " f21, 168(" base ")\n" op " f22, 176(" base    \
       ")\n" op " f23, 184(" base ")\n" op " f24, 192(" base ")\n" op " f25, 200(" base ")\n" op             \
       " f26, 208(" base ")\n" op " f27, 216(" base ")\n" op " f28, 224(" base ")\n" op " f29, 232(" base    \
       ")\n" op " f30, 240(" base ")\n" op " f31, 248(" base ")\n"
    __asm__ volatile(
        EACH("fld", "%[in]") "fscsr %[fcsr]\n"
                             "mv %[left], %[spins]\n"
                             "1: addi %[left], %[left], -1\nbnez %[left], 1b\n"
                             "li a7, %[call]\nli a0, 1\nli a1, 0\nmv a2, %[pause]\nli a3, 0\necall\n"
                             "mv %[left], %[spins]\n"
                             "1: addi %[left], %[left], -1\nbnez %[left], 1b\n"
                             "frcsr %[left]\n" EACH("fsd", "%[out]") "fscsr zero\n"
        : [left] "=&r"(left)
        : [in] "r"(in), [out] "r"(out), [fcsr] "r"(fcsr), [spins] "r"(spins), [pause] "r"(pause),
          [call] "i"(SYS_clock_nanosleep)
        : "a0", "a1", "a2", "a3", "a7", "memory", "f0", "f1", "f2", "f3", "f4", "f5", "f6", "f7", "f8", "f9",
          "f10", "f11", "f12", "f13", "f14", "f15", "f16", "f17", "f18", "f19", "f20", "f21", "f22", "f23",
          "f24", "f25", "f26", "f27", "f28", "f29", "f30", "f31");
    return left;
}

void *registers_main(void *argument)
{
    struct work_counters *counters = argument;
    const struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};
    uint64_t in[REGISTERS], out[REGISTERS], value = 0x0123456789abcdef;

    for (uint64_t round = 0;; round++) {
        uint64_t fcsr = (round % 5) << 5 | (round % 32), got;

        for (unsigned i = 0; i < REGISTERS; i++)
            in[i] = value = value * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        got = registers_hold(in, out, fcsr, 2000, &pause);
        for (unsigned i = 0; i < REGISTERS; i++) {
            if (in[i] == out[i])
                continue;
            if (atomic_fetch_add(&counters->errors, 1) == 0)
                printf("WORK ERROR register=f%u expected=%016" PRIx64 " got=%016" PRIx64 "\n", i, in[i],
                       out[i]);
        }
        if (got != fcsr && atomic_fetch_add(&counters->errors, 1) == 0)
            printf("WORK ERROR register=fcsr expected=%016" PRIx64 " got=%016" PRIx64 "\n", fcsr, got);
        atomic_fetch_add(&counters->register_checks, 1);
    }
    return NULL;
}
