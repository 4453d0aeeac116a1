/* State of a VM on KVM: it comes back as it was saved, and what this host cannot take is refused. Skipped
 * where there is no /dev/kvm. */
#include "unit.h"

#include "base/bitmap.h"
#include "cpu/cpu.h"
#include "machine/accel.h"
#include "machine/board.h"
#include "machine/x86_64/layout.h"

#include <errno.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define MIB          UINT64_C(0x100000)
#define SECTIONS_MAX (ACCEL_VCPUS_MAX + 8)

struct fixture {
    struct memory *memory;
    struct mmio_bus *bus;
    struct log *log;
    struct accel *accel;
    struct accel_section sections[SECTIONS_MAX];
    size_t count;
};

static void no_event(void *opaque, enum accel_event event, const char *why)
{
}

static const struct accel_platform platform = {.event = no_event};

static int make(struct fixture *fixture, const struct accel_config *wanted, uint64_t size)
{
    struct accel_config config = *wanted;
    struct ferry_error err;

    fixture->log = log_open_fd(STDERR_FILENO, LOG_LEVEL_ERROR);
    assert_ok(memory_new(&fixture->memory, &err), err);
    assert_ok(board_x86_64.add_memory(fixture->memory, size, &err), err);
    assert_ok(mmio_bus_new(&fixture->bus, &err), err);
    config.memory = fixture->memory;
    config.bus = fixture->bus;
    config.log = fixture->log;
    assert_ok(accel_kvm.probe(&err), err);
    if (accel_kvm.create(&fixture->accel, &config, &err))
        return err.code;
    fixture->count = SECTIONS_MAX;
    accel_kvm.sections(fixture->accel, fixture->sections, &fixture->count);
    return 0;
}

static int setup(void **state)
{
    static const struct accel_config config = {.vcpus = 2, .platform = &platform};

    *state = calloc(1, sizeof(struct fixture));
    return make(*state, &config, 16 * MIB);
}

static void unmake(struct fixture *fixture)
{
    accel_kvm.destroy(fixture->accel);
    mmio_bus_free(fixture->bus);
    memory_free(fixture->memory);
    if (fixture->log)
        log_close(fixture->log);
}

static int teardown(void **state)
{
    unmake(*state);
    free(*state);
    return 0;
}

static const struct accel_section *section_of(const struct fixture *fixture, const char *name)
{
    for (size_t i = 0; i < fixture->count; i++)
        if (strcmp(fixture->sections[i].name, name) == 0)
            return &fixture->sections[i];
    fail_msg("there is no section %s", name);
    return NULL;
}

static struct buffer save(const struct fixture *fixture, const char *name)
{
    struct buffer buffer = BUFFER_INIT;
    struct ferry_error err;

    assert_ok(accel_kvm.section_save(fixture->accel, section_of(fixture, name)->index, &buffer, &err), err);
    return buffer;
}

static int load(const struct fixture *fixture, const char *name, const struct buffer *saved, size_t size,
                struct ferry_error *err)
{
    const struct accel_section *section = section_of(fixture, name);
    struct reader in = reader_init(saved->data, size);

    return accel_kvm.section_load(fixture->accel, section->index, section->table->version, &in, err);
}

/* What is in a section, by name. */
static json_t *fields_of(const struct fixture *fixture, const char *name, const struct buffer *saved)
{
    const struct state_table *table = section_of(fixture, name)->table;
    struct reader in = reader_init(saved->data, saved->size);
    struct ferry_error err;
    json_t *fields = state_print(table, name, table->version, &in, &err);

    if (!fields)
        fail_msg("%s", err.text);
    return fields;
}

#define MSR_DIGITS 24 /* of a saved MSR: number and value, as bytes */

