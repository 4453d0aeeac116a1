/*
 * Floating point that is more than one host operation: rounding modes given by the instruction, conversions,
 * minimum and maximum, classification, and round-to-nearest-ties-away, which hosts do not have.
 *
 * Compiled so that the compiler leaves rounding and exceptions alone (-frounding-math -ftrapping-math
 * -ffp-contract=off -fno-math-errno). It may still move an operation across fesetround, which it does not
 * know to matter; operands pass through volatile variables where that could happen.
 */
#include "machine/riscv64/fpu.h"

#include <math.h>

#ifdef __SIZEOF_FLOAT128__
typedef __float128 wide_float; /* holds the product of two doubles exactly */
#else
typedef long double wide_float;
#endif

/* --- environment -------------------------------------------------------------------------------------- */

static int host_rounding(unsigned rounding)
{
    static const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};

    return rounding <= ROUND_RUP ? modes[rounding] : FE_TONEAREST;
}

void fpu_update_blocked(struct hart *hart)
{
    hart->fp_blocked = (hart->sstatus & SSTATUS_FS) != SSTATUS_FS_DIRTY || hart->frm > ROUND_RUP;
}

void fpu_changed(struct hart *hart)
{
    fpu_update_blocked(hart);
    fesetround(host_rounding(hart->frm));
}

void fpu_begin(struct hart *hart)
{
    fegetenv(&hart->host_fenv);
    fesetenv(FE_DFL_ENV);
    feclearexcept(FE_ALL_EXCEPT);
    fpu_changed(hart);
}

void fpu_end(struct hart *hart)
{
    (void)fpu_flags(hart);
    fesetenv(&hart->host_fenv);
}

uint8_t fpu_flags(struct hart *hart)
{
    int host = fetestexcept(FE_ALL_EXCEPT);

    if (host) {
        hart->fflags |= (uint8_t)((host & FE_INEXACT ? FFLAG_NX : 0) | (host & FE_UNDERFLOW ? FFLAG_UF : 0) |
                                  (host & FE_OVERFLOW ? FFLAG_OF : 0) | (host & FE_DIVBYZERO ? FFLAG_DZ : 0) |
                                  (host & FE_INVALID ? FFLAG_NV : 0));
        feclearexcept(FE_ALL_EXCEPT);
    }
    return hart->fflags;
}

void fpu_set_flags(struct hart *hart, uint8_t flags)
{
    feclearexcept(FE_ALL_EXCEPT);
    hart->fflags = flags;
}

bool fpu_allow(struct hart *hart)
{
    if ((hart->sstatus & SSTATUS_FS) == 0)
        return false;
    hart->sstatus |= SSTATUS_FS_DIRTY;
    fpu_update_blocked(hart);
    return true;
}

void fpu_fma_nan(struct hart *hart, double a, double b)
{
    uint64_t bits_a, bits_b;

    memcpy(&bits_a, &a, sizeof(bits_a));
    memcpy(&bits_b, &b, sizeof(bits_b));
    bits_a &= ~FPU_SIGN_D;
    bits_b &= ~FPU_SIGN_D;
    if ((bits_a == 0 && bits_b == UINT64_C(0x7ff0000000000000)) ||
        (bits_b == 0 && bits_a == UINT64_C(0x7ff0000000000000)))
        hart->fflags |= FFLAG_NV;
}

/* --- arithmetic in any rounding mode ------------------------------------------------------------------ */

static float arithmetic_s(enum op_id id, float x, float y, float z)
{
    volatile float a = x, b = y, c = z, result = 0;

    switch (id) {
    case OP_FADD_S:
        result = a + b;
        break;
    case OP_FSUB_S:
        result = a - b;
        break;
    case OP_FMUL_S:
        result = a * b;
        break;
    case OP_FDIV_S:
        result = a / b;
        break;
    case OP_FSQRT_S:
        result = sqrtf(a);
        break;
    case OP_FMADD_S:
        result = fmaf(a, b, c);
        break;
    case OP_FMSUB_S:
        result = fmaf(a, b, -c);
        break;
    case OP_FNMSUB_S:
        result = fmaf(-a, b, c);
        break;
    case OP_FNMADD_S:
        result = fmaf(-a, b, -c);
        break;
    default:
        break;
    }
    return result;
}

