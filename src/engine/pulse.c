#include "engine/pulse.h"

#include "base/clock.h"

static void *pulse_main(void *opaque)
{
    struct pulse *pulse = opaque;
    uint64_t interval_ns = control_interval_ns(pulse->control);

    pthread_mutex_lock(&pulse->lock);
    while (!pulse->quit) {
        thread_cond_wait_until(&pulse->changed, &pulse->lock, clock_now_ns() + interval_ns);
        /* A failure is in the session, whose thread finds it after the step. */
        if (clock_now_ns() < pulse->until_ns)
            control_tick(pulse->control, NULL);
    }
    pthread_mutex_unlock(&pulse->lock);
    return NULL;
}

int pulse_open(struct pulse *pulse, struct control *control, struct ferry_error *err)
{
    *pulse = (struct pulse){.control = control};
    pthread_mutex_init(&pulse->lock, NULL);
    thread_cond_init(&pulse->changed);
    return thread_start(&pulse->thread, THREAD_MIGRATION, "ferry-pulse", pulse_main, pulse, err);
}

void pulse_close(struct pulse *pulse)
{
    if (!pulse->control)
        return;
    pthread_mutex_lock(&pulse->lock);
    pulse->quit = true;
    pthread_cond_broadcast(&pulse->changed);
    pthread_mutex_unlock(&pulse->lock);
    thread_join(&pulse->thread);
    pthread_cond_destroy(&pulse->changed);
    pthread_mutex_destroy(&pulse->lock);
    pulse->control = NULL;
}

void pulse_begin(struct pulse *pulse, uint64_t limit_ns)
{
    pthread_mutex_lock(&pulse->lock);
    pulse->until_ns = clock_now_ns() + limit_ns;
    pthread_mutex_unlock(&pulse->lock);
}

void pulse_end(struct pulse *pulse)
{
    pthread_mutex_lock(&pulse->lock);
    pulse->until_ns = 0;
    pthread_mutex_unlock(&pulse->lock);
}
