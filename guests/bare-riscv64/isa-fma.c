/*
 * Fused multiply and add of F and D: every triple of a smaller set of operands in every rounding mode, then
 * random triples chosen so that exponents come close and cancel. One line per operation, mode and first two
 * operands.
 */
#include "isa-fp.h"
#include "console.h"
#include "isa.h"

#define FUSED(X) X(fmadd) X(fmsub) X(fnmsub) X(fnmadd)
#define DEFINE_FUSED(op)                                                                                     \
    FP_DEFINE(do_##op##_s, #op ".s fa3, fa0, fa1, fa2\nfmv.x.d %[r], fa3")                                   \
    FP_DEFINE(do_##op##_d, #op ".d fa3, fa0, fa1, fa2\nfmv.x.d %[r], fa3")
FUSED(DEFINE_FUSED)

static const struct {
    const char *name;
    fp_operation run;
    bool is_double;
} rows[] = {
#define ROW_FUSED(op) {#op ".s", do_##op##_s, false}, {#op ".d", do_##op##_d, true},
    FUSED(ROW_FUSED)};

#define PICK_COUNT 12
/* Indices into fp_singles and fp_doubles, which are of a kind in their first 21 places. */
static const uint8_t picks[PICK_COUNT] = {0, 1, 2, 3, 4, 7, 8, 9, 11, 12, 14, 20};

static void run_triples(unsigned row, unsigned rm)
{
    const uint64_t *values = rows[row].is_double ? fp_doubles : fp_singles;

    for (unsigned a = 0; a < PICK_COUNT; a++) {
        for (unsigned b = 0; b < PICK_COUNT; b++) {
            console_text(rows[row].name);
            console_text(" frm=");
            console_text(fp_rounding_names[rm]);
            isa_result(values[picks[a]]);
            isa_case("", values[picks[b]]);
            for (unsigned c = 0; c < PICK_COUNT; c++) {
                uint64_t operands[3] = {values[picks[a]], values[picks[b]], values[picks[c]]}, flags;
                uint64_t result = rows[row].run(operands, rm, &flags);

                isa_result_flags(result, flags);
            }
            isa_end();
        }
    }
}

/* A number whose exponent is SPREAD or less away from the middle. */
static uint64_t near_one(uint64_t *state, bool is_double, unsigned spread)
{
    uint64_t bits = isa_random(state);
    uint64_t exponent = isa_random(state) % (2 * spread + 1);

    if (is_double)
        return (bits & 0x800fffffffffffff) | (1023 - spread + exponent) << 52;
    return BOX((bits & 0x807fffff) | (127 - spread + exponent) << 23);
}

static void run_random(unsigned row)
{
    uint64_t state = 0x5eed0000 + row;

    for (unsigned i = 0; i < 400; i++) {
        unsigned spread = i % 4 == 0 ? 120 : i % 4 == 1 ? 30 : 3;
        uint64_t operands[3], flags, result;

        for (unsigned n = 0; n < 3; n++)
            operands[n] = near_one(&state, rows[row].is_double, spread);
        console_text(rows[row].name);
        for (unsigned n = 0; n < 3; n++)
            isa_result(operands[n]);
        console_char(':');
        for (unsigned rm = 0; rm < FP_ROUNDING_COUNT; rm++) {
            result = rows[row].run(operands, rm, &flags);
            isa_result_flags(result, flags);
        }
        isa_end();
    }
}

void bare_main(void)
{
    isa_begin("fma");
    for (unsigned row = 0; row < sizeof(rows) / sizeof(rows[0]); row++) {
        for (unsigned rm = 0; rm < FP_ROUNDING_COUNT; rm += 2)
            run_triples(row, rm);
        run_random(row);
    }
    isa_finish();
}
