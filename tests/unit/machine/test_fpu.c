/* Round to nearest, ties away from zero, which the host's FPU does not have: every operation, at a tie. */
#include "unit.h"

#include "machine/riscv64/fpu.h"

#define BOXED(single) (FPU_BOX | UINT32_C(single))

static const struct {
    enum op_id id;
    uint64_t a, b, c, nearest_even, ties_away;
} ties[] = {
    /* 1 + 2^-53, -1 - 2^-53 */
    {OP_FADD_D, 0x3ff0000000000000, 0x3ca0000000000000, 0, 0x3ff0000000000000, 0x3ff0000000000001},
    {OP_FSUB_D, 0xbff0000000000000, 0x3ca0000000000000, 0, 0xbff0000000000000, 0xbff0000000000001},
    /* 3 * 0xc00000000000b * 2^-51 */
    {OP_FMUL_D, 0x4008000000000000, 0x3ff8000000000016, 0, 0x4012000000000010, 0x4012000000000011},
    {OP_FMADD_D, 0x3ff0000000000000, 0x3ff0000000000000, 0x3ca0000000000000, 0x3ff0000000000000,
     0x3ff0000000000001},
    {OP_FMSUB_D, 0xbff0000000000000, 0x3ff0000000000000, 0x3ca0000000000000, 0xbff0000000000000,
     0xbff0000000000001},
    {OP_FNMSUB_D, 0x3ff0000000000000, 0xbff0000000000000, 0x3ca0000000000000, 0x3ff0000000000000,
     0x3ff0000000000001},
    {OP_FNMADD_D, 0x3ff0000000000000, 0x3ff0000000000000, 0x3ca0000000000000, 0xbff0000000000000,
     0xbff0000000000001},
    /* The smallest number, halved. */
    {OP_FDIV_D, 0x0000000000000001, 0x4000000000000000, 0, 0x0000000000000000, 0x0000000000000001},
    {OP_FADD_S, BOXED(0x3f800000), BOXED(0x33800000), 0, BOXED(0x3f800000), BOXED(0x3f800001)},
    {OP_FMUL_S, BOXED(0x00000001), BOXED(0x3f000000), 0, BOXED(0x00000000), BOXED(0x00000001)},
    {OP_FMADD_S, BOXED(0x3f800000), BOXED(0x3f800000), BOXED(0x33800000), BOXED(0x3f800000),
     BOXED(0x3f800001)},
    /* 1 + 2^-24 */
    {OP_FCVT_S_D, 0x3ff0000010000000, 0, 0, BOXED(0x3f800000), BOXED(0x3f800001)},
    /* Not ties. */
    {OP_FADD_D, 0x3ff0000000000000, 0x3c9fffffffffffff, 0, 0x3ff0000000000000, 0x3ff0000000000000},
    {OP_FDIV_D, 0x3ff0000000000000, 0x4008000000000000, 0, 0x3fd5555555555555, 0x3fd5555555555555},
    {OP_FSQRT_D, 0x4000000000000000, 0, 0, 0x3ff6a09e667f3bcd, 0x3ff6a09e667f3bcd},
};

static const struct {
    enum op_id id;
    uint64_t integer, nearest_even, ties_away;
} from_integer[] = {
    {OP_FCVT_S_W, 24382525, BOXED(0x4bba061e), BOXED(0x4bba061f)},
    {OP_FCVT_S_W, 0xecf1259501740c3d, BOXED(0x4bba061e),
     BOXED(0x4bba061f)}, /* the upper half does not count */
    {OP_FCVT_S_WU, 0xffffffff01740c3d, BOXED(0x4bba061e), BOXED(0x4bba061f)},
    {OP_FCVT_S_L, -(uint64_t)24382525, BOXED(0xcbba061e), BOXED(0xcbba061f)},
    {OP_FCVT_D_LU, (UINT64_C(1) << 53) + 1, 0x4340000000000000, 0x4340000000000001},
    {OP_FCVT_D_L, -(UINT64_C(1) << 53) - 1, 0xc340000000000000, 0xc340000000000001},
};

