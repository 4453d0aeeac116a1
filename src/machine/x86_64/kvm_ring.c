/*
 * Which pages the guest wrote, by KVM's dirty rings (api.rst, KVM_CAP_DIRTY_LOG_RING): KVM appends a page to
 * the ring of the vCPU that is the first to write it, and protects it no more.
 *
 *     vCPU ──KVM──▶ [ … dirty dirty dirty … ] ──harvest──▶ the region's bitmap; the entry is marked
 *                                ▲                                         │
 *                                └── free again, page protected ◀── KVM_RESET_DIRTY_RINGS
 *
 * Until it is protected a page is written without notice; so nobody may take its bit before that. Both steps
 * are done under ring_lock, and so is taking bits.
 *
 * A vCPU whose ring is nearly full comes out of KVM_RUN and empties it itself. A para-virtualised KVM looks
 * at that too late: where it emulates code that writes many pages it goes on and overruns the ring. Then no
 * ring is taken unless it is asked for; and an overrun, after which KVM and we do not agree any more where
 * the ring begins, is seen: only then all of its entries are in use.
 */
#include "machine/x86_64/kvm_accel.h"

#include "base/bitmap.h"
#include "base/error.h"

#include <cpuid.h>
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

/*
 * Every time a ring is full its pages are protected anew, and the next write to each is a fault again: rings
 * that are too small for what is written between two looks slow the guest. These hold 256 MiB of pages; they
 * take 1 MiB of the kernel's memory each, and all of a VM's together at most 16 times that.
 */
#define RING_ENTRIES_MAX 65536u
#define RINGS_ENTRIES    (16 * RING_ENTRIES_MAX)

#define CPUID_VMX (1u << 5) /* leaf 1, ECX */
#define CPUID_SVM (1u << 2) /* leaf 0x80000001, ECX */

/* Is KVM assisted by this processor? */
static bool hardware_assisted(void)
{
    unsigned eax, ebx, ecx, edx;

    return (__get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & CPUID_VMX)) ||
           (__get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx) && (ecx & CPUID_SVM));
}

static size_t ring_size(const struct kvm_accel *kvm)
{
    return kvm->ring_entries * sizeof(struct kvm_dirty_gfn);
}

int kvm_ring_init(struct kvm_accel *kvm, unsigned cpus, bool wanted, struct ferry_error *err)
{
    static const uint32_t capabilities[] = {KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING};
    uint32_t entries = RING_ENTRIES_MAX;
    int most = 0;
    size_t i = 0;

    if (!wanted && !hardware_assisted())
        return 0;
    while (i < ARRAY_SIZE(capabilities) && most <= 0)
        most = kvm_ioctl(kvm->vm_fd, KVM_CHECK_EXTENSION, (const void *)(uintptr_t)capabilities[i++]);
    if (most <= 0)
        return wanted ? error_set(err, -EOPNOTSUPP, "this host's KVM has no dirty rings") : 0;
    /* A power of two. */
    while (entries * cpus > RINGS_ENTRIES || entries * sizeof(struct kvm_dirty_gfn) > (size_t)most)
        entries /= 2;

    struct kvm_enable_cap enable = {.cap = capabilities[i - 1],
                                    .args = {entries * sizeof(struct kvm_dirty_gfn)}};
    int result = kvm_ioctl(kvm->vm_fd, KVM_ENABLE_CAP, &enable);

    if (result < 0)
        return error_set_errno(err, result, "KVM does not switch dirty rings on");
    kvm->ring_entries = entries;
    return 0;
}

int kvm_ring_map(struct kvm_cpu *cpu, struct ferry_error *err)
{
    void *ring;

    if (!cpu->kvm->ring_entries)
        return 0;
    ring = mmap(NULL, ring_size(cpu->kvm), PROT_READ | PROT_WRITE, MAP_SHARED, cpu->fd,
                KVM_DIRTY_LOG_PAGE_OFFSET * sysconf(_SC_PAGESIZE));
    if (ring == MAP_FAILED)
        return error_set_errno(err, -errno, "cannot map the dirty ring of vCPU %u", cpu->index);
    cpu->ring = ring;
    return 0;
}

