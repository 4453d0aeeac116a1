/*
 * Accelerator "soft": the built-in riscv64 CPU. Its table of functions, its life, and how other threads ask
 * something of a hart.
 *
 *      other thread                          hart thread (inside vcpu_run)
 *      requests |= what                      ... block, block, ...
 *      key.epoch |= attention   ------->     key does not match: block_enter -> hart_attend
 *      wait until served, or                 clear attention, take requests, do them
 *      until it is not running    <------    served = tickets
 */
#include "machine/riscv64/hart.h"

#include "base/bitmap.h"
#include "base/error.h"
#include "machine/riscv64/fpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct soft *soft_of(struct accel *accel)
{
    return (struct soft *)(void *)((char *)accel - offsetof(struct soft, accel));
}

/* --- requests ----------------------------------------------------------------------------------------- */

static void request(struct hart *hart, uint32_t requests)
{
    __atomic_or_fetch(&hart->requests, requests, __ATOMIC_SEQ_CST);
    __atomic_or_fetch(&hart->key.epoch, EPOCH_ATTENTION, __ATOMIC_SEQ_CST);
}

void hart_post(struct hart *hart, uint32_t requests)
{
    request(hart, requests);
    /* Either this sees the mask, or hart_sleep, which sets it first, sees the request. */
    if (__atomic_load_n(&hart->sleep_mask, __ATOMIC_SEQ_CST) & requests) {
        pthread_mutex_lock(&hart->lock);
        pthread_cond_signal(&hart->wake);
        pthread_mutex_unlock(&hart->lock);
    }
}

void hart_post_and_wait(struct hart *hart, uint32_t requests)
{
    pthread_mutex_lock(&hart->lock);
    request(hart, requests);
    if (hart->running) {
        uint64_t ticket = ++hart->tickets;

        while (hart->running && hart->served < ticket)
            pthread_cond_wait(&hart->served_changed, &hart->lock);
    }
    pthread_mutex_unlock(&hart->lock);
}

static void set_running(struct hart *hart, bool running)
{
    hart->running = running;
    if (!running)
        pthread_cond_broadcast(&hart->served_changed);
}

void hart_begin(struct hart *hart)
{
    pthread_mutex_lock(&hart->lock);
    set_running(hart, true);
    pthread_mutex_unlock(&hart->lock);
}

void hart_end(struct hart *hart)
{
    pthread_mutex_lock(&hart->lock);
    set_running(hart, false);
    pthread_mutex_unlock(&hart->lock);
}

static bool is_asked(struct hart *hart, uint32_t mask)
{
    return __atomic_load_n(&hart->requests, __ATOMIC_SEQ_CST) & mask;
}

void hart_sleep(struct hart *hart, uint32_t mask, uint64_t deadline_ns, bool may_be_held)
{
    bool in_time = true;

    if (may_be_held)
        (void)fpu_flags(hart);
    mask |= REQUEST_KICK;
    pthread_mutex_lock(&hart->lock);
    set_running(hart, false);
    hart->may_be_held = may_be_held;
    __atomic_store_n(&hart->sleep_mask, mask, __ATOMIC_SEQ_CST);
    while (hart->held || (in_time && !is_asked(hart, mask))) {
        if (hart->held || deadline_ns == CLOCK_NEVER)
            pthread_cond_wait(&hart->wake, &hart->lock);
        else
            in_time = thread_cond_wait_until(&hart->wake, &hart->lock, deadline_ns);
    }
    __atomic_store_n(&hart->sleep_mask, 0, __ATOMIC_SEQ_CST);
    hart->may_be_held = false;
    set_running(hart, true);
    pthread_mutex_unlock(&hart->lock);
}

static bool soft_vcpu_hold(struct accel *accel, unsigned index)
{
    struct hart *hart = soft_of(accel)->harts[index];
    bool held;

    pthread_mutex_lock(&hart->lock);
    held = hart->may_be_held && !is_asked(hart, hart->sleep_mask);
    hart->held = held;
    pthread_mutex_unlock(&hart->lock);
    return held;
}

