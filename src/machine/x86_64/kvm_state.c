/*
 * What is saved of a VM on KVM: sections "cpuid", "vcpu0" and on, "irqchip", "pit", "clock" and "ports", in
 * this order.
 *
 * The tables name the fields of KVM's own structures one by one; what is meant by each is in the kernel's
 * documentation. All state that KVM gives is in them but for what follows from other state: the TSC is in
 * "tsc", as it was when the vCPU stopped; a PIT counter's time of loading is when it is loaded here.
 *
 * A vCPU is loaded in an order in which nothing is undone by what comes after it: special registers (which
 * say what mode the local APIC is in) before the APIC, the APIC before MSRs (which arm its timer), and what
 * is pending last.
 */
#include "machine/tables.h"
#include "machine/x86_64/kvm_accel.h"

#include "base/error.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XSAVE_SIZE_MAX   (1 << 16)
#define VCPU_EVENT_FLAGS 0x3f
#define MP_STATE_MAX     4 /* KVM_MP_STATE_SIPI_RECEIVED */
#define KHZ_MAX          100000000
/* What KVM itself takes for the same frequency (tsc_tolerance_ppm). */
#define KHZ_TOLERANCE(khz) ((khz) / 4000)

/* ---- tables ---- */

struct cpuid_image {
    struct buffer entries;
};

struct vcpu_image {
    struct kvm_regs regs;
    struct kvm_sregs2 sregs;
    struct buffer xsave;
    struct kvm_xcrs xcrs;
    struct kvm_lapic_state lapic;
    struct buffer msrs;
    struct kvm_mp_state mp;
    struct kvm_vcpu_events events;
    struct kvm_debugregs debug;
    uint64_t tsc, tsc_deadline;
};

struct irqchip_image {
    struct kvm_pic_state pic[2];
    struct kvm_ioapic_state ioapic;
};

struct clock_image {
    uint64_t kvmclock_ns;
    uint32_t tsc_khz;
};

#define VCPU(member, kind, ...) STATE_FIELD(struct vcpu_image, member, kind, ##__VA_ARGS__)

#define SEGMENT(name)                                                                                        \
    VCPU(sregs.name.base, STATE_U64), VCPU(sregs.name.limit, STATE_U32),                                     \
        VCPU(sregs.name.selector, STATE_U16), VCPU(sregs.name.type, STATE_U8, .max = 15),                    \
        VCPU(sregs.name.present, STATE_U8, .max = 1), VCPU(sregs.name.dpl, STATE_U8, .max = 3),              \
        VCPU(sregs.name.db, STATE_U8, .max = 1), VCPU(sregs.name.s, STATE_U8, .max = 1),                     \
        VCPU(sregs.name.l, STATE_U8, .max = 1), VCPU(sregs.name.g, STATE_U8, .max = 1),                      \
        VCPU(sregs.name.avl, STATE_U8, .max = 1), VCPU(sregs.name.unusable, STATE_U8, .max = 1)