static double arithmetic_d(enum op_id id, double x, double y, double z)
{
    volatile double a = x, b = y, c = z, result = 0;

    switch (id) {
    case OP_FADD_D:
        result = a + b;
        break;
    case OP_FSUB_D:
        result = a - b;
        break;
    case OP_FMUL_D:
        result = a * b;
        break;
    case OP_FDIV_D:
        result = a / b;
        break;
    case OP_FSQRT_D:
        result = sqrt(a);
        break;
    case OP_FMADD_D:
        result = fma(a, b, c);
        break;
    case OP_FMSUB_D:
        result = fma(a, b, -c);
        break;
    case OP_FNMSUB_D:
        result = fma(-a, b, c);
        break;
    case OP_FNMADD_D:
        result = fma(-a, b, -c);
        break;
    default:
        break;
    }
    return result;
}

/* The result of an operation in a wider format. *EXACT: nothing was lost. The flags raised are the caller's
 * to clear. */
static wide_float arithmetic_wide(enum op_id id, double x, double y, double z, bool *exact)
{
    volatile wide_float a = x, b = y, c = z, result = 0;

    feclearexcept(FE_ALL_EXCEPT);
    switch (id) {
    case OP_FADD_S:
    case OP_FADD_D:
        result = a + b;
        break;
    case OP_FSUB_S:
    case OP_FSUB_D:
        result = a - b;
        break;
    case OP_FMUL_S:
    case OP_FMUL_D:
        result = a * b;
        break;
    case OP_FDIV_S:
    case OP_FDIV_D:
        result = a / b;
        break;
    case OP_FMADD_S:
    case OP_FMADD_D:
        result = a * b;
        result = result + c;
        break;
    case OP_FMSUB_S:
    case OP_FMSUB_D:
        result = a * b;
        result = result - c;
        break;
    case OP_FNMSUB_S:
    case OP_FNMSUB_D:
        result = a * b;
        result = c - result;
        break;
    case OP_FNMADD_S:
    case OP_FNMADD_D:
        result = a * b;
        result = -result - c;
        break;
    default:
        feraiseexcept(FE_INEXACT);
        break;
    }
    *exact = !fetestexcept(FE_INEXACT);
    return result;
}

/*
 * Ties away from zero, from the result of rounding ties to even: they differ only when the exact value lies
 * in the middle between NEAREST and the next number away from zero. (A square root never does; flags are the
 * same.) Gathered flags stay as they are.
 */
static double ties_away(double nearest, double next, wide_float value, bool exact)
{
    volatile wide_float twice = value + value, sum = (wide_float)nearest + (wide_float)next;

    feclearexcept(FE_ALL_EXCEPT);
    return exact && twice == sum ? next : nearest;
}

/* The operation's result is in NEAREST, rounded to nearest, with its flags in the host. */
static double round_away_d(struct hart *hart, enum op_id id, double a, double b, double c, double nearest)
{
    bool exact;
    wide_float value;

    if (!fetestexcept(FE_INEXACT) || isinf(nearest))
        return nearest;
    (void)fpu_flags(hart);
    value = arithmetic_wide(id, a, b, c, &exact);
    return ties_away(nearest, nextafter(nearest, value < 0 ? -INFINITY : INFINITY), value, exact);
}

static float round_away_s(struct hart *hart, enum op_id id, float a, float b, float c, float nearest)
{
    bool exact;
    wide_float value;

    if (!fetestexcept(FE_INEXACT) || isinf(nearest))
        return nearest;
    (void)fpu_flags(hart);
    value = arithmetic_wide(id, a, b, c, &exact);
    return (float)ties_away(nearest, nextafterf(nearest, value < 0 ? -INFINITY : INFINITY), value, exact);
}

static uint64_t execute_s(struct hart *hart, enum op_id id, const struct op *op, unsigned rs3, bool away)
{
    float a = fpu_get_s(hart->f[op->rs1]), b = fpu_get_s(hart->f[op->rs2 & 31]), c = fpu_get_s(hart->f[rs3]);
    float result;

    if (away)
        (void)fpu_flags(hart);
    result = arithmetic_s(id, a, b, c);
    if (away)
        result = round_away_s(hart, id, a, b, c, result);
    if (isnan(result) && id >= OP_FMADD_S)
        fpu_fma_nan(hart, a, b);
    return fpu_put_s(result);
}

