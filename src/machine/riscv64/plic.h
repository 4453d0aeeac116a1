/*
 * Platform-level interrupt controller (RISC-V PLIC specification 1.0.0), one S-mode context a hart, sources 1
 * to RISCV64_PLIC_SOURCES, all level-triggered.
 *
 * Any thread may set a line or access registers.
 */
#ifndef FERRY_MACHINE_RISCV64_PLIC_H
#define FERRY_MACHINE_RISCV64_PLIC_H

#include "bus/mmio.h"
#include "bus/state.h"
#include "machine/riscv64/layout.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define PLIC_PRIORITY_MAX 7

struct plic {
    pthread_mutex_t lock; /* guards everything below */
    unsigned contexts;
    /* What is saved; sources are bits of a word, bit 0 unused. */
    uint8_t priority[RISCV64_PLIC_SOURCES + 1];
    uint64_t level;   /* lines as devices hold them */
    uint64_t pending; /* gateways that have signalled */
    uint64_t claimed; /* claimed and not yet completed */
    uint64_t enable[RISCV64_HARTS_MAX];
    uint8_t threshold[RISCV64_HARTS_MAX];
    /* The interrupt output of each context, and who hears of its changes. */
    bool output[RISCV64_HARTS_MAX];
    void (*notify)(void *opaque, unsigned context, bool level);
    void *opaque;
};

extern const struct state_table plic_state;

/* NOTIFY is called with the PLIC locked, on whichever thread made the change; must not call back. */
int plic_init(struct plic *plic, unsigned contexts, struct mmio_bus *bus,
              void (*notify)(void *opaque, unsigned context, bool level), void *opaque,
              struct ferry_error *err);
void plic_destroy(struct plic *plic);
void plic_reset(struct plic *plic);
void plic_set(struct plic *plic, unsigned source, bool level);
/* After loading: tells every context its output anew. */
void plic_refresh(struct plic *plic);

#endif