/* Fields that differ by name, an MSR by its number. */
static void assert_same(const struct fixture *fixture, const char *name, const struct buffer *saved,
                        const struct buffer *again)
{
    json_t *before = fields_of(fixture, name, saved), *after = fields_of(fixture, name, again);
    const char *key;
    json_t *value;
    unsigned differing = 0;

    json_object_foreach(before, key, value)
    {
        const json_t *other = json_object_get(after, key);
        const char *text = json_string_value(value), *then = json_string_value(other);

        if (json_equal(value, other))
            continue;
        differing++;
        for (size_t at = 0; strcmp(key, "msrs") == 0 && at < strlen(text) && at < strlen(then);
             at += MSR_DIGITS)
            if (strncmp(text + at, then + at, MSR_DIGITS) != 0)
                print_error("%s.msrs: %.24s, then %.24s\n", name, text + at, then + at);
        print_error("%s.%s differs: %s, then %s\n", name, key, text ? text : "-", then ? then : "-");
    }
    json_decref(before);
    json_decref(after);
    assert_int_equal(differing, 0);
    assert_int_equal(again->size, saved->size);
    assert_memory_equal(again->data, saved->data, saved->size);
}

static void sections_have_a_defined_order(void **state)
{
    static const char *const names[] = {"cpuid", "vcpu0", "vcpu1", "irqchip", "pit", "clock", "ports"};
    struct fixture *fixture = *state;

    assert_int_equal(fixture->count, ARRAY_SIZE(names));
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        assert_string_equal(fixture->sections[i].name, names[i]);
}

/* rax and rbx are the first fields of a vCPU, the counters of the PIT those of the PIT. */
static void state_comes_back_as_it_was_saved(void **state)
{
    struct fixture *fixture = *state;
    struct ferry_error err;

    for (size_t i = 0; i < fixture->count; i++) {
        const char *name = fixture->sections[i].name;
        struct buffer saved = save(fixture, name), again;

        if (strncmp(name, "vcpu", 4) == 0)
            memcpy(saved.data, "\x11\x22\x33\x44\x55\x66\x77\x88", 8);
        assert_ok(load(fixture, name, &saved, saved.size, &err), err);
        again = save(fixture, name);
        assert_same(fixture, name, &saved, &again);
        buffer_free(&saved);
        buffer_free(&again);
    }
}

static void section_cut_short_is_refused(void **state)
{
    struct fixture *fixture = *state;

    for (size_t i = 0; i < fixture->count; i++) {
        const char *name = fixture->sections[i].name;
        struct buffer saved = save(fixture, name);

        for (size_t size = 0; size < saved.size; size += saved.size / 7 + 1) {
            struct ferry_error err = {0};

            assert_true(load(fixture, name, &saved, size, &err) < 0);
            assert_contains(err.text, name);
        }
        buffer_free(&saved);
    }
}

static void vcpu_with_an_msr_that_kvm_does_not_know_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct buffer saved;
    struct ferry_error err = {0};
    size_t at;

    saved = save(fixture, "vcpu0");
    /* MSR_KVM_WALL_CLOCK_NEW, which every KVM lists, becomes one that nobody has. */
    for (at = 0; at + 4 <= saved.size && memcmp(saved.data + at, "\x00\x4d\x56\x4b", 4) != 0; at++)
        ;
    assert_true(at + 4 <= saved.size);
    memcpy(saved.data + at, "\x77\x77\x77\x77", 4);
    assert_ok(load(fixture, "vcpu0", &saved, saved.size, &err), err); /* it holds nothing */
    saved.data[at + 4] = 1;
    assert_int_equal(load(fixture, "vcpu0", &saved, saved.size, &err), -EOPNOTSUPP);
    assert_contains(err.text, "MSR 0x77777777");
    buffer_free(&saved);
}

