/*
 * Instruction decoding: RV64GC as in the RISC-V ISA manual, volume I, 20191213, chapters 24 ("RV32/64G
 * instruction set listings") and 16 ("C extension"), and S-mode's instructions of volume II.
 *
 * Pure functions; any bit pattern may be given.
 */
#ifndef FERRY_MACHINE_RISCV64_DECODE_H
#define FERRY_MACHINE_RISCV64_DECODE_H

#include "op.h"

struct insn {
    enum op_id id; /* OP_ILLEGAL for what is not an instruction of this CPU */
    uint8_t rd, rs1, rs2, rs3;
    uint8_t rm;   /* rounding mode field, floating point only */
    uint8_t size; /* 2 or 4 bytes */
    int32_t imm;  /* immediate, shift amount, CSR number (with the 5-bit operand in rs1), fence's pred << 4 |
                     succ */
};

/* Length in bytes of the instruction that begins with these 16 bits: 2 or 4. */
static inline unsigned decode_size(uint16_t first)
{
    return (first & 3) == 3 ? 4 : 2;
}

/* The 32-bit instruction a compressed one stands for; 0 (itself illegal) when there is none. */
uint32_t decode_expand(uint16_t compressed);

/* Decodes 32 bits, of which the low 16 are used when they hold a compressed instruction. */
void decode_insn(uint32_t bits, struct insn *insn);

#endif
