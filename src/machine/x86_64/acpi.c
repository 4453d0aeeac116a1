#include "machine/x86_64/acpi.h"

#include "base/error.h"
#include "device/mc146818.h"
#include "device/vmgenid.h"
#include "machine/board.h"
#include "machine/x86_64/aml.h"
#include "machine/x86_64/layout.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define TABLE_ALIGNMENT 64 /* FACS wants that; the others do not mind */
#define CHECKSUM_OFFSET 9
#define LENGTH_OFFSET   4
#define HEADER_SIZE     36

#define RSDP_SIZE           36
#define RSDP_CHECKSUM       8
#define RSDP_CHECKSUM_PART  20
#define RSDP_CHECKSUM_WHOLE 32

#define FACS_SIZE 64

#define FADT_SIZE     276
#define FADT_REVISION 6
#define FADT_MINOR    4

/* §5.2.9.3 and §5.2.9, table 5.10 */
#define BOOT_LEGACY_DEVICES 0x0001
#define BOOT_NO_VGA         0x0004
#define FADT_WBINVD         (1u << 0)
#define FADT_NO_PWR_BUTTON  (1u << 4)
#define FADT_NO_SLP_BUTTON  (1u << 5)
#define FADT_NO_FIXED_RTC   (1u << 6)
#define FADT_RESET_REGISTER (1u << 10)
#define RESET_VALUE         0xfe
#define SCI_IRQ             9

/* §5.2.12 */
#define MADT_PCAT          1
#define MADT_LOCAL_APIC    0
#define MADT_IO_APIC       1
#define MADT_OVERRIDE      2
#define MADT_LOCAL_NMI     4
#define MADT_CPU_ENABLED   1
#define MADT_LEVEL_HIGH    0x0d
#define LOCAL_APIC_ADDRESS 0xfee00000
#define IO_APIC_ADDRESS    0xfec00000

static void put_zeros(struct buffer *out, size_t count)
{
    for (size_t i = 0; i < count; i++)
        buffer_put_u8(out, 0);
}

static void align(struct buffer *out)
{
    while (out->size % TABLE_ALIGNMENT && !buffer_failed(out))
        buffer_put_u8(out, 0);
}

/* What makes the bytes' sum zero. */
static uint8_t checksum(const uint8_t *bytes, size_t size)
{
    uint8_t sum = 0;

    for (size_t i = 0; i < size; i++)
        sum = (uint8_t)(sum + bytes[i]);
    return (uint8_t)-sum;
}

/* Begins a table (§5.2.6); returns where. */
static size_t table_begin(struct buffer *out, const char *signature, uint8_t revision)
{
    size_t start;

    align(out);
    start = out->size;
    buffer_put(out, signature, 4);
    buffer_put_u32(out, 0); /* length, checksum: table_end */
    buffer_put_u8(out, revision);
    buffer_put_u8(out, 0);
    buffer_put(out, "FERRY ", 6);
    buffer_put(out, "FERRYX86", 8);
    buffer_put_u32(out, 1);
    buffer_put(out, "FRRY", 4);
    buffer_put_u32(out, 1);
    return start;
}

static void table_end(struct buffer *out, size_t start)
{
    if (buffer_failed(out))
        return;
    buffer_set_u32(out, start + LENGTH_OFFSET, (uint32_t)(out->size - start));
    out->data[start + CHECKSUM_OFFSET] = checksum(out->data + start, out->size - start);
}

/* ---- DSDT ---- */

static void put_virtio(struct buffer *out, unsigned *number, enum board_device kind, unsigned index)
{
    struct board_place place = board_x86_64.place(kind, index);
    struct buffer body = BUFFER_INIT, resources = BUFFER_INIT;
    char name[5];

    snprintf(name, sizeof(name), "VR%02X", *number & 0xff);
    aml_name_string(&body, "_HID", "LNRO0005");
    aml_name_integer(&body, "_UID", *number);
    aml_name_integer(&body, "_CCA", 1);
    aml_resource_memory(&resources, (uint32_t)place.mmio_addr, (uint32_t)X86_64_VIRTIO_STRIDE);
    aml_resource_interrupt(&resources, place.irq);
    aml_name_resources(&body, "_CRS", &resources);
    aml_device(out, name, &body);
    (*number)++;
}

static void put_com1(struct buffer *out)
{
    struct buffer body = BUFFER_INIT, resources = BUFFER_INIT;

    aml_name_eisa_id(&body, "_HID", "PNP0501");
    aml_name_integer(&body, "_UID", 1);
    aml_resource_ports(&resources, X86_64_PORT_UART, 8);
    aml_resource_isa_irq(&resources, X86_64_UART_IRQ);
    aml_name_resources(&body, "_CRS", &resources);
    aml_device(out, "COM1", &body);
}

static void put_rtc(struct buffer *out)
{
    struct buffer body = BUFFER_INIT, resources = BUFFER_INIT;

    aml_name_eisa_id(&body, "_HID", "PNP0B00");
    aml_resource_ports(&resources, X86_64_PORT_CMOS, MC146818_PORTS);
    aml_resource_isa_irq(&resources, X86_64_RTC_IRQ);
    aml_name_resources(&body, "_CRS", &resources);
    aml_device(out, "RTC0", &body);
}