/* An entry: function, index, flags, EAX, EBX, ECX, EDX; before the first one, the length. */
static void guest_with_features_this_host_lacks_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct buffer saved;
    struct ferry_error err = {0};

    saved = save(fixture, "cpuid");
    for (size_t at = 4; at + 28 <= saved.size; at += 28)
        if (memcmp(saved.data + at, "\1\0\0\0", 4) == 0)
            saved.data[at + 20] |= 1 << 5; /* VMX, which guests are not given */
    assert_int_equal(load(fixture, "cpuid", &saved, saved.size, &err), -EOPNOTSUPP);
    assert_contains(err.text, "CPUID leaf 0x1.0 ECX, bits 0x20");
    for (size_t at = 4; at + 28 <= saved.size; at += 28)
        if (memcmp(saved.data + at, "\1\0\0\0", 4) == 0)
            saved.data[at + 20] |= 1 << 6; /* SMX, which no KVM gives */
    assert_int_equal(load(fixture, "cpuid", &saved, saved.size, &err), -EOPNOTSUPP);
    assert_contains(err.text, "lacks CPU features that the VM was given: smx");
    saved.data[4 + 16] ^= 1; /* the vendor: leaf 0 is the first */
    assert_int_equal(load(fixture, "cpuid", &saved, saved.size, &err), -EOPNOTSUPP);
    assert_contains(err.text, "vendor");
    buffer_free(&saved);
}

static void clock_stands_where_it_was_put(void **state)
{
    struct fixture *fixture = *state;
    struct buffer saved, again;
    struct ferry_error err;
    uint64_t nanoseconds = UINT64_C(123456789012);

    saved = save(fixture, "clock");
    memcpy(saved.data, &nanoseconds, 8);
    assert_ok(load(fixture, "clock", &saved, saved.size, &err), err);
    accel_kvm.clock_advance(fixture->accel, 1000);
    accel_kvm.clock_start(fixture->accel);
    accel_kvm.clock_stop(fixture->accel);
    again = save(fixture, "clock");
    memcpy(&nanoseconds, again.data, 8);
    assert_in_range(nanoseconds, UINT64_C(123456790012), UINT64_C(123456790012) + UINT64_C(60000000000));
    buffer_free(&saved);
    buffer_free(&again);
}

/* ---- which pages the guest wrote ---- */

#define FIRST_WRITTEN  (2 * MIB)
#define TRACKED_MEMORY (80 * MIB)
#define PAGES_OF(size) ((size_t)((size) / MEMORY_PAGE_SIZE))

/* Writes to each page from FIRST_WRITTEN to the end, then switches itself off. In 32-bit protected mode. */
static const uint8_t writer[] = {
    0xbf, 0x00, 0x00, 0x20, 0x00,             /* mov $FIRST_WRITTEN, %edi */
    0xff, 0x07,                               /* incl (%edi) */
    0x81, 0xc7, 0x00, 0x10, 0x00, 0x00,       /* add $4096, %edi */
    0x81, 0xff, 0x00, 0x00, 0x00, 0x05,       /* cmp $TRACKED_MEMORY, %edi */
    0x72, 0xf0,                               /* jb the incl */
    0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, /* mov $0x604, %dx; mov $0x2000, %ax */
    0x20, 0x66, 0xef, 0xeb, 0xfe,             /* out %ax, %dx; jmp . */
};

static void end_writer(void *opaque, enum accel_event event, const char *why)
{
    const struct fixture *fixture = opaque;

    assert_int_equal(event, ACCEL_EVENT_POWER_OFF);
    accel_kvm.vcpu_kick(fixture->accel, 0);
}

static void run_code(const struct fixture *fixture, const uint8_t *code, size_t size)
{
    struct accel_boot boot = {.entry = MIB, .arguments = {0, X86_64_BOOT_PVH}};
    struct ferry_error err = {0};

    assert_true(memory_write(fixture->memory, MIB, code, size));
    assert_ok(accel_kvm.reset(fixture->accel, &boot, &err), err);
    if (accel_kvm.vcpu_run(fixture->accel, 0, &err) != ACCEL_EXIT_KICKED)
        fail_msg("%s", err.text);
}

