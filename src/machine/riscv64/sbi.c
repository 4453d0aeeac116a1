/*
 * The firmware's calls: the RISC-V Supervisor Binary Interface, version 2.0. Ferry answers them itself; there
 * is no M-mode. Extensions: base (chapter 4), legacy (5), timer (6), IPI (7), remote fences (8), hart state
 * (9), system reset (10), debug console (12).
 */
#include "machine/riscv64/hart.h"

#include <string.h>

enum sbi_extension {
    SBI_LEGACY_SET_TIMER = 0x00,
    SBI_LEGACY_PUTCHAR = 0x01,
    SBI_LEGACY_GETCHAR = 0x02,
    SBI_LEGACY_SHUTDOWN = 0x08,
    SBI_BASE = 0x10,
    SBI_TIME = 0x54494d45,
    SBI_IPI = 0x735049,
    SBI_RFENCE = 0x52464e43,
    SBI_HSM = 0x48534d,
    SBI_RESET = 0x53525354,
    SBI_CONSOLE = 0x4442434e,
};

enum sbi_error {
    SBI_SUCCESS = 0,
    SBI_FAILED = -1,
    SBI_NOT_SUPPORTED = -2,
    SBI_INVALID_PARAM = -3,
    SBI_INVALID_ADDRESS = -5,
    SBI_ALREADY_AVAILABLE = -6,
};

#define SBI_VERSION         0x02000000 /* major << 24 | minor */
#define SBI_IMPLEMENTATION  0x46525259 /* "FRRY"; none is registered */
#define SBI_CONSOLE_AT_ONCE 1024       /* bytes a call moves at most; the guest asks again for the rest */

enum { A0 = 10, A1, A2, A3, A4, A5, A6, A7 };

struct sbi_result {
    int64_t error;
    uint64_t value;
};

static struct sbi_result result_error(enum sbi_error error)
{
    return (struct sbi_result){.error = error};
}

static struct sbi_result result_value(uint64_t value)
{
    return (struct sbi_result){.value = value};
}

static bool is_known(uint64_t extension)
{
    static const uint64_t known[] = {SBI_LEGACY_SET_TIMER,
                                     SBI_LEGACY_PUTCHAR,
                                     SBI_LEGACY_GETCHAR,
                                     SBI_LEGACY_SHUTDOWN,
                                     SBI_BASE,
                                     SBI_TIME,
                                     SBI_IPI,
                                     SBI_RFENCE,
                                     SBI_HSM,
                                     SBI_RESET,
                                     SBI_CONSOLE};

    for (size_t i = 0; i < ARRAY_SIZE(known); i++) {
        if (known[i] == extension)
            return true;
    }
    return false;
}

static struct sbi_result call_base(struct hart *hart)
{
    switch (hart->x[A6]) {
    case 0:
        return result_value(SBI_VERSION);
    case 1:
        return result_value(SBI_IMPLEMENTATION);
    case 2: /* implementation version */
        return result_value(1);
    case 3:
        return result_value(is_known(hart->x[A0]));
    case 4: /* mvendorid, marchid, mimpid: not a registered CPU */
    case 5:
    case 6:
        return result_value(0);
    }
    return result_error(SBI_NOT_SUPPORTED);
}

static void set_timer(struct hart *hart, uint64_t deadline)
{
    hart->stimecmp = deadline;
    hart_timer_update(hart);
    hart_post(hart, REQUEST_INTERRUPT);
}

/* The harts a mask and its base name (3.1). False when one of them does not exist. */
static bool select_harts(const struct hart *hart, uint64_t mask, uint64_t base, uint64_t *selected)
{
    uint64_t all = (UINT64_C(1) << hart->soft->hart_count) - 1;

    *selected = all;
    if (base == UINT64_MAX)
        return true;
    if (base >= 64 || (mask << base) >> base != mask)
        return false;
    *selected = mask << base;
    return (*selected & ~all) == 0;
}

static struct sbi_result call_ipi(struct hart *hart)
{
    uint64_t selected;

