/* Operands for the floating-point tests: bit patterns as they stand in a 64-bit register. */
#ifndef BARE_ISA_FP_H
#define BARE_ISA_FP_H

#include <stdbool.h>
#include <stdint.h>

#define BOX(single) (UINT64_C(0xffffffff00000000) | (single))

#define FP_DOUBLE_COUNT 30
static const uint64_t fp_doubles[FP_DOUBLE_COUNT] = {
    0x0000000000000000, /* 0 */
    0x8000000000000000, /* -0 */
    0x3ff0000000000000, /* 1 */
    0xbff0000000000000, /* -1 */
    0x7ff0000000000000, /* infinity */
    0xfff0000000000000, /* -infinity */
    0x7ff8000000000000, /* canonical NaN */
    0x7ff0000000000001, /* signalling NaN */
    0xfff8000000000123, /* quiet NaN with sign and payload */
    0x0000000000000001, /* smallest subnormal */
    0x800fffffffffffff, /* -largest subnormal */
    0x0010000000000000, /* smallest normal */
    0x7fefffffffffffff, /* largest */
    0xffefffffffffffff, /* -largest */
    0x3fd5555555555555, /* 1/3 */
    0x400921fb54442d18, /* pi */
    0x3fe0000000000000, /* 0.5 */
    0xbff8000000000000, /* -1.5 */
    0x4004000000000000, /* 2.5 */
    0x3fefffffffffffff, /* 1 - ulp/2 */
    0x3ff0000000000001, /* 1 + ulp */
    0x41dfffffffc00000, /* 2^31 - 1 */
    0xc1e0000000200000, /* -2^31 - 1 */
    0x41efffffffe00000, /* 2^32 - 1 */
    0x4340000000000001, /* 2^53 + 2 */
    0x43dfffffffffffff, /* largest below 2^63 */
    0xc3e0000000000000, /* -2^63 */
    0x43f0000000000000, /* 2^64 */
    0x47efffffe0000000, /* largest single */
    0x3690000000000001, /* just above half of the smallest single subnormal */
};

#define FP_SINGLE_COUNT 30
static const uint64_t fp_singles[FP_SINGLE_COUNT] = {
    BOX(0x00000000),    /* 0 */
    BOX(0x80000000),    /* -0 */
    BOX(0x3f800000),    /* 1 */
    BOX(0xbf800000),    /* -1 */
    BOX(0x7f800000),    /* infinity */
    BOX(0xff800000),    /* -infinity */
    BOX(0x7fc00000),    /* canonical NaN */
    BOX(0x7f800001),    /* signalling NaN */
    BOX(0xffc00123),    /* quiet NaN with sign and payload */
    BOX(0x00000001),    /* smallest subnormal */
    BOX(0x807fffff),    /* -largest subnormal */
    BOX(0x00800000),    /* smallest normal */
    BOX(0x7f7fffff),    /* largest */
    BOX(0xff7fffff),    /* -largest */
    BOX(0x3eaaaaab),    /* 1/3 */
    BOX(0x40490fdb),    /* pi */
    BOX(0x3f000000),    /* 0.5 */
    BOX(0xbfc00000),    /* -1.5 */
    BOX(0x40200000),    /* 2.5 */
    BOX(0x3f7fffff),    /* 1 - ulp/2 */
    BOX(0x3f800001),    /* 1 + ulp */
    BOX(0x4effffff),    /* largest below 2^31 */
    BOX(0xcf000000),    /* -2^31 */
    BOX(0x4f800000),    /* 2^32 */
    BOX(0x4b800001),    /* 2^24 + 2 */
    BOX(0x5effffff),    /* largest below 2^63 */
    BOX(0xdf000000),    /* -2^63 */
    BOX(0x5f800000),    /* 2^64 */
    0x000000003f800000, /* 1, not boxed: counts as the canonical NaN */
    0xfffffffe40000000, /* 2, with one bit of the box missing */
};

#define FP_ROUNDING_COUNT 5
static const char *const fp_rounding_names[FP_ROUNDING_COUNT] = {"rne", "rtz", "rdn", "rup", "rmm"};

/*
 * Defines a function that runs TEXT with the given operands in fa0, fa1, fa2 and in integer register %[x],
 * and dynamic rounding mode RM. TEXT leaves its result in %[r]. Returns it, and the flags raised in *FLAGS.
 * The register file is the compiler's as well, but it has no use for floating point in between.
 */
typedef uint64_t (*fp_operation)(const uint64_t operands[3], uint64_t rm, uint64_t *flags);

#define FP_DEFINE(name, text)                                                                                \
    static uint64_t name(const uint64_t operands[3], uint64_t rm, uint64_t *flags)                           \
    {                                                                                                        \
        uint64_t r;                                                                                          \
        __asm__ volatile("fmv.d.x fa0, %[a]\n"                                                               \
                         "fmv.d.x fa1, %[b]\n"                                                               \
                         "fmv.d.x fa2, %[c]\n"                                                               \
                         "fscsr %[fcsr]\n" text "\n"                                                         \
                         "frflags %[flags]\n"                                                                \
                         : [r] "=&r"(r), [flags] "=&r"(*flags)                                               \
                         : [a] "r"(operands[0]), [b] "r"(operands[1]), [c] "r"(operands[2]),                 \
                           [x] "r"(operands[0]), [fcsr] "r"(rm << 5)                                         \
                         : "fa0", "fa1", "fa2", "fa3");                                                      \
        return r;                                                                                            \
    }

#endif