/* "Virtual Machine Generation ID": ADDR is the address, its low half first; notification 0x80 says that it
 * changed. */
#define GENERATION_DEVICE "VGEN"
#define GENERATION_EVENT  0x80

static void put_generation(struct buffer *out)
{
    const uint64_t addr[] = {X86_64_VMGENID_BASE & UINT32_MAX, X86_64_VMGENID_BASE >> 32};
    struct buffer body = BUFFER_INIT;

    aml_name_string(&body, "_HID", "FRRY0001");
    aml_name_string(&body, "_CID", "VMGENCTR");
    aml_name_string(&body, "_DDN", "VM_Gen_Counter");
    aml_name_integer(&body, "_UID", 0);
    aml_name_package(&body, "ADDR", addr, ARRAY_SIZE(addr));
    aml_device(out, GENERATION_DEVICE, &body);
}

/*
 * The generic event device (§5.6.9) turns the generation's interrupt into its notification. The interrupt is
 * lowered by reading the end of the ID, whether or not there is a driver that does.
 */
static void put_events(struct buffer *out)
{
    struct board_place place = board_x86_64.place(BOARD_VMGENID, 0);
    struct buffer body = BUFFER_INIT, resources = BUFFER_INIT, method = BUFFER_INIT;

    aml_name_string(&body, "_HID", "ACPI0013");
    aml_name_integer(&body, "_UID", 0);
    aml_resource_interrupt(&resources, place.irq);
    aml_name_resources(&body, "_CRS", &resources);
    aml_region(&body, "VGID", (uint32_t)place.mmio_addr, VMGENID_SIZE);
    aml_field(&body, "VGID", "VGEE", VMGENID_SIZE - 4);
    aml_read(&method, "VGEE");
    aml_notify(&method, GENERATION_DEVICE, GENERATION_EVENT);
    aml_method(&body, "_EVT", 1, &method);
    aml_device(out, "GED0", &body);
}

static void put_dsdt(struct buffer *out, const struct machine_config *config)
{
    static const uint64_t sleep_types[] = {0, 0, 0, 0}; /* PM1 control's SLP_TYP is 0 */
    struct buffer bus = BUFFER_INIT;
    size_t start = table_begin(out, "DSDT", 2);
    unsigned number = 0;

    put_com1(&bus);
    put_rtc(&bus);
    put_virtio(&bus, &number, BOARD_RNG, 0);
    put_virtio(&bus, &number, BOARD_CONSOLE, 0);
    for (unsigned i = 0; i < config->disk_count; i++)
        put_virtio(&bus, &number, BOARD_BLK, i);
    for (unsigned i = 0; i < config->net_count; i++)
        put_virtio(&bus, &number, BOARD_NET, i);
    put_generation(&bus);
    put_events(&bus);
    aml_scope(out, "\\_SB_", &bus);
    aml_name_package(out, "\\_S5_", sleep_types, ARRAY_SIZE(sleep_types));
    table_end(out, start);
}

/* ---- the others ---- */

static void put_facs(struct buffer *out)
{
    size_t start;

    align(out);
    start = out->size;
    buffer_put(out, "FACS", 4);
    buffer_put_u32(out, FACS_SIZE);
    put_zeros(out, 24);
    buffer_put_u8(out, 2); /* version */
    put_zeros(out, FACS_SIZE - (out->size - start));
}

/* Generic address structure (§5.2.3.2): an I/O port. */
static void put_port_address(struct buffer *out, uint16_t port, uint8_t bits, uint8_t access)
{
    buffer_put_u8(out, 1);
    buffer_put_u8(out, bits);
    buffer_put_u8(out, 0);
    buffer_put_u8(out, access);
    buffer_put_u64(out, port);
}

/* Zeros up to the field at OFFSET of the table. */
static void fadt_skip(struct buffer *out, size_t start, size_t offset)
{
    put_zeros(out, start + offset > out->size ? start + offset - out->size : 0);
}