static void soft_vcpu_release(struct accel *accel, unsigned index)
{
    struct hart *hart = soft_of(accel)->harts[index];

    pthread_mutex_lock(&hart->lock);
    hart->held = false;
    pthread_mutex_unlock(&hart->lock);
    hart_post(hart, REQUEST_KICK);
}

void hart_wait_interrupt(struct hart *hart, bool may_be_held)
{
    hart_timer_update(hart);
    if (trap_interrupt_waiting(hart))
        return;
    hart_timer_disarm(hart);
    hart_sleep(hart, REQUEST_INTERRUPT, hart_timer_deadline(hart), may_be_held);
    hart_timer_update(hart);
    if (trap_interrupt_waiting(hart))
        hart_post(hart, REQUEST_INTERRUPT);
}

/* Serves what others wait for. */
static void serve_waited(struct hart *hart)
{
    uint32_t requests;

    pthread_mutex_lock(&hart->lock);
    requests = __atomic_fetch_and(&hart->requests, ~REQUESTS_WAITED_FOR, __ATOMIC_SEQ_CST);
    if (requests & REQUEST_DROP_TLB)
        mmu_drop_all(hart);
    if (requests & REQUEST_DROP_STORES)
        mmu_drop_stores(hart);
    if (requests & REQUEST_FENCE_I)
        block_fence(hart);
    hart->served = hart->tickets;
    pthread_cond_broadcast(&hart->served_changed);
    pthread_mutex_unlock(&hart->lock);
}

/* Takes the requests; those that others wait for stay until they are served, but are in the answer. */
static uint32_t take_requests(struct hart *hart)
{
    __atomic_and_fetch(&hart->key.epoch, ~EPOCH_ATTENTION, __ATOMIC_SEQ_CST);
    return __atomic_fetch_and(&hart->requests, REQUESTS_WAITED_FOR, __ATOMIC_SEQ_CST);
}

bool hart_attend(struct hart *hart)
{
    uint32_t requests = take_requests(hart);

    if (requests & REQUEST_THROTTLE) {
        hart_throttle_pause(hart);
        /* What came meanwhile has to be done before the next instruction. The new turn begins only now, and
         * block_enter runs a block of it whatever comes: a turn that is over too early is not wasted. */
        requests |= take_requests(hart);
        hart_throttle_begin(hart);
    }
    if (requests & REQUESTS_WAITED_FOR)
        serve_waited(hart);
    if (requests & REQUEST_KICK)
        hart->kicked = true;
    if (hart->kicked || __atomic_load_n(&hart->hsm, __ATOMIC_ACQUIRE) != HSM_STARTED ||
        __atomic_load_n(&hart->soft->ended, __ATOMIC_ACQUIRE))
        return false;
    if (requests & REQUEST_INTERRUPT)
        hart_timer_update(hart);
    (void)trap_interrupt(hart);
    return true;
}

void hart_context_changed(struct hart *hart)
{
    enum tlb_mode mode = TLB_MODE_USER;

    if (hart->privilege == PRIVILEGE_SUPERVISOR)
        mode = hart->sstatus & SSTATUS_SUM ? TLB_MODE_SUPERVISOR_SUM : TLB_MODE_SUPERVISOR;
    hart->tlb = hart->tlbs[mode];
    hart->key.context = hart->mapping << 1 | (hart->privilege == PRIVILEGE_SUPERVISOR);
}

void hart_reset(struct hart *hart, uint64_t entry, uint64_t a0, uint64_t a1)
{
    memset(hart->x, 0, sizeof(hart->x));
    memset(hart->f, 0, sizeof(hart->f));
    hart->x[10] = a0;
    hart->x[11] = a1;
    hart->pc = entry;
    hart->privilege = PRIVILEGE_SUPERVISOR;
    hart->sstatus = hart->sie = hart->stvec = hart->sscratch = hart->sepc = hart->scause = hart->stval = 0;
    hart->satp = 0;
    /* As firmware leaves it: Linux's vDSO reads the time in user mode, and nothing in Linux allows it that.
     */
    hart->scounteren = 7; /* cycle, time, instret */
    hart->senvcfg = 0;
    hart->frm = hart->fflags = 0;
    hart->stimecmp = UINT64_MAX;
    hart->reservation = NULL;
    __atomic_and_fetch(&hart->sip, INTERRUPT_EXTERNAL, __ATOMIC_SEQ_CST); /* that one is the PLIC's */
    fpu_update_blocked(hart);
    mmu_drop_all(hart);
    block_fence(hart);
}