static uint64_t execute_d(struct hart *hart, enum op_id id, const struct op *op, unsigned rs3, bool away)
{
    double a = fpu_get_d(hart->f[op->rs1]), b = fpu_get_d(hart->f[op->rs2 & 31]), c = fpu_get_d(hart->f[rs3]);
    double result;

    if (away)
        (void)fpu_flags(hart);
    result = arithmetic_d(id, a, b, c);
    if (away)
        result = round_away_d(hart, id, a, b, c, result);
    if (isnan(result) && id >= OP_FMADD_S)
        fpu_fma_nan(hart, a, b);
    return fpu_put_d(result);
}

/* --- conversions -------------------------------------------------------------------------------------- */

/* trunc() that certainly raises nothing: compilers make a conversion of it, which is inexact. */
static double truncate_quietly(double value)
{
    uint64_t bits;
    int exponent;

    memcpy(&bits, &value, sizeof(bits));
    exponent = (int)(bits >> 52 & 0x7ff) - 1023;
    if (exponent < 0)
        bits &= FPU_SIGN_D;
    else if (exponent < 52)
        bits &= ~(UINT64_C(0xfffffffffffff) >> exponent);
    return fpu_get_d(bits);
}

/* To an integral value, without flags; all sums are exact. */
static double round_integral(double value, unsigned rounding)
{
    double whole = truncate_quietly(value), fraction = fabs(value - whole);
    double up = copysign(1.0, value);

    switch (rounding) {
    case ROUND_RTZ:
        return whole;
    case ROUND_RDN:
        return whole > value ? whole - 1 : whole;
    case ROUND_RUP:
        return whole < value ? whole + 1 : whole;
    case ROUND_RMM:
        return fraction >= 0.5 ? whole + up : whole;
    }
    if (fraction > 0.5 || (fraction == 0.5 && truncate_quietly(whole / 2) * 2 != whole))
        return whole + up;
    return whole;
}

struct integer_type {
    double low, high; /* exclusive bounds of what converts */
    bool low_closed;  /* low itself converts */
    uint64_t lowest, highest;
};

static const struct integer_type integer_types[] = {
    {-0x1p31, 0x1p31, true, UINT64_C(0xffffffff80000000), 0x7fffffff},
    {-1, 0x1p32, false, 0, UINT64_MAX}, /* results of *.wu are sign-extended, too */
    {-0x1p63, 0x1p63, true, UINT64_C(0x8000000000000000), INT64_MAX},
    {-1, 0x1p64, false, 0, UINT64_MAX},
};

/* F 11.7, table 11.4: out-of-range values and NaNs give the nearest or largest integer, and only invalid. */
static uint64_t to_integer(struct hart *hart, double value, unsigned type, unsigned rounding)
{
    const struct integer_type *bounds = &integer_types[type];
    double whole;

    if (isnan(value)) {
        hart->fflags |= FFLAG_NV;
        return bounds->highest;
    }
    whole = isinf(value) ? value : round_integral(value, rounding);
    if (whole >= bounds->high) {
        hart->fflags |= FFLAG_NV;
        return bounds->highest;
    }
    if (bounds->low_closed ? whole < bounds->low : whole <= bounds->low) {
        hart->fflags |= FFLAG_NV;
        return bounds->lowest;
    }
    if (whole != value)
        hart->fflags |= FFLAG_NX;
    switch (type) {
    case 0:
        return SEXT32((int32_t)whole);
    case 1:
        return SEXT32((uint32_t)whole);
    case 2:
        return (uint64_t)(int64_t)whole;
    }
    return (uint64_t)whole;
}

