#include "device/virtio.h"

#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define COMMON_FEATURES (VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC)

/* Status bits the driver may set. */
#define DRIVER_STATUS                                                                                        \
    (VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_DRIVER_OK |                            \
     VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_FAILED)

bool virtio_live(const struct virtio *virtio)
{
    return virtio->run == VIRTIO_RUNNING && !virtio->resetting &&
           (virtio->state->status & (VIRTIO_STATUS_DRIVER_OK | VIRTIO_STATUS_NEEDS_RESET)) ==
               VIRTIO_STATUS_DRIVER_OK;
}

bool virtio_has(const struct virtio *virtio, uint64_t feature)
{
    return virtio->state->driver_features & feature;
}

void virtio_wake(struct virtio *virtio)
{
    /* Fails only when the counter is full, and then the worker is going to wake anyway. */
    (void)eventfd_write(virtio->event_fd, 1);
}

/* DRAINING with nothing outstanding: the last step, and the verdict for whoever waits in quiesce. */
static void finish_drain(struct virtio *virtio)
{
    struct ferry_error err = {0};
    int result = virtio->ops->drain ? virtio->ops->drain(virtio, &err) : 0;

    if (virtio->run != VIRTIO_DRAINING) /* quiesce gave up meanwhile */
        return;
    virtio->drain_result = result;
    virtio->drain_error = err;
    virtio->run = result < 0 ? VIRTIO_RUNNING : VIRTIO_STOPPED;
    pthread_cond_broadcast(&virtio->changed);
}

static void *worker_main(void *argument)
{
    struct virtio *virtio = argument;
    eventfd_t events;

    pthread_mutex_lock(&virtio->lock);
    while (virtio->run != VIRTIO_ENDING) {
        virtio->busy = false;
        pthread_mutex_unlock(&virtio->lock);
        (void)eventfd_read(virtio->event_fd, &events);
        pthread_mutex_lock(&virtio->lock);
        virtio->busy = true;
        if (virtio->ops->reap && virtio->outstanding)
            virtio->ops->reap(virtio);
        if (virtio_live(virtio))
            virtio->ops->process(virtio);
        if (virtio->run == VIRTIO_DRAINING && !virtio->outstanding)
            finish_drain(virtio);
    }
    pthread_mutex_unlock(&virtio->lock);
    return NULL;
}

static void reset_state(struct virtio *virtio)
{
    struct virtio_state *state = virtio->state;

    memset(state, 0, sizeof(*state));
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++) {
        virtqueue_init(&virtio->queues[i], &state->queues[i], virtio->env.memory);
        state->queues[i].size = virtio->ops->queue_size;
    }
    if (virtio->ops->reset)
        virtio->ops->reset(virtio);
}

int virtio_init(struct virtio *virtio, const struct virtio_ops *ops, struct virtio_state *state,
                uint64_t features, const void *config, uint32_t config_size, const char *name,
                const struct device_env *env, struct ferry_error *err)
{
    int result;

    *virtio = (struct virtio){
        .ops = ops,
        .state = state,
        .features = features | COMMON_FEATURES,
        .config = config,
        .config_size = config_size,
        .name = name,
        .env = *env,
        .run = VIRTIO_STOPPED,
    };
    virtio->event_fd = eventfd(0, EFD_CLOEXEC);
    if (virtio->event_fd < 0)
        return error_set_errno(err, -errno, "%s: cannot make an eventfd", name);
    pthread_mutex_init(&virtio->lock, NULL);
    thread_cond_init(&virtio->changed);
    reset_state(virtio);
    result = thread_start(&virtio->worker, virtio->ops->worker, name, worker_main, virtio, err);
    if (result < 0) {
        pthread_cond_destroy(&virtio->changed);
        pthread_mutex_destroy(&virtio->lock);
        close(virtio->event_fd);
    }
    return result;
}

void virtio_destroy(struct virtio *virtio)
{
    pthread_mutex_lock(&virtio->lock);
    virtio->run = VIRTIO_ENDING;
    pthread_mutex_unlock(&virtio->lock);
    virtio_wake(virtio);
    thread_join(&virtio->worker);
    pthread_cond_destroy(&virtio->changed);
    pthread_mutex_destroy(&virtio->lock);
    close(virtio->event_fd);
}

