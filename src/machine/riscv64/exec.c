/*
 * The interpreter: runs decoded ops by jumping from handler to handler.
 *
 * One large function, because handlers are labels and share its local variables, which live in host
 * registers: the op, the hart, the page of the pc, the instruction count, and the TLB set. Everything that is
 * not short is a call. Handlers end in NEXT (fall through), FOLLOW (a link inside the page), JUMP (any
 * address) or one of the labels at the end.
 *
 * hart->pc and hart->retired are only exact at calls that say so; precise traps are made up from the op's
 * place in its block.
 *
 * Memory ordering: loads and stores are the host's, which is enough on hosts at least as strong as RVWMO's
 * preserved program order (x86-64, AArch64: address and data dependencies are kept because each op depends on
 * the registers in memory). Fences are the host's; atomics are sequentially consistent, whatever aq and rl
 * say.
 *
 * LR/SC: LR remembers the address and the value, SC is a compare-and-swap with that value. A store of the
 * same value by another hart in between is not noticed; software that follows the specification cannot tell.
 */
#include "machine/riscv64/fpu.h"
#include "machine/riscv64/hart.h"

#include <math.h>

static uint64_t div_signed(uint64_t a, uint64_t b)
{
    if (b == 0)
        return UINT64_MAX;
    if (b == UINT64_MAX)
        return 0 - a; /* also the overflow case */
    return (uint64_t)((int64_t)a / (int64_t)b);
}

static uint64_t rem_signed(uint64_t a, uint64_t b)
{
    if (b == 0)
        return a;
    if (b == UINT64_MAX)
        return 0;
    return (uint64_t)((int64_t)a % (int64_t)b);
}

static uint64_t divw_signed(uint32_t a, uint32_t b)
{
    if (b == 0)
        return UINT64_MAX;
    if (b == UINT32_MAX)
        return SEXT32(0 - a);
    return SEXT32((int32_t)a / (int32_t)b);
}

static uint64_t remw_signed(uint32_t a, uint32_t b)
{
    if (b == 0)
        return SEXT32(a);
    if (b == UINT32_MAX)
        return 0;
    return SEXT32((int32_t)a % (int32_t)b);
}

/* lr: false when it faults. */
static __attribute__((noinline)) bool load_reserved(struct hart *hart, const struct op *op, unsigned size)
{
    void *host = mmu_atomic(hart, hart->x[op->rs1], size, MMU_LOAD);

    if (!host)
        return false;
    hart->reservation = host;
    hart->reservation_size = size;
    if (size == 4)
        hart->reservation_value = SEXT32(__atomic_load_n((guest_u32 *)host, __ATOMIC_SEQ_CST));
    else
        hart->reservation_value = __atomic_load_n((guest_u64 *)host, __ATOMIC_SEQ_CST);
    hart->x[op->rd] = hart->reservation_value;
    return true;
}