static const struct state_field vcpu_fields[] = {
    VCPU(regs.rax, STATE_U64),
    VCPU(regs.rbx, STATE_U64),
    VCPU(regs.rcx, STATE_U64),
    VCPU(regs.rdx, STATE_U64),
    VCPU(regs.rsi, STATE_U64),
    VCPU(regs.rdi, STATE_U64),
    VCPU(regs.rsp, STATE_U64),
    VCPU(regs.rbp, STATE_U64),
    VCPU(regs.r8, STATE_U64),
    VCPU(regs.r9, STATE_U64),
    VCPU(regs.r10, STATE_U64),
    VCPU(regs.r11, STATE_U64),
    VCPU(regs.r12, STATE_U64),
    VCPU(regs.r13, STATE_U64),
    VCPU(regs.r14, STATE_U64),
    VCPU(regs.r15, STATE_U64),
    VCPU(regs.rip, STATE_U64),
    VCPU(regs.rflags, STATE_U64),
    SEGMENT(cs),
    SEGMENT(ds),
    SEGMENT(es),
    SEGMENT(fs),
    SEGMENT(gs),
    SEGMENT(ss),
    SEGMENT(tr),
    SEGMENT(ldt),
    VCPU(sregs.gdt.base, STATE_U64),
    VCPU(sregs.gdt.limit, STATE_U16),
    VCPU(sregs.idt.base, STATE_U64),
    VCPU(sregs.idt.limit, STATE_U16),
    VCPU(sregs.cr0, STATE_U64),
    VCPU(sregs.cr2, STATE_U64),
    VCPU(sregs.cr3, STATE_U64),
    VCPU(sregs.cr4, STATE_U64),
    VCPU(sregs.cr8, STATE_U64, .max = 15),
    VCPU(sregs.efer, STATE_U64),
    VCPU(sregs.apic_base, STATE_U64),
    VCPU(sregs.flags, STATE_U64, .max = KVM_SREGS2_FLAGS_PDPTRS_VALID),
    VCPU(sregs.pdptrs, STATE_U64, .count = 4),
    VCPU(xsave, STATE_BUFFER, .max = XSAVE_SIZE_MAX),
    VCPU(xcrs.nr_xcrs, STATE_U32, .max = 1),
    VCPU(xcrs.xcrs[0].xcr, STATE_U32),
    VCPU(xcrs.xcrs[0].value, STATE_U64),
    VCPU(lapic.regs, STATE_BYTES, .count = KVM_APIC_REG_SIZE),
    VCPU(msrs, STATE_BUFFER, .max = KVM_MSRS_MAX * KVM_SAVED_MSR_SIZE),
    VCPU(mp.mp_state, STATE_U32, .max = MP_STATE_MAX),
    VCPU(events.flags, STATE_U32, .max = VCPU_EVENT_FLAGS),
    VCPU(events.exception.injected, STATE_U8, .max = 1),
    VCPU(events.exception.nr, STATE_U8),
    VCPU(events.exception.has_error_code, STATE_U8, .max = 1),
    VCPU(events.exception.pending, STATE_U8, .max = 1),
    VCPU(events.exception.error_code, STATE_U32),
    VCPU(events.exception_has_payload, STATE_U8, .max = 1),
    VCPU(events.exception_payload, STATE_U64),
    VCPU(events.interrupt.injected, STATE_U8, .max = 1),
    VCPU(events.interrupt.nr, STATE_U8),
    VCPU(events.interrupt.soft, STATE_U8, .max = 1),
    VCPU(events.interrupt.shadow, STATE_U8, .max = 3),
    VCPU(events.nmi.injected, STATE_U8, .max = 1),
    VCPU(events.nmi.pending, STATE_U8),
    VCPU(events.nmi.masked, STATE_U8, .max = 1),
    VCPU(events.sipi_vector, STATE_U32),
    VCPU(events.smi.smm, STATE_U8, .max = 1),
    VCPU(events.smi.pending, STATE_U8, .max = 1),
    VCPU(events.smi.smm_inside_nmi, STATE_U8, .max = 1),
    VCPU(events.smi.latched_init, STATE_U8, .max = 1),
    VCPU(events.triple_fault.pending, STATE_U8, .max = 1),
    VCPU(debug.db, STATE_U64, .count = 4),
    VCPU(debug.dr6, STATE_U64),
    VCPU(debug.dr7, STATE_U64),
    VCPU(tsc, STATE_U64),
    VCPU(tsc_deadline, STATE_U64),
};

static const struct state_table vcpu_state = {
    .name = "vcpu",
    .version = 1,
    .fields = vcpu_fields,
    .field_count = ARRAY_SIZE(vcpu_fields),
    .object_size = sizeof(struct vcpu_image),
};

static const struct state_field cpuid_fields[] = {
    STATE_FIELD(struct cpuid_image, entries, STATE_BUFFER, .max = 28 * KVM_CPUID_ENTRIES_MAX),
};

static const struct state_table cpuid_state = {
    .name = "cpuid",
    .version = 1,
    .fields = cpuid_fields,
    .field_count = ARRAY_SIZE(cpuid_fields),
    .object_size = sizeof(struct cpuid_image),
};

