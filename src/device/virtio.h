/*
 * What all virtio devices share (virtio 1.2 §2), apart from how the guest reaches them (virtio_mmio.h).
 *
 * A device embeds a `struct virtio`, a `struct virtio_state` in its own state, and fills a const table of
 * functions. One worker thread a device, named after it, runs `process` whenever the driver notified a queue,
 * something of the device's own finished (it writes to `event_fd`), or the device was started.
 *
 *      vCPU threads                     worker thread                    controlling thread
 *      registers under `lock`           eventfd -> lock -> process       start, quiesce, save, load
 *      notify: only the eventfd         process may unlock meanwhile
 *
 * `run` says who may touch guest memory and interrupt line: nobody when STOPPED. DRAINING: no new chains are
 * taken; when the last outstanding one has ended the worker calls `drain` and goes to STOPPED by itself. A
 * device that has neither goes to STOPPED at once.
 *
 * A reset by the guest waits, on the vCPU's thread, for chains that are outstanding: Linux does not poll for
 * the end of a reset over MMIO and may use the buffers for something else at once. It is the one place where
 * a vCPU waits for I/O.
 */
#ifndef FERRY_DEVICE_VIRTIO_H
#define FERRY_DEVICE_VIRTIO_H

#include "base/thread.h"
#include "device/device.h"
#include "device/log_limit.h"
#include "device/virtqueue.h"

#include <pthread.h>

#define VIRTIO_QUEUES_MAX 6

/* Device status (§2.1). */
enum virtio_status {
    VIRTIO_STATUS_ACKNOWLEDGE = 1,
    VIRTIO_STATUS_DRIVER = 2,
    VIRTIO_STATUS_DRIVER_OK = 4,
    VIRTIO_STATUS_FEATURES_OK = 8,
    VIRTIO_STATUS_NEEDS_RESET = 64,
    VIRTIO_STATUS_FAILED = 128,
};

/* Features of every device (§6). */
#define VIRTIO_F_INDIRECT_DESC (UINT64_C(1) << 28)
#define VIRTIO_F_EVENT_IDX     (UINT64_C(1) << 29)
#define VIRTIO_F_VERSION_1     (UINT64_C(1) << 32)

enum virtio_interrupt {
    VIRTIO_INTERRUPT_QUEUE = 1,
    VIRTIO_INTERRUPT_CONFIG = 2,
};

struct virtio_state {
    uint32_t status;
    uint32_t device_features_sel;
    uint32_t driver_features_sel;
    uint64_t driver_features;
    uint32_t queue_sel;
    uint32_t interrupt_status;
    uint32_t config_generation;
    struct virtqueue_state queues[VIRTIO_QUEUES_MAX];
};

/* The fields of TYPE.MEMBER (a struct virtio_state) but for the queues: add VIRTQUEUE_STATE_FIELDS for each.
 */
#define VIRTIO_STATE_FIELDS(type, member)                                                                    \
    STATE_FIELD(type, member.status, STATE_U32, .max = 0xff),                                                \
        STATE_FIELD(type, member.device_features_sel, STATE_U32),                                            \
        STATE_FIELD(type, member.driver_features_sel, STATE_U32),                                            \
        STATE_FIELD(type, member.driver_features, STATE_U64),                                                \
        STATE_FIELD(type, member.queue_sel, STATE_U32),                                                      \
        STATE_FIELD(type, member.interrupt_status, STATE_U32, .max = 3),                                     \
        STATE_FIELD(type, member.config_generation, STATE_U32)

struct virtio;

struct virtio_ops {
    enum thread_kind worker; /* what its thread may do */
    uint32_t device_id;      /* §5 */
    unsigned queue_count;
    uint16_t queue_size; /* largest, for every queue */
    /* Worker thread, lock held, DRIVER_OK and RUNNING. Looks at everything that may have come. */
    void (*process)(struct virtio *virtio);
    /* Worker thread, lock held, chains outstanding: finishes those that have ended. NULL when a device never
     * leaves a chain outstanding while the lock is free. */
    void (*reap)(struct virtio *virtio);
    /* Worker thread, lock held, DRAINING and nothing outstanding: the last thing before STOPPED (a flush). An
     * error fails the quiesce and the device goes on. May unlock meanwhile; may be NULL. */
    int (*drain)(struct virtio *virtio, struct ferry_error *err);
    /* Device-specific part of a reset; lock held, nothing outstanding; may be NULL. */
    void (*reset)(struct virtio *virtio);
};