static const struct {
    uint64_t value, nearest_even, ties_away;
} to_integer[] = {
    {0x3fe0000000000000, 0, 1},                   /* 0.5 */
    {0xbfe0000000000000, 0, UINT64_MAX},          /* -0.5 */
    {0x4004000000000000, 2, 3},                   /* 2.5 */
    {0x3fdfffffffffffff, 0, 0},                   /* just below 0.5 */
    {0x41dfffffffe00000, 0x7fffffff, 0x7fffffff}, /* 2^31 - 0.5: too large either way */
};

static int setup(void **state)
{
    struct hart *hart = aligned_alloc(64, (sizeof(*hart) + 63) & ~(size_t)63);

    assert_non_null(hart);
    memset(hart, 0, sizeof(*hart));
    hart->sstatus = SSTATUS_FS_DIRTY;
    *state = hart;
    return 0;
}

static int teardown(void **state)
{
    free(*state);
    return 0;
}

static void execute(struct hart *hart, enum op_id id, unsigned rm)
{
    struct op op = {.rd = 10, .rs1 = 1, .rs2 = 2};

    assert_true(fpu_execute(hart, id, &op, 3, rm));
}

static void check(uint64_t found, uint64_t expected, size_t row, unsigned frm)
{
    if (found != expected)
        fail_msg("row %zu with frm %u: %016llx instead of %016llx", row, frm, (unsigned long long)found,
                 (unsigned long long)expected);
}

static void arithmetic_rounds_ties_away(void **state)
{
    struct hart *hart = *state;

    for (unsigned frm = ROUND_RNE; frm <= ROUND_RMM; frm++) {
        hart->frm = (uint8_t)frm;
        fpu_begin(hart);
        for (size_t i = 0; i < ARRAY_SIZE(ties); i++) {
            hart->f[1] = ties[i].a;
            hart->f[2] = ties[i].b;
            hart->f[3] = ties[i].c;
            execute(hart, ties[i].id, ROUND_RMM);
            check(hart->f[10], ties[i].ties_away, i, frm);
            execute(hart, ties[i].id, ROUND_RNE);
            check(hart->f[10], ties[i].nearest_even, i, frm);
            assert_true(fpu_flags(hart) & FFLAG_NX);
            fpu_set_flags(hart, 0);
        }
        fpu_end(hart);
    }
}

static void conversions_from_integers_round_ties_away(void **state)
{
    struct hart *hart = *state;

    fpu_begin(hart);
    for (size_t i = 0; i < ARRAY_SIZE(from_integer); i++) {
        hart->x[1] = from_integer[i].integer;
        execute(hart, from_integer[i].id, ROUND_RMM);
        check(hart->f[10], from_integer[i].ties_away, i, 0);
        execute(hart, from_integer[i].id, ROUND_RNE);
        check(hart->f[10], from_integer[i].nearest_even, i, 0);
        assert_int_equal(fpu_flags(hart), FFLAG_NX);
        fpu_set_flags(hart, 0);
    }
    fpu_end(hart);
}

static void conversions_to_integers_round_ties_away(void **state)
{
    struct hart *hart = *state;

    fpu_begin(hart);
    for (size_t i = 0; i < ARRAY_SIZE(to_integer); i++) {
        hart->f[1] = to_integer[i].value;
        execute(hart, OP_FCVT_W_D, ROUND_RMM);
        check(hart->x[10], to_integer[i].ties_away, i, 0);
        execute(hart, OP_FCVT_W_D, ROUND_RNE);
        check(hart->x[10], to_integer[i].nearest_even, i, 0);
    }
    fpu_end(hart);
}

static void what_does_not_convert_is_invalid_and_not_inexact(void **state)
{
    struct hart *hart = *state;

    fpu_begin(hart);
    hart->f[1] = 0xbff8000000000000; /* -1.5 */
    execute(hart, OP_FCVT_LU_D, ROUND_RTZ);
    assert_int_equal(hart->x[10], 0);
    assert_int_equal(fpu_flags(hart), FFLAG_NV);
    fpu_end(hart);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(arithmetic_rounds_ties_away, setup, teardown),
        cmocka_unit_test_setup_teardown(conversions_from_integers_round_ties_away, setup, teardown),
        cmocka_unit_test_setup_teardown(conversions_to_integers_round_ties_away, setup, teardown),
        cmocka_unit_test_setup_teardown(what_does_not_convert_is_invalid_and_not_inexact, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
