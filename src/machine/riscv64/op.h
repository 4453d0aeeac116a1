/*
 * Decoded instructions of the built-in CPU.
 *
 * An instruction is decoded once (decode.h) into a `struct insn`, and a run of them is laid down as a block
 * of `struct op` (translate.c), which exec.c runs by jumping from handler to handler. Ops know nothing of
 * virtual addresses: what depends on the pc is held relative to the start of the 4 KiB page the code lies in,
 * so that blocks, which are kept by guest physical address, can be shared by all mappings of their page and
 * survive sfence.vma.
 *
 * An op that can leave its block is followed by a `struct op_link` in the next slot.
 */
#ifndef FERRY_MACHINE_RISCV64_OP_H
#define FERRY_MACHINE_RISCV64_OP_H

#include <assert.h>
#include <stdint.h>

/* The low 32 bits, sign-extended: what every *W instruction leaves in its register. */
#define SEXT32(value) ((uint64_t)(int64_t)(int32_t)(value))

/* Branch conditions: name, C expression over A and B (uint64_t). */
#define OP_CONDITIONS(X)                                                                                     \
    X(BEQ, a == b)                                                                                           \
    X(BNE, a != b)                                                                                           \
    X(BLT, (int64_t)a < (int64_t)b)                                                                          \
    X(BGE, (int64_t)a >= (int64_t)b)                                                                         \
    X(BLTU, a < b)                                                                                           \
    X(BGEU, a >= b)

/* rd = expression over A (rs1) and B (rs2). */
#define OP_ALU_REG(X)                                                                                        \
    X(ADD, a + b)                                                                                            \
    X(SUB, a - b)                                                                                            \
    X(SLL, a << (b & 63))                                                                                    \
    X(SLT, (uint64_t)((int64_t)a < (int64_t)b))                                                              \
    X(SLTU, (uint64_t)(a < b))                                                                               \
    X(XOR, a ^ b)                                                                                            \
    X(SRL, a >> (b & 63))                                                                                    \
    X(SRA, (uint64_t)((int64_t)a >> (b & 63)))                                                               \
    X(OR, a | b)                                                                                             \
    X(AND, a &b)                                                                                             \
    X(ADDW, SEXT32(a + b))                                                                                   \
    X(SUBW, SEXT32(a - b))                                                                                   \
    X(SLLW, SEXT32((uint32_t)a << (b & 31)))                                                                 \
    X(SRLW, SEXT32((uint32_t)a >> (b & 31)))                                                                 \
    X(SRAW, SEXT32((int32_t)a >> (b & 31)))                                                                  \
    X(MUL, a *b)                                                                                             \
    X(MULH, (uint64_t)(((__int128)(int64_t)a * (int64_t)b) >> 64))                                           \
    X(MULHSU, (uint64_t)(((__int128)(int64_t)a * (__int128)b) >> 64))                                        \
    X(MULHU, (uint64_t)(((unsigned __int128)a * b) >> 64))                                                   \
    X(DIV, div_signed(a, b))                                                                                 \
    X(DIVU, b ? a / b : UINT64_MAX)                                                                          \
    X(REM, rem_signed(a, b))                                                                                 \
    X(REMU, b ? a % b : a)                                                                                   \
    X(MULW, SEXT32(a *b))                                                                                    \
    X(DIVW, divw_signed((uint32_t)a, (uint32_t)b))                                                           \
    X(DIVUW, (uint32_t)b ? SEXT32((uint32_t)a / (uint32_t)b) : UINT64_MAX)                                   \
    X(REMW, remw_signed((uint32_t)a, (uint32_t)b))                                                           \
    X(REMUW, (uint32_t)b ? SEXT32((uint32_t)a % (uint32_t)b) : SEXT32(a))