/* sc: false when it faults. */
static __attribute__((noinline)) bool store_conditional(struct hart *hart, const struct op *op, unsigned size)
{
    uint64_t addr = hart->x[op->rs1], value = hart->x[op->rs2], expected = hart->reservation_value;
    const void *reservation = hart->reservation_size == size ? hart->reservation : NULL;
    bool done = false;
    void *host;

    hart->reservation = NULL;
    if (!reservation && !(addr & (size - 1))) {
        hart->x[op->rd] = 1;
        return true;
    }
    host = mmu_atomic(hart, addr, size, MMU_STORE);
    if (!host)
        return false;
    if (host == reservation && size == 4) {
        uint32_t expected_word = (uint32_t)expected;

        done = __atomic_compare_exchange_n((guest_u32 *)host, &expected_word, (uint32_t)value, false,
                                           __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    } else if (host == reservation) {
        done = __atomic_compare_exchange_n((guest_u64 *)host, &expected, value, false, __ATOMIC_SEQ_CST,
                                           __ATOMIC_SEQ_CST);
    }
    hart->x[op->rd] = !done;
    return true;
}

/* fcvt.{w,l}.{s,d} towards zero, for values that fit: the host's conversion does it, flags included. */
static inline bool convert_truncating(struct hart *hart, const struct op *op)
{
    enum op_id id = (enum op_id)op->imm;
    double value = id >= OP_FCVT_W_D ? fpu_get_d(hart->f[op->rs1]) : (double)fpu_get_s(hart->f[op->rs1]);

    if (id == OP_FCVT_W_D || id == OP_FCVT_W_S) {
        if (!(value >= -0x1p31 && value < 0x1p31))
            return false;
        hart->x[op->rd] = SEXT32((int32_t)value);
        return true;
    }
    if (!(value >= -0x1p63 && value < 0x1p63))
        return false;
    hart->x[op->rd] = (uint64_t)(int64_t)value;
    return true;
}

/* LIST of labels, then ops: HANDLERS non-NULL only asks for the table. */
static void run(struct hart *hart, const void *const **handlers)
{
    /* clang-format off */
    static const void *const labels[OP_COUNT] = {
#define X(name, ...) [OP_##name] = &&op_##name,
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
#define X(name, ...) [OP_##name##_W] = &&op_##name##_W, [OP_##name##_D] = &&op_##name##_D,
        OP_AMOS(X)
#undef X
#define X(name, ...) [OP_##name##_S] = &&op_##name##_S, [OP_##name##_D] = &&op_##name##_D,
        OP_FMA(X)
#undef X
#define X(name, ...)                                                                                         \
    [OP_##name##_FAR] = &&op_##name##_FAR, [OP_ADDI_##name] = &&op_ADDI_##name,                              \
    [OP_ADDI_##name##_A] = &&op_ADDI_##name##_A, [OP_ADDI_##name##_B] = &&op_ADDI_##name##_B,
        OP_CONDITIONS(X)
#undef X
#define X(name, ...) [OP_##name##_A] = &&op_##name##_A,
        OP_WITH_A(X)
#undef X
#define X(name, ...) [OP_##name##_B] = &&op_##name##_B,
        OP_WITH_B(X)
#undef X
    };
    /* clang-format on */
    const struct op *op;
    struct tlb_entry *tlb;
    uint64_t page;    /* virtual address of the code's page */
    uint64_t retired; /* up to the start of the block */
    uint64_t last;    /* what the last op that computes something computed */
    uint64_t pc, operand;
    int32_t offset;
    enum op_id fp_id;
    enum csr_operation csr_operation;
    bool csr_writes;

    if (handlers) {
        *handlers = labels;
        return;
    }

#define NEXT()                                                                                               \
    do {                                                                                                     \
        op++;                                                                                                \
        goto * op->handler;                                                                                  \
    } while (0)
#define LINK ((const struct op_link *)(const void *)(op + 1))

/* Goes on at page offset TO, COUNT instructions after the start of the block. */
#define FOLLOW(to, count)                                                                                    \
    do {                                                                                                     \
        retired += (count);                                                                                  \
        if (likely(LINK->epoch == __atomic_load_n(&hart->key.epoch, __ATOMIC_RELAXED))) {                    \
            op = LINK->target;                                                                               \
            goto * op->handler;                                                                              \
        }                                                                                                    \
        offset = (to);                                                                                       \
        goto relink;                                                                                         \
    } while (0)

#define JUMP(to)                                                                                             \
    do {                                                                                                     \
        const struct jump_entry *jump_;                                                                      \
                                                                                                             \
        pc = (to);                                                                                           \
        jump_ = &hart->jumps[jump_index(pc)];                                                                \
        if (likely(jump_->pc == pc && jump_->key == __atomic_load_n(&hart->key.both, __ATOMIC_RELAXED))) {   \
            page = pc & PAGE_MASK;                                                                           \
            op = jump_->target;                                                                              \
            goto * op->handler;                                                                              \
        }                                                                                                    \
        goto enter;                                                                                          \
    } while (0)

/* Before a call that needs pc and retired: those of this op, which has a link with its page offset. */
#define SYNC()                                                                                               \
    do {                                                                                                     \
        hart->pc = page + (uint64_t)LINK->aux;                                                               \
        hart->retired = retired + op->rs2 - 1;                                                               \
    } while (0)
/* After a call that moved pc. */
#define RESUME()                                                                                             \
    do {                                                                                                     \
        tlb = hart->tlb;                                                                                     \
        retired = hart->retired;                                                                             \
        JUMP(hart->pc);                                                                                      \
    } while (0)

    pc = hart->pc;
    retired = hart->retired;
    last = 0;
    goto enter;

    /* --- integer ------------------------------------------------------------------------------------ */

#define RS1 (hart->x[op->rs1])
#define RS2 (hart->x[op->rs2])
#define IMM ((uint64_t)(int64_t)op->imm)
/* The register and the last result; NEXT reads op->rd no more. */
#define RESULT(value) (hart->x[op->rd] = last = (value))

#define ALU_REG(label, expression, a_, b_)                                                                   \
    label : {                                                                                                \
        uint64_t a = (a_), b = (b_);                                                                         \
                                                                                                             \
        RESULT(expression);                                                                                  \
        NEXT();                                                                                              \
    }
#define X(name, expression)                                                                                  \
    ALU_REG(op_##name, expression, RS1, RS2)                                                                 \
    ALU_REG(op_##name##_A, expression, last, RS2)                                                            \
    ALU_REG(op_##name##_B, expression, RS1, last)
    OP_ALU_REG(X)
#undef X
#define ALU_IMM(label, expression, a_)                                                                       \
    label : {                                                                                                \
        uint64_t a = (a_), i = IMM;                                                                          \
                                                                                                             \
        RESULT(expression);                                                                                  \
        NEXT();                                                                                              \
    }
#define X(name, expression)                                                                                  \
    ALU_IMM(op_##name, expression, RS1)                                                                      \
    ALU_IMM(op_##name##_A, expression, last)
    OP_ALU_IMM(X)
#undef X
#define PAIR(label, expression, a_, type, name, value)                                                       \
    label : {                                                                                                \
        uint64_t a = (a_);                                                                                   \
        type name = (value);                                                                                 \
        unsigned i = (unsigned)op->imm;                                                                      \
                                                                                                             \
        RESULT(expression);                                                                                  \
        NEXT();                                                                                              \
    }
#define X(name, expression)                                                                                  \
    PAIR(op_##name, expression, RS1, unsigned, k, op->rs2)                                                   \
    PAIR(op_##name##_A, expression, last, unsigned, k, op->rs2)
    OP_SHIFT_PAIRS(X)
#undef X
#define X(name, expression)                                                                                  \
    PAIR(op_##name, expression, RS1, uint64_t, b, RS2)                                                       \
    PAIR(op_##name##_A, expression, last, uint64_t, b, RS2)
    OP_SHIFT_OPS(X)
#undef X

op_NOP:
    NEXT();
op_LUI: /* laid down as LI */
op_LI:
    RESULT(IMM);
    NEXT();
op_MV:
    RESULT(RS1);
    NEXT();
op_AUIPC: /* laid down as PC_REL */
op_PC_REL:
    RESULT(page + IMM);
    NEXT();
op_PC_REL_LONG:
    RESULT(page + IMM + (uint64_t)LINK->aux);
    op++;
    NEXT();

    /* --- loads and stores --------------------------------------------------------------------------- */

#define TLB_LOOKUP(addr)            (&tlb[(addr) >> PAGE_SHIFT & (TLB_ENTRIES - 1)])
#define TLB_MATCH(addr, type)       ((addr) & (PAGE_MASK | (sizeof(type) - 1)))
#define TLB_HOST(addr, entry, type) ((type __attribute__((may_alias)) *)(uintptr_t)((addr) + (entry)->addend))

#define LOAD(addr, type)                                                                                     \
    ({                                                                                                       \
        uint64_t addr_ = (addr), value_;                                                                     \
        const struct tlb_entry *entry_ = TLB_LOOKUP(addr_);                                                  \
                                                                                                             \
        if (likely(entry_->load_tag == TLB_MATCH(addr_, type)))                                              \
            value_ = (uint64_t)__atomic_load_n(TLB_HOST(addr_, entry_, type), __ATOMIC_RELAXED);             \
        else if (likely(mmu_load(hart, addr_, sizeof(type), &operand)))                                      \
            value_ = (uint64_t)(type)operand;                                                                \
        else                                                                                                 \
            goto fault;                                                                                      \
        value_;                                                                                              \
    })
#define STORE(addr, type, value)                                                                             \
    do {                                                                                                     \
        uint64_t addr_ = (addr);                                                                             \
        const struct tlb_entry *entry_ = TLB_LOOKUP(addr_);                                                  \
                                                                                                             \
        if (likely(entry_->store_tag == TLB_MATCH(addr_, type)))                                             \
            __atomic_store_n(TLB_HOST(addr_, entry_, type), (type)(value), __ATOMIC_RELAXED);                \
        else if (unlikely(!mmu_store(hart, addr_, sizeof(type), (value))))                                   \
            goto fault;                                                                                      \
    } while (0)
#define ADDRESS (RS1 + IMM)

#define X(name, type)                                                                                        \
    op_##name : RESULT(LOAD(RS1 + IMM, type));                                                               \
    NEXT();                                                                                                  \
    op_##name##_A : RESULT(LOAD(last + IMM, type));                                                          \
    NEXT();
    OP_LOADS(X)
#undef X
#define X(name, type)                                                                                        \
    op_##name : STORE(RS1 + IMM, type, RS2);                                                                 \
    NEXT();                                                                                                  \
    op_##name##_A : STORE(last + IMM, type, RS2);                                                            \
    NEXT();                                                                                                  \
    op_##name##_B : STORE(RS1 + IMM, type, last);                                                            \
    NEXT();
    OP_STORES(X)
#undef X

op_LD_PC: /* auipc has written the register before the load can fault */
    hart->x[op->rd] = page + (uint64_t)LINK->aux;
    RESULT(LOAD(page + IMM, uint64_t));
    op++;
    NEXT();

    /* --- control ------------------------------------------------------------------------------------ */

#define BRANCH(label, condition, a_, b_)                                                                     \
    label : {                                                                                                \
        uint64_t a = (a_), b = (b_);                                                                         \
                                                                                                             \
        if (condition)                                                                                       \
            FOLLOW(op->imm, op->rd);                                                                         \
        op++;                                                                                                \
        NEXT();                                                                                              \
    }
#define BRANCH_FAR(label, condition)                                                                         \
    label : {                                                                                                \
        uint64_t a = RS1, b = RS2;                                                                           \
                                                                                                             \
        if (condition) {                                                                                     \
            retired += op->rd;                                                                               \
            JUMP(page + IMM);                                                                                \
        }                                                                                                    \
        NEXT();                                                                                              \
    }
#define ADDI_BRANCH(label, condition, a_, b_)                                                                \
    label : {                                                                                                \
        uint64_t a, b;                                                                                       \
                                                                                                             \
        RESULT(hart->x[op->rd] + (uint64_t)(int64_t)(op->imm >> 16));                                        \
        a = (a_);                                                                                            \
        b = (b_);                                                                                            \
        if (condition)                                                                                       \
            FOLLOW(op->imm & 0xffff, (uint64_t)LINK->aux);                                                   \
        op++;                                                                                                \
        NEXT();                                                                                              \
    }
#define X(name, condition)                                                                                   \
    BRANCH(op_##name, condition, RS1, RS2)                                                                   \
    BRANCH(op_##name##_A, condition, last, RS2)                                                              \
    BRANCH(op_##name##_B, condition, RS1, last)                                                              \
    BRANCH_FAR(op_##name##_FAR, condition)                                                                   \
    ADDI_BRANCH(op_ADDI_##name, condition, RS1, RS2)                                                         \
    ADDI_BRANCH(op_ADDI_##name##_A, condition, last, RS2)                                                    \
    ADDI_BRANCH(op_ADDI_##name##_B, condition, RS1, last)
    OP_CONDITIONS(X)
#undef X

op_J:
    FOLLOW(op->imm, op->rd);
op_JAL:
    hart->x[op->rd] = page + (uint64_t)LINK->aux;
    FOLLOW(op->imm, op->rs2);
op_CALL_LONG:
op_JAL_FAR:
    hart->x[op->rd] = page + (uint64_t)LINK->aux;
    retired += op->rs2;
    JUMP(page + IMM);
op_JALR:
    operand = (RS1 + IMM) & ~UINT64_C(1);
    hart->x[op->rd] = page + (uint64_t)LINK->aux;
    retired += op->rs2;
    JUMP(operand);
op_RET:
    retired += op->rs2;
    JUMP(RS1 & ~UINT64_C(1));
op_END:
    FOLLOW(op->imm, op->rd);
op_END_FAR:
    retired += op->rd;
    JUMP(page + (uint64_t)op->imm);

    /* --- system ------------------------------------------------------------------------------------- */

op_ILLEGAL:
    goto illegal;
op_FENCE:
    if (op->imm)
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    else
        __atomic_thread_fence(__ATOMIC_ACQ_REL);
    NEXT();
op_FENCE_I:
    SYNC();
    block_fence(hart);
    goto after;
op_SFENCE_VMA:
    if (hart->privilege != PRIVILEGE_SUPERVISOR)
        goto illegal;
    SYNC();
    if (op->rs1)
        mmu_drop_page(hart, hart->x[op->rs1]);
    else
        mmu_drop_all(hart);
    goto after;
op_WFI:
    if (hart->privilege != PRIVILEGE_SUPERVISOR)
        goto illegal;
    SYNC();
    /* Done before it sleeps: whoever holds it meanwhile finds it complete, or gives it another pc. */
    hart->pc += 4;
    hart->retired++;
    hart_wait_interrupt(hart, true);
    RESUME();
op_ECALL:
    SYNC();
    if (hart->privilege == PRIVILEGE_USER) {
        trap_take(hart, CAUSE_ECALL_USER, 0);
        RESUME();
    }
    hart->pc += 4;
    hart->retired++;
    sbi_call(hart);
    RESUME();
op_EBREAK:
    SYNC();
    trap_take(hart, CAUSE_BREAKPOINT, 0);
    RESUME();
op_SRET:
    if (hart->privilege != PRIVILEGE_SUPERVISOR)
        goto illegal;
    SYNC();
    hart->retired++;
    trap_return(hart);
    if (trap_interrupt_waiting(hart))
        (void)trap_interrupt(hart);
    RESUME();

#define CSR(name, which, writes_, operand_)                                                                  \
    op_##name : csr_operation = (which);                                                                     \
    csr_writes = (writes_);                                                                                  \
    operand = (operand_);                                                                                    \
    goto csr;
    CSR(CSRRW, CSR_WRITE, true, hart->x[op->rs1])
    CSR(CSRRS, CSR_SET, op->rs1 != 0, hart->x[op->rs1])
    CSR(CSRRC, CSR_CLEAR, op->rs1 != 0, hart->x[op->rs1])
    CSR(CSRRWI, CSR_WRITE, true, op->rs1)
    CSR(CSRRSI, CSR_SET, op->rs1 != 0, op->rs1)
    CSR(CSRRCI, CSR_CLEAR, op->rs1 != 0, op->rs1)

csr : {
    uint64_t key = __atomic_load_n(&hart->key.both, __ATOMIC_RELAXED), old;

    SYNC();
    if (!csr_access(hart, (unsigned)op->imm, csr_operation, csr_writes, operand, &old))
        goto illegal;
    hart->x[op->rd] = old;
    tlb = hart->tlb;
    if (unlikely(__atomic_load_n(&hart->key.both, __ATOMIC_RELAXED) != key))
        goto after; /* mapping, privilege or interrupts: the next instruction is looked up anew */
    op++;
    NEXT();
}

/* --- atomics ------------------------------------------------------------------------------------ */

#define RESERVE(name, function, size)                                                                        \
    op_##name : if (unlikely(!function(hart, op, size))) goto fault;                                         \
    NEXT();
    RESERVE(LR_W, load_reserved, 4)
    RESERVE(LR_D, load_reserved, 8)
    RESERVE(SC_W, store_conditional, 4)
    RESERVE(SC_D, store_conditional, 8)

#define AMO(name, type, unsigned_type, expression)                                                           \
    op_##name:                                                                                               \
    {                                                                                                        \
        unsigned_type __attribute__((may_alias)) *host =                                                     \
            mmu_atomic(hart, hart->x[op->rs1], sizeof(type), MMU_STORE);                                     \
        unsigned_type uvalue = (unsigned_type)hart->x[op->rs2], uold, wanted;                                \
        type value = (type)uvalue, old_;                                                                     \
                                                                                                             \
        if (unlikely(!host))                                                                                 \
            goto fault;                                                                                      \
        uold = __atomic_load_n(host, __ATOMIC_RELAXED);                                                      \
        do {                                                                                                 \
            type old = old_ = (type)uold;                                                                    \
                                                                                                             \
            (void)old;                                                                                       \
            (void)value;                                                                                     \
            wanted = (unsigned_type)(expression);                                                            \
        } while (                                                                                            \
            !__atomic_compare_exchange_n(host, &uold, wanted, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));    \
        hart->x[op->rd] = (uint64_t)(int64_t)old_;                                                           \
        NEXT();                                                                                              \
    }
#define X(name, expression)                                                                                  \
    AMO(name##_W, int32_t, uint32_t, expression)                                                             \
    AMO(name##_D, int64_t, uint64_t, expression)
    OP_AMOS(X)
#undef X

    /* --- floating point ----------------------------------------------------------------------------- */

/* Arithmetic whose rounding mode is frm's. */
#define FP_ARITHMETIC(name)                                                                                  \
    if (unlikely(hart->fp_blocked)) {                                                                        \
        fp_id = OP_##name;                                                                                   \
        goto fp_slow;                                                                                        \
    }
/* What does not round. */
#define FP_ALLOW()                                                                                           \
    if (unlikely(hart->fp_blocked) && !fpu_allow(hart))                                                      \
    goto illegal

#define X(name, expression)                                                                                  \
    op_##name : FP_ARITHMETIC(name)                                                                          \
    {                                                                                                        \
        float a = fpu_get_s(hart->f[op->rs1]), b = fpu_get_s(hart->f[op->rs2]);                              \
                                                                                                             \
        hart->f[op->rd] = fpu_put_s(expression);                                                             \
        NEXT();                                                                                              \
    }
    OP_FP_S(X)
#undef X
#define X(name, expression)                                                                                  \
    op_##name : FP_ARITHMETIC(name)                                                                          \
    {                                                                                                        \
        double a = fpu_get_d(hart->f[op->rs1]), b = fpu_get_d(hart->f[op->rs2]);                             \
                                                                                                             \
        hart->f[op->rd] = fpu_put_d(expression);                                                             \
        NEXT();                                                                                              \
    }
    OP_FP_D(X)
#undef X
#define X(name, product, addend)                                                                             \
    op_##name##_S : FP_ARITHMETIC(name##_S)                                                                  \
    {                                                                                                        \
        float a = fpu_get_s(hart->f[op->rs1]), b = fpu_get_s(hart->f[op->rs2]);                              \
        float c = fpu_get_s(hart->f[op->imm]), result = fmaf(product a, b, addend c);                        \
                                                                                                             \
        if (unlikely(result != result))                                                                      \
            fpu_fma_nan(hart, a, b);                                                                         \
        hart->f[op->rd] = fpu_put_s(result);                                                                 \
        NEXT();                                                                                              \
    }                                                                                                        \
    op_##name##_D : FP_ARITHMETIC(name##_D)                                                                  \
    {                                                                                                        \
        double a = fpu_get_d(hart->f[op->rs1]), b = fpu_get_d(hart->f[op->rs2]);                             \
        double c = fpu_get_d(hart->f[op->imm]), result = fma(product a, b, addend c);                        \
                                                                                                             \
        if (unlikely(result != result))                                                                      \
            fpu_fma_nan(hart, a, b);                                                                         \
        hart->f[op->rd] = fpu_put_d(result);                                                                 \
        NEXT();                                                                                              \
    }
    OP_FMA(X)
#undef X

#define X(name)                                                                                              \
    op_##name : if (unlikely(!fpu_execute(hart, OP_##name, op, 0, (unsigned)op->imm))) goto illegal;         \
    NEXT();
    OP_FP_FROM_FLOAT(X)
    OP_FP_CALLED(X)
#undef X
op_FP_ROUND:
    if (unlikely(!fpu_execute(hart, (enum op_id)(op->imm & 0xffff), op, (unsigned)op->imm >> 24,
                              (unsigned)op->imm >> 16 & 7)))
        goto illegal;
    NEXT();
op_FCVT_TRUNC:
    FP_ALLOW();
    if (unlikely(!convert_truncating(hart, op)))
        (void)fpu_execute(hart, (enum op_id)op->imm, op, 0, ROUND_RTZ);
    NEXT();

#define SIGN_INJECT(suffix, get, box, sign, expression_s)                                                    \
    op_FSGNJ##suffix:                                                                                        \
    {                                                                                                        \
        __typeof__(get(0)) a, b, s;                                                                          \
                                                                                                             \
        FP_ALLOW();                                                                                          \
        a = get(hart->f[op->rs1]);                                                                           \
        b = get(hart->f[op->rs2]);                                                                           \
        s = (expression_s) & (sign);                                                                         \
        hart->f[op->rd] = (box) | (a & ~(sign)) | s;                                                         \
        NEXT();                                                                                              \
    }
#define AS_IS(bits) (bits)
    SIGN_INJECT(_S, fpu_bits_s, FPU_BOX, FPU_SIGN_S, b)
    SIGN_INJECT(N_S, fpu_bits_s, FPU_BOX, FPU_SIGN_S, ~b)
    SIGN_INJECT(X_S, fpu_bits_s, FPU_BOX, FPU_SIGN_S, a ^ b)
    SIGN_INJECT(_D, (uint64_t)AS_IS, 0, FPU_SIGN_D, b)
    SIGN_INJECT(N_D, (uint64_t)AS_IS, 0, FPU_SIGN_D, ~b)
    SIGN_INJECT(X_D, (uint64_t)AS_IS, 0, FPU_SIGN_D, a ^ b)

op_FMV_X_W:
    FP_ALLOW();
    hart->x[op->rd] = SEXT32(hart->f[op->rs1]);
    NEXT();
op_FMV_X_D:
    FP_ALLOW();
    hart->x[op->rd] = hart->f[op->rs1];
    NEXT();
op_FMV_W_X:
    FP_ALLOW();
    hart->f[op->rd] = FPU_BOX | (uint32_t)hart->x[op->rs1];
    NEXT();
op_FMV_D_X:
    FP_ALLOW();
    hart->f[op->rd] = hart->x[op->rs1];
    NEXT();

/* QUIET: only signaling NaNs are invalid. */
#define COMPARE(name, get, is_nan, is_signaling, quiet, expression)                                          \
    op_##name:                                                                                               \
    {                                                                                                        \
        __typeof__(get(0)) a, b;                                                                             \
                                                                                                             \
        FP_ALLOW();                                                                                          \
        a = get(hart->f[op->rs1]);                                                                           \
        b = get(hart->f[op->rs2]);                                                                           \
        if (unlikely(is_nan(a) || is_nan(b))) {                                                              \
            if (!(quiet) || is_signaling(a) || is_signaling(b))                                              \
                hart->fflags |= FFLAG_NV;                                                                    \
            hart->x[op->rd] = 0;                                                                             \
        } else {                                                                                             \
            hart->x[op->rd] = (expression);                                                                  \
        }                                                                                                    \
        NEXT();                                                                                              \
    }
#define COMPARE_S(name, quiet, expression)                                                                   \
    COMPARE(name, fpu_bits_s, fpu_is_nan_s, fpu_is_signaling_s, quiet, expression)
#define COMPARE_D(name, quiet, expression)                                                                   \
    COMPARE(name, (uint64_t)AS_IS, fpu_is_nan_d, fpu_is_signaling_d, quiet, expression)
    COMPARE_S(FEQ_S, true, a == b || ((a | b) & ~FPU_SIGN_S) == 0)
    COMPARE_S(FLT_S, false, fpu_less_s(a, b, false))
    COMPARE_S(FLE_S, false, fpu_less_s(a, b, true))
    COMPARE_D(FEQ_D, true, a == b || ((a | b) & ~FPU_SIGN_D) == 0)
    COMPARE_D(FLT_D, false, fpu_less_d(a, b, false))
    COMPARE_D(FLE_D, false, fpu_less_d(a, b, true))

op_FLW:
    FP_ALLOW();
    hart->f[op->rd] = FPU_BOX | LOAD(ADDRESS, uint32_t);
    NEXT();
op_FLD:
    FP_ALLOW();
    hart->f[op->rd] = LOAD(ADDRESS, uint64_t);
    NEXT();
op_FSW:
    FP_ALLOW();
    STORE(ADDRESS, uint32_t, hart->f[op->rs2]);
    NEXT();
op_FSD:
    FP_ALLOW();
    STORE(ADDRESS, uint64_t, hart->f[op->rs2]);
    NEXT();

    /* --- leaving the fast path ---------------------------------------------------------------------- */

fp_slow:
    if (likely(fpu_execute(hart, fp_id, op, (unsigned)op->imm & 31, ROUND_DYN)))
        NEXT();
illegal:
    hart->fault_cause = CAUSE_ILLEGAL;
fault:;
    struct block_place place = block_locate(hart, op);

    hart->pc = page + place.page_offset;
    hart->retired = retired + place.retired;
    trap_take(hart, hart->fault_cause, hart->fault_cause == CAUSE_ILLEGAL ? place.bits : hart->fault_value);
    RESUME();

after: /* a system instruction (4 bytes) is done, pc and retired were exact */
    hart->pc += 4;
    hart->retired++;
    RESUME();

relink:
    hart->pc = page + (uint64_t)(int64_t)offset;
    hart->retired = retired;
    op = block_enter_linked(hart, op);
    goto entered;

enter:
    hart->pc = pc;
    hart->retired = retired;
    op = block_enter(hart);
entered:
    if (!op)
        return;
    page = hart->pc & PAGE_MASK;
    tlb = hart->tlb;
    retired = hart->retired;
    goto * op->handler;
}

const void *const *exec_handlers(void)
{
    const void *const *handlers;

    run(NULL, &handlers);
    return handlers;
}

void exec_run(struct hart *hart)
{
    run(hart, NULL);
}
