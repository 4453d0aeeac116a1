/*
 * Instruction decoding. Compressed instructions are expanded to their 32-bit form first, so that there is one
 * decoder.
 */
#include "decode.h"

#include <stdbool.h>
#include <string.h>

enum opcode {
    OPCODE_LOAD = 0x03,
    OPCODE_LOAD_FP = 0x07,
    OPCODE_MISC_MEM = 0x0f,
    OPCODE_OP_IMM = 0x13,
    OPCODE_AUIPC = 0x17,
    OPCODE_OP_IMM_32 = 0x1b,
    OPCODE_STORE = 0x23,
    OPCODE_STORE_FP = 0x27,
    OPCODE_AMO = 0x2f,
    OPCODE_OP = 0x33,
    OPCODE_LUI = 0x37,
    OPCODE_OP_32 = 0x3b,
    OPCODE_MADD = 0x43,
    OPCODE_MSUB = 0x47,
    OPCODE_NMSUB = 0x4b,
    OPCODE_NMADD = 0x4f,
    OPCODE_OP_FP = 0x53,
    OPCODE_BRANCH = 0x63,
    OPCODE_JALR = 0x67,
    OPCODE_JAL = 0x6f,
    OPCODE_SYSTEM = 0x73,
};

static uint32_t bits_of(uint32_t value, unsigned high, unsigned low)
{
    return value >> low & ((UINT32_C(2) << (high - low)) - 1);
}

/* Bits [high:low] of VALUE moved to begin at TO. */
static uint32_t bits_move(uint32_t value, unsigned high, unsigned low, unsigned to)
{
    return bits_of(value, high, low) << to;
}

static int32_t sign_extend(uint32_t value, unsigned bits)
{
    return (int32_t)(value << (32 - bits)) >> (32 - bits);
}

/* Encoders of the 32-bit formats. */
static uint32_t encode_r(unsigned opcode, unsigned funct3, unsigned funct7, unsigned rd, unsigned rs1,
                         unsigned rs2)
{
    return opcode | rd << 7 | funct3 << 12 | rs1 << 15 | rs2 << 20 | funct7 << 25;
}

static uint32_t encode_i(unsigned opcode, unsigned funct3, unsigned rd, unsigned rs1, int32_t imm)
{
    return opcode | rd << 7 | funct3 << 12 | rs1 << 15 | ((uint32_t)imm & 0xfff) << 20;
}

static uint32_t encode_s(unsigned opcode, unsigned funct3, unsigned rs1, unsigned rs2, uint32_t imm)
{
    return opcode | (imm & 0x1f) << 7 | funct3 << 12 | rs1 << 15 | rs2 << 20 | (imm >> 5 & 0x7f) << 25;
}

static uint32_t encode_b(unsigned funct3, unsigned rs1, unsigned rs2, uint32_t imm)
{
    return OPCODE_BRANCH | bits_move(imm, 11, 11, 7) | bits_move(imm, 4, 1, 8) | funct3 << 12 | rs1 << 15 |
           rs2 << 20 | bits_move(imm, 10, 5, 25) | bits_move(imm, 12, 12, 31);
}

static uint32_t encode_j(unsigned rd, uint32_t imm)
{
    return OPCODE_JAL | rd << 7 | bits_move(imm, 19, 12, 12) | bits_move(imm, 11, 11, 20) |
           bits_move(imm, 10, 1, 21) | bits_move(imm, 20, 20, 31);
}

/* Immediates of the compressed loads and stores. */
static uint32_t compressed_offset_w(uint32_t c)
{
    return bits_move(c, 12, 10, 3) | bits_move(c, 6, 6, 2) | bits_move(c, 5, 5, 6);
}

static uint32_t compressed_offset_d(uint32_t c)
{
    return bits_move(c, 12, 10, 3) | bits_move(c, 6, 5, 6);
}

/* The 6-bit signed immediate of quadrant 1. */
static int32_t compressed_imm6(uint32_t c)
{
    return sign_extend(bits_move(c, 12, 12, 5) | bits_of(c, 6, 2), 6);
}