void virtio_start(struct virtio *virtio)
{
    pthread_mutex_lock(&virtio->lock);
    virtio->run = VIRTIO_RUNNING;
    irq_set(&virtio->env.irq, virtio->state->interrupt_status != 0);
    pthread_mutex_unlock(&virtio->lock);
    virtio_wake(virtio); /* the rings may hold chains nobody will notify us of */
}

int virtio_quiesce(struct virtio *virtio, uint64_t deadline_ns, struct ferry_error *err)
{
    int result = 0;

    pthread_mutex_lock(&virtio->lock);
    if (virtio->run == VIRTIO_RUNNING && !virtio->busy && !virtio->outstanding && !virtio->ops->drain) {
        virtio->run = VIRTIO_STOPPED; /* nothing to wait for: the worker need not wake up for it */
    } else if (virtio->run == VIRTIO_RUNNING) {
        virtio->run = VIRTIO_DRAINING;
        virtio->drain_result = 0;
        virtio_wake(virtio);
    }
    while (virtio->run == VIRTIO_DRAINING) {
        if (thread_cond_wait_until(&virtio->changed, &virtio->lock, deadline_ns) ||
            virtio->run != VIRTIO_DRAINING)
            continue;
        virtio->run = VIRTIO_RUNNING;
        virtio_wake(virtio);
        virtio->drain_result =
            error_set(&virtio->drain_error, -ETIMEDOUT, "%s: %u outstanding requests did not end in time",
                      virtio->name, virtio->outstanding);
    }
    if (virtio->run != VIRTIO_STOPPED) {
        result = virtio->drain_result;
        if (err)
            *err = virtio->drain_error;
        virtio_wake(virtio); /* for what came while no chains were taken */
    }
    pthread_mutex_unlock(&virtio->lock);
    return result;
}

void virtio_reset(struct virtio *virtio)
{
    pthread_mutex_lock(&virtio->lock);
    reset_state(virtio);
    pthread_mutex_unlock(&virtio->lock);
}

/* Virtqueue features take effect when the driver's choice is final. */
static void apply_features(struct virtio *virtio)
{
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++) {
        virtio->queues[i].event_idx = virtio_has(virtio, VIRTIO_F_EVENT_IDX);
        virtio->queues[i].indirect = virtio_has(virtio, VIRTIO_F_INDIRECT_DESC);
    }
}

static bool features_acceptable(const struct virtio *virtio, uint64_t features)
{
    return !(features & ~virtio->features) && (features & VIRTIO_F_VERSION_1);
}

int virtio_state_check(const struct virtio *virtio, const struct virtio_state *state, struct ferry_error *err)
{
    int result;

    if ((state->status & VIRTIO_STATUS_FEATURES_OK) && !features_acceptable(virtio, state->driver_features))
        return error_set(err, -EINVAL,
                         "field driver_features: the guest uses features 0x%llx, this device offers 0x%llx",
                         (unsigned long long)state->driver_features, (unsigned long long)virtio->features);
    if ((state->status & VIRTIO_STATUS_DRIVER_OK) && !(state->status & VIRTIO_STATUS_FEATURES_OK))
        return error_set(err, -EINVAL, "field status: 0x%x has DRIVER_OK without FEATURES_OK", state->status);
    for (unsigned i = 0; i < virtio->ops->queue_count; i++) {
        result = virtqueue_state_check(&state->queues[i], i, virtio->ops->queue_size, err);
        if (result < 0)
            return result;
    }
    return 0;
}

void virtio_loaded(struct virtio *virtio)
{
    pthread_mutex_lock(&virtio->lock);
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
        virtqueue_remap(&virtio->queues[i]);
    if (virtio->state->status & VIRTIO_STATUS_FEATURES_OK)
        apply_features(virtio);
    pthread_mutex_unlock(&virtio->lock);
}

static void raise_interrupt(struct virtio *virtio, uint32_t reason)
{
    virtio->state->interrupt_status |= reason;
    irq_set(&virtio->env.irq, true);
}

bool virtio_pop(struct virtio *virtio, unsigned queue, struct virtqueue_chain *chain)
{
    const char *why = NULL;
    int result;

    if (!virtio_live(virtio))
        return false;
    result = virtqueue_pop(&virtio->queues[queue], chain, &why);
    if (result < 0) {
        virtio_violate(virtio, "queue %u: %s", queue, why);
        return false;
    }
    virtio->outstanding += result;
    return result;
}

