/*
 * From decoded instructions to ops: chooses handlers, fuses pairs, works out targets inside the page.
 */
#include "machine/riscv64/translate.h"

/* Variants that take an operand from the last result; 0: there is none. */
static const uint16_t variant_a[OP_COUNT] = {
#define X(name, ...) [OP_##name] = OP_##name##_A,
    OP_WITH_A(X)
#undef X
};
static const uint16_t variant_b[OP_COUNT] = {
#define X(name, ...) [OP_##name] = OP_##name##_B,
    OP_WITH_B(X)
#undef X
};

/* The form of an op that has its operand from the last result, if that is what it needs. */
static enum op_id with_result(const struct translator *t, enum op_id id, unsigned rs1, unsigned rs2)
{
    if (t->result && rs1 == t->result && variant_a[id])
        return variant_a[id];
    if (t->result && rs2 == t->result && variant_b[id])
        return variant_b[id];
    return id;
}

static struct op *emit(struct translator *t, enum op_id id, const struct insn *insn, int32_t imm)
{
    struct op *op = &t->ops[t->slots++];

    t->last_used_result = t->result && insn->rs1 == t->result;
    id = with_result(t, id, insn->rs1, insn->rs2);

    *op = (struct op){
        .handler = t->handlers[id],
        .rd = insn->rd,
        .rs1 = insn->rs1,
        .rs2 = insn->rs2,
        .shape = OP_SHAPE(insn->size / 2, 0, 1, 0),
        .imm = imm,
    };
    return op;
}

/* As emit, for an op with a link slot; ops that leave note how many instructions the block ran up to them. */
static struct op *emit_linked(struct translator *t, enum op_id id, const struct insn *insn, int32_t imm,
                              int32_t aux)
{
    struct op *op = emit(t, id, insn, imm);
    struct op_link *link = (struct op_link *)(void *)&t->ops[t->slots++];

    op->shape |= OP_SHAPE(1, 0, 1, 1);
    *link = (struct op_link){.aux = aux};
    return op;
}

/* Turns the op before into a pair with INSN. */
static struct op *fuse(struct translator *t, enum op_id id, const struct insn *insn, int32_t imm)
{
    struct op *op = t->last;

    op->handler = t->handlers[t->last_used_result && variant_a[id] ? variant_a[id] : id];
    op->imm = imm;
    op->shape = OP_SHAPE((t->insn.size + insn->size) / 2u, t->insn.size / 2u, 2, 0);
    return op;
}

static bool fits_32(int64_t value)
{
    return value == (int32_t)value;
}

static bool in_page(int64_t offset)
{
    return offset >= 0 && offset < (int64_t)PAGE_SIZE;
}

/* An instruction without effect: counted in with the op before where that has room. */
static void emit_nop(struct translator *t, const struct insn *insn)
{
    struct op *last = t->last;

    if (last && OP_SHAPE_HALVES(last->shape) + insn->size / 2u <= OP_SHAPE_HALVES_MAX &&
        OP_SHAPE_COUNT(last->shape) < OP_SHAPE_COUNT_MAX) {
        last->shape = OP_SHAPE(OP_SHAPE_HALVES(last->shape) + insn->size / 2u, OP_SHAPE_LEAD(last->shape),
                               OP_SHAPE_COUNT(last->shape) + 1u, 0);
        t->insn.id = OP_NOP; /* too much already to be fused */
        return;
    }
    t->last = emit(t, OP_NOP, insn, 0);
    t->insn = (struct insn){.id = OP_NOP};
}

/* A shift and a commutative operation on its result, as one op; 0: not a pair that is known. */
static enum op_id shift_pair(enum op_id first, enum op_id second)
{
    bool left = first == OP_SLLI;

    if (!left && first != OP_SRLI)
        return 0;
    switch (second) {
    case OP_ADD:
        return left ? OP_SLLI_ADD : OP_SRLI_ADD;
    case OP_XOR:
        return left ? OP_SLLI_XOR : OP_SRLI_XOR;
    case OP_OR:
        return left ? OP_SLLI_OR : OP_SRLI_OR;
    default:
        return 0;
    }
}

