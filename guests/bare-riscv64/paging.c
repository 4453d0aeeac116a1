#include "paging.h"

#include "console.h"
#include "csr.h"
#include "sbi.h"

#include <stddef.h>

#define POOL_TABLES 64

static uint64_t pool[POOL_TABLES][512] __attribute__((aligned(4096)));
static unsigned pool_used;

static uint64_t *table_new(void)
{
    if (pool_used == POOL_TABLES) {
        console_text("paging: out of tables\n");
        machine_off();
    }
    return pool[pool_used++];
}

void paging_init(struct paging *paging, enum paging_mode mode)
{
    paging->mode = mode;
    paging->root = table_new();
}

uint64_t *paging_entry(struct paging *paging, uint64_t virtual, unsigned level)
{
    unsigned top = paging->mode == PAGING_SV39 ? 2 : 3;
    uint64_t *table = paging->root;

    for (unsigned i = top; i > level; i--) {
        uint64_t *entry = &table[virtual >> (12 + 9 * i) & 511];

        if (!(*entry & PTE_V))
            *entry = (uint64_t)table_new() >> 12 << 10 | PTE_V;
        if (*entry & (PTE_R | PTE_W | PTE_X)) {
            console_text("paging: a larger page is in the way\n");
            machine_off();
        }
        table = (uint64_t *)(*entry >> 10 << 12);
    }
    return &table[virtual >> (12 + 9 * level) & 511];
}

void paging_map(struct paging *paging, uint64_t virtual, uint64_t physical, unsigned level, uint64_t flags)
{
    *paging_entry(paging, virtual, level) = physical >> 12 << 10 | flags | PTE_V;
}

void paging_map_identity(struct paging *paging, uint64_t start, uint64_t end, uint64_t flags)
{
    const uint64_t large = PAGE_SIZE << 9;

    while (start < end) {
        if (start % large == 0 && end - start >= large) {
            paging_map(paging, start, start, 1, flags);
            start += large;
        } else {
            paging_map(paging, start, start, 0, flags);
            start += PAGE_SIZE;
        }
    }
}

void paging_use(const struct paging *paging)
{
    csr_write(satp, paging ? (uint64_t)paging->mode << 60 | (uint64_t)paging->root >> 12 : 0);
    paging_flush_all();
}

void paging_flush(uint64_t virtual)
{
    __asm__ volatile("sfence.vma %0, zero" ::"r"(virtual) : "memory");
}

void paging_flush_all(void)
{
    __asm__ volatile("sfence.vma" ::: "memory");
}