static void end_outstanding(struct virtio *virtio)
{
    if (!--virtio->outstanding)
        pthread_cond_broadcast(&virtio->changed);
}

void virtio_unpop(struct virtio *virtio, unsigned queue)
{
    virtqueue_unpop(&virtio->queues[queue]);
    end_outstanding(virtio);
}

void virtio_push(struct virtio *virtio, unsigned queue, uint16_t head, const struct virtqueue_segment *in,
                 unsigned in_count, uint32_t written)
{
    /* Pages the device wrote to count as written even when the driver no longer wants to know. */
    if (virtio->resetting) {
        for (unsigned i = 0; i < in_count; i++)
            memory_mark_dirty(virtio->env.memory, in[i].guest_addr, in[i].size);
    } else {
        virtqueue_push(&virtio->queues[queue], head, in, in_count, written);
    }
    end_outstanding(virtio);
}

void virtio_signal(struct virtio *virtio, unsigned queue)
{
    if (!virtio->resetting && virtqueue_must_signal(&virtio->queues[queue]))
        raise_interrupt(virtio, VIRTIO_INTERRUPT_QUEUE);
}

void virtio_violate(struct virtio *virtio, const char *format, ...)
{
    char text[256];
    unsigned suppressed;
    va_list arguments;

    if (virtio->state->status & VIRTIO_STATUS_NEEDS_RESET)
        return;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    if (log_limit_pass(&virtio->violations, &suppressed))
        log_warn(virtio->env.log,
                 "%s: the guest's driver broke the rules, the device needs a reset: %s (%u more before)",
                 virtio->name, text, suppressed);
    virtio->state->status |= VIRTIO_STATUS_NEEDS_RESET;
    if (virtio->state->status & VIRTIO_STATUS_DRIVER_OK)
        raise_interrupt(virtio, VIRTIO_INTERRUPT_CONFIG);
}

void virtio_config_changed(struct virtio *virtio)
{
    virtio->state->config_generation++;
    if (virtio->state->status & VIRTIO_STATUS_DRIVER_OK)
        raise_interrupt(virtio, VIRTIO_INTERRUPT_CONFIG);
}

/* Waits on a vCPU's thread until no chain is outstanding; what ends meanwhile is not reported. */
static void begin_reset(struct virtio *virtio)
{
    while (virtio->resetting)
        pthread_cond_wait(&virtio->changed, &virtio->lock);
    virtio->resetting = true;
    pthread_cond_broadcast(&virtio->changed);
    while (virtio->outstanding)
        pthread_cond_wait(&virtio->changed, &virtio->lock);
}

static void end_reset(struct virtio *virtio)
{
    virtio->resetting = false;
    pthread_cond_broadcast(&virtio->changed);
}

uint32_t virtio_guest_status(struct virtio *virtio)
{
    uint32_t status;

    pthread_mutex_lock(&virtio->lock);
    status = virtio->state->status;
    pthread_mutex_unlock(&virtio->lock);
    return status;
}

void virtio_guest_disable_queue(struct virtio *virtio, unsigned queue)
{
    pthread_mutex_lock(&virtio->lock);
    begin_reset(virtio);
    virtio->state->queues[queue].ready = false;
    virtqueue_remap(&virtio->queues[queue]);
    end_reset(virtio);
    pthread_mutex_unlock(&virtio->lock);
    virtio_wake(virtio);
}

void virtio_guest_set_status(struct virtio *virtio, uint32_t status)
{
    struct virtio_state *state = virtio->state;

    pthread_mutex_lock(&virtio->lock);
    if (!status) {
        begin_reset(virtio);
        reset_state(virtio);
        irq_set(&virtio->env.irq, false);
        end_reset(virtio);
    } else {
        status &= DRIVER_STATUS;
        if ((status & ~state->status & VIRTIO_STATUS_FEATURES_OK)) {
            if (features_acceptable(virtio, state->driver_features))
                apply_features(virtio);
            else
                status &= ~(uint32_t)VIRTIO_STATUS_FEATURES_OK;
        }
        if (!((status | state->status) & VIRTIO_STATUS_FEATURES_OK))
            status &= ~(uint32_t)VIRTIO_STATUS_DRIVER_OK;
        state->status |= status;
        if (state->status & VIRTIO_STATUS_DRIVER_OK)
            virtio_wake(virtio);
    }
    pthread_mutex_unlock(&virtio->lock);
}
