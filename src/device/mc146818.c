#include "device/mc146818.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/thread.h"
#include "device/tables.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum cmos_register {
    REG_SECONDS = 0,
    REG_SECONDS_ALARM = 1,
    REG_MINUTES = 2,
    REG_MINUTES_ALARM = 3,
    REG_HOURS = 4,
    REG_HOURS_ALARM = 5,
    REG_WEEKDAY = 6,
    REG_DAY = 7,
    REG_MONTH = 8,
    REG_YEAR = 9,
    REG_A = 10,
    REG_B = 11,
    REG_C = 12,
    REG_D = 13,
    REG_CENTURY = MC146818_CENTURY,
    REGISTERS = 128,
};

#define A_UPDATE    0x80
#define A_32768_HZ  0x20
#define B_SET       0x80
#define B_ALARM     0x20
#define B_UPDATE    0x10
#define B_BINARY    0x04
#define B_24_HOURS  0x02
#define C_INTERRUPT 0x80
#define C_ALARM     0x20 /* the bits of B that let them through */
#define C_UPDATE    0x10
#define D_VALID     0x80
#define HOURS_PM    0x80
#define ALARM_ANY   0xc0
#define INDEX_MASK  0x7f              /* bit 7 is the processor's NMI mask */
#define UPDATE_NS   (244 * NS_PER_US) /* before the second, for which registers are not to be read */
#define DAY_S       86400

struct cmos_state {
    uint64_t offset_ns; /* guest's time minus CLOCK_REALTIME, modulo 2^64 */
    uint64_t seen_s;    /* guest's time: flags are right for all seconds up to this one */
    uint8_t index;
    uint8_t registers[REGISTERS]; /* of the time only while it is being set */
};

struct cmos {
    struct device device;
    struct device_env env;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t changed;
    struct cmos_state state;
    bool running;
    bool ending;
    struct thread thread; /* ends when `ending` is set and `changed` signalled, in destroy */
};

static const struct state_field cmos_fields[] = {
    STATE_FIELD(struct cmos_state, offset_ns, STATE_U64),
    STATE_FIELD(struct cmos_state, seen_s, STATE_U64),
    STATE_FIELD(struct cmos_state, index, STATE_U8, .max = INDEX_MASK),
    STATE_ARRAY(struct cmos_state, registers, STATE_BYTES),
};

const struct state_table mc146818_table = {
    .name = "mc146818",
    .version = 1,
    .fields = cmos_fields,
    .field_count = ARRAY_SIZE(cmos_fields),
    .object_size = sizeof(struct cmos_state),
};

static struct cmos *from_device(struct device *device)
{
    return (struct cmos *)((char *)device - offsetof(struct cmos, device));
}

static uint64_t guest_now_ns(const struct cmos *cmos)
{
    return clock_realtime_ns() + cmos->state.offset_ns;
}

/* ---- numbers as the guest wants them ---- */

static uint8_t encode(const struct cmos_state *state, int number)
{
    return (uint8_t)(state->registers[REG_B] & B_BINARY ? number : number / 10 * 16 + number % 10);
}

static int decode(const struct cmos_state *state, uint8_t value)
{
    return state->registers[REG_B] & B_BINARY ? value : (value >> 4) * 10 + (value & 0xf);
}

static uint8_t encode_hours(const struct cmos_state *state, int hours)
{
    if (state->registers[REG_B] & B_24_HOURS)
        return encode(state, hours);
    return (uint8_t)(encode(state, hours % 12 ? hours % 12 : 12) | (hours >= 12 ? HOURS_PM : 0));
}

static int decode_hours(const struct cmos_state *state, uint8_t value)
{
    if (state->registers[REG_B] & B_24_HOURS)
        return decode(state, value);
    return decode(state, value & (uint8_t)~HOURS_PM) % 12 + (value & HOURS_PM ? 12 : 0);
}

/* ---- the calendar: the C library's would look for the host's time zone first, with vCPUs' rights ---- */

static bool is_leap(int year)
{
    return year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
}

/* Leap years up to and with YEAR, since the year 0. */
static int leap_years(int year)
{
    return year / 4 - year / 100 + year / 400;
}

