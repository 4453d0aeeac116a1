/*
 * Address translation: Sv39 and Sv48 (privileged specification, 4.4 and 4.5) with A and D set by the walk
 * (Svadu), the software TLB, and all loads and stores that do not hit it.
 *
 * Dirty tracking. While it is on, a page's store tag is made only after the page's dirty bit was set. Whoever
 * fetches takes the bits first, then has every hart drop its store tags and waits for it (soft_dirty_fetch).
 * So a store that used a tag made before the bits were taken was either done before the hart dropped its
 * tags: then it is in memory when the fetch returns its bit, and the page will be read after that; or it
 * finds no tag any more, and sets the bit anew before it writes, for the next fetch. A tag made after the
 * bits were taken and before the drop has its bit set for the next fetch, too. No store is missed, and with
 * tracking off or on, a store that hits the TLB does nothing for it. What the table walk writes (A and D
 * bits) is marked after the write, like a device's.
 */
#include "machine/riscv64/hart.h"

#include "base/bitmap.h"

#include <string.h>

#define PTE_V        (UINT64_C(1) << 0)
#define PTE_R        (UINT64_C(1) << 1)
#define PTE_W        (UINT64_C(1) << 2)
#define PTE_X        (UINT64_C(1) << 3)
#define PTE_U        (UINT64_C(1) << 4)
#define PTE_A        (UINT64_C(1) << 6)
#define PTE_D        (UINT64_C(1) << 7)
#define PTE_PPN(pte) ((pte) >> 10 & ((UINT64_C(1) << 44) - 1))
#define PTE_RESERVED (UINT64_C(0x3ff) << 54) /* Svnapot, Svpbmt and reserved: not this CPU's */

/* Physical addresses are 56 bits. */
#define PHYSICAL_MASK ((UINT64_C(1) << 56) - 1)

static const uint64_t page_fault[] = {
    [MMU_LOAD] = CAUSE_LOAD_PAGE,
    [MMU_STORE] = CAUSE_STORE_PAGE,
    [MMU_FETCH] = CAUSE_FETCH_PAGE,
};
static const uint64_t access_fault[] = {
    [MMU_LOAD] = CAUSE_LOAD_ACCESS,
    [MMU_STORE] = CAUSE_STORE_ACCESS,
    [MMU_FETCH] = CAUSE_FETCH_ACCESS,
};

struct translation {
    uint64_t guest_page;
    bool writable;       /* stores may go the fast way: permitted, and D is set */
    bool readable;       /* so may loads */
    uint64_t large_size; /* of the mapping */
};

static bool fail(struct hart *hart, uint64_t cause, uint64_t addr)
{
    hart->fault_cause = cause;
    hart->fault_value = addr;
    return false;
}

static bool pte_permits(const struct hart *hart, uint64_t pte, enum mmu_access access)
{
    if (pte & PTE_U) {
        if (hart->privilege == PRIVILEGE_SUPERVISOR &&
            (access == MMU_FETCH || !(hart->sstatus & SSTATUS_SUM)))
            return false;
    } else if (hart->privilege == PRIVILEGE_USER) {
        return false;
    }
    switch (access) {
    case MMU_LOAD:
        return (pte & PTE_R) || ((hart->sstatus & SSTATUS_MXR) && (pte & PTE_X));
    case MMU_STORE:
        return pte & PTE_W;
    case MMU_FETCH:
        return pte & PTE_X;
    }
    return false;
}

/*
 * Sets A, and D for stores, in the entry at HOST, which was read as *PTE. False when the entry has been
 * changed meanwhile: the walk begins anew.
 */
static bool pte_touch(struct hart *hart, guest_u64 *host, uint64_t guest_addr, uint64_t *pte,
                      enum mmu_access access)
{
    uint64_t wanted = *pte | PTE_A | (access == MMU_STORE ? PTE_D : 0);

