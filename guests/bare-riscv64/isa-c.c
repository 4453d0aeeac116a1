/*
 * C: every compressed instruction of RV64GC, written as such, over interesting operands; control flow among
 * 2- and 4-byte instructions; 4-byte instructions that cross a page.
 */
#include "console.h"
#include "isa.h"

typedef uint64_t (*operation)(uint64_t a, uint64_t b);

/* In a compressed instruction the first source is the destination too. */
#define DEFINE2(op)                                                                                          \
    static uint64_t do_##op(uint64_t a, uint64_t b)                                                          \
    {                                                                                                        \
        register uint64_t x __asm__("a0") = a;                                                               \
        register uint64_t y __asm__("a1") = b;                                                               \
        __asm__ volatile("c." #op " %0, %1" : "+r"(x) : "r"(y));                                             \
        return x;                                                                                            \
    }
#define REGISTER_OPERATIONS(X) X(add) X(mv) X(sub) X(xor) X(or) X(and) X(addw) X(subw)
REGISTER_OPERATIONS(DEFINE2)

#define DEFINE_IMMEDIATE(op, n, imm)                                                                         \
    static uint64_t do_##op##_##n(uint64_t a, uint64_t b)                                                    \
    {                                                                                                        \
        register uint64_t x __asm__("a0") = a;                                                               \
        (void)b;                                                                                             \
        __asm__ volatile("c." #op " %0, " #imm : "+r"(x));                                                   \
        return x;                                                                                            \
    }
#define SIGNED_6(X, op) X(op, 0, 1) X(op, 1, -1) X(op, 2, 31) X(op, 3, -32) X(op, 4, 21)
#define SHIFTS(X, op)   X(op, 0, 1) X(op, 1, 31) X(op, 2, 32) X(op, 3, 63)
#define IMMEDIATE_OPERATIONS(X)                                                                              \
    SIGNED_6(X, addi)                                                                                        \
    SIGNED_6(X, addiw)                                                                                       \
    SIGNED_6(X, andi)                                                                                        \
    SIGNED_6(X, li)                                                                                          \
    SHIFTS(X, slli)                                                                                          \
    SHIFTS(X, srli)                                                                                          \
    SHIFTS(X, srai)                                                                                          \
    X(addiw, 5, 0)                                                                                           \
    X(andi, 5, 0)                                                                                            \
    X(li, 5, 0)                                                                                              \
    X(lui, 0, 1)                                                                                             \
    X(lui, 1, 31)                                                                                            \
    X(lui, 2, 0xfffe0)                                                                                       \
    X(lui, 3, 0xfffff)
IMMEDIATE_OPERATIONS(DEFINE_IMMEDIATE)

static const struct {
    const char *name;
    operation run;
} registers[] = {
#define ROW2(op) {"c." #op, do_##op},
    REGISTER_OPERATIONS(ROW2)};

static const struct {
    const char *name;
    operation run;
} immediates[] = {
#define ROW_IMMEDIATE(op, n, imm) {"c." #op " " #imm, do_##op##_##n},
    IMMEDIATE_OPERATIONS(ROW_IMMEDIATE)};

static void run_arithmetic(void)
{
    for (unsigned i = 0; i < sizeof(registers) / sizeof(registers[0]); i++) {
        for (unsigned a = 0; a < ISA_WORD_COUNT; a++) {
            isa_case(registers[i].name, isa_words[a]);
            for (unsigned b = 0; b < ISA_WORD_COUNT; b++)
                isa_result(registers[i].run(isa_words[a], isa_words[b]));
            isa_end();
        }
    }
    for (unsigned i = 0; i < sizeof(immediates) / sizeof(immediates[0]); i++) {
        console_text(immediates[i].name);
        console_char(':');
        for (unsigned a = 0; a < ISA_WORD_COUNT; a++)
            isa_result(immediates[i].run(isa_words[a], 0));
        isa_end();
    }
}

/* Loads and stores relative to a register and to the stack pointer; sp is borrowed, which no trap minds. */
static void run_memory(void)
{
    static uint64_t area[80] __attribute__((aligned(16)));
    uint64_t r[14];

    for (unsigned i = 0; i < 80; i++)
        area[i] = 0x8081828384858687 + i * 0x0101010101010101;
    __asm__ volatile("mv a0, %[area]\n"
                     "c.lw a1, 0(a0)\nsd a1, 0(%[r])\n"
                     "c.lw a1, 124(a0)\nsd a1, 8(%[r])\n"
                     "c.ld a1, 0(a0)\nsd a1, 16(%[r])\n"
                     "c.ld a1, 248(a0)\nsd a1, 24(%[r])\n"
                     "c.fld fa1, 128(a0)\nfsd fa1, 32(%[r])\n"
                     "li a1, 0x1122334455667788\nfmv.d.x fa1, a1\n"
                     "c.sw a1, 4(a0)\nc.sw a1, 68(a0)\nc.sd a1, 16(a0)\nc.sd a1, 240(a0)\nc.fsd fa1, 64(a0)\n"
                     "mv t0, sp\nmv sp, a0\n"
                     "c.lwsp t1, 252(sp)\nsd t1, 40(%[r])\n"
                     "c.ldsp t1, 504(sp)\nsd t1, 48(%[r])\n"
                     "c.fldsp fa2, 496(sp)\nfsd fa2, 56(%[r])\n"
                     "c.swsp a1, 196(sp)\nc.sdsp a1, 488(sp)\nc.fsdsp fa1, 480(sp)\n"
                     "c.addi4spn a1, sp, 4\nsub a1, a1, a0\nsd a1, 64(%[r])\n"
                     "c.addi4spn a1, sp, 1020\nsub a1, a1, a0\nsd a1, 72(%[r])\n"
                     "c.addi16sp sp, 16\nsub a1, sp, a0\nsd a1, 80(%[r])\n"
                     "c.addi16sp sp, 496\nsub a1, sp, a0\nsd a1, 88(%[r])\n"
                     "c.addi16sp sp, -512\nsub a1, sp, a0\nsd a1, 96(%[r])\n"
                     "c.addi16sp sp, -32\nsub a1, sp, a0\nsd a1, 104(%[r])\n"
                     "mv sp, t0\n" ::[area] "r"(area),
                     [r] "r"(r)
                     : "a0", "a1", "t0", "t1", "fa1", "fa2", "memory");
    console_text("c loads and stack:");
    for (unsigned i = 0; i < 14; i++)
        isa_result(r[i]);
    isa_end();
    for (unsigned i = 0; i < 80; i += 10) {
        console_text("c stores:");
        for (unsigned n = 0; n < 10; n++)
            isa_result(area[i + n]);
        isa_end();
    }
}

static void run_control(void)
{
    static const uint64_t values[] = {0, 1, 0x8000000000000000, 0x100000000, 0xffffffffffffffff};
    uint64_t trace, link;

    for (unsigned i = 0; i < 5; i++) {
        register uint64_t x __asm__("a0") = values[i];
        register uint64_t y __asm__("a1") = 0;

        __asm__ volatile("c.beqz %0, 1f\nc.addi %1, 1\n"
                         "1: c.bnez %0, 2f\nc.addi %1, 2\n"
                         "2: c.slli %1, 4\n"
                         : "+r"(x), "+r"(y));
        trace = y; /* Named registers do not outlive a call. */
        console_text("c.beqz c.bnez:");
        isa_result(trace);
        isa_end();
    }
    __asm__ volatile("  .option push\n  .option rvc\n"
                     "  li %0, 1\n"
                     "  c.j 2f\n"
                     "1: c.addi %0, 2\n"
                     "  c.jr ra\n"
                     "2: la t0, 1b\n"
                     "  c.jalr t0\n"
                     "3: slli %0, %0, 5\n"
                     "  la t0, 1b\n"
                     "  jalr t0\n"
                     "4: c.addi %0, 7\n"
                     "  la t0, 4b\n"
                     "  sub %1, ra, t0\n"
                     "  .option pop\n"
                     : "=&r"(trace), "=&r"(link)::"ra", "t0");
    console_text("c.j c.jr c.jalr:");
    isa_result(trace);
    isa_result(link);
    isa_end();
}

static uint16_t code[4096] __attribute__((aligned(4096)));

/* Places a 4-byte instruction at halfword AT, which may leave its halves on two pages. */
static void put4(unsigned at, uint32_t instruction)
{
    code[at] = (uint16_t)instruction;
    code[at + 1] = (uint16_t)(instruction >> 16);
}

static uint32_t encode_addi_a0(uint32_t immediate)
{
    return immediate << 20 | 10 << 15 | 10 << 7 | 0x13;
}

/*
 * 4-byte instructions whose halves are on two pages: run straight on, jumped to, branching backwards, and
 * after either half was changed.
 */
static void run_page_crossing(void)
{
    const unsigned end = 2048; /* First halfword of the second page. */
    uint64_t (*function)(uint64_t, uint64_t);

    console_text("page crossing:");
    for (uint32_t i = 0; i < 8; i++) {
        put4(end - 3, encode_addi_a0(1));
        put4(end - 1, encode_addi_a0(i * 0x10 + 3));
        code[end + 1] = 0x8082; /* c.jr ra */
        __asm__ volatile("fence.i" ::: "memory");
        function = (uint64_t(*)(uint64_t, uint64_t))(code + end - 3);
        isa_result(function(1000, 0));
        function = (uint64_t(*)(uint64_t, uint64_t))(code + end - 1);
        isa_result(function(1000, 0));
    }
    code[end] = (uint16_t)(encode_addi_a0(0x7ff) >> 16);
    __asm__ volatile("fence.i" ::: "memory");
    isa_result(function(1000, 0));
    put4(end - 1, encode_addi_a0(0x7ff) | 1 << 13); /* addi becomes slti; only the first half changes. */
    __asm__ volatile("fence.i" ::: "memory");
    isa_result(function(1000, 0));
    isa_end();

    code[end - 3] = 0x952e;    /* 1: c.add a0, a1 */
    code[end - 2] = 0x15fd;    /*    c.addi a1, -1 */
    put4(end - 1, 0xfe059ee3); /*    bnez a1, 1b */
    code[end + 1] = 0x8082;    /*    c.jr ra */
    __asm__ volatile("fence.i" ::: "memory");
    function = (uint64_t(*)(uint64_t, uint64_t))(code + end - 3);
    console_text("page crossing branch:");
    isa_result(function(0, 1000));
    isa_end();
}

void bare_main(void)
{
    isa_begin("c");
    run_arithmetic();
    run_memory();
    run_control();
    run_page_crossing();
    isa_finish();
}