/* rd = expression over A (rs1) and I (immediate, sign-extended). */
#define OP_ALU_IMM(X)                                                                                        \
    X(ADDI, a + i)                                                                                           \
    X(SLTI, (uint64_t)((int64_t)a < (int64_t)i))                                                             \
    X(SLTIU, (uint64_t)(a < i))                                                                              \
    X(XORI, a ^ i)                                                                                           \
    X(ORI, a | i)                                                                                            \
    X(ANDI, a &i)                                                                                            \
    X(SLLI, a << (i & 63))                                                                                   \
    X(SRLI, a >> (i & 63))                                                                                   \
    X(SRAI, (uint64_t)((int64_t)a >> (i & 63)))                                                              \
    X(ADDIW, SEXT32(a + i))                                                                                  \
    X(SLLIW, SEXT32((uint32_t)a << (i & 31)))                                                                \
    X(SRLIW, SEXT32((uint32_t)a >> (i & 31)))                                                                \
    X(SRAIW, SEXT32((int32_t)a >> (i & 31)))

/* Name, type loaded. */
#define OP_LOADS(X)                                                                                          \
    X(LB, int8_t)                                                                                            \
    X(LH, int16_t)                                                                                           \
    X(LW, int32_t)                                                                                           \
    X(LD, uint64_t)                                                                                          \
    X(LBU, uint8_t)                                                                                          \
    X(LHU, uint16_t)                                                                                         \
    X(LWU, uint32_t)

#define OP_STORES(X)                                                                                         \
    X(SB, uint8_t)                                                                                           \
    X(SH, uint16_t)                                                                                          \
    X(SW, uint32_t)                                                                                          \
    X(SD, uint64_t)

/* Atomic read-modify-write: name, new value from OLD and VALUE. W and D forms follow each other. */
#define OP_AMOS(X)                                                                                           \
    X(AMOSWAP, value)                                                                                        \
    X(AMOADD, uold + uvalue)                                                                                 \
    X(AMOXOR, old ^ value)                                                                                   \
    X(AMOAND, old &value)                                                                                    \
    X(AMOOR, old | value)                                                                                    \
    X(AMOMIN, old < value ? old : value)                                                                     \
    X(AMOMAX, old > value ? old : value)                                                                     \
    X(AMOMINU, uold < uvalue ? old : value)                                                                  \
    X(AMOMAXU, uold > uvalue ? old : value)

/*
 * Floating point with a rounding mode that need not be looked at (`dyn` and no special mode in force: the
 * host's FPU is already set to it): name, expression over A, B, C.
 */
#define OP_FP_S(X)                                                                                           \
    X(FADD_S, a + b)                                                                                         \
    X(FSUB_S, a - b)                                                                                         \
    X(FMUL_S, a *b)                                                                                          \
    X(FDIV_S, a / b)
#define OP_FP_D(X)                                                                                           \
    X(FADD_D, a + b)                                                                                         \
    X(FSUB_D, a - b)                                                                                         \
    X(FMUL_D, a *b)                                                                                          \
    X(FDIV_D, a / b)

/* Fused multiply-add: name, sign of the product, sign of the addend. */
#define OP_FMA(X)                                                                                            \
    X(FMADD, +, +)                                                                                           \
    X(FMSUB, +, -)                                                                                           \
    X(FNMSUB, -, +)                                                                                          \
    X(FNMADD, -, -)

/* clang-format off */
/* Done by a call to fpu.c, whatever the rounding mode: from a floating-point to an integer register. */
#define OP_FP_FROM_FLOAT(X) \
    X(FCVT_W_S) X(FCVT_WU_S) X(FCVT_L_S) X(FCVT_LU_S) X(FCVT_W_D) X(FCVT_WU_D) X(FCVT_L_D) X(FCVT_LU_D) \
    X(FCLASS_S) X(FCLASS_D)

/* The same, to a floating-point register. */
#define OP_FP_CALLED(X) \
    X(FSQRT_S) X(FSQRT_D) X(FMIN_S) X(FMAX_S) X(FMIN_D) X(FMAX_D) X(FCVT_S_W) X(FCVT_S_WU) X(FCVT_S_L) \
    X(FCVT_S_LU) X(FCVT_D_W) X(FCVT_D_WU) X(FCVT_D_L) X(FCVT_D_LU) X(FCVT_S_D) X(FCVT_D_S)