static void run_writer(const struct fixture *fixture)
{
    run_code(fixture, writer, sizeof(writer));
}

/* What was written since the last look. NULL: a para-virtualised KVM has overrun a ring. */
static uint64_t *fetch(const struct fixture *fixture)
{
    uint64_t *written = bitmap_new(PAGES_OF(TRACKED_MEMORY));
    struct ferry_error err = {0};
    int result;

    assert_non_null(written);
    result = accel_kvm.dirty_fetch(fixture->accel, 0, written, &err);
    if (result != -EOVERFLOW) {
        assert_ok(result, err);
        return written;
    }
    assert_contains(err.text, "lost");
    free(written);
    return NULL;
}

static void assert_only_device_wrote(const struct fixture *fixture, uint64_t addr)
{
    uint64_t *written = fetch(fixture);

    assert_true(bitmap_test(written, PAGES_OF(addr)));
    assert_int_equal(bitmap_count(written, PAGES_OF(TRACKED_MEMORY)), 1);
    free(written);
}

/* With so many vCPUs a ring has fewer entries than there are pages. */
static void every_page_written_is_told(enum memory_tracking tracking)
{
    struct fixture fixture = {0};
    struct accel_platform ending = {.opaque = &fixture, .event = end_writer};
    struct accel_config config = {.vcpus = ACCEL_VCPUS_MAX, .platform = &ending, .tracking = tracking};
    size_t pages = PAGES_OF(TRACKED_MEMORY - FIRST_WRITTEN);
    uint64_t by[2] = {0, 0};
    struct ferry_error err;

    if (make(&fixture, &config, TRACKED_MEMORY) == -EOPNOTSUPP) {
        unmake(&fixture);
        skip();
    }
    run_writer(&fixture);
    assert_ok(accel_kvm.dirty_start(fixture.accel, &err), err);
    for (unsigned round = 0; round < 2; round++) {
        uint64_t *written;

        run_writer(&fixture);
        written = fetch(&fixture);
        if (!written)
            break; /* it says so at least */
        for (size_t i = 0; i < pages; i++)
            if (!bitmap_test(written, PAGES_OF(FIRST_WRITTEN) + i))
                fail_msg("round %u: page %zu of %zu was not told", round, i, pages);
        free(written);
        assert_true(memory_write(fixture.memory, FIRST_WRITTEN, "x", 1));
        assert_only_device_wrote(&fixture, FIRST_WRITTEN);
    }
    assert_int_equal(accel_kvm.vcpu_dirtied(fixture.accel, 0, &by[0]), tracking == MEMORY_TRACKING_RING);
    accel_kvm.vcpu_dirtied(fixture.accel, 1, &by[1]);
    if (tracking == MEMORY_TRACKING_RING && accel_kvm.dirty_start(fixture.accel, &err) == 0)
        assert_true(by[0] >= 2 * pages && by[1] == 0);
    accel_kvm.dirty_stop(fixture.accel);
    run_writer(&fixture); /* nobody looks any more: full or not, it goes on */
    unmake(&fixture);
}

static void every_page_written_is_told_by_the_ring(void **state)
{
    every_page_written_is_told(MEMORY_TRACKING_RING);
}

static void every_page_written_is_told_by_the_log(void **state)
{
    every_page_written_is_told(MEMORY_TRACKING_LOG);
}

/* ---- MSRs ---- */