    if (hart->x[A6] != 0)
        return result_error(SBI_NOT_SUPPORTED);
    if (!select_harts(hart, hart->x[A0], hart->x[A1], &selected))
        return result_error(SBI_INVALID_PARAM);
    for (unsigned i = 0; i < hart->soft->hart_count; i++) {
        if (selected >> i & 1) {
            __atomic_or_fetch(&hart->soft->harts[i]->sip, INTERRUPT_SOFTWARE, __ATOMIC_SEQ_CST);
            hart_post(hart->soft->harts[i], REQUEST_INTERRUPT);
        }
    }
    return result_error(SBI_SUCCESS);
}

/*
 * Remote fences: done when the call returns. While this hart waits it does not count as running, so that two
 * harts that ask each other do not wait for ever. Address ranges are not looked at: everything is dropped.
 */
static struct sbi_result call_rfence(struct hart *hart)
{
    uint32_t request;
    uint64_t selected;

    switch (hart->x[A6]) {
    case 0:
        request = REQUEST_FENCE_I;
        break;
    case 1:
    case 2:
        request = REQUEST_DROP_TLB;
        break;
    default: /* hypervisor fences */
        return result_error(SBI_NOT_SUPPORTED);
    }
    if (!select_harts(hart, hart->x[A0], hart->x[A1], &selected))
        return result_error(SBI_INVALID_PARAM);
    if (selected >> hart->index & 1)
        hart_post(hart, request); /* served before the next instruction */
    selected &= ~(UINT64_C(1) << hart->index);
    if (!selected)
        return result_error(SBI_SUCCESS);
    hart_end(hart);
    for (unsigned i = 0; i < hart->soft->hart_count; i++) {
        if (selected >> i & 1)
            hart_post_and_wait(hart->soft->harts[i], request);
    }
    hart_begin(hart);
    return result_error(SBI_SUCCESS);
}

static struct sbi_result hart_start(struct hart *hart)
{
    uint64_t index = hart->x[A0], addr = hart->x[A1];
    struct hart *target;
    bool stopped;

    if (index >= hart->soft->hart_count)
        return result_error(SBI_INVALID_PARAM);
    if ((addr & 1) || !soft_ram_ptr(hart->soft, addr, 2, NULL))
        return result_error(SBI_INVALID_ADDRESS);
    target = hart->soft->harts[index];
    pthread_mutex_lock(&target->lock);
    stopped = target->hsm == HSM_STOPPED;
    if (stopped) {
        target->start_addr = addr;
        target->start_argument = hart->x[A2];
        __atomic_store_n(&target->hsm, HSM_START_PENDING, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&target->lock);
    if (!stopped)
        return result_error(SBI_ALREADY_AVAILABLE);
    hart_post(target, REQUEST_START);
    return result_error(SBI_SUCCESS);
}

static struct sbi_result hart_status(struct hart *hart)
{
    struct hart *target;
    uint64_t state;

    if (hart->x[A0] >= hart->soft->hart_count)
        return result_error(SBI_INVALID_PARAM);
    target = hart->soft->harts[hart->x[A0]];
    pthread_mutex_lock(&target->lock);
    state = target->hsm;
    pthread_mutex_unlock(&target->lock);
    return result_value(state);
}

static struct sbi_result call_hsm(struct hart *hart)
{
    switch (hart->x[A6]) {
    case 0:
        return hart_start(hart);
    case 1: /* stop */
        pthread_mutex_lock(&hart->lock);
        __atomic_store_n(&hart->hsm, HSM_STOPPED, __ATOMIC_RELEASE);
        pthread_mutex_unlock(&hart->lock);
        hart_post(hart, REQUEST_INTERRUPT); /* have it leave exec_run */
        return result_error(SBI_SUCCESS);
    case 2:
        return hart_status(hart);
    case 3: /* suspend: only the default retentive type, which is wfi by another name */
        if ((uint32_t)hart->x[A0] != 0)
            return result_error((uint32_t)hart->x[A0] == UINT32_C(0x80000000) ? SBI_NOT_SUPPORTED
                                                                              : SBI_INVALID_PARAM);
        hart_wait_interrupt(hart, false); /* its answer is not in a0 yet */
        return result_error(SBI_SUCCESS);
    }
    return result_error(SBI_NOT_SUPPORTED);
}

static struct sbi_result call_reset(struct hart *hart)
{
    uint32_t type = (uint32_t)hart->x[A0], reason = (uint32_t)hart->x[A1];

