#include "machine/vcpus.h"

#include "base/error.h"
#include "base/thread.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define WHY_SIZE FERRY_ERROR_TEXT_SIZE

struct vcpu {
    struct vcpus *vcpus;
    unsigned index;
    bool inside; /* these two under vcpus->lock: not parked; asleep in vcpu_run and kept so */
    bool held;
    struct thread thread;
};

struct vcpus {
    struct accel *accel;
    unsigned count;
    void (*event)(void *opaque, enum machine_event event, const char *why);
    void *opaque;

    pthread_mutex_t lock;   /* guards all below */
    pthread_cond_t go;      /* run or quit was set */
    pthread_cond_t stopped; /* vcpus_stopped may have become true */
    bool run;
    bool suspended;
    bool quit;
    unsigned active;             /* threads that are inside and not held */
    enum machine_event reported; /* 0: none waits to be delivered */
    bool delivering;
    char why[WHY_SIZE];

    struct vcpu vcpu[ACCEL_VCPUS_MAX];
};

static bool vcpus_stopped(const struct vcpus *vcpus)
{
    return !vcpus->active && !vcpus->reported && !vcpus->delivering;
}

/* Lock held. A vCPU that is parked gets one too; its next vcpu_run then returns once for nothing. */
static void vcpus_halt(struct vcpus *vcpus)
{
    vcpus->run = false;
    for (unsigned i = 0; i < vcpus->count; i++)
        if (!vcpus->vcpu[i].held)
            vcpus->accel->ops->vcpu_kick(vcpus->accel, i);
}

/* Lock held. Those that sleep need not wake up to be stopped. */
static void vcpus_hold(struct vcpus *vcpus)
{
    const struct accel_ops *ops = vcpus->accel->ops;

    for (unsigned i = 0; i < vcpus->count && ops->vcpu_hold; i++) {
        struct vcpu *vcpu = &vcpus->vcpu[i];

        if (!vcpu->inside || vcpu->held || !ops->vcpu_hold(vcpus->accel, i))
            continue;
        vcpu->held = true;
        vcpus->active--;
    }
}

/* Lock held. */
static void vcpus_release(struct vcpus *vcpus)
{
    for (unsigned i = 0; i < vcpus->count; i++) {
        if (!vcpus->vcpu[i].held)
            continue;
        vcpus->vcpu[i].held = false;
        vcpus->active++;
        vcpus->accel->ops->vcpu_release(vcpus->accel, i);
    }
}

/* Lock held, on a vCPU thread that is inside. The first report counts: what others say is a consequence. */
static void vcpus_note(struct vcpus *vcpus, enum machine_event event, const char *why)
{
    if (!vcpus->reported) {
        vcpus->reported = event;
        snprintf(vcpus->why, sizeof(vcpus->why), "%s", why ? why : "");
    }
    vcpus_halt(vcpus);
}

/* Lock held, dropped meanwhile. */
static void vcpus_deliver(struct vcpus *vcpus)
{
    enum machine_event event = vcpus->reported;
    char why[WHY_SIZE];

    snprintf(why, sizeof(why), "%s", vcpus->why);
    vcpus->reported = 0;
    vcpus->delivering = true;
    pthread_mutex_unlock(&vcpus->lock);
    vcpus->event(vcpus->opaque, event, why);
    pthread_mutex_lock(&vcpus->lock);
    vcpus->delivering = false;
}

static void *vcpu_thread(void *argument)
{
    struct vcpu *vcpu = argument;
    struct vcpus *vcpus = vcpu->vcpus;

    pthread_mutex_lock(&vcpus->lock);
    for (;;) {
        struct ferry_error err = {0};
        enum accel_exit reason;

        while ((!vcpus->run || vcpus->suspended) && !vcpus->quit)
            pthread_cond_wait(&vcpus->go, &vcpus->lock);
        if (vcpus->quit)
            break;
        vcpu->inside = true;
        vcpus->active++;
        do {
            pthread_mutex_unlock(&vcpus->lock);
            reason = vcpus->accel->ops->vcpu_run(vcpus->accel, vcpu->index, &err);
            pthread_mutex_lock(&vcpus->lock);
            if (reason == ACCEL_EXIT_ERROR)
                vcpus_note(vcpus, MACHINE_EVENT_ERROR, err.text);
        } while (vcpus->run && !vcpus->suspended);
        vcpu->inside = false;
        vcpus->active--;
        if (!vcpus->active && vcpus->reported)
            vcpus_deliver(vcpus);
        if (vcpus_stopped(vcpus))
            pthread_cond_broadcast(&vcpus->stopped);
    }
    pthread_mutex_unlock(&vcpus->lock);
    return NULL;
}

