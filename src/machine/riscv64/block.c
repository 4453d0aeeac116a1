/*
 * Blocks: runs of decoded instructions, kept by guest physical address.
 *
 * A block begins wherever the guest jumped to and goes on, past conditional branches that are not taken, to
 * the first instruction that always leaves, to the end of the page, or to BLOCK_INSNS_MAX. Blocks may
 * overlap. They lie one after the other in the hart's arena; when it is full, all are forgotten.
 *
 *     arena | block | ops, links | copy of the code | block | ...   ->      <- ... | offset | offset |
 *
 * fence.i changes the epoch. A block of an earlier epoch is compared with memory when it is next entered, and
 * made anew only if the code has changed: Linux executes thousands of fence.i, and hardly any code changes.
 *
 * An instruction that lies across two pages is a block of its own, which is looked up, and compared with both
 * pages, every time.
 */
#include "machine/riscv64/decode.h"
#include "machine/riscv64/hart.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define BLOCK_INSNS_MAX 64
#define ARENA_SIZE      (UINT32_C(6) << 20)
#define HASH_BITS       14
#define HASH_SIZE       (1u << HASH_BITS)

struct block {
    struct block *next; /* in the hash chain */
    uint64_t guest_addr;
    const uint8_t *host_code;
    uint32_t epoch; /* in which it was last seen to agree with memory */
    uint16_t slots;
    uint16_t code_size; /* bytes; a copy of them follows the ops */
    bool crossing;      /* one instruction across two pages: never linked to */
    struct op ops[] __attribute__((aligned(16)));
};

/* Room for the largest block: every instruction may take two slots. */
#define BLOCK_SIZE_MAX                                                                                       \
    (sizeof(struct block) + (2 * BLOCK_INSNS_MAX + 2) * sizeof(struct op) + 4 * BLOCK_INSNS_MAX + 16)

int block_cache_init(struct block_cache *cache, struct ferry_error *err)
{
    cache->arena =
        mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (cache->arena == MAP_FAILED) {
        cache->arena = NULL;
        return error_set_errno(err, -errno, "cannot get %u bytes for decoded instructions", ARENA_SIZE);
    }
    cache->hash = calloc(HASH_SIZE, sizeof(cache->hash[0]));
    if (!cache->hash)
        return error_set(err, -ENOMEM, "out of memory for decoded instructions");
    return 0;
}

void block_cache_destroy(struct block_cache *cache)
{
    if (cache->arena)
        munmap(cache->arena, ARENA_SIZE);
    free(cache->hash);
}

static uint32_t *directory(const struct block_cache *cache, size_t index)
{
    return (uint32_t *)(void *)(cache->arena + ARENA_SIZE) - 1 - index;
}

static struct block **hash_slot(const struct block_cache *cache, uint64_t guest_addr)
{
    return &cache->hash[(guest_addr >> 1 ^ guest_addr >> (1 + HASH_BITS)) & (HASH_SIZE - 1)];
}

/* Without the attention bit, which other threads set. */
static uint32_t epoch_of(const struct hart *hart)
{
    return __atomic_load_n(&hart->key.epoch, __ATOMIC_RELAXED) & ~EPOCH_ATTENTION;
}

void block_fence(struct hart *hart)
{
    uint32_t epoch = __atomic_add_fetch(&hart->key.epoch, 1, __ATOMIC_RELAXED);

    /* When the count wraps, nothing old may look new, 0 is that of links never followed, and the carry has
     * turned the attention bit over. */
    if ((epoch & ~EPOCH_ATTENTION) == 0) {
        block_cache_empty(hart);
        __atomic_or_fetch(&hart->key.epoch, EPOCH_ATTENTION | 1, __ATOMIC_SEQ_CST);
    }
}

void block_cache_empty(struct hart *hart)
{
    struct block_cache *cache = &hart->blocks;

    memset(cache->hash, 0, HASH_SIZE * sizeof(cache->hash[0]));
    memset(hart->jumps, 0xff, sizeof(hart->jumps)); /* odd pcs, which are never looked up */
    cache->used = 0;
    cache->count = 0;
    cache->generation++;
    cache->emptied++;
}

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

/* --- making a block ----------------------------------------------------------------------------------- */

struct builder {
    const struct hart *hart;
    struct op *ops;
    unsigned slots;
    unsigned count;        /* instructions so far, with the one being emitted */
    struct op *last;       /* the op before, if it is one instruction and falls through: may be fused with */
    struct insn insn;      /* what it came from */
    uint8_t result;        /* register the last result is for; 0 when it is not known (exec.c) */
    bool last_used_result; /* its first operand was the last result */
    unsigned last_at;      /* and its page offset */
};