static void put_fadt(struct buffer *out, uint64_t dsdt, uint64_t facs)
{
    size_t start = table_begin(out, "FACP", FADT_REVISION);

    buffer_put_u32(out, (uint32_t)facs);
    buffer_put_u32(out, (uint32_t)dsdt);
    fadt_skip(out, start, 46);
    buffer_put_u16(out, SCI_IRQ);
    fadt_skip(out, start, 56);
    buffer_put_u32(out, X86_64_PORT_PM1A);
    fadt_skip(out, start, 64);
    buffer_put_u32(out, X86_64_PORT_PM1A + 4);
    fadt_skip(out, start, 88);
    buffer_put_u8(out, 4); /* PM1_EVT_LEN */
    buffer_put_u8(out, 2); /* PM1_CNT_LEN */
    fadt_skip(out, start, 96);
    buffer_put_u16(out, 0xffff); /* C2 and C3 are not there: latencies beyond the allowed */
    buffer_put_u16(out, 0xffff);
    fadt_skip(out, start, 108);
    buffer_put_u8(out, MC146818_CENTURY);
    buffer_put_u16(out, BOOT_LEGACY_DEVICES | BOOT_NO_VGA);
    fadt_skip(out, start, 112);
    buffer_put_u32(out, FADT_WBINVD | FADT_NO_PWR_BUTTON | FADT_NO_SLP_BUTTON | FADT_NO_FIXED_RTC |
                            FADT_RESET_REGISTER);
    put_port_address(out, X86_64_PORT_I8042, 8, 1);
    buffer_put_u8(out, RESET_VALUE);
    fadt_skip(out, start, 131);
    buffer_put_u8(out, FADT_MINOR);
    buffer_put_u64(out, 0); /* FACS: above */
    buffer_put_u64(out, dsdt);
    put_port_address(out, X86_64_PORT_PM1A, 32, 2);
    fadt_skip(out, start, 172);
    put_port_address(out, X86_64_PORT_PM1A + 4, 16, 2);
    fadt_skip(out, start, 268);
    buffer_put(out, "FERRY\0\0\0", 8);
    table_end(out, start);
}

static void put_madt(struct buffer *out, unsigned cpus)
{
    size_t start = table_begin(out, "APIC", 5);

    buffer_put_u32(out, LOCAL_APIC_ADDRESS);
    buffer_put_u32(out, MADT_PCAT);
    for (unsigned i = 0; i < cpus; i++) {
        buffer_put_u8(out, MADT_LOCAL_APIC);
        buffer_put_u8(out, 8);
        buffer_put_u8(out, (uint8_t)i); /* processor */
        buffer_put_u8(out, (uint8_t)i); /* APIC */
        buffer_put_u32(out, MADT_CPU_ENABLED);
    }
    buffer_put_u8(out, MADT_IO_APIC);
    buffer_put_u8(out, 12);
    buffer_put_u8(out, 0);
    buffer_put_u8(out, 0);
    buffer_put_u32(out, IO_APIC_ADDRESS);
    buffer_put_u32(out, 0); /* its first interrupt */
    buffer_put_u8(out, MADT_OVERRIDE);
    buffer_put_u8(out, 10);
    buffer_put_u8(out, 0); /* ISA */
    buffer_put_u8(out, SCI_IRQ);
    buffer_put_u32(out, SCI_IRQ);
    buffer_put_u16(out, MADT_LEVEL_HIGH);
    buffer_put_u8(out, MADT_LOCAL_NMI);
    buffer_put_u8(out, 6);
    buffer_put_u8(out, 0xff); /* all processors */
    buffer_put_u16(out, 0);
    buffer_put_u8(out, 1); /* LINT1 */
    table_end(out, start);
}

/* §5.2.5.3; its two sums are over 20 bytes and over all. */
static void fill_rsdp(struct buffer *out, uint64_t xsdt)
{
    static const uint8_t head[] = {'R', 'S', 'D', ' ', 'P', 'T', 'R', ' ',
                                   0,   'F', 'E', 'R', 'R', 'Y', ' ', 2};
    uint8_t *rsdp = out->data;

    if (buffer_failed(out))
        return;
    /* NOLINTNEXTLINE(bugprone-not-null-terminated-result): bytes, not text */
    memcpy(rsdp, head, sizeof(head));
    buffer_set_u32(out, 20, RSDP_SIZE);
    buffer_set_u32(out, 24, (uint32_t)xsdt);
    rsdp[RSDP_CHECKSUM] = checksum(rsdp, RSDP_CHECKSUM_PART);
    rsdp[RSDP_CHECKSUM_WHOLE] = checksum(rsdp, RSDP_SIZE);
}

/* Where the next table will be. */
static uint64_t next_address(struct buffer *out)
{
    align(out);
    return ACPI_START + out->size;
}

int acpi_make(const struct machine_config *config, struct buffer *out, struct ferry_error *err)
{
    uint64_t dsdt, facs, fadt, madt, xsdt;
    size_t start;

    put_zeros(out, RSDP_SIZE);
    dsdt = next_address(out);
    put_dsdt(out, config);
    facs = next_address(out);
    put_facs(out);
    fadt = next_address(out);
    put_fadt(out, dsdt, facs);
    madt = next_address(out);
    put_madt(out, config->vcpus);
    xsdt = next_address(out);
    start = table_begin(out, "XSDT", 1);
    buffer_put_u64(out, fadt);
    buffer_put_u64(out, madt);
    table_end(out, start);
    fill_rsdp(out, xsdt);
    if (buffer_failed(out))
        return error_set(err, -ENOMEM, "out of memory for the ACPI tables");
    return 0;
}

int acpi_write(const struct machine_config *config, struct memory *memory, struct ferry_error *err)
{
    struct buffer tables = BUFFER_INIT;
    int result = acpi_make(config, &tables, err);

    if (!result &&
        (tables.size > ACPI_END - ACPI_START || !memory_write(memory, ACPI_START, tables.data, tables.size)))
        result = error_set(err, -ENOSPC, "the ACPI tables do not fit into the VM's memory");
    buffer_free(&tables);
    return result;
}
