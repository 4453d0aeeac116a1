/* Instruction decoding: compressed forms stand for the right instructions, everything else is refused. */
#include "unit.h"

#include "machine/riscv64/decode.h"

/* As an assembler encodes them, compressed and in full. */
static const struct {
    uint16_t compressed;
    uint32_t full;
    const char *text;
} pairs[] = {
    {0x0808, 0x01010513, "c.addi4spn a0,sp,16"},
    {0x1fe4, 0x3fc10493, "c.addi4spn s1,sp,1020"},
    {0x3fe8, 0x0f87b507, "c.fld fa0,248(a5)"},
    {0x41c8, 0x0045a503, "c.lw a0,4(a1)"},
    {0x5ce0, 0x07c4a403, "c.lw s0,124(s1)"},
    {0x6588, 0x0085b503, "c.ld a0,8(a1)"},
    {0x7f7c, 0x0f873783, "c.ld a5,248(a4)"},
    {0xa140, 0x08853027, "c.fsd fs0,128(a0)"},
    {0xc2b0, 0x04c6a023, "c.sw a2,64(a3)"},
    {0xe2f0, 0x0cc6b023, "c.sd a2,192(a3)"},
    {0x0001, 0x00000013, "c.nop"},
    {0x12fd, 0xfff28293, "c.addi t0,-1"},
    {0x08fd, 0x01f88893, "c.addi a7,31"},
    {0x3a81, 0xfe0a8a9b, "c.addiw s5,-32"},
    {0x5d3d, 0xfef00d13, "c.li s10,-17"},
    {0x7101, 0xe0010113, "c.addi16sp sp,-512"},
    {0x617d, 0x1f010113, "c.addi16sp sp,496"},
    {0x6505, 0x00001537, "c.lui a0,1"},
    {0x7f81, 0xfffe0fb7, "c.lui t6,0xfffe0"},
    {0x917d, 0x03f55513, "c.srli a0,63"},
    {0x8485, 0x4014d493, "c.srai s1,1"},
    {0x9b81, 0xfe07f793, "c.andi a5,-32"},
    {0x8d0d, 0x40b50533, "c.sub a0,a1"},
    {0x8e35, 0x00d64633, "c.xor a2,a3"},
    {0x8f5d, 0x00f76733, "c.or a4,a5"},
    {0x8c65, 0x00947433, "c.and s0,s1"},
    {0x9d1d, 0x40f5053b, "c.subw a0,a5"},
    {0x9fa9, 0x00a787bb, "c.addw a5,a0"},
    {0xaffd, 0x7fe0006f, "c.j .+2046"},
    {0xb001, 0x801ff06f, "c.j .-2048"},
    {0xcd7d, 0x0e050f63, "c.beqz a0,.+254"},
    {0xf001, 0xf00410e3, "c.bnez s0,.-256"},
    {0x1506, 0x02151513, "c.slli a0,33"},
    {0x38fe, 0x1f813887, "c.fldsp fa7,504(sp)"},
    {0x50fe, 0x0fc12083, "c.lwsp ra,252(sp)"},
    {0x7ffe, 0x1f813f83, "c.ldsp t6,504(sp)"},
    {0x8082, 0x00008067, "c.jr ra"},
    {0x857e, 0x01f00533, "c.mv a0,t6"},
    {0x9002, 0x00100073, "c.ebreak"},
    {0x9302, 0x000300e7, "c.jalr t1"},
    {0x9daa, 0x00ad8db3, "c.add s11,a0"},
    {0xbffe, 0x1ff13c27, "c.fsdsp ft11,504(sp)"},
    {0xdfd2, 0x0f412e23, "c.swsp s4,252(sp)"},
    {0xe002, 0x00013023, "c.sdsp zero,0(sp)"},
};

static void compressed_instructions_expand_to_their_full_form(void **state)
{
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        if (decode_expand(pairs[i].compressed) != pairs[i].full)
            fail_msg("%s: %08x instead of %08x", pairs[i].text, decode_expand(pairs[i].compressed),
                     pairs[i].full);
    }
}

static void every_compressed_instruction_decodes_like_its_full_form(void **state)
{
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        struct insn compressed, full;
        uint32_t expanded;

        if ((bits & 3) == 3)
            continue;
        expanded = decode_expand((uint16_t)bits);
        decode_insn(bits | 0xabcd0000, &compressed);
        assert_int_equal(compressed.size, 2);
        if (!expanded) {
            assert_int_equal(compressed.id, OP_ILLEGAL);
            continue;
        }
        assert_int_equal(expanded & 3, 3);
        decode_insn(expanded, &full);
        assert_int_not_equal(full.id, OP_ILLEGAL);
        full.size = 2;
        assert_int_equal(compressed.id, full.id);
        assert_int_equal(compressed.rd, full.rd);
        assert_int_equal(compressed.rs1, full.rs1);
        assert_int_equal(compressed.rs2, full.rs2);
        assert_int_equal(compressed.imm, full.imm);
    }
}

static void reserved_encodings_are_illegal(void **state)
{
    static const uint32_t reserved[] = {
        0x00000000,                       /* all zeros */
        0xffffffff,                       /* all ones: longer than 32 bits */
        0x0000707f,           0x00007003, /* load of a width that is not there */
        0x00004023,                       /* store */
        0x00002063,                       /* branch */
        0x04000033,                       /* funct7 of add */
        0x04001013,                       /* funct6 of slli */
        0x0200101b,                       /* shift of a word by 32 */
        0x0000202f | 5 << 27,             /* atomic operation */
        0x1010202f,                       /* lr.w with a source register */
        0x0000402f,                       /* atomic of a width that is not there */
        0x04000053 | 3 << 25,             /* quad precision */
        0x00005053,                       /* rounding mode 5 */
        0x00006053,                       /* rounding mode 6 */
        0x58100053,                       /* fsqrt.s with a second operand */
        0xc0400053,                       /* fcvt to an integer that is not there */
        0x30200073,                       /* mret: no M-mode */
        0x00200073,                       /* uret */
        0x00004073,                       /* CSR instruction 4 */
        0x00008067 | 1 << 12,             /* jalr with funct3 */
        0x00002057,                       /* vectors */
    };
    struct insn insn;

    for (size_t i = 0; i < sizeof(reserved) / sizeof(reserved[0]); i++) {
        decode_insn(reserved[i], &insn);
        if (insn.id != OP_ILLEGAL)
            fail_msg("%08x decoded to operation %d", reserved[i], insn.id);
    }
}

static void random_bits_decode_to_something_in_range(void **state)
{
    uint64_t seed = 7;

    for (unsigned i = 0; i < 2000000; i++) {
        struct insn insn;

        decode_insn((uint32_t)unit_random(&seed), &insn);
        assert_true(insn.id < OP_COUNT);
        assert_true(insn.rd < 32 && insn.rs1 < 32 && insn.rs2 < 32 && insn.rs3 < 32 && insn.rm < 8);
        assert_true(insn.size == 2 || insn.size == 4);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(compressed_instructions_expand_to_their_full_form),
        cmocka_unit_test(every_compressed_instruction_decodes_like_its_full_form),
        cmocka_unit_test(reserved_encodings_are_illegal),
        cmocka_unit_test(random_bits_decode_to_something_in_range),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
