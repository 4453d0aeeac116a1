/*
 * What is saved of the CPU: sections "hart0" and on, "plic" and "clock".
 *
 * A hart's section is exact at an instruction boundary. LR/SC reservations are not saved (a store-conditional
 * may always fail), nor is what follows from other state: the timer interrupt from stimecmp, the external one
 * from the PLIC.
 */
#include "machine/riscv64/fpu.h"
#include "machine/riscv64/hart.h"
#include "machine/tables.h"

#include "base/error.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct hart_image {
    uint64_t pc, x[32], f[32], retired;
    uint8_t privilege, frm, fflags, hsm;
    uint64_t sstatus, sie, sip, stvec, sscratch, sepc, scause, stval, satp, stimecmp;
    uint32_t scounteren, senvcfg;
    uint64_t start_addr, start_argument;
};

static int hart_validate(const void *object, struct ferry_error *err)
{
    const struct hart_image *image = object;
    uint64_t mode = SATP_MODE(image->satp);

    if (image->pc & 1)
        return error_set(err, -EINVAL, "pc: 0x%llx is odd", (unsigned long long)image->pc);
    if (image->x[0])
        return error_set(err, -EINVAL, "x: register 0 is not zero");
    if (image->sstatus & ~SSTATUS_WRITABLE)
        return error_set(err, -EINVAL, "sstatus: 0x%llx has bits this CPU does not have",
                         (unsigned long long)image->sstatus);
    if ((image->sie & ~INTERRUPT_ALL) || (image->sip & ~INTERRUPT_ALL))
        return error_set(err, -EINVAL, "sie, sip: interrupts this CPU does not have");
    if (image->stvec & 2)
        return error_set(err, -EINVAL, "stvec: 0x%llx has a reserved mode", (unsigned long long)image->stvec);
    if (image->sepc & 1)
        return error_set(err, -EINVAL, "sepc: 0x%llx is odd", (unsigned long long)image->sepc);
    if ((image->satp & ~SATP_WRITABLE) ||
        (mode != SATP_MODE_BARE && mode != SATP_MODE_SV39 && mode != SATP_MODE_SV48))
        return error_set(err, -EINVAL, "satp: 0x%llx is neither off nor Sv39 nor Sv48",
                         (unsigned long long)image->satp);
    if (image->start_addr & 1)
        return error_set(err, -EINVAL, "start_addr: 0x%llx is odd", (unsigned long long)image->start_addr);
    return 0;
}

static const struct state_field hart_fields[] = {
    STATE_FIELD(struct hart_image, pc, STATE_U64),
    STATE_ARRAY(struct hart_image, x, STATE_U64),
    STATE_ARRAY(struct hart_image, f, STATE_U64),
    STATE_FIELD(struct hart_image, retired, STATE_U64),
    STATE_FIELD(struct hart_image, privilege, STATE_U8, .max = PRIVILEGE_SUPERVISOR),
    STATE_FIELD(struct hart_image, frm, STATE_U8, .max = 7),
    STATE_FIELD(struct hart_image, fflags, STATE_U8, .max = FFLAGS),
    STATE_FIELD(struct hart_image, hsm, STATE_U8, .max = HSM_START_PENDING),
    STATE_FIELD(struct hart_image, sstatus, STATE_U64),
    STATE_FIELD(struct hart_image, sie, STATE_U64),
    STATE_FIELD(struct hart_image, sip, STATE_U64),
    STATE_FIELD(struct hart_image, stvec, STATE_U64),
    STATE_FIELD(struct hart_image, sscratch, STATE_U64),
    STATE_FIELD(struct hart_image, sepc, STATE_U64),
    STATE_FIELD(struct hart_image, scause, STATE_U64),
    STATE_FIELD(struct hart_image, stval, STATE_U64),
    STATE_FIELD(struct hart_image, satp, STATE_U64),
    STATE_FIELD(struct hart_image, stimecmp, STATE_U64),
    STATE_FIELD(struct hart_image, scounteren, STATE_U32, .max = 7),
    STATE_FIELD(struct hart_image, senvcfg, STATE_U32, .max = 1),
    STATE_FIELD(struct hart_image, start_addr, STATE_U64),
    STATE_FIELD(struct hart_image, start_argument, STATE_U64),
};

static const struct state_table hart_state = {
    .name = "hart",
    .version = 1,
    .fields = hart_fields,
    .field_count = ARRAY_SIZE(hart_fields),
    .object_size = sizeof(struct hart_image),
    .validate = hart_validate,
};

struct clock_image {
    uint64_t nanoseconds;
};

static const struct state_field clock_fields[] = {
    /* Two centuries: sums with it do not overflow. */
    STATE_FIELD(struct clock_image, nanoseconds, STATE_U64, .max = UINT64_MAX / 4),
};

static const struct state_table clock_state = {
    .name = "clock",
    .version = 1,
    .fields = clock_fields,
    .field_count = ARRAY_SIZE(clock_fields),
    .object_size = sizeof(struct clock_image),
};

const struct state_table *soft_state_table(const char *kind)
{
    static const struct state_table *const tables[] = {&hart_state, &plic_state, &clock_state};

    for (size_t i = 0; i < ARRAY_SIZE(tables); i++) {
        if (strcmp(tables[i]->name, kind) == 0)
            return tables[i];
    }
    return NULL;
}