/* --- running ------------------------------------------------------------------------------------------ */

/* Waits while the hart has nothing to run: stopped by the guest, or the guest has ended. */
static void hart_run_stopped(struct hart *hart)
{
    bool starts;

    pthread_mutex_lock(&hart->lock);
    starts = hart->hsm == HSM_START_PENDING && !__atomic_load_n(&hart->soft->ended, __ATOMIC_ACQUIRE);
    if (starts)
        __atomic_store_n(&hart->hsm, HSM_STARTED, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&hart->lock);
    if (starts) {
        hart_reset(hart, hart->start_addr, hart->index, hart->start_argument);
        fpu_set_flags(hart, 0);
        fpu_changed(hart);
        return;
    }
    hart_timer_disarm(hart);
    hart_sleep(hart, REQUEST_START, CLOCK_NEVER, true);
    (void)hart_attend(hart);
}

static enum accel_exit soft_vcpu_run(struct accel *accel, unsigned index, struct ferry_error *err)
{
    struct soft *soft = soft_of(accel);
    struct hart *hart = soft->harts[index];

    (void)err;
    hart_begin(hart);
    fpu_begin(hart);
    block_fence(hart); /* memory may have been written while the hart was stopped */
    hart_timer_update(hart);
    hart_throttle_begin(hart);
    hart_post(hart, REQUEST_INTERRUPT);
    while (!hart->kicked) {
        if (__atomic_load_n(&hart->hsm, __ATOMIC_ACQUIRE) != HSM_STARTED ||
            __atomic_load_n(&soft->ended, __ATOMIC_ACQUIRE))
            hart_run_stopped(hart);
        else
            exec_run(hart);
    }
    hart->kicked = false;
    hart->reservation = NULL;
    hart_timer_disarm(hart);
    fpu_end(hart);
    hart_end(hart);
    return ACCEL_EXIT_KICKED;
}

static void soft_vcpu_kick(struct accel *accel, unsigned index)
{
    hart_post(soft_of(accel)->harts[index], REQUEST_KICK);
}

void soft_report(struct soft *soft, enum accel_event event, const char *why)
{
    __atomic_store_n(&soft->ended, true, __ATOMIC_RELEASE);
    soft->platform.event(soft->platform.opaque, event, why);
    for (unsigned i = 0; i < soft->hart_count; i++)
        hart_post(soft->harts[i], REQUEST_KICK);
}

static void soft_irq_set(struct accel *accel, unsigned line, bool level)
{
    plic_set(&soft_of(accel)->plic, line, level);
}

static void soft_plic_notify(void *opaque, unsigned context, bool level)
{
    struct soft *soft = opaque;
    struct hart *hart = soft->harts[context];

    if (level) {
        __atomic_or_fetch(&hart->sip, INTERRUPT_EXTERNAL, __ATOMIC_SEQ_CST);
        hart_post(hart, REQUEST_INTERRUPT);
    } else {
        __atomic_and_fetch(&hart->sip, ~INTERRUPT_EXTERNAL, __ATOMIC_SEQ_CST);
    }
}

/* --- clock, dirty tracking, throttle ------------------------------------------------------------------ */

static void soft_clock_advance(struct accel *accel, uint64_t nanoseconds)
{
    struct soft *soft = soft_of(accel);

    soft_clock_set(soft, soft_clock_ns(soft) + nanoseconds);
}

static void soft_accel_clock_stop(struct accel *accel)
{
    soft_clock_stop(soft_of(accel));
}

static void soft_accel_clock_start(struct accel *accel)
{
    soft_clock_start(soft_of(accel));
}

static void drop_stores(struct soft *soft)
{
    for (unsigned i = 0; i < soft->hart_count; i++)
        hart_post_and_wait(soft->harts[i], REQUEST_DROP_STORES);
}