static uint32_t expand_quadrant0(uint32_t c)
{
    unsigned rd = 8 + bits_of(c, 4, 2), rs1 = 8 + bits_of(c, 9, 7);
    uint32_t imm;

    switch (bits_of(c, 15, 13)) {
    case 0: /* c.addi4spn */
        imm =
            bits_move(c, 12, 11, 4) | bits_move(c, 10, 7, 6) | bits_move(c, 6, 6, 2) | bits_move(c, 5, 5, 3);
        return imm ? encode_i(OPCODE_OP_IMM, 0, rd, 2, (int32_t)imm) : 0;
    case 1: /* c.fld */
        return encode_i(OPCODE_LOAD_FP, 3, rd, rs1, (int32_t)compressed_offset_d(c));
    case 2: /* c.lw */
        return encode_i(OPCODE_LOAD, 2, rd, rs1, (int32_t)compressed_offset_w(c));
    case 3: /* c.ld */
        return encode_i(OPCODE_LOAD, 3, rd, rs1, (int32_t)compressed_offset_d(c));
    case 5: /* c.fsd */
        return encode_s(OPCODE_STORE_FP, 3, rs1, rd, compressed_offset_d(c));
    case 6: /* c.sw */
        return encode_s(OPCODE_STORE, 2, rs1, rd, compressed_offset_w(c));
    case 7: /* c.sd */
        return encode_s(OPCODE_STORE, 3, rs1, rd, compressed_offset_d(c));
    }
    return 0;
}

/* c.srli, c.srai, c.andi and the register forms (funct3 100 of quadrant 1). */
static uint32_t expand_arithmetic(uint32_t c)
{
    static const uint8_t funct3[4] = {0, 4, 6, 7}; /* sub, xor, or, and */
    unsigned rd = 8 + bits_of(c, 9, 7), rs2 = 8 + bits_of(c, 4, 2);
    uint32_t shift = bits_move(c, 12, 12, 5) | bits_of(c, 6, 2);
    unsigned which = bits_of(c, 6, 5);

    switch (bits_of(c, 11, 10)) {
    case 0:
        return encode_i(OPCODE_OP_IMM, 5, rd, rd, (int32_t)shift);
    case 1:
        return encode_i(OPCODE_OP_IMM, 5, rd, rd, (int32_t)(shift | 0x400));
    case 2:
        return encode_i(OPCODE_OP_IMM, 7, rd, rd, compressed_imm6(c));
    }
    if (!bits_of(c, 12, 12))
        return encode_r(OPCODE_OP, funct3[which], which == 0 ? 0x20 : 0, rd, rd, rs2);
    if (which == 0)
        return encode_r(OPCODE_OP_32, 0, 0x20, rd, rd, rs2);
    if (which == 1)
        return encode_r(OPCODE_OP_32, 0, 0, rd, rd, rs2);
    return 0;
}

/* c.addi16sp and c.lui (funct3 011 of quadrant 1). */
static uint32_t expand_lui(uint32_t c)
{
    unsigned rd = bits_of(c, 11, 7);
    uint32_t imm;

    if (rd == 2) {
        imm = bits_move(c, 12, 12, 9) | bits_move(c, 6, 6, 4) | bits_move(c, 5, 5, 6) |
              bits_move(c, 4, 3, 7) | bits_move(c, 2, 2, 5);
        return imm ? encode_i(OPCODE_OP_IMM, 0, 2, 2, sign_extend(imm, 10)) : 0;
    }
    imm = (uint32_t)compressed_imm6(c) << 12;
    return imm ? (OPCODE_LUI | rd << 7 | imm) : 0;
}

static uint32_t expand_quadrant1(uint32_t c)
{
    unsigned rd = bits_of(c, 11, 7);
    uint32_t imm;

    switch (bits_of(c, 15, 13)) {
    case 0: /* c.addi, c.nop */
        return encode_i(OPCODE_OP_IMM, 0, rd, rd, compressed_imm6(c));
    case 1: /* c.addiw */
        return rd ? encode_i(OPCODE_OP_IMM_32, 0, rd, rd, compressed_imm6(c)) : 0;
    case 2: /* c.li */
        return encode_i(OPCODE_OP_IMM, 0, rd, 0, compressed_imm6(c));
    case 3:
        return expand_lui(c);
    case 4:
        return expand_arithmetic(c);
    case 5: /* c.j */
        imm = bits_move(c, 12, 12, 11) | bits_move(c, 11, 11, 4) | bits_move(c, 10, 9, 8) |
              bits_move(c, 8, 8, 10) | bits_move(c, 7, 7, 6) | bits_move(c, 6, 6, 7) | bits_move(c, 5, 3, 1) |
              bits_move(c, 2, 2, 5);
        return encode_j(0, (uint32_t)sign_extend(imm, 12));
    }
    /* c.beqz, c.bnez */
    imm = bits_move(c, 12, 12, 8) | bits_move(c, 11, 10, 3) | bits_move(c, 6, 5, 6) | bits_move(c, 4, 3, 1) |
          bits_move(c, 2, 2, 5);
    return encode_b(bits_of(c, 13, 13), 8 + bits_of(c, 9, 7), 0, (uint32_t)sign_extend(imm, 9));
}