static void hart_to_image(struct hart *hart, struct hart_image *image)
{
    *image = (struct hart_image){
        .pc = hart->pc,
        .retired = hart->retired,
        .privilege = hart->privilege,
        .frm = hart->frm,
        .fflags = hart->fflags,
        .hsm = hart->hsm,
        .sstatus = hart->sstatus,
        .sie = hart->sie,
        .sip = __atomic_load_n(&hart->sip, __ATOMIC_ACQUIRE),
        .stvec = hart->stvec,
        .sscratch = hart->sscratch,
        .sepc = hart->sepc,
        .scause = hart->scause,
        .stval = hart->stval,
        .satp = hart->satp,
        .stimecmp = hart->stimecmp,
        .scounteren = hart->scounteren,
        .senvcfg = hart->senvcfg,
        .start_addr = hart->start_addr,
        .start_argument = hart->start_argument,
    };
    memcpy(image->x, hart->x, sizeof(image->x));
    memcpy(image->f, hart->f, sizeof(image->f));
}

static void hart_from_image(struct hart *hart, const struct hart_image *image)
{
    uint64_t external = __atomic_load_n(&hart->sip, __ATOMIC_ACQUIRE) & INTERRUPT_EXTERNAL;

    memcpy(hart->x, image->x, sizeof(image->x));
    memcpy(hart->f, image->f, sizeof(image->f));
    hart->pc = image->pc;
    hart->retired = image->retired;
    hart->privilege = image->privilege;
    hart->frm = image->frm;
    hart->fflags = image->fflags;
    hart->hsm = image->hsm;
    hart->sstatus = image->sstatus;
    hart->sie = image->sie;
    __atomic_store_n(&hart->sip, external | (image->sip & INTERRUPT_SOFTWARE), __ATOMIC_RELEASE);
    hart->stvec = image->stvec;
    hart->sscratch = image->sscratch;
    hart->sepc = image->sepc;
    hart->scause = image->scause;
    hart->stval = image->stval;
    hart->satp = image->satp;
    hart->stimecmp = image->stimecmp;
    hart->scounteren = image->scounteren;
    hart->senvcfg = image->senvcfg;
    hart->start_addr = image->start_addr;
    hart->start_argument = image->start_argument;
    hart->reservation = NULL;
    fpu_update_blocked(hart);
    mmu_drop_all(hart);
    block_fence(hart);
}

static struct soft *soft_of(struct accel *accel)
{
    return (struct soft *)(void *)((char *)accel - offsetof(struct soft, accel));
}

/* Sections by index: harts, then the PLIC, then the clock. */
void soft_sections(struct accel *accel, struct accel_section *sections, size_t *count)
{
    struct soft *soft = soft_of(accel);
    size_t room = *count, used = 0;

    for (unsigned i = 0; i < soft->hart_count + 2 && used < room; i++, used++) {
        struct accel_section *section = &sections[used];

        *section = (struct accel_section){.index = i, .table = &hart_state};
        if (i < soft->hart_count) {
            snprintf(section->name, sizeof(section->name), "hart%u", i);
        } else if (i == soft->hart_count) {
            snprintf(section->name, sizeof(section->name), "plic");
            section->table = &plic_state;
        } else {
            snprintf(section->name, sizeof(section->name), "clock");
            section->table = &clock_state;
        }
    }
    *count = used;
}

int soft_section_save(struct accel *accel, unsigned index, struct buffer *out, struct ferry_error *err)
{
    struct soft *soft = soft_of(accel);

    if (index < soft->hart_count) {
        struct hart_image image;

        hart_to_image(soft->harts[index], &image);
        state_save(&hart_state, &image, out);
    } else if (index == soft->hart_count) {
        pthread_mutex_lock(&soft->plic.lock);
        state_save(&plic_state, &soft->plic, out);
        pthread_mutex_unlock(&soft->plic.lock);
    } else if (index == soft->hart_count + 1) {
        struct clock_image image = {.nanoseconds = soft_clock_ns(soft)};

        state_save(&clock_state, &image, out);
    } else {
        return error_set(err, -EINVAL, "the built-in CPU has no state section %u", index);
    }
    return buffer_failed(out) ? error_set(err, -ENOMEM, "out of memory while saving the CPU") : 0;
}

static int load_hart(struct soft *soft, unsigned index, uint32_t version, struct reader *in,
                     struct ferry_error *err)
{
    struct hart_image image;
    char name[32];
    int result;

    snprintf(name, sizeof(name), "hart%u", index);
    hart_to_image(soft->harts[index], &image); /* fields a later version adds keep their values */
    result = state_load(&hart_state, name, version, &image, in, err);
    if (result)
        return result;
    hart_from_image(soft->harts[index], &image);
    return 0;
}

static int load_plic(struct soft *soft, uint32_t version, struct reader *in, struct ferry_error *err)
{
    int result;

    pthread_mutex_lock(&soft->plic.lock);
    result = state_load(&plic_state, "plic", version, &soft->plic, in, err);
    pthread_mutex_unlock(&soft->plic.lock);
    if (!result)
        plic_refresh(&soft->plic);
    return result;
}

int soft_section_load(struct accel *accel, unsigned index, uint32_t version, struct reader *in,
                      struct ferry_error *err)
{
    struct soft *soft = soft_of(accel);
    struct clock_image image = {0};
    int result;

    if (index < soft->hart_count)
        return load_hart(soft, index, version, in, err);
    if (index == soft->hart_count)
        return load_plic(soft, version, in, err);
    if (index != soft->hart_count + 1)
        return error_set(err, -EINVAL, "the built-in CPU has no state section %u", index);
    result = state_load(&clock_state, "clock", version, &image, in, err);
    if (!result)
        soft_clock_set(soft, image.nanoseconds);
    return result;
}
