/*
 * RV64I and M: every register and immediate operation over all pairs of interesting operands, loads and
 * stores of every width at every alignment, branches, jumps, fence.i with changed code. One line per
 * operation and first operand.
 */
#include "console.h"
#include "isa.h"

typedef uint64_t (*operation2)(uint64_t a, uint64_t b);

#define BINARY_OPERATIONS(X)                                                                                 \
    X(add)                                                                                                   \
    X(sub)                                                                                                   \
    X(sll)                                                                                                   \
    X(slt)                                                                                                   \
    X(sltu)                                                                                                  \
    X(xor) X(srl) X(sra) X(or) X(and) X(addw) X(subw) X(sllw) X(srlw) X(sraw) X(mul) X(mulh) X(mulhsu)       \
        X(mulhu) X(div) X(divu) X(rem) X(remu) X(mulw) X(divw) X(divuw) X(remw) X(remuw)

#define DEFINE_BINARY(op)                                                                                    \
    static uint64_t do_##op(uint64_t a, uint64_t b)                                                          \
    {                                                                                                        \
        uint64_t r;                                                                                          \
        __asm__ volatile(#op " %0, %1, %2" : "=r"(r) : "r"(a), "r"(b));                                      \
        return r;                                                                                            \
    }
BINARY_OPERATIONS(DEFINE_BINARY)

#define DEFINE_IMMEDIATE(op, n, imm)                                                                         \
    static uint64_t do_##op##_##n(uint64_t a)                                                                \
    {                                                                                                        \
        uint64_t r;                                                                                          \
        __asm__ volatile(#op " %0, %1, " #imm : "=r"(r) : "r"(a));                                           \
        return r;                                                                                            \
    }
#define IMMEDIATES_12(X, op)                                                                                 \
    X(op, 0, 0) X(op, 1, 1) X(op, 2, -1) X(op, 3, 2047) X(op, 4, -2048) X(op, 5, 0x555) X(op, 6, -0x556)
#define IMMEDIATES_6(X, op) X(op, 0, 0) X(op, 1, 1) X(op, 2, 31) X(op, 3, 32) X(op, 4, 33) X(op, 5, 63)
#define IMMEDIATES_5(X, op) X(op, 0, 0) X(op, 1, 1) X(op, 2, 15) X(op, 3, 16) X(op, 4, 30) X(op, 5, 31)
#define IMMEDIATE_OPERATIONS(X)                                                                              \
    IMMEDIATES_12(X, addi)                                                                                   \
    IMMEDIATES_12(X, slti)                                                                                   \
    IMMEDIATES_12(X, sltiu)                                                                                  \
    IMMEDIATES_12(X, xori)                                                                                   \
    IMMEDIATES_12(X, ori)                                                                                    \
    IMMEDIATES_12(X, andi)                                                                                   \
    IMMEDIATES_12(X, addiw)                                                                                  \
    IMMEDIATES_6(X, slli)                                                                                    \
    IMMEDIATES_6(X, srli)                                                                                    \
    IMMEDIATES_6(X, srai)                                                                                    \
    IMMEDIATES_5(X, slliw)                                                                                   \
    IMMEDIATES_5(X, srliw)                                                                                   \
    IMMEDIATES_5(X, sraiw)
IMMEDIATE_OPERATIONS(DEFINE_IMMEDIATE)

#define BRANCHES(X) X(beq) X(bne) X(blt) X(bge) X(bltu) X(bgeu)
#define DEFINE_BRANCH(op)                                                                                    \
    static uint64_t do_##op(uint64_t a, uint64_t b)                                                          \
    {                                                                                                        \
        uint64_t r;                                                                                          \
        __asm__ volatile("li %0, 1\n" #op " %1, %2, 1f\nli %0, 0\n1:" : "=&r"(r) : "r"(a), "r"(b));          \
        return r;                                                                                            \
    }
BRANCHES(DEFINE_BRANCH)

static const struct {
    const char *name;
    operation2 run;
} binary[] = {
#define ROW_BINARY(op) {#op, do_##op},
    BINARY_OPERATIONS(ROW_BINARY) BRANCHES(ROW_BINARY)};

static const struct {
    const char *name;
    uint64_t (*run)(uint64_t a);
} immediate[] = {
#define ROW_IMMEDIATE(op, n, imm) {#op " " #imm, do_##op##_##n},
    IMMEDIATE_OPERATIONS(ROW_IMMEDIATE)};

static void run_binary(void)
{
    for (unsigned i = 0; i < sizeof(binary) / sizeof(binary[0]); i++) {
        for (unsigned a = 0; a < ISA_WORD_COUNT; a++) {
            isa_case(binary[i].name, isa_words[a]);
            for (unsigned b = 0; b < ISA_WORD_COUNT; b++)
                isa_result(binary[i].run(isa_words[a], isa_words[b]));
            isa_end();
        }
    }
}

static void run_immediate(void)
{
    for (unsigned i = 0; i < sizeof(immediate) / sizeof(immediate[0]); i++) {
        console_text(immediate[i].name);
        console_char(':');
        for (unsigned a = 0; a < ISA_WORD_COUNT; a++)
            isa_result(immediate[i].run(isa_words[a]));
        isa_end();
    }
}

static uint8_t area[64] __attribute__((aligned(64)));

static void area_fill(void)
{
    for (unsigned i = 0; i < sizeof(area); i++)
        area[i] = (uint8_t)(0x8d + i * 0x3b);
}

static void area_print(void)
{
    for (unsigned i = 0; i < sizeof(area); i += 8)
        isa_result(*(const uint64_t *)(area + i));
    isa_end();
}

/* Naturally aligned only: what a misaligned access does is the platform's choice. */
#define OFFSETS_1(X, op) X(op, 0) X(op, 1) X(op, -1) X(op, 7) X(op, -32) X(op, 31)
#define OFFSETS_2(X, op) X(op, 0) X(op, 2) X(op, -2) X(op, 6) X(op, -32) X(op, 30)
#define OFFSETS_4(X, op) X(op, 0) X(op, 4) X(op, -4) X(op, 8) X(op, -32) X(op, 28)
#define OFFSETS_8(X, op) X(op, 0) X(op, 8) X(op, -8) X(op, 16) X(op, -32) X(op, 24)
#define LOADS(X)                                                                                             \
    OFFSETS_1(X, lb)                                                                                         \
    OFFSETS_1(X, lbu)                                                                                        \
    OFFSETS_2(X, lh)                                                                                         \
    OFFSETS_2(X, lhu)                                                                                        \
    OFFSETS_4(X, lw)                                                                                         \
    OFFSETS_4(X, lwu)                                                                                        \
    OFFSETS_8(X, ld)
#define STORES(X) OFFSETS_1(X, sb) OFFSETS_2(X, sh) OFFSETS_4(X, sw) OFFSETS_8(X, sd)

#define RUN_LOAD(op, offset)                                                                                 \
    __asm__ volatile(#op " %0, " #offset "(%1)" : "=r"(r) : "r"(area + 32) : "memory");                      \
    console_text(#op " " #offset ":");                                                                       \
    isa_result(r);                                                                                           \
    isa_end();
#define RUN_STORE(op, offset)                                                                                \
    area_fill();                                                                                             \
    __asm__ volatile(#op " %0, " #offset "(%1)" ::"r"(r), "r"(area + 32) : "memory");                        \
    console_text(#op " " #offset ":");                                                                       \
    area_print();

static void run_memory(void)
{
    uint64_t r;

    area_fill();
    LOADS(RUN_LOAD)
    r = 0x8123456789abcdef;
    STORES(RUN_STORE)
}

/* x0 as destination, auipc and lui at their ends, jump and link in both directions. */
static void run_control(void)
{
    uint64_t r[4], pc;

    __asm__ volatile("li t0, 7\nadd x0, t0, t0\nmv %0, x0" : "=r"(r[0])::"t0");
    __asm__ volatile("lui %0, 0x80000\nlui %1, 0x7ffff\nlui %2, 0" : "=&r"(r[1]), "=&r"(r[2]), "=&r"(r[3]));
    console_text("x0 lui:");
    for (unsigned i = 0; i < 4; i++)
        isa_result(r[i]);
    isa_end();
    __asm__ volatile("1: auipc %0, 0x80000\nauipc %1, 0x7ffff\nla %2, 1b"
                     : "=&r"(r[0]), "=&r"(r[1]), "=&r"(pc));
    console_text("auipc:");
    isa_result(r[0] - pc);
    isa_result(r[1] - pc);
    isa_end();
    __asm__ volatile("  li %1, 0\n"
                     "  j 3f\n"
                     "1: addi %1, %1, 1\n"
                     "  jr %0\n"
                     "3: jal %0, 1b\n"
                     "  addi %1, %1, 16\n"
                     "  la t0, 1b\n"
                     "  addi t0, t0, -9\n"
                     "  jalr %0, 10(t0)\n"
                     "  addi %1, %1, 256\n"
                     "  la t0, 4f\n"
                     "  jalr t0, 0(t0)\n"
                     "5: addi %1, %1, 1024\n"
                     "4: la %0, 5b\n"
                     "  sub %0, t0, %0\n"
                     : "=&r"(r[0]), "=&r"(r[1])::"t0");
    console_text("jumps:");
    isa_result(r[0]);
    isa_result(r[1]);
    isa_end();
}

/* Code that was run, then changed, then run again after fence.i: 200 times, at two places on one page. */
static void run_changed_code(void)
{
    static uint32_t code[1024] __attribute__((aligned(4096)));
    uint64_t sum = 0;

    for (uint32_t i = 0; i < 200; i++) {
        uint32_t *at = code + (i & 1 ? 1000 : 4);
        uint64_t (*function)(void) = (uint64_t(*)(void))at;

        at[0] = 0x00000513 | (i * 5 % 2048) << 20; /* addi a0, zero, i * 5 % 2048 */
        at[1] = 0x00008067;                        /* ret */
        __asm__ volatile("fence.i" ::: "memory");
        sum = sum * 31 + function();
    }
    console_text("fence.i:");
    isa_result(sum);
    isa_end();
}

void bare_main(void)
{
    isa_begin("int");
    run_binary();
    run_immediate();
    run_memory();
    run_control();
    run_changed_code();
    isa_finish();
}