#define CHIP(member, kind, ...) STATE_FIELD(struct irqchip_image, member, kind, ##__VA_ARGS__)
#define PIC(n)                                                                                               \
    CHIP(pic[n].last_irr, STATE_U8), CHIP(pic[n].irr, STATE_U8), CHIP(pic[n].imr, STATE_U8),                 \
        CHIP(pic[n].isr, STATE_U8), CHIP(pic[n].priority_add, STATE_U8, .max = 7),                           \
        CHIP(pic[n].irq_base, STATE_U8), CHIP(pic[n].read_reg_select, STATE_U8),                             \
        CHIP(pic[n].poll, STATE_U8), CHIP(pic[n].special_mask, STATE_U8), CHIP(pic[n].init_state, STATE_U8), \
        CHIP(pic[n].auto_eoi, STATE_U8), CHIP(pic[n].rotate_on_auto_eoi, STATE_U8),                          \
        CHIP(pic[n].special_fully_nested_mode, STATE_U8), CHIP(pic[n].init4, STATE_U8),                      \
        CHIP(pic[n].elcr, STATE_U8), CHIP(pic[n].elcr_mask, STATE_U8)

static const struct state_field irqchip_fields[] = {
    PIC(0),
    PIC(1),
    CHIP(ioapic.base_address, STATE_U64),
    CHIP(ioapic.ioregsel, STATE_U32),
    CHIP(ioapic.id, STATE_U32),
    CHIP(ioapic.irr, STATE_U32),
    CHIP(ioapic.redirtbl, STATE_U64, .count = KVM_IOAPIC_NUM_PINS),
};

static const struct state_table irqchip_state = {
    .name = "irqchip",
    .version = 1,
    .fields = irqchip_fields,
    .field_count = ARRAY_SIZE(irqchip_fields),
    .object_size = sizeof(struct irqchip_image),
};

#define PIT(member, kind, ...) STATE_FIELD(struct kvm_pit_state2, member, kind, ##__VA_ARGS__)
#define PIT_CHANNEL(n)                                                                                       \
    PIT(channels[n].count, STATE_U32, .max = 0x10000), PIT(channels[n].latched_count, STATE_U16),            \
        PIT(channels[n].count_latched, STATE_U8), PIT(channels[n].status_latched, STATE_U8),                 \
        PIT(channels[n].status, STATE_U8), PIT(channels[n].read_state, STATE_U8),                            \
        PIT(channels[n].write_state, STATE_U8), PIT(channels[n].write_latch, STATE_U8),                      \
        PIT(channels[n].rw_mode, STATE_U8, .max = 4), PIT(channels[n].mode, STATE_U8),                       \
        PIT(channels[n].bcd, STATE_U8), PIT(channels[n].gate, STATE_U8)

static const struct state_field pit_fields[] = {
    PIT_CHANNEL(0),
    PIT_CHANNEL(1),
    PIT_CHANNEL(2),
    PIT(flags, STATE_U32, .max = 3),
};

static const struct state_table pit_state = {
    .name = "pit",
    .version = 1,
    .fields = pit_fields,
    .field_count = ARRAY_SIZE(pit_fields),
    .object_size = sizeof(struct kvm_pit_state2),
};

static const struct state_field clock_fields[] = {
    STATE_FIELD(struct clock_image, kvmclock_ns, STATE_U64, .max = INT64_MAX),
    STATE_FIELD(struct clock_image, tsc_khz, STATE_U32, .max = KHZ_MAX),
};

static const struct state_table clock_state = {
    .name = "clock",
    .version = 1,
    .fields = clock_fields,
    .field_count = ARRAY_SIZE(clock_fields),
    .object_size = sizeof(struct clock_image),
};

/* ---- vCPUs ---- */

/* One of KVM's calls that move a part of the state. */
struct part {
    unsigned long request;
    void *data;
    const char *name;
};

