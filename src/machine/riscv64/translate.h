/*
 * Lays down a block's ops, one instruction after the other (block.c).
 *
 *     struct translator t = {.handlers = ..., .ops = ...};
 *     while (translate_insn(&t, &insn, at))
 *         ...
 *     translate_end(&t, at);    // only when the last translate_insn was true
 */
#ifndef FERRY_MACHINE_RISCV64_TRANSLATE_H
#define FERRY_MACHINE_RISCV64_TRANSLATE_H

#include "machine/riscv64/decode.h"
#include "machine/riscv64/hart.h"

/* Slots needed at most for COUNT instructions and the end. */
#define TRANSLATE_SLOTS(count) (2 * (count) + 2)

struct translator {
    const void *const *handlers; /* exec.c's, by enum op_id */
    struct op *ops;
    unsigned slots;
    unsigned count; /* instructions so far, with the one being emitted */
    /* The op before, if it is one instruction and falls through: it may be fused with the next. */
    struct op *last;
    struct insn insn;      /* what it came from */
    unsigned last_at;      /* its page offset */
    bool last_used_result; /* its first operand was the last result */
    uint8_t result;        /* register the last result is for (exec.c); 0: not known */
};

/* Lays down the instruction found at page offset AT. False when it always leaves: the block ends with it. */
bool translate_insn(struct translator *t, const struct insn *insn, unsigned at);
/* Ends a block whose last instruction falls through to page offset AT. */
void translate_end(struct translator *t, unsigned at);

#endif