/* Fuses INSN with the one before if they are a known pair. */
static bool emit_fused(struct translator *t, const struct insn *insn)
{
    const struct insn *first = &t->insn;
    struct op *op = t->last;
    int64_t sum = (int64_t)first->imm + insn->imm;

    if (!op || first->rd != insn->rd || insn->rd == 0)
        return false;
    if (first->id == OP_LUI && insn->rs1 == first->rd) {
        if (insn->id == OP_ADDIW)
            fuse(t, OP_LI, insn, (int32_t)sum);
        else if (insn->id == OP_ADDI && fits_32(sum))
            fuse(t, OP_LI, insn, (int32_t)sum);
        else
            return false;
    } else if (first->id == OP_AUIPC && insn->rs1 == first->rd) {
        sum += t->last_at;
        if (!fits_32(sum) || !fits_32((int64_t)first->imm + t->last_at) ||
            (insn->id != OP_ADDI && insn->id != OP_LD))
            return false;
        if (insn->id == OP_ADDI) {
            fuse(t, OP_PC_REL, insn, (int32_t)sum);
        } else {
            struct op_link *link = (struct op_link *)(void *)&t->ops[t->slots++];

            *link = (struct op_link){.aux = op->imm}; /* what auipc alone gives, should the load fault */
            fuse(t, OP_LD_PC, insn, (int32_t)sum)->shape |= OP_SHAPE(1, 0, 1, 1);
            op = NULL;
        }
    } else if (first->id == OP_SLLI && insn->rs1 == first->rd &&
               (insn->id == OP_SRLI || insn->id == OP_SRAI)) {
        fuse(t, insn->id == OP_SRLI ? OP_ZEXT_SHIFT : OP_SEXT_SHIFT, insn, insn->imm)->rs2 =
            (uint8_t)first->imm;
    } else if ((insn->rs1 == first->rd) != (insn->rs2 == first->rd) && shift_pair(first->id, insn->id)) {
        fuse(t, shift_pair(first->id, insn->id), insn, first->imm)->rs2 =
            insn->rs1 == first->rd ? insn->rs2 : insn->rs1;
    } else {
        return false;
    }
    t->last = op;
    t->insn.id = OP_NOP;
    return true;
}

static const uint16_t far_branches[OP_COUNT] = {
#define X(name, ...) [OP_##name] = OP_##name##_FAR,
    OP_CONDITIONS(X)
#undef X
};

/* The branch fused with an addi to register RD before it. */
static enum op_id counting_branch(const struct insn *insn, unsigned rd)
{
    switch (insn->id) {
#define X(name, ...)                                                                                         \
    case OP_##name:                                                                                          \
        if (insn->rs1 == rd)                                                                                 \
            return OP_ADDI_##name##_A;                                                                       \
        return insn->rs2 == rd ? OP_ADDI_##name##_B : OP_ADDI_##name;
        OP_CONDITIONS(X)
#undef X
    default:
        return OP_ILLEGAL;
    }
}

static void emit_branch(struct translator *t, const struct insn *insn, unsigned at)
{
    int32_t target = (int32_t)at + insn->imm;

    if (!in_page(target)) {
        emit(t, far_branches[insn->id], insn, target)->rd = (uint8_t)t->count;
    } else if (t->last && t->insn.id == OP_ADDI && t->insn.rd == t->insn.rs1 && t->insn.rd != 0) {
        /* addi r, r, imm followed by a branch: the end of most loops. */
        struct insn pair = *insn;

        pair.rd = t->insn.rd;
        pair.size = (uint8_t)(pair.size + t->insn.size);
        t->slots--;
        t->result = 0;
        emit_linked(t, counting_branch(insn, pair.rd), &pair, target | (int32_t)((uint32_t)t->insn.imm << 16),
                    (int32_t)t->count)
            ->shape |= OP_SHAPE(1, 0, 2, 0);
        t->result = pair.rd;
    } else {
        emit_linked(t, insn->id, insn, target, 0)->rd = (uint8_t)t->count;
    }
    t->last = NULL;
}

static void emit_jump(struct translator *t, const struct insn *insn, unsigned at)
{
    int32_t target = (int32_t)at + insn->imm, after = (int32_t)(at + insn->size);
    struct insn jump = *insn;

    jump.rs2 = (uint8_t)t->count;
    if (in_page(target) && insn->rd == 0) {
        jump.rd = (uint8_t)t->count;
        emit_linked(t, OP_J, &jump, target, 0);
        return;
    }
    if (insn->rd == 0)
        jump.rd = OP_REG_SINK;
    emit_linked(t, in_page(target) ? OP_JAL : OP_JAL_FAR, &jump, target, after);
}