/* c.jr, c.mv, c.ebreak, c.jalr, c.add (funct3 100 of quadrant 2). */
static uint32_t expand_jump_move(uint32_t c)
{
    unsigned rd = bits_of(c, 11, 7), rs2 = bits_of(c, 6, 2);
    bool high = bits_of(c, 12, 12);

    if (rs2)
        return encode_r(OPCODE_OP, 0, 0, rd, high ? rd : 0, rs2);
    if (rd)
        return encode_i(OPCODE_JALR, 0, high ? 1 : 0, rd, 0);
    return high ? 0x00100073 : 0; /* ebreak */
}

static uint32_t expand_quadrant2(uint32_t c)
{
    unsigned rd = bits_of(c, 11, 7), rs2 = bits_of(c, 6, 2);
    uint32_t load_d = bits_move(c, 12, 12, 5) | bits_move(c, 6, 5, 3) | bits_move(c, 4, 2, 6);
    uint32_t store_d = bits_move(c, 12, 10, 3) | bits_move(c, 9, 7, 6);

    switch (bits_of(c, 15, 13)) {
    case 0: /* c.slli */
        return encode_i(OPCODE_OP_IMM, 1, rd, rd, (int32_t)(bits_move(c, 12, 12, 5) | rs2));
    case 1: /* c.fldsp */
        return encode_i(OPCODE_LOAD_FP, 3, rd, 2, (int32_t)load_d);
    case 2: /* c.lwsp */
        if (!rd)
            return 0;
        return encode_i(OPCODE_LOAD, 2, rd, 2,
                        (int32_t)(bits_move(c, 12, 12, 5) | bits_move(c, 6, 4, 2) | bits_move(c, 3, 2, 6)));
    case 3: /* c.ldsp */
        return rd ? encode_i(OPCODE_LOAD, 3, rd, 2, (int32_t)load_d) : 0;
    case 4:
        return expand_jump_move(c);
    case 5: /* c.fsdsp */
        return encode_s(OPCODE_STORE_FP, 3, 2, rs2, store_d);
    case 6: /* c.swsp */
        return encode_s(OPCODE_STORE, 2, 2, rs2, bits_move(c, 12, 9, 2) | bits_move(c, 8, 7, 6));
    }
    return encode_s(OPCODE_STORE, 3, 2, rs2, store_d); /* c.sdsp */
}

uint32_t decode_expand(uint16_t compressed)
{
    switch (compressed & 3) {
    case 0:
        return expand_quadrant0(compressed);
    case 1:
        return expand_quadrant1(compressed);
    case 2:
        return expand_quadrant2(compressed);
    }
    return 0;
}

static enum op_id decode_load(unsigned funct3)
{
    static const uint16_t ids[8] = {OP_LB, OP_LH, OP_LW, OP_LD, OP_LBU, OP_LHU, OP_LWU, OP_ILLEGAL};

    return ids[funct3];
}

static enum op_id decode_op(unsigned funct3, unsigned funct7)
{
    static const uint16_t base[8] = {OP_ADD, OP_SLL, OP_SLT, OP_SLTU, OP_XOR, OP_SRL, OP_OR, OP_AND};
    static const uint16_t multiply[8] = {OP_MUL, OP_MULH, OP_MULHSU, OP_MULHU,
                                         OP_DIV, OP_DIVU, OP_REM,    OP_REMU};

    if (funct7 == 0)
        return base[funct3];
    if (funct7 == 1)
        return multiply[funct3];
    if (funct7 == 0x20 && funct3 == 0)
        return OP_SUB;
    if (funct7 == 0x20 && funct3 == 5)
        return OP_SRA;
    return OP_ILLEGAL;
}

static enum op_id decode_op_32(unsigned funct3, unsigned funct7)
{
    static const uint16_t multiply[8] = {OP_MULW, OP_ILLEGAL, OP_ILLEGAL, OP_ILLEGAL,
                                         OP_DIVW, OP_DIVUW,   OP_REMW,    OP_REMUW};