static int move_parts(int fd, const struct part *parts, size_t count, const char *verb,
                      struct ferry_error *err)
{
    for (size_t i = 0; i < count; i++) {
        int result = kvm_ioctl(fd, parts[i].request, parts[i].data);

        if (result < 0)
            return error_set_errno(err, result, "KVM does not %s %s", verb, parts[i].name);
    }
    return 0;
}

static int save_xsave(const struct kvm_cpu *cpu, struct buffer *out, struct ferry_error *err)
{
    size_t size = cpu->kvm->xsave_size;
    int result;

    if (!buffer_reserve(out, size))
        return error_set(err, -ENOMEM, "out of memory for a vCPU's registers");
    memset(out->data, 0, size);
    result = kvm_ioctl(cpu->fd, size > sizeof(struct kvm_xsave) ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, out->data);
    out->size = size;
    return result < 0 ? error_set_errno(err, result, "KVM does not give extended registers") : 0;
}

/* KVM reads as much as its XSAVE2 has here; what a smaller one of another host lacks is in its initial state.
 */
static int load_xsave(const struct kvm_cpu *cpu, const struct buffer *saved, struct ferry_error *err)
{
    size_t size = cpu->kvm->xsave_size;
    uint8_t *area;
    int result;

    if (saved->size < sizeof(struct kvm_xsave) || saved->size > size)
        return error_set(err, -EOPNOTSUPP, "vcpu%u: xsave: %zu bytes; this host's CPU has from %zu to %zu",
                         cpu->index, saved->size, sizeof(struct kvm_xsave), size);
    area = calloc(1, size);
    if (!area)
        return error_set(err, -ENOMEM, "out of memory for a vCPU's registers");
    memcpy(area, saved->data, saved->size);
    result = kvm_ioctl(cpu->fd, KVM_SET_XSAVE, area);
    free(area);
    return result < 0
               ? error_set_errno(err, result, "vcpu%u: KVM does not take extended registers", cpu->index)
               : 0;
}

static void image_free(struct vcpu_image *image)
{
    buffer_free(&image->xsave);
    buffer_free(&image->msrs);
}

static int vcpu_to_image(const struct kvm_cpu *cpu, struct vcpu_image *image, struct ferry_error *err)
{
    const struct part parts[] = {
        /* First: it may have KVM finish what changes other state (INIT and SIPI that are pending). */
        {KVM_GET_MP_STATE, &image->mp, "the MP state"},
        {KVM_GET_REGS, &image->regs, "registers"},
        {KVM_GET_SREGS2, &image->sregs, "special registers"},
        {KVM_GET_XCRS, &image->xcrs, "XCRs"},
        {KVM_GET_LAPIC, &image->lapic, "the local APIC"},
        {KVM_GET_VCPU_EVENTS, &image->events, "events"},
        {KVM_GET_DEBUGREGS, &image->debug, "debug registers"},
    };
    const struct kvm_clock *clock = &cpu->kvm->clock;
    int result;

    memset(image, 0, sizeof(*image));
    result = move_parts(cpu->fd, parts, ARRAY_SIZE(parts), "give", err);
    if (!result)
        result = save_xsave(cpu, &image->xsave, err);
    if (!result)
        result = kvm_msrs_save(cpu, &image->msrs, err);
    image->tsc = clock->tsc[cpu->index];
    image->tsc_deadline = clock->tsc_deadline[cpu->index];
    return result;
}

static int vcpu_from_image(struct kvm_cpu *cpu, struct vcpu_image *image, struct ferry_error *err)
{
    const struct part first[] = {
        {KVM_SET_SREGS2, &image->sregs, "special registers"},
        {KVM_SET_REGS, &image->regs, "registers"},
    };
    const struct part then[] = {
        {KVM_SET_XCRS, &image->xcrs, "XCRs"},
        {KVM_SET_LAPIC, &image->lapic, "the local APIC"},
    };
    const struct part last[] = {
        {KVM_SET_MP_STATE, &image->mp, "the MP state"},
        {KVM_SET_VCPU_EVENTS, &image->events, "events"},
        {KVM_SET_DEBUGREGS, &image->debug, "debug registers"},
    };
    struct kvm_clock *clock = &cpu->kvm->clock;
    int result = move_parts(cpu->fd, first, ARRAY_SIZE(first), "take", err);

    if (!result)
        result = load_xsave(cpu, &image->xsave, err);
    if (!result)
        result = move_parts(cpu->fd, then, ARRAY_SIZE(then), "take", err);
    if (!result)
        result = kvm_msrs_load(cpu, &image->msrs, err);
    if (!result)
        result = move_parts(cpu->fd, last, ARRAY_SIZE(last), "take", err);
    clock->tsc[cpu->index] = image->tsc;
    clock->tsc_deadline[cpu->index] = image->tsc_deadline;
    return result;
}

