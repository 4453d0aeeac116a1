/* ACPI tables: they can be found, add up, and name every device; AML has the lengths it says. */
#include "unit.h"

#include "machine/board.h"
#include "machine/x86_64/acpi.h"
#include "machine/x86_64/aml.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

struct tables {
    struct buffer all;
};

static int setup(void **state)
{
    struct tables *tables = calloc(1, sizeof(*tables));
    const struct machine_config config = {
        .vcpus = 3, .disk_count = MACHINE_DISKS_MAX, .net_count = MACHINE_NETS_MAX};
    struct ferry_error err;

    assert_ok(acpi_make(&config, &tables->all, &err), err);
    *state = tables;
    return 0;
}

static int teardown(void **state)
{
    struct tables *tables = *state;

    buffer_free(&tables->all);
    free(tables);
    return 0;
}

static uint64_t get(const struct tables *tables, size_t offset, size_t size)
{
    uint64_t value = 0;

    assert_true(offset + size <= tables->all.size);
    memcpy(&value, tables->all.data + offset, size);
    return value;
}

static uint8_t sum(const struct tables *tables, size_t offset, size_t size)
{
    uint8_t result = 0;

    for (size_t i = 0; i < size; i++)
        result = (uint8_t)(result + get(tables, offset + i, 1));
    return result;
}

/* The offset of the table at ADDRESS, which must be of that kind and add up to zero. */
static size_t table_at(const struct tables *tables, uint64_t address, const char *signature)
{
    size_t offset = address - ACPI_START;

    assert_true(address >= ACPI_START && address % 16 == 0);
    assert_true(offset + 36 <= tables->all.size);
    assert_memory_equal(tables->all.data + offset, signature, 4);
    assert_int_equal(sum(tables, offset, get(tables, offset + 4, 4)), 0);
    return offset;
}

static size_t xsdt_entry(const struct tables *tables, unsigned index, const char *signature)
{
    size_t xsdt = table_at(tables, get(tables, 24, 8), "XSDT");

    assert_int_equal(get(tables, xsdt + 4, 4), 36 + 2 * 8);
    return table_at(tables, get(tables, xsdt + 36 + 8 * index, 8), signature);
}

static void all_tables_are_found_and_add_up(void **state)
{
    const struct tables *tables = *state;
    size_t fadt;

    assert_memory_equal(tables->all.data, "RSD PTR ", 8);
    assert_int_equal(sum(tables, 0, 20), 0);
    assert_int_equal(sum(tables, 0, 36), 0);
    fadt = xsdt_entry(tables, 0, "FACP");
    assert_int_equal(get(tables, fadt + 4, 4), 276);
    table_at(tables, get(tables, fadt + 40, 4), "DSDT");
    assert_int_equal(get(tables, fadt + 40, 4), get(tables, fadt + 140, 8));
    assert_memory_equal(tables->all.data + (get(tables, fadt + 36, 4) - ACPI_START), "FACS", 4);
    assert_int_equal(get(tables, fadt + 36, 4) % 64, 0);
    assert_int_equal(get(tables, fadt + 64, 4), 0x604);
    assert_int_equal(get(tables, fadt + 120, 8), 0x64);
    assert_int_equal(get(tables, fadt + 128, 1), 0xfe);
    assert_int_equal(get(tables, fadt + 108, 1), 0x32);     /* the century's index in the CMOS */
    assert_int_equal(get(tables, fadt + 109, 2) & 0x20, 0); /* which there is */
    assert_true(tables->all.size <= ACPI_END - ACPI_START);
}

static void every_cpu_is_named(void **state)
{
    const struct tables *tables = *state;
    size_t madt = xsdt_entry(tables, 1, "APIC");
    size_t end = madt + get(tables, madt + 4, 4);
    unsigned cpus = 0, io_apics = 0;
    size_t at;

    for (at = madt + 44; at < end; at += get(tables, at + 1, 1)) {
        assert_true(get(tables, at + 1, 1) >= 2);
        if (get(tables, at, 1) == 0)
            assert_int_equal(get(tables, at + 3, 1), cpus++);
        io_apics += get(tables, at, 1) == 1;
    }
    assert_int_equal(at, end);
    assert_int_equal(cpus, 3);
    assert_int_equal(io_apics, 1);
}

