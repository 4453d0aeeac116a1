#include "fake_accel.h"

#include "base/bitmap.h"
#include "base/error.h"
#include "device/goldfish_rtc.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct fake_hart {
    uint64_t counter;
};

struct fake_accel {
    struct accel accel;
    struct accel_config config;
    struct fake_hart harts[ACCEL_VCPUS_MAX];
    bool kicked[ACCEL_VCPUS_MAX]; /* atomic */
};

struct fake_control fake;

static const struct state_field hart_fields[] = {
    STATE_FIELD(struct fake_hart, counter, STATE_U64, .max = UINT64_C(1) << 62),
};
static const struct state_table hart_state = {"fake-hart", 1, hart_fields, 1, sizeof(struct fake_hart), NULL};

static int fake_create(struct accel **out, const struct accel_config *config, struct ferry_error *err)
{
    struct fake_accel *accel = calloc(1, sizeof(*accel));

    accel->accel.ops = board_fake.accel;
    accel->config = *config;
    memset(&fake, 0, sizeof(fake));
    *out = &accel->accel;
    return 0;
}

static void fake_destroy(struct accel *accel)
{
    free(accel);
}

static int fake_reset(struct accel *accel, const struct accel_boot *boot, struct ferry_error *err)
{
    memset(((struct fake_accel *)accel)->harts, 0, sizeof(((struct fake_accel *)accel)->harts));
    fake.boot = *boot;
    fake.resets++;
    return 0;
}

/* What was reported, if anything: the vCPU is to leave then. */
static int fake_report(struct fake_accel *accel, unsigned index)
{
    int event = index == __atomic_load_n(&fake.event_vcpu, __ATOMIC_ACQUIRE)
                    ? __atomic_exchange_n(&fake.event, 0, __ATOMIC_ACQ_REL)
                    : 0;

    if (event > 0)
        accel->config.platform->event(accel->config.platform->opaque, (enum accel_event)event, "fake");
    return event;
}

static enum accel_exit fake_run(struct accel *base, unsigned index, struct ferry_error *err)
{
    struct fake_accel *accel = (struct fake_accel *)base;
    const struct memory_region *ram = memory_region(accel->config.memory, 0);

    __atomic_fetch_add(&fake.inside, 1, __ATOMIC_ACQ_REL);
    while (!__atomic_exchange_n(&accel->kicked[index], false, __ATOMIC_ACQ_REL)) {
        int event;

        accel->harts[index].counter++;
        if (!memory_write(accel->config.memory, ram->guest_addr + index * MEMORY_PAGE_SIZE,
                          &accel->harts[index].counter, 8))
            abort();
        __atomic_fetch_add(&fake.steps[index], 1, __ATOMIC_ACQ_REL);
        event = fake_report(accel, index);
        if (event < 0) {
            __atomic_fetch_sub(&fake.inside, 1, __ATOMIC_ACQ_REL);
            error_set(err, -EIO, "the fake broke");
            return ACCEL_EXIT_ERROR;
        }
        if (event > 0)
            break;
        sched_yield(); /* there may be fewer CPUs than vCPUs */
    }
    __atomic_fetch_sub(&fake.inside, 1, __ATOMIC_ACQ_REL);
    return ACCEL_EXIT_KICKED;
}

static void fake_kick(struct accel *accel, unsigned index)
{
    __atomic_store_n(&((struct fake_accel *)accel)->kicked[index], true, __ATOMIC_RELEASE);
}

static void fake_irq_set(struct accel *accel, unsigned line, bool level)
{
}

static void fake_sections(struct accel *accel, struct accel_section *sections, size_t *count)
{
    unsigned vcpus = ((struct fake_accel *)accel)->config.vcpus;

    for (unsigned i = 0; i < vcpus && i < *count; i++) {
        snprintf(sections[i].name, sizeof(sections[i].name), "hart%u", i);
        sections[i].table = &hart_state;
        sections[i].index = i;
    }
    *count = vcpus;
}

static int fake_save(struct accel *accel, unsigned index, struct buffer *out, struct ferry_error *err)
{
    state_save(&hart_state, &((struct fake_accel *)accel)->harts[index], out);
    return 0;
}

static int fake_load(struct accel *accel, unsigned index, uint32_t version, struct reader *in,
                     struct ferry_error *err)
{
    char name[16];

    snprintf(name, sizeof(name), "hart%u", index);
    return state_load(&hart_state, name, version, &((struct fake_accel *)accel)->harts[index], in, err);
}

static void fake_clock_advance(struct accel *accel, uint64_t nanoseconds)
{
    fake.clock_ns += nanoseconds;
}

static void fake_clock_stop(struct accel *accel)
{
    fake.clock_running = false;
}

static void fake_clock_start(struct accel *accel)
{
    fake.clock_running = true;
}

static int fake_dirty_start(struct accel *accel, struct ferry_error *err)
{
    memory_set_tracking(((struct fake_accel *)accel)->config.memory, true);
    return 0;
}

static int fake_dirty_fetch(struct accel *accel, size_t region, uint64_t *bitmap, struct ferry_error *err)
{
    const struct memory_region *ram = memory_region(((struct fake_accel *)accel)->config.memory, region);

    bitmap_take_words(ram->dirty, bitmap, bitmap_words(ram->size / MEMORY_PAGE_SIZE));
    return 0;
}

static void fake_dirty_stop(struct accel *accel)
{
    memory_set_tracking(((struct fake_accel *)accel)->config.memory, false);
}

static void fake_throttle(struct accel *accel, unsigned percent)
{
}

static const struct accel_ops accel_fake = {
    .name = "fake",
    .machine = "riscv64",
    .create = fake_create,
    .destroy = fake_destroy,
    .reset = fake_reset,
    .vcpu_run = fake_run,
    .vcpu_kick = fake_kick,
    .irq_set = fake_irq_set,
    .sections = fake_sections,
    .section_save = fake_save,
    .section_load = fake_load,
    .clock_advance = fake_clock_advance,
    .clock_stop = fake_clock_stop,
    .clock_start = fake_clock_start,
    .dirty_start = fake_dirty_start,
    .dirty_fetch = fake_dirty_fetch,
    .dirty_stop = fake_dirty_stop,
    .throttle = fake_throttle,
};

static int fake_add_memory(struct memory *memory, uint64_t size, struct ferry_error *err)
{
    return board_riscv64.add_memory(memory, size, err);
}

static struct board_place fake_place(enum board_device device, unsigned index)
{
    return board_riscv64.place(device, index);
}

static int fake_load_guest(const struct machine_config *config, struct memory *memory,
                           struct accel_boot *boot, struct ferry_error *err)
{
    return board_riscv64.load(config, memory, boot, err);
}

const struct board board_fake = {
    .machine = "riscv64",
    .accel = &accel_fake,
    .add_memory = fake_add_memory,
    .place = fake_place,
    .create_rtc = goldfish_rtc_create,
    .load = fake_load_guest,
};