/* From 1970-01-01 on. */
static int64_t days_before_year(int year)
{
    return INT64_C(365) * (year - 1970) + leap_years(year - 1) - leap_years(1969);
}

/* MONTH is 0 to 12. */
static int days_before_month(int year, int month)
{
    static const int days[] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365};

    return days[month] + (month > 1 && is_leap(year));
}

static void put_time(struct cmos_state *state, uint64_t seconds)
{
    int64_t days = (int64_t)(seconds / DAY_S);
    int year = 1970 + (int)(days / 366), month = 0, day;

    while (days_before_year(year + 1) <= days)
        year++;
    day = (int)(days - days_before_year(year));
    while (days_before_month(year, month + 1) <= day)
        month++;
    state->registers[REG_SECONDS] = encode(state, (int)(seconds % 60));
    state->registers[REG_MINUTES] = encode(state, (int)(seconds / 60 % 60));
    state->registers[REG_HOURS] = encode_hours(state, (int)(seconds / 3600 % 24));
    state->registers[REG_WEEKDAY] = encode(state, (int)((days + 4) % 7 + 1)); /* 1970 began on a Thursday */
    state->registers[REG_DAY] = encode(state, day - days_before_month(year, month) + 1);
    state->registers[REG_MONTH] = encode(state, month + 1);
    state->registers[REG_YEAR] = encode(state, year % 100);
    state->registers[REG_CENTURY] = encode(state, year / 100);
}

/* What the guest wrote need not be a date: days that are too many run on into the next month, and so on. It
 * is a time after 1970 in any case. */
static uint64_t get_time(const struct cmos_state *state)
{
    int year = decode(state, state->registers[REG_CENTURY]) * 100 + decode(state, state->registers[REG_YEAR]);
    int month = decode(state, state->registers[REG_MONTH]);
    int64_t days = days_before_year(year) + days_before_month(year, month < 1 ? 0 : (month - 1) % 12) +
                   decode(state, state->registers[REG_DAY]) - 1;
    int64_t seconds = ((days * 24 + decode_hours(state, state->registers[REG_HOURS])) * 60 +
                       decode(state, state->registers[REG_MINUTES])) *
                          60 +
                      decode(state, state->registers[REG_SECONDS]);

    return seconds < 0 ? 0 : (uint64_t)seconds;
}

/* ---- alarm and interrupt ---- */

static bool alarm_field_matches(uint8_t alarm, uint8_t now)
{
    return (alarm & ALARM_ANY) == ALARM_ANY || alarm == now;
}

static bool alarm_matches(const struct cmos_state *state, uint64_t seconds)
{
    int second = (int)(seconds % 60), minute = (int)(seconds / 60 % 60), hour = (int)(seconds / 3600 % 24);

    return alarm_field_matches(state->registers[REG_SECONDS_ALARM], encode(state, second)) &&
           alarm_field_matches(state->registers[REG_MINUTES_ALARM], encode(state, minute)) &&
           alarm_field_matches(state->registers[REG_HOURS_ALARM], encode_hours(state, hour));
}

static void update_interrupt(struct cmos *cmos)
{
    uint8_t *flags = &cmos->state.registers[REG_C];

    if (*flags & cmos->state.registers[REG_B] & (B_ALARM | B_UPDATE))
        *flags |= C_INTERRUPT;
    else
        *flags &= (uint8_t)~C_INTERRUPT;
    if (cmos->running)
        irq_set(&cmos->env.irq, *flags & C_INTERRUPT);
}

/* Flags for the seconds since the last look. An alarm comes round once a day. */
static void catch_up(struct cmos *cmos, uint64_t now_s)
{
    struct cmos_state *state = &cmos->state;

    if (!(state->registers[REG_B] & B_SET) && now_s > state->seen_s) {
        uint64_t first = now_s - state->seen_s > DAY_S ? now_s - DAY_S : state->seen_s;

        state->registers[REG_C] |= C_UPDATE;
        for (uint64_t second = first + 1; second <= now_s && !(state->registers[REG_C] & C_ALARM); second++)
            if (alarm_matches(state, second))
                state->registers[REG_C] |= C_ALARM;
    }
    state->seen_s = now_s; /* it may have been set back */
    update_interrupt(cmos);
}