/* How often the DSDT has a memory resource and an interrupt as the device's place says, side by side. */
static unsigned count_device(const struct tables *tables, size_t dsdt, struct board_place place)
{
    struct buffer resources = BUFFER_INIT;
    size_t end = dsdt + get(tables, dsdt + 4, 4);
    unsigned count = 0;

    aml_resource_memory(&resources, (uint32_t)place.mmio_addr, 0x1000);
    aml_resource_interrupt(&resources, place.irq);
    for (size_t at = dsdt; at + resources.size <= end; at++)
        count += memcmp(tables->all.data + at, resources.data, resources.size) == 0;
    buffer_free(&resources);
    return count;
}

static void every_virtio_device_is_where_the_board_has_it(void **state)
{
    const struct tables *tables = *state;
    size_t fadt = xsdt_entry(tables, 0, "FACP");
    size_t dsdt = table_at(tables, get(tables, fadt + 140, 8), "DSDT");

    assert_int_equal(count_device(tables, dsdt, board_x86_64.place(BOARD_RNG, 0)), 1);
    assert_int_equal(count_device(tables, dsdt, board_x86_64.place(BOARD_CONSOLE, 0)), 1);
    for (unsigned i = 0; i < MACHINE_DISKS_MAX; i++)
        assert_int_equal(count_device(tables, dsdt, board_x86_64.place(BOARD_BLK, i)), 1);
    for (unsigned i = 0; i < MACHINE_NETS_MAX; i++)
        assert_int_equal(count_device(tables, dsdt, board_x86_64.place(BOARD_NET, i)), 1);
}

/* Whether BYTES are in the DSDT, once. */
static bool dsdt_has(const struct tables *tables, const void *bytes, size_t size)
{
    size_t dsdt = table_at(tables, get(tables, xsdt_entry(tables, 0, "FACP") + 140, 8), "DSDT");
    size_t end = dsdt + get(tables, dsdt + 4, 4);
    unsigned count = 0;

    for (size_t at = dsdt; at + size <= end; at++)
        count += memcmp(tables->all.data + at, bytes, size) == 0;
    return count == 1;
}

static void generation_has_its_address_and_its_event(void **state)
{
    static const uint8_t addr[] = {8, 'A', 'D', 'D', 'R', 0x12, 8, 2, 0x0c, 0x00, 0x00, 0x10, 0xd0, 0};
    /* Method (_EVT, 1) { Local0 = VGEE; Notify (VGEN, 0x80) } */
    static const uint8_t event[] = {0x14, 19,  '_',  'E',  'V', 'T', 1,   0x70, 'V',  'G',
                                    'E',  'E', 0x60, 0x86, 'V', 'G', 'E', 'N',  0x0a, 0x80};
    static const char compatible[] = "\x08_CID\x0dVMGENCTR";
    static const char events[] = "\x08_HID\x0d"
                                 "ACPI0013";
    /* Field (VGID, DWordAcc, NoLock, Preserve) { Offset (12), VGEE, 32 } */
    static const uint8_t field[] = {0x5b, 0x81, 14, 'V', 'G', 'I', 'D', 3,
                                    0,    0x40, 6,  'V', 'G', 'E', 'E', 32};
    const struct tables *tables = *state;

    assert_int_equal(board_x86_64.place(BOARD_VMGENID, 0).mmio_addr, 0xd0100000);
    assert_true(dsdt_has(tables, compatible, sizeof(compatible)));
    assert_true(dsdt_has(tables, events, sizeof(events)));
    assert_true(dsdt_has(tables, addr, sizeof(addr)));
    assert_true(dsdt_has(tables, field, sizeof(field)));
    assert_true(dsdt_has(tables, event, sizeof(event)));
}

