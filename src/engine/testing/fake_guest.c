#include "engine/testing/fake_guest.h"

#include "base/bitmap.h"
#include "base/clock.h"
#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define TICK_NS      NS_PER_MS
#define GUEST_BASE   UINT64_C(0x80000000)
#define GUEST_STRIDE UINT64_C(0x100000000)

#if defined(__SANITIZE_THREAD__)
#define GUEST_ACCESS __attribute__((no_sanitize("thread"), noinline))
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define GUEST_ACCESS __attribute__((no_sanitize("thread"), noinline))
#endif
#endif
#ifndef GUEST_ACCESS
#define GUEST_ACCESS __attribute__((noinline))
#endif

void fake_owner_init(struct fake_owner *owner)
{
    *owner = (struct fake_owner){.state = FAKE_OWNER_HELD, .arbiter = true};
    pthread_mutex_init(&owner->lock, NULL);
}

void fake_owner_destroy(struct fake_owner *owner)
{
    pthread_mutex_destroy(&owner->lock);
}

static void owner_run(struct fake_owner *owner, bool run)
{
    pthread_mutex_lock(&owner->lock);
    owner->running += run ? 1 : -1;
    if (owner->running > owner->running_max)
        owner->running_max = owner->running;
    pthread_mutex_unlock(&owner->lock);
}

static uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* The guest's own accesses race with the engine's, as they do in a real machine. */
GUEST_ACCESS static void guest_store(uint8_t *page, uint64_t value)
{
    *(volatile uint64_t *)(page + (value >> 8) % 500 * 8) = value;
}

GUEST_ACCESS static void guest_clear(uint8_t *page)
{
    for (size_t i = 0; i < FERRY_PAGE_SIZE; i += 8)
        *(volatile uint64_t *)(page + i) = 0;
}

GUEST_ACCESS static void guest_flip(uint8_t *page, uint64_t mask)
{
    *(volatile uint64_t *)page ^= mask;
}

/* Settings; tests change them while the vCPU runs. */
struct knobs {
    enum fake_pattern pattern;
    uint64_t pages_per_s;
    uint64_t window;
};

GUEST_ACCESS static struct knobs guest_knobs(const struct fake_guest *guest)
{
    return (struct knobs){guest->pattern, guest->pages_per_s, guest->window};
}

static void guest_write(struct fake_guest *guest, const struct knobs *knobs)
{
    static const enum fake_pattern mixed[8] = {FAKE_PATTERN_RANDOM, FAKE_PATTERN_RANDOM, FAKE_PATTERN_SAME,
                                               FAKE_PATTERN_SAME,   FAKE_PATTERN_FLIP,   FAKE_PATTERN_FLIP,
                                               FAKE_PATTERN_FLIP,   FAKE_PATTERN_ZERO};
    enum fake_pattern pattern = knobs->pattern;
    uint64_t all = guest->regions[0].size / FERRY_PAGE_SIZE;
    uint64_t window = knobs->window ? knobs->window : all;
    uint64_t value;

    if (pattern == FAKE_PATTERN_NONE)
        return;
    value = random_next(&guest->random);
    if (pattern == FAKE_PATTERN_MIXED && value >> 44 & 7 && window > 32)
        window = 32;

    uint64_t page = pattern == FAKE_PATTERN_SWEEP ? guest->position++ % window : value % window;
    uint8_t *address = guest->regions[0].host_ptr + page * FERRY_PAGE_SIZE;

    if (pattern == FAKE_PATTERN_MIXED)
        pattern = mixed[value >> 50 & 7];
    if (pattern == FAKE_PATTERN_SAME || pattern == FAKE_PATTERN_FLIP)
        guest_flip(address, pattern == FAKE_PATTERN_FLIP);
    else if (pattern == FAKE_PATTERN_ZERO && (value >> 40 & 1))
        guest_clear(address);
    else
        guest_store(address, value);
    if (__atomic_load_n(&guest->tracking, __ATOMIC_ACQUIRE))
        bitmap_set_atomic(guest->dirty[0], page);
}

