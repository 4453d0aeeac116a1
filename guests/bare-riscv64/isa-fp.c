/*
 * F and D with one and two operands: arithmetic in every rounding mode, comparisons, sign injection,
 * conversions, classes, moves, NaN boxing, loads and stores. One line per operation, rounding mode and first
 * operand; results with flags.
 */
#include "isa-fp.h"
#include "console.h"
#include "isa.h"

/* X(identifier, mnemonic) */
#define BINARY_ROUNDED(X) X(fadd) X(fsub) X(fmul) X(fdiv)
#define BINARY_PLAIN(X)   X(fmin) X(fmax) X(fsgnj) X(fsgnjn) X(fsgnjx)
#define BINARY_COMPARE(X) X(feq) X(flt) X(fle)

#define DEFINE_TO_FP(op)                                                                                     \
    FP_DEFINE(do_##op##_s, #op ".s fa3, fa0, fa1\nfmv.x.d %[r], fa3")                                        \
    FP_DEFINE(do_##op##_d, #op ".d fa3, fa0, fa1\nfmv.x.d %[r], fa3")
#define DEFINE_TO_INT(op)                                                                                    \
    FP_DEFINE(do_##op##_s, #op ".s %[r], fa0, fa1")                                                          \
    FP_DEFINE(do_##op##_d, #op ".d %[r], fa0, fa1")
BINARY_ROUNDED(DEFINE_TO_FP)
BINARY_PLAIN(DEFINE_TO_FP)
BINARY_COMPARE(DEFINE_TO_INT)

FP_DEFINE(do_fsqrt_s, "fsqrt.s fa3, fa0\nfmv.x.d %[r], fa3")
FP_DEFINE(do_fsqrt_d, "fsqrt.d fa3, fa0\nfmv.x.d %[r], fa3")
FP_DEFINE(do_fcvt_s_d, "fcvt.s.d fa3, fa0\nfmv.x.d %[r], fa3")
FP_DEFINE(do_fcvt_d_s, "fcvt.d.s fa3, fa0\nfmv.x.d %[r], fa3")
FP_DEFINE(do_fclass_s, "fclass.s %[r], fa0")
FP_DEFINE(do_fclass_d, "fclass.d %[r], fa0")
FP_DEFINE(do_fmv_x_w, "fmv.x.w %[r], fa0")
FP_DEFINE(do_fmv_w_x, "fmv.w.x fa3, %[x]\nfmv.x.d %[r], fa3")

#define TO_INTEGER(X) X(w) X(wu) X(l) X(lu)
#define DEFINE_CONVERT(type)                                                                                 \
    FP_DEFINE(do_fcvt_##type##_s, "fcvt." #type ".s %[r], fa0")                                              \
    FP_DEFINE(do_fcvt_##type##_d, "fcvt." #type ".d %[r], fa0")                                              \
    FP_DEFINE(do_fcvt_s_##type, "fcvt.s." #type " fa3, %[x]\nfmv.x.d %[r], fa3")                             \
    FP_DEFINE(do_fcvt_d_##type, "fcvt.d." #type " fa3, %[x]\nfmv.x.d %[r], fa3")
TO_INTEGER(DEFINE_CONVERT)

/* The rounding mode in the instruction wins over frm. */
#define STATIC_MODES(X) X(rne) X(rtz) X(rdn) X(rup) X(rmm)
#define DEFINE_STATIC(mode)                                                                                  \
    FP_DEFINE(do_fadd_d_##mode, "fadd.d fa3, fa0, fa1, " #mode "\nfmv.x.d %[r], fa3")                        \
    FP_DEFINE(do_fcvt_w_d_##mode, "fcvt.w.d %[r], fa0, " #mode)                                              \
    FP_DEFINE(do_fcvt_s_d_##mode, "fcvt.s.d fa3, fa0, " #mode "\nfmv.x.d %[r], fa3")
STATIC_MODES(DEFINE_STATIC)

enum operands { SINGLES, DOUBLES, WORDS };

struct row {
    const char *name;
    fp_operation run;
    enum operands operands;
    unsigned roundings; /* How many modes are worth trying. */
};

static const struct row binary[] = {
#define ROW_ROUNDED(op)                                                                                      \
    {#op ".s", do_##op##_s, SINGLES, FP_ROUNDING_COUNT}, {#op ".d", do_##op##_d, DOUBLES, FP_ROUNDING_COUNT},
#define ROW_PLAIN(op)           {#op ".s", do_##op##_s, SINGLES, 1}, {#op ".d", do_##op##_d, DOUBLES, 1},
#define ROW_STATIC_BINARY(mode) {"fadd.d " #mode, do_fadd_d_##mode, DOUBLES, 2},
    BINARY_ROUNDED(ROW_ROUNDED) BINARY_PLAIN(ROW_PLAIN) BINARY_COMPARE(ROW_PLAIN)
        STATIC_MODES(ROW_STATIC_BINARY)};

static const struct row unary[] = {
#define ROW_CONVERT(type)                                                                                    \
    {"fcvt." #type ".s", do_fcvt_##type##_s, SINGLES, FP_ROUNDING_COUNT},                                    \
        {"fcvt." #type ".d", do_fcvt_##type##_d, DOUBLES, FP_ROUNDING_COUNT},                                \
        {"fcvt.s." #type, do_fcvt_s_##type, WORDS, FP_ROUNDING_COUNT},                                       \
        {"fcvt.d." #type, do_fcvt_d_##type, WORDS, FP_ROUNDING_COUNT},
#define ROW_STATIC_UNARY(mode)                                                                               \
    {"fcvt.w.d " #mode, do_fcvt_w_d_##mode, DOUBLES, 2}, {"fcvt.s.d " #mode, do_fcvt_s_d_##mode, DOUBLES, 2},
    {"fsqrt.s", do_fsqrt_s, SINGLES, FP_ROUNDING_COUNT},
    {"fsqrt.d", do_fsqrt_d, DOUBLES, FP_ROUNDING_COUNT},
    {"fcvt.s.d", do_fcvt_s_d, DOUBLES, FP_ROUNDING_COUNT},
    {"fcvt.d.s", do_fcvt_d_s, SINGLES, 1},
    {"fclass.s", do_fclass_s, SINGLES, 1},
    {"fclass.d", do_fclass_d, DOUBLES, 1},
    {"fmv.x.w", do_fmv_x_w, DOUBLES, 1},
    {"fmv.w.x", do_fmv_w_x, WORDS, 1},
    TO_INTEGER(ROW_CONVERT) STATIC_MODES(ROW_STATIC_UNARY)};

static const struct {
    const uint64_t *values;
    unsigned count;
} sets[] = {
    [SINGLES] = {fp_singles, FP_SINGLE_COUNT},
    [DOUBLES] = {fp_doubles, FP_DOUBLE_COUNT},
    [WORDS] = {isa_words, ISA_WORD_COUNT},
};

static void begin_line(const char *name, unsigned rm)
{
    console_text(name);
    console_text(" frm=");
    console_text(fp_rounding_names[rm]);
}

static void run_binary(const struct row *row)
{
    const uint64_t *values = sets[row->operands].values;
    unsigned count = sets[row->operands].count;

    for (unsigned rm = 0; rm < row->roundings; rm++) {
        for (unsigned a = 0; a < count; a++) {
            begin_line(row->name, rm);
            isa_case("", values[a]);
            for (unsigned b = 0; b < count; b++) {
                uint64_t operands[3] = {values[a], values[b], 0}, flags;
                uint64_t result = row->run(operands, rm, &flags);

                isa_result_flags(result, flags);
            }
            isa_end();
        }
    }
}

static void run_unary(const struct row *row)
{
    const uint64_t *values = sets[row->operands].values;

    for (unsigned rm = 0; rm < row->roundings; rm++) {
        begin_line(row->name, rm);
        console_char(':');
        for (unsigned a = 0; a < sets[row->operands].count; a++) {
            uint64_t operands[3] = {values[a], 0, 0}, flags;
            uint64_t result = row->run(operands, rm, &flags);

            isa_result_flags(result, flags);
        }
        isa_end();
    }
}

/* Halves, ties and limits of the integers in both precisions, where conversions go wrong. */
static void run_ties(void)
{
    static const uint64_t values[] = {
        0x3fdfffffffffffff, 0xbfe0000000000000, 0x3ff8000000000000, 0xc004000000000000, 0x41dfffffffe00000,
        0xc1e0000000100000, 0x41efffffffefffff, 0x41f0000000000000, 0xbfeccccccccccccd, 0x43e0000000000000,
        0xc3e0000000000001, 0x43efffffffffffff, 0xbff0000000000000, 0x8000000000000001, 0x4330000000000001,
        0x3810000000000000, 0x380fffffffffffff, 0x380fffffefffffff, 0x380fffffdfffffff, 0x36a0000000000000,
        0x47effffff0000000, 0x47efffffefffffff, 0x3ff0000010000000, 0x3ff0000030000000, 0x3ff0000010000001,
    };

    for (unsigned i = 0; i < sizeof(unary) / sizeof(unary[0]); i++) {
        for (unsigned rm = 0; unary[i].operands == DOUBLES && rm < unary[i].roundings; rm++) {
            begin_line(unary[i].name, rm);
            console_text(" ties:");
            for (unsigned a = 0; a < sizeof(values) / sizeof(values[0]); a++) {
                uint64_t operands[3] = {values[a], 0, 0}, flags;
                uint64_t result = unary[i].run(operands, rm, &flags);

                isa_result_flags(result, flags);
            }
            isa_end();
        }
    }
}

static void run_memory(void)
{
    static uint64_t area[4] = {0x7ff0000000000001, 0x3f8000017f800001, 0, 0};
    uint64_t r[4];

    __asm__ volatile(
        "fld fa0, 0(%1)\nflw fa1, 8(%1)\nflw fa2, 12(%1)\n"
        "fmv.x.d t0, fa0\nsd t0, 0(%0)\nfmv.x.d t0, fa1\nsd t0, 8(%0)\nfmv.x.d t0, fa2\nsd t0, 16(%0)\n"
        "fsd fa1, 16(%1)\nfsw fa0, 24(%1)\nfsw fa2, 28(%1)\n" ::"r"(r),
        "r"(area)
        : "t0", "fa0", "fa1", "fa2", "memory");
    console_text("flw fld fsw fsd:");
    for (unsigned i = 0; i < 3; i++)
        isa_result(r[i]);
    isa_result(area[2]);
    isa_result(area[3]);
    isa_end();
}

/* fflags add up, and only a write clears them. */
static void run_sticky_flags(void)
{
    uint64_t flags[5];

    __asm__ volatile("fscsr zero\n"
                     "li t0, 1\nfcvt.d.l fa0, t0\nfcvt.d.l fa1, zero\nli t0, 3\nfcvt.d.l fa2, t0\n"
                     "fdiv.d fa3, fa0, fa1\nfrflags %0\n"
                     "fdiv.d fa3, fa0, fa2\nfrflags %1\n"
                     "fdiv.d fa3, fa1, fa1\nfrflags %2\n"
                     "fsflagsi %3, 4\nfrcsr %4\nfscsr zero\n"
                     : "=&r"(flags[0]), "=&r"(flags[1]), "=&r"(flags[2]), "=&r"(flags[3]),
                       "=&r"(flags[4])::"t0", "fa0", "fa1", "fa2", "fa3");
    console_text("sticky flags:");
    for (unsigned i = 0; i < 5; i++)
        isa_result(flags[i]);
    isa_end();
}

void bare_main(void)
{
    isa_begin("fp");
    for (unsigned i = 0; i < sizeof(unary) / sizeof(unary[0]); i++)
        run_unary(&unary[i]);
    for (unsigned i = 0; i < sizeof(binary) / sizeof(binary[0]); i++)
        run_binary(&binary[i]);
    run_ties();
    run_memory();
    run_sticky_flags();
    isa_finish();
}