    if (wanted == *pte)
        return true;
    if (!__atomic_compare_exchange_n(host, pte, wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
        return false;
    memory_mark_dirty(hart->soft->memory, guest_addr, sizeof(wanted));
    *pte = wanted;
    return true;
}

/* The address translation process of 4.3.2. */
static bool walk(struct hart *hart, uint64_t addr, enum mmu_access access, struct translation *out)
{
    int levels = SATP_MODE(hart->satp) == SATP_MODE_SV48 ? 4 : 3;
    unsigned unused = 64 - (9 * (unsigned)levels + PAGE_SHIFT);

    if ((uint64_t)((int64_t)(addr << unused) >> unused) != addr)
        return fail(hart, page_fault[access], addr);
restart:
    for (uint64_t table = SATP_PPN(hart->satp) << PAGE_SHIFT, level = (uint64_t)levels; level-- > 0;) {
        unsigned shift = PAGE_SHIFT + 9 * (unsigned)level;
        uint64_t entry = table + (addr >> shift & 0x1ff) * 8, pte, size = UINT64_C(1) << shift;
        guest_u64 *host = (guest_u64 *)(void *)soft_ram_ptr(hart->soft, entry, 8, NULL);

        if (!host)
            return fail(hart, access_fault[access], addr);
        pte = __atomic_load_n(host, __ATOMIC_ACQUIRE);
        if (!(pte & PTE_V) || ((pte & PTE_W) && !(pte & PTE_R)) || (pte & PTE_RESERVED))
            return fail(hart, page_fault[access], addr);
        table = PTE_PPN(pte) << PAGE_SHIFT;
        if (!(pte & (PTE_R | PTE_X))) {
            if (pte & (PTE_A | PTE_D | PTE_U))
                return fail(hart, page_fault[access], addr);
            continue;
        }
        if ((table & (size - 1)) || !pte_permits(hart, pte, access))
            return fail(hart, page_fault[access], addr);
        if (!pte_touch(hart, host, entry, &pte, access))
            goto restart;
        out->guest_page = table | (addr & (size - 1) & PAGE_MASK);
        out->readable = pte_permits(hart, pte, MMU_LOAD);
        out->writable = (pte & PTE_D) && pte_permits(hart, pte, MMU_STORE);
        out->large_size = size;
        return true;
    }
    return fail(hart, page_fault[access], addr); /* a pointer where the last level must have a page */
}

static bool translate(struct hart *hart, uint64_t addr, enum mmu_access access, struct translation *out)
{
    if (SATP_MODE(hart->satp) != SATP_MODE_BARE)
        return walk(hart, addr, access, out);
    if (addr & ~PHYSICAL_MASK)
        return fail(hart, access_fault[access], addr);
    *out = (struct translation){.guest_page = addr & PAGE_MASK, .readable = true, .writable = true};
    return true;
}

/* Remembers that the TLB holds parts of a large page, in one range that covers them all in each half of
 * the address space. */
static void note_large(struct hart *hart, uint64_t addr, uint64_t size)
{
    uint64_t mask = ~(size - 1), *base = &hart->large_base[addr >> 63];
    uint64_t *known = &hart->large_mask[addr >> 63];

    if (*known == 0 && *base == 1) { /* none yet */
        *base = addr & mask;
        *known = mask;
        return;
    }
    mask &= *known;
    while ((addr ^ *base) & mask)
        mask <<= 1;
    *base &= mask;
    *known = mask;
}

static void forget_large(struct hart *hart)
{
    for (unsigned i = 0; i < 2; i++) {
        hart->large_base[i] = 1;
        hart->large_mask[i] = 0;
    }
}

static bool is_large(const struct hart *hart, uint64_t addr)
{
    unsigned half = addr >> 63;

    return hart->large_base[half] != 1 && ((addr ^ hart->large_base[half]) & hart->large_mask[half]) == 0;
}

static struct tlb_entry *tlb_entry_of(struct hart *hart, uint64_t addr)
{
    return &hart->tlb[addr >> PAGE_SHIFT & (TLB_ENTRIES - 1)];
}

static void note_dirty(struct hart *hart, const struct soft_ram *ram, uint64_t guest_page)
{
    bool first = bitmap_set_atomic(ram->dirty, (size_t)((guest_page - ram->guest_addr) >> PAGE_SHIFT));

    __atomic_store_n(&hart->dirtied, hart->dirtied + first, __ATOMIC_RELAXED);
}

/*
 * Finds the host address of ADDR (of one page) for ACCESS, through the TLB, filling it. *HOST is NULL for
 * what is not RAM; *GUEST_ADDR is set then only.
 */
static bool resolve(struct hart *hart, uint64_t addr, enum mmu_access access, uint8_t **host,
                    uint64_t *guest_addr)
{
    struct tlb_entry *entry = tlb_entry_of(hart, addr);
    uint64_t page = addr & PAGE_MASK;
    const struct soft_ram *ram;
    struct translation found;
    uint8_t *host_page;
    bool tracking;

    if ((access == MMU_STORE ? entry->store_tag : entry->load_tag) == page) {
        *host = (uint8_t *)(uintptr_t)(addr + entry->addend);
        return true;
    }
    if (!translate(hart, addr, access, &found))
        return false;
    host_page = soft_ram_ptr(hart->soft, found.guest_page, PAGE_SIZE, &ram);
    if (!host_page) {
        *host = NULL;
        *guest_addr = found.guest_page | (addr & ~PAGE_MASK);
        return true;
    }
    if (found.large_size > PAGE_SIZE)
        note_large(hart, addr, found.large_size);
    tracking = memory_tracking(hart->soft->memory);
    if (tracking && access == MMU_STORE) /* before the tag is there: see above */
        note_dirty(hart, ram, found.guest_page);
    entry->addend = (uint64_t)(uintptr_t)host_page - page;
    entry->load_tag = found.readable ? page : TLB_EMPTY;
    entry->store_tag = access == MMU_STORE || (found.writable && !tracking) ? page : TLB_EMPTY;
    *host = host_page + (addr & ~PAGE_MASK);
    return true;
}

const struct fetch_entry *mmu_fetch(struct hart *hart, uint64_t addr)
{
    uint64_t page = addr & PAGE_MASK;
    struct fetch_entry *entry =
        &hart->fetch_tlb[hart->privilege][addr >> PAGE_SHIFT & (FETCH_TLB_ENTRIES - 1)];
    struct translation found;
    const uint8_t *host_page;

    if (likely(entry->tag == page))
        return entry;
    if (!translate(hart, addr, MMU_FETCH, &found))
        return NULL;
    host_page = soft_ram_ptr(hart->soft, found.guest_page, PAGE_SIZE, NULL);
    if (!host_page) {
        (void)fail(hart, CAUSE_FETCH_ACCESS, addr);
        return NULL;
    }
    if (found.large_size > PAGE_SIZE)
        note_large(hart, addr, found.large_size);
    *entry = (struct fetch_entry){.tag = page, .guest_page = found.guest_page, .host_page = host_page};
    return entry;
}

/* --- loads and stores --------------------------------------------------------------------------------- */

static uint64_t read_host(const void *host, unsigned size)
{
    switch (size) {
    case 1:
        return __atomic_load_n((const guest_u8 *)host, __ATOMIC_RELAXED);
    case 2:
        return __atomic_load_n((const guest_u16 *)host, __ATOMIC_RELAXED);
    case 4:
        return __atomic_load_n((const guest_u32 *)host, __ATOMIC_RELAXED);
    }
    return __atomic_load_n((const guest_u64 *)host, __ATOMIC_RELAXED);
}

static void write_host(void *host, unsigned size, uint64_t value)
{
    switch (size) {
    case 1:
        __atomic_store_n((guest_u8 *)host, (uint8_t)value, __ATOMIC_RELAXED);
        return;
    case 2:
        __atomic_store_n((guest_u16 *)host, (uint16_t)value, __ATOMIC_RELAXED);
        return;
    case 4:
        __atomic_store_n((guest_u32 *)host, (uint32_t)value, __ATOMIC_RELAXED);
        return;
    }
    __atomic_store_n((guest_u64 *)host, value, __ATOMIC_RELAXED);
}

/* Where a misaligned access lies: FIRST bytes at one host address, the rest at another. */
struct split {
    uint8_t *host[2];
    unsigned first;
};

/* Both pages are looked at before anything is written, so that a fault leaves nothing half done. */
static bool resolve_split(struct hart *hart, uint64_t addr, unsigned size, enum mmu_access access,
                          struct split *split)
{
    unsigned room = (unsigned)(PAGE_SIZE - (addr & ~PAGE_MASK));
    uint64_t misaligned = access == MMU_STORE ? CAUSE_STORE_MISALIGNED : CAUSE_LOAD_MISALIGNED;
    uint64_t guest_addr;

    split->first = size < room ? size : room;
    if (!resolve(hart, addr, access, &split->host[0], &guest_addr))
        return false;
    if (!split->host[0])
        return fail(hart, misaligned, addr); /* devices take aligned accesses only */
    if (split->first == size)
        return true;
    /* The second page may take the first one's place in the TLB; host addresses stay good. */
    if (!resolve(hart, addr + split->first, access, &split->host[1], &guest_addr))
        return false;
    return split->host[1] || fail(hart, misaligned, addr);
}

bool mmu_load(struct hart *hart, uint64_t addr, unsigned size, uint64_t *value)
{
    uint64_t guest_addr;
    uint8_t *host;

    *value = 0;
    if (addr & (size - 1)) {
        struct split split;

        if (!resolve_split(hart, addr, size, MMU_LOAD, &split))
            return false;
        memcpy(value, split.host[0], split.first);
        if (split.first < size)
            memcpy((uint8_t *)value + split.first, split.host[1], size - split.first);
        return true;
    }
    if (!resolve(hart, addr, MMU_LOAD, &host, &guest_addr))
        return false;
    if (host) {
        *value = read_host(host, size);
        return true;
    }
    return mmio_bus_read(hart->soft->bus, guest_addr, size, value) || fail(hart, CAUSE_LOAD_ACCESS, addr);
}

bool mmu_store(struct hart *hart, uint64_t addr, unsigned size, uint64_t value)
{
    uint64_t guest_addr;
    uint8_t *host;

    if (addr & (size - 1)) {
        struct split split;

        if (!resolve_split(hart, addr, size, MMU_STORE, &split))
            return false;
        memcpy(split.host[0], &value, split.first);
        if (split.first < size)
            memcpy(split.host[1], (const uint8_t *)&value + split.first, size - split.first);
        return true;
    }
    if (!resolve(hart, addr, MMU_STORE, &host, &guest_addr))
        return false;
    if (host) {
        write_host(host, size, value);
        return true;
    }
    return mmio_bus_write(hart->soft->bus, guest_addr, size, value) || fail(hart, CAUSE_STORE_ACCESS, addr);
}

void *mmu_atomic(struct hart *hart, uint64_t addr, unsigned size, enum mmu_access access)
{
    uint64_t guest_addr;
    uint8_t *host;

    if (addr & (size - 1)) {
        (void)fail(hart, access == MMU_LOAD ? CAUSE_LOAD_MISALIGNED : CAUSE_STORE_MISALIGNED, addr);
        return NULL;
    }
    if (!resolve(hart, addr, access, &host, &guest_addr))
        return NULL;
    if (!host)
        (void)fail(hart, access_fault[access], addr);
    return host;
}

/* --- forgetting --------------------------------------------------------------------------------------- */

void mmu_drop_all(struct hart *hart)
{
    memset(hart->tlbs, 0xff, sizeof(hart->tlbs));
    memset(hart->fetch_tlb, 0xff, sizeof(hart->fetch_tlb));
    forget_large(hart);
    hart->mapping++;
    /* The count is part of the jump cache's keys; when it wraps, nothing old may look new. */
    if ((hart->mapping & (UINT32_MAX >> 1)) == 0)
        memset(hart->jumps, 0xff, sizeof(hart->jumps));
    hart_context_changed(hart);
}

void mmu_drop_page(struct hart *hart, uint64_t addr)
{
    unsigned index = addr >> PAGE_SHIFT & (TLB_ENTRIES - 1);

    if (is_large(hart, addr)) {
        mmu_drop_all(hart);
        return;
    }
    for (unsigned mode = 0; mode < TLB_MODES; mode++)
        hart->tlbs[mode][index].load_tag = hart->tlbs[mode][index].store_tag = TLB_EMPTY;
    for (unsigned i = 0; i < 2; i++)
        hart->fetch_tlb[i][addr >> PAGE_SHIFT & (FETCH_TLB_ENTRIES - 1)].tag = TLB_EMPTY;
    memset(&hart->jumps[jump_cluster(addr)], 0xff, sizeof(hart->jumps[0]) << JUMP_CLUSTER_BITS);
}

void mmu_drop_stores(struct hart *hart)
{
    for (unsigned mode = 0; mode < TLB_MODES; mode++) {
        for (unsigned i = 0; i < TLB_ENTRIES; i++)
            hart->tlbs[mode][i].store_tag = TLB_EMPTY;
    }
}
