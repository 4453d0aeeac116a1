#include "machine/x86_64/pc_ports.h"

#include "machine/x86_64/layout.h"

/* ACPI 6.4 §4.8.3.1.2: PM1 enable; §4.8.3.2.1: PM1 control. The sleep type of S5 is 0, as the DSDT says. */
#define PM1_ENABLE       2 /* offset in the blocks */
#define PM1_CONTROL      4
#define PM1_SCI_ENABLE   0x0001
#define PM1_SLEEP_TYPE   0x1c00
#define PM1_SLEEP_ENABLE 0x2000
#define PM1_SIZE         6

/* IBM PC AT Technical Reference, keyboard controller: commands 0xf0 to 0xff pulse output lines whose bits
 * are 0; line 0 is the processor's reset. */
#define I8042_PULSE      0xf0
#define I8042_RESET_LINE 0x01

static const struct state_field ports_fields[] = {
    STATE_FIELD(struct pc_ports, pm1_enable, STATE_U16),
};

const struct state_table pc_ports_state = {
    .name = "ports",
    .version = 1,
    .fields = ports_fields,
    .field_count = ARRAY_SIZE(ports_fields),
    .object_size = sizeof(struct pc_ports),
};

static uint64_t pm1_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct pc_ports *ports = opaque;

    if (offset == PM1_ENABLE)
        return __atomic_load_n(&ports->pm1_enable, __ATOMIC_RELAXED);
    return offset == PM1_CONTROL ? PM1_SCI_ENABLE : 0;
}

static void pm1_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pc_ports *ports = opaque;

    if (offset == PM1_ENABLE && size == 2)
        __atomic_store_n(&ports->pm1_enable, (uint16_t)value, __ATOMIC_RELAXED);
    if (offset != PM1_CONTROL || size < 2 || !(value & PM1_SLEEP_ENABLE) || (value & PM1_SLEEP_TYPE))
        return;
    ports->platform->event(ports->platform->opaque, ACCEL_EVENT_POWER_OFF, "ACPI S5");
}

static uint64_t i8042_read(void *opaque, uint64_t offset, unsigned size)
{
    return 0; /* both buffers are empty */
}

static void i8042_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pc_ports *ports = opaque;

    if ((value & I8042_PULSE) == I8042_PULSE && !(value & I8042_RESET_LINE))
        ports->platform->event(ports->platform->opaque, ACCEL_EVENT_RESET, "keyboard controller");
}

static const struct mmio_ops pm1_ops = {.read = pm1_read, .write = pm1_write};
static const struct mmio_ops i8042_ops = {.read = i8042_read, .write = i8042_write};

int pc_ports_init(struct pc_ports *ports, struct mmio_bus *bus, const struct accel_platform *platform,
                  struct ferry_error *err)
{
    int result;

    *ports = (struct pc_ports){.platform = platform};
    result = mmio_bus_add(bus, "acpi-pm1", X86_64_PORTS + X86_64_PORT_PM1A, PM1_SIZE, &pm1_ops, ports, err);
    if (result)
        return result;
    return mmio_bus_add(bus, "i8042", X86_64_PORTS + X86_64_PORT_I8042, 1, &i8042_ops, ports, err);
}