int vcpus_new(struct vcpus **out, struct accel *accel, unsigned count,
              void (*event)(void *opaque, enum machine_event event, const char *why), void *opaque,
              struct ferry_error *err)
{
    struct vcpus *vcpus;

    if (count < 1 || count > ACCEL_VCPUS_MAX)
        return error_set(err, -EINVAL, "%u vCPUs are not possible; 1 to %d are", count, ACCEL_VCPUS_MAX);
    vcpus = calloc(1, sizeof(*vcpus));
    if (!vcpus)
        return error_set(err, -ENOMEM, "out of memory for the vCPU threads");
    vcpus->accel = accel;
    vcpus->count = count;
    vcpus->event = event;
    vcpus->opaque = opaque;
    pthread_mutex_init(&vcpus->lock, NULL);
    thread_cond_init(&vcpus->go);
    thread_cond_init(&vcpus->stopped);
    for (unsigned i = 0; i < count; i++) {
        struct vcpu *vcpu = &vcpus->vcpu[i];
        char name[16];
        int result;

        vcpu->vcpus = vcpus;
        vcpu->index = i;
        snprintf(name, sizeof(name), "vcpu%u", i);
        result = thread_start(&vcpu->thread, THREAD_VCPU, name, vcpu_thread, vcpu, err);
        if (result) {
            vcpus_free(vcpus);
            return result;
        }
    }
    *out = vcpus;
    return 0;
}

void vcpus_free(struct vcpus *vcpus)
{
    if (!vcpus)
        return;
    vcpus_stop(vcpus);
    pthread_mutex_lock(&vcpus->lock);
    vcpus->quit = true;
    vcpus_release(vcpus);
    pthread_cond_broadcast(&vcpus->go);
    pthread_mutex_unlock(&vcpus->lock);
    for (unsigned i = 0; i < vcpus->count; i++)
        thread_join(&vcpus->vcpu[i].thread);
    pthread_cond_destroy(&vcpus->stopped);
    pthread_cond_destroy(&vcpus->go);
    pthread_mutex_destroy(&vcpus->lock);
    free(vcpus);
}

void vcpus_run(struct vcpus *vcpus)
{
    pthread_mutex_lock(&vcpus->lock);
    vcpus->run = true;
    vcpus_release(vcpus);
    pthread_cond_broadcast(&vcpus->go);
    pthread_mutex_unlock(&vcpus->lock);
}

bool vcpus_stop_until(struct vcpus *vcpus, uint64_t deadline_ns)
{
    bool in_time = true;
    bool ran;

    pthread_mutex_lock(&vcpus->lock);
    ran = vcpus->run;
    if (vcpus->run || vcpus->active) {
        vcpus_hold(vcpus);
        vcpus_halt(vcpus);
    }
    while (in_time && !vcpus_stopped(vcpus))
        in_time = thread_cond_wait_until(&vcpus->stopped, &vcpus->lock, deadline_ns);
    in_time = vcpus_stopped(vcpus);
    /* Were there an event, its handler would stop them again. */
    if (!in_time && ran) {
        vcpus->run = true;
        vcpus_release(vcpus);
        pthread_cond_broadcast(&vcpus->go);
    }
    pthread_mutex_unlock(&vcpus->lock);
    return in_time;
}

void vcpus_stop(struct vcpus *vcpus)
{
    vcpus_stop_until(vcpus, UINT64_MAX);
}

void vcpus_suspend(struct vcpus *vcpus, bool on)
{
    pthread_mutex_lock(&vcpus->lock);
    vcpus->suspended = on;
    for (unsigned i = 0; i < vcpus->count && on; i++)
        if (!vcpus->vcpu[i].held)
            vcpus->accel->ops->vcpu_kick(vcpus->accel, i);
    pthread_cond_broadcast(&vcpus->go);
    pthread_mutex_unlock(&vcpus->lock);
}

void vcpus_report(struct vcpus *vcpus, enum machine_event event, const char *why)
{
    pthread_mutex_lock(&vcpus->lock);
    vcpus_note(vcpus, event, why);
    pthread_mutex_unlock(&vcpus->lock);
}