static int soft_dirty_start(struct accel *accel, struct ferry_error *err)
{
    struct soft *soft = soft_of(accel);

    (void)err;
    memory_set_tracking(soft->memory, true);
    /* Store tags made before tracking was on have no dirty bit. */
    drop_stores(soft);
    return 0;
}

static int soft_dirty_fetch(struct accel *accel, size_t region, uint64_t *bitmap, struct ferry_error *err)
{
    struct soft *soft = soft_of(accel);

    if (region >= soft->ram_count)
        return error_set(err, -EINVAL, "there is no memory region %zu", region);
    /* In this order: mmu.c says why no store is missed. */
    bitmap_take_words(soft->ram[region].dirty, bitmap,
                      bitmap_words((size_t)(soft->ram[region].size >> MEMORY_PAGE_SHIFT)));
    drop_stores(soft);
    return 0;
}

static void soft_dirty_stop(struct accel *accel)
{
    memory_set_tracking(soft_of(accel)->memory, false);
}

static void soft_dirty_describe(struct accel *accel, char *text, size_t size)
{
    snprintf(text, size, "by the built-in CPU, at a page's first write");
}

static void soft_vcpu_throttle(struct accel *accel, unsigned index, unsigned percent)
{
    struct hart *hart = soft_of(accel)->harts[index];

    __atomic_store_n(&hart->throttle, percent > 99 ? 99 : percent, __ATOMIC_RELAXED);
    hart_post(hart, REQUEST_THROTTLE);
}

static void soft_throttle(struct accel *accel, unsigned percent)
{
    for (unsigned i = 0; i < soft_of(accel)->hart_count; i++)
        soft_vcpu_throttle(accel, i, percent);
}

static bool soft_vcpu_dirtied(struct accel *accel, unsigned index, uint64_t *pages)
{
    *pages = __atomic_load_n(&soft_of(accel)->harts[index]->dirtied, __ATOMIC_RELAXED);
    return true;
}

uint8_t *soft_ram_ptr(const struct soft *soft, uint64_t addr, uint64_t size, const struct soft_ram **ram)
{
    for (size_t i = 0; i < soft->ram_count; i++) {
        const struct soft_ram *region = &soft->ram[i];

        if (addr >= region->guest_addr && addr - region->guest_addr < region->size &&
            size <= region->size - (addr - region->guest_addr)) {
            if (ram)
                *ram = region;
            return region->host_ptr + (addr - region->guest_addr);
        }
    }
    return NULL;
}

/* --- life --------------------------------------------------------------------------------------------- */

static int soft_probe(struct ferry_error *err)
{
    (void)err;
    return 0; /* runs anywhere */
}

static void hart_free(struct hart *hart)
{
    if (!hart)
        return;
    block_cache_destroy(&hart->blocks);
    pthread_cond_destroy(&hart->served_changed);
    pthread_cond_destroy(&hart->wake);
    pthread_mutex_destroy(&hart->lock);
    free(hart);
}

static int hart_new(struct hart **out, struct soft *soft, unsigned index, struct ferry_error *err)
{
    size_t size = (sizeof(struct hart) + 63) & ~(size_t)63;
    struct hart *hart = aligned_alloc(64, size);
    int result;

    if (!hart)
        return error_set(err, -ENOMEM, "out of memory for hart %u", index);
    memset(hart, 0, size);
    hart->soft = soft;
    hart->index = index;
    hart->hsm = HSM_STOPPED;
    hart->key.epoch = 1;
    pthread_mutex_init(&hart->lock, NULL);
    thread_cond_init(&hart->wake);
    thread_cond_init(&hart->served_changed);
    result = block_cache_init(&hart->blocks, err);
    if (result) {
        hart_free(hart);
        return error_prefix(err, result, "hart %u", index);
    }
    block_cache_empty(hart);
    hart_reset(hart, 0, 0, 0);
    *out = hart;
    return 0;
}

static void soft_free(struct soft *soft)
{
    for (unsigned i = 0; i < RISCV64_HARTS_MAX; i++)
        hart_free(soft->harts[i]);
    free(soft);
}