/* Returns when to look again (CLOCK_MONOTONIC), UINT64_MAX for when something changes. */
static uint64_t run_second(struct cmos *cmos)
{
    uint64_t now = guest_now_ns(cmos);

    if (!cmos->running)
        return UINT64_MAX;
    catch_up(cmos, now / NS_PER_S);
    if (!(cmos->state.registers[REG_B] & (B_ALARM | B_UPDATE)) || (cmos->state.registers[REG_B] & B_SET))
        return UINT64_MAX;
    return clock_now_ns() + NS_PER_S - now % NS_PER_S;
}

static void *second_main(void *argument)
{
    struct cmos *cmos = argument;

    pthread_mutex_lock(&cmos->lock);
    while (!cmos->ending)
        thread_cond_wait_until(&cmos->changed, &cmos->lock, run_second(cmos));
    pthread_mutex_unlock(&cmos->lock);
    return NULL;
}

/* ---- registers ---- */

static bool is_time(uint8_t index)
{
    return index == REG_SECONDS || index == REG_MINUTES || index == REG_HOURS ||
           (index >= REG_WEEKDAY && index <= REG_YEAR) || index == REG_CENTURY;
}

static uint8_t read_flags(struct cmos *cmos)
{
    uint8_t flags;

    catch_up(cmos, guest_now_ns(cmos) / NS_PER_S);
    flags = cmos->state.registers[REG_C];
    cmos->state.registers[REG_C] = 0;
    update_interrupt(cmos);
    return flags;
}

static uint8_t read_register(struct cmos *cmos, uint8_t index)
{
    struct cmos_state *state = &cmos->state;
    bool setting = state->registers[REG_B] & B_SET;
    uint64_t now = guest_now_ns(cmos);

    if (is_time(index) && !setting)
        put_time(state, now / NS_PER_S);
    switch (index) {
    case REG_A:
        return state->registers[REG_A] | (!setting && now % NS_PER_S >= NS_PER_S - UPDATE_NS ? A_UPDATE : 0);
    case REG_C:
        return read_flags(cmos);
    case REG_D:
        return D_VALID;
    default:
        return state->registers[index];
    }
}

static void set_clock(struct cmos *cmos)
{
    uint64_t now = clock_realtime_ns();

    /* On the second: "the clock runs on from what it was set to". */
    cmos->state.offset_ns = get_time(&cmos->state) * NS_PER_S - now;
    cmos->state.seen_s = guest_now_ns(cmos) / NS_PER_S;
}

static void write_b(struct cmos *cmos, uint8_t value)
{
    struct cmos_state *state = &cmos->state;
    bool was_setting = state->registers[REG_B] & B_SET;

    catch_up(cmos, guest_now_ns(cmos) / NS_PER_S);
    if ((value & B_SET) && !was_setting)
        put_time(state, guest_now_ns(cmos) / NS_PER_S);
    state->registers[REG_B] = value;
    if (was_setting && !(value & B_SET))
        set_clock(cmos);
    update_interrupt(cmos);
    pthread_cond_signal(&cmos->changed);
}

static void write_register(struct cmos *cmos, uint8_t index, uint8_t value)
{
    struct cmos_state *state = &cmos->state;
    bool setting = state->registers[REG_B] & B_SET;

    switch (index) {
    case REG_A:
        state->registers[REG_A] = value & (uint8_t)~A_UPDATE;
        return;
    case REG_B:
        write_b(cmos, value);
        return;
    case REG_C:
    case REG_D:
        return;
    default:
        break;
    }
    if (is_time(index) && !setting)
        put_time(state, guest_now_ns(cmos) / NS_PER_S);
    state->registers[index] = value;
    if (is_time(index) && !setting)
        set_clock(cmos);
}

static uint64_t cmos_read(void *opaque, uint64_t offset, unsigned size)
{
    struct cmos *cmos = opaque;
    uint8_t value;

    if (size != 1)
        return UINT64_MAX;
    pthread_mutex_lock(&cmos->lock);
    value = offset == 0 ? cmos->state.index : read_register(cmos, cmos->state.index);
    pthread_mutex_unlock(&cmos->lock);
    return value;
}