static void emit_jump_register(struct translator *t, const struct insn *insn, unsigned at)
{
    int64_t target = (int64_t)t->last_at + t->insn.imm + insn->imm;
    struct insn jump = *insn;

    jump.rs2 = (uint8_t)t->count;
    if (t->last && t->insn.id == OP_AUIPC && insn->rd != 0 && t->insn.rd == insn->rd &&
        insn->rs1 == insn->rd && fits_32(target)) {
        t->slots--;
        jump.size = (uint8_t)(jump.size + t->insn.size);
        emit_linked(t, OP_CALL_LONG, &jump, (int32_t)target & ~1, (int32_t)(at + insn->size))->shape |=
            OP_SHAPE(1, 0, 2, 0);
        return;
    }
    if (insn->rd == 0 && insn->imm == 0) {
        emit(t, OP_RET, &jump, 0);
        return;
    }
    if (insn->rd == 0)
        jump.rd = OP_REG_SINK;
    emit_linked(t, OP_JALR, &jump, insn->imm, (int32_t)(at + insn->size));
}

/* How an instruction is laid down. */
enum class {
    CLASS_ENDS, /* leaves the block always; zero, so that what is not in the table ends it */
    CLASS_ALU,  /* writes rd and does nothing else */
    CLASS_LOAD,
    CLASS_ATOMIC,
    CLASS_OTHER, /* writes no integer register, falls through */
    CLASS_BRANCH,
    CLASS_JUMP,
    CLASS_JUMP_REGISTER,
    CLASS_ARITHMETIC, /* floating point with the rounding mode in rm */
    CLASS_TO_INTEGER, /* floating point to integer register */
    CLASS_TO_FLOAT,
    CLASS_CSR,
};

/* clang-format off */
static const uint8_t classes[OP_COUNT] = {
    [OP_LUI] = CLASS_ALU,
    [OP_AUIPC] = CLASS_ALU,
    [OP_JAL] = CLASS_JUMP,
    [OP_JALR] = CLASS_JUMP_REGISTER,
    [OP_FENCE] = CLASS_OTHER,
#define X(name, ...) [OP_##name] = CLASS_ALU,
    OP_ALU_REG(X)
    OP_ALU_IMM(X)
#undef X
#define X(name, ...) [OP_##name] = CLASS_LOAD,
    OP_LOADS(X)
#undef X
#define X(name, ...) [OP_##name] = CLASS_ATOMIC,
    OP_RESERVE(X)
#undef X
#define X(name, ...) [OP_##name##_W] = CLASS_ATOMIC, [OP_##name##_D] = CLASS_ATOMIC,
    OP_AMOS(X)
#undef X
#define X(name, ...) [OP_##name] = CLASS_OTHER,
    OP_STORES(X)
    OP_FP_MEMORY(X)
#undef X
#define X(name, ...) [OP_##name] = CLASS_BRANCH,
    OP_CONDITIONS(X)
#undef X
#define X(name, ...) [OP_##name] = CLASS_ARITHMETIC,
    OP_FP_S(X)
    OP_FP_D(X)
#undef X
#define X(name, ...) [OP_##name##_S] = CLASS_ARITHMETIC, [OP_##name##_D] = CLASS_ARITHMETIC,
    OP_FMA(X)
#undef X
#define X(name, ...) [OP_##name] = CLASS_TO_INTEGER,
    OP_FP_FROM_FLOAT(X)
    OP_FP_TO_INTEGER(X)
#undef X
#define X(name, ...) [OP_##name] = CLASS_TO_FLOAT,
    OP_FP_CALLED(X)
    OP_FP_MOVES(X)
#undef X
#define X(name, ...) [OP_##name] = CLASS_CSR,
    OP_CSR(X)
#undef X
};
/* clang-format on */

/* The last op may be fused with the next. */
static void remember(struct translator *t, struct op *op, const struct insn *insn, unsigned at)
{
    t->last = op;
    t->insn = *insn;
    t->last_at = at;
}

