/*
 * A: every atomic operation in both widths over pairs of operands, and the rules of load-reserved and
 * store-conditional that hold on one hart.
 */
#include "console.h"
#include "isa.h"

static uint64_t cell[16] __attribute__((aligned(128)));

#define OPERATIONS(X)                                                                                        \
    X(amoswap) X(amoadd) X(amoxor) X(amoand) X(amoor) X(amomin) X(amomax) X(amominu) X(amomaxu)
#define DEFINE(op)                                                                                           \
    static uint64_t do_##op##_w(void *at, uint64_t b)                                                        \
    {                                                                                                        \
        uint64_t r;                                                                                          \
        __asm__ volatile(#op ".w %0, %2, (%1)" : "=&r"(r) : "r"(at), "r"(b) : "memory");                     \
        return r;                                                                                            \
    }                                                                                                        \
    static uint64_t do_##op##_d(void *at, uint64_t b)                                                        \
    {                                                                                                        \
        uint64_t r;                                                                                          \
        __asm__ volatile(#op ".d.aqrl %0, %2, (%1)" : "=&r"(r) : "r"(at), "r"(b) : "memory");                \
        return r;                                                                                            \
    }
OPERATIONS(DEFINE)

static const struct {
    const char *name;
    uint64_t (*run)(void *at, uint64_t b);
    unsigned offset; /* Words are tried in the upper half of the cell, so that a wrong width shows. */
} rows[] = {
#define ROW(op) {#op ".w", do_##op##_w, 4}, {#op ".d", do_##op##_d, 0},
    OPERATIONS(ROW)};

static void run_operations(void)
{
    for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        for (unsigned a = 0; a < ISA_WORD_COUNT; a++) {
            isa_case(rows[i].name, isa_words[a]);
            for (unsigned b = 0; b < ISA_WORD_COUNT; b++) {
                cell[0] = rows[i].offset ? isa_words[a] << 32 | 0x1badcafe : isa_words[a];
                isa_result(rows[i].run((char *)cell + rows[i].offset, isa_words[b]));
                isa_result(cell[0]);
            }
            isa_end();
        }
    }
}

/* rd may be the address or the operand register, or x0. */
static void run_same_register(void)
{
    uint64_t a = (uint64_t)cell, b = 5;

    cell[0] = 100;
    __asm__ volatile("amoadd.d %0, %1, (%0)" : "+r"(a) : "r"(b) : "memory");
    __asm__ volatile("amoadd.d %0, %0, (%1)" : "+r"(b) : "r"(cell) : "memory");
    __asm__ volatile("amoadd.d x0, %0, (%1)" ::"r"(b), "r"(cell) : "memory");
    console_text("same register:");
    isa_result(a);
    isa_result(b);
    isa_result(cell[0]);
    isa_end();
}

static void print_pair(const char *name, uint64_t loaded, uint64_t failed)
{
    console_text(name);
    console_char(':');
    isa_result(loaded);
    isa_result(failed != 0);
    isa_result(cell[0]);
    isa_result(cell[1]);
    isa_end();
}

/*
 * Whether a store-conditional may fail spuriously is left open, but a pair with nothing in between must
 * succeed in the end, and one without a reservation must fail.
 */
static void run_reservations(void)
{
    uint64_t loaded, failed, second;

    cell[0] = 0xfedcba9876543210;
    cell[1] = 0x1111;
    __asm__ volatile("1: lr.d %0, (%2)\nsc.d %1, %3, (%2)\nbnez %1, 1b"
                     : "=&r"(loaded), "=&r"(failed)
                     : "r"(cell), "r"(UINT64_C(0x123456789))
                     : "memory");
    print_pair("lr.d sc.d", loaded, failed);
    __asm__ volatile("1: lr.w.aq %0, (%2)\nsc.w.rl %1, %3, (%2)\nbnez %1, 1b"
                     : "=&r"(loaded), "=&r"(failed)
                     : "r"((char *)cell + 4), "r"(UINT64_C(0xaa80000001))
                     : "memory");
    print_pair("lr.w sc.w upper", loaded, failed);
    __asm__ volatile("1: lr.w %0, (%2)\nsc.w %1, %3, (%2)\nbnez %1, 1b"
                     : "=&r"(loaded), "=&r"(failed)
                     : "r"((char *)cell + 4), "r"(UINT64_C(7))
                     : "memory");
    print_pair("lr.w sign", loaded, failed);
    __asm__ volatile("1: lr.d %0, (%3)\nsc.d %1, zero, (%3)\nbnez %1, 1b\nsc.d %2, %4, (%3)"
                     : "=&r"(loaded), "=&r"(failed), "=&r"(second)
                     : "r"(cell), "r"(UINT64_C(99))
                     : "memory");
    print_pair("second sc fails", loaded, second);
    __asm__ volatile("lr.d %0, (%2)\nsc.d %1, %4, (%3)\nsc.d %1, %4, (%2)"
                     : "=&r"(loaded), "=&r"(failed)
                     : "r"(cell), "r"(cell + 1), "r"(UINT64_C(0x77))
                     : "memory");
    cell[1] = 0x1111; /* The first sc went to another address than lr's: whether it stored is open. */
    print_pair("sc ends the reservation", loaded, failed);
    __asm__ volatile("1: lr.d %0, (%2)\naddi %0, %0, 3\nsc.d %1, %0, (%2)\nbnez %1, 1b"
                     : "=&r"(loaded), "=&r"(failed)
                     : "r"(cell)
                     : "memory");
    print_pair("lr add sc", loaded, failed);
}

/* Compare-and-swap loops as compilers write them, many times. */
static void run_loops(void)
{
    uint64_t expected;

    cell[2] = 0;
    for (uint64_t i = 0; i < 20000; i++) {
        expected = __atomic_load_n(&cell[2], __ATOMIC_ACQUIRE);
        while (!__atomic_compare_exchange_n(&cell[2], &expected, expected * 3 + i, false, __ATOMIC_ACQ_REL,
                                            __ATOMIC_ACQUIRE))
            ;
    }
    console_text("compare and swap:");
    isa_result(cell[2]);
    isa_end();
}

void bare_main(void)
{
    isa_begin("atomic");
    run_operations();
    run_same_register();
    run_reservations();
    run_loops();
    isa_finish();
}
