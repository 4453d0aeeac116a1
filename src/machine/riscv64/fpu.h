/*
 * Floating point: the F and D extensions on the host's FPU.
 *
 * While a hart runs, its thread's floating-point environment is the guest's: the rounding mode is frm's
 * (round to nearest where the host has none like it) and accrued exceptions gather in the host's sticky
 * flags, which are read only when somebody asks (fpu_flags). What an instruction raises without the host
 * doing so is or-ed into hart->fflags. Device handlers called meanwhile must leave floating point alone.
 *
 * fp_blocked is set while floating point needs a look first: FS is off (illegal) or not dirty yet, or frm has
 * no host equivalent.
 */
#ifndef FERRY_MACHINE_RISCV64_FPU_H
#define FERRY_MACHINE_RISCV64_FPU_H

#include "machine/riscv64/hart.h"

#include <string.h>

#define FFLAG_NX 1 /* inexact */
#define FFLAG_UF 2
#define FFLAG_OF 4
#define FFLAG_DZ 8
#define FFLAG_NV 16 /* invalid */
#define FFLAGS   31

enum rounding {
    ROUND_RNE = 0,
    ROUND_RTZ = 1,
    ROUND_RDN = 2,
    ROUND_RUP = 3,
    ROUND_RMM = 4, /* to nearest, ties away from zero: no host equivalent */
    ROUND_DYN = 7,
};

#define FPU_BOX    UINT64_C(0xffffffff00000000)
#define FPU_NAN_S  UINT32_C(0x7fc00000)
#define FPU_NAN_D  UINT64_C(0x7ff8000000000000)
#define FPU_SIGN_S UINT32_C(0x80000000)
#define FPU_SIGN_D UINT64_C(0x8000000000000000)

/* hart_begin's and hart_end's part: makes the thread's environment the guest's, and gives it back. */
void fpu_begin(struct hart *hart);
void fpu_end(struct hart *hart);
/* After frm or sstatus.FS changed. Hart thread, running. */
void fpu_changed(struct hart *hart);
/* fp_blocked from frm and FS. */
void fpu_update_blocked(struct hart *hart);
/* Accrued exceptions (gathers the host's); sets them. Hart thread, running. */
uint8_t fpu_flags(struct hart *hart);
void fpu_set_flags(struct hart *hart, uint8_t flags);
/* Floating point is about to be used: makes FS dirty. False when it is off. */
bool fpu_allow(struct hart *hart);
/*
 * One floating-point instruction with any rounding mode. RM is the instruction's field. False when it is
 * illegal.
 */
bool fpu_execute(struct hart *hart, enum op_id id, const struct op *op, unsigned rs3, unsigned rm);
/* A fused multiply-add gave a NaN: inf * 0 + quiet NaN is invalid here, not on every host. */
void fpu_fma_nan(struct hart *hart, double a, double b);

static inline uint32_t fpu_bits_s(uint64_t boxed)
{
    return boxed >= FPU_BOX ? (uint32_t)boxed : FPU_NAN_S;
}

static inline float fpu_get_s(uint64_t boxed)
{
    uint32_t bits = fpu_bits_s(boxed);
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

static inline double fpu_get_d(uint64_t bits)
{
    double value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* NaNs that arithmetic makes are the canonical one (F 11.3). */
static inline uint64_t fpu_put_s(float value)
{
    uint32_t bits;

    if (unlikely(value != value))
        return FPU_BOX | FPU_NAN_S;
    memcpy(&bits, &value, sizeof(bits));
    return FPU_BOX | bits;
}

static inline uint64_t fpu_put_d(double value)
{
    uint64_t bits;

    if (unlikely(value != value))
        return FPU_NAN_D;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static inline bool fpu_is_nan_s(uint32_t bits)
{
    return (bits & ~FPU_SIGN_S) > 0x7f800000;
}

static inline bool fpu_is_nan_d(uint64_t bits)
{
    return (bits & ~FPU_SIGN_D) > UINT64_C(0x7ff0000000000000);
}

static inline bool fpu_is_signaling_s(uint32_t bits)
{
    return fpu_is_nan_s(bits) && !(bits & 0x00400000);
}

static inline bool fpu_is_signaling_d(uint64_t bits)
{
    return fpu_is_nan_d(bits) && !(bits & UINT64_C(0x0008000000000000));
}

/* Comparisons on bit patterns: exact, and no flags but the ones said here. */
static inline bool fpu_less_d(uint64_t a, uint64_t b, bool or_equal)
{
    uint64_t order_a = a >> 63 ? ~a : a | FPU_SIGN_D, order_b = b >> 63 ? ~b : b | FPU_SIGN_D;

    if (((a | b) & ~FPU_SIGN_D) == 0)
        return or_equal;
    return or_equal ? order_a <= order_b : order_a < order_b;
}

static inline bool fpu_less_s(uint32_t a, uint32_t b, bool or_equal)
{
    uint32_t order_a = a >> 31 ? ~a : a | FPU_SIGN_S, order_b = b >> 31 ? ~b : b | FPU_SIGN_S;

    if (((a | b) & ~FPU_SIGN_S) == 0)
        return or_equal;
    return or_equal ? order_a <= order_b : order_a < order_b;
}

#endif