static void emit_alu(struct translator *t, const struct insn *insn, unsigned at)
{
    enum op_id id = insn->id;
    int32_t imm = insn->imm;
    struct insn plain = *insn;

    if (insn->rd == 0) {
        emit_nop(t, insn);
        return;
    }
    if (emit_fused(t, insn)) {
        t->result = insn->rd;
        return;
    }
    if (id == OP_LUI || (id == OP_ADDI && insn->rs1 == 0)) {
        id = OP_LI;
    } else if (id == OP_ADDI && imm == 0) {
        id = OP_MV;
    } else if (id == OP_ADD && insn->rs1 == 0) {
        id = OP_MV;
        plain.rs1 = insn->rs2;
    } else if (id == OP_AUIPC && fits_32((int64_t)imm + at)) {
        id = OP_PC_REL;
        imm += (int32_t)at;
    } else if (id == OP_AUIPC) {
        emit_linked(t, OP_PC_REL_LONG, insn, imm, (int32_t)at);
        t->last = NULL;
        t->result = insn->rd;
        return;
    }
    remember(t, emit(t, id, &plain, imm), insn, at);
    t->result = insn->rd;
}

static void emit_fp(struct translator *t, const struct insn *insn)
{
    bool truncates = insn->rm == 1 && (insn->id == OP_FCVT_W_S || insn->id == OP_FCVT_L_S ||
                                       insn->id == OP_FCVT_W_D || insn->id == OP_FCVT_L_D);

    if (truncates)
        emit(t, OP_FCVT_TRUNC, insn, (int32_t)insn->id);
    else if (classes[insn->id] != CLASS_ARITHMETIC)
        emit(t, insn->id, insn, insn->rm);
    else if (insn->rm == 7)
        emit(t, insn->id, insn, insn->rs3);
    else
        emit(t, OP_FP_ROUND, insn, (int32_t)insn->id | insn->rm << 16 | insn->rs3 << 24);
}

/* fence: imm says whether stores have to be ordered before loads, which alone costs something on a host. */
static int32_t fence_strength(const struct insn *insn)
{
    unsigned before = (unsigned)insn->imm >> 4 & 0xf, after = (unsigned)insn->imm & 0xf;
    bool tso = ((unsigned)insn->imm >> 8 & 0xf) == 8;

    return !tso && (before & 5) && (after & 10);
}

/* The register was written by something that does not leave its result behind. */
static void forget_result(struct translator *t, unsigned rd)
{
    if (t->result == rd)
        t->result = 0;
}

bool translate_insn(struct translator *t, const struct insn *insn, unsigned at)
{
    enum class class = classes[insn->id];
    struct insn sunk = *insn;

    t->count++;
    if (class == CLASS_ALU) {
        emit_alu(t, insn, at);
        return true;
    }
    if (insn->rd == 0)
        sunk.rd = OP_REG_SINK;
    switch (class) {
    case CLASS_LOAD:
        if (insn->id != OP_LD || !emit_fused(t, insn))
            remember(t, emit(t, insn->id, &sunk, insn->imm), insn, at);
        t->result = insn->rd; /* x0: nothing that could be used */
        return true;
    case CLASS_ATOMIC:
        remember(t, emit(t, insn->id, &sunk, insn->imm), insn, at);
        forget_result(t, insn->rd);
        return true;
    case CLASS_OTHER:
        remember(t, emit(t, insn->id, insn, insn->id == OP_FENCE ? fence_strength(insn) : insn->imm), insn,
                 at);
        return true;
    case CLASS_BRANCH:
        emit_branch(t, insn, at);
        return true;
    case CLASS_JUMP:
        emit_jump(t, insn, at);
        return false;
    case CLASS_JUMP_REGISTER:
        emit_jump_register(t, insn, at);
        return false;
    case CLASS_ARITHMETIC:
    case CLASS_TO_FLOAT:
        emit_fp(t, insn);
        t->last = NULL;
        return true;
    case CLASS_TO_INTEGER:
        emit_fp(t, &sunk);
        t->last = NULL;
        forget_result(t, insn->rd);
        return true;
    case CLASS_CSR:
        sunk.rs2 = (uint8_t)t->count;
        emit_linked(t, insn->id, &sunk, insn->imm, (int32_t)at);
        t->last = NULL;
        forget_result(t, insn->rd);
        return true;
    default:
        sunk.rs2 = (uint8_t)t->count; /* sfence.vma's rs2 is not needed: no ASIDs */
        emit_linked(t, insn->id, &sunk, insn->imm, (int32_t)at);
        return false;
    }
}

void translate_end(struct translator *t, unsigned at)
{
    struct insn end = {.rd = (uint8_t)t->count, .size = 2};

    if (at < PAGE_SIZE)
        emit_linked(t, OP_END, &end, (int32_t)at, 0);
    else
        emit(t, OP_END_FAR, &end, (int32_t)at);
}
