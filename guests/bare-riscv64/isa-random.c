/*
 * Runs the blocks that isa-random.py made and prints a line for each: hashes of the integer registers, of the
 * floating-point registers and of the scratch area, and fcsr. Boot argument dump=N prints every register of
 * block N as well, before and after, for finding what differs; dump=all does so for all.
 */
#include "console.h"
#include "fdt.h"
#include "isa-fp.h"
#include "isa.h"

#define SCRATCH_WORDS 256

/* The register part is laid out as isa-random-run.S has it. */
struct block_state {
    uint64_t x[32];
    uint64_t f[32];
    uint64_t fcsr;
    uint64_t scratch[SCRATCH_WORDS + 2]; /* Two more for the registers that block_end parks there. */
};

void block_run(struct block_state *state);

extern const uint64_t block_table[], block_count, block_seed;

static uint64_t random_word(uint64_t *seed)
{
    uint64_t kind = isa_random(seed) % 4;

    if (kind == 0)
        return isa_words[isa_random(seed) % ISA_WORD_COUNT];
    if (kind == 1)
        return isa_random(seed) >> isa_random(seed) % 64;
    return isa_random(seed);
}

static uint64_t random_float(uint64_t *seed)
{
    uint64_t bits = isa_random(seed);

    switch (isa_random(seed) % 8) {
    case 0:
        return fp_doubles[bits % FP_DOUBLE_COUNT];
    case 1:
        return fp_singles[bits % FP_SINGLE_COUNT];
    case 2:
        return bits;
    case 3:
        return BOX(bits & 0xffffffff);
    case 4:
    case 5:
        return BOX((bits & 0x80ffffff) | 0x3f000000);
    default:
        return (bits & 0x801fffffffffffff) | 0x3fe0000000000000;
    }
}

static void state_fill(struct block_state *state, uint64_t seed, uint64_t block)
{
    for (unsigned i = 0; i < 32; i++)
        state->x[i] = random_word(&seed);
    for (unsigned i = 0; i < 32; i++)
        state->f[i] = random_float(&seed);
    for (unsigned i = 0; i < SCRATCH_WORDS; i++)
        state->scratch[i] = i % 2 ? random_float(&seed) : random_word(&seed);
    state->fcsr = isa_random(&seed) % 5 << 5;
    state->x[0] = 0;
    state->x[1] = block;
    state->x[2] = (uint64_t)(state->scratch + SCRATCH_WORDS / 2);
}

static uint64_t hash(const uint64_t *words, unsigned count)
{
    uint64_t value = 0xcbf29ce484222325;

    for (unsigned i = 0; i < count; i++) {
        value = (value ^ words[i]) * 0x100000001b3;
        value ^= value >> 29;
    }
    return value;
}

static void state_dump(const struct block_state *state)
{
    for (unsigned i = 0; i < 32; i++) {
        console_text("    x");
        console_decimal(i);
        isa_result(state->x[i]);
        console_text(" f");
        console_decimal(i);
        isa_result(state->f[i]);
        console_char('\n');
    }
    console_text("    fcsr");
    isa_result(state->fcsr);
    console_char('\n');
    for (unsigned i = 0; i < SCRATCH_WORDS; i += 4) {
        console_text("    scratch");
        for (unsigned n = 0; n < 4; n++)
            isa_result(state->scratch[i + n]);
        console_char('\n');
    }
}

void bare_main(uint64_t hart, const void *fdt)
{
    static struct block_state state;
    struct fdt_info info;
    uint64_t dump;

    (void)hart;
    fdt_read(fdt, &info);
    dump = args_number(info.bootargs, "dump", UINT64_MAX);
    isa_begin("random");
    for (uint64_t i = 0; i < block_count; i++) {
        bool show = i == dump || args_is(info.bootargs, "dump", "all");

        state_fill(&state, block_seed * 1000003 + i, block_table[i]);
        if (show) {
            console_text("before block at");
            isa_result(block_table[i]);
            isa_end();
            state_dump(&state);
        }
        block_run(&state);
        state.x[0] = 0;
        console_text("block ");
        console_decimal(i);
        console_char(':');
        isa_result(hash(state.x, 32));
        isa_result(hash(state.f, 32));
        isa_result(hash(state.scratch, SCRATCH_WORDS));
        isa_result(state.fcsr);
        isa_end();
        if (show)
            state_dump(&state);
    }
    isa_finish();
}