/* The form of an op that has its operand from the last result, if that is what it needs. */
static enum op_id with_result(const struct builder *b, enum op_id id, unsigned rs1, unsigned rs2)
{
    if (b->result && rs1 == b->result && variant_a[id])
        return variant_a[id];
    if (b->result && rs2 == b->result && variant_b[id])
        return variant_b[id];
    return id;
}

static struct op *emit(struct builder *b, enum op_id id, const struct insn *insn, int32_t imm)
{
    struct op *op = &b->ops[b->slots++];

    b->last_used_result = b->result && insn->rs1 == b->result;
    id = with_result(b, id, insn->rs1, insn->rs2);

    *op = (struct op){
        .handler = b->hart->soft->handlers[id],
        .rd = insn->rd,
        .rs1 = insn->rs1,
        .rs2 = insn->rs2,
        .shape = OP_SHAPE(insn->size / 2, 0, 1, 0),
        .imm = imm,
    };
    return op;
}

/* As emit, for an op with a link slot; ops that leave note how many instructions the block ran up to them. */
static struct op *emit_linked(struct builder *b, enum op_id id, const struct insn *insn, int32_t imm,
                              int32_t aux)
{
    struct op *op = emit(b, id, insn, imm);
    struct op_link *link = (struct op_link *)(void *)&b->ops[b->slots++];

    op->shape |= OP_SHAPE(1, 0, 1, 1);
    *link = (struct op_link){.aux = aux};
    return op;
}

/* Turns the op before into a pair with INSN. */
static struct op *fuse(struct builder *b, enum op_id id, const struct insn *insn, int32_t imm)
{
    struct op *op = b->last;

