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
#include "machine/riscv64/translate.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define BLOCK_INSNS_MAX 64
#define ARENA_SIZE      (UINT32_C(6) << 20)
#define HASH_BITS       14
#define HASH_SIZE       (1u << HASH_BITS)
#define HASH_BYTES      (HASH_SIZE * sizeof(void *))

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
    (sizeof(struct block) + TRANSLATE_SLOTS(BLOCK_INSNS_MAX) * sizeof(struct op) + 4 * BLOCK_INSNS_MAX + 16)

int block_cache_init(struct block_cache *cache, struct ferry_error *err)
{
    cache->arena =
        mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (cache->arena == MAP_FAILED) {
        cache->arena = NULL;
        return error_set_errno(err, -errno, "cannot get %u bytes for decoded instructions", ARENA_SIZE);
    }
    cache->hash = calloc(1, HASH_BYTES);
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

    memset(cache->hash, 0, HASH_BYTES);
    memset(hart->jumps, 0xff, sizeof(hart->jumps)); /* odd pcs, which are never looked up */
    cache->used = 0;
    cache->count = 0;
    cache->generation++;
    cache->emptied++;
}

/* --- making a block ----------------------------------------------------------------------------------- */

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
    struct translator t = {.handlers = hart->soft->handlers, .ops = block->ops};
    guest_u16 code[2 * BLOCK_INSNS_MAX];
    unsigned start = at, size = 0;
    bool open = true;

    while (open && at < PAGE_SIZE && t.count < BLOCK_INSNS_MAX) {
        uint32_t bits = read_code(page->host_page + at, 2);
        struct insn insn;
        unsigned length = decode_size((uint16_t)bits);

        if (at + length > PAGE_SIZE)
            break;
        /* The guest may be changing it: what is kept for comparison is what was decoded. */
        bits |= length == 4 ? read_code(page->host_page + at + 2, 2) << 16 : 0;
        memcpy((uint8_t *)code + size, &bits, length);
        decode_insn(bits, &insn);
        open = translate_insn(&t, &insn, at);
        at += length;
        size += length;
    }
    if (open)
        translate_end(&t, at);
    block->guest_addr = page->guest_page + start;
    block->host_code = page->host_page + start;
    block->slots = (uint16_t)t.slots;
    block->code_size = (uint16_t)size;
    /* Nothing: the guest was just changing it. Not to be found again. */
    block->crossing = t.count == 0;
    block_commit(hart, block, code);
    return block;
}

/* The block of the one instruction BITS that begins in the last two bytes of PAGE. */
static struct block *block_make_crossing(struct hart *hart, const struct fetch_entry *page, uint32_t bits)
{
    struct block *block = block_allocate(hart);
    struct translator t = {.handlers = hart->soft->handlers, .ops = block->ops};
    struct insn insn;

    decode_insn(bits, &insn);
    if (translate_insn(&t, &insn, PAGE_SIZE - 2))
        translate_end(&t, PAGE_SIZE + 2);
    block->guest_addr = page->guest_page + PAGE_SIZE - 2;
    block->host_code = NULL;
    block->slots = (uint16_t)t.slots;
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