/* Done in line, to an integer register. */
#define OP_FP_TO_INTEGER(X) \
    X(FMV_X_W) X(FMV_X_D) X(FEQ_S) X(FLT_S) X(FLE_S) X(FEQ_D) X(FLT_D) X(FLE_D)

/* Done in line, to a floating-point register. */
#define OP_FP_MOVES(X) \
    X(FSGNJ_S) X(FSGNJN_S) X(FSGNJX_S) X(FSGNJ_D) X(FSGNJN_D) X(FSGNJX_D) X(FMV_W_X) X(FMV_D_X)

/* Floating-point loads and stores. */
#define OP_FP_MEMORY(X) \
    X(FLW) X(FLD) X(FSW) X(FSD)

/* CSR instructions. */
#define OP_CSR(X) \
    X(CSRRW) X(CSRRS) X(CSRRC) X(CSRRWI) X(CSRRSI) X(CSRRCI)

/* Load-reserved and store-conditional. */
#define OP_RESERVE(X) \
    X(LR_W) X(LR_D) X(SC_W) X(SC_D)
/* clang-format on */

/* Fused pairs that write one register: rd = expression over A (rs1), K (the number in rs2), I (immediate). */
#define OP_SHIFT_PAIRS(X)                                                                                    \
    X(ZEXT_SHIFT, a << k >> i)                                                                               \
    X(SEXT_SHIFT, (uint64_t)((int64_t)(a << k) >> i))

/* The same over A (rs1), B (rs2), I (immediate): a shift and what is done with its result. */
#define OP_SHIFT_OPS(X)                                                                                      \
    X(SLLI_ADD, (a << i) + b)                                                                                \
    X(SLLI_XOR, (a << i) ^ b)                                                                                \
    X(SLLI_OR, (a << i) | b)                                                                                 \
    X(SRLI_ADD, (a >> i) + b)                                                                                \
    X(SRLI_XOR, (a >> i) ^ b)                                                                                \
    X(SRLI_OR, (a >> i) | b)
#define OP_PAIRS(X) OP_SHIFT_PAIRS(X) OP_SHIFT_OPS(X)

/* Control, system, and what decoding and fusing make of instructions. */
#define OP_CONTROL(X)                                                                                        \
    X(ILLEGAL)                                                                                               \
    X(LUI)                                                                                                   \
    X(AUIPC)                                                                                                 \
    X(JAL)                                                                                                   \
    X(JALR)                                                                                                  \
    X(FENCE)                                                                                                 \
    X(FENCE_I)                                                                                               \
    X(ECALL)                                                                                                 \
    X(EBREAK)                                                                                                \
    X(SRET)                                                                                                  \
    X(WFI)                                                                                                   \
    X(SFENCE_VMA)

/*
 * Made by translate.c only. *_FAR leave the page and look the target up; the plain forms stay in the page and
 * follow their link. Fused pairs write the same register in both halves unless told otherwise.
 */
#define OP_MADE(X)                                                                                           \
    X(NOP)                                                                                                   \
    X(LI)          /* rd = imm: lui, lui+addi, li */                                                         \
    X(MV)          /* rd = rs1 */                                                                            \
    X(PC_REL)      /* rd = page + imm: auipc, auipc+addi */                                                  \
    X(PC_REL_LONG) /* rd = page + imm + aux: sums that do not fit 32 bits */                                 \
    X(J)           /* jal x0 inside the page */                                                              \
    X(JAL_FAR)                                                                                               \
    X(CALL_LONG) /* auipc+jalr: target = page + imm, rd = page + aux */                                      \
    X(RET)       /* jalr x0, 0(rs1) */                                                                       \
    X(END)       /* the block ends here, go on at page + imm */                                              \
    X(END_FAR)                                                                                               \
    X(FP_ROUND)   /* an arithmetic instruction with a rounding mode of its own */                            \
    X(FCVT_TRUNC) /* fcvt.{w,l}.{s,d} with rtz */                                                            \
    X(LD_PC)      /* auipc+ld: rd = *(page + imm); aux: auipc's sum */