void kvm_ring_unmap(struct kvm_cpu *cpu)
{
    if (cpu->ring)
        munmap(cpu->ring, ring_size(cpu->kvm));
}

static void note_page(struct kvm_accel *kvm, const struct kvm_dirty_gfn *entry)
{
    const struct memory_region *region = memory_region(kvm->memory, entry->slot);

    /* Address space 0 has the low half of the number, and there is no other. */
    if (region && entry->offset < region->size >> MEMORY_PAGE_SHIFT)
        bitmap_set_atomic(region->dirty, (size_t)entry->offset);
}

/* ring_lock held. Returns how many entries there were. */
static uint64_t harvest_cpu(struct kvm_cpu *cpu)
{
    uint64_t count = 0;

    for (; count < cpu->kvm->ring_entries; count++) {
        struct kvm_dirty_gfn *entry = &cpu->ring[cpu->ring_next % cpu->kvm->ring_entries];

        if ((__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_MASK) !=
            KVM_DIRTY_GFN_F_DIRTY)
            break;
        note_page(cpu->kvm, entry);
        __atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
        cpu->ring_next++;
    }
    __atomic_fetch_add(&cpu->dirtied, count, __ATOMIC_RELAXED);
    if (count == cpu->kvm->ring_entries)
        cpu->kvm->ring_overrun = true;
    return count;
}

static int fail_overrun(struct ferry_error *err)
{
    return error_set(err, -EOVERFLOW,
                     "KVM lost pages that the guest wrote: it put more into a dirty ring than fits");
}

/* ring_lock held. The number of entries, or a negative errno. */
static int64_t harvest(struct kvm_accel *kvm, struct ferry_error *err)
{
    uint64_t count = 0;
    int result = 0;

    for (unsigned i = 0; i < kvm->cpu_count; i++)
        count += harvest_cpu(&kvm->cpus[i]);
    if (count)
        result = kvm_ioctl(kvm->vm_fd, KVM_RESET_DIRTY_RINGS, NULL);
    if (result < 0)
        return error_set_errno(err, result, "KVM does not empty its dirty rings");
    return (int64_t)count;
}

int kvm_ring_empty(struct kvm_accel *kvm, struct ferry_error *err)
{
    int64_t count;
    bool stuck;

    pthread_mutex_lock(&kvm->ring_lock);
    count = harvest(kvm, err);
    stuck = kvm->ring_overrun && count == 0;
    pthread_mutex_unlock(&kvm->ring_lock);
    if (stuck)
        return fail_overrun(err);
    return count < 0 ? (int)count : 0;
}

int kvm_ring_check(struct kvm_accel *kvm, struct ferry_error *err)
{
    bool overrun;

    pthread_mutex_lock(&kvm->ring_lock);
    overrun = kvm->ring_overrun;
    pthread_mutex_unlock(&kvm->ring_lock);
    return overrun ? fail_overrun(err) : 0;
}

int kvm_ring_fetch(struct kvm_accel *kvm, const struct memory_region *region, uint64_t *bitmap,
                   struct ferry_error *err)
{
    int result;

    pthread_mutex_lock(&kvm->ring_lock);
    result = harvest(kvm, err) < 0 ? err->code : 0;
    if (!result && kvm->ring_overrun)
        result = fail_overrun(err);
    if (!result)
        bitmap_take_words(region->dirty, bitmap, bitmap_words((size_t)(region->size >> MEMORY_PAGE_SHIFT)));
    pthread_mutex_unlock(&kvm->ring_lock);
    return result;
}

bool kvm_vcpu_dirtied(struct accel *accel, unsigned index, uint64_t *pages)
{
    const struct kvm_accel *kvm = kvm_accel_of(accel);

    *pages = __atomic_load_n(&kvm->cpus[index].dirtied, __ATOMIC_RELAXED);
    return kvm->ring_entries > 0;
}