/* ---- interrupt controllers, PIT, clock ---- */

static int move_irqchips(const struct kvm_accel *kvm, struct irqchip_image *image, bool load,
                         struct ferry_error *err)
{
    for (uint32_t id = KVM_IRQCHIP_PIC_MASTER; id <= KVM_IRQCHIP_IOAPIC; id++) {
        struct kvm_irqchip chip = {.chip_id = id};
        void *part = id == KVM_IRQCHIP_IOAPIC ? (void *)&image->ioapic : (void *)&image->pic[id];
        size_t size = id == KVM_IRQCHIP_IOAPIC ? sizeof(image->ioapic) : sizeof(image->pic[0]);
        int result;

        if (load)
            memcpy(&chip.chip, part, size);
        result = kvm_ioctl(kvm->vm_fd, load ? KVM_SET_IRQCHIP : KVM_GET_IRQCHIP, &chip);
        if (result < 0)
            return error_set_errno(err, result, "KVM does not %s interrupt controller %u",
                                   load ? "take" : "give", id);
        if (!load)
            memcpy(part, &chip.chip, size);
    }
    return 0;
}

static int load_clock(struct kvm_accel *kvm, const struct clock_image *image, struct ferry_error *err)
{
    uint32_t difference =
        image->tsc_khz > kvm->tsc_khz ? image->tsc_khz - kvm->tsc_khz : kvm->tsc_khz - image->tsc_khz;

    kvm->clock.kvmclock_ns = image->kvmclock_ns;
    if (difference <= KHZ_TOLERANCE(kvm->tsc_khz))
        return 0;
    if (kvm_ioctl(kvm->vm_fd, KVM_CHECK_EXTENSION, (const void *)(intptr_t)KVM_CAP_TSC_CONTROL) <= 0)
        return error_set(
            err, -EOPNOTSUPP,
            "clock: the guest's TSC runs at %u kHz, this host's at %u, and this CPU cannot scale it",
            image->tsc_khz, kvm->tsc_khz);
    for (unsigned i = 0; i < kvm->cpu_count; i++) {
        int result = kvm_ioctl(kvm->cpus[i].fd, KVM_SET_TSC_KHZ, (const void *)(uintptr_t)image->tsc_khz);

        if (result < 0)
            return error_set_errno(err, result, "clock: KVM does not take a TSC of %u kHz", image->tsc_khz);
    }
    kvm->tsc_khz = image->tsc_khz;
    return 0;
}

/* ---- sections: by index ---- */

const struct state_table *kvm_state_table(const char *kind)
{
    static const struct state_table *const tables[] = {&cpuid_state, &vcpu_state,  &irqchip_state,
                                                       &pit_state,   &clock_state, &pc_ports_state};

    for (size_t i = 0; i < ARRAY_SIZE(tables); i++) {
        if (strcmp(tables[i]->name, kind) == 0)
            return tables[i];
    }
    return NULL;
}

enum section_kind {
    SECTION_CPUID,
    SECTION_VCPU,
    SECTION_IRQCHIP,
    SECTION_PIT,
    SECTION_CLOCK,
    SECTION_PORTS,
    SECTION_NONE
};