    if (funct7 == 1)
        return multiply[funct3];
    switch (funct3) {
    case 0:
        return funct7 == 0 ? OP_ADDW : funct7 == 0x20 ? OP_SUBW : OP_ILLEGAL;
    case 1:
        return funct7 == 0 ? OP_SLLW : OP_ILLEGAL;
    case 5:
        return funct7 == 0 ? OP_SRLW : funct7 == 0x20 ? OP_SRAW : OP_ILLEGAL;
    }
    return OP_ILLEGAL;
}

static enum op_id decode_op_imm(uint32_t bits, struct insn *insn)
{
    static const uint16_t ids[8] = {OP_ADDI, OP_SLLI, OP_SLTI, OP_SLTIU, OP_XORI, OP_SRLI, OP_ORI, OP_ANDI};
    unsigned funct3 = bits_of(bits, 14, 12), funct6 = bits_of(bits, 31, 26);

    if (funct3 == 1 || funct3 == 5) {
        insn->imm = (int32_t)bits_of(bits, 25, 20);
        if (funct3 == 5 && funct6 == 0x10)
            return OP_SRAI;
        return funct6 == 0 ? ids[funct3] : OP_ILLEGAL;
    }
    return ids[funct3];
}

static enum op_id decode_op_imm_32(uint32_t bits, struct insn *insn)
{
    unsigned funct3 = bits_of(bits, 14, 12), funct7 = bits_of(bits, 31, 25);

    if (funct3 == 0)
        return OP_ADDIW;
    insn->imm = (int32_t)bits_of(bits, 24, 20);
    if (funct3 == 1)
        return funct7 == 0 ? OP_SLLIW : OP_ILLEGAL;
    if (funct3 == 5)
        return funct7 == 0 ? OP_SRLIW : funct7 == 0x20 ? OP_SRAIW : OP_ILLEGAL;
    return OP_ILLEGAL;
}

static enum op_id decode_amo(uint32_t bits)
{
    bool wide = bits_of(bits, 14, 12) == 3;
    enum op_id id = OP_ILLEGAL;

    if (!wide && bits_of(bits, 14, 12) != 2)
        return OP_ILLEGAL;
    switch (bits_of(bits, 31, 27)) { /* aq and rl: all are done sequentially consistent */
    case 0x00:
        id = OP_AMOADD_W;
        break;
    case 0x01:
        id = OP_AMOSWAP_W;
        break;
    case 0x02:
        if (bits_of(bits, 24, 20))
            return OP_ILLEGAL;
        id = OP_LR_W;
        break;
    case 0x03:
        id = OP_SC_W;
        break;
    case 0x04:
        id = OP_AMOXOR_W;
        break;
    case 0x08:
        id = OP_AMOOR_W;
        break;
    case 0x0c:
        id = OP_AMOAND_W;
        break;
    case 0x10:
        id = OP_AMOMIN_W;
        break;
    case 0x14:
        id = OP_AMOMAX_W;
        break;
    case 0x18:
        id = OP_AMOMINU_W;
        break;
    case 0x1c:
        id = OP_AMOMAXU_W;
        break;
    default:
        return OP_ILLEGAL;
    }
    return wide ? id + 1 : id; /* the D form follows the W form */
}

/* fcvt.*: RS2 selects the integer type (w, wu, l, lu) or the source format. */
static enum op_id decode_fp_convert(unsigned funct5, bool is_double, unsigned rs2)
{
    static const uint16_t to_int[2][4] = {{OP_FCVT_W_S, OP_FCVT_WU_S, OP_FCVT_L_S, OP_FCVT_LU_S},
                                          {OP_FCVT_W_D, OP_FCVT_WU_D, OP_FCVT_L_D, OP_FCVT_LU_D}};
    static const uint16_t from_int[2][4] = {{OP_FCVT_S_W, OP_FCVT_S_WU, OP_FCVT_S_L, OP_FCVT_S_LU},
                                            {OP_FCVT_D_W, OP_FCVT_D_WU, OP_FCVT_D_L, OP_FCVT_D_LU}};

    if (funct5 == 0x08) {
        if (!is_double && rs2 == 1)
            return OP_FCVT_S_D;
        return is_double && rs2 == 0 ? OP_FCVT_D_S : OP_ILLEGAL;
    }
    if (rs2 > 3)
        return OP_ILLEGAL;
    return funct5 == 0x18 ? to_int[is_double][rs2] : from_int[is_double][rs2];
}

