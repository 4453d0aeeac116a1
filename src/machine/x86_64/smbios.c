#include "machine/x86_64/smbios.h"

#include "base/error.h"

#include <errno.h>
#include <string.h>

/* §5.2.2 */
#define ENTRY_SIZE     24
#define ENTRY_CHECKSUM 5
#define ENTRY_REVISION 1
#define VERSION_MAJOR  3
#define VERSION_MINOR  3
#define TABLES_OFFSET  32 /* behind the entry point, at a multiple of 16 */

/* §7.1, §7.2 and §7.46; handles are their places in the order of tables */
#define TYPE_FIRMWARE 0
#define TYPE_SYSTEM   1
#define TYPE_END      127

#define CHARACTERISTICS_NOT_SAID (UINT64_C(1) << 3)
#define CHARACTERISTICS_ACPI     0x01 /* extension byte 1 */
#define CHARACTERISTICS_VM       0x10 /* extension byte 2 */
#define NO_CONTROLLER            0xff
#define WAKE_UP_POWER_SWITCH     6

static void begin(struct buffer *out, uint8_t type, uint8_t length, uint16_t handle)
{
    buffer_put_u8(out, type);
    buffer_put_u8(out, length);
    buffer_put_u16(out, handle);
}

/* The texts that a table's fields count from 1, and what ends it (§6.1.3). */
static void end(struct buffer *out, const char *const *texts, size_t count)
{
    for (size_t i = 0; i < count; i++)
        buffer_put(out, texts[i], strlen(texts[i]) + 1);
    if (count == 0)
        buffer_put_u8(out, 0);
    buffer_put_u8(out, 0);
}

static void put_firmware(struct buffer *out)
{
    static const char *const texts[] = {"Ferry", "1.0", "01/01/2026"};

    begin(out, TYPE_FIRMWARE, 26, 0);
    buffer_put_u8(out, 1);  /* vendor */
    buffer_put_u8(out, 2);  /* version */
    buffer_put_u16(out, 0); /* no segment: there is no ROM */
    buffer_put_u8(out, 3);  /* release date */
    buffer_put_u8(out, 0);
    buffer_put_u64(out, CHARACTERISTICS_NOT_SAID);
    buffer_put_u8(out, CHARACTERISTICS_ACPI);
    buffer_put_u8(out, CHARACTERISTICS_VM);
    buffer_put_u8(out, 1); /* release */
    buffer_put_u8(out, 0);
    buffer_put_u8(out, NO_CONTROLLER);
    buffer_put_u8(out, NO_CONTROLLER);
    buffer_put_u16(out, 0);
    end(out, texts, 3);
}

/* §7.2.1: the first three fields are little-endian. */
static void put_uuid(struct buffer *out, const uint8_t uuid[static UUID_SIZE])
{
    static const uint8_t order[UUID_SIZE] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};

    for (unsigned i = 0; i < UUID_SIZE; i++)
        buffer_put_u8(out, uuid[order[i]]);
}

static void put_system(struct buffer *out, const struct machine_config *config)
{
    const char *const texts[] = {"Ferry", config->machine};

    begin(out, TYPE_SYSTEM, 27, 1);
    buffer_put_u8(out, 1); /* manufacturer */
    buffer_put_u8(out, 2); /* product */
    buffer_put_u8(out, 0); /* version */
    buffer_put_u8(out, 0); /* serial number */
    put_uuid(out, config->uuid);
    buffer_put_u8(out, WAKE_UP_POWER_SWITCH);
    buffer_put_u8(out, 0); /* SKU number */
    buffer_put_u8(out, 0); /* family */
    end(out, texts, 2);
}

static void put_entry(struct buffer *out, const struct buffer *tables)
{
    uint8_t sum = 0;

    buffer_put(out, "_SM3_", 5);
    buffer_put_u8(out, 0); /* checksum: below */
    buffer_put_u8(out, ENTRY_SIZE);
    buffer_put_u8(out, VERSION_MAJOR);
    buffer_put_u8(out, VERSION_MINOR);
    buffer_put_u8(out, 0);
    buffer_put_u8(out, ENTRY_REVISION);
    buffer_put_u8(out, 0);
    buffer_put_u32(out, (uint32_t)tables->size);
    buffer_put_u64(out, SMBIOS_START + TABLES_OFFSET);
    if (buffer_failed(out))
        return;
    for (size_t i = 0; i < ENTRY_SIZE; i++)
        sum = (uint8_t)(sum + out->data[i]);
    out->data[ENTRY_CHECKSUM] = (uint8_t)-sum;
}

int smbios_make(const struct machine_config *config, struct buffer *out, struct ferry_error *err)
{
    struct buffer tables = BUFFER_INIT;

    put_firmware(&tables);
    put_system(&tables, config);
    begin(&tables, TYPE_END, 4, 2);
    end(&tables, NULL, 0);
    put_entry(out, &tables);
    while (out->size < TABLES_OFFSET && !buffer_failed(out))
        buffer_put_u8(out, 0);
    buffer_put(out, tables.data, tables.size);
    out->failed = out->failed || buffer_failed(&tables);
    buffer_free(&tables);
    return buffer_failed(out) ? error_set(err, -ENOMEM, "out of memory for the SMBIOS tables") : 0;
}

int smbios_write(const struct machine_config *config, struct memory *memory, struct ferry_error *err)
{
    struct buffer tables = BUFFER_INIT;
    int result = smbios_make(config, &tables, err);

    if (!result && (tables.size > SMBIOS_END - SMBIOS_START ||
                    !memory_write(memory, SMBIOS_START, tables.data, tables.size)))
        result = error_set(err, -ENOSPC, "the SMBIOS tables do not fit into the VM's memory");
    buffer_free(&tables);
    return result;
}