/* From an integer; the host's mode rounds but for ROUND_RMM. */
static uint64_t from_integer(struct hart *hart, uint64_t bits, unsigned type, bool is_double, bool away)
{
    volatile int64_t as_signed = type == 0 ? (int32_t)bits : (int64_t)bits;
    volatile uint64_t as_unsigned = type == 1 ? (uint32_t)bits : bits;
    bool negative = !(type & 1) && as_signed < 0;
    wide_float value;

    if (away)
        (void)fpu_flags(hart);
    if (is_double) {
        volatile double result = type & 1 ? (double)as_unsigned : (double)as_signed;

        if (!away || !fetestexcept(FE_INEXACT))
            return fpu_put_d(result);
        (void)fpu_flags(hart);
        value = type & 1 ? (wide_float)as_unsigned : (wide_float)as_signed;
        return fpu_put_d(ties_away(result, nextafter(result, negative ? -INFINITY : INFINITY), value, true));
    } else {
        volatile float result = type & 1 ? (float)as_unsigned : (float)as_signed;

        if (!away || !fetestexcept(FE_INEXACT))
            return fpu_put_s(result);
        (void)fpu_flags(hart);
        value = type & 1 ? (wide_float)as_unsigned : (wide_float)as_signed;
        return fpu_put_s(
            (float)ties_away(result, nextafterf(result, negative ? -INFINITY : INFINITY), value, true));
    }
}

static uint64_t narrow(struct hart *hart, double from, bool away)
{
    volatile double value = from;
    volatile float result;

    if (away)
        (void)fpu_flags(hart);
    result = (float)value;
    if (away && fetestexcept(FE_INEXACT) && !isinf(result)) {
        (void)fpu_flags(hart);
        result = (float)ties_away(result, nextafterf(result, value < 0 ? -INFINITY : INFINITY), value, true);
    }
    return fpu_put_s(result);
}

static uint64_t widen(uint64_t boxed)
{
    volatile float value = fpu_get_s(boxed);

    return fpu_put_d((double)value);
}

/* --- the rest ----------------------------------------------------------------------------------------- */

/* fmin and fmax: a NaN loses against a number, -0 is less than +0 (F 11.6). */
static uint64_t pick_d(struct hart *hart, uint64_t a, uint64_t b, bool largest)
{
    if (fpu_is_signaling_d(a) || fpu_is_signaling_d(b))
        hart->fflags |= FFLAG_NV;
    if (fpu_is_nan_d(a))
        return fpu_is_nan_d(b) ? FPU_NAN_D : b;
    if (fpu_is_nan_d(b))
        return a;
    if (((a | b) & ~FPU_SIGN_D) == 0)
        return largest ? a & b : a | b;
    return fpu_less_d(a, b, false) != largest ? a : b;
}

static uint64_t pick_s(struct hart *hart, uint64_t boxed_a, uint64_t boxed_b, bool largest)
{
    uint32_t a = fpu_bits_s(boxed_a), b = fpu_bits_s(boxed_b);

    if (fpu_is_signaling_s(a) || fpu_is_signaling_s(b))
        hart->fflags |= FFLAG_NV;
    if (fpu_is_nan_s(a))
        return FPU_BOX | (fpu_is_nan_s(b) ? FPU_NAN_S : b);
    if (fpu_is_nan_s(b))
        return FPU_BOX | a;
    if (((a | b) & ~FPU_SIGN_S) == 0)
        return FPU_BOX | (largest ? a & b : a | b);
    return FPU_BOX | (fpu_less_s(a, b, false) != largest ? a : b);
}

/* fclass (F 11.9). EXPONENT and FRACTION as in the format. */
static uint64_t classify(bool negative, bool exponent_zero, bool exponent_ones, bool fraction_zero,
                         bool quiet)
{
    if (exponent_ones && !fraction_zero)
        return quiet ? 1 << 9 : 1 << 8;
    if (exponent_ones)
        return negative ? 1 << 0 : 1 << 7;
    if (exponent_zero && fraction_zero)
        return negative ? 1 << 3 : 1 << 4;
    if (exponent_zero)
        return negative ? 1 << 2 : 1 << 5;
    return negative ? 1 << 1 : 1 << 6;
}

static uint64_t classify_s(uint32_t bits)
{
    uint32_t exponent = bits >> 23 & 0xff, fraction = bits & 0x7fffff;

    return classify(bits >> 31, exponent == 0, exponent == 0xff, fraction == 0, fraction >> 22);
}