/* fsgnj*, fmin/fmax, comparisons, moves and fclass: funct3 selects, there is no rounding mode. */
static enum op_id decode_fp_funct3(unsigned funct5, bool is_double, unsigned funct3, unsigned rs2)
{
    static const uint16_t sign[2][3] = {{OP_FSGNJ_S, OP_FSGNJN_S, OP_FSGNJX_S},
                                        {OP_FSGNJ_D, OP_FSGNJN_D, OP_FSGNJX_D}};
    static const uint16_t compare[2][3] = {{OP_FLE_S, OP_FLT_S, OP_FEQ_S}, {OP_FLE_D, OP_FLT_D, OP_FEQ_D}};

    switch (funct5) {
    case 0x04:
        return funct3 < 3 ? sign[is_double][funct3] : OP_ILLEGAL;
    case 0x05:
        if (funct3 > 1)
            return OP_ILLEGAL;
        if (is_double)
            return funct3 ? OP_FMAX_D : OP_FMIN_D;
        return funct3 ? OP_FMAX_S : OP_FMIN_S;
    case 0x14:
        return funct3 < 3 ? compare[is_double][funct3] : OP_ILLEGAL;
    case 0x1c:
        if (rs2 || funct3 > 1)
            return OP_ILLEGAL;
        if (funct3)
            return is_double ? OP_FCLASS_D : OP_FCLASS_S;
        return is_double ? OP_FMV_X_D : OP_FMV_X_W;
    case 0x1e:
        if (rs2 || funct3)
            return OP_ILLEGAL;
        return is_double ? OP_FMV_D_X : OP_FMV_W_X;
    }
    return OP_ILLEGAL;
}

static enum op_id decode_fp(uint32_t bits, const struct insn *insn)
{
    static const uint16_t arithmetic[2][4] = {{OP_FADD_S, OP_FSUB_S, OP_FMUL_S, OP_FDIV_S},
                                              {OP_FADD_D, OP_FSUB_D, OP_FMUL_D, OP_FDIV_D}};
    unsigned funct5 = bits_of(bits, 31, 27), format = bits_of(bits, 26, 25);

    if (format > 1)
        return OP_ILLEGAL;
    switch (funct5) {
    case 0x04:
    case 0x05:
    case 0x14:
    case 0x1c:
    case 0x1e:
        return decode_fp_funct3(funct5, format, insn->rm, insn->rs2);
    }
    if (insn->rm == 5 || insn->rm == 6) /* reserved rounding modes */
        return OP_ILLEGAL;
    switch (funct5) {
    case 0x00:
    case 0x01:
    case 0x02:
    case 0x03:
        return arithmetic[format][funct5];
    case 0x0b:
        if (insn->rs2)
            return OP_ILLEGAL;
        return format ? OP_FSQRT_D : OP_FSQRT_S;
    case 0x08:
    case 0x18:
    case 0x1a:
        return decode_fp_convert(funct5, format, insn->rs2);
    }
    return OP_ILLEGAL;
}

static enum op_id decode_fma(uint32_t bits, const struct insn *insn, enum op_id single)
{
    unsigned format = bits_of(bits, 26, 25);

    if (format > 1 || insn->rm == 5 || insn->rm == 6)
        return OP_ILLEGAL;
    return single + format; /* the D form follows the S form */
}

static enum op_id decode_system(uint32_t bits, struct insn *insn)
{
    static const uint16_t csr[8] = {OP_ILLEGAL, OP_CSRRW,  OP_CSRRS,  OP_CSRRC,
                                    OP_ILLEGAL, OP_CSRRWI, OP_CSRRSI, OP_CSRRCI};

    if (bits_of(bits, 14, 12)) {
        insn->imm = (int32_t)bits_of(bits, 31, 20);
        return csr[bits_of(bits, 14, 12)];
    }
    switch (bits) {
    case 0x00000073:
        return OP_ECALL;
    case 0x00100073:
        return OP_EBREAK;
    case 0x10200073:
        return OP_SRET;
    case 0x10500073:
        return OP_WFI;
    }
    if (bits_of(bits, 31, 25) == 0x09 && insn->rd == 0)
        return OP_SFENCE_VMA;
    return OP_ILLEGAL;
}

static int32_t decode_imm_s(uint32_t bits)
{
    return sign_extend(bits_move(bits, 31, 25, 5) | bits_of(bits, 11, 7), 12);
}