/* One slice of running; the lock is not held. Returns when it is time to look at what is wanted. */
static void guest_slice(struct fake_guest *guest)
{
    struct knobs knobs = guest_knobs(guest);
    uint64_t writes = knobs.pages_per_s ? knobs.pages_per_s * TICK_NS / NS_PER_S : 4096;

    if (writes == 0)
        writes = 1;
    for (uint64_t i = 0; i < writes && !__atomic_load_n(&guest->stop_soon, __ATOMIC_RELAXED); i++) {
        guest_write(guest, &knobs);
        __atomic_fetch_add(&guest->count, 1, __ATOMIC_RELAXED);
    }
}

/* When to write again: after the tick, or, as fast as it can, at once. Throttled it is longer. */
static uint64_t guest_next_slice(const struct fake_guest *guest, uint64_t tick, uint64_t began)
{
    unsigned percent = __atomic_load_n(&guest->throttle, __ATOMIC_RELAXED);
    struct knobs knobs = guest_knobs(guest);
    bool paced = knobs.pages_per_s || knobs.pattern == FAKE_PATTERN_NONE;
    uint64_t now = clock_now_ns();
    uint64_t interval = paced ? TICK_NS * 100 / (100 - percent) : (now - began) * percent / (100 - percent);

    if (interval == 0)
        return 0;
    return paced && tick + interval > now ? tick + interval : now + interval;
}

static void *guest_main(void *opaque)
{
    struct fake_guest *guest = opaque;
    uint64_t tick = 0;
    uint64_t began = 0;

    pthread_mutex_lock(&guest->lock);
    while (!guest->quit) {
        if (!guest->run || guest->held) {
            guest->parked = true;
            pthread_cond_broadcast(&guest->changed);
            pthread_cond_wait(&guest->changed, &guest->lock);
            tick = 0;
            continue;
        }
        guest->parked = false;
        pthread_mutex_unlock(&guest->lock);
        began = clock_now_ns();
        guest_slice(guest);
        pthread_mutex_lock(&guest->lock);
        tick = guest_next_slice(guest, tick, began);
        while (guest->run && !guest->held && !guest->quit && tick != 0 &&
               thread_cond_wait_until(&guest->changed, &guest->lock, tick))
            continue;
    }
    guest->parked = true;
    pthread_mutex_unlock(&guest->lock);
    return NULL;
}

static int region_init(struct fake_guest *guest, size_t index, uint64_t size, bool memfd,
                       struct ferry_error *err)
{
    struct ferry_ram_region *region = &guest->regions[index];