static uint64_t classify_d(uint64_t bits)
{
    uint64_t exponent = bits >> 52 & 0x7ff, fraction = bits & UINT64_C(0xfffffffffffff);

    return classify(bits >> 63, exponent == 0, exponent == 0x7ff, fraction == 0, fraction >> 51);
}

/* Everything there is; RM is a real mode, and the host's is set to it unless it is ROUND_RMM. */
static void execute(struct hart *hart, enum op_id id, const struct op *op, unsigned rs3, unsigned rm)
{
    uint64_t a = hart->f[op->rs1], b = hart->f[op->rs2 & 31];
    bool away = rm == ROUND_RMM;

    switch (id) {
    case OP_FMIN_S:
    case OP_FMAX_S:
        hart->f[op->rd] = pick_s(hart, a, b, id == OP_FMAX_S);
        return;
    case OP_FMIN_D:
    case OP_FMAX_D:
        hart->f[op->rd] = pick_d(hart, a, b, id == OP_FMAX_D);
        return;
    case OP_FCLASS_S:
        hart->x[op->rd] = classify_s(fpu_bits_s(a));
        return;
    case OP_FCLASS_D:
        hart->x[op->rd] = classify_d(a);
        return;
    case OP_FCVT_W_S:
    case OP_FCVT_WU_S:
    case OP_FCVT_L_S:
    case OP_FCVT_LU_S:
        hart->x[op->rd] = to_integer(hart, fpu_get_s(a), id - OP_FCVT_W_S, rm);
        return;
    case OP_FCVT_W_D:
    case OP_FCVT_WU_D:
    case OP_FCVT_L_D:
    case OP_FCVT_LU_D:
        hart->x[op->rd] = to_integer(hart, fpu_get_d(a), id - OP_FCVT_W_D, rm);
        return;
    case OP_FCVT_S_W:
    case OP_FCVT_S_WU:
    case OP_FCVT_S_L:
    case OP_FCVT_S_LU:
        hart->f[op->rd] = from_integer(hart, hart->x[op->rs1], id - OP_FCVT_S_W, false, away);
        return;
    case OP_FCVT_D_W:
    case OP_FCVT_D_WU:
    case OP_FCVT_D_L:
    case OP_FCVT_D_LU:
        hart->f[op->rd] = from_integer(hart, hart->x[op->rs1], id - OP_FCVT_D_W, true, away);
        return;
    case OP_FCVT_S_D:
        hart->f[op->rd] = narrow(hart, fpu_get_d(a), away);
        return;
    case OP_FCVT_D_S:
        hart->f[op->rd] = widen(a);
        return;
    case OP_FADD_S:
    case OP_FSUB_S:
    case OP_FMUL_S:
    case OP_FDIV_S:
    case OP_FSQRT_S:
    case OP_FMADD_S:
    case OP_FMSUB_S:
    case OP_FNMSUB_S:
    case OP_FNMADD_S:
        hart->f[op->rd] = execute_s(hart, id, op, rs3, away);
        return;
    default:
        hart->f[op->rd] = execute_d(hart, id, op, rs3, away);
        return;
    }
}

static bool has_no_rounding(enum op_id id)
{
    switch (id) {
    case OP_FMIN_S:
    case OP_FMAX_S:
    case OP_FMIN_D:
    case OP_FMAX_D:
    case OP_FCLASS_S:
    case OP_FCLASS_D:
        return true;
    default:
        return false;
    }
}

bool fpu_execute(struct hart *hart, enum op_id id, const struct op *op, unsigned rs3, unsigned rm)
{
    int usual;

    if (!fpu_allow(hart))
        return false;
    if (has_no_rounding(id))
        rm = ROUND_RNE; /* the field selects the operation */
    else if (rm == ROUND_DYN)
        rm = hart->frm;
    if (rm > ROUND_RMM)
        return false;
    usual = host_rounding(hart->frm);
    if (host_rounding(rm) == usual) {
        execute(hart, id, op, rs3, rm);
        return true;
    }
    fesetround(host_rounding(rm));
    execute(hart, id, op, rs3, rm);
    fesetround(usual);
    return true;
}