enum virtio_run {
    VIRTIO_STOPPED = 1,
    VIRTIO_RUNNING,
    VIRTIO_DRAINING,
    VIRTIO_ENDING,
};

struct virtio {
    const struct virtio_ops *ops;
    struct virtio_state *state; /* guarded by lock, as all below unless constant after init */
    uint64_t features;          /* offered; constant */
    const void *config;         /* device-specific configuration, little-endian */
    uint32_t config_size;
    const char *name; /* the section's; constant, borrowed */
    struct device_env env;
    int event_fd;
    struct virtqueue queues[VIRTIO_QUEUES_MAX];
    enum virtio_run run;
    bool busy;            /* the worker is awake */
    bool resetting;       /* no new chains; what ends is not reported */
    unsigned outstanding; /* chains popped and not pushed */
    struct log_limit violations;
    int drain_result;
    struct ferry_error drain_error;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* run, outstanding or resetting changed */
    struct thread worker;
};

/* Offers FEATURES and those of every device. Starts the worker (stopped). STATE is put to its reset values.
 */
int virtio_init(struct virtio *virtio, const struct virtio_ops *ops, struct virtio_state *state,
                uint64_t features, const void *config, uint32_t config_size, const char *name,
                const struct device_env *env, struct ferry_error *err);
/* Ends the worker; only when STOPPED. */
void virtio_destroy(struct virtio *virtio);

/* For the devices' verbs. */
void virtio_start(struct virtio *virtio);
int virtio_quiesce(struct virtio *virtio, uint64_t deadline_ns, struct ferry_error *err);
void virtio_reset(struct virtio *virtio); /* device_ops.reset: not running */
/* For load: checks STATE against what this device offers. */
int virtio_state_check(const struct virtio *virtio, const struct virtio_state *state,
                       struct ferry_error *err);
/* After state was loaded into virtio->state. */
void virtio_loaded(struct virtio *virtio);

/* For process, lock held. pop: false when there is nothing to do now, or the queue was violated (handled). */
bool virtio_pop(struct virtio *virtio, unsigned queue, struct virtqueue_chain *chain);
void virtio_unpop(struct virtio *virtio, unsigned queue); /* undoes the last pop of that queue */
void virtio_push(struct virtio *virtio, unsigned queue, uint16_t head, const struct virtqueue_segment *in,
                 unsigned in_count, uint32_t written);
/* Interrupts the driver if it wants to know of what was pushed to QUEUE. */
void virtio_signal(struct virtio *virtio, unsigned queue);
/* The driver broke a rule: NEEDS_RESET, one line in the log; nothing is processed until it resets. */
void virtio_violate(struct virtio *virtio, const char *format, ...) __attribute__((format(printf, 2, 3)));
void virtio_config_changed(struct virtio *virtio); /* lock held */
/* DRIVER_OK, not in need of reset, RUNNING, not being reset. Lock held. */
bool virtio_live(const struct virtio *virtio);
bool virtio_has(const struct virtio *virtio, uint64_t feature); /* negotiated; lock held */
void virtio_wake(struct virtio *virtio);                        /* any thread: process soon */

/* For transports, any vCPU thread, lock not held. */
uint32_t virtio_guest_status(struct virtio *virtio);
void virtio_guest_set_status(struct virtio *virtio, uint32_t status); /* 0 resets; waits, see above */
/* QueueReady = 0 on a live queue; waits like a reset. QUEUE is below queue_count. */
void virtio_guest_disable_queue(struct virtio *virtio, unsigned queue);

#endif