/*
 * Variants. Most instructions use what the one before them computed. Handlers leave their result in a local
 * variable as well (the last result), and *_A take their first operand from there, *_B their second, which
 * saves the way through memory.
 */
#define OP_WITH_A(X) OP_ALU_REG(X) OP_ALU_IMM(X) OP_LOADS(X) OP_STORES(X) OP_CONDITIONS(X) OP_PAIRS(X)
#define OP_WITH_B(X) OP_ALU_REG(X) OP_STORES(X) OP_CONDITIONS(X)

/* clang-format off */
enum op_id {
#define X(name, ...) OP_##name,
    OP_CONTROL(X)
    OP_CSR(X)
    OP_RESERVE(X)
    OP_ALU_REG(X)
    OP_ALU_IMM(X)
    OP_LOADS(X)
    OP_STORES(X)
    OP_CONDITIONS(X)
    OP_FP_S(X)
    OP_FP_D(X)
    OP_FP_FROM_FLOAT(X)
    OP_FP_CALLED(X)
    OP_FP_TO_INTEGER(X)
    OP_FP_MOVES(X)
    OP_FP_MEMORY(X)
    OP_MADE(X)
    OP_PAIRS(X)
#undef X
#define X(name, ...) OP_##name##_W, OP_##name##_D,
    OP_AMOS(X)
#undef X
#define X(name, ...) OP_##name##_S, OP_##name##_D,
    OP_FMA(X)
#undef X
#define X(name, ...) OP_##name##_FAR, OP_ADDI_##name, OP_ADDI_##name##_A, OP_ADDI_##name##_B,
    OP_CONDITIONS(X)
#undef X
#define X(name, ...) OP_##name##_A,
    OP_WITH_A(X)
#undef X
#define X(name, ...) OP_##name##_B,
    OP_WITH_B(X)
#undef X
    OP_COUNT
};
/* clang-format on */

/* Register numbers in ops: 0 to 31, and this one, which takes what is written to x0. */
#define OP_REG_SINK 32

struct op {
    const void *handler; /* label in exec.c */
    uint8_t rd, rs1, rs2;
    uint8_t shape; /* OP_SHAPE */
    int32_t imm;
};

/*
 * What of the guest's code an op stands for. It may be two instructions fused, and no-ops that followed are
 * counted in. Only the last instruction of a fused pair can fault; LEAD is what comes before it. LINK: the
 * next slot is an op_link.
 */
#define OP_SHAPE(halves, lead, count, link)                                                                  \
    ((uint8_t)(((halves)-1) | (lead) << 3 | ((count)-1) << 5 | (link) << 7))
#define OP_SHAPE_HALVES(shape) (((shape)&7u) + 1)         /* length in units of 2 bytes, 1 to 8 */
#define OP_SHAPE_LEAD(shape)   ((shape) >> 3 & 3u)        /* length of the first of a pair, 0: no pair */
#define OP_SHAPE_COUNT(shape)  (((shape) >> 5 & 3u) + 1u) /* instructions, 1 to 4 */
#define OP_SHAPE_LINK(shape)   ((shape) >> 7)
#define OP_SHAPE_HALVES_MAX    8
#define OP_SHAPE_COUNT_MAX     4

/*
 * The slot after an op that leaves its block. TARGET may be followed while EPOCH is the hart's: see hart.h.
 */
struct op_link {
    const struct op *target;
    uint32_t epoch;
    int32_t aux; /* per kind of op: see translate.c */
};

static_assert(sizeof(struct op) == 16 || sizeof(void *) != 8, "ops are meant to be 16 bytes");
static_assert(sizeof(struct op) == sizeof(struct op_link), "a link takes one op's slot");

#endif