/* Sets MTRRs and a machine-check bank, then switches itself off. In 32-bit protected mode. */
static const uint8_t msr_writer[] = {
    0x31, 0xd2,                               /* xor %edx, %edx */
    0xb9, 0xff, 0x02, 0x00, 0x00,             /* mov $0x2ff, %ecx: what is outside of other MTRRs, */
    0xb8, 0x06, 0x0c, 0x00, 0x00, 0x0f, 0x30, /* mov $0xc06, %eax; wrmsr: written back */
    0xb9, 0x00, 0x02, 0x00, 0x00,             /* mov $0x200, %ecx: the first range: */
    0xb8, 0x00, 0x00, 0x00, 0xd0, 0x0f, 0x30, /* mov $0xd0000000, %eax; wrmsr */
    0x83, 0xc8, 0xff, 0x83, 0xca, 0xff,       /* or $-1, %eax; or $-1, %edx */
    0xb9, 0x04, 0x04, 0x00, 0x00, 0x0f, 0x30, /* mov $0x404, %ecx; wrmsr: all errors of bank 1 */
    0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, /* mov $0x604, %dx; mov $0x2000, %ax */
    0x20, 0x66, 0xef, 0xeb, 0xfe,             /* out %ax, %dx; jmp . */
};

static void assert_has_msr(const struct fixture *fixture, const struct buffer *vcpu, const char *wanted)
{
    json_t *fields = fields_of(fixture, "vcpu0", vcpu);
    const char *msrs = json_string_value(json_object_get(fields, "msrs"));
    bool found = false;

    for (size_t at = 0; at < strlen(msrs) && !found; at += MSR_DIGITS)
        found = strncmp(msrs + at, wanted, MSR_DIGITS) == 0;
    if (!found)
        fail_msg("%s is not among the MSRs: %s", wanted, msrs);
    json_decref(fields);
}

static void msrs_that_kvm_does_not_list_are_saved_too(void **state)
{
    static const char *const written[] = {"ff020000060c000000000000", "00020000000000d000000000",
                                          "04040000ffffffffffffffff"};
    struct fixture first = {0}, second = {0};
    struct accel_platform ending = {.opaque = &first, .event = end_writer};
    struct accel_config config = {.vcpus = 1, .platform = &ending};
    struct buffer saved, again;
    struct ferry_error err;

    assert_int_equal(make(&first, &config, 16 * MIB), 0);
    assert_int_equal(make(&second, &config, 16 * MIB), 0);
    run_code(&first, msr_writer, sizeof(msr_writer));
    saved = save(&first, "vcpu0");
    for (size_t i = 0; i < ARRAY_SIZE(written); i++)
        assert_has_msr(&first, &saved, written[i]);
    assert_ok(load(&second, "vcpu0", &saved, saved.size, &err), err);
    again = save(&second, "vcpu0");
    assert_same(&second, "vcpu0", &saved, &again);
    buffer_free(&again);
    buffer_free(&saved);
    unmake(&first);
    unmake(&second);
}

/* The value of an MSR in a saved vCPU 0; NUMBER is in hexadecimal, as it is saved. NULL: it is not there. */
static uint8_t *find_msr(const struct fixture *fixture, const struct buffer *vcpu, const char *number)
{
    json_t *fields = fields_of(fixture, "vcpu0", vcpu);
    const char *msrs = json_string_value(json_object_get(fields, "msrs"));
    size_t size = strlen(msrs) / 2, wanted = 0, begin = 0;
    uint8_t *bytes = malloc(size);

    assert_non_null(bytes);
    for (size_t i = 0; i < size; i++) {
        unsigned byte;

        assert_int_equal(sscanf(msrs + 2 * i, "%2x", &byte), 1);
        bytes[i] = (uint8_t)byte;
    }
    while (wanted < size && strncmp(msrs + 2 * wanted, number, strlen(number)) != 0)
        wanted += MSR_DIGITS / 2;
    while (begin + size <= vcpu->size && memcmp(vcpu->data + begin, bytes, size) != 0)
        begin++;
    assert_true(begin + size <= vcpu->size);
    free(bytes);
    json_decref(fields);
    return wanted < size ? vcpu->data + begin + wanted + 4 : NULL;
}

#define ARCH_CAPABILITIES "0a010000"