    snprintf(region->name, sizeof(region->name), "ram%zu", index);
    region->guest_addr = GUEST_BASE + index * GUEST_STRIDE;
    region->size = size;
    region->memfd = -1;
    region->host_ptr = MAP_FAILED;
    guest->dirty[index] = bitmap_new(size / FERRY_PAGE_SIZE);
    if (memfd) {
        region->memfd = memfd_create(region->name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (region->memfd < 0 || ftruncate(region->memfd, (off_t)size) < 0 ||
            fcntl(region->memfd, F_ADD_SEALS, F_SEAL_SHRINK) < 0)
            return error_set_errno(err, -errno, "cannot make guest memory");
    }
    region->host_ptr = mmap(NULL, size, PROT_READ | PROT_WRITE,
                            memfd ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, region->memfd, 0);
    if (region->host_ptr == MAP_FAILED || !guest->dirty[index])
        return error_set(err, -ENOMEM, "cannot map guest memory");
    return 0;
}

int fake_guest_init(struct fake_guest *guest, struct fake_owner *owner, const uint64_t *sizes,
                    size_t region_count, bool memfd, struct ferry_error *err)
{
    *guest = (struct fake_guest){.owner = owner, .random = 88172645463325252u};
    pthread_mutex_init(&guest->lock, NULL);
    thread_cond_init(&guest->changed);
    for (; guest->region_count < region_count; guest->region_count++) {
        int result = region_init(guest, guest->region_count, sizes[guest->region_count], memfd, err);

        if (result < 0)
            return result;
    }
    return thread_start(&guest->thread, THREAD_VCPU, "fake-vcpu", guest_main, guest, err);
}

static void guest_set_run(struct fake_guest *guest, bool run)
{
    bool was;

    pthread_mutex_lock(&guest->lock);
    was = guest->run;
    guest->run = run;
    __atomic_store_n(&guest->stop_soon, !run || guest->held, __ATOMIC_RELAXED);
    if (run && !was && guest->owner)
        owner_run(guest->owner, true);
    pthread_cond_broadcast(&guest->changed);
    while (!run && !guest->parked)
        pthread_cond_wait(&guest->changed, &guest->lock);
    if (!run && was && guest->owner)
        owner_run(guest->owner, false);
    if (run)
        guest->parked = false;
    pthread_mutex_unlock(&guest->lock);
}

void fake_guest_destroy(struct fake_guest *guest)
{
    if (guest->thread.started) {
        guest_set_run(guest, false);
        pthread_mutex_lock(&guest->lock);
        guest->quit = true;
        pthread_cond_broadcast(&guest->changed);
        pthread_mutex_unlock(&guest->lock);
        thread_join(&guest->thread);
    }
    for (size_t i = 0; i < guest->region_count; i++) {
        munmap(guest->regions[i].host_ptr, guest->regions[i].size);
        if (guest->regions[i].memfd >= 0)
            close(guest->regions[i].memfd);
        free(guest->dirty[i]);
    }
    pthread_cond_destroy(&guest->changed);
    pthread_mutex_destroy(&guest->lock);
}

void fake_guest_run(struct fake_guest *guest, bool run)
{
    if (guest->owner && !guest->arriving) {
        pthread_mutex_lock(&guest->owner->lock);
        if (!guest->owner->holder)
            guest->owner->holder = guest;
        pthread_mutex_unlock(&guest->owner->lock);
    }
    guest_set_run(guest, run);
}

bool fake_guest_running(struct fake_guest *guest)
{
    pthread_mutex_lock(&guest->lock);

    bool running = guest->run;

    pthread_mutex_unlock(&guest->lock);
    return running;
}

uint64_t fake_guest_count(const struct fake_guest *guest)
{
    return __atomic_load_n(&guest->count, __ATOMIC_RELAXED);
}

void fake_guest_step(struct fake_guest *guest, uint64_t count)
{
    struct knobs knobs = guest_knobs(guest);

    for (; count > 0; count--) {
        guest_write(guest, &knobs);
        guest->count++;
    }
}

void fake_guest_fill(struct fake_guest *guest, size_t region, uint64_t first, uint64_t pages, uint64_t seed)
{
    uint64_t state = seed * 2 + 1;
    uint64_t *at = (uint64_t *)(guest->regions[region].host_ptr + first * FERRY_PAGE_SIZE);

    for (uint64_t i = 0; i < pages * FERRY_PAGE_SIZE / 8; i++)
        at[i] = random_next(&state);
}

/* ---- the seam ---- */

static int step(struct fake_guest *guest, enum fake_step which, const char *name, struct ferry_error *err)
{
    if (guest->on_step)
        guest->on_step(guest->opaque, name);
    if (which != FAKE_STEP_NONE && guest->fail == which)
        return error_set(err, -EIO, "fake failure of %s", name);
    return 0;
}

static int fake_list_regions(void *opaque, struct ferry_ram_region *regions, size_t *count,
                             struct ferry_error *err)
{
    struct fake_guest *guest = opaque;