    op->handler = b->hart->soft->handlers[b->last_used_result && variant_a[id] ? variant_a[id] : id];
    op->imm = imm;
    op->shape = OP_SHAPE((b->insn.size + insn->size) / 2u, b->insn.size / 2u, 2, 0);
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
static void emit_nop(struct builder *b, const struct insn *insn)
{
    struct op *last = b->last;

    if (last && OP_SHAPE_HALVES(last->shape) + insn->size / 2u <= OP_SHAPE_HALVES_MAX &&
        OP_SHAPE_COUNT(last->shape) < OP_SHAPE_COUNT_MAX) {
        last->shape = OP_SHAPE(OP_SHAPE_HALVES(last->shape) + insn->size / 2u, OP_SHAPE_LEAD(last->shape),
                               OP_SHAPE_COUNT(last->shape) + 1u, 0);
        b->insn.id = OP_NOP; /* too much already to be fused */
        return;
    }
    b->last = emit(b, OP_NOP, insn, 0);
    b->insn = (struct insn){.id = OP_NOP};
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
static bool emit_fused(struct builder *b, const struct insn *insn)
{
    const struct insn *first = &b->insn;
    struct op *op = b->last;
    int64_t sum = (int64_t)first->imm + insn->imm;

    if (!op || first->rd != insn->rd || insn->rd == 0)
        return false;
    if (first->id == OP_LUI && insn->rs1 == first->rd) {
        if (insn->id == OP_ADDIW)
            fuse(b, OP_LI, insn, (int32_t)sum);
        else if (insn->id == OP_ADDI && fits_32(sum))
            fuse(b, OP_LI, insn, (int32_t)sum);
        else
            return false;
    } else if (first->id == OP_AUIPC && insn->rs1 == first->rd) {
        sum += b->last_at;
        if (!fits_32(sum) || !fits_32((int64_t)first->imm + b->last_at) ||
            (insn->id != OP_ADDI && insn->id != OP_LD))
            return false;
        if (insn->id == OP_ADDI) {
            fuse(b, OP_PC_REL, insn, (int32_t)sum);
        } else {
            struct op_link *link = (struct op_link *)(void *)&b->ops[b->slots++];

            *link = (struct op_link){.aux = op->imm}; /* what auipc alone gives, should the load fault */
            fuse(b, OP_LD_PC, insn, (int32_t)sum)->shape |= OP_SHAPE(1, 0, 1, 1);
            op = NULL;
        }
    } else if (first->id == OP_SLLI && insn->rs1 == first->rd &&
               (insn->id == OP_SRLI || insn->id == OP_SRAI)) {
        fuse(b, insn->id == OP_SRLI ? OP_ZEXT_SHIFT : OP_SEXT_SHIFT, insn, insn->imm)->rs2 =
            (uint8_t)first->imm;
    } else if ((insn->rs1 == first->rd) != (insn->rs2 == first->rd) && shift_pair(first->id, insn->id)) {
        fuse(b, shift_pair(first->id, insn->id), insn, first->imm)->rs2 =
            insn->rs1 == first->rd ? insn->rs2 : insn->rs1;
    } else {
        return false;
    }
    b->last = op;
    b->insn.id = OP_NOP;
    return true;
}

static void emit_branch(struct builder *b, const struct insn *insn, unsigned at)
{
    int32_t target = (int32_t)at + insn->imm;
    struct op *op;

    if (!in_page(target)) {
#define X(name, ...)                                                                                         \
    if (insn->id == OP_##name)                                                                               \
        emit(b, OP_##name##_FAR, insn, target)->rd = (uint8_t)b->count;
        OP_CONDITIONS(X)
#undef X
        b->last = NULL;
        return;
    }
    /* addi r, r, imm followed by a branch: the end of most loops. */
    if (b->last && b->insn.id == OP_ADDI && b->insn.rd == b->insn.rs1 && b->insn.rd != 0) {
        struct insn pair = *insn;

        pair.rd = b->insn.rd;
        pair.size = (uint8_t)(pair.size + b->insn.size);
        b->slots--;
        op = NULL;
        b->result = 0;
#define X(name, ...)                                                                                         \
    if (insn->id == OP_##name)                                                                               \
        op = emit_linked(b,                                                                                  \
                         insn->rs1 == pair.rd   ? OP_ADDI_##name##_A                                         \
                         : insn->rs2 == pair.rd ? OP_ADDI_##name##_B                                         \
                                                : OP_ADDI_##name,                                            \
                         &pair, target | (int32_t)((uint32_t)b->insn.imm << 16), (int32_t)b->count);
        OP_CONDITIONS(X)
#undef X
        op->shape |= OP_SHAPE(1, 0, 2, 0);
        b->result = pair.rd;
    } else {
        emit_linked(b, insn->id, insn, target, 0)->rd = (uint8_t)b->count;
    }
    b->last = NULL;
}

static void emit_jump(struct builder *b, const struct insn *insn, unsigned at)
{
    int32_t target = (int32_t)at + insn->imm, after = (int32_t)(at + insn->size);
    struct insn jump = *insn;

    jump.rs2 = (uint8_t)b->count;
    if (in_page(target) && insn->rd == 0) {
        jump.rd = (uint8_t)b->count;
        emit_linked(b, OP_J, &jump, target, 0);
        return;
    }
    if (insn->rd == 0)
        jump.rd = OP_REG_SINK;
    emit_linked(b, in_page(target) ? OP_JAL : OP_JAL_FAR, &jump, target, after);
}

static void emit_jump_register(struct builder *b, const struct insn *insn, unsigned at)
{
    int64_t target = (int64_t)b->last_at + b->insn.imm + insn->imm;
    struct insn jump = *insn;

    jump.rs2 = (uint8_t)b->count;
    if (b->last && b->insn.id == OP_AUIPC && insn->rd != 0 && b->insn.rd == insn->rd &&
        insn->rs1 == insn->rd && fits_32(target)) {
        b->slots--;
        jump.size = (uint8_t)(jump.size + b->insn.size);
        emit_linked(b, OP_CALL_LONG, &jump, (int32_t)target & ~1, (int32_t)(at + insn->size))->shape |=
            OP_SHAPE(1, 0, 2, 0);
        return;
    }
    if (insn->rd == 0 && insn->imm == 0) {
        emit(b, OP_RET, &jump, 0);
        return;
    }
    if (insn->rd == 0)
        jump.rd = OP_REG_SINK;
    emit_linked(b, OP_JALR, &jump, insn->imm, (int32_t)(at + insn->size));
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
static void remember(struct builder *b, struct op *op, const struct insn *insn, unsigned at)
{
    b->last = op;
    b->insn = *insn;
    b->last_at = at;
}

static void emit_alu(struct builder *b, const struct insn *insn, unsigned at)
{
    enum op_id id = insn->id;
    int32_t imm = insn->imm;
    struct insn plain = *insn;

    if (insn->rd == 0) {
        emit_nop(b, insn);
        return;
    }
    if (emit_fused(b, insn)) {
        b->result = insn->rd;
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
        emit_linked(b, OP_PC_REL_LONG, insn, imm, (int32_t)at);
        b->last = NULL;
        b->result = insn->rd;
        return;
    }
    remember(b, emit(b, id, &plain, imm), insn, at);
    b->result = insn->rd;
}

static void emit_fp(struct builder *b, const struct insn *insn)
{
    bool truncates = insn->rm == 1 && (insn->id == OP_FCVT_W_S || insn->id == OP_FCVT_L_S ||
                                       insn->id == OP_FCVT_W_D || insn->id == OP_FCVT_L_D);

    if (truncates)
        emit(b, OP_FCVT_TRUNC, insn, (int32_t)insn->id);
    else if (classes[insn->id] != CLASS_ARITHMETIC)
        emit(b, insn->id, insn, insn->rm);
    else if (insn->rm == 7)
        emit(b, insn->id, insn, insn->rs3);
    else
        emit(b, OP_FP_ROUND, insn, (int32_t)insn->id | insn->rm << 16 | insn->rs3 << 24);
}

/* fence: imm says whether stores have to be ordered before loads, which alone costs something on a host. */
static int32_t fence_strength(const struct insn *insn)
{
    unsigned before = (unsigned)insn->imm >> 4 & 0xf, after = (unsigned)insn->imm & 0xf;
    bool tso = ((unsigned)insn->imm >> 8 & 0xf) == 8;

    return !tso && (before & 5) && (after & 10);
}

/* The register was written by something that does not leave its result behind. */
static void forget_result(struct builder *b, unsigned rd)
{
    if (b->result == rd)
        b->result = 0;
}

/* Lays down one instruction found at page offset AT. Returns false when the block ends with it. */
static bool emit_insn(struct builder *b, struct insn *insn, unsigned at)
{
    enum class class = classes[insn->id];
    struct insn sunk = *insn;

    if (class == CLASS_ALU) {
        emit_alu(b, insn, at);
        return true;
    }
    if (insn->rd == 0)
        sunk.rd = OP_REG_SINK;
    switch (class) {
    case CLASS_LOAD:
        if (insn->id != OP_LD || !emit_fused(b, insn))
            remember(b, emit(b, insn->id, &sunk, insn->imm), insn, at);
        b->result = insn->rd; /* x0: nothing that could be used */
        return true;
    case CLASS_ATOMIC:
        remember(b, emit(b, insn->id, &sunk, insn->imm), insn, at);
        forget_result(b, insn->rd);
        return true;
    case CLASS_OTHER:
        remember(b, emit(b, insn->id, insn, insn->id == OP_FENCE ? fence_strength(insn) : insn->imm), insn,
                 at);
        return true;
    case CLASS_BRANCH:
        emit_branch(b, insn, at);
        return true;
    case CLASS_JUMP:
        emit_jump(b, insn, at);
        return false;
    case CLASS_JUMP_REGISTER:
        emit_jump_register(b, insn, at);
        return false;
    case CLASS_ARITHMETIC:
    case CLASS_TO_FLOAT:
        emit_fp(b, insn);
        b->last = NULL;
        return true;
    case CLASS_TO_INTEGER:
        emit_fp(b, &sunk);
        b->last = NULL;
        forget_result(b, insn->rd);
        return true;
    case CLASS_CSR:
        sunk.rs2 = (uint8_t)b->count;
        emit_linked(b, insn->id, &sunk, insn->imm, (int32_t)at);
        b->last = NULL;
        forget_result(b, insn->rd);
        return true;
    default:
        sunk.rs2 = (uint8_t)b->count; /* sfence.vma's rs2 is not needed: no ASIDs */
        emit_linked(b, insn->id, &sunk, insn->imm, (int32_t)at);
        return false;
    }
}

/* Room for one more block, forgetting all when there is none. */
static struct block *block_allocate(struct hart *hart)
{
    struct block_cache *cache = &hart->blocks;

    if (cache->used + BLOCK_SIZE_MAX + (cache->count + 1) * sizeof(uint32_t) > ARENA_SIZE)
        block_cache_empty(hart);
    return (struct block *)(void *)(cache->arena + cache->used);
}

static void block_commit(struct hart *hart, struct block *block, const void *code)
{
    struct block_cache *cache = &hart->blocks;
    struct block **slot = hash_slot(cache, block->guest_addr);
    size_t size = sizeof(*block) + block->slots * sizeof(struct op) + block->code_size;

    memcpy(&block->ops[block->slots], code, block->code_size);
    block->epoch = epoch_of(hart);
    block->next = *slot;
    *slot = block;
    *directory(cache, cache->count++) = (uint32_t)cache->used;
    cache->used += (size + 15) & ~(size_t)15;
    cache->built++;
}

static uint32_t read_code(const uint8_t *host, unsigned size)
{
    uint32_t bits = __atomic_load_n((const guest_u16 *)(const void *)host, __ATOMIC_RELAXED);

    if (size == 4)
        bits |= (uint32_t)__atomic_load_n((const guest_u16 *)(const void *)(host + 2), __ATOMIC_RELAXED)
                << 16;
    return bits;
}

/* Makes the block for the instructions at page offset AT; not for one that crosses into the next page. */
static struct block *block_make(struct hart *hart, const struct fetch_entry *page, unsigned at)
{
    struct block *block = block_allocate(hart);
    struct builder b = {.hart = hart, .ops = block->ops};
    guest_u16 code[2 * BLOCK_INSNS_MAX];
    unsigned start = at, size = 0;
    bool open = true;

    while (open && at < PAGE_SIZE && b.count < BLOCK_INSNS_MAX) {
        uint32_t bits = read_code(page->host_page + at, 2);
        struct insn insn;
        unsigned length = decode_size((uint16_t)bits);

        if (at + length > PAGE_SIZE)
            break;
        /* The guest may be changing it: what is kept for comparison is what was decoded. */
        bits |= length == 4 ? read_code(page->host_page + at + 2, 2) << 16 : 0;
        memcpy((uint8_t *)code + size, &bits, length);
        decode_insn(bits, &insn);
        b.count++;
        open = emit_insn(&b, &insn, at);
        at += length;
        size += length;
    }
    if (open) {
        struct insn end = {.rd = (uint8_t)b.count, .size = 2};

        if (at < PAGE_SIZE)
            emit_linked(&b, OP_END, &end, (int32_t)at, 0);
        else
            emit(&b, OP_END_FAR, &end, (int32_t)at);
    }
    block->guest_addr = page->guest_page + start;
    block->host_code = page->host_page + start;
    block->slots = (uint16_t)b.slots;
    block->code_size = (uint16_t)size;
    /* Nothing: the guest was just changing it. Not to be found again. */
    block->crossing = b.count == 0;
    block_commit(hart, block, code);
    return block;
}

/* The block of the one instruction BITS that begins in the last two bytes of PAGE. */
static struct block *block_make_crossing(struct hart *hart, const struct fetch_entry *page, uint32_t bits)
{
    struct block *block = block_allocate(hart);
    struct builder b = {.hart = hart, .ops = block->ops, .count = 1};
    struct insn insn;

    decode_insn(bits, &insn);
    if (emit_insn(&b, &insn, PAGE_SIZE - 2)) {
        struct insn end = {.rd = 1, .size = 2};

        emit(&b, OP_END_FAR, &end, (int32_t)PAGE_SIZE + 2);
    }
    block->guest_addr = page->guest_page + PAGE_SIZE - 2;
    block->host_code = NULL;
    block->slots = (uint16_t)b.slots;
    block->code_size = 4;
    block->crossing = true;
    block_commit(hart, block, &bits);
    return block;
}

/* --- finding a block ---------------------------------------------------------------------------------- */

static const uint8_t *code_copy(const struct block *block)
{
    return (const uint8_t *)&block->ops[block->slots];
}

/* The place in its hash chain that points to the block of this address, or to NULL. */
static struct block **block_find(struct hart *hart, uint64_t guest_addr)
{
    struct block **slot = hash_slot(&hart->blocks, guest_addr);

    while (*slot && (*slot)->guest_addr != guest_addr)
        slot = &(*slot)->next;
    return slot;
}

static struct block *block_get(struct hart *hart, const struct fetch_entry *page, unsigned at)
{
    struct block **slot = block_find(hart, page->guest_page + at);
    struct block *block = *slot;
    uint32_t epoch = epoch_of(hart);

    if (block && block->epoch == epoch && !block->crossing)
        return block;
    if (block && !block->crossing && memcmp(block->host_code, code_copy(block), block->code_size) == 0) {
        block->epoch = epoch;
        return block;
    }
    if (block)
        *slot = block->next; /* links to it are of an earlier epoch */
    return block_make(hart, page, at);
}

/* As block_get for the last two bytes of a page. NULL: fetching the second half faults. */
static struct block *block_get_crossing(struct hart *hart, const struct fetch_entry *page, uint32_t first)
{
    const struct fetch_entry *second = mmu_fetch(hart, (hart->pc & PAGE_MASK) + PAGE_SIZE);
    struct block **slot, *block;
    uint32_t bits;

    if (!second)
        return NULL;
    bits = first | read_code(second->host_page, 2) << 16;
    slot = block_find(hart, page->guest_page + PAGE_SIZE - 2);
    block = *slot;
    if (block && block->crossing && memcmp(code_copy(block), &bits, 4) == 0)
        return block;
    if (block)
        *slot = block->next;
    return block_make_crossing(hart, page, bits);
}

const struct op *block_enter(struct hart *hart)
{
    for (;;) {
        const struct fetch_entry *page;
        struct block *block;
        struct jump_entry *jump;
        unsigned at;

        if (unlikely(__atomic_load_n(&hart->key.epoch, __ATOMIC_RELAXED) & EPOCH_ATTENTION) &&
            !hart_attend(hart))
            return NULL;
        at = (unsigned)(hart->pc & ~PAGE_MASK); /* the pc may have moved */
        page = mmu_fetch(hart, hart->pc);
        if (page && at == PAGE_SIZE - 2 && decode_size((uint16_t)read_code(page->host_page + at, 2)) == 4) {
            /* The entry is copied: fetching the second page must not overwrite it. */
            struct fetch_entry first = *page;

            block = block_get_crossing(hart, &first, read_code(first.host_page + at, 2));
            if (block)
                return block->ops;
            page = NULL;
        }
        if (!page) {
            trap_take(hart, hart->fault_cause, hart->fault_value);
            continue;
        }
        block = block_get(hart, page, at);
        jump = &hart->jumps[jump_index(hart->pc)];
        *jump = (struct jump_entry){
            .pc = hart->pc,
            .key = (uint64_t)block->epoch << 32 | hart->key.context,
            .target = block->ops,
        };
        return block->ops;
    }
}

/* The block an op is in. */
static const struct block *block_of(const struct block_cache *cache, const struct op *op)
{
    uint32_t position = (uint32_t)((const uint8_t *)op - cache->arena);
    size_t low = 0, high = cache->count; /* it is in [low, high) of the directory, which is in order */

    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;

        if (*directory(cache, middle) <= position)
            low = middle;
        else
            high = middle;
    }
    return (const struct block *)(const void *)(cache->arena + *directory(cache, low));
}

const struct op *block_enter_linked(struct hart *hart, const struct op *from)
{
    uint32_t generation = hart->blocks.generation;
    uint64_t pc = hart->pc;
    struct op_link *link = (struct op_link *)(uintptr_t)(from + 1);
    const struct op *target = block_enter(hart);
    const struct block *block;

    if (!target || hart->pc != pc || hart->blocks.generation != generation)
        return target;
    block = (const struct block *)(const void *)((const uint8_t *)target - offsetof(struct block, ops));
    /*
     * The mapping may have been changed while the code around FROM was running, before the guest's
     * sfence.vma: only what is in the same physical page is always the neighbour of this op.
     */
    if (link->target != target &&
        (block->crossing || (block->guest_addr ^ block_of(&hart->blocks, from)->guest_addr) & PAGE_MASK))
        return target;
    link->target = target;
    link->epoch = block->epoch;
    return target;
}

struct block_place block_locate(const struct hart *hart, const struct op *op)
{
    const struct block *block = block_of(&hart->blocks, op);
    const struct op *cursor;
    struct block_place place = {0};
    unsigned start;

    start = (unsigned)(block->guest_addr & ~PAGE_MASK);
    place.page_offset = start;
    for (cursor = block->ops; cursor != op; cursor += 1 + OP_SHAPE_LINK(cursor->shape)) {
        place.page_offset += 2 * OP_SHAPE_HALVES(cursor->shape);
        place.retired += OP_SHAPE_COUNT(cursor->shape);
    }
    if (OP_SHAPE_LEAD(op->shape)) {
        place.page_offset += 2 * OP_SHAPE_LEAD(op->shape);
        place.retired++;
    }
    place.bits = read_code(code_copy(block) + (place.page_offset - start), 2);
    if (decode_size((uint16_t)place.bits) == 4)
        place.bits = read_code(code_copy(block) + (place.page_offset - start), 4);
    return place;
}