/* pschange_mc_no, which every KVM gives (its shadow of page tables is safe), is bit 6. */
static void arch_capabilities_are_given_as_far_as_the_vm_is_to_have_them(void **state)
{
    struct fixture fixture = {0};
    struct accel_platform ending = {.opaque = &fixture, .event = end_writer};
    struct accel_config config = {.vcpus = 1, .platform = &ending};
    struct buffer saved;
    struct ferry_error err;
    struct cpu host, given;
    uint8_t *value;

    assert_ok(cpu_of_host(&host, &err), err);
    if (!cpu_features_has(&host.features, "pschange_mc_no"))
        skip();
    assert_ok(cpu_features_remove(&host.features, "pschange_mc_no", &err), err);
    config.cpu_features = &host.features;
    assert_int_equal(make(&fixture, &config, 16 * MIB), 0);
    accel_kvm.cpu_given(fixture.accel, &given);
    assert_memory_equal(&given.features, &host.features, sizeof(given.features));
    saved = save(&fixture, "vcpu0");
    value = find_msr(&fixture, &saved, ARCH_CAPABILITIES);
    assert_non_null(value);
    assert_int_equal(value[0] & 1 << 6, 0);
    value[0] |= 1 << 6; /* of another host's guest: this one can have it, and keeps it over a reset */
    assert_ok(load(&fixture, "vcpu0", &saved, saved.size, &err), err);
    accel_kvm.cpu_given(fixture.accel, &given);
    assert_true(cpu_features_has(&given.features, "pschange_mc_no"));
    run_code(&fixture, msr_writer, sizeof(msr_writer));
    run_code(&fixture, msr_writer, sizeof(msr_writer));
    buffer_free(&saved);
    saved = save(&fixture, "vcpu0");
    value = find_msr(&fixture, &saved, ARCH_CAPABILITIES);
    assert_true(value[0] & 1 << 6);
    value[1] |= 1 << 4; /* doitm, which no KVM gives */
    assert_int_equal(load(&fixture, "vcpu0", &saved, saved.size, &err), -EOPNOTSUPP);
    assert_contains(err.text, "lacks CPU features that the VM was given: doitm");
    buffer_free(&saved);
    unmake(&fixture);
}

static void guest_that_cpuid_does_not_tell_of_arch_capabilities_has_none(void **state)
{
    struct fixture fixture = {0};
    struct accel_config config = {.vcpus = 1, .platform = &platform};
    struct buffer saved;
    struct ferry_error err;
    struct cpu host, given;
    const uint8_t *value;

    assert_ok(cpu_of_host(&host, &err), err);
    assert_ok(cpu_features_remove(&host.features, "arch_capabilities", &err), err);
    config.cpu_features = &host.features;
    assert_int_equal(make(&fixture, &config, 16 * MIB), 0);
    accel_kvm.cpu_given(fixture.accel, &given);
    assert_false(cpu_features_has(&given.features, "pschange_mc_no"));
    saved = save(&fixture, "vcpu0");
    value = find_msr(&fixture, &saved, ARCH_CAPABILITIES);
    for (size_t i = 0; value && i < 8; i++)
        assert_int_equal(value[i], 0);
    buffer_free(&saved);
    unmake(&fixture);
}

/* The MSRs that a vCPU has go by the features that its guest was given. */
static void guest_with_few_features_comes_from_a_host_that_has_more(void **state)
{
    static const char few[] = "fpu,pse,tsc,msr,pae,cx8,apic,pge,cmov,pat,mmx,fxsr,sse,sse2,syscall,nx,lm";
    struct fixture hosts[3] = {{0}};
    struct accel_config config = {.vcpus = 1, .platform = &platform};
    struct cpu_features features;
    struct ferry_error err;

    assert_ok(cpu_features_from_list(&features, few, &err), err);
    config.cpu_features = &features;
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(make(&hosts[i], &config, 16 * MIB), 0);
        config.cpu_features = NULL;
    }
    for (size_t i = 0; i < 2; i++) {
        struct buffer cpuid = save(&hosts[i], "cpuid"), vcpu = save(&hosts[i], "vcpu0");

        assert_ok(load(&hosts[i + 1], "cpuid", &cpuid, cpuid.size, &err), err);
        assert_ok(load(&hosts[i + 1], "vcpu0", &vcpu, vcpu.size, &err), err);
        buffer_free(&cpuid);
        buffer_free(&vcpu);
    }
    for (size_t i = 0; i < 3; i++)
        unmake(&hosts[i]);
}