    memcpy(regions, guest->regions, guest->region_count * sizeof(regions[0]));
    *count = guest->region_count;
    return 0;
}

static int fake_adopt_memory(void *opaque, size_t index, int fd, struct ferry_error *err)
{
    struct fake_guest *guest = opaque;
    struct ferry_ram_region *region = &guest->regions[index];
    int result = step(guest, FAKE_STEP_ADOPT, "adopt", err);

    if (result < 0)
        return result;
    if (mmap(region->host_ptr, region->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) ==
        MAP_FAILED)
        return error_set_errno(err, -errno, "cannot map passed memory");
    if (region->memfd >= 0)
        close(region->memfd);
    region->memfd = fd;
    return 0;
}

static int fake_dirty_start(void *opaque, struct ferry_error *err)
{
    struct fake_guest *guest = opaque;
    int result = step(guest, FAKE_STEP_DIRTY_START, "dirty_start", err);

    if (result == 0) {
        /* Writers must have seen the switch before the first page is looked at. */
        bool run = fake_guest_running(guest);

        guest_set_run(guest, false);
        for (size_t i = 0; i < guest->region_count; i++)
            memset(guest->dirty[i], 0,
                   bitmap_words(guest->regions[i].size / FERRY_PAGE_SIZE) * sizeof(uint64_t));
        __atomic_store_n(&guest->tracking, true, __ATOMIC_RELEASE);
        guest_set_run(guest, run);
    }
    return result;
}

static int fake_dirty_fetch(void *opaque, size_t region, uint64_t *bitmap, struct ferry_error *err)
{
    struct fake_guest *guest = opaque;

    bitmap_take_words(guest->dirty[region], bitmap,
                      bitmap_words(guest->regions[region].size / FERRY_PAGE_SIZE));
    return 0;
}

static void fake_dirty_stop(void *opaque)
{
    struct fake_guest *guest = opaque;

    step(guest, FAKE_STEP_NONE, "dirty_stop", NULL);
    guest->ran_at_dirty_stop = fake_guest_running(guest);
    __atomic_store_n(&guest->tracking, false, __ATOMIC_RELEASE);
}

static int fake_pause(void *opaque, bool *was_running, struct ferry_error *err)
{
    struct fake_guest *guest = opaque;
    int result = step(guest, FAKE_STEP_PAUSE, "pause", err);

    if (result < 0)
        return result;
    *was_running = fake_guest_running(guest);
    guest_set_run(guest, false);
    return 0;
}

static int fake_quiesce(void *opaque, uint64_t timeout_ns, struct ferry_error *err)
{
    struct fake_guest *guest = opaque;
    int result = step(guest, FAKE_STEP_QUIESCE, "quiesce", err);

    guest->quiesced = result == 0;
    return result;
}

static int fake_resume(void *opaque, bool run, struct ferry_error *err)
{
    struct fake_guest *guest = opaque;
    int result = guest->arriving ? step(guest, FAKE_STEP_RESUME, "resume", err)
                                 : step(guest, FAKE_STEP_NONE, "resume", err);

    if (result < 0)
        return result;
    if (guest->owner) {
        pthread_mutex_lock(&guest->owner->lock);
        if (guest->owner->holder != guest)
            result = error_set(err, -EPERM, "this guest is not owned here");
        else if (guest->arriving)
            guest->owner->state = FAKE_OWNER_STARTED;
        pthread_mutex_unlock(&guest->owner->lock);
    }
    if (result == 0) {
        guest->quiesced = false;
        guest_set_run(guest, run);
    }
    return result;
}

static int fake_save_state(void *opaque, struct ferry_sink *sink, struct ferry_error *err)
{
    struct fake_guest *guest = opaque;
    uint64_t cpu[3] = {guest->count, guest->random, guest->position};
    int result = step(guest, FAKE_STEP_SAVE, "save", err);

    if (result == 0)
        result = ferry_sink_section(sink, "cpu0", 1, cpu, sizeof(cpu), err);
    for (unsigned i = 0; i < guest->extra_sections && result == 0; i++) {
        char name[32];
        uint8_t *data = malloc(guest->extra_size ? guest->extra_size : 1);

        assert(data);
        memset(data, (int)i + 1, guest->extra_size);
        snprintf(name, sizeof(name), "extra%u", i);
        result = ferry_sink_section(sink, name, 1, data, guest->extra_size, err);
        free(data);
    }
    return result;
}

static int fake_load_section(void *opaque, const struct ferry_section *section, struct ferry_error *err)
{
    struct fake_guest *guest = opaque;
    int result = step(guest, FAKE_STEP_LOAD, "load", err);
    uint64_t cpu[3];

    if (result < 0)
        return result;
    if (strncmp(section->name, "extra", 5) == 0) {
        unsigned long number = strtoul(section->name + 5, NULL, 10);

        for (size_t i = 0; i < section->size; i++) {
            if (section->data[i] != (uint8_t)(number + 1))
                return error_set(err, -EINVAL, "byte %zu is wrong", i);
        }
        return 0;
    }
    if (strcmp(section->name, "cpu0") != 0 || section->version != 1 || section->size != sizeof(cpu))
        return error_set(err, -EINVAL, "unknown section or size");
    memcpy(cpu, section->data, sizeof(cpu));
    __atomic_store_n(&guest->count, cpu[0], __ATOMIC_RELAXED);
    guest->random = cpu[1];
    guest->position = cpu[2];
    return 0;
}

static int fake_load_finish(void *opaque, struct ferry_error *err)
{
    struct fake_guest *guest = opaque;
    int result = step(guest, FAKE_STEP_LOAD_FINISH, "load_finish", err);

    guest->loaded = result == 0;
    return result;
}

static void fake_advance_clock(void *opaque, uint64_t nanoseconds)
{
    struct fake_guest *guest = opaque;

    guest->advanced_ns = nanoseconds;
}

static void fake_throttle(void *opaque, unsigned percent)
{
    struct fake_guest *guest = opaque;

    if (percent > guest->throttle_most)
        guest->throttle_most = percent;
    __atomic_store_n(&guest->throttle, percent, __ATOMIC_RELAXED);
    step(guest, FAKE_STEP_NONE, "throttle", NULL);
}

static size_t fake_vcpu_writes(void *opaque, uint64_t *pages, size_t max)
{
    struct fake_guest *guest = opaque;

    for (unsigned i = 0; i < guest->vcpus && i < max; i++)
        pages[i] = i == 0 ? fake_guest_count(guest) : 0;
    return guest->vcpus;
}

static void fake_throttle_vcpus(void *opaque, const unsigned *percent, size_t count)
{
    struct fake_guest *guest = opaque;

    assert(count == guest->vcpus);
    for (size_t i = 1; i < count; i++) {
        if (percent[i] > guest->throttle_others)
            guest->throttle_others = percent[i];
    }
    fake_throttle(opaque, percent[0]);
}

static int fake_release(void *opaque, const struct ferry_handover *handover, struct ferry_error *err)
{
    struct fake_guest *guest = opaque;
    int result = step(guest, FAKE_STEP_RELEASE, "release", err);

    if (result < 0 || !guest->owner)
        return result;
    pthread_mutex_lock(&guest->owner->lock);
    guest->owner->state = FAKE_OWNER_HANDOVER;
    guest->owner->holder = NULL;
    pthread_mutex_unlock(&guest->owner->lock);
    return 0;
}

static int fake_acquire(void *opaque, const struct ferry_handover *handover, struct ferry_error *err)
{
    struct fake_guest *guest = opaque;
    struct fake_owner *owner = guest->owner;
    int result = step(guest, FAKE_STEP_ACQUIRE, "acquire", err);

    if (result < 0 || !owner)
        return result;
    pthread_mutex_lock(&owner->lock);
    if (owner->holder || owner->state != FAKE_OWNER_HANDOVER) {
        result = error_set(err, -EBUSY, "the guest was taken back");
    } else {
        owner->holder = guest;
        owner->state = FAKE_OWNER_ACQUIRED;
    }
    pthread_mutex_unlock(&owner->lock);
    return result;
}

static enum ferry_retake fake_retake(void *opaque, const struct ferry_handover *handover,
                                     struct ferry_error *err)
{
    struct fake_guest *guest = opaque;
    struct fake_owner *owner = guest->owner;
    enum ferry_retake answer = FERRY_RETAKE_RESUME;

