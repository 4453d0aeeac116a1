/*
 * The guest's time, its timers, and throttling.
 *
 * Time counts while the machine runs: guest time = CLOCK_MONOTONIC + offset, and stands still while stopped.
 * One thread sleeps until the earliest of all harts' deadlines and asks the hart concerned to look; a hart
 * that sleeps in wfi sees to its deadline itself.
 */
#include "machine/riscv64/hart.h"

#include "base/clock.h"
#include "base/error.h"

#define NS_PER_TICK (NS_PER_S / RISCV64_TIMEBASE_HZ)

/* A throttled hart's turn: long against what it costs to fall asleep and wake up. */
#define THROTTLE_TURN_NS NS_PER_MS

uint64_t soft_clock_ns(struct soft *soft)
{
    struct soft_clock *clock = &soft->clock;
    uint64_t now;

    pthread_mutex_lock(&clock->lock);
    now = clock->ticking ? clock_now_ns() + clock->offset : clock->stopped_at;
    pthread_mutex_unlock(&clock->lock);
    return now;
}

void soft_clock_set(struct soft *soft, uint64_t nanoseconds)
{
    struct soft_clock *clock = &soft->clock;

    pthread_mutex_lock(&clock->lock);
    clock->stopped_at = nanoseconds;
    __atomic_store_n(&clock->offset, nanoseconds - clock_now_ns(), __ATOMIC_RELAXED);
    pthread_mutex_unlock(&clock->lock);
}

void soft_clock_start(struct soft *soft)
{
    struct soft_clock *clock = &soft->clock;

    pthread_mutex_lock(&clock->lock);
    if (!clock->ticking) {
        __atomic_store_n(&clock->offset, clock->stopped_at - clock_now_ns(), __ATOMIC_RELAXED);
        clock->ticking = true;
    }
    pthread_mutex_unlock(&clock->lock);
}

void soft_clock_stop(struct soft *soft)
{
    struct soft_clock *clock = &soft->clock;

    pthread_mutex_lock(&clock->lock);
    if (clock->ticking) {
        clock->stopped_at = clock_now_ns() + clock->offset;
        clock->ticking = false;
    }
    pthread_mutex_unlock(&clock->lock);
}

uint64_t hart_time(struct hart *hart)
{
    return (clock_now_ns() + __atomic_load_n(&hart->soft->clock.offset, __ATOMIC_RELAXED)) / NS_PER_TICK;
}

/* Sets one of the thread's deadlines; wakes it up when that is earlier than it would by itself. */
static void set_deadline(struct soft_clock *clock, uint64_t *slot, uint64_t deadline)
{
    pthread_mutex_lock(&clock->lock);
    *slot = deadline;
    if (deadline < clock->next)
        pthread_cond_signal(&clock->changed);
    pthread_mutex_unlock(&clock->lock);
}

uint64_t hart_timer_deadline(struct hart *hart)
{
    uint64_t offset = __atomic_load_n(&hart->soft->clock.offset, __ATOMIC_RELAXED);

    /* Linux writes all ones for "never"; centuries ahead are the same. */
    if (hart->stimecmp > UINT64_MAX / 4 / NS_PER_TICK)
        return CLOCK_NEVER;
    return hart->stimecmp * NS_PER_TICK - offset;
}

void hart_timer_update(struct hart *hart)
{
    uint64_t *slot = &hart->soft->clock.timer[hart->index];

    if (hart_time(hart) >= hart->stimecmp) {
        __atomic_or_fetch(&hart->sip, INTERRUPT_TIMER, __ATOMIC_SEQ_CST);
        hart_timer_disarm(hart);
        return;
    }
    __atomic_and_fetch(&hart->sip, ~INTERRUPT_TIMER, __ATOMIC_SEQ_CST);
    set_deadline(&hart->soft->clock, slot, hart_timer_deadline(hart));
}

