#include "device/goldfish_rtc.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/thread.h"
#include "device/tables.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

enum rtc_register {
    REG_TIME_LOW = 0x00,
    REG_TIME_HIGH = 0x04,
    REG_ALARM_LOW = 0x08, /* writing it sets the alarm */
    REG_ALARM_HIGH = 0x0c,
    REG_IRQ_ENABLED = 0x10,
    REG_CLEAR_ALARM = 0x14,
    REG_ALARM_STATUS = 0x18,
    REG_CLEAR_INTERRUPT = 0x1c,
};

struct rtc_state {
    uint64_t offset_ns; /* guest's time minus CLOCK_REALTIME, modulo 2^64 */
    uint64_t alarm_ns;  /* guest's time */
    uint32_t time_high; /* latched by reading TIME_LOW */
    bool alarm_running;
    bool irq_pending;
    bool irq_enabled;
};

struct rtc {
    struct device device;
    struct device_env env;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t changed;
    struct rtc_state state;
    bool running;
    bool ending;
    struct thread thread; /* ends when `ending` is set and `changed` signalled, in destroy */
};

static const struct state_field rtc_fields[] = {
    STATE_FIELD(struct rtc_state, offset_ns, STATE_U64),
    STATE_FIELD(struct rtc_state, alarm_ns, STATE_U64),
    STATE_FIELD(struct rtc_state, time_high, STATE_U32),
    STATE_FIELD(struct rtc_state, alarm_running, STATE_BOOL),
    STATE_FIELD(struct rtc_state, irq_pending, STATE_BOOL),
    STATE_FIELD(struct rtc_state, irq_enabled, STATE_BOOL),
};

const struct state_table goldfish_rtc_table = {
    .name = "goldfish-rtc",
    .version = 1,
    .fields = rtc_fields,
    .field_count = ARRAY_SIZE(rtc_fields),
    .object_size = sizeof(struct rtc_state),
};

static struct rtc *from_device(struct device *device)
{
    return (struct rtc *)((char *)device - offsetof(struct rtc, device));
}

static uint64_t guest_now_ns(const struct rtc *rtc)
{
    return clock_realtime_ns() + rtc->state.offset_ns;
}

static void update_interrupt(struct rtc *rtc)
{
    if (rtc->running)
        irq_set(&rtc->env.irq, rtc->state.irq_pending && rtc->state.irq_enabled);
}

/* Fires the alarm if it is due; else returns when it will be (CLOCK_MONOTONIC), UINT64_MAX for never. */
static uint64_t run_alarm(struct rtc *rtc)
{
    uint64_t now = guest_now_ns(rtc);
    uint64_t due;

    if (!rtc->running || !rtc->state.alarm_running)
        return UINT64_MAX;
    if (now < rtc->state.alarm_ns)
        return __builtin_add_overflow(clock_now_ns(), rtc->state.alarm_ns - now, &due) ? UINT64_MAX : due;
    rtc->state.alarm_running = false;
    rtc->state.irq_pending = true;
    update_interrupt(rtc);
    return UINT64_MAX;
}

static void *alarm_main(void *argument)
{
    struct rtc *rtc = argument;

    pthread_mutex_lock(&rtc->lock);
    while (!rtc->ending)
        thread_cond_wait_until(&rtc->changed, &rtc->lock, run_alarm(rtc));
    pthread_mutex_unlock(&rtc->lock);
    return NULL;
}

static uint64_t rtc_read(void *opaque, uint64_t offset, unsigned size)
{
    struct rtc *rtc = opaque;
    uint64_t value = 0;

    if (size != 4)
        return 0;
    pthread_mutex_lock(&rtc->lock);
    switch (offset) {
    case REG_TIME_LOW:
        value = guest_now_ns(rtc);
        rtc->state.time_high = (uint32_t)(value >> 32);
        break;
    case REG_TIME_HIGH:
        value = rtc->state.time_high;
        break;
    case REG_ALARM_LOW:
        value = rtc->state.alarm_ns;
        break;
    case REG_ALARM_HIGH:
        value = rtc->state.alarm_ns >> 32;
        break;
    case REG_IRQ_ENABLED:
        value = rtc->state.irq_enabled;
        break;
    case REG_ALARM_STATUS:
        value = rtc->state.alarm_running;
        break;
    default:
        break;
    }
    pthread_mutex_unlock(&rtc->lock);
    return (uint32_t)value;
}

static void set_time(struct rtc *rtc, uint64_t keep_mask, uint64_t bits)
{
    uint64_t now = guest_now_ns(rtc);

    rtc->state.offset_ns += ((now & keep_mask) | bits) - now;
}

