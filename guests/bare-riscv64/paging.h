/*
 * Page tables for Sv39 and Sv48 (RISC-V privileged spec 1.12, 4.4 and 4.5). Tables come from a fixed pool and
 * are never given back. The programs map themselves one to one.
 */
#ifndef BARE_PAGING_H
#define BARE_PAGING_H

#include <stddef.h>
#include <stdint.h>

#define PTE_V (UINT64_C(1) << 0)
#define PTE_R (UINT64_C(1) << 1)
#define PTE_W (UINT64_C(1) << 2)
#define PTE_X (UINT64_C(1) << 3)
#define PTE_U (UINT64_C(1) << 4)
#define PTE_G (UINT64_C(1) << 5)
#define PTE_A (UINT64_C(1) << 6)
#define PTE_D (UINT64_C(1) << 7)

#define PAGE_SIZE UINT64_C(4096)

enum paging_mode { PAGING_SV39 = 8, PAGING_SV48 = 9 };

struct paging {
    enum paging_mode mode;
    uint64_t *root;
};

/* An empty address space. */
void paging_init(struct paging *paging, enum paging_mode mode);

/*
 * The entry for VIRTUAL at LEVEL (0: 4 KiB, 1: 2 MiB, 2: 1 GiB, 3: 512 GiB), making the tables above it. Ends
 * the program when the pool is empty or a larger page is in the way.
 */
uint64_t *paging_entry(struct paging *paging, uint64_t virtual, unsigned level);

/* Sets that entry to map PHYSICAL with FLAGS (PTE_V is added). */
void paging_map(struct paging *paging, uint64_t virtual, uint64_t physical, unsigned level, uint64_t flags);

/* Maps START up to END one to one, with 2 MiB pages where alignment allows and 4 KiB pages elsewhere. */
void paging_map_identity(struct paging *paging, uint64_t start, uint64_t end, uint64_t flags);

/* Makes it the address space of this hart; 0 switches translation off. */
void paging_use(const struct paging *paging);

/* sfence.vma for one address and for all. */
void paging_flush(uint64_t virtual);
void paging_flush_all(void);

#endif
