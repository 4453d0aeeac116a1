#include "registers.h"

#include <sys/syscall.h>

/* Rounding mode and flags; modes from 5 on are reserved. */
static uint64_t control_of(uint64_t round)
{
    return (round % 5) << 5 | (round % 32);
}

const struct register_set *register_set_of_this_cpu(void)
{
    static const struct register_set set = {"f", "fcsr", 32, 1, control_of};

    return &set;
}

/* The system call is made in here, as between two pieces of C the compiler may use the registers itself. */
uint64_t registers_hold(const struct register_set *set, const uint64_t *in, uint64_t *out, uint64_t control,
                        uint64_t spins, const struct timespec *pause)
{
    uint64_t left;

    (void)set;

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
        : [in] "r"(in), [out] "r"(out), [fcsr] "r"(control), [spins] "r"(spins), [pause] "r"(pause),
          [call] "i"(SYS_clock_nanosleep)
        : "a0", "a1", "a2", "a3", "a7", "memory", "f0", "f1", "f2", "f3", "f4", "f5", "f6", "f7", "f8", "f9",
          "f10", "f11", "f12", "f13", "f14", "f15", "f16", "f17", "f18", "f19", "f20", "f21", "f22", "f23",
          "f24", "f25", "f26", "f27", "f28", "f29", "f30", "f31");
    return left;
}