static void write_register(struct rtc *rtc, uint64_t offset, uint32_t value)
{
    struct rtc_state *state = &rtc->state;

    switch (offset) {
    case REG_TIME_LOW:
        set_time(rtc, UINT64_C(0xffffffff00000000), value);
        break;
    case REG_TIME_HIGH:
        set_time(rtc, UINT64_C(0x00000000ffffffff), (uint64_t)value << 32);
        break;
    case REG_ALARM_LOW:
        state->alarm_ns = (state->alarm_ns & UINT64_C(0xffffffff00000000)) | value;
        state->alarm_running = true;
        break;
    case REG_ALARM_HIGH:
        state->alarm_ns = (state->alarm_ns & UINT64_C(0x00000000ffffffff)) | (uint64_t)value << 32;
        break;
    case REG_IRQ_ENABLED:
        state->irq_enabled = value & 1;
        break;
    case REG_CLEAR_ALARM:
        state->alarm_running = false;
        break;
    case REG_CLEAR_INTERRUPT:
        state->irq_pending = false;
        break;
    default:
        return;
    }
    update_interrupt(rtc);
    pthread_cond_signal(&rtc->changed);
}

static void rtc_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct rtc *rtc = opaque;

    if (size != 4)
        return;
    pthread_mutex_lock(&rtc->lock);
    write_register(rtc, offset, (uint32_t)value);
    pthread_mutex_unlock(&rtc->lock);
}

static const struct mmio_ops rtc_mmio_ops = {
    .read = rtc_read,
    .write = rtc_write,
};

static void rtc_reset(struct device *device)
{
    struct rtc *rtc = from_device(device);

    pthread_mutex_lock(&rtc->lock);
    /* A battery-backed clock keeps its time over a reset. */
    rtc->state = (struct rtc_state){.offset_ns = rtc->state.offset_ns};
    pthread_mutex_unlock(&rtc->lock);
}

static int rtc_start(struct device *device, struct ferry_error *err)
{
    struct rtc *rtc = from_device(device);

    pthread_mutex_lock(&rtc->lock);
    rtc->running = true;
    update_interrupt(rtc);
    if (rtc->state.alarm_running)
        pthread_cond_signal(&rtc->changed);
    pthread_mutex_unlock(&rtc->lock);
    return 0;
}

static int rtc_quiesce(struct device *device, uint64_t deadline_ns, struct ferry_error *err)
{
    struct rtc *rtc = from_device(device);

    pthread_mutex_lock(&rtc->lock);
    rtc->running = false;
    pthread_mutex_unlock(&rtc->lock);
    return 0;
}

static void rtc_save(struct device *device, struct buffer *out)
{
    state_save(&goldfish_rtc_table, &from_device(device)->state, out);
}

static int rtc_load(struct device *device, uint32_t version, struct reader *in, struct ferry_error *err)
{
    struct rtc *rtc = from_device(device);
    int result;

    pthread_mutex_lock(&rtc->lock);
    result = state_load(&goldfish_rtc_table, device->name, version, &rtc->state, in, err);
    pthread_mutex_unlock(&rtc->lock);
    return result;
}

static void rtc_destroy(struct device *device)
{
    struct rtc *rtc = from_device(device);

    pthread_mutex_lock(&rtc->lock);
    rtc->ending = true;
    pthread_cond_signal(&rtc->changed);
    pthread_mutex_unlock(&rtc->lock);
    thread_join(&rtc->thread);
    pthread_cond_destroy(&rtc->changed);
    pthread_mutex_destroy(&rtc->lock);
    free(rtc);
}

static const struct device_ops rtc_ops = {
    .reset = rtc_reset,
    .start = rtc_start,
    .quiesce = rtc_quiesce,
    .save = rtc_save,
    .load = rtc_load,
    .destroy = rtc_destroy,
};

int goldfish_rtc_create(struct device **out, const struct device_env *env, unsigned index,
                        struct ferry_error *err)
{
    struct rtc *rtc = calloc(1, sizeof(*rtc));
    int result;

    if (!rtc)
        return error_set(err, -ENOMEM, "out of memory while adding rtc%u", index);
    rtc->device.ops = &rtc_ops;
    rtc->device.state = &goldfish_rtc_table;
    snprintf(rtc->device.name, sizeof(rtc->device.name), "rtc%u", index);
    rtc->env = *env;
    pthread_mutex_init(&rtc->lock, NULL);
    thread_cond_init(&rtc->changed);
    result = thread_start(&rtc->thread, THREAD_IO, rtc->device.name, alarm_main, rtc, err);
    if (result == 0)
        result = mmio_bus_add(env->bus, rtc->device.name, env->mmio_addr, GOLDFISH_RTC_MMIO_SIZE,
                              &rtc_mmio_ops, rtc, err);
    if (result < 0) {
        rtc_destroy(&rtc->device);
        return result;
    }
    *out = &rtc->device;
    return 0;
}
