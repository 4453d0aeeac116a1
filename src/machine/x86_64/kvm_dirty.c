/*
 * Which pages the guest wrote: KVM's dirty log of each slot, with KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
 *
 *     KVM_GET_DIRTY_LOG      copies the bits; nothing is protected anew
 *     KVM_CLEAR_DIRTY_LOG    clears exactly those bits and protects their pages
 *
 * A write between the two is to a page that is in the answer, whose content is read only after it; one after
 * the second sets the bit again. What devices wrote is in the region's own bitmap.
 */
#include "machine/x86_64/kvm_accel.h"

#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/error.h"

#include <errno.h>
#include <stdio.h>

/* KVM_CLEAR_DIRTY_LOG takes whole multiples of 64 pages, or what is left at the end. */
#define CLEAR_WORDS 4096

int kvm_set_slot(struct kvm_accel *kvm, size_t index, bool logged, struct ferry_error *err)
{
    const struct memory_region *region = memory_region(kvm->memory, index);
    struct kvm_userspace_memory_region slot = {
        .slot = (uint32_t)index,
        .flags = logged ? KVM_MEM_LOG_DIRTY_PAGES : 0,
        .guest_phys_addr = region->guest_addr,
        .memory_size = region->size,
        .userspace_addr = (uint64_t)region->host_ptr,
    };
    int result = kvm_ioctl(kvm->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot);

    if (result < 0)
        return error_set_errno(err, result, "KVM does not take guest memory %s", region->name);
    return 0;
}

int kvm_dirty_start(struct accel *accel, struct ferry_error *err)
{
    struct kvm_accel *kvm = kvm_accel_of(accel);
    int result = kvm_ring_check(kvm, err);

    if (result)
        return result;
    for (size_t i = 0; i < memory_region_count(kvm->memory); i++) {
        result = kvm_set_slot(kvm, i, true, err);
        if (result) {
            kvm_dirty_stop(accel);
            return error_prefix(err, result, "cannot log writes");
        }
    }
    memory_set_tracking(kvm->memory, true);
    return 0;
}

static int clear_log(struct kvm_accel *kvm, size_t index, uint64_t *bits, uint64_t pages,
                     struct ferry_error *err)
{
    uint64_t words = bitmap_words((size_t)pages);

    for (uint64_t first = 0; first < words; first += CLEAR_WORDS) {
        uint64_t count = words - first < CLEAR_WORDS ? words - first : CLEAR_WORDS;
        uint64_t left = pages - first * 64;
        struct kvm_clear_dirty_log log = {
            .slot = (uint32_t)index,
            .first_page = first * 64,
            .num_pages = (uint32_t)(left < count * 64 ? left : count * 64),
            .dirty_bitmap = bits + first,
        };
        bool any = false;
        int result;

        for (uint64_t i = 0; i < count && !any; i++)
            any = bits[first + i] != 0;
        if (!any)
            continue;
        result = kvm_ioctl(kvm->vm_fd, KVM_CLEAR_DIRTY_LOG, &log);
        if (result < 0)
            return error_set_errno(err, result, "cannot clear KVM's log of written pages");
    }
    return 0;
}

int kvm_dirty_fetch(struct accel *accel, size_t index, uint64_t *bitmap, struct ferry_error *err)
{
    struct kvm_accel *kvm = kvm_accel_of(accel);
    const struct memory_region *region = memory_region(kvm->memory, index);
    CLEANUP_FREE uint64_t *bits = NULL;
    struct kvm_dirty_log log = {.slot = (uint32_t)index};
    size_t pages;
    int result;

    if (!region)
        return error_set(err, -EINVAL, "there is no memory region %zu", index);
    if (kvm->ring_entries)
        return kvm_ring_fetch(kvm, region, bitmap, err);
    pages = (size_t)(region->size >> MEMORY_PAGE_SHIFT);
    bits = bitmap_new(pages);
    if (!bits)
        return error_set(err, -ENOMEM, "out of memory for a bitmap of written pages");
    bitmap_take_words(region->dirty, bitmap, bitmap_words(pages));
    log.dirty_bitmap = bits;
    result = kvm_ioctl(kvm->vm_fd, KVM_GET_DIRTY_LOG, &log);
    if (result < 0)
        return error_set_errno(err, result, "cannot get KVM's log of written pages");
    /* Before anything can fail: what is cleared must be in the answer. */
    for (size_t i = 0; i < bitmap_words(pages); i++)
        bitmap[i] |= bits[i];
    return clear_log(kvm, index, bits, pages, err);
}

void kvm_dirty_stop(struct accel *accel)
{
    struct kvm_accel *kvm = kvm_accel_of(accel);
    struct ferry_error why;

    memory_set_tracking(kvm->memory, false);
    for (size_t i = 0; i < memory_region_count(kvm->memory); i++) {
        struct ferry_error err;

        if (kvm_set_slot(kvm, i, false, &err))
            log_warn(kvm->log, "%s", err.text);
    }
    if (kvm->ring_entries && kvm_ring_empty(kvm, &why))
        log_warn(kvm->log, "%s", why.text);
}

void kvm_dirty_describe(struct accel *accel, char *text, size_t size)
{
    const struct kvm_accel *kvm = kvm_accel_of(accel);

    if (kvm->ring_entries)
        snprintf(text, size, "KVM dirty ring, %u entries a vCPU", kvm->ring_entries);
    else
        snprintf(text, size, "KVM dirty log, protected by hand");
}