/* The length counts itself, in 1 to 3 bytes here. */
static void aml_length_is_right_at_its_limits(void **state)
{
    static const struct {
        size_t body;
        uint8_t bytes[3];
        size_t count;
    } cases[] = {{58, {63}, 1},
                 {59, {0x41, 4}, 2},
                 {4089, {0x4f, 0xff}, 2},
                 {4090, {0x81, 0, 1}, 3},
                 {8192, {0x87, 0x00, 0x02}, 3}};

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct buffer body = BUFFER_INIT, out = BUFFER_INIT;

        for (size_t j = 0; j < cases[i].body; j++)
            buffer_put_u8(&body, 0);
        aml_scope(&out, "_SB_", &body);
        assert_int_equal(out.size, 1 + cases[i].count + 4 + cases[i].body);
        assert_memory_equal(out.data + 1, cases[i].bytes, cases[i].count);
        assert_memory_equal(out.data + 1 + cases[i].count, "_SB_", 4);
        buffer_free(&out);
    }
}

static void aml_values_are_as_short_as_they_can_be(void **state)
{
    static const uint8_t want[] = {8,    'A',  'A', 'A',  '_', 0,    8,   'A', 'A',  'A', '_',  0x0a, 2,
                                   8,    'A',  'A', 'A',  '_', 0x0b, 0,   1,   8,    'A', 'A',  'A',  '_',
                                   0x0c, 0,    0,   1,    0,   8,    '_', 'H', 'I',  'D', 0x0c, 0x41, 0xd0,
                                   0x05, 0x01, 8,   '\\', '_', 'S',  '5', '_', 0x12, 4,   2,    0,    1};
    static const uint64_t values[] = {0, 1};
    struct buffer out = BUFFER_INIT;

    aml_name_integer(&out, "AAA_", 0);
    aml_name_integer(&out, "AAA_", 2);
    aml_name_integer(&out, "AAA_", 0x100);
    aml_name_integer(&out, "AAA_", 0x10000);
    aml_name_eisa_id(&out, "_HID", "PNP0501");
    aml_name_package(&out, "\\_S5_", values, 2);
    assert_int_equal(out.size, sizeof(want));
    assert_memory_equal(out.data, want, sizeof(want));
    buffer_free(&out);
}

/* Intel's compiler reads the DSDT without a complaint, where it is installed. */
static void dsdt_is_read_by_iasl(void **state)
{
    const struct tables *tables = *state;
    size_t dsdt = table_at(tables, get(tables, xsdt_entry(tables, 0, "FACP") + 140, 8), "DSDT");
    size_t size = get(tables, dsdt + 4, 4);
    struct unit_dir dir;
    char command[256], path[128];
    int fd, status;

    if (system("command -v iasl >/dev/null 2>&1") != 0)
        skip();
    unit_dir_make(&dir);
    snprintf(path, sizeof(path), "%s/dsdt.aml", dir.path);
    fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_int_equal(write(fd, tables->all.data + dsdt, size), size);
    close(fd);
    /* There and back again: what was disassembled compiles without errors. */
    snprintf(command, sizeof(command), "cd %s && iasl -d dsdt.aml >out 2>&1 && iasl -tc dsdt.dsl >>out 2>&1",
             dir.path);
    status = system(command);
    unit_dir_remove(&dir);
    assert_int_equal(status, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(all_tables_are_found_and_add_up, setup, teardown),
        cmocka_unit_test_setup_teardown(every_cpu_is_named, setup, teardown),
        cmocka_unit_test_setup_teardown(every_virtio_device_is_where_the_board_has_it, setup, teardown),
        cmocka_unit_test_setup_teardown(generation_has_its_address_and_its_event, setup, teardown),
        cmocka_unit_test(aml_length_is_right_at_its_limits),
        cmocka_unit_test(aml_values_are_as_short_as_they_can_be),
        cmocka_unit_test_setup_teardown(dsdt_is_read_by_iasl, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