void hart_timer_disarm(struct hart *hart)
{
    set_deadline(&hart->soft->clock, &hart->soft->clock.timer[hart->index], CLOCK_NEVER);
}

void hart_throttle_begin(struct hart *hart)
{
    struct soft_clock *clock = &hart->soft->clock;
    bool throttled = __atomic_load_n(&hart->throttle, __ATOMIC_RELAXED) != 0;

    set_deadline(clock, &clock->run_until[hart->index],
                 throttled ? clock_now_ns() + THROTTLE_TURN_NS : CLOCK_NEVER);
}

void hart_throttle_pause(struct hart *hart)
{
    unsigned percent = __atomic_load_n(&hart->throttle, __ATOMIC_RELAXED);

    if (percent)
        hart_sleep(hart, REQUEST_KICK, clock_now_ns() + THROTTLE_TURN_NS * percent / (100 - percent), false);
}

/* What is due, as requests by hart; sets clock->next to the earliest deadline left. Locked. */
static void collect_due(struct soft *soft, uint32_t due[])
{
    struct soft_clock *clock = &soft->clock;
    uint64_t now = clock_now_ns();

    clock->next = CLOCK_NEVER;
    for (unsigned i = 0; i < soft->hart_count; i++) {
        due[i] = 0;
        if (clock->timer[i] <= now) {
            clock->timer[i] = CLOCK_NEVER;
            due[i] |= REQUEST_INTERRUPT;
        }
        if (clock->run_until[i] <= now) {
            clock->run_until[i] = CLOCK_NEVER;
            due[i] |= REQUEST_THROTTLE;
        }
        if (clock->timer[i] < clock->next)
            clock->next = clock->timer[i];
        if (clock->run_until[i] < clock->next)
            clock->next = clock->run_until[i];
    }
}

static void *clock_thread(void *argument)
{
    struct soft *soft = argument;
    struct soft_clock *clock = &soft->clock;
    uint32_t due[RISCV64_HARTS_MAX];

    pthread_mutex_lock(&clock->lock);
    while (!clock->stopping) {
        bool any = false;

        collect_due(soft, due);
        for (unsigned i = 0; i < soft->hart_count; i++)
            any |= due[i] != 0;
        if (any) {
            pthread_mutex_unlock(&clock->lock);
            for (unsigned i = 0; i < soft->hart_count; i++) {
                if (due[i])
                    hart_post(soft->harts[i], due[i]);
            }
            pthread_mutex_lock(&clock->lock);
            continue;
        }
        if (clock->next == CLOCK_NEVER)
            pthread_cond_wait(&clock->changed, &clock->lock);
        else
            (void)thread_cond_wait_until(&clock->changed, &clock->lock, clock->next);
    }
    pthread_mutex_unlock(&clock->lock);
    return NULL;
}

int soft_clock_init(struct soft *soft, struct ferry_error *err)
{
    struct soft_clock *clock = &soft->clock;
    int result;

    for (unsigned i = 0; i < RISCV64_HARTS_MAX; i++)
        clock->timer[i] = clock->run_until[i] = CLOCK_NEVER;
    clock->next = CLOCK_NEVER;
    pthread_mutex_init(&clock->lock, NULL);
    thread_cond_init(&clock->changed);
    result = thread_start(&clock->thread, THREAD_IO, "soft-timer", clock_thread, soft, err);
    if (result) {
        pthread_cond_destroy(&clock->changed);
        pthread_mutex_destroy(&clock->lock);
    }
    return result;
}

void soft_clock_destroy(struct soft *soft)
{
    struct soft_clock *clock = &soft->clock;

    pthread_mutex_lock(&clock->lock);
    clock->stopping = true;
    pthread_cond_signal(&clock->changed);
    pthread_mutex_unlock(&clock->lock);
    thread_join(&clock->thread);
    pthread_cond_destroy(&clock->changed);
    pthread_mutex_destroy(&clock->lock);
}
