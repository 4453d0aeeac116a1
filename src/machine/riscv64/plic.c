#include "machine/riscv64/plic.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/error.h"

/* Register map (PLIC specification 1.0.0, chapter 3). */
#define PLIC_PRIORITY       0x0
#define PLIC_PENDING        0x1000
#define PLIC_ENABLE         0x2000
#define PLIC_ENABLE_STRIDE  0x80
#define PLIC_CONTEXT        0x200000
#define PLIC_CONTEXT_STRIDE 0x1000
#define PLIC_THRESHOLD      0
#define PLIC_CLAIM          4

#define PLIC_SOURCES_MASK (UINT64_MAX << 1)

static_assert(RISCV64_PLIC_SOURCES == 63, "sources are the bits of one word");

/* The source this context would be given, 0 for none: highest priority, then lowest number. */
static unsigned plic_best(const struct plic *plic, unsigned context)
{
    uint64_t candidates = plic->pending & ~plic->claimed & plic->enable[context];
    unsigned best = 0, priority = plic->threshold[context];

    while (candidates) {
        unsigned source = (unsigned)__builtin_ctzll(candidates);

        candidates &= candidates - 1;
        if (plic->priority[source] > priority) {
            priority = plic->priority[source];
            best = source;
        }
    }
    return best;
}

static void plic_update(struct plic *plic)
{
    for (unsigned i = 0; i < plic->contexts; i++) {
        bool output = plic_best(plic, i) != 0;

        if (output == plic->output[i])
            continue;
        plic->output[i] = output;
        plic->notify(plic->opaque, i, output);
    }
}

void plic_set(struct plic *plic, unsigned source, bool level)
{
    uint64_t bit = UINT64_C(1) << (source & 63);

    if (source == 0 || source > RISCV64_PLIC_SOURCES)
        return;
    pthread_mutex_lock(&plic->lock);
    if (level != !!(plic->level & bit)) {
        plic->level ^= bit;
        plic->pending = level ? plic->pending | bit : plic->pending & ~bit;
        plic_update(plic);
    }
    pthread_mutex_unlock(&plic->lock);
}

static uint32_t plic_claim(struct plic *plic, unsigned context)
{
    unsigned source = plic_best(plic, context);

    if (source) {
        plic->pending &= ~(UINT64_C(1) << source);
        plic->claimed |= UINT64_C(1) << source;
        plic_update(plic);
    }
    return source;
}

static void plic_complete(struct plic *plic, unsigned context, uint64_t source)
{
    uint64_t bit = UINT64_C(1) << (source & 63);

    if (source == 0 || source > RISCV64_PLIC_SOURCES || !(plic->enable[context] & plic->claimed & bit))
        return;
    plic->claimed &= ~bit;
    plic->pending |= plic->level & bit;
    plic_update(plic);
}

static uint32_t word_of(uint64_t value, uint64_t offset)
{
    return (uint32_t)(value >> (offset & 4 ? 32 : 0));
}

static uint64_t plic_read_locked(struct plic *plic, uint64_t offset)
{
    if (offset < PLIC_PRIORITY + 4 * (RISCV64_PLIC_SOURCES + 1))
        return plic->priority[offset / 4];
    if (offset >= PLIC_PENDING && offset < PLIC_PENDING + 8)
        return word_of(plic->pending, offset);
    if (offset >= PLIC_ENABLE && offset < PLIC_ENABLE + plic->contexts * PLIC_ENABLE_STRIDE) {
        uint64_t word = (offset - PLIC_ENABLE) % PLIC_ENABLE_STRIDE;

        return word < 8 ? word_of(plic->enable[(offset - PLIC_ENABLE) / PLIC_ENABLE_STRIDE], word) : 0;
    }
    if (offset >= PLIC_CONTEXT && offset < PLIC_CONTEXT + plic->contexts * PLIC_CONTEXT_STRIDE) {
        unsigned context = (unsigned)((offset - PLIC_CONTEXT) / PLIC_CONTEXT_STRIDE);

        switch (offset % PLIC_CONTEXT_STRIDE) {
        case PLIC_THRESHOLD:
            return plic->threshold[context];
        case PLIC_CLAIM:
            return plic_claim(plic, context);
        }
    }
    return 0;
}