    step(guest, FAKE_STEP_NONE, "retake", NULL);
    if (!owner)
        return handover->destination_never_ran ? FERRY_RETAKE_RESUME : FERRY_RETAKE_UNKNOWN;
    pthread_mutex_lock(&owner->lock);
    if (!owner->arbiter && !handover->destination_never_ran) {
        answer = FERRY_RETAKE_UNKNOWN;
        error_set(err, -ENOLCK, "there is no lock that both can reach");
    } else if (owner->holder || owner->state == FAKE_OWNER_STARTED) {
        answer = FERRY_RETAKE_LOST;
        error_set(err, -EBUSY, "the lock is the destination's");
    } else {
        owner->holder = guest;
        owner->state = FAKE_OWNER_HELD;
    }
    pthread_mutex_unlock(&owner->lock);
    return answer;
}

static enum ferry_elsewhere fake_look_elsewhere(void *opaque, const struct ferry_handover *handover,
                                                struct ferry_error *err)
{
    struct fake_guest *guest = opaque;
    struct fake_owner *owner = guest->owner;
    enum ferry_elsewhere where = FERRY_ELSEWHERE_UNKNOWN;

    if (!owner)
        return where;
    pthread_mutex_lock(&owner->lock);
    if (!owner->arbiter)
        error_set(err, -ENOLCK, "there is no lock that both can reach");
    else if (owner->holder && owner->state == FAKE_OWNER_STARTED)
        where = FERRY_ELSEWHERE_OWNED;
    else if (!owner->holder)
        where = owner->state == FAKE_OWNER_STARTED ? FERRY_ELSEWHERE_GONE : FERRY_ELSEWHERE_NEVER_RAN;
    pthread_mutex_unlock(&owner->lock);
    return where;
}

/* Waits for nobody: the vCPU may itself be waiting for a page. */
static void fake_hold(void *opaque, bool hold, const char *why)
{
    struct fake_guest *guest = opaque;

    step(guest, FAKE_STEP_NONE, hold ? "hold" : "let_go", NULL);
    pthread_mutex_lock(&guest->lock);
    guest->held = hold;
    guest->holds += hold;
    snprintf(guest->held_why, sizeof(guest->held_why), "%s", why);
    __atomic_store_n(&guest->stop_soon, hold || !guest->run, __ATOMIC_RELAXED);
    pthread_cond_broadcast(&guest->changed);
    pthread_mutex_unlock(&guest->lock);
}

static void fake_announce(void *opaque)
{
    struct fake_guest *guest = opaque;

    step(guest, FAKE_STEP_NONE, "announce", NULL);
    guest->announced++;
}

static void fake_give_back(void *opaque, const struct ferry_handover *handover)
{
    struct fake_guest *guest = opaque;

    step(guest, FAKE_STEP_NONE, "give_back", NULL);
    if (!guest->owner)
        return;
    pthread_mutex_lock(&guest->owner->lock);
    if (guest->owner->holder == guest)
        guest->owner->holder = NULL;
    pthread_mutex_unlock(&guest->owner->lock);
}

const struct ferry_guest_ops fake_guest_ops = {
    .list_regions = fake_list_regions,
    .adopt_memory = fake_adopt_memory,
    .dirty_start = fake_dirty_start,
    .dirty_fetch = fake_dirty_fetch,
    .dirty_stop = fake_dirty_stop,
    .pause = fake_pause,
    .quiesce = fake_quiesce,
    .resume = fake_resume,
    .save_state = fake_save_state,
    .load_section = fake_load_section,
    .load_finish = fake_load_finish,
    .advance_clock = fake_advance_clock,
    .throttle = fake_throttle,
    .vcpu_writes = fake_vcpu_writes,
    .throttle_vcpus = fake_throttle_vcpus,
    .release_ownership = fake_release,
    .acquire_ownership = fake_acquire,
    .retake_ownership = fake_retake,
    .announce = fake_announce,
    .give_back_ownership = fake_give_back,
    .look_elsewhere = fake_look_elsewhere,
    .hold = fake_hold,
};