static int32_t decode_imm_b(uint32_t bits)
{
    return sign_extend(bits_move(bits, 31, 31, 12) | bits_move(bits, 7, 7, 11) | bits_move(bits, 30, 25, 5) |
                           bits_move(bits, 11, 8, 1),
                       13);
}

static int32_t decode_imm_j(uint32_t bits)
{
    return sign_extend(bits_move(bits, 31, 31, 20) | bits_move(bits, 19, 12, 12) |
                           bits_move(bits, 20, 20, 11) | bits_move(bits, 30, 21, 1),
                       21);
}

void decode_insn(uint32_t bits, struct insn *insn)
{
    static const uint16_t stores[8] = {OP_SB,      OP_SH,      OP_SW,      OP_SD,
                                       OP_ILLEGAL, OP_ILLEGAL, OP_ILLEGAL, OP_ILLEGAL};
    static const uint16_t branches[8] = {OP_BEQ, OP_BNE, OP_ILLEGAL, OP_ILLEGAL,
                                         OP_BLT, OP_BGE, OP_BLTU,    OP_BGEU};
    unsigned size = decode_size((uint16_t)bits), funct3;

    if (size == 2)
        bits = decode_expand((uint16_t)bits);
    funct3 = bits_of(bits, 14, 12);
    *insn = (struct insn){
        .id = OP_ILLEGAL,
        .size = (uint8_t)size,
        .rd = (uint8_t)bits_of(bits, 11, 7),
        .rs1 = (uint8_t)bits_of(bits, 19, 15),
        .rs2 = (uint8_t)bits_of(bits, 24, 20),
        .rs3 = (uint8_t)bits_of(bits, 31, 27),
        .rm = (uint8_t)funct3,
        .imm = (int32_t)bits >> 20,
    };
    switch (bits & 0x7f) {
    case OPCODE_LOAD:
        insn->id = decode_load(funct3);
        break;
    case OPCODE_LOAD_FP:
        insn->id = funct3 == 2 ? OP_FLW : funct3 == 3 ? OP_FLD : OP_ILLEGAL;
        break;
    case OPCODE_MISC_MEM:
        insn->id = funct3 == 0 ? OP_FENCE : funct3 == 1 ? OP_FENCE_I : OP_ILLEGAL;
        break;
    case OPCODE_OP_IMM:
        insn->id = decode_op_imm(bits, insn);
        break;
    case OPCODE_AUIPC:
        insn->id = OP_AUIPC;
        insn->imm = (int32_t)(bits & 0xfffff000);
        break;
    case OPCODE_OP_IMM_32:
        insn->id = decode_op_imm_32(bits, insn);
        break;
    case OPCODE_STORE:
        insn->id = stores[funct3];
        insn->imm = decode_imm_s(bits);
        break;
    case OPCODE_STORE_FP:
        insn->id = funct3 == 2 ? OP_FSW : funct3 == 3 ? OP_FSD : OP_ILLEGAL;
        insn->imm = decode_imm_s(bits);
        break;
    case OPCODE_AMO:
        insn->id = decode_amo(bits);
        break;
    case OPCODE_OP:
        insn->id = decode_op(funct3, bits_of(bits, 31, 25));
        break;
    case OPCODE_LUI:
        insn->id = OP_LUI;
        insn->imm = (int32_t)(bits & 0xfffff000);
        break;
    case OPCODE_OP_32:
        insn->id = decode_op_32(funct3, bits_of(bits, 31, 25));
        break;
    case OPCODE_MADD:
        insn->id = decode_fma(bits, insn, OP_FMADD_S);
        break;
    case OPCODE_MSUB:
        insn->id = decode_fma(bits, insn, OP_FMSUB_S);
        break;
    case OPCODE_NMSUB:
        insn->id = decode_fma(bits, insn, OP_FNMSUB_S);
        break;
    case OPCODE_NMADD:
        insn->id = decode_fma(bits, insn, OP_FNMADD_S);
        break;
    case OPCODE_OP_FP:
        insn->id = decode_fp(bits, insn);
        break;
    case OPCODE_BRANCH:
        insn->id = branches[funct3];
        insn->imm = decode_imm_b(bits);
        break;
    case OPCODE_JALR:
        insn->id = funct3 == 0 ? OP_JALR : OP_ILLEGAL;
        break;
    case OPCODE_JAL:
        insn->id = OP_JAL;
        insn->imm = decode_imm_j(bits);
        break;
    case OPCODE_SYSTEM:
        insn->id = decode_system(bits, insn);
        break;
    }
}