static void plic_write_locked(struct plic *plic, uint64_t offset, uint64_t value)
{
    if (offset < PLIC_PRIORITY + 4 * (RISCV64_PLIC_SOURCES + 1)) {
        plic->priority[offset / 4] = value & PLIC_PRIORITY_MAX;
        plic->priority[0] = 0;
    } else if (offset >= PLIC_ENABLE && offset < PLIC_ENABLE + plic->contexts * PLIC_ENABLE_STRIDE) {
        uint64_t word = (offset - PLIC_ENABLE) % PLIC_ENABLE_STRIDE;
        uint64_t *enable = &plic->enable[(offset - PLIC_ENABLE) / PLIC_ENABLE_STRIDE];

        if (word == 0)
            *enable = (*enable & ~UINT64_C(0xffffffff)) | (value & 0xfffffffe);
        else if (word == 4)
            *enable = (*enable & 0xffffffff) | value << 32;
    } else if (offset >= PLIC_CONTEXT && offset < PLIC_CONTEXT + plic->contexts * PLIC_CONTEXT_STRIDE) {
        unsigned context = (unsigned)((offset - PLIC_CONTEXT) / PLIC_CONTEXT_STRIDE);

        if (offset % PLIC_CONTEXT_STRIDE == PLIC_THRESHOLD)
            plic->threshold[context] = value & PLIC_PRIORITY_MAX;
        else if (offset % PLIC_CONTEXT_STRIDE == PLIC_CLAIM)
            plic_complete(plic, context, value & 0xffffffff);
    }
    plic_update(plic);
}

/* Registers are 32 bits; other widths read as zero and are not written. */
static uint64_t plic_read(void *device, uint64_t offset, unsigned size)
{
    struct plic *plic = device;
    uint64_t value = 0;

    if (size == 4 && offset % 4 == 0) {
        pthread_mutex_lock(&plic->lock);
        value = plic_read_locked(plic, offset);
        pthread_mutex_unlock(&plic->lock);
    }
    return value;
}

static void plic_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct plic *plic = device;

    if (size == 4 && offset % 4 == 0) {
        pthread_mutex_lock(&plic->lock);
        plic_write_locked(plic, offset, value);
        pthread_mutex_unlock(&plic->lock);
    }
}

static const struct mmio_ops plic_ops = {.read = plic_read, .write = plic_write};

int plic_init(struct plic *plic, unsigned contexts, struct mmio_bus *bus,
              void (*notify)(void *opaque, unsigned context, bool level), void *opaque,
              struct ferry_error *err)
{
    int result = pthread_mutex_init(&plic->lock, NULL);

    if (result)
        return error_set_errno(err, -result, "cannot create the interrupt controller");
    plic->contexts = contexts;
    plic->notify = notify;
    plic->opaque = opaque;
    result = mmio_bus_add(bus, "plic", RISCV64_PLIC_BASE, RISCV64_PLIC_SIZE, &plic_ops, plic, err);
    if (result)
        pthread_mutex_destroy(&plic->lock);
    return result;
}

void plic_destroy(struct plic *plic)
{
    pthread_mutex_destroy(&plic->lock);
}

void plic_reset(struct plic *plic)
{
    pthread_mutex_lock(&plic->lock);
    memset(plic->priority, 0, sizeof(plic->priority));
    memset(plic->enable, 0, sizeof(plic->enable));
    memset(plic->threshold, 0, sizeof(plic->threshold));
    plic->claimed = 0;
    plic->pending = plic->level; /* lines belong to the devices */
    plic_update(plic);
    pthread_mutex_unlock(&plic->lock);
}

void plic_refresh(struct plic *plic)
{
    pthread_mutex_lock(&plic->lock);
    for (unsigned i = 0; i < plic->contexts; i++) {
        plic->output[i] = plic_best(plic, i) != 0;
        plic->notify(plic->opaque, i, plic->output[i]);
    }
    pthread_mutex_unlock(&plic->lock);
}

static int plic_validate(const void *object, struct ferry_error *err)
{
    const struct plic *plic = object;

    if (plic->priority[0])
        return error_set(err, -EINVAL, "priority: source 0 does not exist and cannot have one");
    if ((plic->level | plic->pending | plic->claimed) & ~PLIC_SOURCES_MASK)
        return error_set(err, -EINVAL, "level, pending, claimed: source 0 does not exist");
    for (unsigned i = 0; i < RISCV64_HARTS_MAX; i++) {
        if (plic->enable[i] & ~PLIC_SOURCES_MASK)
            return error_set(err, -EINVAL, "enable: source 0 does not exist");
    }
    return 0;
}

static const struct state_field plic_fields[] = {
    STATE_ARRAY(struct plic, priority, STATE_U8, .max = PLIC_PRIORITY_MAX),
    STATE_FIELD(struct plic, level, STATE_U64),
    STATE_FIELD(struct plic, pending, STATE_U64),
    STATE_FIELD(struct plic, claimed, STATE_U64),
    STATE_ARRAY(struct plic, enable, STATE_U64),
    STATE_ARRAY(struct plic, threshold, STATE_U8, .max = PLIC_PRIORITY_MAX),
};

const struct state_table plic_state = {
    .name = "plic",
    .version = 1,
    .fields = plic_fields,
    .field_count = ARRAY_SIZE(plic_fields),
    .object_size = sizeof(struct plic),
    .validate = plic_validate,
};