static void cmos_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct cmos *cmos = opaque;

    if (size != 1)
        return;
    pthread_mutex_lock(&cmos->lock);
    if (offset == 0)
        cmos->state.index = value & INDEX_MASK;
    else
        write_register(cmos, cmos->state.index, (uint8_t)value);
    pthread_mutex_unlock(&cmos->lock);
}

static const struct mmio_ops cmos_mmio_ops = {.read = cmos_read, .write = cmos_write};

/* ---- verbs ---- */

/* The battery keeps time and memory; interrupts are off. */
static void cmos_reset(struct device *device)
{
    struct cmos *cmos = from_device(device);

    pthread_mutex_lock(&cmos->lock);
    cmos->state.index = 0;
    cmos->state.registers[REG_B] &= (uint8_t) ~(B_ALARM | B_UPDATE);
    cmos->state.registers[REG_C] = 0;
    pthread_mutex_unlock(&cmos->lock);
}

static int cmos_start(struct device *device, struct ferry_error *err)
{
    struct cmos *cmos = from_device(device);

    pthread_mutex_lock(&cmos->lock);
    cmos->running = true;
    update_interrupt(cmos);
    if (cmos->state.registers[REG_B] & (B_ALARM | B_UPDATE))
        pthread_cond_signal(&cmos->changed);
    pthread_mutex_unlock(&cmos->lock);
    return 0;
}

static int cmos_quiesce(struct device *device, uint64_t deadline_ns, struct ferry_error *err)
{
    struct cmos *cmos = from_device(device);

    pthread_mutex_lock(&cmos->lock);
    cmos->running = false;
    pthread_mutex_unlock(&cmos->lock);
    return 0;
}

static void cmos_save(struct device *device, struct buffer *out)
{
    state_save(&mc146818_table, &from_device(device)->state, out);
}

static int cmos_load(struct device *device, uint32_t version, struct reader *in, struct ferry_error *err)
{
    struct cmos *cmos = from_device(device);
    int result;

    pthread_mutex_lock(&cmos->lock);
    result = state_load(&mc146818_table, device->name, version, &cmos->state, in, err);
    pthread_mutex_unlock(&cmos->lock);
    return result;
}

static void cmos_destroy(struct device *device)
{
    struct cmos *cmos = from_device(device);

    pthread_mutex_lock(&cmos->lock);
    cmos->ending = true;
    pthread_cond_signal(&cmos->changed);
    pthread_mutex_unlock(&cmos->lock);
    thread_join(&cmos->thread);
    pthread_cond_destroy(&cmos->changed);
    pthread_mutex_destroy(&cmos->lock);
    free(cmos);
}

static const struct device_ops cmos_ops = {
    .reset = cmos_reset,
    .start = cmos_start,
    .quiesce = cmos_quiesce,
    .save = cmos_save,
    .load = cmos_load,
    .destroy = cmos_destroy,
};

int mc146818_create(struct device **out, const struct device_env *env, unsigned index,
                    struct ferry_error *err)
{
    struct cmos *cmos = calloc(1, sizeof(*cmos));
    int result;

    if (!cmos)
        return error_set(err, -ENOMEM, "out of memory while adding cmos%u", index);
    cmos->device.ops = &cmos_ops;
    cmos->device.state = &mc146818_table;
    snprintf(cmos->device.name, sizeof(cmos->device.name), "cmos%u", index);
    cmos->env = *env;
    cmos->state.registers[REG_A] = A_32768_HZ;
    cmos->state.registers[REG_B] = B_24_HOURS;
    cmos->state.seen_s = guest_now_ns(cmos) / NS_PER_S;
    pthread_mutex_init(&cmos->lock, NULL);
    thread_cond_init(&cmos->changed);
    result = thread_start(&cmos->thread, THREAD_IO, cmos->device.name, second_main, cmos, err);
    if (result < 0) { /* nothing to join */
        pthread_cond_destroy(&cmos->changed);
        pthread_mutex_destroy(&cmos->lock);
        free(cmos);
        return result;
    }
    result =
        mmio_bus_add(env->bus, cmos->device.name, env->mmio_addr, MC146818_PORTS, &cmos_mmio_ops, cmos, err);
    if (result < 0) {
        cmos_destroy(&cmos->device);
        return result;
    }
    *out = &cmos->device;
    return 0;
}
