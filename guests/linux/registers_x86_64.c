#include "registers.h"

#include <sys/syscall.h>

/* All exceptions masked; rounding mode and flags in turn. */
static uint64_t control_of(uint64_t round)
{
    return 0x1f80 | (round % 4) << 13 | (round % 64);
}

const struct register_set *register_set_of_this_cpu(void)
{
    static const struct register_set sse = {"xmm", "mxcsr", 16, 2, control_of};
    static const struct register_set avx = {"ymm", "mxcsr", 16, 4, control_of};

    return __builtin_cpu_supports("avx") ? &avx : &sse;
}

/* The system call is made in here, as between two pieces of C the compiler may use the registers itself. */
#define LOAD(op, reg, size, n)  op " " #n "*" size "(%[in]), %%" reg #n "\n"
#define STORE(op, reg, size, n) op " %%" reg #n ", " #n "*" size "(%[out])\n"
#define ALL(what, op, reg, size)                                                                             \
    what(op, reg, size, 0) what(op, reg, size, 1) what(op, reg, size, 2) what(op, reg, size, 3)              \
        what(op, reg, size, 4) what(op, reg, size, 5) what(op, reg, size, 6) what(op, reg, size, 7)          \
            what(op, reg, size, 8) what(op, reg, size, 9) what(op, reg, size, 10) what(op, reg, size, 11)    \
                what(op, reg, size, 12) what(op, reg, size, 13) what(op, reg, size, 14)                      \
                    what(op, reg, size, 15)
#define HOLD(op, reg, size, end)                                                                             \
    __asm__ volatile("stmxcsr %[usual]\nldmxcsr %[control]\n" ALL(                                           \
                         LOAD, op, reg,                                                                      \
                         size) "mov %[spins], %%rcx\n1: dec %%rcx\njnz 1b\n"                                 \
                               "mov %[call], %%eax\nmov $1, %%edi\nxor %%esi, %%esi\nmov %[pause], %%rdx\n"  \
                               "xor %%r10d, %%r10d\nsyscall\n"                                               \
                               "mov %[spins], %%rcx\n1: dec %%rcx\njnz 1b\n" ALL(                            \
                                   STORE, op, reg, size) "stmxcsr %[left]\nldmxcsr %[usual]\n" end           \
                     : [left] "=m"(left), [usual] "=m"(usual)                                                \
                     : [in] "r"(in), [out] "r"(out), [control] "m"(value), [pause] "r"(pause),               \
                       [spins] "r"(spins), [call] "i"(SYS_clock_nanosleep)                                   \
                     : "rax", "rcx", "rdx", "rsi", "rdi", "r10", "r11", "memory", "cc", "xmm0", "xmm1",      \
                       "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",     \
                       "xmm12", "xmm13", "xmm14", "xmm15")

uint64_t registers_hold(const struct register_set *set, const uint64_t *in, uint64_t *out, uint64_t control,
                        uint64_t spins, const struct timespec *pause)
{
    uint32_t value = (uint32_t)control, left, usual;

    if (set->words == 4)
        HOLD("vmovups", "ymm", "32", "vzeroupper\n");
    else
        HOLD("movups", "xmm", "16", "");
    return left;
}