/* ---- doorbells ---- */

#define BELL_RANGE UINT64_C(0xd0000000)
#define BELL       (BELL_RANGE + 0x50)
#define RINGS      1000

/* Writes to BELL, and once to the register after it, then switches itself off. In 32-bit protected mode. */
static const uint8_t ringer[] = {
    0xbf, 0x50, 0x00, 0x00, 0xd0,             /* mov $BELL, %edi */
    0xb9, 0xe8, 0x03, 0x00, 0x00,             /* mov $RINGS, %ecx */
    0x89, 0x0f,                               /* mov %ecx, (%edi) */
    0x49,                                     /* dec %ecx */
    0x75, 0xfb,                               /* jnz the mov */
    0x89, 0x4f, 0x04,                         /* mov %ecx, 4(%edi) */
    0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, /* mov $0x604, %dx; mov $0x2000, %ax */
    0x20, 0x66, 0xef, 0xeb, 0xfe,             /* out %ax, %dx; jmp . */
};

static uint64_t no_read(void *device, uint64_t offset, unsigned size)
{
    return 0;
}

static void count_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    *(unsigned *)device += 1;
}

static void doorbell_is_rung_without_its_handler(void **state)
{
    static const struct mmio_ops ops = {.read = no_read, .write = count_write};
    struct fixture fixture = {0};
    struct accel_platform ending = {.opaque = &fixture, .event = end_writer};
    struct accel_config config = {.vcpus = 1, .platform = &ending};
    int event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    unsigned handled = 0;
    eventfd_t rung = 0;
    struct ferry_error err;

    assert_int_equal(make(&fixture, &config, 16 * MIB), 0);
    assert_ok(mmio_bus_add(fixture.bus, "bell", BELL_RANGE, 0x200, &ops, &handled, &err), err);
    assert_true(mmio_bus_add_doorbell(fixture.bus, BELL, event_fd));
    run_code(&fixture, ringer, sizeof(ringer));
    assert_int_equal(handled, 1);
    assert_int_equal(eventfd_read(event_fd, &rung), 0);
    assert_int_equal(rung, RINGS);
    unmake(&fixture);
    close(event_fd);
}

/* An argument: only the tests whose names match. */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(sections_have_a_defined_order, setup, teardown),
        cmocka_unit_test_setup_teardown(state_comes_back_as_it_was_saved, setup, teardown),
        cmocka_unit_test_setup_teardown(section_cut_short_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(vcpu_with_an_msr_that_kvm_does_not_know_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(guest_with_features_this_host_lacks_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(clock_stands_where_it_was_put, setup, teardown),
        cmocka_unit_test(msrs_that_kvm_does_not_list_are_saved_too),
        cmocka_unit_test(arch_capabilities_are_given_as_far_as_the_vm_is_to_have_them),
        cmocka_unit_test(guest_that_cpuid_does_not_tell_of_arch_capabilities_has_none),
        cmocka_unit_test(guest_with_few_features_comes_from_a_host_that_has_more),
        cmocka_unit_test(every_page_written_is_told_by_the_ring),
        cmocka_unit_test(every_page_written_is_told_by_the_log),
        cmocka_unit_test(doorbell_is_rung_without_its_handler),
    };
    sigset_t all;

    if (access("/dev/kvm", R_OK | W_OK) < 0) {
        fprintf(stderr, "skipped: there is no /dev/kvm\n");
        return 77; /* meson: skipped */
    }
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    /* As on every thread of Ferry's own: kicks come in KVM_RUN only. */
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