/* Everything but what has to be undone: copies of the configuration. */
static void soft_configure(struct soft *soft, const struct accel_config *config)
{
    soft->accel.ops = &accel_soft;
    soft->memory = config->memory;
    soft->bus = config->bus;
    soft->log = config->log;
    soft->platform = *config->platform;
    soft->handlers = exec_handlers();
    soft->ram_count = memory_region_count(config->memory);
    for (size_t i = 0; i < soft->ram_count; i++) {
        const struct memory_region *region = memory_region(config->memory, i);

        soft->ram[i] = (struct soft_ram){
            .guest_addr = region->guest_addr,
            .size = region->size,
            .host_ptr = region->host_ptr,
            .dirty = region->dirty,
        };
    }
}

static int soft_create(struct accel **out, const struct accel_config *config, struct ferry_error *err)
{
    struct soft *soft;
    int result = 0;

    if (config->vcpus < 1 || config->vcpus > RISCV64_HARTS_MAX)
        return error_set(err, -EINVAL, "the built-in CPU has 1 to %d harts, not %u", RISCV64_HARTS_MAX,
                         config->vcpus);
    if (config->tracking != MEMORY_TRACKING_AUTO)
        return error_set(err, -EOPNOTSUPP,
                         "the built-in CPU finds out in its own way what the guest writes; KVM has a choice");
    soft = calloc(1, sizeof(*soft));
    if (!soft)
        return error_set(err, -ENOMEM, "out of memory for the built-in CPU");
    soft_configure(soft, config);
    for (unsigned i = 0; i < config->vcpus && !result; i++)
        result = hart_new(&soft->harts[i], soft, i, err);
    if (result)
        goto fail;
    soft->hart_count = config->vcpus;
    result = soft_clock_init(soft, err);
    if (result)
        goto fail;
    result = plic_init(&soft->plic, soft->hart_count, config->bus, soft_plic_notify, soft, err);
    if (result) {
        soft_clock_destroy(soft);
        goto fail;
    }
    *out = &soft->accel;
    return 0;

fail:
    soft_free(soft);
    return result;
}

static void soft_destroy(struct accel *accel)
{
    struct soft *soft;

    if (!accel)
        return;
    soft = soft_of(accel);
    soft_clock_destroy(soft);
    plic_destroy(&soft->plic);
    soft_free(soft);
}

static int soft_reset(struct accel *accel, const struct accel_boot *boot, struct ferry_error *err)
{
    struct soft *soft = soft_of(accel);

    if ((boot->entry & 1) || !soft_ram_ptr(soft, boot->entry, 2, NULL))
        return error_set(err, -EINVAL, "the entry address 0x%llx is not in guest memory",
                         (unsigned long long)boot->entry);
    for (unsigned i = 0; i < soft->hart_count; i++) {
        struct hart *hart = soft->harts[i];

        hart_reset(hart, boot->entry, boot->arguments[0], boot->arguments[1]);
        hart->retired = 0;
        hart->hsm = i == 0 ? HSM_STARTED : HSM_STOPPED;
        hart->start_addr = hart->start_argument = 0;
    }
    plic_reset(&soft->plic);
    plic_refresh(&soft->plic);
    __atomic_store_n(&soft->ended, false, __ATOMIC_RELEASE);
    return 0;
}

const struct accel_ops accel_soft = {
    .name = "soft",
    .machine = "riscv64",
    .probe = soft_probe,
    .create = soft_create,
    .destroy = soft_destroy,
    .reset = soft_reset,
    .vcpu_run = soft_vcpu_run,
    .vcpu_kick = soft_vcpu_kick,
    .vcpu_hold = soft_vcpu_hold,
    .vcpu_release = soft_vcpu_release,
    .irq_set = soft_irq_set,
    .sections = soft_sections,
    .section_save = soft_section_save,
    .section_load = soft_section_load,
    .clock_advance = soft_clock_advance,
    .clock_stop = soft_accel_clock_stop,
    .clock_start = soft_accel_clock_start,
    .dirty_start = soft_dirty_start,
    .dirty_fetch = soft_dirty_fetch,
    .dirty_stop = soft_dirty_stop,
    .dirty_describe = soft_dirty_describe,
    .throttle = soft_throttle,
    .vcpu_throttle = soft_vcpu_throttle,
    .vcpu_dirtied = soft_vcpu_dirtied,
};