/* Which comes at INDEX; *cpu for a vCPU. */
static enum section_kind section_kind(const struct kvm_accel *kvm, unsigned index, unsigned *cpu)
{
    if (index == 0)
        return SECTION_CPUID;
    if (index <= kvm->cpu_count) {
        *cpu = index - 1;
        return SECTION_VCPU;
    }
    index -= kvm->cpu_count + 1;
    return index == 0   ? SECTION_IRQCHIP
           : index == 1 ? SECTION_PIT
           : index == 2 ? SECTION_CLOCK
           : index == 3 ? SECTION_PORTS
                        : SECTION_NONE;
}

void kvm_sections(struct accel *accel, struct accel_section *sections, size_t *count)
{
    static const struct state_table *const tables[] = {
        [SECTION_CPUID] = &cpuid_state, [SECTION_VCPU] = &vcpu_state,   [SECTION_IRQCHIP] = &irqchip_state,
        [SECTION_PIT] = &pit_state,     [SECTION_CLOCK] = &clock_state, [SECTION_PORTS] = &pc_ports_state,
    };
    const struct kvm_accel *kvm = kvm_accel_of(accel);
    size_t used = 0;
    unsigned cpu = 0;

    for (unsigned i = 0; section_kind(kvm, i, &cpu) != SECTION_NONE && used < *count; i++) {
        enum section_kind kind = section_kind(kvm, i, &cpu);
        struct accel_section *section = &sections[used++];

        *section = (struct accel_section){.index = i, .table = tables[kind]};
        if (kind == SECTION_VCPU)
            snprintf(section->name, sizeof(section->name), "vcpu%u", cpu);
        else
            snprintf(section->name, sizeof(section->name), "%s", tables[kind]->name);
    }
    *count = used;
}

static int save_vcpu(const struct kvm_cpu *cpu, struct buffer *out, struct ferry_error *err)
{
    struct vcpu_image image;
    int result = vcpu_to_image(cpu, &image, err);

    if (!result)
        state_save(&vcpu_state, &image, out);
    image_free(&image);
    return result;
}

int kvm_section_save(struct accel *accel, unsigned index, struct buffer *out, struct ferry_error *err)
{
    struct kvm_accel *kvm = kvm_accel_of(accel);
    struct cpuid_image cpuid = {.entries = BUFFER_INIT};
    struct irqchip_image chips = {0};
    struct kvm_pit_state2 pit = {0};
    struct clock_image clock = {.kvmclock_ns = kvm->clock.kvmclock_ns, .tsc_khz = kvm->tsc_khz};
    const struct part get_pit = {KVM_GET_PIT2, &pit, "the PIT"};
    unsigned cpu = 0;
    int result = 0;

    switch (section_kind(kvm, index, &cpu)) {
    case SECTION_CPUID:
        kvm_cpuid_save(kvm, &cpuid.entries);
        state_save(&cpuid_state, &cpuid, out);
        buffer_free(&cpuid.entries);
        break;
    case SECTION_VCPU:
        result = save_vcpu(&kvm->cpus[cpu], out, err);
        break;
    case SECTION_IRQCHIP:
        result = move_irqchips(kvm, &chips, false, err);
        state_save(&irqchip_state, &chips, out);
        break;
    case SECTION_PIT:
        result = move_parts(kvm->vm_fd, &get_pit, 1, "give", err);
        state_save(&pit_state, &pit, out);
        break;
    case SECTION_CLOCK:
        state_save(&clock_state, &clock, out);
        break;
    case SECTION_PORTS:
        state_save(&pc_ports_state, &kvm->ports, out);
        break;
    case SECTION_NONE:
        return error_set(err, -EINVAL, "a VM on KVM has no state section %u", index);
    }
    return !result && buffer_failed(out) ? error_set(err, -ENOMEM, "out of memory while saving the CPU")
                                         : result;
}

static int load_vcpu(struct kvm_cpu *cpu, uint32_t version, struct reader *in, struct ferry_error *err)
{
    struct vcpu_image image = {0};
    char name[32];
    int result;

    snprintf(name, sizeof(name), "vcpu%u", cpu->index);
    result = state_load(&vcpu_state, name, version, &image, in, err);
    if (!result)
        result = vcpu_from_image(cpu, &image, err);
    image_free(&image);
    return result;
}