    if (hart->x[A6] != 0)
        return result_error(SBI_NOT_SUPPORTED);
    if (type > 2 || reason > 1)
        return result_error(SBI_INVALID_PARAM);
    if (reason == 1)
        soft_report(hart->soft, ACCEL_EVENT_CRASH, "the guest reset itself after a failure");
    else if (type == 0)
        soft_report(hart->soft, ACCEL_EVENT_POWER_OFF, "the guest switched itself off");
    else
        soft_report(hart->soft, ACCEL_EVENT_RESET, "the guest asked for a reboot");
    return result_error(SBI_SUCCESS);
}

static void console_put(struct hart *hart, const void *data, size_t size)
{
    const struct accel_platform *platform = &hart->soft->platform;

    if (platform->console_write)
        platform->console_write(platform->opaque, data, size);
}

static size_t console_get(struct hart *hart, void *data, size_t size)
{
    const struct accel_platform *platform = &hart->soft->platform;

    return platform->console_read ? platform->console_read(platform->opaque, data, size) : 0;
}

static struct sbi_result call_console(struct hart *hart)
{
    uint8_t bytes[SBI_CONSOLE_AT_ONCE];
    uint64_t count = hart->x[A0], addr = hart->x[A1];
    size_t size = count < sizeof(bytes) ? (size_t)count : sizeof(bytes);

    switch (hart->x[A6]) {
    case 0: /* write */
        if (hart->x[A2] || !memory_read(hart->soft->memory, addr, bytes, size))
            return result_error(SBI_INVALID_PARAM);
        console_put(hart, bytes, size);
        return result_value(size);
    case 1: /* read */
        if (hart->x[A2] || !soft_ram_ptr(hart->soft, addr, size, NULL))
            return result_error(SBI_INVALID_PARAM);
        size = console_get(hart, bytes, size);
        if (!memory_write(hart->soft->memory, addr, bytes, size))
            return result_error(SBI_FAILED);
        return result_value(size);
    case 2: /* write one byte */
        bytes[0] = (uint8_t)count;
        console_put(hart, bytes, 1);
        return result_error(SBI_SUCCESS);
    }
    return result_error(SBI_NOT_SUPPORTED);
}

/* Legacy calls answer in a0 alone and keep a1. */
static bool call_legacy(struct hart *hart)
{
    uint8_t byte = (uint8_t)hart->x[A0];

    switch (hart->x[A7]) {
    case SBI_LEGACY_SET_TIMER:
        set_timer(hart, hart->x[A0]);
        hart->x[A0] = 0;
        return true;
    case SBI_LEGACY_PUTCHAR:
        console_put(hart, &byte, 1);
        hart->x[A0] = 0;
        return true;
    case SBI_LEGACY_GETCHAR:
        hart->x[A0] = console_get(hart, &byte, 1) == 1 ? byte : UINT64_MAX;
        return true;
    case SBI_LEGACY_SHUTDOWN:
        soft_report(hart->soft, ACCEL_EVENT_POWER_OFF, "the guest switched itself off");
        hart->x[A0] = 0;
        return true;
    }
    return false;
}

void sbi_call(struct hart *hart)
{
    struct sbi_result result;

    if (call_legacy(hart))
        return;
    switch (hart->x[A7]) {
    case SBI_BASE:
        result = call_base(hart);
        break;
    case SBI_TIME:
        if (hart->x[A6] == 0) {
            set_timer(hart, hart->x[A0]);
            result = result_error(SBI_SUCCESS);
        } else {
            result = result_error(SBI_NOT_SUPPORTED);
        }
        break;
    case SBI_IPI:
        result = call_ipi(hart);
        break;
    case SBI_RFENCE:
        result = call_rfence(hart);
        break;
    case SBI_HSM:
        result = call_hsm(hart);
        break;
    case SBI_RESET:
        result = call_reset(hart);
        break;
    case SBI_CONSOLE:
        result = call_console(hart);
        break;
    default:
        result = result_error(SBI_NOT_SUPPORTED);
        break;
    }
    hart->x[A0] = (uint64_t)result.error;
    hart->x[A1] = result.value;
}