static int load_cpuid(struct kvm_accel *kvm, uint32_t version, struct reader *in, struct ferry_error *err)
{
    struct cpuid_image image = {.entries = BUFFER_INIT};
    int result = state_load(&cpuid_state, "cpuid", version, &image, in, err);

    if (!result)
        result = kvm_cpuid_load(kvm, &image.entries, err);
    buffer_free(&image.entries);
    return result;
}

int kvm_section_load(struct accel *accel, unsigned index, uint32_t version, struct reader *in,
                     struct ferry_error *err)
{
    struct kvm_accel *kvm = kvm_accel_of(accel);
    struct irqchip_image chips = {0};
    struct kvm_pit_state2 pit = {0};
    struct clock_image clock = {0};
    const struct part set_pit = {KVM_SET_PIT2, &pit, "the PIT"};
    unsigned cpu = 0;
    int result;

    switch (section_kind(kvm, index, &cpu)) {
    case SECTION_CPUID:
        return load_cpuid(kvm, version, in, err);
    case SECTION_VCPU:
        return load_vcpu(&kvm->cpus[cpu], version, in, err);
    case SECTION_IRQCHIP:
        result = state_load(&irqchip_state, "irqchip", version, &chips, in, err);
        return result ? result : move_irqchips(kvm, &chips, true, err);
    case SECTION_PIT:
        result = state_load(&pit_state, "pit", version, &pit, in, err);
        return result ? result : move_parts(kvm->vm_fd, &set_pit, 1, "take", err);
    case SECTION_CLOCK:
        result = state_load(&clock_state, "clock", version, &clock, in, err);
        return result ? result : load_clock(kvm, &clock, err);
    case SECTION_PORTS:
        return state_load(&pc_ports_state, "ports", version, &kvm->ports, in, err);
    case SECTION_NONE:
        break;
    }
    return error_set(err, -EINVAL, "a VM on KVM has no state section %u", index);
}

/* ---- power-on ---- */

/* vCPUs, interrupt controllers and PIT; what a guest is told of its CPU stays, and the clock starts anew. */
static unsigned power_on_count(const struct kvm_accel *kvm)
{
    return kvm->cpu_count + 2;
}

int kvm_state_init(struct kvm_accel *kvm, struct ferry_error *err)
{
    int size = kvm_ioctl(kvm->vm_fd, KVM_CHECK_EXTENSION, (const void *)(intptr_t)KVM_CAP_XSAVE2);
    int result;

    kvm->xsave_size = size > (int)sizeof(struct kvm_xsave) ? (size_t)size : sizeof(struct kvm_xsave);
    if (kvm->xsave_size > XSAVE_SIZE_MAX)
        return error_set(err, -EOPNOTSUPP, "this CPU has %zu bytes of extended registers; Ferry knows %d",
                         kvm->xsave_size, XSAVE_SIZE_MAX);
    result = kvm_msrs_find(kvm, err);
    for (unsigned i = 0; i < power_on_count(kvm) && !result; i++)
        result = kvm_section_save(&kvm->accel, i + 1, &kvm->power_on[i], err);
    kvm_msrs_find_given(kvm);
    return result;
}

void kvm_state_destroy(struct kvm_accel *kvm)
{
    for (size_t i = 0; i < ARRAY_SIZE(kvm->power_on); i++)
        buffer_free(&kvm->power_on[i]);
}

int kvm_state_reset(struct kvm_accel *kvm, struct ferry_error *err)
{
    int result = 0;

    for (unsigned i = 0; i < power_on_count(kvm) && !result; i++) {
        const struct buffer *saved = &kvm->power_on[i];
        struct reader in = reader_init(saved->data, saved->size);
        uint32_t version = i < kvm->cpu_count    ? vcpu_state.version
                           : i == kvm->cpu_count ? irqchip_state.version
                                                 : pit_state.version;

        result = kvm_section_load(&kvm->accel, i + 1, version, &in, err);
    }
    return result;
}
